-- offload.lua - a frozen model whose weights wait in host memory and are on the device only while
-- it is used.
--
--   sz.qwen_vl(dir, {offload = true})     vl.offloaded: the device that it works on; nil on the
--                                         CPU, where offloading saves nothing
--   offload.using(vl, f)                  calls f() with vl's weights on the device, and releases
--                                         them afterwards, even if f fails. Not inside a step: the
--                                         copies would belong to its arena
--
-- Each call copies all weights over the bus. Leaves out: models in 8 bits (their
-- layout is the device's), one layer at a time.

local tensor = require "segzero.core.tensor"

local M = {}

local function set_all(vl, list)
  for _, w in ipairs(vl.weights) do vl:set_weight(w.index, list[w.name]) end
end

local function traced(e)
  if type(e) ~= "string" then return e end
  return debug.traceback(e, 2)
end

function M.using(vl, f)
  if not vl.offloaded then return f() end
  local home = vl:parameters()
  local away = {}
  local ok, result = xpcall(function()
    for name, t in pairs(home) do
      away[name] = tensor.no_grad(t.to, t, { device = vl.offloaded })
    end
    set_all(vl, away)
    return f()
  end, traced)
  set_all(vl, home)
  for _, t in pairs(away) do t:free() end
  if not ok then error(result, 0) end
  return result
end

return M
