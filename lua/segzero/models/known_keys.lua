-- known_keys.lua - the keys of the JSON files in a model folder, in one table for each file.
--
--   known_keys.check(path, json, known_keys.CONFIG)
--       raises one line for a key with a value that is refused; says the unknown keys once
--   known_keys.check(path, json.vision_config, known_keys.QWEN_VISION, "vision_config.")
--   known_keys.show(value) -> a short text of a JSON value, for messages
--   known_keys.bad(path, key, value, expected)      raises "PATH: KEY is VALUE, expected EXPECTED"
--
-- A table has four parts. A key is in exactly one of them:
--   read      the reader uses it and checks its value
--   ignored   it cannot change a result here: it is about training elsewhere, videos, or the past
--   only      {key -> {value, ...}}: null, or one of these values; any other is an error. A function
--             instead of a list says which values are good, and `why` is added to the error
--   noted     {key -> {good, text}}: used as if it were absent; if good(value) is false, a note says
--             the text
-- A key in none of them is unknown: a note names it.
-- Leaves out: the values of the keys that are read.

local cjson = require "cjson"
local notes = require "segzero.core.notes"

local M = {}

-- ---- values ----
local SHOWN = 60

-- A short text of a JSON value.
function M.show(v)
  if v == nil then return "missing" end
  if v == cjson.null then return "null" end
  if type(v) == "number" and v == math.floor(v) and math.abs(v) < 1e15 then
    return ("%.0f"):format(v)
  end
  if type(v) == "string" then
    local text = ("'%s'"):format(v:gsub("%c", "?"))
    if #text > SHOWN then text = text:sub(1, SHOWN) .. "...'" end
    return text
  end
  if type(v) ~= "table" then return tostring(v) end
  local ok, text = pcall(cjson.encode, v)
  if not ok or #text > SHOWN then
    if #v > 0 then return ("a list of %d"):format(#v) end
    return "an object"
  end
  return text
end

function M.bad(path, key, value, expected)
  error(("%s: %s is %s, expected %s"):format(path, key, M.show(value), expected), 0)
end

-- ---- checking ----
local function contains(list, x)
  for _, v in ipairs(list) do
    if v == x then return true end
  end
  return false
end

local function list_of(values)
  local parts = {}
  for i, v in ipairs(values) do parts[i] = M.show(v) end
  return table.concat(parts, " or ")
end

local function check_only(path, name, value, rule)
  local good
  local expected = rule.expected
  if rule.good then
    good = rule.good(value)
  else
    good = contains(rule, value)
    expected = list_of(rule)
  end
  if good then return end
  if rule.why then expected = ("%s (%s)"):format(expected, rule.why) end
  M.bad(path, name, value, expected)
end

local MOST_NAMED = 5

local function say_unknown(path, unknown)
  if #unknown == 0 then return end
  if #unknown == 1 then
    notes.say(("%s: the key '%s' is not known here and was not used"):format(path, unknown[1]))
    return
  end
  local names = {}
  for i = 1, math.min(#unknown, MOST_NAMED) do names[i] = ("'%s'"):format(unknown[i]) end
  local more = ""
  if #unknown > MOST_NAMED then more = (" and %d more"):format(#unknown - MOST_NAMED) end
  notes.say(("%s: the keys %s%s are not known here and were not used"):format(path,
    table.concat(names, ", "), more))
end

-- False for an unknown key.
local function check_key(path, name, key, value, known)
  local rule = known.only[key]
  local remark = known.noted[key]
  if rule then
    check_only(path, name, value, rule)
  elseif remark then
    if not remark.good(value) then
      notes.say(("%s: %s is %s: %s"):format(path, name, M.show(value), remark.text))
    end
  else
    return known.read[key] or known.ignored[key] or false
  end
  return true
end

function M.check(path, json, known, prefix)
  prefix = prefix or ""
  local unknown = {}
  local keys = {}
  for key in pairs(json) do keys[#keys + 1] = tostring(key) end
  table.sort(keys)
  for _, key in ipairs(keys) do
    -- null is as good as absent
    local value = json[key]
    if value == cjson.null then value = nil end
    local name = prefix .. key
    if value ~= nil and not check_key(path, name, key, value, known) then
      unknown[#unknown + 1] = name:sub(1, SHOWN):gsub("%c", "?")
    end
  end
  say_unknown(path, unknown)
end

-- ---- the tables ----
local function set(text)
  local out = {}
  for key in text:gmatch "%S+" do out[key] = true end
  return out
end

local function union(...)
  local out = {}
  for _, t in ipairs { ... } do
    for key, v in pairs(t) do out[key] = v end
  end
  return out
end

local function is_off(v) return v == false or v == 0 or v == "" end
local function is_empty(v) return is_off(v) or type(v) == "table" and next(v) == nil end

-- Keys that transformers writes into every config and that no forward pass reads. The settings of
-- generate that old files have here are read where generation_config.json is missing
-- (inference/generation_config.lua).
local COMMON = set [[
  _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled
  _name_or_path add_cross_attention architectures attn_implementation auto_map
  begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
  decoder_start_token_id diversity_penalty dtype early_stopping eos_token_id
  exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
  gradient_checkpointing id2label initializer_range is_decoder is_encoder_decoder label2id
  length_penalty license max_length model_max_length num_beam_groups num_labels
  num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
  problem_type remove_invalid_values return_dict return_dict_in_generate sep_token_id
  task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torch_dtype torchscript
  transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
  do_sample temperature top_k top_p min_length num_beams no_repeat_ngram_size
  encoder_no_repeat_ngram_size bad_words_ids repetition_penalty suppress_tokens
]]

local QUANTISED = {
  good = is_empty,
  expected = "no quantisation",
  why = "quantised weights are not read: take the folder in bf16; dtype int8 of segzero quantises it",
}

-- What attention dropout, or dropout of any kind, means here.
local DROPOUT = { good = is_off, text = "there is no dropout here" }

local QWEN_TEXT = {
  read = set [[
    hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    vocab_size rms_norm_eps rope_theta rope_scaling rope_parameters head_dim tie_word_embeddings
    use_sliding_window sliding_window max_window_layers layer_types max_position_embeddings
    original_max_position_embeddings eos_token_id
  ]],
  ignored = union(COMMON, set [[
    attention_bias mlp_bias model_type image_token_id video_token_id vision_start_token_id
    vision_end_token_id vision_token_id
  ]]),
  only = {
    hidden_act = { "silu" },
    partial_rotary_factor = { 1 },
    pruned_heads = { good = is_empty, expected = "no heads" },
    quantization_config = QUANTISED,
    compression_config = QUANTISED,
  },
  noted = { attention_dropout = DROPOUT },
}
M.QWEN_TEXT = QWEN_TEXT

-- config.json itself. segzero_frame is ours: the side of the images that a model is trained on.
M.QWEN = {
  read = union(QWEN_TEXT.read, set [[
    model_type text_config vision_config image_token_id video_token_id vision_start_token_id
    vision_end_token_id vision_token_id segzero_frame dtype torch_dtype
  ]]),
  ignored = union(QWEN_TEXT.ignored, set [[ ignore_index rope_deltas tokens_per_second ]]),
  only = QWEN_TEXT.only,
  noted = QWEN_TEXT.noted,
}

M.QWEN_VISION = {
  read = set [[
    depth num_hidden_layers hidden_size embed_dim hidden_act intermediate_size mlp_ratio num_heads
    num_attention_heads in_channels in_chans patch_size spatial_merge_size temporal_patch_size
    window_size out_hidden_size fullatt_block_indexes rope_theta rope_scaling rope_parameters
  ]],
  ignored = union(COMMON, set [[
    model_type spatial_patch_size tokens_per_second vocab_size use_sliding_window
  ]]),
  only = {
    partial_rotary_factor = { 1 },
    quantization_config = QUANTISED,
    head_dim = { good = is_empty, expected = "none" },
  },
  noted = { attention_dropout = DROPOUT, hidden_dropout = DROPOUT },
}

-- ---- SAM2 ----
local SAM2_COMMON = union(COMMON, set "model_type")

M.SAM2 = {
  read = set "vision_config prompt_encoder_config mask_decoder_config",
  -- Of the video model, which single images do not need.
  ignored = union(SAM2_COMMON, set [[
    image_size num_maskmem sigmoid_scale_for_mem_enc sigmoid_bias_for_mem_enc
    enable_occlusion_spatial_embedding enable_temporal_pos_encoding_for_object_pointers
    multimask_output_in_sam multimask_min_pt_num multimask_max_pt_num
    multimask_output_for_tracking max_object_pointers_in_encoder max_cond_frame_num
    project_temporal_pos_encoding_in_object_pointers preserve_temporal_direction_in_object_pointers
    memory_attention_hidden_size memory_attention_num_layers memory_attention_num_attention_heads
    memory_attention_downsample_rate memory_attention_feed_forward_hidden_size
    memory_attention_feed_forward_hidden_act memory_attention_mlp_hidden_size
    memory_attention_mlp_hidden_act memory_attention_dropout memory_attention_rope_theta
    memory_attention_rope_feat_sizes memory_attention_rope_dropout memory_encoder_hidden_size
    memory_encoder_output_channels rope_parameters mask_downsampler_embed_dim
    mask_downsampler_kernel_size mask_downsampler_stride mask_downsampler_padding
    mask_downsampler_total_stride mask_downsampler_hidden_act memory_fuser_num_layers
    memory_fuser_embed_dim memory_fuser_intermediate_dim memory_fuser_kernel_size
    memory_fuser_padding memory_fuser_layer_scale_init_value memory_fuser_hidden_act
  ]]),
  only = { quantization_config = QUANTISED },
  noted = {},
}

-- The parts of SAM2's config. Shapes of the weights decide about what is ignored in the backbone.
M.SAM2_SECTIONS = {
  backbone = {
    read = set [[
      image_size patch_kernel_size patch_stride patch_padding embed_dim_per_stage
      num_attention_heads_per_stage blocks_per_stage window_size_per_stage
      global_attention_blocks window_positional_embedding_background_size mlp_ratio
      layer_norm_eps num_query_pool_stages query_stride hidden_act num_channels
    ]],
    ignored = union(SAM2_COMMON, set "hidden_size num_attention_heads"),
    only = {},
    noted = {},
  },
  vision = {
    read = set [[
      backbone_config fpn_hidden_size fpn_top_down_levels fpn_kernel_size fpn_stride fpn_padding
      num_feature_levels
    ]],
    ignored = union(SAM2_COMMON, set [[
      backbone_channel_list backbone_feature_sizes hidden_act layer_norm_eps
    ]]),
    only = {},
    noted = {},
  },
  prompt = {
    read = set "hidden_size patch_size mask_input_channels num_point_embeddings image_size",
    ignored = SAM2_COMMON,
    only = { hidden_act = { "gelu" }, layer_norm_eps = { 1e-6 }, scale = { 1 } },
    noted = {},
  },
  decoder = {
    read = set [[
      hidden_size mlp_dim num_hidden_layers num_attention_heads attention_downsample_rate
      num_multimask_outputs iou_head_depth iou_head_hidden_dim dynamic_multimask_via_stability
      dynamic_multimask_stability_delta dynamic_multimask_stability_thresh
    ]],
    ignored = union(SAM2_COMMON, set "hidden_act"),      -- not read: the layers have relu
    only = {},
    noted = {},
  },
}

return M
