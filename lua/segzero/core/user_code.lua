-- user_code.lua - calls functions that a user wrote: a reward, a loss, a logger, a hook. If one
-- fails, the error shows the user's own traceback once, without the frames of this library.
--
--   user_code.call("the reward", f, ...)   f's results, or the error "the reward failed: ..."
--   user_code.try(f, ...)                  true and f's results, or false and a failure
--   user_code.try_until(ended, f, ...)     the same; ended() runs as soon as f has ended, before
--                                          anything else is done with its error
--   user_code.text(failure)                the failure {message =, traceback =} as one text
--   user_code.interpret(f)                 keeps a user's function from being compiled; returns f
--
-- Ctrl-C passes through unchanged, and works at once: it needs a debug hook, which does not fire in
-- loops that LuaJIT has compiled, so a user's function and what it refers to are interpreted.
-- os.exit inside such a call is an error, because it would end a run as if it had succeeded; so is
-- C's exit() in a run (runtime/host/exits.c).
-- Leaves out: time limits (reward/guard.lua).

local core = require "segzero.core.ffi"

local M = {}

-- ---- interpreted, not compiled ----
local seen = setmetatable({}, { __mode = "k" })

local OUR_FOLDERS = { "/lua/segzero/", "/rewards/", "/recipes/" }

local function is_ours(f)
  local source = debug.getinfo(f, "S").source
  for _, folder in ipairs(OUR_FOLDERS) do
    local prefix = "@" .. core.root .. folder
    if source:sub(1, #prefix) == prefix then return true end
  end
  return source == "=[C]"
end

-- Follows upvalues, and the functions in tables that are upvalues, such as a required module.
function M.interpret(f)
  if type(f) ~= "function" or seen[f] then return f end
  seen[f] = true
  if is_ours(f) then return f end
  jit.off(f, true)
  for i = 1, math.huge do
    local name, value = debug.getupvalue(f, i)
    if not name then break end
    M.interpret(value)
    if type(value) == "table" and value ~= _G and not seen[value] then
      seen[value] = true
      for _, member in next, value do M.interpret(member) end
    end
  end
  return f
end

-- ---- os.exit ----
local inside = 0                  -- calls of user code that have not ended
local exit = os.exit

function os.exit(...)             -- luacheck: ignore 122
  if inside > 0 then error("os.exit was called; raise an error to end the run", 2) end
  exit(...)
end

-- ---- calls ----
-- The user's frames of a traceback: those before this file's xpcall, without this file's own.
local function frames_of(traceback)
  local kept = {}
  for line in traceback:gmatch "[^\n]+" do
    if line:find("[C]: in function 'xpcall'", 1, true) then break end
    if not line:find("core/user_code.lua:", 1, true) then kept[#kept + 1] = line end
  end
  return table.concat(kept, "\n")
end

-- An error may be any value: its text, and nil has none.
local function text_of(value)
  local ok, text = pcall(tostring, value)
  local has_text = type(value) ~= "table" and type(value) ~= "userdata"
  if not has_text then has_text = ok and debug.getmetatable(value) ~= nil end
  if ok and type(text) == "string" and value ~= nil and has_text then return text end
  return ("(the error is a %s, not a message)"):format(type(value))
end

local function describe(message)
  if type(message) ~= "string" then message = text_of(message) end
  local text, traced = message:match "^(.-)\nstack traceback:\n(.*)$"
  if text then return { message = text, traceback = frames_of(traced) } end
  return { message = message,
    traceback = frames_of((debug.traceback("", 2):gsub("^%s*stack traceback:\n", ""))) }
end

local function run(handler, f, ...)
  local function finish(ok, failure, ...)
    inside = inside - 1
    if ok then return true, failure, ... end
    -- A failure of the handler itself, after a stack overflow for example.
    if type(failure) ~= "table" then
      failure = { message = tostring(failure), traceback = "" }
    end
    if core.is_interrupt(failure.message) then error(failure.message, 0) end
    return false, failure
  end
  inside = inside + 1
  return finish(xpcall(M.interpret(f), handler, ...))
end

function M.try(f, ...) return run(describe, f, ...) end

function M.try_until(ended, f, ...)
  local function handler(message)
    ended()
    return describe(message)
  end
  local function finish(...)
    ended()
    return ...
  end
  return finish(run(handler, f, ...))
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
