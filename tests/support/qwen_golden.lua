-- qwen_golden.lua - what the tests against transformers' results share: a tiny checkpoint of tests/golden/qwen_vl or qwen2_vl
-- and its recorded case (README.md there): logits, gradients of every parameter, bf16, recomputation, greedy tokens.
--
--   local golden = require "tests.support.qwen_golden"
--   golden.run "qwen_vl/Q1"                   every check of that configuration
--   golden.case "qwen_vl/Q1"                  its folder, case.json's table, case.safetensors' tensors
--   golden.input_of(sequence, tensors)        what vl:forward takes
--   golden.loss_of(vl, sequence, tensors, recompute)          the case's scripted loss, and its log-probabilities
--   golden.flat(t), golden.relative(got, want), golden.cosine(a, b)      a tensor's numbers as a list; how far lists are apart
--   golden.LOGITS_TOL, golden.GRAD_TOL

local cjson = require "cjson"
local check = require "tests.support.check"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"

local ROOT = "tests/golden/"

local M = {}

-- Another order of summation moves f32 results by about 1e-6 of the largest value (f32_noise in case.json); a few times that
-- still catches a wrong constant.
local LOGITS_TOL, GRAD_TOL = 2e-5, 1e-4
M.LOGITS_TOL, M.GRAD_TOL = LOGITS_TOL, GRAD_TOL
local BF16_COSINE = 0.999       -- bf16 keeps 8 bits: only the direction is comparable

local function read_json(path)
  local file = assert(io.open(path, "r"))
  local text = file:read "*a"
  file:close()
  return cjson.decode(text)
end

local pixels_u8 = sz.safetensors.load(ROOT .. "qwen_vl/pixels.safetensors")

-- The pictures' patches as the model gets them: (u8 - 128) / 64.
local function pixel_values(names)
  local parts, rows, width = {}, 0, 0
  for i, name in ipairs(names) do
    parts[i] = pixels_u8[name]:cast(0):affine(1 / 64, -2)
    rows, width = rows + parts[i]:shape()[1], parts[i]:shape()[2]
  end
  if #parts == 0 then return nil end
  local all, at = tensor.empty { rows, width }, 0
  for _, p in ipairs(parts) do
    local n = p:shape()[1]
    all:narrow(at, n):copy_(p)
    at = at + n
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
  local grid = t[p .. "image_grid_thw"]
  return { input_ids = t[p .. "input_ids"]:totable(), position_ids = positions, next_position = highest + 1,
    pixel_values = pixel_values(sequence.pictures), image_grid_thw = grid and grid:totable() or {} }
end

local function flat(t) return t:reshape(t:numel()):totable() end

-- Largest difference over the largest magnitude of want.
local function relative(got, want)
  local difference, largest = 0, 1e-30
  for i = 1, #want do
    local d = math.abs(got[i] - want[i])
    if not (d <= difference) then difference = d ~= d and math.huge or d end
    largest = math.max(largest, math.abs(want[i]))
  end
  return difference / largest
end

local function cosine(a, b)
  local ab, aa, bb = 0, 0, 0
  for i = 1, #a do ab, aa, bb = ab + a[i] * b[i], aa + a[i] * a[i], bb + b[i] * b[i] end
  return ab / math.sqrt(aa * bb)
end

M.flat, M.relative, M.cosine = flat, relative, cosine

-- The scripted loss: sum of coef * log p(target) at given positions; gradients accumulate in the model's parameters.
function M.loss_of(vl, sequence, t, recompute)
  local p = sequence.prefix
  local input = M.input_of(sequence, t)
  local stream = packing.stream({ { input = input, answers = {} } }, vl.image_token_id)
  local features = vl:vision({ input }, { recompute = recompute })
  local hidden = vl:hidden(stream, features, { rows = t[p .. "loss_positions"], recompute = recompute })
  local lp = vl:logprob_of(hidden, t[p .. "loss_targets"])
  return (lp * t[p .. "loss_coefs"]:to { device = vl.device }):sum(), lp
end

local function check_gradients(vl, name, sequence, t)
  local worst, worst_name, seen = 0, "", 0
  for parameter, g in pairs(vl:parameters()) do
    local entry = sequence.gradients[parameter]
    local grad = g:grad()
    if entry then
      seen = seen + 1
      local got, want = {}, t[sequence.prefix .. "grad." .. parameter]:totable()
      local values = check.host(grad)
      local p = tensor.data(values)
      local squares, norm = 0, 0
      for i = 0, entry.numel - 1 do norm = norm + p[i] * p[i] end
      for i = 1, entry.count do
        got[i] = p[(i - 1) * entry.stride]
        squares = squares + (got[i] - want[i]) ^ 2
      end
      -- Distance of the sampled elements, scaled up to the whole tensor, over the tensor's norm.
      local d = math.sqrt(squares * entry.numel / entry.count) / math.max(entry.norm, 1e-12)
      d = math.max(d, math.abs(math.sqrt(norm) / entry.norm - 1))
      if not (d <= worst) then worst, worst_name = d, parameter end
    end
    if grad then g:zero_grad() end
  end
  local expected = 0
  for _ in pairs(sequence.gradients) do expected = expected + 1 end
  check.equal(seen, expected, name .. ": every parameter has a gradient")
  check.ok(worst <= GRAD_TOL, ("%s: gradients within %g (worst %.2g, %s)"):format(name, GRAD_TOL, worst, worst_name))
  return worst
end

function M.case(folder)
  folder = ROOT .. folder
  return folder, read_json(folder .. "/case.json"), sz.safetensors.load(folder .. "/case.safetensors")
end

-- Every check of one configuration; folder: below tests/golden.
function M.run(folder)
  local id = folder:match "[^/]+$"
  local case, t
  folder, case, t = M.case(folder)
  local vl = sz.qwen_vl(folder, { dtype = "f32" })
  vl:train()
  local half = sz.qwen_vl(folder, { dtype = "bf16" })
  local worst_logits, worst_grad, lowest = 0, 0, 1
  for _, sequence in ipairs(case.sequences) do
    local name, p = id .. " " .. sequence.label, sequence.prefix
    local input = M.input_of(sequence, t)
    local want = flat(t[p .. "logits"])
    local rows = t[p .. "logit_rows"]
    local got = sz.no_grad(function() return flat(vl:forward(input):gather_rows(rows)) end)
    local d = relative(got, want)
    worst_logits = math.max(worst_logits, d)
    check.ok(d <= LOGITS_TOL, ("%s: logits within %g (%.2g)"):format(name, LOGITS_TOL, d))
    local c = cosine(flat(half:forward(input):gather_rows(rows)), want)
    lowest = math.min(lowest, c)
    check.ok(c > BF16_COSINE, ("%s: bf16 cosine above %g (%.6f)"):format(name, BF16_COSINE, c))
    for _, recompute in ipairs { false, true } do
      sz.step(function()
        local loss, lp = M.loss_of(vl, sequence, t, recompute)
        check.near(lp:totable(), t[p .. "loss_logprobs"]:totable(), 1e-4, name .. ": log-probabilities")
        loss:backward()
      end)
      worst_grad = math.max(worst_grad, check_gradients(vl, name .. (recompute and " recomputed" or ""), sequence, t))
    end
    if sequence.greedy then
      local greedy = type(sequence.greedy) == "table" and (sequence.greedy.ids or sequence.greedy) or nil
      local out = vl:generate(input, { temperature = 0, max_new_tokens = #greedy, ignore_eos = true })[1]
      check.equal(out.ids, greedy, name .. ": greedy tokens")
      -- Prefill and decoding must equal the full forward over prompt and answer.
      local full = sz.no_grad(function() return vl:logprobs(input, { out.ids })[1]:totable() end)
      check.near(out.logprobs, full, 1e-4, name .. ": prefill + decode equals the full forward")
    end
  end
  print(("%s: %d sequences, logits %.1e, gradients %.1e, bf16 cosine %.6f"):format(id, #case.sequences, worst_logits, worst_grad, lowest))
end

return M
