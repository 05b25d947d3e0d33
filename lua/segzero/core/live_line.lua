-- live_line.lua - the last line of a terminal, which says how far the work is and is replaced.
--
--   live_line.is_possible()      whether standard error is a terminal
--   live_line.show("step 12: 5/16 prompts answered")
--   live_line.clear()            before anything else is printed; does nothing if there is none
--
-- It goes to standard error. Leaves out: how often (log/progress.lua, log/byte_progress.lua).

local M = {}

local shown = false
local possible

function M.is_possible()
  if possible == nil then
    local ok, unistd = pcall(require, "posix.unistd")
    possible = ok and unistd.isatty(2) == 1 and os.getenv "TERM" ~= "dumb"
  end
  return possible
end

function M.show(text)
  -- Without wrapping, so that a long line is one that can be cleared.
  io.stderr:write("\r\27[?7l", text, "\27[K\27[?7h")
  io.stderr:flush()
  shown = true
end

function M.clear()
  if not shown then return end
  io.stderr:write "\r\27[K"
  io.stderr:flush()
  shown = false
end

return M
