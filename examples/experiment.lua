-- experiment.lua - a run with a script's own plan: a cosine rate, harder rows after a while, an
-- early stop.
--
--   segzero examples/experiment.lua [key=value ...]       the settings of recipes/refcocog_grpo.lua
--
-- Hooks run between steps. They may change t.train, t.reward, t.prompt, and any number in
-- t.numbers: lr, temperature, kl_coef, entropy_coef, clip_low, clip_high; t.schedules.NAME is a
-- schedule's name or a function.

local cli = require "segzero.config.cli"
local data = require "segzero.data"
local grpo = require "recipes.refcocog_grpo"

local M = { schema = grpo.schema:renamed("examples/experiment.lua",
  "Trains with a curriculum and an early stop.") }

local function rows(level)
  return data.open("refshapes",
    { split = "train", size = 112, seed = 1, rows = 10000, level = level })
end

local smooth = 0        -- running mean of the reward
local hooks = { train = rows(1) }

function hooks.on_step(t, stats)
  smooth = stats.step == 1 and stats.reward or 0.9 * smooth + 0.1 * stats.reward
  if stats.step == 20 then t.train = rows(3) end          -- the curriculum
  t.numbers.temperature = smooth > 2 and 0.9 or 1
end

function hooks.stop_when() return smooth > 3.5 and ("the mean reward is %.2f"):format(smooth) end

function M.run(args)
  local all = { "trainer.experiment_name=experiment", "worker.actor.optim.lr_scheduler_type=cosine",
    unpack(args) }
  return grpo.run(all, hooks)
end

cli.main(M)

return M
