-- fields.lua - values of a judged record (judge.lua), where a missing one is cjson.null, or nil in
-- a record of an older file; and of files that others wrote.
--
--   fields.value_or(v, default)      v, or the default if it is missing
--   fields.is_number(v)              whether it is a finite number
--   fields.is_box(v)                 whether it is a list of four finite numbers
--
-- Leaves out: what the fields mean (judge.lua).

local null = require("cjson").null

local M = {}

function M.value_or(v, default)
  if v == nil or v == null then return default end
  return v
end

function M.is_number(v) return type(v) == "number" and v - v == 0 end

function M.is_box(v)
  if type(v) ~= "table" or #v ~= 4 then return false end
  for i = 1, 4 do
    if not M.is_number(v[i]) then return false end
  end
  return true
end

return M
