-- model_merger.lua - merges the torch files of a Seg-Zero, EasyR1 or verl run into one model.
--
--   segzero model_merger --local_dir RUN/global_step_N/actor [--target_dir FOLDER]
--
-- Reads actor/model_world_size_W_rank_R.pt without running anything that they name, and writes
-- safetensors in bf16 to actor/huggingface, where the run left its config and tokenizer. LoRA
-- adapters are added to the weights. Memory stays far below the model's size. Checkpoints of
-- segzero are whole models already: for them it says where the model is.
-- Leaves out: optimizers, uploading.

local byte_progress = require "segzero.log.byte_progress"
local cli = require "segzero.config.cli"
local core = require "segzero.core.ffi"
local merge = require "segzero.merge"
local model_merger = require "segzero.config.model_merger"

local M = { schema = model_merger.schema, settings = model_merger.settings }

local function say_start(set, list, total)
  local layout = set.mesh ~= "" and (" (%s)"):format(set.mesh) or ""
  print(("%d tensors, %s, from %d files%s"):format(#list, byte_progress.size(total), #set.archives,
    layout))
end

function M.execute(cfg)
  if cfg.ready then
    print(cfg.ready)
    return
  end
  local started = core.C.sz_seconds()
  local tick = byte_progress.new "merging"
  local ok, result = pcall(merge.run, { dir = cfg.local_dir, out = cfg.target_dir,
    dtype = cfg.dtype, start = say_start, progress = tick })
  tick.finish()
  if not ok then error(result, 0) end
  for _, note in ipairs(result.notes) do print("note: " .. note) end
  if result.adapters > 0 then print(("added %d LoRA adapters"):format(result.adapters)) end
  local peak = byte_progress.size(tonumber(core.C.sz_peak_rss()))
  print(("saved %s, %s, in %.1f s, peak memory %s"):format(result.folder, cfg.dtype,
    core.C.sz_seconds() - started, peak))
  return result
end

M.run = cli.runner(M)

cli.main(M)

return M
