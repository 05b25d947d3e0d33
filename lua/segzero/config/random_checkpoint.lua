-- random_checkpoint.lua - the settings of examples/random_checkpoint.lua. Nothing is written here.

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local released = require "segzero.models.released"
local schema = require "segzero.config.schema"

local M = {}

M.schema = schema.new {
  name = "examples/random_checkpoint.lua",
  about = "Writes a model folder of a released size with random weights, to measure speed.",
  usage = { "size=3b out=DIR [tokenizer=DIR] [key=value ...]" },
  groups = { { title = "Settings", rows = {
    { key = "size", type = "text", default = "", choices = released.sizes,
      help = "of Qwen2.5-VL (3b, 7b, 32b, 72b) or of Qwen2-VL" },
    { key = "out", type = "text", default = "",
      help = "the folder to write; it must not hold a model" },
    { key = "tokenizer", type = "text", optional = true,
      help = "a folder whose tokenizer files are copied; null: the model answers in ids only" },
    { key = "layers", type = "count", optional = true, help = "fewer layers of the same width" },
    { key = "v_depth", type = "count", optional = true,
      help = "fewer vision blocks of the same width" },
    { key = "dtype", type = "text", default = "bf16", choices = { "bf16", "f32" },
      help = "of the written weights" },
    { key = "seed", type = "integer", default = 0, min = 0, max = 2 ^ 53,
      help = "of the random weights" },
    { key = "shard", type = "count", default = 5e9, unit = "bytes",
      help = "most bytes in one file" },
    { key = "names", type = "text", default = "hub", choices = { "hub", "new" },
      help = "tensor names: the hub's, or new as transformers has them in memory" },
  } } },
}

function M.settings(args)
  local cfg = M.schema:read(args)
  if cfg.size == "" then
    error("size is missing, expected one of: " .. table.concat(released.sizes, ", "), 0)
  end
  if cfg.out == "" then error("out is missing: write out=DIR", 0) end
  folders.check_free(cfg.out, "out")
  if cfg.tokenizer and not files.exists(cfg.tokenizer .. "/tokenizer.json") then
    error(("tokenizer: %s has no tokenizer.json"):format(cfg.tokenizer), 0)
  end
  return cfg
end

return M
