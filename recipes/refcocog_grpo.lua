-- refcocog_grpo.lua - GRPO on referring sentences, as Seg-Zero trains: the policy reasons, then answers with a box and two
-- points.
--
--   segzero recipes/refcocog_grpo.lua                  the embedded default: tiny model, RefShapes
--   segzero recipes/refcocog_grpo.lua worker.actor.model.model_path=DIR data.train_files=FOLDER data.val_files=FOLDER
--   segzero recipes/refcocog_grpo.lua --help           all settings (lua/segzero/config/grpo.lua)
--
-- With a SAM2 checkpoint (worker.reward.sam2_path) rewards may ask for masks, and if the held-out rows have masks, the run
-- also says how well those of the greedy answers fit (gIoU).
-- A script may also call run(args, overrides) with its own reward or data: see examples/custom_reward.lua.

local sz = require "segzero"
local cli = require "segzero.config.cli"
local data = require "segzero.data"
local files = require "segzero.core.files"
local grpo = require "segzero.config.grpo"
local options = require "segzero.core.options"
local trainer = require "segzero.train.trainer"
local prompt = require "segzero.data.prompt"
local checkpoint = require "segzero.train.checkpoint"
local segment = require "segzero.inference.segmenter"
local terms = require "rewards.seg_terms"
local lora = require "segzero.models.lora"
local cjson = require "cjson"

-- settings(args) -> the checked settings as nested tables, cfg.worker.rollout.n. Nothing is loaded.
local M = { schema = grpo.schema, settings = grpo.settings }

local OVERRIDES = options.set { "reward", "train", "held_out", "prompt" }

-- The reward that a setting names: a name in rewards/, or a .lua file that returns a function.
local function from_file(path)
  local chunk, reason = loadfile(path)
  if not chunk then error("the reward does not load: " .. reason, 0) end
  local ok, found = xpcall(chunk, debug.traceback)
  if not ok then error(("the reward %s does not load: %s"):format(path, found), 0) end
  return found
end

local function from_rewards(name)
  local module = "rewards." .. name
  local ok, found = pcall(require, module)
  if ok then return found end
  if found:find("module '" .. module .. "' not found", 1, true) then
    error(("worker.reward.compute_score: there is no reward '%s' (rewards/%s.lua)"):format(name, name), 0)
  end
  error(("the reward %s does not load: %s"):format(name, found), 0)
end

local function load_reward(name)
  local load = from_rewards
  if name:match "%.lua$" then load = from_file end
  local reward = load(name)
  if type(reward) ~= "function" then
    error(("the reward %s returns a %s, expected a function"):format(name, type(reward)), 0)
  end
  return reward
end

-- Held-out answers as a picture: ground truth, prediction, its mask if the record has one (freed here), sentence.
local SHEET = 12
local function write_sheet(path, held_out, records)
  local draw, masks = require "segzero.tools.draw", {}
  for _, r in ipairs(records) do masks[r.index] = r.mask end
  local shown = { name = held_out.name }
  function shown.row(_, i)
    local row = held_out:row(i)
    if masks[i] then draw.mask(row.image, masks[i]) end
    return row
  end
  draw.predictions(path, shown, records, { count = SHEET, masks = next(masks) ~= nil })
  for _, r in ipairs(records) do
    if r.mask then r.mask:free() end
    r.mask = nil
  end
  print("  pictures: " .. path)
end

-- Ground truth as a prompt for SAM2, or nil.
local function read_truth(solution)
  local box, points = terms.read_truth(solution)
  return box and points and { bbox = box, points = points } or nil
end

local function number(v) return v and ("%.3f"):format(v) or "none" end

-- overrides: {reward = f, train = set, held_out = set, prompt = f}, each optional.
function M.run(args, overrides)
  overrides = options.check("run", overrides, OVERRIDES, 2)
  local cfg = M.settings(args)
  local d, actor, ref = cfg.data, cfg.worker.actor, cfg.worker.ref
  local reward = overrides.reward or load_reward(cfg.worker.reward.compute_score)
  local train = overrides.train or data.open(d.train_files, { split = "train", size = d.refshapes_size, seed = d.seed, rows = d.refshapes_rows })
  local held_out = overrides.held_out or d.val_files ~= ""
    and data.open(d.val_files, { split = "heldout", size = d.refshapes_size, seed = 42, rows = d.refshapes_val_rows }) or nil

  local plan = cfg.trainer.check_memory and require("segzero.tools.plan").check(cfg, { prompt = overrides.prompt, train = train }) or nil
  local policy = sz.qwen_vl(actor.model.model_path, { dtype = actor.model.dtype })
  local processor = policy:processor()
  policy:tokenizer()                                      -- what is missing is said before the run folder is made
  processor.min_pixels, processor.max_pixels = d.min_pixels, d.max_pixels
  lora.configure(policy, cfg)
  local reference = actor.use_kl_loss and actor.kl_loss_coef ~= 0 and (policy.lora and lora.reference(policy)
    or sz.qwen_vl(actor.model.model_path, { dtype = ref.model.dtype or actor.model.dtype, offload = ref.offload.param_offload })) or nil

  local sam2 = cfg.worker.reward.sam2_path
  local segmenter = sam2 ~= "" and segment.new(sz.sam2(sam2)) or nil

  local resume = cfg.trainer.load_checkpoint_path         -- a run folder means the newest checkpoint in it
  if resume and not files.exists(resume .. "/trainer_state.json") then
    resume = checkpoint.latest(resume) or error(("trainer.load_checkpoint_path: %s is no checkpoint and has none that is complete"):format(resume), 0)
  end
  local wanted = cfg.trainer.save_checkpoint_path or "runs/" .. cfg.trainer.experiment_name
  local folder = resume and (resume:match "^(.*)/global_step_%d+/?$" or wanted) or files.fresh_folder(wanted)
  files.make_dir(folder)
  if not resume then files.write(folder .. "/config.json", cjson.encode(cfg)) end

  local t = trainer.new { config = cfg, policy = policy, reference = reference, reward = reward, train = train, held_out = held_out,
    prompt = overrides.prompt or prompt.seg_zero, folder = folder, segmenter = segmenter, truth = read_truth, plan = plan }
  local steps_per_epoch = math.floor(train:count() / d.rollout_batch_size)
  t.total_steps = cfg.trainer.max_steps or steps_per_epoch * cfg.trainer.total_episodes
  if resume then t:resume(resume) end

  print(("policy %s, %s"):format(tostring(policy), actor.model.dtype))
  print(("%s: %d steps of %d prompts x %d answers, run folder %s%s"):format(train.name, t.total_steps, d.rollout_batch_size,
    cfg.worker.rollout.n, folder, resume and (", resumed at step " .. t.global_step) or ""))
  if segmenter then print("masks: " .. tostring(segmenter.sam)) end
  local before, parts, records, giou_before
  if held_out and cfg.trainer.val_before_train then
    before, parts, records, giou_before = t:evaluate(SHEET)
    t:log_evaluation(before, parts, giou_before)
    print(("held-out reward before: %.3f of %d rows (%s)"):format(before, held_out:count(), trainer.sorted_parts(parts)))
    if giou_before then print(("held-out gIoU before: %.3f (ceiling %s)"):format(giou_before, number(t.ceiling))) end
    write_sheet(folder .. "/before.png", held_out, records)
  end
  if not cfg.trainer.val_only then
    t:run()
    if cfg.trainer.save_freq >= 0 and (cfg.trainer.save_freq == 0 or t.global_step % cfg.trainer.save_freq ~= 0) then print("saved " .. t:save()) end
    if held_out then
      local after, after_parts, after_records, giou_after = t:evaluate(SHEET)
      t:log_evaluation(after, after_parts, giou_after)
      print(("held-out reward after: %.3f (%s)"):format(after, trainer.sorted_parts(after_parts)))
      write_sheet(folder .. "/after.png", held_out, after_records)
      print(("held-out reward: before=%s after=%.3f rows=%d seed=%d"):format(number(before), after, held_out:count(), d.seed))
      if giou_after then
        print(("held-out gIoU: before=%s after=%.3f ceiling=%s rows=%d seed=%d"):format(number(giou_before), giou_after, number(t.ceiling),
          held_out:count(), d.seed))
      end
    end
  end
  t.log:close()
  return t
end

cli.main(M)

return M
