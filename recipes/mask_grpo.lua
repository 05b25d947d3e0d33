-- mask_grpo.lua - GRPO with the IoU of SAM2's mask as the reward.
--
--   segzero recipes/mask_grpo.lua [key=value ...]        the embedded policy and SAM2 on RefShapes
--   segzero recipes/mask_grpo.lua worker.actor.model.model_path=DIR worker.reward.sam2_path=DIR ...
--
-- SAM2 turns every answer into a mask, which is compared with the true one (rewards/mask_iou.lua).
-- Settings, loop and run folder are those of refcocog_grpo.lua. Needs a SAM2 checkpoint (a folder
-- or an original .pt file) and data with masks: RefShapes, or rows with the column "mask".

local cli = require "segzero.config.cli"
local grpo = require "recipes.refcocog_grpo"

local ABOUT = "Trains as refcocog_grpo does, with the IoU of SAM2's mask as the reward."

local M = { schema = grpo.schema:renamed("recipes/mask_grpo.lua", ABOUT), on_ranks = true }

-- These come first, so that the command line can override them.
local function with_defaults(args)
  return {
    "worker.reward.compute_score=mask_iou",
    "trainer.experiment_name=mask_grpo",
    unpack(args or {}),
  }
end

function M.settings(args) return grpo.settings(with_defaults(args), M.schema) end

function M.run(args, overrides)
  local t = grpo.run(with_defaults(args), overrides)
  return t
end

cli.main(M)

return M
