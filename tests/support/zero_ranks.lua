-- zero_ranks.lua - one rank of tests/system/test_zero.lua: an optimizer of which each rank has a
-- part, next to one of which each has all. Both get the same gradients.
--
-- Weights, moments, masters and scales must be the same bits after several updates, in every kind
-- of state; the gradients' norms, of all and of two parts of the model, the same but for the order
-- of an f64 sum. The bytes of state and the bytes sent are checked against formulas. The parts
-- written into one file are the whole state, which resumes. Prints "ok N" with the number of
-- elements that were compared. Leaves out: the rest of a checkpoint, models.

local ffi = require "ffi"
local checkpoint = require "segzero.train.run.checkpoint"
local jobs = require "segzero.core.jobs"
local optim = require "segzero.train.optim"
local parallel = require "segzero.train.parallel"
local ranks = require "segzero.core.ranks"
local safetensors = require "segzero.formats.safetensors"
local tensor = require "segzero.core.tensor"

local p = parallel.new(60)
local folder = arg[1]              -- an empty one
local device = arg[2] or "cpu"     -- "cuda": the long tensor is left out
local compared = 0

-- Odd sizes: less than a block of 512, one, many.
local SHAPES = { { 3 }, { 512 }, { 33, 31 }, { 5 }, { 2048 }, { 130, 513 }, { 1 }, { 700, 7 } }
local LONG = { 530, 9001 }        -- longer than a bucket (16 MiB)
local UPDATES = 3
local WIDTH = { f32 = 4, bf16 = 2, u8 = 1 }

local function expect(ok, ...)
  if not ok then error(("rank %d: "):format(p.rank) .. (...):format(select(2, ...)), 0) end
end

local function bytes(t)
  t = t:to { device = "cpu" }
  return ffi.string(tensor.data(t), t:numel() * WIDTH[t:dtype()])
end

local function parameters(dtype, last)
  local shapes = { unpack(SHAPES) }
  shapes[#shapes + 1] = last
  local list = {}
  for i, shape in ipairs(shapes) do
    tensor.manual_seed(i)
    local t = tensor.randn(shape):to { dtype = dtype, device = device }
    list[i] = { name = "p" .. i, tensor = t:requires_grad(true) }
  end
  return list
end

-- Parameter i's gradient on this rank; nil where it has none.
local function gradient(i, shape, update)
  if i == 2 then return nil end                                -- on no rank
  if i == 4 and p.rank ~= 0 then return nil end                -- on one rank
  if p.rank == p.size - 1 and update == 2 then return nil end  -- a rank without answers
  tensor.manual_seed(1000 * update + 100 * p.rank + i)
  return tensor.randn(shape):to { device = device }
end

local function set_gradients(list, update)
  for i, one in ipairs(list) do
    local g = gradient(i, one.tensor:shape(), update)
    if g then (one.tensor:to { dtype = "f32" } * g):sum():backward() end
  end
end

-- The parts of this rank, joined with those of the others, must be the whole.
local function compare_state(sharded, whole, name)
  local all = whole:state()
  local own = 0
  local total = 0
  for key, part in pairs(sharded:whole_state()) do
    local want = all[key]
    expect(want, "%s: %s is no state of the whole", name, key)
    expect(part:dtype() == want:dtype() and part:numel() == want:numel(), "%s: %s differs in size",
      name, key)
    all[key] = nil
    local width = WIDTH[want:dtype()]
    total = total + want:numel() * width
    if part.part then
      local text = bytes(part.part)
      own = own + #text
      expect(text == bytes(want):sub(part.skip * width + 1, part.skip * width + #text),
        "%s: %s differs", name, key)
      compared = compared + part.part:numel()
    end
  end
  expect(next(all) == nil, "%s: a state is missing", name)
  local block = 512 * (4 + 4 + 4) + 2 * 2 * 4          -- the state of a block of elements
  expect(math.abs(own - total / p.size) <= 3 * block, "%s: %d of %d bytes of state", name, own,
    total)
  local sum = 0
  for _, n in ipairs(p.world:gather(own)) do sum = sum + n end
  expect(sum == total, "%s: the parts have %d bytes, the whole %d", name, sum, total)
end

-- All ranks write one file, and read their parts of it.
local function check_file(sharded, whole, name)
  local path = folder .. "/optimizer.safetensors"
  p:on_root(function()
    local writing = jobs.writing()
    safetensors.save(path, sharded:whole_state(), nil, writing)
    writing:make_shared()
  end)
  path = path .. ".tmp"
  local job = checkpoint.begin_part(folder, {}, sharded)
  expect(job:wait(), "%s: the file is not written", name)
  p.world:barrier()
  local saved = safetensors.load(path)
  for key, want in pairs(whole:state()) do
    expect(bytes(saved[key]) == bytes(want), "%s: %s differs in the file", name, key)
    compared = compared + want:numel()
  end
  local before = {}
  for key, t in pairs(sharded:state()) do
    before[key] = bytes(t)
    t:copy_(tensor.zeros(t:shape(), { dtype = t:dtype(), device = device }))
  end
  sharded:set_state(saved)
  for key, t in pairs(sharded:state()) do
    expect(bytes(t) == before[key], "%s: %s differs after loading", name, key)
  end
  p.world:barrier()
end

-- What the sum of gradients and the gathering of weights send: all but the own parts of the
-- gradients once, and the own parts of the weights to each of the others. A parameter that never
-- had a gradient is in no sum; an update makes it one of zeros.
local function bytes_of_update(opt, list, update)
  local sum = 0
  for i, one in ipairs(list) do
    local own = tonumber(opt.shards.count[i - 1])
    local g = one.tensor:grad()
    if i ~= 2 or update > 1 then sum = sum + (one.tensor:numel() - own) * WIDTH[g:dtype()] end
    sum = sum + own * (p.size - 1) * WIDTH[one.tensor:dtype()]
  end
  return sum
end

-- Two parts of the model: the first parameters and the others.
local function part_of(one) return tonumber(one.name:match "%d+") <= 4 and "first" or "rest" end

-- norms: of the parts, of an optimizer in parts; whole: those of one that has all.
local function check_norms(name, norm, norms, want, whole)
  local function close(a, b, what)
    expect(math.abs(a - b) <= 1e-6 * b, "%s: the norm%s is %.9g, expected %.9g", name, what, a, b)
  end
  close(norm, want, "")
  for _, part in ipairs { "first", "rest" } do
    expect(norms[part] > 0, "%s: the part %s has a gradient", name, part)
    close(norms[part], whole[part], " of " .. part)
  end
  close(math.sqrt(norms.first ^ 2 + norms.rest ^ 2), norm, " of the parts")
end

local function check_kind(kind)
  local name = kind.name
  local options = kind.options
  local mine = parameters(kind.dtype, kind.last)
  local others = parameters(kind.dtype, kind.last)
  local sharded = optim.adamw(mine, options, p)
  options.shard_state = false
  local whole = optim.adamw(others, options, p)
  options.shard_state = nil
  for update = 1, kind.updates or UPDATES do
    set_gradients(mine, update)
    set_gradients(others, update)
    -- A rank that has no gradient gets zeros, and takes part.
    local before = ranks.bytes_sent()
    local norm, _, norms = sharded:step(1e-2, part_of)
    local sent = ranks.bytes_sent() - before
    local want, _, whole_norms = whole:step(1e-2, part_of)
    check_norms(name, norm, norms, want, whole_norms)
    -- What ranks agree on: a number for each parameter, and two records of some bytes.
    local agreed = sent - bytes_of_update(sharded, mine, update)
    local numbers = 8 * #mine * (p.size - 1)
    expect(agreed >= numbers and agreed <= numbers + 200 * (p.size - 1),
      "%s: %d bytes sent besides gradients and weights", name, agreed)
  end
  for i, one in ipairs(mine) do
    expect(bytes(one.tensor) == bytes(others[i].tensor), "%s: weights of %s differ", name, one.name)
    compared = compared + one.tensor:numel()
  end
  compare_state(sharded, whole, name)
  check_file(sharded, whole, name)
end

local KINDS = {
  { name = "f32", dtype = "f32", options = {} },
  { name = "long", dtype = "f32", options = {}, last = LONG, updates = 1 },
  { name = "bf16 with masters", dtype = "bf16", options = {} },
  { name = "int8, no masters, bf16 gradients", dtype = "bf16",
    options = { state_dtype = "int8", master_weights = false, grad_dtype = "bf16" } },
  { name = "bf16 moments", dtype = "f32", options = { state_dtype = "bf16" } },
}
local function main()
  -- Joins the devices, which sends a few bytes once.
  p.world:all_reduce(tensor.zeros({ 1 }, { device = device }))
  for _, kind in ipairs(KINDS) do
    if device == "cpu" or not kind.last then check_kind(kind) end
    collectgarbage()
  end

  -- A norm that is not finite on one rank skips the update on all.
  local list = parameters "f32"
  local opt = optim.adamw(list, { max_grad_norm = 1 }, p)
  local before = bytes(list[6].tensor)
  set_gradients(list, 1)
  if p.rank == 0 then (list[6].tensor * math.huge):sum():backward() end
  local _, updated, norms = opt:step(1e-2, part_of)
  expect(updated == false and opt.skipped == 1, "the update is skipped")
  expect(norms.first < math.huge and not (norms.rest < math.huge), "the part that is not finite")
  expect(bytes(list[6].tensor) == before, "its weights stay")
  set_gradients(list, 1)
  _, updated = opt:step(1e-2)
  expect(updated and bytes(list[6].tensor) ~= before, "the next update is made")

  -- An update that fails on one rank is an error of all.
  if p.rank == p.size - 1 then opt.beta1 = "none" end
  set_gradients(list, 1)
  local ok, why = pcall(opt.step, opt, 1e-2)
  expect(not ok and tostring(why):find(("rank %d"):format(p.size - 1)), "all fail: %s",
    tostring(why))
end

local good, reason = pcall(main)
if not good then
  io.stderr:write(tostring(reason), "\n")
  ranks.abort(1)
end
print(("ok %d"):format(compared))
