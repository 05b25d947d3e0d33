-- object_pairs.lua - how well each answered object agrees with each true one, 0 to 3: a point for
-- an IoU above 0.5, for a box whose sides are off by less than 10 pixels on average, and for a
-- point in its own box that is less than 30 pixels from the true one.
--
--   local scores = pairs.scores(answered, true_ones, space)
--     both: {boxes =, points =}, of number_arrays.read; space: of seg_terms.space
--     -> scores[i][j] of answered object i and true object j, or nil where the original raises
--
-- The arithmetic is numpy's, type by type: int64 wraps around, max and min of float64 pass NaN on,
-- those of Python's own numbers keep the first unless the second is beyond it, and only Python's
-- own numbers cannot be divided by 0. Sums run left to right. Corners are inside their box, and
-- boxes that touch overlap, other than in geometry.lua.
-- Leaves out: boxes of 8, 12, ... numbers on both sides, which the original compares in some way.

local number_arrays = require "rewards.number_arrays"

local M = {}

M.MIN_IOU = 0.5
M.MAX_BOX_L1 = 10
M.MAX_POINT_DISTANCE = 30

-- ---- numpy's arithmetic ----
-- v is int64 or a double; a NaN stays.
local function not_negative(v)
  if v <= 0 then return 0 end
  return v
end

local LARGER = {}
local SMALLER = {}

function LARGER.object(a, b)
  if a >= b then return a end
  return b
end

function SMALLER.object(a, b)
  if a <= b then return a end
  return b
end

function LARGER.float64(a, b)
  if a ~= a or a >= b then return a end
  return b
end

function SMALLER.float64(a, b)
  if a ~= a or a <= b then return a end
  return b
end

LARGER.int64 = LARGER.object
SMALLER.int64 = SMALLER.object

local function absolute(v)
  if v < 0 then return -v end
  return v
end

local function area(box) return (box[3] - box[1] + 1) * (box[4] - box[2] + 1) end

-- The areas of an array's boxes, in the type t. numpy has no difference of truth values.
local function areas(boxes, t)
  if boxes.type == "bool" then return nil end
  local out = {}
  for i, box in ipairs(boxes) do
    out[i] = area(box)
    if boxes.type == "int64" and t ~= "int64" then out[i] = tonumber(out[i]) end
  end
  return out
end

local function rows_as(array, t)
  local out = {}
  for i, row in ipairs(array) do out[i] = number_arrays.as(row, array.type, t) end
  return out
end

-- ---- boxes ----
-- nil: divided by 0.
local function box_iou(a, b, area_a, area_b, t)
  local larger = LARGER[t]
  local smaller = SMALLER[t]
  local width = not_negative(smaller(a[3], b[3]) - larger(a[1], b[1]) + 1)
  local height = not_negative(smaller(a[4], b[4]) - larger(a[2], b[2]) + 1)
  local inter = width * height
  local union = area_a + area_b - inter
  if t == "object" and union == 0 then return nil end
  return tonumber(inter) / tonumber(union)
end

local function box_l1(a, b)
  local sum = 0
  for k = 1, 4 do sum = sum + tonumber(absolute(a[k] - b[k])) end
  return sum / 4
end

-- f(i, j) -> 0 to 2, or nil; or nil instead of f.
local function box_judge(answered, true_ones, space)
  if answered.width ~= 4 or true_ones.width ~= 4 then return nil end
  if answered.beyond and true_ones.type == "float64" then return nil end
  if true_ones.beyond and answered.type == "float64" then return nil end
  local t = number_arrays.common(answered.type, true_ones.type)
  local a_areas = areas(answered, t)
  local b_areas = areas(true_ones, t)
  if not a_areas or not b_areas then return nil end
  local a = rows_as(answered, t)
  local b = rows_as(true_ones, t)
  local limit = M.MAX_BOX_L1 * space.scale
  local a_stretched = {}
  local b_stretched = {}
  for i, box in ipairs(a) do a_stretched[i] = space.stretch(box) end
  for j, box in ipairs(b) do b_stretched[j] = space.stretch(box) end

  return function(i, j)
    local iou = box_iou(a[i], b[j], a_areas[i], b_areas[j], t)
    if not iou then return nil end
    local score = 0
    if iou > M.MIN_IOU then score = 1 end
    if box_l1(a_stretched[i], b_stretched[j]) < limit then score = score + 1 end
    return score
  end
end

-- ---- points ----
-- Points of one number stand for all coordinates of the other side's.
local function point_distance(p, q)
  local sum = 0
  for k = 1, #p do
    local difference = p[k] - (q[k] or q[1])
    sum = sum + difference * difference
  end
  return math.sqrt(tonumber(sum))
end

-- Whether each answered point is in its own box.
local function in_boxes(points, boxes)
  local t = number_arrays.common(points.type, boxes.type)
  local inside = {}
  for i, point in ipairs(points) do
    local p = number_arrays.as(point, points.type, t)
    local box = number_arrays.as(boxes[i], boxes.type, t)
    inside[i] = p[1] >= box[1] and p[1] <= box[3] and p[2] >= box[2] and p[2] <= box[4]
  end
  return inside
end

-- f(i, j) -> 0 or 1; or nil instead of f.
local function point_judge(answered, true_ones, boxes, space)
  local t = number_arrays.common(answered.type, true_ones.type)
  -- numpy has no difference of truth values, and no square root of Python's own numbers.
  if t == "bool" or t == "object" then return nil end
  if answered.width < 2 then return nil end
  if true_ones.width ~= answered.width and true_ones.width ~= 1 then return nil end
  local p = rows_as(answered, t)
  local q = rows_as(true_ones, t)
  for i, point in ipairs(p) do p[i] = space.stretch(point) end
  for j, point in ipairs(q) do q[j] = space.stretch(point) end
  local inside = in_boxes(answered, boxes)
  local limit = M.MAX_POINT_DISTANCE * space.scale

  return function(i, j)
    if inside[i] and point_distance(p[i], q[j]) < limit then return 1 end
    return 0
  end
end

function M.scores(answered, true_ones, space)
  local of_boxes = box_judge(answered.boxes, true_ones.boxes, space)
  if not of_boxes then return nil end
  local of_points = point_judge(answered.points, true_ones.points, answered.boxes, space)
  if not of_points then return nil end
  local scores = {}
  for i = 1, #answered.boxes do
    scores[i] = {}
    for j = 1, #true_ones.boxes do
      local score = of_boxes(i, j)
      if not score then return nil end
      scores[i][j] = score + of_points(i, j)
    end
  end
  return scores
end

return M
