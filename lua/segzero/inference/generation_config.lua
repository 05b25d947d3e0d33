-- generation_config.lua - how a model answers when nothing is said: generation_config.json, read as
-- transformers' generate reads it.
--
--   local file = generation.read(dir)             the known keys of generation_config.json,
--                                                 checked; without the file those of config.json
--   local opts = generation.options(file, given)  options of rollout.generate: what is given, else
--                                                 the file's, else the default
--   generation.check(options, label)              an error for a value that has no meaning, in one
--                                                 line that begins with the label
--   generation.echo = function(i, piece) end      set by the prompt of ./segzero: shows the answer
--                                                 of a call that has no on_text
--   generation.on_stopped = function(answers) end set by it too: the answers so far of a call that
--                                                 an error or Ctrl-C ended
--
-- Keys: do_sample, temperature, top_k, top_p, repetition_penalty, max_new_tokens, min_new_tokens,
-- min_length, eos_token_id, stop_strings. Defaults are transformers': greedy, and when sampling
-- temperature 1, top_k 50, top_p 1; but max_new_tokens is 512, not max_length 20. A given
-- temperature decides by itself: 0 is greedy, above it is sampling. n > 1 means sampling too, which
-- transformers refuses when greedy: several answers are asked for because they differ. Leaves out:
-- beams, min_p, max_length, n-gram bans and the other processors; if the file names one of them, a
-- note says that it has no effect (known_keys.lua).

local cjson = require "cjson"
local files = require "segzero.core.files"
local options = require "segzero.core.options"
local known_keys = require "segzero.models.known_keys"

local M = {}

local DEFAULTS = { repetition_penalty = 1, max_new_tokens = 512 }
local SAMPLING = { temperature = 1, top_k = 50, top_p = 1 }

-- Options of rollout.generate; vl:generate has two more.
M.ROLLOUT = {
  "n", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "min_new_tokens",
  "min_length", "seed", "row_ids",
  "stop_ids", "stop_strings", "ignore_eos", "on_token", "on_text", "on_answer", "on_group",
  "cache_gib",
  "gpu_memory_utilization", "keep_vision",
}
local names = { "do_sample", "eos_token_id" }
for _, name in ipairs(M.ROLLOUT) do names[#names + 1] = name end
M.OPTIONS = options.set(names)

-- ---- values ----
local function is_number(v) return type(v) == "number" and v == v end
local function is_whole(v) return is_number(v) and v % 1 == 0 end
local function is_text(v) return type(v) == "string" and v ~= "" end
local function is_token_id(v) return is_whole(v) and v >= 0 end
local function is_count(most)
  return function(v) return is_whole(v) and v >= 1 and v <= most end
end

-- One value, or a list of them.
local function one_or_more(good)
  return function(v)
    if type(v) ~= "table" then return good(v) end
    for _, x in ipairs(v) do
      if not good(x) then return false end
    end
    return #v > 0
  end
end

local function list_of(v)
  if v == nil or type(v) == "table" then return v end
  return { v }
end

-- What a call and generation_config.json may say, in the order of checking; call: only a call.
local KEYS = {
  { "n", "a whole number from 1 to 1048576", is_count(2 ^ 20), call = true },
  { "seed", "a whole number", is_whole, call = true },
  { "do_sample", "true or false", function(v) return type(v) == "boolean" end },
  { "temperature", "a number from 0", function(v) return is_number(v) and v >= 0 end },
  { "top_k", "a whole number from -1", function(v) return is_whole(v) and v >= -1 end },
  { "top_p", "a number from 0 to 1", function(v) return is_number(v) and v >= 0 and v <= 1 end },
  { "repetition_penalty", "a number over 0", function(v) return is_number(v) and v > 0 end },
  { "max_new_tokens", "a whole number from 1 to 16777216", is_count(2 ^ 24) },
  { "min_new_tokens", "a whole number from 0", is_token_id },
  { "min_length", "a whole number from 0", is_token_id },
  { "eos_token_id", "a token id or a list of them", one_or_more(is_token_id) },
  { "stop_strings", "a text or a list of texts", one_or_more(is_text) },
}

-- ---- the file ----
-- The keys of config.json that are about generation: older folders have them there.
local function from_config(path)
  local json = files.read_json_object(path, true)
  if not json then return nil end
  local known = known_keys.GENERATION
  local out = {}
  for _, t in ipairs { type(json.text_config) == "table" and json.text_config or {}, json } do
    for key, v in pairs(t) do
      if known.read[key] or known.noted[key] then out[key] = v end
    end
  end
  return out
end

-- config.json is read where there is no generation_config.json, as in transformers.
function M.read(dir)
  local path = dir .. "/generation_config.json"
  local json = files.read_json_object(path, true)
  if not json then
    path = dir .. "/config.json"
    json = from_config(path)
  end
  if not json then return {} end
  known_keys.check(path, json, known_keys.GENERATION)
  local out = {}
  for _, k in ipairs(KEYS) do
    local key, expected, good = unpack(k)
    local v = json[key]
    if v == cjson.null or k.call then v = nil end
    if v ~= nil and not good(v) then known_keys.bad(path, key, v, expected) end
    out[key] = v
  end
  out.eos_token_id = list_of(out.eos_token_id)
  out.stop_strings = list_of(out.stop_strings)
  return out
end

-- ---- a call ----
function M.check(opts, label)
  for _, k in ipairs(KEYS) do
    local key, expected, good = unpack(k)
    if opts[key] ~= nil and not good(opts[key]) then
      error(("%s%s is %s, expected %s"):format(label or "", key, tostring(opts[key]), expected), 0)
    end
  end
end

-- Is the answer sampled, or greedy?
local function is_sampled(opts, file)
  if opts.do_sample ~= nil then return opts.do_sample end
  if opts.temperature then return opts.temperature > 0 end
  if (opts.n or 1) > 1 then return true end
  return file.do_sample or false
end

function M.options(file, given)
  if given ~= nil and type(given) ~= "table" then
    error("generate: options are a table, got " .. tostring(given), 0)
  end
  local opts = {}
  for k, v in pairs(given or {}) do opts[k] = v end
  M.check(opts, "generate: ")
  if is_sampled(opts, file) then
    for key, default in pairs(SAMPLING) do opts[key] = opts[key] or file[key] or default end
  else
    opts.temperature = 0
    opts.top_k = nil
    opts.top_p = nil
  end
  for key, default in pairs(DEFAULTS) do opts[key] = opts[key] or file[key] or default end
  for _, key in ipairs { "min_new_tokens", "min_length" } do opts[key] = opts[key] or file[key] end
  opts.stop_strings = list_of(opts.stop_strings) or file.stop_strings
  opts.stop_ids = opts.stop_ids or list_of(opts.eos_token_id) or file.eos_token_id
  opts.do_sample = nil
  opts.eos_token_id = nil
  return opts
end

return M
