-- saving.lua - checkpoints of a trainer, written in the background while the next step samples.
--
--   saving.start(t) -> path   starts writing t's weights and optimizer state; nothing may change
--                             them until saving.wait returns
--   saving.wait(t)            a checkpoint that cannot be written is an error that names the file
--   saving.now(t) -> path     both
--   saving.alone(t) -> path   the same on this rank, without the others; the rest is called by all
--   saving.load(t, path)      continues from a checkpoint: weights, optimizer, step, rows
--
-- t: trainer.new's object; t.pending is what is being written, t.identity the data set's
-- (runs/contract.lua) or nil, t.since where the rows are counted from if the checkpoint does not
-- say it, t.settings the text of settings.json (nil: t.config).
-- Leaves out: which checkpoints are kept (runs/retention.lua).

local checkpoint = require "segzero.train.run.checkpoint"
local files = require "segzero.core.files"
local retention = require "segzero.runs.retention"
local timer = require "segzero.log.timer"

local M = {}

-- Rank 0 writes; the others go on when it has begun.
local function begin(t)
  local state = {
    seed = t.options.rows.seed, skipped_updates = t.optimizer.skipped, data = t.identity,
    rows = t.sampler:place_after(t.train, t.global_step), rows_since = t.sampler.since,
  }
  local settings = t.settings or files.json(t.config)
  t.pending = { checkpoint.begin(t.folder, t.global_step, t.policy, t.optimizer, state, settings) }
  return t.pending[1]
end

function M.start(t)
  M.wait(t)
  return t.parallel:on_root(function() return begin(t) end)
end

local function finish(t)
  local pending = t.pending
  local before = timer.enter "checkpoint"
  t.pending = nil
  checkpoint.finish(unpack(pending, 1, 4))
  retention.saved(t)
  timer.enter(before)
end

-- Called at the same places by all ranks.
function M.wait(t)
  if t.parallel.size == 1 and not t.pending then return end
  t.parallel:on_root(function() if t.pending then finish(t) end end)
end

-- Without the other ranks.
function M.alone(t)
  if t.pending then finish(t) end
  local path = begin(t)
  finish(t)
  return path
end

function M.now(t)
  return t.parallel:on_root(function() return M.alone(t) end)
end

function M.load(t, path)
  if t.pending then finish(t) end
  local state = checkpoint.load(path, t.policy, t.optimizer)
  t.global_step = state.global_step
  t.sampler.since = t.since or state.rows_since or t.sampler.since
  t.optimizer.skipped = state.skipped_updates or 0
end

return M
