-- offload.lua - a frozen model whose weights wait in page-locked host memory and are on the device
-- only while it is used.
--
--   sz.qwen_vl(dir, {offload = true})     vl.offloaded: the device that it works on; nil on the
--                                         CPU, where offloading saves nothing
--   offload.using(vl, f)                  calls f() with vl's weights on the device, and releases
--                                         them afterwards, even if f fails. f may call it again.
--                                         Not inside a step: the weights would belong to its arena
--
-- All weights go over the bus once in a call. The host does not wait for the copies; what f gives
-- the device does. Leaves out: models in 8 bits (their layout is the device's), one layer at a
-- time.

local core = require "segzero.core.ffi"
local handle = require "segzero.core.tensor.handle"

local C = core.C
local check = core.check

local M = {}

-- Models whose weights are in page-locked memory, and those that are on the device now.
local locked = setmetatable({}, { __mode = "k" })
local present = setmetatable({}, { __mode = "k" })

local function set_all(vl, list)
  for _, w in ipairs(vl.weights) do vl:set_weight(w.index, list[w.name]) end
end

local function traced(e)
  if type(e) ~= "string" then return e end
  return debug.traceback(e, 2)
end

-- Takes the weights' place in the mapped file, whose pages the system may drop from then on.
local function lock(vl)
  local home = {}
  for name, t in pairs(vl:parameters()) do
    home[name] = handle.wrap(check(C.sz_tensor_lock(t.ptr)))
  end
  set_all(vl, home)
  locked[vl] = true
end

local function upload(vl, home, away)
  for _, w in ipairs(vl.weights) do
    away[w.name] = handle.wrap(check(C.sz_tensor_upload(home[w.name].ptr)))
  end
end

function M.using(vl, f)
  if not vl.offloaded or present[vl] then return f() end
  if not locked[vl] then lock(vl) end
  local home = vl:parameters()
  local away = {}
  local ok, result = xpcall(function()
    upload(vl, home, away)
    set_all(vl, away)
    present[vl] = true
    return f()
  end, traced)
  present[vl] = nil
  set_all(vl, home)
  for _, t in pairs(away) do t:free() end
  if not ok then error(result, 0) end
  return result
end

return M
