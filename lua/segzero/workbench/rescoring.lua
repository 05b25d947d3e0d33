-- rescoring.lua - scores the stored answers of a run again, with another reward or a changed one.
--
--   local result = rescoring.run(folder, reward, {
--     step = only this one or nil, timeout = seconds, sam2_path = nil: of the settings,
--     say = f(text) for progress or nil })
--     result.items      {step, row, answer, text, score, parts, why, other = the stored reward}
--     result.good       those on which the reward did not fail; result.groups: by prompt
--     result.bench      of judging.lua
--     result.notes      what could not be recomputed, and why
--     result.incomplete answers whose row has only question, solution and text
--   rescoring.lines(result, options) -> lines, and whether the reward failed somewhere
--       options: name, folder, worst
--   rescoring.json_lines(result) -> text     a line for each answer: step, row, reward, parts, ...
--
-- Masks are not stored in a run: where a reward asks for row.segment, SAM2 of the run's settings
-- makes them again. A run made by a script's own reward or data set has only what rollouts.jsonl
-- says.
-- Leaves out: rewards of the held-out rows, whose answers are not stored.

local core = require "segzero.core.ffi"
local disagreement = require "segzero.workbench.disagreement"
local files = require "segzero.core.files"
local judging = require "segzero.workbench.judging"
local paths = require "segzero.config.paths"
local rollouts = require "segzero.runs.rollouts"
local run_folder = require "segzero.runs.run_folder"
local stored_rows = require "segzero.workbench.stored_rows"
local summary = require "segzero.workbench.summary"
local text = require "segzero.workbench.text"
local trying = require "segzero.workbench.trying"
local visible = require "segzero.core.visible"

local M = {}

local now = core.C.sz_seconds

-- The settings of a run folder, or an error in one line.
function M.settings(folder)
  run_folder.check_run(folder)
  local cfg = files.read_json_object(folder .. "/config.json")
  local model = cfg.worker.actor.model
  model.model_path = paths.stored(model.model_path)
  cfg.worker.reward.sam2_path = paths.stored(cfg.worker.reward.sam2_path)
  return cfg
end

-- SAM2 for masks; nil and why if that of the run is gone.
local function segmenter_of(path, given)
  if given then
    given = paths.sam2(given, { model = "" })
    paths.check_sam2("sam2_path", given)
    return judging.segmenter(given)
  end
  if type(path) ~= "string" or path == "none" then path = "" end
  local ok, why = pcall(paths.check_sam2, "worker.reward.sam2_path", path)
  if ok then return judging.segmenter(path) end
  return nil, core.plain(why)
end

local function items_of(group)
  local items = {}
  for i, record in ipairs(group.records) do
    local parts = record.parts
    if type(parts) ~= "table" then parts = nil end
    items[i] = { step = group.step, row = group.row, answer = record.answer, text = record.text,
      other = record.reward, other_parts = parts }
  end
  return items
end

local function take(result, items)
  local good = {}
  for _, item in ipairs(items) do
    result.items[#result.items + 1] = item
    if not item.failure then
      result.good[#result.good + 1] = item
      good[#good + 1] = item
    end
  end
  result.groups[#result.groups + 1] = good
end

local NEWS = 10                 -- seconds between two lines of progress

local function new_progress(say)
  local due = now() + NEWS
  return function(result)
    if not say or now() < due then return end
    due = now() + NEWS
    say(("%d answers scored"):format(#result.items))
  end
end

function M.run(folder, reward, o)
  local cfg = M.settings(folder)
  local stored = stored_rows.open(cfg)
  local segmenter, gone = segmenter_of(cfg.worker.reward.sam2_path, o.sam2_path)
  local result = { items = {}, good = {}, groups = {}, incomplete = 0 }
  result.bench = judging.new { reward = reward, timeout = o.timeout, segmenter = segmenter }
  if gone then stored:note("masks cannot be made again: " .. gone) end
  local tick = new_progress(o.say)
  rollouts.groups(folder .. "/rollouts.jsonl", function(group)
    local row, complete = stored:row(group.row, group.records[1])
    local items = items_of(group)
    if not complete then result.incomplete = result.incomplete + #items end
    result.bench:judge(row, items, not complete)
    stored:release(row)
    take(result, items)
    tick(result)
  end, { step = o.step })
  if #result.items == 0 then
    local where = o.step and (" of step %d"):format(o.step) or ""
    error(("%s/rollouts.jsonl has no answers%s"):format(folder, where), 0)
  end
  result.notes = stored:notes()
  return result
end

-- ---- the text ----
local function add(lines, more)
  if #more == 0 then return end
  lines[#lines + 1] = ""
  for _, line in ipairs(more) do lines[#lines + 1] = line end
end

-- Rows of a table: the stored and the new mean over about ten spans of steps.
local function by_step(items)
  local spans = {}
  local first = items[1].step
  local last = items[#items].step
  local width = math.ceil((last - first + 1) / 10)
  for _, item in ipairs(items) do
    local k = math.floor((item.step - first) / width) + 1
    local span = spans[k] or { count = 0, old = 0, new = 0 }
    spans[k] = span
    span.first = first + (k - 1) * width
    span.count = span.count + 1
    span.old = span.old + item.other
    span.new = span.new + item.score
  end
  local rows = { { "steps", "answers", "stored reward", "this reward" } }
  for k = 1, math.floor((last - first) / width) + 1 do
    local span = spans[k]
    if span then
      local to = math.min(last, span.first + width - 1)
      local name = tostring(span.first)
      if to > span.first then name = ("%d to %d"):format(span.first, to) end
      rows[#rows + 1] = { name, tostring(span.count), text.number(span.old / span.count),
        text.number(span.new / span.count) }
    end
  end
  return text.table(rows)
end

local function signal(groups, key)
  local with = 0
  for _, group in ipairs(groups) do
    local differs = false
    for _, item in ipairs(group) do differs = differs or item[key] ~= group[1][key] end
    if differs then with = with + 1 end
  end
  return with / #groups
end

local function comparison(result, o)
  if disagreement.same(result.good) then
    return { ("all %d rewards are the stored ones, to the last digit"):format(#result.good) }
  end
  local d = disagreement.of(result.good, result.groups)
  local lines = summary.disagreement(d, "the stored reward", o.worst)
  lines[#lines + 1] = ("prompts whose answers earn different rewards: %.0f %%, stored %.0f %%")
    :format(100 * signal(result.groups, "score"), 100 * signal(result.groups, "other"))
  return lines
end

local function notes_of(result)
  local lines = {}
  for i, note in ipairs(result.notes) do lines[i] = "note: " .. visible.line(note, 300) end
  if result.incomplete > 0 then
    local text_of_note = "note: %d answers were scored without image, mask and columns of their row"
    lines[#lines + 1] = text_of_note:format(result.incomplete)
  end
  return lines
end

function M.lines(result, o)
  local lines = { ("%s on the answers of %s: %d answers to %d prompts, %s"):format(o.name, o.folder,
    #result.items, #result.groups, trying.time_text(result.bench)) }
  for _, line in ipairs(notes_of(result)) do lines[#lines + 1] = line end
  add(lines, summary.failures(result.items))
  if #result.good > 0 then
    add(lines, by_step(result.good))
    add(lines, summary.scores(result.good))
    add(lines, summary.parts(result.good))
    add(lines, comparison(result, o))
  end
  return lines, result.bench.failures > 0
end

function M.json_lines(result)
  local lines = {}
  for i, item in ipairs(result.good) do
    lines[i] = files.json { step = item.step, row = item.row, answer = item.answer,
      reward = item.score, parts = item.parts, stored_reward = item.other } .. "\n"
  end
  return table.concat(lines)
end

return M
