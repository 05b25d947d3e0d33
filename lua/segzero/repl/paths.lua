-- paths.lua - follows names such as vl.config or sz.image.load to their values, without running
-- anything of the user's.
--
--   paths.value("sz.image.load") -> value, the table it is in, its name there; nil: no such name
--   paths.members(value) -> {name = value or true, ...}    what can follow it with . or :
--
-- A table's own keys, those of its metatable's __index, sz's modules that are not loaded yet; of a
-- tensor and of other C objects their methods. Functions in __index are not called, except sz's.
-- Leaves out: list elements, calls.

local M = {}

local MOST_TABLES = 8           -- of a chain of __index

-- What __index leads to, as tables.
local function chain(value)
  local tables = {}
  local next_one = value
  while next_one ~= nil and #tables < MOST_TABLES do
    if type(next_one) == "table" then tables[#tables + 1] = next_one end
    local mt = debug.getmetatable(next_one)
    local index = type(mt) == "table" and rawget(mt, "__index")
    next_one = nil
    if type(index) == "table" then next_one = index end
  end
  return tables
end

-- Methods of C objects: LuaJIT hides a ctype's metatable, but tensors have a table of methods.
local function methods_of_cdata(value)
  local handle = package.loaded["segzero.core.tensor.handle"]
  local tensor = package.loaded["segzero.core.tensor"]
  local is_tensor = tensor and tensor.is_tensor and tensor.is_tensor(value)
  if is_tensor and handle and handle.methods then return handle.methods end
  local _, fields = require("segzero.repl.structs").fields(value)
  local out = {}
  for _, name in ipairs(fields or {}) do out[name] = true end
  return out
end

-- The names of modules that load when they are used.
local function lazy_names(value)
  local mt = type(value) == "table" and getmetatable(value)
  return type(mt) == "table" and type(rawget(mt, "names")) == "table" and mt.names or {}
end

function M.members(value)
  local out = {}
  if type(value) == "string" then return string end
  if type(value) == "cdata" then return methods_of_cdata(value) end
  for name in pairs(lazy_names(value)) do out[name] = true end
  for _, t in ipairs(chain(value)) do
    for name, member in next, t do
      local is_new = out[name] == nil or out[name] == true
      if type(name) == "string" and is_new then out[name] = member end
    end
  end
  return out
end

local function member(value, name)
  if lazy_names(value)[name] then return value[name] end
  local found = M.members(value)[name]
  if found ~= true then return found end
  local ok, field = pcall(function() return value[name] end)
  return ok and field or nil
end

function M.value(path)
  local value = _G
  local inside, last
  for name in path:gmatch "[^.:]+" do
    inside = value
    last = name
    if value == _G then value = rawget(_G, name) else value = member(value, name) end
    if value == nil then return nil end
  end
  return value, inside, last
end

return M
