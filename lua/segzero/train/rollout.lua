-- rollout.lua - the first stages of a step: samples answers to the prompts and scores them.
--
--   rollout.groups(t, rows) -> groups             rows as the model reads them; t: a trainer
--   rollout.answer(t, groups, temperature)        sets group.samples of every group, with scores
--   rollout.rest(policy, plan)                    frees the key-value cache if the update needs its
--                                                 memory
--
-- A group that has all its answers is scored while others still decode. Leaves out: advantages,
-- which need the whole batch.

local inference = require "segzero.inference.generate"
local inputs_of = require "segzero.train.inputs"
local progress = require "segzero.log.progress"
local runner = require "segzero.reward.runner"
local stop = require "segzero.core.stop"
local timer = require "segzero.log.timer"

local M = {}

-- The cache keeps its memory only if the plan has room for it besides the update: taking pages
-- again costs page faults.
function M.rest(policy, plan)
  local fits = plan and plan.phases.update + plan.parts.cache <= plan.device.free
  if not fits then inference.release_cache(policy) end
end

function M.groups(t, rows)
  local groups = {}
  for i, row in ipairs(rows) do
    inputs_of.prepare(row, t.policy, t.prompt, t.options.input)
    groups[i] = { row = row, input = row.input, place = row.place }
  end
  return groups
end

-- Errors inside a rollout travel in a table, so that tensor scopes do not add their own traceback.
local function in_table(f, ...)
  local ok, reason = pcall(f, ...)
  if not ok then error({ reason }, 0) end
end

-- The replica's first shard scores, because a reward may be random.
local function scores_of(t, group)
  return t.parallel:from_first(function()
    runner.score_group(t.reward, group, t.segmenter, t.scoring)
    if t.parallel.shards == 1 then return nil end
    local scores = {}
    for k, sample in ipairs(group.samples) do
      scores[k] = { score = sample.score, parts = sample.parts, why = sample.why }
    end
    return scores
  end)
end

local function score_group(t, group)
  if group.scored then return end
  for _, sample in ipairs(group.samples) do sample.length = #sample.ids end
  for k, one in ipairs(scores_of(t, group) or {}) do
    local sample = group.samples[k]
    sample.score, sample.parts, sample.why = one.score, one.parts, one.why
  end
  group.scored = true
end

local function generation_options(t, groups, temperature)
  local options = { temperature = temperature, row_ids = {} }
  for name, v in pairs(t.options.rollout) do options[name] = v end
  for i, group in ipairs(groups) do options.row_ids[i] = group.row.number end

  local tick = progress.of_step(t, #groups, "prompts answered")
  local answered = 0
  function options.on_group(i, answers)
    if t.parallel.shards == 1 then stop.check() end
    answered = answered + 1
    tick(answered)
    local before = timer.enter "reward"
    groups[i].samples = answers
    in_table(score_group, t, groups[i])
    timer.enter(before)
  end
  return options
end

function M.answer(t, groups, temperature)
  local inputs = {}
  for i, group in ipairs(groups) do inputs[i] = group.input end
  timer.enter "decode"
  local options = generation_options(t, groups, temperature)
  local ok, answers, stats = pcall(inference.generate, t.policy, inputs, options)
  if not ok then error(type(answers) == "table" and answers[1] or answers, 0) end
  if stats and stats.seconds then
    timer.move("decode", "vision", stats.seconds.vision)
    timer.move("decode", "prefill", stats.seconds.prefill)
  end

  timer.enter "reward"
  for i, group in ipairs(groups) do
    group.samples = group.samples or answers[i]
    score_group(t, group)
  end
  M.rest(t.policy, t.plan)
end

return M
