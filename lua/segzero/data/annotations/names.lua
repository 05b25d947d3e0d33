-- names.lua - which annotations a name means: its layout, its files and its split.
--
--   names.find(name) -> nil, or {
--     layout = "coco" | "refer" | "reasonseg" | "choice",
--     file = path (coco, refer), folder = path (reasonseg), title = name of the data set,
--     split = name | nil }
--   names.matches(name)       whether find() finds any
--   names.fail(found)         the error for a "choice": a folder with several sets in it
--
-- name, with @split where there are several:
--   coco/annotations/instances_val2017.json      COCO; any JSON object with images and annotations
--   coco@val2017, coco@val                       the same by its root
--   refer_seg/refcocog@val                       a folder with refs(*).p or grefs(*).json
--   refer_seg/refcocog/refs(google).p@val        one of several such files
--   ReasonSeg/val, ReasonSeg@val                 a folder with images and JSON files of polygons
-- Of several refs the split that papers use is taken: umd for refcocog, else unc.
-- Leaves out: reading (coco.lua, refer.lua, reasonseg.lua).

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local scan = require "segzero.data.jsonl.scan"

local M = {}

local LOOKED_AT = 3             -- JSON files of a folder
local HEAD = 2 ^ 20             -- bytes of each; ReasonSeg's are smaller

-- "path@split" -> path, split; a path that exists keeps its @.
local function divided(name)
  if not name:find("@", 1, true) or folders.kind(name) then return name, nil end
  local path, split = name:match "^(.+)@([^@/]+)$"
  return path or name, split
end

-- ---- COCO ----
local LISTS = { images = true, annotations = true }
local FOUND = {}                -- ends the walk

-- Whether a JSON file is an object with the lists images and annotations. A file that ends too soon
-- after one of them is one too, so that opening it says what is wrong.
local function is_coco(path)
  local ok, json = pcall(scan.open, path)
  if not ok or json.p[scan.first(json)] ~= ("{"):byte() then return false end
  local found = 0
  local _, reason = pcall(scan.members, json, scan.first(json), function(name, at)
    if LISTS[name] and json.p[at] == ("["):byte() then found = found + 1 end
    if found == 2 then error(FOUND, 0) end
  end)
  return reason == FOUND or (found > 0 and tostring(reason):find "cut off$" ~= nil)
end

local function coco(path)
  if not path:find "%.json$" or folders.kind(path) ~= "file" then return nil end
  if not is_coco(path) then return nil end
  return { layout = "coco", file = path, title = path:match "([^/]*)%.json$" }
end

-- The file instances_*.json of COCO's root for a split, or nil.
local function coco_root(path, split)
  local folder = path .. "/annotations"
  local list = {}
  for _, name in ipairs(folders.list(folder) or {}) do
    local part = name:match "^instances_(.+)%.json$"
    if part then list[#list + 1] = { split = part, file = folder .. "/" .. name } end
  end
  if #list == 0 then return nil end

  -- The split by its whole name, or without the year.
  local names = {}
  local fitting = {}
  for i, one in ipairs(list) do
    names[i] = one.split
    if one.split == split then fitting = { one } break end
    if not split or one.split:find("^" .. split:gsub("%W", "%%%0") .. "%d*$") then
      fitting[#fitting + 1] = one
    end
  end
  if #fitting == 1 then
    return { layout = "coco", file = fitting[1].file, title = fitting[1].split }
  end
  return { layout = "choice", path = path, names = names, split = split }
end

-- ---- refer ----
local function refs_name(name)
  return name:match "^g?refs%(([%w_]+)%)%.p$" or name:match "^g?refs%(([%w_]+)%)%.json$"
end

-- What the folder of a data set is called: the last part of its path, also where it is a link.
local function title_of(folder)
  local last = folder:match "([^/]+)/*$"
  if last and not last:find "^%.%.?$" then return last end
  return (folders.absolute(folder) or folder):match "([^/]*)$"
end

local function refer(path, split)
  local last = path:match "[^/]*$"
  if refs_name(last) and folders.kind(path) == "file" then
    local folder = path:match "^(.*)/[^/]*$" or "."
    return { layout = "refer", file = path, title = title_of(folder), split = split }
  end
  if folders.kind(path) ~= "folder" then return nil end
  local by = {}
  local list = {}
  for _, name in ipairs(folders.list(path) or {}) do
    local who = refs_name(name)
    -- grefs(unc).p comes after .json, and is the one that its Python class reads.
    if who then
      if not by[who] then list[#list + 1] = who end
      by[who] = path .. "/" .. name
    end
  end
  if #list == 0 then return nil end
  local title = title_of(path)
  local who = list[1]
  if #list > 1 then
    who = title == "refcocog" and "umd" or "unc"
    if not by[who] then who = list[1] end
  end
  return { layout = "refer", file = by[who], title = title, split = split }
end

-- ---- ReasonSeg ----
local function head_of(path)
  local file = folders.kind(path) == "file" and io.open(path, "rb")
  if not file then return "" end
  local text = file:read(HEAD) or ""
  file:close()
  return text
end

-- Whether one of the first JSON files of a folder has shapes and a text.
local function has_shapes(folder)
  local names = folders.list(folder)
  local seen = 0
  for _, name in ipairs(names or {}) do
    if name:find "%.json$" then
      local text = head_of(folder .. "/" .. name)
      local is_object = text:find "^\239?\187?\191?%s*{" ~= nil
      if is_object and text:find('"shapes"', 1, true) and text:find('"text"', 1, true) then
        return true
      end
      seen = seen + 1
      if seen == LOOKED_AT then return false end
    end
  end
  return false
end

local function reasonseg(path, split)
  if folders.kind(path) ~= "folder" then return nil end
  if not split and has_shapes(path) then
    return { layout = "reasonseg", folder = path, split = title_of(path), title = title_of(path) }
  end
  -- The root of several splits.
  local names = {}
  for _, name in ipairs { "train", "val", "test" } do
    local below = path .. "/" .. name
    if folders.kind(below) == "folder" and has_shapes(below) then names[#names + 1] = name end
  end
  for _, name in ipairs(names) do
    if name == split then
      local folder = path .. "/" .. name
      return { layout = "reasonseg", folder = folder, split = name, title = name }
    end
  end
  if #names > 0 then return { layout = "choice", path = path, names = names, split = split } end
  return nil
end

-- ---- the name ----
-- A folder that holds folders of refer, as refer_seg does.
local function refer_root(path, split)
  if folders.kind(path) ~= "folder" then return nil end
  local names = {}
  for _, name in ipairs(folders.list(path) or {}) do
    if name:find "^g?refc" and refer(path .. "/" .. name) then names[#names + 1] = name end
  end
  if #names == 0 then return nil end
  return { layout = "choice", path = path, names = names, split = split, below = true }
end

function M.find(name)
  local path, split = divided(name)
  path = path:gsub("(.)/+$", "%1")
  -- A folder that segzero reads as rows is none of these.
  if files.exists(path .. "/data.jsonl") or files.exists(path .. "/data.json") then return nil end
  local found = coco(path)
  if found and split then
    found = { layout = "choice", path = path, names = {}, split = split }
  end
  return found
    or refer(path, split) or reasonseg(path, split) or coco_root(path, split)
    or refer_root(path, split)
end

function M.matches(name) return type(name) == "string" and M.find(name) ~= nil end

function M.fail(found)
  if #found.names == 0 then
    error(("%s is one file and has no splits, so no '%s'"):format(found.path, found.split), 0)
  end
  local all = table.concat(found.names, ", ")
  if found.below then
    error(("%s has the data sets %s: choose one with %s/%s@val"):format(found.path, all, found.path,
      found.names[1]), 0)
  end
  if found.split then
    error(("%s has no split '%s'; there is: %s"):format(found.path, found.split, all), 0)
  end
  error(("%s has the splits %s: choose one with %s@%s"):format(found.path, all, found.path,
    found.names[1]), 0)
end

return M
