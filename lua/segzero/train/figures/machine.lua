-- machine.lua - what a step took of the machine, for the record of the step.
--
--   machine.of(stats, policy) -> {clock =, tokens_per_second =, memory_gib =, device_free_gib =}
--     clock              seconds since 1970, when the step ended
--     tokens_per_second  answer tokens of all ranks over the whole step
--     memory_gib         largest resident set of this process so far
--     device_free_gib    memory that the policy's device has left; nil on the CPU
--
-- These differ from run to run, so they are in a table of their own. Leaves out: the time of each
-- phase (log/timer.lua), other ranks' memory.

local core = require "segzero.core.ffi"

local C = core.C

local M = {}

local GIB = 2 ^ 30

function M.of(stats, policy)
  local figures = {
    clock = os.time(),
    tokens_per_second = stats.tokens / stats.seconds.total,
    memory_gib = tonumber(C.sz_peak_rss()) / GIB,
  }
  if policy.device ~= "cpu" then
    figures.device_free_gib = tonumber(C.sz_device_available(C.SZ_CUDA)) / GIB
  end
  return figures
end

return M
