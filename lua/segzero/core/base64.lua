-- base64.lua - bytes as text, as data URLs and terminals take them.
--
--   base64.encode(bytes) -> text            a string
--   base64.of(pointer, n) -> text           uint8_t *
--
-- Leaves out: decoding.

local ffi = require "ffi"

local M = {}

local LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local letter = ffi.new("uint8_t[64]", { LETTERS:byte(1, -1) })

function M.of(bytes, n)
  local out = ffi.new("uint8_t[?]", math.ceil(n / 3) * 4)
  local k = 0
  for i = 0, n - 1, 3 do
    local second = i + 1 < n and bytes[i + 1] or 0
    local third = i + 2 < n and bytes[i + 2] or 0
    local v = bytes[i] * 65536 + second * 256 + third
    for place = 0, 3 do
      out[k + place] = letter[math.floor(v / 64 ^ (3 - place)) % 64]
    end
    k = k + 4
  end
  for i = 1, (3 - n % 3) % 3 do out[k - i] = 61 end            -- '='
  return ffi.string(out, k)
end

function M.encode(bytes) return M.of(ffi.cast("const uint8_t *", bytes), #bytes) end

return M
