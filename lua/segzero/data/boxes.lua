-- boxes.lua - areas and overlaps of boxes {x0, y0, x1, y1} that reach from corner to corner,
-- without the last pixels, as VisionReasoner counts them.
--
--   boxes.area(box)     boxes.iou(a, b) -> 0 to 1
--
-- Leaves out: Seg-Zero's boxes with their last pixels (rewards/geometry.lua).

local M = {}

function M.area(box) return (box[3] - box[1]) * (box[4] - box[2]) end

local function overlap(a, b)
  local width = math.min(a[3], b[3]) - math.max(a[1], b[1])
  local height = math.min(a[4], b[4]) - math.max(a[2], b[2])
  return math.max(0, width) * math.max(0, height)
end

function M.iou(a, b)
  local inter = overlap(a, b)
  local union = M.area(a) + M.area(b) - inter
  return union > 0 and inter / union or 0
end

return M
