-- test_repl.lua - the host program and the prompt: options, arg, exit codes, strict globals,
-- interrupts, the REPL's loop. (Commands: test_commands.lua.)
--
--   ./segzero tests/system/test_repl.lua
--
-- Starts the ./segzero that runs this file through the shell. Works without the core library. The
-- cases that need a terminal run under script(1).

local check = require "tests.support.check"
local host = require "segzero.host"
local repl = require "segzero.tools.repl"

local EXE = "'" .. host.executable .. "'"

-- Runs a shell command in which %s stands for the program. Returns the output of both streams and
-- the exit code.
local function sh(command)
  local program = EXE:gsub("%%", "%%%%")
  local line = command:gsub("%%s", program)
  local pipe = assert(io.popen("{ " .. line .. "; } 2>&1; echo \"exit $?\""))
  local text = pipe:read "*a"
  pipe:close()
  local output, code = text:match "^(.*)exit (%d+)\n$"
  return output, tonumber(code)
end

local function expect(command, code, pattern, name)
  local output, got = sh(command)
  check.equal(got, code, name .. ": exit code")
  if not check.ok(output:find(pattern) ~= nil, name .. ": output has " .. pattern) then
    print(output)
  end
end

-- Runs use(path) with a temporary file of this text.
local function with_file(text, use)
  local path = os.tmpname()
  local f = assert(io.open(path, "w"))
  f:write(text)
  f:close()
  use(path)
  os.remove(path)
end

-- ---- options ----

check.case("options", function()
  expect("%s -e ''", 0, "^$", "an empty chunk")
  expect("%s -e 'print(1)' -e 'print(2)'", 0, "^1\n2\n$", "two chunks")
  expect("%s -e 'print(arg[1], arg[0] ~= nil)'", 0, "^%-e\ttrue\n$", "arg without a script")
  expect("%s --version", 0, "^segzero %d+%.%d+%.%d+\nLuaJIT", "--version")
  expect("%s --help", 0, "^usage: segzero", "--help")
  expect("%s --threads 3 --device=cuda -e 'print(os.getenv \"SEGZERO_THREADS\", "
    .. "os.getenv \"OMP_NUM_THREADS\", os.getenv \"SEGZERO_DEVICE\")'", 0, "^3\t3\tcuda\n$",
    "--threads and --device reach the library")
end)

check.case("bad options", function()
  expect("%s --wat", 2, "unknown option '%-%-wat'", "an unknown option")
  expect("%s -e", 2, "a value is missing after '%-e'", "-e without a chunk")
  expect("%s --threads zero -e ''", 2, "got 'zero'", "a bad --threads")
  expect("%s --device gpu -e ''", 2, "got 'gpu'", "a bad --device")
  expect("%s --device cuda:1 -e ''", 2,
    "^segzero: [^\n]*got 'cuda:1'[^\n]*one GPU[^\n]*CUDA_VISIBLE_DEVICES=N[^\n]*\n$",
    "a second GPU: one line that says how to choose it")
end)

-- ---- scripts ----

check.case("scripts and their arguments", function()
  with_file("print(arg[0] ~= nil, #arg, arg[1], arg[2], arg[-1], ...)\n", function(script)
    expect("%s " .. script .. " --n 8", 0, "^true\t2\t%-%-n\t8\t[^\n]*segzero\t%-%-n\t8\n$",
      "a script and its arguments")
    expect("%s -e 'x = 1' -- " .. script, 0, "^true\t0\t", "a script after --")
  end)
  expect("echo 'print(6 * 7)' | %s", 0, "^42\n$", "a script from standard input")
  expect("echo 'print(arg[1], ...)' | %s - a", 0, "^a\ta\n$", "the script named -")
  expect("cd / && %s tests/support/check.lua", 0, "^$",
    "a script that came with segzero, from another folder")
  expect("cd / && %s -e 'print(type(require \"segzero.repl\"), "
    .. "type(require \"tests.support.check\"))'", 0, "^table\ttable\n$",
    "require from another folder")
end)

check.case("errors of a script", function()
  local FAILING = [[
local function inner() error "broken" end
local function outer() inner() end
outer()
]]
  with_file(FAILING, function(script)
    expect("%s " .. script, 1, "segzero: [^\n]*:1: broken\nstack traceback:\n"
      .. ".*:1: in function 'inner'\n.*:2: in function 'outer'", "an error with its traceback")
  end)
  expect("%s -e 'error(\"worker.n is 0, expected more\", 0)'", 1,
    "^segzero: worker.n is 0, expected more\n$", "a message for the user is one line")
  expect("%s -e 'error({})'", 1, "the error is a table, not a message",
    "an error that is not a string")
  expect("%s -e 'error(setmetatable({}, {__tostring = function() return \"told\" end}))'", 1,
    "segzero: told\n", "an error object with __tostring")
  expect("%s -e 'x ='", 1, "%(command line%):1: unexpected symbol", "a syntax error")
  expect("%s -e 'os.exit(7)'", 7, "^$", "os.exit")
end)

-- ---- strict globals ----

declared_here = nil         -- in the main chunk: declares the global

check.case("strict globals", function()
  check.raises(function() return undefined_name end, "undefined global 'undefined_name'",
    "reading an undefined global")
  check.raises(function() leaked_name = 1 end, "assignment to undeclared global 'leaked_name'",
    "a forgotten local")
  check.equal(declared_here, nil, "a global assigned nil in the main chunk may be read")
  local function redeclare() declared_here = 2 end
  redeclare()
  check.equal(declared_here, 2, "a declared global may be assigned anywhere")
  check.equal(rawget(_G, "undefined_name"), nil, "rawget reads without an error")
  expect("%s -e 'require(\"segzero.strict\").off() print(nothing)'", 0, "^nil\n$", "strict off")
end)

-- ---- the loop ----

rawset(_G, "sz", rawget(_G, "sz") or {})         -- keeps the core library out of these sessions

-- Feeds lines to a REPL; false is Ctrl-C at the prompt. Returns what the REPL printed and the
-- prompts that it showed.
local function session(lines)
  local printed = {}
  local prompts = {}
  repl.run {
    quiet = true,
    print = function(text) printed[#printed + 1] = text end,
    read = function(prompt)
      prompts[#prompts + 1] = prompt
      return lines[#prompts]
    end,
  }
  return printed, prompts
end

check.case("values at the prompt", function()
  check.equal(session { "1 + 2", "_ * 10", "repl_x = 1", "_" }, { "3", "30", "30" },
    "values and _")
  check.equal(session { "= 4" }, { "4" }, "the = of lua 5.1")
  check.equal(session { "1, nil, 'a'" }, { "1\tnil\ta" }, "several values")
  check.equal(session { "nil" }, { "nil" }, "nil is a value")
  check.equal(session { "", "   ", "-- nothing", "1" }, { "1" },
    "blank lines and comments print nothing and end nothing")
  check.ok(session { "help" }[1]:find "Ctrl%-D", "help")
end)

check.case("locals stay for the next entries", function()
  local printed = session { "local repl_kept = 5", "repl_kept + 1", "local repl_other",
    "repl_other" }
  check.ok(printed[1]:find "repl_kept stays for the next entries", "a word why: " .. printed[1])
  check.equal({ printed[2], printed[3], printed[4] }, { "6", "nil", nil }, "said once")
  printed = session { "local print = 1", "print ~= 1" }
  check.ok(printed[1]:find "print ends with this entry", "a name of Lua's: " .. printed[1])
  check.equal(printed[2], "true", "and Lua's own is untouched")
  printed = session { "local repl_none = error('no', 0)" }
  check.equal(printed, { "no" }, "an entry that failed keeps nothing")
  check.equal(session { "do local repl_inner = 1 end", "rawget(_G, 'repl_inner')" }, { "nil" },
    "a local of a block ends with it")
end)

check.case("commands of the prompt", function()
  check.ok(session({ ":help" })[1]:find "Ctrl%-R", ":help")
  local printed = session { ":time 6 * 7" }
  check.ok(printed[1] == "42" and printed[2]:find "^%d+%.%d%d%d s$", ":time")
  check.ok(session({ ":nosuch" })[1]:find "no command :nosuch", "an unknown command")
  for _, word in ipairs { ":quit", "quit", "exit", "exit()", " quit( ) " } do
    check.equal(session { word, "1" }, {}, word .. " leaves")
  end
  check.equal(session { "exit = 5", "exit", "exit = nil" }, { "5" }, "a variable of that name")
end)

check.case("a mistyped method names the nearest", function()
  local printed = session { "repl_v = { generate = function() end }", "repl_v:generat(1)" }
  check.ok(printed[1]:find "did you mean 'generate'", printed[1])
end)

check.case("the prompt shows an answer while it is generated", function()
  local shown = {}
  local lines = { "require'segzero.inference.generation_config'.echo(1, 'token by token')" }
  repl.run {
    quiet = true,
    print = function() end,
    read = function() return table.remove(lines, 1) end,
    write = function(text) shown[#shown + 1] = text end,
  }
  check.equal(shown, { "token by token" }, "the answer's text is written")
  check.equal(require("segzero.inference.generation_config").echo, nil,
    "only while the prompt runs")
end)

check.case("entries over several lines", function()
  local printed, prompts = session {
    "function repl_f(a)",
    "  return a + 1",
    "end",
    "repl_f(1)",
  }
  check.equal(printed, { "2" }, "a function over three lines")
  check.equal(prompts, { "> ", "...> ", "...> ", "> ", "> " }, "prompts of unfinished input")
  check.equal(session { "[[a", "b]]" }, { "a\nb" }, "a long string continues")
  check.equal(session { "for i = 1, 2 do", false, "6" }, { "6" }, "Ctrl-C drops unfinished input")
  check.ok(session { "for i = 1, 2 do" }[1]:find "'end' expected", "end of input inside an entry")
end)

check.case("errors at the prompt", function()
  check.equal(session { "x = = 1", "5" }, { "stdin:1: unexpected symbol near '='", "5" },
    "a syntax error ends the entry")
  check.equal(session { "'open", "5" }, { "stdin:1: unfinished string near '<eof>'", "5" },
    "an open string ends the entry")
  check.equal(session { "error('no', 0)", "7" }, { "no", "7" }, "the session continues")
  check.equal(session { "repl_missing" }, { "stdin:1: undefined global 'repl_missing'" },
    "an undefined global, without a traceback")
  local recursive = "function repl_g(n) if n == 0 then error('deep') end "
    .. "local r = repl_g(n - 1) return r end"
  local trace = session { recursive, "repl_g(50)" }
  check.ok(trace[1]:find "^stdin:1: deep\n.*in function 'repl_g'.*%.%.%.$",
    "a long traceback is cut")
end)

check.case("tables at the prompt", function()
  check.equal(session { "{}" }, { "{}" }, "an empty table")
  check.equal(session { "{1, 'a', {}, {1}, k = true, ['a b'] = 2}" },
    { '{1, "a", {}, {1}, ["a b"] = 2, k = true}' }, "a table with tables in it")
  check.equal(session { "setmetatable({}, {__tostring = function() return 'tensor' end})" },
    { "tensor" }, "__tostring")
  local failing = session { "setmetatable({}, {__tostring = function() error('x') end})" }
  check.ok(failing[1]:find "^%(cannot be shown", "a __tostring that fails")
  local big = {}
  for i = 1, 1000 do big[i] = i end
  check.ok(repl.show(big):find "40, %.%.%. 960 more\n}$", "a long table is cut")
end)

-- ---- interrupts ----

check.case("host.call and host.on_interrupt", function()
  check.raises(function() host.on_interrupt(print) end, "expected a C function",
    "on_interrupt takes cdata only")
  check.raises(function() host.call(1) end, "function expected", "host.call takes a function")
  local function swapped(a, b) return b, a end
  check.equal({ host.call(swapped, 1, 2) }, { true, 2, 1 }, "host.call passes values")
  check.equal(host.interrupted(), false, "no interrupt so far")
end)

-- ThreadSanitizer holds a signal back until the next system call, and a Lua loop makes none.
local SIGNALS_ARRIVE = not host.executable:find "/thread/segzero$"

-- A shell starts a background job with SIGINT ignored; the program's own handler replaces that. The
-- watchdog kills a program that does not end.
local function guarded(script, signals)
  return "%s " .. script .. " & p=$!; (sleep 20; kill -9 $p) >/dev/null 2>&1 & w=$!; sleep 0.3; "
    .. signals .. "; wait $p; c=$?; kill $w; (exit $c)"
end

check.case("SIGINT ends a loop", function()
  if not SIGNALS_ARRIVE then
    check.skip "signals inside Lua loops (ThreadSanitizer holds them back)"
    return
  end
  with_file("jit.off(true, true) while true do end\n", function(script)
    expect(guarded(script, "kill -INT $p"), 130, "^segzero: interrupted\n$",
      "SIGINT ends a script")
  end)
  with_file("local n = 0 while true do n = n + 1 end\n", function(script)
    expect(guarded(script, "kill -INT $p"), 130, "^segzero: interrupted\n$",
      "SIGINT ends a compiled loop")
  end)
end)

-- ---- on a terminal ----

-- A shell command that types: 1 + 41, an endless loop and Ctrl-C, _ + 1, an unfinished line and
-- Ctrl-C, Ctrl-D.
local TYPED = "{ sleep 0.5; printf '1 + 41\\r'; sleep 0.3; printf 'while true do end\\r'; "
  .. "sleep 0.4; printf '\\003'; sleep 0.3; printf '_ + 1\\r'; sleep 0.3; printf 'half\\003'; "
  .. "sleep 0.3; printf '\\004'; sleep 0.5; }"

local function read_history(home)
  local file = io.open(home .. "/.segzero_history")
  if not file then return "" end
  local text = file:read "*a"
  file:close()
  return text
end

check.case("a session on a terminal", function()
  if not SIGNALS_ARRIVE then
    check.skip "a terminal session under ThreadSanitizer"
    return
  end
  if select(2, sh "script -qec true /dev/null </dev/null") ~= 0 then
    check.skip "script(1) and a pseudo-terminal, to run the REPL on"
    return
  end

  local home = os.tmpname()
  os.remove(home)
  os.execute("mkdir " .. home)
  -- exec replaces the shell: a shell in between would die of the Ctrl-C that the REPL survives.
  local output, code = sh(TYPED .. " | HOME=" .. home
    .. " TERM=xterm script -qec \"exec %s\" /dev/null")
  local good = check.equal(code, 0, "the REPL ends on Ctrl-D")
    and check.ok(output:find("42\r\n", 1, true), "an answer")
    and check.ok(output:find("interrupted!", 1, true), "Ctrl-C stops a loop")
    and check.ok(output:find("43\r\n", 1, true), "the session continues after it")
  if not good then print(output) end

  local history = read_history(home)
  if history == "" then
    check.skip "a terminal that moves a cursor, for the REPL's history"
  else
    check.ok(history:find("1 + 41\nwhile true do end\n_ + 1\n", 1, true), "history")
  end
  os.execute("rm -rf " .. home)
end)

check.finish()
