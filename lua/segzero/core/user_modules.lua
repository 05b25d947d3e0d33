-- user_modules.lua - lets `require` find a user's own modules: next to a file that a setting
-- names, such as a reward, in the script's folder, in the current folder, then where relative
-- entries of LUA_PATH say.
--
--   user_modules.look_beside(path)     from now on also in the folder of this file, before the
--                                      others. A module of that name from another such folder is
--                                      loaded anew, so two rewards may each have a "helper" of
--                                      their own
--   user_modules.paths() -> list       the files of the modules that were found in these folders
--   user_modules.forget() -> restore   the next require reads these modules again; restore() puts
--                                      the old ones back
--
-- Requiring it adds a package loader; the host program does so before it runs anything. The loader
-- comes after all others, so a module of segzero or of an installed package always wins. A name
-- that segzero or a package may use (RESERVED) is never searched there, even if the package is
-- missing: a model or data folder from elsewhere may hold files of such names, and its code must
-- not run because a program was started in that folder.
-- Leaves out: C modules (set package.cpath).

local RESERVED = {}
for name in ("segzero cjson lyaml yaml argparse posix ffi bit jit table string"):gmatch "%S+" do
  RESERVED[name] = true
end

-- The folder of the script on the command line, or nil.
local function script_folder()
  local script = rawget(_G, "arg") and arg[0]
  if type(script) ~= "string" or not script:find "%.lua$" then return nil end
  return script:match "^(.*)/[^/]*$"
end

local named = {}                -- the folders of look_beside, the latest first
local origin = {}               -- module -> the folder of `named` that it came from
local path_of = {}              -- module -> its file

local function folder_of(path) return path:match "^(.*)/[^/]*$" or "." end

local function look_beside(path)
  local folder = folder_of(path)
  for name, from in pairs(origin) do
    if from ~= folder then package.loaded[name] = nil end
  end
  for i, other in ipairs(named) do
    if other == folder then table.remove(named, i) end
  end
  table.insert(named, 1, folder)
end

-- The folder of the file that calls require, if it is one of look_beside.
local function own_folder()
  local REQUIRER = 5            -- this function, folders, search, require, its caller
  local info = debug.getinfo(REQUIRER, "S")
  local path = info and info.source:match "^@(.*)$"
  local folder = path and folder_of(path)
  for _, other in ipairs(named) do
    if other == folder then return folder end
  end
end

-- The folders to search, each once.
local function folders()
  local list = { own_folder() }
  for _, folder in ipairs(named) do list[#list + 1] = folder end
  list[#list + 1] = script_folder()
  list[#list + 1] = "."
  local seen = {}
  local unique = {}
  for _, folder in ipairs(list) do
    if not seen[folder] then unique[#unique + 1] = folder end
    seen[folder] = true
  end
  return unique
end

local function search(name)
  if RESERVED[name:match "^[^.]*"] then return nil end
  local tried = {}
  for i, folder in ipairs(folders()) do
    local pattern = folder .. "/?.lua;" .. folder .. "/?/init.lua"
    local path, reason = package.searchpath(name, pattern)
    if path and i <= #named then
      origin[name] = folder
      path_of[name] = path
    end
    if path then return assert(loadfile(path)) end
    tried[i] = reason
  end
  for entry in (os.getenv "LUA_PATH" or ""):gmatch "[^;]+" do
    local path = not entry:find "^/" and package.searchpath(name, entry)
    if path then return assert(loadfile(path)) end
  end
  return table.concat(tried)
end

package.loaders[#package.loaders + 1] = search

local function paths()
  local list = {}
  for name, path in pairs(path_of) do
    if package.loaded[name] ~= nil then list[#list + 1] = path end
  end
  table.sort(list)
  return list
end

local function forget()
  local old = {}
  for name in pairs(path_of) do
    old[name] = package.loaded[name]
    package.loaded[name] = nil
  end
  return function()
    for name, module in pairs(old) do package.loaded[name] = module end
  end
end

return { search = search, look_beside = look_beside, paths = paths, forget = forget }
