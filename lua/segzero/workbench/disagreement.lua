-- disagreement.lua - how far two rewards agree on the same answers.
--
--   local d = disagreement.of(items, groups)
--       items: {{score =, other = the other reward's score}, ...}
--       groups: lists of items, the answers to one question each
--     d.flipped   the share of pairs of answers to one question that the two order the other way
--     d.lost      the share of pairs that the other one tells apart and this one does not
--     d.pairs     how many pairs the two can tell apart
--     d.list      items, the largest difference first; each gets gap = its size, 0 to 1
--   disagreement.same(items) -> whether all scores are equal to all the digits that logs have
--
-- GRPO sees the differences inside a group only, so pairs of one question are what counts. For the
-- list both scores are first put on a scale from 0 (the lowest of all answers) to 1.
-- Leaves out: parts.

local M = {}

local function scale_of(items, key)
  local low = math.huge
  local high = -math.huge
  for _, item in ipairs(items) do
    low = math.min(low, item[key])
    high = math.max(high, item[key])
  end
  local width = high - low
  if width == 0 then width = 1 end
  return function(v) return (v - low) / width end
end

local function sign(v)
  if v > 0 then return 1 end
  if v < 0 then return -1 end
  return 0
end

-- Adds the pairs of one group.
local function count_pairs(d, group)
  for i = 1, #group do
    for j = i + 1, #group do
      local mine = sign(group[i].score - group[j].score)
      local theirs = sign(group[i].other - group[j].other)
      if mine ~= 0 or theirs ~= 0 then d.pairs = d.pairs + 1 end
      if mine * theirs < 0 then d.flipped = d.flipped + 1 end
      if mine == 0 and theirs ~= 0 then d.lost = d.lost + 1 end
    end
  end
end

function M.of(items, groups)
  local d = { pairs = 0, flipped = 0, lost = 0, list = {} }
  for _, group in ipairs(groups) do count_pairs(d, group) end
  if d.pairs > 0 then
    d.flipped = d.flipped / d.pairs
    d.lost = d.lost / d.pairs
  end
  if #items == 0 then return d end
  local mine = scale_of(items, "score")
  local theirs = scale_of(items, "other")
  for i, item in ipairs(items) do
    item.gap = math.abs(mine(item.score) - theirs(item.other))
    item.place = i
    d.list[i] = item
  end
  table.sort(d.list, function(a, b)
    if a.gap ~= b.gap then return a.gap > b.gap end
    return a.place < b.place
  end)
  return d
end

-- As a log writes and reads a number.
local function logged(v) return tonumber(("%.14g"):format(v)) end

function M.same(items)
  for _, item in ipairs(items) do
    if logged(item.score) ~= logged(item.other) then return false end
  end
  return true
end

return M
