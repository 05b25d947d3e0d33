-- foreign_set.lua - recognises data sets that are not read yet, so that the error says what they are
-- and what to do.
--
--   foreign_set.describe(name)    one sentence, or nil if the name looks like none of these:
--                                 a name on the Hugging Face hub, Parquet, a folder of datasets'
--                                 save_to_disk, Arrow, one JSON list, CSV
--
-- Called after a data.jsonl could not be opened. Leaves out: reading them.

local has_dirent, dirent = pcall(require, "posix.dirent")

local files = require "segzero.core.files"
local visible = require "segzero.core.visible"

local M = {}

local CURE = "; convert it to a folder with data.jsonl (docs/guide/data.md has the lines of Python)"

local function names_in(folder)
  if not has_dirent then return {} end
  local ok, names = pcall(dirent.dir, folder)
  if not ok then return {} end
  return names
end

-- Whether the folder, or one directly below it, has a file whose name ends in this way.
local function has_file(folder, ending, depth)
  for _, name in ipairs(names_in(folder)) do
    if name:sub(-#ending) == ending then return true end
    local is_below = depth > 0 and not name:find "^%."
    if is_below and has_file(folder .. "/" .. name, ending, depth - 1) then return true end
  end
  return false
end

local FILES = {
  parquet = "a Parquet file, which is not read yet",
  arrow = "an Arrow file, which is not read yet",
  json = "a .json file; a data set has one JSON object a line, in a .jsonl file",
  csv = "a .csv file, which is not read",
  tsv = "a .tsv file, which is not read",
}

local function kind_of_folder(folder)
  if files.exists(folder .. "/dataset_dict.json") or files.exists(folder .. "/dataset_info.json")
    or has_file(folder, ".arrow", 1) then
    return "a folder of datasets' save_to_disk, which is not read yet"
  end
  if has_file(folder, ".parquet", 1) then return "a folder of Parquet files, which are not read yet" end
  return nil
end

function M.describe(name)
  local kind
  if files.exists(name .. "/.") then
    kind = kind_of_folder(name)
    if not kind then return nil end
  elseif files.exists(name) then
    kind = FILES[(name:match "%.(%w+)$" or ""):lower()] or "a file whose name does not end in .jsonl"
  elseif name:match "^[%w_.-]+/[%w_.-]+$" or name:match "^[%w_.-]+/[%w_.-]+@[%w_.:%[%]%%-]+$" then
    kind = "no folder; if it is a name on the Hugging Face hub: nothing is downloaded"
  else
    return nil
  end
  return ("data set %s: this is %s%s"):format(visible.line(name), kind, CURE)
end

return M
