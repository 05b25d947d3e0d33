-- seg_terms.lua - the five 0/1 terms that Seg-Zero's single-object rewards share.
--
-- seg_strict.lua and seg.lua differ only in which keys of the answer they read. An answer is
--   <think>...</think><answer>{"bbox": [10,20,110,220], "points_1": [40,60], "points_2": [80,160]}
--   </answer>           without the line break
-- and a ground truth is <box>(10,20),(110,220)</box><points>(40,60),(80,160)</points>, in pixels.
--
-- The originals are Python that runs each term in its own try. Whatever raises there (a string
-- where a number should be, int() of NaN, a missing key) is a 0 here, found by looking at types
-- first. Numbers are doubles where Python has exact integers: the terms agree while the ground
-- truth stays below 2^25, since an answer that is too large for a double to hold exactly is then
-- too far away to score.
-- Leaves out: several objects (vision_reasoner.lua).

local answer_object = require "segzero.formats.answer_object"
local coordinates = require "segzero.data.coordinates"
local frame = require "segzero.data.frame"
local geometry = require "rewards.geometry"
local pyjson = require "segzero.formats.pyjson"
local pytext = require "segzero.formats.pytext"
local truth = require "segzero.data.truth"

local M = {}

local find = string.find
local sub = string.sub

-- Side in pixels of the square that Seg-Zero's answers count in, and the thresholds at that side.
M.FRAME = frame.SEG_ZERO_SIDE
M.MIN_IOU = 0.5
M.MAX_BOX_L1 = 10
M.MAX_POINT_DISTANCE = 100

-- True when the whole text is <think>...</think>, white space, <answer>...</answer>. The dots match
-- newlines and further tags, so it need not be the first </think> that <answer> follows.
function M.has_thinking_format(text)
  if sub(text, 1, 7) ~= "<think>" or sub(text, -9) ~= "</answer>" then return false end
  local i = 8
  while true do
    local _, stop = find(text, "</think>", i, true)
    if not stop then return false end
    local open = pytext.skip_space(text, stop + 1)
    -- The text ends with the closing tag, which cannot overlap the opening one.
    if sub(text, open, open + 7) == "<answer>" then return true end
    i = stop + 1
  end
end

M.read_object = answer_object.read

-- Ground truth -> box {x1, y1, x2, y2} or nil, {{x, y}, {x, y}} or nil.
M.read_truth = truth.read

M.length = pyjson.length
M.is_list = answer_object.is_list
M.to_box = answer_object.to_box
M.to_point = answer_object.to_point

local function one(condition)
  if condition then return 1 end
  return 0
end

-- ---- distances in another frame than 840 x 840 ----
-- In a square only the thresholds scale; elsewhere x and y scale by themselves, so the coordinates
-- are stretched to 840 x 840.
local function same(values) return values end

local function space_of(f)
  local side = frame.side(f)
  if side then
    return { scale = side / M.FRAME, stretch = same, original = side == M.FRAME }
  end
  return { scale = 1, original = false,
    stretch = function(values) return frame.stretched(values, f, frame.SEG_ZERO) end }
end

-- Sets the terms of the box: its overlap with the true one, and how far its sides are off.
local function judge_box(parts, box, true_box, space)
  if not box or not true_box then return end
  parts.iou = one(geometry.box_iou(box, true_box) > M.MIN_IOU)
  local off = geometry.box_l1(space.stretch(box), space.stretch(true_box))
  parts.box_l1 = one(off < M.MAX_BOX_L1 * space.scale)
end

-- Sets the term of the points: both are in the answered box, and near the true ones.
local function judge_points(parts, box, p1, p2, true_points, space)
  if not (box and p1 and p2 and true_points) then return end
  if not geometry.point_in_box(p1, box) or not geometry.point_in_box(p2, box) then return end
  local stretch = space.stretch
  local distance = geometry.pair_distance(stretch(p1), stretch(p2), stretch(true_points[1]),
    stretch(true_points[2]))
  parts.points = one(distance < M.MAX_POINT_DISTANCE * space.scale)
end

-- Checks a reward's arguments. -> {scale = of distances, stretch = f(values), original = whether
-- answers count in 840 x 840}. Level as for error().
function M.space(text, ground_truth, sample, level)
  if type(text) ~= "string" then
    error("response_text must be a string, got " .. type(text), level + 1)
  end
  if type(ground_truth) ~= "string" then
    error("ground_truth must be a string, got " .. type(ground_truth), level + 1)
  end
  local f = frame.SEG_ZERO
  if sample and (sample.answer_frame or sample.frame) then
    f = coordinates.answer_frame(sample)
  end
  if not f then
    error("sample.frame must be a positive number of pixels or {width =, height =}, got "
      .. tostring(sample.frame), level + 1)
  end
  return space_of(f)
end

-- The score, 0 to 5, and its parts. select(object) returns whether the answer has the reward's
-- format, and the raw values of the box and the two points (nil where there is none). The frame of
-- answers, sample.answer_frame or sample.frame, scales the two distances that are in pixels. Errors
-- blame the caller of the reward.
function M.compute(text, ground_truth, sample, select)
  local space = M.space(text, ground_truth, sample, 3)

  local parts = { thinking_format = 0, segmentation_format = 0, iou = 0, points = 0, box_l1 = 0 }
  parts.thinking_format = one(M.has_thinking_format(text))
  local object = M.read_object(text)
  if object then
    local format_ok, bbox, point_1, point_2 = select(object)
    local box = M.to_box(bbox)
    local true_box, true_points = M.read_truth(ground_truth)
    parts.segmentation_format = one(format_ok)
    judge_box(parts, box, true_box, space)
    judge_points(parts, box, M.to_point(point_1), M.to_point(point_2), true_points, space)
  end
  local score = parts.thinking_format + parts.segmentation_format + parts.iou + parts.points
  return score + parts.box_l1, parts
end

return M
