-- test_split_model.lua - a model that is split over ranks (tensor parallel) computes what the whole
-- one computes: logits, log-probabilities, every gradient, sampled tokens; in bf16, with adapters, a
-- frozen tower, 8 bits; with fewer key-value heads than shards; Qwen2.5-VL and Qwen2-VL; on the CPU and on
-- the emulated device.
--
-- Needs Open MPI. Each rank (tests/support/split_ranks.lua) has the whole model, too, and compares.
-- Left out: training (test_ranks.lua).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local runs = require "tests.support.rank_runs"

if not runs.available() then
  check.finish()
  return
end

local place = runs.begin()

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

local function tower_25(out)
  return { depth = 2, hidden_size = 32, intermediate_size = 48, num_heads = 2, hidden_act = "silu",
    in_channels = 3, in_chans = 3, patch_size = 14, spatial_patch_size = 14,
    spatial_merge_size = 2, temporal_patch_size = 2, window_size = 56, out_hidden_size = out,
    tokens_per_second = 2, fullatt_block_indexes = { 1 } }
end

-- One has a head of its own, the other the embedding.
local FOLDERS = {
  mini.write(place .. "/qwen2.5", { std = 0.2, config = config { vision_config = tower_25(64) } }),
  mini.write(place .. "/qwen2", { std = 0.2, config = config {
    model_type = "qwen2_vl", tie_word_embeddings = false,
    architectures = { "Qwen2VLForConditionalGeneration" },
    vision_config = { depth = 2, embed_dim = 32, hidden_size = 64, mlp_ratio = 2, num_heads = 2,
      hidden_act = "quick_gelu", in_channels = 3, in_chans = 3, patch_size = 14,
      spatial_patch_size = 14, spatial_merge_size = 2, temporal_patch_size = 2 } } }),
}
-- Heads of 128: four shards have whole groups of 8-bit columns.
local WIDE = mini.write(place .. "/wide", { std = 0.05, config = config {
  hidden_size = 512, intermediate_size = 512, vision_config = tower_25(512),
  rope_scaling = { type = "mrope", mrope_section = { 16, 24, 24 } } } })

local KINDS = {
  { "plain", unpack(FOLDERS) }, { "lora", unpack(FOLDERS) }, { "frozen", unpack(FOLDERS) },
  { "bf16", FOLDERS[1] },
  { "int8", FOLDERS[1], FOLDERS[2], WIDE }, { "generate", unpack(FOLDERS) },
}

-- A run of one kind on so many shards.
local function run(name, count, words, env)
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

for _, kind in ipairs(KINDS) do
  for _, count in ipairs { 2, 4 } do run(kind[1], count, kind) end
end

-- ---- the emulated device: messages between devices, whose decode steps are recorded, and through
-- host memory, where they are not ----
if runs.device_available() then
  for _, kind in ipairs { "plain", "generate" } do
    run(kind .. " on devices", 2, { kind .. ":cuda", FOLDERS[1] }, runs.device_env(2))
  end
  local env = runs.device_env(2)
  env.SEGZERO_NCCL = "0"
  run("generate on devices, through host memory", 2, { "generate:cuda", FOLDERS[2] }, env)
end

mini.remove()
check.finish()
