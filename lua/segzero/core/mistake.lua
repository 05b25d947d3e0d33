-- mistake.lua - tells a mistake in the command line or its settings from an error in the work.
--
--   mistake.raise(message)        raises the message, which counts as a mistake of the user's
--   mistake.reading(f, ...)       f's results; whatever f raises counts as a mistake
--   mistake.status(message)       the exit status of a program that this error ends: 2 or 1
--   mistake.guard(f, ...)         f's results; a mistake in f ends the program with status 2
--
-- The message is remembered, because errors pass through code that only keeps their text.
-- Under plain LuaJIT, without the host program, a mistake in guard's f is an error like others.
-- Leaves out: printing, which the host program does.

local has_host, host = pcall(require, "segzero.host")

local M = {}

local MISTAKE = 2
local FAILURE = 1

local last
local explain = has_host and host.explain or function(message) return message end

function M.raise(message)
  last = message
  error(message, 0)
end

local function passed_on(ok, ...)
  if ok then return ... end
  last = tostring((...))
  error((...), 0)
end

function M.reading(f, ...) return passed_on(xpcall(f, explain, ...)) end

-- Others may have added words before or after the message, or put the setting's name in place of
-- its first words ("data set NAME: ...").
function M.status(message)
  local kept = last and last:gsub("^[^\n:]*: ", "")
  if kept and tostring(message):find(kept, 1, true) then return MISTAKE end
  return FAILURE
end

local function finished(ok, ...)
  if ok then return ... end
  if has_host and M.status((...)) == MISTAKE then host.fail("segzero", (...), MISTAKE) end
  error((...), 0)
end

function M.guard(f, ...) return finished(xpcall(f, explain, ...)) end

return M
