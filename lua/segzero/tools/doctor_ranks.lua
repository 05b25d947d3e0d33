-- doctor_ranks.lua - `segzero --ranks N doctor`, or `mpirun ... segzero doctor`: what each rank
-- has, which rank differs, and how fast they exchange data.
--
--   doctor_ranks.run(world)      world: ranks.world(); all ranks call it, rank 0 prints
--
-- All ranks must have the same program, processor, threads, device and variables: else results
-- depend on which rank computes, or all wait for the slowest. And they must see the same folder,
-- because run folders and models are shared. A rank that differs from most is named; if there is no
-- majority, from rank 0. Raises nothing for that.
-- Two tables: rank 0 with each other rank alone, and sums over all ranks by size. Times are the
-- shortest of several, bytes those that each rank sends.
-- Leaves out: the network between GPUs; models and data.

local ffi = require "ffi"
local checksum = require "segzero.core.checksum"
local core = require "segzero.core.ffi"
local folders = require "segzero.core.folders"
local plan = require "segzero.tools.plan"
local ranks = require "segzero.core.ranks"
local tensor = require "segzero.core.tensor"

local C = core.C
local M = {}

local F32 = 4                   -- bytes
local KIB = 2 ^ 10
local MIB = 2 ^ 20
local SIZES = { F32, KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB }
local PAIR = 4 * MIB            -- bytes between two ranks
local REPEATS = 5
local MANY = 50                 -- small messages are timed together

-- What segzero and its libraries read; what a launcher sets for each rank is something else.
local VARIABLES = { "SEGZERO_CUDA_LIBRARY", "SEGZERO_CUDNN", "SEGZERO_CACHE", "OMP_WAIT_POLICY",
  "OMP_PROC_BIND", "DNNL_MAX_CPU_ISA", "HF_HOME", "HF_HUB_OFFLINE" }

-- ---- what a rank has ----
local function processor()
  for text in io.lines "/proc/cpuinfo" do
    local name = text:match "^model name%s*:%s*(.-)%s*$"
    if name then return name end
  end
  return "unknown"
end

-- A checksum of the core library and of all scripts.
local function program()
  local has_host, host = pcall(require, "segzero.host")
  local sums = {}
  local function add_folder(path)
    for _, name in ipairs(folders.list(path) or {}) do
      local inner = path .. "/" .. name
      if name:find "%.lua$" then
        sums[#sums + 1] = checksum.file(inner)
      elseif folders.kind(inner) == "folder" then
        add_folder(inner)
      end
    end
  end
  if has_host and host.library then sums[1] = checksum.file(host.library) end
  for _, name in ipairs { "lua", "recipes", "rewards" } do add_folder(core.root .. "/" .. name) end
  return checksum.text(table.concat(sums))
end

-- The current folder and its number in the file system, which is the same on all machines that
-- share it.
local function folder()
  local stat = require("posix.sys.stat").stat "."
  local path = require("posix.unistd").getcwd()
  return ("%s (inode %s)"):format(path or "?", stat and stat.st_ino or "?")
end

local function own_facts()
  local facts = { version = ffi.string(C.sz_version()), program = program(),
    processor = processor(), kernels = ffi.string(C.sz_processor_describe()),
    threads = C.sz_threads(), folder = folder(),
    device = os.getenv "SEGZERO_DEVICE" or "cpu", free = plan.device().free }
  for _, name in ipairs(VARIABLES) do facts[name] = os.getenv(name) or "" end
  return facts
end

-- ---- comparing ----
-- What all must share, with the word for a message.
local EQUAL = { { "version", "segzero" }, { "program", "files of segzero, checksum" },
  { "processor", "processor" }, { "kernels", "CPU kernels" }, { "threads", "threads" },
  { "device", "device" }, { "folder", "folder" } }
for _, name in ipairs(VARIABLES) do EQUAL[#EQUAL + 1] = { name, name } end

-- The value that most ranks have, and one of them (from 1); rank 0's where no value has a majority.
local function usual(facts, key)
  local counts = {}
  for _, fact in ipairs(facts) do counts[fact[key]] = (counts[fact[key]] or 0) + 1 end
  for r, fact in ipairs(facts) do
    if counts[fact[key]] * 2 > #facts then return fact[key], r end
  end
  return facts[1][key], 1
end

local function shown(value)
  if value == "" then return "none" end
  return tostring(value)
end

-- Lines that name the ranks that differ.
function M.differences(facts, name_of)
  local lines = {}
  for _, entry in ipairs(EQUAL) do
    local key, word = entry[1], entry[2]
    local value, owner = usual(facts, key)
    for r, fact in ipairs(facts) do
      if fact[key] ~= value then
        lines[#lines + 1] = ("rank %s differs: %s %s, rank %d has %s"):format(name_of(r - 1), word,
          shown(fact[key]), owner - 1, shown(value))
      end
    end
  end
  return lines
end

local function machines(world)
  local names, counts = {}, {}
  for r = 0, world:size() - 1 do
    local host = world:name(r):match "%(host (.*)%)"
    if not counts[host] then names[#names + 1] = host end
    counts[host] = (counts[host] or 0) + 1
  end
  local list = {}
  for i, host in ipairs(names) do list[i] = ("%s %d"):format(host, counts[host]) end
  return #names, table.concat(list, ", ")
end

local function print_facts(world, facts)
  local count, list = machines(world)
  local place = "1 machine"
  if count > 1 then place = count .. " machines" end
  print(("%d ranks on %s, over %s: %s"):format(world:size(), place, ranks.transport(), list))
  for r, fact in ipairs(facts) do
    print(("rank %-14s segzero %s, %d threads, %s available, %s"):format(world:name(r - 1),
      fact.version, fact.threads, plan.gib(fact.free), fact.processor))
  end
  local lines = M.differences(facts, function(r) return world:name(r) end)
  for _, line in ipairs(lines) do print(line) end
  if #lines > 0 then return end
  print "all ranks have the same files of segzero, processor, threads, device, variables and folder"
end

-- ---- how fast ----
-- Seconds of a call: the shortest mean of `rounds` calls. Longer ones are those that something else
-- slowed down.
local function shortest(group, rounds, f)
  local best = math.huge
  for _ = 1, REPEATS do
    group:barrier()
    local started = C.sz_seconds()
    for _ = 1, rounds do f() end
    best = math.min(best, (C.sz_seconds() - started) / rounds)
  end
  return best
end

local function size_text(bytes)
  if bytes >= MIB then return ("%d MiB"):format(bytes / MIB) end
  if bytes >= KIB then return ("%d KiB"):format(bytes / KIB) end
  return ("%d bytes"):format(bytes)
end

-- Rank 0 with each other rank, while the others wait: both send PAIR bytes.
local function measure_pairs(world, say)
  if world:size() == 2 then return end          -- the sums say it
  say(("rank 0 with%18s %9s"):format("latency", "GB/s"))
  for r = 1, world:size() - 1 do
    local is_in = world:rank() == 0 or world:rank() == r
    local pair = world:split(is_in and 0 or 1)
    if is_in then
      local latency = shortest(pair, MANY, function() pair:barrier() end)
      local part = tensor.zeros { PAIR / F32 }
      local whole = tensor.zeros { 2 * PAIR / F32 }
      local seconds = shortest(pair, 1, function() pair:all_gather(part, whole) end)
      part:free()
      whole:free()
      say(("  rank %-14s %7.1f us %9.2f"):format(world:name(r), latency * 1e6,
        PAIR / seconds / 1e9))
    end
    world:barrier()
  end
end

local function measure_sums(world, say)
  local seconds = shortest(world, MANY, function() world:barrier() end)
  say(("barrier of %d ranks: %.1f us"):format(world:size(), seconds * 1e6))
  for _, bytes in ipairs(SIZES) do
    local t = tensor.zeros { bytes / F32 }
    local before = ranks.bytes_sent()
    world:all_reduce(t)
    local sent = ranks.bytes_sent() - before
    seconds = shortest(world, bytes < MIB and MANY or 1, function() world:all_reduce(t) end)
    say(("sum of %-8s %12.3f ms %9.2f GB/s"):format(size_text(bytes) .. ":", seconds * 1e3,
      sent / seconds / 1e9))
    t:free()
  end
end

function M.run(world)
  local is_root = world:rank() == 0
  local facts = world:gather(own_facts())
  if is_root then print_facts(world, facts) end
  local function say(text) if is_root then print(text) end end
  measure_pairs(world, say)
  measure_sums(world, say)
end

return M
