-- fields.lua - values of a judged record (judge.lua), where a missing one is cjson.null, or nil in
-- a record of an older file.
--
--   fields.value_or(v, default)      v, or the default if it is missing
--
-- Leaves out: what the fields mean (judge.lua).

local null = require("cjson").null

local M = {}

function M.value_or(v, default)
  if v == nil or v == null then return default end
  return v
end

return M
