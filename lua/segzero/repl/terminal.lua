-- terminal.lua - the terminal while an entry is typed: raw input, its size, what it can show.
--
--   terminal.usable() -> bool          standard input and output are a terminal that moves a cursor
--   local t = terminal.open()          raw: keys arrive as they are pressed, nothing is echoed
--   t.next_byte(seconds)               as keys.new takes it
--   t.is_waiting() -> bool             whether a byte can be read at once
--   t:close()                          as it was before
--   terminal.size() -> columns, rows   80 and 24 if they are not known
--   terminal.suspend(t)                Ctrl-Z: stops the process group, and is raw again after `fg`
--   terminal.images() -> "kitty" | "iterm" | "sixel" | nil       how it shows images
--
-- Needs lua-posix. Leaves out: other systems than Linux.

local ffi = require "ffi"
local host = require "segzero.host"

local M = {}

local STDIN = 0
local STDOUT = 1
local TIOCGWINSZ = 0x5413

ffi.cdef [[
struct sz_repl_winsize { unsigned short rows, columns, x, y; };
int sz_repl_ioctl(int fd, unsigned long request, ...) __asm__("ioctl");
]]

local methods = {}
local mt = { __index = methods }

local function posix(name) return require("posix." .. name) end

function M.usable()
  local term = os.getenv "TERM"
  if not term or term == "" or term == "dumb" then return false end
  local found, unistd = pcall(posix, "unistd")
  return found and unistd.isatty(STDIN) == 1 and unistd.isatty(STDOUT) == 1
end

function M.size()
  local size = ffi.new "struct sz_repl_winsize"
  local columns = 80
  local rows = 24
  if ffi.C.sz_repl_ioctl(STDOUT, TIOCGWINSZ, size) ~= 0 then return columns, rows end
  if size.columns >= 8 then columns = size.columns end
  if size.rows >= 2 then rows = size.rows end
  return columns, rows
end

-- ---- raw input ----
local function raw_of(saved)
  local t = posix "termio"
  local bit = require "bit"
  local raw = { cc = {} }
  for key, value in pairs(saved) do raw[key] = value end
  for i, value in pairs(saved.cc) do raw.cc[i] = value end
  raw.iflag = bit.band(saved.iflag, bit.bnot(bit.bor(t.ICRNL, t.INLCR, t.IXON, t.ISTRIP)))
  raw.lflag = bit.band(saved.lflag, bit.bnot(bit.bor(t.ICANON, t.ECHO, t.ISIG, t.IEXTEN)))
  raw.cc[t.VMIN] = 1
  raw.cc[t.VTIME] = 0
  return raw
end

local function set(state)
  local t = posix "termio"
  t.tcsetattr(STDIN, t.TCSADRAIN, state)
end

local early = {}                -- bytes that were typed while the terminal was asked something

-- A byte; nil after `seconds`, or at the end of the input. A signal such as SIGINT from elsewhere
-- counts as Ctrl-C.
local function next_byte(seconds)
  local milliseconds = -1
  if seconds then milliseconds = math.floor(seconds * 1000) end
  if early[1] then return table.remove(early, 1) end
  while true do
    local ready = posix("poll").rpoll(STDIN, milliseconds)
    if host.interrupted() then return 3 end
    if ready == 1 then
      local bytes = posix("unistd").read(STDIN, 1)
      if bytes and #bytes == 1 then return bytes:byte() end
      if bytes then return nil end
    elseif ready == 0 then
      return nil
    end
  end
end

local function is_waiting() return early[1] ~= nil or posix("poll").rpoll(STDIN, 0) == 1 end

local PASTE_ON = "\27[?2004h"
local PASTE_OFF = "\27[?2004l"

function M.open()
  local saved = posix("termio").tcgetattr(STDIN)
  if not saved then return nil end
  local self = setmetatable({ saved = saved, raw = raw_of(saved), next_byte = next_byte,
    is_waiting = is_waiting }, mt)
  set(self.raw)
  io.write(PASTE_ON)
  io.flush()
  return self
end

function methods:close()
  io.write(PASTE_OFF)
  io.flush()
  set(self.saved)
end

function M.suspend(t)
  local signal = posix "signal"
  t:close()
  signal.kill(0, signal.SIGTSTP)
  set(t.raw)
  io.write(PASTE_ON)
  io.flush()
end

-- ---- images ----
local SIXEL = "4"               -- an attribute that a terminal states (DA1)
local ANSWER_SECONDS = 0.2

-- Asks what the terminal can do; "" if it does not answer.
local function attributes()
  local t = M.open()
  if not t then return "" end
  io.write "\27[c"
  io.flush()
  local text = ""
  while #text < 100 do
    local byte = t.next_byte(ANSWER_SECONDS)
    if not byte then break end
    text = text .. string.char(byte)
    if text:find "\27%[%?[%d;]*c$" then break end
  end
  t:close()
  -- What the user typed meanwhile is input.
  local answer = text:match "\27%[%?([%d;]*)c$"
  local typed = text:gsub("\27%[%?[%d;]*c$", "")
  for i = 1, #typed do early[#early + 1] = typed:byte(i) end
  return answer or ""
end

-- By what the terminal says about itself; env: os.getenv, ask: the list of its attributes.
function M.kind(env, ask)
  local term = env "TERM" or ""
  local program = env "TERM_PROGRAM" or ""
  -- Inside tmux or screen, the terminal around it is out of reach.
  local is_inside = env "TMUX" or env "STY" or term:find "^screen" or term:find "^tmux"
  if not is_inside then
    if env "KITTY_WINDOW_ID" or term:find "kitty" or program == "ghostty" then return "kitty" end
    if program == "iTerm.app" or program == "WezTerm" or program == "mintty" then return "iterm" end
  end
  for attribute in ask():gmatch "%d+" do
    if attribute == SIXEL then return "sixel" end
  end
  return nil
end

function M.images()
  if not M.usable() then return nil end
  return M.kind(os.getenv, attributes)
end

return M
