-- test_repl.lua - the host program and the prompt: options, arg, exit codes, strict globals, interrupts, the REPL's loop.
-- Starts ./segzero itself (the one that runs this file) through the shell. Needs no core library, except that a REPL
-- without one says so in a line. What needs a terminal runs under script(1).

local check = require "tests.support.check"
local host = require "segzero.host"
local repl = require "segzero.tools.repl"

local EXE = "'" .. host.executable .. "'"

-- Output (both streams) and exit code of a shell command; %s in it stands for the program.
local function sh(command)
  local pipe = assert(io.popen("{ " .. command:gsub("%%s", (EXE:gsub("%%", "%%%%"))) .. "; } 2>&1; echo \"exit $?\""))
  local text = pipe:read("*a")
  pipe:close()
  local output, code = text:match("^(.*)exit (%d+)\n$")
  return output, tonumber(code)
end

local function expect(command, code, pattern, name)
  local output, got = sh(command)
  check.equal(got, code, name .. ": exit code")
  if not check.ok(output:find(pattern) ~= nil, name .. ": output has " .. pattern) then print(output) end
end

local function temporary(text)
  local path = os.tmpname()
  local f = assert(io.open(path, "w"))
  f:write(text)
  f:close()
  return path
end

-- ---- options -----------------------------------------------------------------------------------------------------

expect("%s -e ''", 0, "^$", "an empty chunk")
expect("%s -e 'print(1)' -e 'print(2)'", 0, "^1\n2\n$", "two chunks")
expect("%s -e 'print(arg[1], arg[0] ~= nil)'", 0, "^%-e\ttrue\n$", "arg without a script")
expect("%s --version", 0, "^segzero %d+%.%d+%.%d+\nLuaJIT", "--version")
expect("%s --help", 0, "^usage: segzero", "--help")
expect("%s --wat", 2, "unknown option '%-%-wat'", "an unknown option")
expect("%s -e", 2, "a value is missing after '%-e'", "-e without a chunk")
expect("%s --threads zero -e ''", 2, "got 'zero'", "a bad --threads")
expect("%s --device gpu -e ''", 2, "got 'gpu'", "a bad --device")
expect("%s --device cuda:1 -e ''", 2, "^segzero: [^\n]*got 'cuda:1'[^\n]*one GPU[^\n]*CUDA_VISIBLE_DEVICES=N[^\n]*\n$",
       "a second GPU is one line that says how to pick it")
expect("%s --threads 3 --device=cuda -e 'print(os.getenv \"SEGZERO_THREADS\", os.getenv \"OMP_NUM_THREADS\", " ..
       "os.getenv \"SEGZERO_DEVICE\")'", 0, "^3\t3\tcuda\n$", "--threads and --device reach the library")

-- ---- scripts -----------------------------------------------------------------------------------------------------

local script = temporary 'print(arg[0] ~= nil, #arg, arg[1], arg[2], arg[-1], ...)\n'
expect("%s " .. script .. " --n 8", 0, "^true\t2\t%-%-n\t8\t[^\n]*segzero\t%-%-n\t8\n$", "a script and its arguments")
expect("%s -e 'x = 1' -- " .. script, 0, "^true\t0\t", "a script after --")
expect("echo 'print(6 * 7)' | %s", 0, "^42\n$", "a script from standard input")
expect("echo 'print(arg[1], ...)' | %s - a", 0, "^a\ta\n$", "the script named -")
expect("%s /nonexistent.lua", 1, "cannot open /nonexistent.lua", "a script that is not there")
expect("cd / && %s tests/support/check.lua", 0, "^$", "a script that came with segzero, from another folder")
expect("cd / && %s -e 'print(type(require \"segzero.repl\"), type(require \"tests.support.check\"))'", 0, "^table\ttable\n$",
       "require from another folder")
os.remove(script)

-- One line for a script that does not exist, with the nearest one.
local function expect_missing(name, nearest)
  local line = "^segzero: cannot open " .. name:gsub("%p", "%%%0") .. ": [^\n]*did you mean " ..
    nearest:gsub("%p", "%%%0") .. "%?[^\n]*%-%-help[^\n]*\n$"
  expect("cd / && %s " .. name, 1, line, "a script that does not exist: " .. name)
end
expect_missing("infer", "examples/infer.lua")
expect_missing("train", "recipes/refcocog_grpo.lua")
expect_missing("refcoco", "recipes/refcocog_grpo.lua")
expect_missing("recipes/evalute.lua", "recipes/evaluate.lua")
expect_missing("docter", "doctor")
expect("%s /nonexistent.lua", 1, "^segzero: [^\n]*no such file; segzero %-%-help lists the scripts\n$", "no guess for a path elsewhere")

-- Every script is listed with what its first line says.
local listing = sh "%s --help"
check.equal(sh "%s help", listing, "segzero help is segzero --help")
local listed = 0
for _, entry in ipairs(require("segzero.tools.scripts").list()) do
  listed = listed + 1
  check.ok(listing:find("  " .. entry.path, 1, true), "--help lists " .. entry.path)
  check.ok(#entry.about > 0 and listing:find(entry.about:sub(1, 20), 1, true), "--help says what it is: " .. entry.path)
end
check.ok(listed >= 9, "--help lists recipes and examples")
for line in listing:gmatch "[^\n]+" do check.ok(#line <= 100, "a line of --help fits a terminal: " .. line) end
check.ok(listing:find("SCRIPT --help", 1, true), "--help says how to list a script's settings")

local failing = temporary 'local function inner() error "broken" end\nlocal function outer() inner() end\nouter()\n'
expect("%s " .. failing, 1, "segzero: [^\n]*:1: broken\nstack traceback:\n.*:1: in function 'inner'\n.*:2: in function 'outer'",
       "an error with its traceback")
os.remove(failing)
expect("%s -e 'error(\"worker.n is 0, expected more\", 0)'", 1, "^segzero: worker.n is 0, expected more\n$", "a message for the user is one line")
expect("%s -e 'error({})'", 1, "the error is a table, not a message", "an error that is no string")
expect("%s -e 'error(setmetatable({}, {__tostring = function() return \"told\" end}))'", 1, "segzero: told\n",
       "an error object with __tostring")
expect("%s -e 'x ='", 1, "%(command line%):1: unexpected symbol", "a syntax error")
expect("%s -e 'os.exit(7)'", 7, "^$", "os.exit")

-- ---- strict globals ----------------------------------------------------------------------------------------------

check.raises(function() return undefined_name end, "undefined global 'undefined_name'", "reading an undefined global")
check.raises(function() leaked_name = 1 end, "assignment to undeclared global 'leaked_name'", "a forgotten local")
declared_here = nil
check.equal(declared_here, nil, "a global assigned nil in the main chunk may be read")
local function redeclare() declared_here = 2 end
redeclare()
check.equal(declared_here, 2, "a declared global may be assigned anywhere")
check.equal(rawget(_G, "undefined_name"), nil, "rawget asks without an error")
expect("%s -e 'require(\"segzero.strict\").off() print(nothing)'", 0, "^nil\n$", "strict off")

-- ---- the loop ----------------------------------------------------------------------------------------------------

-- Feeds lines (false: Ctrl-C at the prompt) to a REPL; returns what it printed, and the prompts it showed.
local function session(lines)
  local printed, prompts, at = {}, {}, 0
  repl.run {
    quiet = true,
    print = function(text) printed[#printed + 1] = text end,
    read = function(prompt)
      prompts[#prompts + 1] = prompt
      at = at + 1
      return lines[at]
    end,
  }
  return printed, prompts
end

rawset(_G, "sz", rawget(_G, "sz") or {})        -- keeps the core out of these sessions
check.equal(session {"1 + 2", "_ * 10", "local x = 1", "_"}, {"3", "30", "30"}, "values and _")
check.equal(session {"= 4"}, {"4"}, "the = of lua 5.1")
check.equal(session {"1, nil, 'a'"}, {"1\tnil\ta"}, "several values")
check.equal(session {"nil"}, {"nil"}, "nil is a value")
do
  local shown, lines = {}, {"require'segzero.inference.generation_config'.echo(1, 'as it is made')"}
  repl.run {read = function() return table.remove(lines, 1) end, print = function() end, write = function(text) shown[#shown + 1] = text end, quiet = true}
  check.equal(shown, {"as it is made"}, "answers are shown as they are made")
  check.equal(require("segzero.inference.generation_config").echo, nil, "only while the prompt runs")
end
check.equal(session {"", "   ", "-- nothing"}, {}, "blank lines and comments print nothing")
local printed, prompts = session {"function repl_f(a)", "  return a + 1", "end", "repl_f(1)"}
check.equal(printed, {"2"}, "a function over three lines")
check.equal(prompts, {"> ", "...> ", "...> ", "> ", "> "}, "prompts of unfinished input")
check.equal(session {"x = = 1", "5"}, {"stdin:1: unexpected symbol near '='", "5"}, "a syntax error ends the entry")
check.equal(session {"'open", "5"}, {"stdin:1: unfinished string near '<eof>'", "5"}, "so does an open string")
check.equal(session {"[[a", "b]]"}, {"a\nb"}, "a long string goes on")
check.equal(session {"for i = 1, 2 do", false, "6"}, {"6"}, "Ctrl-C drops unfinished input")
check.ok(session {"for i = 1, 2 do"}[1]:find("'end' expected"), "end of input inside an entry")
check.equal(session {"error('no', 0)", "7"}, {"no", "7"}, "an error is survived")
check.equal(session {"repl_missing"}, {"stdin:1: undefined global 'repl_missing'"}, "an undefined global, without frames")
local trace = session {"function repl_g(n) if n == 0 then error('deep') end local r = repl_g(n - 1) return r end", "repl_g(50)"}
check.ok(trace[1]:find("^stdin:1: deep\n.*in function 'repl_g'.*%.%.%.$"), "a long traceback is cut")
check.ok(session {"help"}[1]:find("Ctrl%-D"), "help")
check.equal(session {"{}"}, {"{}"}, "an empty table")
check.equal(session {"{1, 'a', {}, {1}, k = true, ['a b'] = 2}"}, {'{1, "a", {}, {...}, ["a b"] = 2, k = true}'},
            "a table, one level deep")
check.equal(session {"setmetatable({}, {__tostring = function() return 'tensor' end})"}, {"tensor"}, "__tostring")
check.ok(session {"setmetatable({}, {__tostring = function() error('x') end})"}[1]:find("^%(cannot be shown"),
         "a __tostring that fails")
local big = {}
for i = 1, 1000 do big[i] = i end
check.ok(repl.show(big):find("40, %.%.%. 960 more\n}$"), "a long table is cut")

-- ---- interrupts --------------------------------------------------------------------------------------------------

check.raises(function() host.on_interrupt(print) end, "expected a C function", "on_interrupt takes cdata only")
check.raises(function() host.call(1) end, "function expected", "host.call takes a function")
check.equal({host.call(function(a, b) return b, a end, 1, 2)}, {true, 2, 1}, "host.call passes values")
check.equal(host.interrupted(), false, "no interrupt so far")

-- TSan holds a signal back until the next system call, and a Lua loop makes none.
local signals_arrive = not host.executable:find("/thread/segzero$")
if signals_arrive then
  -- A background job of a script starts with SIGINT ignored; the program's own handler takes its place. The watchdog
  -- keeps a failure from hanging the suite.
  local guarded = "%%s %s & p=$!; (sleep 20; kill -9 $p) >/dev/null 2>&1 & w=$!; sleep 0.3; %s; wait $p; c=$?; kill $w; (exit $c)"
  local endless = temporary "jit.off(true, true) while true do end\n"
  expect(guarded:format(endless, "kill -INT $p"), 1, "interrupted!\nstack traceback:", "SIGINT ends a script")
  os.remove(endless)
  local compiled = temporary "local n = 0 while true do n = n + 1 end\n"
  expect(guarded:format(compiled, "kill -INT $p; sleep 0.2; kill -INT $p"), 130, "interrupted twice",
         "two SIGINTs end a compiled loop")
  os.remove(compiled)
else
  check.skip "signals inside Lua loops (TSan holds them back)"
end

-- ---- on a terminal -----------------------------------------------------------------------------------------------

if not signals_arrive then
  check.skip "a terminal session under TSan"
elseif select(2, sh "script -qec true /dev/null </dev/null") ~= 0 then
  check.skip "script(1) and a pseudo-terminal, to run the REPL on"
else
  local home = os.tmpname()
  os.remove(home)
  os.execute("mkdir " .. home)
  local typed = "{ sleep 0.5; printf '1 + 41\\r'; sleep 0.3; printf 'while true do end\\r'; sleep 0.4; printf '\\003'; " ..
                "sleep 0.3; printf '_ + 1\\r'; sleep 0.3; printf 'half\\003'; sleep 0.3; printf '\\004'; sleep 0.5; }"
  -- exec: a shell that stays in between would die of the Ctrl-C that the REPL survives.
  local output, code = sh(typed .. " | HOME=" .. home .. " TERM=xterm script -qec \"exec %s\" /dev/null")
  local good = check.equal(code, 0, "the REPL leaves on Ctrl-D") and
    check.ok(output:find("42\r\n", 1, true), "an answer") and check.ok(output:find("interrupted!", 1, true), "Ctrl-C stops a loop") and
    check.ok(output:find("43\r\n", 1, true), "the session goes on after it")
  if not good then print(output) end
  local history = io.open(home .. "/.segzero_history")
  local kept = history and history:read("*a") or ""
  if history then history:close() end
  if kept == "" then
    check.skip "readline or libedit, for the REPL's history"
  else
    check.ok(kept:find("1 + 41\nwhile true do end\n_ + 1\n", 1, true), "history")
  end
  os.execute("rm -rf " .. home)
end

check.finish()
