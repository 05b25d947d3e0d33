-- added_tokens.lua - the added tokens of a tokenizer folder, from tokenizer.json and from the files
-- next to it that transformers reads as well.
--
--   local list = added_tokens.collect(dir, json, config, vocabulary)
--       json: of tokenizer.json; config: of tokenizer_config.json
--       vocabulary: {size = number of tokens, id = function(token) -> id or nil}
--     -> {{content =, id =, special =, normalized =}, ...}
--   added_tokens.content(value) -> the text of a token in a config: "<x>" or {content = "<x>"}
--   added_tokens.named(dir, config) -> {eos_token = "<x>", ...}
--
-- Order: tokenizer.json's list, by id; added_tokens_decoder of tokenizer_config.json (without that
-- key: added_tokens.json); then the tokens that the config names (eos_token, extra_special_tokens,
-- ...). A token that is there already takes the later flags. A new one gets the next free id,
-- whatever the file says, as in transformers.
-- Leaves out: tokens that strip the space around them or match whole words only: an error.

local cjson = require "cjson"
local files = require "segzero.core.files"
local known_keys = require "segzero.models.known_keys"
local notes = require "segzero.core.notes"

local M = {}

local NAMED = { "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
  "mask_token" }
local LISTS = { "additional_special_tokens", "extra_special_tokens" }

local function get(t, key)
  local v = t[key]
  if v == cjson.null then return nil end
  return v
end

function M.content(value)
  if type(value) == "table" then value = value.content end
  if type(value) == "string" then return value end
end

-- ---- one token ----
local FLAGS = { "lstrip", "rstrip", "single_word" }

-- A description in a file: {content =, special =, normalized =}, checked.
local function read_token(path, where, t)
  if type(t) ~= "table" then known_keys.bad(path, where, t, "an object") end
  if type(t.content) ~= "string" or t.content == "" then
    known_keys.bad(path, where .. ".content", t.content, "a text")
  end
  for _, key in ipairs { "special", "normalized", unpack(FLAGS) } do
    local v = get(t, key)
    if v ~= nil and type(v) ~= "boolean" then
      known_keys.bad(path, where .. "." .. key, v, "true or false")
    end
  end
  for _, key in ipairs(FLAGS) do
    if get(t, key) then
      error(("%s: %s: '%s' has %s, which is not handled"):format(path, known_keys.name(where),
        known_keys.name(t.content), key), 0)
    end
  end
  local special = get(t, "special") or false
  local normalized = get(t, "normalized")
  if normalized == nil then normalized = not special end
  return { content = t.content, special = special, normalized = normalized }
end

-- ---- the list ----
local List = {}
List.__index = List

local function new_list(vocabulary)
  return setmetatable({ vocabulary = vocabulary, largest = -1, by_content = {}, tokens = {} }, List)
end

-- The id that tokenizers gives a new token.
function List:free_id()
  return math.max(self.largest + 1, self.vocabulary.size)
end

-- wanted: the id in the file, or nil.
function List:put(path, where, token, wanted)
  local known = self.by_content[token.content]
  if known then
    known.special = token.special
    known.normalized = token.normalized
    return
  end
  token.id = self.vocabulary.id(token.content) or self:free_id()
  if wanted and wanted ~= token.id then
    notes.say(("%s: %s: '%s' has id %s; it gets the next free one, %d, as in transformers"):format(
      path, known_keys.name(where), known_keys.name(token.content), known_keys.show(wanted),
      token.id))
  end
  self.largest = math.max(self.largest, token.id)
  self.by_content[token.content] = token
  self.tokens[#self.tokens + 1] = token
end

local function is_id(v) return type(v) == "number" and v % 1 == 0 and v >= 0 and v < 2 ^ 24 end

local function put_file(list, path, tokens)
  if type(tokens) ~= "table" then known_keys.bad(path, "added_tokens", tokens, "a list") end
  local read = {}
  for i, t in ipairs(tokens) do
    local where = ("added_tokens[%d]"):format(i - 1)
    local token = read_token(path, where, t)
    if not is_id(t.id) then known_keys.bad(path, where .. ".id", t.id, "a token id") end
    read[i] = { i = i, id = t.id, token = token, where = where }
  end
  table.sort(read, function(a, b)
    if a.id ~= b.id then return a.id < b.id end
    return a.i < b.i
  end)
  for _, r in ipairs(read) do list:put(path, r.where, r.token, r.id) end
end

-- The entries of {id as text -> value} or {token -> id}, sorted by id.
local function by_id(path, where, t, id_of)
  if type(t) ~= "table" then known_keys.bad(path, where, t, "an object") end
  local out = {}
  for key, value in pairs(t) do
    local id = id_of(key, value)
    if not is_id(id) then
      known_keys.bad(path, ("%s['%s']"):format(where, tostring(key)), value, "a token and its id")
    end
    out[#out + 1] = { id = id, key = key, value = value }
  end
  table.sort(out, function(a, b)
    if a.id ~= b.id then return a.id < b.id end
    return tostring(a.key) < tostring(b.key)
  end)
  return out
end

local function put_decoder(list, path, decoder)
  local entries = by_id(path, "added_tokens_decoder", decoder, function(key)
    return tonumber(key)
  end)
  for _, e in ipairs(entries) do
    local where = ("added_tokens_decoder['%s']"):format(tostring(e.key))
    list:put(path, where, read_token(path, where, e.value), e.id)
  end
end

local function put_legacy(list, dir, special)
  local path = dir .. "/added_tokens.json"
  local json = files.read_json_object(path, true)
  if not json then return end
  local entries = by_id(path, "the object", json, function(_, value) return value end)
  for _, e in ipairs(entries) do
    local is_special = special[e.key] or false
    if not list.by_content[e.key] then
      list:put(path, e.key, { content = e.key, special = is_special, normalized = not is_special },
        e.id)
    end
  end
end

-- ---- named tokens ----
-- Keys of special_tokens_map.json count where tokenizer_config.json has no added_tokens_decoder.
local function with_map(dir, config)
  if get(config, "added_tokens_decoder") then return config end
  local map = files.read_json_object(dir .. "/special_tokens_map.json", true)
  if not map then return config end
  return setmetatable({}, { __index = function(_, key)
    local v = map[key]
    if v == nil then v = config[key] end
    return v
  end })
end

function M.named(dir, config)
  config = with_map(dir, config)
  local out = {}
  for _, key in ipairs(NAMED) do out[key] = M.content(config[key]) end
  return out
end

-- Texts that a config names as special, in transformers' order, each once.
local function special_texts(config)
  local out = {}
  local seen = {}
  local function add(value)
    local text = M.content(value)
    if text and text ~= "" and not seen[text] then
      seen[text] = true
      out[#out + 1] = text
    end
  end
  for _, key in ipairs(NAMED) do add(config[key]) end
  for _, key in ipairs(LISTS) do
    local list = config[key]
    if type(list) == "table" then
      for _, v in ipairs(list) do add(v) end
      local names = {}
      for name in pairs(list) do
        if type(name) == "string" then names[#names + 1] = name end
      end
      table.sort(names)
      for _, name in ipairs(names) do add(list[name]) end
    end
  end
  return out, seen
end

function M.collect(dir, json, config, vocabulary)
  local list = new_list(vocabulary)
  if json.added_tokens ~= nil and json.added_tokens ~= cjson.null then
    put_file(list, dir .. "/tokenizer.json", json.added_tokens)
  end
  local texts, seen = special_texts(with_map(dir, config))
  local decoder = get(config, "added_tokens_decoder")
  local path = dir .. "/tokenizer_config.json"
  if decoder ~= nil then
    put_decoder(list, path, decoder)
  else
    put_legacy(list, dir, seen)
  end
  for _, text in ipairs(texts) do
    local known = list.by_content[text]
    if known then
      known.special = true
    else
      list:put(path, text, { content = text, special = true, normalized = false })
    end
  end
  return list.tokens
end

return M
