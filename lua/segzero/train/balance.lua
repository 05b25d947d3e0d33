-- balance.lua - which replica trains on which group: about as many packed tokens on each.
--
--   local owners = balance.owners(sizes, owners, replicas)
--       sizes   tokens of each group; owners: its replica, from 0; returns a new list of owners
--   balance.tokens(group)         of the packed prompt and all answers (train/records.lua)
--
-- A group that stays where it was sampled costs nothing, so groups move or change places only while
-- the fullest replica has more than 5 % above the mean and gets less by it. The result depends on
-- the arguments alone: all ranks find the same. Leaves out: moving groups (joining.lua).

local M = {}

local MOST = 1.05               -- a replica's tokens, as a multiple of the mean

function M.tokens(group)
  local tokens = group.row.prompt_tokens or #group.input.input_ids
  for _, sample in ipairs(group.samples) do tokens = tokens + #sample.ids end
  return tokens
end

-- The fullest and the emptiest replica, from 0; the first of equals.
local function extremes(loads)
  local most, least = 0, 0
  for r = 1, #loads do
    if loads[r] > loads[most] then most = r end
    if loads[r] < loads[least] then least = r end
  end
  return most, least
end

local function groups_of(owners, replica)
  local list = {}
  for i, owner in ipairs(owners) do
    if owner == replica then list[#list + 1] = i end
  end
  return list
end

-- The group of `from`, and the group of `to` or nil, whose change of places leaves the fuller one
-- of the two with the fewest tokens; nil if none leaves it with fewer than now.
local function best_change(sizes, owners, loads, from, to)
  local best = { most = loads[from] }
  local function consider(g, h)
    local moved = sizes[g] - (h and sizes[h] or 0)
    local most = math.max(loads[from] - moved, loads[to] + moved)
    if most < best.most then best = { most = most, moved = moved, g = g, h = h } end
  end
  local others = groups_of(owners, to)
  for _, g in ipairs(groups_of(owners, from)) do
    consider(g)
    for _, h in ipairs(others) do consider(g, h) end
  end
  return best.g and best
end

function M.owners(sizes, owners, replicas)
  local loads = {}
  local total = 0
  local result = {}
  for r = 0, replicas - 1 do loads[r] = 0 end
  for i, size in ipairs(sizes) do
    result[i] = owners[i]
    loads[owners[i]] = loads[owners[i]] + size
    total = total + size
  end

  -- Each change leaves the fullest replica with fewer tokens, so this ends.
  local limit = MOST * total / replicas
  while true do
    local from, to = extremes(loads)
    local change = loads[from] > limit and best_change(sizes, result, loads, from, to)
    if not change then return result end
    result[change.g] = to
    if change.h then result[change.h] = from end
    loads[from] = loads[from] - change.moved
    loads[to] = loads[to] + change.moved
  end
end

return M
