-- solution.lua - an entry's masks as the solution of a training row.
--
--   local text, why = solution.make(entry, { several =, size =, no_target =, judge = f | nil })
--       entry: see entries.lua. The text, or nil and why there is none, one of solution.REASONS
--
-- One object     <box>(x0,y0),(x1,y1)</box><points>(x,y),(x,y)</points>
-- several        [{"bbox_2d": [x0, y0, x1, y1], "point_2d": [x, y]}, ...], or [] for no target
--
-- Numbers are whole, in an image of size x size pixels. judge(mask, object) says whether an object
-- stays (filter.lua); object = {box =, points =} in the image's own pixels; mask: u8 [height,
-- width].
-- Objects whose mask has nothing inside are left out.

local points = require "segzero.prepare.points"
local tensor = require "segzero.core.tensor"
local text_of = require("segzero.data.annotations.solution").text

local M = {}

M.REASONS = { nothing = "mean nothing in the image", empty = "have an empty mask",
  filtered = "are below sam2_filter" }

-- The object of a mask, or nil and why not.
local function object_of(mask, judge)
  local shape = mask:shape()
  local data = tensor.data(mask)
  local box = points.box(data, shape[2], shape[1])
  if not box then return nil, "empty" end
  local p, q = points.two(data, shape[2], shape[1], box)
  local object = { box = box, points = { p, q } }
  if judge and not judge(mask, object) then return nil, "filtered" end
  return object
end

-- The objects that stay, and why the last one that does not was left out.
local function objects_of(entry, judge)
  local list = {}
  local reason = "nothing"
  local width, height = entry.size()
  for _, draw in ipairs(entry.masks) do
    local mask = draw(width, height)
    local ok, object, why = pcall(object_of, mask, judge)
    mask:free()
    if not ok then error(object, 0) end
    list[#list + 1] = object
    reason = why or reason
  end
  return list, reason, width, height
end

-- x, y, x, y, ... in the frame of the row's image.
local function scaled(numbers, width, height, size)
  local out = {}
  for i, v in ipairs(numbers) do
    out[i] = points.scaled(v, i % 2 == 1 and width or height, size)
  end
  return out
end

local function in_frame(objects, width, height, size)
  local list = {}
  for i, object in ipairs(objects) do
    list[i] = { bbox = scaled(object.box, width, height, size), points = {} }
    for k, p in ipairs(object.points) do list[i].points[k] = scaled(p, width, height, size) end
  end
  return list
end

function M.make(entry, options)
  if #entry.masks == 0 and not options.no_target then return nil, "nothing" end
  local objects, reason, width, height = objects_of(entry, options.judge)
  if #entry.masks > 0 and #objects == 0 then return nil, reason end
  return text_of(in_frame(objects, width, height, options.size), options.several)
end

return M
