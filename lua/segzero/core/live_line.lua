-- live_line.lua - the last line of a terminal, which says how far the work is and is replaced.
--
--   live_line.is_possible()      whether both outputs are a terminal
--   live_line.show("step 12: 5/16 prompts answered")
--   live_line.clear()            before anything else is printed; does nothing if there is none
--
-- Leaves out: how often (log/progress.lua).

local M = {}

local shown = false
local possible

local function is_terminal(fd)
  local ok, unistd = pcall(require, "posix.unistd")
  return ok and unistd.isatty(fd) == 1
end

function M.is_possible()
  if possible == nil then
    possible = is_terminal(1) and is_terminal(2) and os.getenv "TERM" ~= "dumb"
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
