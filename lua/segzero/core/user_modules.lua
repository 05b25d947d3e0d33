-- user_modules.lua - lets `require` find a user's own modules: in the script's folder, in the
-- current folder, then where relative entries of LUA_PATH say.
--
-- Requiring it adds a package loader; the host program does so before it runs anything. The loader
-- comes after all others, so a module of segzero or of an installed package always wins. A name that
-- segzero or a package may use (RESERVED) is never searched there, even if the package is missing:
-- a model or data folder from elsewhere may hold files of such names, and its code must not run
-- because a program was started in that folder.
-- Leaves out: C modules (set package.cpath).

local PATTERN = "/?.lua;%s/?/init.lua"

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

local function search(name)
  if RESERVED[name:match "^[^.]*"] then return nil end
  local tried = {}
  for _, folder in ipairs { script_folder() or ".", "." } do
    local pattern = (folder .. PATTERN):format(folder)
    local path, reason = package.searchpath(name, pattern)
    if path then return assert(loadfile(path)) end
    tried[folder] = reason
  end
  for entry in (os.getenv "LUA_PATH" or ""):gmatch "[^;]+" do
    local path = not entry:find "^/" and package.searchpath(name, entry)
    if path then return assert(loadfile(path)) end
  end
  return tried["."]
end

package.loaders[#package.loaders + 1] = search

return { search = search }
