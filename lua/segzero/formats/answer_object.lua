-- answer_object.lua - the JSON object in an answer as Seg-Zero's rewards see it: the first {...}
-- anywhere in the text, and its values as boxes and points.
--
--   local object = answer_object.read(text)      an object of pyjson.lua (kind, keys, map), another
--                                                JSON value, or nil
--   answer_object.is_list(value, n)              whether a JSON value is a list of n
--   answer_object.to_box(value) -> {x1, y1, x2, y2} or nil
--   answer_object.to_point(value) -> {x, y} or nil
--   answer_object.keys_with(object, word, count) the first keys that contain the word
--
-- The rewards judge with these functions and the report draws with them, so both see the same.
-- Leaves out: the inference scripts' reading, which is another one (answer.lua).

local pyjson = require "segzero.formats.pyjson"

local M = {}

-- The first match of the regular expression {[^}]+}, read as JSON; nil if there is none or it is no
-- JSON. It has one closing brace, so the object is flat.
function M.read(text)
  local open = text:find "{[^}]"
  if not open then return nil end
  local close = text:find("}", open + 2, true)
  if not close then return nil end
  return (pyjson.decode(text:sub(open, close)))
end

function M.is_list(value, n)
  return type(value) == "table" and value.kind == "array" and #value == n
end

-- A list of four values that Python would compare with a number -> {x1, y1, x2, y2}; else nil. True
-- and False count as 1 and 0.
local BOOLEANS = { [true] = 1, [false] = 0 }

function M.to_box(value)
  if not M.is_list(value, 4) then return nil end
  local box = {}
  for k = 1, 4 do
    local v = value[k]
    if type(v) == "boolean" then v = BOOLEANS[v] end
    if type(v) ~= "number" then return nil end
    box[k] = v
  end
  return box
end

-- int() of the first two elements -> {x, y}, or nil. A string has elements too: "57" is the point
-- (5, 7).
function M.to_point(value)
  local x = pyjson.int(pyjson.item(value, 1))
  local y = pyjson.int(pyjson.item(value, 2))
  if not x or not y then return nil end
  return { x, y }
end

function M.keys_with(object, word, count)
  local found = {}
  for _, key in ipairs(object.keys) do
    if #found < count and key:lower():find(word, 1, true) then found[#found + 1] = key end
  end
  return found
end

return M
