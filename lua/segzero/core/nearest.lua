-- nearest.lua - finds the known name that a misspelt one probably means, for "did you mean".
--
--   nearest("temprature", {"temperature", "top_p"})        "temperature", or nil if none is near
--   nearest.question("temprature", known)                  ": did you mean 'temperature'?", or ""
--
-- Names may be dotted paths. The last parts are compared first, because people remember the last
-- part; paths break ties. A name is near if few letters differ for its length, or if one of the two
-- is the beginning of the other ("image" for "image_path", "epsilon" for "eps"). No name is better
-- than a wrong one. Case does not count.
-- Leaves out: meanings; names that other programs use are in config/foreign/keys.lua.

local M = {}

local NEAR = 0.4                -- edits for each letter of the longer name
local BEGINNING = 3             -- letters that are enough for the beginning of a name

-- Edits from a to b, one row of the table for each letter of a. Two letters in the wrong order are
-- one edit.
local function edit_distance(a, b)
  local row = {}
  local above, second
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    second, above, row = above, row, { [0] = i }
    for j = 1, #b do
      local cost = 1
      if a:byte(i) == b:byte(j) then cost = 0 end
      row[j] = math.min(above[j] + 1, row[j - 1] + 1, above[j - 1] + cost)
      local is_swap = i > 1 and j > 1 and a:byte(i) == b:byte(j - 1)
        and a:byte(i - 1) == b:byte(j)
      if is_swap then row[j] = math.min(row[j], second[j - 2] + 1) end
    end
  end
  return row[#b]
end

local function last_part(path) return path:match "[^.]+$" or path end

local function begins(a, b) return #a >= BEGINNING and b:sub(1, #a) == a end

local function common_beginning(a, b)
  local n = 0
  while n < #a and a:byte(n + 1) == b:byte(n + 1) do n = n + 1 end
  return n
end

-- How far two last parts are from each other; nil if they are not near.
local function distance_of(name, candidate)
  if name == candidate then return 0 end
  local distance = edit_distance(name, candidate)
  if begins(name, candidate) or begins(candidate, name) then return math.min(distance, 2) end
  local longer = math.max(#name, #candidate)
  if distance < longer and distance <= math.max(1, NEAR * longer) then return distance end
  if common_beginning(name, candidate) > longer / 2 then return distance end
  return nil
end

local function nearest(name, known)
  local best, least, least_of_path
  name = name:lower()
  for _, candidate in ipairs(known) do
    local lower = candidate:lower()
    local distance = distance_of(last_part(name), last_part(lower))
    local of_path = distance and edit_distance(name, lower)
    local is_nearer = distance and (not least or distance < least)
    if is_nearer or distance == least and distance and of_path < least_of_path then
      best = candidate
      least = distance
      least_of_path = of_path
    end
  end
  return best
end

function M.question(name, known)
  local best = nearest(name, known)
  if not best then return "" end
  return (": did you mean '%s'?"):format(best)
end

return setmetatable(M, { __call = function(_, name, known) return nearest(name, known) end })
