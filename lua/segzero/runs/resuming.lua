-- resuming.lua - finds the checkpoint that a run goes on from, and prepares its folder.
--
--   local source = resuming.source(cfg)     nil for a new run; else
--       {path = the checkpoint, run = the run folder that it belongs to or nil, in_place = boolean,
--        state = trainer_state.json, settings = of the run at that checkpoint, or nil}
--   resuming.check(source, cfg, identity)   refuses what cannot go on; sets source.changes. cfg: as
--                                           the user gave it
--   resuming.check_current(source, cfg)     once the folder is locked: refuses if it went on
--   resuming.since(source, cfg, identity)   where the rows are counted from (data/position.lua)
--   resuming.begin(source, t)               the checkpoint has been loaded into t: puts later
--                                           checkpoints aside, cuts the logs, writes config.json
--     -> texts that say what was done
--
-- The run goes on in its own folder if trainer.load_checkpoint_path names this folder or a
-- global_step_N in it, and trainer.save_checkpoint_path is not given or names the same folder.
-- Otherwise, and always with trainer.val_only, a new run begins (a fork) in a folder of its own,
-- and the old one is not changed: an evaluation is no part of the run that it evaluates.
--
-- After a return to an earlier step the later checkpoints are renamed to abandoned_1/global_step_N,
-- and the later lines of the logs go to abandoned_1 as well (abandoned_2 the next time). Old
-- settings are kept as config_step_N.json (old_settings.lua).
-- Errors are one line without a position. Leaves out: loading weights (checkpoint.lua).

local checkpoint = require "segzero.train.run.checkpoint"
local contract = require "segzero.runs.contract"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local logs = require "segzero.runs.logs"
local manifest = require "segzero.runs.manifest"
local mistake = require "segzero.core.mistake"
local old_settings = require "segzero.runs.old_settings"
local position = require "segzero.data.position"
local retention = require "segzero.runs.retention"
local run_folder = require "segzero.runs.run_folder"
local trainer_state = require "segzero.runs.trainer_state"

local M = {}

local SETTING = "trainer.load_checkpoint_path"
local LOGS = { "metrics.jsonl", "rollouts.jsonl" }

-- ---- finding ----
-- The named checkpoint, or the newest complete one of the named run folder.
local function find(named)
  if named == "" then error(SETTING .. ": the path is empty; name a run folder", 0) end
  local path = named:gsub("(.)/+$", "%1")
  if files.exists(path .. "/trainer_state.json") then return path end
  local latest = checkpoint.latest(path)
  if latest then return latest end
  local foreign = require("segzero.merge.locate").resuming(path)
  if foreign then error(("%s: %s"):format(SETTING, foreign), 0) end
  mistake.raise(("%s: %s is not a checkpoint and holds no complete one"):format(SETTING, named))
end

-- The run folder that a checkpoint belongs to, or nil if it was copied out of its run.
local function run_of(path)
  local name = path:match "[^/]*$"
  if not name:match "^global_step_%d+$" and not name:match "^global_step_%d+%.old$" then
    return nil
  end
  local run = folders.parent(path)
  if not run_folder.is_run(run) then return nil end
  local owner = manifest.owner(path)
  local id = run_folder.id(run)
  if owner and owner ~= "" and owner ~= id then return nil end
  return run
end

-- Settings under which the checkpoint was written. Before settings.json, the run's config.json.
local function settings_of(path, run)
  local settings = files.read_json_object(path .. "/settings.json", true)
  if settings or not run then return settings end
  return files.read_json_object(run .. "/config.json", true)
end

-- A recipe's default name is not a wish for another folder; a new experiment_name is.
local function goes_on_in(cfg, run, settings)
  if cfg.trainer.val_only then return false end
  local save = cfg.trainer.save_checkpoint_path
  if save then return folders.same(save, run) end
  local old = settings and settings.trainer and settings.trainer.experiment_name
  return not old or old == cfg.trainer.experiment_name
end

function M.source(cfg)
  local named = cfg.trainer.load_checkpoint_path
  if not named then return nil end
  local path = find(named)
  if not files.exists(path .. "/DONE") then
    error(("%s: %s is not a complete checkpoint (no file DONE)"):format(SETTING, path), 0)
  end
  local run = run_of(path)
  local settings = settings_of(path, run)
  local source = { path = path, run = run, settings = settings }
  source.state = trainer_state.read(path, true)
  source.in_place = run ~= nil and goes_on_in(cfg, run, settings)
  return source
end

-- Another process may have gone on with the run before this one had the lock on its folder.
function M.check_current(source, cfg)
  local now = find(cfg.trainer.load_checkpoint_path)
  if now == source.path then return end
  error(("%s went on to %s while this run was starting; start it again"):format(source.run, now), 0)
end

-- ---- refusing ----
local function check_seed(source)
  local settings = source.settings
  local seed = settings and settings.data and settings.data.seed
  if not seed or not source.state.seed or seed == source.state.seed then return end
  error(("checkpoint %s: trainer_state.json: seed is %s, but the run's data.seed was %s")
    :format(source.path, tostring(source.state.seed), tostring(seed)), 0)
end

-- segzero 0.1 wrote no manifest; its checkpoints have these files.
local function looks_like_ours(path)
  for _, name in ipairs { "trainer_state.json", "optimizer.safetensors", "model.safetensors" } do
    if files.exists(path .. "/" .. name) then return true end
  end
  return false
end

-- The later steps of the run, as names in its folder: {ours = those to be put aside, foreign =}.
local function later_steps(source)
  local found = { ours = {}, foreign = {} }
  local id = run_folder.id(source.run)
  for _, name in ipairs(folders.list(source.run) or {}) do
    local step = tonumber(name:match "^global_step_(%d+)$" or name:match "^global_step_(%d+)%.old$")
    local path = source.run .. "/" .. name
    if step and step > source.state.global_step then
      local owner = manifest.owner(path)
      local is_own = owner == id or owner == ""
      local is_old = not owner and looks_like_ours(path)
      local is_empty = #(folders.list(path) or {}) == 0
      local complete = files.exists(path .. "/DONE")
      if (is_own and complete) or is_old then
        table.insert(found.ours, name)
      elseif not is_own and not is_empty then
        table.insert(found.foreign, name)
      end
    end
  end
  return found
end

function M.check(source, cfg, identity)
  check_seed(source)
  -- Before the settings are compared: damaged ones are no change.
  manifest.check_sizes(source.path)
  source.changes = {}
  if source.settings then
    source.changes = contract.changes(source.settings, cfg, identity, source.state)
  end
  if not source.in_place then return end
  if not cfg.trainer.resume_changes then contract.check(source.changes, source.run) end
  local foreign = later_steps(source).foreign[1]
  if foreign then
    error(("%s: %s/%s is in the way, and this run did not write it; move it away or give %s")
      :format(SETTING, source.run, foreign, run_folder.SETTING), 0)
  end
end

-- ---- rows ----
-- The batch size of the old run; nil if it is not known.
local function old_batch(source)
  local data = source.settings and source.settings.data
  return data and data.rollout_batch_size
end

function M.since(source, cfg, identity)
  local state = source.state
  local since = state.rows_since or position.START
  local batch = old_batch(source)
  local same_batch = not batch or batch == cfg.data.rollout_batch_size
  local same_rows = contract.same_rows(identity, state)
  if same_batch and same_rows then return since end

  -- Another batch size goes on behind the last row, another data set at its first one.
  local rows = state.rows
    or position.after(since, batch or cfg.data.rollout_batch_size, identity.rows, state.global_step)
  local place = { step = state.global_step, epoch = rows.epoch, before = rows.before,
    number = rows.number }
  if not same_rows then
    place.epoch = rows.epoch + 1
    place.before = 0
  end
  return place
end

-- ---- the folder ----
-- A new folder abandoned_N of a run.
local function new_abandoned(run)
  local n = 1
  while folders.kind(("%s/abandoned_%d"):format(run, n)) do n = n + 1 end
  local path = ("%s/abandoned_%d"):format(run, n)
  files.make_dir(path)
  return path
end

local function rename(from, to)
  local ok, reason = os.rename(from, to)
  if not ok then error(reason, 0) end
  folders.sync(folders.parent(to))
  folders.sync(folders.parent(from))
end

-- Later checkpoints and lines go into one folder, which is made if there are any.
local function put_aside(source, again)
  local run = source.run
  local step = source.state.global_step
  local aside
  local function place()
    aside = aside or new_abandoned(run)
    return aside
  end
  local names = later_steps(source).ours
  for _, name in ipairs(names) do
    rename(run .. "/" .. name, place() .. "/" .. name)
  end
  for _, name in ipairs(LOGS) do
    local path = run .. "/" .. name
    if logs.later(path, step, again) then logs.cut(path, step, again, place() .. "/" .. name) end
  end
  if not aside then return nil end
  return ("put aside what was later than step %d: %s"):format(step, aside)
end

-- The settings of the run are in config.json; those before a change stay in config_step_N.json.
-- After a return to before a change, config.json is of steps that are put aside. The files of later
-- changes get the number of this step: the steps that stay ran under the oldest of them.
local function write_settings(source, t)
  local step = source.state.global_step
  local path = t.folder .. "/config.json"
  local is_changed = not source.settings or #source.changes > 0
  if t.total_steps > step then
    is_changed = is_changed or old_settings.at(t.folder, step) ~= path
    for _, old in ipairs(old_settings.later(t.folder, step)) do
      rename(t.folder .. "/" .. old.name, old_settings.free(t.folder, step))
    end
  end
  local present = files.read(path)
  if present and not is_changed then return end
  if present then files.write(old_settings.free(t.folder, step), present) end
  files.write(path, t.settings)
end

-- What a killed run left half-written. Another program's folder stays.
local function remove_half_written(run)
  local id = run_folder.id(run)
  for _, name in ipairs(folders.list(run) or {}) do
    local path = run .. "/" .. name
    local is_left = name:match "^global_step_%d+%.tmp$"
    local is_old = name:match "^global_step_%d+%.old$" and not files.exists(path .. "/DONE")
    local is_own = manifest.owner(path) == id or manifest.is_bare(path)
    if (is_left or is_old) and is_own then manifest.remove(path) end
  end
end

function M.begin(source, t)
  local texts = {}
  for i, change in ipairs(source.changes) do texts[i] = contract.line(change) end
  if not source.settings then
    texts[1] = "the checkpoint does not say its settings, so they are not compared"
  end
  if not source.state.data then
    texts[#texts + 1] = "the checkpoint does not say its data set, so it is not compared"
  end
  if not files.exists(source.path .. "/manifest.json") then
    texts[#texts + 1] = "the checkpoint has no manifest.json, so its bytes are not checked"
  end
  if not source.in_place then
    table.insert(texts, 1, ("a new run from %s, which stays as it is"):format(source.path))
    files.write(t.folder .. "/config.json", t.settings)
    return texts
  end
  write_settings(source, t)
  remove_half_written(source.run)
  retention.finish_removals(t)

  -- A run that has no steps left abandons nothing.
  local cfg = t.config.trainer
  if t.total_steps <= t.global_step then return texts end
  texts[#texts + 1] = put_aside(source, cfg.val_before_train and t.held_out ~= nil)
  retention.recall(t)
  local latest = ("global_step_%d\n"):format(t.global_step)
  if source.path:match "global_step_%d+$" then files.write(t.folder .. "/latest", latest) end
  return texts
end

return M
