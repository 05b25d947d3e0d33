-- doctor_ranks.lua - `segzero --ranks N doctor` or `mpirun ... segzero doctor`: what each rank has,
-- which rank differs, and how fast they exchange data.
--
--   doctor_ranks.run(world)      world: ranks.world(); all ranks call it, rank 0 prints
--
-- A rank differs if its version, its processor or its number of threads is not that of rank 0: then
-- results depend on which rank computes, or all wait for the slowest. Raises nothing for that.
-- The table: one message of 8 bytes, and sums of 1 and 64 MiB of f32. Bytes are those that each rank
-- sends. Leaves out: GPUs and their network.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local plan = require "segzero.tools.plan"
local ranks = require "segzero.core.ranks"
local tensor = require "segzero.core.tensor"

local C = core.C
local M = {}

local MIB = 2 ^ 20
local F32 = 4                   -- bytes
local SUMS = { 1, 64 }          -- MiB
local REPEATS = 5

local function processor()
  for text in io.lines "/proc/cpuinfo" do
    local name = text:match "^model name%s*:%s*(.-)%s*$"
    if name then return name end
  end
  return "unknown"
end

local function own_facts()
  return { version = ffi.string(C.sz_version()), processor = processor(), threads = C.sz_threads(),
    free = plan.device().free }
end

-- What all must share, with the word for a message.
local EQUAL = { { "version", "segzero" }, { "processor", "processor" }, { "threads", "threads" } }

local function print_facts(world, facts)
  local different = 0
  for r, fact in ipairs(facts) do
    print(("rank %-14s segzero %s, %d threads, %s available, %s"):format(world:name(r - 1),
      fact.version, fact.threads, plan.gib(fact.free), fact.processor))
  end
  for r, fact in ipairs(facts) do
    for _, entry in ipairs(EQUAL) do
      local key, word = entry[1], entry[2]
      if fact[key] ~= facts[1][key] then
        different = different + 1
        print(("rank %s differs: %s %s, rank 0 has %s"):format(world:name(r - 1), word,
          tostring(fact[key]), tostring(facts[1][key])))
      end
    end
  end
  if different == 0 then print "all ranks have the same version, processor and threads" end
end

-- The shortest time of several calls: others are those that something else slowed down.
local function shortest(world, f)
  local best = math.huge
  for _ = 1, REPEATS do
    world:barrier()
    local started = C.sz_seconds()
    f()
    best = math.min(best, C.sz_seconds() - started)
  end
  return best
end

local function measure(world, say)
  local seconds = shortest(world, function() world:barrier() end)
  say(("barrier of %d ranks: %.1f us"):format(world:size(), seconds * 1e6))
  for _, mib in ipairs(SUMS) do
    local t = tensor.zeros { mib * MIB / F32 }
    local before = ranks.bytes_sent()
    seconds = shortest(world, function() world:all_reduce(t) end)
    local sent = (ranks.bytes_sent() - before) / REPEATS
    say(("sum of %d MiB: %.1f ms, %.2f GB/s"):format(mib, seconds * 1e3, sent / seconds / 1e9))
    t:free()
  end
end

function M.run(world)
  local is_root = world:rank() == 0
  local facts = world:gather(own_facts())
  if is_root then print_facts(world, facts) end
  measure(world, function(text) if is_root then print(text) end end)
end

return M
