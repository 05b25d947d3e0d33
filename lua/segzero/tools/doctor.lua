-- doctor.lua - `segzero doctor`: prints what this machine has and what segzero will use. Changes
-- nothing.
--
-- With several ranks it compares them instead (doctor_ranks.lua). Leaves out: checks of models and
-- data; benchmarks.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local host = require "segzero.host"
local plan = require "segzero.tools.plan"

local C = core.C

local M = {}

local function line(what, text) print(("%-10s %s"):format(what, text)) end

-- The first value of a key in a file of lines like "key : value".
local function field(path, key)
  local file = io.open(path, "r")
  if not file then return nil end
  for text in file:lines() do
    local value = text:match("^" .. key .. "%s*:%s*(.-)%s*$")
    if value then
      file:close()
      return value
    end
  end
  file:close()
end

-- Which CPU kernels are used, and which else this processor runs.
local function kernels()
  local others = {}
  for i = 0, C.sz_processor_count() - 1 do
    if C.sz_processor_runs(i) == 1 and i ~= C.sz_processor_chosen() then
      others[#others + 1] = ffi.string(C.sz_processor_name(i))
    end
  end
  local text = ffi.string(C.sz_processor_name(C.sz_processor_chosen()))
  if #others == 0 then return text end
  return ("%s (SEGZERO_CPU= takes %s, too)"):format(text, table.concat(others, ", "))
end

-- What limits the threads, and whether there are more than that.
local function threads(p)
  local reasons = {}
  if p.affinity < p.online then
    reasons[1] = ("the affinity mask has %d"):format(p.affinity)
  end
  if p.quota then
    reasons[#reasons + 1] = ("the control group's quota is %.4g"):format(p.quota)
  end
  local text = ("%d of this machine's %d processors may be used"):format(p.usable, p.online)
  if #reasons > 0 then text = text .. ": " .. table.concat(reasons, ", ") end
  line("threads", text)
  if C.sz_threads() > p.usable then
    line("threads", ("%d are more than that and wait for each other; --threads %d is faster")
      :format(C.sz_threads(), p.usable))
  end
end

-- Whether there are several ranks, which have been compared.
local function compare_ranks()
  local ranks = require "segzero.core.ranks"
  if not ranks.launched() then return false end
  local world = ranks.world()
  if world:size() == 1 then return false end
  require("segzero.tools.doctor_ranks").run(world)
  return true
end

function M.run()
  if compare_ranks() then return end
  local memory = plan.device()
  line("segzero", ffi.string(C.sz_version()) .. ", core library loaded")
  line("processor", ("%s, %d threads"):format(field("/proc/cpuinfo", "model name")
    or "unknown", C.sz_threads()))
  threads(host.processors())
  line("kernels", kernels())
  if not jit.status() then
    line("lua", jit.version .. " without its compiler, which fails on this processor; "
      .. "a LuaJIT from October 2023 on has it")
  end
  line("memory", ("%s, %s available"):format(plan.gib(memory.total), plan.gib(memory.free)))
  local library = os.getenv "SEGZERO_CUDA_LIBRARY"
  if library and library ~= "" then
    line("cuda", "SEGZERO_CUDA_LIBRARY names the library: " .. library)
  end
  local text = C.sz_device_describe(C.SZ_CUDA)
  local there = text ~= nil
  if there then
    for what, value in ffi.string(text):gmatch "([^\n:]+): ([^\n]*)\n" do
      line("cuda", what .. ": " .. value)
    end
  else
    line("cuda", "not usable. " .. ffi.string(C.sz_last_error()))
  end
  local wanted = os.getenv "SEGZERO_DEVICE"
  if wanted and wanted:match "^cuda" and not there then
    line("used", "nothing: --device cuda or SEGZERO_DEVICE asks for a device that cannot be used")
  elseif wanted and wanted:match "^cuda" then
    line("used", "models are loaded on cuda:0")
  else
    line("used", "models are loaded on the processor"
      .. (there and "; --device cuda, or device = \"cuda\", loads them on cuda:0" or ""))
  end
end

return M
