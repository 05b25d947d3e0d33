-- test_tokenizer.lua - byte-level BPE on a small vocabulary made here, chats and bad folders. Where
-- SEGZERO_QWEN_TOKENIZER names a folder with the released Qwen2.5-VL vocabulary, also every case of
-- tests/golden/tokenizer/qwen2.5-vl.jsonl, which Hugging Face tokenizers wrote.
--
--   ./segzero tests/unit/test_tokenizer.lua

local cjson = require "cjson"
local check = require "tests.support.check"
local chat_template = require "segzero.models.text.chat_template"
local sz = require "segzero"
local files = require "segzero.core.files"
local tokenizer = require "segzero.models.text.tokenizer"

local GOLDEN = "tests/golden/tokenizer/qwen2.5-vl.jsonl"

-- The alternatives of Qwen's pattern, in its order.
local SPLIT = table.concat({
  [[(?i:'s|'t|'re|'ve|'m|'ll|'d)]],
  [[[^\r\n\p{L}\p{N}]?\p{L}+]],
  [[\p{N}]],
  [[ ?[^\s\p{L}\p{N}]+[\r\n]*]],
  [[\s*[\r\n]+]],
  [[\s+(?!\S)]],
  [[\s+]],
}, "|")

-- U+FFFD in UTF-8.
local REPLACEMENT = "\239\191\189"

local dir = os.tmpname()
os.remove(dir)
files.make_dir(dir)

-- ---- a small vocabulary: the 256 bytes (id = byte), one token per merge, added tokens ----

local function utf8(c)
  if c < 0x80 then return string.char(c) end
  return string.char(0xc0 + math.floor(c / 64), 0x80 + c % 64)
end

-- Whether a byte's own character is printable.
local function printable(b)
  if b >= 0x21 and b <= 0x7e then return true end
  if b >= 0xa1 and b <= 0xac then return true end
  return b >= 0xae
end

-- The letter that stands for each byte: its own character if that is printable, else the next one
-- from U+0100 on.
local function byte_letters()
  local letters = {}
  local spare = 0
  for b = 0, 255 do
    if printable(b) then
      letters[b] = utf8(b)
    else
      letters[b] = utf8(0x100 + spare)
      spare = spare + 1
    end
  end
  return letters
end

local letter = byte_letters()

local function spell(text) return (text:gsub(".", function(c) return letter[c:byte()] end)) end

local MERGES = {
  { "a", "b" }, { "ab", "ab" }, { "b", "c" }, { " ", "a" }, { " a", "b" }, { "\195", "\169" },
  { "abab", "abab" }, { "x", "x" },
}

-- The ids of the merged tokens that the cases use.
local AB = 256
local ABAB = 257
local BC = 258
local SPACE_A = 259
local EACUTE = 261
local ABABABAB = 262
local XX = 263

-- The ids of the added tokens: tokenizers gives them the next free ones, whatever the file says.
local END = 264
local BEGIN = 265
local END_END = 266

-- The tables `vocab` and `merges` of tokenizer.json.
local function vocabulary()
  local vocab = {}
  local merges = {}
  for b = 0, 255 do vocab[letter[b]] = b end
  for i, merge in ipairs(MERGES) do
    local left = spell(merge[1])
    local right = spell(merge[2])
    vocab[left .. right] = 255 + i
    -- There are two ways of writing a pair: both are used in turn.
    if i % 2 == 1 then
      merges[i] = { left, right }
    else
      merges[i] = left .. " " .. right
    end
  end
  return vocab, merges
end

-- The content of tokenizer.json.
local function description()
  local vocab, merges = vocabulary()
  return {
    version = "1.0",
    normalizer = { type = "NFC" },
    pre_tokenizer = {
      type = "Sequence",
      pretokenizers = {
        { type = "Split", pattern = { Regex = SPLIT }, behavior = "Isolated", invert = false },
        { type = "ByteLevel", add_prefix_space = false, use_regex = false },
      },
    },
    model = { type = "BPE", vocab = vocab, merges = merges, ignore_merges = false },
    added_tokens = {
      { id = END, content = "<|end|>", special = true, normalized = false },
      { id = BEGIN, content = "<|e", special = false, normalized = false },
      { id = END_END, content = "<|end|><|end|>", special = false, normalized = false },
    },
  }
end

local function save(json)
  files.write(dir .. "/tokenizer.json", cjson.encode(json))
  return dir
end

files.write(dir .. "/tokenizer_config.json",
  '{"eos_token": {"content": "<|end|>"}, "pad_token": null}')
local tok = sz.tokenizer(save(description()))

check.case("special ids and the size", function()
  check.equal({ tok.eos_id, tok.pad_id, tok:size() }, { END, nil, 267 }, "special ids, size")
  check.ok(tostring(tok):find("267 ids"), "tostring")
end)

-- ---- encoding ----

local function ids(text, want, name) check.equal(tok:encode(text), want, name) end

check.case("merges", function()
  ids("", {}, "nothing")
  ids("abc", { AB, 99 }, "the lower rank goes first")
  ids("bc", { BC }, "one pair")
  ids("ababab", { ABAB, AB }, "pairs from the left")
  ids(" ab", { 32, AB }, "a pair of lower rank takes the letter that another pair needs")
  ids("xxx", { XX, 120 }, "three of a kind")
end)

check.case("the split into words", function()
  ids(" ac", { SPACE_A, 99 }, "the space joins the word")
  ids("a  b", { 97, 32, 32, 98 }, "the last white space before a word belongs to the word")
  ids("12", { 49, 50 }, "each digit is its own token")
end)

check.case("UTF-8", function()
  ids("\195\169", { EACUTE }, "é")
  ids("e\204\129", { EACUTE }, "e and a combining accent are composed")
  ids("a\0b", { 97, 0, 98 }, "a zero byte")
  ids("\255", { 239, 191, 189 }, "a byte that is not UTF-8 becomes U+FFFD")
  ids("a\226\130", { 97, 239, 191, 189 }, "a cut-off character becomes one U+FFFD")
end)

check.case("added tokens", function()
  ids("ab<|end|>ab", { AB, END, AB }, "an added token")
  ids("<|end|><|end|>", { END_END }, "the longest added token")
  ids("<|e<|end|>", { BEGIN, END }, "the leftmost added token")
  ids("<|en", { BEGIN, 110 }, "a shorter added token")
end)

-- The UTF-8 of code points from U+0800 to U+FFFF: three bytes each.
local function text_of(...)
  local out = {}
  for i, c in ipairs { ... } do
    out[i] = string.char(0xe0 + math.floor(c / 4096), 0x80 + math.floor(c / 64) % 64, 0x80 + c % 64)
  end
  return table.concat(out)
end

-- tokenizers 0.23.3 gives the same: normalizers.NFC().
check.case("U+11A7 composes with nothing", function()
  local function composes(from, to, name)
    local got = tok:decode(tok:encode(text_of(unpack(from))))
    check.equal(got, text_of(unpack(to)), name)
  end
  composes({ 0xac00, 0x11a7 }, { 0xac00, 0x11a7 }, "after a syllable")
  composes({ 0x1100, 0x1161, 0x11a7 }, { 0xac00, 0x11a7 }, "after a syllable of two letters")
  composes({ 0x1100, 0x11a7, 0x1161 }, { 0x1100, 0x11a7, 0x1161 }, "between two letters")
  composes({ 0xac00, 0x11a7, 0x11a8 }, { 0xac00, 0x11a7, 0x11a8 }, "before a consonant")
  composes({ 0xac00, 0x11a8, 0x11a7 }, { 0xac01, 0x11a7 }, "after a syllable of three letters")
  composes({ 0x11a7, 0x11a7, 0x1100, 0x1161 }, { 0x11a7, 0x11a7, 0xac00 }, "at the start, twice")
  composes({ 0xac00, 0x11a8 }, { 0xac01 }, "the first trailing consonant")
  composes({ 0xac00, 0x11c2 }, { 0xac1b }, "the last trailing consonant")
  composes({ 0xac00, 0x11c3 }, { 0xac00, 0x11c3 }, "the character after it")
end)

-- NFC makes a token shorter or longer. tokenizers 0.23.3 gives the same ids and texts, with two
-- exceptions: it writes U+FFFD for the last letter of CAFE, whose letters all stand for bytes as
-- well, and it does not skip LONG, which it looks up among the special tokens by its new text.
check.case("added tokens that are found in the normalised text are normalised", function()
  local CAFE = 264
  local QA = 265
  local LONG = 266
  local RAW = 267
  local acute = "\204\129"
  local qa = text_of(0x0958)
  local parts = text_of(0x0915, 0x093c)
  local json = description()
  json.added_tokens = {
    { id = CAFE, content = "cafe" .. acute, special = false, normalized = true },
    { id = QA, content = qa, special = false, normalized = true },
    { id = LONG, content = parts .. "x", special = true, normalized = true },
    { id = RAW, content = "xe" .. acute, special = false, normalized = false },
  }
  local t = sz.tokenizer(save(json))
  local function finds(text, want, name) check.equal(t:encode(text), want, name) end
  finds("acaf\195\169b", { 97, CAFE, 98 }, "the composed text")
  finds("acafe" .. acute .. "b", { 97, CAFE, 98 }, "the text as the file has it")
  finds("cafe", { 99, 97, 102, 101 }, "without the accent")
  finds(qa .. "a" .. parts, { QA, 97, QA }, "a letter that NFC takes apart")
  finds(qa .. "x", { LONG }, "the longest after NFC")
  finds("xe" .. acute, { RAW }, "a token of the raw text")
  finds("x\195\169", { 120, EACUTE }, "which is not normalised")
  check.equal({ t:id("cafe" .. acute), t:id(qa), t:id(parts .. "x") }, { CAFE, QA, LONG }, "ids")
  check.equal(t:decode { QA, LONG, RAW }, parts .. parts .. "x" .. "xe" .. acute, "decoded")
  check.equal(t:decode { CAFE }, "caf\195\169", "decoded, composed")
  check.equal(t:decode({ LONG, 97 }, { skip_special_tokens = true }), "a", "special: skipped")
  t:free()

  json.normalizer = nil
  t = sz.tokenizer(save(json))
  finds("caf\195\169", { 99, 97, 102, EACUTE }, "without a normaliser, the composed text")
  finds("cafe" .. acute, { CAFE }, "without a normaliser, the text as the file has it")
  check.equal(t:decode { CAFE, QA }, "cafe" .. acute .. qa, "without a normaliser, decoded")
  t:free()
end)

check.case("long words use a heap and give the same ids as short ones", function()
  for _, n in ipairs { 20, 23, 24, 25, 26, 31, 500 } do
    local text = ("ab"):rep(n)
    local want = {}
    for _ = 1, math.floor(n / 4) do want[#want + 1] = ABABABAB end
    if n % 4 >= 2 then want[#want + 1] = ABAB end
    if n % 2 == 1 then want[#want + 1] = AB end
    ids(text, want, n .. " times ab")
    ids(text, want, n .. " times ab again")
    check.equal(tok:decode(want), text, n .. " times ab back")
  end
end)

-- ---- decoding ----

check.case("decoding", function()
  check.equal(tok:decode({ 97, END, 98 }), "a<|end|>b", "decode shows special tokens")
  check.equal(tok:decode({ 97, END, BEGIN, 98 }, { skip_special_tokens = true }), "a<|eb",
    "decode skips special tokens only")
  check.equal(tok:decode({ 226, 130, 172, 226, 130, 97, 240, 159 }),
    "€" .. REPLACEMENT .. "a" .. REPLACEMENT, "broken bytes: one U+FFFD each")
  check.equal(tok:decode({ 237, 160, 128 }), REPLACEMENT:rep(3),
    "a surrogate is three broken bytes")
  check.equal(tok:decode({ 267, 299, 5000 }), "", "ids without a token")
  check.equal(tok:decode({}), "", "no ids")
end)

check.case("ids and their tokens", function()
  local got = { tok:id("<|end|>"), tok:id("ab"), tok:id("a b"), tok:token(256), tok:token(299) }
  check.equal(got, { END, 256, nil, "ab", nil }, "id and token")
end)

check.case("bad arguments", function()
  check.raises(function() tok:decode({ -1 }) end, "token 1 has id %-1", "a negative id")
  check.raises(function() tok:decode({ 1.5 }) end, "ids%[1%] is 1.5", "half an id")
  check.raises(function() tok:encode(7) end, "number", "encoding a number")
  check.raises(function() tok:decode("x") end, "string", "decoding a string")
end)

-- ---- chat ----

local SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
local IMAGE_MARK = "<|vision_start|><|image_pad|><|vision_end|>"
local VIDEO_MARK = "<|vision_start|><|video_pad|><|vision_end|>"

local function user_turn(text) return "<|im_start|>user\n" .. text .. "<|im_end|>\n" end

check.case("chats", function()
  local question = { { role = "user", content = "Hi" } }
  check.equal(tok:chat(question, { add_generation_prompt = true }),
    SYSTEM .. user_turn "Hi" .. "<|im_start|>assistant\n", "one question")

  local with_image = {
    { role = "system", content = "Be brief." },
    {
      role = "user",
      content = { { type = "image", image = "x.png" }, { type = "text", text = "Where?" } },
    },
  }
  check.equal(tok:chat(with_image),
    "<|im_start|>system\nBe brief.<|im_end|>\n" .. user_turn(IMAGE_MARK .. "Where?"),
    "own system message, an image")

  -- The words "Picture 1" are those of the model's own template.
  local numbered = {
    { role = "user", content = { { image = "a" }, { image_url = "b" }, { type = "video" } } },
  }
  local marks = "Picture 1: " .. IMAGE_MARK .. "Picture 2: " .. IMAGE_MARK
    .. "Video 1: " .. VIDEO_MARK
  check.equal(tok:chat(numbered, { add_vision_id = true }), SYSTEM .. user_turn(marks),
    "numbered images")
  check.equal(tok:chat({}), "", "no messages")
end)

check.case("bad chats", function()
  check.raises(function() tok:chat { { content = "x" } } end,
    "test_tokenizer.lua.*message 1 has no role", "no role")
  check.raises(function() tok:chat { { role = "user" } } end,
    "message 1: content is a nil", "no content")
  check.raises(function() tok:chat { { role = "user", content = { { type = "text" } } } } end,
    "message 1, item 1", "an item without text")
end)

check.case("a tokenizer may be freed twice but not used after that", function()
  local freed = sz.tokenizer(save(description()))
  freed:free()
  freed:free()
  check.raises(function() freed:encode("x") end, "freed", "a freed tokenizer")
end)

-- ---- bad folders ----

-- Loading the folder after change(description) fails with this pattern.
local function bad(name, pattern, change)
  local json = description()
  change(json)
  save(json)
  check.raises(function() sz.tokenizer(dir) end, pattern, name)
end

check.case("bad merges", function()
  bad("a merge of unknown parts", "merge 9 %('zq' 'a'%) has a part",
    function(j) table.insert(j.model.merges, { "zq", "a" }) end)
  bad("a merge to nothing", "merge 9 %('q' 'z'%) makes a token",
    function(j) table.insert(j.model.merges, "q z") end)
  bad("a merge of one", "entry 9 is not a pair", function(j) table.insert(j.model.merges, "qz") end)
end)

check.case("bad ids", function()
  bad("an id twice", "id 97 is given twice", function(j) j.model.vocab.zz = 97 end)
  bad("half an id", "'zz' has id 1.5", function(j) j.model.vocab.zz = 1.5 end)
  bad("a huge id", "out of range", function(j) j.model.vocab.zz = 1e9 end)
end)

-- ---- the text of tokenizer.json ----

-- Opens a file with these texts for VOCAB and MERGES in `order`, the text of the rest.
local function open_text(vocab, merges, order)
  local byte_level = '{"type": "ByteLevel", "use_regex": false}'
  files.write(dir .. "/tokenizer.json", order:gsub("VOCAB", function() return vocab end)
    :gsub("MERGES", function() return merges end):gsub("BYTES", function() return byte_level end))
  return sz.tokenizer(dir)
end

local PLAIN = '{"pre_tokenizer": BYTES, "model": {"vocab": VOCAB, "merges": MERGES}}'

check.case("escapes, white space, the order of the keys and keys that are given twice", function()
  local vocab = [[ {"\u0061":0 ,"b" : 1,"\u0120":2, "ab":3,"\"":4, "\\":5, "\ud83d\ude00": 6} ]]
  local merges = '[ "a b" ]'
  local orders = {
    PLAIN,
    '{"model": {"merges": MERGES, "type": "BPE",\r\n\t"vocab": VOCAB }, "pre_tokenizer": BYTES}',
    '{"model": {"vocab": 7}, "pre_tokenizer": BYTES, "model": {"vocab": {}, "merges": MERGES, '
      .. '"vocab": VOCAB}}',
    '{"\\u006dodel": {"v\\u006fcab": VOCAB, "merges": MERGES}, "pre_tokenizer": BYTES}',
    '{"pre_tokenizer": BYTES, "added_tokens": [{"id": 9, "content": "]}\\"", "special": false}], '
      .. '"model": {"merges": MERGES, "unk_token": "{[", "vocab": VOCAB}}',
  }
  for i, order in ipairs(orders) do
    local t = open_text(vocab, merges, order)
    check.equal(t:encode 'ab "\\', { 3, 2, 4, 5 }, "order " .. i)
    check.equal(t:token(6), "\240\159\152\128", "a pair of surrogates, order " .. i)
    t:free()
  end
end)

check.case("a token outside the alphabet is found by its spelling", function()
  -- Id 2 has the same bytes and is spelt in the alphabet.
  local order = PLAIN:gsub("}}$", '}, "added_tokens": [{"id": 3, "content": "a b"}]}')
  local t = open_text('{"a": 0, "b": 1, "a\\u0120b": 2, "a b": 3, "\\u0120": 4}', "[]", order)
  check.equal(t:encode "a b", { 3 }, "the added token has the vocabulary's id")
  check.equal({ t:token(2), t:token(3) }, { "a b", "a b" }, "both tokens")
  check.equal(t:size(), 6, "the size, with <|end|> of tokenizer_config.json")
end)

check.case("merges that do not make the ids in order", function()
  -- After 3 comes 4, whose text is that of 5 and is spelt otherwise.
  local vocab = [[{"a": 0, "b": 1, "\u0120": 2, "a\u0120": 3, "a b": 4, "a\u0120b": 5]]
  local t = open_text(vocab .. ', "bb": 9, "ab": 7, "aab": 6}',
    [=[["a \u0120", "a\u0120 b", "b b", "a b", ["a", "ab"]]]=], PLAIN)
  check.equal(t:encode "a b", { 5 }, "the token that is spelt in the alphabet")
  check.equal(t:encode "bbaabab", { 9, 6, 7 }, "ids that go down")
end)

check.case("tables that are not JSON", function()
  local function refused(pattern, vocab, merges)
    check.raises(function() open_text(vocab, merges, PLAIN) end,
      "tokenizer%.json: not valid JSON: .*" .. pattern, vocab .. " " .. merges)
  end
  refused("byte %d+: a comma is expected", '{"a": 0 "b": 1}', "[]")
  refused("a string is expected", '{"a": 0,}', "[]")
  refused("a string is expected", "{7: 0}", "[]")
  refused("a colon is expected", '{"a"; 0}', "[]")
  refused("an escape that JSON has not", [[{"\q": 0}]], "[]")
  refused("an escape that JSON has not", [[{"\ud83d": 0}]], "[]")
  refused("an escape that JSON has not", [[{"\u12": 0}]], "[]")
  refused("a comma is expected", '{"a": 0, "aa": 1}', '["a a" "a a"]')
  refused("", '{"a": 0', "[]")
  refused("", '{"a": 0}', '["a a]')
end)

check.case("tables of another kind", function()
  local function refused(pattern, vocab, merges)
    check.raises(function() open_text(vocab, merges, PLAIN) end, pattern, vocab .. " " .. merges)
  end
  refused("model%.vocab: token 'a' has id \"0\"", '{"a": "0"}', "[]")
  refused("model%.vocab: token 'a' has id 4294967296", '{"a": 4294967296}', "[]")
  refused("id %-1 is out of range", '{"a": -1}', "[]")
  refused("'a' is in the vocabulary twice", '{"a": 0, "a": 1}', "[]")
  refused("merges is not a list", '{"a": 0}', '{"a": "b"}')
  for _, entry in ipairs { '"aa"', '"a  a"', '" a"', '"a "', '["a"]', '["a", "a", "a"]', '["a", 1]',
    "7", "[]", "{}" } do
    refused("model%.merges: entry 1 is not a pair", '{"a": 0, "aa": 1}', "[" .. entry .. "]")
  end
end)

check.case("the tables take no memory of Lua's", function()
  local words = {}
  for i = 0, 29999 do words[i + 1] = ('"w%d": %d'):format(i, i) end
  local vocab = "{" .. table.concat(words, ", ") .. "}"
  files.write(dir .. "/tokenizer.json", (PLAIN:gsub("VOCAB", vocab):gsub("MERGES", "[]")
    :gsub("BYTES", '{"type": "ByteLevel", "use_regex": false}')))
  collectgarbage()
  collectgarbage "stop"
  local before = collectgarbage "count"
  local t = sz.tokenizer(dir)
  local kilobytes = collectgarbage "count" - before
  collectgarbage "restart"
  check.equal(t:id "<|end|>", 30000, "the first id after the tokens")
  check.ok(kilobytes < 200, ("%.0f kB for a file of %.0f"):format(kilobytes, #vocab / 1024))
end)

check.case("settings that are not handled", function()
  bad("a broken pattern", "does not compile",
    function(j) j.pre_tokenizer.pretokenizers[1].pattern.Regex = "(a" end)
  bad("another model", "'Unigram' is not BPE", function(j) j.model.type = "Unigram" end)
  bad("another normaliser", "'Lowercase' is not handled",
    function(j) j.normalizer.type = "Lowercase" end)
  bad("another splitter", "'Digits' is not handled",
    function(j) j.pre_tokenizer.pretokenizers[1].type = "Digits" end)
  bad("no ByteLevel", "not ByteLevel", function(j) table.remove(j.pre_tokenizer.pretokenizers) end)
  bad("a token that is not UTF-8", "added token 265 is not UTF%-8", function(j)
    j.added_tokens[2] = { id = BEGIN, content = "a\255", special = false, normalized = true }
  end)
  bad("lstrip", "lstrip", function(j) j.added_tokens[1].lstrip = true end)
  bad("byte_fallback", "byte_fallback", function(j) j.model.byte_fallback = true end)
end)

check.case("a vocabulary without byte 0", function()
  local json = description()
  json.model.vocab[letter[0]] = nil
  check.raises(function() sz.tokenizer(save(json)):encode("\0") end, "no token for byte 0x00",
    "a vocabulary without byte 0")
end)

check.case("a file without JSON and a missing folder", function()
  files.write(dir .. "/tokenizer.json", "{ no")
  check.raises(function() sz.tokenizer(dir) end, "tokenizer.json: not valid JSON", "no JSON")
  check.raises(function() sz.tokenizer(dir .. "/none") end, "none/tokenizer.json: No such file",
    "no folder")
end)

os.execute("rm -rf " .. dir)

-- ---- the released vocabulary ----

local folder = os.getenv "SEGZERO_QWEN_TOKENIZER"
if not folder then
  check.skip("a folder with Qwen2.5-VL's tokenizer.json (SEGZERO_QWEN_TOKENIZER=folder)")
  return check.finish()
end

local started = os.clock()
local qwen = tokenizer.new(folder)
print(("loaded %d ids in %.2f s"):format(qwen:size(), os.clock() - started))

check.case("the released vocabulary's special ids and chat template", function()
  check.equal(qwen.eos_id, 151645, "eos")
  check.equal(qwen:id("<|image_pad|>"), 151655, "image_pad")
  check.equal(chat_template.read(folder, qwen.config), { system = "You are a helpful assistant." },
    "the folder's chat template is the known one")
end)

local function same_ids(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

local function encodes(c) return same_ids(qwen:encode(c.text), c.ids) end

-- For each kind of golden case, whether the tokenizer agrees with case c.
local AGREES = {
  encode = encodes,
  encode_new = encodes,
  decode = function(c)
    if qwen:decode(c.ids) ~= c.text then return false end
    return qwen:decode(c.ids, { skip_special_tokens = true }) == c.skipped
  end,
  chat = function(c) return qwen:chat(c.messages, c.options) == c.text end,
}

-- The number of golden cases of a kind, and a list of the lines that differ.
local function compare(kind)
  local total = 0
  local wrong = {}
  for line in io.lines(GOLDEN) do
    local c = cjson.decode(line)
    if c.kind == kind then
      total = total + 1
      if not AGREES[kind](c) then wrong[#wrong + 1] = line end
    end
  end
  return total, wrong
end

for _, kind in ipairs { "encode", "decode", "chat" } do
  check.case("golden cases: " .. kind, function()
    local total, wrong = compare(kind)
    for i = 1, math.min(#wrong, 3) do print("differs: " .. wrong[i]:sub(1, 200)) end
    check.ok(total > 0, kind .. ": cases found")
    check.equal(#wrong, 0, ("%s: %d golden cases"):format(kind, total))
  end)
end

-- Characters newer than the regex library's Unicode tables may be split another way, so differences
-- are printed and do not fail.
check.case("golden cases: encode_new", function()
  local total, wrong = compare "encode_new"
  check.ok(total > 0, "encode_new: cases found")
  print(("%d of %d texts with new characters differ"):format(#wrong, total))
end)

check.finish()
