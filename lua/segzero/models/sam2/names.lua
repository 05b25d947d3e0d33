-- names.lua - SAM2 checkpoints under the original package's names, turned into transformers'
-- names and config.
--
--   names.file_in(dir)              the .pt file of a folder without transformers' weights, as the
--                                   original package leaves one on disk; nil if there is none
--   names.is_original(tensors)      whether the table {name -> tensor} uses the original names
--   local new, ignored = names.from_original(tensors)
--       new: {transformers name -> tensor}; ignored: sorted list of the video-only names left out
--   names.is_video_only(name)       a part that single images never use; either naming
--   names.config_of(tensors)        config.json of transformers' Sam2Config as a table, from
--                                   original names and shapes
--
-- `new` holds the very tensors of `tensors`, except three that are made:
-- prompt_encoder.point_embed.weight [4, d] out of the four
-- sam_prompt_encoder.point_embeddings.i.weight [1, d], and the Fourier matrix [2, d/2] under both
-- of its names, a copy each. The caller owns both tables and frees what it no longer needs. A name
-- that no rule knows stays as it is, for the caller to report.
--
-- An original checkpoint has no config. Widths, block counts and sizes of the heads are in the
-- shapes; head counts, windows and global blocks are not, and come from the four published models,
-- recognised by first width and block counts. Any other size needs a transformers folder, which has
-- its config.json. Leaves out: the way back (files are written with transformers' names), video.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local tensor = require "segzero.core.tensor"

local M = {}

-- Applied one after another; each replaces at most once.
local RULES = {
  { "^no_mem_embed$", "no_memory_embedding" },
  { "^image_encoder%.trunk%.patch_embed%.proj%.",
    "vision_encoder.backbone.patch_embed.projection." },
  { "^image_encoder%.trunk%.", "vision_encoder.backbone." },
  { "^image_encoder%.neck%.convs%.(%d+)%.conv%.", "vision_encoder.neck.convs.%1." },
  { "^sam_prompt_encoder%.mask_downscaling%.0%.", "prompt_encoder.mask_embed.conv1." },
  { "^sam_prompt_encoder%.mask_downscaling%.1%.", "prompt_encoder.mask_embed.layer_norm1." },
  { "^sam_prompt_encoder%.mask_downscaling%.3%.", "prompt_encoder.mask_embed.conv2." },
  { "^sam_prompt_encoder%.mask_downscaling%.4%.", "prompt_encoder.mask_embed.layer_norm2." },
  { "^sam_prompt_encoder%.mask_downscaling%.6%.", "prompt_encoder.mask_embed.conv3." },
  { "^sam_prompt_encoder%.", "prompt_encoder." },
  { "^sam_mask_decoder%.output_upscaling%.0%.", "mask_decoder.upscale_conv1." },
  { "^sam_mask_decoder%.output_upscaling%.1%.", "mask_decoder.upscale_layer_norm." },
  { "^sam_mask_decoder%.output_upscaling%.3%.", "mask_decoder.upscale_conv2." },
  { "^sam_mask_decoder%.", "mask_decoder." },
  -- blocks of the encoder and layers of the decoder's transformer: norms, attention, two-layer MLPs
  { "^(vision_encoder%.backbone%.blocks%.%d+%.)norm(%d%.)", "%1layer_norm%2" },
  { "^(mask_decoder%.transformer%.layers%.%d+%.)norm(%d%.)", "%1layer_norm%2" },
  { "^(mask_decoder%.transformer%.)norm_final_attn%.", "%1layer_norm_final_attn." },
  { "^(mask_decoder%.transformer%..*)%.out_proj%.", "%1.o_proj." },
  { "^(vision_encoder%.backbone%.blocks%.%d+%.mlp%.)layers%.0%.", "%1proj_in." },
  { "^(vision_encoder%.backbone%.blocks%.%d+%.mlp%.)layers%.1%.", "%1proj_out." },
  { "^(mask_decoder%.transformer%.layers%.%d+%.mlp%.)layers%.0%.", "%1proj_in." },
  { "^(mask_decoder%.transformer%.layers%.%d+%.mlp%.)layers%.1%.", "%1proj_out." },
}

-- The decoder's three-layer MLPs: layers 0, 1, 2 are proj_in, layers.0, proj_out.
local HEADS = {
  "^(mask_decoder%.output_hypernetworks_mlps%.%d+%.)", "^(mask_decoder%.iou_prediction_head%.)",
    "^(mask_decoder%.pred_obj_score_head%.)",
}
local HEAD_LAYERS = { ["0"] = "proj_in", ["1"] = "layers.0", ["2"] = "proj_out" }

local GAUSSIAN = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
local GAUSSIAN_TO = { "prompt_encoder.shared_embedding.positional_embedding",
  "shared_image_embedding.positional_embedding" }
local POINTS = "sam_prompt_encoder.point_embeddings."
local POINTS_TO = "prompt_encoder.point_embed.weight"
local POINT_COUNT = 4

-- Whole names, and beginnings where they end in a dot.
local VIDEO_ONLY = {
  "maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial", "mask_downsample.",
  "memory_attention.", "memory_encoder.",
  "obj_ptr_proj.", "obj_ptr_tpos_proj.",
  "memory_temporal_positional_encoding", "no_memory_positional_encoding", "no_object_pointer",
  "occlusion_spatial_embedding_parameter",
  "object_pointer_proj.", "temporal_positional_encoding_projection_layer.",
}

-- A folder with several .pt files, such as the original package's checkpoints, is an error.
function M.file_in(dir)
  for _, name in ipairs { "model.safetensors", "model.safetensors.index.json" } do
    if files.exists(dir .. "/config.json") and files.exists(dir .. "/" .. name) then return nil end
  end
  local found = {}
  for _, name in ipairs(folders.list(dir) or {}) do
    if name:find "%.pth?$" then found[#found + 1] = name end
  end
  if #found > 1 then
    error(("%s holds several checkpoints (%s): name one of them"):format(dir,
      table.concat(found, ", "):sub(1, 200)), 0)
  end
  return found[1] and dir .. "/" .. found[1]
end

function M.is_video_only(name)
  for _, known in ipairs(VIDEO_ONLY) do
    if name == known or known:sub(-1) == "." and name:sub(1, #known) == known then return true end
  end
  return false
end

function M.is_original(tensors)
  for name in pairs(tensors) do
    for _, part in ipairs { "image_encoder", "sam_mask_decoder", "sam_prompt_encoder" } do
      if name:sub(1, #part + 1) == part .. "." then return true end
    end
  end
  return false
end

local function renamed(name)
  for _, rule in ipairs(RULES) do name = name:gsub(rule[1], rule[2], 1) end
  for _, head in ipairs(HEADS) do
    local before, layer, rest = name:match(head .. "layers%.(%d)%.(.*)$")
    if before and HEAD_LAYERS[layer] then return before .. HEAD_LAYERS[layer] .. "." .. rest end
  end
  return name
end

-- The rows [1, d] of the four point labels as one matrix [4, d] of the same dtype.
local function stacked_points(tensors)
  local first, out, bytes
  for i = 0, POINT_COUNT - 1 do
    local name = POINTS .. i .. ".weight"
    local t = tensors[name]
    if not t then error(("the checkpoint lacks '%s'"):format(name), 0) end
    local shape = t:shape()
    if #shape ~= 2 or shape[1] ~= 1 then
      local sizes = table.concat(shape, ", ")
      error(("'%s' has shape [%s], expected [1, width]"):format(name, sizes), 0)
    end
    if not first then
      first = { width = shape[2], dtype = t:dtype() }
      out = tensor.empty({ POINT_COUNT, shape[2] }, { dtype = t:dtype() })
      bytes = shape[2] * tensor.WIDTH[t:dtype()]
    elseif shape[2] ~= first.width or t:dtype() ~= first.dtype then
      error(("'%s' is %s, '%s0.weight' is %s"):format(name, tostring(t), POINTS,
        tostring(tensors[POINTS .. "0.weight"])), 0)
    end
    ffi.copy(ffi.cast("char *", tensor.data(out)) + i * bytes, tensor.data(t), bytes)
  end
  return out
end

M.from_original = core.guarded(function(tensors)
  local new = {}
  local ignored = {}
  local points = false
  local function put(name, t, from)
    if new[name] then error(("'%s' and another tensor are both '%s'"):format(from, name), 0) end
    new[name] = t
  end
  for name, t in pairs(tensors) do
    if M.is_video_only(name) then
      ignored[#ignored + 1] = name
    elseif name == GAUSSIAN then
      for _, to in ipairs(GAUSSIAN_TO) do put(to, t:clone(), name) end
    elseif name:sub(1, #POINTS) == POINTS and name:find("%.[0-3]%.weight$") then
      points = true
    else
      put(renamed(name), t, name)
    end
  end
  if points then put(POINTS_TO, stacked_points(tensors), POINTS) end
  table.sort(ignored)
  return new, ignored
end)

-- ---- config ----
-- "first width: blocks per stage" -> what the shapes do not tell. window_spec and global blocks as
-- published.
local PUBLISHED = {
  ["96: 1, 2, 7, 2"] = { heads = { 1, 2, 4, 8 }, windows = { 8, 4, 14, 7 }, global = { 5, 7, 9 } },
  ["96: 1, 2, 11, 2"] = {
    heads = { 1, 2, 4, 8 }, windows = { 8, 4, 14, 7 }, global = { 7, 10, 13 } },
  ["112: 2, 3, 16, 3"] = {
    heads = { 2, 4, 8, 16 }, windows = { 8, 4, 14, 7 }, global = { 12, 16, 20 } },
  ["144: 2, 6, 36, 4"] = {
    heads = { 2, 4, 8, 16 }, windows = { 8, 4, 16, 8 }, global = { 23, 33, 43 } },
}
local IMAGE_SIZE = 1024
local PATCH_STRIDE = 4
local MAX_BLOCKS = 1024
local MAX_LEVELS = 16

local TRUNK = "image_encoder.trunk."
local NECK = "image_encoder.neck."
local DECODER = "sam_mask_decoder."

M.config_of = core.guarded(function(tensors)
  local function shape(name, ndim)
    local t = tensors[name]
    if not t then error(("no original SAM2 checkpoint: it lacks '%s'"):format(name), 0) end
    local s = t:shape()
    if #s ~= ndim then
      local sizes = table.concat(s, ", ")
      error(("'%s' has shape [%s], expected %d dimensions"):format(name, sizes, ndim), 0)
    end
    return s
  end

  local background = shape(TRUNK .. "pos_embed", 4)
  local embed = background[2]
  -- A block with a `proj` changes the width and begins a stage.
  local blocks = {}
  local widths = {}
  for i = 0, MAX_BLOCKS do
    local block = TRUNK .. "blocks." .. i .. "."
    if not tensors[block .. "attn.qkv.weight"] then break end
    if i == 0 or tensors[block .. "proj.weight"] then
      blocks[#blocks + 1] = 0
      widths[#widths + 1] = shape(block .. "attn.qkv.weight", 2)[1] / 3
    end
    blocks[#blocks] = blocks[#blocks] + 1
  end
  if #blocks == 0 then shape(TRUNK .. "blocks.0.attn.qkv.weight", 2) end
  local key = ("%d: %s"):format(embed, table.concat(blocks, ", "))
  local known = PUBLISHED[key]
  if not known or widths[1] ~= embed then
    error(("an encoder of width %d with stages of %s blocks is none of the four published sizes. "
      .. "Its heads and windows cannot be told from the weights: give a folder in transformers' "
      .. "format (config.json, model.safetensors) instead"):format(
      embed, table.concat(blocks, ", ")), 0)
  end

  local patch = shape(TRUNK .. "patch_embed.proj.weight", 4)
  local mlp = shape(TRUNK .. "blocks.0.mlp.layers.0.weight", 2)
  local channels = {}
  local width
  for i = 0, MAX_LEVELS do
    local name = NECK .. "convs." .. i .. ".conv.weight"
    if not tensors[name] then break end
    local s = shape(name, 4)
    channels[i + 1], width = s[2], s[1]
  end
  if not width then shape(NECK .. "convs.0.conv.weight", 4) end
  local sizes = {}
  for i = 1, 3 do
    local side = IMAGE_SIZE / PATCH_STRIDE / 2 ^ (i - 1)
    sizes[i] = { side, side }
  end

  local layers = 0
  local function has_layer(i)
    return tensors[DECODER .. "transformer.layers." .. i .. ".norm1.weight"]
  end
  while layers < MAX_LEVELS and has_layer(layers) do layers = layers + 1 end
  local cross = shape(DECODER .. "transformer.final_attn_token_to_image.q_proj.weight", 2)
  local iou_depth = 0
  local function has_iou_layer(i)
    return tensors[DECODER .. "iou_prediction_head.layers." .. i .. ".weight"]
  end
  while iou_depth < MAX_LEVELS and has_iou_layer(iou_depth) do iou_depth = iou_depth + 1 end

  return {
    model_type = "sam2",
    vision_config = {
      model_type = "sam2_vision_model",
      backbone_config = {
        model_type = "sam2_hiera_det_model",
        hidden_size = embed,
        num_channels = patch[2],
        num_attention_heads = known.heads[1],
        image_size = { IMAGE_SIZE, IMAGE_SIZE },
        patch_kernel_size = { patch[3], patch[4] },
        patch_stride = { PATCH_STRIDE, PATCH_STRIDE },
        patch_padding = { math.floor(patch[3] / 2), math.floor(patch[4] / 2) },
        query_stride = { 2, 2 },
        window_positional_embedding_background_size = { background[3], background[4] },
        num_query_pool_stages = #blocks - 1,
        blocks_per_stage = blocks,
        embed_dim_per_stage = widths,
        num_attention_heads_per_stage = known.heads,
        window_size_per_stage = known.windows,
        global_attention_blocks = known.global,
        mlp_ratio = mlp[1] / embed,
        hidden_act = "gelu",
        layer_norm_eps = 1e-6,
      },
      backbone_channel_list = channels,
      backbone_feature_sizes = sizes,
      fpn_hidden_size = width,
      fpn_kernel_size = 1,
      fpn_stride = 1,
      fpn_padding = 0,
      fpn_top_down_levels = { 2, 3 },
      num_feature_levels = 3,
      hidden_act = "gelu",
      layer_norm_eps = 1e-6,
    },
    prompt_encoder_config = {
      model_type = "sam2_prompt_encoder",
      hidden_size = shape("sam_prompt_encoder.no_mask_embed.weight", 2)[2],
      image_size = IMAGE_SIZE,
      patch_size = 16,
      mask_input_channels = shape("sam_prompt_encoder.mask_downscaling.3.weight", 4)[1],
      num_point_embeddings = POINT_COUNT,
      hidden_act = "gelu",
      layer_norm_eps = 1e-6,
      scale = 1,
    },
    mask_decoder_config = {
      model_type = "sam2_mask_decoder",
      hidden_size = cross[2],
      hidden_act = "gelu",
      mlp_dim = shape(DECODER .. "transformer.layers.0.mlp.layers.0.weight", 2)[1],
      num_hidden_layers = layers,
      num_attention_heads = 8,
      attention_downsample_rate = cross[2] / cross[1],
      num_multimask_outputs = shape(DECODER .. "mask_tokens.weight", 2)[1] - 1,
      iou_head_depth = iou_depth,
      iou_head_hidden_dim = shape(DECODER .. "iou_prediction_head.layers.0.weight", 2)[1],
      dynamic_multimask_via_stability = true,
      dynamic_multimask_stability_delta = 0.05,
      dynamic_multimask_stability_thresh = 0.98,
    },
  }
end)

return M
