-- data_sets.lua - opens the data sets of a training run and checks all their rows, before any
-- weight is read.
--
--   local train, held_out = data_sets.open(cfg, overrides)       held_out: nil without one
--
-- cfg: the settings of a recipe; overrides: train, held_out, reward, prompt of experiment.run. Rows
-- are checked as data/check.lua says: those that cannot be used are an error, or left out with
-- data.on_bad_row=skip. The solutions are judged for segzero's own rewards only.
-- Leaves out: sets of a script without meta(i), which would have to make every row.

local check = require "segzero.data.check"
local console = require "segzero.log.console"
local data = require "segzero.data"
local prompts = require "segzero.data.prompt"

local M = {}

local HELD_OUT_SEED = 42        -- RefShapes rows to evaluate on do not depend on data.seed

-- Rewards whose solutions are known.
local OWN_REWARDS = { seg = true, seg_strict = true, mask_iou = true }

local function open_train(cfg)
  local d = cfg.data
  return data.sources.open(d.train_files, {
    split = "train", size = d.refshapes_size, seed = d.seed, rows = d.refshapes_rows, check = false,
  })
end

local function open_held_out(cfg)
  local d = cfg.data
  if d.val_files == "" then return nil end
  return data.sources.open(d.val_files, {
    split = "heldout", size = d.refshapes_size, seed = HELD_OUT_SEED, rows = d.refshapes_val_rows,
    check = false,
  })
end

-- Counts tokens with the tokenizer and the processor of the policy's folder; no weights are read.
local function counter_of(cfg, prompt)
  local plan_state = require "segzero.tools.plan_state"
  local policy = plan_state.meta_policy(cfg, cfg.worker.actor.model.model_path)
  return require("segzero.train.prompt_length").new(policy, cfg, prompt or prompts.seg_zero)
end

local function reward_of(cfg, overrides)
  local name = cfg.worker.reward.compute_score
  if overrides.reward or not OWN_REWARDS[name] then return nil end
  return name
end

-- Only SAM2, the reward mask_iou and a user's own reward read masks.
local function reads_masks(cfg, reward)
  return cfg.worker.reward.sam2_path ~= "" or reward == "mask_iou" or reward == nil
end

local function checked(set, setting, cfg, overrides)
  if not set or not set.meta then return set end
  local reward = reward_of(cfg, overrides)
  return check.rows(set, {
    name = setting, key = "data.on_bad_row", on_bad_row = cfg.data.on_bad_row,
    skip_long = cfg.data.filter_overlong_prompts, reward = reward,
    masks = reads_masks(cfg, reward), prompt = counter_of(cfg, overrides.prompt), say = console.say,
  })
end

function M.open(cfg, overrides)
  local train = overrides.train or open_train(cfg)
  local held_out = overrides.held_out or open_held_out(cfg)
  train = checked(train, "data.train_files", cfg, overrides)
  held_out = checked(held_out, "data.val_files", cfg, overrides)
  return train, held_out
end

return M
