-- test_grpo.lua - the GRPO update against a plain per-sample PyTorch computation
-- (tests/golden/grpo): log-probabilities, entropies, loss and its parts, every parameter's
-- gradient; independence of the micro-batch split; advantages; AdamW.

local cjson = require "cjson"
local check = require "tests.support.check"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local trainer = require "segzero.train.trainer"
local advantage = require "segzero.algorithms.advantages"
local records = require "segzero.train.records"
local update = require "segzero.train.update"
local optim = require "segzero.train.optim"
local processor = require "segzero.models.qwen_vl.processor"
local files = require "segzero.core.files"
local recipe = require "recipes.refcocog_grpo"

local ROOT = "tests/golden/"
local case = cjson.decode(files.read(ROOT .. "grpo/case.json"))
local t = sz.safetensors.load(ROOT .. "grpo/case.safetensors")
local pixels = sz.safetensors.load(ROOT .. "qwen_vl/pixels.safetensors")

-- Two orders of summation in f32 differ by about 5e-6 of a gradient's norm here (f32_noise); 1e-4
-- is the goldens' margin.
local GRAD_TOL = 1e-4

local function groups_of(vl)
  local groups = {}
  for p, images in ipairs(case.images) do
    local prefix = "p" .. (p - 1) .. "."
    local input = { input_ids = t[prefix .. "input_ids"]:totable(),
      image_grid_thw = t[prefix .. "image_grid_thw"]:totable() }
    input.position_ids, input.next_position = processor.positions(input.input_ids,
      input.image_grid_thw, vl, 2)
    local parts = {}
    local rows = 0
    for i, name in ipairs(images) do
      parts[i] = pixels[name]:cast(0):affine(1 / 64, -2)
      rows = rows + parts[i]:shape()[1]
    end
    input.pixel_values = tensor.empty { rows, parts[1]:shape()[2] }
    local at = 0
    for _, part in ipairs(parts) do
      input.pixel_values:narrow(at, part:shape()[1]):copy_(part)
      at = at + part:shape()[1]
    end
    local scores = t.scores:totable()[p]
    local advantages = advantage.grpo(scores)
    check.near(advantages, t.advantages:totable()[p], 1e-5, "advantages of prompt " .. p)
    local group = { input = input, row = {}, samples = {} }
    for a = 1, #scores do
      local key = prefix .. "a" .. (a - 1) .. "."
      group.samples[a] = { ids = t[key .. "ids"]:totable(), logprobs = t[key .. "old"]:totable(),
        reference = t[key .. "ref"]:totable(),
        advantage = advantages[a] }
    end
    groups[p] = group
  end
  return groups
end

local vl = sz.qwen_vl(ROOT .. "qwen_vl/Q1")
local groups = groups_of(vl)

-- Log-probabilities of single answers, as the trainer computes them with a shared prompt.
for p, g in ipairs(groups) do
  local lists = {}
  for a, s in ipairs(g.samples) do lists[a] = s.ids end
  for a, lp in ipairs(vl:logprobs(g.input, lists)) do
    check.near(lp:totable(), t[("p%d.a%d.logprobs"):format(p - 1, a - 1)]:totable(), 2e-5,
      ("log-probabilities %d/%d"):format(p, a))
  end
end

local function flat(x)
  x = check.host(x)
  local data, n = tensor.data(x), x:numel()
  local out = {}
  for i = 0, n - 1 do out[i + 1] = data[i] end
  return out
end

local function run_update(max_tokens, recompute)
  local cfg = recipe.schema:read({
    "worker.actor.max_tokens_per_micro_batch=" .. max_tokens,
    "worker.actor.model.enable_gradient_checkpointing=" .. tostring(recompute),
  })
  -- The samples already have the reference's log-probabilities, from the golden file.
  local tr = trainer.new { config = cfg, policy = vl, reference = vl,
    reward = function() return 0 end }
  local stats = update.new(tr):gradient(tr:micro_batches(groups, "update"), records.totals(groups))
  local grads = {}
  for _, p in ipairs(tr.parameters) do
    local g = p.tensor:grad()
    grads[p.name] = flat(g)
    g:free()
    p.tensor:zero_grad()
  end
  return stats, grads
end

local stats, grads = run_update(100000, false)
check.near(stats.loss, case.loss, 2e-5, "loss")
check.near(stats.policy_loss, case.parts.pg, 2e-5, "policy loss")
check.near(stats.kl, case.parts.kl, 5e-5, "kl")
check.near(stats.entropy, case.parts.entropy, 2e-5, "entropy")

local worst = 0
local worst_name = ""
local count = 0
for name, entry in pairs(case.gradients) do
  local want = t["grad." .. name]:totable()
  local squares = 0
  local norm = 0
  for i = 1, entry.count do
    squares = squares + (grads[name][(i - 1) * entry.stride + 1] - want[i]) ^ 2
  end
  for _, v in ipairs(grads[name]) do norm = norm + v * v end
  local d = math.max(math.sqrt(squares * entry.numel / entry.count) / entry.norm,
    math.abs(math.sqrt(norm) / entry.norm - 1))
  count = count + 1
  if not (d <= worst) then worst, worst_name = d, name end
end
check.ok(worst <= GRAD_TOL,
  ("gradients within %g (worst %.2g, %s)"):format(GRAD_TOL, worst, worst_name))
check.equal(count, 92, "as many gradients as the golden file has")
print(("GRPO: loss %.7f (%.7f), %d gradients, worst %.1e"):format(stats.loss, case.loss, count,
  worst))

-- Two micro-batches (a group each), and recomputation: the same loss and gradient up to f32
-- rounding.
for _, variant in ipairs { { 1, false }, { 1, true }, { 100000, true } } do
  local s, other = run_update(variant[1], variant[2])
  check.near(s.loss, stats.loss, 1e-6, "loss does not depend on the split")
  local difference = 0
  for name, g in pairs(grads) do
    local d = 0
    local n = 0
    for i, v in ipairs(g) do d, n = d + (v - other[name][i]) ^ 2, n + v * v end
    difference = math.max(difference, math.sqrt(d / math.max(n, 1e-30)))
  end
  check.ok(difference < 1e-5,
    ("the gradient does not depend on the split (%.1e)"):format(difference))
end

-- AdamW: three steps on one tensor.
local a = sz.safetensors.load(ROOT .. "grpo/adamw.safetensors")
local p = a.p0:clone():requires_grad(true)
local opt = optim.adamw({ { name = "p", tensor = p } }, { lr = 1e-3, weight_decay = 0.01 })
for step = 1, 3 do
  (p * a["g" .. step]):sum():backward()
  opt:step()
  check.near(p:totable(), a["p" .. step]:totable(), 1e-6, "AdamW step " .. step)
end

-- A gradient that is not finite skips the update and is counted.
local before = p:totable()
;(p * (1 / 0)):sum():backward()
local norm, updated = opt:step()
check.ok(norm ~= norm or norm == math.huge, "the norm shows it")
check.equal(updated, false, "update skipped")
check.equal(opt.skipped, 1, "counted")
check.equal(p:totable(), before, "weights unchanged")
check.equal(opt:steps(), 3, "moments unchanged")

check.finish()
