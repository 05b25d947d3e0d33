-- test_split_devices.lua - a model that is split over the devices of two ranks computes what the
-- whole one computes on the CPU: logits, every gradient, sampled tokens. Messages go from device to
-- device by NCCL, where decode steps are recorded, and through host memory, where they are not.
--
-- Devices and NCCL are emulated (tests/cuda_emulator). Needs Open MPI. Left out: more shards and
-- kinds (test_split_model.lua).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local runs = require "tests.support.rank_runs"
local split_runs = require "tests.support.split_runs"

local available = runs.available() and runs.device_available()
if not available then
  check.finish()
  return
end

local FOLDERS = split_runs.folders(runs.begin())

for _, kind in ipairs { "plain", "generate" } do
  split_runs.run(kind .. " on devices", 2, { kind .. ":cuda", FOLDERS[1] }, runs.device_env(2))
end
local env = runs.device_env(2)
env.SEGZERO_NCCL = "0"
split_runs.run("generate on devices, through host memory", 2, { "generate:cuda", FOLDERS[2] }, env)

mini.remove()
check.finish()
