-- progress.lua - a quiet line now and then from work inside a step or an evaluation that takes
-- long.
--
--   local tick = progress.new(t, "step 12", total, "prompts answered")      t: a trainer
--   tick(done)        at most every 30 seconds: "  step 12: 5/16 prompts answered, 1:20 left"
--
-- Work that takes less time prints nothing. Leaves out: bars, carriage returns.

local console = require "segzero.log.console"
local core = require "segzero.core.ffi"

local M = {}

local EVERY = 30        -- seconds

function M.new(t, what, total, unit)
  local started = core.C.sz_seconds()
  local last = started
  return function(done)
    local now = core.C.sz_seconds()
    if now - last < EVERY or done >= total then return end
    last = now
    local left = (now - started) / done * (total - done)
    t.log:text(t.global_step, "run", ("  %s: %d/%d %s, %s left"):format(what, done, total, unit,
      console.duration(left)))
  end
end

return M
