-- judge.lua - judges one evaluated row: the answer's boxes and points, its mask by SAM2, and how
-- well both fit.
--
--   local record, mask, objects = judge.row(entry, options)      entry: of evaluator.lua
--
-- options:
--   frames      of frame.settings; a row that a model has seen knows its frames already
--   several     true: VisionReasoner's lists of objects
--   oracle      true: the true boxes and points instead of an answer
--   masks       whether the data has masks to compare with; segmenter: segmenter.new(sam), if so
--   box_iou     f(a, b): IoU of two boxes, as Seg-Zero computes it
-- record: index, id, problem, text, think, bbox, points (several: lists of boxes and of points),
-- true_objects, found_objects and matched (several: numbers of objects, and of boxes that fit one to
-- one), score (SAM2's own), intersection, union, iou (pixels), box_iou, box_hit (over 0.5), failure,
-- failure_kind. With several, a rightly empty list has iou 1. A missing value is cjson.null. failure_kind is
--   "answer"    the text cannot be read
--   "sam2"      SAM2 gave no mask
--   "iou"       the masks cannot be compared
--   "image"     the row could not be read, or the policy failed on it
-- mask: u8 [height, width] in the image's pixels, freed by the caller, or nil. objects: the true ones
-- in the image's pixels, or nil. A bad row raises nothing. Leaves out: averages (metrics.lua),
-- drawing.

local cjson = require "cjson"
local answers = require "segzero.formats.answer"
local assignment = require "segzero.core.assignment"
local coordinates = require "segzero.data.coordinates"
local evaluator = require "segzero.evaluation.evaluator"
local segmenter_of = require "segzero.inference.segmenter"
local truth = require "segzero.data.truth"

local M = {}

local null = cjson.null
local reason = evaluator.reason

local FIELDS = {
  "id", "problem", "text", "think", "bbox", "points", "score", "intersection", "union", "iou",
  "box_iou", "failure", "failure_kind",
}
local SEVERAL_FIELDS = { "true_objects", "found_objects", "matched" }

local BOX_HIT = 0.5

-- ---- boxes ----
local function area(box) return (box[3] - box[1]) * (box[4] - box[2]) end

local function overlap(a, b)
  local width = math.min(a[3], b[3]) - math.max(a[1], b[1])
  local height = math.min(a[4], b[4]) - math.max(a[2], b[2])
  return math.max(0, width) * math.max(0, height)
end

-- VisionReasoner's box IoU: a box reaches from corner to corner, without the last pixels.
local function exclusive_iou(a, b)
  local inter = overlap(a, b)
  local union = area(a) + area(b) - inter
  return union > 0 and inter / union or 0
end

-- The best overlap of an answered box with a true one. box_iou: how two boxes compare.
local function best_box_iou(list, objects, box_iou)
  local best = 0
  for _, found in ipairs(list) do
    for _, object in ipairs(objects) do best = math.max(best, box_iou(found.bbox, object.bbox)) end
  end
  return best
end

-- How many answered boxes overlap a true one by more than half, matched one to one.
local function matches(list, objects)
  local costs = {}
  for i, found in ipairs(list) do
    costs[i] = {}
    for j, object in ipairs(objects) do
      costs[i][j] = 0
      if exclusive_iou(found.bbox, object.bbox) > BOX_HIT then costs[i][j] = -1 end
    end
  end
  local _, total = assignment.solve(costs, #list, #objects)
  return -total
end

-- ---- the answer ----
-- An answer in the image's own pixels, or nil and why it cannot be read.
local function read_answer(text, row, options)
  local parse = answers.parse
  if options.several then parse = answers.parse_list end
  local found, why = parse(text)
  if not found then return nil, why end
  return coordinates.to_image(row, found)
end

-- The values of a key of all objects; null for none, since JSON would write an empty list as an
-- object.
local function column(list, key)
  local out = {}
  for i, object in ipairs(list) do out[i] = object[key] end
  if #out == 0 then return null end
  return out
end

local function fail(record, kind, why)
  if record.failure ~= null then return end
  record.failure_kind = kind
  record.failure = why
end

local function find_answer(record, entry, objects, options)
  if options.oracle and objects then
    local ok, found = pcall(truth.as_answer, objects, options.several)
    if ok then return found end
    fail(record, "image", reason(found))
    return nil
  end
  if not entry.answer then return nil end
  local found, why = read_answer(entry.answer.text, entry.row, options)
  if not found then fail(record, "answer", why) end
  return found
end

local function write_answer(record, found, objects, options)
  record.think = found.think or null
  if options.several then
    record.bbox = column(found, "bbox")
    record.points = column(found, "point")
  else
    record.bbox = found.bbox
    if #found.points > 0 then record.points = found.points end
  end
  if not objects then return end
  if options.several then
    record.box_iou = best_box_iou(found, objects, exclusive_iou)
    record.found_objects = #found
    record.matched = matches(found, objects)
  else
    record.box_iou = best_box_iou({ found }, objects, options.box_iou)
  end
  record.box_hit = record.box_iou > BOX_HIT
end

-- ---- the mask ----
local function decode(segmenter, img, found)
  local features = segmenter:embed(img)
  local ok, list = pcall(segmenter.masks, segmenter, features, { found })
  features:free()
  if not ok then error(list, 0) end
  return list[1]
end

-- Compares the answer's mask with the true one; returns the answer's mask, or nil.
local function compare_masks(record, row, found, true_mask, options)
  local ok, result = pcall(decode, options.segmenter, row.image, found)
  if not ok then
    fail(record, "sam2", reason(result))
    return nil
  end
  if result.score == result.score then record.score = result.score end      -- JSON has no NaN
  local compared, intersection, union = pcall(segmenter_of.compare, result.mask, true_mask)
  if not compared then
    fail(record, "iou", reason(intersection))
  elseif union == 0 and options.several and #found == 0 then
    record.iou = 1
  elseif union == 0 then
    fail(record, "iou", "the mask and the true mask are both empty")
  else
    record.intersection = intersection
    record.union = union
    record.iou = intersection / union
  end
  return result.mask
end

-- Returns the true mask, or nil and why there is none. Sets the record's union to the true area,
-- which a failed row keeps.
local function read_true_mask(record, row)
  local ok, mask = pcall(row.mask)
  if not ok then return nil, reason(mask) end
  record.union = segmenter_of.compare(mask, mask)
  return mask
end

-- ---- one row ----
local function new_record(entry, options)
  local record = { index = entry.index, box_hit = false }
  for _, field in ipairs(FIELDS) do record[field] = null end
  if options.several then
    for _, field in ipairs(SEVERAL_FIELDS) do record[field] = null end
  end
  record.id = entry.row.id or null
  record.problem = entry.row.problem or null
  if entry.answer then record.text = entry.answer.text or null end
  if options.masks then
    record.intersection = 0
    record.union = 0
    record.iou = 0
  end
  if entry.failure then fail(record, "image", entry.failure) end
  return record
end

function M.row(entry, options)
  local row = entry.row
  local record = new_record(entry, options)
  if not row.image then return record end
  coordinates.locate(row, options.frames)

  -- The truth: the mask and the objects.
  local true_mask, mask_failure
  if options.masks then true_mask, mask_failure = read_true_mask(record, row) end
  local ok, objects = pcall(truth.objects, row, true_mask)
  if not ok then
    fail(record, "image", reason(objects))
    objects = nil
  end
  if options.several and objects then record.true_objects = #objects end

  -- The answer.
  local found = find_answer(record, entry, objects, options)
  if found then write_answer(record, found, objects, options) end

  -- The comparison of the masks.
  local mask
  if mask_failure then
    fail(record, "iou", mask_failure)
  elseif found and options.masks and record.failure == null then
    mask = compare_masks(record, row, found, true_mask, options)
  end
  if true_mask then true_mask:free() end
  return record, mask, objects
end

return M
