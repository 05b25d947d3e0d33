-- old_settings.lua - the settings of a run before they were changed: config_step_N.json in its
-- folder.
--
--   old_settings.list(folder) -> {{step =, again =, name =}, ...}      oldest first
--   old_settings.later(folder, step) -> list   those of changes after a later step
--   old_settings.at(folder, step) -> path      the file with the settings that a step ran under
--   old_settings.free(folder, step) -> path    for settings that change after this step
--
-- config.json has the present settings. config_step_5.json has those of the steps up to 5, before
-- the run was resumed at 5 with others; config_step_5-2.json those that it then had, before it was
-- resumed at 5 again. After a return to step 3 these files are config_step_3.json and so on,
-- because no step after 3 is left that ran under them.
-- Leaves out: what changed (contract.lua, report/settings.lua).

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"

local M = {}

function M.list(folder)
  local list = {}
  for _, name in ipairs(folders.list(folder) or {}) do
    local step, again = name:match "^config_step_(%d+)%-?(%d*)%.json$"
    if step then
      list[#list + 1] = { step = tonumber(step), again = tonumber(again) or 1, name = name }
    end
  end
  table.sort(list, function(a, b)
    if a.step ~= b.step then return a.step < b.step end
    return a.again < b.again
  end)
  return list
end

function M.later(folder, step)
  local list = {}
  for _, old in ipairs(M.list(folder)) do
    if old.step > step then list[#list + 1] = old end
  end
  return list
end

function M.at(folder, step)
  for _, old in ipairs(M.list(folder)) do
    if step <= old.step then return folder .. "/" .. old.name end
  end
  return folder .. "/config.json"
end

function M.free(folder, step)
  local base = ("%s/config_step_%d"):format(folder, step)
  local path = base .. ".json"
  local n = 1
  while files.exists(path) do
    n = n + 1
    path = ("%s-%d.json"):format(base, n)
  end
  return path
end

return M
