-- split_runs.lua - the models of the tests of split models, and their checked runs.
--
--   local folders = split_runs.folders(place)     a Qwen2.5-VL and a Qwen2-VL, 4 heads, 2 key-value
--                                                 heads: four shards have two copies of each
--   local folder = split_runs.wide(place)         8 heads of 128, MLP of 1024: four shards have
--                                                 whole groups of 8-bit columns
--   split_runs.run("name", 2, { kind, folder }, env)    a case: split_ranks.lua on 2 ranks
--
-- Left out: what the ranks compare (split_ranks.lua).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local runs = require "tests.support.rank_runs"

local M = {}

local TEXT = {
  hidden_size = 64, intermediate_size = 96, num_attention_heads = 4, num_key_value_heads = 2,
  rope_scaling = { type = "mrope", mrope_section = { 2, 3, 3 } },
}

local function config(changes)
  local all = {}
  for k, v in pairs(TEXT) do all[k] = v end
  for k, v in pairs(changes) do all[k] = v end
  return all
end

-- Qwen2.5-VL's tower; out: the language model's width.
local function tower(out)
  return { depth = 2, hidden_size = 32, intermediate_size = 48, num_heads = 2, hidden_act = "silu",
    in_channels = 3, in_chans = 3, patch_size = 14, spatial_patch_size = 14,
    spatial_merge_size = 2, temporal_patch_size = 2, window_size = 56, out_hidden_size = out,
    tokens_per_second = 2, fullatt_block_indexes = { 1 } }
end

-- One has a head of its own, the other the embedding.
function M.folders(place)
  local qwen2 = config {
    model_type = "qwen2_vl", tie_word_embeddings = false,
    architectures = { "Qwen2VLForConditionalGeneration" },
    vision_config = { depth = 2, embed_dim = 32, hidden_size = 64, mlp_ratio = 2, num_heads = 2,
      hidden_act = "quick_gelu", in_channels = 3, in_chans = 3, patch_size = 14,
      spatial_patch_size = 14, spatial_merge_size = 2, temporal_patch_size = 2 },
  }
  return {
    mini.write(place .. "/qwen2.5", { std = 0.2, config = config { vision_config = tower(64) } }),
    mini.write(place .. "/qwen2", { std = 0.2, config = qwen2 }),
  }
end

function M.wide(place)
  return mini.write(place .. "/wide", { std = 0.05, config = config {
    hidden_size = 1024, intermediate_size = 1024, num_attention_heads = 8,
    vision_config = tower(1024),
    rope_scaling = { type = "mrope", mrope_section = { 16, 24, 24 } } } })
end

function M.run(name, count, words, env)
  check.case(("%s, %d shards"):format(name, count), function()
    local text, status = runs.run(count, { "tests/support/split_ranks.lua", unpack(words) }, env)
    check.equal(status, 0, text:sub(-900))
    local ok = 0
    for compared in text:gmatch "ok (%d+)" do
      ok = ok + 1
      check.ok(tonumber(compared) > 50, "numbers were compared")
    end
    check.equal(ok, count, "ranks that finished")
  end)
end

return M
