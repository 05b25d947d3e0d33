-- data - data sets: questions about images with their ground truth.
--
--   local set = data.open("refshapes", { split = "train", size = 112, seed = 42, rows = 4096 })
--   local set = data.open "path/to/folder"       data.jsonl and images in Seg-Zero's columns
--   set:count(), set:row(i), set:image(i)        see sources.lua
--   set:sample(10)                               a set of ten of its rows (sample.lua)
--   data.sources                                 sz.sources, the registry of kinds of data
--   data.order(n, seed, epoch)                   a shuffled list of 1..n, the same on every machine
--   data.permutation(n, seed, epoch)             the same as int32_t [n + 1], from 1: no table that
--                                                the collector walks in each step
--
-- Leaves out: parquet and hub data sets.

local permutation = require "segzero.data.permutation"
local sources = require "segzero.data.sources"

local M = {}

-- What is wrong with a data set blames the caller's line.
function M.open(name, options) return sources.open(name, options, 2) end
M.sources = sources

M.permutation = permutation.of

function M.order(n, seed, epoch)
  local shuffled = M.permutation(n, seed, epoch)
  local list = {}
  for i = 1, n do list[i] = shuffled[i] end
  return list
end

return M
