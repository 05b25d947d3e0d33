-- test_tokenizer.lua - byte-level BPE on a small vocabulary made here, chat rendering and bad files; and, where a folder
-- with the released Qwen2.5-VL vocabulary is named (SEGZERO_QWEN_TOKENIZER), every case of
-- tests/golden/tokenizer/qwen2.5-vl.jsonl, which Hugging Face tokenizers wrote.

local cjson = require "cjson"
local check = require "tests.support.check"
local sz = require "segzero"
local tokenizer = require "segzero.models.tokenizer"

local GOLDEN = "tests/golden/tokenizer/qwen2.5-vl.jsonl"
local SPLIT = [[(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+]]

local dir = os.tmpname()
os.remove(dir)
assert(os.execute("mkdir " .. dir))

local function write_file(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

-- ---- a small vocabulary: the 256 bytes (id = byte), then one token per merge, then added tokens ----
local function utf8(c)
  if c < 0x80 then return string.char(c) end
  return string.char(0xc0 + math.floor(c / 64), 0x80 + c % 64)
end

local letter, spare = {}, 0
for b = 0, 255 do
  if (b >= 0x21 and b <= 0x7e) or (b >= 0xa1 and b <= 0xac) or b >= 0xae then
    letter[b] = utf8(b)
  else
    letter[b] = utf8(0x100 + spare)
    spare = spare + 1
  end
end
local function spell(text) return (text:gsub(".", function(c) return letter[c:byte()] end)) end

local function description()
  local vocab, merges, next_id = {}, {}, 256
  for b = 0, 255 do vocab[letter[b]] = b end
  for _, m in ipairs{ { "a", "b" }, { "ab", "ab" }, { "b", "c" }, { " ", "a" }, { " a", "b" }, { "\195", "\169" }, { "abab", "abab" }, { "x", "x" } } do
    local left, right = spell(m[1]), spell(m[2])
    vocab[left .. right] = next_id
    next_id = next_id + 1
    merges[#merges + 1] = #merges % 2 == 0 and { left, right } or left .. " " .. right      -- both ways of writing a pair
  end
  return {
    version = "1.0", normalizer = { type = "NFC" },
    pre_tokenizer = { type = "Sequence", pretokenizers = {
      { type = "Split", pattern = { Regex = SPLIT }, behavior = "Isolated", invert = false },
      { type = "ByteLevel", add_prefix_space = false, use_regex = false },
    } },
    model = { type = "BPE", vocab = vocab, merges = merges, ignore_merges = false },
    added_tokens = {
      { id = 300, content = "<|end|>", special = true, normalized = false }, { id = 301, content = "<|e", special = false, normalized = false },
      { id = 302, content = "<|end|><|end|>", special = false, normalized = false },
    },
  }
end

local function save(json)
  write_file(dir .. "/tokenizer.json", cjson.encode(json))
  return dir
end

local AB, ABAB, BC, _A, _, EACUTE, ABAB2, XX = 256, 257, 258, 259, 260, 261, 262, 263
write_file(dir .. "/tokenizer_config.json", '{"eos_token": {"content": "<|end|>"}, "pad_token": null}')
local tok = sz.tokenizer(save(description()))
check.equal({ tok.eos_id, tok.pad_id, tok:size() }, { 300, nil, 303 }, "special ids, size")
check.ok(tostring(tok):find("303 ids"), "tostring")

local function ids(text, want, name) check.equal(tok:encode(text), want, name) end
ids("", {}, "nothing")
ids("abc", { AB, 99 }, "the lower rank goes first")
ids("bc", { BC }, "one pair")
ids("ababab", { ABAB, AB }, "pairs from the left")
ids(" ab", { 32, AB }, "a pair of lower rank takes the letter that another pair needs")
ids(" ac", { _A, 99 }, "the space joins the word")
ids("xxx", { XX, 120 }, "three of a kind")
ids("a  b", { 97, 32, 32, 98 }, "white space before a word leaves its last character to it")
ids("\195\169", { EACUTE }, "é")
ids("e\204\129", { EACUTE }, "e and a combining accent are composed")
ids("12", { 49, 50 }, "digits stand alone")
ids("a\0b", { 97, 0, 98 }, "a zero byte")
ids("\255", { 239, 191, 189 }, "a byte that is no UTF-8 becomes U+FFFD")
ids("a\226\130", { 97, 239, 191, 189 }, "a cut-off character becomes one U+FFFD")
ids("ab<|end|>ab", { AB, 300, AB }, "an added token")
ids("<|end|><|end|>", { 302 }, "the longest added token")
ids("<|e<|end|>", { 301, 300 }, "the leftmost added token")
ids("<|en", { 301, 110 }, "a shorter added token")

-- Long words go another way (a heap) than short ones; the result must be the same.
for _, n in ipairs{ 20, 23, 24, 25, 26, 31, 500 } do
  local want = {}
  for _ = 1, math.floor(n / 4) do want[#want + 1] = ABAB2 end
  if n % 4 >= 2 then want[#want + 1] = ABAB end
  if n % 2 == 1 then want[#want + 1] = AB end
  ids(("ab"):rep(n), want, n .. " times ab")
  ids(("ab"):rep(n), want, n .. " times ab again")
  check.equal(tok:decode(want), ("ab"):rep(n), n .. " times ab back")
end

check.equal(tok:decode({ 97, 300, 98 }), "a<|end|>b", "decode shows special tokens")
check.equal(tok:decode({ 97, 300, 301, 98 }, { skip_special_tokens = true }), "a<|eb",
  "decode skips special tokens only")
check.equal(tok:decode({ 226, 130, 172, 226, 130, 97, 240, 159 }), "€\239\191\189a\239\191\189",
  "broken bytes: one U+FFFD each")
check.equal(tok:decode({ 237, 160, 128 }), ("\239\191\189"):rep(3),
  "a surrogate is three broken bytes")
check.equal(tok:decode({ 280, 299, 5000 }), "", "ids without a token")
check.equal(tok:decode({}), "", "no ids")
check.equal({ tok:id("<|end|>"), tok:id("ab"), tok:id("a b"), tok:token(256), tok:token(299) }, { 300, 256, nil, "ab", nil }, "id and token")
check.raises(function() tok:decode({ -1 }) end, "token 1 has id %-1", "a negative id")
check.raises(function() tok:decode({ 1.5 }) end, "ids%[1%] is 1.5", "half an id")
check.raises(function() tok:encode(7) end, "number", "encoding a number")
check.raises(function() tok:decode("x") end, "string", "decoding a string")

-- ---- chat ----
local SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
local PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
check.equal(tok:chat({ { role = "user", content = "Hi" } }, { add_generation_prompt = true }),
  SYSTEM .. "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "one question")
check.equal(tok:chat{ { role = "system", content = "Be brief." }, { role = "user", content = { { type = "image", image = "x.png" }, { type = "text", text = "Where?" } } } },
  "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n" .. PICTURE .. "Where?<|im_end|>\n", "own system message, an image")
check.equal(tok:chat({ { role = "user", content = { { image = "a" }, { image_url = "b" }, { type = "video" } } } }, { add_vision_id = true }),
  SYSTEM .. "<|im_start|>user\nPicture 1: " .. PICTURE .. "Picture 2: " .. PICTURE .. "Video 1: <|vision_start|><|video_pad|><|vision_end|><|im_end|>\n", "numbered images")
check.equal(tok:chat({}), "", "no messages")
check.raises(function() tok:chat{ { content = "x" } } end,
  "test_tokenizer.lua.*message 1 has no role", "no role")
check.raises(function() tok:chat{ { role = "user" } } end,
  "message 1: content is a nil", "no content")
check.raises(function() tok:chat{ { role = "user", content = { { type = "text" } } } } end,
  "message 1, item 1", "an item without text")

tok:free()
tok:free()
check.raises(function() tok:encode("x") end, "freed", "a freed tokenizer")

-- ---- bad folders ----
local function bad(name, pattern, change)
  local json = description()
  change(json)
  save(json)
  check.raises(function() sz.tokenizer(dir) end, pattern, name)
end
bad("a merge of unknown parts", "merge 9 %('zq' 'a'%) has a part",
  function(j) table.insert(j.model.merges, { "zq", "a" }) end)
bad("a merge to nothing", "merge 9 %('q' 'z'%) makes a token",
  function(j) table.insert(j.model.merges, "q z") end)
bad("a merge of one", "entry 9 is not a pair", function(j) table.insert(j.model.merges, "qz") end)
bad("an id twice", "id 97 is given twice", function(j) j.model.vocab.zz = 97 end)
bad("half an id", "'zz' has id 1.5", function(j) j.model.vocab.zz = 1.5 end)
bad("a huge id", "out of range", function(j) j.model.vocab.zz = 1e9 end)
bad("a broken pattern", "does not compile",
  function(j) j.pre_tokenizer.pretokenizers[1].pattern.Regex = "(a" end)
bad("another model", "'Unigram' is not BPE", function(j) j.model.type = "Unigram" end)
bad("another normaliser", "'Lowercase' is not handled",
  function(j) j.normalizer.type = "Lowercase" end)
bad("another splitter", "'Digits' is not handled",
  function(j) j.pre_tokenizer.pretokenizers[1].type = "Digits" end)
bad("no ByteLevel", "not ByteLevel", function(j) table.remove(j.pre_tokenizer.pretokenizers) end)
bad("lstrip", "lstrip", function(j) j.added_tokens[1].lstrip = true end)
bad("byte_fallback", "byte_fallback", function(j) j.model.byte_fallback = true end)
do
  local json = description()
  json.model.vocab[letter[0]] = nil
  check.raises(function() sz.tokenizer(save(json)):encode("\0") end,
    "no token for byte 0x00", "a vocabulary without byte 0")
end
write_file(dir .. "/tokenizer.json", "{ no")
check.raises(function() sz.tokenizer(dir) end, "tokenizer.json: not valid JSON", "no JSON")
check.raises(function() sz.tokenizer(dir .. "/none") end,
  "none/tokenizer.json: No such file", "no folder")
os.execute("rm -rf " .. dir)

-- ---- the released vocabulary ----
local folder = os.getenv "SEGZERO_QWEN_TOKENIZER"
if not folder then
  check.skip("a folder with Qwen2.5-VL's tokenizer.json (SEGZERO_QWEN_TOKENIZER=folder)")
  return check.finish()
end

local started = os.clock()
local qwen = tokenizer.new(folder)
local seconds = os.clock() - started
print(("loaded %d ids in %.2f s"):format(qwen:size(), seconds))
check.equal(qwen.eos_id, 151645, "eos")
check.equal(qwen:id("<|image_pad|>"), 151655, "image_pad")
check.ok(tokenizer.template_sum(qwen.config.chat_template) == "1017:61244108",
  "the folder's chat template is the known one")

local total = { encode = 0, encode_new = 0, decode = 0, chat = 0 }
local wrong = { encode = 0, encode_new = 0, decode = 0, chat = 0 }
local function same_ids(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do if a[i] ~= b[i] then return false end end
  return true
end
for line in io.lines(GOLDEN) do
  local c = cjson.decode(line)
  local good
  if c.kind == "encode" or c.kind == "encode_new" then good = same_ids(qwen:encode(c.text), c.ids)
  elseif c.kind == "decode" then good = qwen:decode(c.ids) == c.text and qwen:decode(c.ids, { skip_special_tokens = true }) == c.skipped
  elseif c.kind == "chat" then good = qwen:chat(c.messages, c.options) == c.text end
  if total[c.kind] then
    total[c.kind] = total[c.kind] + 1
    if not good then
      wrong[c.kind] = wrong[c.kind] + 1
      if c.kind ~= "encode_new" and wrong[c.kind] < 4 then print("differs: " .. line:sub(1, 200)) end
    end
  end
end
for _, kind in ipairs{ "encode", "decode", "chat" } do
  check.ok(total[kind] > 0, kind .. ": cases found")
  check.equal(wrong[kind], 0, ("%s: %d golden cases"):format(kind, total[kind]))
end
-- Characters newer than the regex library's Unicode tables may be split another way.
print(("%d of %d texts with new characters differ"):format(wrong.encode_new, total.encode_new))

check.finish()
