-- test_split_faults.lua - a model on two shards of which one fails, is killed or stalls: both end
-- within a bounded time, with one line, and the last checkpoint is whole.
--
-- Needs Open MPI. Left out: replicas of whole models (test_rank_faults.lua, test_ranks.lua),
-- several machines.

local check = require "tests.support.check"
local files = require "segzero.core.files"
local manifest = require "segzero.runs.manifest"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local runs = require "tests.support.rank_runs"

if not runs.available() then
  check.finish()
  return
end

local place = runs.begin()
local TIMEOUT = 3                -- trainer.collective_timeout of these runs

-- What happens after step 3, when the checkpoint of step 1 is complete, on the rank that RANK
-- names: CASE.
local SCRIPT = [[
  local ranks = require "segzero.core.ranks"
  local unistd = require "posix.unistd"
  local is_chosen = (os.getenv "OMPI_COMM_WORLD_RANK" or "0") == os.getenv "RANK"
  local case = os.getenv "CASE"
  local steps = 0
  local prompts = require "segzero.data.prompt"
  local happens = {
    raises = function() error "this prompt fails" end,
    dies = function() require("posix.signal").kill(unistd.getpid(), 9) end,
    stalls = function() unistd.sleep(60) end,
  }
  require("recipes.refcocog_grpo").run(arg, {
    prompt = function(problem)
      if steps == 3 and is_chosen and happens[case] then happens[case]() end
      return prompts.seg_zero(problem)
    end,
    reward = function(text)
      if steps == 3 and case == "reward" then error "no more" end
      return #text % 7
    end,
    on_step = function()
      steps = steps + 1
      local fails = case == "fails" and steps == 3 and is_chosen
      if fails then ranks.fail_after(tonumber(os.getenv "FAIL_AT")) end
    end,
  })]]
files.write(place .. "/script.lua", SCRIPT)

local function start(name, env, extra)
  local words = runs.words(name, { "trainer.max_steps=4", "data.val_files=None",
    "worker.rollout.tensor_parallel_size=2", "trainer.collective_timeout=" .. TIMEOUT,
    unpack(extra or {}) })
  words[1] = place .. "/script.lua"
  local run = { name = name, started = process.now(), output = ("%s/%s.txt"):format(place, name) }
  run.child = process.start(runs.command(2, words), { env = env, output = run.output })
  return run
end

-- Ended in time, and with a whole checkpoint of step 1 where there is one. Returns status and text.
local function finish(run)
  local status = process.wait(run.child)
  local seconds = process.now() - run.started
  check.ok(seconds < 45, ("%s took %.0f s"):format(run.name, seconds))
  local path = ("%s/%s/global_step_1"):format(place, run.name)
  check.ok(manifest.check(path), run.name .. ": the checkpoint of step 1")
  return status, files.read(run.output)
end

local function expect_one(text, pattern, what)
  local _, count = text:gsub(pattern, "")
  check.equal(count, 1, ("%s: %s"):format(what, text:sub(-700)))
end

-- ---- collectives ----
local AT_ONCE = 4
local PLACES = { 0, 1, 2, 3, 5, 9, 17, 33, 65, 97, 129, 161 }

check.case("a collective that fails on one shard ends both with one line", function()
  for rank = 0, 1 do
    local failed = 0
    for first = 1, #PLACES, AT_ONCE do
      local started = {}
      for i = first, math.min(first + AT_ONCE - 1, #PLACES) do
        started[#started + 1] = start(("fails_%d_%d"):format(rank, PLACES[i]),
          { CASE = "fails", RANK = tostring(rank), FAIL_AT = tostring(PLACES[i]) })
      end
      for _, run in ipairs(started) do
        local status, text = finish(run)
        check.ok(status ~= 0, run.name .. ": the status")
        expect_one(text, ("segzero: rank %d %%(host [^)]+%%): a test made this collective fail")
          :format(rank), run.name)
        expect_one(text, "segzero: rank", run.name)
        failed = failed + 1
      end
    end
    check.equal(failed, #PLACES, "failures of rank " .. rank)
  end
end)

-- ---- a rank that dies or stalls ----
check.case("a shard that is killed or stalls is named within the time limit", function()
  for rank = 0, 1 do
    local names = { dies = "is gone", stalls = "has not answered for 3 s" }
    for case, words in pairs(names) do
      local run = start(("%s_%d"):format(case, rank), { CASE = case, RANK = tostring(rank) })
      local status, text = finish(run)
      check.ok(status ~= 0, run.name .. ": the status")
      expect_one(text, ("segzero: rank %d [^\n]*rank %d %%(host [^)]+%%) %s"):format(1 - rank, rank,
        words), run.name)
    end
  end
end)

-- ---- what all shards see ----
check.case("a prompt that fails on one shard, a reward that fails on the first", function()
  for rank = 0, 1 do
    local run = start("raises_" .. rank, { CASE = "raises", RANK = tostring(rank) })
    local status, text = finish(run)
    check.equal(status, 1, run.name)
    local wanted = "rank %d %%(host [^)]+%%): the prompt failed: [^\n]*this prompt fails"
    expect_one(text, wanted:format(rank), run.name)
    expect_one(text, "ended by an error after step 3; saved ", run.name)
  end
  local status, text = finish(start("reward", { CASE = "reward", RANK = "0" }))
  check.equal(status, 1, "the reward")
  expect_one(text, "rank 0 %(host [^)]+%): the reward failed on row", "the reward")
  expect_one(text, "no more", "the reward")
  expect_one(text, "ended by an error after step 3; saved ", "the reward")
end)

check.case("SIGTERM ends both shards and saves the last finished step", function()
  local run = start("stopped", { CASE = "none", RANK = "0" }, { "trainer.max_steps=1000" })
  local log = place .. "/stopped/metrics.jsonl"
  local deadline = process.now() + 60
  while (files.read(log) or "") == "" and process.now() < deadline do
    require("posix.unistd").sleep(1)
  end
  process.signal(run.child, 15)
  local status, text = finish(run)
  check.equal(status, 128 + 15, text:sub(-400))
  expect_one(text, "stopped by SIG%w+ after step %d+; saved [^;]+; go on with: ", "stopped")
end)

mini.remove()
check.finish()
