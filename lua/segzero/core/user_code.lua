-- user_code.lua - calls functions that a user wrote: a reward, a loss, a logger, a hook. If one
-- fails, the error shows the user's own traceback once, without the frames of this library.
--
--   user_code.call("the reward", f, ...)   f's results, or the error "the reward failed: ..."
--   user_code.try(f, ...)                  true and f's results, or false and a failure
--   user_code.text(failure)                the failure {message =, traceback =} as one text
--
-- Ctrl-C passes through unchanged. Leaves out: time limits.

local core = require "segzero.core.ffi"

local M = {}

-- The user's frames of a traceback: those before this file's xpcall.
local function frames_of(traceback)
  local kept = {}
  for line in traceback:gmatch "[^\n]+" do
    if line:find("[C]: in function 'xpcall'", 1, true) then break end
    kept[#kept + 1] = line
  end
  return table.concat(kept, "\n")
end

local function describe(message)
  if type(message) ~= "string" then return message end
  local text, traced = message:match "^(.-)\nstack traceback:\n(.*)$"
  if text then return { message = text, traceback = frames_of(traced) } end
  return { message = message,
    traceback = frames_of((debug.traceback("", 2):gsub("^%s*stack traceback:\n", ""))) }
end

function M.try(f, ...)
  local function finish(ok, failure, ...)
    if ok then return true, failure, ... end
    if type(failure) ~= "table" or not failure.traceback then error(failure, 0) end
    if core.is_interrupt(failure.message) then error(failure.message, 0) end
    return false, failure
  end
  return finish(xpcall(f, describe, ...))
end

-- The failure as one text. A message without a position is meant for the user and gets no
-- traceback.
function M.text(failure)
  if failure.traceback == "" or not failure.message:find ":%d+:" then return failure.message end
  return failure.message .. "\nstack traceback:\n" .. failure.traceback
end

function M.call(what, f, ...)
  local function finish(ok, failure, ...)
    if ok then return failure, ... end
    error(("%s failed: %s"):format(what, M.text(failure)), 0)
  end
  return finish(M.try(f, ...))
end

return M
