-- merge_lora.lua - adds LoRA adapters to the weights of their model: a Hugging Face folder and a PEFT adapter in, a folder without
-- adapters out, which computes the same and loads anywhere.
--
--   segzero examples/merge_lora.lua in=MODEL adapter=FOLDER out=FOLDER [dtype=bf16]
--
--   in       the model that the adapters were trained on     adapter  a global_step_N of a run with LoRA, or any plain PEFT LoRA folder
--   dtype    bf16 or f32 (default: what in's config.json says). The sum is made in f32 and rounded once
--
-- Leaves out: several adapters at once, 8-bit models.

local sz = require "segzero"
local model = require "segzero.models.qwen_vl"
local config = require "segzero.config"
local files = require "segzero.core.files"

local cfg = config.read({ ["in"] = "", adapter = "", out = "", dtype = config.optional "string" }, arg)
for _, key in ipairs { "in", "adapter", "out" } do
  if cfg[key] == "" then error("merge_lora: " .. key .. "= is missing", 0) end
end
local json = model.read_json(cfg["in"] .. "/config.json")
local half = json.torch_dtype == "bfloat16" or json.dtype == "bfloat16"
local dtype = cfg.dtype or (half and "bf16" or "f32")
if dtype ~= "bf16" and dtype ~= "f32" then error("merge_lora: dtype is " .. dtype .. ", expected bf16 or f32", 0) end
if files.exists(cfg.out .. "/config.json") then error("merge_lora: there is a model in " .. cfg.out .. " already", 0) end

local vl = sz.qwen_vl(cfg["in"], { dtype = dtype, adapter = cfg.adapter })
print(tostring(vl))
sz.lora.merge(vl)
vl:save(cfg.out)
print("saved " .. cfg.out .. ", " .. dtype)
