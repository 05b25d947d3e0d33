-- schedules.lua - the registry of schedules: how the learning rate, or any other number of a run,
-- changes over the steps.
--
--   local function linear(p) return 1 - (p.step - 1) / p.total end
--   sz.schedules:register("linear", { help = "a straight line to 0", fn = linear })
--
-- fn(progress) returns a factor; a step uses the configured number times this factor.
--   progress.step     the step that is about to run, from 1
--   progress.total    steps of the whole run
--   progress.least    the smallest factor that the run wants (cosine ends there); nil: 0
--   progress.warmup   steps of warm-up (may be a fraction). During the warm-up the factor is
--                     step / warmup, and fn is not called.

local registry = require "segzero.core.registry"

local M = registry.new("schedule", { required = { "fn" }, optional = { "help" } })

M:register("constant", { help = "no change after the warm-up", fn = function() return 1 end })

M:register("cosine", {
  help = "a half cosine from 1 at the first step after the warm-up towards min_lr_ratio (0) " ..
    "after the last step",
  fn = function(p)
    local done = (p.step - 1 - p.warmup) / math.max(1, p.total - p.warmup)
    local wave = 0.5 * (1 + math.cos(math.pi * math.max(0, math.min(1, done))))
    local least = p.least or 0
    return least + (1 - least) * wave
  end,
})

-- The value of a configured number at a step. schedule is a registered name or a function.
function M.value(number, schedule, progress)
  if progress.step <= progress.warmup then return number * progress.step / progress.warmup end
  local fn = schedule
  if type(schedule) ~= "function" then fn = M:get(schedule).fn end
  local factor = fn(progress)
  local is_factor = type(factor) == "number" and factor >= 0 and factor < math.huge
  if is_factor then return number * factor end
  error(("the schedule %s returned %s, expected a finite number from 0"):format(tostring(schedule),
    tostring(factor)), 0)
end

-- The numbers of a step by name: t.numbers, multiplied by the factor of the schedule that
-- t.schedules names, if any. t: {numbers =, schedules =, total_steps =, options = {warmup_ratio =,
-- warmup_steps =, least_ratio =}}; the last two may be nil.
function M.numbers(t, step)
  local total = t.total_steps or step
  local least = t.options.least_ratio
  if least == 0 then least = nil end
  local progress = { step = step, total = total, least = least,
    warmup = t.options.warmup_steps or t.options.warmup_ratio * total }
  local values = {}
  for name, number in pairs(t.numbers) do
    local schedule = t.schedules[name]
    values[name] = number
    if schedule then values[name] = M.value(number, schedule, progress) end
  end
  return values
end

return M
