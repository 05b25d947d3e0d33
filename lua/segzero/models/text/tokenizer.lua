-- tokenizer.lua - a Hugging Face tokenizer folder: text <-> ids, and chat messages -> prompt text.
--
--     local tok = require("segzero.models.text.tokenizer")(dir)
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
-- Reads tokenizer.json (tokenizer_file.lua: byte-level BPE), tokenizer_config.json and the older
-- files of added tokens (added_tokens.lua). The chat template of Qwen2-VL / Qwen2.5-VL is built in
-- (messages.lua), with the folder's own default system message (chat_template.lua); a folder with
-- another template gets a notice, once. Leaves out: truncation, padding, offsets, prefix spaces,
-- added tokens that strip the space around them.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local notes = require "segzero.core.notes"
local options = require "segzero.core.options"
local added_tokens = require "segzero.models.text.added_tokens"
local chat_template = require "segzero.models.text.chat_template"
local known_keys = require "segzero.models.known_keys"
local messages_of = require "segzero.models.qwen_vl.messages"
local opening = require "segzero.models.opening"
local tokenizer_file = require "segzero.models.text.tokenizer_file"

local C = core.C
local check = core.check

local M = {}
local Tokenizer = {}
Tokenizer.__index = Tokenizer

-- ---- opening ----
-- What Qwen2Tokenizer takes where no file names a token.
local DEFAULT_TOKEN = { eos_token = "<|endoftext|>", pad_token = "<|endoftext|>" }

-- How the folder's chat template differs from Qwen-VL's.
local function read_template(self, dir)
  local kind, name = chat_template.read(dir, self.config)
  if kind then
    self.system = kind.system
    return
  end
  notes.say(("%s/%s: this chat template is not Qwen-VL's; prompts use Qwen-VL's template anyway")
    :format(dir, name))
end

local function open(dir)
  local path = dir .. "/tokenizer.json"
  if not files.exists(path) and files.exists(dir .. "/vocab.json") then
    error(("%s is missing; vocab.json and merges.txt are not read: write it with "
      .. "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"):format(path), 0)
  end
  if not files.exists(path) and files.exists(dir .. "/config.json") then
    error(path .. " is missing: copy it from the model that this one was trained from", 0)
  end
  local source = tokenizer_file.read(path)
  local config_path = dir .. "/tokenizer_config.json"
  local config = files.read_json_object(config_path, true) or {}
  known_keys.check(config_path, config, known_keys.TOKENIZER_CONFIG)
  local file = tokenizer_file.open(dir, source, config)
  local self = setmetatable({ dir = dir, handle = file.handle, added = file.added,
    special = file.special, config = config }, Tokenizer)

  local named = added_tokens.named(dir, config)
  for _, name in ipairs { "eos", "pad", "bos" } do
    local key = name .. "_token"
    local text = named[key]
    if config[key] == nil then text = text or DEFAULT_TOKEN[key] end
    if text then self[name .. "_id"] = self:id(text) end
  end
  read_template(self, dir)
  return self
end

function M.new(dir)
  if type(dir) ~= "string" then
    error("tokenizer: a folder name is expected, got " .. type(dir), 2)
  end
  dir = opening.resolve(dir, 2, { weights = false })
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
  local ok, text = pcall(messages_of.render, messages, opts, self.system)
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

options.limit(Tokenizer,
  { encode = 2, decode = 2, chat = 2, id = 1, token = 1, bytes = 1, size = 0 })
M.new = options.at_most("tokenizer", 1, M.new)

function Tokenizer:__tostring()
  if self.handle == nil then return "tokenizer (freed)" end
  return string.format("tokenizer %s (%d ids)", self.dir, self:size())
end

return setmetatable(M, { __call = function(_, ...) return M.new(...) end })
