-- member_text.lua - values of a JSON object as they are written, which decoding loses: digits that
-- no double holds, the order of keys, nulls.
--
--   member_text.find(text, key) -> text     the value under a key of the outermost object; the last
--                                           one, as in decoding; nil if there is none
--   member_text.json(text) -> text          a list or object as json.dumps(value,
--                                           ensure_ascii=False) lays it out; numbers as written
--
-- text: valid JSON. Leaves out: checking it (line.lua decodes it first).

local cjson = require "cjson"
local value_text = require "segzero.data.tables.value_text"

local M = {}

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

-- The end of the list or object that starts with the bracket at i.
local function end_of_brackets(text, i)
  local depth = 0
  while true do
    local at, _, mark = text:find('(["{}%[%]])', i)
    if not at then return #text end
    if mark == '"' then
      at = end_of_string(text, at)
    elseif mark == "{" or mark == "[" then
      depth = depth + 1
    else
      depth = depth - 1
      if depth == 0 then return at end
    end
    i = at + 1
  end
end

local function end_of_value(text, i)
  local first = text:sub(i, i)
  if first == '"' then return end_of_string(text, i) end
  if first == "[" or first == "{" then return end_of_brackets(text, i) end
  return text:match("^[%w.+-]*()", i) - 1
end

function M.find(text, key)
  local i = 1
  local found
  while true do
    local quote = text:find('"', i, true)
    if not quote then return found end
    local stop = end_of_string(text, quote)
    local first = text:match("^%s*:%s*()", stop + 1)
    if not first then return found end
    local last = end_of_value(text, first)
    if unescaped(text:sub(quote + 1, stop - 1)) == key then found = text:sub(first, last) end
    i = last + 1
  end
end

local SPACED = { [","] = ", ", [":"] = ": " }

function M.json(text)
  local parts = {}
  local i = text:find "%S"
  while i do
    local c = text:sub(i, i)
    local stop = i
    if c == '"' then
      stop = end_of_string(text, i)
      parts[#parts + 1] = value_text.quote(unescaped(text:sub(i + 1, stop - 1)))
    elseif SPACED[c] then
      parts[#parts + 1] = SPACED[c]
    else
      stop = text:match('^[^%s,:"]+()', i) - 1
      parts[#parts + 1] = text:sub(i, stop)
    end
    i = text:find("%S", stop + 1)
  end
  return table.concat(parts)
end

return M
