-- offload_update.lua - one process of tests/unit/test_offload.lua: the optimizer's state and a
-- model's weights in host memory against those on the device. Every kind of state must give the
-- same bits after several updates, and the model the same log-probabilities, also after an upload
-- that failed. Prints "ok N" with the number of elements that were compared.

local ffi = require "ffi"
local mini = require "tests.support.miniature"
local offload = require "segzero.models.offload"
local sz = require "segzero"
local optim = require "segzero.train.optim"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"

local C = core.C
local compared = 0
local WIDTH = { f32 = 4, bf16 = 2, u8 = 1 }

-- One is longer than a piece (4 Mi elements), some are too small to be offloaded, one has no
-- gradient.
local SHAPES = { { 70000 }, { 5 }, { 300, 301 }, { 2, 2100001 }, { 1000 }, { 65536 }, { 66001 } }
local WITHOUT = 6
local UPDATES = 1

local function bytes(t)
  local host = t:to { device = "cpu" }
  return ffi.string(tensor.data(host), host:numel() * WIDTH[host:dtype()])
end

local function parameters(kind)
  local list = {}
  for i, shape in ipairs(SHAPES) do
    if not (kind.short and i == 4) then
      tensor.manual_seed(i)
      local t = tensor.randn(shape):to { dtype = kind.dtype, device = "cuda" }
      list[#list + 1] = { name = "p" .. i, tensor = t:requires_grad(true), number = i }
    end
  end
  return list
end

local function set_gradients(list, update)
  for _, one in ipairs(list) do
    if one.number ~= WITHOUT then
      tensor.manual_seed(100 * update + one.number)
      local g = tensor.randn(one.tensor:shape()):to { device = "cuda" }
      tensor.step(function() (one.tensor:to { dtype = "f32" } * g):sum():backward() end)
      g:free()
    end
  end
end

-- The optimizer's state by name, as bytes, and how many bytes of it are on the device.
local function states(opt)
  local out = {}
  local on_device = 0
  for name, t in pairs(opt:state()) do
    out[name] = bytes(t)
    if t:device() ~= "cpu" then on_device = on_device + #out[name] end
  end
  return out, on_device
end

local function run(kind, options)
  local list = parameters(kind)
  local all = {}
  for name, value in pairs(kind.options) do all[name] = value end
  for name, value in pairs(options) do all[name] = value end
  local opt = optim.adamw(list, all)
  for update = 1, UPDATES do
    set_gradients(list, update)
    opt:step(1e-2)
  end
  -- What a checkpoint does.
  local whole = {}
  for name, t in pairs(opt:state()) do whole[name] = t:to({ device = "cpu" }):clone() end
  for _, t in pairs(opt:state()) do
    t:copy_(tensor.zeros(t:shape(), { dtype = t:dtype(), device = t:device() }))
  end
  opt:set_state(whole)
  set_gradients(list, UPDATES + 1)
  opt:step(1e-2)
  local weights = {}
  for i, one in ipairs(list) do weights[i] = bytes(one.tensor) end
  local state, on_device = states(opt)
  return weights, state, on_device
end

local function check_kind(kind)
  local weights, state, all = run(kind, {})
  for _, offload in ipairs(kind.offload) do
    local got, got_state, left = run(kind, offload[1])
    for i, text in ipairs(weights) do
      assert(got[i] == text, ("%s: weights of tensor %d differ"):format(kind.name, i))
      compared = compared + #text / WIDTH[kind.dtype]
    end
    for name, text in pairs(state) do
      assert(got_state[name] == text, ("%s: %s differs"):format(kind.name, name))
      compared = compared + #text
    end
    assert(left < all * offload.most, ("%s: %d of %d bytes of state are on the device"):format(
      kind.name, left, all))
    collectgarbage()
  end
end

-- The options, and which share of the state may still be on the device.
local BOTH = { { offload_moments = true, offload_masters = true }, most = 0.05 }
local MOMENTS = { { offload_moments = true }, most = 0.4 }
local MASTERS = { { offload_masters = true }, most = 0.7 }

local KINDS = {
  { name = "f32", dtype = "f32", options = {}, offload = { MOMENTS } },
  { name = "bf16 with masters", dtype = "bf16", options = {}, short = true,
    offload = { BOTH, MOMENTS, MASTERS } },
  { name = "int8, no masters, bf16 gradients", dtype = "bf16", short = true, offload = { MOMENTS },
    options = { state_dtype = "int8", master_weights = false, grad_dtype = "bf16" } },
  { name = "bf16 moments", dtype = "f32", short = true, options = { state_dtype = "bf16" },
    offload = { MOMENTS } },
}
for _, kind in ipairs(KINDS) do check_kind(kind) end

-- ---- a model ----
local dir = mini.write(mini.folder() .. "/model")

local function logprobs(options)
  local vl = sz.qwen_vl(dir, options)
  local input = vl:process { { role = "user", content = "two" } }
  local lists = {}
  for pass = 1, 2 do
    lists[pass] = offload.using(vl, function()
      return tensor.no_grad(vl.logprobs, vl, input, { { 5, 7, 9, 11 } })[1]:totable()
    end)
  end
  assert(vl:parameters()["model.norm.weight"]:device() == (options.offload and "cpu" or "cuda:0"))
  return lists
end

local want = logprobs { device = "cuda" }[1]
for _, got in ipairs(logprobs { device = "cuda", offload = true }) do
  for i, value in ipairs(want) do
    assert(got[i] == value, ("log-probability %d is %g, expected %g"):format(i, got[i], value))
    compared = compared + 1
  end
end

-- Device memory runs out after some weights. What then gets the memory of these is not overwritten
-- by their copies, which may still be on their way.
local vl = sz.qwen_vl(dir, { device = "cuda", offload = true })
offload.using(vl, function() end)
local sizes = {}
for name, t in pairs(vl:parameters()) do sizes[name] = t:numel() end
C.sz_fail_alloc_after(#vl.weights / 2)
local ok, why = pcall(offload.using, vl, error)
C.sz_fail_alloc_after(-1)
assert(not ok and tostring(why):find "injected", tostring(why))
local later = {}
for name, size in pairs(sizes) do later[name] = tensor.full({ size }, 7, { device = "cuda" }) end
offload.using(vl, function() end)
for name, t in pairs(later) do
  local least, most = 7, 7
  for _, value in ipairs(t:totable()) do
    least, most = math.min(least, value), math.max(most, value)
  end
  assert(least == 7 and most == 7, ("%s: %g to %g"):format(name, least, most))
  compared = compared + sizes[name]
end
mini.remove()
print(("ok %d"):format(compared))
