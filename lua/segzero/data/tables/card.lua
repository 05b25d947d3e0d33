-- card.lua - the configurations that a data set's README.md declares, as the hub has them: which
-- files are of which split.
--
--   card.groups(text, list, wanted, shown) -> {split -> {name, ...}}, split, name; or nil: it has
--                                             none
--       text     the README, or nil
--       list     the names of the files, from the data set's folder on
--       wanted   "split", "configuration/split", "configuration" or nil
--       shown    the data set's name, for errors
--       split    what is left of wanted; name: the configuration's
--
--   ---
--   configs:
--   - config_name: default
--     data_files:
--     - split: train
--       path: data/first-*          a pattern or a list; ** also stands for folders
--   ---
--
-- data_files may also be a mapping of splits, or a pattern alone. Paths start in data_dir, if there
-- is one; without data_files it holds the files.
-- Leaves out: what else the README says.

local notes = require "segzero.core.notes"
local splits = require "segzero.data.tables.splits"
local strict = require "segzero.core.strict"
local visible = require "segzero.core.visible"

local M = {}

local LONGEST = 2 ^ 20          -- bytes of a README

local function fail(shown, message, ...)
  error(("%s: README.md: " .. message):format(visible.line(shown), ...), 0)
end

-- ---- the front matter ----
-- What the YAML says; nil, with a note, if it cannot be read.
local function parsed(front, shown)
  local ok, library = strict.require "lyaml"
  local why = "the Lua package lyaml is missing (apt-get install lua-yaml)"
  if ok then
    local read, found = pcall(library.load, front)
    if read then return found end
    why = "its front matter is no YAML"
  end
  notes.say(("%s: README.md: %s, so the file names decide the splits"):format(
    visible.line(shown), why))
  return nil
end

local function configs_of(text, shown)
  local front = text and #text <= LONGEST and text:match "^%-%-%-\r?\n(.-)\n%-%-%-"
  if not front or not front:find("configs:", 1, true) then return nil end
  local found = parsed(front, shown)
  if type(found) ~= "table" or type(found.configs) ~= "table" then return nil end
  local list = {}
  for i, config in ipairs(found.configs) do
    local is_named = type(config) == "table" and type(config.config_name) == "string"
    if not is_named then fail(shown, "configuration %d has no config_name", i) end
    if config.data_files or config.data_dir then list[#list + 1] = config end
  end
  return #list > 0 and list or nil
end

-- ---- patterns ----
local function outside_brackets(glob)
  local out = glob:gsub("[%^%$%(%)%%%.%+%-]", "%%%0"):gsub("%?", "[^/]")
  return (out:gsub("%*+", function(stars) return #stars > 1 and ".*" or "[^/]*" end))
end

-- The Lua pattern of a glob.
local function lua_pattern(glob)
  local out = {}
  for plain, class in (glob .. "[]"):gmatch "([^%[]*)(%[[^%]]*%])" do
    out[#out + 1] = outside_brackets(plain)
    if class ~= "[]" then out[#out + 1] = class:gsub("%%", "%%%%"):gsub("^%[!", "[^") end
  end
  return "^" .. table.concat(out) .. "$"
end

-- The files that a glob below a folder names; folder: "" or "name/".
local function matching(list, folder, glob, shown)
  if type(glob) ~= "string" then fail(shown, "a path of data_files is no text") end
  if glob:find "^%w+://" then fail(shown, "%s is not a file of this set", visible.line(glob)) end
  glob = folder .. glob:gsub("^%./", "")
  local patterns = { lua_pattern(glob), lua_pattern((glob:gsub("%*%*/", ""))) }
  local found = {}
  for _, name in ipairs(list) do
    if name:find(patterns[1]) or name:find(patterns[2]) then found[#found + 1] = name end
  end
  table.sort(found)
  return found
end

local function folder_of(config)
  if type(config.data_dir) ~= "string" then return "" end
  local folder = config.data_dir:gsub("^%./", ""):gsub("/+$", "")
  if folder == "" or folder == "." then return "" end
  return folder .. "/"
end

local function groups_of(list, config, shown)
  local stated = config.data_files
  local folder = folder_of(config)
  if stated == nil then return splits.group(matching(list, folder, "**", shown), #folder) end

  -- path: a pattern or a list of them.
  local groups = {}
  local function add_files(split, path)
    if type(split) ~= "string" then fail(shown, "a split of data_files is no text") end
    if path == nil then fail(shown, "the split '%s' has no path", visible.line(split)) end
    groups[split] = groups[split] or {}
    for _, glob in ipairs(type(path) == "table" and path or { path }) do
      for _, name in ipairs(matching(list, folder, glob, shown)) do
        table.insert(groups[split], name)
      end
    end
  end
  if type(stated) ~= "table" then
    add_files("train", stated)
  elseif type(stated[1]) == "table" then
    for _, one in ipairs(stated) do
      if type(one) ~= "table" then fail(shown, "a split of data_files has no path") end
      add_files(one.split, one.path)
    end
  elseif stated[1] ~= nil then
    add_files("train", stated)
  else
    for split, path in pairs(stated) do add_files(split, path) end
  end
  for split, found in pairs(groups) do
    if #found == 0 then groups[split] = nil end
  end
  if next(groups) == nil then
    fail(shown, "the configuration '%s' names no .parquet or .arrow file that is here",
      visible.line(config.config_name))
  end
  return groups
end

-- ---- which configuration ----
local function by_name(configs, name)
  for _, config in ipairs(configs) do
    if config.config_name == name then return config end
  end
  return nil
end

local function usual(configs)
  if #configs == 1 then return configs[1] end
  for _, config in ipairs(configs) do
    if config.default == true then return config end
  end
  return by_name(configs, "default")
end

-- The configuration of that name, and the split that is wanted of it.
local function chosen(configs, wanted)
  local name, split = (wanted or ""):match "^(.+)/([^/]*)$"
  if name then return by_name(configs, name), split ~= "" and split or nil end
  local whole = wanted and by_name(configs, wanted)
  if whole then return whole, nil end
  return usual(configs), wanted
end

function M.groups(text, list, wanted, shown)
  local configs = configs_of(text, shown)
  if not configs then return nil end
  local config, split = chosen(configs, wanted)
  if not config then
    local names = {}
    for i, one in ipairs(configs) do names[i] = visible.line(one.config_name) end
    error(("%s has the configurations %s: choose one, with its split, as %s@%s/train"):format(shown,
      table.concat(names, ", "), shown, names[1]), 0)
  end
  return groups_of(list, config, shown), split, config.config_name
end

return M
