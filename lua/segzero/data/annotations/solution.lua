-- solution.lua - the solution of a row made of objects, as Seg-Zero or VisionReasoner writes it.
--
--   solution.text(objects, several)    objects: {{ bbox = {x0, y0, x1, y1}, points = {{x, y}, ...}
--                                      }, ...} in whole pixels
--       several = false and one object: <box>(x,y),(x,y)</box><points>(x,y),(x,y)</points>
--       else: [{"bbox_2d": [x0, y0, x1, y1], "point_2d": [x, y]}, ...], [] for none
--   solution.stated(entry)             the objects as their boxes say, whole pixels around them;
--                                      the points are the boxes' centres. For the checks of all
--                                      rows
--   solution.drawn(entry, width, height)    the objects as their masks say: the box from the first
--                                      to the last pixel, and the points of prepare/points.lua. An
--                                      object without a mask, or whose mask is empty or cannot be
--                                      drawn, is as its box says
--
-- entry: of annotations. Coordinates are in the image's own pixels. Leaves out: reading solutions
-- (data/truth.lua).

local core = require "segzero.core.ffi"
local mask_of = require "segzero.formats.mask"
local points = require "segzero.prepare.points"
local tensor = require "segzero.core.tensor"

local M = {}

local NEAR = 1                  -- pixels that a stated box may leave the image by

function M.text(objects, several)
  if not several and #objects == 1 then
    local b = objects[1].bbox
    local p = objects[1].points[1]
    local q = objects[1].points[2] or p
    return ("<box>(%d,%d),(%d,%d)</box><points>(%d,%d),(%d,%d)</points>"):format(b[1], b[2], b[3],
      b[4], p[1], p[2], q[1], q[2])
  end
  local parts = {}
  for i, object in ipairs(objects) do
    local b = object.bbox
    local p = object.points[1]
    local form = '{"bbox_2d": [%d, %d, %d, %d], "point_2d": [%d, %d]}'
    parts[i] = form:format(b[1], b[2], b[3], b[4], p[1], p[2])
  end
  return "[" .. table.concat(parts, ", ") .. "]"
end

-- A coordinate that leaves the image by less than a pixel is at its edge.
local function at_edge(v, side)
  if v < 0 and v > -NEAR then return 0 end
  if side and v > side and v < side + NEAR then return side end
  return v
end

local function stated(object, width, height)
  local b = object.box
  if not b then return nil end
  local x0 = math.floor(at_edge(b[1], width))
  local y0 = math.floor(at_edge(b[2], height))
  local x1 = math.ceil(at_edge(b[3], width))
  local y1 = math.ceil(at_edge(b[4], height))
  local centre = { math.floor((x0 + x1) / 2), math.floor((y0 + y1) / 2) }
  return { bbox = { x0, y0, x1, y1 }, points = { centre, centre } }
end

function M.stated(entry)
  local list = {}
  for _, object in ipairs(entry.objects) do
    list[#list + 1] = stated(object, entry.width, entry.height)
  end
  return list
end

local function drawn(object, width, height)
  if not object.mask then return nil end
  local ok, t = pcall(mask_of.read, object.mask, { width = width, height = height, empty = true })
  if not ok and core.is_interrupt(t) then error(t, 0) end
  if not ok then return nil end
  local pixels = tensor.data(t)
  local box = points.box(pixels, width, height)
  local found
  if box then
    local p, q = points.two(pixels, width, height, box)
    found = { bbox = box, points = { p, q } }
  end
  t:free()
  return found
end

function M.drawn(entry, width, height)
  local list = {}
  for _, object in ipairs(entry.objects) do
    list[#list + 1] = drawn(object, width, height) or stated(object, width, height)
  end
  return list
end

return M
