-- merge_lora.lua - the settings of examples/merge_lora.lua.
-- Leaves out: reading the model, beyond its config.json.

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local hub = require "segzero.hub"
local opening = require "segzero.models.opening"
local schema = require "segzero.config.schema"

local M = {}

M.schema = schema.new {
  name = "examples/merge_lora.lua",
  about = "Adds LoRA adapters to their model's weights and writes a folder that loads anywhere.",
  usage = { "in=MODEL adapter=FOLDER out=FOLDER [dtype=bf16]" },
  groups = { { title = "Folders", rows = {
    { key = "in", type = "text", default = "",
      help = "the model that the adapters were trained on" },
    { key = "adapter", type = "text", default = "",
      help = "a global_step_N of a run with LoRA, or any plain PEFT LoRA folder" },
    { key = "out", type = "text", default = "",
      help = "the folder to write; it must not hold a model" },
    { key = "dtype", type = "text", optional = true, choices = { "f32", "bf16" },
      help = "of the written weights; null: as the model's config.json says" },
  } } },
}

function M.settings(args)
  local cfg = M.schema:read(args)
  for _, key in ipairs { "in", "adapter", "out" } do
    if cfg[key] == "" then error(("%s is missing: write %s=FOLDER"):format(key, key), 0) end
  end
  folders.check_free(cfg.out, "out")
  cfg["in"] = hub.model(cfg["in"], "in")
  cfg.adapter = hub.model(cfg.adapter, "adapter")
  if not cfg.dtype then
    local model = require "segzero.models.qwen_vl"
    if not files.exists(cfg["in"] .. "/config.json") then
      error("in: " .. model.missing(cfg["in"]), 0)
    end
    local json = model.read_json(cfg["in"] .. "/config.json")
    cfg.dtype = opening.dtype(json)
  end
  if not files.exists(cfg.adapter .. "/adapter_config.json") then
    error(("adapter: %s holds no adapters (adapter_config.json)"):format(cfg.adapter), 0)
  end
  return cfg
end

return M
