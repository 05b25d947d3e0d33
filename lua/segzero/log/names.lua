-- names.lua - a run's numbers under the names that veRL's, EasyR1's and Seg-Zero's dashboards read.
--
--   names.verl(t, config) -> {["critic/score/mean"] = number, ...}
--   names.flat(t, config) -> the same, and every other number of t under our name; tables in t
--                            become "time/decode". This is what TensorBoard, W&B and CSV get
--   names.is_verl "actor/lr"         whether a name is one of veRL's; a table with both kinds of
--                                    names, such as metrics.jsonl's lines, says those numbers twice
--   names.sorted(numbers) -> list of their names
--
-- t: the record of a step or of an evaluation (loggers.lua). config: the run's settings, or nil.
-- A name of veRL's stands for the very number that veRL computes, or it is left out:
-- timing_s/old_log_prob (the sampler's log-probabilities are used), timing_s/adv (not timed),
-- timing_s/save_checkpoint (written in the background). mfu/actor alone is our own number: veRL
-- counts a prompt once for each answer and divides by a data sheet's rate
-- (train/figures/utilisation.lua).

local M = {}

-- Our name -> veRL's.
local SAME = {
  reward = "critic/score/mean", reward_min = "critic/score/min", reward_max = "critic/score/max",
  rewards_mean = "critic/rewards/mean", rewards_min = "critic/rewards/min",
  rewards_max = "critic/rewards/max",
  advantage_mean = "critic/advantages/mean", advantage_min = "critic/advantages/min",
  advantage_max = "critic/advantages/max",
  length = "response_length/mean", length_min = "response_length/min",
  length_max = "response_length/max", length_at_limit = "response_length/clip_ratio",
  prompt_length = "prompt_length/mean", prompt_length_min = "prompt_length/min",
  prompt_length_max = "prompt_length/max", prompt_length_at_limit = "prompt_length/clip_ratio",
  policy_loss = "actor/pg_loss", entropy = "actor/entropy_loss", grad_norm = "actor/grad_norm",
  sampler_kl = "actor/ppo_kl", clip_active = "actor/pg_clipfrac", lr = "actor/lr",
  held_out_reward = "val/reward_score",
}

-- Estimators whose returns are their advantages.
local RETURNS = { grpo = true, grpo_passk = true, rloo = true }

-- The KL term of the loss, where there is one.
local function add_kl(out, t, config)
  local actor = config and config.worker and config.worker.actor
  if not actor or not actor.use_kl_loss then return end
  out["actor/kl_loss"] = t.kl
  out["actor/kl_coef"] = t.kl_coef
end

local function add_returns(out, t, config)
  local algorithm = config and config.algorithm
  if not algorithm or not RETURNS[algorithm.adv_estimator] then return end
  for _, which in ipairs { "mean", "min", "max" } do
    out["critic/returns/" .. which] = t["advantage_" .. which]
  end
end

-- Without a KL term in the reward, veRL's rewards are its scores.
local function add_rewards(out, t)
  if t.rewards_mean or not t.reward then return end
  out["critic/rewards/mean"] = t.reward
  out["critic/rewards/min"] = t.reward_min
  out["critic/rewards/max"] = t.reward_max
end

local function add_times(out, t)
  local time = t.time
  if not time or not t.seconds then return end
  local seconds = {
    gen = time.vision + time.prefill + time.decode, reward = time.reward, ref = time.reference,
    update_actor = time.forward + time.backward + time.optimizer,
  }
  out["timing_s/step"] = t.seconds.total
  for name, value in pairs(seconds) do out["timing_s/" .. name] = value end

  -- veRL divides by the tokens that a phase reads: answers alone, or prompts and answers.
  local answers = t.tokens
  if not answers or answers == 0 then return end
  out["timing_per_token_ms/gen"] = seconds.gen * 1000 / answers
  if not t.prompt_length or not t.length then return end
  local all = answers * (1 + t.prompt_length / t.length)
  for _, name in ipairs { "ref", "update_actor" } do
    out["timing_per_token_ms/" .. name] = seconds[name] * 1000 / all
  end
end

function M.verl(t, config)
  local out = {}
  for ours, theirs in pairs(SAME) do
    if type(t[ours]) == "number" then out[theirs] = t[ours] end
  end
  if not t.reward then return out end
  add_kl(out, t, config)
  add_returns(out, t, config)
  add_rewards(out, t)
  add_times(out, t)
  out["mfu/actor"] = t.machine and t.machine.mfu
  return out
end

-- Numbers in tables, with a slash between the names.
local function add_all(out, t, prefix)
  for name, value in pairs(t) do
    local full = prefix .. tostring(name)
    if type(value) == "table" then
      add_all(out, value, full .. "/")
    elseif type(value) == "number" then
      out[full] = value
    end
  end
end

function M.flat(t, config)
  local all = {}
  add_all(all, t, "")
  all.step = nil
  local out = M.verl(t, config)
  local is_new = out["actor/kl_loss"] ~= nil
  for name, value in pairs(all) do
    local has_other = SAME[name] or (is_new and (name == "kl" or name == "kl_coef"))
    if not has_other then out[name] = value end
  end
  return out
end

local VERLS = { critic = true, actor = true, response_length = true, prompt_length = true,
  timing_s = true, timing_per_token_ms = true, val = true }

function M.is_verl(name) return VERLS[name:match "^([^/]+)/"] == true end

function M.sorted(numbers)
  local list = {}
  for name in pairs(numbers) do list[#list + 1] = name end
  table.sort(list)
  return list
end

return M
