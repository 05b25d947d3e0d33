-- test_amx_emulated.lua - the CPU kernels for AMX without a processor that has it: the instructions
-- are emulated (tests/amx_emulator). The emulator's own test; the ops that have code for AMX
-- against the reference kernels; the tests of rows' bits, of 8 and 4-bit weights and of products of
-- bf16.
--
-- Leaves out: the other ops, which are those of AVX-512; speed.

local ffi = require "ffi"
local check = require "tests.support.check"
local core = require "segzero.core.ffi"
local host = require "segzero.host"
local process = require "tests.support.process"

local C = core.C
local build = host.library:gsub("/[^/]*$", "")
local top, sanitizer = build:match "^(.*/build)/([^/]+)$"
local program = build .. "/amx_emulated/segzero"
if sanitizer then program = ("%s/amx_emulated_%s/segzero"):format(top, sanitizer) end

-- AVX-512 with VNNI is the kind that the emulator is made of.
local function runs_here()
  for i = 0, C.sz_processor_count() - 1 do
    local name = ffi.string(C.sz_processor_name(i))
    if name == "avx512_vnni" then return C.sz_processor_runs(i) == 1 end
  end
  -- A build for one processor does not say what else runs.
  local info = io.open "/proc/cpuinfo"
  local text = info and info:read "*a" or ""
  if info then info:close() end
  return text:find "avx512_vnni" ~= nil and text:find "avx512vl" ~= nil
end

local file = io.open(program, "rb")
if file then file:close() end
if not file or not runs_here() then
  check.skip("emulated AMX (make amx-emulated, on a processor with AVX-512 and VNNI)")
  check.finish()
  return
end

local function passes(argv, name)
  -- The suite may run on other kernels.
  local output, status = process.run(argv, { timeout = 600, env = { SEGZERO_CPU = "" } })
  check.equal(status, 0, name .. ": " .. output:sub(-3000))
  return output
end

check.case("the emulator's own test", function()
  passes({ build .. "/tests/amx_emulate" }, "amx_emulate")
end)

check.case("the kernels are those for AMX", function()
  local output = passes({ program, "doctor" }, "doctor")
  check.equal(output:match "\nkernels +(%S+)", "amx", "doctor's kernels")
end)

local OPS = { "linear", "linear_cat", "linear_add_", "linear_dx", "linear_dw_", "linear_int8",
  "linear_int4", "matmul", "attention", "attention_cross", "attention_cached" }
check.case("ops with code for AMX against the reference", function()
  for _, op in ipairs(OPS) do
    local output = passes({ program, "tests/unit/test_ops.lua", "op=" .. op }, op)
    check.ok(output:find ", 0 failed", op .. ": the checks ran")
  end
end)

for _, name in ipairs { "unit/test_row_bits", "unit/test_int8", "unit/test_int4",
  "system/test_cpu_kinds" } do
  check.case(name .. " with AMX", function()
    passes({ program, "--threads", "2", "tests/" .. name .. ".lua" }, name)
  end)
end

check.finish()
