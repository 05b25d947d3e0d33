-- stop.lua - ends a run in order when a signal asks for it: SIGTERM, SIGINT, SIGHUP, a closed pipe
-- (SIGPIPE), or the warning of a batch system (SIGUSR1, SIGUSR2, SIGXCPU).
--
--   stop.run(f, ...)                  f's results. While f runs, these signals raise an error that
--                                     core.is_interrupt knows; what f does not explain is explained
--                                     as "stopped by SIGTERM". Calls nest
--   local ok, ... = stop.try(f, ...)  pcall(f, ...) inside run(). Afterwards a hold is on, so that
--                                     the caller can save
--   stop.hold()  ...  stop.release()  signals in between are noted and raise at the release. The
--                                     outermost hold() raises if one has come already. An error in
--                                     a hold needs no release: the end of the outermost run() ends
--                                     it
--   local ok, ... = stop.lifted(f, ...)   pcall(f, ...) inside a hold, which is lifted meanwhile:
--                                     signals raise in f and nowhere else
--   stop.check()                      raises if a signal has come and its error was swallowed
--   stop.signal() -> "SIGTERM" | nil  the first signal that came
--   stop.may_stop() -> boolean        inside a hold: whether lifted() would let signals raise
--   stop.INTERRUPTED                  the error that a signal raises
--   stop.traced                       a message handler for xpcall
--
-- A second signal within two seconds ends the process at once. The host program turns the error
-- into the exit status 128 + n. A script that continues after a stopped run cannot start another
-- one. Outside run() nothing here has an effect, nor without the host program. Leaves out: what to
-- save (train/run/ending.lua).

local core = require "segzero.core.ffi"

local has_host, host = pcall(require, "segzero.host")

local M = {}

local NAMES = { [1] = "SIGHUP", [2] = "SIGINT", [10] = "SIGUSR1", [12] = "SIGUSR2",
  [13] = "SIGPIPE", [15] = "SIGTERM", [24] = "SIGXCPU" }

local depth = 0         -- of nested run() calls
local holds = 0

-- For xpcall: the message as the user sees it, with a traceback where the user's own code failed.
local function traced(message)
  if type(message) ~= "string" or message:find("\nstack traceback:", 1, true) then
    return message
  end
  if core.is_interrupt(message) or not has_host then return message end
  return host.explain(message)
end

M.traced = traced

function M.signal()
  if not has_host or depth == 0 then return nil end
  return NAMES[host.stop_signal()]
end

M.INTERRUPTED = "interrupted!"

local function interrupt() error(M.INTERRUPTED, 0) end

function M.check()
  if M.signal() then interrupt() end
end

local function set_hold(on)
  if depth == 0 then return end
  holds = math.max(0, holds + (on and 1 or -1))
  host.hold(on)
end

function M.hold()
  if holds == 0 then M.check() end
  set_hold(true)
end

function M.release() set_hold(false) end

function M.may_stop() return depth > 0 and holds <= 1 end

function M.try(f, ...)
  local function finish(...)
    set_hold(true)
    return ...
  end
  return finish(xpcall(f, traced, ...))
end

function M.lifted(f, ...)
  local function finish(...)
    set_hold(true)
    return ...
  end
  return finish(xpcall(function(...)
    set_hold(false)
    if holds == 0 then M.check() end
    return f(...)
  end, traced, ...))
end

function M.run(f, ...)
  if not has_host then return f(...) end
  if depth == 0 then host.arm(true) end
  depth = depth + 1
  local function finish(ok, ...)
    local name = M.signal()
    depth = depth - 1
    if depth == 0 then
      host.arm(false)
      holds = 0
    end
    if ok then return ... end
    local reason = ...
    if name and core.is_interrupt(reason) then reason = "stopped by " .. name end
    error(reason, 0)
  end
  -- An earlier stop ends this run too, where its script went on.
  return finish(xpcall(function(...)
    M.check()
    return f(...)
  end, traced, ...))
end

return M
