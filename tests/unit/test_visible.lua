-- test_visible.lua - control characters of outside text are shown, all other text is unchanged.

local check = require "tests.support.check"
local host = require "segzero.host"
local process = require "tests.support.process"
local sz = require "segzero"
local visible = require "segzero.core.visible"

check.case("plain text and its layout stay", function()
  for _, s in ipairs { "", "a cat", "two\nlines\tand a tab", "größe 大きい 🙂", "a\\x1b" } do
    check.equal(visible.text(s), s, s)
  end
  check.equal(visible.text(12.5), "12.5", "a number")
end)

check.case("control characters are shown as numbers", function()
  check.equal(visible.text "\27[31mred", "\\x1b[31mred", "escape")
  check.equal(visible.text "a\0b", "a\\x00b", "zero")
  check.equal(visible.text "a\rb\8c\127", "a\\x0db\\x08c\\x7f", "return, backspace, delete")
  check.equal(visible.text "\194\155A", "\\xc2\\x9bA", "the one-character form of ESC [")
  check.equal(visible.text "\226\128\174abc", "\\xe2\\x80\\xaeabc", "right-to-left override")
end)

check.case("bytes that are no UTF-8 are shown as numbers", function()
  check.equal(visible.text "\155A", "\\x9bA", "a lone byte")
  check.equal(visible.text "\195", "\\xc3", "a character that is cut off")
  check.equal(visible.text "\192\155", "\\xc0\\x9b", "a longer form than needed")
  check.equal(visible.text "\237\160\128", "\\xed\\xa0\\x80", "half of a surrogate pair")
  check.equal(visible.text "\244\144\128\128", "\\xf4\\x90\\x80\\x80", "past the last code point")
  check.equal(visible.text "é\255é", "é\\xffé", "between two characters")
end)

check.case("a line is one line and has a limit", function()
  check.equal(visible.line "one\ntwo\27", "one\\ntwo\\x1b", "newline")
  check.equal(visible.line(("x"):rep(300)), ("x"):rep(200) .. "...", "the usual limit")
  check.equal(visible.line("abcdef", 3), "abc...", "a limit")
  check.equal(visible.line("aé", 2), "a...", "a character is not cut in two")
end)

check.case("a file's texts in messages", function()
  local path = os.tmpname()
  local name = ("n\27[31m"):rep(30000)
  local bad = {
    { '{"%s":5}', "is not described by an object" },
    { '{"%s":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}', "has dtype F99" },
    { '{"a":{"dtype":"%s","shape":[4],"data_offsets":[0,16]}}', "has dtype n" },
    { '{"%s":{"dtype":"F32","shape":[400],"data_offsets":[0,16]}}', "needs 1600 bytes" },
  }
  for _, one in ipairs(bad) do
    local header = one[1]:format((name:gsub("\27", "\\u001b")))
    local file = assert(io.open(path, "wb"))
    local size = ""
    for i = 0, 7 do size = size .. string.char(math.floor(#header / 256 ^ i) % 256) end
    file:write(size, header, ("\0"):rep(16))
    file:close()
    local ok, why = pcall(sz.safetensors.load, path)
    check.equal(ok, false, one[2])
    check.ok(why:find(one[2], 1, true), one[2] .. ": " .. why:sub(1, 400))
    check.ok(not why:find "\27" and why:find("n\\x1b[31mn", 1, true), one[2] .. ": escaped")
    check.ok(#why < 1000, one[2] .. ": cut off, " .. #why)
  end
  os.remove(path)
end)

check.case("notes", function()
  local out = process.run({ host.executable, "-e",
    [[require("segzero.core.notes").say "the key '\27]0;x\7'"]] }, { timeout = 20 })
  check.equal(out, "note: the key '\\x1b]0;x\\x07'\n", "escaped")
end)

check.finish()
