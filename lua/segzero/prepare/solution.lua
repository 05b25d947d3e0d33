-- solution.lua - an entry's masks as the solution of a training row.
--
--   local row, dropped = solution.make(entry, { several =, size =, no_target =, judge = f | nil })
--       entry: see entries.lua
--       row: {id =, problem =, solution =}, or nil if no part of the entry stays
--       dropped: {reason -> how many parts}; solution.REASONS has a text for each reason
--
-- One object     <box>(x0,y0),(x1,y1)</box><points>(x,y),(x,y)</points>
-- several        [{"bbox_2d": [x0, y0, x1, y1], "point_2d": [x, y]}, ...], or [] for no target
--
-- Numbers are whole, in an image of size x size pixels. A part stays if all its objects do: its
-- question is about all of them. judge(mask, object) says whether one does (filter.lua); object =
-- {box =, points =} in the image's own pixels; mask: u8 [height, width].

local points = require "segzero.prepare.points"
local tensor = require "segzero.core.tensor"
local text_of = require("segzero.data.annotations.solution").text

local M = {}

M.REASONS = {
  nothing = "about nothing in the image",
  empty = "about an object whose mask is empty or missing",
  filtered = "about an object below sam2_filter",
}

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

-- The objects of a part, or nil and why it does not stay.
local function objects_of(part, width, height, options)
  local list = {}
  if #part.masks == 0 and not options.no_target then return nil, "nothing" end
  for i, draw in ipairs(part.masks) do
    local mask = draw(width, height)
    local ok, object, why = pcall(object_of, mask, options.judge)
    mask:free()
    if not ok then error(object, 0) end
    if not object then return nil, why end
    list[i] = object
  end
  return list
end

-- ---- the frame of the row's image ----
-- x, y, x, y, ...
local function scaled(numbers, width, height, size)
  local out = {}
  for i, v in ipairs(numbers) do
    out[i] = points.scaled(v, i % 2 == 1 and width or height, size)
  end
  return out
end

local function in_frame(object, width, height, size)
  local list = {}
  for k, p in ipairs(object.points) do list[k] = scaled(p, width, height, size) end
  return { bbox = scaled(object.box, width, height, size), points = list }
end

function M.make(entry, options)
  local kept = {}
  local objects = {}
  local dropped = {}
  local width, height = entry.size()
  for _, part in ipairs(entry.parts) do
    local list, why = objects_of(part, width, height, options)
    if list then
      kept[#kept + 1] = part
      for _, object in ipairs(list) do
        objects[#objects + 1] = in_frame(object, width, height, options.size)
      end
    else
      dropped[why] = (dropped[why] or 0) + 1
    end
  end
  if #kept == 0 then return nil, dropped end
  local row = { id = entry.id(kept), problem = entry.problem(kept),
    solution = text_of(objects, options.several) }
  return row, dropped
end

return M
