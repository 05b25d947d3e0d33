-- truth.lua - reads a row's solution: the true boxes and points.
--
--   truth.read(solution)       -> box {x0, y0, x1, y1} | nil, points {{x, y}, {x, y}} | nil
--                              reads Seg-Zero's string
--   truth.convert(solution, from, to)   the solution in another frame: its boxes and points become
--                              whole numbers there, the rest of the text stays. Unchanged if the
--                              frames are equal or it has no coordinates
--   truth.objects(row, mask)   -> {{bbox =, points = {...}}, ...} in the image's own pixels
--                              reads Seg-Zero's string or VisionReasoner's list; without either,
--                              the box around the mask, which is u8 [height, width]
--   truth.has_objects(row)     whether the solution names any, or an empty list, so that no mask is
--                              needed
--   truth.is_list(solution)    whether it is VisionReasoner's list, so that answers are lists too
--   truth.as_answer(objects, several)   what formats/answer.lua would parse from a perfect answer
--
-- Seg-Zero's string        <box>(x0,y0),(x1,y1)</box><points>(x,y),(x,y)</points>
-- VisionReasoner's list    [{"bbox_2d": [...], "point_2d": [x, y]}, ...]
-- A row's solution is in row.solution_frame (coordinates.lua), by default the image's own pixels.
-- Leaves out: polygons and masks in the solution.

local cjson = require "cjson"
local frame = require "segzero.data.frame"
local pytext = require "segzero.formats.pytext"
local tensor = require "segzero.core.tensor"

local M = {}

-- ---- Seg-Zero's string ----
-- The four strings as decimal digits, or nil: the pattern takes every byte that may belong to a
-- digit of another script.
local function all_digits(...)
  local digits = {}
  for i = 1, 4 do
    digits[i] = pytext.ascii_digits((select(i, ...)))
    if not digits[i] then return nil end
  end
  return digits
end

-- <tag>(a,b),(c,d)</tag> -> {a, b, c, d}, and where it starts and ends; or nil. A number that
-- Python's int() refuses makes the whole truth unreadable.
local function read_four(text, tag)
  local pattern = ("<TAG>%((N),(N)%),%((N),(N)%)</TAG>"):gsub("TAG", tag):gsub("N",
    "[0-9\128-\255]+")
  local from = 1
  while true do
    local first, last, a, b, c, d = text:find(pattern, from)
    if not first then return nil end
    local digits = all_digits(a, b, c, d)
    if digits then
      local numbers = {}
      for i = 1, 4 do
        if #digits[i] > pytext.MAX_INT_DIGITS then return nil end
        numbers[i] = tonumber(digits[i])
      end
      return numbers, first, last
    end
    from = first + 1
  end
end

function M.read(solution)
  local p = read_four(solution, "points")
  local points = p and { { p[1], p[2] }, { p[3], p[4] } }
  return (read_four(solution, "box")), points
end

-- ---- another frame ----
-- Replaces the coordinates of one tag. convert: {a, b, c, d} -> the same in the other frame.
local function replace_four(text, tag, convert)
  local numbers, first, last = read_four(text, tag)
  if not numbers then return text end
  local n = convert(numbers)
  local new = ("<%s>(%.0f,%.0f),(%.0f,%.0f)</%s>"):format(tag, n[1], n[2], n[3], n[4], tag)
  return text:sub(1, first - 1) .. new .. text:sub(last + 1)
end

-- Replaces the numbers of every "key": [...] of n numbers in a JSON text.
local function replace_lists(text, key, n, convert)
  local pattern = ('("%s"%%s*:%%s*%%[)([^%%[%%]]*)(%%])'):format(key)
  return (text:gsub(pattern, function(open, inside, close)
    local ok, list = pcall(cjson.decode, "[" .. inside .. "]")
    if not ok or #list ~= n then return nil end
    for i = 1, n do
      if type(list[i]) ~= "number" then return nil end
    end
    local out = {}
    for i, v in ipairs(convert(list)) do out[i] = ("%.0f"):format(v) end
    return open .. table.concat(out, ", ") .. close
  end))
end

function M.convert(solution, from, to)
  if frame.equal(from, to) then return solution end
  local function box(b) return frame.box(b, from, to) end
  local function point(p) return frame.point(p, from, to) end
  local function points(p)
    local a = point { p[1], p[2] }
    local b = point { p[3], p[4] }
    return { a[1], a[2], b[1], b[2] }
  end
  local text = replace_four(solution, "box", box)
  text = replace_four(text, "points", points)
  text = replace_lists(text, "bbox_2d", 4, box)
  return replace_lists(text, "point_2d", 2, point)
end

-- ---- objects ----
local function object_of(entry, i)
  local bbox = type(entry) == "table" and entry.bbox_2d
  if type(bbox) ~= "table" or #bbox ~= 4 then
    error(("object %d of the solution has no bbox_2d"):format(i), 0)
  end
  local point = entry.point_2d
  return { bbox = bbox, points = type(point) == "table" and { point } or {} }
end

-- The tight box around the mask, corners inside; nil for an empty mask.
local function box_around(mask)
  local shape = mask:shape()
  local data = tensor.data(mask)
  local height = shape[1]
  local width = shape[2]
  local box
  for y = 0, height - 1 do
    for x = 0, width - 1 do
      if data[y * width + x] ~= 0 then
        box = box or { x, y, x, y }
        box[1] = math.min(box[1], x)
        box[3] = math.max(box[3], x)
        box[4] = y
      end
    end
  end
  return box
end

-- Whether a solution is VisionReasoner's list, which may be empty.
function M.is_list(solution)
  return type(solution) == "string" and solution:find "^%s*%[" ~= nil
end

-- The objects that a solution names, in its own frame: {} for an empty list, nil if it names none.
local function named(solution)
  local box, points = M.read(solution)
  if box then return { { bbox = box, points = points or {} } } end
  local ok, list = pcall(cjson.decode, solution)
  if not ok or type(list) ~= "table" then return nil end
  if not list[1] and not (next(list) == nil and M.is_list(solution)) then return nil end
  local objects = {}
  for i, entry in ipairs(list) do objects[i] = object_of(entry, i) end
  return objects
end

local function stored(row) return row.stored_solution or row.solution end

function M.has_objects(row) return named(stored(row)) ~= nil end

function M.objects(row, mask)
  local objects = named(stored(row))
  if objects then
    return frame.objects(objects, row.solution_frame or frame.of(row.image), frame.of(row.image))
  end
  if not mask then error("the row has no mask and its solution no box", 0) end
  local box = box_around(mask)
  if not box then return {} end
  return { { bbox = box, points = {} } }
end

function M.as_answer(objects, several)
  if not several then
    if #objects ~= 1 then
      error(("the row has %d true objects; several=true takes them all"):format(#objects), 0)
    end
    return { bbox = objects[1].bbox, points = objects[1].points }
  end
  local list = {}
  for i, object in ipairs(objects) do
    local point = object.points[1]
    if not point then error(("true object %d has no point"):format(i), 0) end
    list[i] = { bbox = object.bbox, point = point }
  end
  return list
end

return M
