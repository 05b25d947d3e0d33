-- answers.lua - figures over the answers of a step that need no model: how rewards, advantages and
-- lengths spread, and which groups have a signal.
--
--   answers.add(stats, groups, options)     adds to the step's record:
--     reward_min, reward_max, reward_std    of all answers
--     groups_no_signal                      share of groups whose answers all have one score
--     groups_all_right, groups_all_wrong    share of groups whose answers all have the highest, the
--                                           lowest score of the step
--     advantage_mean, _min, _max            over all tokens
--     length_min, length_max                tokens of an answer
--     length_at_limit                       share of answers with data.max_response_length tokens
--     prompt_length, _min, _max, _at_limit  tokens of a prompt with its images
--     rewards_mean, _min, _max              with a KL term in the reward: the scores less that term
--   options = {response =, prompt = the limits in tokens, seen = groups with such scores, or nil}
--
-- groups: train/records.lua, with scores and advantages. Leaves out: means (train/records.lua).

local M = {}

-- Collects numbers with weights: count, sum, least, most.
local function collector()
  return { count = 0, sum = 0, squares = 0, least = math.huge, most = -math.huge }
end

local function collect(c, v, weight)
  weight = weight or 1
  c.count = c.count + weight
  c.sum = c.sum + weight * v
  c.squares = c.squares + weight * v * v
  c.least = math.min(c.least, v)
  c.most = math.max(c.most, v)
end

local function add_range(stats, name, c, mean_name)
  if c.count == 0 then return end
  if mean_name then stats[mean_name] = c.sum / c.count end
  stats[name .. "_min"] = c.least
  stats[name .. "_max"] = c.most
end

local function collect_advantage(c, sample)
  local advantage = sample.advantage
  if type(advantage) ~= "table" then
    collect(c, advantage, #sample.ids)
    return
  end
  for _, v in ipairs(advantage) do collect(c, v) end
end

local function range_of(group)
  local least = math.huge
  local most = -math.huge
  for _, sample in ipairs(group.samples) do
    least = math.min(least, sample.score)
    most = math.max(most, sample.score)
  end
  return least, most
end

local function add_groups(stats, groups)
  local same, right, wrong = 0, 0, 0
  for _, group in ipairs(groups) do
    local least, most = range_of(group)
    if least == most then same = same + 1 end
    if least == stats.reward_max then right = right + 1 end
    if most == stats.reward_min then wrong = wrong + 1 end
  end
  stats.groups_no_signal = same / #groups
  stats.groups_all_right = right / #groups
  stats.groups_all_wrong = wrong / #groups
end

-- A prompt counts once for each of its answers.
local function add_prompts(stats, groups, limit)
  local c = collector()
  local at_limit = 0
  for _, group in ipairs(groups) do
    local tokens = group.row.prompt_tokens
    if not tokens and group.input then tokens = #group.input.input_ids end
    if not tokens then return end
    collect(c, tokens, #group.samples)
    if tokens == limit then at_limit = at_limit + #group.samples end
  end
  add_range(stats, "prompt_length", c, "prompt_length")
  stats.prompt_length_at_limit = at_limit / c.count
end

local function add_seen(stats, groups)
  local c = collector()
  for _, group in ipairs(groups) do
    for _, sample in ipairs(group.samples) do collect(c, sample.score) end
  end
  add_range(stats, "rewards", c, "rewards_mean")
end

function M.add(stats, groups, options)
  -- One pass over the answers.
  local score, length, advantage = collector(), collector(), collector()
  local at_limit = 0
  for _, group in ipairs(groups) do
    for _, sample in ipairs(group.samples) do
      collect(score, sample.score)
      collect(length, #sample.ids)
      collect_advantage(advantage, sample)
      if #sample.ids == options.response then at_limit = at_limit + 1 end
    end
  end
  if score.count == 0 then return end

  -- The record.
  add_range(stats, "reward", score)
  local mean = score.sum / score.count
  stats.reward_std = math.sqrt(math.max(0, score.squares / score.count - mean * mean))
  add_range(stats, "length", length)
  stats.length_at_limit = at_limit / score.count
  add_range(stats, "advantage", advantage, "advantage_mean")
  add_groups(stats, groups)
  add_prompts(stats, groups, options.prompt)
  if options.seen then add_seen(stats, options.seen.groups) end
end

return M
