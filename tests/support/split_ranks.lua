-- split_ranks.lua - one rank of tests/system/test_split_model.lua: the split model against the
-- whole one, which every rank has, too.
--
--   mpirun -n 4 ./segzero tests/support/split_ranks.lua KIND[:cuda] FOLDER...
--
-- KIND: plain, lora, frozen, bf16, int8, int4, generate; with :cuda the split model is on that
-- device. Prints "ok N" with the number of values and gradients that were compared, and fails at
-- the first wrong one. What all shards have must have the same bits.

local sz = require "segzero"
local mini = require "tests.support.miniature"
local split = require "tests.support.split_model"
local data = require "segzero.data"
local forward = require "segzero.train.forward"
local lora = require "segzero.models.lora"
local ranks = require "segzero.core.ranks"
local tensor = require "segzero.core.tensor"

local C = sz.core.C
local group = ranks.world()
local compared = 0

-- Of the largest logit, and of a gradient's norm; the sums have other orders. On a device, other
-- functions of the hardware, too: what test_cuda_emulated.lua allows.
local VALUES = 1e-5
local GRADIENTS = 1e-4
local ON_DEVICE = 1e-4

local function fail(text, ...)
  error(("rank %d: "):format(group:rank()) .. text:format(...), 0)
end

-- ---- comparing ----
local function host(t) return t:to { device = "cpu" } end

local function list_of(t) return t:reshape(t:numel()):totable() end

local function check_same_bits(t, what)
  local mine = mini.bytes(host(t))
  for r, bytes in ipairs(group:gather(mine)) do
    if bytes ~= mine then fail("%s has other bits on rank %d", what, r - 1) end
  end
end

-- Every number of got is within `tolerance` of the largest expected one.
local function check_values(got, want, tolerance, what)
  local a = list_of(host(got))
  local b = list_of(want)
  if #a ~= #b then fail("%s: %d numbers, expected %d", what, #a, #b) end
  local largest = 0
  for i = 1, #b do largest = math.max(largest, math.abs(b[i])) end
  for i = 1, #b do
    if not (math.abs(a[i] - b[i]) <= tolerance * largest) then
      fail("%s: number %d is %.9g, expected %.9g (largest %.3g)", what, i, a[i], b[i], largest)
    end
  end
  check_same_bits(got, what)
  compared = compared + #b
end

local function norm(t)
  local sum = 0
  for _, v in ipairs(list_of(t)) do sum = sum + v * v end
  return math.sqrt(sum)
end

-- ---- gradients ----
-- The weight of an answer's token in the loss.
local function weight_of(sample, token, salt)
  return 2 * C.sz_random_uniform(5, sample.number, token, salt) - 1
end

local function loss(runs, logprob, entropy)
  local by_logprob = {}
  local by_entropy = {}
  for _, run in ipairs(runs) do
    for token = run.first, run.last do
      by_logprob[#by_logprob + 1] = weight_of(run.sample, token, 1)
      by_entropy[#by_entropy + 1] = weight_of(run.sample, token, 2)
    end
  end
  local where = { device = logprob:device() }
  return (logprob * tensor.new(by_logprob, where)):sum()
    + (entropy * tensor.new(by_entropy, where)):sum()
end

-- {name -> {tensor, gradient}} of the trained tensors after the backward pass.
local function gradients(model, filter, batch, options)
  local list = {}
  for _, p in ipairs(model:train(filter)) do list[p.name] = p.tensor end
  forward.run(model, batch, options, loss)
  local grads = {}
  for name, t in pairs(list) do
    local g = t:grad()
    grads[name] = g and g:to { device = "cpu" } or tensor.zeros(t:shape())
    if grads[name] == g then grads[name] = g:clone() end
    C.sz_tensor_zero_grad(t.ptr)
  end
  return grads
end

-- The copies of a slice: a group of their own.
local function sum_over_copies(w, g)
  local copies = group:split(group:rank() - w.copy)
  if copies:size() ~= w.copies then fail("%d ranks have one slice", copies:size()) end
  if w.is_part then copies:all_reduce(g) end
end

-- How the tensor with this name is divided: a weight, or an adapter's part.
local function division_of(part, name)
  local divisions = split.weights(part)
  if divisions[name] then return divisions[name] end
  local module, which = name:match "^base_model%.model%.(.+)%.lora_([AB])%.weight$"
  local w = divisions[part:weight_name(module)]
  local halves = { A = 1, B = 0 }
  if w.dim and w.dim ~= halves[which] then
    w = { copies = group:size(), copy = group:rank(), is_part = false }
  end
  return w
end

-- The same order on all ranks.
local function sorted_names(tensors)
  local names = {}
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  return names
end

local function check_gradients(got, want, part, what)
  local names = sorted_names(want)
  local total = 0
  for _, g in pairs(want) do total = total + norm(g) end
  local least = 0.01 * total / #names
  for _, name in ipairs(names) do
    local w = division_of(part, name)
    local own = got[name]
    sum_over_copies(w, own)
    local size = math.max(norm(want[name]), least)
    local off = norm(own - split.slice(w, want[name]))
    if not (off <= GRADIENTS * size) then
      fail("%s: the gradient of %s is off by %.3g of its norm %.3g", what, name, off / size, size)
    end
    if not w.dim then check_same_bits(own, "the gradient of " .. name) end
    compared = compared + own:numel()
  end
end

-- ---- prompts and answers ----
local SIZES = { { 84, 84 }, { 56, 140 }, { 112, 28 } }

-- A prompt with the first images of SIZES.
local function input_of(model, images)
  local content = {}
  local set = data.open("refshapes", { split = "train", size = 112, seed = 3, rows = 10 })
  for i = 1, images do
    content[i] = { type = "image", image = set:row(i).image:resize(unpack(SIZES[i])) }
  end
  content[images + 1] = { type = "text", text = "the red circle" }
  return model:process { { role = "user", content = content } }
end

local function batch_of(model, images)
  local input = input_of(model, images)
  local samples = {}
  for k, length in ipairs { 7, 1, 4 } do
    local ids = {}
    for i = 1, length do ids[i] = 1 + math.floor(C.sz_random_uniform(3, k, i, 0) * 90) end
    samples[k] = { ids = ids, number = k + 10 * images }
  end
  return { input = input, samples = samples }
end

local function both(whole, part, filter, what)
  local groups = { batch_of(whole, 1), batch_of(whole, 0), batch_of(whole, 3) }
  for _, recompute in ipairs { false, true } do
    local options = { temperature = 0.7, recompute = recompute,
      frozen_vision = filter and not filter "visual.blocks.0.norm1.weight" }
    local name = ("%s, recompute %s"):format(what, tostring(recompute))
    local batch = { groups = groups }
    check_gradients(gradients(part, filter, batch, options),
      gradients(whole, filter, batch, options), part, name)

    -- The prompt as a shared prefix, and two chunks that continue it.
    local samples = groups[1].samples
    batch = { groups = { groups[1] }, chunks = { { samples[1] }, { samples[3] } } }
    check_gradients(gradients(part, filter, batch, options),
      gradients(whole, filter, batch, options), part, name .. ", chunks")
  end
end

local function check_forward(whole, part, what)
  local tolerance = VALUES
  if part.device ~= "cpu" then tolerance = ON_DEVICE end
  for images = 0, 3 do
    local g = batch_of(whole, images)
    local name = ("%s, %d images: "):format(what, images)
    tensor.no_grad(function()
      check_values(part:forward(g.input), whole:forward(g.input), tolerance, name .. "logits")
      local lists = {}
      for i, s in ipairs(g.samples) do lists[i] = s.ids end
      local got = part:logprobs(g.input, lists)
      local want = whole:logprobs(g.input, lists)
      for i = 1, #want do check_values(got[i], want[i], tolerance, name .. "log-probabilities") end
    end)
  end
end

-- ---- kinds ----
local KINDS = {}

function KINDS.plain(whole, part, dir)
  check_forward(whole, part, dir)
  both(whole, part, nil, dir)

  -- Gradients through the logits themselves.
  local function through_logits(model)
    local list = {}
    for _, p in ipairs(model:train()) do list[p.name] = p.tensor end
    local out = {}
    tensor.step(function()
      local logits = model:forward(batch_of(whole, 1).input)
      local w = {}
      for i = 1, logits:numel() do w[i] = 2 * C.sz_random_uniform(9, 0, i, 0) - 1 end
      w = tensor.new(w, { device = logits:device() })
      ;(logits:reshape(logits:numel()) * w):sum():backward()
    end)
    for name, t in pairs(list) do
      out[name] = t:grad():clone():to { device = "cpu" }
      C.sz_tensor_zero_grad(t.ptr)
    end
    return out
  end
  check_gradients(through_logits(part), through_logits(whole), part, dir .. ", logits")
end

function KINDS.lora(whole, part, dir)
  lora.attach(whole, { rank = 3, alpha = 6, target_modules = "all-linear", seed = 4 })
  for _, p in ipairs(whole.lora.list) do
    local data = tensor.data(p.b)
    for i = 0, p.b:numel() - 1 do data[i] = 0.4 * C.sz_random_uniform(8, p.index, i, 0) - 0.2 end
  end
  split.adapters(whole, part)
  check_forward(whole, part, dir)
  both(whole, part, nil, dir)
end

function KINDS.frozen(whole, part, dir)
  both(whole, part, function(name) return not name:find "^visual" end, dir)
  -- One trained weight only: what the others' gradients would need is not computed.
  both(whole, part, function(name) return name:find "layers%.0%.mlp%.down_proj" ~= nil end, dir)
  -- The tower only: a shard without images has nothing to train.
  both(whole, part, function(name) return name:find "^visual" ~= nil end, dir)
end

-- The share of rows that are within VALUES of the largest number.
local function equal_rows(got, want)
  local off = (got - want):abs():max(1):totable()
  local largest = want:abs():max():item()
  local count = 0
  for _, v in ipairs(off) do if v <= VALUES * largest then count = count + 1 end end
  return count / #off
end

-- Shards whose slices are whole groups of 256 columns have the whole model's packed weights. But
-- activations are rounded to 8 bits, too: one that differs in its last bits and is next to a
-- boundary goes to the next of 255 steps, and all later tokens see it. So the first rows are equal,
-- and on the whole rounding costs no more than in the whole model.
local function check_packed(bits, whole, part, dir)
  local exact = tensor.no_grad(whole.forward, whole, batch_of(whole, 1).input)
  for _, m in ipairs { whole, part } do sz.core.check(C.sz_model_quantize(m.c, bits)) end
  local input = batch_of(whole, 1).input
  local want = tensor.no_grad(whole.forward, whole, input)
  local got = host(tensor.no_grad(part.forward, part, input))
  check_same_bits(got, dir .. ": logits")
  local cost = norm(want - exact)
  local own_cost = norm(got - exact)
  if not (own_cost <= 1.2 * cost and cost > 0) then
    fail("%s: %d bits cost the split model %.3g, the whole one %.3g", dir, bits, own_cost, cost)
  end
  if dir:find "wide" and not (equal_rows(got, want) > 0.1) then
    fail("%s: %g of the rows are the whole model's", dir, equal_rows(got, want))
  end
  compared = compared + got:numel()
end

function KINDS.int8(...) check_packed(8, ...) end
function KINDS.int4(...) check_packed(4, ...) end

-- In bf16 each shard rounds its part of a sum, and the sum is rounded again. So the split model is
-- no closer to the whole one than to the exact numbers; how far it is from these is what counts.
local ROUNDS_MORE = 1.5

function KINDS.bf16(exact, _, dir)
  local folder = exact.dir
  local whole = sz.qwen_vl(folder, { dtype = "bf16" })
  local part = split.model(whole, group)
  local input = input_of(exact, 3)
  local want, plain, own
  tensor.no_grad(function()
    want = exact:forward(input)
    plain = whole:forward(input)
    own = part:forward(input)
  end)
  check_same_bits(own, dir .. ": logits in bf16")
  local off = norm(own - want)
  local limit = ROUNDS_MORE * norm(plain - want)
  if not (off <= limit) then fail("%s: logits are off by %.3g of %.3g", dir, off, limit) end

  -- The gradients, all together: one that is small has large terms that cancel.
  local batch = { groups = { batch_of(exact, 1), batch_of(exact, 3) } }
  local options = { temperature = 1 }
  local of_exact = gradients(exact, nil, batch, options)
  local of_whole = gradients(whole, nil, batch, options)
  local of_part = gradients(part, nil, batch, options)
  off = 0
  limit = 0
  for _, name in ipairs(sorted_names(of_exact)) do
    local g = of_exact[name]
    local w = division_of(part, name)
    local own_gradient = of_part[name]:to { dtype = "f32" }
    sum_over_copies(w, own_gradient)
    local slice = split.slice(w, g)
    off = off + norm(own_gradient - slice) ^ 2
    limit = limit + norm(split.slice(w, of_whole[name]:to { dtype = "f32" }) - slice) ^ 2
    if not w.dim then check_same_bits(own_gradient, "the gradient of " .. name) end
    compared = compared + g:numel()
  end
  if not (math.sqrt(off) <= ROUNDS_MORE * math.sqrt(limit) and limit > 0) then
    fail("%s: gradients are off by %.3g, the whole model's by %.3g", dir, math.sqrt(off),
      math.sqrt(limit))
  end
  part:free()
  whole:free()
end

-- Graphs that the emulated device has launched.
local function graphs()
  local ffi = require "ffi"
  pcall(ffi.cdef, [[
    typedef struct {
      unsigned long uploads, downloads, waits, allocations, launches, graphs, captures;
    } sz_emu_count;
    const sz_emu_count *sz_emu_counts(void);]])
  return tonumber(ffi.load(os.getenv "SEGZERO_CUDA_LIBRARY").sz_emu_counts().graphs)
end

-- The cache and the sampler: the same tokens on all shards as in the whole model.
function KINDS.generate(whole, part, dir)
  local input = batch_of(whole, 1).input
  for _, temperature in ipairs { 0, 1 } do
    local options = { n = 3, temperature = temperature, max_new_tokens = 12, seed = 5 }
    local want = whole:generate(input, options)
    local got = part:generate(input, options)
    for i, answer in ipairs(want) do
      local a = table.concat(got[i].ids, " ")
      local b = table.concat(answer.ids, " ")
      if a ~= b then fail("%s: answer %d is %s, expected %s", dir, i, a, b) end
      for k, v in ipairs(answer.logprobs) do
        if math.abs(got[i].logprobs[k] - v) > 1e-4 then fail("%s: a log-probability", dir) end
      end
      compared = compared + #answer.ids
    end
  end

  -- Steps are recorded where the devices talk to each other; through host memory they cannot be.
  if part.device == "cpu" then return end
  local linked = C.sz_comm_is_linked(group.pointer) == 1
  if linked ~= (graphs() > 0) then
    fail("%s: %d graphs, linked %s", dir, graphs(), tostring(linked))
  end
end

local function run_all(kind, device, folders)
  local run = KINDS[kind] or error("no kind " .. tostring(kind))
  for _, folder in ipairs(folders) do
    local whole = sz.qwen_vl(folder, { dtype = "f32" })
    local part = split.model(whole, group, device)
    run(whole, part, folder:match "[^/]+$")
    part:free()
    whole:free()
  end
end

local ok, why = xpcall(function()
  local kind, device = arg[1]:match "^(%w+):?(%w*)$"
  run_all(kind, device == "" and "cpu" or device, { unpack(arg, 2) })
end, debug.traceback)
if not ok then
  io.stderr:write(why, "\n")
  ranks.abort(1)
  os.exit(1)
end
print(("ok %d"):format(compared))
