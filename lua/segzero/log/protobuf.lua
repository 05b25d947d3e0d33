-- protobuf.lua - writes messages of Protocol Buffers, field by field.
--
--   protobuf.integer(2, step)         a whole number from 0 to 2^53; also an enum or a boolean (1)
--   protobuf.double(1, seconds)       8 bytes
--   protobuf.float(2, value)          4 bytes
--   protobuf.bytes(1, text)           text, bytes, or a message that is written already
--
-- Each returns the field as bytes; a message is its fields, one after another. Leaves out: reading,
-- negative integers, packed lists.

local ffi = require "ffi"

local M = {}

local VARINT = 0
local EIGHT_BYTES = 1
local LENGTH = 2
local FOUR_BYTES = 5

local function varint(n)
  local bytes = {}
  while n >= 128 do
    bytes[#bytes + 1] = string.char(n % 128 + 128)
    n = math.floor(n / 128)
  end
  bytes[#bytes + 1] = string.char(n)
  return table.concat(bytes)
end

local function tag(field, kind) return varint(field * 8 + kind) end

function M.integer(field, n) return tag(field, VARINT) .. varint(n) end

function M.double(field, v)
  return tag(field, EIGHT_BYTES) .. ffi.string(ffi.new("double[1]", v), 8)
end

function M.float(field, v)
  return tag(field, FOUR_BYTES) .. ffi.string(ffi.new("float[1]", v), 4)
end

function M.bytes(field, text) return tag(field, LENGTH) .. varint(#text) .. text end

return M
