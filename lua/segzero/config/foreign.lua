-- foreign.lua - keys of Seg-Zero's and EasyR1's command lines and YAML files that have no meaning
-- in segzero.
--
-- They are accepted with a note, so that an existing launch script or YAML file works. Only keys
-- that can be ignored without changing what is computed are listed; any other unknown key stays an
-- error. "a.b.*" stands for all keys below a.b.

local ONE_PROCESS = "there is one process and one copy of the weights"
local FSDP = "there is no FSDP: one process holds the weights"
local VLLM = "sampling uses the weights that are trained; there is no second engine"
local COLUMNS = "the columns are problem, solution and image"

local ignored = {
  ["data.prompt_key"] = COLUMNS,
  ["data.answer_key"] = COLUMNS,
  ["data.image_key"] = COLUMNS,
  ["data.return_raw_input_ids"] = ONE_PROCESS,
  ["data.return_raw_prompt"] = ONE_PROCESS,
  ["data.filter_overlong_prompts_workers"] = ONE_PROCESS,
  ["worker.hybrid_engine"] = ONE_PROCESS,
  ["worker.critic.*"] = "GRPO has no critic",
  ["worker.actor.padding_free"] = "nothing is padded",
  ["worker.actor.dynamic_batching"] =
    "micro-batches are always filled up to worker.actor.max_tokens_per_micro_batch",
  ["worker.actor.use_torch_compile"] = "there is no PyTorch",
  ["worker.actor.strategy"] = FSDP,
  ["worker.actor.ulysses_sequence_parallel_size"] = ONE_PROCESS,
  ["worker.actor.ulysses_size"] = ONE_PROCESS,
  ["worker.actor.fsdp.torch_dtype"] = "use worker.actor.model.dtype",
  ["worker.actor.fsdp.*"] = FSDP,
  ["worker.actor.offload.*"] = ONE_PROCESS,
  ["worker.actor.model.trust_remote_code"] = "no code is loaded with a model",
  ["worker.ref.strategy"] = FSDP,
  ["worker.ref.fsdp.*"] = FSDP,
  ["worker.ref.offload.optimizer_offload"] = "the reference has no optimizer",
  ["worker.ref.micro_batch_size_per_device_for_experience"] =
    "use worker.actor.micro_batch_size_per_device_for_experience",
  ["worker.rollout.name"] = VLLM,
  ["worker.rollout.dtype"] = "use worker.actor.model.dtype",
  ["worker.rollout.tensor_parallel_size"] = ONE_PROCESS,
  ["worker.rollout.enable_chunked_prefill"] = VLLM,
  ["worker.rollout.enforce_eager"] = VLLM,
  ["worker.rollout.free_cache_engine"] = VLLM,
  ["worker.rollout.max_num_batched_tokens"] = VLLM,
  ["worker.rollout.max_num_seqs"] = VLLM,
  ["worker.rollout.disable_log_stats"] = VLLM,
  ["worker.rollout.disable_tqdm"] = "there is no progress bar",
  ["worker.rollout.limit_images"] = "a row has one image",
  ["worker.reward.num_cpus"] = ONE_PROCESS,
  ["trainer.n_gpus_per_node"] = ONE_PROCESS,
  ["trainer.nnodes"] = ONE_PROCESS,
  ["trainer.project_name"] = "runs are folders, named by trainer.experiment_name",
  ["trainer.critic_warmup"] = "GRPO has no critic",
  ["trainer.max_critic_ckpt_to_keep"] = "GRPO has no critic",
  ["trainer.ray_timeline"] = "there is no Ray",
  ["trainer.val_generations_to_log"] = "all answers of a step are in rollouts.jsonl",
  ["trainer.val_generations_to_log_to_wandb"] = "all answers of a step are in rollouts.jsonl",
}

-- Loggers that only Seg-Zero, EasyR1 and veRL have, and what segzero uses instead.
local loggers = {
  wandb = "jsonl",
  tensorboard = "jsonl",
  swanlab = "jsonl",
  mlflow = "jsonl",
  file = "jsonl",
}

return { ignored = ignored, loggers = loggers }
