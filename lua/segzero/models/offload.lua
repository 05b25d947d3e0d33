-- offload.lua - a frozen model whose weights wait in host memory and are on the device only while it is used.
--
--   sz.qwen_vl(dir, {offload = true})     vl.offloaded: the device it works on; nil on the CPU, where there is nothing to be saved
--   offload.using(vl, f)                  f() with vl's weights where it works; they are let go of afterwards, also when f fails.
--                                         Not inside a step: the copies would lie in its arena
--
-- Copying costs the weights' bytes over the bus, each time. Leaves out: models in 8 bits (their layout is the device's), layers one by one.

local tensor = require "segzero.core.tensor"
local weights = require "segzero.models.weights"
local check = require("segzero.core.ffi").check

local M = {}

local function set(vl, list)
  for _, w in ipairs(vl.weights) do check(vl.of.set(vl.c, w.index, list[w.name].ptr)) end
end

function M.using(vl, f)
  if not vl.offloaded then return f() end
  local home, away = weights.parameters(vl), {}
  local ok, result = xpcall(function()
    for name, t in pairs(home) do away[name] = tensor.no_grad(t.to, t, { device = vl.offloaded }) end
    set(vl, away)
    return f()
  end, function(e) return type(e) == "string" and debug.traceback(e, 2) or e end)
  set(vl, home)
  for _, t in pairs(away) do t:free() end
  if not ok then error(result, 0) end
  return result
end

return M
