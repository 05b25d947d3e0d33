-- init.lua - low-rank adapters of a policy: makes them, trains them instead of the weights, loads
-- and saves them in PEFT's format, and merges them.
--
--   lora.attach(vl, {rank = 16, alpha = 64, target_modules = "all-linear",
--                    exclude_modules = ".*visual.*", seed = 42})
--   lora.load(vl, dir) / lora.save(vl, dir)     adapter_config.json and adapter_model.safetensors
--   local adapters = lora.open(vl, dir)         load() in two halves: open() reads the files and
--   lora.use(vl, adapters)                      checks that they fit, and needs no weights
--   lora.reference(vl)                          the same model without its adapters: hidden() and
--                                               vision() of the base
--   lora.merge(vl)                              adds the adapters to the weights and removes them
--   lora.configure(vl, cfg)                     attach() with a recipe's settings, if rank > 0
--
-- A linear layer y = x W^T then computes y + alpha / rank (x A^T) B^T. A is f32 [rank, in], uniform
-- within 1 / sqrt(in) as PEFT initialises it (random numbers of their place: seed, weight,
-- element); B is f32 [out, rank], 0. vl.lora holds them: {list = {{index, name, module, scale, a,
-- b}, ...}, rank, alpha, exclude_modules, rslora, visual}. Which layers: targets.lua; files:
-- files.lua; slices where the model is split: pairs.lua. Works with every policy that has the
-- adapter functions of README.md.
-- Leaves out: dropout, DoRA, trained biases, adapters of embeddings and of the head.

local core = require "segzero.core.ffi"
local options = require "segzero.core.options"
local tensor = require "segzero.core.tensor"
local lora_files = require "segzero.models.lora.files"
local pairs_of = require "segzero.models.lora.pairs"
local parts = require "segzero.formats.parts"
local targets = require "segzero.models.lora.targets"

local C = core.C

local M = {}

M.save = lora_files.save
M.read = lora_files.read
M.read_config = lora_files.read_config
M.described = lora_files.described

-- ---- making ----
-- Gives the adapters to the network. settings: rank, alpha, exclude_modules, rslora.
local function hold(vl, list, settings)
  local visual = false
  for _, p in ipairs(list) do
    vl:set_adapter(p.index, p.a, p.b, p.scale)
    if vl:is_vision_weight(p.name) then visual = true end
  end
  vl.lora = {
    list = list, rank = settings.rank, alpha = settings.alpha,
    exclude_modules = settings.exclude_modules, rslora = settings.rslora, visual = visual,
  }
  return vl
end

-- The stream of the elements' random numbers, separate from the sampler's and from the normal
-- numbers (runtime/core/random.c).
local PLACE = 0xC0000000

-- a: of pairs.lua. A slice has its elements of the whole.
local function uniform(a, seed, stream)
  local rank, cols = unpack(a.full)
  local first, count = 0, cols
  if a.slice then first, count = a.slice.first, a.slice.count end
  local t = tensor.empty { rank, count }
  local p = tensor.data(t)
  local bound = 1 / math.sqrt(cols)
  for i = 0, rank * count - 1 do
    local place = math.floor(i / count) * cols + first + i % count
    p[i] = bound * (2 * C.sz_random_uniform(seed, stream, place, PLACE) - 1)
  end
  return t
end

-- Moves a tensor to the model's device, and frees the original if that made a copy.
local function on_device(vl, t)
  if vl.device == "cpu" then return t end
  local copy = t:to { device = vl.device }
  t:free()
  return copy
end

local ATTACH = options.set { "rank", "alpha", "target_modules", "exclude_modules", "seed",
  "freeze_vision", "meta", "rslora" }

local function check_settings(rank, alpha, level)
  if type(rank) ~= "number" or rank < 1 or rank % 1 ~= 0 then
    error(("lora.rank is %s, expected a whole number from 1"):format(tostring(rank)), level + 1)
  end
  if type(alpha) ~= "number" or not (alpha > 0 and alpha < math.huge) then
    error(("lora.alpha is %s, expected a number above 0"):format(tostring(alpha)), level + 1)
  end
end

-- A new pair for weight w. opts.meta: without memory, for counting (plan.lua).
local function new_pair(vl, w, opts)
  local a, b = pairs_of.weight(w, opts.rank, vl.shards)
  local rows = parts.shape(b.full, b.slice)
  if opts.meta then return tensor.meta(parts.shape(a.full, a.slice)), tensor.meta(rows) end
  return on_device(vl, uniform(a, opts.seed or 0, w.index)),
    tensor.zeros(rows, { device = vl.device })
end

function M.attach(vl, opts)
  opts = options.check("lora.attach", opts, ATTACH, 2)
  check_settings(opts.rank, opts.alpha, 2)
  if vl.lora then error("this model has adapters already", 2) end
  local layers = targets.chosen(vl, opts)
  local widest = 0
  for _, w in ipairs(layers) do
    local full = w.full or w.shape
    widest = math.max(widest, full[1], full[2])
  end
  if opts.rank > widest then
    local message = "lora.rank is %.0f, more than the %d rows or columns of the widest layer"
    error(message:format(opts.rank, widest), 0)
  end
  local list = {}
  for i, w in ipairs(layers) do
    local a, b = new_pair(vl, w, opts)
    list[i] = { index = w.index, name = w.name, module = vl:module_name(w.name),
      scale = opts.alpha / opts.rank, a = a, b = b }
  end
  return hold(vl, list, opts)
end

-- Without adapters in the vision tower the tower is frozen, and the settings then say so.
function M.configure(vl, cfg, counting)
  local actor = cfg.worker.actor
  local l = actor.model.lora
  if l.rank == 0 then return vl end
  M.attach(vl, {
    rank = l.rank, alpha = l.alpha, target_modules = l.target_modules,
    exclude_modules = l.exclude_modules, seed = cfg.data.seed,
    freeze_vision = actor.freeze_vision_tower, meta = counting,
  })
  if not vl.lora.visual then actor.freeze_vision_tower = true end
  return vl
end

local function free_all(tensors)
  for _, t in pairs(tensors) do t:free() end
end

function M.open(vl, dir)
  if vl.lora then error("this model has adapters already", 2) end
  local json = M.read_config(dir)
  local loaded = M.read(dir)
  local ok, list = pcall(lora_files.fit, vl, dir, json, loaded)
  if ok then return { list = list, json = json, loaded = loaded } end
  free_all(loaded)
  error(list, 0)
end

function M.use(vl, adapters)
  local json = adapters.json
  -- A copy of this shard's part of a loaded tensor; part: of pairs.lua.
  local function own_copy(t, part)
    local copy = tensor.empty(parts.shape(part.full, part.slice))
    parts.copy(copy, t, part.slice)
    return on_device(vl, copy)
  end
  local ok, why = pcall(function()
    for _, p in ipairs(adapters.list) do
      local a, b = pairs_of.adapter(vl, p)
      p.a = own_copy(p.a, a)
      p.b = own_copy(p.b, b)
    end
    hold(vl, adapters.list, {
      rank = json.r, alpha = json.lora_alpha, rslora = lora_files.value(json, "use_rslora"),
      exclude_modules = lora_files.value(json, "exclude_modules"),
    })
  end)
  free_all(adapters.loaded)
  if not ok then error(why, 0) end
  return vl
end

function M.load(vl, dir) return M.use(vl, M.open(vl, dir)) end

-- Checks that a resumed run scales its adapters like the run that wrote them.
function M.same_settings(vl, dir)
  local json = M.read_config(dir)
  for ours, theirs in pairs { rank = "r", alpha = "lora_alpha" } do
    if json[theirs] ~= vl.lora[ours] then
      error(("checkpoint %s: worker.actor.model.lora.%s was %s, is %s"):format(dir, ours,
        tostring(json[theirs]), tostring(vl.lora[ours])), 0)
    end
  end
end

-- ---- training ----
-- Like a policy's train(): the adapters get gradients, the weights do not. Names and whole shapes
-- are those in PEFT's files. plain_train(policy, filter) turns the gradients of weights on and off.
function M.train(vl, filter, plain_train)
  plain_train(vl, function() return false end)
  local list = {}
  for _, p in ipairs(vl.lora.list) do
    local on = true
    if filter then on = filter(p.name) and true or false end
    p.a:requires_grad(on)
    p.b:requires_grad(on)
    if on then
      local a, b = lora_files.matrices(vl, p)
      a.tensor = tensor.borrow(p.a.ptr)
      b.tensor = tensor.borrow(p.b.ptr)
      list[#list + 1] = a
      list[#list + 1] = b
    end
  end
  return list
end

-- {name -> tensor}, as in PEFT's files.
function M.parameters(vl) return lora_files.parameters(vl.lora) end

-- The model without its adapters, for log-probabilities. It shares everything, and its forward
-- passes skip the adapters. It gives no gradients, because recomputation in the backward pass would
-- use the adapters.
function M.reference(vl)
  local base = {}
  for _, name in ipairs { "vision", "hidden" } do
    base[name] = function(_, ...)
      if C.sz_grad_enabled() == 1 then
        error("the base of a model with adapters gives no gradients (use no_grad)", 2)
      end
      local before = vl:enable_adapters(false)
      local results = { pcall(vl[name], vl, ...) }
      vl:enable_adapters(before)
      if not results[1] then error(results[2], 0) end
      return results[2]
    end
  end
  return setmetatable(base, {
    __index = vl,
    __tostring = function() return tostring(vl) .. ", adapters off" end,
  })
end

-- ---- merging ----
-- The sum is computed in f32 and rounded once to the weight's dtype.
local function merge_one(w, p)
  local product = p.b:matmul(p.a, 0, 0)
  w:copy_(w:cast(C.SZ_F32):add(product:affine(p.scale, 0)))
end

function M.merge(vl)
  local lora = vl.lora or error("this model has no adapters", 2)
  if vl.quantized then
    error(("cannot merge adapters into a model in %d bits: load it as bf16 or f32"):format(
      vl.quantized), 2)
  end
  local weights = vl:parameters()
  for _, p in ipairs(lora.list) do
    tensor.step(tensor.no_grad, merge_one, weights[p.name], p)
    vl:set_adapter(p.index, nil, nil, 0)
    p.a:free()
    p.b:free()
  end
  vl.lora = nil
  return vl
end

return M
