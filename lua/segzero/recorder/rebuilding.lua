-- rebuilding.lua - makes the trainer of a finished run again, at a checkpoint before one of its
-- steps, without touching the run's folder.
--
--   local source = rebuilding.source(folder, step)
--     -> {folder =, step =, cfg = the settings of that step, path = checkpoint or nil,
--         from = the step that the trainer starts after, notes = {texts}}
--   local t, sink = rebuilding.trainer(source, p)      p: of train/parallel.lua; nil: one rank
--       t: trainer.new's object at source.from. sink.rows: after a step, the records of its answers
--       as rollouts.jsonl has them
--   rebuilding.free(t)
--   rebuilding.settings(folder, step)      cfg alone
--   rebuilding.reward(folder, step, cfg) -> f
--
-- The models, data and settings are those of config.json, as in train/run/experiment.lua. What a
-- script gave to its run (a reward, a prompt, a data set, hooks) is not stored and cannot be made
-- again. Errors are one line without a position.
-- Leaves out: comparing (comparing.lua).

local checkpoint = require "segzero.train.run.checkpoint"
local cjson = require "cjson"
local config = require "segzero.config"
local contract = require "segzero.runs.contract"
local data_sets = require "segzero.train.run.data_sets"
local experiment = require "segzero.train.run.experiment"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local grpo = require "segzero.config.grpo"
local loggers = require "segzero.log.loggers"
local old_settings = require "segzero.runs.old_settings"
local parallel = require "segzero.train.parallel"
local paths = require "segzero.config.paths"
local position = require "segzero.data.position"
local prompts = require "segzero.data.prompt"
local reloading = require "segzero.reward.reloading"
local resuming = require "segzero.runs.resuming"
local run_folder = require "segzero.runs.run_folder"
local runner = require "segzero.reward.runner"
local schema = require "segzero.config.schema"
local trainer = require "segzero.train.trainer"
local trainer_state = require "segzero.runs.trainer_state"

local M = {}

local LOGGER = "recorder"

-- ---- the settings of a step ----
-- The steps after which the settings changed, between two steps.
local function changed_between(folder, from, step)
  local list = {}
  for _, old in ipairs(old_settings.list(folder)) do
    if old.step > from and old.step < step and list[#list] ~= old.step then
      list[#list + 1] = old.step
    end
  end
  return list
end

-- Without JSON's null, which is a setting that is not set. A key that an older segzero did not know
-- has its default.
local function complete(cfg)
  for _, row in ipairs(grpo.schema.rows) do
    local value = config.get(cfg, row.key)
    if value == cjson.null then value = nil end
    if value == nil and not row.optional then value = row.default end
    schema.put(cfg, row.key, value)
  end
  local model = cfg.worker.actor.model
  model.model_path = paths.stored(model.model_path)
  cfg.worker.reward.sam2_path = paths.stored(cfg.worker.reward.sam2_path)
  return cfg
end

-- ---- the checkpoint ----
-- A run that began from another run's checkpoint has none of its own before its first one.
local function start_of_fork(folder, cfg)
  local named = cfg.trainer.load_checkpoint_path
  if type(named) ~= "string" then return nil end
  local path = folders.kind(named) and named:gsub("(.)/+$", "%1")
  if not path or folders.same(path, folder) or folders.same(folders.parent(path), folder) then
    return nil
  end
  if files.exists(path .. "/trainer_state.json") then return path end
  return checkpoint.latest(path)
end

local function nearest(folder, step, cfg)
  local best
  for _, one in ipairs(checkpoint.list(folder)) do
    if one.step < step then best = one.path end
  end
  return best or start_of_fork(folder, cfg)
end

function M.settings(folder, step)
  return complete(files.read_json_object(old_settings.at(folder, step)))
end

function M.source(folder, step)
  run_folder.check_run(folder)
  local cfg = M.settings(folder, step)
  local source = { folder = folder, step = step, cfg = cfg, notes = {}, from = 0 }
  source.path = nearest(folder, step, cfg)
  if source.path then
    source.state = trainer_state.read(source.path, true)
    source.from = source.state.global_step
    source.settings = files.read_json_object(source.path .. "/settings.json", true)
  end
  if source.from >= step then
    error(("step=%d is before the run began, at step %d"):format(step, source.from + 1), 0)
  end
  for _, at in ipairs(changed_between(folder, source.from, step)) do
    source.notes[#source.notes + 1] = ("the settings changed after step %d, whose checkpoint is "
      .. "gone: all steps run with those of step %d"):format(at, step)
  end
  return source
end

-- ---- the trainer ----
local sink

loggers:register(LOGGER, {
  help = "keeps the records of the last step, for segzero replay",
  open = function()
    local own = sink
    local log = {}
    function log.rows(_, _, name, list) if name == "rollouts" then own.rows = list end end
    return log
  end,
})

-- Where the rows are counted from, if the run went on here with another batch or data set.
local function since_of(source, set)
  if not source.state then return position.START end
  return resuming.since(source, source.cfg, contract.identity(set))
end

-- The reward that judged a step: the copy in the run's folder, or else the one of the settings.
function M.reward(folder, step, cfg)
  local o = cfg.worker.reward
  return reloading.stored(folder, step, o)
    or runner.load(o.compute_score, o.reward_function_kwargs, o.timeout)
end

function M.trainer(source, p)
  p = p or parallel.alone()
  local cfg = source.cfg
  cfg.trainer.logger = { LOGGER }
  cfg.trainer.report = false
  cfg.data.val_files = ""
  cfg.trainer.val_only = false
  local f = M.reward(source.folder, source.from + 1, cfg)
  local set = data_sets.open(cfg, {})
  local since = since_of(source, set)
  local policy = experiment.models.policy(cfg, p.shard_group)
  local segmenter
  if p:is_first() then segmenter = experiment.models.segmenter(cfg) end
  local mine = {}
  sink = mine
  local t = trainer.new {
    config = cfg, policy = policy, reference = experiment.models.reference(cfg, policy,
      p.shard_group),
    segmenter = segmenter, reward = f, train = set, parallel = p,
    prompt = prompts.style(cfg).ask, since = since, resume_path = source.path,
    total_steps = math.max(source.step, experiment.number_of_steps(cfg, set, since)),
  }
  return t, mine
end

function M.free(t)
  t.sampler:cancel()
  t.log:close()
  if t.reference and t.reference ~= t.policy and t.reference.free and not t.policy.lora then
    t.reference:free()
  end
  t.policy:free()
end

return M
