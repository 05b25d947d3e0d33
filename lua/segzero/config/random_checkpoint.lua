-- random_checkpoint.lua - the settings of examples/random_checkpoint.lua. Nothing is written here.

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local hub = require "segzero.hub"
local released = require "segzero.models.released"
local schema = require "segzero.config.schema"
local tokenizers = require "segzero.models.text.tokenizer"

local M = {}

-- Keys of config.json and the tokens whose ids they are.
M.SPECIAL = {
  bos_token_id = "<|endoftext|>", eos_token_id = "<|im_end|>",
  vision_start_token_id = "<|vision_start|>", vision_end_token_id = "<|vision_end|>",
  vision_token_id = "<|vision_pad|>", image_token_id = "<|image_pad|>",
  video_token_id = "<|video_pad|>",
}

M.schema = schema.new {
  name = "examples/random_checkpoint.lua",
  about = "Writes a model folder of a released size with random weights, to measure speed.",
  usage = { "size=3b out=DIR [tokenizer=DIR] [key=value ...]" },
  groups = { { title = "Settings", rows = {
    { key = "size", type = "text", default = "", choices = released.sizes,
      help = "of Qwen2.5-VL (3b, 7b, 32b, 72b) or of Qwen2-VL" },
    { key = "out", type = "text", default = "",
      help = "the folder to write; it must not hold a model" },
    { key = "tokenizer", type = "text", path = true, optional = true,
      help = "whose tokenizer files are copied: models/tiny/qwen2.5-vl, the folder of a released "
        .. "model, or its name on the hub. That of a released model also completes a folder that "
        .. "was written without one. null: the model answers in ids only" },
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

-- The folder whose tokenizer is copied: one here, an embedded one, or a model on the hub.
local function tokenizer_of(named)
  local dir = files.shipped(hub.model(named, "tokenizer", { weights = false }))
  if files.exists(dir .. "/tokenizer.json") then return dir end
  error(("tokenizer: %s has no tokenizer.json; name models/tiny/qwen2.5-vl, a model's folder, or a "
    .. "model on the hub such as Qwen/Qwen2.5-VL-3B-Instruct"):format(named), 0)
end

-- Whether the folder holds a model that lacks a tokenizer only.
local function lacks_tokenizer(dir)
  if not files.exists(dir .. "/config.json") or files.exists(dir .. "/tokenizer.json") then
    return false
  end
  local single = files.exists(dir .. "/model.safetensors")
  return single or files.exists(dir .. "/model.safetensors.index.json")
end

-- The ids of the special tokens are in config.json, which stays as it is.
local function check_ids(cfg)
  local json = files.read_json_object(cfg.out .. "/config.json")
  local tokenizer = tokenizers.new(cfg.tokenizer)
  for key, token in pairs(M.SPECIAL) do
    local id = tokenizer:id(token)
    if json[key] ~= nil and json[key] ~= id then
      error(("tokenizer: %s is %s in it, and the model in %s has %s: write the model to another "
        .. "folder with this tokenizer"):format(token, tostring(id), cfg.out, tostring(json[key])),
        0)
    end
  end
end

-- completes: nothing is written but the tokenizer's files.
function M.settings(args)
  local cfg = M.schema:read(args)
  cfg.completes = lacks_tokenizer(cfg.out)
  if cfg.completes and not cfg.tokenizer then
    error(("out: %s holds a model without a tokenizer; tokenizer=Qwen/Qwen2.5-VL-3B-Instruct "
      .. "completes it, or name another folder"):format(cfg.out), 0)
  end
  if cfg.tokenizer then cfg.tokenizer = tokenizer_of(cfg.tokenizer) end
  if cfg.completes then
    check_ids(cfg)
    return cfg
  end
  if cfg.size == "" then
    error("size is missing, expected one of: " .. table.concat(released.sizes, ", "), 0)
  end
  if cfg.out == "" then error("out is missing: write out=DIR", 0) end
  folders.check_free(cfg.out, "out")
  return cfg
end

return M
