-- reasons.lua - why a part of a reward is 0, in words: the third result of the rewards here.
--
--   local score, parts, why = reward(text, ground_truth, sample)
--   why "iou"      -> "the boxes overlap by 0.31; more than 0.5 is asked"
--
--   reasons.one(text, ground_truth, sample, { select = f, asked = text })     of seg and seg_strict
--   reasons.several(text, ground_truth)                                       of vision_reasoner
--   reasons.masks(why, unread)          of mask_iou; unread: why the answer cannot be read, or nil
--
-- Each returns such a function, which works nothing out before it is called; it returns nil for a
-- part of another name. Without a sample the frame of the coordinates is not known, and distances
-- have no limit in the words. The thresholds are those of seg_terms.lua, which judges; nothing here
-- changes a score. A reward of yours may have a third result, too: such a function, or a table
-- {part = text}.
-- Leaves out: parts between 0 and their best.

local answer = require "segzero.formats.answer"
local coordinates = require "segzero.data.coordinates"
local frame = require "segzero.data.frame"
local geometry = require "rewards.geometry"
local pyjson = require "segzero.formats.pyjson"
local terms = require "rewards.seg_terms"

local M = {}

-- ---- the format ----
local function tag_words(text)
  if text:sub(1, 7) ~= "<think>" then return "the text does not begin with <think>" end
  if text:sub(-9) ~= "</answer>" then return "the text does not end with </answer>" end
  return "the text is not <think>...</think><answer>...</answer>"
end

local function keys_of(object)
  local keys = {}
  for i, key in ipairs(object.keys or {}) do keys[i] = key:sub(1, 40) end
  return table.concat(keys, ", ")
end

local function format_words(object, asked)
  if not object then return "there is no JSON object in the answer" end
  return ("its keys are %s; asked are %s, lists of 4, 2 and 2 numbers"):format(keys_of(object),
    asked)
end

-- ---- boxes and points ----
-- Numbers in 840 x 840 if the frame is known, else as they are.
local function stretched(values, known)
  if not known then return values end
  return frame.stretched(values, known, frame.SEG_ZERO)
end

local function limit_words(known, limit)
  if not known then return "" end
  return ("; less than %d is asked (in a square of 840)"):format(limit)
end

-- Why there is nothing to compare, or nil.
local function missing(found, true_box)
  if not true_box then return "the solution has no box" end
  if not found then return "there is no JSON object in the answer" end
  if not found.box then return "the answer has no box of 4 numbers under the key asked for" end
end

local function iou_words(found, true_box)
  local overlap = geometry.box_iou(found.box, true_box)
  return ("the boxes overlap by %.2f; more than %.1f is asked"):format(overlap, terms.MIN_IOU)
end

local function distance_words(found, true_box, _, known)
  local off = geometry.box_l1(stretched(found.box, known), stretched(true_box, known))
  return ("the sides of the box are %.0f off on average"):format(off)
    .. limit_words(known, terms.MAX_BOX_L1)
end

local function points_words(found, _, true_points, known)
  if not true_points then return "the solution has no two points" end
  if not found[1] or not found[2] then
    return "the answer has no two points under the keys asked for"
  end
  for i = 1, 2 do
    if not geometry.point_in_box(found[i], found.box) then
      return ("point %d is outside the answer's box"):format(i)
    end
  end
  local off = geometry.pair_distance(stretched(found[1], known), stretched(found[2], known),
    stretched(true_points[1], known), stretched(true_points[2], known))
  return ("the points are %.0f off"):format(off) .. limit_words(known, terms.MAX_POINT_DISTANCE)
end

local COMPARISONS = { iou = iou_words, points = points_words, box_l1 = distance_words }

-- ---- one object ----
-- {box =, [1], [2] = points} of an answer, or nil.
local function read_one(object, select)
  if not object then return nil end
  local _, box, point_1, point_2 = select(object)
  return { terms.to_point(point_1), terms.to_point(point_2), box = terms.to_box(box) }
end

function M.one(text, ground_truth, sample, options)
  return function(part)
    if part == "thinking_format" then return tag_words(text) end
    local object = terms.read_object(text)
    if type(object) ~= "table" or object.kind ~= "object" then object = nil end
    if part == "segmentation_format" then return format_words(object, options.asked) end
    local compare = COMPARISONS[part]
    if not compare then return nil end
    local true_box, true_points = terms.read_truth(ground_truth)
    local found = read_one(object, options.select)
    local nothing = missing(found, true_box)
    if nothing then return nothing end
    local known = sample and coordinates.answer_frame(sample)
    return compare(found, true_box, true_points, known)
  end
end

-- ---- several objects ----
local function accuracy_words(list, unread, ground_truth)
  if not list then return "the answer cannot be read: " .. unread end
  local count = pyjson.length((pyjson.decode(ground_truth))) or 0
  if #list == 0 and count == 0 then return "both lists are empty, which earns no accuracy" end
  return ("no object matches: %d answered, %d true"):format(#list, count)
end

function M.several(text, ground_truth)
  return function(part)
    if part == "thinking_format" then return tag_words(text) end
    if part == "non_repeat" then return "the text repeats itself" end
    local list, unread = answer.parse_list(text)
    if part == "segmentation_format" then
      return unread or "no object has bbox_2d of 4 and point_2d of 2 numbers"
    end
    if part == "accuracy" then return accuracy_words(list, unread, ground_truth) end
    return nil
  end
end

-- ---- masks ----
-- unread: why the answer cannot be read, or nil.
function M.masks(format_reasons, unread)
  return function(part)
    if part ~= "mask_iou" then return format_reasons(part) end
    if unread then return "the answer cannot be read: " .. unread end
    return "the mask and the true mask do not overlap"
  end
end

return M
