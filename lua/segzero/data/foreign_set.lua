-- foreign_set.lua - says why a name is no data set that is read, and what to do.
--
--   foreign_set.describe(name)    one sentence: there is nothing of this name, it is a CSV file, a
--                                 folder of refer without refs, a model, a folder without rows ...
--
-- Called after a data.jsonl could not be opened. Leaves out: reading them.

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local hints = require "segzero.core.path_hints"
local visible = require "segzero.core.visible"

local M = {}

local CONVERT = "; convert it to a folder with data.jsonl (docs/guide/data.md has the lines of Python)"
local FORMS = "; name a file, a folder, a pattern in quotes, or a data set on the hub as owner/name"

local FILES = { csv = "a .csv file, which is not read", tsv = "a .tsv file, which is not read" }
local GENERATED = { "refshapes", "refshapes_multi" }
local SHOWN = 5                 -- names of a folder

local function describe_file(path)
  local kind = FILES[(path:match "%.(%w+)$" or ""):lower()]
    or "a file whose name does not end in .jsonl, .json, .parquet or .arrow"
  return ("this is %s%s"):format(kind, CONVERT)
end

-- The names in a folder that may be what the user meant: files of JSON, else folders.
local function candidates(path)
  local lists = { json = {}, folders = {} }
  for _, name in ipairs(folders.list(path) or {}) do
    local list
    if name:find "%.jsonl?$" then list = lists.json
    elseif folders.kind(path .. "/" .. name) == "folder" then list = lists.folders end
    if list and #list < SHOWN then list[#list + 1] = visible.line(name) end
  end
  if #lists.json > 0 then return lists.json end
  return lists.folders
end

local function describe_folder(path)
  if files.exists(path .. "/instances.json") then
    return "there is instances.json, but no refs(*).p or grefs(*).json next to it"
  end
  local other = hints.holds(path)
  if other and other ~= "a data set" then return "the folder holds " .. other end
  local text = "the folder has no data.jsonl, and no Parquet, Arrow or annotation files"
  local list = candidates(path)
  if #list == 0 then return text end
  return ("%s; it has %s: name one of them"):format(text, table.concat(list, ", "))
end

function M.describe(name)
  local path = name:match "^(.*)@[^@/]+$" or name
  if files.exists(name) then path = name end
  local text
  if files.exists(path .. "/.") then text = describe_folder(path)
  elseif files.exists(path) then text = describe_file(path)
  else
    local question = hints.question(path, GENERATED)
    if question == "" then question = FORMS end
    text = "there is no such file or folder" .. question
  end
  return ("data set %s: %s"):format(visible.line(name), visible.line(text))
end

return M
