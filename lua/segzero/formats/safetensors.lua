-- safetensors.lua - safetensors files and sharded model folders.
--
--   local tensors, metadata = safetensors.load(path)              {name -> tensor}, {key -> text}
--   local tensors, metadata = safetensors.load_folder(dir)
--       model.safetensors, or else the shards that model.safetensors.index.json names
--   local folder = safetensors.open_folder(dir)
--       reads only the headers: folder.entries {name -> {dtype =, shape =, ...}},
--       folder.problems (texts), folder:tensor(name, dtype), folder:close()
--   safetensors.layout(path)               where the header and each tensor are, in bytes
--   safetensors.save(path, tensors, metadata)
--       metadata {format = "pt"} unless given
--   safetensors.plan({name -> described}) -> header, {{name =, begin =, stop =}, ...}
--       what save() would write, and where each tensor would be in the file, in bytes; described: an
--       object with shape(), dtype() and numel(), as a tensor has
--   safetensors.save_folder(dir, tensors, {max_shard_bytes = 5e9, metadata = ...})
--
-- File format: u64 little-endian length n, n bytes of JSON {name: {dtype, shape, data_offsets =
-- [begin, end)}, __metadata__}, then the data. Offsets count from the end of the JSON.
-- Tensors of a loaded file are parts of a private mapping of it: pages are read on first use, and
-- writing to a tensor does not change the file. F32, BF16, I32 and U8 keep their type. F16 becomes
-- f32 (or the dtype given to folder:tensor), BOOL becomes u8, I64 becomes i32 if every value fits.
-- A converted tensor is on the heap, and the pages it was read from are released at once.
-- Everything in the JSON is checked here, and every bound is checked again in C. Tensors are saved
-- in the order of their names; the JSON is padded with spaces to a multiple of 8.
-- Leaves out: other dtypes, reading only part of a file.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local notes = require "segzero.core.notes"
local options = require "segzero.core.options"
local tensor = require "segzero.core.tensor"
local visible = require "segzero.core.visible"

local C = core.C
local call = core.call
local guarded = core.guarded

local M = {}

local BYTES = { F32 = 4, BF16 = 2, F16 = 2, I32 = 4, U8 = 1, BOOL = 1, I64 = 8 }
local CODE = { F32 = C.SZ_F32, BF16 = C.SZ_BF16, I32 = C.SZ_I32, U8 = C.SZ_U8, BOOL = C.SZ_U8,
  F16 = C.SZ_FILE_F16 }
local REAL = { F32 = "f32", BF16 = "bf16", F16 = "f16" }
local NAME = { f32 = "F32", bf16 = "BF16", i32 = "I32", u8 = "U8" }
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
  local parts = { { name = "", begin = 0, stop = first } }
  for _, e in ipairs(list) do
    parts[#parts + 1] = { name = e.name, begin = first + e.begin, stop = first + e.stop }
  end
  return parts, first + data
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
local SINGLE = "model.safetensors"
local INDEX = "model.safetensors.index.json"

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

function Folder:tensor(name, dtype)
  local e = self.entries[name]
  return tensor_of(e.path, e.file, e, dtype)
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
local function sorted_names(tensors)
  local names = {}
  for name, t in pairs(tensors) do
    if type(name) ~= "string" or name == "__metadata__" then
      error("a tensor cannot be named " .. tostring(name), 0)
    end
    if not tensor.is_tensor(t) or t.ptr == nil then error("'" .. name .. "' is not a tensor", 0) end
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

local function bytes_of(t) return t:numel() * BYTES[NAME[t:dtype()]] end

-- The header, and the tensors in the order of the file: {{name =, begin =, stop =}, ...}, in bytes
-- of the data part. The JSON is written by hand, because cjson encodes an empty list as {} and does
-- not sort keys.
local function lay_out(names, tensors, metadata)
  local parts = {}
  local keys = {}
  local at = 0
  for k, v in pairs(metadata) do
    if type(k) ~= "string" or type(v) ~= "string" then
      error("metadata must be texts; '" .. tostring(k) .. "' is not", 0)
    end
    keys[#keys + 1] = k
  end
  table.sort(keys)
  for i, k in ipairs(keys) do keys[i] = cjson.encode(k) .. ":" .. cjson.encode(metadata[k]) end
  if #keys > 0 then parts[1] = '"__metadata__":{' .. table.concat(keys, ",") .. "}" end
  -- Wider types come first, so that every tensor is aligned to its element size.
  local order = {}
  for i, name in ipairs(names) do
    order[i] = { name = name, i = i, size = BYTES[NAME[tensors[name]:dtype()]] }
  end
  table.sort(order, function(a, b)
    if a.size ~= b.size then return a.size > b.size end
    return a.i < b.i
  end)
  local text = {}
  for _, o in ipairs(order) do
    local t = tensors[o.name]
    local stop = at + bytes_of(t)
    local sizes = table.concat(t:shape(), ",")
    local entry = '%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'
    text[o.name] = entry:format(cjson.encode(o.name), NAME[t:dtype()], sizes, at, stop)
    o.begin = at
    o.stop = stop
    at = stop
  end
  for _, name in ipairs(names) do parts[#parts + 1] = text[name] end
  local header = "{" .. table.concat(parts, ",") .. "}"
  return header .. (" "):rep(-#header % 8), order
end

local function write(path, names, tensors, metadata, later)
  local header, order = lay_out(names, tensors, metadata)
  local pointers = ffi.new("sz_tensor *[?]", #order + 1)
  local list = {}
  local in_file = {}
  for i, o in ipairs(order) do
    in_file[i] = o.name
    list[i] = tensors[o.name]
    pointers[i - 1] = list[i].ptr
  end
  if later then
    later:tensors(path, header, list, in_file)
  else
    call(C.sz_safetensors_write(path, header, #header, pointers, #order))
  end
end

function M.plan(described)
  local names = {}
  for name in pairs(described) do names[#names + 1] = name end
  table.sort(names)
  local header, order = lay_out(names, described, { format = "pt" })
  local start = 8 + #header
  for _, one in ipairs(order) do
    one.begin = one.begin + start
    one.stop = one.stop + start
  end
  return header, order
end

-- later: a list of files (jobs.writing) that writes this one in the background.
M.save = guarded(function(path, tensors, metadata, later)
  if type(path) ~= "string" then error("a file name is expected, got " .. type(path), 0) end
  if type(tensors) ~= "table" then
    error("a table of tensors is expected, got " .. type(tensors), 0)
  end
  if metadata ~= nil and type(metadata) ~= "table" then
    error("metadata is a " .. type(metadata) .. ", not a table of texts", 0)
  end
  if later ~= nil and not later.tensors then
    error("save: the fourth argument is a list of files (jobs.writing), not a table of options", 0)
  end
  write(path, sorted_names(tensors), tensors, metadata or { format = "pt" }, later)
end)

local SAVE_FOLDER = options.set { "max_shard_bytes", "metadata", "later" }

-- Writes one file, or numbered shards and then the index. The index comes last, because shards
-- without one are not read as a model. opts.later: see save.
M.save_folder = guarded(function(dir, tensors, opts)
  opts = options.check("save_folder", opts, SAVE_FOLDER, 0)
  local limit = opts.max_shard_bytes or 5e9
  if type(limit) ~= "number" or not (limit >= 1) then
    error("max_shard_bytes is " .. tostring(limit), 0)
  end
  local names = sorted_names(tensors)
  local shards = {}
  local total = 0
  local size = 0
  for _, name in ipairs(names) do
    local n = bytes_of(tensors[name])
    if #shards == 0 or (size + n > limit and size > 0) then
      shards[#shards + 1] = {}
      size = 0
    end
    table.insert(shards[#shards], name)
    size = size + n
    total = total + n
  end
  local metadata = opts.metadata or { format = "pt" }
  local single = dir .. "/" .. SINGLE
  local index_path = dir .. "/" .. INDEX
  if #shards <= 1 then
    write(single, names, tensors, metadata, opts.later)
    os.remove(index_path)      -- a left-over index would be read first
    return
  end
  local map = {}
  for i, shard in ipairs(shards) do
    local file = ("model-%05d-of-%05d.safetensors"):format(i, #shards)
    write(dir .. "/" .. file, shard, tensors, metadata, opts.later)
    for _, name in ipairs(shard) do
      map[#map + 1] = ("    %s: %s"):format(cjson.encode(name), cjson.encode(file))
    end
  end
  local index = ('{\n  "metadata": {"total_size": %.0f},\n  "weight_map": {\n%s\n  }\n}\n'):format(
    total, table.concat(map, ",\n"))
  if opts.later then
    opts.later:text(index_path, index)
    return
  end
  local file, why = io.open(index_path .. ".tmp", "wb")
  if not file then error(why, 0) end
  local written, reason = file:write(index)
  if not file:close() or not written then
    error(index_path .. ": cannot write: " .. tostring(reason), 0)
  end
  local moved, cause = os.rename(index_path .. ".tmp", index_path)
  if not moved then error(cause, 0) end
  os.remove(single)
end)

for name, most in pairs { load = 1, save = 4, load_folder = 1, open_folder = 1, save_folder = 3 } do
  M[name] = options.at_most("safetensors." .. name, most, M[name])
end

return M
