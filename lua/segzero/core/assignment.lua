-- assignment.lua - matches rows with columns so that the sum of the costs is least (the Hungarian
-- method), exactly, in O(rows * columns * the smaller of both).
--
--   local columns, total = assignment.solve(cost, m, n)
--
-- cost: m lists of n finite numbers. The smaller side is matched completely. columns[i] is the
-- column of row i, or nil where the row has none. total is the sum of the costs of the pairs. It is
-- unique, the pairs are not when costs are equal. Shortest augmenting paths with potentials: each
-- row is added by one search like Dijkstra's.
-- Leaves out: forbidden pairs, infinite costs.

local M = {}

local huge = math.huge

-- One search: adds row r. cost(i, j); u, v: potentials of rows and columns; row_of[j]: the row that
-- column j is matched with, 0 if it is free. Column 0 stands for the start.
local function add_row(cost, r, n, u, v, row_of)
  local distance = {}           -- of each column from r, along reduced costs
  local previous = {}           -- the column before it on the shortest path
  local done = {}
  for j = 0, n do distance[j] = huge end
  row_of[0] = r
  local j0 = 0

  -- Visit columns in the order of their distance until one is free.
  repeat
    done[j0] = true
    local i0 = row_of[j0]
    local delta = huge
    local nearest
    for j = 1, n do
      if not done[j] then
        local d = cost(i0, j) - u[i0] - v[j]
        if d < distance[j] then
          distance[j] = d
          previous[j] = j0
        end
        if distance[j] < delta then
          delta = distance[j]
          nearest = j
        end
      end
    end
    -- Keep the reduced costs of matched pairs at 0 and all others at 0 or more.
    for j = 0, n do
      if done[j] then
        u[row_of[j]] = u[row_of[j]] + delta
        v[j] = v[j] - delta
      else
        distance[j] = distance[j] - delta
      end
    end
    j0 = nearest
  until row_of[j0] == 0

  -- Shift the pairs along the path.
  while j0 ~= 0 do
    local before = previous[j0]
    row_of[j0] = row_of[before]
    j0 = before
  end
end

-- m <= n. -> row_of: column -> its row or 0
local function match(cost, m, n)
  local u = {}
  local v = {}
  local row_of = {}
  for i = 0, m do u[i] = 0 end
  for j = 0, n do
    v[j] = 0
    row_of[j] = 0
  end
  for r = 1, m do add_row(cost, r, n, u, v, row_of) end
  return row_of
end

function M.solve(cost, m, n)
  local columns = {}
  local total = 0
  if m <= n then
    local row_of = match(function(i, j) return cost[i][j] end, m, n)
    for j = 1, n do
      if row_of[j] ~= 0 then columns[row_of[j]] = j end
    end
  else
    local column_of = match(function(j, i) return cost[i][j] end, n, m)
    for i = 1, m do
      if column_of[i] ~= 0 then columns[i] = column_of[i] end
    end
  end
  for i = 1, m do
    if columns[i] then total = total + cost[i][columns[i]] end
  end
  return columns, total
end

return M
