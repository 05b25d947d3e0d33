-- answers.lua - the answers of a run that a report shows, from rollouts.jsonl.
--
--   local a = answers.new(path)
--   a:read(final)              takes in the lines that are new. The last step in the file may still
--                              grow; it counts once a later one begins, or with final
--   a.kept                     a thinned.lua store: step -> {packed = text}
--   answers.picks(entry) -> {{tags =, row =, line =, group =}, ...}
--       tags                   which of best, worst and disputed the answer is
--       row                    its row's id
--       line                   its line of rollouts.jsonl, without token ids and log-probabilities
--       group                  the rewards of all answers to the same prompt, in their order
--   a.spread                   metrics.columns: of each step reward_min, reward_max, reward_std and
--                              no_signal, the share of prompts whose answers all earn the same
--   a:complaint()              of reader.lua
--
-- Chosen of each step: the answer with the highest reward, the one with the lowest, and the highest
-- and lowest of the prompt whose answers differ most (standard deviation of their rewards). Of
-- equal ones the first is taken. A prompt with one answer is not disputed. A step's choice is kept
-- as one text, because a garbage collection, which every training step makes, visits each object.
-- Leaves out: reading the answer itself (card.lua).

local cjson = require "cjson"
local metrics = require "segzero.report.metrics"
local reader = require "segzero.report.reader"
local rollouts = require "segzero.runs.rollouts"
local thinned = require "segzero.report.thinned"

local M = {}

local methods = {}
local mt = { __index = methods }

-- A page with this much opens in well under two seconds (docs/guide/report.md has the figures).
M.LIMIT = { bytes = 6 * 2 ^ 20, steps = 2000 }

function M.new(path)
  return setmetatable({ path = path, reader = reader.new(path), kept = thinned.new(M.LIMIT),
    spread = metrics.columns() }, mt)
end

-- ---- one step ----
local function mean_and_deviation(list)
  local sum = 0
  for _, v in ipairs(list) do sum = sum + v end
  local mean = sum / #list
  local squares = 0
  for _, v in ipairs(list) do squares = squares + (v - mean) ^ 2 end
  return mean, math.sqrt(squares / #list)
end

-- The places of the highest and of the lowest reward.
local function extremes(list)
  local high = 1
  local low = 1
  for i, answer in ipairs(list) do
    if answer.reward > list[high].reward then high = i end
    if answer.reward < list[low].reward then low = i end
  end
  return list[high], list[low]
end

local function rewards_of(list)
  local rewards = {}
  for i, answer in ipairs(list) do rewards[i] = answer.reward end
  return rewards
end

-- The answers by prompt, in the order of the file. A row may be drawn twice in a step: the numbers
-- of its answers then start again.
local function groups_of(list)
  local groups = {}
  local open = {}
  for _, answer in ipairs(list) do
    local group = open[answer.row]
    if not group or group.seen[answer.number] then
      group = { seen = {} }
      open[answer.row] = group
      groups[#groups + 1] = group
    end
    group.seen[answer.number] = true
    group[#group + 1] = answer
    answer.group = group
  end
  return groups
end

-- The prompt whose answers differ most, or nil; and the share of prompts without any difference.
local function most_disputed(groups)
  local best
  local most = 0
  local flat = 0
  for _, group in ipairs(groups) do
    local _, deviation = mean_and_deviation(rewards_of(group))
    if deviation == 0 then flat = flat + 1 end
    if deviation > most then
      best = group
      most = deviation
    end
  end
  return best, flat / #groups
end

-- list: the answers of one step.
local function choose(list)
  local picks = {}
  local pick_of = {}
  local function tag(answer, name)
    local pick = pick_of[answer]
    if not pick then
      pick = { tags = {}, row = answer.row, line = answer.line, group = rewards_of(answer.group) }
      pick_of[answer] = pick
      picks[#picks + 1] = pick
    end
    pick.tags[#pick.tags + 1] = name
  end

  local groups = groups_of(list)
  local high, low = extremes(list)
  local disputed, flat = most_disputed(groups)
  tag(high, "best")
  if low ~= high then tag(low, "worst") end
  if disputed then
    local most, least = extremes(disputed)
    tag(most, "disputed")
    tag(least, "disputed")
  end
  local mean, deviation = mean_and_deviation(rewards_of(list))
  local spread = { reward_min = low.reward, reward_max = high.reward, reward_mean = mean,
    reward_std = deviation, no_signal = flat }
  return picks, spread
end

local function end_step(self)
  local list = self.open
  self.open = nil
  if not list then return end
  local picks, spread = choose(list)
  local packed = cjson.encode(picks)
  self.kept:put(list.step, { packed = packed }, #packed)
  self.spread:put(list.step, spread)
end

function M.picks(entry) return cjson.decode(entry.packed) end

-- ---- the file ----
local function is_number(v) return type(v) == "number" and v == v and math.abs(v) < math.huge end

local function take(self, line)
  if #line > 2 ^ 24 then return self.reader:damaged "it is longer than 16 MiB" end
  line = rollouts.shorter(line)
  local ok, record = pcall(cjson.decode, line)
  if not ok or type(record) ~= "table" then return self.reader:damaged "it is no JSON object" end
  local whole = is_number(record.step) and record.step % 1 == 0 and record.step >= 0
  if not whole then return self.reader:damaged "it has no step" end
  if not is_number(record.reward) then return self.reader:damaged "it has no reward" end
  if self.open and self.open.step ~= record.step then end_step(self) end
  self.open = self.open or { step = record.step }
  local answer = { line = line, row = tostring(record.row), reward = record.reward,
    number = tonumber(record.answer) or #self.open + 1 }
  table.insert(self.open, answer)
end

function methods:read(final)
  local state = self.reader:each(function(line) take(self, line) end)
  if state == "cut" then
    for name, value in pairs(M.new(self.path)) do self[name] = value end
    self.open = nil
    return self:read(final)
  end
  if final then end_step(self) end
end

function methods:complaint() return self.reader:complaint() end

return M
