-- geometry.lua - plane geometry for rewards: boxes and points in pixels, pure functions on Lua
-- numbers.
--
-- A box is {x1, y1, x2, y2} with both corners inside it, so its width is x2 - x1 + 1. A point is
-- {x, y}. Boxes are neither sorted nor clipped: an inside-out box overlaps nothing. NaN stays NaN,
-- which no threshold accepts. Sums run left to right, because rewards compare the results with
-- thresholds and must agree with the originals to the last bit.
-- Leaves out: polygons, masks, half-open boxes.

local M = {}

local abs = math.abs
local sqrt = math.sqrt

-- The first operand stays unless the second is strictly beyond it, so a NaN that comes first is
-- kept. math.max and math.min promise nothing about NaN.
local function larger(a, b)
  if b > a then return b end
  return a
end

local function smaller(a, b)
  if b < a then return b end
  return a
end

local function area(box)
  return (box[3] - box[1] + 1) * (box[4] - box[2] + 1)
end

-- Intersection over union of two boxes. Boxes that share only an edge or a corner do not overlap:
-- the corners are compared strictly, although pixels are counted with both ends. Two boxes without
-- any area give 0.
function M.box_iou(a, b)
  local x1 = larger(a[1], b[1])
  local y1 = larger(a[2], b[2])
  local x2 = smaller(a[3], b[3])
  local y2 = smaller(a[4], b[4])
  local inter = 0
  if x1 < x2 and y1 < y2 then
    inter = (x2 - x1 + 1) * (y2 - y1 + 1)
  end
  local union = area(a) + area(b) - inter
  if union == 0 then return 0 end
  return inter / union
end

-- Mean absolute difference of the four coordinates, in pixels.
function M.box_l1(a, b)
  return (abs(a[1] - b[1]) + abs(a[2] - b[2]) + abs(a[3] - b[3]) + abs(a[4] - b[4])) / 4
end

-- True when the point is in the box or on its border.
function M.point_in_box(point, box)
  return box[1] <= point[1] and point[1] <= box[3] and box[2] <= point[2] and point[2] <= box[4]
end

-- Euclidean distance.
function M.point_distance(a, b)
  local dx = a[1] - b[1]
  local dy = a[2] - b[2]
  return sqrt(dx * dx + dy * dy)
end

-- Mean distance between the pair (a1, a2) and the pair (b1, b2) under the better of the two ways to
-- match them.
function M.pair_distance(a1, a2, b1, b2)
  local straight = M.point_distance(a1, b1) + M.point_distance(a2, b2)
  local crossed = M.point_distance(a1, b2) + M.point_distance(a2, b1)
  return smaller(straight, crossed) / 2
end

return M
