-- torchfile.lua - loads the tensors of a file that torch.save wrote (.pt, .pth), without running
-- any code that the file names.
--
--   local tensors = torchfile.load(path)          {name -> tensor}
--   local a = torchfile.archive(path)             a file that is read in pieces (merge/):
--   a:pickle()                                    the text of data.pkl
--   a:place(e)   a:read(e, first, count, to)   a:tensor(e)   a:close()
--
-- File: a zip archive, entries stored as they are (torch uses zip64 records and pads each entry to
-- 64 bytes):
--   NAME/data.pkl      a pickle, protocol 2 to 5, that describes containers and tensors
--   NAME/data/KEY      the bytes of storage KEY; tensors are (storage, offset, shape, strides),
--                      counted in elements
--   NAME/byteorder     "little"; files before torch 2.1 have none and are little endian too
-- Result: if the file holds a dict whose key 'model' is a dict with tensors, that inner dict (an
-- optimizer next to it is ignored), else everything. Keys of nested dicts and indices of lists
-- (from 0) are joined with '.'. Values that are not tensors are dropped.
-- float32, bfloat16, int32 and uint8 keep their type; float16 and float64 become f32, int64 becomes
-- i32 if every value fits, bool becomes u8. Views and transposed tensors become row-major, each
-- with its own memory: two names of one storage are two tensors here. The caller frees the tensors;
-- inside a scope they belong to it.
--
-- pickle.lua reads data.pkl and runs nothing. All counts and offsets are checked against the size
-- of the file. The tensors together may be at most 8 times as large as the file (conversion doubles
-- half precision, views repeat), so that a small file cannot ask for much memory.
-- Leaves out: writing, mapping (bytes are read straight into the tensors), files from before torch
-- 1.6, TorchScript.

local ffi = require "ffi"
local bit = require "bit"
local core = require "segzero.core.ffi"
local pickle = require "segzero.formats.pickle"
local tensor = require "segzero.core.tensor"

ffi.cdef "size_t fread(void *, size_t, size_t, void *);"

assert(ffi.abi("le"), "torch files are read in place as little endian")

local M = {}

-- Limits in bytes. A large SAM2 has 150 kB of either.
local MAX_PICKLE = 2 ^ 24
local MAX_DIRECTORY = 2 ^ 24
local MAX_DIMS = 6

-- torch type -> { bytes per element, type of the loaded tensor }
local DTYPE = {
  float32 = { 4, "f32" }, bfloat16 = { 2, "bf16" }, int32 = { 4, "i32" }, uint8 = { 1, "u8" },
    bool = { 1, "u8" },
  float16 = { 2, "f32" }, float64 = { 8, "f32" }, int64 = { 8, "i32" },
}
local OUT_BYTES = { f32 = 4, bf16 = 2, i32 = 4, u8 = 1 }

local fail = pickle.fail
local shown = pickle.shown
local number = pickle.number

-- ---- the archive ----
-- Reads n bytes at an offset. The caller has checked that the file has them.
local function read(a, offset, n)
  if n == 0 then return "" end
  local text = a.file:seek("set", offset) and a.file:read(n)
  if not text or #text ~= n then
    fail(a.path, "cannot read %.0f bytes at %.0f: the file changed, or the disk fails", n, offset)
  end
  return text
end

local function read_into(a, offset, p, n)
  if n == 0 then return end
  if not a.file:seek("set", offset) or ffi.C.fread(p, 1, n, a.file) ~= n then
    fail(a.path, "cannot read %.0f bytes at %.0f: the file changed, or the disk fails", n, offset)
  end
end

-- A pickled LONG1 0x1950a86a20f9469cfc6c, torch's old magic number
local LEGACY = "\138\10\108\252\156\70\249\32\106\168\80\25"

local function refuse_other_formats(a)
  local head = read(a, 0, math.min(a.size, 600))
  if head:sub(1, 4) == "PK\3\4" then return end
  if head:byte(1) == 128 and head:find(LEGACY, 1, true) == 3 or head:sub(258, 262) == "ustar" then
    fail(a.path,
      "written in the format before torch 1.6, which is not read. Convert it with Python: "
      .. "torch.save(torch.load(OLD, map_location='cpu', weights_only=True), NEW)")
  end
  fail(a.path, "not a file of torch.save: it does not begin as a zip archive")
end

-- The position of the archive's directory: offset, bytes, number of entries.
local function find_directory(a)
  local tail_at = math.max(0, a.size - 22 - 65535)
  local tail = read(a, tail_at, a.size - tail_at)
  local at
  for i = #tail - 21, 1, -1 do
    if tail:byte(i) == 80 and tail:sub(i, i + 3) == "PK\5\6"
      and i + 21 + number(tail, i + 20, 2) == #tail then
      at = i
      break
    end
  end
  if not at then
    fail(a.path,
      "the archive does not end as one: the file is cut short, or has bytes after its end")
  end
  local entries = number(tail, at + 10, 2)
  local bytes = number(tail, at + 12, 4)
  local offset = number(tail, at + 16, 4)
  local stop = tail_at + at - 1
  if stop >= 20 then
    local locator = read(a, stop - 20, 20)
    if locator:sub(1, 4) == "PK\6\7" then
      local where = number(locator, 9, 8)
      if where + 56 > stop - 20 then
        fail(a.path, "the zip64 record is said to be at %.0f, outside the file", where)
      end
      local record = read(a, where, 56)
      if record:sub(1, 4) ~= "PK\6\6" then
        fail(a.path, "there is no zip64 record at %.0f", where)
      end
      entries, bytes, offset, stop = number(record, 33, 8), number(record, 41, 8),
        number(record, 49, 8), where
    end
  end
  if offset + bytes > stop then
    fail(a.path,
      "the archive's directory (%.0f bytes at %.0f) reaches past %.0f, where it must end", bytes,
      offset, stop)
  end
  if bytes > MAX_DIRECTORY then
    fail(a.path, "the archive's directory has %.0f bytes, at most %d are read", bytes,
      MAX_DIRECTORY)
  end
  if entries * 46 > bytes then
    fail(a.path, "%.0f entries do not fit in a directory of %.0f bytes", entries, bytes)
  end
  return offset, bytes, entries
end

-- Reads sizes and offset from the zip64 extra field where the normal fields hold ffffffff.
local function widen(a, extra, e)
  local at = 1
  while at + 3 <= #extra do
    local id = number(extra, at, 2)
    local n = number(extra, at + 2, 2)
    local field = extra:sub(at + 4, at + 3 + n)
    local used = 1
    if id == 1 then
      for _, key in ipairs { "bytes", "packed", "offset" } do
        if e[key] == 0xffffffff then
          if used + 7 > #field then
            fail(a.path, "entry %s has a zip64 field that is too short", shown(e.name))
          end
          e[key] = number(field, used, 8)
          used = used + 8
        end
      end
    end
    at = at + 4 + n
  end
end

-- {name -> {name, begin, bytes}}. No two entries share bytes.
local function entries_of(a)
  local directory_at, bytes, count = find_directory(a)
  local d = read(a, directory_at, bytes)
  local list = {}
  local at = 1
  for i = 1, count do
    if at + 45 > #d or d:sub(at, at + 3) ~= "PK\1\2" then
      fail(a.path, "entry %d of the archive's directory is damaged", i)
    end
    local name_bytes = number(d, at + 28, 2)
    local extra_bytes = number(d, at + 30, 2)
    local comment_bytes = number(d, at + 32, 2)
    local next_at = at + 46 + name_bytes + extra_bytes + comment_bytes
    if next_at > #d + 1 then fail(a.path, "entry %d of the archive's directory is damaged", i) end
    local e = { name = d:sub(at + 46, at + 45 + name_bytes), flags = number(d, at + 8, 2),
      method = number(d, at + 10, 2),
      packed = number(d, at + 20, 4), bytes = number(d, at + 24, 4),
        offset = number(d, at + 42, 4) }
    widen(a, d:sub(at + 46 + name_bytes, at + 45 + name_bytes + extra_bytes), e)
    if e.flags % 2 == 1 then fail(a.path, "entry %s is encrypted", shown(e.name)) end
    if e.method ~= 0 then
      fail(a.path, "entry %s is compressed; torch.save stores entries as they are", shown(e.name))
    end
    if e.packed ~= e.bytes then
      fail(a.path, "entry %s is stored, yet has two sizes, %.0f and %.0f", shown(e.name), e.packed,
        e.bytes)
    end
    if e.offset + 30 > directory_at then
      fail(a.path, "entry %s is said to be at %.0f, outside the file", shown(e.name), e.offset)
    end
    local head = read(a, e.offset, 30)
    if head:sub(1, 4) ~= "PK\3\4" then
      fail(a.path, "entry %s is not at %.0f, where the directory has it", shown(e.name), e.offset)
    end
    e.begin = e.offset + 30 + number(head, 27, 2) + number(head, 29, 2)
    if e.begin + e.bytes > directory_at then
      fail(a.path, "entry %s has bytes %.0f to %.0f, outside the file's %.0f", shown(e.name),
        e.begin, e.begin + e.bytes, directory_at)
    end
    list[i] = e
    at = next_at
  end
  local entries = {}
  table.sort(list, function(x, y)
    if x.begin ~= y.begin then return x.begin < y.begin end
    return x.bytes < y.bytes
  end)
  for i, e in ipairs(list) do
    if i > 1 and list[i - 1].begin + list[i - 1].bytes > e.begin then
      fail(a.path, "entries %s and %s overlap", shown(list[i - 1].name), shown(e.name))
    end
    if entries[e.name] then fail(a.path, "entry %s is there twice", shown(e.name)) end
    entries[e.name] = e
  end
  return entries
end

-- ---- the tensors ----
-- Checks an entry {name, tensor} against its storage, then adds its storage entry, numel, element
-- size, type and whether it is contiguous. Returns the bytes of the loaded tensor.
local function place(a, entries, prefix, e)
  local t = e.tensor
  local name = shown(e.name)
  local dtype = DTYPE[t.dtype]
  local storage = t.storage
  if not dtype then fail(a.path, "tensor '%s' is %s, which is not handled", name, t.dtype) end
  if t.shape.n > MAX_DIMS then
    fail(a.path, "tensor '%s' has %d dimensions, at most %d are handled", name, t.shape.n, MAX_DIMS)
  end
  local data = entries[prefix .. "data/" .. storage.key]
  if not data then
    fail(a.path, "tensor '%s' is in storage %s, which the file lacks", name, shown(storage.key))
  end
  local size = dtype[1]
  local count = storage.count
  if t.untyped then count = math.floor(count / size) end
  if data.bytes < count * size then
    local message = "storage %s of tensor '%s' should have %.0f elements (%s), " ..
      "the file has %.0f bytes of it"
    fail(a.path, message, shown(storage.key), name, count, t.dtype, data.bytes)
  end
  local numel = 1
  local last = t.offset
  local expected = 1
  local contiguous = true
  for i = t.shape.n, 1, -1 do
    if t.shape[i] ~= 1 and t.strides[i] ~= expected then contiguous = false end
    last = last + (t.shape[i] - 1) * t.strides[i]
    expected = expected * t.shape[i]
    numel = numel * t.shape[i]
  end
  if numel > 0 and last >= count then
    local sizes = table.concat(t.shape, ", ")
    fail(a.path, "tensor '%s' [%s] reaches element %.0f of storage %s, which has %.0f",
      name, sizes, last, shown(storage.key), count)
  end
  e.entry, e.numel, e.size, e.out, e.contiguous = data, numel, size, dtype[2], contiguous
    or numel == 0
  return numel * OUT_BYTES[dtype[2]]
end

local POINTER = { "uint8_t *", "uint16_t *", [4] = "uint32_t *", [8] = "uint64_t *" }

-- Copies the elements of a strided tensor, in row-major order, from its storage's bytes to `to`.
local function gather(e, from, to)
  local pointer, shape, strides, n = POINTER[e.size], e.tensor.shape, e.tensor.strides,
    e.tensor.shape.n
  local source = ffi.cast(pointer, from)
  local out = ffi.cast(pointer, to)
  -- a strided tensor has at least one dimension
  local inner = shape[n]
  local step = strides[n]
  local place_of = {}
  local at = e.tensor.offset
  for i = 1, n do place_of[i] = 0 end
  for row = 0, e.numel - 1, inner do
    for i = 0, inner - 1 do out[row + i] = source[at + i * step] end
    for i = n - 1, 1, -1 do
      place_of[i] = place_of[i] + 1
      at = at + strides[i]
      if place_of[i] < shape[i] then break end
      place_of[i] = 0
      at = at - shape[i] * strides[i]
    end
  end
end

local bits = ffi.new("union { uint32_t u; float f; }")
local NAN = 0 / 0

local function half(h)
  local exponent = math.floor(h / 1024) % 32
  local fraction = h % 1024
  local negative = h >= 0x8000
  -- Subnormal halves are normal floats.
  if exponent == 0 then
    local value = fraction * 2 ^ -24
    if negative then return -value end
    return value
  end
  if exponent == 31 and fraction ~= 0 then return NAN end
  -- The exponent's bias is 15 in a half and 127 in a float; all ones is infinity in both.
  local wide_exponent = exponent + 112
  if exponent == 31 then wide_exponent = 255 end
  local word = wide_exponent * 2 ^ 23 + fraction * 2 ^ 13
  if negative then word = word + 2 ^ 31 end
  bits.u = word
  return bits.f
end

local CONVERT = {
  float16 = function(_, e, from, out)
    local source = ffi.cast("uint16_t *", from)
    for i = 0, e.numel - 1 do out[i] = half(source[i]) end
  end,
  float64 = function(_, e, from, out)
    -- A NaN must not become a Lua number as it is (see from_bits in core/tensor/handle.lua).
    local source = ffi.cast("double *", from)
    local words = ffi.cast("uint64_t *", from)
    for i = 0, e.numel - 1 do
      if bit.band(words[i], 0x7fffffffffffffffULL) > 0x7ff0000000000000ULL then
        out[i] = NAN
      else
        out[i] = source[i]
      end
    end
  end,
  int64 = function(a, e, from, out)
    local source = ffi.cast("int64_t *", from)
    for i = 0, e.numel - 1 do
      local v = source[i]
      if v < -0x80000000LL or v > 0x7fffffffLL then
        fail(a.path, "tensor '%s' is int64 and holds %s, which does not fit 32 bits", shown(e.name),
          (tostring(v):gsub("LL$", "")))
      end
      out[i] = tonumber(v)
    end
  end,
}

local function new(a, e, shape, dtype)
  local ok, t = pcall(tensor.empty, shape, { dtype = dtype })
  if not ok then
    fail(a.path, "tensor '%s': %s", shown(e.name), tostring(t):gsub("^[^:]*:%d+: ", ""))
  end
  return t
end

-- Scratch memory is a tensor too. The collector does not see it, so it is freed by hand.
local function scratch(a, e, bytes, f)
  local t = new(a, e, { bytes }, "u8")
  local ok, why = pcall(f, tensor.data(t))
  t:free()
  if not ok then error(why, 0) end
end

-- Reads the tensors of one storage into `tensors`. If one of them is strided, the whole storage is
-- read once.
local function read_storage(a, group, tensors)
  local function each(e, bytes)
    local t = new(a, e, { unpack(e.tensor.shape, 1, e.tensor.shape.n) }, e.out)
    tensors[e.name] = t
    local out = tensor.data(t)
    local convert = CONVERT[e.tensor.dtype]
    local function fill(to)
      if e.numel == 0 then return end
      if e.contiguous then
        read_into(a, e.entry.begin + e.tensor.offset * e.size, to, e.numel * e.size)
      else
        gather(e, bytes, to)
      end
    end
    if not convert then return fill(out) end
    scratch(a, e, e.numel * e.size, function(to)
      fill(to)
      convert(a, e, to, out)
    end)
  end
  local strided
  for _, e in ipairs(group) do
    if e.contiguous then each(e) else strided = true end
  end
  if not strided then return end
  local data = group[1].entry
  scratch(a, group[1], data.bytes, function(bytes)
    read_into(a, data.begin, bytes, data.bytes)
    for _, e in ipairs(group) do
      if not e.contiguous then each(e, bytes) end
    end
  end)
end

-- ---- files ----
-- The folder inside the archive that holds data.pkl, with a slash.
local function find_prefix(a)
  local prefix
  for name in pairs(a.entries) do
    local folder = name:match("^([^/]*/)data%.pkl$")
    if folder and prefix then
      fail(a.path, "it holds two archives, %s and %s", shown(prefix), shown(folder))
    end
    prefix = prefix or folder
  end
  if not prefix then fail(a.path, "a zip archive, but not of torch.save: it has no data.pkl") end
  if a.entries[prefix .. "constants.pkl"] then
    fail(a.path, "a TorchScript program, which is not read; save its state_dict() with torch.save")
  end
  return prefix
end

local function check_byte_order(a)
  local order = a.entries[a.prefix .. "byteorder"]
  if not order then return end
  local text = read(a, order.begin, math.min(order.bytes, 16))
  if text ~= "little" then
    fail(a.path, "its byte order is '%s', only little endian is read", shown(text))
  end
end

-- data.pkl
local function read_pickle(a)
  local described = a.entries[a.prefix .. "data.pkl"]
  if described.bytes > MAX_PICKLE then
    fail(a.path, "data.pkl has %.0f bytes, at most %d are read", described.bytes, MAX_PICKLE)
  end
  return read(a, described.begin, described.bytes)
end

local Archive = {}
Archive.__index = Archive

-- Opens a file and reads its directory. The caller closes a.file, also after an error.
local function open_into(a)
  local some, cause = a.file:read(1)
  if not some then fail(a.path, "%s", cause or "the file is empty") end
  a.size = a.file:seek "end"
  refuse_other_formats(a)
  a.entries = entries_of(a)
  a.prefix = find_prefix(a)
  check_byte_order(a)
end

local function new_archive(path)
  if type(path) ~= "string" then error("a file name is expected, got " .. type(path), 0) end
  local file, why = io.open(path, "rb")
  if not file then error(why, 0) end
  return setmetatable({ path = path, file = file }, Archive)
end

-- A file whose tensors are read in pieces. Errors name the file; the caller closes it.
function M.archive(path)
  local a = new_archive(path)
  local ok, reason = pcall(open_into, a)
  if ok then return a end
  a:close()
  error(reason, 0)
end

function Archive:pickle() return read_pickle(self) end

-- Checks {name =, tensor = of pickle.lua} against the file, and adds numel, size (bytes of an
-- element) and is_plain: whether read() takes it.
function Archive:place(e)
  place(self, self.entries, self.prefix, e)
  e.is_plain = e.contiguous and not CONVERT[e.tensor.dtype]
end

-- Elements first .. first + count - 1 (from 0) of a placed tensor with is_plain, as stored.
function Archive:read(e, first, count, to)
  assert(e.is_plain and first >= 0 and first + count <= e.numel)
  read_into(self, e.entry.begin + (e.tensor.offset + first) * e.size, to, count * e.size)
end

-- Any placed tensor as a whole, converted as load() does. The caller frees it.
function Archive:tensor(e)
  local tensors = {}
  local ok, why = pcall(read_storage, self, { e }, tensors)
  if ok then return tensors[e.name] end
  for _, t in pairs(tensors) do t:free() end
  error(why, 0)
end

function Archive:close()
  if self.file then self.file:close() end
  self.file = nil
end

local function load_from(a, tensors)
  open_into(a)
  local list = pickle.tensors(a.path, read_pickle(a))
  local total = 0
  local groups = {}
  local order_of = {}
  for _, e in ipairs(list) do
    total = total + place(a, a.entries, a.prefix, e)
    if total > 8 * a.size then
      fail(a.path, "its tensors need more than 8 times the file's %.0f bytes", a.size)
    end
    if not groups[e.entry] then
      groups[e.entry] = {}
      order_of[#order_of + 1] = e.entry
    end
    table.insert(groups[e.entry], e)
  end
  table.sort(order_of, function(x, y)
    if x.begin ~= y.begin then return x.begin < y.begin end
    return x.name < y.name      -- empty storages may share a place
  end)
  for _, entry in ipairs(order_of) do read_storage(a, groups[entry], tensors) end
end

M.load = core.guarded(function(path)
  local a = new_archive(path)
  local tensors = {}
  local ok, reason = pcall(load_from, a, tensors)
  a:close()
  if not ok then
    for _, t in pairs(tensors) do t:free() end
    error(reason, 0)
  end
  return tensors
end)

return M
