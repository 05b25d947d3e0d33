-- op_workspace.lua - compares the workspace that an op takes with what a dry run counts, which is
-- what the function in its row of ops.def says.
--
--   op_workspace.check("linear", 1e9)       a check, or a skip of calls over 1e9 operations
--
-- The call is the bench's, on zeros: it is large enough for the workspace to show, and zeros are
-- made fast.
-- Leaves out: calls of other sizes; devices other than the CPU.

local check = require "tests.support.check"
local core = require "segzero.core.ffi"
local op_calls = require "tests.support.op_calls"
local op_cases = require "tests.support.op_cases"
local tensor = require "segzero.core.tensor"

local C = core.C

local M = {}

-- A row may say NONE up to two megabytes.
local SLACK = 2 * 2 ^ 20

-- Bytes of the arena that a call uses: outputs and workspace.
local function arena_bytes(op, call, dry)
  C.sz_scope_push()
  C.sz_arena_used(1)
  C.sz_dry_run(dry and 1 or 0)
  local ok, outputs = pcall(op_calls.apply, op, call)
  C.sz_dry_run(0)
  local used = tonumber(C.sz_arena_used(1))
  if ok then op_calls.free_all(outputs) end
  C.sz_scope_pop()
  if not ok then error(outputs, 0) end
  return used
end

-- Checks the op of that name, unless its call takes more than most_flops operations. The function
-- of a row may be off by a fifth, and above by a factor of four where it is a bound.
function M.check(name, most_flops)
  local op = tensor.ops[name]
  local g = op_cases.generator("bf16", { zeros = true })
  local call = op_cases.cases[name].bench(g)
  if call.flops and call.flops > most_flops then
    check.skip(("time for %.2g operations, for the workspace of %s"):format(call.flops, name))
  else
    local taken = arena_bytes(op, call, false)
    local counted = arena_bytes(op, call, true)
    local text = ("%s: takes %d bytes, a dry run counts %d"):format(name, taken, counted)
    check.ok(taken <= 1.2 * counted + SLACK, text)
    check.ok(counted <= 4 * taken + SLACK, text)
  end
  g.free()
end

return M
