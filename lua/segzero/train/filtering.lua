-- filtering.lua - DAPO's dynamic sampling: groups whose answers are all good or all bad are left
-- out, and more prompts are drawn until the step has enough groups.
--
--   local groups = filtering.groups(t, step, options)      t: a trainer
--     options = {key =, low =, high =, tries =, batch =}; see train/options.lua
--     -> batch groups with answers and scores, and {filtered = groups left out, draws = how often
--        rows were drawn}
--
-- A group stays if the mean of its answers' part `key` is above low and below high; "overall" is
-- the score. Groups count in the order of their rows, as in EasyR1; those beyond `batch` are left
-- out, too. The rows of the next step follow those that were drawn.
-- Leaves out: answers of groups that were left out (they are in no record).

local inputs = require "segzero.train.inputs"

local M = {}

local function value_of(sample, key)
  if key == "overall" then return sample.score end
  local value = (sample.parts or {})[key]
  if value then return value end
  local names = {}
  for name in pairs(sample.parts or {}) do names[#names + 1] = name end
  table.sort(names)
  error(("algorithm.filter_key=%s: the reward has no such part; it has overall, %s"):format(key,
    table.concat(names, ", ")), 0)
end

local function mean_of(group, key)
  local sum = 0
  for _, sample in ipairs(group.samples) do sum = sum + value_of(sample, key) end
  return sum / #group.samples
end

local function too_few(options, kept, draws)
  local message = "algorithm.online_filtering: after %d draws only %d of %d groups have a mean " ..
    "of %s between %g and %g; raise trainer.max_try_make_batch (-1: no limit), or set " ..
    "algorithm.filter_low, algorithm.filter_high or algorithm.filter_key"
  error(message:format(draws, kept, options.batch, options.key, options.low, options.high), 0)
end

-- The rows of the next step follow the last row that was drawn.
local function count_from(t, step, draws)
  local sampler = t.sampler
  local after = sampler:place_after(t.train, step + draws - 1)
  sampler.since = { step = step, epoch = after.epoch, before = after.before,
    number = after.number }
end

function M.groups(t, step, options)
  local kept = {}
  local left_out = 0
  local draws = 0
  while #kept < options.batch do
    if options.tries > 0 and draws >= options.tries then too_few(options, #kept, draws) end
    draws = draws + 1
    for _, group in ipairs(t:draw(step + draws - 1)) do
      local mean = mean_of(group, options.key)
      if mean > options.low and mean < options.high and #kept < options.batch then
        kept[#kept + 1] = group
        -- Ranks know a group by its place in the step, and each draw counts from 1.
        group.place = #kept
      else
        left_out = left_out + 1
        if not group.is_elsewhere then inputs.release { group.row } end
      end
    end
  end
  if draws > 1 then count_from(t, step, draws) end
  return kept, { filtered = left_out, draws = draws }
end

return M
