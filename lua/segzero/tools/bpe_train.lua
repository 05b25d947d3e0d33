-- bpe_train.lua - trains the small byte-level BPE of the embedded checkpoint and writes it as
-- Hugging Face files.
--
--   local bpe = require "segzero.tools.bpe_train"
--   local model = bpe.train(bpe.corpus(), 512)      -- at most 512 merges
--   bpe.write("out_dir", model)                     -- tokenizer.json, tokenizer_config.json
--   print(#model.tokens, model.special["<|im_end|>"])
--
-- A model is
--   { tokens = {"!", ...}      id + 1 -> token in the byte alphabet: 256 bytes, then one per merge
--     vocab = {token -> id}    the same, inverted
--     merges = {{left, right}} in rank order
--     special = {name -> id} } Qwen's 22 added tokens, from id #tokens on
-- The byte alphabet is GPT-2's: printable bytes stand for themselves, the other 68 for U+0100 and
-- up.
--
-- The hand-written pre-tokenizer covers ASCII, where it agrees with the pattern written to
-- tokenizer.json. That is enough, because the training texts are ASCII; other bytes are refused.
-- The result can encode any text, byte by byte where no merge applies.
--
-- Leaves out: encoding at run time (tokenizer.lua), training on large corpora (every merge counts
-- all pairs again).

local files = require "segzero.core.files"

local M = {}

local byte = string.byte
local sub = string.sub

M.pattern = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
  .. "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

-- In id order. `false`: decoding keeps the token.
M.added = {
  { "<|endoftext|>", true }, { "<|im_start|>", true }, { "<|im_end|>", true },
  { "<|object_ref_start|>", true }, { "<|object_ref_end|>", true }, { "<|box_start|>", true },
  { "<|box_end|>", true }, { "<|quad_start|>", true }, { "<|quad_end|>", true },
  { "<|vision_start|>", true }, { "<|vision_end|>", true }, { "<|vision_pad|>", true },
  { "<|image_pad|>", true }, { "<|video_pad|>", true },
  { "<tool_call>", false }, { "</tool_call>", false }, { "<|fim_prefix|>", false },
    { "<|fim_middle|>", false },
  { "<|fim_suffix|>", false }, { "<|fim_pad|>", false }, { "<|repo_name|>", false },
    { "<|file_sep|>", false },
}

-- The chat template that Qwen2.5-VL checkpoints carry.
M.chat_template = "{% set image_count = namespace(value=0) %}"
  .. "{% set video_count = namespace(value=0) %}"
  .. "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
  .. "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
  .. "<|im_start|>{{ message['role'] }}\n"
  .. "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
  .. "{% else %}{% for content in message['content'] %}"
  .. "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
  .. "{% set image_count.value = image_count.value + 1 %}"
  .. "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
  .. "<|vision_start|><|image_pad|><|vision_end|>"
  .. "{% elif content['type'] == 'video' or 'video' in content %}"
  .. "{% set video_count.value = video_count.value + 1 %}"
  .. "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
  .. "<|vision_start|><|video_pad|><|vision_end|>"
  .. "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
  .. "<|im_end|>\n{% endif %}{% endfor %}"
  .. "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

local function utf8_char(code) -- U+0000 .. U+07FF
  if code < 0x80 then return string.char(code) end
  return string.char(0xC0 + math.floor(code / 64), 0x80 + code % 64)
end

-- byte -> character of the alphabet; and all bytes in id order.
local function byte_alphabet()
  local char = {}
  local order = {}
  local hidden = {}
  for b = 0, 255 do
    if (b >= 0x21 and b <= 0x7E) or (b >= 0xA1 and b <= 0xAC) or b >= 0xAE then
      char[b] = utf8_char(b)
      order[#order + 1] = b
    else
      hidden[#hidden + 1] = b
    end
  end
  for i, b in ipairs(hidden) do
    char[b] = utf8_char(0x100 + i - 1)
    order[#order + 1] = b
  end
  return char, order
end

local CHAR, ORDER = byte_alphabet()

-- Each function returns the end of the piece that its alternative of the pattern matches at i. The
-- first match wins.
local PIECES = {
  function(s, i) -- contraction
    if byte(s, i) ~= 39 then return nil end
    local two = sub(s, i + 1, i + 2):lower()
    if two == "re" or two == "ve" or two == "ll" then return i + 2 end
    if sub(s, i + 1, i + 1):find "^[stmdSTMD]" then return i + 1 end
    return nil
  end,
  function(s, i) return select(2, s:find("^[^\r\n%a%d]?%a+", i)) end,
  function(s, i) return s:find("^%d", i) end,
  function(s, i) return select(2, s:find("^ ?[^%s%a%d]+[\r\n]*", i)) end,
  function(s, i) -- blanks up to the last line end among them
    local e = select(2, s:find("^%s+", i))
    while e and e >= i and not sub(s, e, e):find("[\r\n]") do e = e - 1 end
    if e and e >= i then return e end
    return nil
  end,
  function(s, i) -- blanks, leaving one for the word that follows
    local e = select(2, s:find("^%s+", i))
    if not e then return nil end
    if e == #s then return e end
    if e > i then return e - 1 end
    return nil
  end,
  function(s, i) return select(2, s:find("^%s+", i)) end,
}

-- Pieces of an ASCII text, in order.
function M.pieces(text)
  local out = {}
  local i = 1
  if text:find("[\128-\255]") then error("bpe_train: text is not ASCII: " .. text, 2) end
  while i <= #text do
    local e
    for k = 1, #PIECES do
      e = PIECES[k](text, i)
      if e then break end
    end
    if not e then error("bpe_train: no piece at " .. i .. " of " .. text) end
    out[#out + 1] = sub(text, i, e)
    i = e + 1
  end
  return out
end

local function to_alphabet(piece)
  local units = {}
  for i = 1, #piece do units[i] = CHAR[byte(piece, i)] end
  return units
end

-- Replaces each pair (a, b) in units by the joined token, left to right, in place.
local function join(units, a, b)
  local n = 0
  local i = 1
  local len = #units
  while i <= len do
    n = n + 1
    if units[i] == a and units[i + 1] == b then
      units[n] = a .. b
      i = i + 2
    else
      units[n] = units[i]
      i = i + 1
    end
  end
  for k = n + 1, len do units[k] = nil end
end

-- The most frequent pair. Ties go to the pair that sorts first, so the result does not depend on
-- the order of a table.
local function best_pair(words)
  local counts = {}
  for _, w in ipairs(words) do
    local u = w.units
    for i = 1, #u - 1 do
      local key = u[i] .. "\n" .. u[i + 1]
      counts[key] = (counts[key] or 0) + w.count
    end
  end
  local best = nil
  local most = 0
  for key, n in pairs(counts) do
    if n > most or (n == most and key < best) then best, most = key, n end
  end
  if not best then return nil end
  return best:match("^(.-)\n(.*)$")
end

-- texts: a list of ASCII strings (repeat one to give it weight). merges: the maximum to learn;
-- fewer are learnt if every piece of the texts has become one token.
function M.train(texts, merges)
  local words = {}
  local seen = {}
  for _, text in ipairs(texts) do
    for _, piece in ipairs(M.pieces(text)) do
      local w = seen[piece]
      if not w then
        w = { units = to_alphabet(piece), count = 0 }
        seen[piece] = w
        words[#words + 1] = w
      end
      w.count = w.count + 1
    end
  end
  local model = { tokens = {}, vocab = {}, merges = {}, special = {} }
  local function add(token)
    if model.vocab[token] then return end
    model.vocab[token] = #model.tokens
    model.tokens[#model.tokens + 1] = token
  end
  for _, b in ipairs(ORDER) do add(CHAR[b]) end
  while #model.merges < merges do
    local a, b = best_pair(words)
    if not a then break end
    model.merges[#model.merges + 1] = { a, b }
    add(a .. b)
    for _, w in ipairs(words) do join(w.units, a, b) end
  end
  for i, t in ipairs(M.added) do model.special[t[1]] = #model.tokens + i - 1 end
  return model
end

-- Ids of an ASCII text without added tokens. Slow and simple, for counting and checking.
function M.encode(model, text)
  local ids = {}
  for _, piece in ipairs(M.pieces(text)) do
    local units = to_alphabet(piece)
    for _, m in ipairs(model.merges) do
      if #units == 1 then break end
      join(units, m[1], m[2])
    end
    for _, u in ipairs(units) do ids[#ids + 1] = model.vocab[u] end
  end
  return ids
end

-- The texts that the embedded checkpoint reads and writes: prompts, reasoning and answers of n
-- images at each level, with the words of the chat template.
function M.corpus(n)
  local refshapes = require "segzero.data.refshapes"
  local prompt = require "segzero.data.prompt"
  local texts = {}
  for level = 1, 3 do
    for index = 0, (n or 400) - 1 do
      local s = refshapes.sample { seed = 1, index = index, level = level, size = 84 }
      texts[#texts + 1] = "system\nYou are a helpful assistant."
      texts[#texts + 1] = "user\n"
      texts[#texts + 1] = "assistant\n"
      for _, q in ipairs(s.questions) do
        texts[#texts + 1] = prompt.seg_zero(q.problem)
        texts[#texts + 1] = prompt.response(q.think, q.answer)
      end
      if index % 8 == 0 then texts[#texts + 1] = prompt.vision_reasoner(s.questions[1].problem) end
    end
  end
  return texts
end

-- cjson would write the tables in another order than the ids, so it encodes only the strings.
local function quote(s)
  return (require("cjson").encode(s):gsub("\\/", "/"))
end

local function tokenizer_json(model)
  local byte_level = '{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, '
    .. '"use_regex": false}'
  local out = { '{\n"version": "1.0",\n"truncation": null,\n"padding": null,\n"added_tokens": [\n' }
  for i, t in ipairs(M.added) do
    out[#out + 1] = string.format('{"id": %d, "content": %s, "single_word": false, '
      .. '"lstrip": false, "rstrip": false, "normalized": false, "special": %s}%s\n',
      model.special[t[1]], quote(t[1]), tostring(t[2]), i < #M.added and "," or "")
  end
  out[#out + 1] = '],\n"normalizer": {"type": "NFC"},\n'
    .. '"pre_tokenizer": {"type": "Sequence", "pretokenizers": [\n'
    .. '{"type": "Split", "pattern": {"Regex": ' .. quote(M.pattern)
      .. '}, "behavior": "Isolated", "invert": false},\n'
    .. byte_level .. ']},\n"post_processor": ' .. byte_level .. ',\n"decoder": ' .. byte_level
      .. ',\n'
    .. '"model": {"type": "BPE", "dropout": null, "unk_token": null, '
    .. '"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false, '
    .. '"byte_fallback": false, "ignore_merges": false,\n"vocab": {\n'
  for i, token in ipairs(model.tokens) do
    out[#out + 1] = quote(token) .. ": " .. (i - 1) .. (i < #model.tokens and ",\n" or "\n")
  end
  out[#out + 1] = '},\n"merges": [\n'
  for i, m in ipairs(model.merges) do
    out[#out + 1] = "[" .. quote(m[1]) .. ", " .. quote(m[2]) .. "]"
      .. (i < #model.merges and ",\n" or "\n")
  end
  out[#out + 1] = "]}\n}\n"
  return table.concat(out)
end

local function tokenizer_config_json(model)
  local out = {
    '{\n"add_bos_token": false,\n"add_prefix_space": false,\n"added_tokens_decoder": {\n' }
  for i, t in ipairs(M.added) do
    out[#out + 1] = string.format('"%d": {"content": %s, "lstrip": false, "normalized": false, '
      .. '"rstrip": false, "single_word": false, "special": %s}%s\n',
      model.special[t[1]], quote(t[1]), tostring(t[2]), i < #M.added and "," or "")
  end
  out[#out + 1] = '},\n"bos_token": null,\n"chat_template": ' .. quote(M.chat_template) .. ',\n'
    .. '"clean_up_tokenization_spaces": false,\n"eos_token": "<|im_end|>",\n"errors": "replace",\n'
    .. '"model_max_length": 131072,\n"pad_token": "<|endoftext|>",\n'
    .. '"split_special_tokens": false,\n"tokenizer_class": "Qwen2Tokenizer",\n'
    .. '"unk_token": null\n}\n'
  return table.concat(out)
end

-- Writes tokenizer.json and tokenizer_config.json into an existing folder.
function M.write(dir, model)
  files.write(dir .. "/tokenizer.json", tokenizer_json(model))
  files.write(dir .. "/tokenizer_config.json", tokenizer_config_json(model))
end

return M
