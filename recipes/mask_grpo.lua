-- mask_grpo.lua - GRPO where the mask itself is the reward: SAM2 turns every answer into a mask,
-- and its IoU with the true one counts.
--
--   segzero recipes/mask_grpo.lua [key=value ...]        the embedded policy and SAM2 on RefShapes
--   segzero recipes/mask_grpo.lua worker.actor.model.model_path=DIR worker.reward.sam2_path=DIR ...
--
-- The settings, the loop and the run folder are those of refcocog_grpo.lua; the reward is
-- rewards/mask_iou.lua. It needs a SAM2 checkpoint (a folder or an original .pt file) and data with
-- masks: RefShapes, or rows with the column "mask".

local cli = require "segzero.config.cli"
local grpo = require "recipes.refcocog_grpo"

local M = { schema = grpo.schema:renamed("recipes/mask_grpo.lua",
  "Trains as refcocog_grpo does, with the IoU of SAM2's mask as the reward.") }

-- These come first, so the command line may still change them.
local function with_defaults(args)
  return { "worker.reward.compute_score=mask_iou", "trainer.experiment_name=mask_grpo",
    unpack(args or {}) }
end

function M.settings(args) return grpo.settings(with_defaults(args), M.schema) end

function M.run(args, overrides)
  local t = grpo.run(with_defaults(args), overrides)
  return t
end

cli.main(M)

return M
