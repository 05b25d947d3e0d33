-- qwen.lua - makes a small Qwen2.5-VL: tokenizer, configuration files and random weights.
--
--   local vl, tokenizer = tiny_qwen.create(dir, options)      options: config/pretrain_shapes.lua
--
-- The architecture is the released one in every respect but size. Its image is a few tokens wide (4
-- x 4 at 112 pixels): a released model's rotary frequencies would turn the width axis by hundredths
-- of a radian across it, so rope_theta and the sections are smaller. segzero_frame in config.json
-- is the side of the images that it is trained on.
-- Leaves out: training.

local bpe = require "segzero.tools.bpe_train"
local files = require "segzero.core.files"
local model = require "segzero.models.qwen_vl"
local released = require "segzero.models.released"
local safetensors = require "segzero.formats.safetensors"
local tokenizers = require "segzero.models.text.tokenizer"

local M = {}

local function vision_config(o)
  return {
    depth = o.v_depth, hidden_size = o.v_hidden, intermediate_size = o.v_intermediate,
    num_heads = o.v_heads,
    hidden_act = "silu", in_channels = 3, in_chans = 3, patch_size = 14, spatial_patch_size = 14,
    spatial_merge_size = 2, temporal_patch_size = 2, window_size = 112, out_hidden_size = o.hidden,
    tokens_per_second = 2, fullatt_block_indexes = { 0, o.v_depth - 1 },
  }
end

-- The table of config.json.
local function config_of(o, tok)
  local function id(text) return tok:id(text) end
  local w_pairs = o.hidden / o.heads / 2 - o.t_pairs - o.h_pairs
  return {
    architectures = { "Qwen2_5_VLForConditionalGeneration" },
    model_type = "qwen2_5_vl",
    segzero_frame = o.size,
    hidden_size = o.hidden,
    intermediate_size = o.intermediate,
    num_hidden_layers = o.layers,
    num_attention_heads = o.heads,
    num_key_value_heads = o.kv_heads,
    hidden_act = "silu",
    vocab_size = math.ceil(tok:size() / 16) * 16,
    tie_word_embeddings = true,
    rms_norm_eps = 1e-6,
    rope_theta = o.rope_theta,
    rope_scaling = { type = "mrope", mrope_section = { o.t_pairs, o.h_pairs, w_pairs } },
    max_position_embeddings = 4096,
    attention_dropout = 0.0,
    initializer_range = o.init_std,
    torch_dtype = "float32",
    use_cache = true,
    use_sliding_window = false,
    bos_token_id = id "<|endoftext|>",
    eos_token_id = id "<|im_end|>",
    vision_start_token_id = id "<|vision_start|>",
    vision_end_token_id = id "<|vision_end|>",
    vision_token_id = id "<|vision_pad|>",
    image_token_id = id "<|image_pad|>",
    video_token_id = id "<|video_pad|>",
    vision_config = vision_config(o),
  }
end

local function generation_of(tok)
  local stop = tok:id "<|endoftext|>"
  return { bos_token_id = stop, eos_token_id = { tok:id "<|im_end|>", stop }, pad_token_id = stop,
    do_sample = false }
end

-- Writes the tokenizer and the configuration to dir; returns a model of random weights (or of
-- options.init's) that saves to dir, and its tokenizer. The caller frees both.
function M.create(dir, options)
  files.make_dir(dir)
  bpe.write(dir, bpe.train(bpe.corpus(), options.merges))
  local tok = tokenizers.new(dir)
  local json = config_of(options, tok)
  files.write(dir .. "/config.json", files.indented_json(json))
  files.write(dir .. "/generation_config.json", files.indented_json(generation_of(tok)))
  files.write(dir .. "/preprocessor_config.json", files.indented_json(released.preprocessor()))

  local vl = model.random(json, { std = options.init_std, seed = options.seed })
  if options.init ~= "" then
    local start = safetensors.load_folder(options.init)
    for name, t in pairs(vl:parameters()) do t:copy_(start[name]) end
  end
  vl.dir = dir
  return vl, tok
end

return M
