-- points.lua - the box and the two points of an object's mask, as Seg-Zero's script finds them.
--
--   points.box(mask, width, height)    -> {x0, y0, x1, y1}, corners inside; nil for an empty mask
--   points.two(mask, width, height [, box]) -> {x, y}, {x, y}
--   points.scaled(v, from, to)         -> a coordinate of a side `from` long, rounded in one `to`
--                                      long
--
-- mask: uint8_t * [height, width]; whatever is not 0 is inside. Pixels count from 0.
-- The first point is the centre of the largest inscribed circle: the pixel that is farthest from
-- the background; what is outside of the image is no background. The second is the same among the
-- pixels that are farther from the first point than their median. Of equals the first in scan order
-- wins. Squared distances are whole numbers, so the points equal those of scipy's floats.
-- Leaves out: what Seg-Zero does where two polygons of one object overlap. It leaves these pixels
-- out of box and points; here they are inside.

local ffi = require "ffi"
local distance = require "segzero.data.refshapes.distance"

local M = {}

local floor = math.floor

function M.scaled(v, from, to) return floor(v * (to / from) + 0.5) end

function M.box(mask, width, height)
  local left = width
  local right = -1
  local top
  local bottom
  for y = 0, height - 1 do
    local row = mask + y * width
    local first = 0
    while first < width and row[first] == 0 do first = first + 1 end
    if first < width then
      local last = width - 1
      while row[last] == 0 do last = last - 1 end
      top = top or y
      bottom = y
      left = math.min(left, first)
      right = math.max(right, last)
    end
  end
  if not top then return nil end
  return { left, top, right, bottom }
end

-- ---- distances ----
-- scipy measures a mask without any background from a pixel in front of the first row.
local function without_background(width, height)
  local squared = ffi.new("int32_t[?]", width * height)
  for y = 0, height - 1 do
    for x = 0, width - 1 do squared[y * width + x] = (y + 1) * (y + 1) + x * x end
  end
  return squared
end

local function is_full(mask, width, height)
  for i = 0, width * height - 1 do
    if mask[i] == 0 then return false end
  end
  return true
end

-- The pixels around the box, whose distances are those in the whole image: {x, y, width, height}.
local function part_of(box, width, height)
  local x = math.max(box[1] - 1, 0)
  local y = math.max(box[2] - 1, 0)
  return { x = x, y = y, width = math.min(box[3] + 2, width) - x,
    height = math.min(box[4] + 2, height) - y }
end

-- ---- choosing ----
-- The pixel of the part with the largest squared distance, among those that are farther from
-- (px, py) than `least`, squared.
local function farthest(squared, part, px, py, least)
  local best = 0
  local bx, by
  for y = 0, part.height - 1 do
    for x = 0, part.width - 1 do
      local d = squared[y * part.width + x]
      if d > best and (x - px) * (x - px) + (y - py) * (y - py) > least then
        best = d
        bx = x
        by = y
      end
    end
  end
  return bx, by
end

-- counts[d / scale] of the squared distances d from (px, py) of the pixels inside, where `first` <=
-- d < first + scale * #counts.
local function count_distances(squared, part, px, py, first, scale, counts, n)
  ffi.fill(counts, ffi.sizeof "int32_t" * n)
  for y = 0, part.height - 1 do
    for x = 0, part.width - 1 do
      if squared[y * part.width + x] > 0 then
        local d = (x - px) * (x - px) + (y - py) * (y - py) - first
        local place = floor(d / scale)
        if place >= 0 and place < n then counts[place] = counts[place] + 1 end
      end
    end
  end
end

-- The place where the running sum of counts passes `rank`, and the sum before it.
local function place_of(counts, rank)
  local sum = 0
  local place = 0
  while sum + counts[place] <= rank do
    sum = sum + counts[place]
    place = place + 1
  end
  return place, sum
end

local BINS = 4096

-- The median of these squared distances, of an even number the lower one of the middle two: what is
-- farther than it is farther than their mean. Found in two rounds of counting.
local function median(squared, part, px, py)
  local scale = math.ceil((part.width ^ 2 + part.height ^ 2) / BINS)
  local counts = ffi.new("int32_t[?]", math.max(BINS, scale))
  count_distances(squared, part, px, py, 0, scale, counts, BINS)
  local total = 0
  for i = 0, BINS - 1 do total = total + counts[i] end
  local rank = floor((total - 1) / 2)
  local bin, before = place_of(counts, rank)
  count_distances(squared, part, px, py, bin * scale, 1, counts, scale)
  return bin * scale + place_of(counts, rank - before)
end

function M.two(mask, width, height, box)
  box = box or M.box(mask, width, height)
  if not box then error("the mask is empty: it has no points", 2) end
  local part = part_of(box, width, height)
  local squared
  if part.width == width and part.height == height and is_full(mask, width, height) then
    squared = without_background(width, height)
  else
    squared = distance.squared(mask, width, part.x, part.y, part.width, part.height)
  end

  local px, py = farthest(squared, part, 0, 0, -1)
  local qx, qy = farthest(squared, part, px, py, median(squared, part, px, py))
  -- A single pixel has none that is farther.
  if not qx then qx, qy = px, py end
  return { px + part.x, py + part.y }, { qx + part.x, qy + part.y }
end

return M
