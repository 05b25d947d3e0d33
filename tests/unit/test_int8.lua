-- test_int8.lua - a model in 8 bits: its logits and those of the whole model, answers that do not depend on their batch, the frozen
-- reference's log-probabilities, what such a model refuses.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local packing = require "segzero.inference.packing"
local rollout = require "segzero.inference.rollout"
local tensor = require "segzero.core.tensor"

local TINY = "models/tiny/qwen2.5-vl"
local TOKENS = 96

local function text()
  local ids = {}
  for i = 1, TOKENS do ids[i] = (i * 79 + 13) % 570 end
  local positions, p = packing.ints(3, TOKENS)
  for i = 0, TOKENS - 1 do
    for axis = 0, 2 do p[axis * TOKENS + i] = i end
  end
  return { input_ids = ids, position_ids = positions, next_position = TOKENS }
end

local function logits(vl)
  return tensor.no_grad(function() return vl:forward(text()) end)
end

-- The smallest cosine of two rows of logits.
local function least_cosine(a, b)
  local rows, width = unpack(a:shape())
  local x, y, least = tensor.data(a), tensor.data(b), 1
  for r = 0, rows - 1 do
    local xx, yy, xy = 0, 0, 0
    for j = r * width, (r + 1) * width - 1 do
      xx = xx + x[j] * x[j]
      yy = yy + y[j] * y[j]
      xy = xy + x[j] * y[j]
    end
    least = math.min(least, xy / math.sqrt(xx * yy))
  end
  return least
end

local whole, small = sz.qwen_vl(TINY, { dtype = "bf16" }), sz.qwen_vl(TINY, { dtype = "int8" })
check.ok(tostring(small):find("int8", 1, true), "the model says that it is in 8 bits")

-- Rounding to 127 steps of the largest of 128 numbers is off by 0.5 % of a typical one, in weights and in x, independently for
-- each product; measured 0.9993. A scale or block in the wrong place gives less than 0.9.
local cosine = least_cosine(logits(whole), logits(small))
check.ok(cosine > 0.998, ("the logits' least cosine with the whole model is %.5f"):format(cosine))
check.ok(cosine < 1, "the logits are those of rounded weights")

-- Log-probabilities, as the trainer's reference gives them: no gradient, many answers packed behind one prompt.
local lists = { { 5, 6, 7 }, { 100, 101 } }
local function sums(vl)
  return tensor.no_grad(function()
    local out = {}
    for i, t in ipairs(vl:logprobs(text(), lists)) do out[i] = tensor.data(t:sum())[0] end
    return out
  end)
end
local want, got = sums(whole), sums(small)
for i in ipairs(lists) do
  -- 0.5 % of logits that are about 8: a few tenths a token at worst.
  local difference = math.abs(want[i] - got[i])
  check.ok(difference < 0.3 * #lists[i],
    ("log-probability %.3f, expected %.3f"):format(got[i], want[i]))
end

-- ---- an answer does not depend on how many decode with it ----
local opts = { n = 14, max_new_tokens = 6, seed = 5, row_ids = { 7 }, ignore_eos = true }
local many = rollout.generate(small, { text() }, opts)[1]
opts.n = 1
local one = rollout.generate(small, { text() }, opts)[1][1]
check.equal(many[1].ids, one.ids, "alone and with 13 others")
check.equal(many[1].logprobs, one.logprobs, "with the same log-probabilities")

-- ---- what it refuses ----
local place = mini.folder()
check.raises(function() small:save(place .. "/no") end, "save: this model is in 8 bits", "saving")
check.raises(function() small:train() end, "train: this model is in 8 bits", "training")
check.raises(function() small:parameters() end, "parameters: this model is in 8 bits",
  "its weights")

check.finish()
