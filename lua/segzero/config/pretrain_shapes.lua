-- pretrain_shapes.lua - the settings of recipes/pretrain_shapes.lua. The defaults are those of
-- models/tiny/qwen2.5-vl.

local paths = require "segzero.config.paths"
local schema = require "segzero.config.schema"

local M = {}

local run = {
  { key = "output", type = "text", default = "runs/pretrain_shapes",
    help = "the folder to write; the default becomes -2, -3, ... when it holds anything" },
  { key = "overwrite", type = "boolean", default = false,
    help = "write over the files of a model in the folder named by output" },
  { key = "init", type = "text", default = "",
    help = "a model folder to go on from; empty: random weights" },
  { key = "seed", type = "integer", default = 1, min = 0, max = 2 ^ 53,
    help = "of the weights and the scenes" },
  { key = "steps", type = "integer", default = 4600, min = 0,
    help = "length of the run in optimizer steps" },
  { key = "minutes", type = "number", default = 0, min = 0,
    help = "above 0: the schedule follows the clock and ends then, whatever the steps" },
  { key = "log_every", type = "count", default = 50, unit = "steps", help = "a line of numbers" },
  { key = "eval_every", type = "count", default = 250, unit = "steps",
    help = "an evaluation and a save" },
  { key = "eval_rows", type = "count", default = 64, help = "held-out scenes in an evaluation" },
}

local optimizer = {
  { key = "lr", type = "number", default = 1.5e-3, above = 0,
    help = "AdamW's highest learning rate" },
  { key = "warmup", type = "count", default = 100, unit = "steps",
    help = "while the rate rises from 0" },
  { key = "final_lr", type = "number", default = 0.05, min = 0, max = 1,
    help = "the rate at the end of the cosine, as a share of lr" },
  { key = "weight_decay", type = "number", default = 0.01, min = 0, help = "AdamW's weight decay" },
  { key = "digit_weight", type = "number", default = 3, above = 0,
    help = "weight of a coordinate's tokens in the loss; other tokens have 1" },
  { key = "choice_weight", type = "number", default = 6, above = 0,
    help = "weight of the coordinates that say which shape is meant" },
}

local function share_row(key, default, help)
  return { key = key, type = "number", default = default, min = 0, max = 1, help = help }
end

local tasks = {
  { key = "batch", type = "count", default = 24,
    help = "questions in a step; four short ones count as one" },
  { key = "questions", type = "count", default = 3,
    help = "questions on an image; the easiest scenes have one" },
  { key = "size", type = "integer", default = 112, min = 84, max = 840, multiple = 28,
    unit = "pixels", help = "side of the images, which becomes the model's frame" },
  share_row("short_until", 0.7, "share of the run in which most images have the short task"),
  share_row("several", 0, "share of the images with VisionReasoner's prompt and lists of objects"),
  share_row("level2", 0.06, "share of the run after which two or three shapes appear"),
  share_row("level3", 0.15, "share of the run after which everything appears"),
  share_row("easy", 0.25, "share of easy scenes after that"),
  share_row("quick", 0.85,
    "share of answers about five or six shapes that point before they name the shapes, with a "
    .. "box that is too wide, for GRPO to mend; fewer about three or four"),
  share_row("habit", 0.6,
    "several: share of answers that call the box bbox, a habit that GRPO has to break"),
  share_row("loose", 0.85, "several: share of answers whose boxes are too wide, the other habit"),
  { key = "margin", type = "number", default = 1.2, min = 0,
    help = "how much too wide on each side, as a share of the box" },
}

local model = {
  { key = "merges", type = "count", default = 512, help = "merges of the tokenizer" },
  { key = "init_std", type = "number", default = 0.05, above = 0,
    help = "deviation of the random weights" },
  { key = "hidden", type = "count", default = 128, help = "width of the language model" },
  { key = "intermediate", type = "count", default = 384, help = "width of its MLP" },
  { key = "layers", type = "count", default = 4, help = "its layers" },
  { key = "heads", type = "count", default = 4, help = "its attention heads" },
  { key = "kv_heads", type = "count", default = 2, help = "its key-value heads" },
  { key = "v_hidden", type = "count", default = 96, help = "width of the vision tower" },
  { key = "v_intermediate", type = "count", default = 256, help = "width of its MLP" },
  { key = "v_depth", type = "count", default = 3, help = "its blocks" },
  { key = "v_heads", type = "count", default = 3, help = "its attention heads" },
  { key = "rope_theta", type = "number", default = 1000, above = 0,
    help = "base of the rotary frequencies" },
  { key = "t_pairs", type = "count", default = 1, help = "rotary pairs for time" },
  { key = "h_pairs", type = "count", default = 2,
    help = "rotary pairs for height; width has the rest" },
}

M.schema = schema.new {
  name = "recipes/pretrain_shapes.lua",
  about = "Trains a small Qwen2.5-VL from scratch on RefShapes; it made models/tiny/qwen2.5-vl.",
  usage = { "[output=FOLDER] [key=value ...]" },
  groups = {
    { title = "Run", rows = run },
    { title = "Tasks", rows = tasks },
    { title = "Optimizer", rows = optimizer },
    { title = "Model", rows = model },
  },
}

function M.settings(args)
  local options, given = M.schema:read(args)
  if options.hidden % options.heads ~= 0 or options.hidden / options.heads % 2 ~= 0 then
    error(("hidden is %d, expected an even multiple of heads=%d"):format(options.hidden,
      options.heads), 0)
  end
  options.output = paths.output(options.output, given.output, options.overwrite)
  return options
end

return M
