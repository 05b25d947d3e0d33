-- aliases.lua - former names of modules, so that scripts written with them keep working: those of
-- segzero 0.1, and those that files had before models, data and train got subfolders.
--
-- Requiring it adds a package loader; the host program does so before it runs anything. After that,
-- `require "segzero.tokenizer"` returns the same module as `require
-- "segzero.models.text.tokenizer"`. New code uses the new names.

local NEW_NAME = {
  ["advantage"] = "algorithms.advantages",
  ["ahead"] = "data.prefetch",
  ["answer"] = "formats.answer",
  ["blocks"] = "inference.kv_blocks",
  ["bpe_train"] = "tools.bpe_train",
  ["checkpoint"] = "train.run.checkpoint",
  ["clock"] = "log.timer",
  ["doctor"] = "tools.doctor",
  ["draw"] = "tools.draw",
  ["features"] = "inference.vision_cache",
  ["ffi"] = "core.ffi",
  ["files"] = "core.files",
  ["font"] = "tools.font",
  ["generation"] = "inference.generation_config",
  ["image"] = "formats.image",
  ["jobs"] = "core.jobs",
  ["lora"] = "models.lora",
  ["loss"] = "algorithms.loss",
  ["mask_loss"] = "algorithms.mask_loss",
  ["metrics"] = "evaluation.metrics",
  ["model"] = "models.qwen_vl",
  ["offload"] = "models.offload",
  ["optim"] = "train.optim",
  ["pack"] = "inference.packing",
  ["pickle"] = "formats.pickle",
  ["plan"] = "tools.plan",
  ["processor"] = "models.qwen_vl.processor",
  ["prompt"] = "data.prompt",
  ["pyjson"] = "formats.pyjson",
  ["pytext"] = "formats.pytext",
  ["refshapes"] = "data.refshapes",
  ["refshapes.distance"] = "data.refshapes.distance",
  ["refshapes.raster"] = "data.refshapes.raster",
  ["refshapes.rng"] = "data.refshapes.rng",
  ["refshapes.scene"] = "data.refshapes.scene",
  ["refshapes.sentence"] = "data.refshapes.sentence",
  ["tools.repl"] = "repl",
  ["rollout"] = "inference.generate",
  ["inference.rollout"] = "inference.generate",
  ["safetensors"] = "formats.safetensors",
  ["sam2"] = "models.sam2",
  ["sam2_names"] = "models.sam2.names",
  ["scheduler"] = "inference.scheduler",
  ["segment"] = "inference.segmenter",
  ["strict"] = "core.strict",
  ["tensor"] = "core.tensor",
  ["tokenizer"] = "models.text.tokenizer",
  ["torchfile"] = "formats.torchfile",
  ["trainer"] = "train.trainer",
  ["weights"] = "models.weights",
  -- before the subfolders
  ["data.check"] = "data.checks.check",
  ["data.jsonl"] = "data.jsonl.source",
  ["models.chat_template"] = "models.text.chat_template",
  ["models.messages"] = "models.qwen_vl.messages",
  ["models.processor"] = "models.qwen_vl.processor",
  ["models.sam2_names"] = "models.sam2.names",
  ["models.sam2_predictor"] = "models.sam2.predictor",
  ["models.tiny_qwen"] = "models.tiny.qwen",
  ["models.tiny_sam2"] = "models.tiny.sam2",
  ["models.tokenizer"] = "models.text.tokenizer",
  ["train.checkpoint"] = "train.run.checkpoint",
  ["train.loop"] = "train.run.loop",
  ["train.pretrain"] = "train.supervised.pretrain",
}

local function load_under_new_name(name)
  local old = name:match "^segzero%.(.+)$"
  local new = old and NEW_NAME[old]
  if not new then return nil end
  return function() return require("segzero." .. new) end
end

-- Last, so that a module found by its own name always wins.
table.insert(package.loaders, load_under_new_name)

return { new_name = NEW_NAME }
