-- batch.lua - a record batch of an Arrow file as arrays of its columns, and their values.
--
--   local arrays = batch.arrays(fields, source)      source: see below
--   batch.value(array, i)              a Lua value; i from 0
--   batch.child(array, name)           a struct's child, or nil
--   batch.range(array, i)              the first element and how many of a list's value i
--   batch.is_valid(array, i)
--   batch.bytes(array, i)              pointer and count of bytes or a fixed-size binary
--   batch.resolve(array, i)            of a dictionary's value: the array and index that hold it
--
-- source: {b = flatbuffer, place = of the RecordBatch, body = pointer, size = of the body,
-- dictionary = f(id) -> {array, ...}: the chunks of its values}.
-- array: {field =, length =, valid = bits or nil, data =, size =, offsets =, count = of offsets,
-- children =, chunks =, buffers = {{pointer, size}, ...} of views}. A buffer's size is checked when
-- the array is made, an offset where it is used. Errors have no position.
-- Leaves out: views of lists, unions, run ends.

local bit = require "bit"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local ffi = require "ffi"
local handle = require "segzero.core.tensor.handle"

local M = {}

local C = core.C
local MAX_EXACT = 2 ^ 53
local MOST_ROWS = 2 ^ 40
local MOST_EMPTY = 10 ^ 6

local function fail(message, ...) error(message:format(...), 0) end

-- ---- buffers ----
-- Takes nodes and buffers in the order in which the fields have them.
local function reader(source)
  local b = source.b
  local nodes, node_count = b:vector(source.place, 1, 16)
  local buffers, buffer_count = b:vector(source.place, 2, 16)
  local compression = b:table(source.place, 3)
  local counts, count_count = b:vector(source.place, 4, 8)
  local r = { node = 0, buffer = 0, view = 0 }

  -- How many buffers the next column of views has.
  function r.next_count()
    if r.view >= count_count then fail "a batch has too few counts of buffers" end
    local n = b:i64_at(counts + 8 * r.view)
    r.view = r.view + 1
    if n < 0 or n > buffer_count then fail("a column of views has %.0f buffers", n) end
    return n
  end

  function r.next_node()
    if r.node >= node_count then fail "a batch has too few nodes" end
    local at = nodes + 16 * r.node
    r.node = r.node + 1
    local length = b:i64_at(at)
    local nulls = b:i64_at(at + 8)
    if length < 0 or length > MOST_ROWS or nulls < 0 or nulls > length then
      fail("a batch has an array of %.0f values with %.0f nulls", length, nulls)
    end
    return length, nulls
  end

  local function unpacked(pointer, size)
    if size < 8 then fail "a compressed buffer has no length" end
    local room = tonumber(ffi.cast("const int64_t *", pointer)[0])
    if room == -1 then return pointer + 8, size - 8 end
    local codec = b:u8(compression, 0, 0)
    local bytes = core.call(C.sz_arrow_unpack(codec, pointer + 8, size - 8, room))
    bytes = ffi.gc(bytes, C.sz_arrow_free)
    source.owned[#source.owned + 1] = bytes
    return bytes, room
  end

  -- The next buffer, of at least `least` bytes unless it is empty and may be.
  function r.next_buffer(least, may_be_empty)
    if r.buffer >= buffer_count then fail "a batch has too few buffers" end
    local at = buffers + 16 * r.buffer
    r.buffer = r.buffer + 1
    local offset = b:i64_at(at)
    local size = b:i64_at(at + 8)
    if offset < 0 or size < 0 or offset + size > source.size then
      fail "a buffer is outside of its batch"
    end
    local pointer = source.body + offset
    if compression and size > 0 then pointer, size = unpacked(pointer, size) end
    if size == 0 and may_be_empty then return nil, 0 end
    if size < least then fail("a buffer has %.0f bytes, expected %.0f", size, least) end
    return pointer, size
  end
  return r
end

-- ---- arrays ----
local MAKE = {}

local function make(field, r, source)
  local length, nulls = r.next_node()
  local array = { field = field, length = length, children = {} }
  -- Values of 0 bytes may be more than any buffer could hold.
  if length > 8 * source.size and length > MOST_EMPTY then
    fail("the column '%s' has %.0f values in %.0f bytes", field.name, length, source.size)
  end
  if field.type == "null" then return array end
  local valid = r.next_buffer(math.ceil(length / 8), nulls == 0)
  if nulls > 0 then array.valid = valid end
  MAKE[field.type](array, r, source)
  return array
end

local function make_children(array, r, source)
  for i, child in ipairs(array.field.children) do array.children[i] = make(child, r, source) end
end

local function make_numbers(array, r)
  array.data, array.size = r.next_buffer(array.length * array.field.width, array.length == 0)
end

MAKE.int = make_numbers
MAKE.float = make_numbers
MAKE.fixed = make_numbers

function MAKE.bool(array, r)
  array.data, array.size = r.next_buffer(math.ceil(array.length / 8), array.length == 0)
end

local OFFSETS = { [4] = ffi.typeof "const int32_t *", [8] = ffi.typeof "const int64_t *" }

local function make_offsets(array, r)
  local width = array.field.offsets
  local pointer = r.next_buffer((array.length + 1) * width, array.length == 0)
  array.offsets = ffi.cast(OFFSETS[width], pointer)
end

function MAKE.bytes(array, r)
  make_offsets(array, r)
  array.data, array.size = r.next_buffer(0, true)
end

-- 16 bytes a value: the length, and the bytes themselves or where they are.
local VIEW = 16
local MOST_INSIDE = 12

function MAKE.view(array, r)
  array.data, array.size = r.next_buffer(array.length * VIEW, array.length == 0)
  array.buffers = {}
  for k = 1, r.next_count() do
    local pointer, size = r.next_buffer(0, true)
    array.buffers[k] = { pointer, size }
  end
end

function MAKE.list(array, r, source)
  make_offsets(array, r)
  make_children(array, r, source)
end

MAKE.map = MAKE.list

function MAKE.fixed_list(array, r, source)
  make_children(array, r, source)
  if array.children[1].length < array.length * array.field.count then
    fail("the list '%s' is shorter than its batch", array.field.name)
  end
end

function MAKE.struct(array, r, source)
  make_children(array, r, source)
  for _, child in ipairs(array.children) do
    if child.length < array.length then
      fail("the field '%s' is shorter than its struct", child.field.name)
    end
  end
end

function MAKE.dictionary(array, r, source)
  make_numbers(array, r)
  array.chunks = source.dictionary(array.field.dictionary.id)
end

function M.arrays(fields, source)
  source.owned = {}
  local r = reader(source)
  local list = { owned = source.owned }
  local length = source.b:i64(source.place, 0, 0)
  for i, field in ipairs(fields) do
    list[i] = make(field, r, source)
    if list[i].length ~= length then
      fail("the column '%s' has %.0f rows, its batch %.0f", field.name, list[i].length, length)
    end
  end
  list.length = length
  return list
end

-- ---- values ----
local function is_set(bits, i)
  return bit.band(bits[math.floor(i / 8)], bit.lshift(1, i % 8)) ~= 0
end

function M.is_valid(array, i)
  if array.field.type == "null" then return false end
  return not array.valid or is_set(array.valid, i)
end

-- The places offsets[i] and offsets[i + 1], checked against what they point into.
local function span(array, i, size)
  local first = tonumber(array.offsets[i])
  local last = tonumber(array.offsets[i + 1])
  if first < 0 or last < first or last > size then
    fail("an offset of the column '%s' is damaged", array.field.name)
  end
  return first, last - first
end

function M.range(array, i)
  local count = array.field.count
  if count then return i * count, count end
  return span(array, i, array.children[1].length)
end

local function viewed(array, i)
  local view = array.data + VIEW * i
  local words = ffi.cast("const int32_t *", view)
  local count = words[0]
  if count < 0 then fail("a length of the column '%s' is damaged", array.field.name) end
  if count <= MOST_INSIDE then return view + 4, count end
  local buffer = array.buffers[words[2] + 1]
  local first = words[3]
  if not buffer or first < 0 or first + count > buffer[2] then
    fail("a view of the column '%s' is damaged", array.field.name)
  end
  return buffer[1] + first, count
end

function M.bytes(array, i)
  local width = array.field.width
  if array.field.type == "view" then return viewed(array, i) end
  if array.field.type == "fixed" then return array.data + i * width, width end
  local first, count = span(array, i, array.size)
  if count == 0 then return array.offsets, 0 end
  return array.data + first, count
end

function M.child(array, name)
  for _, child in ipairs(array.children) do
    if child.field.name == name then return child end
  end
end

local SIGNED = {}
local UNSIGNED = {}
for width = 1, 8 do
  if width == 1 or width == 2 or width == 4 or width == 8 then
    SIGNED[width] = ffi.typeof(("const int%d_t *"):format(8 * width))
    UNSIGNED[width] = ffi.typeof(("const uint%d_t *"):format(8 * width))
  end
end

-- A whole number: a Lua number, or a string of digits beyond 2^53.
local function integer(array, i)
  local types = array.field.signed and SIGNED or UNSIGNED
  local v = ffi.cast(types[array.field.width], array.data)[i]
  if array.field.width < 8 then return tonumber(v) end
  -- As a uint64_t, a negative limit would be a large number.
  local above = not array.field.signed or v > -MAX_EXACT
  if above and v < MAX_EXACT then return tonumber(v) end
  return (tostring(v):gsub("U?LL$", ""))
end

function M.resolve(array, i)
  local index = tonumber(integer(array, i))
  for _, chunk in ipairs(array.chunks) do
    if index >= 0 and index < chunk.length then return chunk, index end
    index = index - chunk.length
  end
  fail("an index of the column '%s' is not in its dictionary", array.field.name)
end

-- A NaN must not become a Lua number as it is (see from_bits in core/tensor/handle.lua).
local function float(array, i)
  local width = array.field.width
  if width == 2 then return handle.from_f16(ffi.cast("const uint16_t *", array.data)[i]) end
  if width == 4 then return handle.from_bits(ffi.cast("const uint32_t *", array.data)[i]) end
  local words = ffi.cast("const uint32_t *", array.data) + 2 * i
  local is_special = bit.band(words[1], 0x7ff00000) == 0x7ff00000
  if is_special and (words[1] % 0x100000 ~= 0 or words[0] ~= 0) then return 0 / 0 end
  return ffi.cast("const double *", array.data)[i]
end

local VALUE = { int = integer, float = float }

function VALUE.bool(array, i) return is_set(array.data, i) end

local function text(array, i) return ffi.string(M.bytes(array, i)) end

VALUE.bytes = text
VALUE.fixed = text
VALUE.view = text

function VALUE.dictionary(array, i) return M.value(M.resolve(array, i)) end

function VALUE.struct(array, i)
  local out = {}
  for _, child in ipairs(array.children) do out[child.field.name] = M.value(child, i) end
  return out
end

function VALUE.list(array, i)
  local first, count = M.range(array, i)
  local out = {}
  for k = 1, count do
    local value = M.value(array.children[1], first + k - 1)
    if value == nil then value = cjson.null end
    out[k] = value
  end
  return out
end

VALUE.fixed_list = VALUE.list

function VALUE.map(array, i)
  local first, count = M.range(array, i)
  local entries = array.children[1]
  local out = {}
  for k = first, first + count - 1 do
    local key = M.value(entries.children[1], k)
    local value = M.value(entries.children[2], k)
    if value == nil then value = cjson.null end
    if key ~= nil then out[key] = value end
  end
  return out
end

function M.value(array, i)
  if not M.is_valid(array, i) then return nil end
  return VALUE[array.field.type](array, i)
end

return M
