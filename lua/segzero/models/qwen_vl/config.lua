-- config.lua - config.json of Qwen2-VL and Qwen2.5-VL: checked, with transformers' defaults,
-- as the C struct sz_qwen_config.
--
--   local c = qwen_config.parse(json, path)    raises one line: path, key, value, expected
--   qwen_config.token_ids(json, path) -> {image_token_id =, ...}
--   qwen_config.stop_ids(json, path) -> list of ids or nil: eos_token_id
--   qwen_config.value(t, key)                  t[key] of a JSON table; nil for null
--
-- Newer files nest the language model's keys under text_config; both forms are read. Which keys are
-- read, ignored or refused: known_keys.lua. Every number has a range, so that nothing is allocated
-- for an impossible one. Leaves out: sliding windows, other activations, other rotary types than
-- default, linear and yarn; they are refused by name.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local known_keys = require "segzero.models.known_keys"
local rope = require "segzero.models.qwen_vl.rope"

core.declare "models/qwen_vl/qwen_vl.h"
local C = core.C

local M = {}

-- Values of transformers' config classes for keys that are missing.
local TEXT_DEFAULTS = {
  hidden_size = 8192, intermediate_size = 29568, num_hidden_layers = 80, num_attention_heads = 64,
  num_key_value_heads = 8, vocab_size = 152064, rms_norm_eps = 1e-5,
  max_position_embeddings = 32768, max_window_layers = 80,
}
local ROPE_THETA = 1e6
local VISION_ROPE_THETA = 1e4
local MROPE_SECTION = { 16, 24, 24 }

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

-- The largest value of each size; the least is 1. They are far over any model of today, and small
-- enough that no product of them overflows.
local MOST = {
  hidden_size = 2 ^ 17, intermediate_size = 2 ^ 20, num_hidden_layers = 1024,
  num_attention_heads = 4096, num_key_value_heads = 4096, vocab_size = 2 ^ 24, head_dim = 1024,
  max_position_embeddings = 2 ^ 31 - 1, original_max_position_embeddings = 2 ^ 31 - 1,
  depth = C.SZ_QWEN_MAX_DEPTH, embed_dim = 2 ^ 17, num_heads = 4096, in_channels = 64,
  patch_size = 1024, spatial_merge_size = 64, temporal_patch_size = 64, window_size = 2 ^ 20,
  out_hidden_size = 2 ^ 17,
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

local function is_whole(v, least, most)
  return type(v) == "number" and v % 1 == 0 and v >= least and v <= most
end

-- A reader of one object. size(key, alias): a whole number in its range, or the default.
local function reader(path, object, defaults, prefix)
  return function(key, alias)
    local v = first(value(object, key), value(object, alias), defaults[key])
    if not is_whole(v, 1, MOST[key]) then
      local expected = ("a whole number from 1 to %.0f"):format(MOST[key])
      known_keys.bad(path, prefix .. key, v, expected)
    end
    return v
  end
end

-- ---- the language model ----
local ROPE_TYPE = { default = C.SZ_ROPE_DEFAULT, linear = C.SZ_ROPE_LINEAR, yarn = C.SZ_ROPE_YARN }

local function parse_rope(c, path, text, prefix, size)
  local original
  if value(text, "original_max_position_embeddings") then
    original = size "original_max_position_embeddings"
  end
  local r = rope.read(path, text, {
    theta = ROPE_THETA, head_dim = c.head_dim, max_length = size "max_position_embeddings",
    original_length = original, types = ROPE_TYPE, prefix = prefix,
  })
  c.rope_type = ROPE_TYPE[r.type]
  c.rope_theta, c.rope_factor, c.rope_attention = r.theta, r.factor, r.attention
  c.rope_low, c.rope_high = r.low, r.high

  local section = r.section or MROPE_SECTION
  if type(section) ~= "table" or #section ~= 3 then
    known_keys.bad(path, r.where .. "mrope_section", section, "three whole numbers")
  end
  for i = 1, 3 do
    if not is_whole(section[i], 0, MOST.head_dim) then
      known_keys.bad(path, r.where .. "mrope_section", section, "three whole numbers")
    end
    c.mrope_section[i - 1] = section[i]
  end
end

-- A layer with a sliding window is an error. Without one the settings of windows change nothing.
local function check_windows(path, text, prefix, layers)
  local uses = value(text, "use_sliding_window")
  if uses ~= nil and type(uses) ~= "boolean" then
    known_keys.bad(path, prefix .. "use_sliding_window", uses, "true or false")
  end
  local types = value(text, "layer_types")
  if types ~= nil then
    if type(types) ~= "table" then
      known_keys.bad(path, prefix .. "layer_types", types, "a list")
    end
    for i, kind in ipairs(types) do
      if kind ~= "full_attention" then
        known_keys.bad(path, ("%slayer_types[%d]"):format(prefix, i - 1), kind,
          "'full_attention' (other kinds of attention are not computed)")
      end
    end
    if #types ~= layers then
      local expected = ("%d entries, one for each layer"):format(layers)
      known_keys.bad(path, prefix .. "layer_types", types, expected)
    end
    return
  end
  if not uses or value(text, "sliding_window") == nil and text.sliding_window ~= nil then return end
  local from = first(value(text, "max_window_layers"), TEXT_DEFAULTS.max_window_layers)
  if type(from) ~= "number" then
    known_keys.bad(path, prefix .. "max_window_layers", from, "a whole number")
  end
  if from < layers then
    local expected = ("false (max_window_layers is %g: the layers from there to %d would have a "
      .. "sliding window, which is not computed)"):format(from, layers)
    known_keys.bad(path, prefix .. "use_sliding_window", true, expected)
  end
end

local function parse_text(c, path, json)
  local text = json
  local prefix = ""
  if value(json, "text_config") ~= nil then
    text = json.text_config
    prefix = "text_config."
    if type(text) ~= "table" then known_keys.bad(path, "text_config", text, "an object") end
    known_keys.check(path, text, known_keys.QWEN_TEXT, prefix)
  end
  local size = reader(path, text, TEXT_DEFAULTS, prefix)
  c.hidden = size "hidden_size"
  c.intermediate = size "intermediate_size"
  c.layers = size "num_hidden_layers"
  c.heads = size "num_attention_heads"
  c.kv_heads = c.heads                    -- what null means
  if text.num_key_value_heads ~= cjson.null then c.kv_heads = size "num_key_value_heads" end
  c.vocab = size "vocab_size"
  local eps = first(value(text, "rms_norm_eps"), TEXT_DEFAULTS.rms_norm_eps)
  if type(eps) ~= "number" or not (eps >= 0 and eps <= 1) then
    known_keys.bad(path, prefix .. "rms_norm_eps", eps, "a number from 0 to 1")
  end
  c.rms_eps = eps

  -- transformers has the width of a head from these two; another head_dim ends in an error there.
  local per_head = c.hidden / c.heads
  if per_head % 1 ~= 0 then
    local expected = ("a divisor of hidden_size %d"):format(c.hidden)
    known_keys.bad(path, prefix .. "num_attention_heads", c.heads, expected)
  end
  local head_dim = first(value(text, "head_dim"), per_head)
  if head_dim ~= per_head or head_dim > MOST.head_dim then
    local expected = ("hidden_size / num_attention_heads, %g, and at most %d"):format(per_head,
      MOST.head_dim)
    known_keys.bad(path, prefix .. "head_dim", head_dim, expected)
  end
  c.head_dim = head_dim

  c.tied = 0
  for name, v in pairs {
    tie_word_embeddings = value(json, "tie_word_embeddings"),
    [prefix .. "tie_word_embeddings"] = value(text, "tie_word_embeddings"),
  } do
    if type(v) ~= "boolean" then known_keys.bad(path, name, v, "true or false") end
    if v then c.tied = 1 end
  end
  parse_rope(c, path, text, prefix, size)
  check_windows(path, text, prefix, c.layers)
end

-- ---- the vision tower ----
local function parse_blocks(c, path, vision, defaults)
  local full = first(value(vision, "fullatt_block_indexes"), defaults.fullatt_block_indexes)
  if type(full) ~= "table" then
    known_keys.bad(path, "vision_config.fullatt_block_indexes", full, "a list of whole numbers")
  end
  for _, i in pairs(full) do
    if not is_whole(i, 0, 2 ^ 31) then
      known_keys.bad(path, "vision_config.fullatt_block_indexes", full, "a list of whole numbers")
    end
    if i < C.SZ_QWEN_MAX_DEPTH then c.v_full[i] = 1 end
  end
end

local function parse_vision(c, path, json, kind)
  local vision = first(value(json, "vision_config"), {})
  if type(vision) ~= "table" then known_keys.bad(path, "vision_config", vision, "an object") end
  known_keys.check(path, vision, known_keys.QWEN_VISION, "vision_config.")
  local defaults = VISION_DEFAULTS[kind]
  local size = reader(path, vision, defaults, "vision_config.")
  local act = first(value(vision, "hidden_act"), defaults.hidden_act)
  if act ~= defaults.hidden_act then
    known_keys.bad(path, "vision_config.hidden_act", act, ("'%s'"):format(defaults.hidden_act))
  end
  c.v_depth = size("depth", "num_hidden_layers")
  c.v_heads = size("num_heads", "num_attention_heads")
  c.v_channels = size("in_channels", "in_chans")
  c.v_patch = size "patch_size"
  c.v_merge = size "spatial_merge_size"
  c.v_temporal = size "temporal_patch_size"
  c.v_rope_theta = rope.read(path, vision, { theta = VISION_ROPE_THETA, prefix = "vision_config.",
    types = { default = true, axial = true } }).theta

  if kind == "qwen2_vl" then
    c.family = C.SZ_QWEN2_VL
    c.v_hidden = size "embed_dim"
    c.v_out = size "hidden_size"
    local ratio = first(value(vision, "mlp_ratio"), defaults.mlp_ratio)
    local inner = type(ratio) == "number" and math.floor(c.v_hidden * ratio)
    if not is_whole(inner, 1, MOST.intermediate_size) then
      known_keys.bad(path, "vision_config.mlp_ratio", ratio,
        "a number that makes a width with embed_dim")
    end
    c.v_intermediate = inner
    return
  end
  c.family = C.SZ_QWEN2_5_VL
  c.v_hidden = size "hidden_size"
  c.v_out = size "out_hidden_size"
  c.v_intermediate = size "intermediate_size"
  c.v_window = size "window_size"
  parse_blocks(c, path, vision, defaults)
end

-- ---- all ----
-- AWQ, GPTQ, bitsandbytes, fp8, compressed-tensors: all have this key.
local function check_quantised(path, json)
  for _, key in ipairs { "quantization_config", "compression_config" } do
    local q = value(json, key) or value(value(json, "text_config"), key)
    if type(q) == "table" and next(q) ~= nil then
      local method = value(q, "quant_method") or value(q, "format") or "a method without a name"
      error(("%s: %s says that the weights are quantised (quant_method %s), which is not read: "
        .. "take the folder in bf16; dtype int8 of segzero quantises it"):format(path, key,
        known_keys.name(method)), 0)
    end
  end
end

function M.parse(json, path)
  path = path or "config.json"
  if type(json) ~= "table" then error(path .. ": not a JSON object", 0) end
  local kind = value(json, "model_type")
  if not VISION_DEFAULTS[kind] then
    local message = "model_type %s is not supported (qwen2_vl and qwen2_5_vl are)"
    error(("%s: %s"):format(path, message:format(known_keys.name(kind))), 0)
  end
  check_quantised(path, json)
  known_keys.check(path, json, known_keys.QWEN)
  local c = ffi.new "sz_qwen_config"
  parse_text(c, path, json)
  parse_vision(c, path, json, kind)
  return c
end

local function is_id(v) return is_whole(v, 0, 2 ^ 31 - 1) end

function M.token_ids(json, path)
  local ids = {}
  for name, default in pairs(TOKEN_DEFAULTS) do
    local id = first(value(json, name), default)
    if not is_id(id) then known_keys.bad(path or "config.json", name, id, "a token id") end
    ids[name] = id
  end
  return ids
end

function M.stop_ids(json, path)
  local ids = first(value(json, "eos_token_id"), value(value(json, "text_config"), "eos_token_id"))
  if ids == nil then return nil end
  if is_id(ids) then return { ids } end
  local good = type(ids) == "table" and #ids > 0
  for _, id in ipairs(good and ids or {}) do good = good and is_id(id) end
  if not good then
    known_keys.bad(path or "config.json", "eos_token_id", ids, "a token id or a list of them")
  end
  return ids
end

return M
