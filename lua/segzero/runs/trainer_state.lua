-- trainer_state.lua - trainer_state.json of a checkpoint: how far the run was. It is checked like
-- any other input.
--
--   {"global_step": 4, "optimizer_steps": 4, "skipped_updates": 0, "seed": 42,
--    "rows": {"epoch": 1, "before": 2, "number": 8}, "rows_since": {"step": 0, ...},
--    "data": {"name": "shapes/train", "rows": 24, "hash": "16 hexadecimal digits"}}
--
--   local state = trainer_state.read(folder, needs_optimizer)
--   trainer_state.write(writing, folder, state)       writing: a list of files (jobs.writing)
--
-- rows: the place of the next row (data/position.lua); rows_since: where the run counts from. Both
-- and data are absent in checkpoints of segzero 0.1.
-- Errors are one line without a position: file, key and value.

local cjson = require "cjson"
local files = require "segzero.core.files"

local M = {}

local NAME = "trainer_state.json"
local MOST_STEPS = 2 ^ 31 - 1
local MOST_ROWS = 2 ^ 53

local function show(value)
  if value == cjson.null then return "null" end
  if type(value) == "table" then return "a list or an object" end
  if type(value) == "string" then return ("'%s'"):format(value:sub(1, 40)) end
  return tostring(value)
end

local function refuse(folder, key, value, expected)
  error(("checkpoint %s: %s: %s is %s, expected %s"):format(folder, NAME, key, show(value),
    expected), 0)
end

local function check_count(folder, key, value, most)
  local is_count = type(value) == "number" and value >= 0 and value <= most and value % 1 == 0
  if not is_count then
    refuse(folder, key, value, ("a whole number from 0 to %.0f"):format(most))
  end
end

local function check_place(folder, key, place, fields)
  if place == nil then return end
  if type(place) ~= "table" then refuse(folder, key, place, "an object") end
  for _, field in ipairs(fields) do
    check_count(folder, key .. "." .. field, place[field], MOST_ROWS)
  end
end

local function check_data(folder, set)
  if set == nil then return end
  if type(set) ~= "table" then refuse(folder, "data", set, "an object") end
  check_count(folder, "data.rows", set.rows, MOST_ROWS)
  for _, key in ipairs { "name", "hash" } do
    if set[key] ~= nil and type(set[key]) ~= "string" then
      refuse(folder, "data." .. key, set[key], "a text")
    end
  end
end

-- A folder named global_step_N holds step N.
local function check_name(folder, step)
  local named = folder:match "global_step_(%d+)/*$" or folder:match "global_step_(%d+)%.old/*$"
  if named and tonumber(named) ~= step then
    refuse(folder, "global_step", step, named .. ", as the folder's name says")
  end
end

function M.read(folder, needs_optimizer)
  local state = files.read_json(folder .. "/" .. NAME)
  if type(state) ~= "table" or state.global_step == nil then
    error(("checkpoint %s: %s has no global_step"):format(folder, NAME), 0)
  end
  check_count(folder, "global_step", state.global_step, MOST_STEPS)
  check_name(folder, state.global_step)
  if needs_optimizer then
    if state.optimizer_steps == nil then
      error(("checkpoint %s: %s has no optimizer_steps"):format(folder, NAME), 0)
    end
    check_count(folder, "optimizer_steps", state.optimizer_steps, MOST_STEPS)
  end
  if state.skipped_updates ~= nil then
    check_count(folder, "skipped_updates", state.skipped_updates, MOST_STEPS)
  end
  local seed = state.seed
  local is_seed = type(seed) == "number" and seed % 1 == 0 and math.abs(seed) <= MOST_ROWS
  if seed ~= nil and not is_seed then refuse(folder, "seed", seed, "a whole number") end
  check_place(folder, "rows", state.rows, { "epoch", "before", "number" })
  check_place(folder, "rows_since", state.rows_since, { "step", "epoch", "before", "number" })
  check_data(folder, state.data)
  return state
end

function M.write(writing, folder, state)
  writing:text(folder .. "/" .. NAME, files.json(state))
end

return M
