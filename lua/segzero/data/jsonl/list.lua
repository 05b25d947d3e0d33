-- list.lua - a JSON file that is one list of objects, read an object at a time; it offers what
-- lines.lua does.
--
--   json_list.is_list(path)             whether the file begins with [
--   local list = json_list.open(path)   raises one line if the file cannot be read
--   list:count(), list:number(i), list:text(i)     an object's text, and the line it begins in
--
-- The file is mapped (scan.lua); where each object begins is in memory, 16 bytes each. What is
-- inside an object is checked where it is decoded.
-- Leaves out: lists inside an object, such as {"data": [...]}.

local ffi = require "ffi"
local scan = require "segzero.data.jsonl.scan"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.is_list(path)
  local file = io.open(path, "rb")
  if not file then return false end
  local head = file:read(4096) or ""
  file:close()
  return head:find "^\239?\187?\191?%s*%[" ~= nil
end

function M.open(path)
  local json = scan.open(path, "the list")
  local self = setmetatable({ path = path, json = json, n = 0, starts = {}, lengths = {},
    numbers = {} }, mt)
  local line = 1
  local counted = 0             -- up to this place
  scan.elements(json, scan.first(json), function(start)
    local stop = scan.stop(json, start)
    line = line + scan.line_feeds(json, counted, start)
    counted = start
    self.n = self.n + 1
    self.starts[self.n] = start
    self.lengths[self.n] = stop - start
    self.numbers[self.n] = line
    return stop
  end)
  return self
end

function methods:count() return self.n end

function methods:number(i) return self.numbers[i] end

function methods:text(i) return ffi.string(self.json.p + self.starts[i], self.lengths[i]) end

function mt:__tostring() return ("%d objects of %s"):format(self.n, self.path) end

return M
