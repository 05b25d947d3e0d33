-- data - data sets: questions about images with their ground truth.
--
--   local set = data.open("refshapes", { split = "train", size = 112, seed = 42, rows = 4096 })
--   local set = data.open "path/to/folder"       data.jsonl and images in Seg-Zero's columns
--   set:count(), set:row(i), set:image(i)        see sources.lua
--   data.sources                                 sz.sources, the registry of kinds of data
--   data.order(n, seed, epoch)                   a shuffled list of 1..n, the same on every machine
--   data.permutation(n, seed, epoch)             the same as int32_t [n + 1], from 1: no table that
--                                                the collector walks in each step
--
-- Leaves out: parquet and hub data sets.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local sources = require "segzero.data.sources"

local M = {}

-- What is wrong with a data set blames the caller's line.
function M.open(name, options) return sources.open(name, options, 2) end
M.sources = sources

local bits = ffi.new "uint32_t[4]"
-- the stream of random numbers for shuffling
local SHUFFLE_STREAM = 0xda7a

-- Fisher-Yates with the counter-based generator.
function M.permutation(n, seed, epoch)
  local list = ffi.new("int32_t[?]", n + 1)
  for i = 1, n do list[i] = i end
  for i = n, 2, -1 do
    core.C.sz_random_bits(seed, i, SHUFFLE_STREAM, epoch, bits)
    local j = 1 + math.floor(tonumber(bits[0]) / 2 ^ 32 * i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

function M.order(n, seed, epoch)
  local permutation = M.permutation(n, seed, epoch)
  local list = {}
  for i = 1, n do list[i] = permutation[i] end
  return list
end

return M
