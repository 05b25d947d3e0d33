-- tokenizer_file.lua - loads tokenizer.json into the core: byte-level BPE with NFC or no
-- normaliser, a Split pattern and ByteLevel.
--
--   local source = tokenizer_file.read(path)
--     -> {json =, map =, vocab =, merges =}   json: without model.vocab and model.merges, which are
--                                             nearly all of the file; the core reads them
--   local file = tokenizer_file.open(dir, source, config)
--       config: of tokenizer_config.json, {} without one; open() closes the map
--     -> {handle =, added = {token -> id}, special = {token -> id}}
--
-- A file that needs anything else is an error that names it. The added tokens come from several
-- files: added_tokens.lua.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local added_tokens = require "segzero.models.text.added_tokens"
local known_keys = require "segzero.models.known_keys"

local C = core.C
local call = core.call

local M = {}

-- ---- the file ----
-- The text without what is at the places, in which `instead` are.
local function text_without(p, size, places, instead)
  local parts = {}
  local from = 0
  for i, place in ipairs(places) do
    local start = tonumber(place.start)
    parts[#parts + 1] = ffi.string(p + from, start - from) .. instead[i]
    from = tonumber(place.stop)
  end
  parts[#parts + 1] = ffi.string(p + from, size - from)
  return table.concat(parts)
end

function M.read(path)
  files.check_regular(path)
  local map = ffi.gc(call(C.sz_map_open(path)), C.sz_map_close)
  local p = ffi.cast("const char *", C.sz_map_bytes(map))
  local size = tonumber(C.sz_map_size(map))

  -- Where one of the tables is not found, the whole text is decoded, and open() says why.
  local vocab = ffi.new "sz_json_place"
  local merges = ffi.new "sz_json_place"
  local rc = C.sz_tokenizer_find(p, size, vocab, merges)
  if rc ~= 0 or vocab.stop == 0 or merges.stop == 0 then
    local json = files.decode_json_object(path, ffi.string(p, size))
    call(rc)
    return { json = json, map = map }
  end

  local text
  if vocab.start < merges.start then
    text = text_without(p, size, { vocab, merges }, { "{}", "[]" })
  else
    text = text_without(p, size, { merges, vocab }, { "[]", "{}" })
  end
  return { json = files.decode_json_object(path, text), map = map, vocab = vocab, merges = merges }
end

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

-- Each step of a pipeline {type="Sequence", <key>={...}} or of a single object. where: its name.
local function steps(where, object, key, bad)
  if not is_set(object) then return {} end
  if type(object) ~= "table" then bad(where, "it is " .. known_keys.show(object)) end
  local list = { object }
  if object.type == "Sequence" then list = object[key] end
  if type(list) ~= "table" then bad(where, ("%s is %s"):format(key, known_keys.show(list))) end
  for i, step in ipairs(list) do
    if type(step) ~= "table" then
      bad(where, ("step %d is %s, not an object"):format(i, known_keys.show(step)))
    end
  end
  return list
end

-- GPT-2's own pattern, which ByteLevel applies unless told not to.
local GPT2 = [['(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]

local function split_pattern(json, bad)
  local pattern, bytes
  for _, step in ipairs(steps("pre_tokenizer", json.pre_tokenizer, "pretokenizers", bad)) do
    if step.type == "Split" then
      local regex = type(step.pattern) == "table" and step.pattern.Regex
      if type(regex) ~= "string" or pattern then
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
  for _, step in ipairs(steps("normalizer", json.normalizer, "normalizers", bad)) do
    if step.type ~= "NFC" then
      bad("normalizer", ("type '%s' is not handled"):format(tostring(step.type)))
    end
    nfc = true
  end
  return nfc
end

-- ---- what else a tokenizer may do ----
-- Steps after the encoding that change the ids. ByteLevel only moves offsets, which are not used.
local function check_post_processor(json, bad)
  for _, step in ipairs(steps("post_processor", json.post_processor, "processors", bad)) do
    local adds
    if step.type == "TemplateProcessing" then
      if type(step.single) ~= "table" then bad("post_processor", "single is not a list") end
      for _, piece in ipairs(step.single) do
        local token = type(piece) == "table" and piece.SpecialToken
        if token then adds = known_keys.show(type(token) == "table" and token.id or token) end
      end
    elseif step.type ~= "ByteLevel" then
      bad("post_processor", ("type %s is not handled"):format(known_keys.show(step.type)))
    end
    if adds then
      bad("post_processor", ("TemplateProcessing adds %s to every text, which is not handled")
        :format(adds))
    end
  end
end

local function check_decoder(json, bad)
  for _, step in ipairs(steps("decoder", json.decoder, "decoders", bad)) do
    if step.type ~= "ByteLevel" then
      bad("decoder", ("type %s is not handled"):format(known_keys.show(step.type)))
    end
  end
end

-- ---- the vocabulary ----
local UNSUPPORTED = {
  "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges",
}

local function check_model(source, bad)
  local model = source.json.model
  if type(model) ~= "table" then bad("model", "it is " .. known_keys.show(model)) end
  if is_set(model.type) and model.type ~= "BPE" then
    bad("model", ("type %s is not BPE"):format(known_keys.show(model.type)))
  end
  if type(model.vocab) ~= "table" or type(model.merges) ~= "table" then
    bad("model", "vocab or merges is missing")
  end
  for _, key in ipairs(UNSUPPORTED) do
    if is_set(model[key]) then bad("model", key .. " is not handled") end
  end
  if source.vocab then return end
  if #model.vocab > 0 then bad("model.vocab", "it is a list, not an object") end
  bad("model", "vocab is not an object or merges is not a list")
end

-- Adds the tables and the added tokens of all files.
local function add_tokens(file, dir, source, config)
  local handle = file.handle
  local p = ffi.cast("const char *", C.sz_map_bytes(source.map))
  local size = tonumber(call(C.sz_tokenizer_add_vocabulary(handle, p, source.vocab)))
  call(C.sz_tokenizer_add_merges(handle, p, source.merges))
  C.sz_map_close(ffi.gc(source.map, nil))
  source.map = nil

  local vocabulary = { size = size }
  function vocabulary.id(token)
    local id = C.sz_tokenizer_find_token(handle, token, #token)
    if id >= 0 then return id end
  end
  for _, t in ipairs(added_tokens.collect(dir, source.json, config, vocabulary)) do
    local flags = 0
    if t.special then flags = flags + C.SZ_TOKEN_SPECIAL end
    if t.normalized then flags = flags + C.SZ_TOKEN_NORMALIZED end
    call(C.sz_tokenizer_add_special(handle, t.content, #t.content, t.id, flags))
    file.added[t.content] = t.id
    if t.special then file.special[t.content] = t.id end
  end
end

function M.open(dir, source, config)
  local json = source.json
  local path = dir .. "/tokenizer.json"
  local function bad(where, why)
    error(("%s: %s: %s"):format(path, where, why:gsub("%c", "?")), 0)
  end
  known_keys.check(path, json, known_keys.TOKENIZER)
  local pattern = split_pattern(json, bad)
  local nfc = uses_nfc(json, bad)
  check_post_processor(json, bad)
  check_decoder(json, bad)
  check_model(source, bad)
  known_keys.check(path, json.model, known_keys.TOKENIZER_MODEL, "model.")

  local file = { added = {}, special = {} }
  file.handle = ffi.gc(call(C.sz_tokenizer_new(pattern)), C.sz_tokenizer_free)
  local ok, why = pcall(function()
    add_tokens(file, dir, source, config)
    call(C.sz_tokenizer_finish(file.handle, nfc and 1 or 0))
  end)
  if ok then return file end
  why = core.plain(why):gsub("%c", "?")      -- it may show tokens
  if why:sub(1, #dir) ~= dir then why = ("%s: %s"):format(path, why) end
  error(why, 0)
end

return M
