-- options.lua - from the settings of a run, in EasyR1's nesting, to the plain options of each
-- component. Training code reads no other key of the settings; a renamed key changes this file
-- only.
--
--   local options = options.of(cfg)       cfg: what a recipe's settings(args) returns
--
-- Returns one table for each component:
--   rows           batch (prompts that are drawn together), seed, shuffle
--   filter         nil, or {key =, low =, high =, tries =, batch = prompts a step} of filtering.lua
--   input          system_prompt, max_tokens (of a prompt), frames (data/frame.lua)
--   rollout        what inference/generate.lua takes: n, top_p, top_k, max_new_tokens, seed,
--                  cache_gib, ...
--   forward        recompute (gradient checkpointing), frozen_vision
--   micro_batches  max_tokens, and the most answers in one: update, experience (math.huge: no
--                  limit)
--   estimator      the name of the advantage estimator
--   reward_kl      {coef =, kl = a registered estimator}: the KL term in the reward, or nil
--   update         groups (prompts an update), loss, kl, aggregation (registered names), use_kl
--   numbers        lr, temperature, kl_coef, entropy_coef, clip_low, clip_high, clip_dual (nil:
--                  none), tau_positive, tau_negative, gamma: what schedules and hooks may change
--   schedules      name of a number -> registered schedule
--   warmup_ratio   share of the run that warms up; warmup_steps, if not nil: how many steps
--   least_ratio    the share of a number that the schedule cosine ends at
--   optimizer      what train/optim.lua takes, without lr
--   reward         timeout (seconds an answer), on_error (stop, zero)
--   evaluation     batch (rows), max_new_tokens, cache_gib, gpu_memory_utilization, n (answers
--                  to a row), temperature (0: greedy), top_p, top_k, seed
--   run            test_freq, save_freq, save_limit, save_best, max_bad_updates, loggers
--                  (registered names)
-- Leaves out: defaults and checks (config/grpo.lua).

local advantages = require "segzero.algorithms.advantages"
local frame = require "segzero.data.frame"
local loggers = require "segzero.log.loggers"

local M = {}

local DEFAULT_LOGGERS = { "console", "jsonl" }

-- A list of names: {"console", "jsonl"} or "console,jsonl".
local function name_list(value)
  if type(value) ~= "string" then return value end
  local names = {}
  for name in value:gmatch "[^%s,%[%]'\"]+" do names[#names + 1] = name end
  return names
end

local function rollout_options(cfg)
  local rollout = cfg.worker.rollout
  return {
    n = rollout.n, top_p = rollout.top_p, top_k = rollout.top_k,
    max_new_tokens = cfg.data.max_response_length, seed = rollout.seed or cfg.data.seed,
    cache_gib = rollout.cache_gib, gpu_memory_utilization = rollout.gpu_memory_utilization,
    keep_vision = cfg.worker.actor.freeze_vision_tower,
  }
end

local function numbers(cfg)
  local actor = cfg.worker.actor
  return {
    lr = actor.optim.lr, temperature = cfg.worker.rollout.temperature,
    kl_coef = actor.kl_loss_coef, entropy_coef = actor.entropy_coeff,
    clip_low = actor.clip_ratio_low or actor.clip_ratio,
    clip_high = actor.clip_ratio_high or actor.clip_ratio, clip_dual = actor.clip_ratio_dual,
    tau_positive = actor.tau_positive, tau_negative = actor.tau_negative,
    gamma = cfg.algorithm.gamma,
  }
end

local function optimizer_options(actor)
  local o = actor.optim
  local grad_dtype = actor.grad_dtype
  if grad_dtype == "f32" then grad_dtype = nil end        -- the default; asking for it costs a call
  return {
    betas = { o.beta1, o.beta2 }, eps = o.eps,
    weight_decay = o.weight_decay, max_grad_norm = actor.max_grad_norm,
    state_dtype = o.state_dtype, master_weights = o.master_weights,
    grad_dtype = grad_dtype, shard_state = o.shard_state,
    offload_moments = actor.offload.optimizer_offload,
    offload_masters = actor.offload.param_offload,
  }
end

local function evaluation_options(cfg)
  local rollout = cfg.worker.rollout
  local own = rollout.val_override_config or {}
  return {
    batch = cfg.data.val_batch_size, max_new_tokens = cfg.data.max_response_length,
    cache_gib = rollout.cache_gib, gpu_memory_utilization = rollout.gpu_memory_utilization,
    temperature = own.temperature or 0, top_p = own.top_p, top_k = own.top_k, n = own.n or 1,
    seed = rollout.seed or cfg.data.seed,
  }
end

local function filter_options(cfg)
  local a = cfg.algorithm
  if not a.online_filtering then return nil end
  return { key = a.filter_key, low = a.filter_low, high = a.filter_high,
    tries = cfg.trainer.max_try_make_batch, batch = cfg.data.rollout_batch_size }
end

-- The KL term in the reward, or nil.
local function reward_kl(cfg)
  if cfg.worker.actor.use_kl_loss or cfg.algorithm.kl_coef == 0 then return nil end
  return { coef = cfg.algorithm.kl_coef, kl = cfg.algorithm.kl_penalty }
end

-- How many of the newest checkpoints are kept.
local function save_limit(trainer)
  if trainer.remove_previous_ckpt then return 1 end
  if (trainer.save_limit or -1) <= 0 then return math.huge end
  return trainer.save_limit
end

-- trainer.report is a logger of its own: it comes after jsonl, whose files it reads.
local function with_report(names, report)
  names = loggers.with_others(names)
  local has_lines = false
  local list = {}
  for i, name in ipairs(names) do
    list[i] = name
    has_lines = has_lines or name == "jsonl"
    if name == "report" then return names end
  end
  if report and has_lines then list[#list + 1] = "report" end
  return list
end

function M.of(cfg)
  local data = cfg.data
  local filter = filter_options(cfg)
  local actor = cfg.worker.actor
  return {
    rows = { batch = filter and data.mini_rollout_batch_size or data.rollout_batch_size,
      seed = data.seed, shuffle = data.shuffle },
    filter = filter,
    input = { system_prompt = data.system_prompt, max_tokens = data.max_prompt_length,
      frames = frame.settings(data, "data.") },
    rollout = rollout_options(cfg),
    forward = { recompute = actor.model.enable_gradient_checkpointing,
      frozen_vision = actor.freeze_vision_tower },
    micro_batches = {
      max_tokens = actor.max_tokens_per_micro_batch,
      update = actor.micro_batch_size_per_device_for_update or math.huge,
      experience = actor.micro_batch_size_per_device_for_experience or math.huge,
    },
    estimator = cfg.algorithm.adv_estimator, reward_kl = reward_kl(cfg),
    update = {
      groups = actor.global_batch_size, loss = actor.loss_type or "ppo_clip",
      kl = actor.kl_loss_type,
      aggregation = actor.loss_avg_mode, use_kl = actor.use_kl_loss,
    },
    numbers = numbers(cfg),
    schedules = { lr = actor.optim.lr_scheduler_type or "constant" },
    warmup_ratio = actor.optim.lr_warmup_steps_ratio,
    warmup_steps = actor.optim.lr_warmup_steps,
    least_ratio = actor.optim.min_lr_ratio,
    optimizer = optimizer_options(actor),
    reward = { timeout = cfg.worker.reward.timeout or 10,
      on_error = cfg.worker.reward.on_error or "stop" },
    evaluation = evaluation_options(cfg),
    run = {
      test_freq = cfg.trainer.test_freq, save_freq = cfg.trainer.save_freq,
      save_limit = save_limit(cfg.trainer), save_best = cfg.trainer.save_best or "none",
      max_bad_updates = cfg.trainer.max_bad_updates,
      loggers = with_report(name_list(cfg.trainer.logger) or DEFAULT_LOGGERS,
        cfg.trainer.report),
    },
  }
end

-- True if a run has a frozen reference model: for the KL term, or for its estimator.
function M.uses_reference(cfg)
  local actor = cfg.worker.actor
  if actor.use_kl_loss and actor.kl_loss_coef ~= 0 then return true end
  if reward_kl(cfg) then return true end
  local needs = advantages:get(cfg.algorithm.adv_estimator).needs
  return needs ~= nil and needs.reference == true
end

return M
