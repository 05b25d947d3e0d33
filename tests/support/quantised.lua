-- quantised.lua - what the tests of 8-bit and of 4-bit models share.
--
--   local input = quantised.text(96)           a model's input of that many text tokens, no image
--   local input, first = quantised.answered(vl, index)
--       a held-out RefShapes image, Seg-Zero's question and the model's own greedy answer; the
--       answer's logits are in rows `first` (0) to the last but one
--   local t = quantised.logits(vl, input)      without gradients
--   local least, mean, same = quantised.compare(a, b, first)
--       of two tensors of logits [rows, words], from row `first` (0) to the last but one: the
--       smallest and the mean cosine of two rows, and the part of the rows whose likeliest word is
--       the same
--   local off = quantised.gradient_difference(8, "bf16")
--       of the gradients of x through linear_int8 (4: linear_int4) and through the rounded weight,
--       relative to the second

local packing = require "segzero.inference.packing"
local processor = require "segzero.models.qwen_vl.processor"
local prompt = require "segzero.data.prompt"
local refshapes = require "segzero.data.refshapes"
local rollout = require "segzero.inference.rollout"
local tasks = require "segzero.data.refshapes.tasks"
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

function M.answered(vl, index)
  local scene = refshapes.sample { seed = 1, split = "heldout", index = index, size = 112,
    questions = 1 }
  local image = tasks.image_of(scene)
  local question = prompt.seg_zero(scene.questions[1].problem)
  local input = vl:process { { role = "user", content = {
    { type = "image", image = image }, { type = "text", text = question } } } }
  image:free()
  local greedy = { n = 1, temperature = 0, max_new_tokens = 160, row_ids = { 1 } }
  local answer = rollout.generate(vl, { input }, greedy)[1][1]
  local first = #input.input_ids - 1
  for _, id in ipairs(answer.ids) do input.input_ids[#input.input_ids + 1] = id end
  input.position_ids, input.next_position = processor.positions(input.input_ids,
    input.image_grid_thw, vl, 2)
  return input, first
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

function M.compare(a, b, from)
  from = from or 0
  local rows, width = unpack(a:shape())
  local x = tensor.data(a)
  local y = tensor.data(b)
  local least = 1
  local sum = 0
  local same = 0
  local last = rows - 2
  for r = from, last do
    local cosine, equal = compare_row(x, y, r * width, width)
    least = math.min(least, cosine)
    sum = sum + cosine
    if equal then same = same + 1 end
  end
  local compared = last - from + 1
  return least, sum / compared, same / compared
end

function M.gradient_difference(bits, dtype)
  local quantize, dequantize, linear = "quantize_int" .. bits, "dequantize_int" .. bits,
    "linear_int" .. bits
  local code = tensor.dtype_code(dtype)
  local w = tensor.randn { 40, 300 }
  local x = tensor.randn({ 9, 300 }):cast(code)
  local q, scale = w[quantize](w, nil, nil)
  local rounded = q[dequantize](q, scale, 40, 300, code)
  local function gradient(product)
    local own = x:clone()
    own:requires_grad(true)
    local y = product(own):cast(0)
    y:mul(y):sum():backward()
    return own:grad()
  end
  local want = gradient(function(t) return t:linear(rounded, nil) end)
  local got = gradient(function(t) return t[linear](t, q, scale, nil, 40) end)
  return math.sqrt((got - want):sum_squares():item() / want:sum_squares():item())
end

return M
