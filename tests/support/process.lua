-- process.lua - runs a program and collects what it prints, without a shell: no quoting, and a time
-- limit.
--
--   local process = require "tests.support.process"
--   local output, status = process.run({ "./segzero", "-e", "print(1)" },
--                                      { timeout = 60, env = { SEED = "2" } })
--   local child = process.start(argv, { env =, output = path })      runs while the caller goes on
--   process.wait(child) -> status            process.signal(child, 9)
--   process.now()                            seconds of a clock that only goes forward
--
-- output: stdout and stderr as they came. status: the exit status, 128 + n when signal n ended the
-- program, or process.TIMED_OUT when it ran past the limit and was killed. env: variables to set
-- besides the inherited ones.
-- Left out: standard input (the child inherits it), programs that children leave running.

local poll = require "posix.poll"
local signal = require "posix.signal"
local stdlib = require "posix.stdlib"
local time = require "posix.time"
local unistd = require "posix.unistd"
local wait = require "posix.sys.wait"

local M = { TIMED_OUT = 124 }

local CANNOT_START = 127
local BUFFER = 65536

function M.now()
  local t = time.clock_gettime(time.CLOCK_MONOTONIC)
  return t.tv_sec + t.tv_nsec * 1e-9
end

-- The child: its output goes into the pipe, then the program takes the process over. Does not
-- return.
local function become(argv, env, write_end)
  unistd.dup2(write_end, unistd.STDOUT_FILENO)
  unistd.dup2(write_end, unistd.STDERR_FILENO)
  unistd.close(write_end)
  for name, value in pairs(env) do stdlib.setenv(name, value) end
  local arguments = {}
  for i = 2, #argv do arguments[i - 1] = argv[i] end
  local _, why = unistd.execp(argv[1], arguments)
  io.stderr:write("cannot start ", argv[1], ": ", tostring(why), "\n")
  unistd._exit(CANNOT_START)
end

-- Everything that comes out of the pipe until it is closed (true) or the time is up (false).
local function read_all(read_end, deadline)
  local parts = {}
  while true do
    local left = deadline - M.now()
    if left <= 0 then return table.concat(parts), false end
    local ready = poll.rpoll(read_end, math.min(math.ceil(left * 1000), 1000))
    if ready and ready > 0 then
      local text = assert(unistd.read(read_end, BUFFER))
      if text == "" then return table.concat(parts), true end
      parts[#parts + 1] = text
    end
  end
end

-- Output goes into a file.
function M.start(argv, options)
  io.flush()
  local child = assert(unistd.fork())
  if child ~= 0 then return child end
  local fcntl = require "posix.fcntl"
  local flags = fcntl.O_WRONLY + fcntl.O_CREAT + fcntl.O_TRUNC
  become(argv, options.env or {}, assert(fcntl.open(options.output, flags, 420)))
end

-- The exit status, or 128 + n when signal n ended the program.
local function status_of(how, status)
  if how == "killed" then return 128 + status end
  return status
end

function M.signal(child, number) signal.kill(child, number) end

function M.wait(child)
  local _, how, status = wait.wait(child)
  return status_of(how, status)
end

function M.run(argv, options)
  options = options or {}
  io.flush()            -- else the child would print what is still buffered here once more
  local read_end, write_end = assert(unistd.pipe())
  local child = assert(unistd.fork())
  if child == 0 then
    unistd.close(read_end)
    become(argv, options.env or {}, write_end)
  end
  unistd.close(write_end)

  local output, ended = read_all(read_end, M.now() + (options.timeout or math.huge))
  unistd.close(read_end)
  if not ended then signal.kill(child, signal.SIGKILL) end
  local _, how, status = wait.wait(child)
  if not ended then return output, M.TIMED_OUT end
  return output, status_of(how, status)
end

return M
