-- grpo.lua - the settings of the GRPO recipes, under the keys of Seg-Zero and EasyR1.
--
--   local cfg = require("segzero.config.grpo").settings(arg)      cfg.worker.rollout.n, ...
--
-- The defaults are those of Seg-Zero's seg_zero_3b.yaml. Without a model the embedded one is used,
-- with the smaller settings of M.EMBEDDED. Nothing is loaded here: a mistake is reported in one
-- line before any weight is read.
-- Leaves out: opening data and models (the recipe does), and whether rows have what a reward needs.

local choices = require "segzero.config.choices"
local config = require "segzero.config"
local console = require "segzero.log.console"
local dialects = require "segzero.config.foreign.dialects"
local foreign = require "segzero.config.foreign.keys"
local frame = require "segzero.data.frame"
local notes = require "segzero.core.notes"
local paths = require "segzero.config.paths"
local prompts = require "segzero.data.prompt"
local schema = require "segzero.config.schema"

local M = {}

-- Other programs' words for a dtype.
local DTYPES = { bfloat16 = "bf16", float32 = "f32", fp32 = "f32", float = "f32" }
-- EasyR1's words for no limit, and for all rows together (the result is the same).
local NONE = { ["-1"] = "null" }
local ALL = { ["-1"] = "64" }

-- Estimators of Seg-Zero and EasyR1 that are not available, and why.
local NO_ESTIMATOR = { gae = "it needs a critic",
  remax = "it needs a greedy answer to each prompt; rloo compares answers, too" }
local NO_KL = { full = "it needs the reference's whole distribution for each token" }
local ONE_EPOCH = { ["*"] = "for more updates of a rollout lower worker.actor.global_batch_size" }

local data = {
  { key = "data.train_files", type = "text", default = "", null = "", path = true,
    help = "a folder with data.jsonl, Parquet or Arrow files (name@split), annotations of COCO, "
      .. "refer or ReasonSeg, refshapes or refshapes_multi; empty: RefShapes" },
  { key = "data.val_files", type = "text", default = "", null = "", path = true,
    help = "held-out rows, named in the same way; empty: no evaluation of your own data" },
  { key = "data.prompt_key", type = "text", default = "problem",
    help = "the column of the question; the default also stands for text, prompt, messages and "
      .. "conversations" },
  { key = "data.answer_key", type = "text", default = "solution",
    help = "the column of the ground truth; the default also stands for answer and reward_model" },
  { key = "data.image_key", type = "text", default = "image",
    help = "the column of the image; the default also stands for images, and for the only column "
      .. "that holds some" },
  { key = "data.image_dir", type = "text", default = "", null = "", path = true,
    help = "the folder that relative paths of images start from; empty: the data set's own, or "
      .. "where its layout has them" },
  { key = "data.max_prompt_length", type = "count", default = 1300, max = 2 ^ 24, unit = "tokens",
    help = "a longer prompt is an error that names the row" },
  { key = "data.on_bad_row", type = "text", default = "error", choices = { "error", "skip" },
    help = "rows that cannot be used, found before step 1: refuse the run, or leave them out" },
  { key = "data.filter_overlong_prompts", type = "boolean", default = false,
    help = "leave out rows whose prompt is longer than data.max_prompt_length" },
  { key = "data.max_response_length", type = "count", default = 1300, max = 2 ^ 24, unit = "tokens",
    help = "an answer is cut off here" },
  { key = "data.rollout_batch_size", type = "count", default = 16, max = 2 ^ 20, unit = "prompts",
    help = "prompts that are sampled together, with n answers each" },
  { key = "data.mini_rollout_batch_size", type = "count", optional = true, max = 2 ^ 20,
    unit = "prompts",
    help = "with algorithm.online_filtering: drawn at a time; null: data.rollout_batch_size" },
  { key = "data.val_batch_size", type = "count", default = 64, max = 2 ^ 20, unit = "prompts",
    spellings = ALL, help = "prompts that an evaluation answers together, with the same result" },
  { key = "data.shuffle", type = "boolean", default = true,
    help = "draw the rows in a random order" },
  { key = "data.seed", type = "integer", default = 42, min = -2 ^ 53, max = 2 ^ 53,
    help = "fixes the order of the rows and every sampled token" },
  { key = "data.max_pixels", type = "count", default = 12845056, max = 2 ^ 40, unit = "pixels",
    null = 12845056,
    help = "a larger image is reduced for the model" },
  { key = "data.min_pixels", type = "count", default = 3136, max = 2 ^ 40, unit = "pixels",
    null = 3136,
    help = "a smaller image is enlarged for the model" },
  { key = "data.solution_frame", type = "text", default = "auto",
    help = "what solutions count in: image (its own pixels), a size such as 840x840, or 1000; "
      .. "auto: image" },
  { key = "data.answer_frame", type = "text", default = "auto",
    help = "what answers count in: model (the size it sees), image, a size, or 1000; auto: as the "
      .. "model's family does" },
  { key = "data.resize", type = "text", optional = true,
    help = "resize every image to this size first, such as 840x840 (bilinear, as in Seg-Zero's "
      .. "inference)" },
  { key = "data.prompt", type = "text", default = "auto",
    choices = { "auto", "seg_zero", "vision_reasoner", "plain" },
    help = "seg_zero asks for one object, vision_reasoner for a list, plain only what the row " ..
      "says; auto: what the reward reads" },
  { key = "data.format_prompt", type = "text", optional = true, path = true,
    help = "a file whose text is the prompt, with {{ content }} for the row's question" },
  { key = "data.system_prompt", type = "text", default = "You are a helpful assistant.",
    null = "",
    help = "the system message of every prompt" },
}

local refshapes = {
  { key = "data.refshapes_size", type = "integer", default = 840, min = 84, max = 840,
    multiple = 28, unit = "pixels",
    help = "side of the generated images; the embedded model takes its own frame" },
  { key = "data.refshapes_rows", type = "count", default = 2000, max = 2 ^ 31,
    help = "generated rows for training" },
  { key = "data.refshapes_val_rows", type = "count", default = 200, max = 2 ^ 31,
    help = "generated rows for evaluation" },
  { key = "data.refshapes_empty", type = "number", default = 0.1, min = 0, max = 1,
    help = "refshapes_multi: share of the questions about objects that the image does not show" },
}

local algorithm = {
  { key = "algorithm.adv_estimator", type = "text", default = "grpo",
    choices = choices.of "advantages", refusals = NO_ESTIMATOR,
    help = "how scores become advantages" },
  { key = "algorithm.gamma", type = "number", default = 1, min = 0, max = 1,
    help = "reinforce_plus_plus: discount of a later token's reward" },
  { key = "algorithm.kl_coef", type = "number", default = 0, min = 0,
    help = "weight of a KL term in the reward, with worker.actor.use_kl_loss=false" },
  { key = "algorithm.kl_penalty", type = "text", default = "kl", choices = choices.of "kl",
    refusals = NO_KL, help = "the estimator of the KL term in the reward" },
  { key = "algorithm.online_filtering", type = "boolean", default = false,
    help = "leave out groups whose answers are all good or all bad, and draw more (DAPO)" },
  { key = "algorithm.filter_key", type = "text", default = "overall",
    help = "the part of the reward that decides about a group; overall: the score" },
  { key = "algorithm.filter_low", type = "number", default = 0.01,
    help = "a group stays if its mean is above this" },
  { key = "algorithm.filter_high", type = "number", default = 0.99,
    help = "a group stays if its mean is below this" },
  { key = "worker.actor.loss_type", type = "text", default = "ppo_clip",
    spellings = { default = "ppo_clip" },
    choices = choices.of "losses", help = "the loss of each token" },
  { key = "worker.actor.loss_avg_mode", type = "text", default = "token",
    choices = choices.of "aggregations",
    help = "token: mean over all tokens; seq: mean over answers of the mean over their tokens" },
  { key = "worker.actor.clip_ratio", type = "number", default = 0.2, above = 0,
    help = "how far the probability ratio may move before its gradient is cut" },
  { key = "worker.actor.clip_ratio_low", type = "number", optional = true, min = 0,
    max = 1, help = "the lower bound alone; null: clip_ratio" },
  { key = "worker.actor.clip_ratio_high", type = "number", optional = true, min = 0,
    help = "the upper bound alone; null: clip_ratio" },
  { key = "worker.actor.clip_ratio_dual", type = "number", optional = true, above = 1,
    help = "most that the ratio counts for an answer worse than its group; null: no bound" },
  { key = "worker.actor.tau_positive", type = "number", default = 1, above = 0,
    help = "sapo: how fast the gradient fades for an answer better than its group" },
  { key = "worker.actor.tau_negative", type = "number", default = 1.05, above = 0,
    help = "sapo: the same for a worse answer" },
  { key = "worker.actor.entropy_coeff", type = "number", default = 1e-3,
    help = "weight of the entropy bonus" },
  { key = "worker.actor.use_kl_loss", type = "boolean", default = true,
    help = "compare with a frozen reference; false saves its memory" },
  { key = "worker.actor.kl_loss_coef", type = "number", default = 5e-3, min = 0,
    help = "weight of the KL term" },
  { key = "worker.actor.kl_loss_type", type = "text", default = "low_var_kl",
    choices = choices.of "kl", refusals = NO_KL, help = "the estimator of the KL term" },
  { key = "worker.actor.ppo_epochs", type = "count", default = 1, max = 1, refusals = ONE_EPOCH,
    help = "passes over a rollout's answers; only 1 is supported" },
}

local model = {
  { key = "worker.actor.model.model_path", type = "text", default = "", path = true,
    help = "Qwen2-VL or Qwen2.5-VL: a folder, or a run (its newest checkpoint); empty: embedded" },
  { key = "worker.actor.model.dtype", type = "text", default = "f32",
    choices = { "f32", "bf16", "int4" }, spellings = DTYPES,
    help = "of the weights and activations. int4, with LoRA: 4-bit weights, bf16 activations" },
  { key = "worker.actor.model.enable_gradient_checkpointing", type = "boolean", default = true,
    help = "compute activations again in the backward pass instead of keeping them" },
  { key = "worker.actor.freeze_vision_tower", type = "boolean", default = false,
    also = { "worker.actor.model.freeze_vision_tower" },
    help = "do not train the vision tower; saves its training state" },
  { key = "worker.actor.model.lora.rank", type = "integer", default = 0, max = 2 ^ 16, min = 0,
    help = "train low-rank adapters of this rank instead of the weights; 0: train the weights" },
  { key = "worker.actor.model.lora.alpha", type = "number", default = 64, above = 0,
    help = "adapters are scaled by alpha / rank" },
  { key = "worker.actor.model.lora.target_modules", type = "text", default = "all-linear",
    joined = true,
    help = "layers with adapters: all-linear, names or their ends (q_proj,v_proj), or a pattern" },
  { key = "worker.actor.model.lora.exclude_modules", type = "text", default = ".*visual.*",
    null = "none", joined = true,
    help = "layers without adapters, named in the same way; none: no exception" },
  { key = "worker.ref.model.dtype", type = "text", optional = true,
    choices = { "f32", "bf16", "int8", "int4" }, spellings = DTYPES,
    help = "of the reference; null: as the policy. int8 saves 40 % of bf16's memory, int4 60 %" },
  { key = "worker.ref.offload.param_offload", type = "boolean", default = false,
    also = { "worker.ref.offload.offload_params" },
    help = "on a GPU: keep the reference in host memory while it is not used" },
  { key = "worker.actor.offload.optimizer_offload", type = "boolean", default = false,
    also = { "worker.actor.offload.offload_optimizer" },
    help = "on a GPU: keep the optimizer's moments in host memory between updates" },
  { key = "worker.actor.offload.param_offload", type = "boolean", default = false,
    also = { "worker.actor.offload.offload_params" },
    help = "on a GPU: keep the f32 master weights in host memory between updates" },
}

local optimizer = {
  { key = "worker.actor.global_batch_size", type = "count", default = 16, max = 2 ^ 20,
    unit = "prompts",
    help = "prompts in one optimizer step" },
  { key = "worker.actor.optim.lr", type = "number", default = 1e-6, min = 0,
    help = "AdamW's learning rate" },
  { key = "worker.actor.optim.lr_scheduler_type", type = "text", default = "constant",
    also = { "worker.actor.optim.warmup_style" },
    choices = choices.of "schedules", help = "how the learning rate changes after the warm-up" },
  { key = "worker.actor.optim.min_lr_ratio", type = "number", default = 0, null = 0, min = 0,
    max = 1, help = "cosine: the learning rate ends at this share of worker.actor.optim.lr" },
  { key = "worker.actor.optim.lr_warmup_steps_ratio", type = "number", default = 0, min = 0,
    max = 1, also = { "worker.actor.optim.lr_warmup_ratio" },
    help = "share of the steps in which the learning rate rises from 0" },
  { key = "worker.actor.optim.lr_warmup_steps", type = "integer", optional = true, min = 0,
    max = 2 ^ 31, spellings = NONE, unit = "steps",
    help = "steps in which the learning rate rises from 0; null: lr_warmup_steps_ratio" },
  { key = "worker.actor.optim.weight_decay", type = "number", default = 1e-2, min = 0,
    help = "AdamW's weight decay" },
  { key = "worker.actor.optim.beta1", type = "number", default = 0.9, min = 0, below = 1,
    help = "AdamW's decay of the first moment" },
  { key = "worker.actor.optim.beta2", type = "number", default = 0.999, min = 0, below = 1,
    help = "AdamW's decay of the second moment" },
  { key = "worker.actor.optim.eps", type = "number", default = 1e-8, above = 0,
    help = "AdamW's epsilon" },
  { key = "worker.actor.max_grad_norm", type = "number", default = 1, above = 0,
    help = "a longer gradient is scaled down to this norm" },
  { key = "worker.actor.optim.state_dtype", type = "text", default = "f32",
    choices = { "f32", "bf16", "int8" },
    help = "of AdamW's moments; int8 is codes in blocks of 256" },
  { key = "worker.actor.optim.master_weights", type = "boolean", default = true,
    help = "keep f32 copies of bf16 weights; false: update bf16 in place, rounded stochastically" },
  { key = "worker.actor.optim.shard_state", type = "boolean", default = true,
    help = "with several ranks: each keeps the moments and f32 copies of its part; false: of all" },
  { key = "worker.actor.grad_dtype", type = "text", default = "f32", choices = { "f32", "bf16" },
    help = "of the accumulated gradients" },
}

local memory = {
  { key = "worker.actor.max_tokens_per_micro_batch", type = "count", default = 16384, max = 2 ^ 31,
    unit = "tokens",
    help = "packed tokens whose activations are in memory together; does not change the result" },
  { key = "worker.actor.micro_batch_size_per_device_for_update", type = "count", optional = true,
    spellings = NONE,
    max = 2 ^ 20, unit = "answers",
    help = "most answers in a micro-batch of the update; null: as the tokens allow" },
  { key = "worker.actor.micro_batch_size_per_device_for_experience", type = "count",
    spellings = NONE,
    optional = true, max = 2 ^ 20, unit = "answers",
    help = "the same for the reference's log-probabilities" },
  { key = "worker.rollout.cache_gib", type = "number", default = 4, above = 0, unit = "GiB",
    help = "key-value cache on the CPU; a smaller one is slower, with the same result" },
  { key = "worker.rollout.gpu_memory_utilization", type = "number", default = 0.6, above = 0,
    max = 1, help = "on a GPU: share of its free memory for the key-value cache" },
  { key = "trainer.check_memory", type = "boolean", default = true,
    help = "refuse, before loading, a run that does not fit into this machine's memory" },
}

local sampling = {
  { key = "worker.rollout.n", type = "count", default = 8, max = 2 ^ 16,
    help = "answers for each prompt" },
  { key = "worker.rollout.temperature", type = "number", default = 1, above = 0,
    help = "sampling temperature in training; evaluation is greedy" },
  { key = "worker.rollout.top_p", type = "number", default = 1, above = 0, max = 1,
    help = "nucleus sampling; 1: all tokens" },
  { key = "worker.rollout.top_k", type = "integer", default = -1, max = 2 ^ 31, min = -1,
    help = "sample from the k likeliest tokens; -1 or 0: from all" },
  { key = "worker.rollout.seed", type = "integer", optional = true, min = -2 ^ 53, max = 2 ^ 53,
    help = "fixes the sampled tokens alone; null: data.seed" },
  { key = "worker.rollout.tensor_parallel_size", type = "count", default = 1, max = 1024,
    help = "with several ranks: how many of them hold one model together, each a part of it, in " ..
      "sampling and training alike; their number must be a multiple of it" },
  { key = "worker.rollout.val_override_config.n", type = "count", default = 1, null = 1,
    max = 2 ^ 16, help = "answers to each row in evaluation, whose rewards are averaged" },
  { key = "worker.rollout.val_override_config.temperature", type = "number", default = 0, min = 0,
    null = 0, help = "sampling temperature in evaluation; 0: greedy" },
  { key = "worker.rollout.val_override_config.top_p", type = "number", default = 1, above = 0,
    null = 1, max = 1, help = "nucleus sampling in evaluation; 1: all tokens" },
  { key = "worker.rollout.val_override_config.top_k", type = "integer", default = -1, min = -1,
    null = -1, max = 2 ^ 31, help = "top-k sampling in evaluation; -1 or 0: from all" },
}

local reward = {
  { key = "worker.reward.compute_score", type = "text", default = "seg_strict", path = true,
    also = { "worker.reward.reward_function", "worker.reward.score_function" },
    help = "a name in rewards/, FILE.lua that returns a function, or FILE.lua:NAME" },
  { key = "worker.reward.reward_function_kwargs", type = "mapping", default = {},
    also = { "worker.reward.score_function_kwargs" },
    help = "the reward's fourth argument, a table: {name: value}, or ..._kwargs.name=value" },
  { key = "worker.reward.reward_type", type = "text", default = "function",
    spellings = { batch = "function", sequential = "function" },
    choices = { "function" }, help = "how the reward is called: once for each answer" },
  { key = "worker.reward.timeout", type = "number", default = 10, min = 0, unit = "seconds",
    help = "time limit of the reward for one answer; 0: none" },
  { key = "worker.reward.on_error", type = "text", default = "stop", choices = { "stop", "zero" },
    help = "a reward that fails ends the run, or scores 0 and counts as reward_errors" },
  { key = "worker.reward.reload", type = "boolean", default = true,
    help = "a reward's FILE.lua that is changed during the run judges from the next step on, "
      .. "with a note" },
  { key = "worker.reward.sam2_path", type = "text", default = "", path = true,
    help = "SAM2 for masks: a folder or a .pt file; empty: embedded, with that policy; none" },
}

local trainer = {
  { key = "trainer.total_episodes", type = "count", default = 1, max = 2 ^ 31,
    also = { "trainer.total_epochs" },
    help = "passes over the data" },
  { key = "trainer.max_steps", type = "integer", optional = true, max = 2 ^ 31, min = 0,
    unit = "optimizer steps",
    help = "length of the run; null: trainer.total_episodes decides" },
  { key = "trainer.max_try_make_batch", type = "integer", default = 20, min = -1, max = 2 ^ 31,
    help = "with algorithm.online_filtering: most draws for a step; 0 or -1: no limit" },
  { key = "trainer.experiment_name", type = "text", default = "refcocog_grpo",
    help = "the run folder is runs/NAME; NAME-2, NAME-3, ... if that one holds anything" },
  { key = "trainer.save_checkpoint_path", type = "text", optional = true,
    help = "another run folder" },
  { key = "trainer.load_checkpoint_path", type = "text", optional = true,
    help = "go on from this global_step_N, or from the newest one of a run folder; in the same " ..
      "folder, or in a new one that trainer.save_checkpoint_path names" },
  { key = "trainer.find_last_checkpoint", type = "boolean", default = false,
    help = "go on from the newest checkpoint in the run folder, if there is one" },
  { key = "trainer.resume_changes", type = "boolean", default = false,
    help = "go on in the same run although settings that change its results are different" },
  { key = "trainer.save_freq", type = "integer", default = 50, min = -1,
    help = "steps between two checkpoints; 0: one at the end; -1: none" },
  { key = "trainer.n_gpus_per_node", type = "count", default = 1, max = 1024,
    help = "GPUs of each machine, one rank on each. Where no launcher started the run and " ..
      "--device cuda names that many GPUs, it starts itself as with --ranks" },
  { key = "trainer.nnodes", type = "count", default = 1, max = 1024,
    help = "machines. mpirun, srun or torchrun starts the ranks of several" },
  { key = "trainer.collective_timeout", type = "number", default = 600, min = 1,
    help = "with several ranks: seconds that one waits for another before the run ends" },
  { key = "trainer.save_limit", type = "integer", default = -1, min = -1, null = -1,
    also = { "trainer.max_actor_ckpt_to_keep" },
    help = "keep this many of the newest checkpoints; 0 or -1: all" },
  { key = "trainer.remove_previous_ckpt", type = "boolean", default = false,
    also = { "trainer.remove_previous_ckpt_in_save" },
    help = "keep the newest checkpoint alone, as trainer.save_limit=1" },
  { key = "trainer.save_best", type = "text", default = "held_out_reward",
    choices = { "held_out_reward", "held_out_giou", "none" },
    help = "the best checkpoint by this figure is kept in addition to trainer.save_limit" },
  { key = "trainer.max_bad_updates", type = "integer", default = 3, min = 0,
    help = "end the run when this many of the last 10 updates had a gradient that is not finite" ..
      "; 0: never" },
  { key = "trainer.test_freq", type = "integer", default = 100000, min = -1,
    also = { "trainer.val_freq" },
    help = "steps between two evaluations; 0 or -1: only before and after training" },
  { key = "trainer.val_before_train", type = "boolean", default = true,
    help = "evaluate before the first step" },
  { key = "trainer.val_only", type = "boolean", default = false,
    help = "evaluate and do not train" },
  { key = "trainer.logger", type = "list", default = { "console", "jsonl" },
    choices = choices.of "loggers",
    elsewhere = foreign.loggers, help = "where a step's numbers go" },
  { key = "trainer.project_name", type = "text", default = "segzero",
    help = "the project of the logger wandb; a run's folder is named by trainer.experiment_name" },
  { key = "trainer.report", type = "boolean", default = true,
    help = "keep report.html in the run folder up to date, from what the logger jsonl writes" },
}

-- Defaults for the embedded model: few tokens, and larger steps, because it starts from minutes of
-- pretraining.
M.EMBEDDED = {
  ["data.max_response_length"] = 160,
  ["data.refshapes_rows"] = 100000,
  ["data.refshapes_val_rows"] = 256,
  ["worker.actor.optim.lr"] = 2e-4,
  ["worker.actor.model.enable_gradient_checkpointing"] = false,
  ["trainer.max_steps"] = 60,
  ["trainer.test_freq"] = 0,
  ["trainer.save_freq"] = 0,
  ["trainer.experiment_name"] = "refshapes_grpo",
}

-- The same for the prompt vision_reasoner: answers are lists, the model is the one that knows them.
M.EMBEDDED_SEVERAL = {
  ["data.max_response_length"] = 320,
  ["trainer.max_steps"] = 110,
  ["trainer.experiment_name"] = "refshapes_multi_grpo",
}

-- ---- checks between settings ----
local function check_reference(cfg)
  local dtype = cfg.worker.ref.model.dtype
  if cfg.worker.ref.offload.param_offload and dtype == "int8" then
    error("worker.ref.offload.param_offload=true: a reference in 8 bits " ..
      "(worker.ref.model.dtype=int8) stays on the device; use one of the two", 0)
  end
  local policy_dtype = cfg.worker.actor.model.dtype
  if policy_dtype == "int4" and cfg.worker.actor.model.lora.rank == 0 then
    error("worker.actor.model.dtype=int4: 4-bit weights are not trained, only adapters are; set "
      .. "worker.actor.model.lora.rank, or take bf16", 0)
  end
  if cfg.worker.actor.model.lora.rank > 0 and dtype and dtype ~= policy_dtype then
    local message = "worker.ref.model.dtype is %s: with LoRA the reference is the policy " ..
      "without its adapters, %s; leave it out"
    error(message:format(dtype, policy_dtype), 0)
  end
end

local function check_kl_coef(cfg)
  local coef = cfg.algorithm.kl_coef
  if coef ~= 0 and cfg.worker.actor.use_kl_loss then
    local message = "algorithm.kl_coef is %g: the KL term is in the loss here, use " ..
      "worker.actor.kl_loss_coef, or worker.actor.use_kl_loss=false for one in the reward"
    error(message:format(coef), 0)
  end
end

local function check_mask_reward(cfg)
  if cfg.worker.reward.compute_score == "mask_iou" and cfg.worker.reward.sam2_path == "" then
    error("worker.reward.compute_score=mask_iou needs a SAM2 model: give " ..
      "worker.reward.sam2_path", 0)
  end
end

local function check_save_limit(cfg)
  local limit = cfg.trainer.save_limit
  if cfg.trainer.remove_previous_ckpt and limit > 1 then
    error(("trainer.remove_previous_ckpt=true keeps one checkpoint and trainer.save_limit=%d " ..
      "keeps %d: give one of the two"):format(limit, limit), 0)
  end
end

local function check_pixels(cfg)
  local least = cfg.data.min_pixels
  local most = cfg.data.max_pixels
  if least <= most then return end
  error(("data.max_pixels=%d is below data.min_pixels=%d: raise the one or lower the other")
    :format(most, least), 0)
end

-- A data set has one name, which a list is not.
local function check_names(cfg)
  for _, key in ipairs { "train_files", "val_files" } do
    if cfg.data[key]:find "^[%[(]" then
      local message = "data.%s=%s is a list; it names one data set: a folder, a file, or a " ..
        "pattern such as 'data/*.parquet'"
      error(message:format(key, cfg.data[key]), 0)
    end
  end
end

local function check_frames(cfg) frame.settings(cfg.data, "data.") end

M.schema = schema.new {
  name = "recipes/refcocog_grpo.lua",
  about = "Trains a Qwen-VL policy by GRPO to reason and to answer with a box and two points.",
  usage = {
    "",
    "worker.actor.model.model_path=DIR data.train_files=FOLDER [key=value ...]",
  },
  notes = { "Without model and data: the embedded model on RefShapes, with smaller settings." },
  groups = {
    { title = "Data", rows = data },
    { title = "Model", rows = model },
    { title = "Sampling", rows = sampling },
    { title = "Reward", rows = reward },
    { title = "Algorithm", rows = algorithm },
    { title = "Optimizer", rows = optimizer },
    { title = "Run", rows = trainer },
    { title = "Memory and speed", rows = memory },
    { title = "Generated images (RefShapes)", rows = refshapes },
  },
  foreign = foreign.rows, derive = dialects.derive, yaml_words = true,
  checks = { check_names, check_frames, check_pixels, check_reference, check_kl_coef,
    check_mask_reward, check_save_limit },
}

-- ---- derived settings ----
local function use_embedded_model(cfg, given)
  local several = prompts.style(cfg).several
  local dir = paths.embedded_policy(several)
  cfg.worker.actor.model.model_path = dir
  local function use(defaults)
    for key, value in pairs(defaults) do
      if not given[key] then config.set(cfg, key, value) end
    end
  end
  use(M.EMBEDDED)
  if several then use(M.EMBEDDED_SEVERAL) end
  local json = require("segzero.models.qwen_vl").read_json(dir .. "/config.json")
  if not given["data.refshapes_size"] then cfg.data.refshapes_size = frame.side_of_model(json) end
  console.say("no model named: using the embedded " .. dir)
end

local function use_refshapes(cfg, given)
  local name = "refshapes"
  if prompts.style(cfg).several then name = "refshapes_multi" end
  cfg.data.train_files = name
  -- data.val_files=None asks for no held-out rows.
  if not given["data.val_files"] then cfg.data.val_files = name end
  local side = cfg.data.refshapes_size
  console.say(("no data named: using RefShapes, generated images of %d pixels"):format(side))
end

-- Settings that are allowed and probably a mistake. EasyR1 refuses such batches.
local function note_odd_values(cfg)
  local prompts_of_step = cfg.data.rollout_batch_size
  local prompts_of_update = cfg.worker.actor.global_batch_size
  local rest = prompts_of_step % prompts_of_update
  if rest > 0 and prompts_of_update < prompts_of_step then
    notes.say(("data.rollout_batch_size=%d is no multiple of worker.actor.global_batch_size=%d, so "
      .. "the last update of a step has %d of its prompts"):format(prompts_of_step,
      prompts_of_update, rest))
  end
  if cfg.worker.actor.optim.lr == 0 and not cfg.trainer.val_only then
    notes.say "worker.actor.optim.lr=0 leaves the weights as they are"
  end
end

-- EasyR1's scripts go on with a run that is there.
local function find_last_checkpoint(cfg)
  local t = cfg.trainer
  if not t.find_last_checkpoint or t.load_checkpoint_path then return end
  local folder = t.save_checkpoint_path or "runs/" .. t.experiment_name
  local latest = require("segzero.train.run.checkpoint").latest(folder)
  if not latest then return end
  t.load_checkpoint_path = folder
  console.say("trainer.find_last_checkpoint: going on from " .. latest)
end

-- Reads and checks the settings, and fills in the embedded model and RefShapes where none is named.
-- own_schema: a recipe's schema with the same keys; M.schema if nil.
function M.settings(args, own_schema)
  local rules = own_schema or M.schema
  local cfg, given = rules:read(args)
  local actor = cfg.worker.actor.model
  local no_model = actor.model_path == ""
  local no_data = cfg.data.train_files == ""
  if no_model then
    use_embedded_model(cfg, given)
  else
    actor.model_path = paths.policy(actor.model_path, nil, "worker.actor.model.model_path")
  end
  find_last_checkpoint(cfg)
  local sam2, origin = paths.sam2(cfg.worker.reward.sam2_path, { model = actor.model_path,
    label = "worker.reward.sam2_path" })
  cfg.worker.reward.sam2_path = sam2
  paths.check_sam2("worker.reward.sam2_path", sam2)
  if origin == "missing" then
    console.say(("no SAM2 model in %s, so masks are not computed"):format(paths.SAM2))
  end
  if no_data then use_refshapes(cfg, given) end
  -- Seg-Zero's YAML has val_before_train=false; an evaluation is all that is asked for.
  if cfg.trainer.val_only then cfg.trainer.val_before_train = true end
  rules:check(cfg)
  note_odd_values(cfg)
  return cfg
end

return M
