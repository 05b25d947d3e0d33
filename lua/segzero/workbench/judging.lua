-- judging.lua - runs a reward on answers, with its time, and goes on where it fails.
--
--   local bench = judging.new { reward = f, timeout = seconds, segmenter = segmenter or nil }
--   bench:judge(row, items)      items: {{text =}, ...}, answers to one row; sets of each
--                                  score, parts, why = what the reward returned
--                                  seconds           how long it took
--                                  failure           one line and more, instead of a score
--                                without_image: the row has none, so no masks are lent
--   bench.calls, bench.seconds, bench.slowest        of all answers so far
--   judging.lazy_segmenter(load) -> segmenter        load() -> SAM2, at the first mask
--   local found, name = judging.segmenter(path)      of a setting; nil for ""
--
-- The third answer that takes too long is an error. The row's masks are lent as in training, so
-- that a reward may ask for row.segment. SAM2's time is counted, because a run waits for it, too.
-- Leaves out: what the numbers mean (summary.lua).

local answer = require "segzero.formats.answer"
local core = require "segzero.core.ffi"
local masks = require "segzero.reward.masks"
local runner = require "segzero.reward.runner"
local truth = require "segzero.data.truth"

local M = {}

local methods = {}
local mt = { __index = methods }

local now = core.C.sz_seconds

function M.new(options)
  local rules = runner.rules { timeout = options.timeout or 10, on_error = "stop" }
  rules.keep_why = true
  return setmetatable({ reward = options.reward, segmenter = options.segmenter, rules = rules,
    calls = 0, seconds = 0, slowest = 0, failures = 0 }, mt)
end

-- ---- SAM2 ----
function M.lazy_segmenter(load)
  local found
  local function get()
    found = found or require("segzero.inference.segmenter").new(load())
    return found
  end
  return {
    embed = function(_, img) return get():embed(img) end,
    masks = function(_, features, list) return get():masks(features, list) end,
  }
end

function M.segmenter(path)
  if path == nil or path == "" then return nil end
  return M.lazy_segmenter(function() return require("segzero.models.sam2").sam2(path) end)
end

-- ---- judging ----
local MOST_LATE = 3             -- answers that reach the time limit, before the reward is given up

local function judge_one(self, row, item)
  local sample = { text = item.text, ids = item.ids }
  local started = now()
  local ok, failure = pcall(runner.score, self.reward, row, sample, self.rules)
  item.seconds = now() - started
  self.calls = self.calls + 1
  self.seconds = self.seconds + item.seconds
  self.slowest = math.max(self.slowest, item.seconds)
  if ok then
    item.score = sample.score
    item.parts = sample.parts
    item.why = sample.why
    return
  end
  if core.is_interrupt(failure) then error(failure, 0) end
  self.failures = self.failures + 1
  item.failure = tostring(failure)
  if not item.failure:find("did not end within", 1, true) then return end
  self.late = (self.late or 0) + 1
  if self.late < MOST_LATE then return end
  error(("%d answers took too long, the rest is not tried\n%s"):format(self.late, item.failure), 0)
end

function methods:judge(row, items, without_image)
  if self.segmenter and not without_image then
    local expected = {}
    for _, item in ipairs(items) do
      expected[#expected + 1] = answer.read(item.text, truth.is_list(row.solution))
    end
    masks.lend(self.segmenter, row, expected)
  end
  for _, item in ipairs(items) do judge_one(self, row, item) end
  if row.lent then masks.take_back(row) end
end

return M
