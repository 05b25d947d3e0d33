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
  { name = "int8_reference", splits = SOME, noise = { kl = 0.01, loss = 5e-5, grad_norm = 5e-3,
    ["grad_norm/vision"] = 5e-3, ["grad_norm/language"] = 5e-3 },
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

-- The emulator is slow: one step of two prompts. Messages go from device to device, and then
-- through host memory between two ranks that share a device.
check.case("two shards on emulated devices", function()
  if not runs.device_available() then return end
  local kind = { "trainer.max_steps=1", "data.val_files=None", "data.rollout_batch_size=2",
    "worker.actor.global_batch_size=2", "data.max_response_length=4" }
  runs.train(1, "device_1_1", words_of(kind, 1))
  local shared = runs.device_env(1)
  shared.SEGZERO_SHARE_DEVICE = "1"
  for name, env in pairs { linked = runs.device_env(2), shared = shared } do
    local words = { "--device", "cuda", unpack(runs.words(name, words_of(kind, 2))) }
    local text, status = runs.run(2, words, env)
    check.equal(status, 0, name .. ": " .. text:sub(-600))
    runs.expect_same_run(name, "device_1_1")
  end
end)

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
  local what = "new owners read rows again: %d and %d, %d and %d"
  check.ok(two[0] + two[1] > equal[0] + equal[1], what:format(two[0], two[1], equal[0], equal[1]))
  check.equal({ four[2], four[3] }, { two[1], two[1] }, "the same with shards")
end)

check.case("answers that a reward fails on are counted over all ranks", function()
  files.write(place .. "/partial.lua", [[
    return function(text)
      if #text % 2 == 0 then error "an even answer" end
      return #text % 7
    end]])
  local kind = { "trainer.max_steps=1", "data.val_files=None", "worker.reward.on_error=zero",
    "worker.reward.compute_score=" .. place .. "/partial.lua" }
  local counts = {}
  for i, split in ipairs { { 1, 1 }, { 2, 1 }, { 2, 2 }, { 4, 2 } } do
    local name = ("errors_%d_%d"):format(unpack(split))
    runs.train(split[1], name, words_of(kind, split[2]))
    counts[i] = runs.records(name, "metrics")[1].reward_errors
  end
  check.ok(counts[1] > 0 and counts[1] < 8, "some answers fail: " .. counts[1])
  check.equal({ counts[2], counts[3], counts[4] }, { counts[1], counts[1], counts[1] }, "counts")
end)

-- ---- what all shards have ----
-- A reward that differs from rank to rank, as a random one would. After each step the ranks compare
-- the weights of which they have copies: whole ones, and slices by their first element.
local ALIKE = [[
  local checksum = require "segzero.core.checksum"
  local tensor = require "segzero.core.tensor"
  local rank = tonumber(os.getenv "OMPI_COMM_WORLD_RANK" or "0")
  require("recipes.refcocog_grpo").run(arg, {
    reward = function(text) return #text % 7 + rank * 100 end,
    on_step = function(t, stats)
      local own = {}
      local compared = 0
      for _, one in ipairs(t.parameters) do
        local first = one.slice and one.slice.first or -1
        local bytes = one.tensor:numel() * tensor.WIDTH[one.tensor:dtype()]
        own[("%s %d"):format(one.name, first)] = checksum.bytes(tensor.data(one.tensor), bytes)
      end
      for _, other in ipairs(t.parallel.world:gather(own)) do
        for name, sum in pairs(other) do
          if own[name] then
            assert(own[name] == sum, name .. " differs")
            compared = compared + 1
          end
        end
      end
      if rank == 0 then print(("step %d: %d compared, reward %g"):format(stats.step, compared,
        stats.reward_max - stats.reward_max % 100)) end
    end,
  })]]

check.case("copies have the same bits on all shards, though the reward differs", function()
  files.write(place .. "/alike.lua", ALIKE)
  local kinds = { {}, { "worker.actor.model.dtype=bf16", "worker.actor.optim.state_dtype=int8",
    "worker.actor.optim.master_weights=false" }, { "worker.actor.model.lora.rank=4" } }
  for i, kind in ipairs(kinds) do
    for _, split in ipairs { { 4, 4 }, { 4, 2 } } do
      local name = ("alike_%d_%d_%d"):format(i, unpack(split))
      local words = runs.words(name, words_of({ "data.val_files=None", unpack(kind) }, split[2]))
      words[1] = place .. "/alike.lua"
      local text, status = runs.run(split[1], words)
      check.equal(status, 0, name .. ": " .. text:sub(-600))
      -- The first shards of two replicas are ranks 0 and 2, and that of one is rank 0.
      local most = split[2] == 2 and 200 or 0
      local compared, reward = text:match "step 2: (%d+) compared, reward (%d+)"
      check.equal(tonumber(reward), most, name .. ": whose reward counts")
      check.ok(tonumber(compared) > 50, name .. ": " .. compared .. " compared")
    end
  end
end)

-- ---- going on ----
local function weights(name)
  return files.read(("%s/%s/global_step_2/model.safetensors"):format(place, name))
end

local function save_each_step(split, name, more)
  local kind = { "trainer.save_freq=1", "data.val_files=None" }
  kind[#kind + 1] = more
  runs.train(split[1], name, words_of(kind, split[2]))
end

check.case("saved on any split, resumed on the next; the same split gives the same bits", function()
  local splits = { { 1, 1 }, unpack(ALL) }
  for i, split in ipairs(splits) do
    save_each_step(split, ("saved_%d_%d"):format(unpack(split)))
    if i > 1 then runs.expect_same_run(("saved_%d_%d"):format(unpack(split)), "saved_1_1") end
  end
  local want = runs.records("saved_1_1", "metrics")[2]
  for i, split in ipairs(splits) do
    local source = ("saved_%d_%d"):format(unpack(split))
    for _, other in ipairs { split, splits[i % #splits + 1] } do
      local name = ("%s_to_%d_%d"):format(source, unpack(other))
      save_each_step(other, name, ("trainer.load_checkpoint_path=%s/%s/global_step_1"):format(place,
        source))
      if other == split then
        check.ok(#weights(name) > 1000 and weights(name) == weights(source), "bits of " .. name)
      end
      local got = runs.records(name, "metrics")
      check.near({ got[#got].loss, got[#got].grad_norm }, { want.loss, want.grad_norm }, 1e-4 * 5,
        "step 2 of " .. name)
    end
  end
end)

check.case("one rank does not stop for a Seg-Zero file's shards", function()
  local text = runs.train(1, "alone", words_of({ "trainer.max_steps=1" }, 2))
  local _, notes = text:gsub("note: worker.rollout.tensor_parallel_size=2 has no effect on one "
    .. "rank; segzero %-%-ranks 2 divides the model\n", "")
  check.equal(notes, 1, text:sub(-300))
  local wrong, status = runs.run(3, runs.words("wrong", words_of({}, 2)))
  check.equal(status, 1, "the status of three ranks")
  local _, lines = wrong:gsub("tensor_parallel_size is 2, which does not divide the 3 ranks: 1 or "
    .. "3 would do, or %-%-ranks 4", "")
  check.equal(lines, 1, wrong:sub(-300))
end)

mini.remove()
check.finish()
