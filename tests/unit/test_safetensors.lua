-- test_safetensors.lua - reading and writing safetensors files and sharded folders; one error for
-- each kind of malformed file.

local ffi = require "ffi"
local check = require "tests.support.check"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local st = sz.safetensors

local files = require "segzero.core.files"
local write_file, read_file, exists = files.write, files.read, files.exists

local dir = os.tmpname()
os.remove(dir)
assert(os.execute("mkdir " .. dir))

local function u64(n)
  local bytes = {}
  for i = 1, 8 do
    bytes[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(bytes)
end

-- A file from its JSON and data.
local function make(name, json, data)
  local path = dir .. "/" .. name
  write_file(path, u64(#json) .. json .. data)
  return path
end

-- ---- round trip ----
local all = {
  ["b.weight"] = sz.tensor({ { 1.5, -2.25, 3 }, { 0, 1e-30, -1e30 } }),
  ["a.bias"] = sz.tensor({ 1, 2, -3 }, { dtype = "bf16" }),
  ids = sz.tensor({ -2147483648, 0, 2147483647 }, { dtype = "i32" }),
  mask = sz.tensor({ { { 0, 255, 7 } } }, { dtype = "u8" }),
  ['odd "name"\n'] = sz.tensor({ 4 }),
  empty = tensor.zeros({ 0, 4 }, { dtype = "f32" }),
}
local path = dir .. "/all.safetensors"
st.save(path, all)
local back, metadata = st.load(path)
check.equal(metadata, { format = "pt" }, "metadata by default")
for name, t in pairs(all) do
  if check.ok(back[name], name .. " is there") then
    check.equal(back[name]:dtype(), t:dtype(), name .. ": dtype")
    check.equal(back[name]:shape(), t:shape(), name .. ": shape")
    if t:numel() > 0 then check.equal(back[name]:totable(), t:totable(), name .. ": values") end
  end
end
local text = read_file(path)
local header = text:sub(9, 8 + text:byte(1) + 256 * text:byte(2))
check.equal(#header % 8, 0, "the header is padded to 8 bytes")
check.ok(header:find('"a.bias".*"b.weight".*"ids".*"mask"'), "keys are sorted")
check.ok(not exists(path .. ".tmp"), "no temporary file is left")
st.save(path, all, { step = "7", note = "grün" })
check.equal(select(2, st.load(path)), { step = "7", note = "grün" }, "own metadata")
check.equal(read_file(path) == text, false, "the file was replaced")
check.equal(back["b.weight"]:totable(), all["b.weight"]:totable(),
  "the old mapping is still valid after the file was replaced")
st.save(dir .. "/two.safetensors", all)
st.save(dir .. "/three.safetensors", all)
local two = read_file(dir .. "/two.safetensors")
check.ok(two == read_file(dir .. "/three.safetensors"), "the same bytes each time")

-- A mapping is private: writing to a tensor does not change the file.
do
  local before = read_file(path)
  local t = st.load(path).ids
  tensor.data(t)[0] = 99
  check.equal(t:totable()[1], 99, "a mapped tensor can be written")
  check.ok(read_file(path) == before, "the file stays as it was")
end

-- ---- conversions, alignment ----
do
  -- f16: 1, -2, 65504, the smallest subnormal, -0, inf, nan
  local header = '{"x":{"dtype":"F16","shape":[7],"data_offsets":[0,14]}}'
  local halves = "\0\60\0\192\255\123\1\0\0\128\0\124\1\126"
  local t = st.load(make("half", header, halves)).x
  local v = t:totable()
  check.equal(t:dtype(), "f32", "f16 is read as f32")
  check.equal({ v[1], v[2], v[3], v[4], 1 / v[5], v[6] },
    { 1, -2, 65504, 2 ^ -24, -math.huge, math.huge }, "f16 values")
  check.ok(v[7] ~= v[7], "f16 nan")
  header = '{"x":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}'
  local long = st.load(make("long", header, u64(5) .. ("\255"):rep(8))).x
  check.equal({ long:dtype(), long:totable() }, { "i32", { 5, -1 } }, "I64 that fits")
  header = '{"x":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}'
  check.equal(st.load(make("bool", header, "\1\0")).x:totable(), { 1, 0 }, "BOOL")
  header = '{"x":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}'
  check.equal(st.load(make("scalar", header, "\7")).x:shape(), {}, "a shape of no dimensions")
  -- An f32 at an odd address is copied to one that is aligned.
  local json = '{"p":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    .. '"x":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}'
  for pad = 0, 3 do
    local odd = st.load(make("odd" .. pad, json .. (" "):rep(pad), "\9\0\0\192\63")).x
    check.equal(odd:totable(), { 1.5 }, "unaligned data, header + " .. pad)
    check.equal(tonumber(ffi.cast("uintptr_t", tensor.data(odd)) % 4), 0, "aligned in memory")
  end
end

-- ---- malformed files ----
local function bad(name, pattern, content)
  local file = dir .. "/" .. name
  write_file(file, content)
  check.raises(function() st.load(file) end, name .. ".*" .. pattern, name)
end
local function entry(fields) return '{"w":{' .. fields .. "}}" end
local function with(json, data) return u64(#json) .. json .. (data or "") end

bad("nothing", "0 bytes are too few", "")
bad("short", "5 bytes are too few", "12345")
bad("toolong", "header length 100000001 is over the limit", u64(100000001) .. "{}")
bad("cut", "header length 500, but the file has only 10 bytes", u64(500) .. "{}")
bad("garbage", "header length", ("\255\254 no such thing"):rep(20))
bad("nojson", "not valid JSON", with("{ nope"))
bad("list", "not described by an object", with("[1]"))
bad("number", "not a JSON object", with("7"))
bad("dtype", "'w' has dtype F8_E4M3",
  with(entry('"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]'), "x"))
bad("nodtype", "'w' has dtype nil", with(entry('"shape":[1],"data_offsets":[0,1]'), "x"))
bad("f64", "'w' has dtype F64",
  with(entry('"dtype":"F64","shape":[1],"data_offsets":[0,8]'), "12345678"))
bad("negative", "'w' has dimension 1 = %-1",
  with(entry('"dtype":"U8","shape":[-1],"data_offsets":[0,1]'), "x"))
bad("fraction", "'w' has dimension 2 = 1.5",
  with(entry('"dtype":"U8","shape":[1,1.5],"data_offsets":[0,1]'), "x"))
bad("overflow", "'w'.*needs",
  with(entry('"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]'), "1234"))
bad("dims", "'w' has 7 dimensions",
  with(entry('"dtype":"U8","shape":[1,1,1,1,1,1,1],"data_offsets":[0,1]'), "x"))
bad("noshape", "'w' has no shape", with(entry('"dtype":"U8","data_offsets":[0,1]'), "x"))
bad("nooffsets", "'w' has no valid data_offsets", with(entry('"dtype":"U8","shape":[1]'), "x"))
bad("outside", "'w' has data_offsets 0 to 8, but the file has 4 bytes",
  with(entry('"dtype":"F32","shape":[2],"data_offsets":[0,8]'), "1234"))
bad("backwards", "'w' has data_offsets 4 to 0",
  with(entry('"dtype":"F32","shape":[1],"data_offsets":[4,0]'), "1234"))
bad("size", "'w' %(F32 %[2%]%) needs 8 bytes, its data_offsets hold 4",
  with(entry('"dtype":"F32","shape":[2],"data_offsets":[0,4]'), "1234"))
bad("overlap", "'a' and 'b' overlap",
  with('{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},'
    .. '"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}', "1234"))
bad("big64", "'w' is I64 and holds 4294967296",
  with(entry('"dtype":"I64","shape":[1],"data_offsets":[0,8]'), u64(2 ^ 32)))
bad("meta", "__metadata__ 'k'", with('{"__metadata__":{"k":1}}'))
check.raises(function() st.load(dir .. "/no.safetensors") end, "no%.safetensors: No such file",
  "no file")
check.raises(function() st.load(dir) end, "not a regular file", "a folder")
check.raises(function() st.save("/no/such/folder/x.safetensors", all) end, "No such file",
  "saving into no folder")
check.raises(function() st.save(path, { x = 7 }) end, "'x' is not a tensor", "saving a number")
check.raises(function() st.save(path, all, { k = 7 }) end, "'k'", "metadata that is no text")

-- ---- folders ----
local folder = dir .. "/model"
os.execute("mkdir " .. folder)
local function load_folder() st.load_folder(folder) end
check.raises(load_folder, "neither model.safetensors nor", "an empty folder")
local weights = {}
for i = 1, 6 do weights["layer." .. i] = sz.tensor({ i, i + 0.5 }) end
st.save_folder(folder, weights)
check.ok(exists(folder .. "/model.safetensors"), "a small model is one file")
check.ok(not exists(folder .. "/model.safetensors.index.json"), "which needs no index")
check.equal(st.load_folder(folder)["layer.3"]:totable(), { 3, 3.5 }, "one file")
st.save_folder(folder, weights, { max_shard_bytes = 20 })
check.ok(not exists(folder .. "/model.safetensors"), "shards replace the one file")
check.ok(exists(folder .. "/model-00003-of-00003.safetensors"), "three shards")
local whole = st.load_folder(folder)
for i = 1, 6 do check.equal(whole["layer." .. i]:totable(), { i, i + 0.5 }, "layer " .. i) end
local index = read_file(folder .. "/model.safetensors.index.json")
check.ok(index:find('"total_size": 48', 1, true), "total_size")
local moved = index:gsub('"layer%.6": "model%-00003', '"layer.6": "model-00001')
write_file(folder .. "/model.safetensors.index.json", moved)
check.raises(load_folder, "'layer.6' should be in model%-00001%-of%-00003",
  "a tensor that its shard lacks")
local outside = index:gsub("model%-00003%-of", "../model-00003-of")
write_file(folder .. "/model.safetensors.index.json", outside)
check.raises(load_folder, "'layer.%d' is said to be in '%.%./", "a shard outside the folder")
write_file(folder .. "/model.safetensors.index.json", index)
os.remove(folder .. "/model-00002-of-00003.safetensors")
check.raises(load_folder, "model%-00002%-of%-00003.safetensors: No such file", "a missing shard")

os.execute("rm -rf " .. dir)
check.finish()
