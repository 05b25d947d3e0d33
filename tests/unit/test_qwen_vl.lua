-- test_qwen_vl.lua - Qwen2.5-VL against transformers on random weights (tests/golden/qwen_vl):
-- logits, gradients of every parameter, bf16, recomputation, prefill and decoding.
--
--   ./segzero tests/unit/test_qwen_vl.lua
--
-- The checks are in tests/support/qwen_golden.lua. Leaves out: Qwen2-VL (test_qwen2_vl.lua).

local check = require "tests.support.check"
local golden = require "tests.support.qwen_golden"

for _, id in ipairs { "Q1", "Q2", "Q3", "Q4", "Q5", "Q6" } do golden.run("qwen_vl/" .. id) end

check.finish()
