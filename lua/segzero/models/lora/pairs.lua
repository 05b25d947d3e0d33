-- pairs.lua - which parts of an adapter's two matrices a shard of a split model has.
--
--   local a, b = pairs_of.weight(w, rank, shards)
--   local a, b = pairs_of.adapter(policy, p)      p: one of policy.lora.list
--       each {full = {..}, slice = nil or a slice, copies =, copy =, adds =}, as in weights.list
--
-- A [rank, in] and B [out, rank] of a layer [out, in]. A layer whose rows are divided has all of A
-- and its rows of B; one whose columns are divided has its columns of A and all of B. Gradients are
-- parts where those of the weight are: of the divided matrix, or of both for a whole layer.
-- Leaves out: their numbers (init.lua), files (files.lua).

local M = {}

function M.weight(w, rank, shards)
  local full = w.full or w.shape
  local a = { full = { rank, full[2] }, copies = 1, copy = 0, adds = false }
  local b = { full = { full[1], rank }, copies = 1, copy = 0, adds = false }
  if not shards then return a, b end

  local divided
  if w.slice then divided = w.slice.dim == 1 and b or a end
  for _, half in ipairs { a, b } do
    half.copies = shards.count
    half.copy = shards.index
    if half == divided then
      half.slice = w.slice
      half.copies = w.copies
      half.copy = w.copy
    end
    half.adds = w.adds and (half == divided or not divided)
  end
  return a, b
end

function M.adapter(policy, p)
  local w
  for _, one in ipairs(policy.weights) do
    if one.index == p.index then w = one end
  end
  local rank = p.rank or p.a:shape()[1]
  return M.weight(w, rank, policy.shards)
end

return M
