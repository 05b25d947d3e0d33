-- tensor.lua - tensors: C tensors as Lua objects that behave like PyTorch's.
--
--   local t = tensor.new({{1, 2}, {3, 4}}, {dtype = "f32", device = "cpu"})
--   (t * 2 + 1):exp():sum():item()
--   t:sum(0), t:softmax(-1), t:max(1), t[1], t[{2, 1}], #t
--   t:requires_grad(true); loss:backward(); t:grad()
--   t:to{device = "cuda"}      a copy there; item(), totable() and print read from every device
--
-- Dimensions are counted from 0, as in PyTorch, and elements from 1, as in Lua; -1 is the last one
-- of either. Anything unsupported is an error at the caller's line.
--
-- A tensor holds one reference to its C object. free() drops it at once; otherwise the collector
-- does. The collector does not see how large C memory is, so loops should run inside
-- tensor.step(f).
--
-- The parts, in core/tensor/:
--   handle      the object, checks that all parts share       read        shape, elements, indexing
--   create      new, zeros, ones, full, arange, randn         print       text
--   ops         a method for each row of ops.def              arithmetic  operators, broadcasting
--   autograd    gradients, scopes                             reduce      sum .. cross_entropy
--   arrange     reshape, transpose, slice, cat
-- docs/ops.md lists the rows. Leaves out: assignment to elements, f16 and f64.

local handle = require "segzero.core.tensor.handle"
local create = require "segzero.core.tensor.create"
local ops = require "segzero.core.tensor.ops"
require "segzero.core.tensor.read"
require "segzero.core.tensor.print"
local autograd = require "segzero.core.tensor.autograd"
local arithmetic = require "segzero.core.tensor.arithmetic"
local reduce = require "segzero.core.tensor.reduce"
local arrange = require "segzero.core.tensor.arrange"
handle.seal()

local M = {}

-- ---- making tensors ----
M.new = create.new
M.zeros = create.zeros
M.ones = create.ones
M.full = create.full
M.empty = create.empty
M.meta = create.meta
M.arange = create.arange
M.rand = create.rand
M.randn = create.randn
M.manual_seed = create.manual_seed

-- ---- functions of several tensors ----
M.where = arithmetic.where
M.cat = arrange.cat
M.stack = arrange.stack
M.cross_entropy = reduce.cross_entropy

-- ---- gradients, scopes ----
M.no_grad = autograd.no_grad
M.step = autograd.step
M.recorded = autograd.recorded

-- ---- for modules that call C themselves ----
M.is_tensor = handle.is_tensor
M.wrap = handle.wrap
M.borrow = handle.borrow
M.data = handle.data
M.dtype_code = handle.dtype_code
M.device_code = handle.device_code
M.model_device = handle.model_device
M.ops = ops.table
M.methods = handle.methods         -- name -> function, to list them
M.WIDTH = { f32 = 4, bf16 = 2, i32 = 4, u8 = 1 }       -- bytes of an element

-- The options table of a call, {} for nil. Anything else is an error.
function M.options(opts, level) return handle.options(opts, level) end

return M
