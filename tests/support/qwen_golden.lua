-- qwen_golden.lua - what the tests against transformers' results share: a tiny checkpoint of
-- tests/golden/qwen_vl or qwen2_vl and its recorded case (README.md there): logits, gradients of
-- every parameter, bf16, recomputation, greedy tokens.
--
--   local golden = require "tests.support.qwen_golden"
--   golden.run "qwen_vl/Q1"              every check of that configuration, as named cases
--   golden.case "qwen_vl/Q1"             its folder, case.json's table, case.safetensors' tensors
--   golden.input_of(sequence, tensors)   what vl:forward takes
--   golden.loss_of(vl, sequence, tensors, recompute)     the case's scripted loss, and its
--                                                        log-probabilities
--   golden.flat(t)                       a tensor's numbers as a list
--   golden.relative(got, want)           how far two lists differ, over want's largest magnitude
--   golden.cosine(a, b)                  of two lists
--   golden.LOGITS_TOL, golden.GRAD_TOL
-- Leaves out: adapters (test_lora.lua), sampling (test_generate.lua).

local cjson = require "cjson"
local check = require "tests.support.check"
local sz = require "segzero"
local packing = require "segzero.inference.packing"
local tensor = require "segzero.core.tensor"

local ROOT = "tests/golden/"

local M = {}

-- Another order of summation moves f32 results by about 1e-6 of the largest value (f32_noise in
-- case.json). A few times that still catches a wrong constant.
M.LOGITS_TOL = 2e-5
M.GRAD_TOL = 1e-4
local LOGPROB_TOL = 1e-4
local BF16_COSINE = 0.999       -- bf16 keeps 8 bits: only the direction is comparable

local function read_json(path)
  local file = assert(io.open(path, "r"))
  local text = file:read "*a"
  file:close()
  return cjson.decode(text)
end

-- ---- the recorded case ----

local pixels_u8 = sz.safetensors.load(ROOT .. "qwen_vl/pixels.safetensors")

-- The images' patches as the model gets them: (u8 - 128) / 64.
local function pixel_values(names)
  if #names == 0 then return nil end
  local parts = {}
  local rows = 0
  for i, name in ipairs(names) do
    parts[i] = pixels_u8[name]:cast(0):affine(1 / 64, -2)
    rows = rows + parts[i]:shape()[1]
  end
  local width = parts[1]:shape()[2]
  local all = tensor.empty { rows, width }
  local start = 0
  for _, part in ipairs(parts) do
    local n = part:shape()[1]
    all:narrow(start, n):copy_(part)
    start = start + n
  end
  return all
end

function M.input_of(sequence, t)
  local p = sequence.prefix
  local positions = t[p .. "position_ids"]
  local highest = 0
  for _, axis in ipairs(positions:totable()) do
    for _, v in ipairs(axis) do highest = math.max(highest, v) end
  end
  local grids = {}
  local stored = t[p .. "image_grid_thw"]
  if stored then grids = stored:totable() end
  return {
    input_ids = t[p .. "input_ids"]:totable(),
    position_ids = positions,
    next_position = highest + 1,
    pixel_values = pixel_values(sequence.images),
    image_grid_thw = grids,
  }
end

function M.case(folder)
  folder = ROOT .. folder
  local tensors = sz.safetensors.load(folder .. "/case.safetensors")
  return folder, read_json(folder .. "/case.json"), tensors
end

-- ---- numbers ----

function M.flat(t) return t:reshape(t:numel()):totable() end

-- The largest difference over the largest magnitude of want; nan counts as infinite.
function M.relative(got, want)
  local difference = 0
  local largest = 1e-30
  for i = 1, #want do
    local d = math.abs(got[i] - want[i])
    if d ~= d then d = math.huge end
    difference = math.max(difference, d)
    largest = math.max(largest, math.abs(want[i]))
  end
  return difference / largest
end

function M.cosine(a, b)
  local ab = 0
  local aa = 0
  local bb = 0
  for i = 1, #a do
    ab = ab + a[i] * b[i]
    aa = aa + a[i] * a[i]
    bb = bb + b[i] * b[i]
  end
  return ab / math.sqrt(aa * bb)
end

-- ---- losses and gradients ----

-- The scripted loss: the sum of coef * log p(target) at given positions. Its backward pass adds to
-- the gradients of the model's parameters.
function M.loss_of(vl, sequence, t, recompute)
  local p = sequence.prefix
  local input = M.input_of(sequence, t)
  local stream = packing.stream({ { input = input, answers = {} } }, vl.image_token_id)
  local features = vl:vision({ input }, { recompute = recompute })
  local rows = t[p .. "loss_positions"]
  local hidden = vl:hidden(stream, features, { rows = rows, recompute = recompute })
  local logprobs = vl:logprob_of(hidden, t[p .. "loss_targets"])
  local coefs = t[p .. "loss_coefs"]:to { device = vl.device }
  return (logprobs * coefs):sum(), logprobs
end

-- How far a gradient is from its stored samples and its stored norm, relative to that norm.
local function gradient_error(grad, entry, want)
  local host = check.host(grad)
  local p = tensor.data(host)
  local norm = 0
  for i = 0, entry.numel - 1 do norm = norm + p[i] * p[i] end
  local squares = 0
  for i = 1, entry.count do squares = squares + (p[(i - 1) * entry.stride] - want[i]) ^ 2 end
  -- The distance of the sampled elements, scaled up to the whole tensor.
  local of_samples = math.sqrt(squares * entry.numel / entry.count) / math.max(entry.norm, 1e-12)
  local of_norm = math.abs(math.sqrt(norm) / entry.norm - 1)
  return math.max(of_samples, of_norm)
end

-- Compares every parameter's gradient with the recorded one and clears it. Returns the worst error.
local function check_gradients(vl, name, sequence, t)
  local worst = 0
  local worst_name = ""
  local seen = 0
  for parameter, weight in pairs(vl:parameters()) do
    local entry = sequence.gradients[parameter]
    local grad = weight:grad()
    if entry then
      seen = seen + 1
      local want = t[sequence.prefix .. "grad." .. parameter]:totable()
      local d = gradient_error(grad, entry, want)
      if not (d <= worst) then
        worst = d
        worst_name = parameter
      end
    end
    if grad then weight:zero_grad() end
  end
  local expected = 0
  for _ in pairs(sequence.gradients) do expected = expected + 1 end
  check.equal(seen, expected, name .. ": every parameter has a gradient")
  local label = ("%s: gradients within %g (worst %.2g, %s)"):format(name, M.GRAD_TOL, worst,
    worst_name)
  check.ok(worst <= M.GRAD_TOL, label)
  return worst
end

-- ---- every check of a configuration ----

-- What the checks of one configuration share; its models are loaded when a case first needs them.
local function open(folder)
  local run = { worst_logits = 0, worst_grad = 0, lowest_cosine = 1 }
  run.id = folder:match "[^/]+$"
  run.folder, run.case, run.tensors = M.case(folder)
  local models = {}
  function run.model(dtype)
    if not models[dtype] then
      models[dtype] = sz.qwen_vl(run.folder, { dtype = dtype })
      if dtype == "f32" then models[dtype]:train() end
    end
    return models[dtype]
  end
  return run
end

local function check_logits(run, name, sequence)
  local t = run.tensors
  local vl = run.model "f32"
  local half = run.model "bf16"
  local input = M.input_of(sequence, t)
  local want = M.flat(t[sequence.prefix .. "logits"])
  local rows = t[sequence.prefix .. "logit_rows"]

  local got = sz.no_grad(function() return M.flat(vl:forward(input):gather_rows(rows)) end)
  local d = M.relative(got, want)
  run.worst_logits = math.max(run.worst_logits, d)
  check.ok(d <= M.LOGITS_TOL, ("%s: logits within %g (%.2g)"):format(name, M.LOGITS_TOL, d))

  local c = M.cosine(M.flat(half:forward(input):gather_rows(rows)), want)
  run.lowest_cosine = math.min(run.lowest_cosine, c)
  check.ok(c > BF16_COSINE, ("%s: bf16 cosine above %g (%.6f)"):format(name, BF16_COSINE, c))
end

local function check_loss(run, name, sequence, recompute)
  local t = run.tensors
  local vl = run.model "f32"
  if recompute then name = name .. " recomputed" end
  sz.step(function()
    local loss, logprobs = M.loss_of(vl, sequence, t, recompute)
    local want = t[sequence.prefix .. "loss_logprobs"]:totable()
    check.near(logprobs:totable(), want, LOGPROB_TOL, name .. ": log-probabilities")
    loss:backward()
  end)
  run.worst_grad = math.max(run.worst_grad, check_gradients(vl, name, sequence, t))
end

local function check_greedy(run, name, sequence)
  local vl = run.model "f32"
  local input = M.input_of(sequence, run.tensors)
  local greedy = sequence.greedy.ids or sequence.greedy
  local options = { temperature = 0, max_new_tokens = #greedy, ignore_eos = true }
  local out = vl:generate(input, options)[1]
  check.equal(out.ids, greedy, name .. ": greedy tokens")
  -- Prefill and decoding must equal the full forward pass over prompt and answer.
  local full = sz.no_grad(function() return vl:logprobs(input, { out.ids })[1]:totable() end)
  check.near(out.logprobs, full, LOGPROB_TOL, name .. ": prefill + decode equals the full forward")
end

-- Every check of one configuration, as named cases; folder: below tests/golden.
function M.run(folder)
  local run = open(folder)
  for _, sequence in ipairs(run.case.sequences) do
    local name = run.id .. " " .. sequence.label
    check.case(name .. ": logits", function() check_logits(run, name, sequence) end)
    check.case(name .. ": gradients", function()
      check_loss(run, name, sequence, false)
      check_loss(run, name, sequence, true)
    end)
    if sequence.greedy then
      check.case(name .. ": greedy tokens", function() check_greedy(run, name, sequence) end)
    end
  end
  if run.worst_logits == 0 then return end        -- no case was selected
  print(("%s: %d sequences, logits %.1e, gradients %.1e, bf16 cosine %.6f"):format(run.id,
    #run.case.sequences, run.worst_logits, run.worst_grad, run.lowest_cosine))
end

return M
