-- test_interrupts.lua - one Ctrl-C ends a script, also in a loop that LuaJIT has compiled; exit()
-- in the middle of a run is no success.
--
-- Each case is a program of its own, with a script as a user writes it.
-- Leaves out: stops of a training run (test_stops.lua), rewards under a limit (test_guard.lua).

local check = require "tests.support.check"
local process = require "tests.support.process"
local files = require "segzero.core.files"
local host = require "segzero.host"

local TIMEOUT = 10

local folder = os.tmpname()
os.remove(folder)
files.make_dir(folder)

-- ThreadSanitizer holds a signal back until the next system call, and a Lua loop makes none.
local SIGNALS_ARRIVE = not host.executable:find "/thread/segzero$"

-- A case that sends signals to loops.
local function signal_case(name, f)
  check.case(name, function()
    if SIGNALS_ARRIVE then return f() end
    check.skip "signals inside Lua loops (ThreadSanitizer holds them back)"
  end)
end

-- Writes a script that says on stderr when it begins, runs it, and sends one SIGINT then.
local function interrupted(name, text)
  local path = ("%s/%s.lua"):format(folder, name)
  local mark = ("%s/%s.begun"):format(folder, name)
  files.write(path, ("io.open(%q, 'w'):close()\n%s\n"):format(mark, text))
  return process.run({ "bash", "-c", ([["$0" --threads 1 "$1" & p=$!
    until [ -e "$2" ]; do sleep 0.02; done; sleep 0.2; kill -INT $p; wait $p]]),
    host.executable, path, mark }, { timeout = TIMEOUT })
end

local LOOPS = {
  while_true = "while true do end",
  counting = "local i = 0\nwhile true do\n  i = i + 1\nend",
  one_line = "local i = 0 while true do i = i + 1 end",
  table_loop = "local t = {}\nfor k = 1, 1e15 do t[k % 100 + 1] = k end",
  goto_loop = "::again:: goto again",
  repeat_until = "repeat until false",
  recursion = "local function f(n) if n == 0 then return 0 end return f(n - 1) end "
    .. "while true do f(50) end",
  foreign_calls = "local ffi = require 'ffi' ffi.cdef 'int usleep(unsigned);' "
    .. "while true do ffi.C.usleep(50) end",
  coroutine_loop = "coroutine.wrap(function() while true do end end)()",
}

signal_case("one Ctrl-C ends a compiled loop", function()
  local count = 0
  for name, text in pairs(LOOPS) do
    local output, status = interrupted(name, text)
    check.equal(status, 130, name .. ": status")
    check.equal(output, "segzero: interrupted\n", name)
    count = count + 1
  end
  check.equal(count, 9, "loops")
end)

signal_case("a script can catch the interrupt of a compiled loop", function()
  local output, status = interrupted("caught", [[
    local ok, message = pcall(function() while true do end end)
    print(ok, message:match "interrupted!$")
    local sum = 0
    for i = 1, 1e6 do sum = sum + i end
    print(sum)]])
  check.equal(status, 0, "it goes on")
  check.equal(output, "false\tinterrupted!\n500000500000\n", "what it says")
end)

signal_case("a second Ctrl-C ends a script that catches every error", function()
  local path = folder .. "/stubborn.lua"
  files.write(path, "while true do pcall(function() while true do end end) end")
  local output, status = process.run({ "bash", "-c", [["$0" "$1" & p=$!; sleep 0.5
    kill -INT $p; sleep 0.5; kill -INT $p; wait $p]], host.executable, path },
    { timeout = TIMEOUT })
  check.equal(status, 130, "status")
  check.ok(output:find "interrupted twice", output)
end)

signal_case("a chunk of -e", function()
  local output, status = process.run({ "bash", "-c", [["$0" -e 'while true do end' & p=$!
    sleep 0.5; kill -INT $p; wait $p]], host.executable }, { timeout = TIMEOUT })
  check.equal(status, 130, "status")
  check.equal(output, "segzero: interrupted\n", "the line")
end)

check.case("LuaJIT's profiler still works in a script", function()
  local path = folder .. "/profiled.lua"
  files.write(path, [[
    local profile = require "jit.profile"
    local samples = 0
    profile.start("fi5", function(_, n) samples = samples + n end)
    local stop = os.clock() + 0.3
    local x = 0
    while os.clock() < stop do for i = 1, 1000 do x = x + i end end
    profile.stop()
    print(samples > 10)]])
  local output, status = process.run({ host.executable, path }, { timeout = TIMEOUT })
  check.equal({ output, status }, { "true\n", 0 }, "samples")
end)

-- ---- exit() ----
local function in_a_run(name, text)
  local path = ("%s/%s.lua"):format(folder, name)
  files.write(path, "local ffi = require 'ffi'\n"
    .. "ffi.cdef 'void exit(int); void _exit(int); void _Exit(int); void quick_exit(int);'\n"
    .. "require('segzero.core.stop').run(function() " .. text .. " end)\n"
    .. "print 'after'\n")
  return process.run({ host.executable, path }, { timeout = TIMEOUT })
end

check.case("exit() in the middle of a run is no success", function()
  local line = "segzero: exit() was called in the middle of a run, by a reward, another function "
    .. "of yours or a library\n"
  -- Sanitizers bring an _exit of their own.
  local names = { "exit", "quick_exit", "_exit", "_Exit" }
  local sanitizer = (host.library or ""):find "build/%a+/libsegzero"
  for i = 1, sanitizer and 2 or 4 do
    local output, status = in_a_run("calls_" .. names[i], ("ffi.C.%s(0)"):format(names[i]))
    check.equal({ output, status }, { line, 1 }, names[i])
  end
  local output, status = in_a_run("calls_exit_3", "ffi.C.exit(3)")
  check.equal({ output, status }, { line, 3 }, "another status stays")
  output, status = in_a_run("calls_exit_minus_1", "ffi.C.exit(-1)")
  check.equal({ output, status }, { line, 1 }, "a status below 0 is 1")
end)

check.case("a child that a run forks may exit", function()
  local output, status = in_a_run("forks", [[
    local unistd = require "posix.unistd"
    local child = unistd.fork()
    if child == 0 then unistd._exit(0) end
    print(select(3, require("posix.sys.wait").wait(child)))]])
  check.equal({ output, status }, { "0\nafter\n", 0 }, "child and parent")
end)

check.case("exit() after a run is as usual", function()
  local output, status = process.run({ host.executable, "-e",
    "require('segzero.core.stop').run(function() end) os.exit(0)" }, { timeout = TIMEOUT })
  check.equal({ output, status }, { "", 0 }, "status")
end)

os.execute("rm -r " .. folder)
check.finish()
