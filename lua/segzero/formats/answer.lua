-- answer.lua - reads boxes and points from a model's answer, exactly as Seg-Zero's and
-- VisionReasoner's inference scripts do.
--
--   local answer = require "segzero.formats.answer"
-- One object:
--   <think>..</think><answer>{"bbox": [10,20,110,220], "points_1": [40,60], "points_2": [80,160]}
--   </answer>           (without the line break)
--   local a, why = answer.parse(text)
--     a.think, a.bbox = {x0, y0, x1, y1}, a.points = {{x, y}, {x, y}}, in the model's frame
--   local b = answer.scale(a, width / frame, height / frame)      in the image's own pixels
--
-- Several objects:
--   <think>..</think><answer>[{"bbox_2d": [..], "point_2d": [..]}, ..]</answer>
--   local list, why = answer.parse_list(text)
--     list.think, list[i].bbox, list[i].point
--   local list, why = answer.parse_boxes(text)     the same, but a point may be missing, as where
--                                                  VisionReasoner counts and detects
--   local scaled = answer.scale_list(list, fx, fy)
--   local either, why = answer.read(text, several)
--
-- parse and parse_list return nil and a sentence exactly where the Python scripts raise an error,
-- which their evaluations count as IoU 0. They refuse coordinates from 1e100 on, too: Python raises
-- only where one becomes infinite as it is scaled, but then areas of boxes would be infinite here.
-- One object: the first {...} anywhere in the text is read, even inside the thinking. The box is
-- the first key that contains "bbox", the points are the first two keys that contain "points".
-- Coordinates are cut to integers, then scaled and rounded half to even. The thinking is required.
-- Several objects: the first <answer> is read. Coordinates are scaled, then v + 0.5 is cut toward
-- zero. Missing thinking is an empty text.
--
-- Leaves out: whether the box makes sense (order of the corners, inside the image). The Python
-- scripts do not check it either.

local pyjson = require "segzero.formats.pyjson"
local pytext = require "segzero.formats.pytext"

local M = {}

local floor = math.floor
local find = string.find
local sub = string.sub

local LIMIT = 1e100

local function text_of(text, level)
  if type(text) ~= "string" then
    error("answer: the text is a " .. type(text) .. ", not a string", level + 1)
  end
end

local function thinking(text) return text:match "<think>([^<]+)</think>" end

-- Not NaN, and small enough for areas of scaled boxes to be finite.
local function is_coordinate(v) return math.abs(v) < LIMIT end

-- int(value) of a JSON value; nil if it is no coordinate.
local function whole(value)
  local n = pyjson.int(value)
  if n and is_coordinate(n) then return n end
  return nil
end

-- The first `count` items of a JSON list or string as integers, or nil.
local function wholes(value, count)
  local out = {}
  for i = 1, count do
    out[i] = whole(pyjson.item(value, i))
    if not out[i] then return nil end
  end
  return out
end

-- The first n keys that contain the word, in the order in which they were written.
local function keys_with(object, word, n)
  local found = {}
  for _, key in ipairs(object.keys) do
    if #found < n and find(key:lower(), word, 1, true) then found[#found + 1] = key end
  end
  return found
end

function M.parse(text)
  text_of(text, 2)
  local open = find(text, "{[^}]")
  local close = open and find(text, "}", open + 2, true)
  if not close then return nil, "no {...} in the text" end
  local object, why = pyjson.decode(sub(text, open, close))
  if object == nil then return nil, "the first {...} is not JSON: " .. why end

  local bbox_key = keys_with(object, "bbox", 1)[1]
  if not bbox_key then return nil, "no key with \"bbox\"" end
  local length = pyjson.length(object.map[bbox_key])
  if length ~= 4 then
    return nil, ("\"%s\" has %s numbers instead of 4"):format(bbox_key, length or "no")
  end
  local bbox = wholes(object.map[bbox_key], 4)
  if not bbox then return nil, ("\"%s\" does not hold 4 numbers"):format(bbox_key) end

  local point_keys = keys_with(object, "points", 2)
  local points = {}
  if #point_keys < 2 then return nil, ("%d of 2 keys with \"points\""):format(#point_keys) end
  for i, key in ipairs(point_keys) do
    points[i] = wholes(object.map[key], 2)
    if not points[i] then return nil, ("\"%s\" does not start with 2 numbers"):format(key) end
  end

  local think = thinking(text)
  if not think then return nil, "no <think>...</think>" end
  return { think = think, bbox = bbox, points = points }
end

-- Python's round(): to the nearest integer, halves to the even one. The + 0 turns -0 into 0.
local function round(x)
  local below = floor(x)
  local part = x - below
  if part > 0.5 or part == 0.5 and below % 2 == 1 then below = below + 1 end
  return below + 0
end
M.round = round

-- Python's int(): cuts toward zero.
local function cut(x)
  if x < 0 then return math.ceil(x) + 0 end
  return floor(x) + 0
end

local function factors(fx, fy, level)
  for _, f in ipairs { fx, fy or fx } do
    if type(f) ~= "number" or not (f > 0 and f < math.huge) then
      error("answer: a factor must be a positive number, got " .. tostring(f), level + 1)
    end
  end
  return fx, fy or fx
end

local function scaled(values, fx, fy, to_whole)
  local out = {}
  for i, v in ipairs(values) do
    local factor = fy
    if i % 2 == 1 then factor = fx end
    out[i] = to_whole(v * factor)
  end
  return out
end

-- A parsed answer with x multiplied by fx and y by fy (default: fx).
function M.scale(parsed, fx, fy)
  fx, fy = factors(fx, fy, 2)
  local out = { think = parsed.think, bbox = scaled(parsed.bbox, fx, fy, round), points = {} }
  for i, p in ipairs(parsed.points) do out.points[i] = scaled(p, fx, fy, round) end
  return out
end

-- ---- several objects ----
-- The text between the first <answer> and its </answer>, without the white space around it: what
-- the regular expression <answer>\s*(.*?)\s*</answer> captures. nil if there is none.
function M.body(text)
  local _, open = find(text, "<answer>", 1, true)
  if not open then return nil end
  local first = pytext.skip_space(text, open + 1)
  local close = find(text, "</answer>", first, true)
  if not close then return nil end
  return pytext.strip(sub(text, first, close - 1))
end

-- The first `count` numbers of a JSON list, or nil where Python could not multiply or cut them.
local function numbers(value, count)
  if type(value) ~= "table" or value.kind ~= "array" then return nil end
  local out = {}
  for i = 1, count do
    local v = value[i]
    if v == true then v = 1 end
    if v == false then v = 0 end
    if type(v) ~= "number" or not is_coordinate(v) then return nil end
    out[i] = v
  end
  return out
end

local function parse_list(text, needs_points)
  local body = M.body(text)
  if not body then return nil, "no <answer>...</answer>" end
  local value, why = pyjson.decode(body)
  if value == nil then return nil, "the answer is not JSON: " .. why end
  local list = { think = thinking(text) or "" }
  if pyjson.length(value) == 0 then return list end       -- Python walks over "" and {} as over []
  if type(value) ~= "table" or value.kind ~= "array" then return nil, "the answer is not a list" end
  for i, item in ipairs(value) do
    local map = type(item) == "table" and item.kind == "object" and item.map
    if not map then return nil, ("object %d of the answer is not {...}"):format(i) end
    local bbox = numbers(map.bbox_2d, 4)
    local point = numbers(map.point_2d, 2)
    if not bbox then
      return nil, ("object %d of the answer has no \"bbox_2d\" of 4 numbers"):format(i)
    end
    if not point and needs_points then
      return nil, ("object %d of the answer has no \"point_2d\" of 2 numbers"):format(i)
    end
    list[i] = { bbox = bbox, point = point }
  end
  return list
end

function M.parse_list(text)
  text_of(text, 2)
  return parse_list(text, true)
end

function M.parse_boxes(text)
  text_of(text, 2)
  return parse_list(text, false)
end

-- parse_list of an answer to a question with several objects, else parse.
function M.read(text, several)
  if several then return M.parse_list(text) end
  return M.parse(text)
end

local function half_up(x) return cut(x + 0.5) end

function M.scale_list(list, fx, fy)
  fx, fy = factors(fx, fy, 2)
  local out = { think = list.think }
  for i, o in ipairs(list) do
    out[i] = { bbox = scaled(o.bbox, fx, fy, half_up) }
    if o.point then out[i].point = scaled(o.point, fx, fy, half_up) end
  end
  return out
end

return M
