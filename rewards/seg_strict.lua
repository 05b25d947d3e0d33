-- Seg-Zero's strict single-object reward (compute_score: seg_strict), 0 to 5: the answer's keys are exactly
-- "bbox", "points_1" and "points_2", lists of 4, 2 and 2.
--
--   local reward = require "rewards.seg_strict"
--   local score, parts = reward(response_text, ground_truth, sample)
--
-- parts: thinking_format, segmentation_format, iou, points, box_l1, each 0 or 1. sample may be nil; sample.frame is the side
-- in pixels of the square that the coordinates count in (840). Terms and formats: seg_terms.lua.

local terms = require "rewards.seg_terms"

local function select(object)
  local bbox, p1, p2 = object.map.bbox, object.map.points_1, object.map.points_2
  return terms.is_list(bbox, 4) and terms.is_list(p1, 2) and terms.is_list(p2, 2), bbox, p1, p2
end

return function(response_text, ground_truth, sample)
  -- No tail call: it would drop this frame, and compute's errors count on it to blame the caller.
  local score, parts = terms.compute(response_text, ground_truth, sample, select)
  return score, parts
end
