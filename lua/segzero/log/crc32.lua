-- crc32.lua - checksums of 32 bits, as record files of other programs want them.
--
--   crc32.ieee(text) -> number       the polynomial of zlib and PNG
--   crc32.castagnoli(text) -> number CRC-32C: TFRecord, LevelDB
--   crc32.le(number) -> text         4 bytes, the lowest first
--
-- Numbers are in 0 .. 2^32 - 1. Byte by byte with a table. Leaves out: continuing a checksum.

local bit = require "bit"
local ffi = require "ffi"

local band = bit.band
local bxor = bit.bxor
local rshift = bit.rshift

local M = {}

-- The checksum function of a polynomial, whose bits are in reversed order.
local function of(polynomial)
  local steps = ffi.new "int32_t[256]"
  for byte = 0, 255 do
    local value = byte
    for _ = 1, 8 do
      local low = band(value, 1)
      value = rshift(value, 1)
      if low == 1 then value = bxor(value, polynomial) end
    end
    steps[byte] = value
  end
  return function(text)
    local bytes = ffi.cast("const uint8_t *", text)
    local sum = -1
    for i = 0, #text - 1 do
      sum = bxor(steps[band(bxor(sum, bytes[i]), 255)], rshift(sum, 8))
    end
    return bxor(sum, -1) % 2 ^ 32
  end
end

M.ieee = of(0xEDB88320)
M.castagnoli = of(0x82F63B78)

function M.le(number)
  local value = ffi.new("uint32_t[1]", number)
  return ffi.string(value, 4)
end

return M
