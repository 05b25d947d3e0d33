-- released.lua - config.json and its companions of the released Qwen2-VL and Qwen2.5-VL
-- checkpoints, by size.
--
--   local json = released.config("3b", { layers = 2, v_depth = 2, dtype = "bf16" })   config.json
--   released.sizes       {"2b", "32b", "3b", ...}, sorted
--
-- Sizes: 3b, 7b, 32b, 72b are Qwen2.5-VL; qwen2-vl-2b (or 2b), qwen2-vl-7b, qwen2-vl-72b are
-- Qwen2-VL. Every call makes a new table.
-- Leaves out: tokenizer files.

local M = {}

local STD = 0.02

-- Columns: hidden size, intermediate size, layers, heads, key-value heads, vocabulary, tied
-- embeddings; for Qwen2.5-VL also the vision tower's intermediate size.
local QWEN2_5 = {
  ["3b"] = { 2048, 11008, 36, 16, 2, 151936, true, 3420 },
  ["7b"] = { 3584, 18944, 28, 28, 4, 152064, false, 3420 },
  ["32b"] = { 5120, 27648, 64, 40, 8, 152064, false, 3456 },
  ["72b"] = { 8192, 29568, 80, 64, 8, 152064, false, 3456 },
}
local QWEN2 = {
  ["qwen2-vl-2b"] = { 1536, 8960, 28, 12, 2, 151936, true },
  ["qwen2-vl-7b"] = { 3584, 18944, 28, 28, 4, 152064, false },
  ["qwen2-vl-72b"] = { 8192, 29568, 80, 64, 8, 152064, false },
}
local SAME_AS = { ["2b"] = "qwen2-vl-2b" }

M.sizes = {}
for _, rows in ipairs { QWEN2_5, QWEN2, SAME_AS } do
  for size in pairs(rows) do M.sizes[#M.sizes + 1] = size end
end
table.sort(M.sizes)

local function find(size)
  local name = SAME_AS[size] or size
  return QWEN2_5[name] or QWEN2[name], QWEN2_5[name] ~= nil
end

local function text_config(row)
  return {
    hidden_size = row[1],
    intermediate_size = row[2],
    num_hidden_layers = row[3],
    num_attention_heads = row[4],
    num_key_value_heads = row[5],
    vocab_size = row[6],
    tie_word_embeddings = row[7],
    attention_dropout = 0,
    hidden_act = "silu",
    initializer_range = STD,
    rms_norm_eps = 1e-6,
    rope_theta = 1e6,
    rope_scaling = { type = "mrope", mrope_section = { 16, 24, 24 } },
    sliding_window = 32768,
    use_sliding_window = false,
    use_cache = true,
    bos_token_id = 151643,
    eos_token_id = 151645,
    vision_start_token_id = 151652,
    vision_end_token_id = 151653,
    vision_token_id = 151654,
    image_token_id = 151655,
    video_token_id = 151656,
    transformers_version = "4.41.2",
  }
end

-- Every eighth block attends to the whole image; a short tower keeps one that does.
local function full_attention_blocks(depth)
  local blocks = {}
  for block = 7, depth - 1, 8 do blocks[#blocks + 1] = block end
  if #blocks == 0 then blocks[1] = depth - 1 end
  return blocks
end

local function vision_config_2_5(row, depth)
  return {
    depth = depth, hidden_act = "silu", hidden_size = 1280, intermediate_size = row[8],
    num_heads = 16, in_chans = 3,
    out_hidden_size = row[1], patch_size = 14, spatial_merge_size = 2, spatial_patch_size = 14,
    temporal_patch_size = 2, window_size = 112,
    fullatt_block_indexes = full_attention_blocks(depth), tokens_per_second = 2,
  }
end

local function vision_config_2(row, depth)
  return {
    depth = depth, embed_dim = 1280, hidden_size = row[1], hidden_act = "quick_gelu", mlp_ratio = 4,
    num_heads = 16, in_chans = 3, patch_size = 14, spatial_merge_size = 2, spatial_patch_size = 14,
    temporal_patch_size = 2,
  }
end

-- The table of config.json; nil for a size that was not released. options: layers, v_depth (fewer
-- of them at the same width), dtype ("bf16", the default, or "f32").
function M.config(size, options)
  local row, is_2_5 = find(size)
  if not row then return nil end
  options = options or {}
  local json = text_config(row)
  json.num_hidden_layers = options.layers or json.num_hidden_layers
  json.max_window_layers = json.num_hidden_layers
  json.torch_dtype = "bfloat16"
  if options.dtype == "f32" then json.torch_dtype = "float32" end
  local depth = options.v_depth or 32
  if is_2_5 then
    json.architectures = { "Qwen2_5_VLForConditionalGeneration" }
    json.model_type = "qwen2_5_vl"
    json.max_position_embeddings = 128000
    json.vision_config = vision_config_2_5(row, depth)
  else
    json.architectures = { "Qwen2VLForConditionalGeneration" }
    json.model_type = "qwen2_vl"
    json.max_position_embeddings = 32768
    json.vision_config = vision_config_2(row, depth)
  end
  return json
end

-- The table of generation_config.json.
function M.generation(size)
  local json = { bos_token_id = 151643, pad_token_id = 151643, do_sample = true,
    eos_token_id = { 151645, 151643 } }
  local _, is_2_5 = find(size)
  if is_2_5 then
    json.repetition_penalty = 1.05
    json.temperature = 1e-6
  else
    json.temperature = 0.01
    json.top_p = 0.001
    json.top_k = 1
  end
  return json
end

-- The table of preprocessor_config.json, the same for all sizes.
function M.preprocessor()
  return {
    image_processor_type = "Qwen2VLImageProcessor", processor_class = "Qwen2_5_VLProcessor",
    min_pixels = 3136,
    max_pixels = 12845056, patch_size = 14, temporal_patch_size = 2, merge_size = 2,
    image_mean = { 0.48145466, 0.4578275, 0.40821073 },
    image_std = { 0.26862954, 0.26130258, 0.27577711 },
  }
end

return M
