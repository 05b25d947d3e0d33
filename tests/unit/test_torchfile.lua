-- test_torchfile.lua - files of torch.save (tests/golden/make_torchfile.py wrote those in tests/golden/torchfile), pickles that
-- want to run something, damaged files; then SAM2's original names and the config derived from shapes.

local cjson = require "cjson"
local check = require "tests.support.check"
local sz = require "segzero"
local files = require "segzero.core.files"
local names = require "segzero.models.sam2_names"
local tensor = require "segzero.core.tensor"
local tf = sz.torchfile

local golden = "tests/golden/torchfile/"
local dir = os.tmpname()
os.remove(dir)
assert(os.execute("mkdir " .. dir))

-- ---- what torch wrote ----
local expected = cjson.decode(files.read(golden .. "expected.json"))
local order = {}
for file in pairs(expected) do order[#order + 1] = file end
table.sort(order)
for _, file in ipairs(order) do
  local tensors = tf.load(golden .. file)
  for name, want in pairs(expected[file]) do
    local t = tensors[name]
    if check.ok(t, file .. " has " .. name) then
      check.equal({ t:dtype(), t:shape() }, { want.dtype, want.shape }, file .. " " .. name)
      local flat, p = {}, t:dtype() == "bf16" and tensor.data(t:to { dtype = "f32" }) or tensor.data(t)
      for i = 1, t:numel() do flat[i] = tonumber(p[i - 1]) end
      check.equal(flat, want.values, file .. " " .. name)
    end
  end
  for name in pairs(tensors) do check.ok(expected[file][name], file .. " has nothing but what torch put in: " .. name) end
end
do      -- two views of one storage do not share memory here
  local views = tf.load(golden .. "views.pt")
  local before = views.base:totable()
  tensor.data(views.row)[0] = 99
  check.equal(views.base:totable(), before, "a view has its own memory")
end

local function refused(name, pattern, path)
  path = path or golden .. name
  local ok, message = pcall(tf.load, path)
  check.ok(not ok and tostring(message):find(path, 1, true) and tostring(message):find(pattern),
    ("%s: wants '%s', got '%s'"):format(name, pattern, tostring(message)))
end

refused("int16.pt", "tensor 'w' is int16, which is not handled")
refused("uint16.pt", "tensor 'w' is uint16, which is not handled")
refused("big64.pt", "tensor 'ids' is int64 and holds 2147483648, which does not fit 32 bits")
refused("legacy.pt", "before torch 1%.6.*Convert it")
refused("network.pt", "the file calls torch%.nn%.modules%.activation%.ReLU, which is not read: only tensors and plain containers are")

-- ---- archives and pickles made here ----
local function le(n, bytes)
  local out = {}
  for i = 1, bytes do
    out[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(out)
end

-- entries: {name, text, method =, flags =, packed =, bytes =, offset =, extra =}, the named ones as the directory has them.
local function zip(entries, tail)
  local parts, directory, at = {}, {}, 0
  for _, e in ipairs(entries) do
    local text = e[2]
    local head = "PK\3\4" .. le(20, 2) .. le(0, 2) .. le(0, 2) .. le(0, 8) .. le(#text, 4) .. le(#text, 4) .. le(#e[1], 2) .. le(0, 2) .. e[1]
    directory[#directory + 1] = "PK\1\2" .. le(20, 2) .. le(20, 2) .. le(e.flags or 0, 2) .. le(e.method or 0, 2) .. le(0, 8)
      .. le(e.packed or #text, 4) .. le(e.bytes or #text, 4) .. le(#e[1], 2) .. le(#(e.extra or ""), 2) .. le(0, 2)
      .. le(0, 8) .. le(e.offset or at, 4) .. e[1] .. (e.extra or "")
    parts[#parts + 1] = head .. text
    at = at + #head + #text
  end
  local d = table.concat(directory)
  return table.concat(parts) .. d .. (tail or "PK\5\6" .. le(0, 4) .. le(#entries, 2) .. le(#entries, 2) .. le(#d, 4) .. le(at, 4) .. le(0, 2))
end

local made = 0
local function file_of(content)
  made = made + 1
  local path = ("%s/%d.pt"):format(dir, made)
  files.write(path, content)
  return path
end

local function text(s) return "X" .. le(#s, 4) .. s end
local function int(n) return "J" .. le(n % 2 ^ 32, 4) end
local function ints(list)
  local out = { "(" }
  for i, n in ipairs(list) do out[i + 1] = n < 2 ^ 31 and int(n) or "\138\8" .. le(n, 8) end
  return table.concat(out) .. "t"
end
-- A tensor over storage `key` of `count` elements.
local function a_tensor(key, count, offset, shape, strides, class)
  return "ctorch._utils\n_rebuild_tensor_v2\n((" .. text "storage" .. "ctorch\n" .. (class or "FloatStorage") .. "\n" .. text(key) .. text "cpu"
    .. ints({ count }):sub(2, -2) .. "tQ" .. ints({ offset }):sub(2, -2) .. ints(shape) .. ints(strides) .. "\137ccollections\nOrderedDict\n)RtR"
end
local function dict_of(name, value) return "\128\2}" .. text(name) .. value .. "s." end
local function saved(pickle, data, more)
  local entries = { { "a/data.pkl", pickle }, { "a/data/0", data or "" } }
  for _, e in ipairs(more or {}) do entries[#entries + 1] = e end
  return file_of(zip(entries))
end
local floats = "\0\0\128\63\0\0\0\64\0\0\64\64\0\0\128\64"      -- 1, 2, 3, 4

check.equal(tf.load(saved(dict_of("w", a_tensor("0", 4, 0, { 2, 2 }, { 1, 2 })), floats)).w:totable(), { { 1, 3 }, { 2, 4 } },
  "an archive without zip64, padding or a byte order")
check.equal(tf.load(saved(dict_of("w", a_tensor("0", 4, 1, { 1, 3 }, { 77, 1 })), floats)).w:totable(), { { 2, 3, 4 } },
  "the stride of a dimension of 1 does not matter")

do      -- sizes and offset in the zip64 field, behind a field of another kind
  local first = #zip({ { "a/data.pkl", dict_of("w", a_tensor("0", 4, 0, { 4 }, { 1 })) } }, "") - 46 - #"a/data.pkl"
  local all = 2 ^ 32 - 1
  local path = file_of(zip { { "a/data.pkl", dict_of("w", a_tensor("0", 4, 0, { 4 }, { 1 })) },
    { "a/data/0", floats, bytes = all, packed = all, offset = all,
      extra = "FB\2\0ZZ" .. "\1\0\24\0" .. le(16, 8) .. le(16, 8) .. le(first, 8) } })
  check.equal(tf.load(path).w:totable(), { 1, 2, 3, 4 }, "zip64 sizes")
end

-- What a pickle may not do. Nothing of it runs: the name alone is refused.
local says = "the file calls os%.system, which is not read: only tensors and plain containers are"
local marker = dir .. "/ran"
local command = text("touch " .. marker)
local hostile = {
  GLOBAL = "\128\2cos\nsystem\n(" .. command .. "tR.",
  STACK_GLOBAL = "\128\4\140\2os\140\6system\147(" .. command .. "tR.",
  INST = "\128\2(" .. command .. "ios\nsystem\n.",
  OBJ = "\128\2(cos\nsystem\n" .. command .. "o.",
  NEWOBJ = "\128\2cos\nsystem\n(" .. command .. "t\129.",
  NEWOBJ_EX = "\128\4\140\2os\140\6system\147(" .. command .. "t}\146.",
  ["name in a tensor's place"] = dict_of("w", "cos\nsystem\n"),
}
for how, pickle in pairs(hostile) do refused(how, says, saved(pickle)) end
check.ok(not files.exists(marker), "no command has run")
refused("eval", "the file calls builtins%.eval,", saved("\128\2cbuiltins\neval\n(" .. text "1" .. "tR."))
refused("control bytes", "the file calls o%?s%.%?%?x,", saved("\128\2co\27s\n\200\1x\n)R."))
refused("INST of a known name", "OrderedDict is built by INST", saved "\128\2(icollections\nOrderedDict\n.")
refused("OBJ of a known name", "opcode OBJ is not read", saved "\128\2(ccollections\nOrderedDict\no.")
refused("NEWOBJ of a known name", "opcode NEWOBJ is not read", saved "\128\2ccollections\nOrderedDict\n)\129.")
refused("EXT1", "opcode EXT1 is not read", saved "\128\2\130\1.")
refused("opcode", "byte 2: opcode 0xff is not read", saved "\128\2\255.")
refused("protocol", "pickle protocol 9, 2 to 5 are read", saved "\128\9}.")
refused("calling a list", "a list is called", saved "\128\2])R.")
refused("state of a list", "a list is given a state", saved "\128\2]}b.")
refused("underflow", "the stack is empty", saved "\128\2s.")
refused("below a mark", "the stack is empty", saved "\128\2}(\133.")
refused("no mark", "a mark is missing", saved "\128\2}u.")
refused("odd items", "a key without a value", saved "\128\2}(K\1u.")
refused("memo", "memo 7 is empty", saved "\128\2h\7.")
refused("text length", "4294967295 bytes are wanted", saved("\128\2X\255\255\255\255abc."))
refused("text8 length", "bytes are wanted", saved("\128\4\141\255\255\255\255\255\255\255\255abc."))
refused("frame", "a frame of", saved("\128\4\149\255\0\0\0\0\0\0\0}."))
refused("no end", "1 bytes are wanted, 0 are left", saved "\128\2}")
refused("bytes after the end", "2 bytes after its end", saved "\128\2}.xx")
refused("left over", "it ends in the middle", saved "\128\2}}.")
refused("persistent id", "no storage", saved "\128\2)Q.")
refused("not a tensor", "_rebuild_parameter is called without a tensor", saved "\128\2ctorch._utils\n_rebuild_parameter\n(K\1\137}tR.")
refused("one tensor", "one tensor, not a dict of tensors", saved("\128\2" .. a_tensor("0", 4, 0, { 4 }, { 1 }) .. ".", floats))
refused("no tensor", "it holds no tensor", saved(dict_of("x", "K\1")))
refused("one name", "two tensors have the name 'a%.b'", saved("\128\2}(" .. text "a.b" .. a_tensor("0", 4, 0, { 4 }, { 1 }) .. text "a" .. "}" .. text "b"
  .. a_tensor("0", 4, 0, { 4 }, { 1 }) .. "su.", floats))
refused("itself", "nested more than 64 deep", saved("\128\2}q\0" .. text "a" .. "h\0s."))
-- 2^40 paths through 40 dicts that hold the one before twice
refused("doubling", "more than 1048576 values", saved("\128\2}q\0" .. ("0}(" .. text "a" .. "h\0" .. text "b" .. "h\0uq\0"):rep(40) .. "."))
refused("many objects", "more than 1048576 objects", saved("\128\2(" .. ("]"):rep(2 ^ 20 + 1) .. "t."))

-- Tensors that do not fit their storage, storages that do not fit the file.
local function bad(name, pattern, ...) refused(name, pattern, saved(dict_of("w", a_tensor(...)), floats)) end
bad("larger", "tensor 'w' %[2, 3%] reaches element 5 of storage 0, which has 4", "0", 4, 0, { 2, 3 }, { 3, 1 })
bad("offset", "reaches element 4", "0", 4, 4, { 1 }, { 1 })
bad("stride", "reaches element 9", "0", 4, 0, { 2 }, { 9 })
bad("huge", "reaches element", "0", 4, 0, { 2 ^ 53, 2 ^ 53 }, { 2 ^ 53, 1 })
bad("negative", "dimension 0 is not a whole number", "0", 4, 0, { -1 }, { 1 })
bad("dims", "'w' has 7 dimensions, at most 6", "0", 4, 0, { 1, 1, 1, 1, 1, 1, 1 }, { 1, 1, 1, 1, 1, 1, 1 })
bad("storage", "'w' is in storage 5, which the file lacks", "5", 4, 0, { 4 }, { 1 })
bad("outside name", "'w' is in storage %.%./%.%./x, which the file lacks", "../../x", 4, 0, { 4 }, { 1 })
bad("count", "storage 0 of tensor 'w' should have 1000 elements %(float32%), the file has 16 bytes", "0", 1000, 0, { 4 }, { 1 })
bad("repeated", "more than 8 times the file's", "0", 4, 0, { 2 ^ 40 }, { 0 })
bad("empty but huge", "tensor 'w'", "0", 4, 0, { 2 ^ 50, 2 ^ 50, 0 }, { 0, 0, 0 })
bad("unknown class", "the file calls torch%.QUInt8Storage,", "0", 4, 0, { 4 }, { 1 }, "QUInt8Storage")

-- Archives.
local good = dict_of("w", a_tensor("0", 4, 0, { 4 }, { 1 }))
local function archive(name, pattern, change, tail)
  local entries = { { "a/data.pkl", good }, { "a/data/0", floats } }
  change(entries)
  refused(name, pattern, file_of(zip(entries, tail)))
end
archive("deflated", "entry a/data/0 is compressed", function(e) e[2].method = 8 end)
archive("encrypted", "entry a/data/0 is encrypted", function(e) e[2].flags = 1 end)
archive("two sizes", "has two sizes, 16 and 15", function(e) e[2].bytes = 15 end)
archive("size", "entry a/data/0 has bytes .* outside the file's", function(e) e[2].bytes, e[2].packed = 1e6, 1e6 end)
archive("offset", "is said to be at 4000000000, outside the file", function(e) e[2].offset = 4e9 end)
archive("wrong place", "is not at 1, where the directory has it", function(e) e[2].offset = 1 end)
archive("overlap", "entries .* overlap", function(e) e[3] = { "a/x", "", offset = 0, packed = 20, bytes = 20 } end)
archive("twice", "entry a/data/0 is there twice", function(e) e[3] = { "a/data/0", "" } end)
archive("big endian", "its byte order is 'big', only little endian is read", function(e) e[3] = { "a/byteorder", "big" } end)
archive("two archives", "it holds two archives", function(e) e[3] = { "b/data.pkl", good } end)
archive("program", "a TorchScript program", function(e) e[3] = { "a/constants.pkl", good } end)
archive("other zip", "it has no data.pkl", function(e) table.remove(e, 1) end)
local wide = 2 ^ 32 - 1
archive("short zip64 field", "zip64 field that is too short", function(e) e[2].bytes, e[2].packed, e[2].extra = wide, wide, "\1\0\8\0" .. le(16, 8) end)
archive("wide size", "entry a/data/0 has bytes", function(e)
  e[2].bytes, e[2].packed, e[2].extra = wide, wide, "\1\0\16\0" .. le(2 ^ 52, 8) .. le(2 ^ 52, 8)
end)
archive("wide offset", "is said to be at 1152921504606846976, outside", function(e) e[2].offset, e[2].extra = wide, "\1\0\8\0" .. le(2 ^ 60, 8) end)
archive("no end", "cut short, or has bytes after its end", function() end, "")
archive("directory", "reaches past", function() end, "PK\5\6" .. le(0, 4) .. le(2, 2) .. le(2, 2) .. le(1e6, 4) .. le(0, 4) .. le(0, 2))
archive("entries", "999 entries do not fit", function() end, "PK\5\6" .. le(0, 4) .. le(999, 2) .. le(999, 2) .. le(8, 4) .. le(0, 4) .. le(0, 2))
archive("zip64 record", "zip64 record is said to be at", function() end,
  "PK\6\7" .. le(0, 4) .. le(2 ^ 60, 8) .. le(1, 4) .. "PK\5\6" .. le(0, 4) .. ("\255"):rep(12) .. le(0, 2))
refused("empty", "empty", file_of "")
refused("text", "not a file of torch.save", file_of "{}")
refused("safetensors", "not a file of torch.save", "tests/golden/resize.safetensors")
refused("folder", "directory", dir)
refused("none", "No such file", dir .. "/none.pt")
check.raises(function() tf.load(7) end, "a file name is expected, got number", "no name")

-- ---- damage: an error with the file's name, or tensors; never anything else ----
local damaged = dir .. "/damaged.pt"
local function survives(content, what)
  files.write(damaged, content)
  local ok, result = pcall(tf.load, damaged)
  if ok then
    for name, t in pairs(result) do
      if type(name) ~= "string" or not tensor.is_tensor(t) or tensor.data(t) == nil then check.ok(false, what .. ": no tensors") end
      t:free()
    end
    return true
  end
  if not tostring(result):find(damaged .. ": ", 1, true) then check.ok(false, what .. ": " .. tostring(result)) end
  return false
end
for _, file in ipairs { "training.pt", "views.pt", "module5.pt" } do
  local content = files.read(golden .. file)
  local loaded = 0
  for n = 0, #content - 1, 97 do loaded = loaded + (survives(content:sub(1, n), file .. " cut to " .. n) and 1 or 0) end
  check.equal(loaded, 0, file .. ": no part loads")
  for extra = 1, 3 do check.ok(not survives(content .. ("x"):rep(extra), "longer"), file .. ": bytes after the end") end
  math.randomseed(check.seed)
  for i = 1, 300 do
    local at = math.random(#content)
    local byte = string.char(math.random(0, 255))
    survives(content:sub(1, at - 1) .. byte .. content:sub(at + 1), ("%s, flip %d at %d"):format(file, i, at))
  end
  -- The pickle lies first; most flips in the whole file hit padding.
  local stop = content:find("FB", 300, true) or #content
  for i = 1, 300 do
    local at = math.random(60, stop)
    survives(content:sub(1, at - 1) .. string.char(math.random(0, 255)) .. content:sub(at + 1), ("%s, pickle flip %d at %d"):format(file, i, at))
  end
end
do      -- every allocation failure is an error, and nothing is kept
  sz.core.C.sz_set_threads(1)
  collectgarbage()
  local before = sz.core.C.sz_live_bytes()
  for n = 1, 12 do
    sz.core.C.sz_fail_alloc_after(n)
    local ok, message = pcall(tf.load, golden .. "views.pt")
    sz.core.C.sz_fail_alloc_after(-1)
    if ok then for _, t in pairs(message) do t:free() end else check.ok(tostring(message):find("views.pt", 1, true), message) end
  end
  collectgarbage()
  check.equal(tonumber(sz.core.C.sz_live_bytes()), tonumber(before), "nothing is left behind")
end

-- ---- SAM2 names ----
local facts = cjson.decode(files.read(golden .. "sam2_names.json"))
-- {stem with ranges: {suffix: shape}} -> {name -> shape}
local function unfolded(stems)
  local out = {}
  for stem, shapes in pairs(stems) do
    local before, first, last, after = stem:match("^(.-%.)(%d+)%-(%d+)(.*)$")
    for i = tonumber(first or 0), tonumber(last or 0) do
      for suffix, shape in pairs(shapes) do out[(before and before .. i .. after or stem) .. (stem ~= "" and "." or "") .. suffix] = shape end
    end
  end
  return out
end

local original, wanted = unfolded(facts.original), unfolded(facts.transformers)
local state, total, videos = {}, 0, {}
for name, shape in pairs(original) do
  state[name] = tensor.empty(shape, { dtype = "u8" })
  total = total + 1
  if names.is_video_only(name) then videos[#videos + 1] = name end
end
check.equal({ total, #videos }, { 471, 471 - 311 }, "SAM2.1 tiny has 471 tensors, 311 of them for pictures")
check.ok(names.is_original(state) and not names.is_original { ["vision_encoder.neck.convs.0.weight"] = true }, "is_original")
state.surplus = tensor.zeros({ 1 })
local new, ignored = names.from_original(state)
table.sort(videos)
check.equal(ignored, videos, "what is ignored")
check.equal(new.surplus, state.surplus, "an unknown name stays")
new.surplus = nil
for name, t in pairs(new) do check.equal(t:shape(), wanted[name], name) end
for name in pairs(wanted) do check.ok(new[name], name .. " is made") end
state.surplus = nil

do      -- values of what is made rather than renamed
  local small = {}
  for i = 0, 3 do small[("sam_prompt_encoder.point_embeddings.%d.weight"):format(i)] = sz.tensor({ { i, i + 0.5 } }, { dtype = "bf16" }) end
  local matrix = sz.tensor { { 1, 2 }, { 3, 4 } }
  small["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = matrix
  local out = names.from_original(small)
  check.equal(out["prompt_encoder.point_embed.weight"]:totable(), { { 0, 0.5 }, { 1, 1.5 }, { 2, 2.5 }, { 3, 3.5 } }, "stacked points")
  local a, b = out["prompt_encoder.shared_embedding.positional_embedding"], out["shared_image_embedding.positional_embedding"]
  a:free()
  check.equal({ b:totable(), matrix:totable() }, { { { 1, 2 }, { 3, 4 } }, { { 1, 2 }, { 3, 4 } } }, "copies of the Fourier matrix")
  small["sam_prompt_encoder.point_embeddings.2.weight"] = nil
  check.raises(function() names.from_original(small) end, "lacks 'sam_prompt_encoder.point_embeddings.2.weight'", "three points")
  small["sam_prompt_encoder.point_embeddings.2.weight"] = sz.tensor { { 1, 2, 3 } }
  check.raises(function() names.from_original(small) end, "point_embeddings%.%d%.weight' is tensor", "points of two widths")
  check.raises(function() names.from_original { no_mem_embed = matrix, no_memory_embedding = matrix } end, "are both 'no_memory_embedding'", "twice")
end

-- ---- config ----
check.equal(names.config_of(state), facts.config.tiny, "the config of tiny")
for _, size in ipairs { "small", "base_plus", "large" } do
  local tensors = {}
  for name, t in pairs(state) do      -- prompt encoder and decoder are tiny's
    if not name:find "^image_encoder" then tensors[name] = t end
  end
  for name, shape in pairs(unfolded(facts.sizes[size])) do tensors[name] = { shape = function() return shape end } end
  check.equal(names.config_of(tensors).vision_config, facts.config[size].vision_config, "the config of " .. size)
end
local function without(pattern)
  local out = {}
  for name, t in pairs(state) do
    if not name:find(pattern) then out[name] = t end
  end
  return out
end
check.raises(function() names.config_of(without "blocks%.11%.") end, "width 96 with stages of 1, 2, 7, 1 blocks is none of the four published", "a size")
check.raises(function() names.config_of(without "mask_tokens") end, "lacks 'sam_mask_decoder.mask_tokens.weight'", "no mask tokens")
check.raises(function() names.config_of {} end, "lacks 'image_encoder.trunk.pos_embed'", "nothing")

os.execute("rm -r " .. dir)
check.finish()
