-- contract.lua - what may change when a run goes on: its settings and its data set.
--
--   local changes = contract.changes(old, new, identity, state)
--       a list of {key =, old =, new = texts, free = boolean}, by key. old and new: settings as
--       nested tables; identity: of the data set now (contract.identity); state: of the checkpoint
--   contract.check(changes, where)      refuses those that are not free, in one line
--   contract.line(change)               "changed at the resume: KEY: OLD -> NEW"
--   contract.is_path(key)               whether the setting names a file or folder
--   contract.identity(set) -> {name =, rows =, hash =}
--       hash: the set's fingerprint(); nil if it has none
--   contract.same_rows(identity, state) -> false if the data set is not the checkpoint's
--
-- What changes no result, and what a schedule may change anyway, is free: the learning rate, the
-- length of the run, how often it saves and evaluates, loggers, memory. The reward is free as well,
-- because a run that its failing reward ended goes on with a mended one. Everything else is the
-- experiment itself. A setting that the old run did not know had its default. Paths are the same if
-- they lead to the same file or folder, and a data set that was moved is the same if its rows are.
-- Leaves out: what a fork may change (anything; experiment.lua).

local cjson = require "cjson"
local config = require "segzero.config"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"

local M = {}

-- Said when they change, and allowed.
local FREE = {
  "worker.actor.optim.lr", "worker.actor.optim.lr_scheduler_type",
  "worker.actor.optim.lr_warmup_steps_ratio", "worker.actor.optim.lr_warmup_steps",
  "worker.actor.optim.min_lr_ratio", "worker.rollout.val_override_config.n",
  "worker.rollout.val_override_config.temperature",
  "worker.rollout.val_override_config.top_p", "worker.rollout.val_override_config.top_k",
  "trainer.total_episodes", "trainer.max_steps", "trainer.max_try_make_batch",
  "trainer.save_freq", "trainer.test_freq", "trainer.save_limit",
  "trainer.remove_previous_ckpt", "trainer.save_best",
  "trainer.collective_timeout", "trainer.n_gpus_per_node", "trainer.nnodes",
  "worker.actor.optim.shard_state", "worker.rollout.tensor_parallel_size",
  "trainer.val_before_train", "trainer.val_only", "trainer.logger", "trainer.report",
  "trainer.project_name",
  "trainer.check_memory",
  "data.val_files", "data.val_batch_size", "data.refshapes_val_rows",
  "worker.actor.model.enable_gradient_checkpointing", "worker.actor.max_tokens_per_micro_batch",
  "worker.actor.micro_batch_size_per_device_for_update",
  "worker.actor.micro_batch_size_per_device_for_experience",
  "worker.rollout.cache_gib", "worker.rollout.gpu_memory_utilization",
  "worker.ref.offload.param_offload", "worker.actor.offload.optimizer_offload",
  "worker.actor.offload.param_offload", "worker.reward.compute_score", "worker.reward.timeout",
  "worker.reward.on_error", "worker.reward.reload", "trainer.max_bad_updates",
}

-- Different in every run, and not said.
local SILENT = {
  "trainer.load_checkpoint_path", "trainer.save_checkpoint_path", "trainer.experiment_name",
  "trainer.resume_changes", "trainer.find_last_checkpoint",
}

-- The reward's arguments are as free as the reward.
local REWARD_ARGUMENT = "^worker%.reward%.reward_function_kwargs"

local PATHS = {
  "worker.actor.model.model_path", "data.train_files", "data.val_files", "worker.reward.sam2_path",
  "worker.reward.compute_score",
}

-- These only choose the rows, and the rows themselves are compared.
local CHOOSE_ROWS = { "data.train_files", "data.on_bad_row", "data.filter_overlong_prompts" }

local function set_of(list)
  local set = {}
  for _, key in ipairs(list) do set[key] = true end
  return set
end

local is_free = set_of(FREE)
local is_silent = set_of(SILENT)
local is_path = set_of(PATHS)
local chooses_rows = set_of(CHOOSE_ROWS)

function M.is_path(key) return is_path[key] == true end

-- ---- the data set ----
function M.identity(set)
  local hash
  if set.fingerprint then hash = set:fingerprint() end
  return { name = set.name, rows = set:count(), hash = hash }
end

-- state.data is absent in checkpoints of segzero 0.1.
function M.same_rows(identity, state)
  local old = state.data
  if not old then return true end
  return old.rows == identity.rows and (old.hash or identity.hash) == (identity.hash or old.hash)
end

-- ---- settings ----
local function show(value)
  if value == nil or value == cjson.null then return "null" end
  if type(value) == "table" then
    local words = {}
    for i, v in ipairs(value) do words[i] = tostring(v) end
    return table.concat(words, ",")
  end
  if value == "" then return "(empty)" end
  return tostring(value)
end

-- JSON has fewer digits than a number; both sides are compared as JSON would hold them.
-- What came with segzero is named from its own folder, and the run may go on in another one.
local function real(path)
  return folders.absolute(path) or folders.absolute(core.root .. "/" .. path)
end

local function same(key, a, b)
  if a == cjson.null then a = nil end
  if b == cjson.null then b = nil end
  if a == b then return true end
  if a == nil or b == nil then return false end
  if files.json(a) == files.json(b) then return true end
  if not is_path[key] or type(a) ~= "string" or type(b) ~= "string" then return false end
  local path = real(a)
  return path ~= nil and path == real(b)
end

-- The defaults of all settings, for keys that an older run did not have.
local function default_of(key)
  local row = require("segzero.config.grpo").schema:find(key)
  return row and row.default
end

local function all_keys(a, b)
  local keys = {}
  local seen = {}
  for _, t in ipairs { a, b } do
    for key in pairs(t) do
      if not seen[key] then keys[#keys + 1] = key end
      seen[key] = true
    end
  end
  table.sort(keys)
  return keys
end

function M.changes(old, new, identity, state)
  local before = config.flat(old)
  local now = config.flat(new)
  local same_rows = M.same_rows(identity, state)
  local list = {}
  for _, key in ipairs(all_keys(before, now)) do
    local a = before[key]
    if a == nil then a = default_of(key) end
    if not is_silent[key] and not same(key, a, now[key]) then
      local free = is_free[key] or key:find(REWARD_ARGUMENT) ~= nil
      -- Rows that are known to be the same may have moved.
      if chooses_rows[key] and same_rows and state.data and state.data.hash then free = true end
      list[#list + 1] = { key = key, old = show(a), new = show(now[key]), free = free }
    end
  end
  if not same_rows then
    local message = "%s, %d rows%s"
    local was = state.data
    local is_count = was.rows ~= identity.rows
    local other = is_count and "" or " with another content"
    list[#list + 1] = { key = "the data set", free = false,
      old = message:format(show(was.name), was.rows, ""),
      new = message:format(show(identity.name), identity.rows, other) }
  end
  return list
end

function M.line(change)
  return ("changed at the resume: %s: %s -> %s"):format(change.key, change.old, change.new)
end

function M.check(changes, where)
  local refused = {}
  for _, change in ipairs(changes) do
    if not change.free then
      refused[#refused + 1] = ("%s was %s and is %s"):format(change.key, change.old, change.new)
    end
  end
  if #refused == 0 then return end
  error(("%s cannot go on with other settings: %s; give the old ones, or " ..
    "trainer.resume_changes=true to go on all the same"):format(where,
    table.concat(refused, "; ")), 0)
end

return M
