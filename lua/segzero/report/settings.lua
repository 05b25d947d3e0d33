-- settings.lua - the settings of a run, and what changed where it went on.
--
--   settings.read(folder) -> {values = {[key] = text}, cfg = config.json as a table,
--                             changes = {{step =, key =, old =, new =}, ...}}
--
--   settings.held_out_rows(cfg) -> n, or nil if the settings do not say
--                             rows whose parts are 0 or 1 each, so that their mean has an interval
--
-- The files are those of runs/old_settings.lua. One that cannot be read is an error in one line.
-- Leaves out: judging the changes (runs/contract.lua).

local cjson = require "cjson"
local config = require "segzero.config"
local files = require "segzero.core.files"
local old_settings = require "segzero.runs.old_settings"
local visible = require "segzero.core.visible"

local M = {}

local function text_of(value)
  if value == nil or value == cjson.null then return "null" end
  if type(value) == "table" then
    local words = {}
    for i, v in ipairs(value) do words[i] = tostring(v) end
    return visible.line(table.concat(words, ", "), 500)
  end
  if type(value) == "number" then return ("%.14g"):format(value) end
  return visible.line(tostring(value), 500)
end

local function texts(json)
  local out = {}
  for key, value in pairs(config.flat(json)) do out[visible.line(key)] = text_of(value) end
  return out
end

local function add_changes(changes, step, old, new)
  local keys = {}
  local seen = {}
  for _, t in ipairs { old, new } do
    for key in pairs(t) do
      if not seen[key] then keys[#keys + 1] = key end
      seen[key] = true
    end
  end
  table.sort(keys)
  for _, key in ipairs(keys) do
    if old[key] ~= new[key] then
      changes[#changes + 1] = { step = step, key = key, old = old[key] or "null",
        new = new[key] or "null" }
    end
  end
end

function M.read(folder)
  local cfg = files.read_json_object(folder .. "/config.json")
  local now = texts(cfg)
  local changes = {}
  local list = old_settings.list(folder)
  for i, file in ipairs(list) do
    local old = texts(files.read_json_object(folder .. "/" .. file.name))
    local next_one = now
    local following = list[i + 1]
    if following then next_one = texts(files.read_json_object(folder .. "/" .. following.name)) end
    add_changes(changes, file.step, old, next_one)
  end
  return { values = now, changes = changes, cfg = cfg }
end

local ZERO_OR_ONE = { seg = true, seg_strict = true }

function M.held_out_rows(cfg)
  local reward = config.get(cfg, "worker.reward.compute_score")
  local answers = config.get(cfg, "worker.rollout.val_override_config.n")
  local generated = config.get(cfg, "data.val_files") == "refshapes"
  local is_one = answers == nil or answers == cjson.null or answers == 1
  if not generated or not ZERO_OR_ONE[reward] or not is_one then return nil end
  return tonumber(config.get(cfg, "data.refshapes_val_rows"))
end

return M
