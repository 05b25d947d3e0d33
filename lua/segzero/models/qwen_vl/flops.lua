-- flops.lua - the floating-point operations of a Qwen-VL's products, counted from its config.
--
--   local counts = flops.counts(vl)
--   counts.vision(h, w)                a forward pass of the tower over an image of h x w patches
--   counts.text(tokens, pairs, rows)   a forward pass of the language model over that many tokens;
--                                      rows: the positions that get logits
--   counts.q_width, .kv_width, .layer_weights, .head_weights
--   flops.causal_pairs(n, parent)      n tokens that see each other backwards, and all of a parent
--
-- A product of [m, k] and [k, n] counts 2 m k n operations. A pair is a query and a key that it
-- sees. A backward pass counts twice the forward. Of a model split over shards these are the whole
-- model's.
-- Leaves out: norms and other elementwise work, adapters.

local core = require "segzero.core.ffi"

local C = core.C

local M = {}

-- Pairs of patches that see each other in one block with windows of side x side patches.
local function windowed_pairs(h, w, side)
  local sum = 0
  for y = 0, h - 1, side do
    for x = 0, w - 1, side do
      sum = sum + (math.min(side, h - y) * math.min(side, w - x)) ^ 2
    end
  end
  return sum
end

-- Qwen2-VL's tower has no windows, and two matrices in its MLP where Qwen2.5-VL's has three.
local function block_pairs(c, h, w)
  if c.family ~= C.SZ_QWEN2_5_VL then return c.v_depth * (h * w) ^ 2 end
  local full = 0
  for i = 0, c.v_depth - 1 do full = full + c.v_full[i] end
  return full * (h * w) ^ 2 + (c.v_depth - full) * windowed_pairs(h, w, c.v_window / c.v_patch)
end

function M.counts(vl)
  local c = vl.config
  local counts = { q_width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim }
  counts.layer_weights = c.hidden * (2 * counts.q_width + 2 * counts.kv_width + 3 * c.intermediate)
  counts.head_weights = c.hidden * c.vocab
  local mlp_matrices = 2
  if c.family == C.SZ_QWEN2_5_VL then mlp_matrices = 3 end

  function counts.vision(h, w)
    local patches = h * w
    local unit = c.v_merge ^ 2
    local wide = c.v_hidden * unit
    local embed = 2 * patches * c.v_channels * c.v_temporal * c.v_patch ^ 2 * c.v_hidden
    local weights = 4 * c.v_hidden ^ 2 + mlp_matrices * c.v_hidden * c.v_intermediate
    local blocks = c.v_depth * 2 * patches * weights + 4 * c.v_hidden * block_pairs(c, h, w)
    return embed + blocks + 2 * patches / unit * wide * (wide + c.v_out)
  end

  function counts.text(tokens, pairs_seen, rows)
    local layer = 2 * tokens * counts.layer_weights + 4 * counts.q_width * pairs_seen
    return c.layers * layer + 2 * rows * counts.head_weights
  end
  return counts
end

function M.causal_pairs(n, parent) return n * (n + 1) / 2 + n * parent end

return M
