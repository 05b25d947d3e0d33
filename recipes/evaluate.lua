-- evaluate.lua - a policy and SAM2 over a split: gIoU, cIoU and boxes, every row's answer, the
-- worst and best images.
--
--   segzero recipes/evaluate.lua                       the embedded models on 128 RefShapes rows
--   segzero recipes/evaluate.lua model_path=DIR sam2_path=PATH data=FOLDER [key=value ...]
--   segzero recipes/evaluate.lua oracle=true ...       SAM2 on the true boxes and points
--   segzero recipes/evaluate.lua parts=8 part=0 ...    part 0 to 7 of the rows, a run for each
--   segzero recipes/evaluate.lua merge=DIR1,DIR2,...   one summary of all parts
--   segzero recipes/evaluate.lua compare=DIR1,DIR2     what changed between two runs of these rows
--   segzero recipes/evaluate.lua --help                all settings (config/evaluate.lua)
--
-- It works as Seg-Zero's evaluation: the image resized to frame x frame, greedy decoding, the first
-- {...} of the text, box and points back in the image's own pixels, SAM2's best-rated mask.
-- several=true asks and reads as VisionReasoner does, a list of objects whose masks are united.
-- protocol says which failures count (train/metrics.lua): "fixed" keeps every row.
--
-- Under output_path (a folder that holds a run already gets -2, -3, ...): config.json;
-- results.jsonl, a line for each row as it is done (train/mask_evaluation.lua has the fields);
-- summary.json; worst.png, best.png. The last line printed has the numbers. Without SAM2, or on
-- data without masks, boxes alone are evaluated.
-- Leaves out: resuming a run that was stopped (parts are the way).

local cli = require "segzero.config.cli"
local evaluate = require "segzero.config.evaluate"
local geometry = require "rewards.geometry"
local results = require "segzero.evaluation.results"
local run = require "segzero.evaluation.run"

local M = { schema = evaluate.schema, settings = evaluate.settings, part_of = run.part_of }

function M.execute(cfg, given)
  if #cfg.compare > 0 then return results.compare(cfg) end
  if #cfg.merge > 0 then return results.merge(cfg, given) end
  return run.evaluate(cfg, { box_iou = geometry.box_iou })
end

M.run = cli.runner(M)

cli.main(M)

return M
