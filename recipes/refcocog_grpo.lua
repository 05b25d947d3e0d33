-- refcocog_grpo.lua - GRPO on referring sentences, as Seg-Zero trains: the policy reasons, then answers with a box and two points.
--
--   segzero recipes/refcocog_grpo.lua                                             the embedded default: tiny model, RefShapes
--   segzero recipes/refcocog_grpo.lua worker.actor.model.model_path=DIR data.train_files=FOLDER data.val_files=FOLDER key=value ...
--
-- The defaults are those of Seg-Zero's seg_zero_3b.yaml under its key names; `tiny` below is what the embedded default changes.
-- With a SAM2 checkpoint (worker.reward.sam2_path; empty is the embedded one beside the embedded policy, "none" is none) rewards may ask
-- for masks, and if the held-out rows have masks, the run also says how well those of the greedy answers fit (gIoU).
-- A script may also call it with its own reward or data: see examples/custom_reward.lua.

local sz = require "segzero"
local config = require "segzero.config"
local experiment = require "segzero.train.experiment"
local files = require "segzero.core.files"
local options = require "segzero.core.options"

local M = {}

M.defaults = {
  data = {
    train_files = "", val_files = "",                     -- folders (data.jsonl), or "refshapes"; empty: RefShapes
    max_prompt_length = 1300, max_response_length = 1300, rollout_batch_size = 16, val_batch_size = 64,
    shuffle = true, seed = 42, max_pixels = 12845056, min_pixels = 3136,
    system_prompt = "You are a helpful assistant.",
    refshapes_size = 840, refshapes_rows = 2000, refshapes_val_rows = 200,
  },
  algorithm = { adv_estimator = "grpo", kl_coef = 0.0 },
  worker = {
    actor = {
      global_batch_size = 16,                             -- prompts an update
      max_tokens_per_micro_batch = 16384,
      -- At most so many answers in a micro-batch of the update, and of the reference's log-probabilities; null: as many as the tokens allow.
      micro_batch_size_per_device_for_update = config.optional "number",
      micro_batch_size_per_device_for_experience = config.optional "number",
      max_grad_norm = 1.0, clip_ratio = 0.2, entropy_coeff = 1e-3, loss_avg_mode = "token", loss_type = "ppo_clip", ppo_epochs = 1,
      use_kl_loss = true, kl_loss_coef = 5e-3, kl_loss_type = "low_var_kl",
      freeze_vision_tower = false, grad_dtype = "f32",
      model = { model_path = "", enable_gradient_checkpointing = true, dtype = "f32",
        lora = { rank = 0, alpha = 64, target_modules = "all-linear", exclude_modules = ".*visual.*" } },      -- rank 0: off (lora.lua)
      optim = { lr = 1e-6, weight_decay = 1e-2, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, lr_warmup_steps_ratio = 0.0, lr_scheduler_type = "constant",
        state_dtype = "f32", master_weights = true },
    },
    ref = { model = { dtype = config.optional "string" },         -- null: as the policy; int8 halves its memory
      offload = { param_offload = false } },                      -- on a device: in host memory while it is not used
    rollout = { temperature = 1.0, n = 8, top_p = 1.0, top_k = -1,
      cache_gib = 4, gpu_memory_utilization = 0.6 },              -- the key-value cache: on the CPU, on a GPU
    reward = { reward_type = "function", compute_score = "seg_strict",        -- a name in rewards/, or a file that returns a function
      sam2_path = "" },
  },
  trainer = {
    total_episodes = 1, max_steps = config.optional "number", experiment_name = "refcocog_grpo",
    save_checkpoint_path = config.optional "string", load_checkpoint_path = config.optional "string",
    logger = { "console", "jsonl" },
    save_freq = 50, test_freq = 100000, val_before_train = true, val_only = false,
    check_memory = true,                                  -- refuse to load what cannot fit (plan.lua)
  },
}

-- What Seg-Zero's and EasyR1's command lines carry and one process does not need.
local one_process = "there is one process and one copy of the weights"
M.ignored = {
  ["data.prompt_key"] = "the columns are problem, solution, image",
  ["worker.actor.padding_free"] = "nothing is padded",
  ["worker.actor.fsdp.param_offload"] = one_process, ["worker.actor.fsdp.optimizer_offload"] = one_process,
  ["worker.actor.fsdp.torch_dtype"] = "use worker.actor.model.dtype",
  ["worker.actor.offload.param_offload"] = one_process, ["worker.actor.offload.optimizer_offload"] = one_process,
  ["worker.rollout.tensor_parallel_size"] = one_process,
  ["worker.rollout.enable_chunked_prefill"] = one_process, ["worker.rollout.enforce_eager"] = one_process,
  ["trainer.n_gpus_per_node"] = one_process, ["trainer.nnodes"] = one_process,
  ["trainer.project_name"] = "runs are folders",
}

-- What the embedded default changes, unless the command line says otherwise: a small frame, few tokens, a model that starts
-- from minutes of pretraining and so takes larger steps.
M.tiny = {
  ["data.max_response_length"] = 110, ["data.refshapes_rows"] = 100000, ["data.refshapes_val_rows"] = 128,
  ["worker.actor.optim.lr"] = 1e-4, ["worker.actor.model.enable_gradient_checkpointing"] = false,
  ["trainer.max_steps"] = 110, ["trainer.test_freq"] = 0, ["trainer.save_freq"] = 0, ["trainer.experiment_name"] = "refshapes_grpo",
}
M.tiny_model, M.tiny_sam2 = "models/tiny/qwen2.5-vl", "models/tiny/sam2"

local function check_choice(cfg, key, choices)
  local v = config.get(cfg, key)
  for _, c in ipairs(choices) do
    if v == c then return end
  end
  error(("%s is '%s', expected one of: %s"):format(key, tostring(v), table.concat(choices, ", ")), 0)
end

-- Counts: whole numbers from 1.
local COUNTS = { "data.max_prompt_length", "data.max_response_length", "data.rollout_batch_size", "data.val_batch_size", "data.min_pixels",
  "data.max_pixels", "data.refshapes_rows", "data.refshapes_val_rows", "worker.actor.global_batch_size", "worker.rollout.n",
  "worker.actor.max_tokens_per_micro_batch", "worker.actor.micro_batch_size_per_device_for_update",
  "worker.actor.micro_batch_size_per_device_for_experience", "trainer.total_episodes" }

-- Other numbers: key, least, greatest (nil: none), "whole", or which end is out: "above" the least, "below" the greatest. -1 in save_freq and
-- test_freq: never; in top_k: all tokens.
local RANGES = {
  { "worker.actor.optim.lr", 0 }, { "worker.actor.optim.weight_decay", 0 }, { "worker.actor.optim.beta1", 0, 1, "below" },
  { "worker.actor.optim.beta2", 0, 1, "below" },
  { "worker.actor.optim.eps", 0, nil, "above" }, { "worker.actor.optim.lr_warmup_steps_ratio", 0, 1 }, { "worker.actor.max_grad_norm", 0, nil, "above" },
  { "worker.actor.clip_ratio", 0, nil, "above" }, { "worker.actor.kl_loss_coef", 0 }, { "worker.actor.model.lora.rank", 0, nil, "whole" },
  { "worker.actor.model.lora.alpha", 0, nil, "above" }, { "worker.rollout.temperature", 0, nil, "above" }, { "worker.rollout.top_p", 0, 1, "above" },
  { "worker.rollout.top_k", -1, nil, "whole" }, { "worker.rollout.cache_gib", 0, nil, "above" }, { "worker.rollout.gpu_memory_utilization", 0, 1, "above" },
  { "data.seed", -2 ^ 53, 2 ^ 53, "whole" }, { "data.refshapes_size", 84, 840, "whole" },
  { "trainer.max_steps", 0, nil, "whole" }, { "trainer.save_freq", -1, nil, "whole" }, { "trainer.test_freq", -1, nil, "whole" },
}

local function check_ranges(cfg)
  for _, r in ipairs(RANGES) do
    local key, least, greatest, kind = unpack(r, 1, 4)
    local v = config.get(cfg, key)
    if v and (v < least or greatest and v > greatest or kind == "above" and v == least or kind == "below" and v == greatest
        or kind == "whole" and v % 1 ~= 0) then
      error(("%s is %s, expected a %snumber %s %g%s"):format(key, tostring(v), kind == "whole" and "whole " or "", kind == "above" and "above" or "from",
        least, greatest and (" and %s %g"):format(kind == "below" and "below" or "at most", greatest) or ""), 0)
    end
  end
  if cfg.data.refshapes_size % 28 ~= 0 then error(("data.refshapes_size is %d, expected a multiple of 28"):format(cfg.data.refshapes_size), 0) end
end

local function check_counts(cfg)
  for _, key in ipairs(COUNTS) do
    local v = config.get(cfg, key)
    if v and (v < 1 or v % 1 ~= 0) then error(("%s is %s, expected a whole number from 1"):format(key, tostring(v)), 0) end
  end
end

-- Which SAM2 checkpoint is meant; "" for none.
local function sam2_path(named, default_model)
  if named ~= "" then return (named:lower() == "none" or named == "null") and "" or named end
  if not default_model then return "" end
  local embedded = files.embedded(M.tiny_sam2)
  if files.exists(embedded .. "/config.json") then return embedded end
  print("no SAM2 model: " .. M.tiny_sam2 .. " is not there, so masks are not computed")
  return ""
end

-- The settings of these arguments, checked and with what the embedded default changes.
function M.settings(args)
  local cfg, given = config.read(M.defaults, args, { ignored = M.ignored })
  local default_model = cfg.worker.actor.model.model_path == ""
  local default_data = cfg.data.train_files == ""
  if cfg.data.val_files == "None" or cfg.data.val_files == "null" then cfg.data.val_files = "" end      -- as Seg-Zero's YAML has it
  if default_model then
    cfg.worker.actor.model.model_path = files.embedded(M.tiny_model)
    for key, v in pairs(M.tiny) do
      if not given[key] then config.set(cfg, key, v) end
    end
    local json = require("segzero.models.qwen_vl").read_json(cfg.worker.actor.model.model_path .. "/config.json")
    if not given["data.refshapes_size"] then cfg.data.refshapes_size = json.segzero_frame or 840 end
    print("no model named: using the embedded " .. cfg.worker.actor.model.model_path)
  end
  cfg.worker.reward.sam2_path = sam2_path(cfg.worker.reward.sam2_path, default_model)
  if default_data then
    cfg.data.train_files, cfg.data.val_files = "refshapes", cfg.data.val_files ~= "" and cfg.data.val_files or "refshapes"
    print(("no data named: using RefShapes, generated pictures of %d pixels"):format(cfg.data.refshapes_size))
  end
  check_counts(cfg)
  check_ranges(cfg)
  check_choice(cfg, "algorithm.adv_estimator", sz.advantages:names())
  check_choice(cfg, "worker.actor.loss_avg_mode", sz.aggregations:names())
  check_choice(cfg, "worker.actor.loss_type", sz.losses:names())
  check_choice(cfg, "worker.actor.optim.lr_scheduler_type", sz.schedules:names())
  check_choice(cfg, "worker.actor.kl_loss_type", sz.kl:names())
  check_choice(cfg, "worker.actor.model.dtype", { "f32", "bf16" })
  check_choice(cfg, "worker.actor.optim.state_dtype", { "f32", "bf16", "int8" })
  check_choice(cfg, "worker.actor.grad_dtype", { "f32", "bf16" })
  if cfg.worker.ref.model.dtype then check_choice(cfg, "worker.ref.model.dtype", { "f32", "bf16", "int8" }) end
  check_choice(cfg, "worker.reward.reward_type", { "function" })
  local rank, ref = cfg.worker.actor.model.lora.rank, cfg.worker.ref.model.dtype
  if cfg.worker.ref.offload.param_offload and ref == "int8" then
    error("worker.ref.offload.param_offload: a reference in 8 bits (worker.ref.model.dtype=int8) stays on the device", 0)
  end
  if rank > 0 and ref and ref ~= cfg.worker.actor.model.dtype then
    error(("worker.ref.model.dtype is %s: with LoRA the reference is the policy without its adapters, %s"):format(ref, cfg.worker.actor.model.dtype), 0)
  end
  if cfg.worker.actor.ppo_epochs ~= 1 then error("worker.actor.ppo_epochs is " .. cfg.worker.actor.ppo_epochs .. ", only 1 is supported", 0) end
  if cfg.algorithm.kl_coef ~= 0 then error("algorithm.kl_coef is " .. cfg.algorithm.kl_coef .. ": the KL term is in the loss here (worker.actor.kl_loss_coef)", 0) end
  if cfg.worker.reward.compute_score == "mask_iou" and cfg.worker.reward.sam2_path == "" then
    error("worker.reward.compute_score=mask_iou needs a SAM2 model: give worker.reward.sam2_path", 0)
  end
  return cfg
end

-- Trains with these arguments. overrides: {reward = f, train = set, held_out = set, prompt = f, on_step = f,
-- on_evaluate = f, stop_when = f}, each optional; see segzero.train.experiment. Returns the trainer.
function M.run(args, overrides)
  overrides = options.check("run", overrides, experiment.overrides, 2)
  local t = experiment.run(M.settings(args), overrides)
  return t
end

-- Run as a script, not when required.
if not (...) or (arg and arg[0] and arg[0]:match "refcocog_grpo%.lua$") then M.run(arg) end

return M
