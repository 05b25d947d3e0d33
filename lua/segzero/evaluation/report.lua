-- report.lua - what the records of an evaluation amount to, as a table and as lines of text.
--
--   local s = report.of(records, options) -> what summary.json holds
--     options: masks, several, task, protocol, resamples, ignore = text | nil, gt_json_path
--     s            of metrics.summary, and
--     s.think      {value, low, high, min, max, rows}: characters of the thinking, over the answers
--                  that have any; nil without
--     s.reward     of rewarding.summary, if the answers were scored
--     s.objects    of objects.summary, for lists
--     s.ap         of coco_ap.summary, for detection
--     s.ignore     the convention for ignore regions, if the data has any
--   report.lines(s) -> {text, ...}; the last one is metrics.line
--   report.json(s)  -> text
--
-- records: of judge.lua. The boxes of detection are compared with those of gt_json_path, or else
-- with the data set's own. Leaves out: files (results.lua).

local cjson = require "cjson"
local coco_ap = require "segzero.evaluation.coco_ap"
local files = require "segzero.core.files"
local metrics = require "segzero.evaluation.metrics"
local objects = require "segzero.evaluation.objects"
local rewarding = require "segzero.evaluation.rewarding"

local M = {}

local null = cjson.null
local value_or = require("segzero.evaluation.fields").value_or

-- The records in the form that metrics.lua reads.
local function for_metrics(records)
  local list = {}
  for i, record in ipairs(records) do
    list[i] = {
      index = record.index,
      intersection = value_or(record.intersection, 0),
      union = value_or(record.union, 0),
      box_hit = record.box_hit == true,
      rightly_empty = record.iou == 1 and record.union == 0,
      failure_kind = value_or(record.failure_kind, nil),
    }
  end
  return list
end

M.for_metrics = for_metrics

-- ---- the thinking ----
local function characters(text)
  local _, n = text:gsub("[^\128-\191]", "")
  return n
end

-- {value, low, high, min, max, rows} of texts, or nil.
function M.think(texts, options)
  local lengths = {}
  for _, text in ipairs(texts) do
    if text ~= "" then lengths[#lengths + 1] = characters(text) end
  end
  local mean = metrics.mean(lengths, options)
  if not mean then return nil end
  local least = lengths[1]
  local most = lengths[1]
  for _, n in ipairs(lengths) do
    least = math.min(least, n)
    most = math.max(most, n)
  end
  return { value = mean[1], low = mean[2], high = mean[3], min = least, max = most,
    rows = #lengths }
end

local function thoughts(records)
  local texts = {}
  for i, record in ipairs(records) do texts[i] = value_or(record.think, "") end
  return texts
end

-- ---- detection ----
local function corner_and_size(box) return { box[1], box[2], box[3] - box[1], box[4] - box[2] } end

local function found_boxes(records)
  local found = {}
  for _, record in ipairs(records) do
    for i, box in ipairs(value_or(record.bbox, {})) do
      found[#found + 1] = { image = record.image_id, category = record.category,
        box = corner_and_size(box), score = record.box_scores[i] }
    end
  end
  return found
end

-- The data set's own boxes as a truth of coco_ap.lua.
local function own_truth(records)
  local truth = { images = {}, categories = {}, boxes = {}, name = "the data set" }
  local known = {}
  for _, record in ipairs(records) do
    for _, name in ipairs { "image_id", "category" } do
      local value = record[name]
      local list = name == "image_id" and truth.images or truth.categories
      local key = name .. tostring(value)
      if not known[key] and value_or(value, nil) then list[#list + 1] = value end
      known[key] = true
    end
    for _, box in ipairs(value_or(record.true_boxes, {})) do
      local b = corner_and_size(box)
      truth.boxes[#truth.boxes + 1] = { image = record.image_id, category = record.category,
        box = b, area = b[3] * b[4], crowd = false }
    end
  end
  return truth
end

-- With COCO's file ids are numbers, in the data sets they may be texts.
local function numbered(found)
  for _, d in ipairs(found) do
    d.image = tonumber(d.image) or d.image
    d.category = tonumber(d.category) or d.category
  end
  return found
end

function M.average_precision(records, path)
  if path then return coco_ap.summary(coco_ap.read(path), numbered(found_boxes(records))) end
  return coco_ap.summary(own_truth(records), found_boxes(records))
end

-- ---- all ----
function M.of(records, options)
  local has_boxes = options.task ~= "counting"
  local counts = { masks = options.masks, boxes = has_boxes, resamples = options.resamples }
  local s = metrics.summary(for_metrics(records), options.protocol, counts)
  s.several = options.several
  s.task = options.task
  s.ignore = options.ignore
  s.think = M.think(thoughts(records), counts)
  s.reward = rewarding.summary(records, counts)
  if options.several then s.objects = objects.summary(records) end
  if options.task == "detection" then s.ap = M.average_precision(records, options.gt_json_path) end
  return s
end

function M.think_line(t)
  return ("think=%.1f [%.1f, %.1f] characters, %d to %d, in %d answers"):format(t.value, t.low,
    t.high, t.min, t.max, t.rows)
end

function M.lines(s)
  local list = {}
  if s.skipped > 0 then
    list[1] = ("protocol=%s skips %d of %d rows"):format(s.protocol, s.skipped, s.rows)
  end
  if s.think then list[#list + 1] = M.think_line(s.think) end
  if s.reward then list[#list + 1] = rewarding.line(s.reward) end
  if s.objects then list[#list + 1] = objects.line(s.objects) end
  if s.objects and s.objects.count_rmse and s.task == "counting" then
    list[#list + 1] = ("count_rmse=%.3f counted=%d"):format(s.objects.count_rmse, s.objects.counted)
  end
  if s.ap then
    list[#list + 1] = ("AP=%.3f AP50=%.3f AP75=%.3f AR100=%.3f"):format(s.ap.AP, s.ap.AP50,
      s.ap.AP75, s.ap.AR100)
  end
  local last = metrics.line(s)
  if s.ignore then last = last .. " ignore=" .. s.ignore end
  list[#list + 1] = last
  return list
end

-- {value, low, high} with names.
local function named_interval(v)
  if not v then return null end
  return { value = v[1], low = v[2], high = v[3] }
end

function M.json(s)
  local out = {}
  for name, v in pairs(s) do out[name] = v end
  for _, name in ipairs { "gIoU", "cIoU", "box" } do out[name] = named_interval(s[name]) end
  return files.indented_json(out)
end

return M
