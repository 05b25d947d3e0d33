-- tally.lua - sums up the files output_{idx}.json of a folder, as calculate_iou.py of Seg-Zero and
-- calculate_iou.py, calculate_iou_with_bbox.py, calculate_counting.py and calculate_coco_ap.py of
-- VisionReasoner do, in their lines.
--
--   tally.run(cfg, say) -> summary      cfg.output_dir, cfg.gt_json_path, cfg.resamples; the files
--                                       may also be those that the Python scripts wrote
--     summary: {task =, rows =, gIoU =, cIoU =, bbox_AP =, rightly_empty =,
--     think = of report.lua, intervals = of metrics.lua}; {mae =, rmse =, correct_count =}; or
--     {ap = of coco_ap.lua}
--
-- Two things differ from the scripts. Files that segzero wrote must be the parts of one evaluation,
-- all of them; then rows that rightly name nothing have an IoU of 1, not 0, and a line says how
-- many there are. The last line has segzero's own figures, with intervals. The detections of COCO
-- are compared with gt_json_path, or else with the data set's boxes. Leaves out: writing a merged
-- folder (results.lua).

local coco_ap = require "segzero.evaluation.coco_ap"
local files = require "segzero.core.files"
local metrics = require "segzero.evaluation.metrics"
local output_rows = require "segzero.evaluation.output_rows"
local report = require "segzero.evaluation.report"
local results = require "segzero.evaluation.results"
local shared_folder = require "segzero.evaluation.shared_folder"

local M = {}

local function fail(message, ...) error(message:format(...), 0) end

-- ---- reading ----
-- The rows of all files, their task, and the files that segzero wrote.
local function read(path)
  local rows = {}
  local parts = {}
  local task, first
  local outputs = shared_folder.outputs(path)
  for _, output in ipairs(outputs) do
    local list, own = output_rows.read(output.path)
    if own and task and own ~= task then
      fail("output_dir: %s is of %s, %s of %s", output.path, own, first, task)
    end
    if own and not task then
      task = own
      first = output.path
    end
    for _, row in ipairs(list) do rows[#rows + 1] = row end
    if (output.part ~= nil) ~= (outputs[1].part ~= nil) then
      fail("output_dir: %s was written by segzero and %s was not", output.path, outputs[1].path)
    end
    if output.part then parts[#parts + 1] = output end
  end
  return rows, task, parts
end

-- Files that segzero wrote must be all the parts of one evaluation. parts: as
-- shared_folder.outputs.
local function check_parts(parts, path)
  local number
  local found = {}
  for _, one in ipairs(parts) do
    local own = files.read_json_object(one.part .. "/config.json").parts
    number = number or own
    if own ~= number then
      fail("output_dir: %s is of %s parts and %s of %s: they are not one evaluation", one.path,
        tostring(own), parts[1].path, tostring(number))
    end
    found[one.idx] = true
  end
  for idx = 0, (number or 0) - 1 do
    if not found[idx] then
      fail("output_dir: %s lacks output_%d.json: run that part again (--idx %d --num_parts %d)",
        path, idx, idx, number)
    end
  end
end

-- The records and the settings of all parts; nil for files of the Python scripts.
local function read_records(parts)
  local used = {}
  for _, one in ipairs(parts) do
    local file = io.open(one.part .. "/results.jsonl")
    if file and file:read(0) then used[#used + 1] = one.part end
    if file then file:close() end
  end
  if #used == 0 then return nil end
  return results.read_parts(used, "output_dir")
end

-- ---- lines of the scripts ----
local function say_think(rows, options, say)
  local texts = {}
  for _, row in ipairs(rows) do
    if type(row.think) == "string" then texts[#texts + 1] = row.think end
  end
  local think = report.think(texts, options)
  if not think then return nil end
  say(("Number of think texts: %d"):format(think.rows))
  say(("Average think text length: %.2f characters"):format(think.value))
  say(("Minimum think text length: %d characters"):format(think.min))
  say(("Maximum think text length: %d characters"):format(think.max))
  return think
end

local function ids_of(one) return tostring(one.image_id) .. "\0" .. tostring(one.ann_id) end

-- Rows in the form of metrics.lua. right: how many rows rightly name nothing, by their ids, which
-- several questions about nothing in an image share: as many of these rows have an IoU of 1.
local function measured(rows, right)
  local list = {}
  local left = {}
  for ids, n in pairs(right) do left[ids] = n end
  for i, row in ipairs(rows) do
    local ids = ids_of(row)
    local is_right = row.union == 0 and (left[ids] or 0) > 0
    if is_right then left[ids] = left[ids] - 1 end
    list[i] = { intersection = row.intersection, union = row.union,
      box_hit = (tonumber(row.bbox_iou) or 0) > 0.5, rightly_empty = is_right }
  end
  return list
end

-- How many rows rightly name nothing: by their ids, and in all.
local function rightly_empty(records)
  local right = {}
  local n = 0
  for _, record in ipairs(records or {}) do
    if record.iou == 1 and record.union == 0 then
      local ids = ids_of(record)
      right[ids] = (right[ids] or 0) + 1
      n = n + 1
    end
  end
  return right, n
end

-- Whether bbox_iou compares with anything.
local function has_boxes(rows, records)
  if not records then return rows[1].bbox_iou ~= nil end
  for _, record in ipairs(records) do
    if record.box_stated then return true end
  end
  return false
end

local sum_up = {}

function sum_up.segmentation(rows, records, cfg, say)
  local options = { resamples = cfg.resamples }
  local right, n = rightly_empty(records)
  local s = metrics.summary(measured(rows, right), "fixed", options)
  local think = say_think(rows, options, say)
  if n > 0 then
    say(("%d rows without a target have an empty answer: their IoU is 1 (calculate_iou.py: 0)")
      :format(n))
  end
  say(("gIoU (average of per image IoU): %.4f"):format(s.gIoU[1]))
  say(("cIoU (total_intersection / total_union): %.4f"):format(s.cIoU[1]))
  if has_boxes(rows, records) then
    say(("bbox_AP (average of per image bbox_AP): %.4f"):format(s.box[1]))
  end
  if not records then
    say(("95 %% intervals: gIoU [%.4f, %.4f], cIoU [%.4f, %.4f], bbox_AP [%.4f, %.4f], %d rows")
      :format(s.gIoU[2], s.gIoU[3], s.cIoU[2], s.cIoU[3], s.box[2], s.box[3], #rows))
  end
  return { gIoU = s.gIoU[1], cIoU = s.cIoU[1], bbox_AP = s.box[1], think = think,
    rightly_empty = n, intervals = s }
end

function sum_up.counting(rows, _, _, say)
  local off = 0
  local squared = 0
  local right = 0
  for _, row in ipairs(rows) do
    local d = math.abs(row.pred_count - row.gt_count)
    off = off + d
    squared = squared + d ^ 2
    if d == 0 then right = right + 1 end
  end
  local n = #rows
  local s = { mae = off / n, rmse = math.sqrt(squared / n), correct_count = right / n }
  say(("test len: %d"):format(n))
  say(("mae: %.4f"):format(s.mae))
  say(("rmse: %.4f"):format(s.rmse))
  say(("correct_count: %.4f"):format(s.correct_count))
  return s
end

function sum_up.detection(rows, records, cfg, say)
  local think = say_think(rows, { resamples = cfg.resamples }, say)
  local ap
  if cfg.gt_json_path then
    local found = {}
    for i, row in ipairs(rows) do
      local b = row.bbox
      found[i] = { image = row.image_id, category = row.category_id, score = row.score,
        box = { b[1], b[2], b[3] - b[1], b[4] - b[2] } }
    end
    ap = coco_ap.summary(coco_ap.read(cfg.gt_json_path), found)
  elseif records then
    ap = report.average_precision(records, nil)
  else
    fail("output_dir: detections need the true boxes: gt_json_path=instances_val2017.json")
  end
  for _, line in ipairs(coco_ap.lines(ap)) do say(line) end
  return { ap = ap, think = think }
end

-- ---- all ----
function M.run(cfg, say)
  local rows, task, parts = read(cfg.output_dir)
  check_parts(parts, cfg.output_dir)
  local records, config = read_records(parts)
  task = task or config and config.task
  if task then results.check_truth(cfg, task) end
  if records then results.choose_truth(cfg, config) end
  if #rows == 0 and task ~= "detection" then
    fail("output_dir: the output_*.json in %s hold no row", cfg.output_dir)
  end
  local s = sum_up[task](rows, records, cfg, say)
  s.task = task
  s.rows = #rows
  if records then
    config.resamples = cfg.resamples
    config.gt_json_path = cfg.gt_json_path
    local lines = report.lines(results.report(config, records, config.masks))
    say(lines[#lines])
  end
  return s
end

return M
