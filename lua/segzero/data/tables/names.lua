-- names.lua - which files the name of a table means, and which of its splits.
--
--   names.matches(name)            whether `name` is a table: files of Parquet or Arrow
--   names.find(name, purpose) -> { files = {path, ...}, split = "train", folder = }
--
-- name: a .parquet or .arrow file; a pattern, data/*.parquet; a folder with such files in it or in
-- its folders, as the hub has them (data/train-00000-of-00002.parquet); a folder of save_to_disk
-- (dataset_dict.json with one folder a split, or state.json with its files). name@split chooses a
-- split. Without it: for the purpose "train" the split train, for "heldout" validation, val or
-- test, for "test" test first, and always the only split there is. If a folder's README declares
-- configurations, they say which files are of a split (card.lua), and name@configuration/split
-- chooses one. Otherwise the names of the files do (splits.lua).
-- Leaves out: reading the files (source.lua), names on the hub.

local card = require "segzero.data.tables.card"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local splits = require "segzero.data.tables.splits"

local M = {}

local DEPTH = 3                 -- folders below the one that is named

local function fail(message, ...) error(message:format(...), 0) end

local function is_table(path)
  return path:find "%.parquet$" ~= nil or path:find "%.arrow$" ~= nil
end

local function is_pattern(path) return path:find "[*?]" ~= nil end

-- "path@split" -> path, split; a path that exists keeps its @.
local function divided(name)
  if not name:find("@", 1, true) or files.exists(name) then return name, nil end
  local path, split = name:match "^(.+)@([^@/]+)$"
  if path then return path, split end
  -- An @ may also be in the name of a folder: x@2/*.parquet.
  path, split = name:match "^(.+)@([^@/]+/[^@/]*)$"
  if path and folders.kind(path) == "folder" then return path, split end
  return name, nil
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
  local found = {}
  local stated = files.read_json_object(path).splits
  for _, name in ipairs(type(stated) == "table" and stated or {}) do
    if type(name) ~= "string" then fail("%s: a split's name is a %s", path, type(name)) end
    found[name] = folder .. "/" .. name
  end
  if next(found) == nil then fail("%s names no split", path) end
  return found
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

-- One file, or those of a pattern. The name of the folder they are in may also say the split.
local function of_files(list, wanted, purpose, path)
  local fixed = path:match "^([^*?]*/)" or ""
  local above = fixed:match "^(.*/)[^/]*/$" or ""
  local groups = splits.group(list, #above)
  local split = splits.choose(groups, wanted, purpose, path)
  local own = groups[split]
  return { files = own, split = split, folder = own[1]:match "^(.*)/" or "." }
end

local function of_folder(path, list, wanted, purpose)
  local below = {}
  for i, file in ipairs(list) do below[i] = file:sub(#path + 2) end
  local groups, rest = card.groups(files.read(path .. "/README.md"), below, wanted, path)
  if groups then wanted = rest else groups = splits.group(below, 0, path:match "[^/]*$") end
  local split = splits.choose(groups, wanted, purpose, path)
  local own = {}
  for i, name in ipairs(groups[split]) do own[i] = path .. "/" .. name end
  return { files = own, split = split, folder = path }
end

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
    local saved = saved_splits(path)
    if saved then
      local split = splits.choose(saved, wanted, purpose, path)
      return { files = saved_files(saved[split]), split = split, folder = saved[split] }
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
  if is_pattern(path) or is_table(path) then return of_files(list, wanted, purpose, path) end
  return of_folder(path, list, wanted, purpose)
end

return M
