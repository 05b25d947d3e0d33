-- pickle.lua - reads the list of tensors in a torch.save file, without running any code that the
-- file names.
--
--   local list = pickle.tensors(path, text)       text: data.pkl, a pickle of protocol 2 to 5;
--                                                 path: for messages
--     -> {{name =, tensor = {storage = {dtype =, key =, count =}, offset =, shape = {n =, ...},
--                             strides =, dtype =, untyped =}}, ...}
--
-- A pickle is a program. This reader can only build containers, numbers, texts, torch.Size,
-- OrderedDict, storages and tensors. Any other name is an error.
-- If the file holds a dict whose key 'model' is a dict with tensors, only that inner dict is read,
-- else everything. Keys of nested dicts and indices of lists (from 0) are joined with '.'. Values
-- that are not tensors are dropped.
-- Offset, shape and strides are in elements. This file checks only that they are whole numbers;
-- torchfile.lua checks them against the file.
-- Leaves out: writing, classes, the text opcodes of protocols 0 and 1.

local ffi = require "ffi"

local M = {}

local MAX_OBJECTS = 2 ^ 20
local MAX_DEPTH = 64
local MAX_WHOLE = 2 ^ 53

-- Types by their torch names: those that torchfile.lua makes tensors of, and others that a file may
-- name.
local TYPES = { "float32", "bfloat16", "int32", "uint8", "bool", "float16", "float64", "int64" }
local STORAGE = {
  FloatStorage = "float32", BFloat16Storage = "bfloat16", IntStorage = "int32",
    ByteStorage = "uint8", BoolStorage = "bool",
  HalfStorage = "float16", DoubleStorage = "float64", LongStorage = "int64", ShortStorage = "int16",
    CharStorage = "int8",
  ComplexFloatStorage = "complex64", ComplexDoubleStorage = "complex128",
}
-- Types newer than the storage classes, which torch names directly. None can be read: a wanted
-- tensor of such a type is an error, one inside an optimizer's state is ignored.
local LATE_DTYPES = {
  "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu",
  "float4_e2m1fn_x2", "complex32", "bits8", "bits16",
}

local function whole(x) return type(x) == "number" and x >= 0 and x <= MAX_WHOLE and x % 1 == 0 end

-- Raises without a position, because the file is wrong and not the caller.
function M.fail(path, format, ...) error(path .. ": " .. format:format(...), 0) end

-- A name from the file, made printable for a message.
function M.shown(name)
  name = name:gsub("[%c\127-\255]", "?")
  if #name > 120 then return name:sub(1, 120) .. "..." end
  return name
end

-- An unsigned little-endian number.
function M.number(s, at, bytes)
  local n = 0
  for i = at + bytes - 1, at, -1 do n = n * 256 + s:byte(i) end
  return n
end

local fail = M.fail
local shown = M.shown
local number = M.number

-- Values: numbers, texts and booleans are themselves. Everything else is a table with `kind`: none,
-- dict, list, tuple (sets become lists and tuples), callable, storage_type, dtype, storage, tensor.
local NONE = { kind = "none" }

local function kind(v)
  if type(v) == "table" then return v.kind end
  return type(v)
end

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
  -- (storage, offset, shape, strides, requires_grad, hooks, dtype [, metadata]): types without a
  -- storage class
  ["torch._utils._rebuild_tensor_v3"] = function(p, args)
    if kind(args[7]) ~= "dtype" then
      p:fail("torch._utils._rebuild_tensor_v3 is called without a dtype")
    end
    return p:tensor(args, args[7].dtype)
  end,
  -- (tensor, requires_grad, hooks)
  ["torch._utils._rebuild_parameter"] = function(p, args)
    if kind(args[1]) ~= "tensor" then
      p:fail("torch._utils._rebuild_parameter is called without a tensor")
    end
    return args[1]
  end,
}

local GLOBALS = { ["torch.storage.UntypedStorage"] = { kind = "storage_type", dtype = "uint8" } }
for name, call in pairs(CALLABLES) do
  GLOBALS[name] = { kind = "callable", name = name, call = call }
end
for name, dtype in pairs(STORAGE) do
  GLOBALS["torch." .. name] = { kind = "storage_type", dtype = dtype }
end
for _, name in ipairs(TYPES) do GLOBALS["torch." .. name] = { kind = "dtype", dtype = name } end
for _, name in ipairs(LATE_DTYPES) do
  GLOBALS["torch." .. name] = { kind = "dtype", dtype = name }
end

local P = {}
P.__index = P

function P:fail(format, ...)
  fail(self.path, "data.pkl, byte %d: " .. format, self.op_at - 1, ...)
end

function P:object(o)
  self.objects = self.objects + 1
  if self.objects > MAX_OBJECTS then self:fail("more than %d objects", MAX_OBJECTS) end
  return o
end

function P:take(n)
  local at = self.at
  if n > #self.text - at + 1 then
    self:fail("%.0f bytes are wanted, %d are left", n, #self.text - at + 1)
  end
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

-- Values below the last mark cannot be popped one at a time.
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

-- All values pushed since the last mark, as {n = count, ...}.
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
  local i = #d.keys + 1
  if type(k) == "string" then
    i = d.at[k] or i
    d.at[k] = i
  end
  d.keys[i] = k
  d.values[i] = v
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
  if not g then
    fail(self.path, "the file calls %s, which is not read: only tensors and plain containers are",
      shown(full))
  end
  return g
end

-- Two's complement of any length. A double keeps the first 53 bits.
function P:long(n)
  if n == 0 then return 0 end
  local at = self:take(n)
  local v = number(self.text, at, n)
  local negative = self.text:byte(at + n - 1) >= 128
  if negative then return v - 256 ^ n end
  return v
end

function P:storage(id)
  if kind(id) ~= "tuple" or id.n < 5 or id[1] ~= "storage" or kind(id[2]) ~= "storage_type"
    or type(id[3]) ~= "string"
    or not whole(id[5]) then
    self:fail("a persistent id that is no storage")
  end
  return self:object { kind = "storage", dtype = id[2].dtype, key = id[3], count = id[5] }
end

function P:tensor(args, dtype)
  local storage = args[1]
  local offset = args[2]
  local shape = args[3]
  local strides = args[4]
  if kind(storage) ~= "storage" or not whole(offset) or kind(shape) ~= "tuple"
    or kind(strides) ~= "tuple" or shape.n ~= strides.n then
    self:fail("a tensor that is not (storage, offset, shape, strides)")
  end
  for i = 1, shape.n do
    if not whole(shape[i]) or not whole(strides[i]) then
      self:fail("a tensor's dimension %d is not a whole number", i - 1)
    end
  end
  return self:object { kind = "tensor", storage = storage, offset = offset, shape = shape,
    strides = strides,
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
    if n > #p.text - p.at + 1 then
      p:fail("a frame of %.0f bytes, %d are left", n, #p.text - p.at + 1)
    end
  end,
  ["("] = function(p) p.marks[#p.marks + 1] = p.n end,
  ["0"] = function(p)       -- POP, which removes a mark when there is nothing above it
    if #p.marks > 0 and p.marks[#p.marks] == p.n then p.marks[#p.marks] = nil else p:pop() end
  end,
  ["1"] = function(p) p:pop_mark() end,
  ["2"] = function(p) p:push(p:top()) end,
  ["q"] = function(p) p.memo[p:unsigned(1)] = p:top() end,
  ["r"] = function(p) p.memo[p:unsigned(4)] = p:top() end,
  -- MEMOIZE: stores under the number of entries so far
  [0x94] = function(p)
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
    if v >= 2 ^ 31 then v = v - 2 ^ 32 end
    p:push(v)
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
for op, f in pairs(OPS) do
  if type(op) == "string" then op = op:byte() end
  BY_BYTE[op] = f
end

local OP_NAMES = {
  [0x50] = "PERSID", [0x6f] = "OBJ", [0x81] = "NEWOBJ", [0x92] = "NEWOBJ_EX", [0x82] = "EXT1",
    [0x83] = "EXT2", [0x84] = "EXT4",
}

function P:recall(i)
  if self.memo[i] == nil then self:fail("memo %.0f is empty", i) end
  self:push(self.memo[i])
end

local function unpickle(path, text)
  local p = setmetatable({
    path = path, text = text, at = 1, op_at = 1, stack = {}, n = 0, marks = {}, memo = {},
      memoized = 0, objects = 0,
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
-- {{name, tensor}, ...} in the order of the file. A shared container is walked each time it is met,
-- so the number of visits is limited.
local function flatten(path, root)
  local list = {}
  local visits = 0
  local function walk(v, name, depth)
    visits = visits + 1
    if visits > MAX_OBJECTS then
      fail(path, "more than %d values in its containers", MAX_OBJECTS)
    end
    if depth > MAX_DEPTH then fail(path, "containers are nested more than %d deep", MAX_DEPTH) end
    local k = kind(v)
    local prefix = ""
    if name then prefix = name .. "." end
    if k == "tensor" then
      if not name then fail(path, "it holds one tensor, not a dict of tensors") end
      list[#list + 1] = { name = name, tensor = v }
    elseif k == "dict" then
      for i = 1, #v.keys do
        local key = v.keys[i]
        if type(key) == "number" then
          key = ("%.17g"):format(key)
        elseif type(key) ~= "string" then
          key = "<" .. kind(key) .. ">"
        end
        walk(v.values[i], prefix .. key, depth + 1)
      end
    elseif k == "list" or k == "tuple" then
      for i = 1, v.n do walk(v[i], prefix .. (i - 1), depth + 1) end
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

function M.tensors(path, text)
  local root = unpickle(path, text)
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

return M
