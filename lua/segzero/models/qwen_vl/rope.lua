-- rope.lua - the rotary settings of a config.json: rope_theta, rope_scaling and rope_parameters, in
-- the spellings of transformers 4.5x and 5.
--
--   local r = rope.read(path, config, { theta = 1e6, head_dim =, max_length =, original_length =,
--                                       types = { default = true, linear = true, yarn = true },
--                                       prefix = "text_config." })
--     -> {type = "default" | "linear" | "yarn", theta =, factor =, low =, high =, attention =,
--         section = what mrope_section is, where = the name of its object, for messages}
--
-- config is the object that has these keys; nil values count as absent. linear divides every
-- frequency by factor. yarn divides those of the pairs after `high` by it, leaves those before
-- `low`, mixes between, and multiplies cos and sin by attention. A type of rope that is not
-- computed is an error that names it.
-- Leaves out: dynamic, longrope, llama3, proportional; rotation of a part of the head.

local cjson = require "cjson"
local known_keys = require "segzero.models.known_keys"

local M = {}

local function get(t, key)
  local v = t[key]
  if v == cjson.null then return nil end
  return v
end

local KEYS = {
  read = {
    type = true, rope_type = true, rope_theta = true, mrope_section = true, factor = true,
    original_max_position_embeddings = true, attention_factor = true, beta_fast = true,
    beta_slow = true, mscale = true, mscale_all_dim = true, truncate = true,
  },
  ignored = {},
  only = { partial_rotary_factor = { 1 }, mrope_interleaved = { false } },
  noted = {},
}

-- The object with the settings and its name: rope_scaling if it says anything, as in transformers.
local function find(path, config, prefix)
  for _, name in ipairs { "rope_scaling", "rope_parameters" } do
    local found = get(config, name)
    local where = prefix .. name
    if found ~= nil and type(found) ~= "table" then
      known_keys.bad(path, where, found, "an object")
    end
    if found and next(found) ~= nil then return found, where .. "." end
  end
  return {}, prefix .. "rope_scaling."
end

-- "mrope" is the old name of default. 4.5x reads `type` first and 5 rope_type: they must agree.
local function type_of(path, rope, where, types)
  local function name(key)
    local v = get(rope, key)
    if v == "mrope" then v = "default" end
    if v ~= nil and not types[v] then
      local good = {}
      for t in pairs(types) do good[#good + 1] = t end
      table.sort(good)
      local expected = table.concat(good, ", ") .. " (other kinds are not computed)"
      known_keys.bad(path, where .. key, v, expected)
    end
    return v
  end
  local new = name "rope_type"
  local old = name "type"
  if new and old and new ~= old then
    known_keys.bad(path, where .. "type", rope.type, "what rope_type says, " .. new)
  end
  return new or old or "default"
end

-- ---- yarn ----
local function log_scale(scale, m)
  if scale <= 1 then return 1 end
  return 0.1 * (m or 1) * math.log(scale) + 1
end

-- The pair whose wave turns `rotations` times within the original context.
local function correction(rotations, dim, theta, length)
  return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))
end

-- number(key, default, least, most): a checked number of the object.
local function read_yarn(out, rope, number, opts)
  local original = opts.original_length
    or number("original_max_position_embeddings", opts.max_length, 1, 2 ^ 31)
  out.factor = number("factor", opts.max_length / original, 1e-3, 1e6)
  local scaled = log_scale(out.factor)
  local m = number("mscale", 0, 0, 1e3)
  local all = number("mscale_all_dim", 0, 0, 1e3)
  if m ~= 0 and all ~= 0 then scaled = log_scale(out.factor, m) / log_scale(out.factor, all) end
  out.attention = number("attention_factor", scaled, 0, 1e3)

  local dim = opts.head_dim
  local low = correction(number("beta_fast", 32, 1e-6, 1e9), dim, out.theta, original)
  local high = correction(number("beta_slow", 1, 1e-6, 1e9), dim, out.theta, original)
  if get(rope, "truncate") ~= false then
    low = math.floor(low)
    high = math.ceil(high)
  end
  out.low = math.max(low, 0)
  out.high = math.min(high, dim - 1)
  if out.low == out.high then out.high = out.high + 0.001 end
end

-- ---- all ----
function M.read(path, config, opts)
  local prefix = opts.prefix or ""
  local rope, where = find(path, config, prefix)
  known_keys.check(path, rope, KEYS, where)

  local function number(key, default, least, most)
    local v = get(rope, key)
    if v == nil then v = default end
    if type(v) ~= "number" or not (v >= least and v <= most) then
      known_keys.bad(path, where .. key, v, ("a number from %g to %g"):format(least, most))
    end
    return v
  end

  local out = { type = type_of(path, rope, where, opts.types), factor = 1, low = 0, high = 0,
    attention = 1 }
  local theta = get(config, "rope_theta")
  if get(rope, "rope_theta") == nil and theta ~= nil then
    if type(theta) ~= "number" or not (theta > 1 and theta <= 1e12) then
      known_keys.bad(path, prefix .. "rope_theta", theta, "a number over 1")
    end
    out.theta = theta
  else
    out.theta = number("rope_theta", opts.theta, 1.000001, 1e12)
  end
  out.section = get(rope, "mrope_section")
  out.where = where
  if out.type == "linear" then
    out.factor = number("factor", nil, 1e-3, 1e6)
  elseif out.type == "yarn" then
    if rope.factor == nil then known_keys.bad(path, where .. "factor", nil, "a number from 1") end
    read_yarn(out, rope, number, opts)
  end
  return out
end

return M
