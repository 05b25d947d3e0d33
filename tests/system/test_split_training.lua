-- test_split_training.lua - training on D replicas of T shards: what one process gives, for every
-- (D, T) of two and four ranks, with more shards than key-value heads.
--
-- Metrics, the order of the answers and the sampled tokens of step 1 are those of one process
-- (rank_runs.lua says how near). Groups of unequal length move between replicas. Needs Open MPI.
-- Left out: collectives, one process's shards (test_ranks.lua), failures,
-- checkpoints, several machines.

local check = require "tests.support.check"
local files = require "segzero.core.files"
local mini = require "tests.support.miniature"
local runs = require "tests.support.rank_runs"

if not runs.available() then
  check.finish()
  return
end

-- Two key-value heads: four shards have two copies of each.
local place = runs.begin { config = { num_attention_heads = 4, num_key_value_heads = 2,
  rope_scaling = { type = "mrope", mrope_section = { 1, 1, 2 } } } }

-- {ranks, shards}
local ALL = { { 2, 1 }, { 2, 2 }, { 4, 2 }, { 4, 4 }, { 4, 1 } }
local SOME = { { 2, 2 }, { 4, 4 } }

local function words_of(kind, shards)
  local words = { "trainer.max_steps=2", "trainer.save_freq=-1",
    "worker.rollout.tensor_parallel_size=" .. shards }
  for _, word in ipairs(kind) do words[#words + 1] = word end
  return words
end

local KINDS = {
  { name = "plain", splits = ALL, "trainer.test_freq=1" },
  { name = "lora", splits = SOME, "worker.actor.model.lora.rank=4" },
  { name = "frozen_tower", splits = SOME, "worker.actor.model.freeze_vision_tower=true" },
  -- A reference in 8 bits computes in bf16, and rounds its inputs in groups of columns, which are
  -- others in a shard. The policy has the same weights, so the KL term is that rounding alone, and
  -- is not the same to half of it; the loss and the gradient have 0.005 of it.
  { name = "int8_reference", splits = SOME, noise = { kl = 0.01, loss = 5e-5, grad_norm = 5e-3 },
    "worker.ref.model.dtype=int8", "trainer.max_steps=1", "data.val_files=None" },
  { name = "updates", splits = { { 2, 2 }, { 4, 2 } }, "worker.actor.global_batch_size=2" },
  -- A group in chunks, whose prompt and answers are streams of their own, and recomputation.
  { name = "chunks", splits = SOME, "worker.actor.max_tokens_per_micro_batch=100",
    "worker.actor.model.enable_gradient_checkpointing=true" },
  -- Every rank has all of the optimizer's state of its shard; a KL term in the reward.
  { name = "whole_state", splits = { { 4, 2 } }, "worker.actor.optim.shard_state=false",
    "worker.actor.use_kl_loss=false", "algorithm.kl_coef=0.5",
    "algorithm.adv_estimator=reinforce_plus_plus" },
  { name = "filtered", splits = { { 4, 2 } }, "algorithm.online_filtering=true",
    "algorithm.filter_low=4", "algorithm.filter_high=100", "data.mini_rollout_batch_size=3",
    "trainer.max_steps=1" },
}

for _, kind in ipairs(KINDS) do
  check.case("D replicas of T shards: " .. kind.name, function()
    local like = kind.name .. "_1_1"
    runs.train(1, like, words_of(kind, 1))
    for _, split in ipairs(kind.splits) do
      local name = ("%s_%d_%d"):format(kind.name, split[1], split[2])
      runs.train(split[1], name, words_of(kind, split[2]))
      runs.expect_same_run(name, like, kind.noise)
    end
  end)
end

-- ---- moving groups ----
-- Prompts of very different lengths, and a set that counts how often each rank reads a row. A rank
-- writes the count to a file of its own.
local UNEQUAL = [[
  local data = require "segzero.data"
  local files = require "segzero.core.files"
  local rows = data.open("refshapes", { split = "train", size = 84, seed = 42, rows = 7 })
  local reads = 0
  local set = setmetatable({}, { __index = rows })
  function set.count() return rows:count() end
  function set.row(_, i) reads = reads + 1 return rows:row(i) end
  set.image = false
  local folder = arg[1]
  local words = {}
  for i = 2, #arg do words[i - 1] = arg[i] end
  require("recipes.refcocog_grpo").run(words, {
    train = set,
    prompt = function(problem)
      local times = #problem % 5 * 12
      if os.getenv "EQUAL" then times = 8 end
      return problem .. (" and so on"):rep(times)
    end,
    on_step = function() files.write(folder .. "/reads_" ..
      (os.getenv "OMPI_COMM_WORLD_RANK" or "0"), tostring(reads)) end,
  })]]

-- How often each rank has read a row in a run.
local function train_unequal(name, split, env)
  local folder = ("%s/%s_reads"):format(place, name)
  files.make_dir(folder)
  local words = runs.words(name, words_of({ "data.val_files=None" }, split[2]))
  words[1] = place .. "/unequal.lua"
  table.insert(words, 2, folder)
  local text, status = runs.run(split[1], words, env)
  check.equal(status, 0, name .. ": " .. text:sub(-600))
  local reads = {}
  for rank = 0, split[1] - 1 do
    reads[rank] = tonumber(files.read(("%s/reads_%d"):format(folder, rank)))
  end
  return reads
end

check.case("groups move until replicas have about as many tokens, and nothing changes", function()
  files.write(place .. "/unequal.lua", UNEQUAL)
  local reads = {}
  for _, split in ipairs { { 1, 1 }, { 2, 1 }, { 4, 2 } } do
    local name = ("unequal_%d_%d"):format(split[1], split[2])
    reads[name] = train_unequal(name, split)
    if split[1] > 1 then runs.expect_same_run(name, "unequal_1_1") end
  end
  local equal = train_unequal("equal_2_1", { 2, 1 }, { EQUAL = "1" })
  local two = reads.unequal_2_1
  local four = reads.unequal_4_2
  check.ok(two[0] + two[1] > equal[0] + equal[1], ("new owners read rows again: %d and %d, %d and %d")
    :format(two[0], two[1], equal[0], equal[1]))
  check.equal({ four[2], four[3] }, { two[1], two[1] }, "the same with shards")
end)

check.case("the same ranks give the same bits", function()
  for _, name in ipairs { "bits_a", "bits_b" } do
    runs.train(4, name, words_of({ "trainer.save_freq=2" }, 2))
  end
  local function weights(name)
    return files.read(("%s/%s/global_step_2/model.safetensors"):format(place, name))
  end
  check.ok(#weights "bits_a" > 1000 and weights "bits_a" == weights "bits_b", "the weights")
end)

check.case("one rank does not stop for a Seg-Zero file's shards", function()
  local text = runs.train(1, "alone", words_of({ "trainer.max_steps=1" }, 2))
  local _, notes = text:gsub("note: worker.rollout.tensor_parallel_size=2 has no effect on one rank; "
    .. "segzero %-%-ranks 2 divides the model\n", "")
  check.equal(notes, 1, text:sub(-300))
  local wrong, status = runs.run(3, runs.words("wrong", words_of({}, 2)))
  check.equal(status, 1, "the status of three ranks")
  local _, lines = wrong:gsub("tensor_parallel_size is 2, which does not divide the 3 ranks: 1 or 3 "
    .. "would do, or %-%-ranks 4", "")
  check.equal(lines, 1, wrong:sub(-300))
end)

mini.remove()
check.finish()
