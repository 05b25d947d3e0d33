-- foreign.lua - keys of Seg-Zero's, VisionReasoner's, EasyR1's and veRL's command lines and YAML
-- files that segzero does not have under that name.
--
--   foreign.ignored[key]     accepted with a note, so that an existing launch script or YAML file
--                            works: the reason; or {why, only = values that change nothing here}, any
--                            other value is an error. "a.b.*" stands for all keys below a.b
--   foreign.means[key]       {[value] = {{key of ours, value}, ...}}: read as settings of ours
--   foreign.hints[key]       what to write instead, said in the error about an unknown key
--   foreign.loggers[name]    the logger that is used instead
--
-- A value that would change what is computed is never only noted. Values are compared in small
-- letters, null in any spelling as "null".
-- Leaves out: other names of a key of ours (`also` in its row), misspelt keys (core/nearest.lua).

local ONE_PROCESS = "there is one process and one copy of the weights"
local FSDP = "there is no FSDP: one process holds the weights"
local VLLM = "sampling uses the weights that are trained; there is no second engine"
local NO_VIDEO = "there are no videos"
local NO_CRITIC = "GRPO has no critic"
local NO_FILTER = "groups are not filtered"

local M = {}

-- `only` these values are noted.
local function only(why, ...) return { why, only = { ... } } end

M.ignored = {
  ["data.video_key"] = NO_VIDEO,
  ["data.video_fps"] = NO_VIDEO,
  ["data.image_dir"] = only("paths of images are relative to the data set's folder", "null"),
  ["data.format_prompt"] = only("a script's prompt= is the prompt: run(arg, { prompt = f })",
    "null"),
  ["data.override_chat_template"] = only("the model's own chat template is used", "null"),
  ["data.truncation"] = only("a prompt that is too long is an error, or left out with " ..
    "data.filter_overlong_prompts=true", "error"),
  ["data.mini_rollout_batch_size"] = "answers are sampled as the cache has room",
  ["data.return_raw_input_ids"] = ONE_PROCESS,
  ["data.return_raw_prompt"] = ONE_PROCESS,
  ["data.filter_overlong_prompts_workers"] = ONE_PROCESS,
  ["algorithm.disable_kl"] = only("worker.actor.use_kl_loss=false leaves out the KL term", "false"),
  ["algorithm.gamma"] = only("rewards are not discounted", "1", "1.0"),
  ["algorithm.lam"] = only("rewards are not discounted", "1", "1.0"),
  ["algorithm.kl_penalty"] = only("the KL term is in the loss: worker.actor.kl_loss_type", "kl"),
  ["algorithm.kl_type"] = only("worker.actor.kl_loss_coef is fixed", "fixed"),
  ["algorithm.kl_horizon"] = "worker.actor.kl_loss_coef is fixed",
  ["algorithm.kl_target"] = "worker.actor.kl_loss_coef is fixed",
  ["algorithm.online_filtering"] = only(NO_FILTER, "false"),
  ["algorithm.filter_key"] = NO_FILTER,
  ["algorithm.filter_low"] = NO_FILTER,
  ["algorithm.filter_high"] = NO_FILTER,
  ["worker.hybrid_engine"] = ONE_PROCESS,
  ["worker.critic.*"] = NO_CRITIC,
  ["worker.actor.padding_free"] = "nothing is padded",
  ["worker.actor.dynamic_batching"] =
    "micro-batches are always filled up to worker.actor.max_tokens_per_micro_batch",
  ["worker.actor.use_torch_compile"] = "there is no PyTorch",
  ["worker.actor.strategy"] = FSDP,
  ["worker.actor.tau_positive"] = "it belongs to the loss sapo, which is not available here",
  ["worker.actor.tau_negative"] = "it belongs to the loss sapo, which is not available here",
  ["worker.actor.ulysses_sequence_parallel_size"] = ONE_PROCESS,
  ["worker.actor.ulysses_size"] = ONE_PROCESS,
  ["worker.actor.fsdp.torch_dtype"] = only("worker.actor.model.dtype is the dtype: f32 or bf16",
    "null"),
  ["worker.actor.fsdp.*"] = FSDP,
  ["worker.actor.offload.*"] = ONE_PROCESS,
  ["worker.actor.model.trust_remote_code"] = "no code is loaded with a model",
  ["worker.actor.model.override_config"] = only("the model's config.json is used as it is", "null",
    "{}", ""),
  ["worker.actor.model.tokenizer_path"] = only("the tokenizer is in the model's folder", "null"),
  ["worker.actor.optim.strategy"] = only("the optimizer is AdamW", "adamw"),
  ["worker.actor.optim.betas"] = only("write worker.actor.optim.beta1 and beta2", "0.9,0.999"),
  ["worker.actor.optim.min_lr_ratio"] = only("worker.actor.optim.lr_scheduler_type has no minimum",
    "null", "0", "0.0"),
  ["worker.actor.optim.warmup_style"] = only("worker.actor.optim.lr_scheduler_type is the schedule",
    "constant"),
  ["worker.actor.optim.lr_warmup_steps"] = only(
    "worker.actor.optim.lr_warmup_steps_ratio is the share of the steps", "null", "-1", "0"),
  ["worker.ref.strategy"] = FSDP,
  ["worker.ref.fsdp.torch_dtype"] = only("worker.ref.model.dtype is the dtype: f32, bf16 or int8",
    "null"),
  ["worker.ref.fsdp.*"] = FSDP,
  ["worker.ref.offload.optimizer_offload"] = "the reference has no optimizer",
  ["worker.ref.micro_batch_size_per_device_for_experience"] =
    "worker.actor.micro_batch_size_per_device_for_experience is used",
  ["worker.rollout.name"] = VLLM,
  ["worker.rollout.dtype"] = VLLM .. " (worker.actor.model.dtype)",
  ["worker.rollout.do_sample"] = only("training always samples", "true"),
  ["worker.rollout.ignore_eos"] = only("an answer ends at the end token", "false"),
  ["worker.rollout.tensor_parallel_size"] = ONE_PROCESS,
  ["worker.rollout.enable_chunked_prefill"] = VLLM,
  ["worker.rollout.enforce_eager"] = VLLM,
  ["worker.rollout.free_cache_engine"] = VLLM,
  ["worker.rollout.max_num_batched_tokens"] = VLLM,
  ["worker.rollout.max_num_seqs"] = VLLM,
  ["worker.rollout.max_model_len"] = "data.max_prompt_length and data.max_response_length are used",
  ["worker.rollout.disable_log_stats"] = VLLM,
  ["worker.rollout.disable_tqdm"] = "there is no progress bar",
  ["worker.rollout.limit_images"] = only("a row has one image", "0", "1", "null"),
  ["worker.reward.num_cpus"] = ONE_PROCESS,
  ["worker.reward.reward_function_kwargs"] = only("a reward has no arguments of its own", "null",
    "{}", ""),
  ["worker.reward.skip_special_tokens"] = only("a reward reads the text without special tokens",
    "true"),
  ["trainer.n_gpus_per_node"] = ONE_PROCESS,
  ["trainer.nnodes"] = ONE_PROCESS,
  ["trainer.project_name"] = "runs are folders, named by trainer.experiment_name",
  ["trainer.critic_warmup"] = only(NO_CRITIC, "0"),
  ["trainer.max_try_make_batch"] = NO_FILTER,
  ["trainer.save_model_only"] = only("a checkpoint holds the optimizer too", "false"),
  ["trainer.del_local_ckpt_after_load"] = only("a checkpoint that is loaded stays", "false"),
  ["trainer.find_last_checkpoint"] = only("trainer.load_checkpoint_path=RUN goes on with a run",
    "false"),
  ["trainer.ray_timeline"] = "there is no Ray",
  ["trainer.val_generations_to_log"] = "all answers of a step are in rollouts.jsonl",
  ["trainer.val_generations_to_log_to_wandb"] = "all answers of a step are in rollouts.jsonl",
}

-- A dtype in PyTorch's and Hydra's spellings as a setting of ours.
local function dtypes(key)
  local bf16 = { { key, "bf16" } }
  local f32 = { { key, "f32" } }
  return { bf16 = bf16, bfloat16 = bf16, fp32 = f32, f32 = f32, float32 = f32 }
end

M.means = {
  ["worker.actor.fsdp.torch_dtype"] = dtypes "worker.actor.model.dtype",
  ["worker.ref.fsdp.torch_dtype"] = dtypes "worker.ref.model.dtype",
  -- bf16 weights without f32 copies, and bf16 moments
  ["worker.actor.optim.strategy"] = {
    adamw_bf16 = { { "worker.actor.model.dtype", "bf16" },
      { "worker.actor.optim.master_weights", "false" },
      { "worker.actor.optim.state_dtype", "bf16" } },
  },
}

M.hints = {
  ["algorithm.disable_kl"] = "worker.actor.use_kl_loss=false leaves out the KL term",
  ["algorithm.kl_penalty"] = "the estimator is worker.actor.kl_loss_type",
  ["worker.actor.clip_ratio_dual"] = "there is no dual clip; leave it out",
  ["worker.actor.optim.warmup_style"] = "the schedule is worker.actor.optim.lr_scheduler_type",
  ["worker.rollout.seed"] = "data.seed fixes the sampled tokens, too",
  ["worker.rollout.val_override_config.*"] = "evaluation is greedy, with one answer; leave it out",
  ["worker.rollout.val_override_config"] = "evaluation is greedy, with one answer; leave it out",
  ["worker.reward.reward_function"] = "a reward is a Lua file: worker.reward.compute_score=FILE.lua",
  ["worker.reward.score_function"] = "a reward is a Lua file: worker.reward.compute_score=FILE.lua",
  ["actor_rollout_ref.model.path"] = "the policy is worker.actor.model.model_path",
  ["data.train_batch_size"] = "prompts of a step are data.rollout_batch_size",
  ["trainer.default_local_dir"] = "the run folder is trainer.save_checkpoint_path",
  ["trainer.resume_mode"] = "trainer.load_checkpoint_path=RUN goes on with a run",
  ["trainer.resume_from_path"] = "trainer.load_checkpoint_path=RUN goes on with a run",
}

-- Loggers that only Seg-Zero, EasyR1 and veRL have, and what segzero uses instead.
M.loggers = {
  wandb = "jsonl",
  tensorboard = "jsonl",
  swanlab = "jsonl",
  mlflow = "jsonl",
  file = "jsonl",
}

return M
