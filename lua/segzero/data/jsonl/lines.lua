-- lines.lua - the lines of a text file, read one at a time: only where each starts is in memory, 12
-- bytes a line.
--
--   local list = lines.open(path)       raises one line if the file cannot be read
--   list:count()                        lines that are not blank
--   list:number(i)                      the number of line i in the file, counted from 1
--   list:text(i)                        its text; an error if the file has changed since
--
-- A byte order mark at the start is skipped; one of UTF-16 is an error. A line ends with \n.
-- Leaves out: compressed files, writing.

local ffi = require "ffi"
local utf8 = require "segzero.formats.utf8"

local M = {}

local CHUNK = 2 ^ 20
local FIRST_ROOM = 1024
local LINE_FEED = "\n"

local methods = {}
local mt = { __index = methods }

-- Arrays that grow: where a line starts and ends, and its number.
local function new_list(path, handle)
  return setmetatable({ path = path, handle = handle, n = 0, room = 0 }, mt)
end

local function grow(self)
  local room = math.max(FIRST_ROOM, 2 * self.room)
  local starts = ffi.new("double[?]", room)
  local numbers = ffi.new("int32_t[?]", room)
  local lengths = ffi.new("int32_t[?]", room)
  if self.n > 0 then
    ffi.copy(starts, self.starts, 8 * self.n)
    ffi.copy(numbers, self.numbers, 4 * self.n)
    ffi.copy(lengths, self.lengths, 4 * self.n)
  end
  self.starts = starts
  self.numbers = numbers
  self.lengths = lengths
  self.room = room
end

local function add(self, start, length, number)
  if self.n == self.room then grow(self) end
  self.starts[self.n] = start
  self.lengths[self.n] = length
  self.numbers[self.n] = number
  self.n = self.n + 1
end

-- How many bytes at the start are a byte order mark.
local function skip_mark(self)
  local length, encoding = utf8.mark(self.handle:read(3) or "")
  if encoding == "UTF-16" then
    error(self.path .. ": the byte order mark says UTF-16, expected UTF-8", 0)
  end
  self.handle:seek("set", length or 0)
  return length or 0
end

-- Finds all lines. `rest` is the start of a line that goes on in the next chunk.
local function scan(self)
  local start = skip_mark(self)         -- of the line that is being read
  local number = 1
  local rest = {}
  local function finish(last)
    rest[#rest + 1] = last
    local line = table.concat(rest)
    if line:find "%S" then add(self, start, #line, number) end
    start = start + #line + 1
    number = number + 1
    rest = {}
  end
  for chunk in function() return self.handle:read(CHUNK) end do
    local from = 1
    while true do
      local at = chunk:find(LINE_FEED, from, true)
      if not at then break end
      finish(chunk:sub(from, at - 1))
      from = at + 1
    end
    rest[#rest + 1] = chunk:sub(from)
  end
  finish ""
end

function M.open(path)
  local handle, reason = io.open(path, "rb")
  if not handle then error(reason, 0) end
  -- A folder opens and fails to be read.
  local _, fault = handle:read(1)
  if fault then
    handle:close()
    error(("%s: %s"):format(path, fault), 0)
  end
  local size = handle:seek "end"
  handle:seek("set", 0)
  local self = new_list(path, handle)
  self.size = size
  scan(self)
  return self
end

function methods:count() return self.n end

function methods:number(i) return self.numbers[i - 1] end

local function changed(self) error(self.path .. " has changed since it was opened", 0) end

-- Lines that follow each other are read without seeking.
function methods:text(i)
  local start = self.starts[i - 1]
  if start ~= self.position then
    if self.handle:seek "end" ~= self.size then changed(self) end
    self.handle:seek("set", start)
  end
  local text = self.handle:read(self.lengths[i - 1])
  if #(text or "") ~= self.lengths[i - 1] then changed(self) end
  self.handle:read(1)
  self.position = start + self.lengths[i - 1] + 1
  return text
end

function mt:__tostring() return ("%d lines of %s"):format(self.n, self.path) end

return M
