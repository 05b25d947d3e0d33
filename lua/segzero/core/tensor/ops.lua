-- ops.lua - one method for each op of runtime/ops/ops.def, with its tensors, then its numbers.
--
--   x:rmsnorm(w, 1e-6)              numbers in the order of ops.def
--   x:rmsnorm(w, { eps = 1e-6 })    or by name, in one table
--
-- An optional tensor may be nil, and a number with a default may be left out. Extra arguments,
-- unknown names and wrong types are errors.
--
--   ops.apply(ops.table.sum, 2, x)  runs the op itself; errors blame a level
--
-- The other files of this folder replace some of these methods by friendlier ones of the same name
-- (sum, softmax, reshape, ...); ops.table keeps the ops themselves. docs/ops.md lists them.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local handle = require "segzero.core.tensor.handle"

local C = core.C
local check = core.check
local fail = handle.fail

local M = {}

local inputs = ffi.new("sz_tensor *[?]", C.SZ_MAX_IN)
local numbers = ffi.new("double[?]", C.SZ_MAX_ARGS)
local outputs = ffi.new("sz_tensor *[?]", C.SZ_MAX_OUT)

-- name -> { id, name, inputs, outputs, args, gradient, numbers, call }. args is how many numbers
-- the op takes; numbers is a list of { name, default }, without a default for a required number.
M.table = {}

-- "heads sign=1" -> { { name = "heads" }, { name = "sign", default = 1 } }
local function parse_numbers(text)
  local list = {}
  for word in text:gmatch "%S+" do
    local name, default = word:match "^([^=]+)=(.+)$"
    list[#list + 1] = { name = name or word, default = tonumber(default) }
  end
  return list
end

local function number_names(op)
  local names = {}
  for i, number in ipairs(op.numbers) do names[i] = number.name end
  return names
end

-- ---- arguments; level is as for error() in the function that takes it ----
-- Sets number i of a call. value may be a boolean, or nil if there is a default.
local function put_number(op, i, value, level)
  local number = op.numbers[i]
  if value == nil then value = number.default end
  if type(value) == "number" then
    numbers[i - 1] = value
  elseif type(value) == "boolean" then
    numbers[i - 1] = value and 1 or 0
  elseif value == nil then
    local names = table.concat(number_names(op), ", ")
    fail(level, "%s: the number %s is missing; the numbers are %s", op.name, number.name, names)
  else
    fail(level, "%s: %s is %s, expected a number", op.name, number.name, tostring(value))
  end
end

local function refuse_name(op, key, level)
  local names = number_names(op)
  if #names == 0 then fail(level, "%s: takes no numbers, got %s", op.name, key) end
  local nearest = require "segzero.core.nearest"
  fail(level, "%s: unknown number '%s'%s", op.name, key, nearest.question(key, names))
end

local function has_number(op, name)
  for _, number in ipairs(op.numbers) do
    if number.name == name then return true end
  end
  return false
end

-- The numbers of a call as one table of names.
local function put_named(op, named, level)
  for key in pairs(named) do
    if not has_number(op, key) then refuse_name(op, tostring(key), level + 1) end
  end
  for i = 1, op.args do put_number(op, i, named[op.numbers[i].name], level + 1) end
end

local function refuse_surplus(op, value, level)
  local tensors = op.inputs .. " tensors"
  if op.inputs == 1 then tensors = "1 tensor" end
  local names = table.concat(number_names(op), ", ")
  if names == "" then names = "no numbers" end
  fail(level, "%s: takes %s and %s; %s is one argument too many",
    op.name, tensors, names, tostring(value))
end

-- Fills inputs and numbers from the arguments of a call.
local function put_arguments(op, level, ...)
  local given = select("#", ...)
  local last = select(given > 0 and given or 1, ...)
  local named = type(last) == "table" and last or nil
  local count = op.inputs + op.args
  if named then
    given = given - 1
    count = op.inputs
  end
  for i = count + 1, given do
    local value = select(i, ...)
    if value ~= nil then refuse_surplus(op, value, level + 1) end
  end

  for i = 1, op.inputs do
    inputs[i - 1] = nil
    local t = i <= given and select(i, ...) or nil
    if t ~= nil then inputs[i - 1] = handle.pointer(t, level) end
  end
  if named then return put_named(op, named, level) end
  for i = 1, op.args do put_number(op, i, (select(op.inputs + i, ...)), level + 1) end
end

-- Runs an op with the collected inputs and numbers. Always a tail call from a function that was
-- called with this level.
local function run(op, level)
  check(C.sz_op_apply(op.id, inputs, numbers, outputs), level)
  if op.outputs == 1 then return handle.wrap(outputs[0]) end
  if op.outputs == 2 then return handle.wrap(outputs[0]), handle.wrap(outputs[1]) end
  return handle.wrap(outputs[0]), handle.wrap(outputs[1]), handle.wrap(outputs[2])
end

-- Runs an op on its tensors, then its numbers. level as for error(): 2 blames the caller of apply.
function M.apply(op, level, ...)
  put_arguments(op, level + 1, ...)
  return run(op, level)
end
local apply = M.apply

local function pointer_or_nil(t, level)
  if t == nil then return nil end
  return handle.pointer(t, level)
end

-- The same for an op with up to three tensors and two numbers, which the caller has checked. It has
-- no loop over arguments, so LuaJIT compiles it into the caller's loop.
function M.quick(op, level, a, b, c, first, second)
  inputs[0] = pointer_or_nil(a, level)
  inputs[1] = pointer_or_nil(b, level)
  inputs[2] = pointer_or_nil(c, level)
  numbers[0] = first or 0
  numbers[1] = second or 0
  return run(op, level)
end
local quick = M.quick

-- ---- the ops ----
local function method_of_any(op)
  return function(...) return apply(op, 2, ...) end
end

-- The method of an op with up to three tensors and no numbers.
local function method_of_tensors(op)
  return function(a, b, c, d)
    local surplus = d
    if op.inputs < 3 then surplus = c or surplus end
    if op.inputs < 2 then surplus = b or surplus end
    if surplus ~= nil then refuse_surplus(op, surplus, 3) end
    return quick(op, 2, a, b, c)
  end
end

local function add_row(id)
  local op = {
    id = id,
    name = ffi.string(C.sz_op_name(id)),
    inputs = C.sz_op_inputs(id),
    outputs = C.sz_op_outputs(id),
    args = C.sz_op_args(id),
    gradient = C.sz_op_has_grad(id) == 1,
    numbers = parse_numbers(ffi.string(C.sz_op_number_names(id))),
  }
  op.call = method_of_any(op)
  if op.args == 0 and op.inputs <= 3 then op.call = method_of_tensors(op) end
  M.table[op.name] = op
  handle.methods[op.name] = op.call
end

for id = 0, C.sz_op_count() - 1 do add_row(id) end

return M
