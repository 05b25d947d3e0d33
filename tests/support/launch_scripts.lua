-- launch_scripts.lua - what the training scripts of Seg-Zero and EasyR1 pass to their program, as
-- facts: the keys and values of their YAML files, and the arguments of each script.
--
--   scripts.yaml[path]      {"key=value", ...}: the settings of a file, by the scripts' name of it
--   scripts.seg_zero, scripts.easy_r1
--                           {{name =, commit =, arguments = {...}}, ...} in the scripts' order
--   scripts.as_yaml(list)   the list as the text of a YAML file
--
-- Seg-Zero at 42a3345 and at the commits named; VisionReasoner's repository has no training script,
-- its training is Seg-Zero's run_visionreasoner_7b*.sh. EasyR1 at b44b311. Shell variables are
-- filled in: MODEL_PATH with its value, RUN_NAME and EXPERIMENT_NAME with the script's name.
-- Leaves out: what the scripts export for CUDA and vLLM.

local M = { yaml = {} }

-- ---- YAML files ----
local SEG_ZERO = { "data.train_files=Ricky06662/refCOCOg_2k_840", "data.val_files=None",
  "data.prompt_key=problem", "data.max_prompt_length=1300", "data.max_response_length=1300",
  "data.rollout_batch_size=16", "data.shuffle=true", "data.seed=42", "data.max_pixels=12845056",
  "data.min_pixels=3136", "algorithm.adv_estimator=grpo", "algorithm.kl_coef=0.0",
  "worker.actor.global_batch_size=16", "worker.actor.micro_batch_size_per_device_for_update=1",
  "worker.actor.micro_batch_size_per_device_for_experience=2", "worker.actor.max_grad_norm=1.0",
  "worker.actor.use_kl_loss=true", "worker.actor.kl_loss_coef=5.0e-3",
  "worker.actor.kl_loss_type=low_var_kl",
  "worker.actor.model.model_path=Qwen/Qwen2.5-VL-3B-Instruct",
  "worker.actor.model.enable_gradient_checkpointing=true", "worker.actor.optim.lr=1.0e-6",
  "worker.actor.optim.weight_decay=1.0e-2", "worker.actor.fsdp.param_offload=false",
  "worker.actor.fsdp.optimizer_offload=false", "worker.actor.fsdp.torch_dtype=null",
  "worker.actor.offload.param_offload=true", "worker.actor.offload.optimizer_offload=true",
  "worker.rollout.temperature=1.0", "worker.rollout.tensor_parallel_size=2",
  "worker.rollout.gpu_memory_utilization=0.5", "worker.rollout.n=8",
  "worker.rollout.enable_chunked_prefill=true", "worker.ref.offload.param_offload=true",
  "worker.reward.reward_type=function", "worker.reward.compute_score=seg_strict",
  "trainer.total_episodes=1", 'trainer.logger=["console", "wandb"]',
  "trainer.project_name=easy_r1", "trainer.n_gpus_per_node=8", "trainer.nnodes=1",
  "trainer.save_freq=50", "trainer.test_freq=100000", "trainer.val_before_train=false",
  "trainer.val_only=false" }

local EASY_R1 = { "data.train_files=hiyouga/math12k@train", "data.val_files=hiyouga/math12k@test",
  "data.prompt_key=problem", "data.answer_key=answer", "data.image_key=images",
  "data.video_key=videos", "data.image_dir=null", "data.video_fps=2.0",
  "data.max_prompt_length=2048", "data.max_response_length=2048", "data.rollout_batch_size=512",
  "data.mini_rollout_batch_size=null", "data.val_batch_size=1024",
  "data.format_prompt=./examples/format_prompt/math.jinja", "data.override_chat_template=null",
  "data.shuffle=true", "data.seed=1", "data.min_pixels=262144", "data.max_pixels=4194304",
  "data.filter_overlong_prompts=true", "algorithm.adv_estimator=grpo",
  "algorithm.disable_kl=false", "algorithm.use_kl_loss=true", "algorithm.kl_penalty=low_var_kl",
  "algorithm.kl_coef=1.0e-2", "algorithm.online_filtering=false", "algorithm.filter_key=overall",
  "algorithm.filter_low=0.01", "algorithm.filter_high=0.99", "worker.actor.global_batch_size=128",
  "worker.actor.micro_batch_size_per_device_for_update=1",
  "worker.actor.micro_batch_size_per_device_for_experience=2", "worker.actor.max_grad_norm=1.0",
  "worker.actor.padding_free=true", "worker.actor.dynamic_batching=true",
  "worker.actor.ulysses_size=1", "worker.actor.model.model_path=Qwen/Qwen2.5-7B-Instruct",
  "worker.actor.model.enable_gradient_checkpointing=true",
  "worker.actor.model.trust_remote_code=false", "worker.actor.model.freeze_vision_tower=false",
  "worker.actor.model.lora.rank=0", "worker.actor.model.lora.alpha=64",
  "worker.actor.model.lora.target_modules=all-linear",
  "worker.actor.model.lora.exclude_modules=.*visual.*", "worker.actor.optim.lr=1.0e-6",
  "worker.actor.optim.weight_decay=1.0e-2", "worker.actor.optim.strategy=adamw",
  "worker.actor.optim.lr_warmup_ratio=0.0", "worker.actor.fsdp.enable_full_shard=true",
  "worker.actor.fsdp.enable_cpu_offload=false", "worker.actor.fsdp.enable_rank0_init=true",
  "worker.actor.offload.offload_params=true", "worker.actor.offload.offload_optimizer=true",
  "worker.rollout.n=5", "worker.rollout.temperature=1.0", "worker.rollout.top_p=1.0",
  "worker.rollout.limit_images=0", "worker.rollout.gpu_memory_utilization=0.6",
  "worker.rollout.enforce_eager=false", "worker.rollout.enable_chunked_prefill=false",
  "worker.rollout.tensor_parallel_size=2", "worker.rollout.disable_tqdm=false",
  "worker.rollout.val_override_config.temperature=0.6",
  "worker.rollout.val_override_config.top_p=0.95", "worker.rollout.val_override_config.n=1",
  "worker.ref.fsdp.enable_full_shard=true", "worker.ref.fsdp.enable_cpu_offload=true",
  "worker.ref.fsdp.enable_rank0_init=true", "worker.ref.offload.offload_params=false",
  "worker.reward.reward_function=./examples/reward_function/math.py:compute_score",
  "trainer.total_epochs=15", "trainer.max_steps=null", "trainer.project_name=easy_r1",
  "trainer.experiment_name=qwen2_5_7b_math_grpo", 'trainer.logger=["file", "wandb"]',
  "trainer.nnodes=1", "trainer.n_gpus_per_node=8", "trainer.max_try_make_batch=20",
  "trainer.val_freq=5", "trainer.val_before_train=true", "trainer.val_only=false",
  "trainer.val_generations_to_log=3", "trainer.save_freq=5", "trainer.save_limit=3",
  "trainer.save_model_only=false", "trainer.save_checkpoint_path=null",
  "trainer.load_checkpoint_path=null", "trainer.find_last_checkpoint=true" }

-- The list with other values for some keys, in its order.
local function with(list, changes)
  local new = {}
  for _, change in ipairs(changes) do new[change:match "^[^=]+"] = change end
  local out = {}
  for i, line in ipairs(list) do out[i] = new[line:match "^[^=]+"] or line end
  return out
end

M.yaml["training_scripts/seg_zero_3b.yaml"] = SEG_ZERO
M.yaml["training_scripts/seg_zero_7b.yaml"] = with(SEG_ZERO,
  { "worker.actor.model.model_path=Qwen/Qwen2.5-VL-7B-Instruct" })
M.yaml["training_scripts/visionreasoner_7b.yaml"] = with(SEG_ZERO, {
  "data.train_files=Ricky06662/VisionReasoner_multi_object_1k_840",
  "data.max_response_length=2000", "worker.actor.micro_batch_size_per_device_for_update=16",
  "worker.actor.micro_batch_size_per_device_for_experience=16",
  "worker.actor.model.model_path=Qwen/Qwen2.5-VL-7B-Instruct",
  "worker.rollout.gpu_memory_utilization=0.6", "worker.reward.compute_score=vision_reasoner",
  "trainer.project_name=vision_reasoner", "trainer.save_freq=100" })
M.yaml["examples/config.yaml"] = EASY_R1

-- Nested tables of the list's keys; a value stays as it is written.
local function nested(list)
  local root = {}
  for _, line in ipairs(list) do
    local key, value = line:match "^(.-)=(.*)$"
    local parent = root
    for part in key:gmatch "([^.]+)%." do
      parent[part] = parent[part] or {}
      parent = parent[part]
    end
    parent[key:match "[^.]+$"] = value
  end
  return root
end

local function write(t, indent, out)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do
    if type(t[key]) == "table" then
      out[#out + 1] = indent .. key .. ":"
      write(t[key], indent .. "  ", out)
    else
      out[#out + 1] = ("%s%s: %s"):format(indent, key, t[key])
    end
  end
end

function M.as_yaml(list)
  local out = {}
  write(nested(list), "", out)
  return table.concat(out, "\n") .. "\n"
end

-- ---- Seg-Zero ----
-- What the scripts of one kind have in common, in the order of the scripts.
local function vision_reasoner(name, folder, micro, sampling, gpus)
  local arguments = { "config=training_scripts/visionreasoner_7b.yaml",
    "data.train_files=data/VisionReasoner_multi_object_1k_840", "data.val_files=None",
    "worker.actor.model.model_path=pretrained_models/Qwen2.5-VL-7B-Instruct",
    "worker.actor.kl_loss_coef=1.0e-2", "worker.actor.optim.lr=1.0e-6",
    "worker.actor.micro_batch_size_per_device_for_update=" .. micro,
    "worker.actor.micro_batch_size_per_device_for_experience=" .. micro }
  for _, argument in ipairs(sampling) do arguments[#arguments + 1] = argument end
  for _, argument in ipairs { "worker.rollout.enable_chunked_prefill=false", "worker.rollout.n=8",
    "worker.reward.compute_score=vision_reasoner", "trainer.experiment_name=" .. name,
    "trainer.n_gpus_per_node=" .. gpus, "trainer.total_episodes=1",
    "trainer.save_checkpoint_path=" .. folder .. "/" .. name } do
    arguments[#arguments + 1] = argument
  end
  return arguments
end

local function refcocog(name, yaml, model, micro)
  local arguments = { "config=training_scripts/" .. yaml, "data.val_files=None",
    "worker.actor.model.model_path=" .. model, "worker.actor.kl_loss_coef=5.0e-3",
    "worker.actor.optim.lr=1.0e-6" }
  for _, argument in ipairs(micro) do arguments[#arguments + 1] = argument end
  for _, argument in ipairs { "worker.rollout.enable_chunked_prefill=false", "worker.rollout.n=8",
    "trainer.experiment_name=" .. name, "trainer.n_gpus_per_node=8", "trainer.total_episodes=1",
    "trainer.save_checkpoint_path=./workdir/" .. name } do
    arguments[#arguments + 1] = argument
  end
  return arguments
end

local MICRO = { "worker.actor.micro_batch_size_per_device_for_update=1",
  "worker.actor.micro_batch_size_per_device_for_experience=2" }
local MODEL_3B = "Qwen/Qwen2.5-VL-3B-Instruct"
local MODEL_7B = "Qwen/Qwen2.5-VL-7B-Instruct"

M.seg_zero = {
  { name = "run_visionreasoner_7b", commit = "42a3345",
    arguments = vision_reasoner("run_visionreasoner_7b", "visionreasoner_workdir", 16, {}, 8) },
  { name = "run_visionreasoner_7b_4x80G", commit = "42a3345",
    arguments = vision_reasoner("run_visionreasoner_7b_4x80G", "visionreasoner_workdir", 2,
      { "worker.rollout.tensor_parallel_size=2", "worker.rollout.gpu_memory_utilization=0.4" },
      4) },
  { name = "run_visionreasoner_7b_8x46G", commit = "42a3345",
    arguments = vision_reasoner("run_visionreasoner_7b_8x46G", "visionreasoner_workdir", 1,
      { "worker.rollout.tensor_parallel_size=4", "worker.rollout.gpu_memory_utilization=0.1" },
      8) },
  { name = "run_visionreasoner_7b_4x40G", commit = "5fc2d86",
    arguments = vision_reasoner("run_visionreasoner_7b_4x40G", "visionmanus_workdir", 1,
      { "worker.rollout.tensor_parallel_size=2", "worker.rollout.gpu_memory_utilization=0.15" },
      4) },
  { name = "run_qwen2_5_3b_refCOCOg", commit = "233c93d",
    arguments = refcocog("run_qwen2_5_3b_refCOCOg", "seg_zero_3b.yaml", MODEL_3B, {}) },
  { name = "run_qwen2_5_7b_refCOCOg", commit = "77f9ea5",
    arguments = refcocog("run_qwen2_5_7b_refCOCOg", "seg_zero_7b.yaml", MODEL_7B, MICRO) },
}

-- ---- EasyR1 ----
local function easy_r1(name, ...)
  local arguments = { "config=examples/config.yaml", ... }
  return { name = name, commit = "b44b311", arguments = arguments }
end

local function geometry(name, model, ...)
  return easy_r1(name, "data.train_files=hiyouga/geometry3k@train",
    "data.val_files=hiyouga/geometry3k@test", "worker.actor.model.model_path=" .. model, ...)
end

local function gpus(n) return "trainer.n_gpus_per_node=" .. n end
local function experiment(name) return "trainer.experiment_name=" .. name end
local R1V = "worker.reward.reward_function=./examples/reward_function/r1v.py:compute_score"
local MODEL_32B = "Qwen/Qwen2.5-VL-32B-Instruct"
local MODEL_4B = "Qwen/Qwen3-VL-4B-Instruct"
local BF16 = "worker.actor.fsdp.torch_dtype=bf16"
local ADAMW_BF16 = "worker.actor.optim.strategy=adamw_bf16"

M.easy_r1 = {
  easy_r1("baselines/qwen2_5_vl_3b_clevr", "data.train_files=BUAADreamer/clevr_count_70k@train",
    "data.val_files=BUAADreamer/clevr_count_70k@test",
    "data.format_prompt=./examples/format_prompt/r1v.jinja",
    "worker.actor.model.model_path=" .. MODEL_3B, "worker.rollout.tensor_parallel_size=1", R1V,
    experiment "qwen2_5_vl_3b_clevr", gpus(2)),
  easy_r1("baselines/qwen2_5_vl_3b_geoqa8k", "data.train_files=leonardPKU/GEOQA_8K_R1V@train",
    "data.val_files=leonardPKU/GEOQA_8K_R1V@test",
    "data.format_prompt=./examples/format_prompt/r1v.jinja",
    "worker.actor.model.model_path=" .. MODEL_3B, "worker.rollout.tensor_parallel_size=1", R1V,
    experiment "qwen2_5_vl_3b_geoqa8k", gpus(8)),
  easy_r1("qwen2_5_7b_math_grpo", "worker.actor.model.model_path=Qwen/Qwen2.5-7B-Instruct"),
  geometry("qwen2_5_vl_32b_geo3k_grpo", MODEL_32B, BF16, ADAMW_BF16,
    "worker.rollout.tensor_parallel_size=8", experiment "qwen2_5_vl_32b_geo_grpo", gpus(8)),
  easy_r1("qwen2_5_vl_3b_android_gui_grpo", "data.train_files=yuehua-s/numbergame@train",
    "data.val_files=yuehua-s/numbergame@test", "data.max_prompt_length=3072",
    "data.max_response_length=64", "data.rollout_batch_size=32", "data.val_batch_size=60",
    "data.format_prompt=examples/format_prompt/android_gui.jinja", "data.seed=42",
    "data.filter_overlong_prompts=false", "algorithm.kl_coef=4.0e-2",
    "worker.actor.global_batch_size=32", "worker.actor.max_grad_norm=0.1",
    "worker.actor.model.model_path=" .. MODEL_3B, "worker.actor.model.trust_remote_code=true",
    "worker.actor.optim.lr=1.0e-5", "worker.actor.optim.weight_decay=1.0e-1",
    "worker.actor.optim.lr_warmup_ratio=0.05", "worker.actor.optim.lr_scheduler_type=constant",
    "worker.rollout.n=8", "worker.rollout.temperature=0.9", "worker.rollout.top_p=0.95",
    "worker.rollout.limit_images=1", "worker.rollout.gpu_memory_utilization=0.75",
    "worker.rollout.tensor_parallel_size=1",
    "worker.reward.reward_function=examples/reward_function/android_gui.py:compute_score",
    "trainer.total_epochs=3", "trainer.project_name=easy_r1",
    experiment "qwen2_5_vl_3b_android_gui_grpo", 'trainer.logger=["console","wandb"]', gpus(2),
    "trainer.nnodes=1", "trainer.val_freq=2", "trainer.val_generations_to_log=10",
    "trainer.save_freq=10"),
  geometry("qwen2_5_vl_3b_geo3k_grpo", MODEL_3B, experiment "qwen2_5_vl_3b_geo_grpo", gpus(2)),
  geometry("qwen2_5_vl_7b_geo3k_cispo", MODEL_7B, "worker.actor.loss_type=cispo",
    "worker.actor.clip_ratio_low=0", "worker.actor.clip_ratio_high=4",
    experiment "qwen2_5_vl_7b_geo_cispo", gpus(8)),
  easy_r1("qwen2_5_vl_7b_geo3k_dapo", "data.train_files=hiyouga/geometry3k@train",
    "data.val_files=hiyouga/geometry3k@test", "data.mini_rollout_batch_size=128",
    "worker.actor.model.model_path=" .. MODEL_7B, "worker.actor.clip_ratio_low=0.2",
    "worker.actor.clip_ratio_high=0.28", "algorithm.disable_kl=True",
    "algorithm.online_filtering=True", experiment "qwen2_5_vl_7b_geo_dapo", gpus(8)),
  geometry("qwen2_5_vl_7b_geo3k_grpo", MODEL_7B, experiment "qwen2_5_vl_7b_geo_grpo", gpus(8)),
  geometry("qwen2_5_vl_7b_geo3k_gspo", MODEL_7B, "worker.actor.loss_type=gspo_token",
    "worker.actor.loss_avg_mode=seq", "worker.actor.clip_ratio_low=3e-4",
    "worker.actor.clip_ratio_high=4e-4", "algorithm.disable_kl=True",
    experiment "qwen2_5_vl_7b_geo_gspo", gpus(8)),
  geometry("qwen2_5_vl_7b_geo3k_reinforce", MODEL_7B,
    "algorithm.adv_estimator=reinforce_plus_plus", "algorithm.use_kl_loss=false",
    "algorithm.kl_penalty=kl", "algorithm.kl_coef=1.0e-3",
    experiment "qwen2_5_vl_7b_geo_reinforce_pp", gpus(8)),
  geometry("qwen2_5_vl_7b_geo3k_sapo", MODEL_7B, "worker.actor.loss_type=sapo",
    "algorithm.disable_kl=True", experiment "qwen2_5_vl_7b_geo_sapo", gpus(8)),
  geometry("qwen2_5_vl_7b_geo3k_swanlab", MODEL_7B, experiment "qwen2_5_vl_7b_geo_grpo",
    "trainer.logger=['console','swanlab']", gpus(8)),
  easy_r1("qwen2_5_vl_7b_multi_image",
    "data.train_files=hiyouga/journeybench-multi-image-vqa@train",
    "data.val_files=hiyouga/journeybench-multi-image-vqa@test", "data.rollout_batch_size=256",
    "worker.actor.model.model_path=" .. MODEL_7B, "worker.rollout.limit_images=2",
    experiment "qwen2_5_vl_7b_multi_image", gpus(8)),
  easy_r1("qwen3_14b_dapo17k_dapo", "data.train_files=Saigyouji-Yuyuko1000/dapo17k@train",
    "data.val_files=Saigyouji-Yuyuko1000/dapo17k@test",
    "data.format_prompt=./examples/format_prompt/dapo.jinja", "data.max_prompt_length=2048",
    "data.max_response_length=20480", "data.rollout_batch_size=512",
    "data.mini_rollout_batch_size=256", "worker.actor.ulysses_size=8",
    "worker.actor.model.model_path=Qwen/Qwen3-14B-Base", BF16, ADAMW_BF16,
    "worker.actor.optim.weight_decay=0.1", "worker.actor.optim.lr_warmup_steps=10",
    "worker.actor.global_batch_size=32", "worker.actor.clip_ratio_low=0.2",
    "worker.actor.clip_ratio_high=0.28", "worker.actor.clip_ratio_dual=10.0",
    "worker.rollout.n=16", "worker.rollout.max_num_batched_tokens=22528",
    'worker.rollout.val_override_config={"n":16,"temperature":1.0,"top_p":0.7}',
    "worker.rollout.gpu_memory_utilization=0.8", "worker.rollout.tensor_parallel_size=4",
    "worker.reward.reward_function=./examples/reward_function/dapo.py:compute_score",
    'worker.reward.reward_function_kwargs={"max_response_length":20480,' ..
      '"overlong_buffer_length":4096,"overlong_penalty_factor":1.0}',
    "algorithm.disable_kl=True", "algorithm.online_filtering=True",
    "algorithm.filter_key=accuracy_normalized", "algorithm.filter_low=0.01",
    "algorithm.filter_high=0.99", "trainer.total_epochs=10", "trainer.max_try_make_batch=10",
    experiment "qwen3_14b_dapo17k_dapo", gpus(8)),
  easy_r1("qwen3_4b_math_grpo", "data.max_response_length=4096",
    "worker.actor.model.model_path=Qwen/Qwen3-4B", experiment "qwen3_4b_math_grpo"),
  easy_r1("qwen3_4b_math_grpo_lora", "data.max_response_length=2048",
    "worker.actor.model.model_path=Qwen/Qwen3-4B", "worker.actor.model.lora.rank=64",
    "worker.actor.model.lora.alpha=64", "worker.actor.optim.lr=1e-5",
    "worker.rollout.tensor_parallel_size=1", experiment "qwen3_4b_math_grpo_lora", gpus(1)),
  geometry("qwen3_vl_30b_geo3k_grpo", "Qwen/Qwen3-VL-30B-A3B-Instruct", BF16, ADAMW_BF16,
    "worker.rollout.tensor_parallel_size=8", experiment "qwen3_vl_30b_geo_grpo", gpus(8)),
  geometry("qwen3_vl_4b_geo3k_grpo", MODEL_4B, experiment "qwen3_vl_4b_geo_grpo", gpus(2)),
  geometry("qwen3_vl_4b_geo3k_grpo_lora", MODEL_4B, "worker.actor.model.lora.rank=64",
    "worker.actor.optim.lr=1e-5", experiment "qwen3_vl_4b_geo_grpo_lora", gpus(2)),
}

return M
