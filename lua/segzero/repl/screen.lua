-- screen.lua - draws the entry that is being typed, as text for a terminal.
--
--   local s = screen.new()
--   io.write(s:draw({ text =, cursor = bytes, prompt = "> ", more = "...> ", width = columns,
--                     height = rows }))
--   io.write(s:leave())         the cursor goes below the entry
--   screen.text("text") -> what is written for it, columns
--
-- Each draw goes back to where the last one began, clears what is below and writes everything: an
-- entry is small. Lines that are wider than the terminal are broken; of an entry that is higher,
-- the rows around the cursor are drawn. A tab is four blanks. Control characters are shown as ^X
-- or, as in visible.lua, by their numbers. Wide characters (East Asian) count two columns,
-- combining ones none.
-- Leaves out: colours; what a terminal does to drawn rows when its width changes.

local visible = require "segzero.core.visible"

local M = {}

local methods = {}
local mt = { __index = methods }

-- Ranges of code points: two columns, none.
local WIDE = { { 0x1100, 0x115f }, { 0x2e80, 0xa4cf }, { 0xac00, 0xd7a3 }, { 0xf900, 0xfaff },
  { 0xfe30, 0xfe6f }, { 0xff00, 0xff60 }, { 0xffe0, 0xffe6 }, { 0x1f300, 0x1faff },
  { 0x20000, 0x3fffd } }
local NONE = { { 0x300, 0x36f }, { 0x200b, 0x200f }, { 0x20d0, 0x20ff }, { 0xfe00, 0xfe0f } }

local TAB = "    "

local function is_in(ranges, code)
  for _, range in ipairs(ranges) do
    if code >= range[1] and code <= range[2] then return true end
  end
  return false
end

local function code_of(c)
  local first = c:byte()
  if #c == 1 then return first end
  local code = first % 2 ^ (7 - #c)
  for i = 2, #c do code = code * 64 + c:byte(i) % 64 end
  return code
end

-- What is written for a character, and its columns.
local function shown(c)
  if c == "\t" then return TAB, #TAB end
  if c:byte(-1) >= 128 then
    local safe = visible.text(c)
    if safe ~= c then return safe, #safe end
  end
  local code = code_of(c)
  if #c == 1 and (code < 32 or code == 127) then
    local letter = string.char((code + 64) % 128)
    return "^" .. letter, 2
  end
  if is_in(NONE, code) then return c, 0 end
  if is_in(WIDE, code) then return c, 2 end
  return c, 1
end

local function characters(text) return text:gmatch ".[\128-\191]*" end

function M.text(text)
  local parts = {}
  local n = 0
  for c in characters(text) do
    local part, columns = shown(c)
    parts[#parts + 1] = part
    n = n + columns
  end
  return table.concat(parts), n
end

-- row: the cursor's, of the `rows` that are drawn; first: the first drawn row of the entry's. All
-- count from 0.
function M.new() return setmetatable({ row = 0, rows = 0, first = 0 }, mt) end

-- Rows of the terminal as texts, and where the cursor is: row and column from 0.
local function layout(o)
  local rows = { "" }
  local column = 0
  local row = 0
  local cursor_row, cursor_column
  local at = 0
  local function next_row(text)
    rows[#rows + 1] = text
    row = row + 1
    column = #text
  end
  local function put(c)
    local text, columns = shown(c)
    if column + columns > o.width then next_row "" end
    rows[#rows] = rows[#rows] .. text
    column = column + columns
  end
  local function note()
    if at == o.cursor and not cursor_row then
      cursor_row = row
      cursor_column = column
    end
  end
  for c in characters(o.prompt) do put(c) end
  for c in characters(o.text) do
    if c == "\n" then
      note()
      next_row(o.more)
    else
      if column + select(2, shown(c)) > o.width then next_row "" end
      note()
      put(c)
    end
    at = at + #c
  end
  -- A full row's cursor is on the next one.
  if column >= o.width then next_row "" end
  note()
  return rows, cursor_row or row, cursor_column or column
end

local function up(n)
  if n <= 0 then return "" end
  return ("\27[%dA"):format(n)
end

-- The rows that fit, with the cursor's among them: the first one changes as little as possible.
function methods:fitting(rows, row, height)
  local first = math.max(math.min(self.first, row), row - height + 1)
  self.first = math.max(math.min(first, #rows - height), 0)
  local out = {}
  for i = self.first + 1, math.min(self.first + height, #rows) do out[#out + 1] = rows[i] end
  return out, row - self.first
end

function methods:draw(o)
  local all, place, column = layout(o)
  local rows, row = self:fitting(all, place, o.height)
  local out = { up(self.row), "\r\27[J", table.concat(rows, "\r\n"), up(#rows - 1 - row), "\r" }
  if column > 0 then out[#out + 1] = ("\27[%dC"):format(column) end
  self.row = row
  self.rows = #rows
  return table.concat(out)
end

function methods:leave()
  local down = self.rows - 1 - self.row
  self.row = 0
  self.rows = 0
  return ("\r\n"):rep(math.max(down, 0) + 1)
end

return M
