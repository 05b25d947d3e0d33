-- trainer.lua - GRPO: a step samples groups of answers, scores them and makes one exact
-- policy-gradient update.
--
--   local t = trainer.new {
--     config = cfg, policy = vl, reward = f, train = set, total_steps = n,
--     prompt = f,              f(problem) -> text
--     reference = vl,          this and the rest are optional
--     held_out = set, segmenter = segmenter.new(sam), plan = plan.check(cfg), folder = path,
--     hooks = { on_step =, on_evaluate =, stop_when = },
--     prefetch = false,        loads images only when they are needed
--     resume_path = path,      goes on from this checkpoint
--     loaded = f,              f(t): the weights are there, and no log has been opened
--     reward_file = w,         watches the reward's file between the steps of t:run()
--     parallel = p,            who does what on several ranks (parallel.lua). Its shards call all
--                              of this alike
--   }
--   t:run()               all steps, with evaluation, checkpoints and hooks (train/run/loop.lua)
--   t:step(log) -> stats  one step; log(stats), if given, belongs to it: no signal comes in between
--   t:evaluate(keep)      -> mean reward, parts, records, gIoU of the held-out rows
--   t:save() -> path      a checkpoint; t:begin_save() writes in the background, t:saved() waits
--   t:resume(path)
--
-- Between steps a script may change t.reward, t.train, t.prompt, t.numbers.NAME (lr, temperature,
-- kl_coef, entropy_coef, clip_low, clip_high) and t.schedules.NAME (a registered name, or a
-- function as in algorithms/schedules.lua). t.now has the numbers of the last step, with schedules.
--
-- The sampler's log-probabilities are the old ones of the first update; each step reports the
-- largest difference between sampler and trainer. Background work never changes a number: the next
-- step's images are prefetched, a group is scored while others decode, and a checkpoint is written
-- while the next step samples. stats.time says where the time went.
--
-- train/records.lua describes the records that stages exchange.
-- Leaves out: defaults of settings (the recipe has them), rewards, prompts.

local core = require "segzero.core.ffi"
local advantage = require "segzero.train.advantage"
local answers = require "segzero.train.figures.answers"
local coordinates = require "segzero.data.coordinates"
local evaluator = require "segzero.evaluation.evaluator"
local filtering = require "segzero.train.filtering"
local forward = require "segzero.train.forward"
local health = require "segzero.train.run.health"
local inputs = require "segzero.train.inputs"
local log = require "segzero.log"
local machine = require "segzero.train.figures.machine"
local utilisation = require "segzero.train.figures.utilisation"
local memory_check = require "segzero.train.run.memory_check"
local micro_batches = require "segzero.train.micro_batches"
local optim = require "segzero.train.optim"
local parallel = require "segzero.train.parallel"
local options_of = require("segzero.train.options").of
local progress = require "segzero.log.progress"
local records = require "segzero.train.records"
local reward_kl = require "segzero.train.reward_kl"
local reward_parts = require "segzero.log.reward_parts"
local rollout = require "segzero.train.rollout"
local runner = require "segzero.reward.runner"
local sampler = require "segzero.data.sampler"
local saving = require "segzero.train.run.saving"
local schedules = require "segzero.algorithms.schedules"
local stop = require "segzero.core.stop"
local timer = require "segzero.log.timer"
local update = require "segzero.train.update"
local user_code = require "segzero.core.user_code"
local vision_cache = require "segzero.inference.vision_cache"

local M = { sorted_parts = reward_parts.text }

local methods = {}
local mt = { __index = methods }

-- A trainer that can only compute a step: no optimizer, data or folder. For the memory plan.
function M.bare(opts)
  local t = setmetatable(opts, mt)
  t.options = t.config and options_of(t.config) or {}
  t.numbers = t.options.numbers
  t.schedules = t.options.schedules
  t.scoring = t.options.reward and runner.rules(t.options.reward)
  t.parallel = t.parallel or parallel.alone()
  return t
end

-- A frozen vision tower runs once per step: sampling keeps its features for the update and for a
-- reference with the same tower.
local function share_vision(t)
  local frozen = t.options.forward.frozen_vision
  if t.reference and not t.policy.lora and frozen then vision_cache.adopt(t.policy, t.reference) end
end

local function trained_parameters(t)
  if not t.options.forward.frozen_vision then return t.policy:train() end
  return t.policy:train(function(name) return not t.policy:is_vision_weight(name) end)
end

function M.new(opts)
  local copy = {}
  for name, v in pairs(opts) do copy[name] = v end
  local t = M.bare(copy)
  local input = t.options.input
  input.frames = coordinates.for_policy(input.frames, t.policy)
  t.parameters = trained_parameters(t)
  t.optimizer = optim.adamw(t.parameters, t.options.optimizer, t.parallel)
  share_vision(t)
  t.global_step = 0
  t.hooks = t.hooks or {}
  t.sampler = sampler.new(t.policy, t.options.rows, t.prefetch, input.frames.resize)
  function t.sampler.owns(i) return t.parallel:owns(i) end
  if t.resume_path then t:resume(t.resume_path) end
  if t.loaded then t:loaded() end
  local loggers = t.options.run.loggers
  if not t.parallel:is_root() then loggers = {} end
  t.log = log.open(loggers, {
    folder = t.folder, config = t.config, total_steps = t.total_steps, first_step = t.global_step,
    train = t.train, policy = t.policy,
  }, function(...) t.parallel:later(user_code.call, ...) end)
  return t
end

-- ---- the stages of a step ----
-- Rows to scored groups.
function methods:rollout(rows)
  local groups = self.parallel:alike(function()
    local list = rollout.groups(self, rows)
    self.plan = memory_check.rows(self.plan, self.config, rows)
    return list
  end)
  timer.enter "data"       -- counting memory runs the code of a step
  self.sampler:prefetch(self.train, self.global_step + 2, self.total_steps)
  rollout.answer(self, groups, (self.now or self.numbers).temperature)
  return groups
end

-- The same for the rows that are drawn at a step, with the groups of the other ranks.
function methods:draw(step)
  local p = self.parallel
  return p:join(function()
    return self:rollout(p:alike(self.sampler.rows, self.sampler, self.train, step))
  end)
end

-- Moves groups between replicas, so that none waits long for another in the update.
function methods:rebalance(parts)
  self.parallel:rebalance(parts, function(group)
    local row = self.sampler:row(self.train, group.row.index)
    row.number = group.row.number
    row.place = group.place
    group.row = row
    inputs.prepare(row, self.policy, self.prompt, self.options.input)
    group.input = row.input
  end, function(group) inputs.release { group.row } end)
end

-- The scored groups of a step.
function methods:sample(step)
  local filter = self.options.filter
  if filter then return filtering.groups(self, step, filter) end
  return self:draw(step)
end

-- kind: "update" or "experience" (log-probabilities only).
function methods:micro_batches(groups, kind)
  local limits = self.options.micro_batches
  return micro_batches.split(groups, limits.max_tokens, limits[kind])
end

-- The reference's log-probabilities of groups that have none yet.
function methods:reference_log_probs(groups)
  if not self.reference then return end
  local missing = {}
  for _, group in ipairs(groups) do
    if not group.samples[1].reference then missing[#missing + 1] = group end
  end
  if #missing == 0 then return end
  local batches = self:micro_batches(missing, "experience")
  local tick = progress.of_step(self, #batches, "micro-batches of the reference")
  forward.reference(self.reference, batches, update.forward_options(self), tick)
end

-- The gradient of one micro-batch. totals: of the whole update (records.totals).
function methods:accumulate(batch, totals) return update.new(self):accumulate(batch, totals) end

-- One optimizer step on some groups; returns its statistics.
function methods:update(groups, lr)
  local p = self.parallel
  local stats = p:sum_statistics(function()
    local own = p:own(groups)
    self:reference_log_probs(own)
    return update.new(self):gradient(self:micro_batches(own, "update"), records.totals(groups))
  end)
  saving.unlock(self)
  -- From here to the end of the step the weights are of no finished step: signals wait.
  if not self.changing then stop.hold() end
  self.changing = true
  timer.enter "optimizer"
  local norm, _, norms = self.optimizer:step(lr, function(one)
    -- An adapter belongs to the part of its weight.
    return self.policy:is_vision_weight(one.weight or one.name) and "vision" or "language"
  end)
  stats.grad_norm = norm
  -- A script's own step may have none.
  for part, of_part in pairs(norms or {}) do stats["grad_norm/" .. part] = of_part end
  timer.enter "forward"
  return stats
end

-- ---- the step ----
function methods:step(write_log)
  local step = self.global_step + 1
  timer.start(self.policy.device ~= "cpu" and core.C.sz_device_synchronise or nil)
  self.now = schedules.numbers(self, step)

  -- Rows to answers, and their scores.
  timer.enter "data"
  local groups, filtered = self:sample(step)
  local stats = records.means(groups)
  for name, count in pairs(filtered or {}) do stats[name] = count end
  stats.reward_errors = self.parallel:total(runner.take_errors(self.scoring))

  -- Advantages see the whole batch, and the reference's log-probabilities.
  timer.enter "forward"
  local parts = micro_batches.parts(groups, self.options.update.groups)
  self:rebalance(parts)
  self.parallel:join_references(groups, function()
    for _, part in ipairs(parts) do self:reference_log_probs(self.parallel:own(part)) end
  end)
  local seen
  if self.options.reward_kl then
    seen, stats.reward_kl = reward_kl.apply(groups, self.options.reward_kl)
  end
  advantage.estimate(self.options.estimator, { groups = groups }, self.now, seen)
  answers.add(stats, groups, { response = self.options.rollout.max_new_tokens,
    prompt = self.options.input.max_tokens, seen = seen })

  -- One optimizer step for each part.
  local updates = {}
  for i, part in ipairs(parts) do updates[i] = self:update(part, self.now.lr) end
  self.global_step = step
  self.changing = false
  update.mean(updates, parts, self.options.update.aggregation, stats)

  -- The record.
  timer.enter "other"
  stats.step = step
  stats.lr = self.now.lr
  stats.kl_coef = self.now.kl_coef
  stats.skipped_updates = self.optimizer.skipped
  stats.tokens = stats.length * #groups * #groups[1].samples
  self.log:rows(step, "rollouts", records.rollout_rows(step, groups))
  for _, group in ipairs(self.parallel:own(groups)) do inputs.release { group.row } end
  -- Collect unreferenced handles here, so that every step starts with as many C objects.
  collectgarbage()
  stats.time, stats.seconds = timer.report()
  stats.machine = machine.of(stats, self.policy)
  local time = stats.time
  stats.machine.mfu = utilisation.of(self, self.parallel:own(groups),
    time.forward + time.backward + time.optimizer)
  if write_log then write_log(stats) end
  stop.release()
  return stats
end

-- ---- evaluation, checkpoints, the run ----
-- keep: the first `keep` records carry the answer's mask, which the caller frees.
function methods:evaluate(keep)
  local result = evaluator.held_out(self, keep)
  rollout.rest(self.policy, self.plan)
  return result.reward, result.parts, result.records, result.giou
end

function methods:begin_save()
  health.check_weights(self)
  return saving.start(self)
end

function methods:saved() saving.wait(self) end

function methods:save()
  health.check_weights(self)
  return saving.now(self)
end

function methods:resume(path)
  self.sampler:cancel()
  saving.load(self, path)
  share_vision(self)
end

function methods:run() require("segzero.train.run.loop").run(self) end

return M
