-- guard.lua - runs a reward under a time limit, so that an endless loop ends with an error.
--
--   guard.call(seconds, what, answer, f, ...)    user_code.try(f, ...), or false and a failure with
--                                          late = true when it took longer than `seconds` (0: no
--                                          limit). The two texts are for the message of code that
--                                          cannot be stopped: "the reward of row 7", and the answer
--   guard.pause(f, ...)                    f's results; its time does not count. For work of ours
--                                          that a reward asks for, such as SAM2's
--
-- The limit is raised by a debug hook, which does not fire in compiled code, so nothing is compiled
-- meanwhile. That costs the rewards in rewards/ nothing that can be measured: their time goes to
-- string functions. An exponential string pattern is left too; a C function that does not return
-- ends the process after three more seconds, with a line that names the row and the answer
-- (runtime/host/watchdog.c). Without the host program there is no limit.
-- Leaves out: limits of other code of the user's.

local user_code = require "segzero.core.user_code"

local has_host, host = pcall(require, "segzero.host")

local M = {}

-- The call that runs: {seconds =, what =, answer =, left =, jit = whether the compiler was on}.
-- It also keeps the texts alive that the host points to.
local running

local function begin(call)
  call.jit = jit.status()
  jit.off()
  if call.seconds > 0 then host.limit(call.seconds, call.left, call.what, call.answer) end
end

local function suspend(call)
  if call.seconds > 0 then call.left = host.limit() end
  if call.jit then jit.on() end
end

local function ended()
  if not running then return end
  suspend(running)
  running = nil
end

function M.call(seconds, what, answer, f, ...)
  if running or not has_host then return user_code.try(f, ...) end
  local call = { seconds = seconds, left = seconds, what = what, answer = answer }
  local function finish(ok, failure, ...)
    if call.left >= 0 then return ok, failure, ... end
    if ok then failure = { message = "", traceback = "" } end
    failure.late = true
    -- The place where it was: "FILE:LINE: ".
    failure.message = (failure.message:match "^[^\n]-:%d+: " or "")
      .. ("it took longer than %g s"):format(seconds)
    return false, failure
  end
  running = call
  begin(call)
  return finish(user_code.try_until(ended, f, ...))
end

function M.pause(f, ...)
  local call = running
  if not call then return f(...) end
  local function finish(ok, ...)
    running = call
    begin(call)
    if not ok then error((...), 0) end
    return ...
  end
  suspend(call)
  running = nil
  return finish(pcall(f, ...))
end

return M
