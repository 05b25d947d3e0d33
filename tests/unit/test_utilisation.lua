-- test_utilisation.lua - counted operations against the shapes of a model's weights, for both
-- families, and the share of the machine's rate that an update reaches.
--
-- Left out: how fast an update is.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local flops = require "segzero.models.qwen_vl.flops"
local utilisation = require "segzero.train.figures.utilisation"
local model = require "segzero.models.qwen_vl"
local split_runs = require "tests.support.split_runs"

local place = mini.folder()
local tok = sz.tokenizer(mini.write(place .. "/model"))

-- The elements of the weights with two dimensions or more whose names match.
local function elements(vl, pattern)
  local sum = 0
  for name, t in pairs(vl:parameters()) do
    if name:find(pattern) and not name:find "norm" and #t:shape() > 1 then sum = sum + t:numel() end
  end
  return sum
end

for _, folder in ipairs(split_runs.folders(place)) do
  local family = folder:match "[^/]*$"
  check.case(family .. ": products read each weight once a token", function()
    local vl = sz.qwen_vl(folder)
    local counts = flops.counts(vl)
    local layers = elements(vl, "^model%.layers%.")
    check.equal(counts.text(10, 0, 0), 2 * 10 * layers, "without attention and logits")
    local one_row = counts.text(10, 0, 1) - counts.text(10, 0, 0)
    local head = elements(vl, "^lm_head")
    if head == 0 then head = elements(vl, "embed_tokens") end
    check.equal(one_row, 2 * head, "a row of logits")
    local a_pair = counts.text(10, 1, 0) - counts.text(10, 0, 0)
    check.equal(a_pair, 4 * counts.q_width * vl.config.layers, "a pair in each layer")

    -- 4 x 4 patches fit into one window, so every patch sees all.
    local blocks = elements(vl, "^visual%.blocks") + elements(vl, "^visual%.patch_embed")
    local merger = elements(vl, "^visual%.merger")
    local attention = 4 * vl.config.v_hidden * vl.config.v_depth * 16 ^ 2
    check.equal(counts.vision(4, 4), 2 * 16 * blocks + 2 * 4 * merger + attention, "the tower")
    vl:free()
  end)
end

check.case("tokens see those before them, and a prompt", function()
  check.equal(flops.causal_pairs(4, 0), 10, "1 + 2 + 3 + 4")
  check.equal(flops.causal_pairs(2, 5), 13, "6 + 7")
end)

check.case("an update's share of the machine's rate", function()
  local vl = model.random(mini.config(tok, {}), { seed = 1 })
  local counts = flops.counts(vl)
  local input = { input_ids = { 1, 2, 3, 4, 5 }, image_grid_thw = { { 1, 4, 4 } } }
  local group = { input = input, samples = { { ids = { 1, 2, 3 } }, { ids = { 1 } } } }
  local t = { policy = vl, parallel = { shards = 1 }, options = { forward = {} } }

  -- 5 tokens of the prompt; 2 of an answer's 3 are fed, and none of the other's; 4 rows.
  local pairs_seen = 15 + (6 + 7)
  local text = counts.text(7, pairs_seen, 4)
  check.equal(utilisation.count(t, { group }), 3 * (text + counts.vision(4, 4)), "three passes")
  t.options.forward.frozen_vision = true
  check.equal(utilisation.count(t, { group }), 3 * text, "a frozen tower does not run")
  check.equal(utilisation.of(t, { group }, 1), nil, "too small for a measurement")

  -- With a rate of twice the operations, one second is a utilisation of a half.
  t.product_rate = 6 * text
  check.near(utilisation.of(t, { group }, 1), 0.5, 1e-12, "a half")
  t.parallel.shards = 2
  check.near(utilisation.of(t, { group }, 1), 0.25, 1e-12, "two shards have a half each")
  vl:free()
end)

mini.remove()
check.finish()
