-- parquet.lua - Parquet files as rows of Lua values.
--
--   local f = parquet.open(path)
--   f.count                     rows
--   f.columns                   {{name =, node =}, ...} in the file's order
--   f:row(i)                    {column -> value}, i from 1
--   f:value(i, name)            one column of a row
--   f:kind(name)                {form = "bool" | "number" | "bytes" | "list" | "struct" | "map",
--                               is_float = true of a number that is no integer, scale = of a
--                               decimal, is_big_endian = of its bytes, time = of a date or time
--                               (data/tables/time_text.lua), element = of a list, fields = {name ->
--                               kind} and order = {name, ...} of a struct, key and value = of a
--                               map}, or nil
--   f:bytes(i, {name, ...}, use, most)      use(pointer, count, elements) of the bytes of a column,
--                               of a struct's field or of a list's first element, with its length;
--                               they are freed after it. Returns what it returns; nil without
--                               calling it for a null. most: how many of the bytes are wanted; use
--                               gets that many or all
--   f:mask(i, name, use)        use(mask) of a column list<list<bool>>; see bool_rows.lua
--   f:pair("huggingface")       a text of the file's metadata, or nil
--   f:close()
--
-- Values: booleans, numbers, strings for bytes and texts. An integer beyond 2^53 is a string of its
-- digits. A struct is a table of its fields, a list a table of its elements, a map a table from
-- keys to values. A null is nil, and cjson.null inside a list or map.
-- C reads levels and values of the leaf columns (runtime/io/parquet); this file puts nested values
-- together, after the Dremel paper: a level says how deep a value is defined, and where a list goes
-- on.
-- Leaves out: writing; decimals and times, which are the numbers that store them; INT96, which is
-- its 12 bytes.

local bit = require "bit"
local ffi = require "ffi"
local bool_rows = require "segzero.formats.bool_rows"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local handle = require "segzero.core.tensor.handle"

local C = core.C

local M = {}

local methods = {}
local mt = { __index = methods }

-- Physical types, repetitions, converted types, and the field ids of logical types.
local BOOLEAN = 0
local INT32 = 1
local INT64 = 2
local FLOAT = 4
local DOUBLE = 5
local FIXED = 7
local DECIMAL = 5                -- both its converted and its logical type
local REPEATED = 2
local CONVERTED_MAP = 1
local CONVERTED_LIST = 3
local UINT_32 = 13
local UINT_64 = 14
local LOGICAL_MAP = 2
local LOGICAL_LIST = 3
local LOGICAL_DATE = 6
local LOGICAL_TIME = 7
local LOGICAL_TIMESTAMP = 8
local LOGICAL_FLOAT16 = 15

-- What kind:time is of a date or time that has a converted type alone.
local CONVERTED_TIMES = {
  [6] = { form = "date" },
  [7] = { form = "time", digits = 3 }, [8] = { form = "time", digits = 6 },
  [9] = { form = "datetime", digits = 3 }, [10] = { form = "datetime", digits = 6 },
}

local MAX_EXACT = 2 ^ 53

-- ---- the schema ----
-- The tree below node i; also the index of the node after it.
local function read_node(file, i)
  local raw = ffi.new("sz_parquet_node")
  core.check(C.sz_parquet_node_at(file, i, raw))
  local node = {
    name = ffi.string(raw.name), type = raw.type, width = raw.width, repetition = raw.repetition,
    converted = raw.converted, logical = raw.logical, scale = raw.scale, leaf = raw.leaf,
    unit = raw.unit, is_utc = raw.is_utc ~= 0,
    max_def = raw.max_def, max_rep = raw.max_rep, children = {},
  }
  local next_index = i + 1
  for k = 1, raw.children do
    node.children[k], next_index = read_node(file, next_index)
  end
  -- The leaves below, in order.
  node.leaves = {}
  if node.leaf >= 0 then node.leaves[1] = node.leaf end
  for _, child in ipairs(node.children) do
    for _, leaf in ipairs(child.leaves) do node.leaves[#node.leaves + 1] = leaf end
  end
  return node, next_index
end

local function is_list(node)
  local marked = node.converted == CONVERTED_LIST or node.logical == LOGICAL_LIST
  return marked and #node.children == 1 and node.children[1].repetition == REPEATED
end

local function is_map(node)
  local marked = node.converted == CONVERTED_MAP or node.logical == LOGICAL_MAP
  local entry = node.children[1]
  return marked and #node.children == 1 and entry.repetition == REPEATED and #entry.children == 2
end

-- Whether the repeated child of a list is the element itself and not a wrapper around it (files of
-- old writers).
local function is_element(list, child)
  if #child.children ~= 1 then return true end
  return child.name == "array" or child.name == list.name .. "_tuple"
end

-- ---- leaf values ----
-- least: the smallest exact number; as a uint64_t, a negative one would be large.
local function exact(v, least)
  if v >= least and v < MAX_EXACT then return tonumber(v) end
  return (tostring(v):gsub("U?LL$", ""))
end

local READ = {}

READ[BOOLEAN] = function(s, i) return s.data[i] ~= 0 end

READ[INT32] = function(s, i, node)
  local v = ffi.cast("int32_t *", s.data)[i]
  if node.converted == UINT_32 then v = v % 2 ^ 32 end
  return v
end

READ[INT64] = function(s, i, node)
  if node.converted == UINT_64 then return exact(ffi.cast("uint64_t *", s.data)[i], 0) end
  return exact(ffi.cast("int64_t *", s.data)[i], 1 - MAX_EXACT)
end

-- A NaN must not become a Lua number as it is (see from_bits in core/tensor/handle.lua).
READ[FLOAT] = function(s, i)
  return handle.from_bits(ffi.cast("uint32_t *", s.data)[i])
end

READ[DOUBLE] = function(s, i)
  local words = ffi.cast("uint32_t *", s.data) + 2 * i
  local is_special = bit.band(words[1], 0x7ff00000) == 0x7ff00000
  if is_special and (words[1] % 0x100000 ~= 0 or words[0] ~= 0) then return 0 / 0 end
  return ffi.cast("double *", s.data)[i]
end

local function is_half(node)
  return node.type == FIXED and node.width == 2 and node.logical == LOGICAL_FLOAT16
end

local function read_bytes(s, i, node)
  if s.offsets == nil then return ffi.string(s.data + i * node.width, node.width) end
  return ffi.string(s.data + s.offsets[i], s.offsets[i + 1] - s.offsets[i])
end

READ[FIXED] = function(s, i, node)
  if is_half(node) then return handle.from_f16(ffi.cast("uint16_t *", s.data)[i]) end
  return read_bytes(s, i, node)
end

-- ---- putting values together ----
-- A stream is one leaf's levels and values, with the places of the next ones.
local function stream_of(file, leaf, first, count)
  local values = core.call(C.sz_parquet_read(file.handle, leaf, first, count))
  return { values = ffi.gc(values, C.sz_parquet_values_free), level = 0, value = 0 }
end

-- Passes over the entry of something that is not there.
local function skip_entry(streams, node)
  for _, leaf in ipairs(node.leaves) do streams[leaf].level = streams[leaf].level + 1 end
end

local function defined(streams, node)
  local s = streams[node.leaves[1]]
  if s.level >= s.values.levels then
    error(("the levels of column '%s' end early"):format(node.name), 0)
  end
  return s.values.def[s.level] >= node.max_def
end

-- Whether the next entry goes on with this list.
local function goes_on(streams, node)
  local s = streams[node.leaves[1]]
  return s.level < s.values.levels and s.values.rep[s.level] == node.max_rep
end

local assemble

local function leaf_value(streams, node)
  local s = streams[node.leaf]
  local read = READ[node.type] or read_bytes
  local value = read(s.values, s.value, node)
  s.level = s.level + 1
  s.value = s.value + 1
  return value
end

local function struct_value(streams, node)
  local out = {}
  for _, child in ipairs(node.children) do out[child.name] = assemble(streams, child) end
  return out
end

-- The elements of a repeated node, which is known to have one at least; element(streams) reads one.
local function elements(streams, node, element)
  local out = {}
  repeat
    local value = element(streams)
    if value == nil then value = cjson.null end
    out[#out + 1] = value
  until not goes_on(streams, node)
  return out
end

local function value_of(streams, node)
  if node.leaf >= 0 then return leaf_value(streams, node) end
  return struct_value(streams, node)
end

local function list_value(streams, list)
  local child = list.children[1]
  if not defined(streams, child) then
    skip_entry(streams, child)
    return {}
  end
  local element = function() return value_of(streams, child) end
  if not is_element(list, child) then
    element = function() return assemble(streams, child.children[1]) end
  end
  return elements(streams, child, element)
end

local function map_value(streams, map)
  local entry = map.children[1]
  local out = {}
  if not defined(streams, entry) then
    skip_entry(streams, entry)
    return out
  end
  repeat
    local key = assemble(streams, entry.children[1])
    local value = assemble(streams, entry.children[2])
    if value == nil then value = cjson.null end
    if key ~= nil then out[key] = value end
  until not goes_on(streams, entry)
  return out
end

function assemble(streams, node)
  if node.repetition ~= 0 and not defined(streams, node) then
    skip_entry(streams, node)
    if node.repetition == REPEATED then return {} end
    return nil
  end
  if node.repetition == REPEATED then
    return elements(streams, node, function() return value_of(streams, node) end)
  end
  if is_list(node) then return list_value(streams, node) end
  if is_map(node) then return map_value(streams, node) end
  return value_of(streams, node)
end

-- ---- the file ----
function M.open(path)
  local ok, opened = pcall(core.call, C.sz_parquet_open(path))
  -- The names of columns, which messages have, are the file's.
  if not ok then error((core.plain(opened):gsub("%c", "?")), 0) end
  local file = setmetatable({ path = path, columns = {}, by_name = {} }, mt)
  file.handle = ffi.gc(opened, C.sz_parquet_close)
  file.count = tonumber(C.sz_parquet_rows(opened))
  local root = read_node(opened, 0)
  for i, node in ipairs(root.children) do
    file.columns[i] = { name = node.name, node = node }
    file.by_name[node.name] = node
  end
  return file
end

local function check_row(file, i)
  if type(i) == "number" and i >= 1 and i <= file.count and i % 1 == 0 then return end
  error(("%s: row %s, expected 1 to %d"):format(file.path, tostring(i), file.count), 0)
end

local function value(file, i, node)
  local streams = {}
  for _, leaf in ipairs(node.leaves) do streams[leaf] = stream_of(file, leaf, i - 1, 1) end
  if #node.leaves == 0 then return {} end
  local result = assemble(streams, node)
  -- The collector does not see C memory.
  for _, stream in pairs(streams) do C.sz_parquet_values_free(ffi.gc(stream.values, nil)) end
  return result
end

function methods:value(i, name)
  check_row(self, i)
  local node = self.by_name[name]
  if not node then error(("%s: there is no column '%s'"):format(self.path, tostring(name)), 0) end
  return value(self, i, node)
end

function methods:row(i)
  check_row(self, i)
  local out = {}
  for _, column in ipairs(self.columns) do out[column.name] = value(self, i, column.node) end
  return out
end

-- ---- what the columns are ----
local FORMS = { [BOOLEAN] = "bool", [INT32] = "number", [INT64] = "number" }

-- The element of a list.
local function element_of(list)
  local child = list.children[1]
  if is_element(list, child) then return child end
  return child.children[1]
end

local kind_of

-- What a date or time is, nil for another number. As in pyarrow, only a logical type says that a
-- datetime is counted from UTC.
local function time_kind(node)
  if node.logical == LOGICAL_DATE then return { form = "date" } end
  if node.logical == LOGICAL_TIME and node.unit > 0 then
    return { form = "time", digits = 3 * node.unit }
  end
  if node.logical == LOGICAL_TIMESTAMP and node.unit > 0 then
    return { form = "datetime", digits = 3 * node.unit, zone = node.is_utc and "UTC" or nil }
  end
  return CONVERTED_TIMES[node.converted]
end

local function leaf_kind(node)
  if node.type == FLOAT or node.type == DOUBLE or is_half(node) then
    return { form = "number", is_float = true }
  end
  local kind = { form = FORMS[node.type] or "bytes" }
  if node.converted == DECIMAL or node.logical == DECIMAL then
    kind.scale = node.scale
    kind.is_big_endian = true
  end
  if kind.form == "number" then kind.time = time_kind(node) end
  return kind
end

-- The kind of one value of a node, which may be repeated.
local function value_kind(node)
  if node.leaf >= 0 then return leaf_kind(node) end
  local fields = {}
  local order = {}
  for i, child in ipairs(node.children) do
    fields[child.name] = kind_of(child)
    order[i] = child.name
  end
  return { form = "struct", fields = fields, order = order }
end

local function list_kind(list)
  local child = list.children[1]
  if is_element(list, child) then return { form = "list", element = value_kind(child) } end
  return { form = "list", element = kind_of(child.children[1]) }
end

function kind_of(node)
  if node.repetition == REPEATED then return { form = "list", element = value_kind(node) } end
  if is_list(node) then return list_kind(node) end
  if is_map(node) then
    local entry = node.children[1].children
    return { form = "map", key = kind_of(entry[1]), value = kind_of(entry[2]) }
  end
  return value_kind(node)
end

function methods:kind(name)
  local node = self.by_name[name]
  return node and kind_of(node)
end

-- ---- without Lua values ----
-- The values of the one leaf that a path of names leads to, and its node.
local function leaf_values(file, i, path, most)
  check_row(file, i)
  local node = file.by_name[path[1]]
  for k = 2, #path + 1 do
    while node and is_list(node) do node = element_of(node) end
    local found
    for _, child in ipairs(node and node.children or {}) do
      if child.name == path[k] then found = child end
    end
    if path[k] then node = found end
  end
  if not node or node.leaf < 0 then
    error(("%s: there is no column '%s'"):format(file.path, table.concat(path, ".")), 0)
  end
  local values
  if most then values = C.sz_parquet_read_front(file.handle, node.leaf, i - 1, most)
  else values = C.sz_parquet_read(file.handle, node.leaf, i - 1, 1) end
  return ffi.gc(core.call(values), C.sz_parquet_values_free), node
end

-- The collector does not see C memory, so values are freed at once.
local function free(values) C.sz_parquet_values_free(ffi.gc(values, nil)) end

-- use(...), after which the values are freed.
local function use_and_free(values, use, ...)
  local ok, result = pcall(use, ...)
  free(values)
  if not ok then error(result, 0) end
  return result
end

function methods:bytes(i, path, use, most)
  local values, node = leaf_values(self, i, path, most)
  if values.count == 0 then return free(values) end
  local length
  if node.max_rep > 0 then length = tonumber(values.levels) end
  if values.offsets == nil then
    return use_and_free(values, use, values.data, node.width, length)
  end
  local first = values.offsets[0]
  local count = tonumber(values.offsets[1] - first)
  return use_and_free(values, use, values.data + first, count, length)
end

function methods:mask(i, name, use)
  local values, node = leaf_values(self, i, { name })
  if values.levels == 1 and values.def[0] < self.by_name[name].max_def then return free(values) end
  return use_and_free(values, function()
    return use(bool_rows.of_levels(values, node.max_def))
  end)
end

function methods:pair(key)
  local text = C.sz_parquet_pair(self.handle, key)
  if text == nil then return nil end
  return ffi.string(text)
end

function methods:close()
  if not self.handle then return end
  C.sz_parquet_close(ffi.gc(self.handle, nil))
  self.handle = nil
end

return M
