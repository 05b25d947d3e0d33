-- experiment.lua - GRPO with a curriculum, a cosine rate and an early stop.
--
--   segzero examples/experiment.lua [key=value ...]       the settings of recipes/refcocog_grpo.lua
--
-- Hooks run between steps. They may change t.train, t.reward, t.prompt, any number in t.numbers
-- (lr, temperature, kl_coef, entropy_coef, clip_low, clip_high), and t.schedules.NAME: the name of
-- a schedule, or a function.

local cli = require "segzero.config.cli"
local data = require "segzero.data"
local grpo = require "recipes.refcocog_grpo"

local ABOUT = "Trains with a curriculum and an early stop."

local M = { schema = grpo.schema:renamed("examples/experiment.lua", ABOUT), on_ranks = true }

local function rows(level)
  local options = { split = "train", size = 112, seed = 1, rows = 10000, level = level }
  return data.open("refshapes", options)
end

local smooth = 0        -- running mean of the reward
local hooks = { train = rows(1) }

function hooks.on_step(t, stats)
  smooth = 0.9 * smooth + 0.1 * stats.reward
  if stats.step == 1 then smooth = stats.reward end
  if stats.step == 20 then t.train = rows(3) end          -- the curriculum
  t.numbers.temperature = 1
  if smooth > 2 then t.numbers.temperature = 0.9 end
end

-- A text ends the run after this step.
function hooks.stop_when()
  if smooth > 3.5 then return ("the mean reward is %.2f"):format(smooth) end
end

function M.run(args)
  local all = {
    "trainer.experiment_name=experiment",
    "worker.actor.optim.lr_scheduler_type=cosine",
    unpack(args),
  }
  return grpo.run(all, hooks)
end

cli.main(M)

return M
