-- refcocog_grpo.lua - GRPO on referring sentences, as Seg-Zero trains.
--
--   segzero recipes/refcocog_grpo.lua               the embedded default: tiny model, RefShapes
--   segzero recipes/refcocog_grpo.lua worker.actor.model.model_path=DIR data.train_files=FOLDER ...
--   segzero recipes/refcocog_grpo.lua --help        all settings (lua/segzero/config/grpo.lua)
--
-- The policy reasons, then answers with a box and two points. With a SAM2 checkpoint
-- (worker.reward.sam2_path) rewards can use masks, and the run reports the gIoU of the greedy
-- answers if the held-out rows have masks.
-- A script can call run(args, overrides) with its own reward, data or hooks: see
-- examples/custom_reward.lua and examples/experiment.lua.

local cli = require "segzero.config.cli"
local experiment = require "segzero.train.run.experiment"
local grpo = require "segzero.config.grpo"
local mistake = require "segzero.core.mistake"
local options = require "segzero.core.options"

-- settings(args) -> the checked settings as nested tables, cfg.worker.rollout.n. Nothing is loaded.
local M = { schema = grpo.schema, settings = grpo.settings, on_ranks = true }

-- Trains with these arguments and returns the trainer. overrides, each optional: reward, train,
-- held_out, prompt, on_step, on_evaluate, stop_when (train/run/experiment.lua).
function M.run(args, overrides)
  overrides = options.check("run", overrides, experiment.overrides, 2)
  local t = experiment.run(mistake.reading(M.settings, args), overrides)
  return t
end

cli.main(M)

return M
