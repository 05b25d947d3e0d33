-- experiment.lua - a whole training run from settings: models, data, run folder, loggers,
-- evaluation before and after.
--
--   local t = experiment.run(cfg, overrides)
--
-- cfg: the settings of a recipe, in EasyR1's nesting (recipes/refcocog_grpo.lua: settings(args)).
-- overrides, each optional:
--   reward, train, held_out, prompt      functions and data sets that replace those of the settings
--   on_step(t, stats), on_evaluate(t, result), stop_when(t, stats)   hooks, see train/run/loop.lua
-- Returns the trainer. The run folder gets config.json, what the loggers write, checkpoints, and
-- before.png and after.png if there are held-out rows (before_step_5.png where a run is resumed
-- that has one). Leaves out: parsing and checking settings.

local cjson = require "cjson"
local sz = require "segzero"
local agreement = require "segzero.train.run.agreement"
local contract = require "segzero.runs.contract"
local coordinates = require "segzero.data.coordinates"
local core_notes = require "segzero.core.notes"
local data_sets = require "segzero.train.run.data_sets"
local ending = require "segzero.train.run.ending"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local launches = require "segzero.runs.launches"
local launching = require "segzero.train.run.launching"
local learned = require "segzero.train.run.learned"
local loop = require "segzero.train.run.loop"
local lora = require "segzero.models.lora"
local opening = require "segzero.models.opening"
local options = require "segzero.core.options"
local parallel = require "segzero.train.parallel"
local paths = require "segzero.config.paths"
local plan_state = require "segzero.tools.plan_state"
local position = require "segzero.data.position"
local prompts = require "segzero.data.prompt"
local reloading = require "segzero.reward.reloading"
local resuming = require "segzero.runs.resuming"
local reward_parts = require "segzero.log.reward_parts"
local run_folder = require "segzero.runs.run_folder"
local runner = require "segzero.reward.runner"
local segmenter_of = require "segzero.inference.segmenter"
local sheets = require "segzero.train.run.sheets"
local stop = require "segzero.core.stop"
local trainer = require "segzero.train.trainer"
local train_options = require "segzero.train.options"
local user_code = require "segzero.core.user_code"
local visible = require "segzero.core.visible"

local M = {}

M.overrides = options.set {
  "reward", "train", "held_out", "prompt", "on_step", "on_evaluate", "stop_when",
}

-- ---- the parts of a run ----
-- The options that the models are opened with. shards: the group of ranks that a model is split
-- over, or nil.
local function policy_options(cfg, shards)
  return { dtype = cfg.worker.actor.model.dtype, shards = shards }
end

local function reference_options(cfg, shards)
  local ref = cfg.worker.ref
  return { dtype = ref.model.dtype or cfg.worker.actor.model.dtype,
    offload = ref.offload.param_offload, shards = shards }
end

local function load_policy(cfg, shards)
  local path = cfg.worker.actor.model.model_path
  local policy = sz.model(path, policy_options(cfg, shards))
  local processor = policy:processor()
  policy:tokenizer()            -- a missing file is an error before the run folder exists
  processor.min_pixels = cfg.data.min_pixels
  processor.max_pixels = cfg.data.max_pixels
  lora.configure(policy, cfg)
  return policy
end

-- The frozen model, or nil if neither the KL term nor the estimator needs it. With LoRA it is the
-- policy without adapters.
local function load_reference(cfg, policy, shards)
  if not train_options.uses_reference(cfg) then return nil end
  if policy.lora then return lora.reference(policy) end
  return sz.model(cfg.worker.actor.model.model_path, reference_options(cfg, shards))
end

-- What the settings, the device and the policy's config.json alone forbid. The memory plan checks
-- the adapters too; it may be turned off.
local function check_models(cfg, shards)
  local model = cfg.worker.actor.model
  paths.check_policy("worker.actor.model.model_path", model.model_path)
  opening.check_split(model.model_path, shards)
  opening.check_options(model.model_path, policy_options(cfg))
  if model.lora.rank == 0 then
    if not train_options.uses_reference(cfg) then return end
    opening.check_options(model.model_path, reference_options(cfg))
  elseif not cfg.trainer.check_memory then
    local own = cjson.decode(files.json(cfg))         -- adapters may change a setting
    plan_state.meta_policy(own, model.model_path, shards):free()
  end
end

local function load_segmenter(cfg)
  local path = cfg.worker.reward.sam2_path
  if path == "" then return nil end
  local ok, sam = pcall(sz.sam2, path)
  if not ok then error("worker.reward.sam2_path: " .. sz.core.plain(sam), 0) end
  return segmenter_of.new(sam)
end

-- Where a new run should be. An evaluation of a run's checkpoint is next to the run.
local function wanted_folder(cfg, source)
  local named = cfg.trainer.save_checkpoint_path
  if named then return named end
  if cfg.trainer.val_only and source and source.run then return source.run .. "-eval" end
  if cfg.trainer.experiment_name == "" then
    error("trainer.experiment_name is empty; it is the name of the run folder", 0)
  end
  return "runs/" .. cfg.trainer.experiment_name
end

-- A run that goes on keeps its folder; a new run and a fork get a new one.
local function take_folder(cfg, source)
  if not source or not source.in_place then return run_folder.create(wanted_folder(cfg, source)) end
  local folder = run_folder.open(source.run)
  local ok, reason = pcall(resuming.check_current, source, cfg)
  if ok then return folder end
  run_folder.close(folder)
  error(reason, 0)
end

-- The length of a run in steps, on which schedules depend. since: where the rows are counted from.
local function number_of_steps(cfg, train, since)
  if cfg.trainer.max_steps then return cfg.trainer.max_steps end
  -- Dynamic sampling moves `since` on with every row that it draws: a run that goes on must not be
  -- shorter for it than one that was never stopped.
  if cfg.algorithm.online_filtering then since = nil end
  return position.last(since or position.START, cfg.data.rollout_batch_size, train:count(),
    cfg.trainer.total_episodes)
end

-- A folder with one split gives it for both.
local function note_same_rows(parts)
  if not parts.held_out then return end
  local own = parts.identity
  local held_out = contract.identity(parts.held_out)
  if not own.hash or own.hash ~= held_out.hash or own.rows ~= held_out.rows then return end
  core_notes.say("the held-out rows are those of training: "
    .. visible.line(tostring(parts.held_out.name)))
end

-- What can be checked before the folder is taken and a weight is read.
local function prepare(cfg, overrides, ranks, neighbours, shards)
  -- Loading changes some settings (LoRA freezes the vision tower): runs are compared as given.
  local parts = { settings = files.indented_json(cfg) }
  local asked = cjson.decode(parts.settings)
  local reward = cfg.worker.reward
  if not overrides.reward then parts.reward_file = reloading.new(reward) end
  parts.reward = overrides.reward
    or runner.load(reward.compute_score, reward.reward_function_kwargs, reward.timeout)
  check_models(cfg, shards)
  parts.train, parts.held_out = data_sets.open(cfg, overrides)
  if cfg.trainer.val_only and not parts.held_out then
    error("trainer.val_only=true has nothing to evaluate: name the rows with data.val_files", 0)
  end
  local source = resuming.source(cfg)
  if not source or not source.in_place then
    folders.check(wanted_folder(cfg, source), run_folder.SETTING)
  end
  parts.identity = contract.identity(parts.train)
  note_same_rows(parts)
  if source then
    resuming.check(source, asked, parts.identity)
    parts.since = resuming.since(source, asked, parts.identity)
  end
  parts.source = source
  if cfg.trainer.check_memory then
    local known = { prompt = overrides.prompt, train = parts.train, ranks = ranks,
      neighbours = neighbours }
    parts.plan = require("segzero.tools.plan").check(cfg, known)
  end
  return parts
end

-- Loads the models, and the checkpoint into them.
local function load(cfg, overrides, parts, folder)
  local shards = parts.parallel.shard_group
  local policy = load_policy(cfg, shards)
  local reference = load_reference(cfg, policy, shards)
  -- A replica's first shard makes the masks.
  local segmenter
  if parts.parallel:is_first() then segmenter = load_segmenter(cfg) end
  local source = parts.source
  local notes = {}
  local function loaded(t)
    if not t.parallel:is_root() then return end
    if source then
      notes = resuming.begin(source, t)
    else
      files.write(folder .. "/config.json", parts.settings)
    end
    launches.note(folder, launches.of(t))
  end
  local t = trainer.new {
    config = cfg, policy = policy, reference = reference, segmenter = segmenter,
    plan = parts.plan, reward = parts.reward, train = parts.train, held_out = parts.held_out,
    prompt = overrides.prompt or prompts.style(cfg).ask, folder = folder,
    settings = parts.settings, identity = parts.identity, since = parts.since, loaded = loaded,
    resume_path = source and source.path, parallel = parts.parallel,
    reward_file = parts.reward_file,
    total_steps = number_of_steps(cfg, parts.train, parts.since),
    hooks = { on_step = overrides.on_step, on_evaluate = overrides.on_evaluate,
      stop_when = overrides.stop_when },
  }
  return t, notes
end

-- ---- messages of a run ----
local function say(t, text, ...) t.log:text(t.global_step, "run", text:format(...)) end

local function number(v)
  if not v then return "none" end
  return ("%.3f"):format(v)
end

local function introduce(t, run, source, notes)
  local cfg = t.config
  local resumed = ""
  if source then resumed = (", resumed at step %d"):format(t.global_step) end
  if run.path ~= run.wanted then
    say(t, "%s is taken, so this run writes into %s", run.wanted, run.path)
  end
  for _, text in ipairs(notes) do say(t, "%s", text) end
  say(t, "policy %s, %s", tostring(t.policy), cfg.worker.actor.model.dtype)
  say(t, "%s: %d steps of %d prompts x %d answers, run folder %s%s", t.train.name or "data",
    t.total_steps,
    cfg.data.rollout_batch_size, cfg.worker.rollout.n, t.folder, resumed)
  say(t, "%s", coordinates.sentence(t.options.input.frames, t.train, t.policy))
  if t.segmenter then say(t, "masks: %s", tostring(t.segmenter.sam)) end
end

local function evaluate_before(t)
  local result = loop.evaluate(t, sheets.ROWS)
  say(t, "held-out reward before: %.3f of %d rows%s", result.reward, t.held_out:count(),
    reward_parts.in_brackets(result.parts))
  if result.giou then
    say(t, "held-out gIoU before: %.3f (ceiling %s)", result.giou, number(result.ceiling))
  end
  sheets.write(t, "before", result)
  return result
end

-- In plain words, with the images that show it.
local function explain(t, before, after, images)
  for _, line in ipairs(learned.lines(before, after)) do say(t, "%s", line) end
  say(t, "  see %s", images)
end

local function evaluate_after(t, before)
  local result = loop.evaluate(t, sheets.ROWS)
  local seed = t.config.data.seed
  local rows = t.held_out:count()
  say(t, "held-out reward after: %.3f%s", result.reward, reward_parts.in_brackets(result.parts))
  sheets.write(t, "after", result)
  local images = before and sheets.compare(t, before, result)
  sheets.release(before)
  sheets.release(result)
  say(t, "held-out reward: before=%s after=%.3f rows=%d seed=%d", number(before and before.reward),
    result.reward, rows,
    seed)
  if result.giou then
    say(t, "held-out gIoU: before=%s after=%.3f ceiling=%s rows=%d seed=%d",
      number(before and before.giou), result.giou,
      number(result.ceiling), rows, seed)
  end
  if before then explain(t, before, result, images) end
end

-- trainer.save_freq: 0 saves at the end only, -1 never. A run that went on without a step is saved
-- already.
local function save_at_end(t, source)
  local freq = t.config.trainer.save_freq
  local is_saved = freq > 0 and t.global_step % freq == 0
  if source and source.in_place and source.state.global_step == t.global_step then return end
  if freq >= 0 and not is_saved then say(t, "saved %s", t:save()) end
end

local function check_overrides(overrides)
  local message = "run: %s is %s, expected %s"
  for _, name in ipairs { "reward", "prompt", "on_step", "on_evaluate", "stop_when" } do
    local f = overrides[name]
    if f ~= nil and type(f) ~= "function" then
      error(message:format(name, tostring(f), "a function"), 0)
    end
    user_code.interpret(f)
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

local function name_report(t)
  for _, name in ipairs(t.options.run.loggers) do
    if name == "report" then say(t, "  report: %s/report.html", t.folder) end
  end
end

local function all(t, run, source, notes)
  introduce(t, run, source, notes)
  local cfg = t.config
  local before
  if t.held_out and cfg.trainer.val_before_train then before = evaluate_before(t) end
  if not cfg.trainer.val_only then
    t:run()
    save_at_end(t, source)
    if t.held_out then evaluate_after(t, before) end
  end
  name_report(t)
  t.log:close()
  t.parallel:check_stop()       -- for what failed since the last step
end

local function check_ranks(p, cfg)
  local batch = cfg.data.rollout_batch_size
  if batch >= p.replicas then return end
  local what = "replicas of the model"
  if p.shards == 1 then what = "ranks" end
  error(("data.rollout_batch_size is %d, and there are %d %s: each needs a prompt")
    :format(batch, p.replicas, what), 0)
end

-- The run folder; other ranks know its path.
local function shared_folder(p, cfg, source)
  local folder
  local path = p:on_root(function()
    folder = take_folder(cfg, source)
    return { path = folder.path, wanted = folder.wanted }
  end)
  return folder or path
end

-- One rank of a run. Errors are those of all ranks, so that rank 0 alone prints them.
local function run(p, cfg, overrides)
  local parts
  local given = p:together(function()
    check_ranks(p, cfg)
    parts = prepare(cfg, overrides, p.size, p:neighbours(), p.shards)
    return { settings = parts.settings, identity = parts.identity }
  end)
  agreement.check(given, function(r) return p.world:name(r) end)
  parts.parallel = p
  local folder = shared_folder(p, cfg, parts.source)

  -- A run that fails before it begins leaves no folder behind.
  local t, notes
  local ok, reason = xpcall(p.together, stop.traced, p, function()
    t, notes = load(cfg, overrides, parts, folder.path)
  end)
  if not ok then
    if p:is_root() then run_folder.cancel(folder) end
    error(reason, 0)
  end
  local ended
  ended, reason = pcall(ending.guard, t, all, t, folder, parts.source, notes)
  if p:is_root() then
    if ended then run_folder.close(folder) else run_folder.cancel_if_empty(folder) end
  end
  if not ended then error(reason, 0) end
  return t
end

local function run_on_ranks(cfg, overrides)
  local p = parallel.new(cfg.trainer.collective_timeout,
    { shards = cfg.worker.rollout.tensor_parallel_size,
      copies = not cfg.worker.actor.optim.shard_state })
  return p:run(run, p, cfg, overrides)
end

-- The models and the length of a run, for steps that run again (recorder/rebuilding.lua).
M.number_of_steps = number_of_steps
M.models = { policy = load_policy, reference = load_reference, segmenter = load_segmenter }

function M.run(cfg, overrides)
  overrides = options.check("run", overrides, M.overrides, 2)
  check_overrides(overrides)
  launching.start(cfg.trainer)
  return stop.run(run_on_ranks, cfg, overrides)
end

return M
