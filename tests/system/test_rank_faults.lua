-- test_rank_faults.lua - several ranks of which one fails: a collective, a write of its part of a
-- checkpoint. Every rank ends within a bounded time with one line, and older checkpoints stay whole.
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
-- A reward that is called first in the second step makes a collective of one rank fail there.
local FAILING = [[
  local ranks = require "segzero.core.ranks"
  local armed = false
  return function(text)
    if not armed and os.getenv "OMPI_COMM_WORLD_RANK" == os.getenv "FAIL_RANK" then
      ranks.fail_after(tonumber(os.getenv "FAIL_AT"))
      armed = true
    end
    return #text
  end]]
local AT_ONCE = 4                -- runs at a time
local MOST = 200                 -- collectives of a step and a checkpoint

-- The run resumes at step 1, makes step 2, saves it and removes step 1.
local function start_failing(n, rank)
  local name = ("fail_%d_%d"):format(rank, n)
  local folder = place .. "/" .. name
  mini.copy(place .. "/fail_base", folder)
  local words = runs.words(name, { "trainer.max_steps=2", "data.val_files=None",
    "trainer.collective_timeout=20", "trainer.load_checkpoint_path=" .. folder,
    "trainer.save_limit=1", "worker.reward.compute_score=" .. place .. "/failing.lua" })
  local env = { FAIL_AT = tostring(n), FAIL_RANK = tostring(rank) }
  local started = process.now()
  local output = folder .. ".txt"
  local child = process.start(runs.command(2, words), { env = env, output = output })
  return { child = child, started = started, folder = folder, output = output, n = n, rank = rank }
end

-- Returns whether no collective failed.
local function check_failed(run)
  local status = process.wait(run.child)
  local text = files.read(run.output)
  local what = ("collective %d of rank %d: "):format(run.n, run.rank)
  check.ok(process.now() - run.started < 60, what .. "the time")

  -- There is a complete checkpoint, and every complete one is whole.
  local list = checkpoint.list(run.folder)
  check.ok(#list > 0, what .. "no checkpoint is left")
  for _, one in ipairs(list) do
    local ok, reason = pcall(manifest.check, one.path)
    check.ok(ok and reason, what .. tostring(reason))
  end
  if status == 0 then
    check.equal(list[#list].step, 2, what .. "the last step")
    return true
  end
  local _, lines = text:gsub("segzero: rank %d %(host [^)]+%): a test made this collective fail", "")
  check.equal(lines, 1, what .. "lines: " .. text:sub(-600))
  local _, all = text:gsub("segzero: ", "")
  check.equal(all, 1, what .. "messages: " .. text:sub(-600))
  return false
end

check.case("every collective of a step and a checkpoint fails in turn", function()
  files.write(place .. "/failing.lua", FAILING)
  runs.train(2, "fail_base", { "trainer.max_steps=1", "data.val_files=None" })
  for rank = 0, 1 do
    local failed = 0
    local done = false
    for first = 0, MOST, AT_ONCE do
      local started = {}
      for i = 1, AT_ONCE do started[i] = start_failing(first + i - 1, rank) end
      for _, run in ipairs(started) do
        local succeeded = check_failed(run)
        done = done or succeeded
        if not succeeded then failed = failed + 1 end
      end
      if done then break end
    end
    check.ok(done, "a run in which nothing failed")
    check.ok(failed > 20, ("%d collectives of rank %d failed"):format(failed, rank))
    print(("rank %d: %d collectives failed"):format(rank, failed))
  end
end)

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

mini.remove()
check.finish()
