-- loop.lua - runs all steps of a run, with logging, evaluation, checkpoints and a script's hooks.
--
--   loop.run(t)              t: trainer.new's object; until t.total_steps, or until a hook stops it
--   loop.evaluate(t, keep)   evaluates the held-out rows, logs the result and calls on_evaluate
--     -> {step =, reward =, parts =, records =, giou =, ceiling =}; keep: see evaluator.held_out
--
-- t.hooks, each optional:
--   on_step(t, stats)        after each step; may change t.numbers, t.schedules, t.reward, t.train
--                            and t.prompt
--   on_evaluate(t, result)   after each evaluation
--   stop_when(t, stats)      true, or a reason as text, ends the run after this step
-- A hook that fails ends the run with its own traceback. However the run ends, a checkpoint that is
-- being written is finished first. Leaves out: saving when the run is interrupted.

local evaluator = require "segzero.evaluation.evaluator"
local records = require "segzero.train.records"
local retention = require "segzero.runs.retention"
local rollout = require "segzero.train.rollout"
local saving = require "segzero.train.saving"
local user_code = require "segzero.core.user_code"

local M = {}

local function call_hook(t, name, argument)
  local hook = t.hooks[name]
  if not hook then return nil end
  return user_code.call("the hook " .. name, hook, t, argument)
end

local function say(t, ...) t.log:text(t.global_step, "run", (...):format(select(2, ...))) end

function M.evaluate(t, keep)
  local result = evaluator.held_out(t, keep)
  rollout.rest(t.policy, t.plan)
  result.step = t.global_step
  retention.evaluated(t, result)
  t.log:scalars(t.global_step, {
    step = t.global_step, held_out_reward = result.reward, held_out_parts = result.parts,
    held_out_giou = result.giou,
    held_out_ceiling_giou = result.giou and result.ceiling,
  })
  call_hook(t, "on_evaluate", result)
  return result
end

local function is_due(step, freq) return freq > 0 and step % freq == 0 end

local function evaluate_if_due(t, step)
  if not is_due(step, t.options.run.test_freq) or step >= t.total_steps or not t.held_out then
    return
  end
  local result = M.evaluate(t)
  local giou = ""
  if result.giou then giou = (", gIoU %.3f"):format(result.giou) end
  say(t, "  held-out reward at step %d: %.3f (%s)%s", step, result.reward,
    records.parts_text(result.parts), giou)
end

-- One step and everything after it. Returns true to end the run.
local function one_step(t)
  local stats = t:step()
  local step = stats.step
  t.log:scalars(step, stats)
  call_hook(t, "on_step", stats)
  evaluate_if_due(t, step)
  if is_due(step, t.options.run.save_freq) then say(t, "  saving %s", saving.start(t)) end
  local reason = call_hook(t, "stop_when", stats)
  if not reason then return false end
  local because = ""
  if type(reason) == "string" then because = ": " .. reason end
  say(t, "stopped after step %d%s", step, because)
  return true
end

local function all_steps(t)
  t.log:start(t.global_step, t.total_steps)
  while t.global_step < t.total_steps do
    if one_step(t) then return end
  end
end

-- Adds a traceback to a message that has a position in the code, unless it has a traceback already.
local function traced(message)
  if type(message) ~= "string" or message:find("\nstack traceback:", 1, true) then
    return message
  end
  if not message:find "^[^\n]-:%d+:" then return message end
  return debug.traceback(message, 2)
end

M.traced = traced

function M.run(t)
  local ok, reason = xpcall(all_steps, traced, t)
  local saved, save_reason = pcall(saving.wait, t)
  t.sampler:cancel()
  if not ok then
    if not saved then io.stderr:write(tostring(save_reason), "\n") end
    error(reason, 0)
  end
  if not saved then error(save_reason, 0) end
end

return M
