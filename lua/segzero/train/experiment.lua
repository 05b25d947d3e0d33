-- experiment.lua - a whole training run from settings: models, data, run folder, loggers,
-- evaluation before and after.
--
--   local t = experiment.run(cfg, overrides)
--
-- cfg: the settings of a recipe, in EasyR1's nesting (recipes/refcocog_grpo.lua: settings(args)).
-- overrides, each optional:
--   reward, train, held_out, prompt      functions and data sets that replace those of the settings
--   on_step(t, stats), on_evaluate(t, result), stop_when(t, stats)     hooks, see train/loop.lua
-- Returns the trainer. The run folder gets config.json, what the loggers write, checkpoints, and
-- before.png and after.png if there are held-out rows. Leaves out: parsing and checking settings.

local sz = require "segzero"
local advantages = require "segzero.algorithms.advantages"
local checkpoint = require "segzero.train.checkpoint"
local data_sets = require "segzero.train.data_sets"
local ending = require "segzero.train.ending"
local files = require "segzero.core.files"
local loop = require "segzero.train.loop"
local lora = require "segzero.models.lora"
local options = require "segzero.core.options"
local prompts = require "segzero.data.prompt"
local records = require "segzero.train.records"
local runner = require "segzero.reward.runner"
local segmenter_of = require "segzero.inference.segmenter"
local stop = require "segzero.core.stop"
local trainer = require "segzero.train.trainer"

local M = {}

M.overrides = options.set {
  "reward", "train", "held_out", "prompt", "on_step", "on_evaluate", "stop_when",
}

local SHEET_ROWS = 12           -- held-out rows shown in before.png and after.png

-- ---- the parts of a run ----
local function load_policy(cfg)
  local actor = cfg.worker.actor
  local policy = sz.model(actor.model.model_path, { dtype = actor.model.dtype })
  local processor = policy:processor()
  policy:tokenizer()            -- a missing file is an error before the run folder exists
  processor.min_pixels = cfg.data.min_pixels
  processor.max_pixels = cfg.data.max_pixels
  lora.configure(policy, cfg)
  return policy
end

-- The frozen model, or nil if neither the KL term nor the estimator needs it. With LoRA it is the
-- policy without adapters.
local function load_reference(cfg, policy)
  local actor = cfg.worker.actor
  local ref = cfg.worker.ref
  local needs = advantages:get(cfg.algorithm.adv_estimator).needs or {}
  local has_kl = actor.use_kl_loss and actor.kl_loss_coef ~= 0
  if not has_kl and not needs.reference then return nil end
  if policy.lora then return lora.reference(policy) end
  local dtype = ref.model.dtype or actor.model.dtype
  return sz.model(actor.model.model_path, { dtype = dtype, offload = ref.offload.param_offload })
end

local function load_segmenter(cfg)
  local path = cfg.worker.reward.sam2_path
  if path == "" then return nil end
  return segmenter_of.new(sz.sam2(path))
end

-- The checkpoint to resume from: the named one, or the newest complete one of the named run folder;
-- nil for a new run.
local function checkpoint_to_resume(cfg)
  local path = cfg.trainer.load_checkpoint_path
  if not path or files.exists(path .. "/trainer_state.json") then return path end
  local latest = checkpoint.latest(path)
  if latest then return latest end
  error(("trainer.load_checkpoint_path: %s is not a checkpoint and holds no complete one")
    :format(path), 0)
end

-- A resumed run continues in its folder; a new run gets a new one.
local function run_folder(cfg, resume)
  local wanted = cfg.trainer.save_checkpoint_path or "runs/" .. cfg.trainer.experiment_name
  local folder
  if resume then
    folder = resume:match "^(.*)/global_step_%d+/?$" or wanted
  else
    folder = files.fresh_folder(wanted)
  end
  files.make_dir(folder)
  if not resume then files.write(folder .. "/config.json", files.json(cfg)) end
  return folder
end

local function number_of_steps(cfg, train)
  if cfg.trainer.max_steps then return cfg.trainer.max_steps end
  return math.floor(train:count() / cfg.data.rollout_batch_size) * cfg.trainer.total_episodes
end

local function build(cfg, overrides)
  local reward = overrides.reward or runner.load(cfg.worker.reward.compute_score)
  local train, held_out = data_sets.open(cfg, overrides)
  local plan
  if cfg.trainer.check_memory then
    plan = require("segzero.tools.plan").check(cfg, { prompt = overrides.prompt, train = train })
  end
  local policy = load_policy(cfg)
  local reference = load_reference(cfg, policy)
  local segmenter = load_segmenter(cfg)

  local resume = checkpoint_to_resume(cfg)
  local t = trainer.new {
    config = cfg, policy = policy, reference = reference, segmenter = segmenter, plan = plan,
    reward = reward, train = train, held_out = held_out,
    prompt = overrides.prompt or prompts.seg_zero, folder = run_folder(cfg, resume),
    total_steps = number_of_steps(cfg, train),
    hooks = { on_step = overrides.on_step, on_evaluate = overrides.on_evaluate,
      stop_when = overrides.stop_when },
  }
  if resume then t:resume(resume) end
  return t, resume
end

-- ---- messages of a run ----
local function say(t, text, ...) t.log:text(t.global_step, "run", text:format(...)) end

local function number(v)
  if not v then return "none" end
  return ("%.3f"):format(v)
end

local function introduce(t, resume)
  local cfg = t.config
  local resumed = ""
  if resume then resumed = (", resumed at step %d"):format(t.global_step) end
  say(t, "policy %s, %s", tostring(t.policy), cfg.worker.actor.model.dtype)
  say(t, "%s: %d steps of %d prompts x %d answers, run folder %s%s", t.train.name or "data",
    t.total_steps,
    cfg.data.rollout_batch_size, cfg.worker.rollout.n, t.folder, resumed)
  if t.segmenter then say(t, "masks: %s", tostring(t.segmenter.sam)) end
end

-- Draws the held-out answers on one image: ground truth, prediction and the mask if there is one.
-- Frees the masks.
local function write_sheet(t, name, result)
  local draw = require "segzero.tools.draw"
  local mask_of = {}
  for _, record in ipairs(result.records) do mask_of[record.index] = record.mask end
  local shown = { name = t.held_out.name }
  function shown.row(_, i)
    local row = t.held_out:row(i)
    if mask_of[i] then draw.mask(row.image, mask_of[i]) end
    return row
  end

  local path = ("%s/%s.png"):format(t.folder, name)
  local sheet = { count = SHEET_ROWS, masks = next(mask_of) ~= nil }
  draw.predictions(path, shown, result.records, sheet)
  for _, record in ipairs(result.records) do
    if record.mask then record.mask:free() end
    record.mask = nil
  end
  t.log:image(t.global_step, name, path)
  say(t, "  images: %s", path)
end

local function evaluate_before(t)
  local result = loop.evaluate(t, SHEET_ROWS)
  say(t, "held-out reward before: %.3f of %d rows (%s)", result.reward, t.held_out:count(),
    records.parts_text(result.parts))
  if result.giou then
    say(t, "held-out gIoU before: %.3f (ceiling %s)", result.giou, number(result.ceiling))
  end
  write_sheet(t, "before", result)
  return result
end

local function evaluate_after(t, before)
  local result = loop.evaluate(t, SHEET_ROWS)
  local seed = t.config.data.seed
  local rows = t.held_out:count()
  say(t, "held-out reward after: %.3f (%s)", result.reward, records.parts_text(result.parts))
  write_sheet(t, "after", result)
  say(t, "held-out reward: before=%s after=%.3f rows=%d seed=%d", number(before and before.reward),
    result.reward, rows,
    seed)
  if result.giou then
    say(t, "held-out gIoU: before=%s after=%.3f ceiling=%s rows=%d seed=%d",
      number(before and before.giou), result.giou,
      number(result.ceiling), rows, seed)
  end
end

-- trainer.save_freq: 0 saves at the end only, -1 never.
local function save_at_end(t)
  local freq = t.config.trainer.save_freq
  local is_saved = freq > 0 and t.global_step % freq == 0
  if freq >= 0 and not is_saved then say(t, "saved %s", t:save()) end
end

local function check_overrides(overrides)
  local message = "run: %s is %s, expected %s"
  for _, name in ipairs { "reward", "prompt", "on_step", "on_evaluate", "stop_when" } do
    local f = overrides[name]
    if f ~= nil and type(f) ~= "function" then
      error(message:format(name, tostring(f), "a function"), 0)
    end
  end
  for _, name in ipairs { "train", "held_out" } do
    local set = overrides[name]
    local is_set = type(set) == "table" and type(set.count) == "function"
      and type(set.row) == "function"
    if set ~= nil and not is_set then
      error(message:format(name, tostring(set), "a data set (sz.data.open) with count() and row()"),
        0)
    end
  end
end

local function all(t, resume)
  introduce(t, resume)
  local cfg = t.config
  local before
  if t.held_out and cfg.trainer.val_before_train then before = evaluate_before(t) end
  if not cfg.trainer.val_only then
    t:run()
    save_at_end(t)
    if t.held_out then evaluate_after(t, before) end
  end
  t.log:close()
end

local function run(cfg, overrides)
  local t, resume = build(cfg, overrides)
  ending.guard(t, all, t, resume)
  return t
end

function M.run(cfg, overrides)
  overrides = options.check("run", overrides, M.overrides, 2)
  check_overrides(overrides)
  return stop.run(run, cfg, overrides)
end

return M
