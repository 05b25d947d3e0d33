-- reasons.lua - reads the third result of a reward, which says in words why a part is 0.
--
--   reasons.text(why, part) -> text or nil       why: f(part), {part = text}, or nil
--   reasons.zeros(parts, why) -> {part = text}   of the parts that are 0
--
-- Words are a courtesy: a function that fails has none, and other values than texts are left out.
-- Leaves out: the words themselves (rewards/reasons.lua).

local core = require "segzero.core.ffi"

local M = {}

function M.text(why, part)
  local text
  if type(why) == "function" then
    local ok, result = pcall(why, part)
    if not ok and core.is_interrupt(result) then error(result, 0) end
    text = ok and result
  elseif type(why) == "table" then
    text = rawget(why, part)
  end
  if type(text) == "string" then return text end
  return nil
end

function M.zeros(parts, why)
  local out = {}
  for name, value in pairs(parts or {}) do
    if value == 0 then out[name] = M.text(why, name) end
  end
  return out
end

return M
