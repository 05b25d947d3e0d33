-- schema.lua - the schema of an Arrow file: its fields as a tree.
--
--   local schema = schema_of.read(buffer, place)      a flatbuffer and the place of its Schema
--   schema.fields       {field, ...}
--   schema.pairs        {key -> text}
--   schema.by_dictionary   {id -> field}: what the values of a dictionary are
--
-- field: {name =, type = "int", "float", "bool", "bytes", "view" (of bytes), "fixed", "list",
-- "fixed_list", "struct", "map" or "null"; width = bytes of a value; signed = of an int; offsets =
-- bytes of an offset, 4 or 8; scale = of a decimal, which is "fixed"; time = of an int that is a
-- date or time (data/tables/time_text.lua); count = of a fixed list;
-- children = {...}; dictionary = {id =, width =, signed =} or nil}
-- Leaves out: views of lists, unions, run ends, intervals: an error names the column.

local M = {}

local MOST_FIELDS = 10000
local DEEPEST = 64

-- Arrow's numbers of types.
local TYPES = {
  [1] = "Null", [2] = "Int", [3] = "FloatingPoint", [4] = "Binary", [5] = "Utf8", [6] = "Bool",
  [7] = "Decimal", [8] = "Date", [9] = "Time", [10] = "Timestamp", [11] = "Interval", [12] = "List",
  [13] = "Struct", [14] = "Union", [15] = "FixedSizeBinary", [16] = "FixedSizeList", [17] = "Map",
  [18] = "Duration", [19] = "LargeBinary", [20] = "LargeUtf8", [21] = "LargeList",
  [22] = "RunEndEncoded", [23] = "BinaryView", [24] = "Utf8View", [25] = "ListView",
  [26] = "LargeListView",
}

local function fail(message, ...) error(message:format(...), 0) end

-- An Int's width in bytes.
local function int_width(bits)
  if bits == 8 or bits == 16 or bits == 32 or bits == 64 then return bits / 8 end
  fail("an integer of %s bits", tostring(bits))
end

local function int_of(b, t)
  return int_width(b:i32(t, 0, 0)), b:u8(t, 1, 0) ~= 0
end

local function positive(value, what)
  if value >= 0 and value < 2 ^ 31 then return value end
  fail("%s is %s", what, tostring(value))
end

-- What each type of Arrow's sets in a field.
local SET = {}

function SET.Null(f) f.type = "null" end

function SET.Int(f, b, t)
  f.type = "int"
  f.width, f.signed = int_of(b, t)
end

function SET.FloatingPoint(f, b, t)
  f.type = "float"
  f.width = 2 ^ (1 + b:i16(t, 0, 0))
  if f.width > 8 then fail("a float of precision %d", b:i16(t, 0, 0)) end
end

function SET.Bool(f) f.type = "bool" end

local function bytes(offsets)
  return function(f)
    f.type = "bytes"
    f.offsets = offsets
  end
end

SET.Binary = bytes(4)
SET.Utf8 = bytes(4)
SET.LargeBinary = bytes(8)
SET.LargeUtf8 = bytes(8)

local function view(f) f.type = "view" end

SET.BinaryView = view
SET.Utf8View = view

local function list(offsets)
  return function(f)
    f.type = "list"
    f.offsets = offsets
  end
end

SET.List = list(4)
SET.LargeList = list(8)

function SET.Map(f)
  f.type = "map"
  f.offsets = 4
end

function SET.Struct(f) f.type = "struct" end

function SET.FixedSizeBinary(f, b, t)
  f.type = "fixed"
  f.width = positive(b:i32(t, 0, 0), "the width of a fixed-size binary")
end

function SET.FixedSizeList(f, b, t)
  f.type = "fixed_list"
  f.count = positive(b:i32(t, 0, 0), "the size of a fixed-size list")
end

function SET.Decimal(f, b, t)
  f.type = "fixed"
  f.width = positive(b:i32(t, 2, 128), "the width of a decimal") / 8
  f.scale = b:i32(t, 1, 0)
end

local function number(width)
  return function(f)
    f.type = "int"
    f.width = width
    f.signed = true
  end
end

SET.Duration = number(8)

-- Digits of a second after the point, of Arrow's units: seconds, ms, us, ns.
local function digits_of(unit)
  if unit < 0 or unit > 3 then fail("a time of unit %d", unit) end
  return 3 * unit
end

function SET.Timestamp(f, b, t)
  number(8)(f)
  f.time = { form = "datetime", digits = digits_of(b:i16(t, 0, 0)), zone = b:text(t, 1) }
  if f.time.zone == "" then f.time.zone = nil end
end

-- Days in 32 bits, or milliseconds in 64.
function SET.Date(f, b, t)
  f.time = { form = "date" }
  if b:i16(t, 0, 1) == 0 then return number(4)(f) end
  number(8)(f)
  f.time.digits = 3
end

function SET.Time(f, b, t)
  number(int_width(b:i32(t, 1, 32)))(f)
  f.time = { form = "time", digits = digits_of(b:i16(t, 0, 1)) }
end

local CHILDREN = { list = 1, map = 1, fixed_list = 1 }

local read_field

local function read_children(schema, b, place, f, depth)
  local at, n = b:vector(place, 5, 4)
  local wanted = CHILDREN[f.type]
  if wanted and n ~= wanted then fail("the column '%s' has %d children", f.name, n) end
  for i = 1, n do f.children[i] = read_field(schema, b, b:element(at, i), depth + 1) end
end

function read_field(schema, b, place, depth)
  schema.count = schema.count + 1
  if depth > DEEPEST or schema.count > MOST_FIELDS then
    fail "the schema is too deep or too large"
  end
  local f = { name = b:text(place, 0) or "", children = {} }

  -- The type.
  local code = b:u8(place, 2, 0)
  local name = TYPES[code]
  if not SET[name] then
    fail("the column '%s' has the type %s, which is not read", f.name, name or tostring(code))
  end
  SET[name](f, b, b:table(place, 3) or fail("the column '%s' has no type", f.name))
  read_children(schema, b, place, f, depth)
  if f.type == "map" and #f.children[1].children ~= 2 then
    fail("the map '%s' has no keys and values", f.name)
  end

  -- With a dictionary, the field holds indexes of its values.
  local encoding = b:table(place, 4)
  if not encoding then return f end
  local index = b:table(encoding, 1)
  local dictionary = { id = b:i64(encoding, 0, 0), width = 4, signed = true }
  if index then dictionary.width, dictionary.signed = int_of(b, index) end
  schema.by_dictionary[dictionary.id] = f
  return { name = f.name, type = "dictionary", values = f, dictionary = dictionary, children = {},
    width = dictionary.width, signed = dictionary.signed }
end

function M.read(b, place)
  local schema = { fields = {}, pairs = {}, by_dictionary = {}, count = 0 }
  if b:i16(place, 0, 0) ~= 0 then fail "the values are big-endian, which is not read" end
  local at, n = b:vector(place, 1, 4)
  for i = 1, n do schema.fields[i] = read_field(schema, b, b:element(at, i), 1) end
  local pairs_at, count = b:vector(place, 2, 4)
  for i = 1, math.min(count, MOST_FIELDS) do
    local pair = b:element(pairs_at, i)
    schema.pairs[b:text(pair, 0) or ""] = b:text(pair, 1)
  end
  return schema
end

return M
