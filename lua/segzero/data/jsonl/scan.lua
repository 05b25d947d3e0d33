-- scan.lua - walks the bytes of a JSON file without decoding it: where the members of an
-- object and the elements of a list begin and end. For files too large to decode at once.
--
--   local file = scan.open(path [, what])   {path =, map =, p = bytes, size =}; raises one line.
--                                       what: the outermost value in messages
--   scan.first(file)                    where the first value begins, after a byte order mark
--   scan.members(file, i, visit)        the object that begins at i: visit(key, start)
--   scan.elements(file, i, visit)       the list that begins at i: visit(start)
--       visit returns the place after the value if it has walked it, else nil. Both return the
--       place after the object or the list
--   scan.stop(file, i)                  the place after the value that begins at i
--   scan.value(file, i [, stop])        the value decoded
--   scan.number(file, i)                a whole number, from its digits; nil for another value
--   scan.line_feeds(file, first, last)  how many line feeds are in [first, last)
--
-- Places count from 0. A value is skipped by its brackets and quotes; what is inside is checked
-- where it is decoded. Keys are given as they are written, so an escaped one does not match its
-- name. Every step stays inside the file; an error names file and byte.
-- Leaves out: decoding (cjson does), several values in a row (lines.lua).

local cjson = require "cjson"
local core = require "segzero.core.ffi"
local ffi = require "ffi"

local M = {}

local C = core.C

local QUOTE = ('"'):byte()
local ESCAPE = ("\\"):byte()
local COMMA = (","):byte()
local COLON = (":"):byte()
local MINUS = ("-"):byte()
local LIST = ("["):byte()
local OBJECT = ("{"):byte()
local LIST_END = ("]"):byte()
local OBJECT_END = ("}"):byte()
local LINE_FEED = 10
local MOST_DIGITS = 15          -- that a double surely holds

local function fail(file, i, what)
  error(("%s: byte %.0f: %s"):format(file.path, i, what), 0)
end

local function cut_off(file)
  error(("%s: %s has no end: the file is cut off"):format(file.path, file.what), 0)
end

function M.open(path, what)
  require("segzero.core.files").check_regular(path)
  local map = ffi.gc(core.call(C.sz_map_open(path)), C.sz_map_close)
  return { path = path, what = what or "the object", map = map, p = C.sz_map_bytes(map),
    size = tonumber(C.sz_map_size(map)) }
end

local function after_space(file, i)
  local p = file.p
  local size = file.size
  while i < size do
    local c = p[i]
    if c ~= 32 and (c < 9 or c > 13) then return i end
    i = i + 1
  end
  return i
end

-- The place after the string whose quote is at i.
local function after_string(file, i)
  local p = file.p
  local size = file.size
  i = i + 1
  while i < size do
    local c = p[i]
    if c == QUOTE then return i + 1 end
    if c == ESCAPE then i = i + 1 end
    i = i + 1
  end
  cut_off(file)
end

-- The place after the list or object that begins at i.
local function after_brackets(file, i)
  local p = file.p
  local size = file.size
  local depth = 0
  while i < size do
    local c = p[i]
    -- Brackets in strings do not count.
    if c == QUOTE then
      i = after_string(file, i)
    else
      i = i + 1
      if c == LIST or c == OBJECT then
        depth = depth + 1
      elseif c == LIST_END or c == OBJECT_END then
        depth = depth - 1
        if depth == 0 then return i end
      end
    end
  end
  cut_off(file)
end

-- The place after a number or a word.
local function after_word(file, i)
  local p = file.p
  local size = file.size
  local first = i
  while i < size do
    local c = p[i]
    local is_end = c == COMMA or c == LIST_END or c == OBJECT_END or c <= 32
    if is_end or c == QUOTE or c == COLON then break end
    i = i + 1
  end
  if i == first then fail(file, i, "a JSON value is expected") end
  return i
end

function M.stop(file, i)
  if i >= file.size then cut_off(file) end
  local c = file.p[i]
  if c == QUOTE then return after_string(file, i) end
  if c == LIST or c == OBJECT then return after_brackets(file, i) end
  return after_word(file, i)
end

function M.first(file)
  local i = 0
  if file.size >= 3 and ffi.string(file.p, 3) == "\239\187\191" then i = 3 end
  return after_space(file, i)
end

-- The place of the next member or element, nil and the place after the end if there is none.
-- is_first: nothing has been read of the object or list.
local function next_place(file, i, close, is_first)
  i = after_space(file, i)
  if i >= file.size then cut_off(file) end
  local c = file.p[i]
  if c == close then return nil, i + 1 end
  if is_first then return i end
  if c ~= COMMA then fail(file, i, "a comma is expected") end
  return after_space(file, i + 1)
end

function M.members(file, i, visit)
  if file.p[i] ~= OBJECT then fail(file, i, "a JSON object is expected") end
  local stop = i + 1
  local is_first = true
  while true do
    local start, last = next_place(file, stop, OBJECT_END, is_first)
    if not start then return last end
    is_first = false
    -- The key, a colon, the value.
    if start >= file.size then cut_off(file) end
    if file.p[start] ~= QUOTE then fail(file, start, "a key in quotes is expected") end
    local key_stop = after_string(file, start)
    local colon = after_space(file, key_stop)
    if colon >= file.size then cut_off(file) end
    if file.p[colon] ~= COLON then fail(file, colon, "a colon is expected") end
    local value = after_space(file, colon + 1)
    if value >= file.size then cut_off(file) end
    local key = ffi.string(file.p + start + 1, key_stop - start - 2)
    stop = visit(key, value) or M.stop(file, value)
  end
end

function M.elements(file, i, visit)
  if file.p[i] ~= LIST then fail(file, i, "a JSON list is expected") end
  local stop = i + 1
  local is_first = true
  while true do
    local start, last = next_place(file, stop, LIST_END, is_first)
    if not start then return last end
    is_first = false
    if start >= file.size then cut_off(file) end
    stop = visit(start) or M.stop(file, start)
  end
end

function M.number(file, i)
  local p = file.p
  local size = file.size
  local first = i
  local sign = 1
  if i < size and p[i] == MINUS then
    sign = -1
    i = i + 1
    first = i
  end
  local value = 0
  while i < size do
    local c = p[i]
    if c < 48 or c > 57 then break end
    value = value * 10 + (c - 48)
    i = i + 1
  end
  if i == first or i - first > MOST_DIGITS then return nil end
  -- 1.0 and 1e3 are numbers as well.
  local c = i < size and p[i] or 0
  if c == 46 or c == 69 or c == 101 then
    local number = tonumber(ffi.string(p + first, M.stop(file, first) - first))
    if not number or number % 1 ~= 0 then return nil end
    value = number
  end
  return sign * value
end

function M.value(file, i, stop)
  stop = stop or M.stop(file, i)
  local text = ffi.string(file.p + i, stop - i)
  -- cjson decodes lists and objects alone.
  local ok, list = pcall(cjson.decode, "[" .. text .. "]")
  if not ok then fail(file, i, "not valid JSON: " .. tostring(list)) end
  return list[1]
end

function M.line_feeds(file, first, last)
  local p = file.p
  local n = 0
  for i = first, math.min(last, file.size) - 1 do
    if p[i] == LINE_FEED then n = n + 1 end
  end
  return n
end

return M
