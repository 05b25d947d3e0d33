-- known_keys.lua - the keys of the JSON files in a model folder, in one table for each file.
--
--   known_keys.check(path, json, known_keys.CONFIG)
--       raises one line for a key with a value that is refused; says the unknown keys once
--   known_keys.check(path, json.vision_config, known_keys.QWEN_VISION, "vision_config.")
--   known_keys.show(value), .name(key) -> a short text of a JSON value or of a key, for messages
--   known_keys.bad(path, key, value, expected)      raises "PATH: KEY is VALUE, expected EXPECTED"
--
-- A table has four parts. A key is in exactly one of them:
--   read      the reader uses it and checks its value
--   ignored   it cannot change a result here: it is about training elsewhere, videos, or the past
--   only      {key -> {value, ...}}: null, or one of these values; any other is an error. A
--             function `good` instead of a list says which values are; `why` is added to the error
--   noted     {key -> {good, text}}: used as if it were absent; if good(value) is false, a note
--             says the text
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
  if next(v) == nil then return "empty" end
  local ok, text = pcall(cjson.encode, v)
  if not ok or #text > SHOWN then
    if #v > 0 then return ("a list of %d"):format(#v) end
    return "an object"
  end
  return text
end

-- A key of a file, or a name in it, in a message.
function M.name(key)
  local text = tostring(key):gsub("%c", "?")
  if #text > 2 * SHOWN then text = text:sub(1, 2 * SHOWN) .. "..." end
  return text
end

function M.bad(path, key, value, expected)
  error(("%s: %s is %s, expected %s"):format(path, M.name(key), M.show(value), expected), 0)
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
  why = "quantised weights are not read: take the folder in bf16",
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

-- ---- tokenizers ----
local function is_false(v) return v == false end

M.TOKENIZER = {
  read = set "added_tokens normalizer pre_tokenizer post_processor decoder model",
  ignored = set "version truncation padding",      -- a call decides about the last two
  only = {},
  noted = {},
}
M.TOKENIZER_MODEL = {
  read = set "type vocab merges",
  ignored = set "unk_token fuse_unk",      -- every byte has a token
  only = {
    dropout = { 0 },
    continuing_subword_prefix = { "" },
    end_of_word_suffix = { "" },
    byte_fallback = { false },
    ignore_merges = { false },
  },
  noted = {},
}
local ADDS = { good = is_false, text = "no token is added to a text here, as in transformers 5" }
M.TOKENIZER_CONFIG = {
  read = set [[
    added_tokens_decoder chat_template additional_special_tokens extra_special_tokens
    bos_token eos_token unk_token sep_token pad_token cls_token mask_token
  ]],
  ignored = set [[
    auto_map backend errors image_token is_local local_files_only legacy max_length
    max_pixels min_pixels model_input_names model_max_length model_specific_special_tokens
    name_or_path pad_to_multiple_of pad_token_type_id padding_side processor_class
    special_tokens_map_file stride tokenizer_class tokenizer_file truncation_side
    truncation_strategy trust_remote_code use_fast video_token vision_bos_token vision_eos_token
    return_token_type_ids response_schema add_eod_token extra_ids from_slow unk_token_id
    revision token_type_ids_pattern fix_mistral_regex _commit_hash merges_file vocab_file
  ]],
  only = { add_prefix_space = { false }, split_special_tokens = { false } },
  noted = {
    add_bos_token = ADDS,
    add_eos_token = ADDS,
    clean_up_tokenization_spaces = {
      good = is_false, text = "no space is removed from a decoded text, as in transformers 5",
    },
  },
}

-- ---- generation_config.json ----
local function noted_unless(text, good) return { good = good, text = text } end
local function is_one(v) return v == 1 end
local NO_EFFECT = "it has no effect here"
local function without_effect(good) return noted_unless(NO_EFFECT, good) end

M.GENERATION = {
  read = set [[
    do_sample temperature top_k top_p repetition_penalty max_new_tokens eos_token_id stop_strings
    min_new_tokens min_length
  ]],
  -- About other ways to decode that this file does not switch on by itself, caches, and results.
  ignored = set [[
    _from_model_config _commit_hash attn_implementation assistant_confidence_threshold
    assistant_early_exit assistant_ensemble_weight assistant_lookbehind bos_token_id cache_config
    cache_implementation chat_format compile_config continuous_batching_config
    decoder_start_token_id disable_compile diversity_penalty early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty is_assistant
    length_penalty low_memory max_cache_len max_matching_ngram_size max_window_size
    num_assistant_tokens num_assistant_tokens_schedule output_attentions output_hidden_states
    output_logits output_scores pad_token_id prefill_chunk_size renormalize_logits
    return_dict_in_generate speculation_type target_lookbehind trust_remote_code
    transformers_version use_cache use_mtp
  ]],
  only = {},
  noted = {
    begin_suppress_tokens = without_effect(is_empty),
    bad_words_ids = without_effect(is_empty),
    constraints = without_effect(is_empty),
    dola_layers = without_effect(is_empty),
    epsilon_cutoff = without_effect(is_off),
    eta_cutoff = without_effect(is_off),
    exponential_decay_length_penalty = without_effect(is_empty),
    force_words_ids = without_effect(is_empty),
    forced_bos_token_id = without_effect(is_empty),
    forced_eos_token_id = without_effect(is_empty),
    guidance_scale = without_effect(is_one),
    max_length = noted_unless("it has no effect here; max_new_tokens is the limit", is_empty),
    max_time = without_effect(is_empty),
    min_p = without_effect(is_off),
    no_repeat_ngram_size = without_effect(is_off),
    num_beam_groups = without_effect(is_one),
    num_beams = noted_unless("there are no beams here; answers are greedy or sampled", is_one),
    num_return_sequences = noted_unless("it has no effect here; n is a setting", is_one),
    penalty_alpha = without_effect(is_off),
    prompt_lookup_num_tokens = without_effect(is_empty),
    remove_invalid_values = without_effect(is_off),
    sequence_bias = without_effect(is_empty),
    suppress_tokens = without_effect(is_empty),
    token_healing = without_effect(is_off),
    top_h = without_effect(is_empty),
    typical_p = without_effect(is_one),
    watermarking_config = without_effect(is_empty),
  },
}

-- ---- adapter_config.json ----
local function refused(why) return { good = is_empty, expected = "none", why = why } end
local NOT_COMPUTED = refused "adapters of this kind are not computed"

M.ADAPTER = {
  read = set [[
    peft_type r lora_alpha rank_pattern alpha_pattern use_rslora target_modules exclude_modules
    layers_to_transform
  ]],
  -- Configs of initialisations are of no use after it.
  ignored = set [[
    auto_mapping base_model_name_or_path base_model_class corda_config ensure_weight_tying
    eva_config inference_mode layers_pattern loftq_config lora_ga_config megatron_core
    parent_library peft_version qalora_group_size revision runtime_config task_type velora_config
    base_model_revision
  ]],
  only = {
    bias = { "none" },
    -- pissa, olora, corda and loftq change the base model, also when PEFT loads them.
    init_lora_weights = { true, false, "gaussian", "eva", "orthogonal", "lora_ga", "mica",
      why = "another initialisation changes the base model: convert the adapter with PEFT's "
        .. "save_pretrained(path_initial_model_for_weight_conversion=...)" },
    alora_invocation_tokens = NOT_COMPUTED,
    arrow_config = NOT_COMPUTED,
    fan_in_fan_out = NOT_COMPUTED,
    kasa_config = NOT_COMPUTED,
    layer_replication = NOT_COMPUTED,
    lora_bias = NOT_COMPUTED,
    megatron_config = NOT_COMPUTED,
    modules_to_save = refused "trained copies of whole modules are not read",
    monteclora_config = NOT_COMPUTED,
    target_parameters = NOT_COMPUTED,
    trainable_token_indices = NOT_COMPUTED,
    use_bdlora = NOT_COMPUTED,
    use_dora = NOT_COMPUTED,
    use_qalora = NOT_COMPUTED,
  },
  noted = { lora_dropout = DROPOUT },
}

-- ---- image processors ----
-- processor_config.json
M.PROCESSOR = {
  read = set "image_processor chat_template",
  ignored = set [[
    processor_class video_processor feature_extractor tokenizer auto_map image_token video_token
    audio_tokenizer num_additional_image_tokens vision_feature_select_strategy _commit_hash
  ]],
  only = {},
  noted = {},
}

-- preprocessor_config.json, or image_processor of the above.
M.IMAGE_PROCESSOR = {
  read = set [[
    size min_pixels max_pixels patch_size temporal_patch_size merge_size image_mean image_std
    rescale_factor resample do_resize do_rescale do_normalize
  ]],
  ignored = set [[
    _valid_processor_keys auto_map crop_size data_format default_to_square device
    disable_grouping feature_extractor_type image_seq_length input_data_format pad_size
    processor_class return_tensors size_divisor spatial_merge_size
    do_sample_frames fps num_frames min_frames max_frames video_metadata return_metadata
  ]],
  only = {
    image_processor_type = {
      "Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil",
      "Qwen2_5_VLImageProcessor",
    },
    do_center_crop = { false },
    do_pad = { false },
  },
  noted = {
    do_convert_rgb = {
      good = function(v) return v == true end, text = "every image has three channels here",
    },
  },
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
