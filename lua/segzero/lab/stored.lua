-- stored.lua - the answers that a run stored, in the prompt lab: the worst of a step, and all of
-- them scored again.
--
--   stored.worst(run, step, count, { sheet = path or false, reward = for the words }) -> list
--   stored.best(...)
--     run      a run's folder; step: nil is its last one; count: 5
--     list[i]  {row =, answer =, problem =, solution =, text =, reward =, parts =, why = {part =
--              words}, advantage =}; list.sheet = the path of the images,
--              list:show() shows them at the prompt
--   stored.rescore(run, reward, options) -> result of workbench/rescoring.lua, which prints itself
--
-- Of equal rewards the first of the file come first. Images need the data set of the
-- run's settings. The words are those of the reward, if it is one of segzero's, or of the option
-- reward. list.notes says what is missing.
-- Leaves out: held-out rows.

local answer = require "segzero.formats.answer"
local coordinates = require "segzero.data.coordinates"
local loading = require "segzero.reward.loading"
local judging = require "segzero.workbench.judging"
local reasons = require "segzero.reward.reasons"
local rescoring = require "segzero.workbench.rescoring"
local rollouts = require "segzero.runs.rollouts"
local settings = require("segzero.config.reward").schema
local sheets = require "segzero.lab.sheets"
local stored_rows = require "segzero.workbench.stored_rows"
local text = require "segzero.workbench.text"
local truth = require "segzero.data.truth"
local values = require "segzero.config.values"
local variants = require "segzero.lab.variants"
local visible = require "segzero.core.visible"

local M = {}

local COUNT = 5
local MOST = 1000

-- ---- choosing ----
local function check_count(count)
  count = count or COUNT
  local is_count = type(count) == "number" and count >= 1 and count <= MOST and count % 1 == 0
  if is_count then return count end
  error(("the number of answers is %s, expected a whole number from 1 to %d"):format(
    tostring(count), MOST), 0)
end

local function step_of(folder, step)
  local steps = rollouts.steps(folder .. "/rollouts.jsonl")
  if not steps.last then error(("%s/rollouts.jsonl has no answers"):format(folder), 0) end
  step = step or steps.last
  if steps[step] then return step end
  error(("step %s is not in %s/rollouts.jsonl, which has the steps %d to %d"):format(
    tostring(step), folder, steps.first, steps.last), 0)
end

local function chosen(folder, step, count, sign)
  local list = {}
  rollouts.each(folder .. "/rollouts.jsonl", function(record)
    record.place = #list
    list[#list + 1] = record
  end, { step = step })
  table.sort(list, function(a, b)
    if a.reward ~= b.reward then return sign * a.reward < sign * b.reward end
    return a.place < b.place
  end)
  for i = #list, count + 1, -1 do list[i] = nil end
  return list
end

-- ---- words and images ----
-- Of a run's settings only segzero's own rewards are run: to look at a folder must not run code.
local function load_reward(cfg, given, notes)
  if given ~= nil then return (variants.reward(given)) end
  local name = cfg.worker.reward.compute_score
  local own = loading.own(name)
  if own then return own end
  local message = "no words for the parts: the run's reward is %s; reward = \"%s\" runs it"
  name = visible.line(tostring(name), 100)
  notes[#notes + 1] = message:format(name, name)
  return nil
end

local function explain(bench, row, record, complete)
  if not bench then return {} end
  local item = { text = record.text }
  bench:judge(row, { item }, not complete)
  return reasons.zeros(item.parts, item.why)
end

local function as_entry(record)
  local parts = record.parts
  if type(parts) ~= "table" then parts = nil end
  return { row = tostring(record.row), answer = record.answer, problem = record.problem,
    solution = record.solution, text = record.text, reward = record.reward, parts = parts,
    advantage = record.advantage }
end

local function tile_of(row, one)
  local found = answer.read(one.text, truth.is_list(row.solution))
  local ok, objects = pcall(truth.objects, row)
  return { image = row.image, found = found and coordinates.to_image(row, found),
    truth = ok and objects or nil, label = visible.line(tostring(one.problem), 80),
    note = ("reward %.3g, row %s"):format(one.reward, visible.line(one.row, 40)),
    text = one.text, parts = one.parts, zeros = one.why }
end

-- ---- the text ----
local function to_text(list)
  local lines = { ("the %d %s answers of step %d, %s"):format(#list, list.which, list.step,
    list.folder) }
  for _, one in ipairs(list) do
    lines[#lines + 1] = ("  reward %s  row %s: %s"):format(text.number(one.reward),
      visible.line(one.row, 40), visible.line(tostring(one.problem), 60))
    lines[#lines + 1] = "      " .. visible.line(one.text, 86)
    local names = {}
    for name in pairs(one.why) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
      lines[#lines + 1] = ("      %s is 0: %s"):format(name, visible.line(one.why[name], 120))
    end
  end
  for _, note in ipairs(list.notes) do lines[#lines + 1] = "note: " .. visible.line(note, 200) end
  if list.sheet then lines[#lines + 1] = "images: " .. list.sheet end
  return table.concat(lines, "\n")
end

local mt = { __tostring = to_text, __index = { show = sheets.show_of "sheet" } }

-- ---- all of it ----
local function extreme(which, sign, run, step, count, o)
  if type(run) ~= "string" then
    error(("a run's folder is expected, got %s"):format(tostring(run)), 0)
  end
  local folder = run:gsub("(.)/+$", "%1")
  local cfg = rescoring.settings(folder)
  local path = sheets.path(o.sheet, which)
  step = step_of(folder, step)
  local list = setmetatable({ which = which, step = step, folder = folder, notes = {} }, mt)
  local stored = stored_rows.open(cfg)
  local reward = load_reward(cfg, o.reward, list.notes)
  local bench = reward and judging.new { reward = reward,
    segmenter = judging.segmenter(cfg.worker.reward.sam2_path) }
  local tiles = {}
  local rows = {}
  for i, record in ipairs(chosen(folder, step, check_count(count), sign)) do
    local row, complete = stored:row(tostring(record.row), record)
    local one = as_entry(record)
    one.why = explain(bench, row, record, complete)
    list[i] = one
    rows[i] = row
    if complete then tiles[#tiles + 1] = tile_of(row, one) end
  end
  for _, note in ipairs(stored:notes()) do table.insert(list.notes, note) end
  if #tiles > 0 and path then
    list.sheet = sheets.answers(path, tiles,
      ("The %s answers of step %d"):format(which, step), visible.line(folder, 60))
  end
  for _, row in ipairs(rows) do stored:release(row) end
  return list
end

function M.worst(run, step, count, o) return extreme("worst", 1, run, step, count, o) end
function M.best(run, step, count, o) return extreme("best", -1, run, step, count, o) end

-- ---- scoring again ----
-- The options, checked as the settings of `segzero reward`.
local function check_options(o)
  for name, v in pairs(o) do
    local good, why = values.convert(settings:find(name), tostring(v))
    if not good then error(why, 0) end
  end
end

function M.rescore(run, reward, o)
  check_options(o)
  if type(run) ~= "string" then
    error(("a run's folder is expected, got %s"):format(tostring(run)), 0)
  end
  local folder = run:gsub("(.)/+$", "%1")
  local f, name = variants.reward(reward)
  local result = rescoring.run(folder, f, { step = o.step, timeout = o.timeout,
    sam2_path = o.sam2_path })
  return setmetatable(result, { __tostring = function(self)
    return table.concat((rescoring.lines(self, { name = name, folder = folder,
      worst = o.worst or COUNT })), "\n")
  end })
end

return M
