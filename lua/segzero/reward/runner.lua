-- runner.lua - loads a reward and runs it on answers.
--
--   local reward = runner.load "seg_strict"         a module in rewards/, a file that ends in .lua,
--                                                   or a function
--   runner.score(reward, row, sample)               sets sample.score and sample.parts
--   runner.score_group(reward, group, segmenter)    all samples of a group; segmenter may be nil
--                                                   (reward/masks.lua)
--
-- A reward is f(text, ground_truth, row) -> number, nil or {name = number}. If it fails, the error
-- shows the row, the answer and the reward's own traceback. A result of another type, NaN or
-- infinity is one line. Leaves out: time limits.

local answer = require "segzero.formats.answer"
local masks = require "segzero.reward.masks"
local user_code = require "segzero.core.user_code"

local M = {}

-- ---- loading ----
local function load_file(path)
  local chunk, reason = loadfile(path)
  if not chunk then error("the reward does not load: " .. reason, 0) end
  local ok, reward = user_code.try(chunk)
  if not ok then
    error(("the reward %s does not load: %s"):format(path, user_code.text(reward)), 0)
  end
  return reward
end

local function load_module(name)
  local module = "rewards." .. name
  local ok, reward = pcall(require, module)
  if ok then return reward end
  if reward:find("module '" .. module .. "' not found", 1, true) then
    error(("worker.reward.compute_score: there is no reward '%s' (rewards/%s.lua)"):format(name,
      name), 0)
  end
  error(("the reward %s does not load: %s"):format(name, reward), 0)
end

function M.load(name)
  if type(name) == "function" then return name end
  local load = load_module
  if name:match "%.lua$" then load = load_file end
  local reward = load(name)
  if type(reward) ~= "function" then
    error(("the reward %s returns a %s, expected a function"):format(name, type(reward)), 0)
  end
  return reward
end

-- ---- running ----
local function is_finite(v) return type(v) == "number" and v == v and math.abs(v) ~= math.huge end

local function check_score(score, row, sample)
  -- One infinite score would make every advantage of its group NaN.
  if is_finite(score) then return end
  error(("the reward returned %s for row %s, expected a finite number\n  answer: %s")
    :format(tostring(score), tostring(row.id), tostring(sample.text)), 0)
end

local function check_parts(parts, row)
  if type(parts) ~= "table" then
    error(("the reward's second result for row %s is %s, expected names with numbers")
      :format(tostring(row.id), tostring(parts)), 0)
  end
  for name, v in pairs(parts) do
    if type(name) ~= "string" or type(v) ~= "number" then
      error(("the reward's part %s of row %s is %s, expected names with numbers")
        :format(tostring(name), tostring(row.id), tostring(v)), 0)
    end
  end
end

function M.score(reward, row, sample)
  local ok, score, parts = user_code.try(reward, sample.text, row.solution, row)
  if not ok then
    local text = "the reward failed on row %s\n  question: %s\n  ground truth: %s\n  answer: %s\n%s"
    error(text:format(tostring(row.id), row.problem, row.solution, tostring(sample.text),
      user_code.text(score)), 0)
  end
  check_score(score, row, sample)
  sample.score = score
  sample.parts = nil
  if parts ~= nil then
    check_parts(parts, row)
    sample.parts = parts
  end
end

function M.score_group(reward, group, segmenter)
  local row = group.row
  if segmenter then
    local expected = {}
    for _, sample in ipairs(group.samples) do
      expected[#expected + 1] = answer.parse(sample.text)
    end
    masks.lend(segmenter, row, expected)
  end
  for _, sample in ipairs(group.samples) do M.score(reward, row, sample) end
  masks.take_back(row)
end

return M
