-- tokenizer.lua - a Hugging Face tokenizer folder: text <-> ids, and chat messages -> prompt text.
--
--     local tok = require("segzero.models.tokenizer")(dir)
--     tok:encode(text) -> {ids}                    no token is added at either end
--     tok:decode(ids, {skip_special_tokens=false}) -> text
--     tok:chat(messages, {add_generation_prompt=false, add_vision_id=false}) -> text
--     tok:id("<|im_end|>") -> id or nil            tok:token(id) -> text or nil        tok:size() -> largest id + 1
--     tok:bytes(id) -> its bytes, perhaps no whole character
--     tok.eos_id, tok.pad_id, tok.bos_id (nil where the folder names none), tok.special = {token -> id}, tok:free()
--
-- Reads tokenizer.json (byte-level BPE: NFC or no normaliser, a Split pattern, ByteLevel) and tokenizer_config.json.
-- A tokenizer.json that asks for anything else is an error that names it. The chat template is not interpreted as
-- Jinja: the one of Qwen2-VL / Qwen2.5-VL is written out in Lua below, and a folder with another one is told so once.
-- Leaves out: truncation, padding, offsets, prefix spaces, added tokens that strip the space around them.

local ffi = require "ffi"
local bit = require "bit"
local cjson = require "cjson"
local ffi_sz = require "segzero.core.ffi"

local C, check = ffi_sz.C, ffi_sz.check

local M = {}
local Tokenizer = {}
Tokenizer.__index = Tokenizer

local VISION = {image = "<|vision_start|><|image_pad|><|vision_end|>", video = "<|vision_start|><|video_pad|><|vision_end|>"}

local function read(path)
  local f, why = io.open(path, "rb")
  if not f then return nil, why end
  local text, failure = f:read("*a")
  f:close()
  if not text then return nil, path .. ": " .. tostring(failure) end
  return text
end

local function read_json(path, level)
  local text, why = read(path)
  if not text then error(why, level + 1) end
  local ok, value = pcall(cjson.decode, text)
  if not ok then error(path .. ": not valid JSON: " .. value, level + 1) end
  if type(value) ~= "table" then error(path .. ": a JSON object is expected", level + 1) end
  return value
end

local function is_set(v) return v ~= nil and v ~= cjson.null and v ~= false and v ~= "" end

-- Oniguruma, which Hugging Face uses, takes \s for the White_Space property. PCRE2's \s has U+180E on top, so the class
-- is spelt out. Bytes after a backslash are left alone, sets are tracked because a class needs its brackets outside one.
local SPACE = "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

local function to_pcre(pattern)
  local out, in_set, i = {}, false, 1
  while i <= #pattern do
    local c = pattern:sub(i, i)
    if c == "\\" then
      local two = pattern:sub(i, i + 1)
      if two == "\\s" then two = in_set and SPACE or "[" .. SPACE .. "]"
      elseif two == "\\S" and not in_set then two = "[^" .. SPACE .. "]" end
      out[#out + 1] = two
      i = i + 2
    else
      if c == "[" then in_set = true elseif c == "]" then in_set = false end
      out[#out + 1] = c
      i = i + 1
    end
  end
  return table.concat(out)
end

-- Each step of a pipeline {type="Sequence", <key>={...}} or of a single object.
local function steps(object, key)
  if not is_set(object) then return {} end
  return object.type == "Sequence" and object[key] or {object}
end

local function split_pattern(json, bad)
  local pattern, bytes
  for _, step in ipairs(steps(json.pre_tokenizer, "pretokenizers")) do
    if step.type == "Split" then
      local regex = type(step.pattern) == "table" and step.pattern.Regex
      if not regex or pattern then bad("pre_tokenizer", "one Split with a Regex pattern is handled") end
      if step.behavior ~= "Isolated" or is_set(step.invert) then bad("pre_tokenizer", "Split behavior '" .. tostring(step.behavior) .. "' is not handled") end
      pattern = to_pcre(regex)
    elseif step.type == "ByteLevel" then
      if is_set(step.add_prefix_space) then bad("pre_tokenizer", "add_prefix_space is not handled") end
      -- GPT-2's own pattern, which ByteLevel applies unless told not to.
      if step.use_regex ~= false then pattern = pattern or to_pcre([['(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]) end
      bytes = true
    else
      bad("pre_tokenizer", "type '" .. tostring(step.type) .. "' is not handled")
    end
  end
  if not bytes then bad("pre_tokenizer", "it is not ByteLevel") end
  return pattern or "(?s).+"
end

local function normaliser(json, bad)
  local nfc = 0
  for _, step in ipairs(steps(json.normalizer, "normalizers")) do
    if step.type ~= "NFC" then bad("normalizer", "type '" .. tostring(step.type) .. "' is not handled") end
    nfc = 1
  end
  return nfc
end

local function hand_over(handle, json, bad)
  local model = json.model
  if type(model) ~= "table" or (is_set(model.type) and model.type ~= "BPE") then bad("model", "type '" .. tostring(model and model.type) .. "' is not BPE") end
  if type(model.vocab) ~= "table" or type(model.merges) ~= "table" then bad("model", "vocab or merges is missing") end
  for _, key in ipairs{"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"} do
    if is_set(model[key]) then bad("model", key .. " is not handled") end
  end
  -- pairs gives no order, but ids make the result the same in every order.
  for token, id in pairs(model.vocab) do
    if type(id) ~= "number" or id % 1 ~= 0 then bad("model.vocab", "token '" .. token .. "' has id " .. tostring(id)) end
    check(C.sz_tokenizer_add_token(handle, token, #token, id), 4)
  end
  for i, m in ipairs(model.merges) do
    local left, right
    if type(m) == "string" then left, right = m:match("^(%S+) (%S+)$")
    elseif type(m) == "table" then left, right = m[1], m[2] end
    if type(left) ~= "string" or type(right) ~= "string" then bad("model.merges", "entry " .. i .. " is not a pair") end
    check(C.sz_tokenizer_add_merge(handle, left, #left, right, #right), 4)
  end
end

local function hand_over_added(self, list, bad)
  for _, t in ipairs(list) do
    if type(t.content) ~= "string" or type(t.id) ~= "number" then bad("added_tokens", "an entry lacks id or content") end
    for _, key in ipairs{"lstrip", "rstrip", "single_word"} do
      if is_set(t[key]) then bad("added_tokens", "'" .. t.content .. "' has " .. key .. ", which is not handled") end
    end
    local special = is_set(t.special)
    check(C.sz_tokenizer_add_special(self.handle, t.content, #t.content, t.id, special and 1 or 0), 4)
    self.added[t.content] = t.id
    if special then self.special[t.content] = t.id end
  end
end

-- tokenizer_config.json and special_tokens_map.json give a token as a string or as {content=...}.
local function named_token(self, config, key)
  local t = config[key]
  if type(t) == "table" then t = t.content end
  if type(t) == "string" then return self:id(t) end
end

-- Lengths and FNV-1a sums of the chat templates that M.chat renders.
local KNOWN_TEMPLATES = {["1017:61244108"] = true}
local noticed = {}

local function template_sum(text)
  local h = 2166136261
  for i = 1, #text do
    h = bit.bxor(h, text:byte(i))
    -- times 16777619 modulo 2^32, in halves so that doubles stay exact
    local low, high = bit.band(h, 0xffff), bit.rshift(h, 16)
    h = bit.tobit((low * 16777619) % 4294967296 + (high * 403 % 65536) * 65536)
  end
  return #text .. ":" .. bit.tohex(h)
end
M.template_sum = template_sum

local function check_template(dir, config)
  local template = config.chat_template
  if type(template) ~= "string" then
    local text = read(dir .. "/chat_template.json")
    local ok, t = pcall(cjson.decode, text or "")
    template = ok and type(t) == "table" and t.chat_template or read(dir .. "/chat_template.jinja")
  end
  if type(template) ~= "string" then return end
  local sum = template_sum((template:gsub("%s+$", "")))
  if KNOWN_TEMPLATES[sum] or noticed[sum] then return end
  noticed[sum] = true
  io.stderr:write("segzero: ", dir, " has a chat template that is not Qwen-VL's; prompts are rendered as Qwen-VL's all the same\n")
end

function M.new(dir)
  if type(dir) ~= "string" then error("tokenizer: a folder name is expected, got " .. type(dir), 2) end
  local path = dir .. "/tokenizer.json"
  local json = read_json(path, 2)
  local function bad(where, why) error(path .. ": " .. where .. ": " .. why, 4) end
  local pattern, nfc = split_pattern(json, bad), normaliser(json, bad)
  local handle = ffi.gc(check(C.sz_tokenizer_new(pattern), 2), C.sz_tokenizer_free)
  local self = setmetatable({dir = dir, handle = handle, special = {}, added = {}, vocab = nil}, Tokenizer)
  hand_over(handle, json, bad)
  hand_over_added(self, is_set(json.added_tokens) and json.added_tokens or {}, bad)
  check(C.sz_tokenizer_finish(handle, nfc), 2)

  self.config = {}
  local config_path = dir .. "/tokenizer_config.json"
  local f = io.open(config_path, "rb")
  if f then
    f:close()
    self.config = read_json(config_path, 2)
  end
  self.eos_id = named_token(self, self.config, "eos_token")
  self.pad_id = named_token(self, self.config, "pad_token")
  self.bos_id = named_token(self, self.config, "bos_token")
  check_template(dir, self.config)
  return self
end

local function live(self, level)
  if self.handle == nil then error("the tokenizer has been freed", level + 1) end
  return self.handle
end

local out_ids = ffi.new("const int32_t *[1]")
local out_text = ffi.new("const char *[1]")

function Tokenizer:encode(text)
  local handle = live(self, 2)
  if type(text) ~= "string" then error("encode: text is a " .. type(text) .. ", not a string", 2) end
  local n = tonumber(check(C.sz_tokenizer_encode(handle, text, #text, out_ids), 2))
  local ids, p = {}, out_ids[0]
  for i = 1, n do ids[i] = p[i - 1] end
  return ids
end

function Tokenizer:decode(ids, options)
  local handle = live(self, 2)
  if type(ids) ~= "table" then error("decode: ids is a " .. type(ids) .. ", not a list", 2) end
  local n = #ids
  local list = ffi.new("int32_t[?]", n + 1)
  for i = 1, n do
    local id = ids[i]
    if type(id) ~= "number" or id % 1 ~= 0 or math.abs(id) >= 2 ^ 31 then error("decode: ids[" .. i .. "] is " .. tostring(id) .. ", not a token id", 2) end
    list[i - 1] = id
  end
  local skip = options and options.skip_special_tokens and 1 or 0
  local len = tonumber(check(C.sz_tokenizer_decode(handle, list, n, skip, out_text), 2))
  return ffi.string(out_text[0], len)
end

-- The bytes of one id as they stand, special tokens too; "" for an id without a token.
function Tokenizer:bytes(id)
  local len = tonumber(check(C.sz_tokenizer_bytes(live(self, 2), id, out_text), 2))
  return ffi.string(out_text[0], len)
end

function Tokenizer:size() return C.sz_tokenizer_size(live(self, 2)) end

-- The id of an added token or of a text that is exactly one token.
function Tokenizer:id(token)
  if self.added[token] then return self.added[token] end
  local ids = self:encode(token)
  return #ids == 1 and ids[1] or nil
end

-- The text of one id; nil for an id without a token. Bytes that are no whole character come as U+FFFD.
function Tokenizer:token(id)
  local text = self:decode({id})
  return text ~= "" and text or nil
end

function Tokenizer:free()
  if self.handle == nil then return end
  C.sz_tokenizer_free(ffi.gc(self.handle, nil))
  self.handle = nil
end

function Tokenizer:__tostring()
  if self.handle == nil then return "tokenizer (freed)" end
  return string.format("tokenizer %s (%d ids)", self.dir, self:size())
end

-- What one item of a content list is: "image", "video" or "text".
local function item_kind(item)
  if item.type == "image" or item.image ~= nil or item.image_url ~= nil then return "image" end
  if item.type == "video" or item.video ~= nil then return "video" end
  if type(item.text) == "string" then return "text" end
end
M.item_kind = item_kind

-- Renders messages = {{role=, content = string or list of {type="text", text=} / {type="image", ...}}, ...}.
function M.chat(messages, options)
  options = options or {}
  if type(messages) ~= "table" then error("chat: messages is a " .. type(messages) .. ", not a list", 2) end
  if messages.role ~= nil then error("chat: messages is one message, not a list of them: write {{role = ..., content = ...}}", 2) end
  local out, seen = {}, {image = 0, video = 0}
  local label = {image = "Picture ", video = "Video "}
  for i, message in ipairs(messages) do
    local where = "chat: message " .. i
    if type(message) ~= "table" or type(message.role) ~= "string" then error(where .. " has no role", 2) end
    if i == 1 and message.role ~= "system" then
      out[#out + 1] = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    end
    out[#out + 1] = "<|im_start|>" .. message.role .. "\n"
    local content = message.content
    if type(content) == "string" then
      out[#out + 1] = content
    elseif type(content) == "table" then
      for k, item in ipairs(content) do
        local kind = type(item) == "table" and item_kind(item)
        if not kind then error(where .. ", item " .. k .. " is neither text nor image", 2) end
        if kind == "text" then
          out[#out + 1] = item.text
        else
          seen[kind] = seen[kind] + 1
          if options.add_vision_id then out[#out + 1] = label[kind] .. seen[kind] .. ": " end
          out[#out + 1] = VISION[kind]
        end
      end
    else
      error(where .. ": content is a " .. type(content) .. ", not a string or a list", 2)
    end
    out[#out + 1] = "<|im_end|>\n"
  end
  if options.add_generation_prompt then out[#out + 1] = "<|im_start|>assistant\n" end
  return table.concat(out)
end

function Tokenizer:chat(messages, options)
  local ok, text = pcall(M.chat, messages, options)
  if not ok then error(text:gsub("^[^:]*:%d+: ", ""), 2) end
  return text
end

return setmetatable(M, {__call = function(_, dir) return M.new(dir) end})
