-- model_merger.lua - the settings of examples/model_merger.lua: those of Seg-Zero's and EasyR1's
-- script of this name, and of verl's `python -m verl.model_merger merge`.
--
--   local cfg = require("segzero.config.model_merger").settings(arg)
--   cfg.local_dir            the folder with the ranks' files, whatever was named: that folder, the
--                            global_step_N above it, or huggingface in it
--   cfg.ready                instead of it: what to say about a folder that needs no merging
--
-- Leaves out: reading the files (merge/).

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local locate = require "segzero.merge.locate"
local schema = require "segzero.config.schema"

local M = {}

M.schema = schema.new {
  name = "examples/model_merger.lua",
  about = "Merges the torch files of a Seg-Zero, EasyR1 or verl run into one model.",
  usage = { "--local_dir RUN/global_step_N/actor [--target_dir FOLDER]" },
  groups = { { title = "Folders", rows = {
    { key = "local_dir", type = "text", default = "", path = true,
      help = "the folder actor of a checkpoint, with its model_world_size_W_rank_R.pt" },
    { key = "target_dir", type = "text", optional = true, path = true,
      help = "the folder to write; null: huggingface in local_dir, as the original" },
    { key = "dtype", type = "text", default = "bf16", choices = { "bf16", "f32" },
      help = "of the written weights" },
    { key = "backend", type = "text", default = "fsdp", choices = { "fsdp" },
      help = "what the run was trained with; verl's Megatron checkpoints are not read" },
    { key = "hf_upload_path", type = "text", optional = true,
      help = "refused: nothing is uploaded" },
  } } },
}

-- What to say about a checkpoint of segzero; nil if `path` is none.
local function own_checkpoint(path)
  local weights = files.exists(path .. "/model.safetensors")
    or files.exists(path .. "/model.safetensors.index.json")
  if weights and files.exists(path .. "/config.json") then
    return ("nothing to merge: %s is a whole model, which loads as it is"):format(path)
  end
  if files.exists(path .. "/adapter_config.json") then
    return ("%s holds LoRA adapters: segzero examples/merge_lora.lua in=MODEL adapter=%s "
      .. "out=FOLDER adds them to their model"):format(path, path)
  end
end

-- The newest checkpoint of a run folder of segzero; nil for anything else.
local function newest_own(path)
  if not files.exists(path .. "/config.json") and folders.kind(path) ~= "folder" then return nil end
  local ok, latest = pcall(require("segzero.train.run.checkpoint").latest, path)
  return ok and latest or nil
end

-- Fills in cfg.local_dir or cfg.ready.
local function find(cfg)
  local path = cfg.local_dir:gsub("(.)/+$", "%1")
  local actor = locate.actor(path)
  if actor then
    cfg.local_dir = actor
    local merged = locate.merged(actor)
    if merged and not cfg.target_dir then
      cfg.ready = ("nothing to merge: %s holds the merged weights already; to merge again, name a "
        .. "new --target_dir"):format(merged)
    end
    return
  end
  local parent = path:match "^(.*)/actor$"
  cfg.ready = own_checkpoint(path) or parent and own_checkpoint(parent)
  if cfg.ready then return end
  local newest = newest_own(path)
  if newest then
    cfg.ready = own_checkpoint(newest)
    if cfg.ready then return end
  end
  if not folders.kind(path) then
    error(("local_dir: %s: there is no such folder"):format(path), 0)
  end
  error("local_dir: " .. (locate.advice(path)
    or ("%s holds no model_world_size_W_rank_R.pt: name the folder actor of a checkpoint"):format(
      path)), 0)
end

function M.settings(args)
  -- verl's program has subcommands
  local words = { unpack(args or {}) }
  if words[1] == "merge" then table.remove(words, 1) end
  local cfg = M.schema:read(words)
  if cfg.hf_upload_path then
    error(("hf_upload_path: nothing is uploaded; merge without it, then: huggingface-cli upload %s "
      .. "FOLDER"):format(cfg.hf_upload_path), 0)
  end
  if cfg.local_dir == "" then
    error("local_dir is missing: write --local_dir RUN/global_step_N/actor", 0)
  end
  if cfg.target_dir then folders.check_free(cfg.target_dir, "target_dir") end
  find(cfg)
  return cfg
end

return M
