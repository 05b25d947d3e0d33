-- test_wire.lua - what the ranks of a training step send, byte for byte as `segzero plan --ranks W`
-- says, and the plan of clusters that are not here: memory of a rank, and what cannot be split.
--
-- Left out: adapters in a split model; GPUs.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local runs = require "tests.support.rank_runs"
local host = require "segzero.host"
local files = require "segzero.core.files"

local place = runs.begin()
local T = "worker.rollout.tensor_parallel_size="

local function expect(text, pattern)
  check.ok(text:find(pattern), pattern .. " in: " .. text:sub(-800))
end

-- ---- bytes ----
local KINDS = {
  { "two replicas", 2, {} },
  { "two replicas, all moments on both", 2, { "worker.actor.optim.shard_state=false" } },
  { "two replicas with adapters", 2, { "worker.actor.model.lora.rank=4" } },
  { "three replicas in bf16", 3, { "worker.actor.model.dtype=bf16" } },
  { "two shards", 2, { T .. 2 } },
  { "two shards, a frozen tower, bf16", 2, { T .. 2, "worker.actor.freeze_vision_tower=true",
    "worker.actor.model.dtype=bf16" } },
  { "two shards that keep activations", 2, { T .. 2,
    "worker.actor.model.enable_gradient_checkpointing=false" } },
  { "two replicas of two shards", 4, { T .. 2 } },
}

check.case("the bytes of a step are those of the formula", function()
  for _, kind in ipairs(KINDS) do
    local name = kind[1]
    local count = kind[2]
    local extra = kind[3]
    local words = runs.words("wire", { "trainer.max_steps=2", "data.val_files=None",
      "trainer.save_freq=-1" })
    words[1] = "tests/support/wire_ranks.lua"
    for _, word in ipairs(extra) do words[#words + 1] = word end
    local text, status = runs.run(count, words, { SEGZERO_TRANSPORT = "tcp" })
    check.equal(status, 0, name .. ": " .. text:sub(-600))
    local formula, sent, all = text:match "formula (%d+) sent (%d+) together (%d+)"
    check.ok(tonumber(formula) and tonumber(formula) > 0, name .. ": " .. text:sub(-400))
    check.equal(sent, formula, name)
    -- Texts, numbers and metrics: a few kB for an answer.
    local values = tonumber(all) - tonumber(sent)
    check.ok(values > 0 and values < 8 * 8192, ("%s: %d bytes of values"):format(name, values))
  end
end)

-- ---- clusters ----
-- The released models' sizes: hidden, layers, heads, key-value heads, MLP, vocabulary, MLP of the
-- vision tower.
local MODELS = {
  ["7b"] = { 3584, 28, 28, 4, 18944, 152064, 3420 },
  ["32b"] = { 5120, 64, 40, 8, 27648, 152064, 3456 },
  ["72b"] = { 8192, 80, 64, 8, 29568, 152064, 3456 },
}
local TINY = host.root .. "/models/tiny/qwen2.5-vl"

-- A folder with this model's config and the tiny model's tokenizer; no weights.
local function folder_of(name)
  local size = MODELS[name]
  local folder = place .. "/" .. name
  files.make_dir(folder)
  local config = files.read_json_object(TINY .. "/config.json")
  config.hidden_size = size[1]
  config.num_hidden_layers = size[2]
  config.num_attention_heads = size[3]
  config.num_key_value_heads = size[4]
  config.intermediate_size = size[5]
  config.vocab_size = size[6]
  config.tie_word_embeddings = false
  config.segzero_frame = nil
  config.rope_theta = 1e6
  config.max_position_embeddings = 128000
  config.rope_scaling = { type = "mrope", mrope_section = { 16, 24, 24 } }
  local vision = config.vision_config
  vision.hidden_size = 1280
  vision.intermediate_size = size[7]
  vision.num_heads = 16
  vision.depth = 32
  vision.out_hidden_size = size[1]
  vision.fullatt_block_indexes = { 7, 15, 23, 31 }
  files.write(folder .. "/config.json", cjson.encode(config))
  for _, file in ipairs { "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
    "chat_template.json", "generation_config.json" } do
    files.write(folder .. "/" .. file, files.read(TINY .. "/" .. file))
  end
  return folder
end

local function plan(name, words)
  local argv = { host.executable, "--threads", "1", "plan", "recipes/refcocog_grpo.lua",
    "worker.actor.model.model_path=" .. folder_of(name), "worker.actor.model.dtype=bf16",
    "data.train_files=refshapes", "data.refshapes_size=840", "answer_tokens=200" }
  for _, word in ipairs(words) do argv[#argv + 1] = word end
  return process.run(argv, { timeout = 120 })
end

local function gib(text, row)
  return tonumber(text:match("\n  " .. row .. " +([%d.]+) GiB"))
end

check.case("a rank of a cluster: its part of the weights, and what it sends", function()
  local text, status = plan("7b", { "--ranks", "8", T .. 4, "device_gib=46", "gb_per_second=10" })
  check.equal(status, 0, text)
  -- 7.616e9 weights outside the tower and norms a quarter each, 0.676e9 of the tower whole.
  check.near(gib(text, "weights"), (7.616e9 / 4 + 0.676e9) * 2 / 2 ^ 30, 0.02, "weights")
  check.near(gib(text, "masters"), gib(text, "weights"), 0.02, "f32 copies of two replicas")
  check.equal(gib(text, "the GPU of a rank"), 46, "the GPU")
  expect(text, "8 ranks: 2 replicas of 4 shards; what a rank sends in a step")
  expect(text, "at  10.00 GB/s and 20 us +[%d.]+ s\n")
  local _, rates = text:gsub("\n  at ", "")
  check.equal(rates, 1, "the given rate alone")
  expect(text, "the run fits: [%d.]+ GiB of 46.00 GiB")

  -- The parts that are sent make the sum, and the seconds follow from it.
  local sum = 0
  for _, row in ipairs { "sampling", "reference", "update", "gradients of repeated parts",
    "gradients, to their owners", "weights, back to all" } do
    local bytes = text:match("\n  " .. row .. " +([%d.]+) GB")
    check.ok(bytes, row .. ": " .. text)
    sum = sum + (tonumber(bytes) or 0)
  end
  local all, calls = text:match "\n  together +([%d.]+) GB +(%d+) collectives"
  check.near(tonumber(all), sum, 0.05, "together")
  check.near(tonumber(text:match "20 us +([%d.]+) s"), all / 10 + calls * 20e-6, 0.1, "seconds")
end)

check.case("what does not fit, and what cannot be split", function()
  local text, status = plan("7b", { "--ranks=4", T .. 4, "device_gib=24" })
  check.equal(status, 1, text)
  expect(text, "4 ranks: 1 replica of 4 shards")
  expect(text, "the run does not fit: [%d.]+ GiB of 24.00 GiB\nit fits with ")

  local function refused(name, words, pattern)
    local why, code = plan(name, words)
    check.ok(code ~= 0, why)
    local _, lines = why:gsub("\n", "")
    check.ok(lines <= 2, "one line after the data's: " .. why)
    expect(why, pattern)
  end
  refused("7b", { "--ranks", "8", T .. 8 },
    "num_attention_heads 28 cannot be split over 8 shards %(1, 2 or 4 would do%)")
  refused("32b", { "--ranks", "16", T .. 16 },
    "num_attention_heads 40 cannot be split over 16 shards %(1, 2, 4 or 8 would do%)")
  refused("7b", { "--ranks", "6", T .. 4 },
    "tensor_parallel_size=4 does not divide 6 ranks: 1, 2, 3, 6 would do")
  refused("72b", { "--ranks", "64", T .. 1 },
    "data.rollout_batch_size=16, and there are 64 replicas: each needs a prompt")
  refused("7b", { "--ranks", "many" }, "%-%-ranks expects a whole number from 1, got 'many'")
  refused("7b", { "data.max_response_length=150" },
    "answer_tokens=200 is more than data.max_response_length=150, where answers end")
  refused("7b", { "gb_per_second=25" }, "gb_per_second is about several ranks, one sends nothing")
  refused("7b", { "device_gib=0" }, "device_gib expects a number above 0, got '0'")
end)

mini.remove()
check.finish()
