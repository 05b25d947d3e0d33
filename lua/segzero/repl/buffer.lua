-- buffer.lua - the entry that is being typed: its text over several lines, the cursor, and what
-- each key does to them. No terminal is needed.
--
--   local b = buffer.new()
--   b.text, b.cursor            the cursor: how many bytes are before it, whole characters
--   b:insert "text"             b:set("text", cursor or nil: the end)
--   b:move "left"               left, right, home, end (of the line), begin, finish (of the entry),
--                               word_left, word_right, up, down (false if there is no such line)
--   b:delete "left"             up to there: left, right, word_left, word_right, home, end. More
--                               than a character is kept, and b:yank() puts it back
--   b:transpose()               swaps the two characters around the cursor
--   b:line() -> number of the cursor's line, of all lines, and the text before it in its line
--
-- Leaves out: undo.

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new() return setmetatable({ text = "", cursor = 0, killed = "" }, mt) end

function methods:set(text, cursor)
  self.text = text
  self.cursor = cursor or #text
end

function methods:insert(text)
  self.text = self.text:sub(1, self.cursor) .. text .. self.text:sub(self.cursor + 1)
  self.cursor = self.cursor + #text
end

-- ---- places ----
local function is_inside(byte) return byte and byte >= 0x80 and byte <= 0xbf end

local function left_of(text, at)
  if at == 0 then return 0 end
  at = at - 1
  while at > 0 and is_inside(text:byte(at + 1)) do at = at - 1 end
  return at
end

local function right_of(text, at)
  if at >= #text then return #text end
  at = at + 1
  while is_inside(text:byte(at + 1)) do at = at + 1 end
  return at
end

-- Where the cursor's line begins and ends.
local function line_begin(text, at)
  local before = text:sub(1, at):match "^.*\n()"
  return before and before - 1 or 0
end

local function line_end(text, at)
  local newline = text:find("\n", at + 1, true)
  return newline and newline - 1 or #text
end

local function characters(text)
  local _, n = text:gsub("[^\128-\191]", "")
  return n
end

-- The place `columns` characters after `from`, at most the end of the line.
local function column_at(text, from, columns)
  local stop = line_end(text, from)
  local at = from
  for _ = 1, columns do
    if at >= stop then break end
    at = right_of(text, at)
  end
  return at
end

local places = {}

function places.left(text, at) return left_of(text, at) end
function places.right(text, at) return right_of(text, at) end
function places.home(text, at) return line_begin(text, at) end
places["end"] = line_end
function places.begin() return 0 end
function places.finish(text) return #text end

function places.word_left(text, at)
  local before = text:sub(1, at)
  local word = before:match "^.-()[%w_\128-\255]+[^%w_\128-\255]*$"
  return word and word - 1 or 0
end

function places.word_right(text, at)
  local _, last = text:find("^[^%w_\128-\255]*[%w_\128-\255]+", at + 1)
  return last or #text
end

function places.up(text, at)
  local first = line_begin(text, at)
  if first == 0 then return nil end
  return column_at(text, line_begin(text, first - 1), characters(text:sub(first + 1, at)))
end

function places.down(text, at)
  local stop = line_end(text, at)
  if stop == #text then return nil end
  return column_at(text, stop + 1, characters(text:sub(line_begin(text, at) + 1, at)))
end

function methods:move(where)
  local at = places[where](self.text, self.cursor)
  if not at then return false end
  self.cursor = at
  return true
end

function methods:delete(where)
  local at = places[where](self.text, self.cursor)
  -- At the end of a line, the newline itself.
  if where == "end" and at == self.cursor then at = right_of(self.text, at) end
  local first = math.min(at, self.cursor)
  local last = math.max(at, self.cursor)
  local gone = self.text:sub(first + 1, last)
  if where ~= "left" and where ~= "right" and gone ~= "" then self.killed = gone end
  self:set(self.text:sub(1, first) .. self.text:sub(last + 1), first)
  return gone ~= ""
end

function methods:yank() self:insert(self.killed) end

function methods:transpose()
  local at = self.cursor
  if at == #self.text then at = left_of(self.text, at) end
  if at == 0 then return end
  local before = left_of(self.text, at)
  local after = right_of(self.text, at)
  local a = self.text:sub(before + 1, at)
  local b = self.text:sub(at + 1, after)
  self:set(self.text:sub(1, before) .. b .. a .. self.text:sub(after + 1), after)
end

function methods:line()
  local _, above = self.text:sub(1, self.cursor):gsub("\n", "")
  local _, all = self.text:gsub("\n", "")
  return above + 1, all + 1, self.text:sub(line_begin(self.text, self.cursor) + 1, self.cursor)
end

return M
