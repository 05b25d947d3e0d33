-- structs.lua - the fields of a C struct, which LuaJIT does not tell: they are read from the
-- headers that core/ffi.lua declared.
--
--   structs.fields(cdata) -> "sz_qwen_config", {"hidden", "layers", ...}
--                            nil if it is no struct that a header declares with its fields
--   structs.parse(text) -> {{name = "sz_x", fields = {...}}, ...}
--
-- Leaves out: unions, structs inside structs, functions.

local ffi = require "ffi"

local M = {}

local function names_of(body)
  local fields = {}
  for statement in body:gmatch "([^;]+);" do
    -- "const char *name, other[3]": the last word of each part.
    for part in (statement .. ","):gmatch "([^,]*)," do
      local name = part:gsub("%b[]", ""):match "([%a_][%w_]*)%s*$"
      if name then fields[#fields + 1] = name end
    end
  end
  return fields
end

function M.parse(text)
  text = text:gsub("/%*.-%*/", " "):gsub("//[^\n]*", " ")
  local list = {}
  for body, name in text:gmatch "typedef%s+struct[%s%w_]*(%b{})%s*([%a_][%w_]*)%s*;" do
    list[#list + 1] = { name = name, fields = names_of(body:sub(2, -2)) }
  end
  for name, body in text:gmatch "struct%s+([%a_][%w_]*)%s*(%b{})%s*;" do
    list[#list + 1] = { name = "struct " .. name, fields = names_of(body:sub(2, -2)) }
  end
  return list
end

local known = {}                -- the structs of each header

local function structs_of(header)
  if not known[header] then known[header] = M.parse(header) end
  return known[header]
end

function M.fields(value)
  local core = package.loaded["segzero.core.ffi"]
  if type(value) ~= "cdata" or not core then return nil end
  for _, header in ipairs(core.headers) do
    for _, struct in ipairs(structs_of(header)) do
      local ok, same = pcall(ffi.istype, struct.name, value)
      if ok and same then return struct.name, struct.fields end
    end
  end
  return nil
end

return M
