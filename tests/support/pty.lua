-- pty.lua - a program on a pseudo-terminal: a test types keys and reads what appears.
--
--   local t = pty.start({ program, ... }, { env =, timeout = 20 })    nil: no pseudo-terminals
--   t:type "1 + 1\r"                    keys
--   local text = t:expect("2\r\n")      waits for a plain text; returns all up to it since the last
--                                       expect; false and what came instead after the timeout
--   local status = t:finish()           waits for the end: the exit status, 128 + n after a signal
--
-- What appears is as the program wrote it, with escape sequences; pty.plain(text) takes them out.
-- Leaves out: the size of the terminal, which is 80 columns unless the program sets it.

local fcntl = require "posix.fcntl"
local poll = require "posix.poll"
local signal = require "posix.signal"
local stdlib = require "posix.stdlib"
local time = require "posix.time"
local unistd = require "posix.unistd"
local wait = require "posix.sys.wait"

local M = {}

local methods = {}
local mt = { __index = methods }

local SECONDS = 20

local function now()
  local t = time.clock_gettime(time.CLOCK_MONOTONIC)
  return t.tv_sec + t.tv_nsec * 1e-9
end

-- The child: a session of its own, with the terminal as input and output. Does not return.
local function become(argv, env, name)
  unistd.setpid "s"
  local slave = fcntl.open(name, fcntl.O_RDWR)
  for fd = 0, 2 do unistd.dup2(slave, fd) end
  if slave > 2 then unistd.close(slave) end
  for key, value in pairs(env) do stdlib.setenv(key, value) end
  local arguments = {}
  for i = 2, #argv do arguments[i - 1] = argv[i] end
  unistd.execp(argv[1], arguments)
  os.exit(127)
end

function M.start(argv, options)
  local master = stdlib.openpt(fcntl.O_RDWR)
  local is_ready = master and stdlib.grantpt(master) ~= nil and stdlib.unlockpt(master) ~= nil
  if not is_ready then return nil end
  local name = stdlib.ptsname(master)
  io.stdout:flush()
  local pid = unistd.fork()
  if pid == 0 then
    unistd.close(master)
    become(argv, options.env or {}, name)
  end
  return setmetatable({ fd = master, pid = pid, pending = "",
    seconds = options.timeout or SECONDS }, mt)
end

function methods:type(text) unistd.write(self.fd, text) end

-- Adds what comes within `seconds` to what is pending; false if nothing did.
function methods:read(seconds)
  if poll.rpoll(self.fd, math.max(0, math.floor(seconds * 1000))) ~= 1 then return false end
  local bytes = unistd.read(self.fd, 65536)
  if not bytes or bytes == "" then return false end     -- the program has ended
  self.pending = self.pending .. bytes
  return true
end

function methods:expect(wanted)
  local stop = now() + self.seconds
  while true do
    local _, last = self.pending:find(wanted, 1, true)
    if last then
      local text = self.pending:sub(1, last)
      self.pending = self.pending:sub(last + 1)
      return text
    end
    local left = stop - now()
    if left <= 0 or not self:read(left) then
      local came = self.pending
      self.pending = ""
      return false, came
    end
  end
end

function methods:finish()
  local stop = now() + self.seconds
  while now() < stop and self:read(0.2) do end
  local pid, kind, code = wait.wait(self.pid, wait.WNOHANG)
  while pid == 0 and now() < stop do
    self:read(0.05)
    time.nanosleep { tv_sec = 0, tv_nsec = 20000000 }
    pid, kind, code = wait.wait(self.pid, wait.WNOHANG)
  end
  if pid == 0 then
    signal.kill(self.pid, signal.SIGKILL)
    pid, kind, code = wait.wait(self.pid)
  end
  unistd.close(self.fd)
  if pid and kind == "killed" then return 128 + code end
  return code
end

function M.plain(text)
  return (text:gsub("\27%[[%d;?]*%a", ""):gsub("\27%][^\7]*\7", ""):gsub("\r+\n", "\n"))
end

return M
