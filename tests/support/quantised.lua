-- quantised.lua - what the tests of 8-bit and of 4-bit models share.
--
--   local input = quantised.text(96)           a model's input of that many text tokens, no image
--   local t = quantised.logits(vl, input)      without gradients
--   local least, mean, same = quantised.compare(a, b)
--       of two tensors of logits [rows, words]: the smallest and the mean cosine of two rows, and
--       the part of the rows whose likeliest word is the same
-- Leaves out: images.

local packing = require "segzero.inference.packing"
local tensor = require "segzero.core.tensor"

local M = {}

function M.text(tokens)
  local ids = {}
  for i = 1, tokens do ids[i] = (i * 79 + 13) % 570 end
  local positions, p = packing.ints(3, tokens)
  for i = 0, tokens - 1 do
    for axis = 0, 2 do p[axis * tokens + i] = i end
  end
  return { input_ids = ids, position_ids = positions, next_position = tokens }
end

function M.logits(vl, input)
  return tensor.no_grad(function() return vl:forward(input) end)
end

-- The cosine of numbers first .. first + width - 1 of x and y, and whether the largest is in the
-- same place.
local function compare_row(x, y, first, width)
  local xx = 0
  local yy = 0
  local xy = 0
  local largest_x = first
  local largest_y = first
  for j = first, first + width - 1 do
    xx = xx + x[j] * x[j]
    yy = yy + y[j] * y[j]
    xy = xy + x[j] * y[j]
    if x[j] > x[largest_x] then largest_x = j end
    if y[j] > y[largest_y] then largest_y = j end
  end
  return xy / math.sqrt(xx * yy), largest_x == largest_y
end

function M.compare(a, b)
  local rows, width = unpack(a:shape())
  local x = tensor.data(a)
  local y = tensor.data(b)
  local least = 1
  local sum = 0
  local same = 0
  for r = 0, rows - 1 do
    local cosine, equal = compare_row(x, y, r * width, width)
    least = math.min(least, cosine)
    sum = sum + cosine
    if equal then same = same + 1 end
  end
  return least, sum / rows, same / rows
end

return M
