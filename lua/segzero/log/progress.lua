-- progress.lua - how far the work inside a step or an evaluation is, if it takes long.
--
--   local tick = progress.new(t, "step 12", total, "prompts answered")      t: a trainer
--   local tick = progress.of_step(t, total, "prompts answered")             the step that runs
--   tick(done)        "  step 12: 5/16 prompts answered, 1:20 left"
--
-- On a terminal the line is replaced twice a second and goes when the work is done. Elsewhere there
-- is a line of the log every 30 seconds. Work that takes less time prints nothing. A trainer
-- without a log, which the memory plan has, and ranks other than the first print nothing.
-- Leaves out: bars.

local console = require "segzero.log.console"
local core = require "segzero.core.ffi"
local live_line = require "segzero.core.live_line"

local M = {}

local ON_TERMINAL = 0.5         -- seconds between lines
local ELSEWHERE = 30

local now = core.C.sz_seconds

local function is_live(t)
  local is_root = not t.parallel or t.parallel:is_root()
  return is_root and live_line.is_possible()
end

function M.new(t, what, total, unit)
  if not t.log then return function() end end
  local live = is_live(t)
  local every = live and ON_TERMINAL or ELSEWHERE
  local started = now()
  local last = started
  return function(done)
    local time = now()
    if live and done >= total then live_line.clear() end
    if time - last < every or done >= total then return end
    last = time
    local left = (time - started) / done * (total - done)
    local text = ("  %s: %d/%d %s, %s left"):format(what, done, total, unit,
      console.duration(left))
    if live then live_line.show(text) else t.log:text(t.global_step, "run", text) end
  end
end

function M.of_step(t, total, unit)
  return M.new(t, ("step %d"):format((t.global_step or 0) + 1), total, unit)
end

return M
