-- locate.lua - recognises checkpoints of Seg-Zero, EasyR1 and verl, whose weights are one torch
-- file for each rank, and says what to do with them.
--
--   locate.actor(path)       the folder with the ranks' files or with what was made of them, for
--                            that folder, the global_step_N above it or the huggingface folder in
--                            it; nil for anything else
--   locate.merged(actor)     its folder huggingface, if it holds weights; nil otherwise
--   locate.resuming(path)    the same for a path that a run should go on from
--   locate.advice(path)      one sentence for a path that was named as a model; nil if it is none
--                            of these checkpoints
--
-- A run of theirs: P/global_step_N/actor/model_world_size_W_rank_R.pt, actor/huggingface with the
-- config and the tokenizer, P/latest_checkpointed_iteration.txt.
-- Leaves out: reading the files (shards.lua).

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"

local M = {}

-- The first file of a rank in a folder; nil if there is none.
local function has_shards(dir)
  for _, name in ipairs(folders.list(dir) or {}) do
    if name:find "^model_world_size_%d+_rank_%d+%.pt$" then return name end
  end
end

local function trimmed(path) return (path:gsub("(.)/+$", "%1")) end

function M.merged(actor)
  local dir = actor .. "/huggingface"
  for _, name in ipairs { "model.safetensors", "model.safetensors.index.json" } do
    if files.exists(dir .. "/" .. name) and files.exists(dir .. "/config.json") then return dir end
  end
end

function M.actor(path)
  path = trimmed(path)
  local candidates = { path, path .. "/actor" }
  if path:find "huggingface$" then
    candidates[3] = path:match "^(.*)/huggingface$" or "."
  end
  for _, dir in ipairs(candidates) do
    if has_shards(dir) or M.merged(dir) then return dir end
  end
end

-- The last step of a run of theirs that has shards; nil if path is no such run.
local function newest_step(path)
  local newest
  for _, name in ipairs(folders.list(path) or {}) do
    local step = tonumber(name:match "^global_step_(%d+)$" or "")
    if step and (not newest or step > newest) and has_shards(path .. "/" .. name .. "/actor") then
      newest = step
    end
  end
  return newest
end

function M.advice(path)
  path = trimmed(path)
  local actor = M.actor(path)
  if not actor then
    local step = newest_step(path)
    if not step then return nil end
    return ("%s is a run of Seg-Zero, EasyR1 or verl: name a checkpoint of it, such as "
      .. "%s/global_step_%d"):format(path, path, step)
  end
  local merged = M.merged(actor)
  if merged then
    return ("%s is a checkpoint that is merged: name %s"):format(actor, merged)
  end
  return ("%s holds one torch file for each rank (%s), which are not merged yet: segzero "
    .. "model_merger --local_dir %s"):format(actor, has_shards(actor), actor)
end

-- A sentence for such a path that was named to go on with the run; nil for anything else.
function M.resuming(path)
  local advice = M.advice(path)
  if not advice then return nil end
  return ("the optimizer's state of another trainer (optim_world_size_W_rank_R.pt) is not read; "
    .. "name its weights as worker.actor.model.model_path instead: %s"):format(advice)
end

return M
