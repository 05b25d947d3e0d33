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
-- being written is finished first. A run that a signal or an error ends saves its last finished
-- step (ending.lua). A sick run gets warnings (train/figures/warnings.lua).
-- Leaves out: signals (core/stop.lua).

local ending = require "segzero.train.run.ending"
local evaluator = require "segzero.evaluation.evaluator"
local health = require "segzero.train.run.health"
local retention = require "segzero.runs.retention"
local reward_parts = require "segzero.log.reward_parts"
local rollout = require "segzero.train.rollout"
local saving = require "segzero.train.run.saving"
local stop = require "segzero.core.stop"
local user_code = require "segzero.core.user_code"
local warnings = require "segzero.train.figures.warnings"

local M = {}

local function call_hook(t, name, argument)
  local hook = t.hooks[name]
  if not hook then return nil end
  -- Every rank runs it, since it may change the trainer; what rank 0's returns counts.
  return t.parallel:together(function()
    local result = user_code.call("the hook " .. name, hook, t, argument)
    -- Only stop_when has a result. It travels between ranks, so it must be text or a boolean.
    if name ~= "stop_when" then return nil end
    if type(result) == "string" then return result end
    return result ~= nil and result ~= false
  end)[1]
end

local function say(t, ...) t.log:text(t.global_step, "run", (...):format(select(2, ...))) end

function M.evaluate(t, keep)
  local result = evaluator.held_out(t, keep)
  rollout.rest(t.policy, t.plan)
  result.step = t.global_step
  t.parallel:on_root(function() retention.evaluated(t, result) end)
  t.log:scalars(t.global_step, {
    step = t.global_step, held_out_reward = result.reward, held_out_parts = result.parts,
    held_out_giou = result.giou, held_out_reward_errors = result.reward_errors,
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
  say(t, "  held-out reward at step %d: %.3f%s%s", step, result.reward,
    reward_parts.in_brackets(result.parts), giou)
end

-- A checkpoint that is due waits for a step whose gradient is finite, because the weights of a
-- skipped update may be ruined.
local function save_if_due(t, step)
  if is_due(step, t.options.run.save_freq) then t.save_is_due = true end
  if not t.save_is_due or health.in_doubt(t) and step < t.total_steps then return end
  t.save_is_due = false
  say(t, "  saving %s", t:begin_save())
end

-- One step and everything after it. Returns true to end the run.
local function one_step(t, watch)
  if t.reward_file then t.reward_file:look(t) end
  local stats = t:step(function(stats) t.log:scalars(stats.step, stats) end)
  local step = stats.step
  for _, text in ipairs(watch:see(stats)) do
    if t.parallel:is_root() then t.log:warn(step, "  warning: " .. text) end
  end
  health.check(t)
  call_hook(t, "on_step", stats)
  evaluate_if_due(t, step)
  save_if_due(t, step)
  local reason = call_hook(t, "stop_when", stats)
  if not reason then return false end
  local because = ""
  if type(reason) == "string" then because = ": " .. reason end
  say(t, "stopped after step %d%s", step, because)
  return true
end

local function all_steps(t)
  t.log:start(t.global_step, t.total_steps)
  if t.reward_file then t.reward_file:begin(t) end
  local watch = warnings.new { estimator = t.options.estimator, answers = t.options.rollout.n }
  while t.global_step < t.total_steps do
    t.parallel:check_stop()
    if one_step(t, watch) then break end
  end
  saving.wait(t)
end

local function run(t)
  health.begin(t)
  ending.guard(t, all_steps, t)
  t.sampler:cancel()
end

function M.run(t) return stop.run(run, t) end

return M
