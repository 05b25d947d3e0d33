-- saving.lua - checkpoints of a trainer, written in the background while the next step samples.
--
--   saving.start(t) -> path   starts writing t's weights and optimizer state; nothing may change
--                             them until saving.wait returns
--   saving.wait(t)            a checkpoint that cannot be written is an error that names the file
--   saving.now(t) -> path     both
--   saving.load(t, path)      continues from a checkpoint: weights, optimizer, step
--
-- t: trainer.new's object; t.pending is what is being written.
-- Leaves out: deleting old checkpoints.

local checkpoint = require "segzero.train.checkpoint"
local timer = require "segzero.log.timer"

local M = {}

function M.start(t)
  M.wait(t)
  local state = { seed = t.options.rows.seed, skipped_updates = t.optimizer.skipped }
  t.pending = { checkpoint.begin(t.folder, t.global_step, t.policy, t.optimizer, state) }
  return t.pending[1]
end

function M.wait(t)
  local pending = t.pending
  if not pending then return end
  local before = timer.enter "checkpoint"
  t.pending = nil
  checkpoint.finish(unpack(pending))
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
  t.optimizer.skipped = state.skipped_updates or 0
end

return M
