-- objects.lua - an annotation of COCO as an object: its box and a mask that formats/mask.lua reads.
--
--   objects.new(annotation, category_name, where)
--     -> {id =, box = {x0, y0, x1, y1}, mask = value | nil, category = name, crowd = bool}
--   objects.union(list)  -> a mask of all of them, or nil if there is none
--
-- box is the annotation's, in pixels of the image, as it is written (not rounded); corners, not
-- width and height. mask: polygons, run lengths, or a list of run lengths (refclef); nil without a
-- segmentation. A box or a segmentation of another form is an error that starts with `where`.
-- Leaves out: drawing (formats/mask.lua), checks against the image (row_check.lua).

local mask_of = require "segzero.formats.mask"

local M = {}

local function fail(where, what, ...) error(where .. ": " .. what:format(...), 0) end

-- [x, y, width, height] -> corners.
local function box_of(bbox, where)
  if bbox == nil then return nil end
  if type(bbox) ~= "table" or #bbox ~= 4 then fail(where, "bbox is not [x, y, width, height]") end
  for i = 1, 4 do
    if type(bbox[i]) ~= "number" then
      fail(where, "number %d of bbox is a %s", i, type(bbox[i]))
    end
  end
  return { bbox[1], bbox[2], bbox[1] + bbox[3], bbox[2] + bbox[4] }
end

local function mask_value(segmentation, where)
  if type(segmentation) ~= "table" or next(segmentation) == nil then return nil end
  local form, why = mask_of.form(segmentation)
  if not form then fail(where, "segmentation is %s", why) end
  return segmentation
end

function M.new(annotation, category, where)
  return {
    id = annotation.id, category = category, crowd = annotation.iscrowd == 1,
    box = box_of(annotation.bbox, where), mask = mask_value(annotation.segmentation, where),
  }
end

function M.union(list)
  local parts = {}
  for _, object in ipairs(list) do
    if object.mask then parts[#parts + 1] = object.mask end
  end
  if #parts == 0 then return nil end
  if #parts == 1 then return parts[1] end
  return { union = parts }
end

return M
