-- mask_iou.lua - the mask reward (compute_score: mask_iou), 0 to 5: SAM2 turns the answer's box and
-- points into a mask, which is compared with the true mask.
--
--   local reward = require "rewards.mask_iou"
--   local score, parts, why = reward(response_text, ground_truth, sample)
--
-- parts: thinking_format and segmentation_format (0 or 1, as in seg_strict.lua) and mask_iou (0 to
-- 1, in the image's pixels); score = thinking_format + segmentation_format + 3 * mask_iou, the
-- range of Seg-Zero's rewards. The format terms are included because there is no mask until an
-- answer can be read. The overlap has no threshold, so the better of two masks in a group always
-- wins. Answers are read as in evaluation (formats/answer.lua: looser than segmentation_format,
-- thinking required). An answer that cannot be read has mask_iou 0.
-- Where the ground truth is VisionReasoner's list, so is the answer, and its mask is the union of
-- its objects' masks; segmentation_format is then half of vision_reasoner.lua's, and 1 for a list
-- without objects. An empty mask has mask_iou 1 if the true mask is empty too, else 0.
--
-- It is not a function of strings alone: sample.segment(answer) gives the answer's mask (the
-- trainer provides it when it has a SAM2 model), sample.mask() the true one.
-- Leaves out: one mask for each object.

local answer = require "segzero.formats.answer"
local reasons = require "rewards.reasons"
local segment = require "segzero.inference.segmenter"
local strict = require "rewards.seg_strict"
local truth_of = require "segzero.data.truth"
local vision_reasoner = require "rewards.vision_reasoner"

-- The two formats, why they are 0, and the answer; nil and why if it cannot be read.
local function read_one(text, ground_truth, sample)
  local _, formats, why = strict(text, ground_truth, sample)
  return formats, why, answer.parse(text)
end

local function read_list(text, ground_truth, sample)
  local _, formats, why = vision_reasoner(text, ground_truth, sample)
  local found, unread = answer.parse_list(text)
  formats.segmentation_format = formats.segmentation_format / 2
  if found and #found == 0 then formats.segmentation_format = 1 end
  return formats, why, found, unread
end

local function mask_iou(found, sample)
  local truth = sample.mask()
  local intersection, union = segment.compare(sample.segment(found), truth)
  truth:free()
  if union == 0 then return 1 end
  return intersection / union
end

return function(response_text, ground_truth, sample)
  if type(sample) ~= "table" or not sample.segment then
    error("mask_iou needs SAM2: give worker.reward.sam2_path (a folder or a .pt file)", 2)
  end
  if not sample.mask then
    local id = tostring(sample.id)
    error(("mask_iou: row %s has no mask; the data set needs the column 'mask'"):format(id), 2)
  end
  local read = read_one
  if truth_of.is_list(ground_truth) then read = read_list end
  local formats, why, found, unread = read(response_text, ground_truth, sample)
  local parts = { thinking_format = formats.thinking_format,
    segmentation_format = formats.segmentation_format, mask_iou = 0 }
  if found then parts.mask_iou = mask_iou(found, sample) end
  local score = parts.thinking_format + parts.segmentation_format + 3 * parts.mask_iou
  return score, parts, reasons.masks(why, unread)
end
