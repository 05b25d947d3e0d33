-- safetensors.lua - safetensors files and sharded model folders.
--
--   local tensors, metadata = safetensors.load(path)              {name -> tensor}, {key -> text}
--   local tensors, metadata = safetensors.load_folder(dir)
--       model.safetensors, or else the shards that model.safetensors.index.json names
--   local folder = safetensors.open_folder(dir)
--       reads only the headers: folder.entries {name -> {dtype =, shape =, ...}},
--       folder.problems (texts), folder:tensor(name, dtype, slice), folder:close(); slice: of
--       parts.lua, or nil: the whole tensor
--   safetensors.layout(path)               where the header and each tensor are, in bytes
--   safetensors.save(path, tensors, metadata)
--       metadata {format = "pt"} unless given
--   safetensors.save_folder(dir, tensors, {max_shard_bytes = 5e9, metadata = ...})
--
-- File format: u64 little-endian length n, n bytes of JSON {name: {dtype, shape, data_offsets =
-- [begin, end)}, __metadata__}, then the data. Offsets count from the end of the JSON.
-- Tensors of a loaded file are parts of a private mapping of it: pages are read on first use, and
-- writing to a tensor does not change the file. F32, BF16, I32 and U8 keep their type. F16 becomes
-- f32 (or the dtype given to folder:tensor), BOOL becomes u8, I64 becomes i32 if every value fits.
-- A converted tensor is on the heap, and the pages it was read from are released at once. Of a
-- slice of rows the pages are used in place too; a slice of columns is copied.
-- Everything in the JSON is checked here, and every bound is checked again in C. Tensors are saved
-- in the order of their names; the JSON is padded with spaces to a multiple of 8.
-- Writing is safetensors_write.lua. Leaves out: other dtypes.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local notes = require "segzero.core.notes"
local options = require "segzero.core.options"
local parts = require "segzero.formats.parts"
local tensor = require "segzero.core.tensor"
local visible = require "segzero.core.visible"
local writer = require "segzero.formats.safetensors_write"

local C = core.C
local call = core.call
local guarded = core.guarded

local M = {}

local BYTES = { F32 = 4, BF16 = 2, F16 = 2, I32 = 4, U8 = 1, BOOL = 1, I64 = 8 }
local CODE = { F32 = C.SZ_F32, BF16 = C.SZ_BF16, I32 = C.SZ_I32, U8 = C.SZ_U8, BOOL = C.SZ_U8,
  F16 = C.SZ_FILE_F16 }
local REAL = { F32 = "f32", BF16 = "bf16", F16 = "f16" }
local MAX_DIMS = 6
local MAX_WHOLE = 2 ^ 53

local function whole(x) return type(x) == "number" and x >= 0 and x <= MAX_WHOLE and x % 1 == 0 end

local SHOWN = 120               -- bytes of a file's text that a message shows
local SHOWN_LINE = 400          -- bytes of one of several problems

-- The error of a file. Its texts are shown without control characters, and not at any length.
local function fail(path, format, ...)
  local values = { ... }
  for i, v in ipairs(values) do
    if type(v) == "string" then values[i] = visible.line(v, SHOWN) end
  end
  error(path .. ": " .. format:format(unpack(values)), 0)
end


-- A reader without NaN, Infinity and hexadecimal numbers, which JSON does not have.
local strict = cjson.new()
strict.decode_invalid_numbers(false)

local function decode(path, text)
  local ok, value = pcall(strict.decode, text)
  if not ok then fail(path, "the header is not valid JSON: %s", value) end
  if type(value) ~= "table" then fail(path, "the header is not a JSON object") end
  return value
end

-- One checked entry: {name, dtype, shape, begin, stop}.
local function entry_of(path, name, e, data_bytes)
  if type(e) ~= "table" then fail(path, "tensor '%s' is not described by an object", name) end
  if not BYTES[e.dtype] then
    fail(path, "tensor '%s' has dtype %s, which is not handled", name, tostring(e.dtype))
  end
  if type(e.shape) ~= "table" then fail(path, "tensor '%s' has no shape", name) end
  local numel = 1
  local count = 0
  for k in pairs(e.shape) do
    if type(k) ~= "number" then fail(path, "tensor '%s' has a shape that is not a list", name) end
    count = count + 1
  end
  if count > MAX_DIMS then
    fail(path, "tensor '%s' has %d dimensions, at most %d are handled", name, count, MAX_DIMS)
  end
  for i = 1, count do
    if not whole(e.shape[i]) then
      fail(path, "tensor '%s' has dimension %d = %s", name, i, tostring(e.shape[i]))
    end
    numel = numel * e.shape[i]
  end
  local offsets = e.data_offsets
  local first, stop = type(offsets) == "table" and offsets[1], type(offsets) == "table"
    and offsets[2]
  if not whole(first) or not whole(stop) or offsets[3] ~= nil then
    fail(path, "tensor '%s' has no valid data_offsets", name)
  end
  if first > stop or stop > data_bytes then
    fail(path, "tensor '%s' has data_offsets %.0f to %.0f, but the file has %.0f bytes of data",
      name, first, stop, data_bytes)
  end
  if stop - first ~= numel * BYTES[e.dtype] then
    local sizes = table.concat(e.shape, ", ")
    local needed = numel * BYTES[e.dtype]
    fail(path, "tensor '%s' (%s [%s]) needs %.0f bytes, its data_offsets hold %.0f",
      name, e.dtype, sizes, needed, stop - first)
  end
  return { name = name, dtype = e.dtype, shape = e.shape, ndim = count, begin = first, stop = stop }
end

-- list: sorted by place. A name that the header has twice leaves a hole where its first tensor is.
local function check_cover(path, list, data_bytes)
  local covered = 0
  for i, e in ipairs(list) do
    if e.begin < covered then
      fail(path, "tensors '%s' and '%s' overlap", list[i - 1].name, e.name)
    end
    if e.begin > covered then
      fail(path, "no tensor has bytes %.0f to %.0f, before '%s'", covered, e.begin, e.name)
    end
    covered = e.stop
  end
  if covered < data_bytes then
    fail(path, "%.0f bytes follow the last tensor", data_bytes - covered)
  end
end

local function entries_of(path, header, data_bytes)
  local list = {}
  local metadata = {}
  for name, e in pairs(header) do
    if name == "__metadata__" then
      if type(e) ~= "table" then fail(path, "__metadata__ is not an object") end
      for k, v in pairs(e) do
        if type(v) ~= "string" then fail(path, "__metadata__ '%s' is not a text", tostring(k)) end
        metadata[k] = v
      end
    else
      list[#list + 1] = entry_of(path, tostring(name), e, data_bytes)
    end
  end
  table.sort(list, function(a, b)
    if a.begin ~= b.begin then return a.begin < b.begin end
    if a.stop ~= b.stop then return a.stop < b.stop end
    return a.name < b.name
  end)
  check_cover(path, list, data_bytes)
  return list, metadata
end

-- I64 as i32, for indices and counts. A value that does not fit is an error.
local function narrow_i64(path, file, e)
  local n = (e.stop - e.begin) / 8
  local raw = call(C.sz_file_tensor(file, e.name, C.SZ_U8, 1, ffi.new("int64_t[1]", n * 8), e.begin,
    e.stop))
  local source = ffi.new("int64_t[?]", n + 1)
  ffi.copy(source, C.sz_tensor_data(raw), n * 8)
  C.sz_tensor_release(raw)
  local t = tensor.empty(e.shape, { dtype = "i32" })
  local out = tensor.data(t)
  for i = 0, n - 1 do
    local v = source[i]
    if v < -0x80000000LL or v > 0x7fffffffLL then
      fail(path, "tensor '%s' is I64 and holds %s, which does not fit 32 bits", e.name,
        (tostring(v):gsub("LL$", "")))
    end
    out[i] = tonumber(v)
  end
  return t
end

-- The entry of a slice of rows, whose bytes are together.
local function rows_of(e, slice)
  local each = 0
  if e.shape[1] > 0 then each = (e.stop - e.begin) / e.shape[1] end
  local begin = e.begin + slice.first * each
  return { name = e.name, dtype = e.dtype, shape = parts.shape(e.shape, slice), ndim = e.ndim,
    begin = begin, stop = begin + slice.count * each }
end

-- A copy of a slice of columns, in dtype or the type that the file has.
local function columns_of(path, file, e, dtype, slice)
  local stored = REAL[e.dtype]
  if not stored then fail(path, "tensor '%s' is %s, which has no slices", e.name, e.dtype) end
  local wanted = dtype or stored
  if wanted == "f16" then wanted = "f32" end
  local sizes = parts.shape(e.shape, slice)
  local shape = ffi.new("int64_t[?]", MAX_DIMS)
  for i = 1, e.ndim do shape[i - 1] = sizes[i] end
  return tensor.wrap(call(C.sz_file_part(file, e.name, CODE[e.dtype], tensor.dtype_code(wanted),
    e.ndim, shape, parts.place(e.shape, slice), e.begin, e.stop)))
end

-- dtype: the type that a tensor of real numbers is converted to; nil keeps it (F16 becomes f32).
local function tensor_of(path, file, e, dtype)
  if e.dtype == "I64" then return narrow_i64(path, file, e) end
  local shape = ffi.new("int64_t[?]", MAX_DIMS)
  for i = 1, e.ndim do shape[i - 1] = e.shape[i] end
  local stored = REAL[e.dtype]
  local wanted = dtype or stored
  if stored == "f16" and not dtype then wanted = "f32" end
  local code = CODE[e.dtype]
  if stored and stored ~= wanted then
    return tensor.wrap(call(C.sz_file_convert(file, e.name, code, tensor.dtype_code(wanted),
      e.ndim, shape, e.begin, e.stop)))
  end
  return tensor.wrap(call(C.sz_file_tensor(file, e.name, code, e.ndim, shape, e.begin, e.stop)))
end

local function release(tensors)
  for _, t in pairs(tensors) do t:free() end
end

-- Maps a file. Returns its handle (to close), the list of checked entries and the metadata.
local function open(path)
  if type(path) ~= "string" then error("a file name is expected, got " .. type(path), 0) end
  local file = call(C.sz_file_map(path))
  local ok, list, metadata = pcall(function()
    local len = ffi.new("size_t[1]")
    local text = C.sz_file_header(file, len)
    return entries_of(path, decode(path, ffi.string(text, tonumber(len[0]))),
      tonumber(C.sz_file_data_bytes(file)))
  end)
  if not ok then
    C.sz_file_close(file)
    error(list, 0)
  end
  return ffi.gc(file, C.sz_file_close), list, metadata
end

local function close(file) C.sz_file_close(ffi.gc(file, nil)) end

-- The parts of a file in bytes from its start, for checksums: {{name =, begin =, stop =}, ...}; the
-- first is the header, named "", with its 8 bytes of length. Second result: the file's size.
M.layout = guarded(function(path)
  local file, list = open(path)
  local data = tonumber(C.sz_file_data_bytes(file))
  local len = ffi.new("size_t[1]")
  C.sz_file_header(file, len)
  close(file)
  local first = 8 + tonumber(len[0])
  local layout = { { name = "", begin = 0, stop = first } }
  for _, e in ipairs(list) do
    layout[#layout + 1] = { name = e.name, begin = first + e.begin, stop = first + e.stop }
  end
  return layout, first + data
end)

M.load = guarded(function(path)
  local file, list, metadata = open(path)
  local tensors = {}
  local ok, why = pcall(function()
    for _, e in ipairs(list) do tensors[e.name] = tensor_of(path, file, e) end
  end)
  close(file)
  if not ok then
    release(tensors)
    error(why, 0)
  end
  return tensors, metadata
end)

-- ---- folders ----
local SINGLE = writer.SINGLE
local INDEX = writer.INDEX

-- Weights in other formats, by the names of their files.
local OTHER_WEIGHTS = {
  ["^pytorch_model.*%.bin$"] = "a PyTorch file", ["^consolidated.*%.pth$"] = "a PyTorch file",
  ["%.gguf$"] = "a llama.cpp file", ["^tf_model%.h5$"] = "a TensorFlow file",
  ["^flax_model%.msgpack$"] = "a Flax file",
}
local CONVERT = "save the model as safetensors (in Python: "
  .. "AutoModelForImageTextToText.from_pretrained(FOLDER).save_pretrained(NEW))"

local Folder = {}
Folder.__index = Folder

-- Returns {shard -> {tensor names}}, the sorted names of the shards and {tensor name -> shard}; nil
-- for a folder of one file.
local function read_index(dir)
  local path = dir .. "/" .. INDEX
  local json = files.read_json_object(path, true)
  if not json then return nil end
  local map = json.weight_map
  if type(map) ~= "table" then fail(path, "there is no weight_map") end
  local wanted = {}
  local shards = {}
  for name, shard in pairs(map) do
    if type(shard) ~= "string" or shard:find("/", 1, true) or shard == "" then
      fail(path, "tensor '%s' is said to be in '%s'", name, tostring(shard))
    end
    if not wanted[shard] then
      wanted[shard] = {}
      shards[#shards + 1] = shard
    end
    table.insert(wanted[shard], name)
  end
  table.sort(shards)
  return wanted, shards, map
end

-- What to say of a folder without weights that are read: it names those that are there.
local function without_weights(dir)
  local none = ("%s has neither %s nor %s"):format(dir, SINGLE, INDEX)
  local ok, names = pcall(require("posix.dirent").dir, dir)
  if not ok then return none end
  table.sort(names)
  local advice = require("segzero.merge.locate").advice(dir)
  if advice then return ("%s: %s"):format(none, advice) end
  for _, name in ipairs(names) do
    for pattern, what in pairs(OTHER_WEIGHTS) do
      if name:find(pattern) then
        return ("%s, but %s, %s, which is not read: %s"):format(none, name, what, CONVERT)
      end
    end
  end
  return none
end

-- Maps every shard and reads its header. Problems of files and of the index are collected in
-- folder.problems; only an unreadable index or folder raises. folder.lost has the names that a
-- shard should hold but does not, or that belong to a shard which cannot be read.
local function open_folder(dir)
  if type(dir) ~= "string" then error("a folder name is expected, got " .. type(dir), 0) end
  local wanted, shards, map = {}, { SINGLE }, nil
  local is_single = files.exists(dir .. "/" .. SINGLE)
  if not is_single then
    wanted, shards, map = read_index(dir)
  elseif files.exists(dir .. "/" .. INDEX) then
    notes.say(("%s has %s and %s: the first is read, as in transformers"):format(dir, SINGLE,
      INDEX))
  end
  if not wanted then error(without_weights(dir), 0) end
  local folder = setmetatable({ dir = dir, entries = {}, problems = {}, lost = {}, metadata = {},
    files = {} }, Folder)
  local function problem(...)
    folder.problems[#folder.problems + 1] = (...):format(select(2, ...))
  end
  local misplaced = {}
  for _, shard in ipairs(shards) do
    local path = dir .. "/" .. shard
    local ok, file, list, metadata = pcall(open, path)
    if not ok then
      problem("%s", file)
      for _, name in ipairs(wanted[shard] or {}) do folder.lost[name] = true end
    else
      folder.files[#folder.files + 1] = file
      for k, v in pairs(metadata) do folder.metadata[k] = v end
      local here = {}
      for _, e in ipairs(list) do
        e.file = file
        e.path = path
        here[e.name] = true
        if not map or map[e.name] == shard then
          folder.entries[e.name] = e
        elseif map[e.name] then
          misplaced[e.name] = shard
        else
          e.unlisted = true
          folder.entries[e.name] = e
        end
      end
      table.sort(wanted[shard] or {})
      for _, name in ipairs(wanted[shard] or {}) do
        if not here[name] then folder.lost[name] = shard end
      end
    end
  end
  local gone = {}
  for name, shard in pairs(folder.lost) do
    if shard ~= true then gone[#gone + 1] = name end
  end
  table.sort(gone)
  for _, name in ipairs(gone) do
    local found = ""
    if misplaced[name] then found = " (it is in " .. misplaced[name] .. ")" end
    problem("%s/model.safetensors.index.json: tensor '%s' should be in %s, which lacks it%s", dir,
      name, folder.lost[name],
      found)
  end
  return folder
end
M.open_folder = guarded(open_folder)

function Folder:tensor(name, dtype, slice)
  local e = self.entries[name]
  if slice and slice.dim == 2 then return columns_of(e.path, e.file, e, dtype, slice) end
  if slice then e = rows_of(e, slice) end
  return tensor_of(e.path or self.entries[name].path, self.entries[name].file, e, dtype)
end

-- Tensors that were made from the folder stay valid.
function Folder:close()
  for _, file in ipairs(self.files) do close(file) end
  self.files = {}
  self.entries = {}
end

-- Raises all problems of a folder, or of a request to it, as one error that shows the first ones.
function M.refuse(where, what, problems)
  local lines = {}
  for i = 1, math.min(#problems, 12) do lines[i] = visible.line(problems[i], SHOWN_LINE) end
  if #problems > 12 then lines[13] = "..." end
  local text = table.concat(lines, "\n  ")
  error(("%s: %d %s:\n  %s"):format(where, #problems, what, text), 0)
end

M.load_folder = guarded(function(dir)
  local folder = open_folder(dir)
  local all = {}
  local names = {}
  for name in pairs(folder.entries) do names[#names + 1] = name end
  table.sort(names)
  local ok, why = pcall(function()
    for _, name in ipairs(names) do
      local e = folder.entries[name]
      if e.unlisted then
        table.insert(folder.problems, ("%s: tensor '%s' is not in the index"):format(e.path, name))
      end
    end
    if #folder.problems > 0 then M.refuse(dir, "problems with its files", folder.problems) end
    for _, name in ipairs(names) do all[name] = folder:tensor(name) end
  end)
  folder:close()
  if not ok then
    release(all)
    error(why, 0)
  end
  return all, folder.metadata
end)

-- ---- writing ----
M.save = writer.save
M.save_folder = writer.save_folder

for name, most in pairs { load = 1, save = 5, load_folder = 1, open_folder = 1, save_folder = 3 } do
  M[name] = options.at_most("safetensors." .. name, most, M[name])
end

return M
