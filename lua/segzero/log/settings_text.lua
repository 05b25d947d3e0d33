-- settings_text.lua - the settings of a run as lines of text, for loggers.
--
--   settings_text.lines(config) -> "data.seed = 42\n...", sorted by key; lists as JSON
--
-- Leaves out: reading them back (config.json has them).

local files = require "segzero.core.files"

local M = {}

local function add(list, t, prefix)
  for key, value in pairs(t) do
    local name = prefix .. tostring(key)
    local is_group = type(value) == "table" and #value == 0 and next(value) ~= nil
    if is_group then
      add(list, value, name .. ".")
    else
      local text = tostring(value)
      if type(value) == "table" then text = files.json(value) end
      list[#list + 1] = name .. " = " .. text
    end
  end
end

function M.lines(config)
  local list = {}
  add(list, config, "")
  table.sort(list)
  return table.concat(list, "\n")
end

return M
