-- sam2_finetune.lua - the settings of recipes/sam2_finetune.lua.

local frame = require "segzero.data.frame"
local paths = require "segzero.config.paths"
local schema = require "segzero.config.schema"

local M = {}

local run = {
  { key = "model_path", type = "text", default = "",
    help = "a transformers folder or an original .pt file; empty: random weights" },
  { key = "output", type = "text", default = "runs/sam2_finetune",
    help = "the folder to write; the default becomes -2, -3, ... when it holds anything" },
  { key = "overwrite", type = "boolean", default = false,
    help = "write over the files of a model in the folder named by output" },
  { key = "train_files", type = "text", default = "refshapes",
    help = "refshapes, or a folder with data.jsonl whose rows have image and mask" },
  { key = "val_files", type = "text", default = "",
    help = "held-out rows; empty: RefShapes' held-out scenes, or the folder's last tenth" },
  { key = "solution_frame", type = "text", default = "auto", also = { "data.solution_frame" },
    help = "what the points of solutions count in: image (its own pixels), a size such as 840x840, "
      .. "or 1000; auto: image" },
  { key = "on_bad_row", type = "text", default = "error", choices = { "error", "skip" },
    help = "rows that cannot be used, found before step 1: refuse the run, or leave them out" },
  { key = "dtype", type = "text", default = "f32", choices = { "f32", "bf16" },
    help = "of the weights" },
  { key = "freeze_encoder", type = "boolean", default = false,
    help = "train the decoder only; much quicker" },
  { key = "recompute", type = "boolean", default = false,
    help = "the encoder keeps fewer activations for its backward pass" },
  { key = "seed", type = "integer", default = 1, min = 0, max = 2 ^ 53,
    help = "of weights, scenes and prompts" },
  { key = "steps", type = "integer", default = 1000, min = 0,
    help = "length of the run in optimizer steps" },
  { key = "minutes", type = "number", default = 0, min = 0,
    help = "above 0: the schedule follows the clock and ends then, whatever the steps" },
  { key = "log_every", type = "count", default = 25, unit = "steps", help = "a line of numbers" },
  { key = "eval_every", type = "integer", default = 0, min = 0, unit = "steps",
    help = "an evaluation and a save; 0: before and after training only" },
  { key = "eval_images", type = "count", default = 48, also = { "eval_pictures" },
    help = "held-out images in an evaluation" },
  { key = "samples", type = "integer", default = 12, min = 0,
    help = "images on the sheet samples.png" },
}

local batches = {
  { key = "images", type = "count", default = 8, also = { "pictures" }, help = "images in a step" },
  { key = "prompts", type = "count", default = 4, help = "most prompts on an image" },
  { key = "size", type = "integer", default = 112, min = 84, max = 840, multiple = 28,
    unit = "pixels", help = "side of RefShapes images" },
  { key = "box", type = "number", default = 0.4, min = 0, max = 1,
    help = "share of prompts that are a box" },
  { key = "box_points", type = "number", default = 0.35, min = 0, max = 1,
    help = "share that are a box with two points; the rest are points alone" },
  { key = "jitter", type = "number", default = 0.3, min = 0,
    help = "a box's sides move by up to this share of its extent, most by much less" },
  { key = "level3", type = "number", default = 0, min = 0, max = 1,
    help = "share of the run before which RefShapes scenes have level 2" },
  { key = "easy", type = "number", default = 0.1, min = 0, max = 1,
    help = "share of RefShapes scenes of levels 1 and 2" },
}

local loss = {
  { key = "loss_size", type = "integer", default = 0, min = 0, unit = "pixels",
    help = "side at which masks are compared; 0: RefShapes' own, or a low-resolution mask's" },
  { key = "mask_weight", type = "number", default = 20, min = 0,
    help = "of the focal term; 20 is SAM2's, from scratch 5 finds objects sooner" },
  { key = "dice_weight", type = "number", default = 1, min = 0, help = "of the dice term" },
  { key = "iou_weight", type = "number", default = 1, min = 0, help = "of the predicted IoU" },
  { key = "object_weight", type = "number", default = 1, min = 0, help = "of the object score" },
  { key = "lr", type = "number", default = 1e-3, above = 0,
    help = "AdamW's highest learning rate" },
  { key = "warmup", type = "count", default = 50, unit = "steps",
    help = "while the rate rises from 0" },
  { key = "final_lr", type = "number", default = 0.02, min = 0, max = 1,
    help = "the rate at the end of the cosine, as a share of lr" },
  { key = "weight_decay", type = "number", default = 0.01, min = 0, help = "AdamW's weight decay" },
  { key = "max_grad_norm", type = "number", default = 1, above = 0,
    help = "a longer gradient is scaled down to this norm" },
}

local shape = {
  { key = "image_size", type = "count", default = 224, unit = "pixels",
    help = "side of the model's image" },
  { key = "width", type = "count", default = 16, help = "channels of the encoder's first stage" },
  { key = "hidden", type = "count", default = 64, help = "channels of the decoder" },
  { key = "mlp", type = "count", default = 128, help = "width of the decoder's MLP" },
  { key = "decoder_heads", type = "count", default = 4, help = "attention heads of the decoder" },
  { key = "blocks", type = "text", default = "1,2,3,1", joined = true,
    help = "blocks of the encoder's four stages" },
  { key = "global_blocks", type = "text", default = "5", joined = true,
    help = "blocks without windows" },
  { key = "windows", type = "text", default = "8,4,14,7", joined = true,
    help = "window sides of the stages" },
}

M.schema = schema.new {
  name = "recipes/sam2_finetune.lua",
  about = "Trains SAM2 on images with masks: a checkpoint, or a small one from scratch.",
  usage = { "[model_path=DIR] [train_files=FOLDER] [output=FOLDER] [key=value ...]" },
  groups = {
    { title = "Run", rows = run },
    { title = "Images and prompts", rows = batches },
    { title = "Loss and optimizer", rows = loss },
    { title = "Shape of a model from scratch", rows = shape },
  },
}

function M.settings(args)
  local options, given = M.schema:read(args)
  if options.box + options.box_points > 1 then
    local message = "box and box_points are shares of the prompts: %g and %g are more than 1"
    error(message:format(options.box,
      options.box_points), 0)
  end
  options.frames = frame.settings(options)
  options.output = paths.output(options.output, given.output, options.overwrite)
  return options
end

return M
