-- visible.lua - text of a model, a data set or a file, made safe to print on a terminal.
--
--   visible.text(s)            s with its control characters escaped; newlines and tabs stay
--   visible.line(s [, most])   the same as one line: a newline is shown as \n; cut off after `most`
--                              bytes (default 200), which "..." marks
--
-- A control character could move the cursor, change the window's title or fill the clipboard. It is
-- shown as a number: ESC is \x1b. Shown in this way are the bytes 0-31 and 127, the controls U+0080
-- to U+009F, the marks that change the direction of writing (U+202A-U+202E, U+2066-U+2069), and
-- bytes that are no UTF-8. All other text is unchanged, and so is escaped text: "\x1b" in four
-- letters looks the same. Leaves out: widths of characters, colours.

local M = {}

local DEFAULT_MOST = 200

local LEAD = { 0, 0xc0, 0xe0, 0xf0 }            -- what the first of n bytes holds besides its bits
local LEAST = { 0, 0x80, 0x800, 0x10000 }       -- a smaller code point has a shorter form

local function escape(bytes)
  return (bytes:gsub(".", function(c) return ("\\x%02x"):format(c:byte()) end))
end

-- The length of the UTF-8 character that starts at byte i, and its code point; nil if none does.
local function character(s, i)
  local first = s:byte(i)
  if first < 0x80 then return 1, first end
  local length = 2
  if first >= 0xe0 then length = 3 end
  if first >= 0xf0 then length = 4 end
  if first < 0xc2 or first > 0xf4 then return nil end
  local code = first - LEAD[length]
  for k = i + 1, i + length - 1 do
    local byte = s:byte(k)
    if not byte or byte < 0x80 or byte > 0xbf then return nil end
    code = code * 64 + byte - 0x80
  end
  local is_surrogate = code >= 0xd800 and code <= 0xdfff
  if code < LEAST[length] or code > 0x10ffff or is_surrogate then return nil end
  return length, code
end

local function is_control(code)
  if code >= 0x80 and code <= 0x9f then return true end
  return code >= 0x202a and code <= 0x202e or code >= 0x2066 and code <= 0x2069
end

-- A run of bytes from 128 on.
local function escape_high(run)
  local parts = {}
  local i = 1
  while i <= #run do
    local length, code = character(run, i)
    local piece = run:sub(i, i + (length or 1) - 1)
    i = i + #piece
    if not length or is_control(code) then piece = escape(piece) end
    parts[#parts + 1] = piece
  end
  return table.concat(parts)
end

function M.text(s)
  s = tostring(s)
  if not s:find "[%z\1-\8\11-\31\127-\255]" then return s end
  s = s:gsub("[%z\1-\8\11-\31\127]", escape)
  return (s:gsub("[\128-\255]+", escape_high))
end

-- The first `most` bytes, without a character that is cut in two.
local function cut(s, most)
  if #s <= most then return s, "" end
  local last = most
  while last > most - 3 and last > 0 and s:byte(last + 1) >= 0x80 and s:byte(last + 1) <= 0xbf do
    last = last - 1
  end
  return s:sub(1, last), "..."
end

function M.line(s, most)
  local kept, rest = cut(tostring(s), most or DEFAULT_MOST)
  return (M.text(kept):gsub("\n", "\\n")) .. rest
end

return M
