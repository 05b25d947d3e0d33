-- json_line.lua - one line of a data.jsonl as a table of columns, checked.
--
--   json_line.columns(text, where) -> columns     where: "file:line"; a bad line is an error that
--                                                 starts with it. null columns are left out
--   json_line.id(text, columns) -> text | nil     the id as it is written: a number keeps its
--                                                 digits, which no double holds
--
-- problem, solution and image must be strings, id a string or a number, mask a mask of any form
-- (formats/mask.lua). Leaves out: what needs more than the line itself (check.lua).

local cjson = require "cjson"
local mask_of = require "segzero.formats.mask"
local utf8 = require "segzero.formats.utf8"

local M = {}

local REQUIRED = { "problem", "solution", "image" }

local function fail(where, message, ...) error(where .. ": " .. message:format(...), 0) end

-- ---- decoding ----
-- Why cjson refuses the line.
local function reason_of(text, message)
  local escape = utf8.lone_surrogate(text)
  if escape then return ("has a lone surrogate: %s without its other half"):format(escape) end
  return ("not a JSON object: %s"):format((tostring(message):gsub("^%u", string.lower)))
end

local function decode(text, where)
  local at, reason = utf8.fault(text)
  if at then fail(where, "not UTF-8: %s", (reason:gsub(" is not UTF%-8$", ""))) end
  local ok, columns = pcall(cjson.decode, text)
  if not ok then fail(where, "%s", reason_of(text, columns)) end
  if type(columns) ~= "table" or text:find "^%s*%[" then fail(where, "not a JSON object") end
  for name, value in pairs(columns) do
    if value == cjson.null then columns[name] = nil end
  end
  return columns
end

-- ---- the id ----
local function unescaped(text)
  if not text:find("\\", 1, true) then return text end
  local ok, list = pcall(cjson.decode, '["' .. text .. '"]')
  if ok then return list[1] end
  return text
end

-- The end of the string that starts with the quote at i.
local function end_of_string(text, i)
  local at = i + 1
  while true do
    local stop, _, mark = text:find('(["\\])', at)
    if not stop then return #text end
    if mark == '"' then return stop end
    at = stop + 2
  end
end

-- The text of the number under a key of the outermost object; the last one, as in decoding.
local function number_text(text, key)
  local depth = 0
  local i = 1
  local found
  while true do
    local at, _, mark = text:find('(["{}%[%]])', i)
    if not at then return found end
    i = at + 1
    if mark == '"' then
      local stop = end_of_string(text, at)
      i = stop + 1
      local number = depth == 1 and text:match("^%s*:%s*(%-?[%w.+-]+)", i)
      if number and unescaped(text:sub(at + 1, stop - 1)) == key then found = number end
    elseif mark == "{" or mark == "[" then
      depth = depth + 1
    else
      depth = depth - 1
    end
  end
end

function M.id(text, columns)
  local id = columns.id
  if type(id) == "number" then return number_text(text, "id") or tostring(id) end
  return id
end

-- ---- the columns ----
local function check_types(columns, where)
  for _, column in ipairs(REQUIRED) do
    local kind = type(columns[column])
    if kind ~= "string" then
      fail(where, "the column '%s' is %s, expected a string", column, kind)
    end
  end
  if columns.image:find "%z" then fail(where, "the column 'image' has a zero byte in it") end
  local kind = type(columns.id)
  if kind ~= "string" and kind ~= "number" and kind ~= "nil" then
    fail(where, "the column 'id' is %s, expected a string or a number", kind)
  end
  if columns.mask ~= nil then
    local form, why = mask_of.form(columns.mask)
    if not form then fail(where, "the column 'mask' is %s", why) end
  end
end

function M.columns(text, where)
  local columns = decode(text, where)
  check_types(columns, where)
  local id = M.id(text, columns)
  -- A number that no double holds stays text.
  if type(columns.id) == "number" and ("%.0f"):format(columns.id) ~= id then columns.id = id end
  return columns, id
end

return M
