-- visual_results.lua - an image and a text for each answered row, as
-- evaluation_visionreasoner_visualization.py writes them.
--
--   local write = visual_results.writer(folder)      makes the folder
--   write(row, record, mask)         folder/ANN_ID.png and folder/ANN_ID.txt; record: of judge.lua,
--                                    mask: u8 [height, width] or nil
--
-- The image shows the original and, to its right, the mask, boxes and points, with question,
-- thinking and answer; the text has the IoU and the thinking. Rows whose answer cannot be read have
-- neither. Of two rows with one ann_id the second gets -2, or the next number that is free. Leaves
-- out: the true masks (gallery.lua).

local draw = require "segzero.tools.draw"
local files = require "segzero.core.files"

local M = {}

local value_or = require("segzero.evaluation.fields").value_or

-- The answer as tools/draw.lua takes it; nil if there is none.
local function answer_of(record)
  local boxes = value_or(record.bbox, nil)
  if not boxes then
    if value_or(record.found_objects, nil) == 0 then return {} end
    return nil
  end
  local points = value_or(record.points, {})
  if type(boxes[1]) == "number" then return { bbox = boxes, points = points } end
  local list = {}
  for i, box in ipairs(boxes) do list[i] = { bbox = box, point = points[i] } end
  return list
end

-- A file's name that no other row has: the ann_id, or with -2, -3, ... behind it.
local function name_of(record, taken)
  local base = tostring(record.ann_id):gsub("[/%c]", "_"):gsub("^%.", "_")
  local name = base
  local n = 1
  while taken[name] do
    n = n + 1
    name = ("%s-%d"):format(base, n)
  end
  taken[name] = true
  return name
end

local function facts_of(record)
  local iou = value_or(record.iou, nil)
  return iou and ("IoU %.3f"):format(iou)
end

function M.writer(folder)
  files.make_dir(folder)
  local taken = {}
  return function(row, record, mask)
    local found = answer_of(record)
    if not found or not row.image then return end
    local path = folder .. "/" .. name_of(record, taken)
    local figure = draw.panels(row.image, found, { mask = mask, question = row.problem,
      text = value_or(record.text, nil), facts = facts_of(record) })
    figure:save(path .. ".png")
    figure:free()
    files.write(path .. ".txt", ("%s\n%s"):format(tostring(value_or(record.iou, "none")),
      value_or(record.think, "")))
  end
end

return M
