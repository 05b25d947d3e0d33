-- test_repl_parts.lua - the parts of the prompt without a terminal: the typed text, keys, drawing,
-- history, completion, values as text, structs, kept locals, help, images.
--
--   ./segzero tests/unit/test_repl_parts.lua
--
-- A session on a terminal is in tests/system/test_prompt.lua.

local buffer = require "segzero.repl.buffer"
local check = require "tests.support.check"
local completion = require "segzero.repl.completion"
local help = require "segzero.repl.help"
local history = require "segzero.repl.history"
local keys = require "segzero.repl.keys"
local locals = require "segzero.repl.locals"
local paths = require "segzero.repl.paths"
local pictures = require "segzero.repl.pictures"
local screen = require "segzero.repl.screen"
local show = require "segzero.repl.show"
local structs = require "segzero.repl.structs"
local sz = require "segzero"
local terminal = require "segzero.repl.terminal"

rawset(_G, "sz", sz)

-- ---- the typed text ----
local function typed(text, cursor)
  local b = buffer.new()
  b:set(text, cursor)
  return b
end

-- "a|b": the text with the cursor.
local function marked(b) return b.text:sub(1, b.cursor) .. "|" .. b.text:sub(b.cursor + 1) end

check.case("moving", function()
  local function moved(text, cursor, where)
    local b = typed(text, cursor)
    b:move(where)
    return marked(b)
  end
  check.equal(moved("abc", 1, "left"), "|abc", "left")
  check.equal(moved("abc", 0, "left"), "|abc", "left at the beginning")
  check.equal(moved("a\195\169b", 3, "left"), "a|\195\169b", "left over two bytes")
  check.equal(moved("a\195\169b", 1, "right"), "a\195\169|b", "right over two bytes")
  check.equal(moved("abc", 3, "right"), "abc|", "right at the end")
  check.equal(moved("ab\ncd", 4, "home"), "ab\n|cd", "home of the line")
  check.equal(moved("ab\ncd", 1, "end"), "ab|\ncd", "end of the line")
  check.equal(moved("ab\ncd", 4, "begin"), "|ab\ncd", "begin")
  check.equal(moved("ab\ncd", 0, "finish"), "ab\ncd|", "finish")
  check.equal(moved("foo.bar(", 8, "word_left"), "foo.|bar(", "a word to the left")
  check.equal(moved("foo.bar(", 4, "word_left"), "|foo.bar(", "another")
  check.equal(moved("foo.bar(", 0, "word_right"), "foo|.bar(", "a word to the right")
  check.equal(moved("abcd\nxy\nabcd", 12, "up"), "abcd\nxy|\nabcd", "up to a shorter line")
  check.equal(moved("abcd\nxyz", 2, "down"), "abcd\nxy|z", "down")
  check.equal(typed("abc", 1):move "up", false, "no line above")
  check.equal(typed("abc", 1):move "down", false, "no line below")
end)

check.case("inserting and deleting", function()
  local b = typed("ac", 1)
  b:insert "b"
  check.equal(marked(b), "ab|c", "an insertion")
  b:delete "left"
  check.equal(marked(b), "a|c", "Backspace")
  b:delete "right"
  check.equal(marked(b), "a|", "Delete")
  b = typed("one two", 7)
  b:delete "word_left"
  check.equal(marked(b), "one |", "a word")
  b:yank()
  check.equal(marked(b), "one two|", "is put back")
  b = typed("ab\ncd", 1)
  b:delete "end"
  check.equal(marked(b), "a|\ncd", "to the end of the line")
  b:delete "end"
  check.equal(marked(b), "a|cd", "at the end of a line, the newline")
  b = typed("abc", 1)
  b:transpose()
  check.equal(marked(b), "ba|c", "two letters swapped")
  b = typed("\228\184\173", 3)
  b:delete "left"
  check.equal(marked(b), "|", "a letter of three bytes")
end)

-- ---- keys ----
local function keys_of(bytes)
  local at = 0
  local reader = keys.new(function()
    at = at + 1
    return bytes:byte(at)
  end)
  local list = {}
  while true do
    local key, text = reader()
    if key == "end-of-input" then return list end
    list[#list + 1] = text and key .. ":" .. text or key
  end
end

check.case("bytes as keys", function()
  check.equal(keys_of "a\195\169\228\184\173", { "text:a", "text:\195\169", "text:\228\184\173" },
    "letters")
  check.equal(keys_of "\r\n\t\127\8", { "enter", "enter", "tab", "backspace", "backspace" },
    "named")
  check.equal(keys_of "\1\3\4\26", { "ctrl-a", "ctrl-c", "ctrl-d", "ctrl-z" }, "with Ctrl")
  check.equal(keys_of "\27[A\27OB\27[3~\27[1;5C\27[H", { "up", "down", "delete", "ctrl-right",
    "home" }, "sequences")
  check.equal(keys_of "\27b\27\r\27\127", { "alt-b", "alt-enter", "alt-backspace" }, "with Alt")
  check.equal(keys_of "\27[99;99Xq", { "unknown", "text:q" }, "an unknown sequence is one key")
  check.equal(keys_of "\27\27[A\27[[Bq", { "up", "unknown", "text:q" },
    "Alt with an arrow, F2 on Linux's console")
  check.equal(keys_of "\27", { "escape" }, "Esc alone")
  check.equal(keys_of "\27[200~a\r\nb\tc\27[201~d", { "text:a\nb\tc", "text:d" }, "a paste")
end)

-- ---- drawing ----
-- A terminal of a few columns that knows what screen.lua writes. Returns its rows and the cursor.
local function shown_by(text, width, rows, row, column)
  rows = rows or { "" }
  row = row or 1
  column = column or 0
  local i = 1
  while i <= #text do
    local n, kind = text:match("^\27%[(%d*)(%a)", i)
    if kind then
      n = tonumber(n) or 1
      if kind == "A" then row = row - n end
      if kind == "C" then column = column + n end
      if kind == "J" then
        for k = #rows, row + 1, -1 do rows[k] = nil end
        rows[row] = rows[row]:sub(1, column)
      end
      i = i + #text:match("^\27%[%d*%a", i)
    else
      local c = text:sub(i, i)
      if c == "\r" then
        column = 0
      elseif c == "\n" then
        row = row + 1
        rows[row] = rows[row] or ""
      else
        check.ok(column < width, "nothing is written beyond the edge")
        rows[row] = rows[row]:sub(1, column) .. c .. rows[row]:sub(column + 2)
        column = column + 1
      end
      i = i + 1
    end
  end
  return rows, row, column
end

check.case("an entry is drawn over the one before", function()
  local s = screen.new()
  local function draw(text, cursor)
    return s:draw { prompt = "> ", more = ".> ", text = text, cursor = cursor, width = 10,
      height = 24 }
  end
  local rows, row, column = shown_by(draw("abc", 1), 10)
  check.equal({ rows, row, column }, { { "> abc" }, 1, 3 }, "one line")
  rows, row, column = shown_by(draw("abc\nde", 5), 10, rows, row, column)
  check.equal({ rows, row, column }, { { "> abc", ".> de" }, 2, 4 }, "two lines")
  rows, row, column = shown_by(draw("0123456789", 9), 10, rows, row, column)
  check.equal({ rows, row, column }, { { "> 01234567", "89" }, 2, 1 }, "a line that is too long")
  rows, row, column = shown_by(draw("01234567", 8), 10, rows, row, column)
  check.equal({ rows, row, column }, { { "> 01234567", "" }, 2, 0 }, "a line that just fits")
  rows, row, column = shown_by(draw("x", 1), 10, rows, row, column)
  check.equal({ rows, row, column }, { { "> x" }, 1, 3 }, "shorter again")
  rows, row = shown_by(s:leave(), 10, rows, row, column)
  check.equal({ #rows, row }, { 2, 2 }, "below the entry")
end)

check.case("what is written for a character, and its columns", function()
  local function written(text) return { screen.text(text) } end
  check.equal(written "a\195\169\228\184\173", { "a\195\169\228\184\173", 4 },
    "accents take one column, Chinese two")
  check.equal(written "\27[2J\0\127", { "^[[2J^@^?", 9 }, "control characters")
  check.equal(written "\tx", { "    x", 5 }, "a tab")
  check.equal(written "\194\1552J\255", { "\\xc2\\x9b2J\\xff", 14 },
    "a control character of two bytes, a byte that is no UTF-8")
end)

check.case("a prompt wider than the terminal, an entry higher than it", function()
  local s = screen.new()
  local function draw(o, ...)
    o.more = ".> "
    o.width = 10
    o.height = 3
    return shown_by(s:draw(o), 10, ...)
  end
  local rows, row, column = draw { prompt = "search '\027567': ", text = "abc", cursor = 0 }
  check.equal({ rows, row, column }, { { "search '^[", "567': abc" }, 2, 6 }, "a wide prompt")
  s = screen.new()
  local function view(cursor)
    rows, row, column = draw({ prompt = "> ", text = "1\n2\n3\n4\n5", cursor = cursor }, rows, row,
      column)
    return { rows[1], rows[#rows], row, column }
  end
  rows, row, column = nil, nil, nil
  check.equal(view(9), { ".> 3", ".> 5", 3, 4 }, "the end")
  check.equal(view(5), { ".> 3", ".> 5", 1, 4 }, "up inside of what is drawn")
  check.equal(view(0), { "> 1", ".> 3", 1, 2 }, "to the beginning")
  check.equal(view(3), { "> 1", ".> 3", 2, 4 }, "down inside of what is drawn")
  check.equal(view(7), { ".> 2", ".> 4", 3, 4 }, "a row further down")
  check.equal(#rows, 3, "never more than the terminal's rows")
end)

-- ---- history ----
check.case("history", function()
  local path = os.tmpname()
  local h = history.open(path)
  h:add "one"
  h:add "for i = 1, 2 do\n  print(i)\nend"
  h:add "for i = 1, 2 do\n  print(i)\nend"
  h:add "  "
  h:add "three"
  h:add "\tif x then\n\t\ty()\n\tend"
  h:add "\nfour"
  check.equal(#h.entries, 5, "a repeated entry and an empty one are left out")
  check.equal(history.open(path).entries, h.entries, "read again")
  check.equal(h:search("print", 3, -1), 2, "a search goes back")
  check.equal(h:search("nothing", 3, -1), nil, "and may find nothing")
  local lines = {}
  for i = 1, 4100 do lines[i] = "entry " .. i end
  local file = assert(io.open(path, "w"))
  file:write(table.concat(lines, "\n"), "\n")
  file:close()
  check.equal({ #history.open(path).entries, history.open(path).entries[2000] },
    { 2000, "entry 4100" }, "a long file is shortened to its newest entries")
  os.remove(path)
  check.equal(#history.open("/nonexistent/x").entries, 0, "a file that cannot be made")
end)

-- ---- completion ----
local function offers(text, wanted, name)
  local list, replaced = completion.candidates(text, #text)
  local found = false
  for _, word in ipairs(list) do found = found or word == wanted end
  check.ok(found, name .. ": " .. text .. " -> " .. table.concat(list, " "):sub(1, 200))
  return replaced
end

check.case("completion", function()
  check.equal(offers("sz.tok", "tokenizer", "a name"), 3, "replaces what was typed of it")
  offers("x = sz.", "qwen_vl", "all names")
  offers("sz.image.l", "load", "in a module")
  offers("(stri", "string", "a global")
  offers("whi", "while", "a word of Lua")
  rawset(_G, "repl_t", sz.tensor { 1, 2 })
  offers("repl_t:to", "totable", "a tensor's method")
  rawset(_G, "repl_d", { alpha = 1, beta = function() end, ["not a name"] = 2 })
  offers("repl_d.a", "alpha", "a table's key")
  check.equal(completion.candidates("repl_d:", 7), { "beta" }, "only functions after a colon")
  check.equal(completion.candidates("nothing.here.x", 14), {}, "a path that leads nowhere")
  offers("f('models/ti", "models/tiny/", "a folder")
  offers("x.run { 'trainer.max_s", "trainer.max_steps=", "a setting")
  offers("x.run { 'algorithm.kl_penalty=low", "algorithm.kl_penalty=low_var_kl", "its value")
  offers("vl:generate(q, { temp", "temperature = ", "an option")
  offers("vl:generate(q, { n = 2, max_", "max_new_tokens = ", "another option")
  offers("require 'segzero.forma", "segzero.formats.image", "a module")
  offers("sz.sam2('models/tiny/s", "models/tiny/sam2", "a model")
  offers(":re", ":reload", "a command")
  offers("name..tostr", "tostring", "a global after ..")
  check.equal(completion.candidates("", 0), {}, "nothing for nothing")
  check.equal(completion.candidates("-- it's", 7), {}, "no files in a comment")
  rawset(_G, "repl_t", nil)
  rawset(_G, "repl_d", nil)
end)

check.case("paths follow names and call nothing", function()
  local called = false
  local mt = { __index = function()
    called = true
    return 1
  end }
  rawset(_G, "repl_x", { inner = setmetatable({ a = 5 }, mt) })
  check.equal(paths.value "repl_x.inner.a", 5, "a value")
  check.equal(next(paths.members(rawget(_G, "repl_x").inner)), "a", "its members")
  check.equal(called, false, "a function in __index is not called")
  check.equal(paths.value "repl_missing.a", nil, "an undefined global is no error")
  rawset(_G, "repl_x", nil)
end)

-- ---- values ----
check.case("nested tables", function()
  check.equal(show.text { 1, { 2, { 3, { 4 } } } }, "{1, {2, {3, {...}}}}", "three levels")
  check.equal(show.text { a = { b = true }, ["a b"] = "x\ny" },
    '{a = {b = true}, ["a b"] = "x\\ny"}', "names and texts")
  local loop = {}
  loop.self = loop
  check.equal(show.text(loop), "{self = {...}}", "a table inside itself")
  local long = { name = ("x"):rep(60), other = ("y"):rep(60) }
  check.equal(show.text(long), ('{\n  name = "%s",\n  other = "%s"\n}'):format(("x"):rep(60),
    ("y"):rep(60)), "each entry on its own line if they do not fit")
  local many = {}
  for i = 1, 100 do many[i] = { 1, 2, 3, 4, 5, 6, 7, 8 } end
  local _, opened = show.text(many):gsub("{1", "")
  check.ok(opened > 10 and opened <= 40, "of a large table only a part is shown: " .. opened)
  check.equal(show.text "as it is", "as it is", "a text")
end)

check.case("tensors in rows, inside tables too", function()
  local t = sz.tensor { { 1, 2 }, { 3, 4 } }
  check.equal(show.text(t), "tensor f32 [2, 2]\n{{1, 2},\n {3, 4}}", "a tensor")
  check.equal(show.text { t = t }, "{\n  t = tensor f32 [2, 2]\n  {{1, 2},\n   {3, 4}}\n}",
    "in a table")
end)

check.case("structs with their fields", function()
  local list = structs.parse [[
    typedef struct { int a, b; const char *name; /* c; */ double list[3]; } sz_one;
    struct sz_two { uint8_t *bytes; };
  ]]
  check.equal(list, { { name = "sz_one", fields = { "a", "b", "name", "list" } },
    { name = "struct sz_two", fields = { "bytes" } } }, "fields of a header")
  local ffi = require "ffi"
  local header = ffi.new "sz_image_header"
  header.width = 7
  check.equal(show.text(header),
    "sz_image_header {width = 7, height = 0, orientation = 0, format = NULL}", "a struct of ours")
  local pixels = ffi.cast("uint8_t *", ffi.new("uint8_t[4]", 65))
  check.ok(show.text(pixels):find "^cdata<unsigned char %*>", "bytes are no text")
  check.equal(show.text(ffi.cast("const char *", "abc")), '"abc"', "a text of C")
  check.ok(show.text(ffi.new "int[3]"):find "cdata", "another C value is what LuaJIT says")
  check.equal(show.text(5LL), "5LL", "a 64-bit number")
end)

-- ---- locals ----
check.case("locals of the outermost level are kept", function()
  local function kept(text)
    local out = locals.kept(text, function(name) return name == "print" end)
    return out
  end
  check.equal(kept "local x = 5", "      x = 5", "a local")
  check.equal(kept "local a, b", "      a, b = nil", "without values")
  check.equal(kept "local function f() local y = 1 end", "      function f() local y = 1 end",
    "a function; its own local stays one")
  check.equal(kept "for i = 1, 2 do local z = i end", "for i = 1, 2 do local z = i end",
    "in a block")
  check.equal(kept "if x then local y end local z = 1", "if x then local y end       z = 1",
    "after a block")
  check.equal(kept "repeat local x until x local y = 2", "repeat local x until x       y = 2",
    "after repeat")
  check.equal(kept "s = 'local a' -- local b", "s = 'local a' -- local b",
    "in a text and a comment")
  check.equal(kept "s = [=[\nlocal a]=] local b = 1", "s = [=[\nlocal a]=]       b = 1",
    "after a long text")
  check.equal(kept "local print = 1", "local print = 1", "a name that is taken")
  local _, names, left = locals.kept("local a, b = 1 local print", function(name)
    return name == "print"
  end)
  check.equal({ names, left }, { { "a", "b" }, { "print" } }, "names are told")
end)

-- ---- help ----
check.case("help finds functions, modules, settings, ops and pages", function()
  local function says(name, wanted)
    local text = help.about(name) or "nothing"
    local line = ":help %s says %s: %s"
    check.ok(text:find(wanted, 1, true), line:format(name, wanted, text:sub(1, 300)))
  end
  says("sz.image", "images as Lua objects")
  says("sz.image.load", "recognised by")
  says("trainer.max_steps", "trainer.max_steps=")
  says("sz.answer.parse", "formats/answer.lua")
  says("softmax", "docs/ops.md")
  says("memory", "docs/guide/memory.md")
  says("train", "segzero train")
  rawset(_G, "repl_vl", require("segzero.models.policy").defaults
    or { generate = require("segzero.inference.generate").generate })
  says("repl_vl:generate", "max_new_tokens")
  rawset(_G, "repl_vl", nil)
  local text, why = help.about "sz.imige"
  check.equal(text, nil, "nothing is made up")
  check.ok(why:find("did you mean 'sz.image'", 1, true), why)
end)

-- ---- images ----
check.case("what a terminal can show", function()
  local function kind(variables, attributes)
    return terminal.kind(function(name) return variables[name] end,
      function() return attributes or "" end)
  end
  check.equal(kind { KITTY_WINDOW_ID = "1" }, "kitty", "kitty")
  check.equal(kind { TERM_PROGRAM = "iTerm.app" }, "iterm", "iTerm")
  check.equal(kind { TERM_PROGRAM = "WezTerm" }, "iterm", "WezTerm")
  check.equal(kind({ TERM = "xterm-256color" }, "62;4;22"), "sixel", "a terminal with sixels")
  check.equal(kind({ TERM = "xterm-256color" }, "62;22;44"), nil, "one without")
  check.equal(kind { TMUX = "x", KITTY_WINDOW_ID = "1" }, nil, "inside tmux")
  check.equal(kind({ TMUX = "x" }, "62;4"), "sixel", "a tmux with sixels")
end)

check.case("images as text for terminals", function()
  local img = sz.image.new(4, 7)
  local text = pictures.sixel(img)
  check.ok(text:find('^\27P0;1q"1;1;4;7#0;2;0;0;0'), "a sixel image: its size and palette")
  check.ok(text:find("#0!4~-#0!4@-\27\\", 1, true), "six black rows and one: " .. text:sub(-40))
  local png = ("x"):rep(5000)
  local kitty = pictures.kitty(png)
  local _, pieces = kitty:gsub("\27_G", "")
  check.equal(pieces, 2, "kitty's protocol in pieces")
  check.ok(kitty:find "^\27_Ga=T,f=100,m=1;" and kitty:find "\27_Gm=0;", "the last one is marked")
  check.ok(pictures.iterm(png):find "^\27%]1337;File=inline=1;size=5000;", "iTerm's")
  check.raises(function() img:show() end, "works at the prompt", "outside of the prompt")
end)

check.finish()
