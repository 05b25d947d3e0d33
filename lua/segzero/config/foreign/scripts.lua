-- scripts.lua - arguments of Seg-Zero's and VisionReasoner's evaluation and inference scripts that
-- are no settings here: rows as in keys.lua.
--
--   scripts.evaluate      of recipes/evaluate.lua
--   scripts.infer         of examples/infer.lua
--   scripts.flags         {[flag] = why it is refused} of examples/infer.lua: they have no value
--
-- Leaves out: arguments that are another name of a setting (`also` in its row).

local ROUTER = "there is no task router, which is another language model; `task` says what to do"
local YOLO = "there is no YOLO-World: every question goes to the model, as without --hybrid_mode"
local NO_DRAWING = "segzero does not generate images"

local M = {}

local function drawing(key)
  return { key = key, only = { "", "null" }, note = NO_DRAWING, refuse = NO_DRAWING }
end

M.evaluate = {
  { key = "task_router_model_path", note = ROUTER },
  { key = "model",
    reads = { vision_reasoner = { { "several", "true" }, { "max_new_tokens", "2048" },
      { "protocol", "fixed" } } },
    refuse = "only VisionReasoner's questions are available, not Qwen's own" },
}

M.infer = {
  { key = "task_router_model_path", note = ROUTER },
  { key = "yolo_model_path", note = YOLO },
  { key = "generation_model_name", note = NO_DRAWING },
  drawing "image_prompt",
  drawing "refer_image_path",
}

M.flags = {
  hybrid_mode = YOLO .. "; leave it out",
  generation_mode = NO_DRAWING .. "; leave it out",
}

return M
