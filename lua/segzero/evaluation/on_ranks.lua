-- on_ranks.lua - hands the rows of an evaluation to the replicas of a job, and what was judged to
-- rank 0, in the order of the rows.
--
--   on_ranks.run(p, e, judge, take)
--       p        train/parallel.lua's object
--       e        of evaluator.run, without judge and parallel
--       judge(entry) -> judged     {record =, mask = u8 [height, width] or nil, objects =,
--                failure =}
--       take(judged, row, is_batch_end)     on rank 0 alone; keeps the mask or frees it. row: nil
--                with several ranks
--
-- The replicas take batch after batch in turn, so that rank 0 has the rows in order soon after
-- they are judged. A replica's first shard judges. Masks travel as the lengths of their runs. With
-- one rank take() follows judge() at once. Leaves out: opening sets and models, files (run.lua).

local evaluator = require "segzero.evaluation.evaluator"
local mask_runs = require "segzero.formats.mask_runs"

local M = {}

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
      judged.mask = mask_runs.pack(judged.mask)
      list[#list + 1] = judged
    end)
  end }))
  return list
end

local function take_all(shares, take)
  for _, list in ipairs(shares) do
    for k, judged in ipairs(list) do
      judged.mask = mask_runs.unpack(judged.mask)
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
