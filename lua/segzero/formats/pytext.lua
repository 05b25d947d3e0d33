-- pytext.lua - text as Python's str sees it, for code that must agree with Python originals:
-- characters, white space, decimal digits and int(). Strings are UTF-8 bytes; a lone surrogate,
-- which a JSON escape can produce, is its three-byte form. A byte outside any UTF-8 sequence cannot
-- occur in Python; here it counts as one character that is neither space nor digit.
--
-- Left out: case folding and normalisation. Lower-casing needs no table, because no character
-- outside A-Z folds to a letter of the words that rewards look for. (This was checked over all of
-- Unicode for "bbox" and "points". U+0130 folds to "i" and a combining dot, which breaks the word.)
-- Digits are those of Unicode 14 (Python 3.11).

local M = {}

local byte = string.byte
local find = string.find
local sub = string.sub

-- int() refuses more decimal digits than this (sys.int_info.default_max_str_digits).
M.MAX_INT_DIGITS = 4300

-- Code points of the zeros in category Nd. The digits one to nine follow each of them.
local ZEROS = {
  0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
    0xe50, 0xed0,
  0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40,
    0x1c50, 0xa620, 0xa8d0,
  0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136,
    0x111d0, 0x112f0,
  0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60,
    0x16ac0, 0x16b50,
  0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
}

local DIGIT = {}
local SPACE = {}
for _, zero in ipairs(ZEROS) do
  for d = 0, 9 do DIGIT[zero + d] = d end
end
for _, range in ipairs{{0x09, 0x0d}, {0x1c, 0x20}, {0x85, 0x85}, {0xa0, 0xa0}, {0x1680, 0x1680},
  {0x2000, 0x200a},
                       {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}} do
  for c = range[1], range[2] do SPACE[c] = true end
end

local function continuation(s, i)
  local b = byte(s, i)
  if b and b >= 0x80 and b < 0xc0 then return b - 0x80 end
end

-- codepoint(s, i) -> the code point that starts at byte i and the position after it. A stray byte
-- gives -1, a position past the end gives nil.
local function codepoint(s, i)
  local b = byte(s, i)
  if not b then return nil end
  if b < 0x80 then return b, i + 1 end
  local c1 = continuation(s, i + 1)
  if not c1 or b < 0xc2 or b > 0xf4 then return -1, i + 1 end
  if b < 0xe0 then return (b - 0xc0) * 0x40 + c1, i + 2 end
  local c2 = continuation(s, i + 2)
  if not c2 then return -1, i + 1 end
  if b < 0xf0 then return (b - 0xe0) * 0x1000 + c1 * 0x40 + c2, i + 3 end
  local c3 = continuation(s, i + 3)
  if not c3 then return -1, i + 1 end
  return (b - 0xf0) * 0x40000 + c1 * 0x1000 + c2 * 0x40 + c3, i + 4
end
M.codepoint = codepoint

-- Number of characters.
function M.length(s)
  local n = 0
  local i = 1
  while i <= #s do
    n = n + 1
    local _, after = codepoint(s, i)
    i = after
  end
  return n
end

-- The n-th character (from 1) as a string, or nil.
function M.character(s, n)
  local i = 1
  while i <= #s do
    local _, after = codepoint(s, i)
    n = n - 1
    if n == 0 then return sub(s, i, after - 1) end
    i = after
  end
  return nil
end

-- The position of the first character at or after i that is not white space, as after a match of
-- \s*.
function M.skip_space(s, i)
  while true do
    local c, after = codepoint(s, i)
    if not c or not SPACE[c] then return i end
    i = after
  end
end

-- The text without the white space around it: str.strip().
function M.strip(s)
  local first = M.skip_space(s, 1)
  local last = first - 1
  local i = first
  while i <= #s do
    local after = M.skip_space(s, i)
    if after == i then
      after = select(2, codepoint(s, i))
      last = after - 1
    end
    i = after
  end
  return sub(s, first, last)
end

-- The decimal digits of s, in any script, as ASCII. nil if s is empty or contains anything else, so
-- that \d+ would not match all of it.
function M.ascii_digits(s)
  if find(s, "^[0-9]+$") then return s end
  local out = {}
  local i = 1
  while i <= #s do
    local c, after = codepoint(s, i)
    local d = DIGIT[c]
    if not d then return nil end
    out[#out + 1] = d
    i = after
  end
  if #out == 0 then return nil end
  return table.concat(out)
end

-- int(s) of a string: white space around it, one sign, digits of any script, single underscores
-- between digits. Returns a double (beyond 2^53 the nearest one) or nil. U+001C to U+001F are white
-- space to \s but not here.
function M.parse_int(s)
  local out = {}
  local i = 1
  while i <= #s do
    local c, after = codepoint(s, i)
    if c < 0x80 then
      out[#out + 1] = sub(s, i, i)
    elseif SPACE[c] then
      out[#out + 1] = " "
    elseif DIGIT[c] then
      out[#out + 1] = DIGIT[c]
    else
      return nil
    end
    i = after
  end
  local sign, digits = table.concat(out):match("^[\t-\r ]*([+-]?)([0-9_]+)[\t-\r ]*$")
  if not digits or find(digits, "^_") or find(digits, "_$") or find(digits, "__", 1, true) then
    return nil
  end
  digits = digits:gsub("_", "")
  if #digits > M.MAX_INT_DIGITS then return nil end
  local value = tonumber(digits)
  if sign == "-" then return -value end
  return value
end

return M
