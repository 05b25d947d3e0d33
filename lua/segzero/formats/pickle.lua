-- pickle.lua - reads the list of tensors in a torch.save file, without running any code that the
-- file names.
--
--   local list = pickle.tensors(path, text)       text: data.pkl, a pickle of protocol 2 to 5;
--                                                 path: for messages
--     -> {{name =, tensor = {storage = {dtype =, key =, count =}, offset =, shape = {n =, ...},
--                             strides =, dtype =, untyped =}}, ...}
--
-- A pickle is a program (pickle_machine.lua runs it). This reader can only build containers,
-- numbers, texts, torch.Size, OrderedDict, storages and tensors. Any other name is an error.
-- If the file holds a dict whose key 'model' is a dict with tensors, only that inner dict is read,
-- else everything. Keys of nested dicts and indices of lists (from 0) are joined with '.'. Values
-- that are not tensors are dropped.
-- Offset, shape and strides are in elements. This file checks only that they are whole numbers;
-- torchfile.lua checks them against the file.
-- pickle.READER is what it gives to pickle_machine.lua, for readers that know more names.
-- Leaves out: writing, classes, the text opcodes of protocols 0 and 1.

local machine = require "segzero.formats.pickle_machine"

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

M.fail = machine.fail
M.shown = machine.shown
M.number = machine.number

local fail = M.fail
local shown = M.shown
local kind = machine.kind

local function as_list(p, args)      -- a set, before pickle had an opcode for it: set([...])
  if args.n ~= 1 or kind(args[1]) ~= "list" then p:fail("a set is not made of a list") end
  return args[1]
end

local CALLABLES = {
  ["builtins.set"] = as_list,
  ["__builtin__.set"] = as_list,
  ["collections.OrderedDict"] = function(p, args)
    if args.n ~= 0 then p:fail("collections.OrderedDict is called with arguments") end
    return p:dict()
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

-- ---- tensors ----
local methods = {}

function methods:storage(id)
  if kind(id) ~= "tuple" or id.n < 5 or id[1] ~= "storage" or kind(id[2]) ~= "storage_type"
    or type(id[3]) ~= "string"
    or not whole(id[5]) then
    self:fail("a persistent id that is no storage")
  end
  return self:object { kind = "storage", dtype = id[2].dtype, key = id[3], count = id[5] }
end

function methods:tensor(args, dtype)
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

local READER = { what = "data.pkl", lowest = 2, globals = GLOBALS, methods = methods,
  refused = "only tensors and plain containers are" }
M.READER = READER

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
  local root = machine.run(path, text, READER)
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
