-- registry.lua - sz.models: the model families by the model_type of their config.json.
--
--   sz.models:get("qwen2_5_vl").load(dir, opts)     an unknown name: an error with the nearest
--   sz.models:register(name, spec)                  a script's own family, outside the library
--
-- A family's spec:
--   load(dir, opts) -> object     opens a folder; opts are the family's own
--   check(opts)                   raises what load would say of the options and the device alone
--   meta(dir, dtype, shards) -> policy
--                                 the same without memory behind the weights, for counting
--                                 (plan.lua); only families that can be trained as a policy have
--                                 it. shards: {count =, index =} of a shard of a split model, or
--                                 nil
--   random(json, opts) -> object  random weights from a config table
--   processor(dir) -> object      its image processor, from the folder's small files alone; without
--                                 one, evaluation learns from the loaded model what size it sees
--   splits                        true: load takes shards, the ranks that a model is split over
--   answer_frame                  what its answers count in: "model" (the size it sees, the
--                                 default) or a size such as "1000" (data/frame.lua)
--   help                          one line
-- What an object has to do is the contract in README.md. sz.model(dir) picks the family
-- (opening.lua).
-- Leaves out: SAM2's original .pt files, which have no config.json (sz.sam2 reads them).

local registry = require "segzero.core.registry"

local families = registry.new("model family",
  { required = { "load" }, optional = { "answer_frame", "check", "meta", "processor", "random",
      "splits", "help" } })

-- The built-in families load their modules on first use.
local function qwen(name, help)
  local function module() return require "segzero.models.qwen_vl" end
  families:register(name, {
    help = help,
    -- Released Qwen2-VL counts to 1000, but Seg-Zero trains it in pixels.
    answer_frame = "model",
    splits = true,
    load = function(dir, opts) return module().qwen_vl(dir, opts) end,
    check = function(opts) return module().check(opts) end,
    meta = function(dir, dtype, shards) return module().meta(dir, dtype, shards) end,
    processor = function(dir) return require("segzero.models.qwen_vl.processor").new(dir) end,
    random = function(json, opts) return module().random(json, opts) end,
  })
end
qwen("qwen2_vl", "Qwen2-VL: images and text to text")
qwen("qwen2_5_vl", "Qwen2.5-VL: images and text to text")

local function sam2(name, help)
  local function module() return require "segzero.models.sam2" end
  families:register(name, {
    help = help,
    load = function(dir, opts) return module().sam2(dir, opts) end,
    random = function(json, opts) return module().random(json, opts) end,
  })
end
sam2("sam2", "SAM2: an image and boxes or points to masks")
sam2("sam2_video", "SAM2's video model, used on single images")

return families
