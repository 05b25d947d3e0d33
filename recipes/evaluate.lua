-- evaluate.lua - evaluates a policy and SAM2 on a split of a data set.
--
--   segzero recipes/evaluate.lua                       the embedded models on 128 RefShapes rows
--   segzero recipes/evaluate.lua model_path=DIR sam2_path=PATH data=FOLDER [key=value ...]
--   segzero recipes/evaluate.lua oracle=true ...       SAM2 on the true boxes and points
--   segzero recipes/evaluate.lua parts=8 part=0 ...    one of eight parts of the rows, 0 to 7
--   segzero recipes/evaluate.lua merge=DIR1,DIR2,...   one summary of all parts
--   segzero recipes/evaluate.lua model_path=RUN checkpoints=all
--                                                      every checkpoint: one table and a plot
--   segzero recipes/evaluate.lua --idx 0 --num_parts 8 --output_path DIR ...
--                                                      as Seg-Zero's script: DIR/output_0.json
--   segzero recipes/evaluate.lua --output_dir DIR      sums up its output_*.json
--   segzero recipes/evaluate.lua compare=DIR1,DIR2     what changed between two runs of these rows
--   segzero recipes/evaluate.lua prompt="Find {question}. ..." reward=seg_strict
--                                                      another prompt, and a reward for each answer
--   segzero --ranks 4 recipes/evaluate.lua ...         the rows dealt to four processes, or with
--                                                      tensor_parallel_size=2 to two pairs
--   segzero recipes/evaluate.lua --help                all settings
--
-- Reports gIoU, cIoU and boxes, and writes every row's answer and images of the worst and best
-- rows. several=true asks and reads as VisionReasoner does: a list of objects whose masks are
-- united. protocol says which failures count (lua/segzero/evaluation/metrics.lua): "fixed" keeps
-- every row. The results go to output_path, or to output_path-2, -3, ... if that holds a run
-- already; lua/segzero/evaluation/run.lua lists the files. The last line printed is the summary.
-- Leaves out: several images in a row.

local cli = require "segzero.config.cli"
local console = require "segzero.log.console"
local evaluation = require "segzero.config.evaluate"
local geometry = require "rewards.geometry"
local parallel = require "segzero.train.parallel"
local results = require "segzero.evaluation.results"
local run = require "segzero.evaluation.run"
local sweep = require "segzero.evaluation.sweep"
local tally = require "segzero.evaluation.tally"

local M = { schema = evaluation.schema, settings = evaluation.settings, part_of = run.part_of,
  on_ranks = true }

-- What reads the results of other runs: one rank does it.
local function read_results(cfg, given)
  if not parallel.new():is_root() then return end
  if #cfg.compare > 0 then return results.compare(cfg, console.say) end
  if #cfg.merge > 0 then return results.merge(cfg, given, console.say) end
  return tally.run(cfg, console.say)
end

function M.execute(cfg, given)
  if #cfg.compare > 0 or #cfg.merge > 0 or cfg.output_dir then return read_results(cfg, given) end
  if cfg.members then
    return sweep.run(cfg, cfg.members, { box_iou = geometry.box_iou, say = console.say })
  end
  return run.evaluate(cfg, { box_iou = geometry.box_iou, say = console.say })
end

M.run = cli.runner(M)

cli.main(M)

return M
