-- show.lua - values as text, for the prompt.
--
--   show.text(v)            a string as it is; tables and structs with what is in them, three
--                           levels deep; tensors in rows; anything else by tostring()
--   show.text(v, { depth = 3, width = 96 })
--
-- A table that fits on one line is one line; else each entry has its own. Of a table 40 entries are
-- shown, and 200 of all; the rest is counted. A table that is inside itself is {...}.
-- Leaves out: colours, functions' code.

local structs = require "segzero.repl.structs"

local M = {}

local DEPTH = 3
local WIDTH = 96
local MOST_ENTRIES = 40         -- of one table
local MOST_IN_ALL = 200
local INDENT = "  "
local MOST_STRUCT = 64

local show                      -- forward

-- Sorts numbers before names, so that mixed keys have a stable order.
local function key_less(a, b)
  local ta = type(a)
  local tb = type(b)
  if ta ~= tb then return ta < tb end
  if ta == "number" or ta == "string" then return a < b end
  return tostring(a) < tostring(b)
end

local function quoted(s) return (("%q"):format(s):gsub("\\\n", "\\n"):gsub("\r", "\\r")) end

local function key_text(k)
  if type(k) == "string" and k:match "^[%a_][%w_]*$" then return k end
  if type(k) == "string" then return "[" .. quoted(k) .. "]" end
  return "[" .. tostring(k) .. "]"
end

-- The keys that are not 1 .. #v, sorted.
local function names_of(v, array)
  local keys = {}
  for k in pairs(v) do
    local is_counted = type(k) == "number" and k >= 1 and k <= array and k % 1 == 0
    if not is_counted then keys[#keys + 1] = k end
  end
  table.sort(keys, key_less)
  return keys
end

local function take(state)
  state.left = state.left - 1
  return state.left >= 0
end

-- The entries of a table as texts; the number of those that are left out.
local function entries_of(v, state, depth, indent)
  local parts = {}
  local array = #v
  local keys = names_of(v, array)
  local total = array + #keys
  local function add(lead, value)
    if #parts >= MOST_ENTRIES or not take(state) then return false end
    parts[#parts + 1] = lead .. show(value, state, depth - 1, indent .. INDENT)
    return true
  end
  for i = 1, array do
    if not add("", v[i]) then break end
  end
  for _, k in ipairs(keys) do
    if #parts < math.min(array, MOST_ENTRIES) or not add(key_text(k) .. " = ", v[k]) then break end
  end
  return parts, total - #parts
end

-- Texts in braces: on one line if they fit, else in filled lines if all are short, else each on its
-- own.
local function in_braces(parts, state, indent)
  local one = "{" .. table.concat(parts, ", ") .. "}"
  local is_flat = not one:find("\n", 1, true)
  if is_flat and #one + #indent <= state.width then return one end
  local inner = indent .. INDENT
  local lines = {}
  local line = ""
  local short = is_flat
  for _, part in ipairs(parts) do short = short and #part <= 24 end
  for i, part in ipairs(parts) do
    if i < #parts then part = part .. "," end
    if line ~= "" and (not short or #inner + #line + 1 + #part > state.width) then
      lines[#lines + 1] = line
      line = part
    elseif line == "" then
      line = part
    else
      line = line .. " " .. part
    end
  end
  lines[#lines + 1] = line
  return "{\n" .. inner .. table.concat(lines, "\n" .. inner) .. "\n" .. indent .. "}"
end

local function show_table(v, state, depth, indent)
  if next(v) == nil then return "{}" end
  if depth <= 0 or state.inside[v] then return "{...}" end
  state.inside[v] = true
  local parts, more = entries_of(v, state, depth, indent)
  state.inside[v] = nil
  if more > 0 then parts[#parts + 1] = ("... %d more"):format(more) end
  return in_braces(parts, state, indent)
end

-- A C value of a struct field: an array's elements, a text, or the value.
local function field_text(value, state, depth, indent)
  if type(value) ~= "cdata" then return show(value, state, depth, indent) end
  local ffi = require "ffi"
  local kind = tostring(ffi.typeof(value))
  local count = tonumber(kind:match "%[(%d+)%]>$")
  if not count then return show(value, state, depth, indent) end
  local parts = {}
  for i = 0, math.min(count, MOST_ENTRIES) - 1 do
    parts[#parts + 1] = show(value[i], state, depth - 1, indent .. INDENT)
  end
  if count > #parts then parts[#parts + 1] = ("... %d more"):format(count - #parts) end
  return in_braces(parts, state, indent)
end

local function show_struct(v, name, fields, state, depth, indent)
  if depth <= 0 then return name .. " {...}" end
  local parts = {}
  for i = 1, math.min(#fields, MOST_STRUCT) do
    local ok, value = pcall(function() return v[fields[i]] end)
    if ok then
      local text = field_text(value, state, depth, indent .. INDENT)
      parts[#parts + 1] = fields[i] .. " = " .. text
    end
  end
  return name .. " " .. in_braces(parts, state, indent)
end

-- Several lines, lined up with what stands before them.
local function indented(v, indent) return (tostring(v):gsub("\n", "\n" .. indent)) end

local function show_cdata(v, state, depth, indent)
  local ffi = require "ffi"
  if ffi.istype("int64_t", v) or ffi.istype("uint64_t", v) then return tostring(v) end
  local kind = tostring(ffi.typeof(v))
  -- Pixels and other bytes (unsigned char *) do not end with a zero.
  local is_text = kind == "ctype<char *>" or kind == "ctype<const char *>"
  if is_text and v ~= nil then return quoted(ffi.string(v)) end
  if v == nil then return "NULL" end
  local name, fields = structs.fields(v)
  if name then return show_struct(v, name, fields, state, depth, indent) end
  return indented(v, indent)
end

function show(v, state, depth, indent)
  local mt = type(v) == "table" and getmetatable(v)
  if type(v) == "string" then return quoted(v) end
  if type(v) == "cdata" then return show_cdata(v, state, depth, indent) end
  if type(v) ~= "table" then return tostring(v) end
  if type(mt) == "table" and mt.__tostring then return indented(v, indent) end
  return show_table(v, state, depth, indent)
end

function M.text(v, options)
  if type(v) == "string" then return v end
  local o = options or {}
  local state = { inside = {}, left = MOST_IN_ALL, width = o.width or WIDTH }
  return show(v, state, o.depth or DEPTH, "")
end

return M
