-- runner.lua - loads a reward and runs it on answers.
--
--   local reward = runner.load "seg_strict"         a module in rewards/, FILE.lua,
--                                                   FILE.lua:NAME, or a function (loading.lua)
--   runner.score(reward, row, sample, rules)        sets sample.score and sample.parts
--   runner.score_group(reward, group, segmenter, rules)
--                                                   all samples of a group; segmenter may be nil
--                                                   (reward/masks.lua)
--   runner.rules{timeout = seconds, on_error = "stop" | "zero"}
--                                                   of a run; without rules: 10 s, stop
--                                                   rules.keep_why also keeps the third result in
--                                                   sample.why (reasons.lua)
--   runner.take_errors(rules) -> count              since the last call; nil with "stop"
--
-- A reward is f(text, ground_truth, row) -> number, nil or {name = number}. A failure, a result of
-- another type, NaN, infinity or the time limit (guard.lua) is an error that shows the row, the
-- answer and the reward's own traceback. With on_error = "zero" such an answer scores 0 and counts
-- as an error, which one line for each kind says. Leaves out: processes of their own for rewards.

local answer = require "segzero.formats.answer"
local guard = require "segzero.reward.guard"
local loading = require "segzero.reward.loading"
local masks = require "segzero.reward.masks"
local truth = require "segzero.data.truth"
local notes = require "segzero.core.notes"
local user_code = require "segzero.core.user_code"
local visible = require "segzero.core.visible"

local M = {}

M.names = loading.names
M.load = loading.load

-- ---- rules ----
local RULES = { timeout = 10, on_error = "stop" }

function M.rules(options)
  return { timeout = options.timeout, on_error = options.on_error, errors = 0,
    said = {} }
end

-- The errors since the last call; nil where an error ends the run.
function M.take_errors(rules)
  if rules.on_error ~= "zero" then return nil end
  local errors = rules.errors
  rules.errors = 0
  return errors
end

-- Of larger scores the deviation of a group is infinite, and all advantages would be 0.
local LARGEST = 1e30

local function is_finite(v) return type(v) == "number" and v == v and math.abs(v) ~= math.huge end

-- ---- what goes wrong ----
-- A value that is no finite number: nil, inf, the string 'x', a table.
local function described(v)
  if type(v) == "string" then return ("the string '%s'"):format(visible.line(v, 80)) end
  if type(v) == "table" or type(v) == "function" then return "a " .. type(v) end
  return visible.line(tostring(v))
end

-- A problem is {headline =, cure =, reason = its message in one line, details = more lines}.
local function problem_of_results(row, score, parts)
  local id = visible.line(row.id)
  -- One infinite score would make every advantage of its group NaN.
  if not is_finite(score) then
    local message = "the reward returned %s for row %s, expected a finite number"
    return { headline = message:format(described(score), id) }
  end
  if math.abs(score) > LARGEST then
    local message = "the reward returned %g for row %s, expected a number from -1e30 to 1e30"
    return { headline = message:format(score, id) }
  end
  if parts == nil then return nil end
  if type(parts) ~= "table" then
    local message = "the reward's second result for row %s is %s, expected names with numbers"
    return { headline = message:format(id, visible.line(parts)) }
  end
  for name, v in pairs(parts) do
    if type(name) ~= "string" or type(v) ~= "number" then
      local message = "the reward's part %s of row %s is %s, expected names with numbers"
      return { headline = message:format(visible.line(name), id, visible.line(v)) }
    end
  end
  return nil
end

local LATE_CURE = ": worker.reward.timeout=SECONDS is the limit, and " ..
  "worker.reward.on_error=zero scores such answers 0"

local function problem_of_failure(row, failure, rules)
  local id = visible.line(row.id)
  local text = user_code.text(failure)
  local headline = ("the reward failed on row %s"):format(id)
  local cure = ""
  if failure.late then
    headline = ("the reward did not end within %g s on row %s"):format(rules.timeout, id)
    cure = LATE_CURE
  end
  local reason = text:match "^[^\n]*"
  return { headline = headline, cure = cure, reason = reason, details = visible.text(text) }
end

-- An error that ends the run.
local function stop(row, sample, problem)
  local lines = {
    problem.headline .. (problem.cure or ""),
    "  question: " .. visible.text(row.problem),
    "  ground truth: " .. visible.text(row.solution),
    "  answer: " .. visible.text(sample.text),
    problem.details,
  }
  error(table.concat(lines, "\n"), 0)
end

-- A score of 0, and one line for each kind: errors of one kind differ in numbers and names only.
local function score_zero(rules, sample, problem)
  sample.score = 0
  sample.parts = nil
  rules.errors = rules.errors + 1
  local text = problem.headline
  if problem.reason then text = text .. ": " .. visible.line(problem.reason, 400) end
  local kind = (problem.reason or text):gsub("%d+", "0"):gsub("'[^']*'", "''")
  if rules.said[kind] then return end
  rules.said[kind] = true
  notes.say(text .. "; such answers score 0, and reward_errors counts them")
end

-- ---- running ----
function M.score(reward, row, sample, rules)
  rules = rules or RULES
  -- A reward that changes the row changes its own copy.
  local copy = setmetatable({}, getmetatable(row))
  for name, value in pairs(row) do copy[name] = value end
  copy.response_length = sample.ids and #sample.ids
  local ok, score, parts, why = guard.call(rules.timeout, "the reward of row " .. tostring(row.id),
    tostring(sample.text), reward, sample.text, row.solution, copy)
  local problem
  if ok then
    problem = problem_of_results(row, score, parts)
  else
    problem = problem_of_failure(row, score, rules)
  end
  if not problem then
    sample.score = score
    sample.parts = parts
    if rules.keep_why then sample.why = why end
  elseif rules.on_error == "zero" then
    score_zero(rules, sample, problem)
  else
    stop(row, sample, problem)
  end
end

function M.score_group(reward, group, segmenter, rules)
  local row = group.row
  if segmenter then
    local expected = {}
    for _, sample in ipairs(group.samples) do
      expected[#expected + 1] = answer.read(sample.text, truth.is_list(row.solution))
    end
    masks.lend(segmenter, row, expected)
  end
  for _, sample in ipairs(group.samples) do M.score(reward, row, sample, rules) end
  masks.take_back(row)
end

return M
