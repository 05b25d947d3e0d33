-- test_torchfile.lua - files of torch.save (tests/golden/make_torchfile.py wrote those in
-- tests/golden/torchfile), pickles that try to run something, damaged files; then SAM2's original
-- tensor names and the config derived from shapes.
--
--   ./segzero tests/unit/test_torchfile.lua

local cjson = require "cjson"
local archive = require "tests.support.torch_archive"
local check = require "tests.support.check"
local sz = require "segzero"
local files = require "segzero.core.files"
local names = require "segzero.models.sam2.names"
local tensor = require "segzero.core.tensor"
local tf = sz.torchfile

local C = sz.core.C
local le = archive.le
local zip = archive.zip
local zip_end = archive.zip_end
local zip64_field = archive.zip64_field
local text = archive.text
local a_tensor = archive.tensor
local GOLDEN = "tests/golden/torchfile/"

local dir = os.tmpname()
os.remove(dir)
assert(os.execute("mkdir " .. dir))

-- Checks that the file does not load, and that the error names the file and matches the pattern.
local function refused_file(name, pattern, path)
  local ok, message = pcall(tf.load, path)
  message = tostring(message)
  local good = not ok and message:find(path, 1, true) and message:find(pattern)
  check.ok(good, ("%s: wants '%s', got '%s'"):format(name, pattern, message))
end

-- ---- files that torch wrote ----

local function values_of(t)
  local readable = t
  if t:dtype() == "bf16" then readable = t:to { dtype = "f32" } end
  local p = tensor.data(readable)
  local values = {}
  for i = 1, t:numel() do values[i] = tonumber(p[i - 1]) end
  return values
end

check.case("tensors of files that torch wrote", function()
  local expected = cjson.decode(files.read(GOLDEN .. "expected.json"))
  local order = {}
  for file in pairs(expected) do order[#order + 1] = file end
  table.sort(order)
  for _, file in ipairs(order) do
    local tensors = tf.load(GOLDEN .. file)
    for name, want in pairs(expected[file]) do
      local t = tensors[name]
      if check.ok(t, file .. " has " .. name) then
        check.equal({ t:dtype(), t:shape() }, { want.dtype, want.shape }, file .. " " .. name)
        check.equal(values_of(t), want.values, file .. " " .. name)
      end
    end
    for name in pairs(tensors) do
      check.ok(expected[file][name], file .. " has only the tensors that torch wrote: " .. name)
    end
  end
end)

check.case("two views of one storage do not share memory after loading", function()
  local views = tf.load(GOLDEN .. "views.pt")
  local before = views.base:totable()
  tensor.data(views.row)[0] = 99
  check.equal(views.base:totable(), before, "a view has its own memory")
end)

check.case("files of torch that are not read", function()
  local function refused(name, pattern) refused_file(name, pattern, GOLDEN .. name) end
  refused("int16.pt", "tensor 'w' is int16, which is not handled")
  refused("uint16.pt", "tensor 'w' is uint16, which is not handled")
  refused("big64.pt", "tensor 'ids' is int64 and holds 2147483648, which does not fit 32 bits")
  refused("legacy.pt", "before torch 1%.6.*Convert it")
  refused("network.pt", "the file calls torch%.nn%.modules%.activation%.ReLU, which is not read: "
    .. "only tensors and plain containers are")
end)

-- ---- archives written by this test ----

local ALL_32 = 2 ^ 32 - 1         -- "see the zip64 field"

local written = 0

-- Writes a new file and returns its path.
local function file_of(content)
  written = written + 1
  local path = ("%s/%d.pt"):format(dir, written)
  files.write(path, content)
  return path
end

-- An archive of one pickle and the data of storage 0.
local function saved(pickle, data)
  return file_of(zip { { "a/data.pkl", pickle }, { "a/data/0", data or "" } })
end

-- ---- pickles written by this test ----

local function dict_of(name, value) return archive.dict { { name, value } } end

local FLOATS = "\0\0\128\63\0\0\0\64\0\0\64\64\0\0\128\64"         -- 1, 2, 3, 4
local VECTOR = a_tensor("0", 4, 0, { 4 }, { 1 })
local GOOD = dict_of("w", VECTOR)

check.case("archives that torch does not write but that are valid", function()
  local turned = dict_of("w", a_tensor("0", 4, 0, { 2, 2 }, { 1, 2 }))
  check.equal(tf.load(saved(turned, FLOATS)).w:totable(), { { 1, 3 }, { 2, 4 } },
    "an archive without zip64, padding or a byte order")
  local row = dict_of("w", a_tensor("0", 4, 1, { 1, 3 }, { 77, 1 }))
  check.equal(tf.load(saved(row, FLOATS)).w:totable(), { { 2, 3, 4 } },
    "the stride of a dimension of 1 does not matter")

  -- Sizes and offset are in the zip64 field, which follows a field of another kind.
  local pickle_name = "a/data.pkl"
  local alone = zip({ { pickle_name, GOOD } }, "")
  local first_bytes = #alone - 46 - #pickle_name
  local data = {
    "a/data/0",
    FLOATS,
    bytes = ALL_32,
    packed = ALL_32,
    offset = ALL_32,
    extra = "FB\2\0ZZ" .. zip64_field(16, 16, first_bytes),
  }
  local path = file_of(zip { { pickle_name, GOOD }, data })
  check.equal(tf.load(path).w:totable(), { 1, 2, 3, 4 }, "zip64 sizes")
end)

local function refused_pickle(name, pattern, pickle, data)
  refused_file(name, pattern, saved(pickle, data))
end

-- Nothing of such a pickle runs: the name alone is refused.
check.case("pickles that call a function", function()
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
  for how, pickle in pairs(hostile) do
    refused_pickle(how, "the file calls os%.system, which is not read: "
      .. "only tensors and plain containers are", pickle)
  end
  check.ok(not files.exists(marker), "no command has run")
  refused_pickle("eval", "the file calls builtins%.eval,",
    "\128\2cbuiltins\neval\n(" .. text "1" .. "tR.")
  refused_pickle("control bytes", "the file calls o%?s%.%?%?x,", "\128\2co\27s\n\200\1x\n)R.")
end)

check.case("opcodes that are not read", function()
  local refused = refused_pickle
  refused("INST of a known name", "OrderedDict is built by INST",
    "\128\2(icollections\nOrderedDict\n.")
  refused("OBJ of a known name", "opcode OBJ is not read",
    "\128\2(ccollections\nOrderedDict\no.")
  refused("NEWOBJ of a known name", "opcode NEWOBJ is not read",
    "\128\2ccollections\nOrderedDict\n)\129.")
  refused("EXT1", "opcode EXT1 is not read", "\128\2\130\1.")
  refused("opcode", "byte 2: opcode 0xff is not read", "\128\2\255.")
  refused("protocol", "pickle protocol 9, 2 to 5 are read", "\128\9}.")
end)

check.case("broken pickles", function()
  local refused = refused_pickle
  refused("calling a list", "a list is called", "\128\2])R.")
  refused("state of a list", "a list is given a state", "\128\2]}b.")
  refused("underflow", "the stack is empty", "\128\2s.")
  refused("below a mark", "the stack is empty", "\128\2}(\133.")
  refused("no mark", "a mark is missing", "\128\2}u.")
  refused("odd items", "a key without a value", "\128\2}(K\1u.")
  refused("memo", "memo 7 is empty", "\128\2h\7.")
  refused("text length", "4294967295 bytes are wanted", "\128\2X\255\255\255\255abc.")
  refused("text8 length", "bytes are wanted", "\128\4\141\255\255\255\255\255\255\255\255abc.")
  refused("frame", "a frame of", "\128\4\149\255\0\0\0\0\0\0\0}.")
  refused("no end", "1 bytes are wanted, 0 are left", "\128\2}")
  refused("bytes after the end", "2 bytes after its end", "\128\2}.xx")
  refused("left over", "it ends in the middle", "\128\2}}.")
  refused("persistent id", "no storage", "\128\2)Q.")
  refused("not a tensor", "_rebuild_parameter is called without a tensor",
    "\128\2ctorch._utils\n_rebuild_parameter\n(K\1\137}tR.")
end)

check.case("pickles that are not a dict of tensors", function()
  local refused = refused_pickle
  refused("one tensor", "one tensor, not a dict of tensors", "\128\2" .. VECTOR .. ".", FLOATS)
  refused("no tensor", "it holds no tensor", dict_of("x", "K\1"))
  -- { ["a.b"] = tensor, a = { b = tensor } }
  local inner = text "a" .. "}" .. text "b" .. VECTOR .. "s"
  refused("one name", "two tensors have the name 'a%.b'",
    "\128\2}(" .. text "a.b" .. VECTOR .. inner .. "u.", FLOATS)
end)

check.case("pickles that would take too much memory", function()
  local refused = refused_pickle
  refused("itself", "nested more than 64 deep", "\128\2}q\0" .. text "a" .. "h\0s.")
  -- 40 dicts, each of which holds the previous one twice: 2^40 paths.
  local double = "0}(" .. text "a" .. "h\0" .. text "b" .. "h\0uq\0"
  refused("doubling", "more than 1048576 values", "\128\2}q\0" .. double:rep(40) .. ".")
  refused("many objects", "more than 1048576 objects",
    "\128\2(" .. ("]"):rep(2 ^ 20 + 1) .. "t.")
end)

check.case("tensors that do not fit their storage, storages that do not fit the file", function()
  local function bad(name, pattern, ...)
    refused_pickle(name, pattern, dict_of("w", a_tensor(...)), FLOATS)
  end
  local ONES_7 = { 1, 1, 1, 1, 1, 1, 1 }
  bad("larger", "tensor 'w' %[2, 3%] reaches element 5 of storage 0, which has 4",
    "0", 4, 0, { 2, 3 }, { 3, 1 })
  bad("offset", "reaches element 4", "0", 4, 4, { 1 }, { 1 })
  bad("stride", "reaches element 9", "0", 4, 0, { 2 }, { 9 })
  bad("huge", "reaches element", "0", 4, 0, { 2 ^ 53, 2 ^ 53 }, { 2 ^ 53, 1 })
  bad("negative", "dimension 0 is not a whole number", "0", 4, 0, { -1 }, { 1 })
  bad("dims", "'w' has 7 dimensions, at most 6", "0", 4, 0, ONES_7, ONES_7)
  bad("storage", "'w' is in storage 5, which the file lacks", "5", 4, 0, { 4 }, { 1 })
  bad("outside name", "'w' is in storage %.%./%.%./x, which the file lacks",
    "../../x", 4, 0, { 4 }, { 1 })
  bad("count", "storage 0 of tensor 'w' should have 1000 elements %(float32%), "
    .. "the file has 16 bytes", "0", 1000, 0, { 4 }, { 1 })
  bad("repeated", "more than 8 times the file's", "0", 4, 0, { 2 ^ 40 }, { 0 })
  bad("empty but huge", "tensor 'w'", "0", 4, 0, { 2 ^ 50, 2 ^ 50, 0 }, { 0, 0, 0 })
  bad("unknown class", "the file calls torch%.QUInt8Storage,",
    "0", 4, 0, { 4 }, { 1 }, "QUInt8Storage")
end)

-- change(entries, data) edits a good archive before it is written; data is the entry of storage 0.
local function refused_archive(name, pattern, change, tail)
  local data = { "a/data/0", FLOATS }
  local entries = { { "a/data.pkl", GOOD }, data }
  if change then change(entries, data) end
  refused_file(name, pattern, file_of(zip(entries, tail)))
end

check.case("archives with a bad entry", function()
  local refused = refused_archive
  refused("deflated", "entry a/data/0 is compressed", function(_, data) data.method = 8 end)
  refused("encrypted", "entry a/data/0 is encrypted", function(_, data) data.flags = 1 end)
  refused("two sizes", "has two sizes, 16 and 15", function(_, data) data.bytes = 15 end)
  refused("size", "entry a/data/0 has bytes .* outside the file's", function(_, data)
    data.bytes = 1e6
    data.packed = 1e6
  end)
  refused("offset", "is said to be at 4000000000, outside the file", function(_, data)
    data.offset = 4e9
  end)
  refused("wrong place", "is not at 1, where the directory has it", function(_, data)
    data.offset = 1
  end)
  refused("overlap", "entries .* overlap", function(entries)
    entries[3] = { "a/x", "", offset = 0, packed = 20, bytes = 20 }
  end)
  refused("twice", "entry a/data/0 is there twice", function(entries)
    entries[3] = { "a/data/0", "" }
  end)
  refused("big endian", "its byte order is 'big', only little endian is read", function(entries)
    entries[3] = { "a/byteorder", "big" }
  end)
  refused("two archives", "it holds two archives", function(entries)
    entries[3] = { "b/data.pkl", GOOD }
  end)
  refused("program", "a TorchScript program", function(entries)
    entries[3] = { "a/constants.pkl", GOOD }
  end)
  refused("other zip", "it has no data.pkl", function(entries) table.remove(entries, 1) end)
end)

check.case("archives with bad zip64 fields", function()
  local refused = refused_archive
  refused("short zip64 field", "zip64 field that is too short", function(_, data)
    data.bytes = ALL_32
    data.packed = ALL_32
    data.extra = zip64_field(16)
  end)
  refused("wide size", "entry a/data/0 has bytes", function(_, data)
    data.bytes = ALL_32
    data.packed = ALL_32
    data.extra = zip64_field(2 ^ 52, 2 ^ 52)
  end)
  refused("wide offset", "is said to be at 1152921504606846976, outside", function(_, data)
    data.offset = ALL_32
    data.extra = zip64_field(2 ^ 60)
  end)
end)

check.case("archives with a bad end record", function()
  local refused = refused_archive
  refused("no end", "cut short, or has bytes after its end", nil, "")
  refused("directory", "reaches past", nil, zip_end(2, 1e6, 0))
  refused("entries", "999 entries do not fit", nil, zip_end(999, 8, 0))
  refused("zip64 record", "zip64 record is said to be at", nil,
    "PK\6\7" .. le(0, 4) .. le(2 ^ 60, 8) .. le(1, 4)
      .. "PK\5\6" .. le(0, 4) .. ("\255"):rep(12) .. le(0, 2))
end)

check.case("files that are no archive", function()
  refused_file("empty", "empty", file_of "")
  refused_file("text", "not a file of torch.save", file_of "{}")
  refused_file("safetensors", "not a file of torch.save", "tests/golden/resize.safetensors")
  refused_file("folder", "directory", dir)
  refused_file("none", "No such file", dir .. "/none.pt")
  check.raises(function() tf.load(7) end, "a file name is expected, got number", "no name")
end)

-- ---- damage: an error with the file's name, or tensors; never anything else ----

-- Loads the content as a file; returns whether it loaded.
local function survives(content, what)
  local path = dir .. "/damaged.pt"
  files.write(path, content)
  local ok, result = pcall(tf.load, path)
  if not ok then
    if not tostring(result):find(path .. ": ", 1, true) then
      check.ok(false, what .. ": " .. tostring(result))
    end
    return false
  end
  for name, t in pairs(result) do
    local good = type(name) == "string" and tensor.is_tensor(t) and tensor.data(t) ~= nil
    if not good then check.ok(false, what .. ": no tensors") end
    t:free()
  end
  return true
end

-- Replaces 300 bytes, one at a time, at random places in first..last.
local function flip_bytes(content, first, last, label)
  for i = 1, 300 do
    local place = math.random(first, last)
    local byte = string.char(math.random(0, 255))
    survives(content:sub(1, place - 1) .. byte .. content:sub(place + 1),
      ("%s, flip %d at %d"):format(label, i, place))
  end
end

for _, file in ipairs { "training.pt", "views.pt", "module5.pt" } do
  check.case("damage to " .. file, function()
    local content = files.read(GOLDEN .. file)
    local loaded = 0
    for n = 0, #content - 1, 97 do
      if survives(content:sub(1, n), "cut to " .. n) then loaded = loaded + 1 end
    end
    check.equal(loaded, 0, "no part loads")
    for extra = 1, 3 do
      check.ok(not survives(content .. ("x"):rep(extra), "longer"), "bytes after the end")
    end

    -- Most bytes of the file are padding, so the pickle, which is stored first, gets flips of its
    -- own.
    math.randomseed(check.seed)
    flip_bytes(content, 1, #content, "file")
    local padding = content:find("FB", 300, true) or #content
    flip_bytes(content, 60, padding, "pickle")
  end)
end

-- A NaN with other bits than the usual ones must not become a Lua value of another type.
check.case("NaNs of any bits are read as NaN", function()
  local text = files.read(GOLDEN .. "dtypes.pt")
  local all_ones = ("\255"):rep(8)
  -- float64 begins with 0.875 = 0x3fec000000000000, float16 with 3.375 and -5 = 0x42c0, 0xc500.
  for name, first in pairs { float64 = "\0\0\0\0\0\0\236\63", float16 = "\192\66\0\197" } do
    local from, to = text:find(first, 1, true)
    local path = dir .. "/nan.pt"
    files.write(path, text:sub(1, from - 1) .. all_ones:sub(1, #first) .. text:sub(to + 1))
    local t = tf.load(path)[name]
    local values = t:reshape(t:numel()):totable()
    check.ok(type(values[1]) == "number" and values[1] ~= values[1], name .. " is NaN")
    check.equal(#values, t:numel(), name .. ": all elements are there")
  end
end)

check.case("every failed allocation is an error and leaks nothing", function()
  C.sz_set_threads(1)
  collectgarbage()
  local before = C.sz_live_bytes()
  for n = 1, 12 do
    C.sz_fail_alloc_after(n)
    local ok, result = pcall(tf.load, GOLDEN .. "views.pt")
    C.sz_fail_alloc_after(-1)
    if ok then
      for _, t in pairs(result) do t:free() end
    else
      check.ok(tostring(result):find("views.pt", 1, true), result)
    end
  end
  collectgarbage()
  check.equal(tonumber(C.sz_live_bytes()), tonumber(before), "nothing is left")
end)

-- ---- SAM2 names ----

local facts = cjson.decode(files.read(GOLDEN .. "sam2_names.json"))

-- {stem: {suffix: shape}}, where a stem may have a range such as "blocks.0-3", to {name -> shape}.
local function unfolded(stems)
  local out = {}
  local function add(stem, shapes)
    if stem ~= "" then stem = stem .. "." end
    for suffix, shape in pairs(shapes) do out[stem .. suffix] = shape end
  end
  for stem, shapes in pairs(stems) do
    local before, first, last, after = stem:match "^(.-%.)(%d+)%-(%d+)(.*)$"
    if before then
      for i = tonumber(first), tonumber(last) do add(before .. i .. after, shapes) end
    else
      add(stem, shapes)
    end
  end
  return out
end

-- SAM2.1 tiny's tensors under their original names, empty; the list of those for video only.
local function tiny_state()
  local state = {}
  local video = {}
  for name, shape in pairs(unfolded(facts.original)) do
    state[name] = tensor.empty(shape, { dtype = "u8" })
    if names.is_video_only(name) then video[#video + 1] = name end
  end
  table.sort(video)
  return state, video
end

check.case("SAM2's original names become those of transformers", function()
  local state, video = tiny_state()
  local total = 0
  for _ in pairs(state) do total = total + 1 end
  check.equal({ total, #video }, { 471, 471 - 311 },
    "SAM2.1 tiny has 471 tensors, 311 of them for images")
  check.ok(names.is_original(state)
    and not names.is_original { ["vision_encoder.neck.convs.0.weight"] = true }, "is_original")

  state.surplus = tensor.zeros { 1 }
  local new, ignored = names.from_original(state)
  check.equal(ignored, video, "tensors that are ignored")
  check.equal(new.surplus, state.surplus, "an unknown name stays")
  new.surplus = nil
  local wanted = unfolded(facts.transformers)
  for name, t in pairs(new) do check.equal(t:shape(), wanted[name], name) end
  for name in pairs(wanted) do check.ok(new[name], name .. " is made") end
end)

check.case("SAM2's tensors that are computed, not renamed", function()
  local POINT_2 = "sam_prompt_encoder.point_embeddings.2.weight"
  local state = {}
  for i = 0, 3 do
    local name = ("sam_prompt_encoder.point_embeddings.%d.weight"):format(i)
    state[name] = sz.tensor({ { i, i + 0.5 } }, { dtype = "bf16" })
  end
  local values = { { 1, 2 }, { 3, 4 } }
  local matrix = sz.tensor(values)
  state["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = matrix

  local out = names.from_original(state)
  check.equal(out["prompt_encoder.point_embed.weight"]:totable(),
    { { 0, 0.5 }, { 1, 1.5 }, { 2, 2.5 }, { 3, 3.5 } }, "stacked points")
  local first = out["prompt_encoder.shared_embedding.positional_embedding"]
  local second = out["shared_image_embedding.positional_embedding"]
  first:free()
  check.equal({ second:totable(), matrix:totable() }, { values, values },
    "copies of the Fourier matrix")

  state[POINT_2] = nil
  check.raises(function() names.from_original(state) end, "lacks '" .. POINT_2 .. "'",
    "three points")
  state[POINT_2] = sz.tensor { { 1, 2, 3 } }
  check.raises(function() names.from_original(state) end,
    "point_embeddings%.%d%.weight' is tensor", "points of two widths")
  check.raises(function()
    names.from_original { no_mem_embed = matrix, no_memory_embedding = matrix }
  end, "are both 'no_memory_embedding'", "two tensors with one new name")
end)

-- ---- config ----

-- Those of the tensors whose names do not match the pattern.
local function without(state, pattern)
  local out = {}
  for name, t in pairs(state) do
    if not name:find(pattern) then out[name] = t end
  end
  return out
end

check.case("SAM2's config follows from the shapes", function()
  local state = tiny_state()
  check.equal(names.config_of(state), facts.config.tiny, "the config of tiny")
  for _, size in ipairs { "small", "base_plus", "large" } do
    -- The other sizes have tiny's prompt encoder and decoder.
    local tensors = without(state, "^image_encoder")
    for name, shape in pairs(unfolded(facts.sizes[size])) do
      tensors[name] = { shape = function() return shape end }
    end
    check.equal(names.config_of(tensors).vision_config, facts.config[size].vision_config,
      "the config of " .. size)
  end

  local function refused(tensors, pattern, name)
    check.raises(function() names.config_of(tensors) end, pattern, name)
  end
  refused(without(state, "blocks%.11%."),
    "width 96 with stages of 1, 2, 7, 1 blocks is none of the four published", "another size")
  refused(without(state, "mask_tokens"), "lacks 'sam_mask_decoder.mask_tokens.weight'",
    "no mask tokens")
  refused({}, "lacks 'image_encoder.trunk.pos_embed'", "no tensors")
end)

os.execute("rm -r " .. dir)
check.finish()
