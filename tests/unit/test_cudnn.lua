-- test_cudnn.lua - convolutions by cuDNN, without a GPU. The emulator's cuDNN
-- (tests/cuda_emulator/emulate_cudnn.h) runs what cudnn.cu describes, and offers engines that must
-- be refused. Where nvcc and cuDNN are installed, the real cuDNN is asked for a plan of every
-- convolution of SAM2, for three described devices, and of hard ones
-- (tests/cuda_emulator/cudnn_plans.cc).
--
-- Left out: the real cuDNN's numbers and speed, which need a GPU: tests/gpu_check.sh.

local host = require "segzero.host"
local check = require "tests.support.check"

local build = host.library:gsub("/[^/]*$", "")

local function exists(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

-- Returns a command's output and exit status.
local function output(command)
  local pipe = io.popen(command .. " 2>&1; echo \"exit $?\"")
  local text = pipe:read "*a"
  pipe:close()
  return text, tonumber(text:match "exit (%d+)\n$")
end

-- ---- the emulated cuDNN ----
local library = build .. "/libsegzero_cuda_emulated.so"

-- Runs segzero with the emulated library and these variables in the environment.
local function segzero(environment, arguments)
  return output(("SEGZERO_CUDA_LIBRARY='%s' CASE= %s '%s' %s")
    :format(library, environment, host.executable, arguments))
end

-- The op table's cases of one op, on the device.
local function sweep(environment, op)
  return segzero(environment, "tests/unit/test_ops.lua device=cuda op=" .. op)
end

if exists(library) then
  for _, op in ipairs { "conv2d", "conv2d_dx", "conv2d_dw_", "conv_transpose2d" } do
    check.case(op .. " with and without cuDNN", function()
      local text, code = sweep("", op)
      check.equal(code, 0, "by cuDNN: " .. text:sub(-2000))
      text, code = sweep("SEGZERO_CUDNN=0", op)
      check.equal(code, 0, "without cuDNN: " .. text:sub(-2000))
      -- The first engine for f32 rounds its inputs and, emulated, writes a NaN. It is taken where
      -- that is allowed, which proves that cuDNN ran above.
      text, code = sweep("SEGZERO_TF32=1", op)
      check.equal(code, 1, "an engine that rounds its inputs fails: " .. text:sub(-500))
      check.ok(text:find "got nan", "and shows a NaN: " .. text:sub(-500))
    end)
  end

  check.case("a cuDNN that gives no handle", function()
    local text, code = sweep("SEGZERO_EMULATE_CUDNN=no_handle", "conv2d")
    local message = "segzero: cudnn: no handle: CUDNN_STATUS_NOT_INITIALIZED: "
    local _, count = text:gsub(message, "")
    check.equal(code, 0, "the work is done: " .. text:sub(-2000))
    check.equal(count, 1, "the reason is printed once: " .. text:sub(-2000))
  end)

  check.case("the doctor describes cuDNN", function()
    local text = segzero("SEGZERO_EMULATE_CUDNN=no_handle", "doctor")
    check.ok(text:find "cudnn: no handle: CUDNN_STATUS_NOT_INITIALIZED", "no handle: " .. text)
    text = segzero("", "doctor")
    check.ok(text:find "cudnn: %d+%.%d+%.%d+, for convolutions", "the version: " .. text)
    text = segzero("SEGZERO_CUDNN=0", "doctor")
    check.ok(text:find "cudnn: left out", "SEGZERO_CUDNN=0: " .. text)
  end)
else
  check.skip("the emulated CUDA library (make cuda-emulated; not with a sanitizer, "
    .. "nor without a C++ compiler)")
end

-- ---- the real cuDNN ----
local plans = build .. "/tests/cudnn_plans"
local text, code
if exists(plans) then text, code = output("'" .. plans .. "'") end
if not text or code == 77 then
  check.skip "nvcc and cuDNN (which plans it would run for SAM2's convolutions)"
else
  check.case("a plan for every convolution", function()
    check.equal(code, 0, "cudnn_plans: " .. text)
    local version = text:match "cudnn: (%S+)," or "?"
    local checks = text:match "(%d+) checks, 0 failed"
    check.ok(tonumber(checks or 0) > 400, "plans were counted: " .. text:sub(-200))
    print(("cuDNN %s: %s convolutions on described devices, each with the expected plan or none")
      :format(version, checks or "?"))
  end)
end

check.finish()
