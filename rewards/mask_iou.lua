-- mask_iou.lua - the mask reward (compute_score: mask_iou), 0 to 5: SAM2 turns the answer's box and
-- points into a mask, which is compared with the true mask.
--
--   local reward = require "rewards.mask_iou"
--   local score, parts = reward(response_text, ground_truth, sample)
--
-- parts: thinking_format and segmentation_format (0 or 1, as in seg_strict.lua) and mask_iou (0 to
-- 1, in the image's pixels); score = thinking_format + segmentation_format + 3 * mask_iou, the
-- range of Seg-Zero's rewards. The format terms are included because there is no mask until an
-- answer can be read. The overlap has no threshold, so the better of two masks in a group always
-- wins. Answers are read as in evaluation (formats/answer.lua: looser than segmentation_format,
-- thinking required). An answer that cannot be read, and an empty mask, have mask_iou 0.
--
-- It is not a function of strings alone: sample.segment(answer) gives the answer's mask (the
-- trainer provides it when it has a SAM2 model), sample.mask() the true one.
-- Leaves out: several objects in an answer.

local answer = require "segzero.formats.answer"
local segment = require "segzero.inference.segmenter"
local strict = require "rewards.seg_strict"

return function(response_text, ground_truth, sample)
  if type(sample) ~= "table" or not sample.segment then
    error("mask_iou needs SAM2: give worker.reward.sam2_path (a folder or a .pt file)", 2)
  end
  if not sample.mask then
    local id = tostring(sample.id)
    error(("mask_iou: row %s has no mask; the data set needs the column 'mask'"):format(id), 2)
  end
  local _, formats = strict(response_text, ground_truth, sample)
  local parts = {
    thinking_format = formats.thinking_format, segmentation_format = formats.segmentation_format,
    mask_iou = 0,
  }
  local found = answer.parse(response_text)
  if found then
    local truth = sample.mask()
    local intersection, union = segment.compare(sample.segment(found), truth)
    truth:free()
    if union > 0 then parts.mask_iou = intersection / union end
  end
  return parts.thinking_format + parts.segmentation_format + 3 * parts.mask_iou, parts
end
