-- timer.lua - where a step's time goes. At any moment one phase runs, so the phases add up to the
-- whole step.
--
--   timer.start(synchronise)                 all phases at 0, and "other" runs. synchronise: a
--                                            function that waits for a device
--   local before = timer.enter "forward"     starts the phase forward; returns the phase that ran
--                                            before
--   timer.move("decode", "vision", seconds)  moves time from decode to vision, for code that
--                                            measures itself
--   timer.stop() -> {data = seconds, ...}, total
--   timer.report() -> the same table, and its sums {rollout =, reward =, update =, total =}
--
-- There is one timer, for the running step. Outside a step enter() does nothing. A nested
-- phase, such as a reward while other answers decode, returns to the one it interrupted with
-- timer.enter(before). Leaves out: timing single ops.

local core = require "segzero.core.ffi"

local now = core.C.sz_seconds

local M = {}

M.phases = {
  "data", "vision", "prefill", "decode", "reward", "reference", "forward", "backward", "optimizer",
  "checkpoint", "other",
}

local seconds, phase, since, began, wait

function M.start(synchronise)
  seconds = {}
  phase = "other"
  wait = synchronise
  for _, name in ipairs(M.phases) do seconds[name] = 0 end
  since = now()
  began = since
end

function M.enter(name)
  if not seconds then return name end
  if not seconds[name] then error(("timer: there is no phase '%s'"):format(tostring(name)), 2) end
  if wait then wait() end
  local time = now()
  local before = phase
  seconds[before] = seconds[before] + (time - since)
  phase = name
  since = time
  return before
end

function M.move(from, to, amount)
  if not seconds then return end
  M.enter(phase)           -- `from` may be the phase that runs: count it up to now
  amount = math.max(0, math.min(amount, seconds[from]))
  seconds[from] = seconds[from] - amount
  seconds[to] = seconds[to] + amount
end

function M.stop()
  M.enter "other"
  local phases = seconds
  local total = since - began
  seconds = nil
  return phases, total
end

function M.report()
  local t, total = M.stop()
  local sums = {
    rollout = t.data + t.vision + t.prefill + t.decode,
    reward = t.reward,
    update = t.reference + t.forward + t.backward + t.optimizer + t.checkpoint,
    total = total,
  }
  return t, sums
end

return M
