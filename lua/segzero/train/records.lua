-- records.lua - the four records that a training step passes from stage to stage, and what is
-- counted over them.
--
-- Row: one example, made by a data source (data/sources.lua).
--   id, index          its name and its number in the set, from 1
--   problem, solution  the question and the ground truth, as text
--   image, images      the image (the trainer frees it), and a list with it
--   frame              the frame that answers count in: the side of a square in pixels, or {width
--                      =, height =}. Until a model sees the row, the frame of the solution
--   solution_frame     what the solution as stored counts in, if the source states it
--   mask               nil, or a function that returns the true mask: u8 [height, width] of 0 and
--                      1, freed by the caller
--   ignore_mask        nil, or such a function for the pixels that an evaluation may leave out
--   system_prompt      nil, or the row's own, instead of data.system_prompt
--   columns            every column of the user's data; each is also a field of the row unless a
--                      field has its name
--   The trainer adds number (which row of the run; keys the random numbers), input (what the model
--   reads; see vl:process), the frames of data/coordinates.lua (solution_frame, answer_frame,
--   stored_solution; solution is in the frame of answers from then on) and, while rewards run and
--   there is a SAM2 model, segment (reward/masks.lua).
--
-- Sample: one answer.
--   ids, text          its tokens, and its text without special tokens
--   length, finish     number of tokens; "stop" or "length"
--   logprobs           log-probability of each token by the policy that sampled it
--   reference          the same by the reference model; nil without one
--   score, parts       what the reward returned: a number, and nil or names with numbers
--   advantage          a number, or a list with one for each token
--
-- Group: {row =, input = row.input, samples = {Sample, ...}}, a prompt with its answers.
-- Batch: {groups = {Group, ...}}, one rollout. An update may use a part of a batch's groups.
--
-- Stages: rows (data/sampler.lua) -> rollout and score (train/rollout.lua, reward/runner.lua) ->
-- reference (train/forward.lua) -> advantage (train/advantage.lua) -> update (train/update.lua) ->
-- record (this file, log/). Leaves out: code of the stages.

local M = {}

-- {tokens =, answers =}: what the weights of a loss are computed from.
function M.totals(groups)
  local totals = { tokens = 0, answers = 0 }
  for _, group in ipairs(groups) do
    for _, sample in ipairs(group.samples) do
      totals.tokens = totals.tokens + #sample.ids
      totals.answers = totals.answers + 1
    end
  end
  return totals
end

-- Means over all answers of a scored batch: reward, reward/PART, length, and stopped (the share
-- that ended by itself).
function M.means(groups)
  local sums = { reward = 0, length = 0, stopped = 0 }
  local answers = 0
  for _, group in ipairs(groups) do
    for _, sample in ipairs(group.samples) do
      answers = answers + 1
      sums.reward = sums.reward + sample.score
      sums.length = sums.length + #sample.ids
      if sample.finish == "stop" then sums.stopped = sums.stopped + 1 end
      for name, v in pairs(sample.parts or {}) do
        local key = "reward/" .. name
        sums[key] = (sums[key] or 0) + v
      end
    end
  end
  for name, sum in pairs(sums) do sums[name] = sum / answers end
  return sums
end

-- The batch as lines of rollouts.jsonl.
function M.rollout_rows(step, groups)
  local list = {}
  for _, group in ipairs(groups) do
    for i, sample in ipairs(group.samples) do
      list[#list + 1] = {
        step = step, row = group.row.id, answer = i,
        problem = group.row.problem, solution = group.row.solution,
        text = sample.text, reward = sample.score, parts = sample.parts,
        advantage = sample.advantage,
        finish = sample.finish, ids = sample.ids, logprobs = sample.logprobs,
      }
    end
  end
  return list
end

return M
