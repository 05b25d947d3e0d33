-- rewarding.lua - the reward of each evaluated answer (recipes/evaluate.lua reward=NAME).
--
--   local r = rewarding.open(cfg, segmenter)     nil without cfg.reward; segmenter may be nil
--   r:judge(entry, record)       entry: of evaluator.lua, before judge.row; sets record.reward and
--                                record.reward_parts. A row without an answer has the reward 0
--   rewarding.summary(records, options) -> {value =, low =, high =, rows =, parts = {name -> mean}}
--                                or nil; options: of metrics.mean
--   rewarding.line(summary) -> text
--   rewarding.difference_line(before, after, options) -> text, or nil if a record has no reward
--
-- The reward sees what it sees in training: the row with its columns, frame, image and, if there is
-- SAM2, row.segment. A reward that fails ends the evaluation with its own traceback.
-- Leaves out: other measures (metrics.lua).

local cjson = require "cjson"
local loading = require "segzero.reward.loading"
local metrics = require "segzero.evaluation.metrics"
local runner = require "segzero.reward.runner"
local visible = require "segzero.core.visible"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.load(name)
  local ok, reward = pcall(loading.load, name)
  if ok then return reward end
  error((tostring(reward):gsub("^worker%.reward%.compute_score[:=]", "reward:")), 0)
end

function M.open(cfg, segmenter)
  if cfg.reward == "" then return nil end
  return setmetatable({ reward = M.load(cfg.reward), segmenter = segmenter }, mt)
end

function methods:judge(entry, record)
  record.reward = 0
  record.reward_parts = cjson.null
  if not entry.answer then return end
  local sample = { text = entry.answer.text, ids = entry.answer.ids }
  runner.score_group(self.reward, { row = entry.row, samples = { sample } }, self.segmenter)
  record.reward = sample.score
  if sample.parts then record.reward_parts = sample.parts end
end

-- ---- over all rows ----
local function values_of(records)
  local values = {}
  for i, record in ipairs(records) do
    if type(record.reward) ~= "number" then return nil end
    values[i] = record.reward
  end
  return values
end

function M.summary(records, options)
  local values = values_of(records)
  if not values or #values == 0 then return nil end
  local mean = metrics.mean(values, options)
  local parts = {}
  for _, record in ipairs(records) do
    local own = record.reward_parts
    if type(own) ~= "table" then own = {} end
    for name, v in pairs(own) do parts[name] = (parts[name] or 0) + v / #records end
  end
  return { value = mean[1], low = mean[2], high = mean[3], rows = #values, parts = parts }
end

function M.line(s)
  local names = {}
  for name in pairs(s.parts) do names[#names + 1] = name end
  table.sort(names)
  local words = { ("reward=%.3f [%.3f, %.3f]"):format(s.value, s.low, s.high) }
  for _, name in ipairs(names) do
    words[#words + 1] = ("%s=%.3f"):format(visible.line(name, 40), s.parts[name])
  end
  words[#words + 1] = ("rows=%d"):format(s.rows)
  return table.concat(words, " ")
end

function M.difference_line(before, after, options)
  local old = values_of(before)
  local new = values_of(after)
  if not old or not new or #old == 0 or #old ~= #new then return nil end
  local change = {}
  for i = 1, #old do change[i] = new[i] - old[i] end
  local mean = metrics.mean(change, options)
  local function average(list)
    local sum = 0
    for _, v in ipairs(list) do sum = sum + v end
    return sum / #list
  end
  return ("reward %.3f -> %.3f: %+.3f [%+.3f, %+.3f]"):format(average(old), average(new), mean[1],
    mean[2], mean[3])
end

return M
