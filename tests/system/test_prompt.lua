-- test_prompt.lua - a session at the prompt on a pseudo-terminal: history, editing, completion,
-- help, images, Ctrl-C.
--
--   ./segzero tests/system/test_prompt.lua
--
-- The parts without a terminal are in tests/unit/test_repl_parts.lua.

local check = require "tests.support.check"
local host = require "segzero.host"
local process = require "tests.support.process"
local pty = require "tests.support.pty"

local HOME = os.tmpname()
os.remove(HOME)
process.run({ "mkdir", HOME }, {})

local UP = "\27[A"
local READY = "\27[?2004h"      -- what the editor writes when it begins an entry
local LEFT = "\27[D"

-- A session with the prompt ready; nil on a machine without pseudo-terminals. env: more variables.
local function session(env)
  local all = { HOME = HOME, TERM = "xterm", TMPDIR = HOME, TERM_PROGRAM = "", TMUX = "",
    KITTY_WINDOW_ID = "" }
  for name, value in pairs(env or {}) do all[name] = value end
  -- Variables that are set to nothing count as set: env takes them away.
  local argv = { "env" }
  for name, value in pairs(all) do
    if value == "" then
      table.insert(argv, 2, "-u")
      table.insert(argv, 3, name)
    else
      argv[#argv + 1] = name .. "=" .. value
    end
  end
  argv[#argv + 1] = host.executable
  argv[#argv + 1] = "--threads"
  argv[#argv + 1] = "1"
  local t = pty.start(argv, { timeout = 20 })
  if not t then
    check.skip "pseudo-terminals"
    return nil
  end
  check.ok(t:expect "Ctrl-D to leave.", "the banner")
  check.ok(t:expect(READY), "the first prompt")
  return t
end

local function wait_for(t, wanted, name)
  local came, instead = t:expect(wanted)
  if not check.ok(came, name) then print(pty.plain(instead)) end
  return came and pty.plain(came) or ""
end

-- Types an entry, waits for a text (nil: any) and for the next prompt; returns what came before it.
local function enter(t, text, wanted, name)
  t:type(text .. "\r")
  local came = ""
  if wanted then came = wait_for(t, wanted, name) end
  check.ok(t:expect(READY), name .. ": the next prompt")
  return came
end

local function leave(t)
  t:type "\4"
  check.equal(t:finish(), 0, "Ctrl-D on an empty entry leaves")
end

-- Ctrl-C in an entry.
local function drop(t)
  t:type "\3"
  wait_for(t, "^C", "Ctrl-C")
  check.ok(t:expect(READY), "the prompt after Ctrl-C")
end

-- Lines of an entry as the editor writes them.
local function lines(...) return table.concat({ ... }, "\r\r\n...> ") end

check.case("history by entry, and a whole entry is edited", function()
  local t = session()
  if not t then return end
  -- Enter inside an unfinished entry begins a line, which is indented; `end` moves to the left.
  t:type "for i = 1, 2 do\rprint(i * 11)\rend\r"
  wait_for(t, lines("for i = 1, 2 do", "  print(i * 11)", "end"), "three lines, indented")
  wait_for(t, "22\r\n", "the loop runs")
  t:expect(READY)

  -- Up recalls all three lines; the middle one is changed.
  t:type(UP)
  wait_for(t, lines("for i = 1, 2 do", "  print(i * 11)", "end"), "Up shows the whole entry")
  t:type(UP .. "\1\27f")              -- to the middle line, its beginning, a word to the right
  t:type "((i * 100) + "              -- print((i * 100) + (i * 11)
  t:type "\5)\r"
  wait_for(t, "222\r\n", "the changed entry runs")
  t:expect(READY)
  leave(t)

  -- The next session has both as whole entries.
  local again = session()
  again:type(UP)
  wait_for(again, lines("for i = 1, 2 do", "  print((i * 100) + (i * 11))", "end"),
    "the history is of whole entries")
  drop(again)
  enter(again, "1 + 1", "2\r\n", "after Ctrl-C")
  leave(again)
end)

check.case("keys: moving, deleting, searching, pasting, wide letters", function()
  local t = session()
  if not t then return end
  enter(t, "12" .. LEFT .. "3", "132\r\n", "Left and an insertion")
  enter(t, "x y z\23\23\23" .. "4", "4\r\n", "Ctrl-W deletes words")
  enter(t, "5 + 5\21 7", "7\r\n", "Ctrl-U deletes to the beginning")
  -- The quote, the wide letter and the accent are one key each.
  enter(t, "#'\195\169\228\184\173'" .. LEFT .. "\127", "2\r\n", "letters of several bytes")
  enter(t, "answer = 41", nil, "an assignment")
  enter(t, "\18nswe\5 + 1", nil, "Ctrl-R finds an entry")
  enter(t, "answer", "42\r\n", "which ran with what was added")
  enter(t, "", nil, "Enter alone")
  enter(t, "  ", nil, "blanks alone")
  enter(t, "1 + 2", "3\r\n", "neither ends the prompt")
  -- A paste of several lines is one entry, whatever is whole before its end.
  t:type "\27[200~a = 1\nb = 2\nprint(a + b + 4)\27[201~\r"
  wait_for(t, "7\r\n", "a paste of several lines is one entry")
  t:expect(READY)
  leave(t)
end)

check.case("completion of names, methods, settings, files and models", function()
  local t = session()
  if not t then return end
  local function completes(typed, wanted, name)
    t:type(typed .. "\t")
    wait_for(t, wanted, name .. ": " .. typed)
    drop(t)
  end
  completes("sz.tok", "sz.tokenizer", "a name of sz")
  completes("sz.safe", "sz.safetensors", "a module that is not loaded")
  completes("sz.image.lo", "sz.image.load", "a function of a module")
  completes("pri", "print", "a global")
  enter(t, "a = sz.tensor{1, 2}", nil, "a tensor")
  completes("a:totab", "a:totable", "a method of a tensor")
  completes("run { 'trainer.logg", "trainer.logger=", "a setting")
  completes("sz.qwen_vl 'models/tiny/qwen2.5-vl-s", "models/tiny/qwen2.5-vl-several", "a model")
  completes("require 'rewards.seg_s", "rewards.seg_strict", "a module")
  completes("dofile 'READ", "README.md", "a file")
  -- Two files whose names begin with the same byte of a letter.
  for _, letter in ipairs { "\195\160", "\195\169" } do
    assert(io.open(HOME .. "/x" .. letter, "w")):close()
  end
  t:type(("io.open '%s/x\t"):format(HOME))
  wait_for(t, "x\195\160  ", "both are listed")
  drop(t)
  completes(":hi", ":history", "a command of the prompt")
  t:type "sz.lo\t"
  wait_for(t, "loggers", "several candidates are listed")
  wait_for(t, "loss", "all of them")
  drop(t)
  leave(t)
end)

check.case("help, time, reload, locals, mistakes", function()
  local t = session()
  if not t then return end
  enter(t, ":help sz.image.load", "recognised by", ":help of a function: its module's words")
  enter(t, ":help trainer.max_steps", "trainer.max_steps=", ":help of a setting")
  enter(t, ":help evaluation", "docs/guide/evaluation.md", ":help of a page")
  enter(t, ":help nonesuch_name", "nothing is known about 'nonesuch_name'", ":help of nothing")
  enter(t, ":hlep", "did you mean ':help'", "a mistyped command")
  local timed = enter(t, ":time 6 * 7", " s\r\n", ":time")
  check.ok(timed:find "42\n%d+%.%d+ s", ":time shows the value and the seconds: " .. timed)
  enter(t, "local kept = 5", "(kept stays for the next entries", "a local says why it stays")
  enter(t, "kept + 1", "6\r\n", "and it does")
  enter(t, "t = {1, {2, {3}}}", nil, "a table")
  enter(t, "t", "{1, {2, {3}}}", "nested tables")
  enter(t, "sz.tensor{{1, 2}, {3, 4}}", "{{1, 2},\r\n {3, 4}}", "a tensor in rows with its shape")
  enter(t, "sz.image.lod('x')", "did you mean 'load'", "a mistyped function")

  local path = HOME .. "/mine.lua"
  local function write(value)
    local file = assert(io.open(path, "w"))
    file:write(("return { value = %d, more = '%s' }\n"):format(value, ("x"):rep(value)))
    file:close()
  end
  write(1)
  enter(t, ("package.path = package.path .. ';%s/?.lua' mine = require 'mine'"):format(HOME), "> ",
    "a module of the user's")
  write(2)
  enter(t, ":reload", "read again: mine", ":reload reads what has changed")
  enter(t, "mine.value", "2\r\n", "and names that hold it see it")
  write(3)
  enter(t, ":reload ./mine.lua", "read again: mine", ":reload of one file")
  leave(t)
end)

check.case("Ctrl-C in a generation keeps the answers so far", function()
  local t = session()
  if not t then return end
  enter(t, "vl = sz.qwen_vl 'models/tiny/qwen2.5-vl'", nil, "a model")
  enter(t, "q = vl:process{{role='user', content='one two three'}}", nil, "a prompt")
  enter(t, "o = {n = 4, max_new_tokens = 4000, ignore_eos = true, temperature = 1}", nil, "options")
  enter(t, "o.on_token = function() io.write '+' io.flush() end", nil, "a sign for each token")
  t:type "x = vl:generate(q, o)\r"
  wait_for(t, ("+"):rep(40), "ten tokens of four answers")
  local started = process.now()
  t:type "\3"
  local came = wait_for(t, "so_far: the 4 answers up to here", "the answers are kept")
  check.ok(process.now() - started < 5, "at once")
  check.ok(not came:find "traceback" and not came:find "%.lua:", "no traceback")
  check.ok(t:expect(READY), "the prompt")
  enter(t, "#so_far, #so_far[1].ids > 3, so_far[2].finish", "4\ttrue\tinterrupted", "so_far")
  leave(t)
end)

check.case("images in the terminal", function()
  local cases = {
    { "kitty", { TERM = "xterm-kitty" }, "\27_Ga=T,f=100" },
    { "iTerm", { TERM_PROGRAM = "iTerm.app" }, "\27]1337;File=inline=1" },
  }
  for _, case in ipairs(cases) do
    local t = session(case[2])
    if not t then return end
    enter(t, "sz.image.new(20, 10)", case[3], case[1])
    enter(t, "sz.image.new(20, 10):show()", case[3], case[1] .. " by show()")
    leave(t)
  end

  -- A terminal that says it draws sixels, and one that does not.
  local t = session()
  t:type "sz.image.new(20, 10)\r"
  check.ok(t:expect "\27[c", "the terminal is asked")
  t:type "\27[?62;4;6c"
  check.ok(t:expect '\27P0;1q"1;1;360;180', "sixels")
  t:expect(READY)
  leave(t)
  t = session()
  t:type "sz.image.new(20, 10):show()\r"
  check.ok(t:expect "\27[c", "the terminal is asked")
  t:type "\27[?62;6c"
  local came = t:expect ".png"
  local path = came and pty.plain(came):match "image 20 x 10: (%S+%.png)"
  local file = path and io.open(path)
  check.ok(file, "else a file and its path: " .. tostring(path))
  if file then file:close() end
  t:expect(READY)
  leave(t)
end)

process.run({ "rm", "-rf", HOME }, {})
check.finish()
