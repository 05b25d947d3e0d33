-- random_weights.lua - random weights for a network in C: normal numbers, norms 1, biases 0.
--
--   random_weights.fill(model, {seed =, std =, is_norm = f(name), repeated = true | nil})
--   random_weights.empty(model, w)            zeros of weight w's shape, in the model's dtype
--   random_weights.place(model, w, t)         gives weight w the tensor t; frees t
--
-- The numbers of a weight depend on the seed and its index only. repeated: copies one block of 16
-- million numbers again and again, because drawing billions takes the CPU minutes.

local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"

local C = core.C
local check = core.check

local M = {}

local BLOCK = 16777213       -- a prime, so that no two rows of a matrix are the same

-- f(t) fills a tensor from one block of random numbers; the next tensor starts where the last
-- ended.
local function repeating(model, opts)
  local block = tensor.empty({ BLOCK }, { dtype = model.dtype, device = model.device })
  check(C.sz_random_normal_(block.ptr, opts.seed, 0, 0, opts.std))
  local at = 0
  local function fill(t)
    tensor.step(tensor.no_grad, function()
      local n = t:numel()
      local done = 0
      local flat = t:reshape(n, 0, 0, 0)
      while done < n do
        local length = math.min(n - done, BLOCK - at)
        flat:narrow(done, length):copy_(block:narrow(at, length))
        done = done + length
        at = (at + length) % BLOCK
      end
    end)
  end
  return fill, block
end

function M.empty(model, w)
  return tensor.zeros(w.shape, { dtype = model.dtype, device = model.device })
end

function M.ones(t, w) t:copy_(tensor.zeros(w.shape):affine(0, 1)) end

function M.normal(t, seed, w, std) check(C.sz_random_normal_(t.ptr, seed, w.index, 0, std)) end

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
      fill(t)
    elseif not bias then
      M.normal(t, opts.seed, w, opts.std)
    end
    M.place(model, w, t)
  end
  if block then block:free() end
end

return M
