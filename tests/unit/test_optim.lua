-- test_optim.lua - AdamW in little memory: what 8-bit and bf16 moments, no masters and bf16
-- gradients cost in accuracy, that rounding is right on the average, and that state of another kind
-- is refused. Bit for bit resuming is in test_train.lua, the kernel against the plain one in
-- test_ops.lua.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local optim = require "segzero.train.optim"

local place = mini.folder()
local dir = mini.write(place .. "/model", { std = 0.15 })

-- ---- 100 steps of a miniature that learns answers by heart ----
local ANSWERS = { { 5, 6, 7, 8 }, { 9, 5, 9, 5 } }
local function learn(dtype, opts, steps)
  local vl = sz.qwen_vl(dir, { dtype = dtype })
  local list = vl:train()
  opts.lr, opts.max_grad_norm = 1e-3, 1
  local opt = optim.adamw(list, opts)
  local inputs, groups = { mini.input(vl, 1), mini.input(vl, 2) }, {}
  for i, input in ipairs(inputs) do groups[i] = { input = input, answers = { ANSWERS[i] } } end
  local losses = {}
  for i = 1, steps do
    losses[i] = tensor.step(function()
      local stream = packing.stream(groups, vl.image_token_id)
      local lp = vl:logprob_of(vl:hidden(stream, vl:vision(inputs), { rows = stream.rows }), stream.targets)
      local loss = lp:mean() * -1
      loss:backward()
      return loss:item()
    end)
    opt:step()
  end
  local weights = {}
  for _, p in ipairs(list) do weights[p.name] = p.tensor:cast(0) end
  return losses, weights, vl
end

-- The distance that two runs' weights are apart, against the distance that the first has come.
local function apart(a, b, from)
  local between, moved = 0, 0
  for name, w in pairs(a) do
    local p, q, start = tensor.data(w), tensor.data(b[name]), tensor.data(from[name])
    for i = 0, w:numel() - 1 do
      between, moved = between + (p[i] - q[i]) ^ 2, moved + (p[i] - start[i]) ^ 2
    end
  end
  return math.sqrt(between / moved)
end

local STEPS = 100
local first = {}
for name, w in pairs(sz.qwen_vl(dir):parameters()) do first[name] = w:clone() end
local plain, plain_weights = learn("f32", {}, STEPS)
print(("AdamW f32: loss %.3f to %.4f"):format(plain[1], plain[STEPS]))
check.ok(plain[STEPS] < 0.1 * plain[1], "the miniature learns")

-- loss: the largest difference from plain AdamW's at any step; apart: see above. Each is about
-- three times what is measured, since the draws of rounding differ with every change of the order
-- of sums. bf16 weights differ through the forward pass, masters or not.
local kinds = {
  { name = "bf16 moments", dtype = "f32", opts = { state_dtype = "bf16" }, loss = 0.0005, apart = 0.015 },
  { name = "int8 moments", dtype = "f32", opts = { state_dtype = "int8" }, loss = 0.015, apart = 0.18 },
  { name = "bf16 weights with masters", dtype = "bf16", opts = {}, loss = 0.1, apart = 0.07 },
  { name = "bf16 weights, no masters", dtype = "bf16", opts = { master_weights = false }, loss = 0.1, apart = 0.3 },
  { name = "bf16 gradients", dtype = "bf16", opts = { grad_dtype = "bf16" }, loss = 0.1, apart = 0.07 },
  { name = "int8 moments, no masters, bf16 gradients", dtype = "bf16",
    opts = { state_dtype = "int8", master_weights = false, grad_dtype = "bf16" }, loss = 0.1, apart = 0.35 },
}
for _, k in ipairs(kinds) do
  local losses, weights = learn(k.dtype, k.opts, STEPS)
  local worst, distance = 0, apart(plain_weights, weights, first)
  for i = 1, STEPS do worst = math.max(worst, math.abs(losses[i] - plain[i])) end
  print(("%s: loss %.4f, largest difference on the way %.4f, weights apart by %.3f of the way"):format(k.name, losses[STEPS], worst, distance))
  check.ok(worst < k.loss, ("%s: the loss differs by %.4f"):format(k.name, worst))
  check.ok(distance < k.apart, ("%s: the weights are %.3f apart"):format(k.name, distance))
end

-- ---- steps far below half a unit in the last place of bf16 ----
local N, TINY = 4096, 1e-5
local p = tensor.zeros { N }:affine(0, 1):cast(1):requires_grad(true)
local opt = optim.adamw({ { name = "p", tensor = p } }, { lr = TINY, weight_decay = 0, master_weights = false })
for _ = 1, 50 do
  tensor.step(function() p:sum():backward() end)
  opt:step()
end
local mean = 0
for _, v in ipairs(p:totable()) do mean = mean + v / N end
-- Equal gradients: every step is lr. Below 1 bf16's steps are 2^-8 wide, so an element has moved by
-- one of them with a chance of 0.13 and the mean's standard deviation is 2e-5; five of them.
check.near({ mean }, { 1 - 50 * TINY }, 1e-4, "50 steps of 1e-5 on bf16 weights")

-- ---- state of another kind is refused, and nothing is changed ----
local cfg = mini.settings { "worker.actor.optim.state_dtype=int8" }
local folder = mini.folder()
local t = mini.trainer(cfg, { model = dir, folder = folder })
t:step()
local path = t:save()
local other = mini.trainer(mini.settings(), { model = dir, folder = folder })
local before = other.policy:parameters()["model.norm.weight"]:totable()
check.raises(function() other:resume(path) end, "is u8, expected f32: worker.actor.optim.state_dtype was different", "8-bit state for f32 moments")
check.equal(other.policy:parameters()["model.norm.weight"]:totable(), before, "nothing was changed")
check.raises(function() optim.adamw({}, { state_dtype = "int4" }) end, "state_dtype is int4", "an unknown kind")

mini.remove()
check.finish()
