-- retention.lua - which checkpoints of a run are kept: the newest ones, and the best by a figure of
-- the held-out rows.
--
--   retention.evaluated(t, result)      an evaluation at the step t.global_step has ended
--   retention.saved(t)                  a checkpoint is complete: removes those that are too many
--   retention.recall(t)                 the logs have been cut back: if the best checkpoint is no
--                                       longer there, finds the best of the others
--   retention.finish_removals(t)        removes the rest of checkpoints that a kill left half gone
--
-- t: trainer.new's object. Options (t.options.run): save_limit, how many of the newest are kept
-- (math.huge: all); save_best, "held_out_reward", "held_out_giou" or "none". The best one is kept
-- in addition; the file `best` of the run folder names it: {"checkpoint": "global_step_4",
-- "held_out_reward": 0.7}. A checkpoint counts for it if the rows were evaluated at its step.
--
-- Only checkpoints with a manifest of this run are removed (manifest.lua), and only after the new
-- one is complete. Leaves out: removing half-written checkpoints (train/run/checkpoint.lua).

local cjson = require "cjson"
local checkpoint = require "segzero.train.run.checkpoint"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local manifest = require "segzero.runs.manifest"
local run_folder = require "segzero.runs.run_folder"

local M = {}

local FIGURES = { held_out_reward = "reward", held_out_giou = "giou" }

-- What the file `best` says: step and value; nil if there is none, or of another figure.
local function read_best(t, figure)
  local ok, json = pcall(files.read_json, t.folder .. "/best", true)
  if not ok or type(json) ~= "table" or type(json[figure]) ~= "number" then return nil end
  local step = tostring(json.checkpoint):match "^global_step_(%d+)$"
  if not step or not files.exists(("%s/global_step_%s/DONE"):format(t.folder, step)) then
    return nil
  end
  return tonumber(step), json[figure]
end

-- Writes the file `best` if the newest evaluation beats it and its checkpoint is complete.
local function update_best(t)
  local figure = t.options.run.save_best
  local seen = t.evaluated
  if not FIGURES[figure] or not seen then return end
  local value = seen[FIGURES[figure]]
  local name = ("global_step_%d"):format(seen.step)
  local is_number = type(value) == "number" and value == value
  if not is_number or not files.exists(("%s/%s/DONE"):format(t.folder, name)) then return end
  local step, best = read_best(t, figure)
  if best and step ~= seen.step and best >= value then return end
  files.write(t.folder .. "/best", files.json { checkpoint = name, [figure] = value } .. "\n")
end

local function complete(t, step)
  return files.exists(("%s/global_step_%d/DONE"):format(t.folder, step))
end

-- The best evaluation in metrics.jsonl whose checkpoint is there: step and value, or nil.
local function best_of_log(t, figure)
  local file = io.open(t.folder .. "/metrics.jsonl", "rb")
  if not file then return nil end
  local key = ('"%s":'):format(figure)
  local best, value
  for line in file:lines() do
    local ok, record = pcall(function()
      return line:find(key, 1, true) and cjson.decode(line) or nil
    end)
    local found = ok and record and tonumber(record[figure])
    local step = found and tonumber(record.step)
    if step and (not value or found > value) and complete(t, step) then
      best = step
      value = found
    end
  end
  file:close()
  return best, value
end

function M.recall(t)
  local figure = t.options.run.save_best
  if not FIGURES[figure] or read_best(t, figure) then return end
  local step, value = best_of_log(t, figure)
  if not step then return end
  local record = { checkpoint = ("global_step_%d"):format(step), [figure] = value }
  files.write(t.folder .. "/best", files.json(record) .. "\n")
end

function M.evaluated(t, result)
  t.evaluated = { step = t.global_step, reward = result.reward, giou = result.giou }
  if t.folder then update_best(t) end
end

-- The checkpoints that this run may remove, oldest first.
local function own_checkpoints(t)
  local id = run_folder.id(t.folder)
  local own = {}
  for _, entry in ipairs(checkpoint.list(t.folder)) do
    if id and manifest.owner(entry.path) == id then own[#own + 1] = entry end
  end
  return own
end

-- A removal that a kill interrupted has left a folder without DONE.
function M.finish_removals(t)
  if t.options.run.save_limit == math.huge then return end
  local id = run_folder.id(t.folder)
  for _, name in ipairs(folders.list(t.folder) or {}) do
    local step = tonumber(name:match "^global_step_(%d+)$")
    local path = t.folder .. "/" .. name
    local is_left = step and step < t.global_step and not files.exists(path .. "/DONE")
    local is_own = id and manifest.owner(path) == id or manifest.is_bare(path)
    if is_left and is_own then manifest.remove(path) end
  end
end

function M.saved(t)
  update_best(t)
  local limit = t.options.run.save_limit
  if not limit or limit == math.huge then return end
  local best = read_best(t, t.options.run.save_best)
  M.finish_removals(t)
  local own = own_checkpoints(t)
  for i = 1, #own - limit do
    local entry = own[i]
    if entry.step ~= best and entry.step < t.global_step then
      local ok, reason = manifest.remove(entry.path)
      if not ok then
        t.log:text(t.global_step, "run", ("  %s stays: %s"):format(entry.path, reason))
      end
    end
  end
end

return M
