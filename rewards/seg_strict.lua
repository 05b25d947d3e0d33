-- seg_strict.lua - Seg-Zero's strict single-object reward (compute_score: seg_strict), 0 to 5: the
-- answer's keys are exactly "bbox", "points_1" and "points_2", lists of 4, 2 and 2.
--
--   local reward = require "rewards.seg_strict"
--   local score, parts = reward(response_text, ground_truth, sample)
--
-- parts: thinking_format, segmentation_format, iou, points, box_l1, each 0 or 1. sample may be nil;
-- sample.frame is the frame that the coordinates of both texts count in: the side of a square, or
-- {width =, height =} (840 x 840). The terms are in seg_terms.lua.

local terms = require "rewards.seg_terms"

local function select(object)
  local map = object.map
  local points_ok = terms.is_list(map.points_1, 2) and terms.is_list(map.points_2, 2)
  local format_ok = points_ok and terms.is_list(map.bbox, 4)
  return format_ok, map.bbox, map.points_1, map.points_2
end

return function(response_text, ground_truth, sample)
  -- Not a tail call, which would drop this frame: compute's errors count frames to blame the
  -- caller.
  local score, parts = terms.compute(response_text, ground_truth, sample, select)
  return score, parts
end
