-- torchfile.lua - tensors of a file that torch.save wrote (.pt, .pth), without running anything the file asks for.
--
--   local tensors = torchfile.load(path)          {name -> tensor}
--
-- File: a zip archive, entries stored as they are (torch uses zip64 records and pads each entry to 64 bytes):
--   NAME/data.pkl      a pickle, protocol 2 to 5, that describes containers and tensors
--   NAME/data/KEY      the bytes of storage KEY; tensors are (storage, offset, shape, strides), counted in elements
--   NAME/byteorder     "little"; files before torch 2.1 have none and are little endian too
-- What comes back: for a dict whose key 'model' holds a dict with tensors, that inner dict (what lies beside it, such as an
-- optimizer, is left out); else the whole. Inside, dicts and lists are walked and keys joined with '.' (list places from
-- 0); what is no tensor is dropped. float32, bfloat16, int32 and uint8 stay; float16 and float64 become f32, int64 i32 where every value
-- fits, bool u8. Views and transposed tensors come back row-major, each with its own memory: two names of one
-- storage are two tensors here. Memory belongs to the open step, if any; the caller frees.
--
-- A pickle is a program. This one can only build containers, numbers, texts, torch.Size, OrderedDict, storages and tensors; any other
-- name in it is an error that tells the name. All counts and offsets are checked against the file's size, and the tensors together may
-- be 8 times as large as the file (half precision doubles, views repeat), so that a small file cannot ask for much.
-- Leaves out: writing, mapping (bytes are read straight into the tensors), the format before torch 1.6, TorchScript.

local ffi = require "ffi"
local core = require "segzero.ffi"
local tensor = require "segzero.tensor"

ffi.cdef "size_t fread(void *, size_t, size_t, void *);"

assert(ffi.abi("le"), "torch files are read in place as little endian")

local M = {}

local MAX_PICKLE, MAX_DIRECTORY = 2 ^ 24, 2 ^ 24    -- bytes; a large SAM2 has 150 kB of either
local MAX_OBJECTS, MAX_DEPTH = 2 ^ 20, 64
local MAX_DIMS = 6
local MAX_WHOLE = 2 ^ 53

-- name in torch -> {bytes an element, dtype here}
local DTYPE = {
  float32 = { 4, "f32" }, bfloat16 = { 2, "bf16" }, int32 = { 4, "i32" }, uint8 = { 1, "u8" }, bool = { 1, "u8" },
  float16 = { 2, "f32" }, float64 = { 8, "f32" }, int64 = { 8, "i32" },
}
local OUT_BYTES = { f32 = 4, bf16 = 2, i32 = 4, u8 = 1 }
local STORAGE = {
  FloatStorage = "float32", BFloat16Storage = "bfloat16", IntStorage = "int32", ByteStorage = "uint8", BoolStorage = "bool",
  HalfStorage = "float16", DoubleStorage = "float64", LongStorage = "int64", ShortStorage = "int16", CharStorage = "int8",
  ComplexFloatStorage = "complex64", ComplexDoubleStorage = "complex128",
}
-- Types that torch names directly, because they came after the storage classes. None is handled; a tensor of one that is wanted is
-- an error, one inside an optimizer's state is not.
local LATE_DTYPES = {
  "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
  "float4_e2m1fn_x2", "complex32", "bits8", "bits16",
}

local function whole(x) return type(x) == "number" and x >= 0 and x <= MAX_WHOLE and x % 1 == 0 end

local function fail(path, format, ...) error(path .. ": " .. format:format(...), 0) end

-- A name out of the file as a message can show it.
local function shown(name)
  name = name:gsub("[%c\127-\255]", "?")
  return #name > 120 and name:sub(1, 120) .. "..." or name
end

-- ---- the archive ----
local function number(s, at, bytes)
  local n = 0
  for i = at + bytes - 1, at, -1 do n = n * 256 + s:byte(i) end
  return n
end

-- n bytes at an offset, of a file that is known to have them.
local function read(a, offset, n)
  if n == 0 then return "" end
  local text = a.file:seek("set", offset) and a.file:read(n)
  if not text or #text ~= n then fail(a.path, "cannot read %.0f bytes at %.0f: the file changed, or the disk fails", n, offset) end
  return text
end

local function read_into(a, offset, p, n)
  if n == 0 then return end
  if not a.file:seek("set", offset) or ffi.C.fread(p, 1, n, a.file) ~= n then
    fail(a.path, "cannot read %.0f bytes at %.0f: the file changed, or the disk fails", n, offset)
  end
end

local LEGACY = "\138\10\108\252\156\70\249\32\106\168\80\25"      -- LONG1 0x1950a86a20f9469cfc6c, torch's magic number

local function refuse_other_formats(a)
  local head = read(a, 0, math.min(a.size, 600))
  if head:sub(1, 4) == "PK\3\4" then return end
  if head:byte(1) == 128 and head:find(LEGACY, 1, true) == 3 or head:sub(258, 262) == "ustar" then
    fail(a.path, "written in the format before torch 1.6, which is not read. Convert it with Python: "
      .. "torch.save(torch.load(OLD, map_location='cpu', weights_only=True), NEW)")
  end
  fail(a.path, "not a file of torch.save: it does not begin as a zip archive")
end

-- Where the directory lies: offset, bytes, entries.
local function find_directory(a)
  local tail_at = math.max(0, a.size - 22 - 65535)
  local tail = read(a, tail_at, a.size - tail_at)
  local at
  for i = #tail - 21, 1, -1 do
    if tail:byte(i) == 80 and tail:sub(i, i + 3) == "PK\5\6" and i + 21 + number(tail, i + 20, 2) == #tail then
      at = i
      break
    end
  end
  if not at then fail(a.path, "the archive does not end as one: the file is cut short, or has bytes after its end") end
  local entries, bytes, offset = number(tail, at + 10, 2), number(tail, at + 12, 4), number(tail, at + 16, 4)
  local stop = tail_at + at - 1
  if stop >= 20 then
    local locator = read(a, stop - 20, 20)
    if locator:sub(1, 4) == "PK\6\7" then
      local where = number(locator, 9, 8)
      if where + 56 > stop - 20 then fail(a.path, "the zip64 record is said to be at %.0f, outside the file", where) end
      local record = read(a, where, 56)
      if record:sub(1, 4) ~= "PK\6\6" then fail(a.path, "there is no zip64 record at %.0f", where) end
      entries, bytes, offset, stop = number(record, 33, 8), number(record, 41, 8), number(record, 49, 8), where
    end
  end
  if offset + bytes > stop then
    fail(a.path, "the archive's directory (%.0f bytes at %.0f) reaches past %.0f, where it must end", bytes, offset, stop)
  end
  if bytes > MAX_DIRECTORY then fail(a.path, "the archive's directory has %.0f bytes, at most %d are read", bytes, MAX_DIRECTORY) end
  if entries * 46 > bytes then fail(a.path, "%.0f entries do not fit in a directory of %.0f bytes", entries, bytes) end
  return offset, bytes, entries
end

-- The sizes and the offset that zip64 moves to the extra field when they read ffffffff.
local function widen(a, extra, e)
  local at = 1
  while at + 3 <= #extra do
    local id, n = number(extra, at, 2), number(extra, at + 2, 2)
    local field, used = extra:sub(at + 4, at + 3 + n), 1
    if id == 1 then
      for _, key in ipairs { "bytes", "packed", "offset" } do
        if e[key] == 0xffffffff then
          if used + 7 > #field then fail(a.path, "entry %s has a zip64 field that is too short", shown(e.name)) end
          e[key] = number(field, used, 8)
          used = used + 8
        end
      end
    end
    at = at + 4 + n
  end
end

-- {name -> {name, begin, bytes}}; no two share bytes.
local function entries_of(a)
  local directory_at, bytes, count = find_directory(a)
  local d = read(a, directory_at, bytes)
  local list, at = {}, 1
  for i = 1, count do
    if at + 45 > #d or d:sub(at, at + 3) ~= "PK\1\2" then fail(a.path, "entry %d of the archive's directory is damaged", i) end
    local name_bytes, extra_bytes, comment_bytes = number(d, at + 28, 2), number(d, at + 30, 2), number(d, at + 32, 2)
    local next_at = at + 46 + name_bytes + extra_bytes + comment_bytes
    if next_at > #d + 1 then fail(a.path, "entry %d of the archive's directory is damaged", i) end
    local e = { name = d:sub(at + 46, at + 45 + name_bytes), flags = number(d, at + 8, 2), method = number(d, at + 10, 2),
      packed = number(d, at + 20, 4), bytes = number(d, at + 24, 4), offset = number(d, at + 42, 4) }
    widen(a, d:sub(at + 46 + name_bytes, at + 45 + name_bytes + extra_bytes), e)
    if e.flags % 2 == 1 then fail(a.path, "entry %s is encrypted", shown(e.name)) end
    if e.method ~= 0 then fail(a.path, "entry %s is compressed; torch.save stores entries as they are", shown(e.name)) end
    if e.packed ~= e.bytes then fail(a.path, "entry %s is stored, yet has two sizes, %.0f and %.0f", shown(e.name), e.packed, e.bytes) end
    if e.offset + 30 > directory_at then fail(a.path, "entry %s is said to be at %.0f, outside the file", shown(e.name), e.offset) end
    local head = read(a, e.offset, 30)
    if head:sub(1, 4) ~= "PK\3\4" then fail(a.path, "entry %s is not at %.0f, where the directory has it", shown(e.name), e.offset) end
    e.begin = e.offset + 30 + number(head, 27, 2) + number(head, 29, 2)
    if e.begin + e.bytes > directory_at then
      fail(a.path, "entry %s has bytes %.0f to %.0f, outside the file's %.0f", shown(e.name), e.begin, e.begin + e.bytes, directory_at)
    end
    list[i], at = e, next_at
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

-- ---- the pickle ----
-- Values: numbers, texts and booleans as they are; everything else a table with `kind`: none, dict, list, tuple (sets
-- count as lists and tuples), callable, storage_type, dtype, storage, tensor.
local NONE = { kind = "none" }

local function kind(v) return type(v) == "table" and v.kind or type(v) end

local function as_list(p, args)      -- a set, before pickle had an opcode for it: set([...])
  if args.n ~= 1 or kind(args[1]) ~= "list" then p:fail("a set is not made of a list") end
  return args[1]
end

local CALLABLES = {
  ["builtins.set"] = as_list,
  ["__builtin__.set"] = as_list,
  ["collections.OrderedDict"] = function(p, args)
    if args.n ~= 0 then p:fail("collections.OrderedDict is called with arguments") end
    return p:object { kind = "dict", keys = {}, values = {}, at = {} }
  end,
  ["torch.Size"] = function(p, args)
    local k = args.n == 1 and kind(args[1])
    if k ~= "tuple" and k ~= "list" then p:fail("torch.Size is not called with a list") end
    return args[1]
  end,
  -- (storage, offset, shape, strides, requires_grad, hooks [, metadata])
  ["torch._utils._rebuild_tensor_v2"] = function(p, args) return p:tensor(args, nil) end,
  -- (storage, offset, shape, strides, requires_grad, hooks, dtype [, metadata]): types without a storage class
  ["torch._utils._rebuild_tensor_v3"] = function(p, args)
    if kind(args[7]) ~= "dtype" then p:fail("torch._utils._rebuild_tensor_v3 is called without a dtype") end
    return p:tensor(args, args[7].dtype)
  end,
  -- (tensor, requires_grad, hooks)
  ["torch._utils._rebuild_parameter"] = function(p, args)
    if kind(args[1]) ~= "tensor" then p:fail("torch._utils._rebuild_parameter is called without a tensor") end
    return args[1]
  end,
}

local GLOBALS = { ["torch.storage.UntypedStorage"] = { kind = "storage_type", dtype = "uint8" } }
for name, call in pairs(CALLABLES) do GLOBALS[name] = { kind = "callable", name = name, call = call } end
for name, dtype in pairs(STORAGE) do GLOBALS["torch." .. name] = { kind = "storage_type", dtype = dtype } end
for name in pairs(DTYPE) do GLOBALS["torch." .. name] = { kind = "dtype", dtype = name } end
for _, name in ipairs(LATE_DTYPES) do GLOBALS["torch." .. name] = { kind = "dtype", dtype = name } end

local P = {}
P.__index = P

function P:fail(format, ...) fail(self.path, "data.pkl, byte %d: " .. format, self.op_at - 1, ...) end

function P:object(o)
  self.objects = self.objects + 1
  if self.objects > MAX_OBJECTS then self:fail("more than %d objects", MAX_OBJECTS) end
  return o
end

function P:take(n)
  local at = self.at
  if n > #self.text - at + 1 then self:fail("%.0f bytes are wanted, %d are left", n, #self.text - at + 1) end
  self.at = at + n
  return at
end

function P:unsigned(bytes) return number(self.text, self:take(bytes), bytes) end

function P:bytes(length_bytes)
  local n = self:unsigned(length_bytes)
  local at = self:take(n)
  return self.text:sub(at, at + n - 1)
end

function P:line()
  local stop = self.text:find("\n", self.at, true)
  if not stop then self:fail("a line without an end") end
  local line = self.text:sub(self.at, stop - 1)
  self.at = stop + 1
  return line
end

function P:push(v)
  self.n = self.n + 1
  self.stack[self.n] = v
end

-- Only what lies above the last mark can be taken one by one.
function P:pop()
  if self.n <= (self.marks[#self.marks] or 0) then self:fail("the stack is empty") end
  local v = self.stack[self.n]
  self.stack[self.n] = nil
  self.n = self.n - 1
  return v
end

function P:top()
  if self.n <= (self.marks[#self.marks] or 0) then self:fail("the stack is empty") end
  return self.stack[self.n]
end

-- What was pushed since the last mark, {n = ...}.
function P:pop_mark()
  local mark = table.remove(self.marks)
  if not mark then self:fail("a mark is missing") end
  local items = { n = self.n - mark }
  for i = 1, items.n do
    items[i] = self.stack[mark + i]
    self.stack[mark + i] = nil
  end
  self.n = mark
  return items
end

function P:tuple(n)
  local t = self:object { kind = "tuple", n = n }
  for i = n, 1, -1 do t[i] = self:pop() end
  self:push(t)
end

function P:set(d, k, v)
  local i = type(k) == "string" and d.at[k] or #d.keys + 1
  if type(k) == "string" then d.at[k] = i end
  d.keys[i], d.values[i] = k, v
end

function P:add(list, items)
  if kind(list) ~= "list" then self:fail("items are added to a %s", kind(list)) end
  for i = 1, items.n do list[list.n + i] = items[i] end
  list.n = list.n + items.n
end

function P:set_items(items)
  local d = self:top()
  if kind(d) ~= "dict" then self:fail("keys are set in a %s", kind(d)) end
  if items.n % 2 ~= 0 then self:fail("a key without a value") end
  for i = 1, items.n, 2 do self:set(d, items[i], items[i + 1]) end
end

function P:global(module, name)
  if type(module) ~= "string" or type(name) ~= "string" then self:fail("a name is not a text") end
  local full = module .. "." .. name
  local g = GLOBALS[full]
  if not g then fail(self.path, "the file calls %s, which is not read: only tensors and plain containers are", shown(full)) end
  return g
end

-- Two's complement of any length; a double holds the first 53 bits.
function P:long(n)
  if n == 0 then return 0 end
  local at = self:take(n)
  local v = number(self.text, at, n)
  return self.text:byte(at + n - 1) >= 128 and v - 256 ^ n or v
end

function P:storage(id)
  if kind(id) ~= "tuple" or id.n < 5 or id[1] ~= "storage" or kind(id[2]) ~= "storage_type" or type(id[3]) ~= "string"
    or not whole(id[5]) then
    self:fail("a persistent id that is no storage")
  end
  return self:object { kind = "storage", dtype = id[2].dtype, key = id[3], count = id[5] }
end

function P:tensor(args, dtype)
  local storage, offset, shape, strides = args[1], args[2], args[3], args[4]
  if kind(storage) ~= "storage" or not whole(offset) or kind(shape) ~= "tuple" or kind(strides) ~= "tuple" or shape.n ~= strides.n then
    self:fail("a tensor that is not (storage, offset, shape, strides)")
  end
  for i = 1, shape.n do
    if not whole(shape[i]) or not whole(strides[i]) then self:fail("a tensor's dimension %d is not a whole number", i - 1) end
  end
  return self:object { kind = "tensor", storage = storage, offset = offset, shape = shape, strides = strides,
    dtype = dtype or storage.dtype, untyped = dtype ~= nil }
end

local double = ffi.new("union { uint8_t b[8]; double d; }")

local OPS = {
  [0x80] = function(p)      -- PROTO
    local version = p:unsigned(1)
    if version < 2 or version > 5 then p:fail("pickle protocol %d, 2 to 5 are read", version) end
  end,
  [0x95] = function(p)      -- FRAME
    local n = p:unsigned(8)
    if n > #p.text - p.at + 1 then p:fail("a frame of %.0f bytes, %d are left", n, #p.text - p.at + 1) end
  end,
  ["("] = function(p) p.marks[#p.marks + 1] = p.n end,
  ["0"] = function(p)       -- POP, which removes a mark when there is nothing above it
    if #p.marks > 0 and p.marks[#p.marks] == p.n then p.marks[#p.marks] = nil else p:pop() end
  end,
  ["1"] = function(p) p:pop_mark() end,
  ["2"] = function(p) p:push(p:top()) end,
  ["q"] = function(p) p.memo[p:unsigned(1)] = p:top() end,
  ["r"] = function(p) p.memo[p:unsigned(4)] = p:top() end,
  [0x94] = function(p)      -- MEMOIZE: at the number of entries so far; what is read here never leaves gaps
    p.memo[p.memoized] = p:top()
    p.memoized = p.memoized + 1
  end,
  ["h"] = function(p) p:recall(p:unsigned(1)) end,
  ["j"] = function(p) p:recall(p:unsigned(4)) end,
  ["N"] = function(p) p:push(NONE) end,
  [0x88] = function(p) p:push(true) end,
  [0x89] = function(p) p:push(false) end,
  ["J"] = function(p)
    local v = p:unsigned(4)
    p:push(v >= 2 ^ 31 and v - 2 ^ 32 or v)
  end,
  ["K"] = function(p) p:push(p:unsigned(1)) end,
  ["M"] = function(p) p:push(p:unsigned(2)) end,
  [0x8a] = function(p) p:push(p:long(p:unsigned(1))) end,
  [0x8b] = function(p) p:push(p:long(p:unsigned(4))) end,
  ["G"] = function(p)       -- BINFLOAT: big endian
    local at = p:take(8)
    for i = 0, 7 do double.b[7 - i] = p.text:byte(at + i) end
    p:push(tonumber(double.d))
  end,
  ["X"] = function(p) p:push(p:bytes(4)) end,
  [0x8c] = function(p) p:push(p:bytes(1)) end,
  [0x8d] = function(p) p:push(p:bytes(8)) end,
  ["U"] = function(p) p:push(p:bytes(1)) end,      -- texts of Python 2, and bytes
  ["T"] = function(p) p:push(p:bytes(4)) end,
  ["C"] = function(p) p:push(p:bytes(1)) end,
  ["B"] = function(p) p:push(p:bytes(4)) end,
  [0x8e] = function(p) p:push(p:bytes(8)) end,
  ["}"] = function(p) p:push(p:object { kind = "dict", keys = {}, values = {}, at = {} }) end,
  ["]"] = function(p) p:push(p:object { kind = "list", n = 0 }) end,
  [0x8f] = function(p) p:push(p:object { kind = "list", n = 0 }) end,      -- EMPTY_SET
  [")"] = function(p) p:tuple(0) end,
  [0x85] = function(p) p:tuple(1) end,
  [0x86] = function(p) p:tuple(2) end,
  [0x87] = function(p) p:tuple(3) end,
  ["t"] = function(p)
    local t = p:object(p:pop_mark())
    t.kind = "tuple"
    p:push(t)
  end,
  ["a"] = function(p)
    local v = p:pop()
    p:add(p:top(), { n = 1, v })
  end,
  ["s"] = function(p)
    local v = p:pop()
    local k = p:pop()
    p:set_items { n = 2, k, v }
  end,
  ["u"] = function(p) p:set_items(p:pop_mark()) end,
  ["c"] = function(p)
    local module = p:line()
    p:push(p:global(module, p:line()))
  end,
  [0x93] = function(p)      -- STACK_GLOBAL
    local name = p:pop()
    p:push(p:global(p:pop(), name))
  end,
  ["i"] = function(p)       -- INST
    local module = p:line()
    local name = p:line()
    p:global(module, name)
    p:fail("%s.%s is built by INST, which is not read", shown(module), shown(name))
  end,
  ["R"] = function(p)
    local args = p:pop()
    local f = p:pop()
    if kind(f) ~= "callable" then p:fail("a %s is called", kind(f)) end
    if kind(args) ~= "tuple" then p:fail("%s is called with a %s", f.name, kind(args)) end
    p:push(f.call(p, args))
  end,
  ["b"] = function(p)       -- BUILD: a state dict's _metadata
    p:pop()
    if kind(p:top()) ~= "dict" then p:fail("a %s is given a state", kind(p:top())) end
  end,
  ["Q"] = function(p) p:push(p:storage(p:pop())) end,
  ["e"] = function(p)
    local items = p:pop_mark()
    p:add(p:top(), items)
  end,
  [0x90] = function(p)      -- ADDITEMS
    local items = p:pop_mark()
    p:add(p:top(), items)
  end,
}
OPS[0x91] = OPS["t"]        -- FROZENSET

local BY_BYTE = {}
for op, f in pairs(OPS) do BY_BYTE[type(op) == "string" and op:byte() or op] = f end

local OP_NAMES = {
  [0x50] = "PERSID", [0x6f] = "OBJ", [0x81] = "NEWOBJ", [0x92] = "NEWOBJ_EX", [0x82] = "EXT1", [0x83] = "EXT2", [0x84] = "EXT4",
}

function P:recall(i)
  if self.memo[i] == nil then self:fail("memo %.0f is empty", i) end
  self:push(self.memo[i])
end

local function unpickle(path, text)
  local p = setmetatable({
    path = path, text = text, at = 1, op_at = 1, stack = {}, n = 0, marks = {}, memo = {}, memoized = 0, objects = 0,
  }, P)
  local stop = ("."):byte()
  while true do
    p.op_at = p.at
    local op = text:byte(p:take(1))
    if op == stop then break end
    local f = BY_BYTE[op]
    if not f then p:fail("opcode %s is not read", OP_NAMES[op] or ("0x%02x"):format(op)) end
    f(p)
  end
  local root = p:pop()
  if p.n ~= 0 or #p.marks ~= 0 then p:fail("it ends in the middle") end
  if p.at ~= #text + 1 then p:fail("%d bytes after its end", #text + 1 - p.at) end
  return root
end

-- ---- from containers to names ----
-- {{name, tensor}, ...} in the file's order. Shared containers are walked each time they are met, hence the limits.
local function flatten(path, root)
  local list, visits = {}, 0
  local function walk(v, name, depth)
    visits = visits + 1
    if visits > MAX_OBJECTS then fail(path, "more than %d values in its containers", MAX_OBJECTS) end
    if depth > MAX_DEPTH then fail(path, "containers are nested more than %d deep", MAX_DEPTH) end
    local k = kind(v)
    if k == "tensor" then
      if not name then fail(path, "it holds one tensor, not a dict of tensors") end
      list[#list + 1] = { name = name, tensor = v }
    elseif k == "dict" then
      for i = 1, #v.keys do
        local key = v.keys[i]
        if type(key) == "number" then key = ("%.17g"):format(key) elseif type(key) ~= "string" then key = "<" .. kind(key) .. ">" end
        walk(v.values[i], name and name .. "." .. key or key, depth + 1)
      end
    elseif k == "list" or k == "tuple" then
      for i = 1, v.n do walk(v[i], (name and name .. "." or "") .. (i - 1), depth + 1) end
    end
  end
  walk(root, nil, 1)
  local seen = {}
  for _, e in ipairs(list) do
    if seen[e.name] then fail(path, "two tensors have the name '%s'", shown(e.name)) end
    seen[e.name] = true
  end
  return list
end

local function wanted(path, root)
  if kind(root) == "dict" then
    local model = root.values[root.at.model or 0]
    if kind(model) == "dict" then
      local list = flatten(path, model)
      if #list > 0 then return list end
    end
  end
  local list = flatten(path, root)
  if #list == 0 then fail(path, "it holds no tensor") end
  return list
end

-- ---- the tensors ----
-- Adds numel, begin (byte of the file), contiguous to an entry {name, tensor} after checking it against its storage.
local function place(a, entries, prefix, e)
  local t, name = e.tensor, shown(e.name)
  local dtype, storage = DTYPE[t.dtype], t.storage
  if not dtype then fail(a.path, "tensor '%s' is %s, which is not handled", name, t.dtype) end
  if t.shape.n > MAX_DIMS then fail(a.path, "tensor '%s' has %d dimensions, at most %d are handled", name, t.shape.n, MAX_DIMS) end
  local data = entries[prefix .. "data/" .. storage.key]
  if not data then fail(a.path, "tensor '%s' is in storage %s, which the file lacks", name, shown(storage.key)) end
  local size = dtype[1]
  local count = storage.count
  if t.untyped then count = math.floor(count / size) end
  if data.bytes < count * size then
    fail(a.path, "storage %s of tensor '%s' should have %.0f elements (%s), the file has %.0f bytes of it", shown(storage.key), name, count,
      t.dtype, data.bytes)
  end
  local numel, last, expected, contiguous = 1, t.offset, 1, true
  for i = t.shape.n, 1, -1 do
    if t.shape[i] ~= 1 and t.strides[i] ~= expected then contiguous = false end
    last = last + (t.shape[i] - 1) * t.strides[i]
    expected, numel = expected * t.shape[i], numel * t.shape[i]
  end
  if numel > 0 and last >= count then
    fail(a.path, "tensor '%s' [%s] reaches element %.0f of storage %s, which has %.0f", name, table.concat(t.shape, ", "), last,
      shown(storage.key), count)
  end
  e.entry, e.numel, e.size, e.out, e.contiguous = data, numel, size, dtype[2], contiguous or numel == 0
  return numel * OUT_BYTES[dtype[2]]
end

local POINTER = { "uint8_t *", "uint16_t *", [4] = "uint32_t *", [8] = "uint64_t *" }

-- Elements of a strided tensor, row-major, from its storage's bytes. to: numel elements.
local function gather(e, from, to)
  local pointer, shape, strides, n = POINTER[e.size], e.tensor.shape, e.tensor.strides, e.tensor.shape.n
  local source, out = ffi.cast(pointer, from), ffi.cast(pointer, to)
  local inner, step = shape[n], strides[n]      -- a strided tensor has a dimension
  local place_of, at = {}, e.tensor.offset
  for i = 1, n do place_of[i] = 0 end
  for row = 0, e.numel - 1, inner do
    for i = 0, inner - 1 do out[row + i] = source[at + i * step] end
    for i = n - 1, 1, -1 do
      place_of[i], at = place_of[i] + 1, at + strides[i]
      if place_of[i] < shape[i] then break end
      place_of[i], at = 0, at - shape[i] * strides[i]
    end
  end
end

local bits = ffi.new("union { uint32_t u; float f; }")

local function half(h)
  local exponent, fraction = math.floor(h / 1024) % 32, h % 1024
  local sign = h >= 0x8000 and -1 or 1
  if exponent == 0 then return sign * fraction * 2 ^ -24 end
  bits.u = (h >= 0x8000 and 2 ^ 31 or 0) + (exponent == 31 and 255 or exponent + 112) * 2 ^ 23 + fraction * 2 ^ 13
  return bits.f
end

local CONVERT = {
  float16 = function(_, e, from, out)
    local source = ffi.cast("uint16_t *", from)
    for i = 0, e.numel - 1 do out[i] = half(source[i]) end
  end,
  float64 = function(_, e, from, out)
    local source = ffi.cast("double *", from)
    for i = 0, e.numel - 1 do out[i] = source[i] end
  end,
  int64 = function(a, e, from, out)
    local source = ffi.cast("int64_t *", from)
    for i = 0, e.numel - 1 do
      local v = source[i]
      if v < -0x80000000LL or v > 0x7fffffffLL then
        fail(a.path, "tensor '%s' is int64 and holds %s, which does not fit 32 bits", shown(e.name), (tostring(v):gsub("LL$", "")))
      end
      out[i] = tonumber(v)
    end
  end,
}

local function new(a, e, shape, dtype)
  local ok, t = pcall(tensor.empty, shape, { dtype = dtype })
  if not ok then fail(a.path, "tensor '%s': %s", shown(e.name), tostring(t):gsub("^[^:]*:%d+: ", "")) end
  return t
end

-- Scratch bytes are tensors too: the collector does not see them, so they are freed by hand.
local function scratch(a, e, bytes, f)
  local t = new(a, e, { bytes }, "u8")
  local ok, why = pcall(f, tensor.data(t))
  t:free()
  if not ok then error(why, 0) end
end

-- Reads the tensors of one storage into `tensors`. It is read once as a whole if one of them is strided.
local function read_storage(a, group, tensors)
  local function each(e, bytes)
    local t = new(a, e, { unpack(e.tensor.shape, 1, e.tensor.shape.n) }, e.out)
    tensors[e.name] = t
    local out, convert = tensor.data(t), CONVERT[e.tensor.dtype]
    local function fill(to)
      if e.numel == 0 then return end
      if e.contiguous then read_into(a, e.entry.begin + e.tensor.offset * e.size, to, e.numel * e.size) else gather(e, bytes, to) end
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

local function load_from(a, tensors)
  refuse_other_formats(a)
  local entries = entries_of(a)
  local prefix
  for name in pairs(entries) do
    local folder = name:match("^([^/]*/)data%.pkl$")
    if folder and prefix then fail(a.path, "it holds two archives, %s and %s", shown(prefix), shown(folder)) end
    prefix = prefix or folder
  end
  if not prefix then fail(a.path, "a zip archive, but not of torch.save: it has no data.pkl") end
  if entries[prefix .. "constants.pkl"] then
    fail(a.path, "a TorchScript program, which is not read; save its state_dict() with torch.save")
  end
  local order = entries[prefix .. "byteorder"]
  if order then
    local text = read(a, order.begin, math.min(order.bytes, 16))
    if text ~= "little" then fail(a.path, "its byte order is '%s', only little endian is read", shown(text)) end
  end
  local pickle = entries[prefix .. "data.pkl"]
  if pickle.bytes > MAX_PICKLE then fail(a.path, "data.pkl has %.0f bytes, at most %d are read", pickle.bytes, MAX_PICKLE) end
  local list = wanted(a.path, unpickle(a.path, read(a, pickle.begin, pickle.bytes)))
  local total, groups, order_of = 0, {}, {}
  for _, e in ipairs(list) do
    total = total + place(a, entries, prefix, e)
    if total > 8 * a.size then fail(a.path, "its tensors need more than 8 times the file's %.0f bytes", a.size) end
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
  if type(path) ~= "string" then error("a file name is expected, got " .. type(path), 0) end
  local file, why = io.open(path, "rb")
  if not file then error(why, 0) end
  local tensors = {}
  local ok, reason = pcall(function()
    local some, cause = file:read(1)
    if not some then fail(path, "%s", cause or "the file is empty") end
    load_from({ path = path, file = file, size = file:seek("end") }, tensors)
  end)
  file:close()
  if not ok then
    for _, t in pairs(tensors) do t:free() end
    error(reason, 0)
  end
  return tensors
end)

return M
