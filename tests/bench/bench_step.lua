-- bench_step.lua - times one GRPO step, whole and by phase, compares it with the matmul limit of
-- the same run, shows how it grows with its size, and saves the same work for a peer.
--
--   ./segzero tests/bench/bench_step.lua [model=FILE.json|3b] [device=cpu|cuda] [side=n] [warm=0]
--       [prompts=4] [n=8] [tokens=128] [prompt_tokens=1000] [image=840] [dtype=f32|bf16]
--       [recompute=true|false] [threads=2] [clock=wall|cpu] [sweep=n|prompt]
--       [save=DIR] [save_weights=true|false] [checkpoint=DIR] [key.of.a.recipe=value ...]
--   ./segzero --ranks 2 tests/bench/bench_step.lua threads=1 [shards=2] ...
--       the same step by several ranks, or a model that is split over shards of them
--   ./segzero tests/bench/compare_moments.lua DIR DIR    whether two checkpoints had one gradient
--   python tests/bench/bench_step.py DIR
--       the same step by PyTorch and transformers; checks that loss and gradient agree
--
-- The model is tests/bench/bench_step.json (0.3 B parameters) with random weights; another
-- config.json works too, and 3b is the whole release. The reference is a second model with other
-- weights, as after some training, so that the KL term has a gradient.
-- The step is the trainer's own. Only the rows are made here: random patches of an image of
-- image= pixels a side in a prompt of prompt_tokens= tokens. There is no stop token, so every
-- answer has tokens= tokens, and the reward is a pattern. A micro-batch holds one such group.
-- Settings with dots are the recipe's (recipes/refcocog_grpo.lua).
--
-- Prints JSON lines {name, value, unit, limit, ratio, gflop}. gflop counts the operations of the
-- model's products (backward counts twice the forward, nothing is counted again when recomputed).
-- limit is the seconds these take at the matmul rate, the faster of two measurements, before and
-- after the step.
--   sampling_seconds    prompts into the cache, all answers; decoding reads weights more than it
--                       computes
--   reference_seconds   log-probabilities by the reference
--   old_seconds         0: the old log-probabilities are the sampler's
--   update_seconds      forward, loss and backward of all groups; limit and gflop count each prompt
--                       once
--   optimizer_seconds   gradient norm and AdamW; limit: the bytes it must read and write (36 for
--                       each parameter in f32) at the measured bandwidth
--   other_seconds       rewards, advantages, rows
--   step_seconds        the whole step
--   peak_bytes          largest resident set, all models included; of several ranks that of the
--                       largest, and wire_bytes is what rank 0 sent
--   device_memory       largest memory in use on the device, in GiB, next to what was free
--   update_rate         GFLOP/s; its ratio is the model-FLOP utilisation
--   table_*             the trainer's own times; with save= they include writing, the phases do not
-- device=cuda: both models are on the device. Limits are measured there after the step (side= is
-- that of their matrices), so that they take no memory from it. warm= steps run before it and meet
-- each shape for the first time. tests/gpu_check.sh has settings that train the whole 3B on one
-- card of 80 GB.
-- sweep=n runs one step each for n = 2, 4, 8, 16, 32, after one of n = 2 that is not counted.
-- sweep=prompt runs one for 1, 2, 3 and 4 times prompt_tokens with the same image. It prints a line
-- for each point, then for each phase the straight line through the points: the cost of a prompt
-- for any n, the cost of an answer token, and the largest deviation from the line.
-- save=DIR writes DIR/model and DIR/reference (Hugging Face), pixels.safetensors,
-- gradients.safetensors and step.json (ids, answers, log-probabilities, advantages, settings, loss,
-- seconds). save_weights=false writes only config.json of the models and no gradients; the peer
-- then makes random weights.
-- With several ranks the limits are for one thread each, and the optimizer has none.
-- checkpoint=DIR writes a checkpoint after the step.
-- Leaves out: reading data and images, rewards that take time.

local cjson = require "cjson"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local model = require "segzero.models.qwen_vl"
local parallel = require "segzero.train.parallel"
local ranks = require "segzero.core.ranks"
local trainer = require "segzero.train.trainer"
local image = require "segzero.formats.image"
local files = require "segzero.core.files"
local safetensors = require "segzero.formats.safetensors"
local recipe = require "recipes.refcocog_grpo"
local bench = require "tests.bench.bench_work"
local flops = require "segzero.models.qwen_vl.flops"

local C = core.C

local opts = bench.options({ model = core.root
  .. "/tests/bench/bench_step.json", prompts = 4, n = 8, tokens = 128, prompt_tokens = 1000,
  image = 840,
  dtype = "f32", recompute = "false", threads = 2, warm = 0, save_weights = "true", shards = 1,
    device = os.getenv "SEGZERO_DEVICE" or "cpu", settings = {} },
  { model = true, prompts = true, n = true, tokens = true, prompt_tokens = true, image = true,
    dtype = true, recompute = true, threads = true,
    clock = true, sweep = true, save = true, save_weights = true, device = true, side = true,
      warm = true, shards = true, checkpoint = true })
for _, key in ipairs { "prompts", "n", "tokens", "prompt_tokens", "image", "warm", "shards" } do
  opts[key] = tonumber(opts[key]) or error(("bench_step: %s is not a number"):format(key), 0)
end
if opts.sweep and opts.sweep ~= "n" and opts.sweep ~= "prompt" then
  error("bench_step: sweep is n or prompt", 0)
end
if opts.sweep and opts.save then error("bench_step: save= is of one step, not of a sweep", 0) end
local function check_ranks()
  if not ranks.launched() then
    if opts.shards > 1 then error("bench_step: shards= needs segzero --ranks N", 0) end
    return
  end
  -- Every rank would write the same files.
  if opts.save then error("bench_step: save= is of one rank; checkpoint= works on several", 0) end
  if opts.sweep then error("bench_step: sweep= is of one rank", 0) end
end
check_ranks()
local now = bench.clock(opts)
local causal_pairs = flops.causal_pairs

local p = parallel.alone()
if ranks.launched() then p = parallel.new(3600, { shards = opts.shards }) end
if not p:is_root() then parallel.quiet() end

local on_device = opts.device ~= "cpu"
local json = bench.config(opts.model)
  or error(("bench_step: model=%s is neither a .json nor a released size"):format(opts.model), 0)
local made_at = now()
local function new_model(seed)
  return model.random(json, { dtype = opts.dtype, device = opts.device, seed = seed,
    repeated = on_device, shards = p.shard_group })
end
local policy = new_model(1)
local reference = new_model(2)
made_at = now() - made_at
local counts = flops.counts(policy)
local parameters = 0
for _, w in ipairs(policy.weights) do
  local numel = 1
  for _, d in ipairs(w.shape) do numel = numel * d end
  parameters = parameters + numel
end

-- ---- rows: text of any length around an image ----
local BEFORE = 15
local side = opts.image / policy.config.v_patch
local image_tokens = (side / policy.config.v_merge) ^ 2
local prompt_tokens

local function rows_with(length)
  if length < BEFORE + image_tokens + 3 then
    error(("bench_step: prompt_tokens below %d"):format(BEFORE + image_tokens + 3), 0)
  end
  prompt_tokens = length
end
rows_with(opts.prompt_tokens)

-- Patches are drawn once for each place in the batch. Drawing them anew would take a visible part
-- of a step on a device.
local drawn = {}

function policy.process(vl, messages)
  local number = tonumber(messages[#messages].content[2].text)
  local place = number % opts.prompts
  local input = bench.input(vl, { image = { opts.image, opts.image }, before = BEFORE,
    after = prompt_tokens - image_tokens - BEFORE - 2,
    seed = number, pixels = drawn[place] })
  drawn[place] = drawn[place] or input.pixel_values:clone()
  return input
end

function policy.stop_ids() return {} end
function policy.processor() return {} end       -- no images are read: nothing may be prefetched

local rows = { name = "random" }
function rows.count() return 100000 end
function rows.row(_, i)
  return { id = i, index = i, problem = tostring(i), solution = "", image = image.new(28, 28) }
end

-- Without a tokenizer an answer has no text. It is enough that rewards differ within a group.
local function reward(_, _, row)
  row.judged = (row.judged or 0) + 1
  return row.judged * 5 % 7
end

-- ---- the trainer, with a clock around its methods ----
local settings = { "data.shuffle=false", "data.rollout_batch_size="
  .. opts.prompts, "data.max_response_length=" .. opts.tokens,
  "data.max_prompt_length=1000000", "worker.actor.global_batch_size="
    .. opts.prompts, "worker.rollout.n=" .. opts.n,
  "worker.actor.model.dtype=" .. opts.dtype, "worker.actor.model.enable_gradient_checkpointing="
    .. opts.recompute,
  "worker.actor.max_tokens_per_micro_batch=" .. opts.prompt_tokens + opts.n * opts.tokens }
for _, word in ipairs(opts.settings) do settings[#settings + 1] = word end
if opts.checkpoint then files.make_dir(opts.checkpoint) end
local t = trainer.new { config = recipe.schema:read(settings), policy = policy,
  reference = reference,
  reward = reward, train = rows, prompt = function(problem) return problem end, parallel = p,
  folder = opts.checkpoint }
t.total_steps = 0               -- none follows: nothing is prepared for the next one

local spent = {}
local inner = 0

-- Time spent in object.name, without the time of watched calls inside it.
local function watch(object, name, phase)
  local f = object[name]
  if not f then error(("bench_step: the trainer has no %s any more"):format(name), 0) end
  object[name] = function(...)
    local start = now()
    local outside = inner
    inner = 0
    local function done(...)
      local seconds = now() - start
      spent[phase] = (spent[phase] or 0) + seconds - inner
      inner = outside + seconds
      return ...
    end
    return done(f(...))
  end
end

-- ---- files for a peer ----
-- Writing is timed too, so that no phase includes it (the trainer's own table does).
local saved
local writer = {}

function writer.inputs(groups)
  local pixels = {}
  saved = { groups = {}, settings = t.config, dtype = opts.dtype, threads = tonumber(opts.threads) }
  for i, g in ipairs(groups) do
    local answers = {}
    for k, a in ipairs(g.samples) do
      answers[k] = { ids = a.ids, logprobs = a.logprobs, advantage = a.advantage }
    end
    saved.groups[i] = { input_ids = g.input.input_ids, grid = g.input.image_grid_thw,
      answers = answers }
    pixels["pixels." .. i - 1] = g.input.pixel_values
  end
  safetensors.save(opts.save .. "/pixels.safetensors", pixels)
end

function writer.gradients()
  if opts.save_weights == "false" then return end
  local gradients = {}
  for _, p in ipairs(t.parameters) do gradients[p.name] = p.tensor:grad() end
  safetensors.save(opts.save .. "/gradients.safetensors", gradients)
  for _, g in pairs(gradients) do g:free() end
end

local function before(object, name, first)
  local f = object[name]
  object[name] = function(...)
    first(select(2, ...))
    return f(...)
  end
end

watch(t, "rollout", "sampling")
watch(t, "reference_log_probs", "reference")
watch(t, "update", "update")
watch(t.optimizer, "step", "optimizer")
if opts.save then
  files.make_dir(opts.save)
  for name, vl in pairs { model = policy, reference = reference } do
    local dir = opts.save .. "/" .. name
    if opts.save_weights == "false" then
      files.make_dir(dir)
      files.write(dir .. "/config.json", cjson.encode(json))
    else
      vl:save(dir)
    end
  end
  watch(writer, "inputs", "writing")
  watch(writer, "gradients", "writing")
  before(t, "update", writer.inputs)
  before(t.optimizer, "step", writer.gradients)
end
watch(t, "step", "other")

local PHASES = { "sampling", "reference", "update", "optimizer", "other" }

local function run_step()
  spent = {}
  inner = 0
  local stats = p:run(t.step, t)
  local seconds = { step = 0 }
  for _, phase in ipairs(PHASES) do
    seconds[phase] = spent[phase] or 0
    seconds.step = seconds.step + seconds[phase]
  end
  return seconds, stats
end

-- Operations of each phase of a step with these sizes.
local function operations(prompts, n, tokens)
  local vision = counts.vision(side, side)
  local made = n * (tokens - 1)
  local pairs_made = n * causal_pairs(tokens - 1, prompt_tokens)
  local pass = vision + counts.text(prompt_tokens + made,
    causal_pairs(prompt_tokens, 0) + pairs_made, n * tokens)
  local sampling = vision + counts.text(prompt_tokens, causal_pairs(prompt_tokens, 0),
    1) + counts.text(made, pairs_made, made)
  return { sampling = prompts * sampling, reference = prompts * pass, update = 3 * prompts * pass }
end

local function one_step()
  bench.emit("parameters", parameters / 1e6, "million")
  bench.emit("prompt_tokens", prompt_tokens, "tokens")
  bench.emit("answer_tokens", opts.prompts * opts.n * opts.tokens, "tokens")
  bench.emit("models_seconds", made_at, "s")
  local rate = on_device and 0 or bench.flop_limit(opts.dtype)
  for _ = 1, opts.warm do run_step() end
  local sent = ranks.bytes_sent()
  local seconds, stats = run_step()
  sent = ranks.bytes_sent() - sent
  local used, free = bench.device_used()
  local peak = 0
  for _, bytes in ipairs(p:together(function() return tonumber(C.sz_peak_rss()) end)) do
    peak = math.max(peak, bytes)
  end
  rate = math.max(rate, bench.flop_limit(opts.dtype))
  bench.emit("matmul", rate, "GFLOP/s")
  local work = operations(opts.prompts, opts.n, opts.tokens)
  local total = 0
  for _, phase in ipairs { "sampling", "reference", "update" } do
    local gflop = work[phase] / 1e9
    total = total + gflop
    bench.emit(phase .. "_seconds", seconds[phase], "s",
      { limit = gflop / rate, lower = true, gflop = gflop })
    if phase == "update" then
      bench.emit("update_rate", gflop / seconds.update, "GFLOP/s", { limit = rate })
    end
    if phase == "sampling" then bench.emit("old_seconds", 0, "s") end
  end
  -- The norm reads the gradients. The update reads gradients, moments and masters, writes moments,
  -- masters and weights, and clears the gradients.
  local actor = t.config.worker.actor
  local gradient = tensor.WIDTH[actor.grad_dtype]
  local moment = tensor.WIDTH[actor.optim.state_dtype] or 1
  local weight = tensor.WIDTH[opts.dtype]
  local weight_bytes = 2 * weight
  if weight == 2 and actor.optim.master_weights then weight_bytes = 8 + weight end
  local bytes = parameters * (3 * gradient + 4 * moment + weight_bytes)
  local limit
  if p.size == 1 then limit = bytes / bench.read_rate(2) / 1e9 end
  bench.emit("optimizer_seconds", seconds.optimizer, "s", { limit = limit, lower = true })
  bench.emit("other_seconds", seconds.other, "s")
  bench.emit("step_seconds", seconds.step, "s",
    { limit = total / rate, lower = true, gflop = total })
  bench.emit("peak_bytes", peak, "bytes")
  if p.size > 1 then bench.emit("wire_bytes", sent, "bytes") end
  if used then bench.emit("device_memory", used, "GiB", { limit = free }) end
  local names = {}
  local phases = stats.time or stats.seconds
  for name in pairs(phases) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do bench.emit("table_" .. name, phases[name], "s") end
  if saved then
    saved.stats, saved.seconds, saved.peak, saved.device = stats, seconds, used and used * 2 ^ 30
      or peak, opts.device
    files.write(opts.save .. "/step.json", cjson.encode(saved))
  end
end

-- ---- growth with the size ----
-- Least squares y = a + b x, and the largest relative distance of a point from the line.
local function line(xs, ys)
  local n = #xs
  local sx = 0
  local sy = 0
  local sxx = 0
  local sxy = 0
  for i = 1, n do
    sx = sx + xs[i]
    sy = sy + ys[i]
    sxx = sxx + xs[i] ^ 2
    sxy = sxy + xs[i] * ys[i]
  end
  local b = (n * sxy - sx * sy) / (n * sxx - sx ^ 2)
  local a = (sy - b * sx) / n
  local worst = 0
  for i = 1, n do worst = math.max(worst, math.abs(a + b * xs[i] - ys[i]) / ys[i]) end
  return a, b, worst
end

local SHOWN = { "sampling", "reference", "update", "step" }

local function sweep(name, values, set, size, unit)
  set(values[1])
  run_step()
  local sizes = {}
  local by_phase = { sampling = {}, reference = {}, update = {}, step = {} }
  for i, v in ipairs(values) do
    set(v)
    local seconds = run_step()
    sizes[i] = size(v)
    local parts = { ('{"name": "sweep_%s", "n": %d, "%s": %d'):format(name, t.options.rollout.n,
      unit, sizes[i]) }
    for _, phase in ipairs(SHOWN) do
      by_phase[phase][i] = seconds[phase]
      parts[#parts + 1] = ('"%s_seconds": %s'):format(phase, bench.rounded(seconds[phase]))
    end
    parts[#parts + 1] = ('"step_ms_per_answer_token": %s'):format(
      bench.rounded(1e3 * seconds.step / (opts.prompts * t.options.rollout.n * opts.tokens)))
    print(table.concat(parts, ", ") .. "}")
    io.flush()
  end
  for _, phase in ipairs(SHOWN) do
    local a, b, worst = line(sizes, by_phase[phase])
    local fields = {
      ('"name": "line_%s"'):format(name),
      ('"phase": "%s"'):format(phase),
      ('"seconds_at_0": %s'):format(bench.rounded(a)),
      ('"ms_per_%s": %s'):format(unit:sub(1, -2), bench.rounded(1e3 * b)),
      ('"largest_deviation": %.3f'):format(worst),
    }
    print("{" .. table.concat(fields, ", ") .. "}")
  end
  bench.emit("peak_bytes", tonumber(C.sz_peak_rss()), "bytes")
end

if opts.sweep == "n" then
  sweep("n", { 2, 4, 8, 16, 32 }, function(n) t.options.rollout.n = n end,
    function(n) return opts.prompts * n * opts.tokens end, "answer_tokens")
elseif opts.sweep == "prompt" then
  local lengths = {}
  for i = 1, 4 do lengths[i] = i * opts.prompt_tokens end
  sweep("prompt", lengths, rows_with, function(length) return opts.prompts * length end,
    "prompt_tokens")
else
  one_step()
end
if opts.checkpoint then p:run(t.save, t) end
