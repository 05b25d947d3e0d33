-- permutation.lua - a shuffled list of numbers, the same on every machine.
--
--   permutation.of(n, seed, epoch) -> int32_t [n + 1], of which 1 to n are used: no table that the
--                                     collector walks in each step
--
-- Fisher-Yates with the counter-based generator. Leaves out: a Lua list of it (data.order).

local ffi = require "ffi"
local core = require "segzero.core.ffi"

local M = {}

local bits = ffi.new "uint32_t[4]"
-- the stream of random numbers for shuffling
local SHUFFLE_STREAM = 0xda7a

function M.of(n, seed, epoch)
  local list = ffi.new("int32_t[?]", n + 1)
  for i = 1, n do list[i] = i end
  for i = n, 2, -1 do
    core.C.sz_random_bits(seed, i, SHUFFLE_STREAM, epoch, bits)
    local j = 1 + math.floor(tonumber(bits[0]) / 2 ^ 32 * i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

return M
