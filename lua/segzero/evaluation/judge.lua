-- judge.lua - judges one evaluated row: the answer's boxes and points, its mask by SAM2, and how
-- well both fit.
--
--   local record, mask, objects = judge.row(entry, options)      entry: of evaluator.lua
--
-- options:
--   frames      of frame.settings; a row that a model has seen knows its frames already
--   several     true: VisionReasoner's lists of objects
--   task        of target.lua: in detection and counting without masks a point may be missing
--   ignore      of target.lua
--   oracle      true: the true boxes and points instead of an answer
--   masks       whether the data has masks to compare with; segmenter: segmenter.new(sam), if so
--   box_iou     f(a, b): IoU of two boxes, as Seg-Zero computes it
-- judge.done(options) frees what SAM2 has of the last image, which rows of one image share. record:
-- index, id, image_id, ann_id, category, problem, text, think, bbox, points (several: lists of
-- boxes and of points), true_objects, found_objects and matched (several: numbers of objects, and
-- of boxes that fit one to one), true_boxes and box_scores (detection: lists), box_stated (whether
-- the set states boxes), score (SAM2's own), intersection, union, iou (pixels), box_iou,
-- box_hit (over 0.5), failure, failure_kind. With several, a rightly empty list has iou 1. A
-- missing value is cjson.null. failure_kind is
--   "answer"    the text cannot be read
--   "sam2"      SAM2 gave no mask
--   "iou"       the masks cannot be compared
--   "image"     the row could not be read, or the policy failed on it
-- mask: u8 [height, width] in the image's pixels, freed by the caller, or nil. objects: the true
-- ones in the image's pixels, or nil. A bad row raises nothing. Leaves out: averages (metrics.lua),
-- drawing.

local cjson = require "cjson"
local answers = require "segzero.formats.answer"
local assignment = require "segzero.core.assignment"
local boxes = require "segzero.data.boxes"
local checksum = require "segzero.core.checksum"
local coordinates = require "segzero.data.coordinates"
local evaluator = require "segzero.evaluation.evaluator"
local segmenter_of = require "segzero.inference.segmenter"
local target_of = require "segzero.evaluation.target"
local truth = require "segzero.data.truth"

local M = {}

local null = cjson.null
local reason = evaluator.reason

local FIELDS = {
  "id", "image_id", "ann_id", "category", "problem", "text", "think", "bbox", "points", "score",
  "intersection", "union", "iou", "box_iou", "failure", "failure_kind",
}
local SEVERAL_FIELDS = { "true_objects", "found_objects", "matched" }
local DETECTION_FIELDS = { "true_boxes", "box_scores" }

local BOX_HIT = 0.5

-- ---- boxes ----
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
      if boxes.iou(found.bbox, object.bbox) > BOX_HIT then costs[i][j] = -1 end
    end
  end
  local _, total = assignment.solve(costs, #list, #objects)
  return math.abs(total)
end

-- ---- the answer ----
-- An answer in the image's own pixels, or nil and why it cannot be read.
local function read_answer(text, row, options)
  local parse = answers.parse
  if options.several then parse = answers.parse_list end
  local needs_points = options.masks or options.task == "segmentation"
  if options.several and not needs_points then parse = answers.parse_boxes end
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
    record.found_objects = #found
  else
    record.bbox = found.bbox
    if #found.points > 0 then record.points = found.points end
  end
  if not objects then return end
  if options.several then
    record.box_iou = best_box_iou(found, objects, boxes.iou)
    record.matched = matches(found, objects)
  else
    record.box_iou = best_box_iou({ found }, objects, options.box_iou)
  end
  record.box_hit = record.box_iou > BOX_HIT
end

-- VisionReasoner's score of a box is its share of the image, and 0 where nothing is to be found.
local function write_detection(record, img, found, objects)
  local scores = {}
  for i, one in ipairs(found or {}) do
    scores[i] = 0
    if objects and #objects > 0 then scores[i] = boxes.area(one.bbox) / (img.width * img.height) end
  end
  record.true_boxes = column(objects or {}, "bbox")
  if #scores > 0 then record.box_scores = scores end
end

-- ---- the mask ----
-- SAM2's features of an image, kept until another image comes.
local function features_of(options, img)
  local bytes = img.width * img.height * 3
  local key = ("%d %d %s"):format(img.width, img.height, checksum.bytes(img:pixels(), bytes))
  local last = options.last
  if last and last.key == key then return last.features end
  M.done(options)
  options.last = { key = key, features = options.segmenter:embed(img) }
  return options.last.features
end

function M.done(options)
  if options.last then options.last.features:free() end
  options.last = nil
end

local function decode(options, img, found)
  return options.segmenter:masks(features_of(options, img), { found })[1]
end

-- Compares the answer's mask with the true one; returns the answer's mask, or nil.
local function compare_masks(record, row, found, target, options)
  local ok, result = pcall(decode, options, row.image, found)
  if not ok then
    fail(record, "sam2", reason(result))
    return nil
  end
  if result.score == result.score then record.score = result.score end      -- JSON has no NaN
  local compared, intersection, union = pcall(segmenter_of.compare, result.mask, target.mask,
    target.ignored)
  if not compared then
    fail(record, "iou", reason(intersection))
  elseif union == 0 and options.several and #found == 0 then
    record.union = 0
    record.iou = 1
  elseif union == 0 then
    record.union = 0
    fail(record, "iou", "the mask and the true mask are both empty")
  else
    record.intersection = intersection
    record.union = union
    record.iou = intersection / union
  end
  return result.mask
end

-- ---- one row ----
local function new_record(entry, options)
  local record = { index = entry.index, box_hit = false }
  for _, field in ipairs(FIELDS) do record[field] = null end
  if options.several then
    for _, field in ipairs(SEVERAL_FIELDS) do record[field] = null end
  end
  record.id = entry.row.id or null
  if entry.row.id then record.image_id, record.ann_id = target_of.ids(entry.row) end
  record.problem = entry.row.problem or null
  if entry.answer then record.text = entry.answer.text or null end
  if options.task == "detection" then
    for _, field in ipairs(DETECTION_FIELDS) do record[field] = null end
  end
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

  -- The truth. A failed row keeps the true area as its union.
  local target, failure, kind = target_of.of(row, options)
  if failure and kind == "image" then fail(record, kind, failure) end
  if target.mask then
    record.union = segmenter_of.compare(target.mask, target.mask, target.ignored)
  end
  record.category = target.category or null
  record.box_stated = target.is_stated == true
  if options.several then record.true_objects = target.count or null end

  -- The answer.
  local objects = target.objects
  local found = find_answer(record, entry, objects, options)
  if found then write_answer(record, found, objects, options) end
  if options.task == "detection" then write_detection(record, row.image, found, objects) end

  -- The comparison of the masks.
  local mask
  if failure and kind == "iou" then
    fail(record, kind, failure)
  elseif found and options.masks and record.failure == null then
    mask = compare_masks(record, row, found, target, options)
  end
  target_of.release(target)
  return record, mask, objects
end

return M
