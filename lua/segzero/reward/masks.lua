-- masks.lua - masks for rewards: row.segment(answer) is SAM2's mask of a parsed answer, row.mask()
-- the true one.
--
--   masks.lend(segmenter, row, expected, true_answer)
--                                          before the rewards of a row; expected: the parsed
--                                          answers to come; true_answer: nil, or one in the image's
--                                          pixels
--   row.segment(found)                     -> u8 [height, width]. found is in the frame of answers,
--                                          as formats/answer.lua parses it. The mask belongs to the
--                                          row: copy it to keep it
--   masks.iou(row, found)                  intersection over union of the answer's mask and the
--                                          true one
--   masks.true_iou(row)                    the same for true_answer
--   masks.take_back(row)                   frees the masks and removes row.segment
--
-- The image is embedded once, at the first call, and that call decodes all expected answers
-- together. While masks are lent row.mask() still returns a tensor that the caller frees, but reads
-- its file only once. Equal answers share a mask. Leaves out: masks of several images in a row.

local coordinates = require "segzero.data.coordinates"
local guard = require "segzero.reward.guard"
local metrics = require "segzero.evaluation.metrics"
local segmenter_of = require "segzero.inference.segmenter"

local M = {}

-- The numbers of an answer as text.
local function key_of(found)
  local parts = {}
  local function add(object)
    for _, v in ipairs(object.bbox) do parts[#parts + 1] = ("%.17g"):format(v) end
    for _, point in ipairs(object.points or { object.point }) do
      parts[#parts + 1] = ("%.17g %.17g"):format(point[1], point[2])
    end
    parts[#parts + 1] = ";"
  end
  if found.bbox then
    add(found)
  else
    for _, object in ipairs(found) do add(object) end
  end
  return table.concat(parts, " ")
end

-- Decodes the masks of the answers that have none yet. answers: in the image's pixels.
local function decode(lent, answers)
  local place = {}          -- key -> its number in `list`
  local list = {}
  for _, found in ipairs(answers) do
    local key = key_of(found)
    if not lent.masks[key] and not place[key] then
      list[#list + 1] = found
      place[key] = #list
    end
  end
  lent.features = lent.features or lent.segmenter:embed(lent.row.image)
  local results = lent.segmenter:masks(lent.features, list)
  for key, i in pairs(place) do lent.masks[key] = results[i].mask end
end

-- The mask of an answer in the image's pixels.
local function mask_of(lent, found)
  local key = key_of(found)
  if not lent.masks[key] then
    local answers = { found }
    for _, other in ipairs(lent.expected) do
      answers[#answers + 1] = coordinates.to_image(lent.row, other)
    end
    answers[#answers + 1] = lent.true_answer
    guard.pause(decode, lent, answers)          -- SAM2's time is not the reward's
  end
  return lent.masks[key]
end

function M.lend(segmenter, row, expected, true_answer)
  local lent = { masks = {}, read = row.mask, row = row, segmenter = segmenter,
    expected = expected, true_answer = true_answer }
  row.lent = lent

  function row.segment(found)
    if type(found) ~= "table" then
      error("row.segment takes a parsed answer, got " .. type(found), 2)
    end
    return mask_of(lent, coordinates.to_image(row, found))
  end

  if row.mask then
    function row.mask()
      lent.truth = lent.truth or lent.read()
      return lent.truth:clone()
    end
  end
end

function M.take_back(row)
  local lent = row.lent
  if not lent then return end
  for _, mask in pairs(lent.masks) do mask:free() end
  if lent.truth then lent.truth:free() end
  if lent.features then lent.features:free() end
  row.segment = nil
  row.mask = lent.read
  row.lent = nil
end

-- The IoU of a mask and the true one; 1 if both are empty.
local function iou(row, mask)
  local truth = row.mask()
  local intersection, union = segmenter_of.compare(mask, truth)
  truth:free()
  if union == 0 then return 1 end
  return metrics.iou { intersection = intersection, union = union }
end

function M.iou(row, found) return iou(row, row.segment(found)) end

function M.true_iou(row) return iou(row, mask_of(row.lent, row.lent.true_answer)) end

return M
