-- test_safetensors.lua - reading and writing safetensors files and sharded folders; one error for
-- each kind of malformed file.
--
--   ./segzero tests/unit/test_safetensors.lua

local ffi = require "ffi"
local check = require "tests.support.check"
local sz = require "segzero"
local files = require "segzero.core.files"
local tensor = require "segzero.core.tensor"

local st = sz.safetensors
local exists = files.exists
local read_file = files.read
local write_file = files.write

local dir = os.tmpname()
os.remove(dir)
files.make_dir(dir)

-- n as 8 little-endian bytes.
local function u64(n)
  local bytes = {}
  for i = 1, 8 do
    bytes[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(bytes)
end

-- The text of a file with this JSON header and these bytes of data.
local function with(json, data) return u64(#json) .. json .. (data or "") end

-- Writes such a file and loads its tensors.
local function load_made(name, json, data)
  local path = dir .. "/" .. name
  write_file(path, with(json, data))
  return st.load(path)
end

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

-- ---- round trip ----

check.case("a saved file gives back every tensor", function()
  local back, metadata = st.load(path)
  check.equal(metadata, { format = "pt" }, "metadata by default")
  for name, t in pairs(all) do
    if check.ok(back[name], name .. " was loaded") then
      check.equal(back[name]:dtype(), t:dtype(), name .. ": dtype")
      check.equal(back[name]:shape(), t:shape(), name .. ": shape")
      if t:numel() > 0 then
        check.equal(back[name]:totable(), t:totable(), name .. ": values")
      end
    end
  end
end)

check.case("the header is padded and sorted", function()
  local text = read_file(path)
  local header = text:sub(9, 8 + text:byte(1) + 256 * text:byte(2))
  check.equal(#header % 8, 0, "the header is padded to 8 bytes")
  check.ok(header:find('"a.bias".*"b.weight".*"ids".*"mask"'), "keys are sorted")
  check.ok(not exists(path .. ".tmp"), "no temporary file is left")
end)

check.case("saving again replaces the file and keeps old mappings valid", function()
  local replaced = dir .. "/replaced.safetensors"
  st.save(replaced, all)
  local text = read_file(replaced)
  local back = st.load(replaced)
  st.save(replaced, all, { step = "7", note = "grün" })
  local _, metadata = st.load(replaced)
  check.equal(metadata, { step = "7", note = "grün" }, "own metadata")
  check.equal(read_file(replaced) == text, false, "the file was replaced")
  check.equal(back["b.weight"]:totable(), all["b.weight"]:totable(),
    "the old mapping is still valid after the file was replaced")
end)

check.case("the same tensors give the same bytes", function()
  st.save(dir .. "/two.safetensors", all)
  st.save(dir .. "/three.safetensors", all)
  local two = read_file(dir .. "/two.safetensors")
  check.ok(two == read_file(dir .. "/three.safetensors"), "the same bytes each time")
end)

check.case("a mapping is private", function()
  local before = read_file(path)
  local t = st.load(path).ids
  tensor.data(t)[0] = 99
  check.equal(t:totable()[1], 99, "a mapped tensor can be written")
  check.ok(read_file(path) == before, "writing to the tensor does not change the file")
end)

-- ---- conversions, alignment ----

check.case("F16 is read as f32", function()
  -- 1, -2, 65504, the smallest subnormal, -0, inf, nan
  local header = '{"x":{"dtype":"F16","shape":[7],"data_offsets":[0,14]}}'
  local halves = "\0\60\0\192\255\123\1\0\0\128\0\124\1\126"
  local t = load_made("half", header, halves).x
  local v = t:totable()
  check.equal(t:dtype(), "f32", "f16 is read as f32")
  check.equal({ v[1], v[2], v[3], v[4], 1 / v[5], v[6] },
    { 1, -2, 65504, 2 ^ -24, -math.huge, math.huge }, "f16 values")
  check.ok(v[7] ~= v[7], "f16 nan")
end)

check.case("other dtypes and a scalar", function()
  local header = '{"x":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}'
  local long = load_made("long", header, u64(5) .. ("\255"):rep(8)).x
  check.equal({ long:dtype(), long:totable() }, { "i32", { 5, -1 } }, "I64 values that fit in i32")
  header = '{"x":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}'
  check.equal(load_made("bool", header, "\1\0").x:totable(), { 1, 0 }, "BOOL")
  header = '{"x":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}'
  check.equal(load_made("scalar", header, "\7").x:shape(), {}, "a shape without dimensions")
end)

check.case("an f32 at an odd address is copied to an aligned one", function()
  local json = '{"p":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    .. '"x":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}'
  for pad = 0, 3 do
    local odd = load_made("odd" .. pad, json .. (" "):rep(pad), "\9\0\0\192\63").x
    local address = ffi.cast("uintptr_t", tensor.data(odd))
    check.equal(odd:totable(), { 1.5 }, "unaligned data, header + " .. pad)
    check.equal(tonumber(address % 4), 0, "aligned in memory")
  end
end)

-- ---- malformed files ----

-- Loading a file with this text fails; the message has the file's name and the pattern.
local function bad(name, pattern, text)
  local file = dir .. "/" .. name
  write_file(file, text)
  check.raises(function() st.load(file) end, name .. ".*" .. pattern, name)
end

-- The same for a file with one tensor 'w' of these JSON fields.
local function bad_entry(name, pattern, fields, data)
  bad(name, pattern, with('{"w":{' .. fields .. "}}", data))
end

check.case("damaged headers", function()
  bad("nothing", "0 bytes are too few", "")
  bad("short", "5 bytes are too few", "12345")
  bad("toolong", "header length 100000001 is over the limit", u64(100000001) .. "{}")
  bad("cut", "header length 500, but the file has only 10 bytes", u64(500) .. "{}")
  bad("garbage", "header length", ("\255\254 no such thing"):rep(20))
  bad("nojson", "not valid JSON", with("{ nope"))
  bad("list", "not described by an object", with("[1]"))
  bad("number", "not a JSON object", with("7"))
  bad("meta", "__metadata__ 'k'", with('{"__metadata__":{"k":1}}'))
end)

check.case("dtypes that are not supported", function()
  bad_entry("dtype", "'w' has dtype F8_E4M3",
    '"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]', "x")
  bad_entry("nodtype", "'w' has dtype nil", '"shape":[1],"data_offsets":[0,1]', "x")
  bad_entry("f64", "'w' has dtype F64",
    '"dtype":"F64","shape":[1],"data_offsets":[0,8]', "12345678")
  bad_entry("big64", "'w' is I64 and holds 4294967296",
    '"dtype":"I64","shape":[1],"data_offsets":[0,8]', u64(2 ^ 32))
end)

check.case("shapes that are not valid", function()
  bad_entry("negative", "'w' has dimension 1 = %-1",
    '"dtype":"U8","shape":[-1],"data_offsets":[0,1]', "x")
  bad_entry("fraction", "'w' has dimension 2 = 1.5",
    '"dtype":"U8","shape":[1,1.5],"data_offsets":[0,1]', "x")
  local huge = "[4294967296,4294967296,4294967296]"
  bad_entry("overflow", "'w'.*needs",
    '"dtype":"F32","shape":' .. huge .. ',"data_offsets":[0,4]', "1234")
  bad_entry("dims", "'w' has 7 dimensions",
    '"dtype":"U8","shape":[1,1,1,1,1,1,1],"data_offsets":[0,1]', "x")
  bad_entry("noshape", "'w' has no shape", '"dtype":"U8","data_offsets":[0,1]', "x")
end)

check.case("data offsets that are not valid", function()
  bad_entry("nooffsets", "'w' has no valid data_offsets", '"dtype":"U8","shape":[1]', "x")
  bad_entry("outside", "'w' has data_offsets 0 to 8, but the file has 4 bytes",
    '"dtype":"F32","shape":[2],"data_offsets":[0,8]', "1234")
  bad_entry("backwards", "'w' has data_offsets 4 to 0",
    '"dtype":"F32","shape":[1],"data_offsets":[4,0]', "1234")
  bad_entry("size", "'w' %(F32 %[2%]%) needs 8 bytes, its data_offsets hold 4",
    '"dtype":"F32","shape":[2],"data_offsets":[0,4]', "1234")
  local overlapping = '{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},'
    .. '"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}'
  bad("overlap", "'a' and 'b' overlap", with(overlapping, "1234"))
end)

check.case("paths and arguments that are not valid", function()
  local none = dir .. "/no.safetensors"
  local no_folder = "/no/such/folder/x.safetensors"
  check.raises(function() st.load(none) end, "no%.safetensors: No such file", "no file")
  check.raises(function() st.load(dir) end, "not a regular file", "a folder")
  check.raises(function() st.save(no_folder, all) end, "No such file",
    "saving to a folder that does not exist")
  check.raises(function() st.save(path, { x = 7 }) end, "'x' is not a tensor", "saving a number")
  check.raises(function() st.save(path, all, { k = 7 }) end, "'k'",
    "metadata that is not a string")
end)

-- ---- folders ----

local weights = {}
for i = 1, 6 do weights["layer." .. i] = sz.tensor({ i, i + 0.5 }) end

-- A new empty folder.
local function new_folder(name)
  local folder = dir .. "/" .. name
  files.make_dir(folder)
  return folder
end

check.case("a small model is one file until shards replace it", function()
  local folder = new_folder "model"
  check.raises(function() st.load_folder(folder) end, "neither model.safetensors nor",
    "an empty folder")
  st.save_folder(folder, weights)
  check.ok(exists(folder .. "/model.safetensors"), "a small model is one file")
  check.ok(not exists(folder .. "/model.safetensors.index.json"), "one file needs no index")
  check.equal(st.load_folder(folder)["layer.3"]:totable(), { 3, 3.5 }, "one file")

  st.save_folder(folder, weights, { max_shard_bytes = 20 })
  check.ok(not exists(folder .. "/model.safetensors"), "shards replace the one file")
  check.ok(exists(folder .. "/model-00003-of-00003.safetensors"), "three shards")
  local whole = st.load_folder(folder)
  for i = 1, 6 do check.equal(whole["layer." .. i]:totable(), { i, i + 0.5 }, "layer " .. i) end
end)

check.case("a save over an older one that fails half-way leaves no mixed model", function()
  local folder = new_folder "twice"
  local index_path = folder .. "/model.safetensors.index.json"
  st.save_folder(folder, weights, { max_shard_bytes = 20 })
  local others = {}
  for name in pairs(weights) do others[name] = tensor.new { 7, 7 } end
  local function save_again() st.save_folder(folder, others, { max_shard_bytes = 20 }) end
  local function fail_at(i)
    local blocked = ("%s/model-%05d-of-00003.safetensors.tmp"):format(folder, i)
    require("posix.sys.stat").mkdir(blocked)
    check.raises(save_again, "Is a directory", "file " .. i)
    require("posix.unistd").rmdir(blocked)
  end

  -- Nothing of the older model is replaced yet; then its first file is.
  fail_at(1)
  check.equal(st.load_folder(folder)["layer.1"]:totable(), { 1, 1.5 }, "the older model")
  fail_at(2)
  check.ok(not exists(index_path), "no index of both")
  check.raises(function() st.load_folder(folder) end, "neither model.safetensors nor", "no model")
  save_again()
  for i = 1, 6 do check.equal(st.load_folder(folder)["layer." .. i]:totable(), { 7, 7 }, "new") end
end)

check.case("damaged indexes and a missing shard", function()
  local folder = new_folder "damaged"
  local index_path = folder .. "/model.safetensors.index.json"
  local function load_folder() st.load_folder(folder) end
  st.save_folder(folder, weights, { max_shard_bytes = 20 })
  local index = read_file(index_path)
  check.ok(index:find('"total_size": 48', 1, true), "total_size")

  local moved = index:gsub('"layer%.6": "model%-00003', '"layer.6": "model-00001')
  write_file(index_path, moved)
  check.raises(load_folder, "'layer.6' should be in model%-00001%-of%-00003",
    "a tensor that its shard lacks")

  local outside = index:gsub("model%-00003%-of", "../model-00003-of")
  write_file(index_path, outside)
  check.raises(load_folder, "'layer.%d' is said to be in '%.%./", "a shard outside the folder")

  write_file(index_path, index)
  os.remove(folder .. "/model-00002-of-00003.safetensors")
  check.raises(load_folder, "model%-00002%-of%-00003.safetensors: No such file",
    "a missing shard")
end)

os.execute("rm -rf " .. dir)
check.finish()
