-- data_sets.lua - opens the data sets of a training run and checks all their rows, before any
-- weight is read.
--
--   local train, held_out = data_sets.open(cfg, overrides)       held_out: nil without one
--   local train = data_sets.open_train(cfg)                       unchecked: for a report
--
-- cfg: the settings of a recipe; overrides: train, held_out, reward, prompt of experiment.run. Rows
-- are checked as data/checks/check.lua says: those that cannot be used are an error, or left out
-- with data.on_bad_row=skip. The solutions are judged for segzero's own rewards only. Leaves out:
-- sets of a script without meta(i), which would have to make every row.

local check = require "segzero.data.checks.check"
local console = require "segzero.log.console"
local data = require "segzero.data"
local frame = require "segzero.data.frame"
local opening = require "segzero.models.opening"
local prompt_length = require "segzero.train.run.prompt_length"
local sampler = require "segzero.data.sampler"
local prompts = require "segzero.data.prompt"

local M = {}

local HELD_OUT_SEED = 42        -- RefShapes rows to evaluate on do not depend on data.seed

-- Rewards whose solutions are known.
local OWN_REWARDS = { seg = true, seg_strict = true, mask_iou = true, vision_reasoner = true }

function M.open_train(cfg)
  local d = cfg.data
  return data.sources.open(d.train_files, {
    split = "train", size = d.refshapes_size, seed = d.seed, rows = d.refshapes_rows, check = false,
    empty = d.refshapes_empty,
    prompt_key = d.prompt_key, answer_key = d.answer_key, image_key = d.image_key,
    image_dir = d.image_dir, several = prompts.style(cfg).several, label = "data.train_files",
  })
end

local function open_held_out(cfg)
  local d = cfg.data
  if d.val_files == "" then return nil end
  return data.sources.open(d.val_files, {
    split = "heldout", size = d.refshapes_size, seed = HELD_OUT_SEED, rows = d.refshapes_val_rows,
    check = false, empty = d.refshapes_empty,
    prompt_key = d.prompt_key, answer_key = d.answer_key, image_key = d.image_key,
    image_dir = d.image_dir, several = prompts.style(cfg).several, label = "data.val_files",
  })
end

-- A policy for counting tokens: its tokenizer and processor, without weights. nil if the family has
-- none such.
local function counting_policy(cfg)
  local model = cfg.worker.actor.model
  local family = opening.family(model.model_path, 0)
  return family.meta and family.meta(model.model_path, model.dtype)
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

-- What the check's outcome depends on apart from the files of the set. nil if that cannot be said:
-- a script's own prompt may depend on anything.
local function depends(cfg, overrides, counter)
  if overrides.prompt then return nil end
  local d = cfg.data
  return table.concat({ counter and counter:key() or "", d.prompt_key, d.answer_key, d.image_key,
    d.image_dir }, "\n")
end

local function checked(set, setting, cfg, overrides, policy)
  local reward = reward_of(cfg, overrides)
  local prompt = overrides.prompt or prompts.style(cfg).ask
  local counter = policy and prompt_length.new(policy, cfg, prompt)
  return check.rows(set, {
    name = setting, key = "data.on_bad_row", on_bad_row = cfg.data.on_bad_row,
    skip_long = cfg.data.filter_overlong_prompts, reward = reward,
    solution_frame = frame.settings(cfg.data, "data.").solution,
    masks = reads_masks(cfg, reward), prompt = counter, depends = depends(cfg, overrides, counter),
    say = console.say,
  })
end

-- A set of a script may return anything.
local function check_count(set, setting)
  if not set then return end
  local n = set:count()
  local is_count = type(n) == "number" and n >= 1 and n % 1 == 0
  if is_count then return end
  error(("%s: the data set %s: count() returned %s, expected how many rows there are"):format(
    setting, set.name or "of the script", tostring(n)), 0)
end

function M.open(cfg, overrides)
  local train = overrides.train or M.open_train(cfg)
  local held_out = overrides.held_out or open_held_out(cfg)
  check_count(train, "data.train_files")
  check_count(held_out, "data.val_files")

  -- One tokenizer for both.
  local policy
  local function check_set(set, setting)
    if not set or not set.meta then return set end
    policy = policy or counting_policy(cfg)
    return checked(set, setting, cfg, overrides, policy)
  end
  train = check_set(train, "data.train_files")
  held_out = check_set(held_out, "data.val_files")
  if not cfg.trainer.val_only then sampler.check_batch(train, cfg.data.rollout_batch_size) end
  return train, held_out
end

return M
