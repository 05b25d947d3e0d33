-- seg_strict.lua - Seg-Zero's strict single-object reward (compute_score: seg_strict), 0 to 5: the
-- answer's keys are exactly "bbox", "points_1" and "points_2", lists of 4, 2 and 2.
--
--   local reward = require "rewards.seg_strict"
--   local score, parts, why = reward(response_text, ground_truth, sample)
--
-- parts: thinking_format, segmentation_format, iou, points, box_l1, each 0 or 1. sample may be nil;
-- sample.frame is the frame that the coordinates of both texts count in: the side of a square, or
-- {width =, height =} (840 x 840). why(part) says why a part is 0 (reasons.lua). The terms are in
-- seg_terms.lua.

local reasons = require "rewards.reasons"
local terms = require "rewards.seg_terms"

local function select(object)
  local map = object.map
  local points_ok = terms.is_list(map.points_1, 2) and terms.is_list(map.points_2, 2)
  local format_ok = points_ok and terms.is_list(map.bbox, 4)
  return format_ok, map.bbox, map.points_1, map.points_2
end

local READING = { select = select, asked = "bbox, points_1 and points_2" }

return function(response_text, ground_truth, sample)
  local score, parts = terms.compute(response_text, ground_truth, sample, select)
  return score, parts, reasons.one(response_text, ground_truth, sample, READING)
end
