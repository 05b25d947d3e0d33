-- evaluate.lua - the settings of recipes/evaluate.lua.
--
--   local cfg, given = require("segzero.config.evaluate").settings(arg)
--
-- Several checkpoints (model_path=A,B,C or checkpoints=all) are cfg.members, with settings of their
-- own. settings() also takes the frame and the dtype from the model's config.json if they are not
-- given. With merge= or compare= it does not, because no model runs. Leaves out: opening data and
-- models.

local frame = require "segzero.data.frame"
local console = require "segzero.log.console"
local metrics = require "segzero.evaluation.metrics"
local model = require "segzero.models.qwen_vl"
local files = require "segzero.core.files"
local opening = require "segzero.models.opening"
local paths = require "segzero.config.paths"
local schema = require "segzero.config.schema"
local scripts = require "segzero.config.foreign.scripts"

local M = {}

local EMBEDDED_TOKENS = 110           -- enough for the embedded model's answers
local EMBEDDED_SEVERAL_TOKENS = 320
local REFSHAPES_ROWS = 128
local SCRIPT_SAM2 = "facebook/sam2-hiera-large"

local models = {
  { key = "model_path", type = "text", default = "", null = "", path = true,
    also = { "reasoning_model_path" },
    help = "Qwen2-VL or Qwen2.5-VL: a folder, or a run (its newest checkpoint); empty: embedded; "
      .. "A,B,C: each of them, with one table" },
  { key = "checkpoints", type = "text", default = "newest", choices = { "newest", "all" },
    help = "of a run in model_path: all evaluates each, with one table and plots" },
  { key = "adapter", type = "text", path = true, optional = true,
    help = "a folder of LoRA adapters for it" },
  { key = "dtype", type = "text", optional = true, choices = { "f32", "bf16", "int8", "int4" },
    help = "of the model's weights; null: the dtype of its config.json" },
  { key = "tensor_parallel_size", type = "count", default = 1, max = 1024,
    help = "with several ranks: how many of them hold one model together, each a part of it" },
  { key = "sam2_path", type = "text", default = "", null = "none", path = true,
    also = { "segmentation_model_path" },
    help = "a folder or a .pt file; empty: embedded, with that policy or RefShapes; none" },
  { key = "sam2_dtype", type = "text", default = "f32", choices = { "f32", "bf16" },
    help = "of SAM2's weights" },
}

local data = {
  { key = "data", type = "text", default = "refshapes", path = true, also = { "test_data_path" },
    help = "a folder with data.jsonl, Parquet or Arrow files (name@split), annotations of COCO, "
      .. "refer or ReasonSeg, a name on the hub, refshapes or refshapes_multi (several=true)" },
  { key = "prompt_key", type = "text", default = "problem", also = { "data.prompt_key" },
    help = "the column of the question; the default also stands for text, prompt, messages and "
      .. "conversations" },
  { key = "answer_key", type = "text", default = "solution", also = { "data.answer_key" },
    help = "the column of the ground truth; the default also stands for answer and reward_model" },
  { key = "image_key", type = "text", default = "image", also = { "data.image_key" },
    help = "the column of the image; the default also stands for images" },
  { key = "image_dir", type = "text", default = "", null = "", path = true,
    also = { "data.image_dir" },
    help = "the folder that relative paths of images start from; empty: the data set's own, or "
      .. "where its layout has them" },
  { key = "rows", type = "count", optional = true, max = 2 ^ 31,
    help = "only the first rows; null: all (RefShapes: 128)" },
  { key = "on_bad_row", type = "text", default = "count", choices = { "count", "error", "skip" },
    help = "rows that cannot be used: count them as failed, refuse the run, or leave them out" },
  { key = "split", type = "text", default = "heldout", choices = { "train", "heldout" },
    help = "of RefShapes" },
  { key = "seed", type = "integer", default = 42, min = -2 ^ 53, max = 2 ^ 53,
    help = "of RefShapes" },
  { key = "refshapes_size", type = "count", optional = true, max = 2 ^ 16, unit = "pixels",
    help = "side of RefShapes images; null: the frame" },
}

local answers = {
  { key = "frame", type = "count", optional = true, max = 2 ^ 16, unit = "pixels",
    help = "side of the square that images are resized to, as in Seg-Zero; null: segzero_frame of "
      .. "the model's config.json, or 840" },
  { key = "resize", type = "text", optional = true, also = { "data.resize" },
    help = "another size to resize images to, such as 640x480, or none: as they are stored; null: "
      .. "frame x frame" },
  { key = "solution_frame", type = "text", default = "auto", also = { "data.solution_frame" },
    help = "what solutions count in: image (its own pixels), a size such as 840x840, or 1000; "
      .. "auto: image" },
  { key = "answer_frame", type = "text", default = "auto", also = { "data.answer_frame" },
    help = "what answers count in: model (the size it sees), image, a size, or 1000; auto: as the "
      .. "model's family does" },
  { key = "max_pixels", type = "count", optional = true, max = 2 ^ 40, also = { "data.max_pixels" },
    unit = "pixels", help = "a larger image is reduced for the model; null: as its folder says" },
  { key = "min_pixels", type = "count", optional = true, max = 2 ^ 40, also = { "data.min_pixels" },
    unit = "pixels", help = "a smaller image is enlarged for the model; null: as its folder says" },
  { key = "several", type = "boolean", default = false,
    help = "ask and read as VisionReasoner does: lists of objects" },
  { key = "prompt", type = "text", default = "auto",
    help = "seg_zero, vision_reasoner, plain (the row's own text), a FILE.jinja, or a text with "
      .. "{question}; auto: as the released models were trained" },
  { key = "max_new_tokens", type = "count", default = 1024, max = 2 ^ 24, unit = "tokens",
    help = "an answer is cut off here; 110 for the embedded model" },
  { key = "val_batch_size", type = "count", default = 64, max = 2 ^ 20, also = { "batch_size" },
    help = "rows answered together" },
  { key = "repetition_penalty", type = "number", optional = true, above = 0,
    help = "null: as the model's generation_config.json says" },
  { key = "task", type = "text", default = "auto",
    choices = { "auto", "segmentation", "detection", "counting" },
    help = "what is compared; auto: counting if the data has the column count, detection if it has "
      .. "cat_id" },
  { key = "oracle", type = "boolean", default = false,
    help = "SAM2 on the true boxes and points: what a perfect policy would reach" },
}

local scores = {
  { key = "reward", type = "text", default = "", null = "none", path = true,
    help = "also scores each answer: a name in rewards/, FILE.lua or FILE.lua:NAME; empty: none" },
  { key = "ignore_regions", type = "text", default = "target", choices = { "target", "left_out" },
    help = "pixels of the data's ignore masks: target, as in Seg-Zero's sets; left_out, as LISA" },
  { key = "gt_json_path", type = "text", path = true, optional = true,
    help = "COCO's instances_*.json, for the average precision of boxes; null: the data's boxes" },
  { key = "protocol", type = "text", default = "fixed", choices = metrics.protocols,
    help = "which failures count; fixed keeps every row" },
  { key = "resamples", type = "count", default = 1000, max = 1e6,
    help = "bootstrap resamples of the intervals" },
  { key = "output_path", type = "text", path = true, default = "runs/evaluate",
    help = "the folder to write; one that holds a run already gets -2, -3, ..." },
  { key = "visual_results", type = "boolean", default = false,
    help = "also an image and a text of every answer, in visual_results/ of the results' folder" },
  { key = "parts", type = "count", default = 1, max = 2 ^ 20, also = { "num_parts" },
    help = "divide the rows into this many runs" },
  { key = "part", type = "integer", default = 0, min = 0, help = "the part of this run, from 0" },
  { key = "idx", type = "integer", optional = true, min = 0,
    help = "the part, as in Seg-Zero's scripts: all parts share output_path, and each writes "
      .. "output_IDX.json there" },
  { key = "output_dir", type = "text", path = true, optional = true,
    help = "sums up the output_*.json of a folder, as calculate_iou.py; no model runs" },
  { key = "merge", type = "list", default = {},
    help = "folders of parts: one summary of all, no model runs" },
  { key = "compare", type = "list", default = {},
    help = "two folders of runs over the same rows: what changed" },
}

M.schema = schema.new {
  name = "recipes/evaluate.lua",
  about = "Evaluates a policy and SAM2: gIoU, cIoU, boxes, answers, the worst and best images.",
  usage = {
    "",
    "model_path=DIR sam2_path=PATH data=FOLDER [key=value ...]",
    "--idx 0 --num_parts 8 --output_path DIR ...     as Seg-Zero's evaluation scripts",
    "--output_dir DIR",
    "merge=DIR1,DIR2,...",
    "compare=DIR1,DIR2",
  },
  groups = {
    { title = "Models", rows = models },
    { title = "Data", rows = data },
    { title = "Answers", rows = answers },
    { title = "Scores and files", rows = scores },
  },
  foreign = scripts.evaluate,
}

-- VisionReasoner's protocol reads lists of objects, Seg-Zero's one object.
local function check_protocol(cfg, given)
  if cfg.protocol == "visionreasoner" then
    if given.several and not cfg.several then
      error("protocol=visionreasoner reads lists of objects: set several=true", 0)
    end
    cfg.several = true
  end
  if cfg.several and cfg.protocol == "segzero" then
    error("protocol=segzero reads one object: set several=false", 0)
  end
end

-- Seg-Zero's scripts name the part idx; it decides what is written, and the rows that count.
local function read_idx(cfg, given)
  if not cfg.idx then return end
  if given.part and cfg.part ~= cfg.idx then
    error(("idx=%d and part=%d both name the part: give one"):format(cfg.idx, cfg.part), 0)
  end
  cfg.part = cfg.idx
  if given.protocol then return end
  cfg.protocol = "segzero"
  if cfg.several then cfg.protocol = "visionreasoner" end
end

local function check_prompt(cfg)
  if cfg.prompt == "auto" then return end
  local prompt = require("segzero.data.prompt_text").read(cfg.prompt, "prompt")
  if prompt.several and not cfg.several then
    error(("prompt=%s asks for lists of objects: set several=true"):format(cfg.prompt), 0)
  end
end

-- A reward judges answers, and is loaded before any model.
local function check_reward(cfg)
  if cfg.reward == "none" then cfg.reward = "" end
  if cfg.reward == "" then return end
  if cfg.oracle then error("oracle=true asks no model: leave out reward", 0) end
  require("segzero.evaluation.rewarding").load(cfg.reward)
end

local function check_part(cfg)
  if cfg.part >= cfg.parts then
    local message = "part is %d, expected 0 to %d because parts=%d"
    error(message:format(cfg.part, cfg.parts - 1, cfg.parts), 0)
  end
end

-- Reads config.json of the policy. An oracle needs none.
local function read_policy(cfg)
  if files.exists(cfg.model_path .. "/config.json") then
    return model.read_json(cfg.model_path .. "/config.json")
  end
  return {}
end

local function is_refshapes(cfg)
  return cfg.data == "refshapes" or cfg.data == "refshapes_multi"
end

-- With Seg-Zero's arguments their scripts' default models hold, too; the embedded ones know
-- RefShapes only.
local function has_script_models(cfg) return cfg.idx ~= nil and not is_refshapes(cfg) end

local function script_policy(cfg)
  if not cfg.several then return "Ricky06662/Seg-Zero-7B" end
  local folder = "pretrained_models/VisionReasoner-7B"
  if files.exists(folder .. "/config.json") then return folder end
  return "Ricky06662/VisionReasoner-7B"
end

local function find_policy(cfg, given)
  local has_default = has_script_models(cfg) and not cfg.oracle
  if cfg.model_path == "" and not given.model_path and has_default then
    cfg.model_path = script_policy(cfg)
    console.say("no model named: taking the script's default, " .. cfg.model_path)
  end
  local embedded = cfg.model_path == ""
  cfg.model_path = paths.policy(cfg.model_path, cfg.several)
  if not cfg.oracle then paths.check_policy("model_path", cfg.model_path) end
  if embedded and not given.max_new_tokens then
    cfg.max_new_tokens = EMBEDDED_TOKENS
    if cfg.several then cfg.max_new_tokens = EMBEDDED_SEVERAL_TOKENS end
  end
  if embedded and not cfg.oracle then
    console.say("no model named: using the embedded " .. cfg.model_path)
  end
  local json = read_policy(cfg)
  local side = cfg.frame or frame.side_of_model(json)
  if cfg.resize and cfg.frame then
    error("frame and resize both say how images are resized: give one of them", 0)
  end
  if not cfg.resize then
    cfg.frame = side
    cfg.resize = frame.text(frame.square(side))
  end
  if is_refshapes(cfg) then cfg.refshapes_size = cfg.refshapes_size or side end
  if not cfg.dtype then
    cfg.dtype = opening.dtype(json)
  end
end

local function find_sam2(cfg, given)
  local options = { model = cfg.model_path, data = cfg.data }
  local path, origin = paths.sam2(cfg.sam2_path, options)
  if path == "" and not given.sam2_path and has_script_models(cfg) then
    console.say("no SAM2 named: taking the script's default, " .. SCRIPT_SAM2)
    path = paths.sam2(SCRIPT_SAM2, options)
  end
  cfg.sam2_path = path
  paths.check_sam2("sam2_path", path)
  if origin == "embedded" then
    console.say("no SAM2 named: using the embedded " .. path)
  end
  if cfg.oracle and path == "" then
    error("oracle=true needs SAM2: name it with sam2_path=FOLDER or a .pt file", 0)
  end
end

-- The members of a sweep, each with settings of its own.
local function read_members(cfg, args)
  local members = require("segzero.evaluation.sweep").members(cfg.model_path, cfg.checkpoints)
  if not members then return nil end
  if cfg.parts > 1 or cfg.idx then
    error("several checkpoints are evaluated whole: leave out parts and idx", 0)
  end
  if cfg.oracle then error("oracle=true asks no model: name one checkpoint", 0) end
  for _, member in ipairs(members) do
    local words = {}
    for i, word in ipairs(args) do words[i] = word end
    for _, word in ipairs(member.words) do words[#words + 1] = word end
    words[#words + 1] = "checkpoints=newest"
    member.settings = M.settings(words)
  end
  return members
end

-- Whether the settings read what other evaluations wrote, in one of three ways.
local function reads_results(cfg)
  local named = {}
  if #cfg.merge > 0 then named[#named + 1] = "merge" end
  if #cfg.compare > 0 then named[#named + 1] = "compare" end
  if cfg.output_dir then named[#named + 1] = "output_dir" end
  if #named > 1 then
    error(("%s each say what to do with results: give one"):format(table.concat(named, " and ")), 0)
  end
  return #named > 0
end

-- Returns the settings, and {[key] = true} for those that the user gave.
function M.settings(args)
  local cfg, given = M.schema:read(args)
  read_idx(cfg, given)
  check_protocol(cfg, given)
  check_part(cfg)
  check_prompt(cfg)
  check_reward(cfg)
  frame.settings(cfg)
  if reads_results(cfg) then return cfg, given end
  cfg.members = read_members(cfg, args)
  if cfg.members then return cfg, given end
  find_policy(cfg, given)
  if is_refshapes(cfg) then
    cfg.rows = cfg.rows or REFSHAPES_ROWS
  end
  find_sam2(cfg, given)
  return cfg, given
end

return M
