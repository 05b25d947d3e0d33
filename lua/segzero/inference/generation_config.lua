-- generation.lua - how a model answers when nobody says: generation_config.json, read as transformers' generate reads it.
--
--   local file = generation.read(dir)             the known keys of generation_config.json, checked; {} without the file
--   local opts = generation.options(file, given)  what rollout.generate takes: what is given, else the file, else the default
--   generation.echo = function(i, piece) end      set by the prompt of ./segzero: shows the answer of a call that has no on_text
--
-- Keys: do_sample, temperature, top_k, top_p, repetition_penalty, max_new_tokens, eos_token_id, stop_strings. Defaults are
-- transformers': greedy, and when sampling temperature 1, top_k 50, top_p 1; but max_new_tokens is 512, not max_length 20.
-- A temperature that is given decides by itself: 0 is greedy, above it is sampling. So does n > 1, which transformers refuses
-- when greedy: several answers are asked for because they differ.
-- Leaves out: beams, min_p, max_length, n-gram bans and the other processors; the file may name them, they have no effect.

local cjson = require "cjson"
local files = require "segzero.core.files"

local M = {}

local DEFAULTS = { repetition_penalty = 1, max_new_tokens = 512 }
local SAMPLING = { temperature = 1, top_k = 50, top_p = 1 }

local function is_number(v) return type(v) == "number" and v == v end
local function is_whole(v) return is_number(v) and v % 1 == 0 end
local function is_text(v) return type(v) == "string" and v ~= "" end

local function all(v, good)
  if type(v) ~= "table" then return good(v) end
  for _, x in ipairs(v) do
    if not good(x) then return false end
  end
  return #v > 0
end

-- What a call and generation_config.json may say, in the order of checking; call: only a call.
local KEYS = {
  { "n", "a whole number from 1", function(v) return is_whole(v) and v >= 1 end, call = true },
  { "seed", "a whole number", is_whole, call = true },
  { "do_sample", "true or false", function(v) return type(v) == "boolean" end },
  { "temperature", "a number from 0", function(v) return is_number(v) and v >= 0 end },
  { "top_k", "a whole number", is_whole },
  { "top_p", "a number", is_number },
  { "repetition_penalty", "a number over 0", function(v) return is_number(v) and v > 0 end },
  { "max_new_tokens", "a whole number from 1", function(v) return is_whole(v) and v >= 1 end },
  { "eos_token_id", "a token id or a list of them", function(v) return all(v, function(x) return is_whole(x) and x >= 0 end) end },
  { "stop_strings", "a text or a list of texts", function(v) return all(v, is_text) end },
}

local function listed(v)
  if v == nil or type(v) == "table" then return v end
  return { v }
end

function M.read(dir)
  local path = dir .. "/generation_config.json"
  local text = files.read(path)
  if not text then return {} end
  local ok, json = pcall(cjson.decode, text)
  if not ok or type(json) ~= "table" then error(path .. ": " .. (ok and "not a JSON object" or tostring(json)), 0) end
  local out = {}
  for _, k in ipairs(KEYS) do
    local key, expected, good = unpack(k)
    local v = json[key]
    if not k.call and v ~= nil and v ~= cjson.null then
      if not good(v) then error(("%s: %s is %s, expected %s"):format(path, key, type(v) == "table" and "a list or object" or tostring(v), expected), 0) end
      out[key] = v
    end
  end
  out.eos_token_id, out.stop_strings = listed(out.eos_token_id), listed(out.stop_strings)
  return out
end

function M.options(file, given)
  local opts = {}
  if given ~= nil and type(given) ~= "table" then error("generate: options are a table, got " .. tostring(given), 0) end
  for k, v in pairs(given or {}) do opts[k] = v end
  for _, k in ipairs(KEYS) do
    local key, expected, good = unpack(k)
    if opts[key] ~= nil and not good(opts[key]) then error(("generate: %s is %s, expected %s"):format(key, tostring(opts[key]), expected), 0) end
  end
  local sampling = opts.do_sample
  if sampling == nil and opts.temperature then sampling = opts.temperature > 0 end
  if sampling == nil and (opts.n or 1) > 1 then sampling = true end
  if sampling == nil then sampling = file.do_sample or false end
  opts.do_sample = nil
  if sampling then
    for key, default in pairs(SAMPLING) do opts[key] = opts[key] or file[key] or default end
  else
    opts.temperature, opts.top_k, opts.top_p = 0, nil, nil
  end
  for key, default in pairs(DEFAULTS) do opts[key] = opts[key] or file[key] or default end
  opts.stop_strings = listed(opts.stop_strings) or file.stop_strings
  opts.stop_ids = opts.stop_ids or file.eos_token_id
  return opts
end

return M
