-- on_ranks.lua - hands the rows of an evaluation to the replicas of a job, and what was judged to
-- rank 0, in the order of the rows.
--
--   on_ranks.run(p, e, judge, take)
--       p        train/parallel.lua's object
--       e        of evaluator.run, without judge and parallel
--       judge(entry) -> judged     {record =, mask = u8 [height, width] or nil, objects =, failure
--       =} take(judged, row, is_batch_end)     on rank 0 alone; keeps the mask or frees it. row:
--                nil if another rank judged it
--
-- The replicas take batch after batch in turn, so that rank 0 has the rows in order soon after
-- they are judged. A replica's first shard judges. Masks travel as the lengths of their runs. With
-- one rank take() follows judge() at once. Leaves out: opening sets and models, files (run.lua).

local evaluator = require "segzero.evaluation.evaluator"
local tensor = require "segzero.core.tensor"

local M = {}

-- ---- masks that travel ----
-- The lengths of runs of equal pixels, zeros first. Frees the mask.
local function packed(mask)
  if not mask then return nil end
  local data = tensor.data(mask)
  local runs = {}
  local value = 0
  local length = 0
  for i = 0, mask:numel() - 1 do
    if data[i] ~= value then
      runs[#runs + 1] = length
      value = data[i]
      length = 0
    end
    length = length + 1
  end
  runs[#runs + 1] = length
  local message = { shape = mask:shape(), runs = runs }
  mask:free()
  return message
end

local function unpacked(message)
  if not message then return nil end
  local mask = tensor.zeros(message.shape, { dtype = "u8" })
  local data = tensor.data(mask)
  local first = 0
  for k, length in ipairs(message.runs) do
    if k % 2 == 0 then
      for i = first, first + length - 1 do data[i] = 1 end
    end
    first = first + length
  end
  return mask
end

-- ---- rounds ----
local function with(e, more)
  local all = {}
  for name, value in pairs(e) do all[name] = value end
  for name, value in pairs(more) do all[name] = value end
  return all
end

-- This replica's batch of the round that starts with row `start`: what its first shard has judged.
local function judge_batch(p, e, judge, start)
  local list = {}
  local first = start + p.replica * e.batch
  local last = math.min(first + e.batch - 1, e.last)
  evaluator.run(with(e, { first = first, last = last, parallel = p, judge = function(entry)
    p:from_first(function()
      local judged = judge(entry)
      judged.mask = packed(judged.mask)
      list[#list + 1] = judged
    end)
  end }))
  return list
end

local function take_all(shares, take)
  for _, list in ipairs(shares) do
    for k, judged in ipairs(list) do
      judged.mask = unpacked(judged.mask)
      take(judged, nil, k == #list)
    end
  end
end

function M.run(p, e, judge, take)
  if p.size == 1 then
    evaluator.run(with(e, { judge = function(entry, is_batch_end)
      take(judge(entry), entry.row, is_batch_end)
    end }))
    return
  end
  for start = e.first, e.last, e.batch * p.replicas do
    local shares = p:in_step(function() return judge_batch(p, e, judge, start) end)
    p:on_root(function() take_all(shares, take) end)
  end
end

return M
