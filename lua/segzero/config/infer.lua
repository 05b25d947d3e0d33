-- infer.lua - the settings of examples/infer.lua: Seg-Zero's inference options and a few more.
--
--   local options = require("segzero.config.infer").settings(arg)
--
-- settings() checks all that can be checked without reading the model: options, file endings, and
-- options that exclude each other.
-- Leaves out: opening files and models (the script does).

local folders = require "segzero.core.folders"
local frame = require "segzero.data.frame"
local paths = require "segzero.config.paths"
local schema = require "segzero.config.schema"
local scripts = require "segzero.config.foreign.scripts"

local M = {}

local QUERY_TOKENS = 2048       -- of an answer in VisionReasoner's script

local question = {
  { key = "image_path", type = "text", path = true, optional = true, help = "the image" },
  { key = "text", type = "text", optional = true,
    help = "what to find, such as \"the unusual object in the image\"" },
  { key = "query", type = "text", optional = true,
    help = "VisionReasoner's name of text; sets multi and task as its script does" },
  { key = "task", type = "text", optional = true,
    choices = { "auto", "segmentation", "detection", "counting", "vqa" },
    help = "detection and counting need no SAM2, vqa asks the question as it is; null and auto: "
      .. "segmentation" },
  { key = "demo", type = "integer", optional = true, min = 0, bare = "0",
    help = "number of a generated RefShapes image with its own question, instead of image_path" },
  { key = "multi", type = "boolean", default = false,
    help = "several objects in one answer: VisionReasoner's prompt and answers" },
  { key = "frame", type = "count", optional = true, max = 2 ^ 16, unit = "pixels",
    help = "side of the square that the image is resized to, as in Seg-Zero; null: segzero_frame "
      .. "of the model's config.json, or 840" },
  { key = "resize", type = "text", optional = true, also = { "data.resize" },
    help = "another size to resize it to, such as 640x480, or none: as it is; null: frame x "
      .. "frame" },
  { key = "answer_frame", type = "text", default = "auto", also = { "data.answer_frame" },
    help = "what the answer counts in: model (the size it sees), image, a size, or 1000; auto: as "
      .. "the model's family does" },
}

local models = {
  { key = "model_path", type = "text", default = "", null = "", path = true,
    also = { "reasoning_model_path" },
    help = "Qwen2-VL or Qwen2.5-VL: a folder, or a run (its newest checkpoint); empty: embedded" },
  { key = "adapter", type = "text", optional = true,
    help = "a folder of LoRA adapters for it, in PEFT's format" },
  { key = "sam2_path", type = "text", default = "", null = "none", path = true,
    also = { "segmentation_model_path" },
    help = "SAM2: a folder or an original .pt file; empty: embedded, with that model; none" },
  { key = "dtype", type = "text", optional = true, choices = { "f32", "bf16", "int8", "int4" },
    help = "of the model's weights; null: the dtype of its config.json" },
  { key = "device", type = "text", optional = true,
    help = "cpu or cuda; null: what segzero --device says" },
}

local refused = {
  { key = "hybrid_mode", type = "boolean", default = false,
    help = "VisionReasoner's, refused: there is no YOLO-World" },
  { key = "generation_mode", type = "boolean", default = false,
    help = "VisionReasoner's, refused: segzero does not generate images" },
}

local output = {
  { key = "output_path", type = "text", path = true, optional = true,
    help = "a .png or .jpg to write; null: NAME_segzero.png in the current folder" },
  { key = "mask_path", type = "text", optional = true,
    help = "a .png for the bare mask: one channel, 0 and 255, as large as the image" },
}

local FROM_FOLDER = "null: as the model's generation_config.json says"

local sampling = {
  { key = "do_sample", type = "boolean", optional = true,
    help = "sample instead of taking the likeliest token; null: true when temperature is above 0" },
  { key = "temperature", type = "number", optional = true, min = 0, help = FROM_FOLDER },
  { key = "top_k", type = "integer", optional = true, min = -2 ^ 31, max = 2 ^ 31 - 1,
    help = "sample from the k likeliest tokens; " .. FROM_FOLDER },
  { key = "top_p", type = "number", optional = true, above = 0,
    help = "nucleus sampling; " .. FROM_FOLDER },
  { key = "repetition_penalty", type = "number", optional = true, above = 0,
    help = "of greedy answers too; " .. FROM_FOLDER },
  { key = "max_new_tokens", type = "count", optional = true, max = 2 ^ 24, unit = "tokens",
    help = FROM_FOLDER .. ", else 1024" },
  { key = "seed", type = "integer", optional = true, min = 0, help = "of sampled tokens" },
}

M.schema = schema.new {
  name = "examples/infer.lua",
  about = "Asks a model which object a sentence means, has SAM2 cut it out, and draws both.",
  usage = { "--image_path photo.png --text \"the unusual object in the image\"", "--demo [N]" },
  groups = {
    { title = "Question", rows = question },
    { title = "Models", rows = models },
    { title = "Output", rows = output },
    { title = "Sampling", rows = sampling },
    { title = "Refused", rows = refused },
  },
  foreign = scripts.infer,
}

-- VisionReasoner's script asks for lists of objects.
local function read_query(o, given)
  if not o.query then return end
  if o.text then error("--query and --text both name the question: give one", 0) end
  o.text = o.query
  if not given.multi then o.multi = true end
  o.max_new_tokens = o.max_new_tokens or QUERY_TOKENS
end

local function check_task(o, given)
  for flag, why in pairs(scripts.flags) do
    if o[flag] then error(("--%s: %s"):format(flag, why), 0) end
  end
  if o.task == "auto" then
    io.stderr:write("note: task=auto is read as segmentation: there is no task router\n")
  end
  if o.task == "detection" or o.task == "counting" then
    if given.multi and not o.multi then
      error(("--task %s reads lists of objects: leave out --multi false"):format(o.task), 0)
    end
    o.multi = true
  end
  o.shows_mask = o.task == nil or o.task == "auto" or o.task == "segmentation"
  if o.mask_path and not o.shows_mask then
    error(("--mask_path: --task %s makes no mask"):format(o.task), 0)
  end
end

local function check_question(o)
  if o.demo and o.image_path then error("--demo makes its own image; leave --image_path out", 0) end
  if not o.demo and not o.image_path then
    error("no image: --image_path FILE --text SENTENCE, or --demo to try without one", 0)
  end
  local text = o.text
  if o.demo and not text then return end
  if not text or not text:find "%S" then
    error("no sentence: --text \"the thing to find\"", 0)
  end
end

-- photo.jpg -> photo_segzero.png
local function default_output(o)
  if o.demo then return ("demo_%d_segzero.png"):format(o.demo) end
  local name = o.image_path:match "([^/]+)/*$" or "image"
  return name:gsub("(.)%.[^.]*$", "%1") .. "_segzero.png"
end

local IMAGE_ENDINGS = { png = true, jpg = true, jpeg = true }

-- Two files that may not be one: the question's image is the user's, and an output would be lost.
local function check_apart(o, one, other)
  local a = o[one]
  local b = o[other]
  if not a or not b or a ~= b and not folders.same(a, b) then return end
  local line = "--%s and --%s are both %s"
  if a ~= b then line = "--%s and --%s are the same file, %s" end
  error(line:format(one, other, a), 0)
end

local function check_output(o)
  o.output_path = o.output_path or default_output(o)
  local ending = o.output_path:match "%.([^./]+)$" or ""
  if not IMAGE_ENDINGS[ending:lower()] then
    error(("--output_path must end in .png, .jpg or .jpeg, got %s"):format(o.output_path), 0)
  end
  check_apart(o, "output_path", "image_path")
  if not o.mask_path then return end
  if not o.mask_path:lower():find "%.png$" then
    error(("--mask_path must end in .png, got %s"):format(o.mask_path), 0)
  end
  check_apart(o, "mask_path", "output_path")
  check_apart(o, "mask_path", "image_path")
end

-- Replaces options.model_path and options.sam2_path by real paths; sam2_path is "" without SAM2.
local function find_models(o)
  o.embedded = o.model_path == ""
  o.model_path = paths.policy(o.model_path, o.multi, "--model_path")
  local sam2 = paths.sam2(o.sam2_path, { model = o.model_path, label = "--sam2_path" })
  o.sam2_path = sam2:gsub("(.)/+$", "%1")
  if not o.shows_mask then o.sam2_path = "" end
  if o.mask_path and o.sam2_path == "" then
    error("--mask_path needs SAM2: name a folder or an original .pt file with --sam2_path", 0)
  end
end

function M.settings(args)
  local options, given = M.schema:read(args)
  read_query(options, given)
  check_task(options, given)
  check_question(options)
  frame.settings(options)
  if options.frame and options.resize then
    error("--frame and --resize both say how the image is resized: give one of them", 0)
  end
  check_output(options)
  find_models(options)
  return options
end

return M
