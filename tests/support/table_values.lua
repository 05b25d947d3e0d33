-- table_values.lua - the rows that tests/golden/make_parquet.py and make_arrow.py expect of a file,
-- and comparing them with what a reader returns.
--
--   local want = values.rows(path)            of a .jsonl
--   values.same_fields(want[i], row)          whether a row has these values and no other
--   values.same(want, value)
--   values.jumping(n), values.backwards(n)    orders of the rows 1 to n

local cjson = require "cjson"

local M = {}

local function from_hex(text)
  return (text:gsub("%x%x", function(two) return string.char(tonumber(two, 16)) end))
end

function M.same_fields(want, got)
  if type(got) ~= "table" then return false end
  for name, v in pairs(want) do
    if not M.same(v, got[name]) then return false end
  end
  for name in pairs(got) do
    if want[name] == nil then return false end
  end
  return true
end

function M.same(want, got)
  if want == cjson.null then return got == nil or got == cjson.null end
  if type(want) ~= "table" then return want == got end
  if want.b then return from_hex(want.b) == got end
  if want.f == "nan" then return type(got) == "number" and got ~= got end
  if want.f then return got == tonumber(want.f) end
  if want.s then return M.same_fields(want.s, got) end
  if type(got) ~= "table" or #got ~= #want then return false end
  for i, v in ipairs(want) do
    if not M.same(v, got[i]) then return false end
  end
  return true
end

function M.rows(path)
  local rows = {}
  for line in io.lines(path) do rows[#rows + 1] = cjson.decode(line) end
  return rows
end

function M.jumping(n)
  local order = {}
  local at = 1
  for i = 1, n do
    order[i] = at
    at = (at + 7) % n + 1
  end
  return order
end

function M.backwards(n)
  local order = {}
  for i = 1, n do order[i] = n + 1 - i end
  return order
end

return M
