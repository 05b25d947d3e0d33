-- Masks as the reward (compute_score: mask_iou), 0 to 5: the answer's box and points go to SAM2, and its mask's overlap with the
-- true mask counts.
--
--   local reward = require "rewards.mask_iou"
--   local score, parts = reward(response_text, ground_truth, sample)
--
-- parts: thinking_format and segmentation_format (0 or 1, as in seg_strict.lua) and mask_iou (0 to 1, pixels of the picture);
-- score = thinking_format + segmentation_format + 3 * mask_iou, so that it runs as far as Seg-Zero's rewards do. The two
-- formats stay in because the mask alone tells nothing until an answer can be read at all; the overlap has no threshold, so in
-- a group the better of two masks always wins. Answers are read as in evaluation (segzero.answer: looser than segmentation_format,
-- thinking required); one that cannot be read has no mask and mask_iou 0, and so has an empty mask.
--
-- Not a function of strings alone: sample.segment(answer) -> mask (the trainer lends it when it has a SAM2 model) and sample.mask()
-- -> the true mask (segzero.data). Leaves out: several objects in an answer.

local answer = require "segzero.formats.answer"
local segment = require "segzero.inference.segmenter"
local strict = require "rewards.seg_strict"

return function(response_text, ground_truth, sample)
  if type(sample) ~= "table" or not sample.segment then
    error("mask_iou needs SAM2: give worker.reward.sam2_path (a folder or a .pt file)", 2)
  end
  if not sample.mask then
    error(("mask_iou: row %s has no mask; the data set needs the column 'mask'"):format(tostring(sample.id)), 2)
  end
  local _, formats = strict(response_text, ground_truth, sample)
  local parts = {thinking_format = formats.thinking_format, segmentation_format = formats.segmentation_format, mask_iou = 0}
  local found = answer.parse(response_text)
  if found then
    local truth = sample.mask()
    local inside, either = segment.compare(sample.segment(found), truth)
    truth:free()
    if either > 0 then parts.mask_iou = inside / either end
  end
  return parts.thinking_format + parts.segmentation_format + 3 * parts.mask_iou, parts
end
