-- health.lua - notices that a run has diverged, so that it ends and its ruined weights do not
-- become the newest checkpoint.
--
--   health.begin(t)           remembers the norm of the weights; t: a trainer
--   health.check(t)           after a step: too many of the last updates had a gradient that is not
--                             finite (trainer.max_bad_updates) -> an error
--   health.check_weights(t)   before a checkpoint: the norm of the weights is not finite, or has
--                             grown more than a fine-tuned model's can -> an error
--   health.in_doubt(t)        the last update was skipped, so these weights may be ruined
--   health.explain(t, what)   one line: the step, what was seen, and the likely cause
--
-- An error sets t.diverged; such weights are not saved. The norm costs one pass over the weights,
-- at the start and for each checkpoint. Leaves out: a reward that falls, a KL that grows.

local M = {}

-- A run that learns changes the norm by a few percent; the low-rank adapters of models/lora, which
-- start at 0, by a factor of about 4 in all.
local MOST_GROWTH = 30
local LARGE_RATE = 1e-2         -- a larger learning rate is the likely cause

-- The setting that most likely made the weights leave their range.
local function cause(t)
  local numbers = t.now or t.numbers
  local decay = t.optimizer.weight_decay
  local text = "likely cause: the learning rate (worker.actor.optim.lr=%g) is too large"
  if numbers.lr <= LARGE_RATE and math.abs(1 - numbers.lr * decay) > 1 then
    text = "likely cause: worker.actor.optim.weight_decay=%g, with which an update multiplies the "
      .. "weights by %g"
    return text:format(decay, 1 - numbers.lr * decay)
  end
  if numbers.lr <= LARGE_RATE then text = text .. " for this model" end
  if t.policy.dtype == "bf16" then
    text = text .. ", or bf16 is too narrow (worker.actor.model.dtype=f32)"
  end
  return text:format(numbers.lr)
end

function M.explain(t, what)
  local step = t.global_step
  local when = "after step " .. step
  if step == 0 then return ("%s before the first step"):format(what) end
  return ("diverged %s: %s; %s"):format(when, what, cause(t))
end

local function diverged(t, what)
  t.diverged = M.explain(t, what)
  error(t.diverged, 0)
end

function M.begin(t) t.first_norm = t.first_norm or t.optimizer:weight_norm() end

function M.check(t)
  local most = t.options.run.max_bad_updates
  if not most or most == 0 then return end
  local bad, window = t.optimizer:bad_updates()
  if bad < most then return end
  diverged(t, ("%d of the last %d updates had a gradient that is not finite"):format(bad,
    math.min(window, #t.optimizer.recent)))
end

function M.check_weights(t)
  local first = t.first_norm
  if not first then return end
  local norm = t.optimizer:weight_norm()
  local is_finite = norm == norm and norm < math.huge
  if is_finite and (first == 0 or norm <= MOST_GROWTH * first) then return end
  diverged(t, ("the weights' norm is %.3g, it was %.3g at the start"):format(norm, first))
end

function M.in_doubt(t) return t.optimizer.recent[1] == true end

return M
