-- saving.lua - checkpoints of a trainer, written in the background while the next step samples.
--
--   saving.start(t) -> path   starts writing t's weights and optimizer state; nothing may change
--                             them until saving.wait returns
--   saving.wait(t)            a checkpoint that cannot be written is an error that names the file
--   saving.now(t) -> path     both
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

function M.start(t)
  M.wait(t)
  local state = {
    seed = t.options.rows.seed, skipped_updates = t.optimizer.skipped, data = t.identity,
    rows = t.sampler:place_after(t.train, t.global_step), rows_since = t.sampler.since,
  }
  local settings = t.settings or files.json(t.config)
  t.pending = { checkpoint.begin(t.folder, t.global_step, t.policy, t.optimizer, state, settings) }
  return t.pending[1]
end

function M.wait(t)
  local pending = t.pending
  if not pending then return end
  local before = timer.enter "checkpoint"
  t.pending = nil
  checkpoint.finish(unpack(pending, 1, 4))
  retention.saved(t)
  timer.enter(before)
end

function M.now(t)
  local path = M.start(t)
  M.wait(t)
  return path
end

function M.load(t, path)
  M.wait(t)
  local state = checkpoint.load(path, t.policy, t.optimizer)
  t.global_step = state.global_step
  t.sampler.since = t.since or state.rows_since or t.sampler.since
  t.optimizer.skipped = state.skipped_updates or 0
end

return M
