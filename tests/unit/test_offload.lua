-- test_offload.lua - weights and optimizer state that wait in page-locked host memory: the same
-- bits as on the device, whatever the order in which the device's streams run.
--
--   ./segzero tests/unit/test_offload.lua
--
-- On the emulated device. Left out: how much time the copies take, which only a GPU shows.

local check = require "tests.support.check"
local process = require "tests.support.process"
local files = require "segzero.core.files"
local host = require "segzero.host"

local library = host.library:gsub("libsegzero%.so$", "libsegzero_cuda_emulated.so")
if not files.exists(library) then
  check.skip "the emulated CUDA library (make cuda-emulated)"
  check.finish()
  return
end

-- Streams that run nothing before something waits: none; the main one; those of the copies.
for _, lazy in ipairs { "0", "1", "6" } do
  check.case("offloaded state and weights, lazy streams " .. lazy, function()
    local text, status = process.run({ host.executable, "--threads", "1",
      "tests/support/offload_update.lua" }, { timeout = 120,
      env = { SEGZERO_CUDA_LIBRARY = library, SEGZERO_EMULATE_LAZY = lazy } })
    check.equal(status, 0, text:sub(-400))
    check.ok(tonumber(text:match "ok (%d+)" or 0) > 5e7, "bytes compared: " .. text)
  end)
end

check.finish()
