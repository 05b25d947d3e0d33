-- ops.lua - one method for each row of runtime/ops/ops.def: the op's tensors, then its numbers.
--
--   x:rmsnorm(w, 1e-6)          a:matmul(b, 0, 1)          q:add_(dq)
--
-- A tensor that an op can do without may be nil, and so may numbers at the end (they are then 0);
-- more arguments than the row has, or arguments of another type, are errors.
--
--   ops.apply(ops.table.sum, 2, x)       the row itself, with errors blamed on a level
--
-- Some of these methods are replaced by friendlier ones with the same name in the other files of this
-- folder (sum, softmax, reshape, ...); ops.table keeps the rows as they are.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local handle = require "segzero.core.tensor.handle"

local C = core.C
local check = core.check

local M = {}

local MAX_IN = 8
local MAX_NUMBERS = 8
local MAX_OUT = 3
local inputs = ffi.new("sz_tensor *[?]", MAX_IN)
local numbers = ffi.new("double[?]", MAX_NUMBERS)
local outputs = ffi.new("sz_tensor *[?]", MAX_OUT)

M.table = {}      -- name -> { id, name, inputs, outputs, args, gradient, call }

-- Runs a row: its tensors, then its numbers. level is as for error(): 2 blames the caller of apply.
function M.apply(op, level, ...)
  local given = select("#", ...)
  if given > op.inputs + op.args then
    error(("%s: takes %d tensors and %d numbers, got %d arguments"):format(op.name, op.inputs, op.args, given), level)
  end
  for i = 1, op.inputs do
    local t = select(i, ...)
    inputs[i - 1] = nil
    if t ~= nil then inputs[i - 1] = handle.pointer(t, level) end
  end
  for i = 1, op.args do
    local v = select(op.inputs + i, ...)
    if v ~= nil and type(v) ~= "number" then
      error(("%s: number %d is %s"):format(op.name, i, tostring(v)), level)
    end
    numbers[i - 1] = v or 0
  end
  check(C.sz_op_apply(op.id, inputs, numbers, outputs), level)
  if op.outputs == 1 then return handle.wrap(outputs[0]) end
  if op.outputs == 2 then return handle.wrap(outputs[0]), handle.wrap(outputs[1]) end
  return handle.wrap(outputs[0]), handle.wrap(outputs[1]), handle.wrap(outputs[2])
end
local apply = M.apply

local function add_row(id)
  local op = {
    id = id,
    name = ffi.string(C.sz_op_name(id)),
    inputs = C.sz_op_inputs(id),
    outputs = C.sz_op_outputs(id),
    args = C.sz_op_args(id),
    gradient = C.sz_op_has_grad(id) == 1,
  }
  op.call = function(...) return apply(op, 2, ...) end
  M.table[op.name] = op
  handle.methods[op.name] = op.call
end

for id = 0, C.sz_op_count() - 1 do add_row(id) end

return M
