-- asking.lua - asks a model about the rows of a set and scores the answers.
--
--   local asked = asking.run {
--     policy =, set =, ask = f(problem), several = boolean, reward = f, segmenter = or nil,
--     generation = {n =, temperature =, ...}, system_prompt =, frames = }
--     -> {{index =, id =, problem =, answers = {{text =, ids =, logprobs =, finish =, score =,
--          parts =, why =, found = in the image's pixels or nil}, ...}, truth = objects}, ...}
--
-- The rows are asked together, each prompt computed once for its answers, as in training. Sampled
-- tokens depend on (seed, the row's number in its set, answer, position) only.
-- Leaves out: drawing, tables.

local answer = require "segzero.formats.answer"
local coordinates = require "segzero.data.coordinates"
local evaluator = require "segzero.evaluation.evaluator"
local inputs = require "segzero.train.inputs"
local runner = require "segzero.reward.runner"
local truth = require "segzero.data.truth"

local M = {}

local BATCH = 64
local MOST_TOKENS = 2 ^ 24

-- What the answers of a row say, scored.
local function judge(o, rules, entry)
  local row = entry.row
  local group = { row = row, input = entry.input, samples = entry.answers }
  runner.score_group(o.reward, group, o.segmenter, rules)
  for _, sample in ipairs(entry.answers) do
    local found = answer.read(sample.text, truth.is_list(row.solution))
    sample.found = found and coordinates.to_image(row, found)
  end
  local ok, objects = pcall(truth.objects, row)
  return { index = entry.index, id = row.id, problem = row.problem, answers = entry.answers,
    truth = ok and objects or nil }
end

function M.run(o)
  local asked = {}
  local rules = runner.rules { timeout = 10, on_error = "stop" }
  rules.keep_why = true
  local of_input = { system_prompt = o.system_prompt, max_tokens = MOST_TOKENS, frames = o.frames }
  evaluator.run {
    set = o.set, first = 1, last = o.set:count(), batch = BATCH, policy = o.policy,
    generation = o.generation, resize = o.frames.resize,
    input = function(row) return inputs.prepare(row, o.policy, o.ask, of_input).input end,
    judge = function(entry) asked[#asked + 1] = judge(o, rules, entry) end,
  }
  return asked
end

return M
