-- nearest.lua - finds the known name that is closest to a misspelt one, for "did you mean".
--
--   nearest("temprature", {"temperature", "top_p"})  ->  "temperature"
--
-- Names may be dotted paths. A path whose last part is right counts as at most two edits away,
-- because people remember the last part. So does a name of which only the beginning was typed
-- ("image" for "image_path"). Returns nil for an empty list.
-- Leaves out: a limit. The closest name is returned however far away it is.

-- Levenshtein distance, one row of the table at a time.
local function edit_distance(a, b)
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local diagonal = row[0]
    row[0] = i
    for j = 1, #b do
      local substitution = diagonal
      if a:byte(i) ~= b:byte(j) then substitution = diagonal + 1 end
      diagonal = row[j]
      row[j] = math.min(row[j] + 1, row[j - 1] + 1, substitution)
    end
  end
  return row[#b]
end

local function last_part(path) return path:match "[^.]+$" end

local function nearest(name, known)
  local best, least
  for _, candidate in ipairs(known) do
    local distance = edit_distance(name, candidate)
    local begun = #name >= 3 and candidate:sub(1, #name) == name
    if begun or last_part(candidate) == last_part(name) then distance = math.min(distance, 2) end
    if not least or distance < least then
      best = candidate
      least = distance
    end
  end
  return best
end

return nearest
