-- test_zero.lua - several ranks, of which each keeps a part of the optimizer's state: the same bits
-- as with whole copies, and the same checkpoints, which resume on any number of ranks.
--
-- Needs Open MPI. Left out: several machines, GPUs; failures (test_rank_faults.lua); collectives
-- and training in general (test_ranks.lua).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local runs = require "tests.support.rank_runs"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local manifest = require "segzero.runs.manifest"
local shards = require "segzero.train.shards"

-- ---- who has which part ----
local function loads_of(sizes, ranks)
  local loads = {}
  for r = 1, ranks do loads[r] = 0 end
  for i, bounds in ipairs(shards.divide(sizes, ranks)) do
    check.equal({ #bounds, bounds[1], bounds[#bounds] }, { ranks + 1, 0, sizes[i] }, "the ends")
    for r = 1, ranks do
      local begin, stop = bounds[r], bounds[r + 1]
      if begin > stop or (begin % 512 ~= 0 and begin ~= sizes[i]) then
        check.ok(false, ("rank %d of parameter %d: %d to %d"):format(r, i, begin, stop))
      end
      loads[r] = loads[r] + stop - begin
    end
  end
  return loads
end

check.case("the parts of Qwen2.5-VL-3B's layers are equal to 2000 elements", function()
  local sizes = { 151936 * 2048 }
  for _ = 1, 36 do
    for _, n in ipairs { 2048, 2048 * 2048, 2048, 256 * 2048, 256, 256 * 2048, 256, 2048 * 2048,
      2048, 11008 * 2048, 11008 * 2048, 2048 * 11008 } do sizes[#sizes + 1] = n end
  end
  for ranks = 1, 8 do
    local loads = loads_of(sizes, ranks)
    table.sort(loads)
    check.ok(loads[ranks] - loads[1] <= 2000, ("%d ranks: from %d to %d"):format(ranks, loads[1],
      loads[ranks]))
  end
end)

if not runs.available() then
  check.finish()
  return
end
local place = runs.begin()

local function update_in_parts(count, device, env)
  local text, status = runs.run(count, { "tests/support/zero_ranks.lua", mini.folder(), device },
    env)
  check.equal(status, 0, text:sub(-400))
  local ok = 0
  for compared in text:gmatch "ok (%d+)" do
    ok = ok + 1
    check.ok(tonumber(compared) > 5e5, "elements were compared")
  end
  check.equal(ok, count, "ranks that finished")
end

for _, count in ipairs { 2, 5 } do
  check.case(("an update in parts on %d ranks"):format(count), function()
    update_in_parts(count, "cpu")
  end)
end

check.case("an update in parts on a device", function()
  if not runs.device_available() then return end
  -- Through host memory: NCCL is for one rank a device (test_ranks_cuda.lua).
  local env = runs.device_env(1)
  env.SEGZERO_SHARE_DEVICE = "1"
  update_in_parts(2, "cuda", env)
end)

-- ---- training ----
local function train(count, name, settings)
  local list = { "trainer.max_steps=2", "data.val_files=None" }
  for _, word in ipairs(settings) do list[#list + 1] = word end
  runs.train(count, name, list)
end

-- Prints what rank 0 sent in step 2, and what the parts of gradients and weights are, which are
-- f32.
local COUNTING = [[
  local ranks = require "segzero.core.ranks"
  local before
  require("recipes.refcocog_grpo").run(arg, { on_step = function(t, stats)
    if stats.step == 2 then
      local sum = 0
      for i, p in ipairs(t.parameters) do
        local own = tonumber(t.optimizer.shards.count[i - 1])
        sum = sum + 4 * (p.tensor:numel() - own) + 4 * own * (t.parallel.size - 1)
      end
      print(("sent %d of %d"):format(ranks.bytes_sent() - before, sum))
    end
    before = ranks.bytes_sent()
  end })]]

check.case("a step sends its gradients and weights once, and little else", function()
  files.write(place .. "/counting.lua", COUNTING)
  for _, count in ipairs { 2, 3 } do
    local words = runs.words("counting_" .. count, { "trainer.max_steps=2", "data.val_files=None",
      "trainer.save_freq=-1" })
    words[1] = place .. "/counting.lua"
    local text, status = runs.run(count, words)
    check.equal(status, 0, text:sub(-600))
    local sent, parts = text:match "sent (%d+) of (%d+)"
    local rest = (tonumber(sent) or 0) - (tonumber(parts) or 0)
    -- Answers with their log-probabilities, statistics, and what ranks agree on.
    local most = 16384 * (count - 1)
    check.ok(rest > 0 and rest < most and tonumber(parts) > 5 * most,
      ("%s bytes sent, %s of gradients and weights"):format(tostring(sent), tostring(parts)))
    print(("%d ranks: %s bytes sent in a step, %s of gradients and weights"):format(count, sent,
      parts))
  end
end)

-- The checksums of all files that the run decides, without its id and settings.
local function checksums(name)
  local list = {}
  for _, file in ipairs(manifest.list(("%s/%s"):format(place, name))) do
    if file.name ~= "settings.json" then
      list[#list + 1] = file.name
      for _, part in ipairs(file.parts) do
        list[#list + 1] = ("%s %d %s"):format(part.tensor or "", part.bytes, part.xxh3)
      end
    end
  end
  return list
end

local function content(name, file)
  return files.read(("%s/%s/%s"):format(place, name, file))
end

-- resumed: {saved on, resumed on}.
local KINDS = {
  { name = "f32", resumed = { { 1, 1 }, { 1, 2 }, { 1, 3 }, { 2, 1 }, { 2, 2 }, { 2, 3 }, { 3, 1 },
    { 3, 2 }, { 3, 3 } } },
  { name = "int8", resumed = { { 2, 3 }, { 3, 1 }, { 3, 3 } },
    "worker.actor.optim.state_dtype=int8", "worker.actor.model.dtype=bf16",
    "worker.actor.optim.master_weights=false" },
}
for _, kind in ipairs(KINDS) do
  local function extra(...)
    local list = { unpack(kind) }
    for _, word in ipairs { ... } do list[#list + 1] = word end
    return list
  end

  -- The norm that clips is summed in another order, so it must not clip.
  check.case("parts and whole copies write the same files: " .. kind.name, function()
    local no_clip = "worker.actor.max_grad_norm=1e9"
    train(2, kind.name .. "_parts", extra(no_clip))
    train(2, kind.name .. "_whole", extra(no_clip, "worker.actor.optim.shard_state=false"))
    local a = kind.name .. "_parts/global_step_2"
    local b = kind.name .. "_whole/global_step_2"
    check.equal(folders.list(place .. "/" .. a), folders.list(place .. "/" .. b), "names")
    for _, file in ipairs { "optimizer.safetensors", "model.safetensors", "trainer_state.json" } do
      check.ok(content(a, file) == content(b, file), file)
    end
    check.equal(checksums(a), checksums(b), "the manifest")
    check.ok(manifest.check(place .. "/" .. a), "checksums")
    check.ok(#content(a, "optimizer.safetensors") > 1000, "the optimizer's state is there")
  end)

  check.case("saved on any ranks, resumed on any: " .. kind.name, function()
    local function optimizer(name)
      local path = ("%s/%s/global_step_2"):format(place, name)
      check.ok(manifest.check(path), "checksums of " .. name)
      return content(name, "global_step_2/optimizer.safetensors")
    end
    local first = {}
    for _, pair in ipairs(kind.resumed) do
      local saved, resumed = pair[1], pair[2]
      local source = ("%s_on_%d"):format(kind.name, saved)
      if not first[saved] then
        train(saved, source, extra())
        first[saved] = optimizer(source)
      end
      local name = ("%s_%d_to_%d"):format(kind.name, saved, resumed)
      train(resumed, name, extra(("trainer.load_checkpoint_path=%s/%s/global_step_1"):format(place,
        source), "worker.actor.optim.shard_state=true", "trainer.collective_timeout=100"))
      local state = optimizer(name)
      if resumed == saved then check.ok(state == first[saved], "bits of " .. name) end
      check.equal(#state, #first[saved], "bytes of " .. name)
    end
  end)
end

mini.remove()
check.finish()
