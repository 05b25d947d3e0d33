-- test_int8.lua - a model in 8 bits: its logits and vision tower against those of the whole model,
-- answers that do not depend on their batch, the frozen reference's log-probabilities, the memory
-- plan, and what such a model refuses.
--
--   ./segzero tests/unit/test_int8.lua

local check = require "tests.support.check"
local golden = require "tests.support.qwen_golden"
local mini = require "tests.support.miniature"
local quantised = require "tests.support.quantised"
local sz = require "segzero"
local model = require "segzero.models.qwen_vl"
local rollout = require "segzero.inference.rollout"
local tensor = require "segzero.core.tensor"

local C = sz.core.C
local TINY = "models/tiny/qwen2.5-vl"
local TOKENS = 96

local whole = sz.qwen_vl(TINY, { dtype = "bf16" })
local small = sz.qwen_vl(TINY, { dtype = "int8" })

local function text() return quantised.text(TOKENS) end

-- The relative difference of what two models' towers say of an input's image.
local function tower_difference(a, b, input)
  local function features(vl)
    return tensor.no_grad(function() return vl:vision { input } end)
  end
  local want = features(a)
  return math.sqrt((features(b) - want):sum_squares():item() / want:sum_squares():item())
end

-- How many weights of the vision tower, or of the language model, are held in 8 bits only.
local function count_packed(vl, vision)
  local n = 0
  for _, w in ipairs(vl.weights) do
    if w.vision == vision then n = n + C.sz_model_weight_is_packed(vl.c, w.index) end
  end
  return n
end

-- ---- logits and log-probabilities ----

check.case("the model names its 8 bits", function()
  check.ok(tostring(small):find("int8", 1, true), "the model says that it is in 8 bits")
end)

check.case("logits are close to those of the whole model", function()
  -- Rounding to 127 steps of the largest of 256 numbers is off by 0.5 % of a typical one, in
  -- weights and in x, independently for each product; measured 0.9998. A scale or block in the
  -- wrong place gives less than 0.9.
  local input = text()
  local cosine = quantised.compare(quantised.logits(whole, input), quantised.logits(small, input))
  check.ok(cosine > 0.998, ("the least cosine with the whole model is %.5f"):format(cosine))
  check.ok(cosine < 1, "the logits are those of rounded weights")
end)

check.case("the vision tower is in 8 bits, too", function()
  -- The same error in each of its layers; measured 0.008, and 0.021 with the random one of Qwen2-VL
  -- below.
  local off = tower_difference(whole, small, quantised.answered(whole, 2))
  check.ok(off > 1e-4 and off < 0.05, ("its features are off by %.4f"):format(off))
  check.equal(count_packed(small, true), 2 * (2 + 5 * small.config.v_depth),
    "weights and biases of its linear layers")
end)

check.case("the answer to an image is close to that of the whole model", function()
  local input, first = quantised.answered(whole, 2)
  local want = quantised.logits(whole, input)
  -- Measured: 0.9997 on average, 0.994 at least, all of the likeliest words.
  local least, mean, same = quantised.compare(want, quantised.logits(small, input), first)
  check.ok(mean > 0.998, ("the mean cosine is %.5f"):format(mean))
  check.ok(least > 0.95, ("the least cosine is %.5f"):format(least))
  check.ok(same > 0.97, ("%.2f of the likeliest words are the same"):format(same))
end)

check.case("Qwen2-VL, whose tower has no gates", function()
  local folder, case, t = golden.case "qwen2_vl/V1"
  local full = sz.qwen_vl(folder, { dtype = "bf16" })
  local packed = sz.qwen_vl(folder, { dtype = "int8" })
  local input = golden.input_of(case.sequences[1], t)
  local off = tower_difference(full, packed, input)
  check.ok(off > 1e-4 and off < 0.05, ("its features are off by %.4f"):format(off))
  full:free()
  packed:free()
end)

check.case("the plan knows the size of 8-bit weights", function()
  local vl = model.meta(TINY, "int8")
  local packed = 0
  local plain = 0
  for _, w in ipairs(vl.weights) do
    local n = 1
    for _, d in ipairs(w.shape) do n = n * d end
    if w.linear then packed = packed + n else plain = plain + n end
  end
  local head = vl.config.vocab * vl.config.hidden
  check.near(vl:weight_bytes "int8", (1 + 1 / 64) * (packed + head) + 2 * plain, 1, "bytes")
  vl:free()
end)

check.case("log-probabilities are close to those of the whole model", function()
  -- As the trainer's reference computes them: no gradient, many answers packed after one prompt.
  local lists = { { 5, 6, 7 }, { 100, 101 } }
  local function sums(vl)
    return tensor.no_grad(function()
      local out = {}
      for i, t in ipairs(vl:logprobs(text(), lists)) do out[i] = tensor.data(t:sum())[0] end
      return out
    end)
  end
  local want = sums(whole)
  local got = sums(small)
  for i in ipairs(lists) do
    -- 0.5 % of logits of about 8 is a few tenths per token at worst.
    local difference = math.abs(want[i] - got[i])
    check.ok(difference < 0.3 * #lists[i],
      ("log-probability %.3f, expected %.3f"):format(got[i], want[i]))
  end
end)

-- ---- gradients ----

check.case("the gradient of x is that of the rounded weight", function()
  for _, dtype in ipairs { "f32", "bf16" } do
    -- x is rounded to 127 steps of the largest of 256 numbers, which moves dy = 2 y by half a
    -- percent.
    local off = quantised.gradient_difference(8, dtype)
    check.ok(off < 0.01 and off > 0, ("%s: relative difference %.4f"):format(dtype, off))
  end
end)

-- ---- answers ----

check.case("an answer does not depend on how many decode with it", function()
  local function generate(n)
    local opts = { n = n, max_new_tokens = 6, seed = 5, row_ids = { 7 }, ignore_eos = true }
    return rollout.generate(small, { text() }, opts)[1]
  end
  local many = generate(14)
  local one = generate(1)
  check.equal(many[1].ids, one[1].ids, "alone and with 13 others")
  check.equal(many[1].logprobs, one[1].logprobs, "with the same log-probabilities")
end)

-- ---- what it refuses ----

check.case("a model in 8 bits is neither saved nor trained", function()
  local path = mini.folder() .. "/no"
  check.raises(function() small:save(path) end, "save: this model is in 8 bits", "saving")
  check.raises(function() small:train() end, "train: this model is in 8 bits", "training")
  check.raises(function() small:parameters() end, "parameters: this model is in 8 bits",
    "its weights")
  mini.remove()
end)

check.finish()
