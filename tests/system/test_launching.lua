-- test_launching.lua - how many ranks a Seg-Zero command line becomes: trainer.n_gpus_per_node and
-- trainer.nnodes.
--
-- Left out: GPUs; torchrun and srun (test_ranks_tcp.lua).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local runs = require "tests.support.rank_runs"
local host = require "segzero.host"
local files = require "segzero.core.files"

local place = runs.begin()

local function expect(text, pattern)
  check.ok(text:find(pattern), pattern .. " in: " .. text:sub(-800))
end

local function count(text, pattern)
  local _, n = text:gsub(pattern, "")
  return n
end

local function words(name, ...)
  return runs.words(name, { "trainer.max_steps=1", "data.val_files=None",
    "trainer.save_freq=-1", ... })
end

check.case("on the processor one process trains, and a note says so", function()
  for gpus, pattern in pairs { ["trainer.n_gpus_per_node=8"] =
    "note: trainer.n_gpus_per_node=8: one process trains on the processor; %-%-device cuda uses",
    ["trainer.nnodes=2"] = "note: trainer.nnodes=2: this process trains alone; mpirun, srun" } do
    local argv = { host.executable, "--threads", "1" }
    for _, word in ipairs(words("alone", gpus)) do argv[#argv + 1] = word end
    local text, status = process.run(argv, { timeout = runs.TIMEOUT })
    check.equal(status, 0, text:sub(-600))
    expect(text, pattern)
    check.equal(count(text, "note: trainer%.n"), 1, "notes: " .. text)
  end
end)

check.case("a launcher's ranks count; another number is said once", function()
  local env = { SEGZERO_TRANSPORT = "tcp" }
  local text, status = runs.run(2, words("two", "trainer.n_gpus_per_node=4"), env)
  check.equal(status, 0, text:sub(-600))
  check.equal(count(text, "note: trainer.n_gpus_per_node=4 and trainer.nnodes=1 are 4 ranks, the "
    .. "launcher started 2: these train"), 1, text)
  text, status = runs.run(2, words("same", "trainer.n_gpus_per_node=2"), env)
  check.equal(status, 0, text:sub(-600))
  check.equal(count(text, "note: trainer%.n"), 0, "nothing to say: " .. text)
end)

check.case("a program that starts itself again on several ranks", function()
  local script = place .. "/again.lua"
  files.write(script, [[
    local ranks = require "segzero.core.ranks"
    if not ranks.launched() then
      require("segzero.host").start_ranks(3)
      print "not reached"
    end
    local world = ranks.world()
    print(("rank %d of %d: %s"):format(world:rank(), world:size(), (...)))
    if arg[2] and world:rank() == 1 then world:barrier() os.exit(7) end
    world:barrier()]])
  local argv = { host.executable, "--threads", "1", script, "word" }
  local text, status = process.run(argv, { timeout = 60, env = { SEGZERO_TRANSPORT = "tcp" } })
  check.equal(status, 0, text)
  for r = 0, 2 do expect(text, ("rank %d of 3: word"):format(r)) end
  check.ok(not text:find "not reached", text)
  argv[#argv + 1] = "fail"
  text, status = process.run(argv, { timeout = 60, env = { SEGZERO_TRANSPORT = "tcp" } })
  check.equal(status, 7, text)
end)

mini.remove()
check.finish()
