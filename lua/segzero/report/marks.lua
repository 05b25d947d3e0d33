-- marks.lua - the boxes and points of an answer and of a solution, in the frame that both count in.
--
--   marks.solution(text) -> {boxes = {{x0, y0, x1, y1}, ...}, points = {{x, y}, ...}}
--   marks.answer(text, several) -> the same, and why the inference scripts cannot read it, or nil;
--                                 without any marks nil and why
--   marks.several(solution)       whether answers to it are lists of objects
--   marks.extent(list) -> n       the largest coordinate of these marks, at least 1
--
-- An answer is read as the inference scripts read it (formats/answer.lua). One that they cannot
-- read is read as the rewards for one object do, which take an object without the tags. Marks that
-- are no finite numbers are left out, and so is everything after the first 200.
-- Leaves out: masks.

local cjson = require "cjson"
local answer = require "segzero.formats.answer"
local answer_object = require "segzero.formats.answer_object"
local truth = require "segzero.data.truth"

local M = {}

local MOST = 200

local function are_finite(list, count)
  if type(list) ~= "table" then return false end
  for i = 1, count do
    local v = list[i]
    if type(v) ~= "number" or v ~= v or math.abs(v) > 1e9 then return false end
  end
  return true
end

local function add(marks, box, points)
  if are_finite(box, 4) and #marks.boxes < MOST then
    table.insert(marks.boxes, { box[1], box[2], box[3], box[4] })
  end
  for _, point in ipairs(points) do
    if are_finite(point, 2) and #marks.points < MOST then
      table.insert(marks.points, { point[1], point[2] })
    end
  end
end

local function from_list(text)
  local marks = { boxes = {}, points = {} }
  local ok, list = pcall(cjson.decode, text)
  if not ok or type(list) ~= "table" then return marks end
  for _, object in ipairs(list) do
    if type(object) == "table" then add(marks, object.bbox_2d, { object.point_2d }) end
  end
  return marks
end

function M.several(solution) return truth.is_list(solution) end

function M.solution(text)
  if type(text) ~= "string" then return { boxes = {}, points = {} } end
  if truth.is_list(text) then return from_list(text) end
  local marks = { boxes = {}, points = {} }
  local box, points = truth.read(text)
  add(marks, box, points or {})
  return marks
end

local function judged(text)
  local object = answer_object.read(text)
  if type(object) ~= "table" or object.kind ~= "object" then return nil end
  local box_key = answer_object.keys_with(object, "bbox", 1)[1]
  local marks = { boxes = {}, points = {} }
  local points = {}
  for _, key in ipairs(answer_object.keys_with(object, "points", 2)) do
    points[#points + 1] = answer_object.to_point(object.map[key])
  end
  add(marks, box_key and answer_object.to_box(object.map[box_key]), points)
  return marks
end

function M.answer(text, several)
  local found, why = answer.read(text, several)
  if not found then
    if several then return nil, why end
    return judged(text), why
  end
  local marks = { boxes = {}, points = {} }
  if not several then
    add(marks, found.bbox, found.points)
    return marks
  end
  for _, object in ipairs(found) do add(marks, object.bbox, { object.point }) end
  return marks
end

function M.extent(list)
  local most = 1
  for _, marks in ipairs(list) do
    for _, kind in ipairs { marks.boxes, marks.points } do
      for _, numbers in ipairs(kind) do
        for _, v in ipairs(numbers) do most = math.max(most, v) end
      end
    end
  end
  return most
end

return M
