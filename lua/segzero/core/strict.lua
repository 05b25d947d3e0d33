-- strict.lua - a misspelt global is an error instead of a silent nil.
--
-- Requiring it switches it on; ./segzero does so before it runs anything. Then
--   reading a global that was never assigned is an error that names it;
--   assigning a new global is allowed in C and in a main chunk (of a file, of -e, of a line in the
--   REPL); inside a function it is an error, because the `local` was probably forgotten.
-- A global that was once assigned may be nil. `rawget(_G, name)` reads without an error.
-- Left out: tables other than _G.

local getinfo = debug.getinfo
local rawset = rawset
local error = error
local tostring = tostring

local M = {}

local declared = {}

local function caller_kind()
  -- 1: this function, 2: the metamethod, 3: the code that used the global
  local info = getinfo(3, "S")
  return info and info.what or "C"
end

local function on_assign(globals, name, value)
  if not declared[name] then
    if caller_kind() == "Lua" then
      local message = "assignment to undeclared global '%s' inside a function (a local was meant?)"
      error(message:format(tostring(name)), 2)
    end
    declared[name] = true
  end
  rawset(globals, name, value)
end

local function on_read(_, name)
  if not declared[name] then
    error("undefined global '" .. tostring(name) .. "'", 2)
  end
end

-- Switches the checks on. It is an error if _G already has another metatable.
function M.on()
  local mt = getmetatable(_G)
  if mt == nil then
    mt = {}
    setmetatable(_G, mt)
  elseif mt.__index ~= on_read and (mt.__index or mt.__newindex) then
    error("_G already has a metatable", 2)
  end
  mt.__newindex = on_assign
  mt.__index = on_read
end

-- Switches the checks off, for scripts that rely on undefined globals being nil.
function M.off()
  local mt = getmetatable(_G)
  if mt and mt.__index == on_read then
    mt.__newindex = nil
    mt.__index = nil
  end
end

-- pcall(require, name), with the checks off meanwhile: for another project's module, which may read
-- undefined globals.
function M.require(name)
  local mt = getmetatable(_G)
  local was_on = mt ~= nil and mt.__index == on_read
  M.off()
  local ok, found = pcall(require, name)
  if was_on then M.on() end
  return ok, found
end

M.on()

return M
