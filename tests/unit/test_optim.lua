-- test_optim.lua - AdamW in little memory: what 8-bit and bf16 moments, no masters and bf16
-- gradients cost in accuracy; that stochastic rounding is right on average; that state of another
-- kind is refused; the norms of the gradient.
-- Leaves out: resuming bit for bit (test_train.lua), the kernel against the reference kernel
-- (test_ops.lua).

local ffi = require "ffi"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local optim = require "segzero.train.optim"

local STEPS = 100
local ANSWERS = { { 5, 6, 7, 8 }, { 9, 5, 9, 5 } }

local place = mini.folder()
local dir = mini.write(place .. "/model", { std = 0.15 })

-- ---- a miniature that learns two answers by heart ----
-- The loss of the groups after its backward pass.
local function backward(vl, inputs, groups)
  local stream = packing.stream(groups, vl.image_token_id)
  local hidden = vl:hidden(stream, vl:vision(inputs), { rows = stream.rows })
  local loss = vl:logprob_of(hidden, stream.targets):mean() * -1
  loss:backward()
  return loss:item()
end

-- Returns the loss of each step, and the weights at the end in f32 by name.
local function learn(dtype, options)
  local vl = sz.qwen_vl(dir, { dtype = dtype })
  local list = vl:train()
  options.lr = 1e-3
  options.max_grad_norm = 1
  local opt = optim.adamw(list, options)

  local inputs = { mini.input(vl, 1), mini.input(vl, 2) }
  local groups = {}
  for i, input in ipairs(inputs) do groups[i] = { input = input, answers = { ANSWERS[i] } } end
  local losses = {}
  for i = 1, STEPS do
    losses[i] = tensor.step(backward, vl, inputs, groups)
    opt:step()
  end

  local weights = {}
  for _, p in ipairs(list) do weights[p.name] = p.tensor:cast(0) end
  return losses, weights
end

-- How far two runs' weights are apart, in parts of how far the first has moved from `from`.
local function apart(a, b, from)
  local between = 0
  local moved = 0
  for name, w in pairs(a) do
    local p = tensor.data(w)
    local q = tensor.data(b[name])
    local start = tensor.data(from[name])
    for i = 0, w:numel() - 1 do
      between = between + (p[i] - q[i]) ^ 2
      moved = moved + (p[i] - start[i]) ^ 2
    end
  end
  return math.sqrt(between / moved)
end

local first = {}
for name, w in pairs(sz.qwen_vl(dir):parameters()) do first[name] = w:clone() end
local plain, plain_weights = learn("f32", {})

check.case("AdamW in f32", function()
  print(("AdamW f32: loss %.3f to %.4f"):format(plain[1], plain[STEPS]))
  check.ok(plain[STEPS] < 0.1 * plain[1], "the miniature learns")
end)

-- loss: the largest difference from the f32 run's at any step. apart: see above. Each is about
-- three times what is measured, because the draws of rounding differ with every change of the order
-- of sums. bf16 weights differ through the forward pass, with masters or without.
local KINDS = {
  {
    name = "bf16 moments", dtype = "f32", options = { state_dtype = "bf16" },
    loss = 0.0005, apart = 0.015,
  },
  {
    name = "int8 moments", dtype = "f32", options = { state_dtype = "int8" },
    loss = 0.015, apart = 0.18,
  },
  { name = "bf16 weights with masters", dtype = "bf16", options = {}, loss = 0.1, apart = 0.07 },
  {
    name = "bf16 weights, no masters", dtype = "bf16", options = { master_weights = false },
    loss = 0.1, apart = 0.3,
  },
  {
    name = "bf16 gradients", dtype = "bf16", options = { grad_dtype = "bf16" },
    loss = 0.1, apart = 0.07,
  },
  {
    name = "int8 moments, no masters, bf16 gradients", dtype = "bf16",
    options = { state_dtype = "int8", master_weights = false, grad_dtype = "bf16" },
    loss = 0.1, apart = 0.35,
  },
}
for _, k in ipairs(KINDS) do
  check.case(k.name, function()
    local losses, weights = learn(k.dtype, k.options)
    local distance = apart(plain_weights, weights, first)
    local worst = 0
    for i = 1, STEPS do worst = math.max(worst, math.abs(losses[i] - plain[i])) end
    local text = "%s: loss %.4f, largest difference of a step %.4f, weights %.3f apart"
    print(text:format(k.name, losses[STEPS], worst, distance))
    check.ok(worst < k.loss, ("the loss differs by %.4f"):format(worst))
    check.ok(distance < k.apart, ("the weights are %.3f apart"):format(distance))
  end)
end

check.case("steps far below bf16's rounding error", function()
  local N = 4096
  local TINY = 1e-5
  local p = tensor.zeros { N }:affine(0, 1):cast(1):requires_grad(true)
  local options = { lr = TINY, weight_decay = 0, master_weights = false }
  local opt = optim.adamw({ { name = "p", tensor = p } }, options)
  for _ = 1, 50 do
    tensor.step(function() p:sum():backward() end)
    opt:step()
  end
  local mean = 0
  for _, v in ipairs(p:totable()) do mean = mean + v / N end
  -- With equal gradients every step is lr. Below 1 the numbers of bf16 are 2^-8 apart, so an
  -- element has moved by one of them with a chance of 0.13, and the mean's standard deviation is
  -- 2e-5; the tolerance is five of these.
  check.near({ mean }, { 1 - 50 * TINY }, 1e-4, "50 steps of 1e-5")
end)

check.case("state of another kind is refused, and nothing is changed", function()
  local cfg = mini.settings { "worker.actor.optim.state_dtype=int8" }
  local folder = mini.folder()
  local t = mini.trainer(cfg, { model = dir, folder = folder })
  t:step()
  local path = t:save()
  local other = mini.trainer(mini.settings(), { model = dir, folder = folder })
  local function norm() return other.policy:parameters()["model.norm.weight"]:totable() end
  local before = norm()
  check.raises(function() other:resume(path) end,
               "is u8, expected f32: worker.actor.optim.state_dtype was different",
               "8-bit state for f32 moments")
  check.equal(norm(), before, "nothing was changed")
  check.raises(function() optim.adamw({}, { state_dtype = "int4" }) end, "state_dtype is int4",
               "an unknown kind")
end)

check.case("scales that fit no blocks of a parameter are refused, and nothing is "
  .. "changed", function()
  local a = tensor.randn { 4, 300 }:requires_grad(true)
  local opt = optim.adamw({ { name = "a", tensor = a } }, { lr = 0.1, state_dtype = "int8" })
  ;(a * a):sum():backward()
  opt:step()
  local state = opt:whole_state()
  local codes = state["exp_avg.a"]:totable()
  check.equal(state["exp_avg_scale.a"]:shape(), { 5 }, "a scale for each 256 elements")

  -- Slices of 3 rows or 7 columns are none; neither are 4 blocks, nor blocks by rows and columns.
  local refused = 0
  for _, shape in ipairs { { 4 }, { 6 }, { 3, 1, 2 }, { 1, 7, 1 }, { 2, 1, 2 }, { 2, 2, 2 },
      { 0, 1, 0 }, { 5, 1 } } do
    local saved = { ["exp_avg.a"] = tensor.zeros({ 4, 300 }, { dtype = "u8" }),
      ["exp_avg_sq.a"] = tensor.zeros({ 4, 300 }, { dtype = "u8" }),
      ["exp_avg_scale.a"] = state["exp_avg_scale.a"],
      ["exp_avg_sq_scale.a"] = tensor.zeros(shape) }
    check.raises(function() opt:set_state(saved) end,
      ("exp_avg_sq_scale.a has shape [%s], which fits no blocks of [4, 300]"):format(
        table.concat(shape, ", ")):gsub("[%[%]]", "%%%0"), "the shape")
    refused = refused + 1
  end
  check.equal(refused, 8, "shapes")
  check.equal(state["exp_avg.a"]:totable(), codes, "nothing was changed")
end)

check.case("skipped updates are counted, and the norm of the weights", function()
  local a = sz.tensor({ 1, 2, 2 }):requires_grad(true)
  local b = sz.tensor({ 0, 4 }):requires_grad(true)
  local opt = optim.adamw({ { name = "a", tensor = a }, { name = "b", tensor = b } }, { lr = 0 })
  check.equal(opt:weight_norm(), 5, "the norm of all parameters")
  for i = 1, 14 do
    local factor = 1
    if i > 9 then factor = 0 / 0 end
    ((a * a):sum() * factor + (b * b):sum()):backward()
    local _, updated = opt:step()
    check.equal(updated, i <= 9, "update " .. i)
  end
  check.equal({ opt:bad_updates() }, { 5, 10 }, "bad ones among the last ten")
  check.equal(opt.skipped, 5, "bad ones in all")
  local c = sz.tensor({ 1e30 }):requires_grad(true)
  local huge = optim.adamw({ { name = "c", tensor = c } }, { lr = 0 })
  check.equal(huge:weight_norm(), math.huge, "a norm that is not finite comes through")
end)

-- ---- norms of parts ----
check.case("the norms of parts, of skipped updates too", function()
  local a = sz.tensor({ 1, 1 }):requires_grad(true)
  local b = sz.tensor({ 1, 1 }):requires_grad(true)
  local unused = sz.tensor({ 1 }):requires_grad(true)
  local opt = optim.adamw({ { name = "a", tensor = a }, { name = "b", tensor = b },
    { name = "c", tensor = unused } }, { lr = 0 })
  local function step(factors)
    ((a * sz.tensor { 3, 4 }):sum() + (b * factors):sum()):backward()
    return opt:step(nil, function(one) return one.name:upper() end)
  end
  local norm, updated, norms = step(sz.tensor { 0, 12 })
  check.equal({ norm, updated, norms }, { 13, true, { A = 5, B = 12, C = 0 } }, "finite ones")
  norm, updated, norms = step(sz.tensor { 0, math.huge })
  check.equal({ norm, updated, norms }, { math.huge, false, { A = 5, B = math.huge, C = 0 } },
    "infinity")

  -- LuaJIT keeps types in the other bits of a NaN: this one would be no number.
  local odd = sz.tensor { 0, 1 }
  ffi.cast("uint32_t *", tensor.data(odd))[1] = 0xFFFFFFFF
  norm, updated, norms = step(odd)
  check.equal({ type(norms.B), norms.B ~= norms.B, norm ~= norm, updated, norms.A },
    { "number", true, true, false, 5 }, "a NaN with all bits set")
  check.equal(select(3, opt:step()), {}, "without parts")
end)

check.case("the vision tower and the language model have norms of their own", function()
  local adapters = { "worker.actor.model.lora.rank=2" }
  local all_adapters = { adapters[1], "worker.actor.model.lora.exclude_modules=none" }
  -- Settings, and whether the tower is trained.
  local kinds = { { {}, true }, { { "worker.actor.model.freeze_vision_tower=true" }, false },
    { adapters, false }, { all_adapters, true } }
  for i, kind in ipairs(kinds) do
    local stats = mini.trainer(mini.settings(kind[1]), { model = dir }):step()
    local vision = stats["grad_norm/vision"]
    check.equal(vision ~= nil, kind[2], "whether there is one of the tower, kind " .. i)
    vision = vision or 0
    check.ok(vision > 0 or not kind[2], "the tower has a gradient, kind " .. i)
    -- The same squares, added in another order.
    check.near(math.sqrt(vision ^ 2 + stats["grad_norm/language"] ^ 2), stats.grad_norm,
      1e-12 * stats.grad_norm, "all of them, kind " .. i)
  end
end)

mini.remove()
check.finish()
