-- test_cudnn.lua - convolutions by cuDNN, without a GPU: the emulator's stand-in (tests/cuda_emulator/emulate_cudnn.h) runs what cudnn.cu describes
-- and offers engines that must not be taken; where nvcc and cuDNN are installed the real cuDNN is asked for a plan of every convolution that
-- SAM2 has, for three described devices, and of hard ones (tests/cuda_emulator/cudnn_plans.cc).
--
-- Left out: the real cuDNN's numbers and speed, which need a GPU: tests/gpu_check.sh.

local host = require "segzero.host"
local check = require "tests.support.check"

local build = host.library:gsub("/[^/]*$", "")
local function there(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

local function output(command)
  local pipe = io.popen(command .. " 2>&1; echo \"exit $?\"")
  local text = pipe:read "*a"
  pipe:close()
  return text, tonumber(text:match "exit (%d+)\n$")
end

-- ---- the stand-in ----
local library = build .. "/libsegzero_cuda_emulated.so"
if there(library) then
  local function sweep(environment, op)
    return output(("SEGZERO_CUDA_LIBRARY='%s' %s '%s' tests/unit/test_ops.lua device=cuda op=%s"):format(library, environment, host.executable, op))
  end
  for _, op in ipairs { "conv2d", "conv2d_dx", "conv2d_dw_", "conv_transpose2d" } do
    local text, code = sweep("", op)
    check.ok(code == 0, op .. " by cuDNN: " .. text:sub(-2000))
    text, code = sweep("SEGZERO_CUDNN=0", op)
    check.ok(code == 0, op .. " without cuDNN: " .. text:sub(-2000))
    -- Its first engine for f32 rounds inputs and, emulated, leaves a NaN: where that is allowed it is taken. So cuDNN is what ran above.
    text, code = sweep("SEGZERO_TF32=1", op)
    check.ok(code == 1 and text:find "got nan", op .. " by an engine that rounds its inputs should show: " .. text:sub(-500))
  end
  -- One that is there and gives no handle: said once, and the work is done.
  local text, code = sweep("SEGZERO_EMULATE_CUDNN=no_handle", "conv2d")
  local _, told = text:gsub("segzero: cudnn: no handle: CUDNN_STATUS_NOT_INITIALIZED: ", "")
  check.ok(code == 0 and told == 1, "conv2d with a cuDNN that gives no handle: " .. text:sub(-2000))
  text = output(("SEGZERO_EMULATE_CUDNN=no_handle SEGZERO_CUDA_LIBRARY='%s' '%s' doctor"):format(library, host.executable))
  check.ok(text:find "cudnn: no handle: CUDNN_STATUS_NOT_INITIALIZED", "doctor says that cuDNN gives no handle: " .. text)
  text = output(("SEGZERO_CUDA_LIBRARY='%s' '%s' doctor"):format(library, host.executable))
  check.ok(text:find "cudnn: %d+%.%d+%.%d+, for convolutions", "doctor names cuDNN: " .. text)
  text = output(("SEGZERO_CUDNN=0 SEGZERO_CUDA_LIBRARY='%s' '%s' doctor"):format(library, host.executable))
  check.ok(text:find "cudnn: left out", "doctor says that cuDNN is left out: " .. text)
else
  check.skip "the emulated CUDA library (make cuda-emulated; not with a sanitizer, nor without a C++ compiler)"
end

-- ---- the real one ----
local plans = build .. "/tests/cudnn_plans"
local text, code
if there(plans) then text, code = output("'" .. plans .. "'") end
if not text or code == 77 then
  check.skip "nvcc and cuDNN (what it would run for SAM2's convolutions)"
else
  check.ok(code == 0, "a plan for every convolution: " .. text)
  local version, checks = text:match "cudnn: (%S+),", text:match "(%d+) checks, 0 failed"
  check.ok(tonumber(checks or 0) > 400, "the plans were counted: " .. text:sub(-200))
  print(("cuDNN %s: %s convolutions on described devices, each with the plan or without one as expected"):format(version or "?", checks or "?"))
end

check.finish()
