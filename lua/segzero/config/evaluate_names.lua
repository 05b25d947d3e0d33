-- evaluate_names.lua - arguments of Seg-Zero's and VisionReasoner's evaluation and inference
-- scripts that segzero has no setting for: the tables that config/foreign.lua describes.
--
--   names.ignored, names.means                  for recipes/evaluate.lua
--   names.infer = {ignored =}                   for examples/infer.lua
--   names.flags = {[flag] = why it is refused}  of examples/infer.lua: they have no value
--
-- Leaves out: arguments that are another name of a setting (`also` in its row).

local M = {}

local ROUTER = "there is no task router, which is another language model; task says what to do"
local YOLO = "there is no YOLO-World: every question goes to the model, as without --hybrid_mode"
local IMAGES = "segzero does not generate images"

-- `only` these values are noted.
local function only(why, ...) return { why, only = { ... } } end

M.ignored = {
  ["task_router_model_path"] = ROUTER,
  ["model"] = only("only VisionReasoner's prompt is available, not Qwen's own", "vision_reasoner"),
}

M.means = {
  ["model"] = { vision_reasoner = { { "several", "true" } } },
}

M.infer = {
  ignored = {
    ["task_router_model_path"] = ROUTER,
    ["yolo_model_path"] = YOLO,
    ["generation_model_name"] = IMAGES,
    ["image_prompt"] = only(IMAGES, ""),
    ["refer_image_path"] = only(IMAGES, ""),
  },
}

M.flags = { hybrid_mode = YOLO, generation_mode = IMAGES }

return M
