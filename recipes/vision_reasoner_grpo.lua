-- vision_reasoner_grpo.lua - GRPO on questions about several objects, as VisionReasoner trains.
--
--   segzero recipes/vision_reasoner_grpo.lua [key=value ...]      the embedded default on RefShapes
--                                                                 with any number of objects
--   segzero recipes/vision_reasoner_grpo.lua worker.actor.model.model_path=DIR
--                                            data.train_files=FOLDER ...
--
-- The policy reasons, then answers with a list of boxes and points (data/prompt.lua:
-- vision_reasoner), which rewards/vision_reasoner.lua compares with the row's list. Settings, loop
-- and run folder are those of refcocog_grpo.lua, with the defaults of visionreasoner_7b.yaml.

local cli = require "segzero.config.cli"
local experiment = require "segzero.train.run.experiment"
local grpo = require "segzero.config.grpo"
local mistake = require "segzero.core.mistake"
local options = require "segzero.core.options"

local ABOUT = "Trains as refcocog_grpo does, on questions about any number of objects."

local DEFAULTS = {
  ["data.prompt"] = "vision_reasoner",
  ["data.max_response_length"] = 2000,
  ["worker.actor.micro_batch_size_per_device_for_update"] = 16,
  ["worker.actor.micro_batch_size_per_device_for_experience"] = 16,
  ["worker.reward.compute_score"] = "vision_reasoner",
  ["trainer.experiment_name"] = "vision_reasoner_grpo",
  ["trainer.save_freq"] = 100,
}

local M = { on_ranks = true,
  schema = grpo.schema:renamed("recipes/vision_reasoner_grpo.lua", ABOUT, nil, DEFAULTS) }

function M.settings(args) return grpo.settings(args, M.schema) end

-- Trains with these arguments and returns the trainer. overrides: as in refcocog_grpo.lua.
function M.run(args, overrides)
  overrides = options.check("run", overrides, experiment.overrides, 2)
  local t = experiment.run(mistake.reading(M.settings, args), overrides)
  return t
end

cli.main(M)

return M
