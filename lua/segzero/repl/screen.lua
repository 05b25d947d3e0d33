-- screen.lua - draws the entry that is being typed, as text for a terminal.
--
--   local s = screen.new()
--   io.write(s:draw({ text =, cursor = bytes, prompt = "> ", more = "...> ", width = columns }))
--   io.write(s:leave())         the cursor goes below the entry
--   screen.width("text") -> columns
--
-- Each draw goes back to where the last one began, clears what is below and writes everything: an
-- entry is small. Lines that are wider than the terminal are broken. Control characters are shown
-- as ^X. Wide characters (East Asian) count two columns, combining ones none.
-- Leaves out: colours; entries higher than the terminal scroll.

local M = {}

local methods = {}
local mt = { __index = methods }

-- Ranges of code points: two columns, none.
local WIDE = { { 0x1100, 0x115f }, { 0x2e80, 0xa4cf }, { 0xac00, 0xd7a3 }, { 0xf900, 0xfaff },
  { 0xfe30, 0xfe6f }, { 0xff00, 0xff60 }, { 0xffe0, 0xffe6 }, { 0x1f300, 0x1faff },
  { 0x20000, 0x3fffd } }
local NONE = { { 0x300, 0x36f }, { 0x200b, 0x200f }, { 0x20d0, 0x20ff }, { 0xfe00, 0xfe0f } }

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
  local code = code_of(c)
  if #c == 1 and (code < 32 or code == 127) then
    local letter = string.char((code + 64) % 128)
    return "^" .. letter, 2
  end
  if #c == 1 and code >= 128 then return "?", 1 end
  if is_in(NONE, code) then return c, 0 end
  if is_in(WIDE, code) then return c, 2 end
  return c, 1
end

local function characters(text) return text:gmatch "[%z\1-\127\192-\255][\128-\191]*" end

function M.width(text)
  local n = 0
  for c in characters(text) do n = n + select(2, shown(c)) end
  return n
end

function M.new() return setmetatable({ row = 0, rows = 0 }, mt) end

-- Rows of the terminal as texts, and where the cursor is: row and column from 0.
local function layout(o)
  local rows = { o.prompt }
  local column = M.width(o.prompt)
  local row = 0
  local cursor_row, cursor_column
  local at = 0
  local function next_row(text)
    rows[#rows + 1] = text
    row = row + 1
    column = M.width(text)
  end
  local function note()
    if at == o.cursor and not cursor_row then
      cursor_row = row
      cursor_column = column
    end
  end
  for c in characters(o.text) do
    if c == "\n" then
      note()
      next_row(o.more)
    else
      local text, columns = shown(c)
      if column + columns > o.width then next_row "" end
      note()
      rows[#rows] = rows[#rows] .. text
      column = column + columns
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

function methods:draw(o)
  local rows, row, column = layout(o)
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
