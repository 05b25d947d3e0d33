-- test_train.lua - whole training runs of a miniature: resuming is bit for bit, runs repeat,
-- checkpoints count only when they are complete, the sampler's log-probabilities are the trainer's.

local cjson = require "cjson"
local ffi = require "ffi"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local checkpoint = require "segzero.train.run.checkpoint"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local vision_cache = require "segzero.inference.vision_cache"

local place = mini.folder()
local dir = mini.write(place .. "/model")

local bytes = mini.bytes
local steps = mini.steps

-- Everything that training changes, as {name -> bytes}.
local function state_of(t)
  local out = {}
  for name, x in pairs(t.policy:parameters()) do out[name] = bytes(x) end
  for name, x in pairs(t.optimizer:state()) do out[name] = bytes(x) end
  return out
end

local function compare(a, b, name)
  local differ = {}
  local count = 0
  for k, v in pairs(a) do
    count = count + 1
    if v ~= b[k] then differ[#differ + 1] = k end
  end
  for k in pairs(b) do if a[k] == nil then differ[#differ + 1] = k end end
  table.sort(differ)
  check.equal(table.concat(differ, " ", 1, math.min(#differ, 3)), "", name)
  check.ok(count > 50, name .. ": something is compared")
end

-- ---- the same seed gives the same run; sampler and trainer agree; 2 + 2 steps are 4 (new
--     objects) ----
-- "compact" is all that saves memory: 8-bit moments, no masters, bf16 gradients. f32 with a
-- warm-up, dropped rows and a second epoch (7 rows, batches of 2); bf16 with masters, frozen
-- vision, two micro-batches and two updates a step.
local variants = {
  { name = "f32", args = { "worker.actor.optim.lr_warmup_steps_ratio=0.5" } },
  { name = "bf16", dtype = "bf16",
    args = { "worker.actor.model.dtype=bf16", "worker.actor.freeze_vision_tower=true",
    "worker.actor.global_batch_size=1", "worker.actor.max_tokens_per_micro_batch=100",
      "worker.actor.model.enable_gradient_checkpointing=false" } },
  { name = "compact", dtype = "bf16",
    args = { "worker.actor.model.dtype=bf16", "worker.actor.optim.state_dtype=int8",
    "worker.actor.optim.master_weights=false", "worker.actor.grad_dtype=bf16",
      "worker.actor.max_tokens_per_micro_batch=100" } },
  { name = "bf16 moments", args = { "worker.actor.optim.state_dtype=bf16" } },
}
for _, v in ipairs(variants) do
  local cfg = mini.settings(v.args)
  local function new(folder)
    if folder then files.make_dir(folder) end
    return mini.trainer(cfg, { model = dir, dtype = v.dtype, reference = true, folder = folder })
  end
  local a, b = new(), new()
  local of_a, of_b = steps(a, 4), steps(b, 4)
  check.equal(of_a, of_b, v.name .. ": two runs report the same")
  compare(state_of(a), state_of(b), v.name .. ": two runs are the same")

  local folder = place .. "/resume-" .. v.name
  local c = new(folder)
  steps(c, 2)
  local path = c:save()
  local d = new(folder)
  d:resume(path)
  check.equal(d.global_step, 2, "resumed at step 2")
  local of_d = steps(d, 2)
  check.equal(of_d, { of_a[3], of_a[4] },
    v.name .. ": a resumed run reports what an unbroken one does")
  compare(state_of(a), state_of(d), v.name .. ": 2 + 2 steps are 4")
  local order = {}
  for _, t in ipairs { a, d } do
    order[#order + 1] = {}
    for i, row in ipairs(t.sampler:rows(t.train, 5)) do order[#order][i] = row.id end
  end
  check.equal(order[1], order[2], "the rows go on in the same order")
end

-- ---- a frozen tower ----
-- Its results are made once a step. Without what is kept they are made again for the reference and
-- the update, by the same products over another number of rows.
do
  local cfg, images = mini.settings { "worker.actor.freeze_vision_tower=true",
    "worker.actor.max_tokens_per_micro_batch=100" }, 0
  local images_of = packing.images
  local lend = vision_cache.adopt
  function packing.images(inputs)
    images = images + #inputs
    return images_of(inputs)
  end
  local function run(change)
    images = 0
    local t = mini.trainer(cfg, { model = dir, reference = true })
    if change then change(t) end
    local s = t:step()
    return s, images, t.reference
  end
  local once, computed, reference = run()
  check.equal(computed, 2, "two images go through a frozen tower once")
  check.ok(vision_cache.adopted(reference), "the reference has the policy's tower")
  local again, twice = run(function(t) vision_cache.forget(t.reference) end)
  check.equal(twice, 4, "a reference of its own computes them, too")
  local _, trained = run(function(t)
    local w = t.reference:parameters()["visual.blocks.0.norm1.weight"]
    tensor.data(w)[0] = tensor.data(w)[0] * 1.5
    check.ok(not vision_cache.adopt(t.policy, t.reference), "a number of another tower's is seen")
  end)
  check.equal(trained, 4, "another tower computes them, too")
  function vision_cache.adopt() return false end
  local hold = vision_cache.put
  function vision_cache.put() end
  local never, all = run()
  check.equal(all, 6, "nothing kept")
  packing.images = images_of
  vision_cache.adopt = lend
  vision_cache.put = hold
  for _, key in ipairs { "loss", "kl", "grad_norm", "reward" } do
    check.near(once[key], never[key], 1e-5 * math.max(1, math.abs(never[key])),
      "kept or not: " .. key)
    check.near(again[key], never[key], 1e-5 * math.max(1, math.abs(never[key])),
      "kept for the policy alone: " .. key)
  end
end

-- ---- through the program: new processes, files byte for byte ----
files.write(place .. "/reward.lua", mini.reward_source)
local function recipe(args)
  args[#args + 1] = "worker.reward.compute_score=" .. place .. "/reward.lua"
  return mini.recipe(dir, args)
end

local whole, parts = place .. "/whole", place .. "/parts"
local text, status = recipe { "trainer.max_steps=4", "trainer.save_checkpoint_path=" .. whole }
check.equal(status, 0, "four steps run: " .. text:sub(-300))
recipe { "trainer.max_steps=2", "trainer.save_checkpoint_path=" .. parts }
check.ok(files.exists(parts .. "/global_step_2/DONE"), "a checkpoint after two steps")
-- What a run that was killed while saving leaves behind, and an older step without DONE.
os.execute("cp -r " .. parts .. "/global_step_2 " .. parts .. "/global_step_4.tmp")
os.execute("cp -r " .. parts .. "/global_step_2 " .. parts .. "/global_step_3")
os.remove(parts .. "/global_step_3/DONE")
check.equal(checkpoint.latest(parts), parts .. "/global_step_2", "the newest complete checkpoint")
text, status = recipe { "trainer.max_steps=4", "trainer.load_checkpoint_path=" .. parts }
check.equal(status, 0, "it goes on: " .. text:sub(-300))
check.ok(text:find("resumed at step 2", 1, true), "and says from where")
check.equal(checkpoint.latest(parts), parts .. "/global_step_4", "the left-over was replaced")
check.ok(not files.exists(parts .. "/global_step_4.tmp/config.json"), "nothing temporary stays")
for _, file in ipairs { "model.safetensors", "optimizer.safetensors", "config.json",
  "trainer_state.json" } do
  local a, b = files.read(whole .. "/global_step_4/" .. file),
    files.read(parts .. "/global_step_4/" .. file)
  check.ok(a ~= nil and a == b, "stopped and resumed, " .. file .. " is the same bytes")
end
local function records(folder, name)
  local out = {}
  for line in io.lines(folder .. "/" .. name) do
    local r = cjson.decode(line)
    r.seconds = nil
    r.machine = nil
    r.time = nil
    out[#out + 1] = r
  end
  return out
end
check.equal(records(parts, "rollouts.jsonl"), records(whole, "rollouts.jsonl"),
  "rollouts.jsonl goes on")
check.ok(files.read(parts .. "/rollouts.jsonl") == files.read(whole .. "/rollouts.jsonl"),
  "and is the same bytes")
local m = records(parts, "metrics.jsonl")
local numbers = {}
local seen = {}
for _, r in ipairs(m) do
  if r.reward then numbers[#numbers + 1], seen[#seen + 1] = r.step, r end
end
check.equal(numbers, { 1, 2, 3, 4 }, "metrics.jsonl is appended to")
for i, r in ipairs(records(whole, "metrics.jsonl")) do
  if r.reward then check.equal(seen[r.step] and seen[r.step].loss, r.loss, "metrics line " .. i) end
end
check.equal(cjson.decode(files.read(whole .. "/config.json")).worker.rollout.n, 3,
  "config.json of the run")

-- ---- a checkpoint folder is a model folder ----
for _, file in ipairs { "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
  "generation_config.json", "chat_template.json" } do
  check.ok(files.exists(whole .. "/global_step_4/" .. file), "it has " .. file)
end
check.equal(cjson.decode(files.read(whole .. "/global_step_4/chat_template.json")).chat_template,
  require("segzero.tools.bpe_train").chat_template,
  "the chat template, which transformers' processor reads from there")
local again = sz.qwen_vl(whole .. "/global_step_4")
check.ok(again:tokenizer():encode "a"[1] ~= nil, "with its tokenizer")
local answer = again:generate(mini.input(again, 1), { temperature = 0, max_new_tokens = 4 })[1]
check.ok(#answer.ids > 0, "it answers")

ffi.cdef [[
int getrlimit(int resource, uint64_t limits[2]);
int setrlimit(int resource, const uint64_t limits[2]);
void *signal(int number, void *handler);
]]
local RLIMIT_FSIZE = 1
local SIGXFSZ = 25
ffi.C.signal(SIGXFSZ, ffi.cast("void *", 1))        -- ignored: then writing fails instead

-- ---- a checkpoint that cannot be written leaves nothing behind; the run can go on and write
--     the next ----
do
  local target = place .. "/unwritten"
  files.make_dir(target)
  local t = mini.trainer(mini.settings(), { model = dir, folder = target })
  -- As on a full disk: files may have 64 KiB, and the weights have more.
  local limit = ffi.new("uint64_t[2]")
  ffi.C.getrlimit(RLIMIT_FSIZE, limit)
  local before = limit[0]
  limit[0] = 65536
  ffi.C.setrlimit(RLIMIT_FSIZE, limit)
  local ok, why = pcall(t.save, t)
  limit[0] = before
  ffi.C.setrlimit(RLIMIT_FSIZE, limit)
  check.ok(not ok and why:find("global_step_0 is not written: .*safetensors: cannot write"),
    "what could not be written is named: " .. tostring(why))
  check.ok(not files.exists(target .. "/global_step_0.tmp/config.json"), "nothing temporary stays")
  check.equal(checkpoint.latest(target), nil, "and it does not count")
  t.folder = dir .. "/config.json"
  check.raises(function() t:save() end, "is not written: cannot make the folder", "no folder")
  t.folder = target
  local path = t:save()
  check.equal(checkpoint.latest(target), path, "and later it is")
  -- A run that ended between putting the old one aside and the new one in its place.
  os.rename(path, path .. ".old")
  check.equal(checkpoint.latest(target), path .. ".old", "the one put aside counts")
  os.execute("mkdir " .. path)
  check.equal(checkpoint.latest(target), path .. ".old", "also next to a folder without DONE")
  os.execute("rmdir " .. path)
  t.folder = dir .. "/config.json"
  check.raises(function() t:save() end, "is not written", "no folder")
  t.folder = target
  check.equal(checkpoint.latest(target), path .. ".old", "and stays")
  check.equal(t:save(), path, "saved again")
  check.equal(checkpoint.latest(target), path, "in its place")
  check.ok(not files.exists(path .. ".old/DONE"), "nothing put aside stays")
end

-- ---- refusals ----
local t = mini.trainer(mini.settings(), { model = dir })
check.raises(function() t:resume(parts .. "/global_step_3") end,
  "global_step_3 is not a complete checkpoint %(no file DONE%)", "no DONE")
text, status = recipe { "trainer.load_checkpoint_path=" .. parts .. "/global_step_3" }
check.ok(status ~= 0 and text:find("no file DONE", 1, true), "the program refuses it: " .. text)
text, status = recipe { "trainer.load_checkpoint_path=" .. place .. "/model" }
check.ok(status ~= 0 and text:find("is not a checkpoint and holds no complete one", 1, true),
  "a folder without one: " .. text)

local function damaged(name, change)
  local path = mini.copy(parts .. "/global_step_2", place .. "/" .. name)
  change(path)
  local before = state_of(t)
  local ok, message = pcall(t.resume, t, path)
  compare(before, state_of(t), name .. ": nothing was changed")
  return not ok and message or "no error"
end
local saved = sz.safetensors.load(parts .. "/global_step_2/model.safetensors")
check.ok(damaged("lacks", function(p)
  local less = {}
  for k, x in pairs(saved) do if k ~= "model.norm.weight" then less[k] = x end end
  sz.safetensors.save(p .. "/model.safetensors", less)
end):find("missing model.norm.weight", 1, true), "a missing tensor is named")
check.ok(damaged("shape", function(p)
  local other = {}
  for k, x in pairs(saved) do other[k] = x end
  other["model.norm.weight"] = tensor.zeros { 31 }
  sz.safetensors.save(p .. "/model.safetensors", other)
end):find("model.norm.weight has shape [31], expected [32]", 1, true), "a wrong shape is named")
check.ok(damaged("state",
  function(p) files.write(p .. "/trainer_state.json", "{}") end):find("no global_step", 1, true),
  "an empty state")

mini.remove()
check.finish()
