-- sam2.lua - a small SAM2 of random weights, shaped so that training from scratch finds its
-- prompts.
--
--   local sam = tiny_sam2.create(options)        options: lua/segzero/config/sam2_finetune.lua
--
-- The released tiny model's shape, smaller. With plain random weights a network this small first
-- learns that most pixels are background, and on the way that prompts do not matter: the masks of
-- two prompts on one image became equal and stayed so for thousands of prompts. Hence three
-- changes. Image features start small compared with the position code, so that attention begins by
-- place. Queries and keys start as the same map, so that equal codes meet. The code's frequencies
-- run along the axes, from slow ones in which "right of" is almost linear up to the released
-- models' usual one. models/README.md has what was tried.
-- Leaves out: training (train/supervised/mask_finetune.lua).

local core = require "segzero.core.ffi"
local sam2 = require "segzero.models.sam2"
local tensor = require "segzero.core.tensor"

local M = {}

-- Frequencies of the position code.
local SLOWEST = 0.08
local FASTEST = 1

-- Deviations of the random weights.
local EMBEDDING = 0.5
local TOKEN = 1
local POSITION = 0.1

-- Factors on the neck's weights, and on queries and keys.
local NECK = 0.2
local MEETING = 2

local function numbers_of(text)
  local list = {}
  for n in text:gmatch "%d+" do list[#list + 1] = tonumber(n) end
  return list
end

-- Four stages, each twice as wide as the one before; heads are 16 wide.
local function backbone_config(o)
  local widths = {}
  local heads = {}
  for i = 1, 4 do
    widths[i] = o.width * 2 ^ (i - 1)
    heads[i] = math.max(1, math.floor(widths[i] / math.max(o.width, 16)))
  end
  return {
    model_type = "sam2_hiera_det_model", image_size = { o.image_size, o.image_size },
    num_channels = 3, hidden_size = o.width, patch_kernel_size = { 7, 7 }, patch_stride = { 4, 4 },
    patch_padding = { 3, 3 },
    query_stride = { 2, 2 }, num_query_pool_stages = 3, mlp_ratio = 4, hidden_act = "gelu",
    layer_norm_eps = 1e-6,
    initializer_range = 0.02, embed_dim_per_stage = widths, num_attention_heads = heads[1],
    num_attention_heads_per_stage = heads, blocks_per_stage = numbers_of(o.blocks),
    window_size_per_stage = numbers_of(o.windows),
    global_attention_blocks = numbers_of(o.global_blocks),
    window_positional_embedding_background_size = { 7, 7 },
  }
end

local function vision_config(o)
  local backbone = backbone_config(o)
  local channels = {}
  local sides = {}
  for i = 1, 4 do channels[5 - i] = backbone.embed_dim_per_stage[i] end
  for i = 1, 3 do
    local side = o.image_size / 2 ^ (i + 1)
    sides[i] = { side, side }
  end
  return {
    model_type = "sam2_vision_model", backbone_config = backbone, backbone_channel_list = channels,
    backbone_feature_sizes = sides, fpn_hidden_size = o.hidden, fpn_kernel_size = 1,
    fpn_padding = 0, fpn_stride = 1,
    fpn_top_down_levels = { 2, 3 }, num_feature_levels = 3, hidden_act = "gelu",
    layer_norm_eps = 1e-6, initializer_range = 0.02,
  }
end

-- The decoder's attention is not narrowed: that would leave 8 channels to a head.
local function config_of(o)
  local dtype = "float32"
  if o.dtype == "bf16" then dtype = "bfloat16" end
  return {
    architectures = { "Sam2Model" },
    model_type = "sam2",
    dtype = dtype,
    initializer_range = 0.02,
    vision_config = vision_config(o),
    prompt_encoder_config = {
      model_type = "sam2_prompt_encoder", hidden_size = o.hidden, image_size = o.image_size,
      patch_size = 16, mask_input_channels = 16, num_point_embeddings = 4, hidden_act = "gelu",
      layer_norm_eps = 1e-6, scale = 1,
    },
    mask_decoder_config = {
      model_type = "sam2_mask_decoder", hidden_size = o.hidden, hidden_act = "gelu",
      mlp_dim = o.mlp,
      num_hidden_layers = 2, num_attention_heads = o.decoder_heads, attention_downsample_rate = 1,
      num_multimask_outputs = 3, iou_head_depth = 3, iou_head_hidden_dim = o.hidden,
      dynamic_multimask_via_stability = true, dynamic_multimask_stability_delta = 0.05,
      dynamic_multimask_stability_thresh = 0.98,
    },
  }
end

-- Keeps of each random frequency [2, half] one axis, at a magnitude between SLOWEST and FASTEST:
-- even columns keep the first axis, odd ones the second.
local function align_frequencies(frequencies)
  local half = frequencies:shape()[2]
  local factors = {}
  for i = 1, 2 * half do
    local column = (i - 1) % half
    local first_axis = i <= half
    factors[i] = 0
    if (column % 2 == 0) == first_axis then
      factors[i] = SLOWEST * (FASTEST / SLOWEST) ^ (column / (half - 1))
    end
  end
  local scale = tensor.new(factors, { device = frequencies:device() }):reshape(2, half)
  frequencies:copy_(frequencies:cast(core.C.SZ_F32):mul(scale))
end

local function rescale(t, factor) t:copy_(t:affine(factor, 0)) end

function M.create(options)
  local sam = sam2.random(config_of(options), { seed = options.seed, dtype = options.dtype,
    embedding_std = EMBEDDING })
  local all = sam:parameters()
  align_frequencies(all["shared_image_embedding.positional_embedding"])
  for name, t in pairs(all) do
    local attention = name:match "^(mask_decoder.*attn.*%.)k_proj%.weight$"
    if attention then
      local queries = all[attention .. "q_proj.weight"]
      rescale(queries, MEETING)
      t:copy_(queries)
    elseif name:match "tokens?%.weight$" or name:match "point_embed%.weight$" then
      rescale(t, TOKEN / EMBEDDING)
    elseif name:match "neck%.convs.*weight$" then
      rescale(t, NECK)
    elseif name:match "pos_embed" then
      rescale(t, POSITION / EMBEDDING)
    end
  end
  return sam
end

return M
