-- op_calls.lua - runs the calls of op_cases.lua: by the fast kernels or by the reference kernels,
-- with copies of the inputs that an op updates, and with other inputs in their place.
--
--   local outputs, copies = calls.apply(op, call)
--   local list = calls.results(op, outputs, copies)     what the op gave, in order
--   calls.free_all(outputs, copies)
--
-- op is a row of tensor.ops. Lists of tensors have holes: index i is input or output i.
-- Leaves out: what is compared with what (tests/unit/test_ops.lua).

local core = require "segzero.core.ffi"

local C = core.C

local M = { MAX_INPUTS = 8 }

local function includes(list, i)
  for _, v in ipairs(list or {}) do
    if v == i then return true end
  end
  return false
end

-- Runs op on the call's inputs, replacing those that it updates by copies. Returns {outputs},
-- {copies by input index}. replaced: tensors to take in place of inputs, by index.
function M.apply(op, call, replaced)
  local all, copies = {}, {}
  for i = 1, op.inputs do
    all[i] = replaced and replaced[i] or call.inputs[i]
    if all[i] and includes(call.updates, i) then
      copies[i] = all[i]:clone()
      all[i] = copies[i]
    end
  end
  for i = 1, op.args do all[op.inputs + i] = call.args and call.args[i] end
  return { op.call(unpack(all, 1, op.inputs + op.args)) }, copies
end

-- f(...) with the reference kernels if on; three results at most.
function M.with_reference(on, f, ...)
  C.sz_use_reference(on and 1 or 0)
  local results = { pcall(f, ...) }
  C.sz_use_reference(0)
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2, 4)
end

-- Frees the tensors of each list.
function M.free_all(...)
  for _, list in ipairs { ... } do
    for i = 1, M.MAX_INPUTS do
      if list[i] then list[i]:free() end
    end
  end
end

-- A copy of the call whose inputs are change(t).
function M.with_inputs(call, change)
  local copy = { inputs = {} }
  for k, v in pairs(call) do
    if k ~= "inputs" then copy[k] = v end
  end
  for i = 1, M.MAX_INPUTS do
    local t = call.inputs[i]
    if t then copy.inputs[i] = change(t) end
  end
  return copy
end

-- The results of a call: its outputs, and the inputs that it updates. (Output 1 of an in-place op
-- is input 1.)
function M.results(op, outputs, copies)
  local list = {}
  for i = 1, op.outputs do list[#list + 1] = outputs[i] end
  for i = 1, M.MAX_INPUTS do list[#list + 1] = copies[i] end
  return list
end

return M
