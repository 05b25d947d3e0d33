-- polygon_fill.lua - fills a polygon as OpenCV's fillPoly and polylines do, pixel for pixel.
-- ReasonSeg's masks are made with them; COCO's polygons cover other pixels (rle.lua).
--
--   polygon_fill.draw(points, width, height, out, value)
--
-- points: {{x, y}, ...} in pixels; like numpy's int32, a coordinate loses its fraction. out:
-- uint8_t [height * width], row by row; the pixels inside and on the boundary become `value`. A
-- pixel is inside where an odd number of edges is to its left. Any number of points from 1 is
-- taken; parts outside the image are cut off. Errors have no position.
-- Leaves out: anti-aliased and thick lines, several contours at once.

local ffi = require "ffi"

local M = {}

local floor = math.floor
local ceil = math.ceil

local MOST = 2 ^ 20             -- pixels that a coordinate may be from the image's corner
local ONE = 65536               -- OpenCV counts x in this part of a pixel along an edge

-- Rounds towards zero, as C's (int) does.
local function whole(v)
  if v >= 0 then return floor(v) end
  return ceil(v)
end

local function coordinate(v, what, i)
  if type(v) ~= "number" or not (math.abs(v) <= MOST) then
    error(("%s of point %d is %s, expected pixels"):format(what, i, tostring(v)), 0)
  end
  return whole(v)
end

-- ---- lines ----
-- Which sides of the image a point is beyond.
local function beyond_x(x, right)
  if x < 0 then return -1 end
  if x > right then return 1 end
  return 0
end

-- A value on the line through two points: b0 at a0, b1 at a1.
local function along(a, a0, b0, a1, b1) return b0 + whole((a - a0) * (b1 - b0) / (a1 - a0)) end

-- Moves the ends of a line into the image. Returns them, and whether any of it is there; ends of a
-- line that is not there may be moved as well, as OpenCV's are.
local function clip(width, height, x1, y1, x2, y2)
  local right = width - 1
  local bottom = height - 1
  local h1 = beyond_x(x1, right)
  local h2 = beyond_x(x2, right)
  local v1 = beyond_x(y1, bottom)
  local v2 = beyond_x(y2, bottom)
  local function apart() return h1 * h2 == 1 or v1 * v2 == 1 end
  local function whole_line() return h1 == 0 and h2 == 0 and v1 == 0 and v2 == 0 end
  if apart() or whole_line() then return x1, y1, x2, y2, whole_line() end

  -- Above and below.
  if v1 ~= 0 then
    local y = v1 < 0 and 0 or bottom
    x1 = along(y, y1, x1, y2, x2)
    y1 = y
    h1 = beyond_x(x1, right)
    v1 = 0
  end
  if v2 ~= 0 then
    local y = v2 < 0 and 0 or bottom
    x2 = x2 + whole((y - y2) * (x2 - x1) / (y2 - y1))
    y2 = y
    h2 = beyond_x(x2, right)
    v2 = 0
  end
  if apart() or whole_line() then return x1, y1, x2, y2, whole_line() end

  -- Left and right.
  if h1 ~= 0 then
    local x = h1 < 0 and 0 or right
    y1 = along(x, x1, y1, x2, y2)
    x1 = x
  end
  if h2 ~= 0 then
    local x = h2 < 0 and 0 or right
    y2 = y2 + whole((x - x2) * (y2 - y1) / (x2 - x1))
    x2 = x
  end
  return x1, y1, x2, y2, true
end

-- Bresenham's line between two pixels of the image, from left to right.
local function line(x1, y1, x2, y2, width, out, value)
  if x2 < x1 then x1, y1, x2, y2 = x2, y2, x1, y1 end
  -- The long direction is walked; now and then a step to the side is added.
  local dx = x2 - x1
  local dy = math.abs(y2 - y1)
  local down = width
  if y2 < y1 then down = -width end
  local long_step = 1
  local side_step = down
  if dy > dx then
    dx, dy = dy, dx
    long_step, side_step = side_step, long_step
  end
  -- The error decides when.
  local err = dx - 2 * dy
  local at = y1 * width + x1
  for _ = 0, dx do
    out[at] = value
    if err < 0 then
      at = at + side_step
      err = err + 2 * dx
    end
    at = at + long_step
    err = err - 2 * dy
  end
end

-- ---- edges ----
-- Draws the boundary. Returns its edges that are not level: {y0, y1, x, dx}, from the upper end, x
-- and its change from row to row in 1 / ONE pixels.
local function boundary(points, width, height, out, value)
  local edges = {}
  local n = #points
  local xa = coordinate(points[n][1], "x", n)
  local ya = coordinate(points[n][2], "y", n)
  for i = 1, n do
    local xb = coordinate(points[i][1], "x", i)
    local yb = coordinate(points[i][2], "y", i)
    local x1, y1, x2, y2, is_seen = clip(width, height, xa, ya, xb, yb)
    if is_seen then line(x1, y1, x2, y2, width, out, value) end
    if ya ~= yb then
      -- The slope is that of the visible part, unless this is level.
      if y1 == y2 then
        y1 = ya
        y2 = yb
      end
      local dx = whole((x2 - x1) * ONE / (y2 - y1))
      local edge = { y0 = ya, y1 = yb, x = x1 * ONE + (ya - y1) * dx, dx = dx }
      if ya > yb then edge = { y0 = yb, y1 = ya, x = x2 * ONE + (yb - y2) * dx, dx = dx } end
      edges[#edges + 1] = edge
    end
    xa = xb
    ya = yb
  end
  return edges
end

-- Fills the row y between each odd crossing of these edges and the next one.
local function fill_row(edges, y, width, out, value)
  local crossings = {}
  for i, edge in ipairs(edges) do crossings[i] = edge.x + (y - edge.y0) * edge.dx end
  table.sort(crossings)
  for i = 1, #crossings - 1, 2 do
    local first = math.max(0, ceil(crossings[i] / ONE))
    local last = math.min(width - 1, floor(crossings[i + 1] / ONE))
    if first <= last then ffi.fill(out + y * width + first, last - first + 1, value) end
  end
end

-- Fills all rows. The edges of a row are those of the row before that go on, and new ones.
local function fill(edges, width, height, out, value)
  table.sort(edges, function(a, b) return a.y0 < b.y0 end)
  local active = {}
  local bottom = 0
  for _, edge in ipairs(edges) do bottom = math.max(bottom, edge.y1) end
  local added = 0
  for y = math.max(0, edges[1].y0), math.min(height, bottom) - 1 do
    -- Edges that go on, then those that begin.
    local going = {}
    for _, edge in ipairs(active) do
      if y < edge.y1 then going[#going + 1] = edge end
    end
    while added < #edges and edges[added + 1].y0 <= y do
      added = added + 1
      if y < edges[added].y1 then going[#going + 1] = edges[added] end
    end
    active = going
    fill_row(active, y, width, out, value)
  end
end

function M.draw(points, width, height, out, value)
  if #points == 0 then error("a polygon has no points", 0) end
  for i, point in ipairs(points) do
    if type(point) ~= "table" or #point ~= 2 then
      error(("point %d of a polygon is no [x, y]"):format(i), 0)
    end
  end
  local edges = boundary(points, width, height, out, value)
  if #edges > 0 then fill(edges, width, height, out, value) end
end

return M
