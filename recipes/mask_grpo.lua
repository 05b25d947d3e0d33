-- mask_grpo.lua - GRPO where the mask itself is the reward: SAM2 turns every answer into a mask, and its IoU with the true one counts.
--
--   segzero recipes/mask_grpo.lua [key=value ...]                     the embedded policy and SAM2 on RefShapes
--   segzero recipes/mask_grpo.lua worker.actor.model.model_path=DIR worker.reward.sam2_path=DIR data.train_files=FOLDER data.val_files=FOLDER
--
-- The settings, the loop and the run folder are those of refcocog_grpo.lua; the reward is rewards/mask_iou.lua. It needs a SAM2
-- checkpoint (worker.reward.sam2_path: a folder or an original .pt file) and data with masks: RefShapes, or the column "mask".

-- Arguments that come later win, so the command line may still change these.
require("recipes.refcocog_grpo").run { "worker.reward.compute_score=mask_iou", "trainer.experiment_name=mask_grpo", unpack(arg) }
