-- test_int8.lua - a model in 8 bits: its logits against those of the whole model, answers that do
-- not depend on their batch, the frozen reference's log-probabilities, and what such a model
-- refuses.
--
--   ./segzero tests/unit/test_int8.lua

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local quantised = require "tests.support.quantised"
local sz = require "segzero"
local rollout = require "segzero.inference.rollout"
local tensor = require "segzero.core.tensor"

local TINY = "models/tiny/qwen2.5-vl"
local TOKENS = 96

local whole = sz.qwen_vl(TINY, { dtype = "bf16" })
local small = sz.qwen_vl(TINY, { dtype = "int8" })

local function text() return quantised.text(TOKENS) end

-- ---- logits and log-probabilities ----

check.case("the model names its 8 bits", function()
  check.ok(tostring(small):find("int8", 1, true), "the model says that it is in 8 bits")
end)

check.case("logits are close to those of the whole model", function()
  -- Rounding to 127 steps of the largest of 256 numbers is off by 0.5 % of a typical one, in
  -- weights and in x, independently for each product; measured 0.9993. A scale or block in the
  -- wrong place gives less than 0.9.
  local input = text()
  local cosine = quantised.compare(quantised.logits(whole, input), quantised.logits(small, input))
  check.ok(cosine > 0.998, ("the least cosine with the whole model is %.5f"):format(cosine))
  check.ok(cosine < 1, "the logits are those of rounded weights")
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
