-- parquet_writer.lua - writes rows of Lua values as a Parquet file, as `datasets` writes it.
--
--   local w = writer.create(path, { { "id", "string" }, { "image", "image" },
--     { "mask", "list<list<bool>>" } })
--   w:row { id = "a", image = { bytes = text, path = "a.png" }, mask = tensor }
--   w:finish()        the file appears under its name, whole and synced
--   w:cancel()        nothing stays; the collector does the same
--   w.count           rows so far
--
-- Types: string, binary (any bytes), int64 (whole numbers, or a string of digits from 2^53 on),
-- double, bool, image (a struct of bytes and path), list<T>, at most three lists deep. Every value
-- may be nil, and so may an element of a list (cjson.null). A list<list<bool>> also takes a mask, a
-- u8 tensor [height, width].
-- create's third argument: { compression = "snappy" | "none", rows_per_group = 100 }.
-- The metadata have the features under the key "huggingface", so that `datasets` sees images.
-- C makes the pages (runtime/io/parquet/writer.c). A value of the wrong type is an error at the
-- caller's line, after which the file cannot be finished.
-- Leaves out: dictionaries, statistics, other types, several row groups at once.

local cjson = require "cjson"
local core = require "segzero.core.ffi"
local ffi = require "ffi"
local options_of = require "segzero.core.options"
local tensor = require "segzero.core.tensor"

local M = {}

local C = core.C

local methods = {}
local mt = { __index = methods }

-- Physical types, repetitions, converted types, and the field ids of logical types.
local REQUIRED = 0
local OPTIONAL = 1
local REPEATED = 2
local GROUP = 8
local NONE = -1
local CONVERTED_LIST = 3
local LOGICAL_LIST = 3

local LEAVES = {
  string = { type = 6, width = 0, converted = 0, logical = 1, dtype = "string" },
  binary = { type = 6, width = 0, dtype = "binary" },
  int64 = { type = 2, width = 8, dtype = "int64" },
  double = { type = 5, width = 8, dtype = "float64" },
  bool = { type = 0, width = 1, dtype = "bool" },
}

local MOST_LISTS = 3
local MAX_EXACT = 2 ^ 53

-- ---- the schema ----
-- Adds a node to the file's list. Of a leaf, returns its number among the leaves.
local function add_node(w, fields)
  local node = ffi.new "sz_parquet_node"
  local name = fields.name
  node.name = name
  node.type = fields.type
  node.width = fields.width or 0
  node.repetition = fields.repetition
  node.children = fields.children or 0
  node.converted = fields.converted or NONE
  node.logical = fields.logical or 0
  node.max_def = fields.def or 0
  node.max_rep = fields.rep or 0
  core.check(C.sz_parquet_writer_node(w.handle, node), 3)
  if fields.type == GROUP then return nil end
  w.leaves = w.leaves + 1
  return w.leaves - 1
end

local add

-- The node of a list and what is below it. def and rep: the levels around it.
local function add_list(w, name, element, def, rep, depth)
  if depth == MOST_LISTS then
    error(("the column '%s' has more than %d lists in one another"):format(name, MOST_LISTS), 0)
  end
  add_node(w, { name = name, type = GROUP, repetition = OPTIONAL, children = 1,
    converted = CONVERTED_LIST, logical = LOGICAL_LIST })
  add_node(w, { name = "list", type = GROUP, repetition = REPEATED, children = 1 })
  local child = add(w, "element", element, def + 2, rep + 1, depth + 1)
  return { form = "list", element = child, rep = rep + 1, leaves = child.leaves }
end

-- Adds the nodes of a column, or of a list's element, of this type.
function add(w, name, kind, def, rep, depth)
  local element = kind:match "^list<(.+)>$"
  if element then return add_list(w, name, element, def, rep, depth) end
  if kind == "image" then
    add_node(w, { name = name, type = GROUP, repetition = OPTIONAL, children = 2 })
    local bytes = add(w, "bytes", "binary", def + 1, rep, depth)
    local path = add(w, "path", "string", def + 1, rep, depth)
    return { form = "image", bytes = bytes, path = path,
      leaves = { bytes.leaf, path.leaf } }
  end

  local leaf = LEAVES[kind]
  if not leaf then
    error(("the column '%s' has the type %s, expected string, binary, int64, double, bool, image "
      .. "or list<...>"):format(name, tostring(kind)), 0)
  end
  local number = add_node(w, { name = name, type = leaf.type, width = leaf.width,
    repetition = OPTIONAL, converted = leaf.converted, logical = leaf.logical, def = def + 1,
    rep = rep })
  return { form = kind, leaf = number, leaves = { number } }
end

-- ---- the features, as `datasets` writes them ----
local function feature(kind)
  local element = kind:match "^list<(.+)>$"
  if element then
    return ('{"feature": %s, "length": -1, "_type": "Sequence"}'):format(feature(element))
  end
  if kind == "image" then return '{"_type": "Image"}' end
  return ('{"dtype": "%s", "_type": "Value"}'):format(LEAVES[kind].dtype)
end

local function features(columns)
  local list = {}
  for i, column in ipairs(columns) do
    list[i] = ("%s: %s"):format(cjson.encode(column[1]), feature(column[2]))
  end
  return ('{"info": {"features": {%s}}}'):format(table.concat(list, ", "))
end

-- ---- values ----
local int64 = ffi.new "int64_t[1]"
local double = ffi.new "double[1]"
local byte = ffi.new "uint8_t[1]"

-- Whole numbers beyond 2^53 are strings of digits, as the reader returns them.
local function whole(v)
  if type(v) == "number" and v % 1 == 0 and v > -MAX_EXACT and v < MAX_EXACT then return v end
  if type(v) ~= "string" or not v:find "^%-?%d+$" or #v > 20 then return nil end
  local digits = v:match "%d+"
  local sum = 0LL
  for digit in digits:gmatch "%d" do sum = sum * 10 + tonumber(digit) end
  if v:sub(1, 1) == "-" then sum = -sum end
  if tostring(sum):gsub("LL$", "") ~= v then return nil end
  return sum
end

-- form -> f(value): pointer and count of its bytes; nil for a value of another type.
local BYTES = {}

function BYTES.string(v)
  if type(v) ~= "string" then return nil end
  return v, #v
end

BYTES.binary = BYTES.string

function BYTES.int64(v)
  local number = whole(v)
  if not number then return nil end
  int64[0] = number
  return int64, 8
end

function BYTES.double(v)
  if type(v) ~= "number" then return nil end
  double[0] = v
  return double, 8
end

function BYTES.bool(v)
  if type(v) ~= "boolean" then return nil end
  byte[0] = v and 1 or 0
  return byte, 1
end

local function put(w, leaf, rep, def, bytes, len)
  core.call(C.sz_parquet_writer_put(w.handle, leaf, rep, def, bytes, len))
end

local function put_nothing(w, node, rep, def)
  for _, leaf in ipairs(node.leaves) do put(w, leaf, rep, def, nil, 0) end
end

local function wrong(value, expected)
  local shown = type(value)
  if shown == "number" or shown == "boolean" then shown = tostring(value) end
  error(("%s, expected %s"):format(shown, expected), 0)
end

local put_value

local function put_mask(w, node, mask)
  local shape = mask:shape()
  if mask:dtype() ~= "u8" or #shape ~= 2 or node.element.form ~= "list"
    or node.element.element.form ~= "bool" or node.rep ~= 1 then
    error("a tensor, expected a list", 0)
  end
  core.call(C.sz_parquet_writer_mask(w.handle, node.leaves[1], tensor.data(mask), shape[1],
    shape[2]))
end

local function put_list(w, node, rep, def, value)
  if tensor.is_tensor(value) then return put_mask(w, node, value) end
  if type(value) ~= "table" then wrong(value, "a list") end
  if #value == 0 and next(value) ~= nil then wrong(value, "a list from 1 on") end
  if #value == 0 then return put_nothing(w, node, rep, def + 1) end
  for i, element in ipairs(value) do
    put_value(w, node.element, i == 1 and rep or node.rep, def + 2, element)
  end
end

local function put_image(w, node, rep, def, value)
  if type(value) ~= "table" then wrong(value, "{ bytes =, path = }") end
  for key in pairs(value) do
    if key ~= "bytes" and key ~= "path" then
      error(("an image with the key '%s', expected bytes and path"):format(tostring(key)), 0)
    end
  end
  put_value(w, node.bytes, rep, def + 1, value.bytes)
  put_value(w, node.path, rep, def + 1, value.path)
end

-- One value with the levels around it.
function put_value(w, node, rep, def, value)
  if value == nil or value == cjson.null then return put_nothing(w, node, rep, def) end
  if node.form == "list" then return put_list(w, node, rep, def, value) end
  if node.form == "image" then return put_image(w, node, rep, def, value) end
  local bytes, len = BYTES[node.form](value)
  if not bytes then wrong(value, node.form) end
  put(w, node.leaf, rep, def + 1, bytes, len)
end

-- ---- the file ----
local OPTIONS = options_of.set { "compression", "rows_per_group" }
local PACKS = { snappy = 1, none = 0 }

local function check_columns(columns, level)
  local seen = {}
  for i, column in ipairs(columns) do
    local name = column[1]
    if type(name) ~= "string" or type(column[2]) ~= "string" then
      error(("column %d is not { name, type }"):format(i), level + 1)
    end
    if seen[name] then error(("two columns have the name '%s'"):format(name), level + 1) end
    seen[name] = true
  end
  if #columns == 0 then error("a Parquet file needs a column", level + 1) end
end

function M.create(path, columns, options)
  options = options_of.check("parquet_writer.create", options or {}, OPTIONS, 2)
  check_columns(columns, 2)
  local packs = PACKS[options.compression or "snappy"]
  if not packs then
    error(("compression is %s, expected snappy or none"):format(tostring(options.compression)), 2)
  end
  local handle = core.check(C.sz_parquet_writer_new(path, packs, options.rows_per_group or 100), 2)
  local w = setmetatable({ path = path, count = 0, leaves = 0, columns = columns, nodes = {},
    handle = ffi.gc(handle, C.sz_parquet_writer_free) }, mt)
  add_node(w, { name = "schema", type = GROUP, repetition = REQUIRED, children = #columns })
  for _, column in ipairs(columns) do
    local ok, node = pcall(add, w, column[1], column[2], 0, 0, 0)
    if not ok then
      w:cancel()
      error(core.plain(node), 2)
    end
    w.nodes[column[1]] = node
  end
  core.check(C.sz_parquet_writer_pair(handle, "huggingface", features(columns)), 2)
  return w
end

-- The file cannot be finished after a row that was written in part.
local function fail(w, message)
  w:cancel()
  if message:sub(1, #w.path) == w.path then error(message, 3) end
  error(("%s: row %d: %s"):format(w.path, w.count + 1, message), 3)
end

local function check_open(w)
  if not w.handle then error(w.path .. ": this file has been finished or cancelled", 3) end
end

function methods:row(values)
  check_open(self)
  for name in pairs(values) do
    if not self.nodes[name] then fail(self, ("there is no column '%s'"):format(tostring(name))) end
  end
  for _, column in ipairs(self.columns) do
    local name = column[1]
    local ok, why = pcall(put_value, self, self.nodes[name], 0, 0, values[name])
    if not ok then
      if core.is_interrupt(why) then error(why, 0) end
      fail(self, ("the column '%s' is %s"):format(name, core.plain(why)))
    end
  end
  local ok, why = pcall(core.call, C.sz_parquet_writer_row(self.handle))
  if not ok then fail(self, core.plain(why)) end
  self.count = self.count + 1
end

function methods:finish()
  check_open(self)
  local ok, why = pcall(core.call, C.sz_parquet_writer_commit(self.handle))
  self:cancel()
  if not ok then error(core.plain(why), 2) end
end

function methods:cancel()
  if not self.handle then return end
  C.sz_parquet_writer_free(ffi.gc(self.handle, nil))
  self.handle = nil
end

return M
