-- test_zero.lua - several ranks, of which each keeps a part of the optimizer's state: the same bits
-- as with whole copies, the same checkpoints, and what happens when a collective or a write fails.
--
-- Needs Open MPI. Left out: several machines, GPUs. Collectives and training on ranks: test_ranks.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local checkpoint = require "segzero.train.run.checkpoint"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local host = require "segzero.host"
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

local function has_mpirun()
  local _, status = process.run({ "mpirun", "--version" }, { timeout = 20 })
  return status == 0 and files.exists(host.library:gsub("libsegzero%.so$", "libsegzero_mpi.so"))
end

if not has_mpirun() then
  check.skip "Open MPI (openmpi-bin, libopenmpi-dev) when make ran"
  check.finish()
  return
end

local TIMEOUT = 120
local place = mini.folder()
local model = mini.write(place .. "/model")
files.write(place .. "/reward.lua", mini.reward_source)

local function command(count, words)
  local all = { host.executable, "--ranks", tostring(count), "--threads", "1" }
  for _, word in ipairs(words) do all[#all + 1] = word end
  return all
end

local function ranks(count, words, env)
  return process.run(command(count, words), { timeout = TIMEOUT, env = env })
end

for _, count in ipairs { 2, 3, 5 } do
  check.case(("an update in parts on %d ranks"):format(count), function()
    local text, status = ranks(count, { "tests/support/zero_ranks.lua" })
    check.equal(status, 0, text:sub(-400))
    local ok = 0
    for compared in text:gmatch "ok (%d+)" do
      ok = ok + 1
      check.ok(tonumber(compared) > 1e6, "elements were compared")
    end
    check.equal(ok, count, "ranks that finished")
  end)
end

-- ---- training ----
local function words_of(name, extra)
  local words = { "recipes/refcocog_grpo.lua", "worker.actor.model.model_path=" .. model }
  for _, a in ipairs(mini.arguments) do words[#words + 1] = a end
  for _, a in ipairs { "worker.reward.sam2_path=none", "trainer.max_steps=2",
    "data.rollout_batch_size=4", "worker.actor.global_batch_size=4", "worker.rollout.n=2",
    "data.val_files=None", "trainer.save_freq=1", "trainer.collective_timeout=20",
    "worker.reward.compute_score=" .. place .. "/reward.lua",
    "trainer.save_checkpoint_path=" .. place .. "/" .. name } do words[#words + 1] = a end
  for _, a in ipairs(extra or {}) do words[#words + 1] = a end
  return words
end

local function train(count, name, extra)
  local text, status = ranks(count, words_of(name, extra))
  check.equal(status, 0, name .. ": " .. text:sub(-600))
end

local function content(name, file)
  return files.read(("%s/%s/%s"):format(place, name, file))
end

-- The manifest without the run's id.
local function checksums(name)
  return (content(name, "manifest.json"):gsub('"run":"[^"]*"', ""))
end

local KINDS = {
  { name = "f32" },
  { name = "int8", "worker.actor.optim.state_dtype=int8", "worker.actor.model.dtype=bf16",
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
    for _, saved in ipairs { 1, 2, 3 } do
      local name = ("%s_on_%d"):format(kind.name, saved)
      train(saved, name, extra())
      first[saved] = optimizer(name)
      check.equal(#first[saved], #first[1], "bytes of the optimizer's file")
    end
    for saved = 1, 3 do
      for resumed = 1, 3 do
        local name = ("%s_%d_to_%d"):format(kind.name, saved, resumed)
        train(resumed, name, extra(("trainer.load_checkpoint_path=%s/%s_on_%d/global_step_1"):format(
          place, kind.name, saved)))
        local state = optimizer(name)
        if resumed == saved then check.ok(state == first[saved], "bits of " .. name) end
        check.equal(#state, #first[1], "bytes of " .. name)
      end
    end
  end)
end

-- ---- failures ----
-- A reward that is called first in the second step makes a collective of one rank fail there.
local FAILING = [[
  local ranks = require "segzero.core.ranks"
  local armed = false
  return function(text)
    if not armed and os.getenv "OMPI_COMM_WORLD_RANK" == os.getenv "FAIL_RANK" then
      ranks.fail_after(tonumber(os.getenv "FAIL_AT"))
      armed = true
    end
    return #text
  end]]
local AT_ONCE = 4                -- runs at a time
local MOST = 200                 -- collectives of a step and a checkpoint

-- The run resumes at step 1, makes step 2, saves it and removes step 1.
local function start_failing(n, rank)
  local name = ("fail_%d_%d"):format(rank, n)
  local folder = place .. "/" .. name
  mini.copy(place .. "/fail_base", folder)
  local words = words_of(name, { "trainer.load_checkpoint_path=" .. folder,
    "trainer.save_limit=1", "worker.reward.compute_score=" .. place .. "/failing.lua" })
  local env = { FAIL_AT = tostring(n), FAIL_RANK = tostring(rank) }
  local started = process.now()
  local output = folder .. ".txt"
  local child = process.start(command(2, words), { env = env, output = output })
  return { child = child, started = started, folder = folder, output = output, n = n, rank = rank }
end

-- Returns whether no collective failed.
local function check_failed(run)
  local status = process.wait(run.child)
  local text = files.read(run.output)
  local what = ("collective %d of rank %d: "):format(run.n, run.rank)
  check.ok(process.now() - run.started < 60, what .. "the time")

  -- There is a complete checkpoint, and every complete one is whole.
  local list = checkpoint.list(run.folder)
  check.ok(#list > 0, what .. "no checkpoint is left")
  for _, one in ipairs(list) do
    local ok, reason = pcall(manifest.check, one.path)
    check.ok(ok and reason, what .. tostring(reason))
  end
  if status == 0 then
    check.equal(list[#list].step, 2, what .. "the last step")
    return true
  end
  local _, lines = text:gsub("segzero: rank %d %(host [^)]+%): a test made this collective fail", "")
  check.equal(lines, 1, what .. "lines: " .. text:sub(-600))
  local _, all = text:gsub("segzero: ", "")
  check.equal(all, 1, what .. "messages: " .. text:sub(-600))
  return false
end

check.case("every collective of a step and a checkpoint fails in turn", function()
  files.write(place .. "/failing.lua", FAILING)
  train(2, "fail_base", { "trainer.max_steps=1" })
  for rank = 0, 1 do
    local failed = 0
    local done = false
    for first = 0, MOST, AT_ONCE do
      local runs = {}
      for i = 1, AT_ONCE do runs[i] = start_failing(first + i - 1, rank) end
      for _, run in ipairs(runs) do
        local succeeded = check_failed(run)
        done = done or succeeded
        if not succeeded then failed = failed + 1 end
      end
      if done then break end
    end
    check.ok(done, "a run in which nothing failed")
    check.ok(failed > 20, ("%d collectives of rank %d failed"):format(failed, rank))
    print(("rank %d: %d collectives failed"):format(rank, failed))
  end
end)

mini.remove()
check.finish()
