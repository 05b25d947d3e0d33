-- pretrain_shapes.lua - trains the embedded model from scratch on RefShapes.
--
--   segzero recipes/pretrain_shapes.lua [key=value ...]                 to runs/pretrain_shapes
--   segzero recipes/pretrain_shapes.lua output=models/tiny/qwen2.5-vl overwrite=true
--                                                       the embedded model again
--   segzero recipes/pretrain_shapes.lua --help                          all settings
--
-- Training is supervised, on reasoning and answers. Scenes get harder over time, and the short task
-- gives way to Seg-Zero's prompt (data/refshapes/tasks.lua). The loss and the loop are in
-- train/supervised/pretrain.lua. Writes a Hugging Face folder.
-- Leaves out: resuming a run that was stopped (init=FOLDER starts from its weights).

local cli = require "segzero.config.cli"
local console = require "segzero.log.console"
local folders = require "segzero.core.folders"
local pretrain = require "segzero.train.supervised.pretrain"
local pretrain_shapes = require "segzero.config.pretrain_shapes"
local tiny_qwen = require "segzero.models.tiny.qwen"
local geometry = require "rewards.geometry"
local seg_strict = require "rewards.seg_strict"

local M = { schema = pretrain_shapes.schema, settings = pretrain_shapes.settings }

function M.execute(options)
  folders.check_writable(options.output, "output")
  local vl, tok = tiny_qwen.create(options.output, options)
  local given = { reward = seg_strict, box_iou = geometry.box_iou, say = console.say }
  local trainer = pretrain.new(vl, tok, options, given)
  local millions = trainer:parameter_count() / 1e6
  local line = "pretraining %s: %.2f M parameters, vocabulary %d, %d px frame, %d questions a step"
  console.say(line:format(options.output, millions, vl.json.vocab_size, options.size,
    options.batch))
  trainer:train()
end

M.run = cli.runner(M)

cli.main(M)

return M
