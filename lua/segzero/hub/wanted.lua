-- wanted.lua - which files of a repository segzero reads, so that only they are fetched.
--
--   wanted.model(names) -> { files = {name, ...}, weights =, path =, texts = }
--       names: all files of the repository. weights: "safetensors", "adapter", "pt" or nil. path:
--       the one file that is the model (an original SAM2 .pt); nil: the folder is. texts: the files
--       without weights, where both are apart
--   wanted.data(names, { split =, purpose =, shown = }, readme)
--     -> { files =, split =, path =, folder = }
--       readme: the text of README.md, or nil
--       split: to be named behind the folder, or nil; path: the one file that the set is, or nil;
--       folder: the one with the files, or nil
--   wanted.lack_of_weights(names)        what is said of a repository without any
--   wanted.has_other_weights(names)      whether there are weights that are not read
--   wanted.has_weights(names)  whether these are all files of a model's weights
--   wanted.is_whole(names)     whether these look like all that a model needs
--   wanted.are_tables_whole(names)      the same for Parquet and Arrow files
--   wanted.has_card(names)              whether there are some, with a README that may say which
--                                       belong to a split
--
-- A model: config.json with its .safetensors, else adapter_config.json with theirs, else a .pt
-- file. With it come JSON, .txt, .model and .jinja files of the repository's own folder.
-- Data: the Parquet or Arrow files of one split, else its JSON and all images.
-- Leaves out: a repository's subfolders with other models, weights in other formats.

local card = require "segzero.data.tables.card"
local table_splits = require "segzero.data.tables.splits"

local M = {}

local TEXTS = { json = true, txt = true, model = true, jinja = true }
local MOST_SPLITS = 10          -- more JSON files are annotations of single images
local IMAGES = { png = true, jpg = true, jpeg = true, webp = true, gif = true, bmp = true }

local function ending(name) return (name:match "%.([%w]+)$" or ""):lower() end

local function set_of(names)
  local set = {}
  for _, name in ipairs(names) do set[name] = true end
  return set
end

-- ---- models ----
-- The index of another format's weights is not read, and neither is a licence.
local function is_text(name)
  if name:find "/" or not TEXTS[ending(name)] then return false end
  if name:find "^%." or name:lower():find "licen[sc]e" then return false end
  return not name:find "%.bin%.index%.json$" and not name:find "%.msgpack%.index%.json$"
    and not name:find "%.h5%.index%.json$"
end

-- The .safetensors of the model: the parts that an index lists, or the only file.
local function safetensors_of(names, has)
  local list = {}
  local sharded = has["model.safetensors.index.json"]
  for _, name in ipairs(names) do
    local is_weights = not name:find "/" and name:find "%.safetensors$"
      and not name:find "^adapter_" and not name:find "^consolidated"
    local is_part = name:find "%-%d+%-of%-%d+%.safetensors$" ~= nil
    if is_weights and is_part == (sharded == true) then list[#list + 1] = name end
  end
  return list
end

local function checkpoints_of(names)
  local list = {}
  for _, name in ipairs(names) do
    if not name:find "/" and name:find "%.pth?$" then list[#list + 1] = name end
  end
  return list
end

local function add(list, more)
  for _, name in ipairs(more) do list[#list + 1] = name end
  return list
end

function M.model(names)
  local has = set_of(names)
  local texts = {}
  for _, name in ipairs(names) do
    if is_text(name) then texts[#texts + 1] = name end
  end
  local weights = safetensors_of(names, has)
  if has["config.json"] and #weights > 0 then
    return { files = add(add({}, texts), weights), texts = texts, weights = "safetensors" }
  end
  if has["adapter_config.json"] then
    local adapter = {}
    if has["adapter_model.safetensors"] then adapter[1] = "adapter_model.safetensors" end
    return { files = add(texts, adapter), weights = "adapter" }
  end
  local checkpoints = checkpoints_of(names)
  if #checkpoints == 1 and not has["config.json"] then
    return { files = checkpoints, weights = "pt", path = checkpoints[1] }
  end
  return { files = texts }
end

-- The parts that "model-00001-of-00004.safetensors" says there are, and all of them here.
local function are_parts_here(weights)
  local count = 0
  for _, name in ipairs(weights) do
    local stated = tonumber(name:match "%-of%-(%d+)%.safetensors$")
    if not stated then return true end
    count = stated
  end
  return #weights > 0 and #weights == count
end

function M.has_weights(names)
  local has = set_of(names)
  local found = M.model(names)
  if found.weights == "pt" then return true end
  if found.weights == "adapter" then return has["adapter_model.safetensors"] == true end
  return found.weights == "safetensors" and are_parts_here(safetensors_of(names, has))
end

-- What a repository has instead of weights that are read.
function M.lack_of_weights(names)
  local checkpoints = checkpoints_of(names)
  if #checkpoints > 1 then
    return ("several checkpoints, %s: download one and name its path"):format(
      table.concat(checkpoints, ", "))
  end
  local text = "no weights that segzero reads: neither .safetensors nor a .pt file"
  if not M.has_other_weights(names) then return text end
  return text .. ", but a .bin file: save the model as safetensors (in Python: "
    .. "from_pretrained(NAME).save_pretrained(FOLDER))"
end

-- PyTorch's, which are not read: opening the folder says so.
function M.has_other_weights(names)
  for _, name in ipairs(names) do
    if name:find "%.bin$" then return true end
  end
  return false
end

-- A policy with its tokenizer, an adapter, or a SAM2; for a cache that does not know its listing.
function M.is_whole(names)
  local has = set_of(names)
  if not M.has_weights(names) then return false end
  if not has["config.json"] then return true end
  if not has["preprocessor_config.json"] and not has["processor_config.json"] then return false end
  local tokenizer = has["tokenizer.json"] and has["tokenizer_config.json"]
  local is_policy = has["tokenizer.json"] or has["tokenizer_config.json"]
    or has["generation_config.json"]
  return not is_policy or (tokenizer and has["generation_config.json"]) == true
end

-- ---- data ----
local function is_table(name)
  return (name:find "%.parquet$" or name:find "%.arrow$") and not name:find "^%."
end

-- JSON and the images that its rows may name; not a description of the set.
local function is_row_file(name)
  local kind = ending(name)
  local base = name:match "[^/]*$"
  if base == "dataset_infos.json" or base == "dataset_info.json" or base:find "^%." then
    return false
  end
  return kind == "json" or kind == "jsonl" or IMAGES[kind] == true
end

-- ---- data in several folders ----
local function below(tables, folder)
  if not folder then return tables end
  local list = {}
  for _, name in ipairs(tables) do
    if name:sub(1, #folder + 1) == folder .. "/" then list[#list + 1] = name end
  end
  return list
end

-- The folders of tables that have the names of no splits: configurations of the hub's.
local function configurations(tables)
  local list = {}
  local seen = {}
  for _, name in ipairs(tables) do
    local folder = name:match "^(.*)/" or ""
    local is_split = table_splits.is_split(folder:match "[^/]*$")
    if not is_split and not seen[folder] then list[#list + 1] = folder end
    seen[folder] = true
  end
  return list
end

-- The folder to take, or nil for all, and the split that the user wants there, or nil.
local function folder_of(tables, options)
  local folder, split = (options.split or ""):match "^(.+)/([^/]*)$"
  if folder then
    if #below(tables, folder) == 0 then
      error(("%s has no folder '%s' with Parquet or Arrow files"):format(options.shown, folder), 0)
    end
    if split == "" then split = nil end
    return folder, split
  end
  local list = configurations(tables)
  if #list < 2 then return nil, options.split end
  for _, usual in ipairs { "data", "default", "main" } do
    for _, found in ipairs(list) do
      if found == usual then return usual, options.split end
    end
  end
  error(("%s has data in the folders %s: choose one, with its split, as %s@%s/train"):format(
    options.shown, table.concat(list, ", "), options.shown, list[1]), 0)
end

-- A folder with data.jsonl, data.json or many JSON files is taken whole; of train.json and
-- test.json the split's, with the images.
local function json_data(names, has, options)
  local images = {}
  local rows = {}
  for _, name in ipairs(names) do
    local list = IMAGES[ending(name)] and images or rows
    if is_row_file(name) then list[#list + 1] = name end
  end
  local is_folder = has["data.jsonl"] or has["data.json"] or #rows == 0 or #rows > MOST_SPLITS
  if not is_folder then
    local splits = table_splits.group(rows)
    local split = table_splits.choose(splits, options.split, options.purpose, options.shown)
    local own = splits[split]
    if #own == 1 then return { files = add({ own[1] }, images), path = own[1] } end
  end
  return { files = add(rows, images) }
end

-- The configuration of a README, or nil. Its files are found again by the README when the folder is
-- opened, so it is one of them.
local function by_readme(tables, options, readme)
  local groups, wanted_split, name = card.groups(readme, tables, options.split, options.shown)
  if not groups then return nil end
  local split = table_splits.choose(groups, wanted_split, options.purpose, options.shown)
  return { files = add({ "README.md" }, groups[split]), split = name .. "/" .. split }
end

function M.data(names, options, readme)
  local has = set_of(names)
  local tables = {}
  for _, name in ipairs(names) do
    if is_table(name) then tables[#tables + 1] = name end
  end
  if #tables == 0 or has["data.jsonl"] then return json_data(names, has, options) end

  -- What save_to_disk wrote lists its files itself.
  if has["dataset_dict.json"] or has["state.json"] then
    local list = {}
    for _, name in ipairs(names) do
      local is_other = options.split and name:find "/" and name:match "^[^/]*" ~= options.split
      if (is_table(name) or name:find "%.json$") and not is_other then list[#list + 1] = name end
    end
    return { files = list, split = options.split }
  end
  local stated = by_readme(tables, options, readme)
  if stated then return stated end
  local folder, wanted_split = folder_of(tables, options)
  local splits = table_splits.group(below(tables, folder), folder and #folder + 1)
  local split = table_splits.choose(splits, wanted_split, options.purpose, options.shown)
  return { files = splits[split], split = split, folder = folder }
end

function M.has_card(names)
  if not set_of(names)["README.md"] then return false end
  for _, name in ipairs(names) do
    if is_table(name) then return true end
  end
  return false
end

-- Whether files such as train-00000-of-00002.parquet are all there.
function M.are_tables_whole(names)
  for _, name in ipairs(names) do
    local front, count = name:match "^(.*)%-%d+%-of%-(%d+)"
    if front then
      local found = 0
      for _, other in ipairs(names) do
        if other:match "^(.*)%-%d+%-of%-%d+" == front then found = found + 1 end
      end
      if found ~= tonumber(count) then return false end
    end
  end
  return #names > 0
end

return M
