-- test_rank_faults.lua - several ranks of which one fails: a collective, or a write of its part of
-- a checkpoint, or what rank 0 does alone. Every rank ends within a bounded time with one line, and
-- older checkpoints stay whole.
--
-- Needs Open MPI. Left out: several machines; failing rewards and signals (test_ranks.lua).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local runs = require "tests.support.rank_runs"
local checkpoint = require "segzero.train.run.checkpoint"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local manifest = require "segzero.runs.manifest"

if not runs.available() then
  check.finish()
  return
end

local place = runs.begin()

-- ---- collectives ----
-- The run resumes at step 1. After step 2 one rank is told to fail; it saves step 2, makes step 3
-- and saves that. Prints how many exchanges there were.
local FAILING = [[
  local ranks = require "segzero.core.ranks"
  local first
  require("recipes.refcocog_grpo").run(arg, {
    on_step = function(t)
      if t.global_step ~= 2 then return end
      first = ranks.exchanges()
      if ranks.world():rank() == tonumber(os.getenv "FAIL_RANK") then
        ranks.fail_after(tonumber(os.getenv "FAIL_AT"))
      end
    end })
  io.stderr:write(("exchanges of rank %d: %d\\n"):format(ranks.world():rank(),
    ranks.exchanges() - first))]]
local NEVER = -1
local AT_ONCE = 2                -- runs at a time
local SOME = 24                  -- runs of a kind, spread over all exchanges; FAULTS=all: all
local LAST = 6                   -- the last exchanges save the checkpoint

local KINDS = {
  { name = "two replicas over TCP", ranks = 2, transport = "tcp" },
  { name = "two replicas over MPI", ranks = 2, transport = "mpi", some = 4 },
  { name = "two shards over TCP", ranks = 2, transport = "tcp", shards = 2,
    some = 12 },
  { name = "two replicas of two shards over TCP", ranks = 4, transport = "tcp", shards = 2,
    some = 8 },
}

local function settings(kind, name, extra)
  local words = { "data.val_files=None", "trainer.collective_timeout=20", "trainer.save_limit=1",
    "worker.rollout.tensor_parallel_size=" .. (kind.shards or 1) }
  for _, word in ipairs(extra) do words[#words + 1] = word end
  return runs.words(name, words)
end

-- The n-th exchange of this rank fails.
local function start_failing(kind, n, rank)
  local name = ("%s_%d_%d"):format(kind.base, rank, n)
  local folder = place .. "/" .. name
  mini.copy(place .. "/" .. kind.base, folder)
  local words = settings(kind, name, { "trainer.max_steps=3",
    "trainer.load_checkpoint_path=" .. folder })
  words[1] = place .. "/failing.lua"
  local env = { FAIL_AT = tostring(n), FAIL_RANK = tostring(rank),
    SEGZERO_TRANSPORT = kind.transport }
  local output = folder .. ".txt"
  local child = process.start(runs.command(kind.ranks, words), { env = env, output = output })
  return { child = child, started = process.now(), folder = folder, output = output, n = n,
    rank = rank, kind = kind }
end

-- Every complete checkpoint is whole, and there is one.
local function check_checkpoints(run, what)
  local list = checkpoint.list(run.folder)
  check.ok(#list > 0, what .. "no checkpoint is left")
  for _, one in ipairs(list) do
    local ok, reason = pcall(manifest.check, one.path)
    check.ok(ok and reason, what .. tostring(reason))
  end
  return list[#list].step
end

local function check_failed(run)
  local status = process.wait(run.child)
  local text = files.read(run.output)
  local what = ("%s, exchange %d of rank %d: "):format(run.kind.name, run.n, run.rank)
  check.ok(process.now() - run.started < 60, what .. "the time")
  check.ok(status ~= 0, what .. "the status")
  check_checkpoints(run, what)
  local line = "segzero: rank %d %%(host [^)]+%%): a test made this collective fail"
  local _, lines = text:gsub(line:format(run.rank), "")
  check.equal(lines, 1, what .. "lines: " .. text:sub(-600))
  local _, all = text:gsub("segzero: ", "")
  check.equal(all, 1, what .. "messages: " .. text:sub(-600))
end

-- How many exchanges a run has in which none fails.
local function count_exchanges(kind)
  local run = start_failing(kind, NEVER, 0)
  check.equal(process.wait(run.child), 0, kind.name .. ": a run in which nothing fails")
  check.equal(check_checkpoints(run, kind.name .. ": "), 3, "the last step")
  return tonumber(files.read(run.output):match "exchanges of rank 0: (%d+)")
end

-- Which of them fail: all, or some that are spread evenly and the last ones.
local function chosen(total, some)
  local list = {}
  local step = 1
  if os.getenv "FAULTS" ~= "all" then step = math.max(1, math.floor(total / some)) end
  for n = 0, total - 1 do
    if n % step == 0 or n >= total - LAST then list[#list + 1] = n end
  end
  return list
end

for _, kind in ipairs(KINDS) do
  check.case("exchanges of a step and a checkpoint fail in turn: " .. kind.name, function()
    files.write(place .. "/failing.lua", FAILING)
    kind.base = kind.name:gsub(" ", "_")
    local text, status = runs.run(kind.ranks, settings(kind, kind.base,
      { "trainer.max_steps=1" }), { SEGZERO_TRANSPORT = kind.transport })
    check.equal(status, 0, text:sub(-600))
    local total = count_exchanges(kind)
    check.ok(total and total > 20, "exchanges: " .. tostring(total))
    local list = chosen(total, kind.some or SOME)
    for first = 1, #list, AT_ONCE do
      local started = {}
      for i = first, math.min(first + AT_ONCE - 1, #list) do
        started[#started + 1] = start_failing(kind, list[i], i % kind.ranks)
      end
      for _, run in ipairs(started) do check_failed(run) end
    end
    print(("%s: %d exchanges, %d of them failed"):format(kind.name, total, #list))
  end)
end

-- ---- a write ----
-- From the second step on, rank 1 may write no more than a byte to a file.
local FULL = [[
  local calls = 0
  return function(text)
    calls = calls + 1
    if calls == 5 and os.getenv "OMPI_COMM_WORLD_RANK" == "1" then
      local ffi = require "ffi"
      ffi.cdef "int setrlimit(int, const uint64_t *);"
      ffi.C.setrlimit(1, ffi.new("uint64_t[2]", 1, 1))
    end
    return #text
  end]]

check.case("a rank that cannot write its part of the optimizer is named", function()
  files.write(place .. "/full.lua", FULL)
  local text, status = runs.run(2, runs.words("full", { "trainer.max_steps=3",
    "data.val_files=None", "worker.reward.compute_score=" .. place .. "/full.lua" }))
  check.equal(status, 1, "the status")
  local folder = place .. "/full"
  local wanted = ("global_step_2 is not written: rank 1 %(host [^)]+%): %S+/" ..
    "optimizer.safetensors.tmp: cannot write: File too large")
  local _, lines = text:gsub("segzero: [^\n]*" .. wanted, "")
  check.equal(lines, 1, "messages: " .. text:sub(-800))
  check.ok(manifest.check(folder .. "/global_step_1"), "the older checkpoint")
  check.equal(checkpoint.latest(folder), folder .. "/global_step_1", "the newest one")
  for _, name in ipairs(folders.list(folder)) do
    check.ok(not name:find "%.tmp", name .. " is left")
  end
end)

-- ---- what rank 0 does alone ----
-- A folder is in the way of a file that rank 0 writes; a reward writes its next version; a logger
-- fails.
local ALONE = [[
  local files = require "segzero.core.files"
  local sz = require "segzero"
  local kind, place, folder = unpack(arg)
  local words = {}
  for i = 4, #arg do words[#words + 1] = arg[i] end
  local function fail_at_two(_, step)
    if kind == "log" and step == 2 then error "no space is left" end
  end
  sz.loggers:register("failing", { help = "fails at step 2", open = function()
    return { scalars = fail_at_two, close = function()
      if kind == "end of the log" then error "no space is left" end
    end }
  end })
  require("recipes.refcocog_grpo").run(words, { on_step = function(t, stats)
    if stats.step > 1 or not t.parallel:is_root() then return end
    if kind == "checkpoint" then files.make_dir(folder .. "/latest/x") end
    if kind ~= "reward" then return end
    files.make_dir(folder .. "/reward_step_2.lua/x")
    files.write(place .. "/changing.lua", "return function(text) return 1 + #text end")
  end })
]]

local ALONE_KINDS = {
  { "log", "the logger failing failed: %S+ no space is left" },
  { "end of the log", "the logger failing failed: %S+ no space is left" },
  { "checkpoint", "the checkpoint %S+/global_step_1 is not written: %S+/latest: cannot rename" },
  { "reward", "cannot write %S+/reward_step_2.lua: " },
}

for _, kind in ipairs(ALONE_KINDS) do
  check.case("a failure on rank 0 alone ends all ranks with its reason: " .. kind[1], function()
    files.write(place .. "/alone.lua", ALONE)
    files.write(place .. "/changing.lua", "return function(text) return #text end")
    local name = "alone_" .. kind[1]:gsub(" ", "_")
    local words = runs.words(name, { "trainer.max_steps=3", "data.val_files=None",
      "worker.reward.compute_score=" .. place .. "/changing.lua",
      "trainer.logger=console,jsonl,failing", "trainer.collective_timeout=20" })
    words[1] = place .. "/alone.lua"
    for i, word in ipairs { kind[1], place, place .. "/" .. name } do
      table.insert(words, i + 1, word)
    end
    local text, status = runs.run(2, words)
    check.equal(status, 1, text:sub(-600))
    local _, lines = text:gsub("segzero: rank 0 %(host [^)]+%): " .. kind[2], "")
    check.equal(lines, 1, "its reason: " .. text:sub(-600))
    local _, all = text:gsub("segzero: ", "")
    check.equal(all, 1, "messages: " .. text:sub(-600))
  end)
end

mini.remove()
check.finish()
