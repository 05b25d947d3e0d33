-- mutations.lua - damages a text at random, knowing a little about its structure.
--
--   local mutations = require "tests.fuzz.mutations"
--   local r = mutations.random(seed)             r(n) -> 1..n
--   mutations.change(r, text, other)             a damaged copy; other is a second sample, for
--                                                splices
--
-- Half of the changes treat the text as JSON: they find values and put others in their place. They
-- work on any text that has such values, so on JSON lines, YAML and model answers as well.
-- Leaves out: coverage. fuzz_*.c have that, for what C reads.

local M = {}

-- xorshift with 32 bits: the same inputs for a seed on every machine.
function M.random(seed)
  local bit = require "bit"
  local state = bit.bxor(seed * 2654435761 % 2 ^ 32, 0x9e3779b9)
  return function(n)
    state = bit.bxor(state, bit.lshift(state, 13))
    state = bit.bxor(state, bit.rshift(state, 17))
    state = bit.bxor(state, bit.lshift(state, 5))
    return bit.band(state, 0x7fffffff) % n + 1
  end
end

-- Values that readers get wrong: signs, ends of ranges, other types, deep and long ones.
local VALUES = {
  "null", "true", "false", "0", "-1", "1", "0.5", "-0.0", "1e308", "1e999", "-1e999", "NaN",
  "9007199254740993", "4294967296", "2147483648", "-2147483649", "16777215", "65536", "3",
  "12345678901234567890", "0x10", '""', '"x"', '"0"', '"\\u0000"', '"\\ud800"', '"\27[2J"',
  '"..\\/..\\/etc\\/passwd"', "[]", "{}", "[1]", "[[]]", "[null]", '{"a":1}', "[1,2,3,4]",
  '["a","b"]', "'", '"', "}", "]", ":", ",", "&a [*a]", "!!binary x", "---\n",
}

local function long_value(r)
  local kind = r(5)
  if kind == 1 then return ("["):rep(r(3000)) end
  if kind == 2 then return '"' .. ("a"):rep(r(20000)) .. '"' end
  if kind == 3 then return ('{"a":'):rep(r(500)) end
  if kind == 4 then return "[" .. ("1,"):rep(r(5000)) .. "1]" end
  return ("9"):rep(r(400))
end

-- Where JSON values begin and end: strings, numbers and words as {first, last}.
local function values_of(text)
  local spans = {}
  local i = 1
  while i <= #text and #spans < 20000 do
    local first, last = text:find('^"[^"\\]*"', i)
    if not first then first, last = text:find("^%-?%d[%d%.eE+-]*", i) end
    if not first then first, last = text:find("^%a+", i) end
    if first then
      spans[#spans + 1] = { first, last }
      i = last + 1
    else
      -- Brackets with what they hold.
      local open = text:sub(i, i)
      if open == "[" then first, last = text:find("^%b[]", i) end
      if open == "{" then first, last = text:find("^%b{}", i) end
      if first then spans[#spans + 1] = { first, last } end
      i = i + 1
    end
  end
  return spans
end

local function replace(text, first, last, with)
  return text:sub(1, first - 1) .. with .. text:sub(last + 1)
end

-- ---- changes: f(r, text, other) -> text ----
local CHANGES = {}

-- A value becomes another one.
local function change_value(r, text)
  local spans = values_of(text)
  if #spans == 0 then return text .. VALUES[r(#VALUES)] end
  local span = spans[r(#spans)]
  local with = VALUES[r(#VALUES)]
  local kind = r(8)
  if kind == 1 then
    with = long_value(r)
  elseif kind == 2 then
    local from = spans[r(#spans)]
    with = text:sub(from[1], from[2])
  elseif kind == 3 then
    with = ""
  end
  return replace(text, span[1], span[2], with)
end

-- Twice as likely as each of the others.
CHANGES[1] = change_value
CHANGES[2] = change_value
CHANGES[3] = change_value

-- One byte.
CHANGES[4] = function(r, text)
  if #text == 0 then return string.char(r(256) - 1) end
  local at = r(#text)
  return replace(text, at, at, string.char(r(256) - 1))
end

-- A piece is left out or repeated.
CHANGES[5] = function(r, text)
  if #text == 0 then return text end
  local first = r(#text)
  local last = math.min(#text, first + r(64) - 1)
  if r(2) == 1 then return replace(text, first, last, "") end
  return replace(text, first, last, text:sub(first, last):rep(1 + r(3)))
end

-- The end is missing.
CHANGES[6] = function(r, text)
  if #text == 0 then return text end
  return text:sub(1, r(#text) - 1)
end

-- Two samples joined.
CHANGES[7] = function(r, text, other)
  if #text == 0 or #other == 0 then return other end
  return text:sub(1, r(#text)) .. other:sub(r(#other))
end

-- A number of 8 bytes, as headers have.
CHANGES[8] = function(r, text)
  if #text < 8 then return text end
  local at = r(#text - 7)
  local bytes = {}
  local pattern = r(3)
  for i = 1, 8 do
    bytes[i] = string.char(0)
    if pattern == 1 then bytes[i] = string.char(255) end
    if pattern == 2 and i <= 2 then bytes[i] = string.char(r(256) - 1) end
  end
  return replace(text, at, at + 7, table.concat(bytes))
end

function M.change(r, text, other)
  for _ = 1, r(3) do text = CHANGES[r(#CHANGES)](r, text, other) end
  return text
end

return M
