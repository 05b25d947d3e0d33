-- warnings.lua - says in words when a run is sick; silent on a healthy one.
--
--   local watch = warnings.new{estimator = "grpo", answers = 8}    answers: worker.rollout.n
--   watch:see(stats) -> list of texts       after each step; stats: its record
--
-- What is noticed, and after how many steps in a row (`FEW` = 3):
--   one answer    a group of one answer has no advantage
--   no rate       the learning rate is 0
--   constant      all answers of FEW steps had one and the same reward
--   no signal     in FEW steps no group had two different rewards
--   cut           in FEW steps no answer ended by itself
--   collapse      the entropy of the last 5 steps is below 0.05 and below a tenth of the first 5's
--   format        over 60 steps the parts named *format* rose by 0.2, those named *iou* or
--                 *accuracy* by less than 0.02
-- With a KL term in the reward, equal scores mean nothing: the advantages still differ
-- by that term.
-- A warning names the likely cause and what to set, and is repeated after 50 steps if it still
-- holds. A resumed run starts to count again. Leaves out: a run that has diverged (run/health.lua).

local M = {}

local methods = {}
local mt = { __index = methods }

local FEW = 3
local AGAIN = 50
local WINDOW = 5                -- steps of an entropy
local FIRST, LAST = 10, 20      -- steps of a part's mean at the start, and at the end
local LONG = 60
local COLLAPSED = 0.05
local SHARE = 0.1
local FORMAT_GAIN = 0.2
local ACCURACY_GAIN = 0.02

-- Estimators that compare the answers of a group.
local COMPARES = { grpo = true, rloo = true, grpo_passk = true }

function M.new(facts)
  return setmetatable({ facts = facts, history = {}, count = 0, streak = {}, said = {} }, mt)
end

-- ---- what a record says ----
-- The sum of the parts whose name has one of the words; nil without such a part.
local function parts_named(stats, words)
  local sum
  for name, v in pairs(stats) do
    local part = type(name) == "string" and name:match "^reward/(.*)$"
    local has = false
    for _, word in ipairs(words) do has = has or (part and part:lower():find(word, 1, true)) end
    if has then sum = (sum or 0) + v end
  end
  return sum
end

local function remember(self, stats)
  self.count = self.count + 1
  self.history[self.count] = {
    entropy = stats.entropy, format = parts_named(stats, { "format" }),
    accuracy = parts_named(stats, { "iou", "accuracy" }),
  }
  -- Only the first FIRST steps and the last LAST steps are read again.
  local old = self.count - LAST
  if old > FIRST then self.history[old] = nil end
end

-- The mean of a figure over steps first to last; nil if a step lacks it.
local function mean(self, name, first, last)
  local sum = 0
  for i = first, last do
    local v = self.history[i] and self.history[i][name]
    if not v then return nil end
    sum = sum + v
  end
  return sum / (last - first + 1)
end

-- How much a part has gained since the first steps; nil if unknown.
local function gain(self, name)
  local before = mean(self, name, 1, FIRST)
  local now = mean(self, name, self.count - LAST + 1, self.count)
  if before and now then return now - before end
end

-- Whether something has held for FEW steps in a row.
local function lasts(self, kind, holds)
  self.streak[kind] = holds and (self.streak[kind] or 0) + 1 or 0
  return self.streak[kind] >= FEW
end

-- Whether the scores alone make the advantages.
local function has_scores(stats) return stats.reward_min ~= nil and not stats.rewards_mean end

-- ---- the warnings ----
-- Each returns a text, or nil.
local CHECKS = {}

CHECKS[1] = { "one answer", function(self)
  local facts = self.facts
  if facts.answers ~= 1 or not COMPARES[facts.estimator] then return nil end
  return ("worker.rollout.n=1: %s compares the answers to one prompt, so nothing is learned " ..
    "from one answer; set worker.rollout.n=8"):format(facts.estimator)
end }

CHECKS[2] = { "no rate", function(self, stats)
  local is_zero = lasts(self, "no rate", stats.lr == 0)
  if not is_zero then return nil end
  return ("the learning rate was 0 in the last %d steps, so the weights stay as they are; set " ..
    "worker.actor.optim.lr"):format(FEW)
end }

CHECKS[3] = { "constant", function(self, stats)
  local is_one = has_scores(stats) and stats.reward_min == stats.reward_max
  local holds = is_one and (self.value == nil or self.value == stats.reward_min)
  if not holds then self.streak.constant = 0 end
  self.value = is_one and stats.reward_min or nil
  if not lasts(self, "constant", is_one) then return nil end
  return ("every answer of the last %d steps had the reward %g, so nothing is learned; check " ..
    "the reward (worker.reward.compute_score) on answers in rollouts.jsonl"):format(FEW, self.value)
end }

CHECKS[4] = { "no signal", function(self, stats)
  local holds = has_scores(stats) and stats.groups_no_signal == 1
    and COMPARES[self.facts.estimator]
  local is_long = lasts(self, "no signal", holds and self.facts.answers > 1)
  -- A constant reward says it already.
  if not is_long or self.streak.constant >= FEW then return nil end
  return ("in the last %d steps all answers to a prompt had the same reward, in every group, so " ..
    "nothing is learned; use prompts of another difficulty, a reward with steps, more answers " ..
    "(worker.rollout.n) or a higher worker.rollout.temperature"):format(FEW)
end }

CHECKS[5] = { "cut", function(self, stats)
  if not lasts(self, "cut", stats.stopped == 0) then return nil end
  return ("in the last %d steps every answer was cut off at %g tokens; raise " ..
    "data.max_response_length, or the model does not know when to stop"):format(FEW, stats.length)
end }

CHECKS[6] = { "collapse", function(self)
  if self.count < 2 * WINDOW then return nil end
  local before = mean(self, "entropy", 1, WINDOW)
  local now = mean(self, "entropy", self.count - WINDOW + 1, self.count)
  if not now or not before or now >= COLLAPSED or now >= SHARE * before then return nil end
  return ("the entropy has fallen from %.3f to %.4f, so answers hardly differ any more; lower " ..
    "worker.actor.optim.lr, or raise worker.actor.kl_loss_coef or worker.actor.entropy_coeff")
    :format(before, now)
end }

CHECKS[7] = { "format", function(self)
  if self.count < LONG then return nil end
  local format = gain(self, "format")
  local accuracy = gain(self, "accuracy")
  if not format or not accuracy then return nil end
  if format < FORMAT_GAIN or accuracy >= ACCURACY_GAIN then return nil end
  return ("in %d steps the format's parts rose by %.2f and the accuracy's by %.3f: the model " ..
    "learns the form of an answer and not the place; look at the images, at the coordinates' " ..
    "frame and at the answers in rollouts.jsonl"):format(self.count, format, accuracy)
end }

function methods:see(stats)
  remember(self, stats)
  local texts = {}
  for _, check in ipairs(CHECKS) do
    local kind = check[1]
    local text = check[2](self, stats)
    local last = self.said[kind]
    if text and (not last or self.count - last >= AGAIN) then
      texts[#texts + 1] = text
      self.said[kind] = self.count
    end
  end
  return texts
end

return M
