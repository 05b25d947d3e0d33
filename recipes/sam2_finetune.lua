-- sam2_finetune.lua - trains SAM2 on images with masks.
--
--   segzero recipes/sam2_finetune.lua [key=value ...]           random weights, on RefShapes
--   segzero recipes/sam2_finetune.lua model_path=DIR train_files=FOLDER freeze_encoder=true
--   segzero recipes/sam2_finetune.lua --help                    all settings
--
-- Fine-tunes a checkpoint, or trains the embedded model from scratch. model_path is a transformers
-- folder or an original .pt file. train_files is "refshapes", or a folder with data.jsonl whose
-- rows have `image` and `mask`. The loop is in train/supervised/mask_finetune.lua; the random model
-- comes from models/tiny/sam2.lua. Writes a transformers folder and samples.png. Leaves out:
-- corrective clicks, mask prompts.

local sz = require "segzero"
local cli = require "segzero.config.cli"
local console = require "segzero.log.console"
local folders = require "segzero.core.folders"
local paths = require "segzero.config.paths"
local mask_finetune = require "segzero.train.supervised.mask_finetune"
local sam2_finetune = require "segzero.config.sam2_finetune"
local tiny_sam2 = require "segzero.models.tiny.sam2"

local M = { schema = sam2_finetune.schema, settings = sam2_finetune.settings }

local function open(options)
  if options.model_path == "" then return tiny_sam2.create(options) end
  local path = paths.sam2(options.model_path, { label = "model_path" })
  paths.check_sam2("model_path", path)
  local ok, sam = pcall(sz.sam2, path, { dtype = options.dtype })
  if not ok then error("model_path: " .. sz.core.plain(sam), 0) end
  return sam
end

function M.execute(options)
  folders.check_writable(options.output, "output")
  local sam = open(options)
  local trainer = mask_finetune.new(sam, options, console.say)
  local total, trained = trainer:parameter_counts()
  local line = "%s: %.3f M parameters, %.3f M trained; %d images a step, loss at %d px"
  console.say(line:format(tostring(sam), total / 1e6, trained / 1e6, options.images, trainer.side))
  trainer:train()
end

M.run = cli.runner(M)

cli.main(M)

return M
