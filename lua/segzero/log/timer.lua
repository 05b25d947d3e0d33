-- timer.lua - where a step's time goes: every moment counts for the one phase that was named last, so the phases add up to the whole.
--
--   timer.start(synchronise)        all at 0; time counts as "other". synchronise: a function that waits for a device's work
--   local before = timer.enter "forward"       from now on time is forward's; returns what it was
--   timer.move("decode", "vision", seconds) some of decode's was vision's: for what measured itself
--   timer.stop() -> {data = seconds, ...}, total
--
-- There is one clock, that of the step that runs; outside of a step to() does nothing. A nested phase (a reward while answers decode)
-- goes back to the one it interrupted: timer.enter(timer.enter "reward") around nothing changes nothing.

local core = require "segzero.core.ffi"

local now = core.C.sz_seconds

local M = {}

M.phases = { "data", "vision", "prefill", "decode", "reward", "reference", "forward", "backward", "optimizer", "checkpoint", "other" }

local seconds, phase, since, began, wait

function M.start(synchronise)
  seconds, phase, wait = {}, "other", synchronise
  for _, name in ipairs(M.phases) do seconds[name] = 0 end
  since = now()
  began = since
end

function M.enter(name)
  if not seconds then return name end
  if not seconds[name] then error(("clock: there is no phase '%s'"):format(tostring(name)), 2) end
  if wait then wait() end
  local t, before = now(), phase
  seconds[before] = seconds[before] + (t - since)
  phase, since = name, t
  return before
end

function M.move(from, to, amount)
  if not seconds then return end
  M.enter(phase)           -- `from` may be the phase that runs
  amount = math.max(0, math.min(amount, seconds[from]))
  seconds[from], seconds[to] = seconds[from] - amount, seconds[to] + amount
end

function M.stop()
  M.enter "other"
  local table_of, total = seconds, since - began
  seconds = nil
  return table_of, total
end

return M
