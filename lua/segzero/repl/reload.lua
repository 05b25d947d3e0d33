-- reload.lua - `:reload`: reads modules again whose files have changed.
--
--   reload.note()                remembers when the files of loaded modules were changed; called as
--                                soon as an entry may have loaded some
--   reload.run "" -> names       those that have changed since, of the user's and of rewards/,
--                                recipes/ and examples/
--   reload.run "my_reward" -> names      this one, changed or not; nil and why if it cannot be read
--
-- A module that returns a table keeps this table and gets the new fields, so every name that holds
-- it sees them. Globals that held a function which a module returned hold the new one. A file that
-- does not load leaves the old module in place. Leaves out: segzero's own modules, unless named.

local M = {}

local function path_of(name)
  if package.searchpath(name, package.path) then return package.searchpath(name, package.path) end
  local file = name:gsub("%.", "/") .. ".lua"
  local handle = io.open(file)
  if not handle then return nil end
  handle:close()
  return file
end

local function changed_at(path)
  local state = require("posix.sys.stat").stat(path)
  return state and state.st_mtime .. ":" .. state.st_size
end

local noted = {}                -- module -> when its file had been changed

local function is_watched(name)
  local first = type(name) == "string" and name:match "^[^.]*"
  return first and first ~= "segzero" and first ~= "posix"
end

function M.note()
  for name in pairs(package.loaded) do
    local path = is_watched(name) and not noted[name] and path_of(name)
    if path then noted[name] = changed_at(path) end
  end
end

-- Puts the new value in place of the old one.
local function replace(name, old, new)
  if type(old) == "table" and type(new) == "table" then
    for key in pairs(old) do old[key] = nil end
    for key, value in pairs(new) do old[key] = value end
    package.loaded[name] = old
    return
  end
  for key, value in next, _G do
    if value == old and type(key) == "string" then rawset(_G, key, new) end
  end
end

local function reload(name)
  local old = package.loaded[name]
  package.loaded[name] = nil
  local ok, new = pcall(require, name)
  if not ok then
    package.loaded[name] = old
    return nil, tostring(new):match "^[^\n]*"
  end
  if old ~= nil then replace(name, old, new) end
  local path = path_of(name)
  noted[name] = path and changed_at(path)
  return true
end

function M.run(wanted)
  local names = {}
  if wanted ~= "" then
    names[1] = (wanted:gsub("^%./", ""):gsub("%.lua$", ""):gsub("/", "."))
  else
    for name, before in pairs(noted) do
      local path = path_of(name)
      if path and changed_at(path) ~= before then names[#names + 1] = name end
    end
    table.sort(names)
  end
  for _, name in ipairs(names) do
    local ok, why = reload(name)
    if not ok then return nil, ("%s stays as it was: %s"):format(name, why) end
  end
  return names
end

return M
