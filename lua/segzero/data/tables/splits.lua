-- splits.lua - which split a file belongs to, as its path says it.
--
--   splits.group(list, from, own) -> {name -> {path, ...}}
--                        from: where in a path the data set's folder ends; own: that folder's name
--   splits.choose(groups, wanted, purpose, shown) -> a name of groups
--   splits.is_split(name)
--
-- As in the datasets package, a split's name may be a word anywhere in a file's name, between - . _
-- spaces and digits: refcoco-train-small.parquet. Unlike there, capitals do not matter. A whole name
-- counts first (train.parquet, train-00000-of-00002.parquet), then the names of folders, then a
-- word in the file's own. A file whose path says nothing belongs to train.
-- Leaves out: which files there are (names.lua), what a README says (card.lua).

local M = {}

local KNOWN = {}
for _, name in ipairs { "train", "training", "test", "testing", "validation", "valid", "val", "dev",
  "eval", "evaluation", "testA", "testB" } do
  KNOWN[name] = true
end

local ORDER = {
  train = { "train", "training" },
  heldout = { "validation", "val", "valid", "dev", "test", "testing", "eval", "evaluation" },
  test = { "test", "testing", "eval", "evaluation", "validation", "val", "valid", "dev" },
}

-- The split of this name, in capitals, too; or nil.
local function known(name)
  if KNOWN[name] then return name end
  local small = name:lower()
  return KNOWN[small] and small or nil
end

-- The last word of a name that is a split's, or nil.
local function word_of(name)
  local found
  for word in name:gmatch "[^-._ %d]+" do found = known(word) or found end
  return found
end

-- The same for the folders of a path, from the last one on.
local function word_of_folders(path)
  local folder = path:match "^(.*)/"
  while folder do
    local word = word_of(folder:match "[^/]*$")
    if word then return word end
    folder = folder:match "^(.*)/"
  end
  return nil
end

-- Names of shards that say nothing: data-00000-of-00002.
local NO_SPLIT = { data = true, part = true }

-- The split, or nil if the path says none.
local function split_of(path)
  local stem = path:match("([^/]*)$"):gsub("%.%w+$", "")
  local front = stem:match "^(.-)%-%d+%-of%-%d+"
  local base = front or stem
  if known(base) then return known(base) end
  local last = known(base:match "([^-_.]*)$")
  if front and last then return last end

  -- A shard of data/NAME-00000-of-00002 is of the split NAME, whatever that is.
  local named
  if front and not NO_SPLIT[base] then named = base end
  if named and path:find "^data/[^/]*$" then return named end
  return word_of_folders(path) or word_of(base) or named
end

function M.is_split(name) return known(name) ~= nil end

function M.group(list, from, own)
  local groups = {}
  local usual = own and known(own) or "train"
  for _, path in ipairs(list) do
    local split = split_of(path:sub((from or 0) + 1)) or usual
    groups[split] = groups[split] or {}
    table.insert(groups[split], path)
  end
  for _, of_split in pairs(groups) do table.sort(of_split) end
  return groups
end

local function names_of(groups)
  local list = {}
  for name in pairs(groups) do list[#list + 1] = name end
  table.sort(list)
  return list
end

-- wanted: the user's, or nil.
function M.choose(groups, wanted, purpose, shown)
  local list = names_of(groups)
  local all = table.concat(list, ", ")
  if wanted then
    if groups[wanted] then return wanted end
    error(("%s has no split '%s'; there is: %s"):format(shown, wanted, all), 0)
  end
  if #list == 1 then return list[1] end
  for _, name in ipairs(ORDER[purpose] or ORDER.train) do
    if groups[name] then return name end
  end
  error(("%s has the splits %s: choose one with %s@%s"):format(shown, all, shown, list[1]), 0)
end

return M
