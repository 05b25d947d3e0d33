-- random_weights.lua - random weights for a network in C: normal numbers, norms 1, biases 0.
--
--   random_weights.fill(model, {seed =, std =, is_norm = f(name), repeated = true | nil})
--   random_weights.empty(model, w)            zeros of weight w's shape, in the model's dtype
--   random_weights.place(model, w, t)         gives weight w the tensor t; frees t
--
-- The numbers of a weight depend on the seed and its index only; a shard of a split model gets
-- those of its slice. repeated: copies one block of 16 million numbers again and again, because
-- drawing billions takes the CPU minutes.

local core = require "segzero.core.ffi"
local parts = require "segzero.formats.parts"
local tensor = require "segzero.core.tensor"

local C = core.C
local check = core.check

local M = {}

local BLOCK = 16777213       -- a prime, so that no two rows of a matrix are the same

local function elements(shape)
  local n = 1
  for _, d in ipairs(shape) do n = n * d end
  return n
end

-- f(t) fills a tensor from one block of random numbers; the next tensor starts where the last
-- ended.
local function repeating(model, opts)
  local block = tensor.empty({ BLOCK }, { dtype = model.dtype, device = model.device })
  check(C.sz_random_normal_(block.ptr, opts.seed, 0, 0, opts.std))
  local at = 0
  -- Elements done .. done + n of `flat` are those from `first` on of the whole weight.
  local function copy(flat, done, n, first)
    local place = (at + first) % BLOCK
    while n > 0 do
      local length = math.min(n, BLOCK - place)
      flat:narrow(done, length):copy_(block:narrow(place, length))
      done = done + length
      n = n - length
      place = (place + length) % BLOCK
    end
  end
  local function fill(t, w)
    local place = parts.place(w.full, w.slice)
    local first, run, stride = tonumber(place.first), tonumber(place.run), tonumber(place.stride)
    local n = t:numel()
    if run == stride then run = n end
    tensor.step(tensor.no_grad, function()
      local flat = t:reshape(n, 0, 0, 0)
      for row = 0, n / run - 1 do copy(flat, row * run, run, first + row * stride) end
    end)
    at = (at + elements(w.full)) % BLOCK
  end
  return fill, block
end

function M.empty(model, w)
  return tensor.zeros(w.shape, { dtype = model.dtype, device = model.device })
end

function M.ones(t, w) t:copy_(tensor.zeros(w.shape):affine(0, 1)) end

function M.normal(t, seed, w, std)
  check(C.sz_random_normal_part_(t.ptr, parts.place(w.full, w.slice), seed, w.index, 0, std))
end

function M.place(model, w, t)
  check(C.sz_model_weight_set(model.c, w.index, t.ptr))
  t:free()
end

function M.fill(model, opts)
  local fill, block
  if opts.repeated then fill, block = repeating(model, opts) end
  for _, w in ipairs(model.weights) do
    local t = M.empty(model, w)
    local bias = w.name:match "%.bias$"
    if opts.is_norm(w.name) then
      M.ones(t, w)
    elseif fill and not bias then
      fill(t, w)
    elseif not bias then
      M.normal(t, opts.seed, w, opts.std)
    end
    M.place(model, w, t)
  end
  if block then block:free() end
end

return M
