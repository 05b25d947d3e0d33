-- ending.lua - the end of a run that a signal or an error cuts short: the last finished step is
-- saved, and one line says how to go on.
--
--   ending.guard(t, f, ...)    f's results; if f fails or a signal comes, ending.early. Inside
--                              stop.run; guards nest. t: a trainer
--   ending.early(t, reason)    raises; reason: the error, or nil for a signal alone
--   ending.saved(t) -> text    saves what is not saved yet: "saved runs/x/global_step_12; go on
--                              with: trainer.load_checkpoint_path=runs/x", or why nothing is saved
--
-- A stop is the error "stopped by SIGTERM after step 12; saved ...". Any other error is raised as
-- it is, after a line of the log with the same text. Nothing is saved if trainer.save_freq is -1,
-- in the middle of an update, or when the weights are ruined (health.lua); older checkpoints stay.
-- With several ranks all come here with the same error and call the same.
-- Leaves out: signals (core/stop.lua), writing (saving.lua).

local checkpoint = require "segzero.train.run.checkpoint"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local health = require "segzero.train.run.health"
local live_line = require "segzero.core.live_line"
local saving = require "segzero.train.run.saving"
local stop = require "segzero.core.stop"

local M = {}

-- How to go on from the newest complete checkpoint of the run, or "".
local function how_to_go_on(t)
  local ok, newest = pcall(checkpoint.latest, t.folder)
  if not ok or not newest then return "" end
  return "; go on with: trainer.load_checkpoint_path=" .. t.folder
end

local function save(t)
  health.check_weights(t)
  return saving.now(t)
end

-- Why step t.global_step needs no saving; nil if it does.
local function verdict(t)
  if t.global_step == t.first_step then return "no step was finished" end
  if t.options.run.save_freq < 0 then return "trainer.save_freq=-1 saves no checkpoint" end
  if t.changing then return "an update had begun, so its weights are not saved" end
  if t.diverged then return "its weights are not saved" end
  local path = ("%s/global_step_%d"):format(t.folder, t.global_step)
  if files.exists(path .. "/DONE") then return "saved " .. path end
end

-- What becomes of step t.global_step.
local function outcome(t)
  local text = t.parallel:on_root(function() return verdict(t) end)
  if text then return text end
  local ok, result = pcall(save, t)
  if ok then return "saved " .. result end
  return core.plain(result)
end

function M.saved(t)
  if not t.folder then return "there is no run folder, so nothing is saved" end
  return outcome(t) .. how_to_go_on(t)
end

local NOT_FINITE = "logits of row %d+ are not finite"

function M.early(t, reason)
  -- A checkpoint that is being written is the newest one, if it succeeds.
  local waited, failure = pcall(saving.wait, t)
  pcall(t.sampler.cancel, t.sampler)
  live_line.clear()
  t.optimizer:zero_grad()         -- of an update that was left
  if type(reason) == "string" and reason:find(NOT_FINITE) then
    t.diverged = health.explain(t, "the model's logits are not finite")
    reason = t.diverged
  end

  local step = t.global_step
  local text = M.saved(t)
  -- A write that the signal itself broke off was done again by M.saved.
  if not waited and not core.is_interrupt(failure) then
    text = core.plain(failure) .. "; " .. text
  end
  local name = stop.signal()
  local is_stop = name and (reason == nil or core.is_interrupt(reason))
  if is_stop then reason = ("stopped by %s after step %d; %s"):format(name, step, text) end
  if not is_stop then
    -- The log may be what failed.
    local line = ("ended by an error after step %d; %s"):format(step, text)
    if not pcall(t.log.text, t.log, step, "run", line) then io.stderr:write(line .. "\n") end
  end
  pcall(t.log.close, t.log)
  t.ended = reason
  error(reason, 0)
end

function M.guard(t, f, ...)
  t.first_step = t.first_step or t.global_step
  t.ended = nil
  local function finish(ok, ...)
    if not ok and t.ended then error(t.ended, 0) end
    if not ok or stop.signal() then M.early(t, (not ok) and (...) or nil) end
    stop.release()
    return ...
  end
  return finish(stop.try(f, ...))
end

return M
