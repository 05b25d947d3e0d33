-- list.lua - a JSON file that is one list of objects, read an object at a time; it offers what
-- lines.lua does.
--
--   json_list.is_list(path)             whether the file begins with [
--   local list = json_list.open(path)   raises one line if the file cannot be read
--   list:count(), list:number(i), list:text(i)     an object's text, and the line it begins in
--
-- The file is mapped; where each object begins is in memory, 16 bytes each. Objects are found by
-- their brackets and quotes; what is inside is checked where it is decoded.
-- Leaves out: lists inside an object, such as {"data": [...]}.

local core = require "segzero.core.ffi"
local ffi = require "ffi"

local M = {}

local C = core.C

local methods = {}
local mt = { __index = methods }

local QUOTE = ('"'):byte()
local ESCAPE = ("\\"):byte()
local COMMA = (","):byte()
local LINE_FEED = 10
local OPEN = { [("["):byte()] = true, [("{"):byte()] = true }
local CLOSE = { [("]"):byte()] = true, [("}"):byte()] = true }

function M.is_list(path)
  local file = io.open(path, "rb")
  if not file then return false end
  local head = file:read(4096) or ""
  file:close()
  return head:find "^\239?\187?\191?%s*%[" ~= nil
end

local function is_space(c) return c == 32 or (c >= 9 and c <= 13) end

-- The place after the string that begins at i.
local function after_string(p, i, size)
  i = i + 1
  while i < size and p[i] ~= QUOTE do
    if p[i] == ESCAPE then i = i + 1 end
    i = i + 1
  end
  return i + 1
end

-- Finds the elements of the outermost list, which begins at i.
local function scan(self, i)
  local p = self.p
  local depth = 0
  local line = 1
  local start                   -- of the element that is being read
  local function finish(stop)
    if not start then return end
    self.n = self.n + 1
    self.starts[self.n] = start
    self.lengths[self.n] = stop - start
    start = nil
  end
  while i < self.size do
    local c = p[i]
    if c == LINE_FEED then line = line + 1 end
    if depth == 1 and not start and not is_space(c) and c ~= COMMA and not CLOSE[c] then
      start = i
      self.numbers[self.n + 1] = line
    end
    if c == QUOTE then
      i = after_string(p, i, self.size) - 1
    elseif OPEN[c] then
      depth = depth + 1
    elseif CLOSE[c] then
      if depth == 1 then finish(i) end
      depth = depth - 1
      if depth == 0 then return end
    elseif c == COMMA and depth == 1 then
      finish(i)
    end
    i = i + 1
  end
  error(self.path .. ": the list has no end: the file is cut off", 0)
end

function M.open(path)
  local map = ffi.gc(core.call(C.sz_map_open(path)), C.sz_map_close)
  local self = setmetatable({ path = path, map = map, p = C.sz_map_bytes(map),
    size = tonumber(C.sz_map_size(map)), n = 0, starts = {}, lengths = {}, numbers = {} }, mt)
  local first = 0
  while first < self.size and self.p[first] ~= ("["):byte() do first = first + 1 end
  scan(self, first)
  return self
end

function methods:count() return self.n end

function methods:number(i) return self.numbers[i] end

function methods:text(i) return ffi.string(self.p + self.starts[i], self.lengths[i]) end

function mt:__tostring() return ("%d objects of %s"):format(self.n, self.path) end

return M
