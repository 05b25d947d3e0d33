-- tokenizer.lua - a Hugging Face tokenizer folder: text <-> ids, and chat messages -> prompt text.
--
--     local tok = require("segzero.models.tokenizer")(dir)
--     tok:encode(text) -> {ids}                    no token is added at either end
--     tok:count(text) -> how many
--     tok:decode(ids, {skip_special_tokens=false}) -> text
--     tok:chat(messages, {add_generation_prompt=false, add_vision_id=false}) -> text
--     tok:id("<|im_end|>") -> id or nil            tok:token(id) -> text or nil
--     tok:size() -> largest id + 1                 tok:bytes(id) -> its bytes, perhaps not a whole
--                                                  character
--     tok.eos_id, tok.pad_id, tok.bos_id           nil if the folder names none
--     tok.special = {token -> id}                  tok:free()
--
-- Reads tokenizer.json (tokenizer_file.lua: byte-level BPE) and tokenizer_config.json. The chat
-- template of Qwen2-VL / Qwen2.5-VL is built in (messages.lua); a folder with another one gets a
-- notice, once. Leaves out: truncation, padding, offsets, prefix spaces, added tokens that strip
-- the space around them.

local ffi = require "ffi"
local bit = require "bit"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local options = require "segzero.core.options"
local messages_of = require "segzero.models.messages"
local tokenizer_file = require "segzero.models.tokenizer_file"

local C = core.C
local check = core.check

local M = {}
local Tokenizer = {}
Tokenizer.__index = Tokenizer

-- ---- the chat template ----
-- Lengths and FNV-1a sums of the chat templates that messages.render follows.
local KNOWN_TEMPLATES = { ["1017:61244108"] = true }
local noticed = {}

function M.template_sum(text)
  local h = 2166136261
  for i = 1, #text do
    h = bit.bxor(h, text:byte(i))
    -- times 16777619 modulo 2^32, in halves so that doubles stay exact
    local low = bit.band(h, 0xffff)
    local high = bit.rshift(h, 16)
    h = bit.tobit((low * 16777619) % 4294967296 + (high * 403 % 65536) * 65536)
  end
  return #text .. ":" .. bit.tohex(h)
end

-- The template's text from whichever file has it; nil without one.
local function template_of(dir, config)
  if type(config.chat_template) == "string" then return config.chat_template end
  local ok, json = pcall(files.read_json_object, dir .. "/chat_template.json", true)
  if ok and json and json.chat_template then return json.chat_template end
  return (files.read(dir .. "/chat_template.jinja"))
end

local function check_template(dir, config)
  local template = template_of(dir, config)
  if type(template) ~= "string" then return end
  local sum = M.template_sum((template:gsub("%s+$", "")))
  if KNOWN_TEMPLATES[sum] or noticed[sum] then return end
  noticed[sum] = true
  io.stderr:write("segzero: ", dir,
    " has a chat template that is not Qwen-VL's; prompts use Qwen-VL's template anyway\n")
end

-- ---- opening ----
-- tokenizer_config.json gives a token as a string or as {content =}.
local function named_token(self, key)
  local t = self.config[key]
  if type(t) == "table" then t = t.content end
  if type(t) == "string" then return self:id(t) end
end

local function open(dir)
  local path = dir .. "/tokenizer.json"
  local file = tokenizer_file.open(path, files.read_json_object(path))
  local self = setmetatable({ dir = dir, handle = file.handle, added = file.added,
    special = file.special }, Tokenizer)
  self.config = files.read_json_object(dir .. "/tokenizer_config.json", true) or {}
  self.eos_id = named_token(self, "eos_token")
  self.pad_id = named_token(self, "pad_token")
  self.bos_id = named_token(self, "bos_token")
  check_template(dir, self.config)
  return self
end

function M.new(dir)
  if type(dir) ~= "string" then
    error("tokenizer: a folder name is expected, got " .. type(dir), 2)
  end
  local ok, self = pcall(open, dir)
  if not ok then error(core.plain(self), 2) end
  return self
end

-- ---- text and ids ----
local function live(self, level)
  if self.handle == nil then error("the tokenizer has been freed", level + 1) end
  return self.handle
end

local out_ids = ffi.new "const int32_t *[1]"
local out_text = ffi.new "const char *[1]"

local ENCODE = options.set {}      -- there are none; transformers' add_special_tokens is an error

function Tokenizer:encode(text, opts)
  local handle = live(self, 2)
  if type(text) ~= "string" then
    error("encode: text is a " .. type(text) .. ", not a string", 2)
  end
  options.check("encode", opts, ENCODE, 2)
  local n = tonumber(check(C.sz_tokenizer_encode(handle, text, #text, out_ids), 2))
  local ids = {}
  local p = out_ids[0]
  for i = 1, n do ids[i] = p[i - 1] end
  return ids
end

-- How many ids encode() gives, without the list.
function Tokenizer:count(text)
  return tonumber(check(C.sz_tokenizer_encode(live(self, 2), text, #text, out_ids), 2))
end

local function is_id(id) return type(id) == "number" and id % 1 == 0 and math.abs(id) < 2 ^ 31 end

local DECODE = options.set { "skip_special_tokens" }

function Tokenizer:decode(ids, opts)
  local handle = live(self, 2)
  if type(ids) ~= "table" then error("decode: ids is a " .. type(ids) .. ", not a list", 2) end
  opts = options.check("decode", opts, DECODE, 2)
  local n = #ids
  local list = ffi.new("int32_t[?]", n + 1)
  for i = 1, n do
    local id = ids[i]
    if not is_id(id) then
      error(("decode: ids[%d] is %s, not a token id"):format(i, tostring(id)), 2)
    end
    list[i - 1] = id
  end
  local skip = opts.skip_special_tokens and 1 or 0
  local length = tonumber(check(C.sz_tokenizer_decode(handle, list, n, skip, out_text), 2))
  return ffi.string(out_text[0], length)
end

-- The bytes of one id, special tokens too; "" for an id without a token.
function Tokenizer:bytes(id)
  local length = tonumber(check(C.sz_tokenizer_bytes(live(self, 2), id, out_text), 2))
  return ffi.string(out_text[0], length)
end

function Tokenizer:size() return C.sz_tokenizer_size(live(self, 2)) end

-- The id of an added token or of a text that is exactly one token.
function Tokenizer:id(token)
  if self.added[token] then return self.added[token] end
  local ids = self:encode(token)
  if #ids == 1 then return ids[1] end
end

-- The text of one id; nil for an id without a token. Bytes that are not a whole character become
-- U+FFFD.
function Tokenizer:token(id)
  local text = self:decode { id }
  if text ~= "" then return text end
end

function Tokenizer:chat(messages, opts)
  local ok, text = pcall(messages_of.render, messages, opts)
  if not ok then error(core.plain(text), 2) end
  return text
end

-- The same without a tokenizer: rendering needs none.
function M.chat(messages, opts)
  local ok, text = pcall(messages_of.render, messages, opts)
  if not ok then error(core.plain(text), 2) end
  return text
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

return setmetatable(M, { __call = function(_, dir) return M.new(dir) end })
