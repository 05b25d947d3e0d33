-- why.lua - why a part of the reward is 0, in words, for the parts of segzero's own rewards.
--
--   why.zeros { reward = "seg_strict", text =, solution =, parts =, frame = {width =, height =} }
--     -> {iou = "the boxes overlap by 0.31; more than 0.5 is asked", ...}
--
-- reward: the setting worker.reward.compute_score. frame: what answer and solution count in; nil if
-- it is not known, and then the distances have no limit in the words. A part of another reward, and
-- one that is not 0, has no words. The thresholds are those of rewards/seg_terms.lua, which judges;
-- nothing here changes a score.
-- Leaves out: parts between 0 and their best.

local frame = require "segzero.data.frame"
local geometry = require "rewards.geometry"
local marks = require "segzero.report.marks"
local terms = require "rewards.seg_terms"

local M = {}

-- ---- the format ----
local function tag_words(text)
  if text:sub(1, 7) ~= "<think>" then return "the text does not begin with <think>" end
  if text:sub(-9) ~= "</answer>" then return "the text does not end with </answer>" end
  return "the text is not <think>...</think><answer>...</answer>"
end

local function sorted_keys(object)
  local keys = {}
  for i, key in ipairs(object.keys or {}) do keys[i] = key:sub(1, 40) end
  return table.concat(keys, ", ")
end

local ASKED = {
  seg_strict = "bbox, points_1 and points_2",
  seg = "one with bbox and two with points",
}

local function format_words(reward, text)
  local object = terms.read_object(text)
  if type(object) ~= "table" or object.kind ~= "object" then
    return "there is no JSON object in the answer"
  end
  local shown = sorted_keys(object)
  return ("its keys are %s; asked are %s, lists of 4, 2 and 2 numbers"):format(shown, ASKED[reward])
end

-- ---- boxes and points ----
-- Box and points in 840 x 840 if the frame is known, else as they are.
local function stretched(values, known)
  if not known then return values end
  return frame.stretched(values, known, frame.SEG_ZERO)
end

local function limit_words(known, limit)
  if not known then return "" end
  return ("; less than %d is asked (in a square of 840)"):format(limit)
end

local function box_of(found) return found and found.boxes[1] end

-- Why there is nothing to compare, or nil.
local function missing(found, true_marks)
  if not box_of(true_marks) then return "the solution has no box" end
  if not found then return "there is no JSON object in the answer" end
  if not box_of(found) then return "the answer has no box of 4 numbers under the key asked for" end
end

local function iou_words(found, true_marks)
  local box = box_of(found)
  local true_box = box_of(true_marks)
  local nothing = missing(found, true_marks)
  if nothing then return nothing end
  local overlap = geometry.box_iou(box, true_box)
  return ("the boxes overlap by %.2f; more than %.1f is asked"):format(overlap, terms.MIN_IOU)
end

local function distance_words(found, true_marks, known)
  local box = box_of(found)
  local true_box = box_of(true_marks)
  local nothing = missing(found, true_marks)
  if nothing then return nothing end
  local off = geometry.box_l1(stretched(box, known), stretched(true_box, known))
  return ("the sides of the box are %.0f off on average"):format(off)
    .. limit_words(known, terms.MAX_BOX_L1)
end

local function points_words(found, true_marks, known)
  local box = box_of(found)
  local nothing = missing(found, true_marks)
  if nothing then return nothing end
  if not true_marks.points[2] then return "the solution has no two points" end
  if not found.points[2] then return "the answer has no two points under the keys asked for" end
  for i = 1, 2 do
    if not geometry.point_in_box(found.points[i], box) then
      return ("point %d is outside the answer's box"):format(i)
    end
  end
  local function at(list, i) return stretched(list.points[i], known) end
  local off = geometry.pair_distance(at(found, 1), at(found, 2), at(true_marks, 1),
    at(true_marks, 2))
  return ("the points are %.0f off"):format(off) .. limit_words(known, terms.MAX_POINT_DISTANCE)
end

-- ---- all parts ----
local function single_object(reward, text)
  return {
    thinking_format = function() return tag_words(text) end,
    segmentation_format = function() return format_words(reward, text) end,
    iou = iou_words, points = points_words, box_l1 = distance_words,
  }
end

local function several_objects(text)
  return {
    thinking_format = function() return tag_words(text) end,
    segmentation_format = function(_, _, _, unread)
      return unread or "no object has bbox_2d of 4 and point_2d of 2 numbers"
    end,
    accuracy = function(found, true_marks)
      if not found then return nil end
      if #found.boxes == 0 and #true_marks.boxes == 0 then
        return "both lists are empty, which earns no accuracy"
      end
      return ("no object matches: %d answered, %d true"):format(#found.boxes, #true_marks.boxes)
    end,
    non_repeat = function() return "the text repeats itself" end,
  }
end

local WORDS = { seg_strict = single_object, seg = single_object,
  vision_reasoner = function(_, text) return several_objects(text) end }

function M.zeros(answer)
  local words_of = WORDS[answer.reward]
  if not words_of or type(answer.parts) ~= "table" then return {} end
  local words = words_of(answer.reward, answer.text)
  local true_marks = marks.solution(answer.solution)
  local found, unread
  if answer.reward == "vision_reasoner" then
    found, unread = marks.answer(answer.text, true)
  else
    found = marks.judged(answer.text, answer.reward == "seg_strict")
  end
  local out = {}
  for name, value in pairs(answer.parts) do
    if value == 0 and words[name] then
      local text = words[name](found, true_marks, answer.frame, unread)
      if not text and unread then text = "the answer cannot be read: " .. unread end
      out[name] = text
    end
  end
  return out
end

return M
