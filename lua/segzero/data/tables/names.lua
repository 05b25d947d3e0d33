-- names.lua - which files the name of a table means, and which of its splits.
--
--   names.matches(name)            whether `name` is a table: files of Parquet or Arrow
--   names.find(name, purpose) -> { files = {path, ...}, split = "train", folder = }
--
-- name: a .parquet or .arrow file; a pattern, data/*.parquet; a folder with such files in it or in
-- its folders, as the hub has them (data/train-00000-of-00002.parquet); a folder of save_to_disk
-- (dataset_dict.json with one folder a split, or state.json with its files). name@split chooses a
-- split. Without it: for the purpose "train" the split train, for "heldout" validation, val or
-- test, for "test" test first, and always the only split there is. A file's name or its folder's
-- says its split. Leaves out: reading the files (source.lua), names on the hub.

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"

local M = {}

local KNOWN = {}
for _, name in ipairs { "train", "training", "test", "testing", "validation", "valid", "val", "dev",
  "eval", "testA", "testB" } do
  KNOWN[name] = true
end

local ORDER = {
  train = { "train", "training" },
  heldout = { "validation", "val", "valid", "dev", "test" },
  test = { "test", "validation", "val", "valid", "dev" },
}

local DEPTH = 2                 -- folders below the one that is named

local function fail(message, ...) error(message:format(...), 0) end

local function is_table(path)
  return path:find "%.parquet$" ~= nil or path:find "%.arrow$" ~= nil
end

local function is_pattern(path) return path:find "[*?]" ~= nil end

-- "path@split" -> path, split; a path that exists keeps its @.
local function divided(name)
  if not name:find("@", 1, true) or files.exists(name) then return name, nil end
  local path, split = name:match "^(.+)@([^@/]+)$"
  return path or name, split
end

-- ---- splits ----
-- The split that a file's name states, or its folder's name; else train.
local function split_of(path)
  local stem = path:match("([^/]*)$"):gsub("%.%w+$", "")
  local front = stem:match "^(.-)%-%d+%-of%-%d+"
  local base = front or stem
  local last = base:match "([^-_.]*)$"
  if KNOWN[base] then return base end
  if KNOWN[last] then return last end
  local parent = path:match "([^/]*)/[^/]*$"
  if KNOWN[parent] then return parent end
  if front and base ~= "data" and base ~= "part" then return base end
  return "train"
end

local function names_of(splits)
  local list = {}
  for name in pairs(splits) do list[#list + 1] = name end
  table.sort(list)
  return list
end

-- splits: {name -> anything}. wanted: the user's, or nil.
local function choose(splits, wanted, purpose, path)
  local list = names_of(splits)
  local all = table.concat(list, ", ")
  if wanted then
    if splits[wanted] then return wanted end
    fail("%s has no split '%s'; there is: %s", path, wanted, all)
  end
  if #list == 1 then return list[1] end
  for _, name in ipairs(ORDER[purpose] or ORDER.train) do
    if splits[name] then return name end
  end
  fail("%s has the splits %s: choose one with %s@%s", path, all, path, list[1])
end

-- ---- files ----
local function collect(folder, depth, found)
  for _, name in ipairs(folders.list(folder) or {}) do
    local path = folder .. "/" .. name
    if is_table(name) then
      found[#found + 1] = path
    elseif depth > 0 and name:sub(1, 1) ~= "." and folders.kind(path) == "folder" then
      collect(path, depth - 1, found)
    end
  end
  return found
end

local function by_split(list)
  local splits = {}
  for _, path in ipairs(list) do
    local split = split_of(path)
    splits[split] = splits[split] or {}
    table.insert(splits[split], path)
  end
  for _, of_split in pairs(splits) do table.sort(of_split) end
  return splits
end

-- The files that save_to_disk's state.json lists.
local function saved_files(folder)
  local path = folder .. "/state.json"
  local state = files.read_json_object(path)
  local list = {}
  for i, entry in ipairs(type(state._data_files) == "table" and state._data_files or {}) do
    local name = type(entry) == "table" and entry.filename
    if type(name) ~= "string" then fail("%s: file %d of _data_files has no filename", path, i) end
    list[i] = folder .. "/" .. name
  end
  if #list == 0 then fail("%s: _data_files names no file", path) end
  return list
end

-- A folder of save_to_disk: its splits, or nil if it is none.
local function saved_splits(folder)
  local path = folder .. "/dataset_dict.json"
  if not files.exists(path) then return nil end
  local splits = {}
  local stated = files.read_json_object(path).splits
  for _, name in ipairs(type(stated) == "table" and stated or {}) do
    if type(name) ~= "string" then fail("%s: a split's name is a %s", path, type(name)) end
    splits[name] = folder .. "/" .. name
  end
  if next(splits) == nil then fail("%s names no split", path) end
  return splits
end

local function glob(pattern)
  local list = require("posix.glob").glob(pattern) or {}
  local found = {}
  for _, path in ipairs(list) do
    if is_table(path) then found[#found + 1] = path end
  end
  return found
end

-- ---- the name ----
local function in_folder(folder)
  if files.exists(folder .. "/data.jsonl") then return false end
  if files.exists(folder .. "/dataset_dict.json") or files.exists(folder .. "/state.json") then
    return true
  end
  return #collect(folder, DEPTH, {}) > 0
end

-- For names on the hub (hub/wanted.lua).
M.by_split = by_split
M.choose = choose
function M.is_split(name) return KNOWN[name] == true end

function M.matches(name)
  local path = divided(name)
  if is_table(path) or is_pattern(path) then return true end
  return folders.kind(path) == "folder" and in_folder(path)
end

function M.find(name, purpose)
  local path, wanted = divided(name)
  path = path:gsub("(.)/+$", "%1")

  -- What save_to_disk wrote.
  if folders.kind(path) == "folder" then
    local splits = saved_splits(path)
    if splits then
      local split = choose(splits, wanted, purpose, path)
      return { files = saved_files(splits[split]), split = split, folder = splits[split] }
    end
    if files.exists(path .. "/state.json") then
      local split = path:match "[^/]*$"
      if wanted and wanted ~= split then fail("%s has no splits, so no '%s'", path, wanted) end
      return { files = saved_files(path), folder = path }
    end
  end

  -- Files by their names.
  local list
  if is_pattern(path) then list = glob(path)
  elseif is_table(path) then list = { path }
  else list = collect(path, DEPTH, {}) end
  if #list == 0 then fail("%s: no .parquet or .arrow file has a name like this", path) end
  local splits = by_split(list)
  local split = choose(splits, wanted, purpose, path)
  local folder = path
  if is_pattern(path) or is_table(path) then folder = splits[split][1]:match "^(.*)/" or "." end
  return { files = splits[split], split = split, folder = folder }
end

return M
