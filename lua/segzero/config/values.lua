-- values.lua - parses, checks and describes the value of one setting.
--
-- A row says what a setting accepts: {key =, type =, default =, ...}. Types, and the fields that
-- narrow them:
--
--   number, integer   min or above (the lower bound, included or not), max or below, multiple
--   count             an integer from 1
--   boolean
--   text              choices; joined = true also takes a YAML list, as a,b,c; path = true expands
--                     ~ and $NAME
--   list              of texts: a,b,c or [a, "b"]; choices; elsewhere = {name = "used instead"}
--
--   mapping           names with values, written as key.name=value or as {name: value}; a value is
--                     a number, a boolean or a text as it looks
--
-- optional = true accepts null, which becomes nil. null = V accepts null, which becomes V.
-- refusals = {value = why}: what the error about a value adds; "*" is any.
-- spellings = {other = V}: other words, in small letters, for a value.
-- choices is a list of names, or a function that returns one, so that it can include names that a
-- script has registered.
-- Leaves out: checks between settings (schema.lua).

local nearest = require "segzero.core.nearest"
local paths = require "segzero.config.paths"
local visible = require "segzero.core.visible"

local M = {}

local IS_NULL = { null = true, Null = true, NULL = true, None = true, ["~"] = true }
local BOOLEANS = { ["true"] = true, ["1"] = true, yes = true, on = true, y = true,
  ["false"] = false, ["0"] = false, no = false, off = false, n = false }
local NUMBERS = { number = true, integer = true, count = true }

M.TYPES = { number = true, integer = true, count = true, boolean = true, text = true, list = true,
  mapping = true }

-- A number as people write it: whole numbers have no exponent.
local function number_text(n)
  if n == 2 ^ 53 then return "2^53" end
  if n == -2 ^ 53 then return "-2^53" end
  if n % 1 == 0 and math.abs(n) <= 2 ^ 53 then return ("%.0f"):format(n) end
  return ("%.14g"):format(n)
end

-- The names that a row accepts, or nil if it accepts any text.
function M.choices(row)
  if type(row.choices) == "function" then return row.choices() end
  return row.choices
end

-- "a whole number from 1", "a number above 0 and at most 1", "one of: f32, bf16", ...
local function expected_number(row)
  local noun = "a number"
  if row.type ~= "number" then noun = "a whole number" end
  local least = row.min
  if row.type == "count" then least = row.min or 1 end
  if least and least == row.max then return number_text(least) end

  local bounds = {}
  if least and row.max then
    bounds[1] = ("from %s to %s"):format(number_text(least), number_text(row.max))
  else
    if least then bounds[#bounds + 1] = "from " .. number_text(least) end
    if row.above then bounds[#bounds + 1] = "above " .. number_text(row.above) end
    if row.max then bounds[#bounds + 1] = "at most " .. number_text(row.max) end
    if row.below then bounds[#bounds + 1] = "below " .. number_text(row.below) end
  end
  if #bounds > 0 then noun = noun .. " " .. table.concat(bounds, " and ") end
  if row.multiple then noun = ("%s, a multiple of %d"):format(noun, row.multiple) end
  return noun
end

function M.expected(row)
  local text
  local names = M.choices(row)
  if row.type == "boolean" then
    text = "true or false"
  elseif NUMBERS[row.type] then
    text = expected_number(row)
  elseif row.type == "mapping" then
    text = "names with values"
  elseif row.type == "list" and names then
    text = "a list of: " .. table.concat(names, ", ")
  elseif row.type == "list" then
    text = "a list a,b,c"
  elseif names then
    text = "one of: " .. table.concat(names, ", ")
  else
    text = "text"
  end
  if row.optional then text = text .. " (or null)" end
  return text
end

-- A value as it is written on a command line.
function M.text(value)
  if value == nil then return "null" end
  if type(value) == "number" then return number_text(value) end
  if type(value) == "table" then return table.concat(value, ",") end
  return tostring(value)
end

-- The error "KEY is VALUE, expected ...". text: the value as the user wrote it.
local function refuse(row, text)
  local shown = text
  if not tonumber(text) then shown = "'" .. visible.line(text) .. "'" end
  local expected = M.expected(row)
  local n = tonumber(text)
  if row.type ~= "number" and not row.max and n and n > 2 ^ 53 then
    expected = expected .. ", at most 2^53"
  end
  local reason = row.refusals and (row.refusals[text] or row.refusals["*"])
  if reason then expected = ("%s (%s)"):format(expected, reason) end
  return nil, ("%s is %s, expected %s"):format(row.key, shown, expected)
end

local function in_range(row, n)
  local least = row.min
  if row.type == "count" then least = row.min or 1 end
  -- Above 2^53 a double is not every whole number.
  if row.type ~= "number" and (n % 1 ~= 0 or math.abs(n) > 2 ^ 53) then return false end
  if least and n < least then return false end
  if row.max and n > row.max then return false end
  if row.above and n <= row.above then return false end
  if row.below and n >= row.below then return false end
  return not row.multiple or n % row.multiple == 0
end

-- 1_000 is YAML's way to write 1000.
local function to_number(row, text)
  local n = tonumber(text) or tonumber((text:gsub("(%d)_(%f[%d])", "%1%2")))
  if not n or n ~= n or math.abs(n) == math.huge or not in_range(row, n) then
    return refuse(row, text)
  end
  return n
end

local function to_boolean(row, text)
  local value = BOOLEANS[text:lower()]
  if value == nil then return refuse(row, text) end
  return value
end

local function to_choice(row, text)
  if row.path then text = paths.expand(text) end
  local names = M.choices(row)
  if not names then return text end
  for _, name in ipairs(names) do
    if name == text then return text end
  end
  return refuse(row, text)
end

-- "[a, 'b']", "a,b" and "('a','b')" are the same list.
local function split(text)
  local inside = text:match "^%s*%[(.*)%]%s*$" or text:match "^%s*%((.*)%)%s*$" or text
  local list = {}
  for part in inside:gmatch "[^,]+" do
    local item = part:match "^%s*['\"]?(.-)['\"]?%s*$"
    if item ~= "" then list[#list + 1] = item end
  end
  return list
end

-- Replaces items that only other programs have by row.elsewhere[item], and calls note(sentence) for
-- each of them.
local function to_list(row, items, note)
  local names = M.choices(row)
  if not names then return items end
  if #items == 0 then
    return nil, ("%s is empty, expected %s"):format(row.key, M.expected(row))
  end
  local known = {}
  local list = {}
  local taken = {}
  for _, name in ipairs(names) do known[name] = true end
  for _, item in ipairs(items) do
    local name = item
    local instead = row.elsewhere and row.elsewhere[item]
    if not known[item] and instead then
      note(("%s: '%s' is not available here, '%s' is used instead"):format(row.key, item, instead))
      name = instead
    elseif not known[item] then
      return nil, ("%s has '%s', expected %s%s"):format(row.key, visible.line(item),
        M.expected(row),
        nearest.question(item, names))
    end
    if not taken[name] then list[#list + 1] = name end
    taken[name] = true
  end
  return list
end

-- raw: text, or a list of texts (from YAML). Returns true and the value (nil for null), or false
-- and the error's message.
function M.convert(row, raw, note)
  if type(raw) == "table" and row.joined then raw = table.concat(raw, ",") end
  local is_empty = type(raw) == "table" and #raw == 0
  if row.type == "mapping" and is_empty then return true, {} end
  if type(raw) == "table" and row.type ~= "list" then
    return false, ("%s is a list, expected %s"):format(row.key, M.expected(row))
  end
  if row.spellings and type(raw) == "string" then raw = row.spellings[raw:lower()] or raw end
  local takes_null = row.optional or row.null ~= nil
  if takes_null and IS_NULL[raw] then return true, row.null end
  local value, why
  if row.type == "mapping" then
    if raw == "{}" or raw == "" or IS_NULL[raw] then return true, {} end
    return false, ("%s is '%s', expected names with values: {name: value, ...}"):format(row.key,
      visible.line(tostring(raw)))
  end
  if row.type == "list" then
    local items = raw
    if type(raw) == "string" then items = split(raw) end
    value, why = to_list(row, items, note)
  elseif row.type == "boolean" then
    value, why = to_boolean(row, raw)
  elseif row.type == "text" then
    value, why = to_choice(row, raw)
  else
    value, why = to_number(row, raw)
  end
  if why then return false, why end
  return true, value
end

return M
