-- keys.lua - keys of Seg-Zero's, VisionReasoner's, EasyR1's and veRL's command lines and YAML files
-- that are no settings here: one row for each key, with what becomes of it and why.
--
--   keys.rows       {{key =, ...}, ...}; "a.b.*" stands for all keys below a.b. Fields of a row:
--     note          accepted with this note: why it needs no setting here
--     only          with note or kept: only these values are accepted, others end in `refuse`
--     reads         {[value] = {{key of ours, value}, ...}}: these values are settings of ours
--     convert(raw)  -> {{key of ours, value}, ...}, or nil and why the value is refused
--     kept          the type of a value that dialects.lua turns into settings of ours
--     does          for the documentation: what kept or convert makes of the value
--     refuse        the reason, and what to write instead. Without any of the above: every value
--   keys.loggers    {[name] = the logger that is used instead}
--
-- A value that would change what is computed is never only noted. Values are compared in small
-- letters, null in any spelling as "null".
-- Leaves out: other names of a key of ours (`also` in its row), misspelt keys (core/nearest.lua).

local WHOLE = "each process holds all of the weights, and segzero --ranks N divides the prompts"
local WORKERS = "there are no worker processes"
local FSDP = "there is no FSDP: each process holds all of the weights"
local VLLM = "sampling uses the weights that are trained; there is no second engine"
local NO_VIDEO = "there are no videos"
local FOLLOWS = "it follows from other settings"
local NO_CRITIC = "GRPO has no critic"
local ANSWERS = "all answers of a step are in rollouts.jsonl; held-out answers are in " ..
  "before.png and after.png"

local F32 = { "fp32", "f32", "float32", "float", "null" }

local M = { rows = {} }

local function add(row) M.rows[#M.rows + 1] = row end

local function note(why, ...)
  for _, key in ipairs { ... } do add { key = key, note = why } end
end

-- Only these values are accepted, because they change nothing here.
local function only(key, values, why, refuse)
  add { key = key, only = values, note = why, refuse = refuse or why }
end

-- Another program's name for a setting of ours, where the program's other defaults differ, too.
local function named(key, ours) add { key = key, refuse = "it is veRL's name: write " .. ours } end

-- A dtype in PyTorch's and Hydra's spellings as a setting of ours.
local function dtypes(key, more)
  local out = more or {}
  for _, name in ipairs { "bf16", "bfloat16" } do out[name] = { { key, "bf16" } } end
  for _, name in ipairs { "fp32", "f32", "float32", "float" } do out[name] = { { key, "f32" } } end
  return out
end

-- ---- data ----
note(NO_VIDEO, "data.video_key", "data.video_fps")
only("data.override_chat_template", { "null" }, "the model's own chat template is used",
  "the chat template is the model's: put the file into its folder as chat_template.jinja")
only("data.truncation", { "error" }, "a prompt that is too long is an error",
  "a prompt is never cut: it is an error, or left out with data.filter_overlong_prompts=true")
note(WORKERS, "data.return_raw_input_ids", "data.return_raw_prompt",
  "data.filter_overlong_prompts_workers")
named("data.train_batch_size", "data.rollout_batch_size")
named("data.reward_fn_key", "data.answer_key")

-- ---- algorithm ----
add { key = "algorithm.use_kl_loss", kept = "boolean",
  does = "EasyR1: true is worker.actor.use_kl_loss=true with kl_loss_coef and kl_loss_type from " ..
    "algorithm.kl_coef and kl_penalty; false is the KL term in the reward" }
add { key = "algorithm.disable_kl", kept = "boolean",
  does = "EasyR1: true is worker.actor.use_kl_loss=false and algorithm.kl_coef=0" }
note("only GAE reads it, and GRPO has no critic", "algorithm.lam")
only("algorithm.kl_type", { "fixed" }, "the weight of the KL term is fixed",
  "the weight of the KL term is fixed; a script can change trainer.numbers.kl_coef in on_step")
note("the weight of the KL term is fixed", "algorithm.kl_horizon", "algorithm.kl_target")
only("algorithm.use_kl_in_reward", { "false" }, "the KL term is in the loss",
  "it is veRL's name: write worker.actor.use_kl_loss=false algorithm.kl_coef=NUMBER")

-- ---- the actor ----
note(WORKERS, "worker.hybrid_engine")
note(WHOLE, "worker.actor.ulysses_sequence_parallel_size", "worker.actor.ulysses_size")
note(NO_CRITIC, "worker.critic.*")
note("nothing is padded", "worker.actor.padding_free")
note("micro-batches are always filled up to worker.actor.max_tokens_per_micro_batch",
  "worker.actor.dynamic_batching")
note("there is no PyTorch", "worker.actor.use_torch_compile")
note(FSDP, "worker.actor.strategy")
add { key = "worker.actor.fsdp.torch_dtype", only = { "null" },
  reads = dtypes "worker.actor.model.dtype",
  note = "weights and computation are f32; worker.actor.model.dtype=bf16 computes in bf16 and " ..
    "keeps f32 copies of the weights",
  refuse = "worker.actor.model.dtype is f32, bf16 or int4" }
add { key = "worker.actor.fsdp.mp_param_dtype", reads = dtypes "worker.actor.model.dtype",
  refuse = "worker.actor.model.dtype is f32, bf16 or int4" }
add { key = "worker.actor.fsdp.mp_reduce_dtype", reads = dtypes "worker.actor.grad_dtype",
  refuse = "worker.actor.grad_dtype is f32 or bf16" }
only("worker.actor.fsdp.mp_buffer_dtype", F32, "buffers are f32", "buffers are always f32")
note(FSDP, "worker.actor.fsdp.*")
note("no code is loaded with a model", "worker.actor.model.trust_remote_code")
only("worker.actor.model.override_config", { "null", "{}", "" },
  "the model's config.json is used as it is", "change the model's config.json")
add { key = "worker.actor.model.override_config.*", refuse = "change the model's config.json" }
only("worker.actor.model.tokenizer_path", { "null" }, "the tokenizer is in the model's folder",
  "the tokenizer is in the model's folder: put its files there")

note("EasyR1 takes it from algorithm.disable_kl, kl_penalty and kl_coef", "worker.actor.disable_kl",
  "worker.actor.kl_penalty", "worker.actor.kl_coef")
note(FOLLOWS, "worker.actor.global_batch_size_per_device")

-- ---- the optimizer ----
-- bf16 weights without f32 copies, and bf16 moments
add { key = "worker.actor.optim.strategy", only = { "adamw" }, note = "the optimizer is AdamW",
  reads = { adamw_bf16 = { { "worker.actor.model.dtype", "bf16" },
    { "worker.actor.optim.master_weights", "false" },
    { "worker.actor.optim.state_dtype", "bf16" } } },
  refuse = "the optimizer is AdamW: adamw or adamw_bf16" }
add { key = "worker.actor.optim.betas",
  does = "worker.actor.optim.beta1 and worker.actor.optim.beta2",
  convert = function(list)
    if #list ~= 2 then return nil, "expected two numbers, such as [0.9,0.999]" end
    return { { "worker.actor.optim.beta1", list[1] }, { "worker.actor.optim.beta2", list[2] } }
  end }
add { key = "worker.actor.optim.total_training_steps", only = { "-1", "null" },
  note = "the run's length decides", refuse = "write trainer.max_steps" }
note(FOLLOWS, "worker.actor.optim.training_steps")

-- ---- the reference ----
note(FSDP, "worker.ref.strategy")
add { key = "worker.ref.fsdp.torch_dtype", only = { "null" },
  reads = dtypes "worker.ref.model.dtype", note = "worker.ref.model.dtype is that of the policy",
  refuse = "worker.ref.model.dtype is f32, bf16, int8 or int4" }
add { key = "worker.ref.fsdp.mp_param_dtype", reads = dtypes "worker.ref.model.dtype",
  refuse = "worker.ref.model.dtype is f32, bf16, int8 or int4" }
only("worker.ref.fsdp.mp_buffer_dtype", F32, "buffers are f32", "buffers are always f32")
note("the reference has no gradients", "worker.ref.fsdp.mp_reduce_dtype")
note(FSDP, "worker.ref.fsdp.*")
note("the reference has no optimizer", "worker.ref.offload.optimizer_offload",
  "worker.ref.offload.offload_optimizer")
note("worker.actor.micro_batch_size_per_device_for_experience is used",
  "worker.ref.micro_batch_size_per_device_for_experience")

note("it is that of the actor", "worker.ref.padding_free", "worker.ref.dynamic_batching",
  "worker.ref.ulysses_size", "worker.ref.use_torch_compile")

-- ---- sampling ----
note(FOLLOWS, "worker.rollout.prompt_length", "worker.rollout.response_length",
  "worker.rollout.trust_remote_code")
note(VLLM, "worker.rollout.name", "worker.rollout.enable_chunked_prefill",
  "worker.rollout.enforce_eager", "worker.rollout.free_cache_engine",
  "worker.rollout.max_num_batched_tokens", "worker.rollout.max_num_seqs",
  "worker.rollout.disable_log_stats")
note("sampling uses the weights that are trained, in worker.actor.model.dtype",
  "worker.rollout.dtype")
only("worker.rollout.do_sample", { "true" }, "training always samples",
  "training always samples; evaluation is greedy")
only("worker.rollout.ignore_eos", { "false" }, "an answer ends at the end token")
add { key = "worker.rollout.max_model_len", kept = "text",
  does = "data.max_prompt_length and data.max_response_length are the limits; a smaller number "
    .. "is refused, because it would cut answers" }
note("sampling has no progress bar of its own", "worker.rollout.disable_tqdm")
note("vLLM alone needs this limit", "worker.rollout.limit_images")
only("worker.rollout.val_override_config", { "null", "{}", "" },
  "evaluation is greedy",
  "write {temperature: T, top_p: P}, or worker.rollout.val_override_config.temperature=T")
add { key = "worker.rollout.val_override_config.*",
  refuse = "only n, temperature, top_p and top_k are read" }

-- ---- the reward ----
note(WORKERS, "worker.reward.num_cpus")
only("worker.reward.skip_special_tokens", { "true" },
  "a reward reads the text without special tokens")

note("it is the part of worker.reward.reward_function behind the colon",
  "worker.reward.reward_function_name")

-- ---- the run ----
only("trainer.critic_warmup", { "0" }, NO_CRITIC)
only("trainer.save_model_only", { "false" }, "a checkpoint holds the optimizer too")
only("trainer.del_local_ckpt_after_load", { "false" }, "a checkpoint that is loaded stays",
  "a checkpoint that is loaded stays; remove the folder by hand")
note("there is no Ray", "trainer.ray_timeline")
note(ANSWERS, "trainer.val_generations_to_log", "trainer.val_generations_to_log_to_wandb")
named("trainer.default_local_dir", "trainer.save_checkpoint_path=FOLDER: the run folder is " ..
  "trainer.save_checkpoint_path")
add { key = "trainer.resume_mode", only = { "disable" }, note = "a new run begins",
  refuse = "write trainer.find_last_checkpoint=true for auto, or trainer.load_checkpoint_path=RUN" }
named("trainer.resume_from_path", "trainer.load_checkpoint_path=RUN")

-- ---- veRL's own groups ----
named("actor_rollout_ref.model.path", "worker.actor.model.model_path")
named("actor_rollout_ref.model.lora_rank", "worker.actor.model.lora.rank")
named("actor_rollout_ref.model.lora_alpha", "worker.actor.model.lora.alpha")
named("actor_rollout_ref.model.*", "the same under worker.actor.model")
named("actor_rollout_ref.actor.optim.lr", "worker.actor.optim.lr")
named("actor_rollout_ref.actor.ppo_mini_batch_size", "worker.actor.global_batch_size")
named("actor_rollout_ref.actor.kl_loss_coef", "worker.actor.kl_loss_coef")
named("actor_rollout_ref.actor.*", "the same under worker.actor")
named("actor_rollout_ref.rollout.n", "worker.rollout.n")
add { key = "actor_rollout_ref.rollout.tensor_model_parallel_size",
  refuse = "it is veRL's name of a setting without meaning here; leave it out" }
named("actor_rollout_ref.rollout.*", "the same under worker.rollout")
named("actor_rollout_ref.*", "the same under worker")
named("reward_model.*", "worker.reward.compute_score=FILE.lua")
named("custom_reward_function.*", "worker.reward.reward_function=FILE.lua:NAME")
note(NO_CRITIC, "critic.*")

-- ---- Hydra ----
note("there is no Hydra", "hydra.*")
note("there is no Ray", "ray_init.*", "ray_kwargs.*")
add { key = "defaults",
  refuse = "Hydra's list of files is not read; name each file: config=ONE.yaml config=TWO.yaml" }

-- Loggers that only Seg-Zero, EasyR1 and veRL have, and what segzero uses instead.
M.loggers = {
  swanlab = "jsonl",
  mlflow = "jsonl",
  file = "jsonl",
}

return M
