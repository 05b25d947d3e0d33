-- arrow.lua - Arrow's stream and file format as rows of Lua values, from a map of the file. It
-- offers what parquet.lua does.
--
--   local f = arrow.open(path)
--   f.count, f.columns, f:row(i), f:value(i, name), f:kind(name), f:bytes(i, path, use),
--   f:mask(i, name, use), f:pair(key), f:close()         as in parquet.lua
--
-- A stream is messages: a length, metadata (a FlatBuffer), a body. Opening reads the metadata's
-- heads alone; f.note is a text if the stream has no end mark. What `datasets` writes is a stream.
-- Of the file format the footer is read, which says where all batches are. The last batch used is
-- kept, with its buffers unpacked if they are compressed.
-- Source: the Arrow columnar format, 1.5.
-- Leaves out: writing; big-endian values; views of lists, unions, run ends, intervals.

local batch_of = require "segzero.formats.arrow.batch"
local bool_rows = require "segzero.formats.bool_rows"
local core = require "segzero.core.ffi"
local ffi = require "ffi"
local flatbuffer = require "segzero.formats.arrow.flatbuffer"
local schema_of = require "segzero.formats.arrow.schema"

local C = core.C

local M = {}

local methods = {}
local mt = { __index = methods }

local SCHEMA = 1
local DICTIONARY = 2
local BATCH = 3
local FILE_MARK = "ARROW1\0\0"
local FILE_END = "ARROW1"
local BLOCK = 24                -- bytes of an entry of the footer
local AROUND = 2 ^ 16           -- bytes that a read makes resident around it
local MOST_TOUCHED = 32 * 2 ^ 20
local CONTINUES = 0xffffffff

local open_files = setmetatable({}, { __mode = "k" })
local touched = 0               -- bytes of all of them

-- The names of columns, which messages have, are the file's.
local function shown(message) return (message:gsub("%c", "?")) end

local function fail(file, message, ...)
  error(file.path .. ": " .. shown(message:format(...)), 0)
end

-- f(...) with the file's name, and what was read, in front of an error.
local function named(file, what, f, ...)
  local ok, a, b = pcall(f, ...)
  if ok then return a, b end
  if core.is_interrupt(a) then error(a, 0) end
  local why = shown(core.plain(a))
  if why:sub(1, #file.path) == file.path then error(why, 0) end
  error(("%s%s: %s"):format(file.path, shown(what), why), 0)
end

-- ---- messages ----
local function u32(file, at) return tonumber(ffi.cast("const uint32_t *", file.p + at)[0]) end

-- The message at `at`: {kind =, b =, place =, body =, size =}, and where the next one is; nil at
-- the end.
local function read_message(file, at)
  if at == file.size then
    file.note = file.path .. ": it has no end mark, and may be cut off"
    return nil
  end
  if file.size - at < 4 then fail(file, "it is cut off") end
  local length = u32(file, at)
  at = at + 4
  if length == CONTINUES then
    if file.size - at < 4 then fail(file, "it is cut off") end
    length = u32(file, at)
    at = at + 4
  end
  if length == 0 then return nil end
  if length > file.size - at then fail(file, "it is cut off inside the metadata of a message") end
  local b = flatbuffer.new(file.p + at, length)
  local message = b:root()
  local size = b:i64(message, 3, 0)
  local body = at + length
  if size < 0 or size > file.size - body then fail(file, "it is cut off inside a batch") end
  return { kind = b:u8(message, 1, 0), b = b, place = b:table(message, 2), body = file.p + body,
    size = size }, body + size
end

local function add_batch(file, message)
  local b = message.b
  local rows = b:i64(message.place, 0, 0)
  if rows < 0 or rows > 2 ^ 40 then fail(file, "a batch has %.0f rows", rows) end
  message.first = file.count
  message.rows = rows
  message.order = file.order
  if rows > 0 then file.batches[#file.batches + 1] = message end
  file.count = file.count + rows
end

local function add_dictionary(file, message)
  local b = message.b
  local id = b:i64(message.place, 0, 0)
  local list = file.dictionaries[id] or {}
  file.dictionaries[id] = list
  list[#list + 1] = { order = file.order, id = id, is_delta = b:u8(message.place, 2, 0) ~= 0, b = b,
    place = b:table(message.place, 1), body = message.body, size = message.size }
  if not list[#list].place then fail(file, "a dictionary has no values") end
end

-- Adds a message that is no schema.
local function add_message(file, message)
  file.order = file.order + 1
  if not message.place then fail(file, "a message has no header") end
  if message.kind == BATCH then add_batch(file, message) end
  if message.kind == DICTIONARY then add_dictionary(file, message) end
end

-- The messages of a stream, one after the other.
local function read_stream(file)
  local at = 0
  while true do
    local message, next_at = read_message(file, at)
    if not message then break end
    if message.kind == SCHEMA then
      if file.schema then fail(file, "it has two schemas") end
      if not message.place then fail(file, "a message has no header") end
      file.schema = schema_of.read(message.b, message.place)
    elseif not file.schema then
      fail(file, "not an Arrow file: it does not begin with a schema")
    else
      add_message(file, message)
    end
    at = next_at
  end
  if not file.schema then fail(file, "not an Arrow file: it has no schema") end
end

-- The messages that a list of the footer's names.
local function read_blocks(file, b, at, n, kind)
  for i = 0, n - 1 do
    local place = b:i64_at(at + BLOCK * i)
    if place < #FILE_MARK or place >= file.size then
      fail(file, "a batch is outside of the file")
    end
    local message = read_message(file, place)
    if not message or message.kind ~= kind then fail(file, "the footer is damaged") end
    add_message(file, message)
  end
end

-- The schema and the messages that the footer of a file names.
local function read_footer(file)
  local last = file.size - #FILE_END - 4
  if last < #FILE_MARK or ffi.string(file.p + last + 4, #FILE_END) ~= FILE_END then
    fail(file, "an Arrow file that does not end as one: it is cut off")
  end
  local length = u32(file, last)
  if length == 0 or length > last - #FILE_MARK then fail(file, "the footer is damaged") end
  local b = flatbuffer.new(file.p + last - length, length)
  local footer = b:root()
  local schema = b:table(footer, 1)
  if not schema then fail(file, "it has no schema") end
  file.schema = schema_of.read(b, schema)
  local at, n = b:vector(footer, 2, BLOCK)
  read_blocks(file, b, at, n, DICTIONARY)
  at, n = b:vector(footer, 3, BLOCK)
  read_blocks(file, b, at, n, BATCH)
end

local function read_messages(file)
  local is_file = file.size >= #FILE_MARK and ffi.string(file.p, #FILE_MARK) == FILE_MARK
  if is_file then return read_footer(file) end
  read_stream(file)
end

-- ---- batches ----
local make_source

-- The chunks of a dictionary as the batch number `order` sees them: the last whole one before it,
-- and what was added since.
local function dictionary_chunks(file, id, order)
  local field = file.schema.by_dictionary[id]
  local chunks = {}
  for _, entry in ipairs(file.dictionaries[id] or {}) do
    if entry.order < order or #chunks == 0 then
      if not entry.is_delta then chunks = {} end
      if entry.busy then error(("the dictionary %.0f holds itself"):format(id), 0) end
      if not entry.arrays then
        entry.busy = true
        entry.arrays = batch_of.arrays({ field }, make_source(file, entry))
        entry.busy = nil
      end
      chunks[#chunks + 1] = entry.arrays[1]
    end
  end
  if #chunks == 0 then error(("the dictionary %.0f is missing"):format(id), 0) end
  return chunks
end

function make_source(file, message)
  return { b = message.b, place = message.place, body = message.body, size = message.size,
    dictionary = function(id) return dictionary_chunks(file, id, message.order) end }
end

local function free_arrays(arrays)
  for _, bytes in ipairs(arrays and arrays.owned or {}) do
    C.sz_arrow_free(ffi.gc(bytes, nil))
  end
end

-- The arrays of the batch that has row i, and the row's number in it, from 0.
local function arrays_at(file, i)
  if type(i) ~= "number" or i < 1 or i > file.count or i % 1 ~= 0 then
    fail(file, "row %s, expected 1 to %.0f", tostring(i), file.count)
  end
  local low = 1
  local high = #file.batches
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if file.batches[middle].first < i then low = middle else high = middle - 1 end
  end
  local message = file.batches[low]
  if file.current ~= message then
    free_arrays(file.arrays)
    file.current = nil
    file.arrays = named(file, (" batch %d"):format(low), batch_of.arrays, file.schema.fields,
      make_source(file, message))
    file.current = message
  end
  return file.arrays, i - 1 - message.first
end

-- The array of a column, and the row's number in it.
local function column_at(file, i, name)
  local k = file.numbers[name]
  if not k then fail(file, "there is no column '%s'", tostring(name)) end
  local arrays, index = arrays_at(file, i)
  return arrays[k], index
end

-- ---- values ----
-- The bytes of a value that were read from the map.
local function bytes_of(value)
  if type(value) == "string" then return #value end
  local sum = 0
  if type(value) == "table" then
    for _, one in pairs(value) do sum = sum + bytes_of(one) end
  end
  return sum
end

-- Gives the resident pages of all open files back after some bytes.
local function count_touched(value)
  touched = touched + bytes_of(value) + AROUND
  if touched < MOST_TOUCHED then return end
  touched = 0
  for file in pairs(open_files) do
    if file.map then C.sz_map_forget(file.map, file.p, file.size) end
  end
end

function methods:value(i, name)
  local array, index = column_at(self, i, name)
  local value = named(self, (" row %d, column '%s'"):format(i, name), batch_of.value, array, index)
  count_touched(value)
  return value
end

function methods:row(i)
  local out = {}
  for _, column in ipairs(self.columns) do out[column.name] = self:value(i, column.name) end
  return out
end

-- ---- what the columns are ----
local FORMS = { int = "number", float = "number", bytes = "bytes", fixed = "bytes", view = "bytes",
  fixed_list = "list" }

-- ---- without Lua values ----
-- Goes down to the array that holds the bytes: through structs by name, through lists to their
-- first element. Returns the array, the index and how many elements the list has; nil for a null.
local function descend(array, i, path)
  local elements
  local k = 2
  while true do
    if not batch_of.is_valid(array, i) then return nil end
    local kind = array.field.type
    if kind == "dictionary" then
      array, i = batch_of.resolve(array, i)
    elseif kind == "list" or kind == "fixed_list" then
      local first, count = batch_of.range(array, i)
      if count == 0 then return nil end
      elements = count
      array = array.children[1]
      i = first
    elseif kind == "struct" and path[k] then
      array = batch_of.child(array, path[k])
      if not array then error(("there is no field '%s'"):format(path[k]), 0) end
      k = k + 1
    else
      return array, i, elements
    end
  end
end

-- Gives resident pages of the map back. What was unpacked is not in it.
local function forget(file, pointer, count)
  local is_inside = pointer >= file.p and pointer < file.p + file.size
  if is_inside then C.sz_map_forget(file.map, pointer, count) end
end

function methods:bytes(i, path, use)
  local column, row = column_at(self, i, path[1])
  local function read()
    local array, index, elements = descend(column, row, path)
    if not array then return nil end
    local kind = array.field.type
    if FORMS[kind] ~= "bytes" then error("it holds no bytes, but " .. kind, 0) end
    local pointer, count = batch_of.bytes(array, index)
    pointer = ffi.cast("const uint8_t *", pointer)
    local result = use(pointer, count, elements)
    forget(self, pointer, count)
    return result
  end
  return named(self, (" row %d, column '%s'"):format(i, path[1]), read)
end

-- The rows of pixels of a value.
local function pixels_of(column, row)
  local list = column.children[1]
  local bits = list.children[1]
  local first, count = batch_of.range(column, row)
  if count == 0 then error("the mask has no pixels", 0) end
  for y = first, first + count - 1 do
    if not batch_of.is_valid(list, y) then error("the mask has a null for a row", 0) end
    batch_of.range(list, y)
  end
  local offsets = list.offsets
  if not offsets then
    -- Lists of a fixed size have none.
    offsets = ffi.new("int64_t[?]", count + 1)
    for y = 0, count do offsets[y] = (first + y) * list.field.count end
    first = 0
  end
  local valid
  if bits.valid then valid = function(p) return batch_of.is_valid(bits, p) end end
  return bool_rows.of_offsets(first, count, offsets, bits.data, 0, valid)
end

function methods:mask(i, name, use)
  local column, row = column_at(self, i, name)
  return named(self, (" row %d, column '%s'"):format(i, name), function()
    if not batch_of.is_valid(column, row) then return nil end
    return use(pixels_of(column, row))
  end)
end

-- ---- kinds ----
local function kind_of(field)
  if field.type == "dictionary" then return kind_of(field.values) end
  local kind = { form = FORMS[field.type] or field.type }
  if field.type == "float" then kind.is_float = true end
  kind.scale = field.scale
  kind.time = field.time
  if kind.form == "list" then kind.element = kind_of(field.children[1]) end
  if kind.form == "map" then
    local entry = field.children[1].children
    kind.key = kind_of(entry[1])
    kind.value = kind_of(entry[2])
  end
  if kind.form == "struct" then
    kind.fields = {}
    kind.order = {}
    for i, child in ipairs(field.children) do
      kind.fields[child.name] = kind_of(child)
      kind.order[i] = child.name
    end
  end
  return kind
end

function methods:kind(name)
  local k = self.numbers[name]
  return k and kind_of(self.schema.fields[k])
end

function methods:pair(key) return self.schema.pairs[key] end

-- ---- the file ----
function M.open(path)
  local map = ffi.gc(core.call(C.sz_map_open(path)), C.sz_map_close)
  local file = setmetatable({ path = path, map = map, p = C.sz_map_bytes(map),
    size = tonumber(C.sz_map_size(map)), count = 0, order = 0, batches = {},
    dictionaries = {}, columns = {}, numbers = {} }, mt)
  named(file, "", read_messages, file)
  C.sz_map_forget(map, file.p, file.size)
  open_files[file] = true
  for i, field in ipairs(file.schema.fields) do
    file.columns[i] = { name = field.name }
    file.numbers[field.name] = i
  end
  return file
end

function methods:close()
  if not self.map then return end
  free_arrays(self.arrays)
  self.arrays = nil
  self.current = nil
  self.batches = {}
  C.sz_map_close(ffi.gc(self.map, nil))
  self.map = nil
  self.count = 0
end

return M
