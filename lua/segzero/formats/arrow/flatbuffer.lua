-- flatbuffer.lua - reads the FlatBuffers of Arrow's messages, of which nothing is trusted.
--
--   local b = flatbuffer.new(pointer, size)       borrowed bytes
--   local t = b:root()                            a table's place
--   b:i16(t, k, default), b:i32, b:i64, b:u8      field k of a table, from 0; i64 is a number
--   b:text(t, k)                                  a string, or nil
--   b:table(t, k)                                 another table's place, or nil
--   local at, n = b:vector(t, k, width)           where n elements of `width` bytes begin; n is 0
--                                                 without the field
--   b:element(at, i)                              the place of table i of a vector of tables
--   b:i64_at(at)                                  a number inside a vector of structs
--
-- A place outside the bytes is an error. Leaves out: writing, unions of more than one table.

local ffi = require "ffi"

local M = {}

local methods = {}
local mt = { __index = methods }

local function outside() error("the metadata are damaged: a place outside of them", 0) end

local function check(self, at, count)
  if at < 0 or count < 0 or at + count > self.size then outside() end
end

function M.new(pointer, size)
  return setmetatable({ p = ffi.cast("const uint8_t *", pointer), size = size }, mt)
end

local function reader(ctype, width)
  local pointer = ffi.typeof("const " .. ctype .. " *")
  return function(self, at)
    check(self, at, width)
    return tonumber(ffi.cast(pointer, self.p + at)[0])
  end
end

local u8_at = reader("uint8_t", 1)
local u16_at = reader("uint16_t", 2)
local i16_at = reader("int16_t", 2)
local i32_at = reader("int32_t", 4)
local u32_at = reader("uint32_t", 4)
local i64_at = reader("int64_t", 8)

function methods:i64_at(at) return i64_at(self, at) end

function methods:root() return u32_at(self, 0) end

-- Where field k of the table at t is, or nil.
local function field(self, t, k)
  local entries = t - i32_at(self, t)
  if 4 + 2 * k + 2 > u16_at(self, entries) then return nil end
  local offset = u16_at(self, entries + 4 + 2 * k)
  if offset == 0 then return nil end
  return t + offset
end

local function scalar(read)
  return function(self, t, k, default)
    local at = field(self, t, k)
    if not at then return default end
    return read(self, at)
  end
end

methods.u8 = scalar(u8_at)
methods.i16 = scalar(i16_at)
methods.i32 = scalar(i32_at)
methods.i64 = scalar(i64_at)

function methods:table(t, k)
  local at = field(self, t, k)
  if not at then return nil end
  return at + u32_at(self, at)
end

function methods:text(t, k)
  local at = self:table(t, k)
  if not at then return nil end
  local n = u32_at(self, at)
  check(self, at + 4, n)
  return ffi.string(self.p + at + 4, n)
end

function methods:vector(t, k, width)
  local at = self:table(t, k)
  if not at then return 0, 0 end
  local n = u32_at(self, at)
  check(self, at + 4, n * width)
  return at + 4, n
end

function methods:element(at, i)
  local place = at + 4 * (i - 1)
  return place + u32_at(self, place)
end

return M
