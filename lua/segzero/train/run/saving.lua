-- saving.lua - checkpoints of a trainer, written in the background while the next step samples.
--
--   saving.start(t) -> path   starts writing t's weights and optimizer state; nothing may change
--                             them until saving.unlock returns
--   saving.unlock(t)          waits until weights and optimizer may change again
--   saving.wait(t)            a checkpoint that cannot be written is an error that names the file
--   saving.now(t) -> path     start and wait
--   saving.load(t, path)      continues from a checkpoint: weights, optimizer, step, rows
--
-- With several ranks all call these at the same places. Rank 0 writes; if each rank has a part of
-- the optimizer's state (train/shards.lua) or of the model (models/split.lua), each writes its
-- parts of the files, and rank 0 adds the rest when all have.
--
-- t: trainer.new's object; t.pending is what is being written, t.identity the data set's
-- (runs/contract.lua) or nil, t.since where the rows are counted from if the checkpoint does not
-- say it, t.settings the text of settings.json (nil: t.config).
-- Leaves out: which checkpoints are kept (runs/retention.lua).

local checkpoint = require "segzero.train.run.checkpoint"
local columns = require "segzero.models.columns"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local retention = require "segzero.runs.retention"
local timer = require "segzero.log.timer"

local M = {}

-- Whether each rank has parts of what is written.
local function has_parts(t) return t.optimizer.shards or t.policy.shards end

local function replica_of(t) return { index = t.parallel.replica, count = t.parallel.replicas } end

-- On rank 0: what checkpoint.begin returns.
local function begin(t)
  local state = {
    seed = t.options.rows.seed, skipped_updates = t.optimizer.skipped, data = t.identity,
    rows = t.sampler:place_after(t.train, t.global_step), rows_since = t.sampler.since,
  }
  local settings = t.settings or files.indented_json(t.config)
  local final, job, temporary, old, rest = checkpoint.begin(t.folder, t.global_step, t.policy,
    t.optimizer, state, settings, replica_of(t))
  t.pending = { final = final, job = job, temporary = temporary, old = old, rest = rest }
end

-- This rank's parts. What fails is told when all wait; a failed exchange of columns ends the job.
local function begin_part(t, temporary)
  local p = t.parallel
  local own
  if t.policy.shards then
    own = columns.new(function(...)
      return p:collective_of(p.shard_group, "columns_to_rows", ...)
    end)
  end
  local ok, job = pcall(checkpoint.begin_part, temporary, t.policy, t.optimizer, replica_of(t), own)
  t.pending = t.pending or {}
  t.pending.part = ok and job
  t.pending.failure = not ok and tostring(job) or nil
end

function M.start(t)
  M.wait(t)
  local paths = t.parallel:on_root_held(function()
    begin(t)
    return { final = t.pending.final, temporary = t.pending.temporary }
  end)
  if has_parts(t) then
    begin_part(t, paths.temporary)
    t.pending.has_parts = true
  end
  return paths.final
end

-- On rank 0: the checkpoint is complete, or an error.
local function finish(t, pending)
  local before = timer.enter "checkpoint"
  checkpoint.finish(pending.final, pending.job, pending.temporary, pending.old)
  retention.saved(t)
  timer.enter(before)
end

-- Waits for a job, or nil; returns what went wrong, or nil.
local function failure_of(job)
  if not job then return nil end
  local ok, message = job:wait()
  job:free()
  if not ok then return message end
end

-- Waits for what this rank writes: its parts, and on rank 0 the files that it writes alone.
local function wait_for_part(pending)
  local alone = failure_of(pending.job)
  return pending.failure or failure_of(pending.part) or alone
end

-- Every rank has its part: once all are written, rank 0 goes on with the rest.
local function join_parts(t)
  local pending = t.pending
  local before = timer.enter "checkpoint"
  pending.has_parts = false
  local failures = t.parallel:agreed(function()
    local message = wait_for_part(pending)
    return message and ("rank %s: %s"):format(t.parallel:name(), core.plain(message))
  end)
  local failure
  for r = 1, t.parallel.size do failure = failure or failures[r] end
  t.pending = nil
  t.parallel:on_root_held(function()
    if failure then checkpoint.give_up(pending.final, pending.temporary, failure) end
    pending.job, pending.old = pending.rest()
  end)
  t.pending = pending
  timer.enter(before)
end

function M.unlock(t)
  if has_parts(t) and t.pending and t.pending.has_parts then return join_parts(t) end
  M.wait(t)
end

function M.wait(t)
  if t.parallel.size == 1 and not t.pending then return end
  if has_parts(t) then
    -- Every rank knows that something is pending.
    if not t.pending then return end
    if t.pending.has_parts then join_parts(t) end
  end
  -- All ranks forget it first: where rank 0 fails, they must go on alike.
  local pending = t.pending
  t.pending = nil
  t.parallel:on_root_held(function() if pending then finish(t, pending) end end)
end

function M.now(t)
  local path = M.start(t)
  M.wait(t)
  return path
end

function M.load(t, path)
  if t.pending then M.wait(t) end
  local state = checkpoint.load(path, t.policy, t.optimizer)
  t.global_step = state.global_step
  t.sampler.since = t.since or state.rows_since or t.sampler.since
  t.optimizer.skipped = state.skipped_updates or 0
end

return M
