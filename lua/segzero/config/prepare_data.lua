-- prepare_data.lua - the settings of recipes/prepare_data.lua.

local paths = require "segzero.config.paths"
local schema = require "segzero.config.schema"

local M = {}

local input = {
  { key = "data", type = "text", default = "", also = { "data.train_files" },
    help = "annotations of refer, gRefCOCO, COCO or ReasonSeg, with @split; or any data set whose "
      .. "rows have masks" },
  { key = "image_dir", type = "text", optional = true, also = { "data.image_dir" },
    help = "the folder of the annotations' images, if they are not where the layout has them" },
  { key = "prompt_key", type = "text", default = "problem", also = { "data.prompt_key" },
    help = "a data set's column of the question; the default also stands for text" },
  { key = "image_key", type = "text", default = "image", also = { "data.image_key" },
    help = "its column of the image; the default also stands for images" },
  { key = "rows", type = "count", optional = true, max = 2 ^ 31,
    help = "only this many entries; null: all" },
  { key = "shuffle", type = "boolean", default = false,
    help = "in an order drawn from the seed, so that `rows` is a sample" },
  { key = "seed", type = "integer", default = 42, min = 0, max = 2 ^ 53, help = "of the order" },
  { key = "on_bad_row", type = "text", default = "error", choices = { "error", "skip" },
    help = "rows whose image or mask cannot be read: end with an error, or leave them out" },
}

local rows = {
  { key = "several", type = "boolean", default = false,
    help = "VisionReasoner's rows: a list of objects, and the sentences about an image joined" },
  { key = "size", type = "count", default = 840, max = 2 ^ 14, unit = "pixels",
    help = "side of the square that images are resized to" },
  { key = "sentences", type = "text", default = "first", choices = { "first", "all" },
    help = "of each object of refer: its first sentence, as Seg-Zero, or a row for each" },
  { key = "no_target", type = "boolean", default = false,
    help = "with several: keep questions about nothing in the image, with the solution []" },
}

local filter = {
  { key = "sam2_filter", type = "number", default = 0, min = 0, max = 1,
    help = "keep objects whose mask SAM2 finds with this IoU from the box and a point; "
      .. "VisionReasoner has 0.6; 0: all" },
  { key = "sam2_path", type = "text", default = "", also = { "segmentation_model_path" },
    help = "a folder or a .pt file of SAM2, for sam2_filter" },
  { key = "sam2_dtype", type = "text", default = "f32", choices = { "f32", "bf16" },
    help = "of its weights" },
}

local output = {
  { key = "output", type = "text", default = "runs/prepare_data",
    help = "the folder to write; one that a stopped run left goes on" },
  { key = "format", type = "text", default = "parquet", choices = { "parquet", "jsonl" },
    help = "data/train-*.parquet, as the hub has it, or data.jsonl and a folder of images" },
  { key = "rows_per_file", type = "count", default = 1000, max = 2 ^ 31,
    help = "rows that are read for one Parquet file; what is done when a run stops is kept" },
}

M.schema = schema.new {
  name = "recipes/prepare_data.lua",
  about = "Makes training rows out of masks: a square image, the box and the points in it.",
  usage = {
    "data=refer_seg/refcocog@train output=FOLDER [key=value ...]",
    "data=FOLDER several=true sam2_filter=0.6 sam2_path=PATH output=FOLDER",
  },
  groups = {
    { title = "What is read", rows = input },
    { title = "Rows", rows = rows },
    { title = "Filter", rows = filter },
    { title = "What is written", rows = output },
  },
}

function M.settings(args)
  local cfg, given = M.schema:read(args)
  if cfg.data == "" then
    error("data is missing: name annotations or a data set with masks, "
      .. "data=refer_seg/refcocog@train", 0)
  end
  if cfg.no_target and not cfg.several then
    error("no_target=true needs several=true: one object's row always has a box", 0)
  end
  if given.sam2_path and not given.sam2_filter then
    error("sam2_path is for sam2_filter: say how well SAM2 must find an object, sam2_filter=0.6", 0)
  end
  if cfg.sam2_filter > 0 then
    if cfg.sam2_path == "" then
      error("sam2_filter needs SAM2: name it with sam2_path=FOLDER or a .pt file", 0)
    end
    cfg.sam2_path = paths.sam2(cfg.sam2_path, { label = "sam2_path" })
    paths.check_sam2("sam2_path", cfg.sam2_path)
  end
  cfg.named_output = given.output ~= nil
  return cfg, given
end

return M
