-- config.lua - config.json of SAM2 (transformers' Sam2Config): checked, with its defaults, as
-- the C struct sz_sam2_config.
--
--   local c, selection = sam2_config.parse(json, path)
--       selection: {dynamic =, delta =, threshold =}, how the predictor chooses a single mask
--
-- A bad value is an error that names the key and the value. Every number has a range, so that
-- nothing is allocated for an impossible one. Which keys are read, ignored or refused:
-- known_keys.lua.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local known_keys = require "segzero.models.known_keys"

core.declare "models/sam2/sam2.h"
local C = core.C

local M = {}

-- Values of transformers' config classes for keys that are missing: the 2.1 tiny model.
local DEFAULTS = {
  backbone = {
    image_size = { 1024, 1024 }, patch_kernel_size = { 7, 7 }, patch_stride = { 4, 4 },
    patch_padding = { 3, 3 }, embed_dim_per_stage = { 96, 192, 384, 768 },
    num_attention_heads_per_stage = { 1, 2, 4, 8 }, blocks_per_stage = { 1, 2, 7, 2 },
    window_size_per_stage = { 8, 4, 14, 7 }, global_attention_blocks = { 5, 7, 9 },
    window_positional_embedding_background_size = { 7, 7 }, mlp_ratio = 4, layer_norm_eps = 1e-6,
    num_query_pool_stages = 3, query_stride = { 2, 2 }, hidden_act = "gelu", num_channels = 3,
  },
  vision = {
    fpn_hidden_size = 256, fpn_top_down_levels = { 2, 3 }, fpn_kernel_size = 1, fpn_stride = 1,
    fpn_padding = 0, num_feature_levels = 3,
  },
  prompt = { hidden_size = 256, patch_size = 16, mask_input_channels = 16,
  num_point_embeddings = 4 },
  decoder = {
    hidden_size = 256, mlp_dim = 2048, num_hidden_layers = 2, num_attention_heads = 8,
    attention_downsample_rate = 2, num_multimask_outputs = 3, iou_head_depth = 3,
    iou_head_hidden_dim = 256, dynamic_multimask_via_stability = true,
    dynamic_multimask_stability_delta = 0.05, dynamic_multimask_stability_thresh = 0.98,
  },
}
-- Values that the code assumes. Any other value in the file is an error.
local FIXED = {
  backbone = { num_query_pool_stages = 3, hidden_act = "gelu", num_channels = 3 },
  vision = { fpn_kernel_size = 1, fpn_stride = 1, fpn_padding = 0, num_feature_levels = 3 },
  prompt = { num_point_embeddings = 4 },
  decoder = { iou_head_depth = 3 },
}
-- The sections' names in the file, for messages.
local SECTION = {
  backbone = "backbone_config", vision = "vision_config", prompt = "prompt_encoder_config",
  decoder = "mask_decoder_config",
}
-- Lists that may have any length; the others are as long as their default.
local ANY_LENGTH = { global_attention_blocks = true, fpn_top_down_levels = true }

local function fail(...) error(string.format(...), 0) end

local function section(path, json, name, known)
  local t = json[name]
  if t == nil or t == cjson.null then t = {} end
  if type(t) ~= "table" then known_keys.bad(path, name, t, "an object") end
  known_keys.check(path, t, known, name .. ".")
  return t
end

-- The largest value of a number; 2 ^ 16 for a key that is not here. They are far over any released
-- model.
local MOST = {
  image_size = 4096, num_hidden_layers = 64, num_attention_heads = 4096, mlp_ratio = 64,
  blocks_per_stage = C.SZ_SAM2_MAX_BLOCKS, layer_norm_eps = 1, patch_kernel_size = 256,
  num_multimask_outputs = 64, mlp_dim = 2 ^ 20, embed_dim_per_stage = 2 ^ 15,
  window_size_per_stage = 4096, window_positional_embedding_background_size = 4096,
}
local FRACTIONS = { mlp_ratio = true, layer_norm_eps = true,
  dynamic_multimask_stability_delta = true, dynamic_multimask_stability_thresh = true }

local function is_in_range(v, key)
  if type(v) ~= "number" or not FRACTIONS[key] and v % 1 ~= 0 then return false end
  return v >= 0 and v <= (MOST[key] or 2 ^ 16)
end

local function is_like(v, default, key)
  if type(v) ~= type(default) then return false end
  if type(v) == "number" then return is_in_range(v, key) end
  if type(v) ~= "table" then return true end
  if not ANY_LENGTH[key] and #v ~= #default then return false end
  for _, x in pairs(v) do
    if not is_in_range(x, key) then return false end
  end
  return true
end

-- What a key may be, for messages.
local function expected(default, key)
  if type(default) == "boolean" then return "true or false" end
  if type(default) == "string" then return "a text" end
  local kind = "a whole number"
  if FRACTIONS[key] then kind = "a number" end
  local range = ("from 0 to %g"):format(MOST[key] or 2 ^ 16)
  if type(default) == "number" then return kind .. " " .. range end
  if ANY_LENGTH[key] then return "a list of whole numbers " .. range end
  return ("a list of %d whole numbers %s"):format(#default, range)
end

-- read(key): a key of a section, or its default. A single number stands for a square.
local function reader(path, name, t)
  return function(key)
    local v = t[key]
    local default = DEFAULTS[name][key]
    if v == nil or v == cjson.null then v = default end
    if type(default) == "table" and type(v) == "number" then v = { v, v } end
    if not is_like(v, default, key) then
      known_keys.bad(path, SECTION[name] .. "." .. key, v, expected(default, key))
    end
    return v
  end
end

-- Readers of all sections, with the built-in values checked.
local function readers(path, json)
  local known = known_keys.SAM2_SECTIONS
  local vision = section(path, json, "vision_config", known.vision)
  local tables = {
    backbone = section(path, vision, "backbone_config", known.backbone), vision = vision,
    prompt = section(path, json, "prompt_encoder_config", known.prompt),
    decoder = section(path, json, "mask_decoder_config", known.decoder),
  }
  local read = {}
  for name, t in pairs(tables) do
    read[name] = reader(path, name, t)
    for key, wanted in pairs(FIXED[name]) do
      local v = read[name](key)
      if v ~= wanted then
        fail("%s.%s is %s, only %s is supported", SECTION[name], key, tostring(v), tostring(wanted))
      end
    end
  end
  return read
end

local function parse_backbone(c, read)
  local function square(key)
    local v = read(key)
    if v[1] ~= v[2] then
      fail("backbone_config.%s is %d x %d, only squares are supported", key, v[1], v[2])
    end
    return v[1]
  end
  c.image_size = square "image_size"
  c.patch_kernel = square "patch_kernel_size"
  c.patch_stride = square "patch_stride"
  c.patch_padding = square "patch_padding"
  if square "query_stride" ~= 2 then fail "backbone_config.query_stride must be 2" end
  for i = 1, 4 do
    c.width[i - 1] = read "embed_dim_per_stage"[i]
    c.heads[i - 1] = read "num_attention_heads_per_stage"[i]
    c.blocks[i - 1] = read "blocks_per_stage"[i]
    c.windows[i - 1] = read "window_size_per_stage"[i]
  end
  for _, i in ipairs(read "global_attention_blocks") do
    if i < 0 or i >= C.SZ_SAM2_MAX_BLOCKS then
      fail("backbone_config.global_attention_blocks names block %d", i)
    end
    c.whole[i] = 1
  end
  for i = 1, 2 do c.background[i - 1] = read "window_positional_embedding_background_size"[i] end
  c.mlp_ratio = read "mlp_ratio"
  c.norm_eps = read "layer_norm_eps"
end

local function parse_heads(c, read)
  for _, level in ipairs(read.vision "fpn_top_down_levels") do
    if level < 0 or level > 3 then
      fail("vision_config.fpn_top_down_levels names level %d", level)
    end
    c.top_down[level] = 1
  end
  c.hidden = read.vision "fpn_hidden_size"
  for _, name in ipairs { "prompt", "decoder" } do
    local hidden = read[name] "hidden_size"
    if hidden ~= c.hidden then
      fail("%s.hidden_size %d differs from vision_config.fpn_hidden_size %d", SECTION[name], hidden,
        c.hidden)
    end
  end
  c.prompt_patch = read.prompt "patch_size"
  c.mask_channels = read.prompt "mask_input_channels"
  c.layers = read.decoder "num_hidden_layers"
  c.decoder_heads = read.decoder "num_attention_heads"
  c.downsample = read.decoder "attention_downsample_rate"
  c.mlp = read.decoder "mlp_dim"
  c.masks = read.decoder "num_multimask_outputs" + 1
  c.iou_hidden = read.decoder "iou_head_hidden_dim"
end

function M.parse(json, path)
  path = path or "config.json"
  if type(json) ~= "table" then fail("%s: not a JSON object", path) end
  local kind = json.model_type
  if kind ~= "sam2" and kind ~= "sam2_video" then
    fail("model_type %s is not supported (sam2 is)", known_keys.name(kind))
  end
  known_keys.check(path, json, known_keys.SAM2)
  local read = readers(path, json)
  local c = ffi.new "sz_sam2_config"
  parse_backbone(c, read.backbone)
  parse_heads(c, read)
  local prompt = json.prompt_encoder_config
  local side = type(prompt) == "table" and prompt.image_size or nil
  if type(side) == "table" then side = side[1] end
  if side ~= nil and side ~= cjson.null and side ~= c.image_size then
    known_keys.bad(path, "prompt_encoder_config.image_size", side,
      ("%d, as in vision_config.backbone_config"):format(c.image_size))
  end
  return c, {
    dynamic = read.decoder "dynamic_multimask_via_stability",
    delta = read.decoder "dynamic_multimask_stability_delta",
    threshold = read.decoder "dynamic_multimask_stability_thresh",
  }
end

return M
