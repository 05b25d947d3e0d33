-- dialects.lua - settings that follow from what program a YAML file was written for.
--
--   dialects.derive(state)     state, from schema.lua:
--     cfg, given     the settings, and which of them were given
--     raw            {[key] = its last value as it was written}
--     kept           {[key] = value} of the keys that keys.lua keeps
--     files          {[path] = {[key] = true}} for each config=FILE
--     set(key, text) gives a setting a value; note(text) tells the user
--   dialects.EASY_R1, dialects.SEG_ZERO     defaults of the dataclasses that differ from ours
--
-- A file with keys that only EasyR1 has leaves other keys out because EasyR1's defaults are meant:
-- they are set. Seg-Zero's own files name all keys whose defaults differ here; of a file that does
-- not, one line names them and what counts. A run's own config.json names all keys.
-- EasyR1 has the weight and the estimator of the KL term under algorithm.*, for the loss and for
-- the reward alike; here those of the loss are under worker.actor.*.
-- Leaves out: single keys (keys.lua), veRL's own names, which are refused.

local config_values = require "segzero.config.values"

local M = {}

-- Keys that only EasyR1's files have.
local EASY_R1_KEYS = { "algorithm.use_kl_loss", "algorithm.disable_kl",
  "algorithm.online_filtering", "worker.reward.reward_function", "data.format_prompt",
  "data.override_chat_template", "data.mini_rollout_batch_size", "trainer.find_last_checkpoint",
  "trainer.val_generations_to_log", "trainer.max_try_make_batch",
  "worker.actor.offload.offload_params", "worker.actor.offload.offload_optimizer",
  "worker.actor.fsdp.enable_cpu_offload" }

-- Keys of Seg-Zero's files that have no meaning here.
local SEG_ZERO_KEYS = { "worker.actor.fsdp.param_offload", "trainer.n_gpus_per_node" }

-- Keys of ours that a run's config.json has, all of them.
local OWN_KEYS = { "data.refshapes_size", "worker.actor.model.dtype", "worker.reward.sam2_path",
  "trainer.check_memory" }

M.EASY_R1 = {
  { "data.prompt_key", "prompt" },
  { "data.answer_key", "answer" },
  { "data.image_key", "images" },
  { "data.prompt", "plain" },
  { "data.max_prompt_length", "512" },
  { "data.max_response_length", "512" },
  { "data.rollout_batch_size", "512" },
  { "data.seed", "1" },
  { "data.min_pixels", "262144" },
  { "data.max_pixels", "4194304" },
  { "data.filter_overlong_prompts", "true" },
  { "algorithm.kl_penalty", "kl" },
  { "algorithm.kl_coef", "1e-3" },
  { "worker.actor.global_batch_size", "256" },
  { "worker.actor.clip_ratio_low", "0.2" },
  { "worker.actor.clip_ratio_high", "0.3" },
  { "worker.actor.clip_ratio_dual", "3" },
  { "worker.actor.entropy_coeff", "0" },
  { "worker.actor.model.lora.exclude_modules", "none" },
  { "worker.rollout.n", "1" },
  { "worker.rollout.seed", "1" },
  { "worker.rollout.val_override_config.temperature", "1" },
  { "trainer.total_episodes", "15" },
  { "trainer.save_freq", "-1" },
  { "trainer.test_freq", "-1" },
  { "trainer.find_last_checkpoint", "true" },
}

M.SEG_ZERO = {
  { "data.max_prompt_length", "512" },
  { "data.max_response_length", "512" },
  { "data.rollout_batch_size", "512" },
  { "data.seed", "1" },
  { "data.min_pixels", "262144" },
  { "data.max_pixels", "4194304" },
  { "algorithm.adv_estimator", "gae" },
  { "worker.actor.global_batch_size", "256" },
  { "worker.actor.kl_loss_coef", "1e-3" },
  { "worker.rollout.n", "1" },
  { "worker.reward.compute_score", "math" },
  { "trainer.total_episodes", "10" },
  { "trainer.save_freq", "-1" },
}

-- ---- which program ----
local function has_any(keys, names)
  for _, name in ipairs(names) do
    if keys[name] then return true end
  end
  return false
end

-- A run's config.json leaves nothing out but what is null.
local function is_of_a_run(keys)
  for _, key in ipairs(OWN_KEYS) do
    if not keys[key] then return false end
  end
  return true
end

-- The first file with one of these keys, by name.
local function file_with(state, names)
  local paths = {}
  for path, keys in pairs(state.files) do
    if has_any(keys, names) and not is_of_a_run(keys) then paths[#paths + 1] = path end
  end
  table.sort(paths)
  return paths[1]
end

-- ---- what a file leaves out ----
local function use_easy_r1(state, path)
  local words = {}
  for _, default in ipairs(M.EASY_R1) do
    local key, text = default[1], default[2]
    if not state.given[key] then
      state.set(key, text)
      words[#words + 1] = key .. "=" .. text
    end
  end
  if #words == 0 then return end
  state.note(("%s has EasyR1's keys; what it leaves out is as in EasyR1: %s"):format(path,
    table.concat(words, " ")))
end

-- EasyR1 shows a progress bar whatever the loggers are; ours is part of console.
local function show_progress(state)
  local loggers = state.cfg.trainer.logger
  for _, name in ipairs(loggers) do
    if name == "console" then return end
  end
  loggers[#loggers + 1] = "console"
end

local function compare_with_seg_zero(state, path)
  local config = require "segzero.config"
  local words = {}
  for _, default in ipairs(M.SEG_ZERO) do
    local key, text = default[1], default[2]
    if not state.given[key] then
      local ours = config_values.text(config.get(state.cfg, key))
      words[#words + 1] = ("%s=%s (Seg-Zero: %s)"):format(key, ours, text)
    end
  end
  if #words == 0 then return end
  state.note(("%s leaves out settings whose defaults differ from Seg-Zero's: %s"):format(path,
    table.concat(words, ", ")))
end

-- ---- the KL term ----
local function read_kl(state, is_easy_r1)
  local use = state.kept["algorithm.use_kl_loss"]
  local disable = state.kept["algorithm.disable_kl"]
  if is_easy_r1 and use == nil then use = false end
  if use == nil and not disable then return end
  local words = {}
  local function set(key, value)
    if state.given[key] then return end
    local text = config_values.text(value)
    state.set(key, text)
    words[#words + 1] = key .. "=" .. text
  end

  local algorithm = state.cfg.algorithm
  if disable then
    algorithm.kl_coef = 0
    state.set("worker.actor.use_kl_loss", "false")
    words[1] = "worker.actor.use_kl_loss=false"
  elseif use then
    set("worker.actor.use_kl_loss", true)
    if state.given["algorithm.kl_coef"] then
      set("worker.actor.kl_loss_coef", algorithm.kl_coef)
    end
    if state.given["algorithm.kl_penalty"] then
      set("worker.actor.kl_loss_type", algorithm.kl_penalty)
    end
    algorithm.kl_coef = 0
  else
    set("worker.actor.use_kl_loss", false)
    words[#words + 1] = "algorithm.kl_coef=" .. config_values.text(algorithm.kl_coef)
  end
  if #words == 0 then return end
  state.note(("the KL term of EasyR1's keys is read as %s"):format(table.concat(words, " ")))
end

-- EasyR1's name of its own loss means the dual clip as well.
local function read_loss(state)
  local is_default = state.raw["worker.actor.loss_type"] == "default"
  if not is_default or state.given["worker.actor.clip_ratio_dual"] then return end
  state.set("worker.actor.clip_ratio_dual", "3")
end

-- vLLM's limit of prompt and answer together: only one that cuts nothing changes nothing.
local function check_model_length(state)
  local limit = tonumber(state.kept["worker.rollout.max_model_len"])
  local data = state.cfg.data
  local needed = data.max_prompt_length + data.max_response_length
  if not limit or limit >= needed then return end
  error(("worker.rollout.max_model_len=%d is below data.max_prompt_length + "
    .. "data.max_response_length = %d, and would cut answers: lower data.max_response_length")
    :format(limit, needed), 0)
end

function M.derive(state)
  local easy_r1 = file_with(state, EASY_R1_KEYS)
  if easy_r1 then
    use_easy_r1(state, easy_r1)
    show_progress(state)
  else
    local seg_zero = file_with(state, SEG_ZERO_KEYS)
    if seg_zero then compare_with_seg_zero(state, seg_zero) end
  end
  read_kl(state, easy_r1 ~= nil)
  read_loss(state)
  check_model_length(state)
end

return M
