-- tokenizer_file.lua - loads tokenizer.json into the core: byte-level BPE with NFC or no
-- normaliser, a Split pattern and ByteLevel.
--
--   local file = tokenizer_file.open(path, json)
--     -> {handle =, added = {token -> id}, special = {token -> id}}
--
-- A file that needs anything else is an error that names it.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"

local C = core.C
local call = core.call

local M = {}

local function is_set(v) return v ~= nil and v ~= cjson.null and v ~= false and v ~= "" end

-- ---- the pattern ----
-- In Oniguruma, which Hugging Face uses, \s is the White_Space property. PCRE2's \s also has
-- U+180E, so the class is spelt out.
local SPACE = "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
  .. "\\x{205f}\\x{3000}"

-- An escaped character: \s and \S become classes, which need brackets outside a set.
local function pcre_escape(two, in_set)
  if two == "\\s" then return in_set and SPACE or "[" .. SPACE .. "]" end
  if two == "\\S" and not in_set then return "[^" .. SPACE .. "]" end
  return two
end

local function to_pcre(pattern)
  local out = {}
  local in_set = false
  local i = 1
  while i <= #pattern do
    local c = pattern:sub(i, i)
    if c == "\\" then
      out[#out + 1] = pcre_escape(pattern:sub(i, i + 1), in_set)
      i = i + 2
    else
      if c == "[" then
        in_set = true
      elseif c == "]" then
        in_set = false
      end
      out[#out + 1] = c
      i = i + 1
    end
  end
  return table.concat(out)
end

-- Each step of a pipeline {type="Sequence", <key>={...}} or of a single object.
local function steps(object, key)
  if not is_set(object) then return {} end
  if object.type == "Sequence" then return object[key] end
  return { object }
end

-- GPT-2's own pattern, which ByteLevel applies unless told not to.
local GPT2 = [['(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]

local function split_pattern(json, bad)
  local pattern, bytes
  for _, step in ipairs(steps(json.pre_tokenizer, "pretokenizers")) do
    if step.type == "Split" then
      local regex = type(step.pattern) == "table" and step.pattern.Regex
      if not regex or pattern then
        bad("pre_tokenizer", "one Split with a Regex pattern is handled")
      end
      if step.behavior ~= "Isolated" or is_set(step.invert) then
        bad("pre_tokenizer", ("Split behavior '%s' is not handled"):format(tostring(step.behavior)))
      end
      pattern = to_pcre(regex)
    elseif step.type == "ByteLevel" then
      if is_set(step.add_prefix_space) then
        bad("pre_tokenizer", "add_prefix_space is not handled")
      end
      if step.use_regex ~= false then pattern = pattern or to_pcre(GPT2) end
      bytes = true
    else
      bad("pre_tokenizer", ("type '%s' is not handled"):format(tostring(step.type)))
    end
  end
  if not bytes then bad("pre_tokenizer", "it is not ByteLevel") end
  return pattern or "(?s).+"
end

local function uses_nfc(json, bad)
  local nfc = false
  for _, step in ipairs(steps(json.normalizer, "normalizers")) do
    if step.type ~= "NFC" then
      bad("normalizer", ("type '%s' is not handled"):format(tostring(step.type)))
    end
    nfc = true
  end
  return nfc
end

-- ---- the vocabulary ----
local UNSUPPORTED = {
  "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges",
}

local function check_model(model, bad)
  if type(model) ~= "table" or is_set(model.type) and model.type ~= "BPE" then
    bad("model", ("type '%s' is not BPE"):format(tostring(model and model.type)))
  end
  if type(model.vocab) ~= "table" or type(model.merges) ~= "table" then
    bad("model", "vocab or merges is missing")
  end
  for _, key in ipairs(UNSUPPORTED) do
    if is_set(model[key]) then bad("model", key .. " is not handled") end
  end
end

-- A merge is "left right" or {left, right}.
local function pair_of(merge)
  if type(merge) == "string" then return merge:match "^(%S+) (%S+)$" end
  if type(merge) == "table" then return merge[1], merge[2] end
end

local function add_vocabulary(handle, model, bad)
  -- pairs has no order, but ids make the result the same in every order.
  for token, id in pairs(model.vocab) do
    if type(id) ~= "number" or id % 1 ~= 0 then
      bad("model.vocab", ("token '%s' has id %s"):format(token, tostring(id)))
    end
    call(C.sz_tokenizer_add_token(handle, token, #token, id))
  end
  for i, merge in ipairs(model.merges) do
    local left, right = pair_of(merge)
    if type(left) ~= "string" or type(right) ~= "string" then
      bad("model.merges", "entry " .. i .. " is not a pair")
    end
    call(C.sz_tokenizer_add_merge(handle, left, #left, right, #right))
  end
end

local function add_added_tokens(file, list, bad)
  for _, t in ipairs(list) do
    if type(t.content) ~= "string" or type(t.id) ~= "number" then
      bad("added_tokens", "an entry lacks id or content")
    end
    for _, key in ipairs { "lstrip", "rstrip", "single_word" } do
      if is_set(t[key]) then
        bad("added_tokens", ("'%s' has %s, which is not handled"):format(t.content, key))
      end
    end
    local special = is_set(t.special)
    call(C.sz_tokenizer_add_special(file.handle, t.content, #t.content, t.id, special and 1 or 0))
    file.added[t.content] = t.id
    if special then file.special[t.content] = t.id end
  end
end

function M.open(path, json)
  local function bad(where, why) error(("%s: %s: %s"):format(path, where, why), 0) end
  local pattern = split_pattern(json, bad)
  local nfc = uses_nfc(json, bad)
  local file = { added = {}, special = {} }
  file.handle = ffi.gc(call(C.sz_tokenizer_new(pattern)), C.sz_tokenizer_free)
  check_model(json.model, bad)
  add_vocabulary(file.handle, json.model, bad)
  add_added_tokens(file, is_set(json.added_tokens) and json.added_tokens or {}, bad)
  call(C.sz_tokenizer_finish(file.handle, nfc and 1 or 0))
  return file
end

return M
