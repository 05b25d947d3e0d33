-- autograd.lua - gradients and scopes.
--
--   local w = tensor.new({1, 2}):requires_grad(true)
--   (w * w):sum():backward()
--   w:grad()                   {2, 4}; parameters' gradients accumulate until w:zero_grad()
--   tensor.no_grad(f, ...)     runs f without recording
--   tensor.step(f, ...)        releases all tensors that f made when f returns
--
-- Leaves out: gradients of gradients, retain_graph (backward() clears the tape).

local core = require "segzero.core.ffi"
local handle = require "segzero.core.tensor.handle"

local C = core.C
local check = core.check
local fail = handle.fail
local method = handle.method
local pointer = handle.pointer

local M = {}

-- requires_grad(on) sets it and returns the tensor; requires_grad() returns it.
method("requires_grad", 1, function(t, on)
  local p = pointer(t, 2)
  if on == nil then return C.sz_tensor_requires_grad(p) == 1 end
  if type(on) ~= "boolean" then
    fail(2, "requires_grad: true or false is expected, got %s", tostring(on))
  end
  check(C.sz_tensor_set_requires_grad(p, on and 1 or 0), 2)
  return t
end)

-- from: a tape position from tensor.recorded(). The ops before it stay on the tape for a later
-- backward(); runtime/sz.h says when that is allowed.
method("backward", 1, function(t, from)
  local p = pointer(t, 2)
  if from ~= nil and type(from) ~= "number" then
    fail(2, "backward: expected what tensor.recorded() returned, got %s", tostring(from))
  end
  check(C.sz_backward(p, from or 0), 2)
end)

function M.recorded() return C.sz_tape_length() end

-- The gradient; nil if there is none yet.
method("grad", 0, function(t)
  local g = C.sz_tensor_grad(pointer(t, 2))
  if g == nil then return nil end
  return handle.borrow(g)
end)

method("zero_grad", 0, function(t) check(C.sz_tensor_zero_grad(pointer(t, 2)), 2) end)

-- For xpcall: adds the traceback to the message. In nested scopes the innermost traceback is kept.
-- A message without a position in the code is meant for the user and is not changed.
local function traced(e)
  if type(e) ~= "string" or e:find("\nstack traceback:", 1, true) then return e end
  if not e:find "^[^\n]-:%d+:" then return e end
  return debug.traceback(e, 2)
end

local function check_function(name, f)
  if type(f) ~= "function" then
    fail(3, "%s: a function to run is expected, got %s", name, tostring(f))
  end
end

-- Runs f with recording off and returns what it returns.
function M.no_grad(f, ...)
  check_function("no_grad", f)
  local before = C.sz_set_grad_enabled(0)
  local function finish(ok, ...)
    C.sz_set_grad_enabled(before)
    if not ok then error((...), 0) end
    return ...
  end
  return finish(xpcall(f, traced, ...))
end

-- Runs f in a scope: every tensor made inside is released when f returns. Clone results that must
-- outlive it.
function M.step(f, ...)
  check_function("step", f)
  local depth = C.sz_scope_push()
  local function finish(ok, ...)
    while C.sz_scope_depth() >= depth do C.sz_scope_pop() end
    if not ok then error((...), 0) end
    return ...
  end
  return finish(xpcall(f, traced, ...))
end

return M
