-- test_cuda_emulated.lua - the CUDA backend without a GPU: its kernels, compiled for the CPU
-- (tests/cuda_emulator/emulate.h), run everything here. The emulator's own test; the op table on
-- the device against the reference kernels; the miniature model's logits and gradients, sampling
-- and GRPO steps on the device against the CPU's; saving; messages.
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
local file = io.open(library, "rb")
if not file then
  check.skip("the emulated CUDA library (make cuda-emulated; not with a sanitizer, "
    .. "nor without a C++ compiler)")
  check.finish()
  return
end
file:close()

ffi.cdef "int setenv(const char *name, const char *value, int overwrite);"
ffi.C.setenv("SEGZERO_CUDA_LIBRARY", library, 1)

local mini = require "tests.support.miniature"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local files = require "segzero.core.files"
local safetensors = require "segzero.formats.safetensors"
local inference = require "segzero.inference.generate"

-- Both sides compute in f32. Sums are in another order, which two layers later leaves a few units
-- of 1e-6 in values of size one.
local TOLERANCE = 1e-4

-- Returns a command's output and exit status.
local function output(line)
  local pipe = io.popen("{ " .. line .. "; } 2>&1; echo \"exit $?\"")
  local text = pipe:read "*a"
  pipe:close()
  return text, tonumber(text:match "exit (%d+)\n$")
end

local function passes(line, name)
  local text, status = output(line)
  check.equal(status, 0, name .. ": " .. text:sub(-3000))
end

-- ---- the emulator, the op table ----
if not other then
  check.case("the emulator's own test", function()
    passes("'" .. build .. "/tests/cuda_emulate'", "cuda_emulate")
  end)
  check.case("attention and sampling against the reference", function()
    passes("'" .. build .. "/tests/cuda_attention'" .. (ALL and " all" or ""), "cuda_attention")
  end)
  if not ALL then
    check.skip "SEGZERO_EMULATE_ALL=1 (the emulated kernels' large cases: five minutes)"
  end
end

-- The sweep over the op table runs at the same time as the rest of this file. Its threads run in a
-- random order, which shows missing barriers; here they run in order. The emulator is slow on large
-- calls, so those are left out, and the sweep says how many.
local limit = ""
if not other and not ALL then limit = " most=3000" end
local sweep = io.popen("SEGZERO_EMULATE_ORDER=" .. check.seed .. " CASE= '" .. host.executable
  .. "' tests/unit/test_ops.lua device=cuda" .. limit .. " 2>&1; echo \"exit $?\"")

-- ---- tensors ----
check.case("tensor methods against PyTorch", function()
  passes("CASE= '" .. host.executable .. "' tests/unit/test_tensor.lua device=cuda", "test_tensor")
end)

check.case("tensors on the device", function()
  check.equal(table.concat(sz.devices(), " "), "cpu cuda:0", "sz.devices")
  local a = sz.tensor({ { 1, 2 }, { 3, 4 } }, { device = "cuda" })
  check.equal(a:device(), "cuda:0", "a tensor is made on the device")
  check.equal(a:totable(), { { 1, 2 }, { 3, 4 } }, "totable from the device")
  check.equal((a * 2):sum():item(), 20, "item from the device")
  local moved = a:to { device = "cpu", dtype = "bf16" }
  check.equal(moved:totable(), { { 1, 2 }, { 3, 4 } }, "to: dtype and device")

  check.raises(function() a:add(sz.tensor { { 1, 2 }, { 3, 4 } }) end,
    "add: input 1 is on cuda:0, input 2 on cpu", "inputs on two devices")
  local ids = sz.tensor({ 1 }, { dtype = "i32", device = "cuda" })
  check.raises(function() a:gather_rows(ids) end, "input 2, i32, must be on the cpu",
    "ids on the device")
  check.raises(function() tensor.data(a) end, "this tensor is on cuda:0",
    "data() of a tensor on the device")
end)

check.case("a second GPU is one clear error", function()
  for _, name in ipairs { "cuda:1", "cuda:3" } do
    check.raises(function() sz.tensor({ 1 }, { device = name }) end, "CUDA_VISIBLE_DEVICES",
      "a tensor on " .. name)
  end
  local command = ("SEGZERO_CUDA_LIBRARY='%s' '%s' --device cuda:1 -e 'print(1)'")
    :format(library, host.executable)
  local text, status = output(command)
  check.ok(status ~= 0, "--device cuda:1 fails")
  local message = text:gsub("exit %d+\n$", "")
  check.ok(message:find("cuda:1", 1, true), "the message names the value: " .. message)
  check.ok(message:find("CUDA_VISIBLE_DEVICES", 1, true), "the message names the cure: " .. message)
  check.equal(select(2, message:gsub("\n", "")), 1, "the message is one line: " .. message)
end)

-- Counts the elements in which two CPU tensors of one dtype differ.
local function count_differences(a, b)
  local x = tensor.data(a)
  local y = tensor.data(b)
  local count = 0
  for i = 0, a:numel() - 1 do
    if x[i] ~= y[i] then count = count + 1 end
  end
  return count
end

check.case("copies larger than the pinned chunks", function()
  local large = tensor.empty { 3, 1500001 }
  local values = tensor.data(large)
  for i = 0, large:numel() - 1 do values[i] = i % 8191 end
  local back = large:to { device = "cuda" }:to { device = "cpu" }
  check.equal(count_differences(back, large), 0, "18 MB to the device and back")

  local options = { dtype = "bf16", device = "cuda" }
  local converted = tensor.empty({ 3, 1500001 }, options):copy_(large)
  local expected = large:cast(sz.core.C.SZ_BF16)
  check.equal(count_differences(converted:to { device = "cpu" }, expected), 0,
    "f32 on the CPU to bf16 on the device")
  for _, t in ipairs { large, back, converted, expected } do t:free() end
end)

-- ---- the model ----
local place = mini.folder()
local dir = mini.write(place .. "/model")
local on_cpu = sz.qwen_vl(dir)
local on_device = sz.qwen_vl(dir, { device = "cuda" })
local inp = mini.input(on_cpu, 2)

-- The gradients of all parameters for two answers: {name -> nested table}.
local function gradients(vl, recompute)
  vl:train()
  local packing = require "segzero.inference.packing"
  local all = {}
  tensor.step(function()
    local groups = { { input = inp, answers = { { 5, 6, 7 }, { 9, 8 } } } }
    local stream = packing.stream(groups, vl.image_token_id)
    local features = vl:vision({ inp }, { recompute = recompute })
    local hidden = vl:hidden(stream, features, { rows = stream.rows, recompute = recompute })
    local lp, entropy = vl:logprob_of(hidden, stream.targets)
    local loss = lp:sum() + entropy:sum() * 0.1
    loss:backward()
  end)
  for name, t in pairs(vl:parameters()) do
    all[name] = t:grad() and t:grad():values():totable()
    t:zero_grad()
  end
  return all
end

local function count_keys(t)
  local n = 0
  for _ in pairs(t) do n = n + 1 end
  return n
end

check.case("logits and gradients of the model", function()
  local weight = on_device:parameters()["model.norm.weight"]
  check.equal(weight:device(), "cuda:0", "weights are on the device")
  local got = tensor.no_grad(on_device.forward, on_device, inp)
  local want = tensor.no_grad(on_cpu.forward, on_cpu, inp)
  check.near(got:totable(), want:totable(), TOLERANCE, "logits")

  -- Every gradient that the CPU has, and no others.
  local expected = gradients(on_cpu)
  local count = count_keys(expected)
  check.ok(count > 20, "the CPU computed gradients: " .. count)
  for _, recompute in ipairs { false, true } do
    local computed = gradients(on_device, recompute)
    local suffix = recompute and ", recomputed" or ""
    for name, g in pairs(expected) do
      check.near(computed[name], g, 1e-3, "gradient of " .. name .. suffix)
    end
    check.equal(count_keys(computed), count, "number of gradients" .. suffix)
  end
end)

check.case("a model saved from the device", function()
  on_device:save(place .. "/saved")
  local saved = safetensors.load_folder(place .. "/saved")
  local original = on_cpu:parameters()
  check.equal(count_keys(saved), count_keys(original), "number of saved tensors")
  for name, t in pairs(original) do
    check.equal(saved[name]:totable(), t:totable(), "saved " .. name)
  end
end)

-- ---- sampling ----
check.case("answers sampled on the device", function()
  local options = { n = 3, seed = 11, max_new_tokens = 6 }
  local want = on_cpu:generate(inp, options)
  local got = on_device:generate(inp, options)
  check.equal(#got, 3, "number of answers")
  for i = 1, 3 do
    check.equal(got[i].ids, want[i].ids, "answer " .. i)
    check.near(got[i].logprobs, want[i].logprobs, TOLERANCE, "log-probabilities of answer " .. i)
  end
end)

-- ---- decode steps, counted by the emulator ----
-- A step is one copy in each direction and one wait, whatever the number of layers. Steps like
-- earlier ones are launched as one graph.
if not other then
  ffi.cdef [[
    typedef struct {
      unsigned long uploads, downloads, waits, allocations, launches, graphs, captures;
    } sz_emu_count;
    const sz_emu_count *sz_emu_counts(void);
    void sz_emu_break_captures(int on); ]]
  local emulator = ffi.load(library)
  local counted = emulator.sz_emu_counts()
  local FIELDS = {
    "uploads", "downloads", "waits", "allocations", "launches", "graphs", "captures",
  }
  local function difference(now, before)
    local out = {}
    for _, f in ipairs(FIELDS) do out[f] = tonumber(now[f] - before[f]) end
    return out
  end

  -- A prompt of nine tokens: only the steps after it count here.
  local positions, data = require("segzero.inference.packing").ints(3, 9)
  for i = 0, 26 do data[i] = i % 9 end
  local prompt = {
    input_ids = { 5, 9, 20, 31, 7, 40, 11, 8, 3 },
    position_ids = positions,
    next_position = 9,
  }

  -- Samples, and returns {steps, total, ids, logprobs}. steps[i] is what the emulator counted
  -- between two tokens of the first answer, total is all that it counted.
  local function sample(vl, graphs, options)
    ffi.C.setenv("SEGZERO_CUDA_GRAPHS", graphs and "1" or "0", 1)
    local seen = {}
    local function on_token(a)
      if a.index == 1 then seen[#seen + 1] = ffi.new("sz_emu_count", counted[0]) end
    end
    local all = { n = 3, seed = 11, max_new_tokens = 8, ignore_eos = true, on_token = on_token }
    for k, v in pairs(options) do all[k] = v end
    local before = ffi.new("sz_emu_count", counted[0])
    local groups = inference.generate(vl, { prompt }, all)
    local result = { steps = {}, ids = {}, logprobs = {} }
    result.total = difference(counted[0], before)
    for i = 2, #seen do result.steps[i - 1] = difference(seen[i], seen[i - 1]) end
    for i, a in ipairs(groups[1]) do
      result.ids[i] = a.ids
      result.logprobs[i] = a.logprobs
    end
    return result
  end

  -- Checks the numbers of launched graphs and of captures, and that the answers are those of
  -- `eager`.
  local function same_answers(got, eager, graphs, captures, name)
    check.equal({ got.total.graphs, got.total.captures }, { graphs, captures },
      name .. ": graphs, captures")
    check.equal(got.ids, eager.ids, name .. ": tokens")
    check.equal(got.logprobs, eager.logprobs, name .. ": log-probabilities, to the bit")
  end

  local CASES = {
    {},
    { top_k = 5, top_p = 0.9, repetition_penalty = 1.2, temperature = 0.7 },
    { temperature = 0 },
  }

  local function check_steps(vl, graphs, options, name)
    local steps = sample(vl, graphs, options).steps
    check.equal(#steps, 7, name .. ": steps")
    for i = 2, #steps do          -- the first one allocates the staging buffer
      local s = steps[i]
      check.equal({ s.uploads, s.downloads, s.waits, s.allocations }, { 1, 1, 1, 0 },
        ("%s, graphs %s, step %d: uploads, downloads, waits, allocations")
          :format(name, tostring(graphs), i))
    end
  end

  check.case("a decode step copies and waits once", function()
    local config = { config = { num_hidden_layers = 5 } }
    local deep = sz.qwen_vl(mini.write(place .. "/deep", config), { device = "cuda" })
    for _, graphs in ipairs { false, true } do
      for _, options in ipairs(CASES) do check_steps(on_device, graphs, options, "two layers") end
      check_steps(deep, graphs, {}, "five layers")
    end
    deep:free()
  end)

  -- Cases share on_device, whose graphs stay recorded from one case to the next.
  local SETTINGS = { top_k = 3, temperature = 1.3, seed = 5, max_new_tokens = 9 }

  local function check_recorded(options, long)
    -- Past 128 tokens an answer's keys are two splits, and attention's schedule grows to the next
    -- size (that takes a minute, so not always).
    options.max_new_tokens = long and 133 or 12
    local eager = sample(on_device, false, options)
    local recorded = sample(on_device, true, options)
    check.equal(eager.total.graphs + eager.total.captures, 0, "without graphs")
    if long then
      check.equal({ recorded.total.graphs, recorded.total.captures }, { #recorded.steps - 2, 2 },
        "the second step is recorded, and the second one past 128 tokens")
    end
    check.equal(recorded.ids, eager.ids, "tokens of recorded steps")
    check.equal(recorded.logprobs, eager.logprobs, "log-probabilities of recorded steps")

    -- Once more: all steps are recorded, so only graphs are launched.
    options.max_new_tokens = 12
    local again = sample(on_device, true, options)
    check.equal({ again.total.graphs, again.total.captures }, { #again.steps, 0 },
      "a second sampling launches graphs only")
    for k = 1, 3 do
      for t = 1, 12 do
        check.equal({ again.ids[k][t], again.logprobs[k][t] },
          { eager.ids[k][t], eager.logprobs[k][t] }, "and has the same tokens")
      end
    end
    for _, s in ipairs(again.steps) do
      check.equal({ s.launches, s.graphs, s.uploads }, { 0, 1, 1 }, "one graph for each step")
    end
  end

  check.case("recorded decode steps", function()
    for i, options in ipairs(CASES) do check_recorded(options, i == 1 and ALL) end
    local eager = sample(on_device, false, SETTINGS)
    same_answers(sample(on_device, true, SETTINGS), eager, 8, 0, "settings are staged")

    -- A cache that is freed and allocated again gets the same address. Weights may change in place.
    for _ = 1, 3 do
      inference.release_cache(on_device)
      local renewed = sample(on_device, true, SETTINGS)
      check.equal({ renewed.ids, renewed.logprobs }, { eager.ids, eager.logprobs }, "a new cache")
    end
    same_answers(sample(on_device, true, SETTINGS), eager, 8, 0, "a cache at the same address")
    local norm = on_device:parameters()["model.norm.weight"]
    tensor.no_grad(function() norm:copy_(norm * 3) end)
    local changed = sample(on_device, false, SETTINGS)
    check.ok(changed.logprobs[1][1] ~= eager.logprobs[1][1], "the weights make a difference")
    same_answers(sample(on_device, true, SETTINGS), changed, 8, 0, "other weights")
  end)

  check.case("decode steps that cannot be recorded", function()
    -- They are launched op by op with the same numbers, and recording is tried once. No earlier
    -- case has five answers.
    local five = { n = 5, max_new_tokens = 6 }
    emulator.sz_emu_break_captures(1)
    local eager = sample(on_device, false, five)
    same_answers(sample(on_device, true, five), eager, 0, 1, "broken captures")
    emulator.sz_emu_break_captures(0)
    same_answers(sample(on_device, true, five), eager, 0, 0, "not tried again")
    local total = sample(on_device, true, { n = 4, max_new_tokens = 6 }).total
    check.equal({ total.graphs, total.captures }, { 4, 1 }, "other steps are recorded")
  end)
end

-- ---- settings ----
check.case("4 bits on a device are refused before weights are read", function()
  ffi.C.setenv("SEGZERO_DEVICE", "cuda", 1)
  local config_only = place .. "/config_only"
  files.make_dir(config_only)
  files.write(config_only .. "/config.json", files.read(dir .. "/config.json"))
  local wanted = "qwen_vl: dtype int4 runs on the CPU, not on cuda:0; take int8 or bf16 there"
  local function refused(args)
    args[#args + 1] = "trainer.save_checkpoint_path=" .. place .. "/refused"
    local text, status = mini.recipe(config_only, args)
    check.ok(status ~= 0 and text:find(wanted, 1, true), table.concat(args, " ") .. ": " .. text)
    check.ok(not files.exists(place .. "/refused"), "no run folder is left behind")
  end
  refused { "worker.ref.model.dtype=int4" }
  refused { "worker.actor.model.dtype=int4", "worker.actor.model.lora.rank=2" }
  check.raises(function()
    require("recipes.evaluate").run { "model_path=" .. config_only, "dtype=int4", "rows=1",
      "output_path=" .. place .. "/refused" }
  end, wanted, "evaluate")
  check.raises(function()
    require("examples.infer").run { "--model_path", config_only, "--dtype", "int4", "--demo", "1",
      "--output_path", place .. "/refused.png" }
  end, wanted, "infer")
  ffi.C.setenv("SEGZERO_DEVICE", "cpu", 1)
end)

-- ---- training ----
-- Runs the trainer for some steps. Returns it and the steps' metrics.
local function run(name, args, steps)
  local folder = place .. "/" .. name
  local arguments = { "trainer.save_checkpoint_path=" .. folder }
  for _, v in ipairs(args) do arguments[#arguments + 1] = v end
  local cfg = mini.settings(arguments)
  files.make_dir(folder)
  local t = mini.trainer(cfg, { model = dir, reference = true, folder = folder })
  local seen = {}
  for i = 1, steps do seen[i] = t:step() end
  return t, seen
end

local LR = "worker.actor.optim.lr=1e-3"
-- Groups of three answers are split on the device: two and one, with the prompt once.
local SPLIT = {
  LR,
  "worker.actor.micro_batch_size_per_device_for_update=2",
  "worker.actor.micro_batch_size_per_device_for_experience=1",
}
local METRICS = { "loss", "policy_loss", "entropy", "kl", "reward", "grad_norm" }

check.case("training on the device", function()
  local cpu_run, cpu_seen = run("cpu", { LR }, 3)
  ffi.C.setenv("SEGZERO_DEVICE", "cuda", 1)
  local cuda_run, cuda_seen = run("cuda", SPLIT, 3)
  local compared = 0
  for i = 1, 3 do
    for _, key in ipairs(METRICS) do
      local want = cpu_seen[i][key]
      if want then
        check.near(cuda_seen[i][key], want, 1e-3 * math.max(1, math.abs(want)),
          ("step %d: %s"):format(i, key))
        compared = compared + 1
      end
    end
    check.ok(cuda_seen[i].mismatch < TOLERANCE, "step " .. i .. ": sampler and trainer agree")
  end
  check.ok(compared >= 12, "metrics were compared: " .. compared)
  local trained = cuda_run.policy:parameters()
  for name, t in pairs(cpu_run.policy:parameters()) do
    -- Adam divides by the gradient's size: near zero, rounding may reverse an update of lr = 1e-3.
    check.near(trained[name]:totable(), t:totable(), 1e-3, "after 3 steps: " .. name)
  end

  -- A reference and optimizer state that are kept in host memory give the same numbers, and the
  -- reference returns there.
  local args = { "worker.ref.offload.param_offload=true",
    "worker.actor.offload.optimizer_offload=true", "worker.actor.offload.param_offload=true" }
  for _, v in ipairs(SPLIT) do args[#args + 1] = v end
  local offloaded, seen = run("offloaded", args, 2)
  for i = 1, 2 do
    check.equal({ seen[i].kl, seen[i].loss }, { cuda_seen[i].kl, cuda_seen[i].loss },
      "step " .. i .. " with an offloaded reference")
  end
  check.ok(seen[2].kl > 0, "the KL is not 0")
  local reference_weight = offloaded.reference:parameters()["model.norm.weight"]
  local policy_weight = offloaded.policy:parameters()["model.norm.weight"]
  check.equal(reference_weight:device(), "cpu", "the reference is in host memory")
  check.equal(policy_weight:device(), "cuda:0", "the policy is not")
  local offload = require "segzero.models.offload"
  check.raises(function()
    offload.using(offloaded.reference, function() error("no", 0) end)
  end, "no", "an error is passed on")
  reference_weight = offloaded.reference:parameters()["model.norm.weight"]
  check.equal(reference_weight:device(), "cpu", "and the reference is in host memory again")
  check.raises(function() sz.qwen_vl(dir, { dtype = "int8", offload = true }) end,
    "in 8 bits or with adapters is not offloaded", "offloading 8 bits")
  ffi.C.setenv("SEGZERO_DEVICE", "cpu", 1)
end)

-- ---- SAM2: a prediction, and every gradient of the mask loss ----
local function with_sam2(name)
  local mask_loss = require "segzero.algorithms.mask_loss"
  local refshapes = require "segzero.data.refshapes"
  local scene = refshapes.sample { seed = 5, index = 1, size = 84, level = 2, questions = 2 }
  local image = sz.image.new(84, 84)
  ffi.copy(image:pixels(), scene.rgb, 84 * 84 * 3)
  local truth = tensor.zeros { 2, 42, 42 }
  for i = 0, 42 * 42 - 1 do
    if i % 42 < 20 then tensor.data(truth)[i] = 1 end
  end

  -- A prediction, and a segmenter's mask.
  local sam = sz.sam2("tests/golden/sam2/S2", { device = name })
  local out = { gradients = {} }
  sam:set_image(image)
  local question = scene.questions[1]
  local r = sam:predict { box = question.bbox, points = question.points }
  out.scores = r.scores
  out.low_res = r.low_res:totable()
  local segmenter = require("segzero.inference.segmenter").new(sam)
  local answer = { bbox = { 4, 5, 60, 70 }, points = { { 20, 20 }, { 30, 40 } } }
  local made = segmenter:masks(sam.features, { answer })
  out.score = made[1].score
  out.mask = made[1].mask:totable()

  -- The loss and its gradients.
  sam:train()
  tensor.step(function()
    local f = sam:encode(sam:pixels(image), { recompute = true })
    local k = sam.image_size / 84
    local prompts = {
      { image = 1, points = { { 4 * k, 5 * k, 2 }, { 60 * k, 70 * k, 3 } } },
      { image = 1, points = { { 20 * k, 20 * k, 1 }, { 0, 0, -1 } } },
    }
    local total, parts = mask_loss.sam2(sam:decode(f, prompts), truth)
    total:backward()
    out.loss = parts.total
  end)
  for n, t in pairs(sam:parameters()) do
    out.gradients[n] = t:grad() and t:grad():values():totable()
  end
  return out
end

-- The largest magnitude in a nested table.
local function largest_of(v)
  if type(v) ~= "table" then return math.abs(v) end
  local largest = 0
  for _, x in ipairs(v) do largest = math.max(largest, largest_of(x)) end
  return largest
end

check.case("SAM2 on the device", function()
  local want = with_sam2 "cpu"
  local got = with_sam2 "cuda"
  check.near(got.scores, want.scores, TOLERANCE, "scores")
  check.near(got.low_res, want.low_res, 1e-3, "logits, which are in the tens")
  check.near(got.score, want.score, TOLERANCE, "a segmenter's score")
  check.equal(got.mask, want.mask, "a segmenter's mask")
  check.near(got.loss, want.loss, 1e-3, "the loss, which is about ten")
  local compared = 0
  for name, g in pairs(want.gradients) do
    -- Relative to the tensor's largest element, with a floor for gradients that are rounding
    -- errors.
    check.near(got.gradients[name], g, 1e-3 * largest_of(g) + 1e-5, "gradient of " .. name)
    compared = compared + 1
  end
  check.ok(compared > 200, "gradients were compared: " .. compared)
  check.equal(count_keys(got.gradients), compared, "number of gradients")
end)

check.case("the op table", function()
  local text = sweep:read "*a"
  sweep:close()
  check.ok(text:match "exit 0\n$", "the sweep passes: " .. text:sub(-3000))
  local checks = tonumber(text:match "(%d+) checks")
  check.ok((checks or 0) > 5000, "the sweep ran: " .. tostring(checks))
  print("op table: " .. (text:match "%d+ calls with[^\n]*" or "every call"))
end)
check.finish()
