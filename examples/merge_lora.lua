-- merge_lora.lua - merges LoRA adapters into the weights of their model.
--
--   segzero examples/merge_lora.lua in=MODEL adapter=FOLDER out=FOLDER [dtype=bf16]
--
-- Reads a Hugging Face folder and a PEFT adapter, and writes a folder without adapters that
-- computes the same and loads anywhere. The sum is computed in f32 and rounded once.
-- Leaves out: several adapters at once, 8-bit models.

local sz = require "segzero"
local cli = require "segzero.config.cli"
local folders = require "segzero.core.folders"
local merge_lora = require "segzero.config.merge_lora"

local M = { schema = merge_lora.schema, settings = merge_lora.settings }

function M.execute(cfg)
  folders.check_writable(cfg.out, "out")
  local vl = sz.qwen_vl(cfg["in"], { dtype = cfg.dtype, adapter = cfg.adapter })
  print(tostring(vl))
  sz.lora.merge(vl)
  vl:save(cfg.out)
  print("saved " .. cfg.out .. ", " .. cfg.dtype)
end

M.run = cli.runner(M)

cli.main(M)

return M
