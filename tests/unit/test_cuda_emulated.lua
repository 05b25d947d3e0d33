-- test_cuda_emulated.lua - the CUDA backend without a GPU: its kernels, compiled for the processor (tests/cuda_emulator/emulate.h), run
-- everything here. The emulator's own test; the op table on the device against the plain kernels; the miniature model's
-- logits and gradients, sampling and GRPO steps on the device against the processor's; saving; messages.
--
-- Left out: what only a GPU can show (cuBLASLt, real races, speed): tests/gpu_check.sh.

local ffi = require "ffi"
local host = require "segzero.host"
local check = require "tests.support.check"

local build = host.library:gsub("/[^/]*$", "")
-- SEGZERO_CUDA_TEST names another library: on a machine with a GPU the same checks run there.
local other = os.getenv "SEGZERO_CUDA_TEST"
local library = other or build .. "/libsegzero_cuda_emulated.so"
local ALL = os.getenv "SEGZERO_EMULATE_ALL"
local there = io.open(library, "rb")
if not there then
  check.skip("the emulated CUDA library (make cuda-emulated; not with a sanitizer, nor without a C++ compiler)")
  check.finish()
  return
end
there:close()

ffi.cdef "int setenv(const char *name, const char *value, int overwrite);"
ffi.C.setenv("SEGZERO_CUDA_LIBRARY", library, 1)

local mini = require "tests.support.miniature"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local files = require "segzero.core.files"
local safetensors = require "segzero.formats.safetensors"
local rollout = require "segzero.inference.rollout"

-- ---- the emulator, the op table ----
local function command(line, name)
  local pipe = io.popen("{ " .. line .. "; } 2>&1; echo \"exit $?\"")
  local output = pipe:read "*a"
  pipe:close()
  check.ok(output:match "exit 0\n$", name .. ": " .. output:sub(-3000))
  return output
end
if not other then
  command("'" .. build .. "/tests/cuda_emulate'", "the emulator's own test")
  command("'" .. build .. "/tests/cuda_attention'" .. (ALL and " all" or ""), "attention and sampling against the reference")
end
-- Beside the rest of this file; the emulator takes long over large calls, and the sweep says how many it left out. Threads run in a random order here, which
-- shows missing barriers; in the order of their numbers in the rest.
if not other and not ALL then check.skip "SEGZERO_EMULATE_ALL=1 (the emulated kernels' large cases: five minutes)" end
local sweep = io.popen("SEGZERO_EMULATE_ORDER=" .. check.seed .. " '" .. host.executable .. "' tests/unit/test_ops.lua device=cuda" .. ((other or ALL) and "" or " most=3000") .. " 2>&1; echo \"exit $?\"")

-- ---- tensors ----
command("'" .. host.executable .. "' tests/unit/test_tensor.lua device=cuda", "tensor methods against PyTorch")
check.equal(table.concat(sz.devices(), " "), "cpu cuda:0", "sz.devices")
local a = sz.tensor({ { 1, 2 }, { 3, 4 } }, { device = "cuda" })
check.equal(a:device(), "cuda:0", "a tensor is made on the device")
check.equal(a:totable(), { { 1, 2 }, { 3, 4 } }, "totable from the device")
check.equal((a * 2):sum():item(), 20, "item from the device")
check.equal(a:to({ device = "cpu", dtype = "bf16" }):totable(), { { 1, 2 }, { 3, 4 } }, "to: dtype and device")
check.raises(function() a:add(sz.tensor { { 1, 2 }, { 3, 4 } }) end, "add: input 1 is on cuda:0, input 2 on cpu", "inputs on two devices")
check.raises(function() a:gather_rows(sz.tensor({ 1 }, { dtype = "i32", device = "cuda" })) end, "input 2, i32, must be on the cpu", "ids on the device")
check.raises(function() tensor.data(a) end, "this tensor is on cuda:0", "data() of a tensor on the device")
check.raises(function() sz.tensor({ 1 }, { device = "cuda:3" }) end, "CUDA_VISIBLE_DEVICES", "a device that there is not")

-- A tensor larger than the pinned pieces comes back as it went, and so does a conversion on the way.
local large = tensor.empty { 3, 1500001 }
local p = tensor.data(large)
for i = 0, large:numel() - 1 do p[i] = i % 8191 end
local back = large:to { device = "cuda" }:to { device = "cpu" }
local q, differ = tensor.data(back), 0
for i = 0, large:numel() - 1 do if q[i] ~= p[i] then differ = differ + 1 end end
check.equal(differ, 0, "18 MB to the device and back")
local converted = tensor.empty({ 3, 1500001 }, { dtype = "bf16", device = "cuda" }):copy_(large)
local expected = large:cast(sz.core.C.SZ_BF16)
local h, w = tensor.data(converted:to { device = "cpu" }), tensor.data(expected)
differ = 0
for i = 0, large:numel() - 1 do if h[i] ~= w[i] then differ = differ + 1 end end
check.equal(differ, 0, "f32 on the cpu to bf16 on the device")
for _, t in ipairs { large, back, converted, expected } do t:free() end

-- ---- the model ----
-- Both compute in f32; sums are taken in another order, and two layers deep that leaves a few units of 1e-6 of values of size one.
local TOLERANCE = 1e-4
local place = mini.folder()
local dir = mini.write(place .. "/model")
local here, device = sz.qwen_vl(dir), sz.qwen_vl(dir, { device = "cuda" })
check.equal(device:parameters()["model.norm.weight"]:device(), "cuda:0", "weights are on the device")
local inp = mini.input(here, 2)
check.near(tensor.no_grad(device.forward, device, inp):totable(), tensor.no_grad(here.forward, here, inp):totable(), TOLERANCE, "logits")

local function gradients(vl, recompute)
  vl:train()
  local packing = require "segzero.inference.packing"
  local all = {}
  tensor.step(function()
    local stream = packing.stream({ { input = inp, answers = { { 5, 6, 7 }, { 9, 8 } } } }, vl.image_token_id)
    local features = vl:vision({ inp }, { recompute = recompute })
    local lp, entropy = vl:logprob_of(vl:hidden(stream, features, { rows = stream.rows, recompute = recompute }), stream.targets)
    ;(lp:sum() + entropy:sum() * 0.1):backward()
  end)
  for name, t in pairs(vl:parameters()) do
    all[name] = t:grad() and t:grad():values():totable()
    t:zero_grad()
  end
  return all
end
local want = gradients(here)
for _, recompute in ipairs { false, true } do
  for name, g in pairs(gradients(device, recompute)) do
    check.near(g, want[name], 1e-3, ("gradient of %s%s"):format(name, recompute and ", recomputed" or ""))
  end
end

-- Saved from the device, loaded on the processor: the same bytes.
device:save(place .. "/saved")
local saved, original = safetensors.load_folder(place .. "/saved"), here:parameters()
for name, t in pairs(original) do check.equal(saved[name]:totable(), t:totable(), "saved " .. name) end

-- ---- sampling and training ----
local opts = { n = 3, seed = 11, max_new_tokens = 6 }
local sampled = { here:generate(inp, opts), device:generate(inp, opts) }
for i = 1, 3 do
  check.equal(sampled[2][i].ids, sampled[1][i].ids, "answer " .. i .. " sampled on the device")
  check.near(sampled[2][i].logprobs, sampled[1][i].logprobs, TOLERANCE, "log-probabilities of answer " .. i)
end

-- ---- a decode step: one copy each way and one wait, whatever the number of layers; steps like ones before are launched as one graph ----
if not other then
  ffi.cdef [[
    typedef struct { unsigned long uploads, downloads, waits, allocations, launches, graphs, captures; } sz_emu_count;
    const sz_emu_count *sz_emu_counts(void);
    void sz_emu_break_captures(int on); ]]
  local emulator = ffi.load(library)
  local counted = emulator.sz_emu_counts()
  local FIELDS = { "uploads", "downloads", "waits", "allocations", "launches", "graphs", "captures" }
  local function difference(now, before)
    local out = {}
    for _, f in ipairs(FIELDS) do out[f] = tonumber(now[f] - before[f]) end
    return out
  end
  -- A prompt of nine tokens: what counts here are the steps behind it.
  local places, at = require("segzero.inference.packing").ints(3, 9)
  for i = 0, 26 do at[i] = i % 9 end
  local short = { input_ids = { 5, 9, 20, 31, 7, 40, 11, 8, 3 }, position_ids = places, next_position = 9 }
  -- A sampling: what the emulator counted between one token of the first answer and its next, which is a step; in all; ids and log-probabilities.
  local function sample(vl, graphs, options)
    ffi.C.setenv("SEGZERO_CUDA_GRAPHS", graphs and "1" or "0", 1)
    local seen, each, before = {}, {}, ffi.new("sz_emu_count", counted[0])
    local all = { n = 3, seed = 11, max_new_tokens = 8, ignore_eos = true, on_token = function(a)
      if a.index == 1 then seen[#seen + 1] = ffi.new("sz_emu_count", counted[0]) end
    end }
    for k, v in pairs(options) do all[k] = v end
    local groups = rollout.generate(vl, { short }, all)
    for i = 2, #seen do each[i - 1] = difference(seen[i], seen[i - 1]) end
    local ids, logprobs = {}, {}
    for i, a in ipairs(groups[1]) do ids[i], logprobs[i] = a.ids, a.logprobs end
    return each, difference(counted[0], before), ids, logprobs
  end

  local deep = sz.qwen_vl(mini.write(place .. "/deep", { config = { num_hidden_layers = 5 } }), { device = "cuda" })
  local CASES = { {}, { top_k = 5, top_p = 0.9, repetition_penalty = 1.2, temperature = 0.7 }, { temperature = 0 } }
  for name, vl in pairs { ["two layers"] = device, ["five layers"] = deep } do
    for _, graphs in ipairs { false, true } do
      for _, options in ipairs(vl == device and CASES or { {} }) do
        local each = sample(vl, graphs, options)
        check.equal(#each, 7, name .. ": steps")
        for i = 2, #each do      -- the first takes the stage's memory
          local step = { each[i].uploads, each[i].downloads, each[i].waits, each[i].allocations }
          check.equal(step, { 1, 1, 1, 0 }, ("%s, graphs %s, step %d: uploads, downloads, waits, allocations"):format(name, tostring(graphs), i))
        end
      end
    end
  end

  for i, options in ipairs(CASES) do
    -- Past 128 tokens an answer's keys are two stretches of the attention's plan, which grows to the next size (a minute, so not always).
    local long = i == 1 and ALL
    options.max_new_tokens = long and 133 or 12
    local _, eager, ids, logprobs = sample(device, false, options)
    local each, all, ids2, logprobs2 = sample(device, true, options)
    check.equal(eager.graphs + eager.captures, 0, "without graphs")
    if long then check.equal({ all.graphs, all.captures }, { #each - 2, 2 }, "the second step is recorded, and the second past 128 tokens") end
    check.equal(ids2, ids, "tokens of recorded steps")
    check.equal(logprobs2, logprobs, "log-probabilities of recorded steps, to the bit")
    -- Again: every step is there already, a graph is all that is launched.
    options.max_new_tokens = 12
    local again, whole, ids3, logprobs3 = sample(device, true, options)
    check.equal({ whole.graphs, whole.captures }, { #again, 0 }, "a second sampling launches graphs alone")
    for k = 1, 3 do
      for t = 1, 12 do check.equal({ ids3[k][t], logprobs3[k][t] }, { ids[k][t], logprobs[k][t] }, "and has the same tokens") end
    end
    for _, step in ipairs(again) do check.equal({ step.launches, step.graphs, step.uploads }, { 0, 1, 1 }, "one graph a step") end
  end
  local other_settings = { top_k = 3, temperature = 1.3, seed = 5, max_new_tokens = 9 }
  local _, _, ids, logprobs = sample(device, false, other_settings)
  local _, all, ids2, logprobs2 = sample(device, true, other_settings)
  check.equal({ all.graphs, all.captures, ids2, logprobs2 }, { 8, 0, ids, logprobs }, "the sampler's settings are contents, not launches")

  -- A cache that was given back and made again lies where it was; weights may change where they are.
  local norm = device:parameters()["model.norm.weight"]
  for _ = 1, 3 do
    rollout.release_cache(device)
    _, all, ids2, logprobs2 = sample(device, true, other_settings)
    check.equal({ ids2, logprobs2 }, { ids, logprobs }, "with a new cache")
  end
  check.equal({ all.graphs, all.captures }, { 8, 0 }, "a cache that is where it was")
  tensor.no_grad(function() norm:copy_(norm * 3) end)
  _, _, ids, logprobs = sample(device, false, other_settings)
  check.ok(logprobs[1][1] ~= logprobs2[1][1], "the weights count")
  _, all, ids2, logprobs2 = sample(device, true, other_settings)
  check.equal({ all.graphs, all.captures, ids2, logprobs2 }, { 8, 0, ids, logprobs }, "with other weights")

  -- What cannot be recorded is launched op by op: the same numbers, and it is tried once.
  local five = { n = 5, max_new_tokens = 6 }       -- so many have not been before
  emulator.sz_emu_break_captures(1)
  _, _, ids, logprobs = sample(device, false, five)
  _, all, ids2, logprobs2 = sample(device, true, five)
  check.equal({ all.graphs, all.captures, ids2, logprobs2 }, { 0, 1, ids, logprobs }, "steps that cannot be recorded")
  emulator.sz_emu_break_captures(0)
  _, all, ids2 = sample(device, true, five)
  check.equal({ all.graphs, all.captures, ids2 }, { 0, 0, ids }, "are not tried again")
  _, all = sample(device, true, { n = 4, max_new_tokens = 6 })
  check.equal({ all.graphs, all.captures }, { 4, 1 }, "others are")
  deep:free()
end

local function run(name, args, steps)
  local arguments = { "trainer.save_checkpoint_path=" .. place .. "/" .. name }
  for _, v in ipairs(args or {}) do arguments[#arguments + 1] = v end
  local cfg = mini.settings(arguments)
  files.make_dir(place .. "/" .. name)
  local t = mini.trainer(cfg, { model = dir, reference = true, folder = place .. "/" .. name })
  local seen = {}
  for i = 1, steps do seen[i] = t:step() end
  return t, seen
end
local LR = { "worker.actor.optim.lr=1e-3" }
local cpu_run, cpu_seen = run("cpu", LR, 3)
ffi.C.setenv("SEGZERO_DEVICE", "cuda", 1)
-- Groups of three answers are split on the device: two and one, prompts once.
local cuda_run, cuda_seen = run("cuda", { LR[1], "worker.actor.micro_batch_size_per_device_for_update=2",
  "worker.actor.micro_batch_size_per_device_for_experience=1" }, 3)
for i = 1, 3 do
  for _, key in ipairs { "loss", "policy_loss", "entropy", "kl", "reward", "grad_norm" } do
    if cpu_seen[i][key] then
      check.near(cuda_seen[i][key], cpu_seen[i][key], 1e-3 * math.max(1, math.abs(cpu_seen[i][key])), ("step %d: %s"):format(i, key))
    end
  end
  check.ok(cuda_seen[i].mismatch < TOLERANCE, "step " .. i .. ": sampler and trainer agree on the device")
end
local trained = cpu_run.policy:parameters()
for name, t in pairs(cuda_run.policy:parameters()) do
  -- Adam divides by the gradient's size: where it is near zero a rounding may turn an update of lr = 1e-3 around.
  check.near(t:totable(), trained[name]:totable(), 1e-3, "after 3 steps: " .. name)
end

-- A reference that waits in host memory says the same, and is back there afterwards.
local offloaded, seen = run("offloaded", { LR[1], "worker.actor.micro_batch_size_per_device_for_update=2",
  "worker.actor.micro_batch_size_per_device_for_experience=1", "worker.ref.offload.param_offload=true" }, 2)
for i = 1, 2 do check.equal({ seen[i].kl, seen[i].loss }, { cuda_seen[i].kl, cuda_seen[i].loss }, "step " .. i .. " with an offloaded reference") end
check.ok(seen[2].kl > 0, "a KL to see it by")
check.equal(offloaded.reference:parameters()["model.norm.weight"]:device(), "cpu", "the reference is at home")
check.equal(offloaded.policy:parameters()["model.norm.weight"]:device(), "cuda:0", "the policy is not")
check.raises(function() require("segzero.models.offload").using(offloaded.reference, function() error("no", 0) end) end, "no", "an error comes through")
check.equal(offloaded.reference:parameters()["model.norm.weight"]:device(), "cpu", "and the reference is at home")
check.raises(function() sz.qwen_vl(dir, { dtype = "int8", offload = true }) end, "in 8 bits or with adapters is not offloaded", "offloading 8 bits")

-- ---- SAM2: a prediction, and every gradient of the mask loss ----
ffi.C.setenv("SEGZERO_DEVICE", "cpu", 1)
local mask_loss, refshapes = require "segzero.algorithms.mask_loss", require "segzero.data.refshapes"
local scene = refshapes.sample { seed = 5, index = 1, size = 84, level = 2, questions = 2 }
local picture = sz.image.new(84, 84)
ffi.copy(picture:pixels(), scene.rgb, 84 * 84 * 3)
local truth = tensor.zeros { 2, 42, 42 }
for i = 0, 42 * 42 - 1 do tensor.data(truth)[i] = i % 42 < 20 and 1 or 0 end
local function with_sam2(name)
  local sam = sz.sam2("tests/golden/sam2/S2", { device = name })
  local out = { gradients = {} }
  sam:set_image(picture)
  local r = sam:predict { box = scene.questions[1].bbox, points = scene.questions[1].points }
  out.scores, out.low_res = r.scores, r.low_res:totable()
  local made = require("segzero.inference.segmenter").new(sam):masks(sam.features, { { bbox = { 4, 5, 60, 70 }, points = { { 20, 20 }, { 30, 40 } } } })
  out.score, out.mask = made[1].score, made[1].mask:totable()
  sam:train()
  tensor.step(function()
    local f = sam:encode(sam:pixels(picture), { recompute = true })
    local k = sam.image_size / 84
    local prompts = { { image = 1, points = { { 4 * k, 5 * k, 2 }, { 60 * k, 70 * k, 3 } } }, { image = 1, points = { { 20 * k, 20 * k, 1 }, { 0, 0, -1 } } } }
    local total, parts = mask_loss.sam2(sam:decode(f, prompts), truth)
    total:backward()
    out.loss = parts.total
  end)
  for n, t in pairs(sam:parameters()) do out.gradients[n] = t:grad() and t:grad():values():totable() end
  return out
end
local plain, moved = with_sam2 "cpu", with_sam2 "cuda"
check.near(moved.scores, plain.scores, TOLERANCE, "SAM2's scores")
check.near(moved.low_res, plain.low_res, 1e-3, "SAM2's logits, of some tens")
check.near(moved.score, plain.score, TOLERANCE, "a segmenter's score")
check.equal(moved.mask, plain.mask, "a segmenter's mask")
check.near(moved.loss, plain.loss, 1e-3, "SAM2's loss, of some ten")
local compared = 0
for name, g in pairs(plain.gradients) do
  -- Relative to the tensor's largest element, with a floor for gradients that are roundings around zero.
  local largest = 0
  local function walk(v) if type(v) == "table" then for _, x in ipairs(v) do walk(x) end else largest = math.max(largest, math.abs(v)) end end
  walk(g)
  check.near(moved.gradients[name], g, 1e-3 * largest + 1e-5, "SAM2: gradient of " .. name)
  compared = compared + 1
end
check.ok(compared > 200, "SAM2's gradients were compared")

local output = sweep:read "*a"
sweep:close()
check.ok(output:match "exit 0\n$", "the op table: " .. output:sub(-3000))
check.ok((tonumber(output:match "(%d+) checks") or 0) > 5000, "the op table was run")
print("op table: " .. (output:match "%d+ calls with[^\n]*" or "every call"))
check.finish()
