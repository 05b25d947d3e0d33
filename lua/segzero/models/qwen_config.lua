-- qwen_config.lua - config.json of Qwen2-VL and Qwen2.5-VL: checked, with transformers' defaults,
-- as the C struct sz_qwen_config.
--
--   local c = qwen_config.parse(json)          raises a message that names the key and its value
--   qwen_config.token_ids(json) -> {image_token_id =, ...}
--   qwen_config.value(t, key)                  t[key] of a JSON table; nil for null
--
-- Newer files nest the language model's keys under text_config; both forms are read.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"

core.declare "models/qwen_vl/qwen_vl.h"
local C = core.C

local M = {}

-- Values of transformers' config classes for keys that are missing.
local TEXT_DEFAULTS = {
  hidden_size = 8192, intermediate_size = 29568, num_hidden_layers = 80, num_attention_heads = 64,
  num_key_value_heads = 8, vocab_size = 152064, rms_norm_eps = 1e-5, rope_theta = 1e6,
}
-- By model_type. In qwen2_vl the tower's own width is embed_dim, and hidden_size is that of its
-- features.
local VISION_DEFAULTS = {
  qwen2_5_vl = {
    depth = 32, hidden_size = 3584, hidden_act = "silu", intermediate_size = 3420, num_heads = 16,
    in_channels = 3, patch_size = 14, spatial_merge_size = 2, temporal_patch_size = 2,
    window_size = 112, out_hidden_size = 3584, fullatt_block_indexes = { 7, 15, 23, 31 },
  },
  qwen2_vl = {
    depth = 32, embed_dim = 1280, hidden_size = 3584, hidden_act = "quick_gelu", mlp_ratio = 4,
    num_heads = 16, in_channels = 3, patch_size = 14, spatial_merge_size = 2,
    temporal_patch_size = 2,
  },
}
local TOKEN_DEFAULTS = {
  vision_token_id = 151654, image_token_id = 151655, video_token_id = 151656,
  vision_start_token_id = 151652, vision_end_token_id = 151653,
}

function M.value(t, key)
  if type(t) ~= "table" then return nil end
  local v = t[key]
  if v == cjson.null then return nil end
  return v
end
local value = M.value

local function first(...)
  for i = 1, select("#", ...) do
    local v = select(i, ...)
    if v ~= nil then return v end
  end
end

-- Sizes are whole and fit the struct's 32 bits.
local REAL = { rms_norm_eps = true, rope_theta = true, mlp_ratio = true }
local function is_size(v, key)
  if type(v) ~= "number" then return false end
  return REAL[key] or v % 1 == 0 and math.abs(v) < 2 ^ 31
end

local function fail(...) error("config.json: " .. string.format(...), 0) end

local function parse_text(c, json)
  local text = value(json, "text_config")
  local function number(key)
    local v = first(value(text, key), value(json, key), TEXT_DEFAULTS[key])
    if not is_size(v, key) then fail("%s is %s, expected a number", key, tostring(v)) end
    return v
  end
  c.hidden = number "hidden_size"
  c.intermediate = number "intermediate_size"
  c.layers = number "num_hidden_layers"
  c.heads = number "num_attention_heads"
  c.kv_heads = number "num_key_value_heads"
  c.vocab = number "vocab_size"
  c.rms_eps = number "rms_norm_eps"
  local per_head = math.floor(c.hidden / math.max(c.heads, 1))
  c.head_dim = first(value(text, "head_dim"), value(json, "head_dim"), per_head)
  local tied = first(value(json, "tie_word_embeddings"), value(text, "tie_word_embeddings"), false)
  c.tied = tied and 1 or 0

  local rope = first(value(text, "rope_parameters"), value(json, "rope_parameters"),
    value(text, "rope_scaling"), value(json, "rope_scaling"), {})
  c.rope_theta = first(value(rope, "rope_theta"), value(text, "rope_theta"),
    value(json, "rope_theta"), TEXT_DEFAULTS.rope_theta)
  local section = value(rope, "mrope_section")
  if not section then fail "rope_scaling.mrope_section is missing" end
  for i = 1, 3 do
    local pairs_of_axis = type(section) == "table" and section[i]
    if not is_size(pairs_of_axis) then
      fail "rope_scaling.mrope_section is not three whole numbers"
    end
    c.mrope_section[i - 1] = pairs_of_axis
  end
end

local function parse_vision(c, json, kind)
  local vision = value(json, "vision_config") or {}
  local defaults = VISION_DEFAULTS[kind]
  local function number(key, alias)
    local v = first(value(vision, key), value(vision, alias), defaults[key])
    if not is_size(v, key) then
      fail("vision_config.%s is %s, expected a number", key, tostring(v))
    end
    return v
  end
  local act = value(vision, "hidden_act") or defaults.hidden_act
  if act ~= defaults.hidden_act then
    fail("vision_config.hidden_act is %s, expected %s", tostring(act), defaults.hidden_act)
  end
  c.v_depth = number "depth"
  c.v_heads = number "num_heads"
  c.v_channels = number("in_channels", "in_chans")
  c.v_patch = number "patch_size"
  c.v_merge = number "spatial_merge_size"
  c.v_temporal = number "temporal_patch_size"

  if kind == "qwen2_vl" then
    c.family = C.SZ_QWEN2_VL
    c.v_hidden = number "embed_dim"
    c.v_out = number "hidden_size"
    local inner = math.floor(c.v_hidden * number "mlp_ratio")
    if not is_size(inner) then
      fail("vision_config.mlp_ratio is %s", tostring(number "mlp_ratio"))
    end
    c.v_intermediate = inner
    return
  end
  c.family = C.SZ_QWEN2_5_VL
  c.v_hidden = number "hidden_size"
  c.v_out = number "out_hidden_size"
  c.v_intermediate = number "intermediate_size"
  c.v_window = number "window_size"
  local full = first(value(vision, "fullatt_block_indexes"), defaults.fullatt_block_indexes)
  for _, i in ipairs(full) do
    if i >= 0 and i < C.SZ_QWEN_MAX_DEPTH then c.v_full[i] = 1 end
  end
end

function M.parse(json)
  if type(json) ~= "table" then fail "not a JSON object" end
  local kind = value(json, "model_type")
  if not VISION_DEFAULTS[kind] then
    local message = "model_type %s is not supported (qwen2_vl and qwen2_5_vl are)"
    error(message:format(tostring(kind)), 0)
  end
  local c = ffi.new "sz_qwen_config"
  parse_text(c, json)
  parse_vision(c, json, kind)
  return c
end

function M.token_ids(json)
  local ids = {}
  for name, default in pairs(TOKEN_DEFAULTS) do ids[name] = value(json, name) or default end
  return ids
end

return M
