-- loop.lua - the loop that the supervised recipes share: progress by steps or by the clock, a
-- cosine rate, the ETA.
--
--   local steps, seconds = supervised.loop(options, save, function(s)
--     s.step, s.progress (0 to 1), s.lr      of the step that f runs
--     local done, elapsed = s.now()          share of the run that is over, seconds since the start
--   end)
--
-- options: steps, minutes (above 0: the run follows the clock and ends after this time), lr,
-- warmup (steps), final_lr (the last rate, as a share of lr).
-- save() -> path writes the model. A signal or an error ends the loop after a last save.
-- Leaves out: everything that a step does.

local core = require "segzero.core.ffi"
local stop = require "segzero.core.stop"

local seconds = core.C.sz_seconds

local M = {}

-- The rate rises over options.warmup steps, then falls along a cosine to options.final_lr of its
-- peak.
local function rate(options, step, progress)
  local rise = math.min(1, step / options.warmup)
  local fall = options.final_lr + (1 - options.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
  return options.lr * rise * fall
end

local function all_steps(options, f, place)
  local started = seconds()

  local function progress_after(step)
    local elapsed = seconds() - started
    if options.minutes > 0 then return elapsed / (60 * options.minutes), elapsed end
    return step / math.max(options.steps, 1), elapsed
  end

  local progress = progress_after(0)
  while progress < 1 and options.steps > 0 do
    stop.check()
    local step = place.step + 1
    place.step = step
    f { step = step, progress = progress, lr = rate(options, step, progress),
      now = function() return progress_after(step) end }
    progress = progress_after(step)
  end
  return place.step, seconds() - started
end

-- Saves the weights of a loop that ends early, and raises.
local function end_early(place, save, reason)
  local ok, path = pcall(save)
  local text = "saved " .. tostring(path)
  if not ok then text = "the model is not saved: " .. core.plain(path) end
  local name = stop.signal()
  if name then error(("stopped by %s in step %d; %s"):format(name, place.step, text), 0) end
  io.stderr:write(("ended by an error in step %d; %s\n"):format(place.step, text))
  error(reason, 0)
end

local function run(options, save, f)
  local place = { step = 0 }
  local function finish(ok, ...)
    if not ok or stop.signal() then end_early(place, save, (...)) end
    stop.release()
    return ...
  end
  return finish(stop.try(all_steps, options, f, place))
end

function M.loop(options, save, f) return stop.run(run, options, save, f) end

-- The remaining time as text, "1.5 min". `done` of the run took `elapsed` seconds.
function M.eta(done, elapsed)
  return ("%.1f min"):format(elapsed / math.max(done, 1e-9) * (1 - math.min(done, 1)) / 60)
end

-- A running mean for the log: 0.95 of the old value and 0.05 of the new one.
function M.smooth(mean, value)
  if not mean then return value end
  return 0.95 * mean + 0.05 * value
end

return M
