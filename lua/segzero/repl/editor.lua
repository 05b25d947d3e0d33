-- editor.lua - reads one entry from a terminal: keys, history, completion, several lines at once.
--
--   local read = editor.new{ terminal =, history =, complete =, is_whole =, write = }
--   read() -> text; nil at the end of input (Ctrl-D on an empty entry); false after Ctrl-C
--
--   terminal   of terminal.lua: open, size, suspend
--   history    of history.lua
--   complete   f(text, cursor) -> candidates, the number of bytes before the cursor that each of
--              them replaces
--   is_whole   f(text): whether Enter runs the entry; else it begins a new line
--   write      f(text) to the terminal
--
-- Keys: arrows, Home, End, Ctrl-A/E, Ctrl-Left/Right, Alt-B/F, Backspace, Delete, Ctrl-D;
-- Ctrl-K/U/W, Alt-D, Alt-Backspace take text, Ctrl-Y puts it back; Ctrl-T swaps; Up and Down move
-- inside an entry of several lines, at its edges and with Ctrl-P/N through the history; Ctrl-R
-- searches it; Alt-Enter begins a new line anywhere; Tab completes; Ctrl-L clears the screen;
-- Ctrl-Z suspends.
-- Leaves out: undo, the mouse, vi's keys.

local buffer = require "segzero.repl.buffer"
local keys = require "segzero.repl.keys"
local screen = require "segzero.repl.screen"

local M = {}

local PROMPT = "> "
local MORE = "...> "
local MOST_SHOWN = 60           -- candidates in a list
local INDENT = 2

local methods = {}
local mt = { __index = methods }

-- ---- drawing ----
function methods:draw(prompt, text, cursor)
  local columns, rows = self.terminal.size()
  self.write(self.screen:draw { prompt = prompt or PROMPT, more = MORE, text = text or self.b.text,
    cursor = cursor or self.b.cursor, width = columns, height = rows })
end

-- ---- lines ----
-- The indentation of a new line: that of the cursor's line, and more after what opens a block.
local function indent_after(line)
  local blanks = line:match "^ *"
  local code = line:gsub("%s+$", "")
  local opens = code:find "[({]$" or code:find "%f[%w]then$" or code:find "%f[%w]do$"
    or code:find "%f[%w]else$" or code:find "%f[%w]repeat$" or code:find "%f[%w]function[^()]*%b()$"
  if opens then return blanks .. (" "):rep(INDENT) end
  return blanks
end

function methods:new_line()
  local _, _, before = self.b:line()
  local blanks = indent_after(before)
  self.b:insert("\n" .. blanks)
  self.indented = blanks        -- of this line, until it has moved to the left
end

local CLOSING = { ["end"] = true, ["else"] = true, ["elseif"] = true, ["until"] = true,
  ["}"] = true, [")"] = true }

-- A line that was indented by itself and closes a block moves to the left, once.
function methods:text_typed(text)
  self.b:insert(text)
  local _, _, before = self.b:line()
  local blanks, word = before:match "^( +)(%S+)$"
  if not blanks or blanks ~= self.indented or not CLOSING[word] then return end
  self.indented = nil
  local head = self.b.text:sub(1, self.b.cursor - #before)
  local tail = self.b.text:sub(self.b.cursor + 1)
  local shifted = blanks:sub(1, -1 - INDENT) .. word
  self.b:set(head .. shifted .. tail, #head + #shifted)
end

-- ---- history ----
-- The entry that is being typed stays below the newest one.
function methods:to_entry(index)
  local entries = self.history.entries
  if index < 1 or index > #entries + 1 then return end
  if self.index == #entries + 1 then self.draft = self.b.text end
  self.index = index
  self.b:set(entries[index] or self.draft)
end

-- Ctrl-R: what is typed is looked for, Ctrl-R again goes further back. Returns the key that ended
-- it.
function methods:search()
  local wanted = ""
  local found
  local shown = self.b.text
  while true do
    if found then shown = self.history.entries[found] end
    local place = wanted ~= "" and shown:find(wanted, 1, true) or 1
    self:draw(("search '%s': "):format(wanted), shown, place - 1)
    local key, text = self.next_key()
    local from = #self.history.entries
    if key == "text" then
      wanted = wanted .. text
      from = found or from
    elseif key == "backspace" then
      wanted = wanted:gsub("[%z\1-\127\192-\255][\128-\191]*$", "")
    elseif key == "ctrl-r" then
      from = (found or from + 1) - 1
    else
      if key ~= "ctrl-g" and key ~= "ctrl-c" then self.b:set(shown) end
      return key, text
    end
    if wanted ~= "" then found = self.history:search(wanted, from, -1) or found end
  end
end

-- ---- completion ----
local function common_beginning(list)
  local common = list[1]
  for i = 2, #list do
    while list[i]:sub(1, #common) ~= common do common = common:sub(1, -2) end
  end
  -- Whole characters: two that differ may begin with the same byte.
  while list[1]:find("^[\128-\191]", #common + 1) do common = common:sub(1, -2) end
  return common
end

-- The candidates in columns.
local function in_columns(list, width)
  local widest = 0
  local shown = {}
  for i = 1, math.min(#list, MOST_SHOWN) do
    local text, columns = screen.text(list[i])
    shown[i] = { text = text, columns = columns }
    widest = math.max(widest, columns + 2)
  end
  local columns = math.max(1, math.floor(width / math.max(widest, 1)))
  local lines = {}
  local line = ""
  for i, candidate in ipairs(shown) do
    line = line .. candidate.text .. (" "):rep(widest - candidate.columns)
    if i % columns == 0 then
      lines[#lines + 1] = line
      line = ""
    end
  end
  if line ~= "" then lines[#lines + 1] = line end
  if #list > MOST_SHOWN then lines[#lines + 1] = ("... %d more"):format(#list - MOST_SHOWN) end
  return table.concat(lines, "\r\n") .. "\r\n"
end

function methods:complete_here()
  -- At the beginning of a line, Tab indents.
  local _, _, before = self.b:line()
  local number = self.b:line()
  if number > 1 and not before:find "%S" then
    self.b:insert((" "):rep(INDENT))
    return
  end
  local list, replaced = self.complete(self.b.text, self.b.cursor)
  if #list == 0 then return end
  local common = common_beginning(list)
  if #list == 1 or #common > replaced then
    local rest = self.b.text:sub(self.b.cursor + 1)
    local head = self.b.text:sub(1, self.b.cursor - replaced)
    self.b:set(head .. common .. rest, #head + #common)
    return
  end
  self.write(self.screen:leave() .. in_columns(list, (self.terminal.size())))
end

-- ---- keys ----
local MOVES = { left = "left", right = "right", home = "home", ["end"] = "end",
  ["ctrl-a"] = "home", ["ctrl-e"] = "end", ["ctrl-b"] = "left", ["ctrl-f"] = "right",
  ["ctrl-left"] = "word_left", ["ctrl-right"] = "word_right", ["alt-b"] = "word_left",
  ["alt-f"] = "word_right", ["alt-<"] = "begin", ["alt->"] = "finish" }
local DELETES = { backspace = "left", delete = "right", ["ctrl-h"] = "left", ["ctrl-k"] = "end",
  ["ctrl-u"] = "home", ["ctrl-w"] = "word_left", ["alt-backspace"] = "word_left",
  ["alt-d"] = "word_right", ["ctrl-delete"] = "word_right" }

local actions = {}              -- return "done" and the result to end

function actions.up(self)
  if not self.b:move "up" then self:to_entry(self.index - 1) end
end

function actions.down(self)
  if not self.b:move "down" then self:to_entry(self.index + 1) end
end

actions["ctrl-p"] = function(self) self:to_entry(self.index - 1) end
actions["ctrl-n"] = function(self) self:to_entry(self.index + 1) end
actions["page-up"] = actions["ctrl-p"]
actions["page-down"] = actions["ctrl-n"]
actions["ctrl-y"] = function(self) self.b:yank() end
actions["ctrl-t"] = function(self) self.b:transpose() end
actions["alt-enter"] = function(self) self:new_line() end
actions.tab = function(self) self:complete_here() end
actions.text = function(self, text) self:text_typed(text) end

actions["ctrl-l"] = function(self)
  self.write "\27[H\27[2J"
  self.screen = screen.new()
end

actions["ctrl-z"] = function(self)
  self.write(self.screen:leave())
  self.terminal.suspend(self.open)
end

actions["ctrl-d"] = function(self)
  if self.b.text == "" then return "done", nil end
  self.b:delete "right"
end

actions["ctrl-c"] = function(self)
  self.b:move "finish"
  self:draw()
  self.write "^C"
  return "done", false
end

actions["end-of-input"] = function() return "done", nil end

function actions.enter(self)
  local text = self.b.text
  if self.is_whole(text) then
    self.b:move "finish"
    return "done", text
  end
  self:new_line()
end

-- Does what a key says. Returns "done" and the result when the entry has ended.
function methods:key(key, text)
  if key == "ctrl-r" then key, text = self:search() end
  if MOVES[key] then
    self.b:move(MOVES[key])
  elseif DELETES[key] then
    self.b:delete(DELETES[key])
  elseif actions[key] then
    return actions[key](self, text)
  end
end

function methods:read()
  self.b = buffer.new()
  self.screen = screen.new()
  self.index = #self.history.entries + 1
  self.draft = ""
  self.open = self.terminal.open()
  if not self.open then return nil end
  self.next_key = keys.new(self.open.next_byte)
  local ok, result = pcall(function()
    while true do
      -- Of text that arrives at once, only the end is drawn.
      if not self.open.is_waiting() then self:draw() end
      local state, text = self:key(self.next_key())
      if state == "done" then
        if text ~= false then self:draw() end
        return text
      end
    end
  end)
  self.write(self.screen:leave())
  self.open:close()
  if not ok then error(result, 0) end
  if result then self.history:add(result) end
  return result
end

function M.new(options)
  local self = setmetatable(options, mt)
  return function() return self:read() end
end

return M
