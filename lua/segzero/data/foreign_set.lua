-- foreign_set.lua - recognises data sets that are not read, so that the error says what they are
-- and what to do.
--
--   foreign_set.describe(name)    one sentence, or nil if the name looks like none of these:
--                                 CSV, a file of another kind, a folder of refer without refs
--
-- Called after a data.jsonl could not be opened. Leaves out: reading them.

local files = require "segzero.core.files"
local visible = require "segzero.core.visible"

local M = {}

local CURE = "; convert it to a folder with data.jsonl (docs/guide/data.md has the lines of Python)"

local FILES = { csv = "a .csv file, which is not read", tsv = "a .tsv file, which is not read" }

function M.describe(name)
  local kind
  local folder = name:match "^(.*)@[^@/]+$" or name
  if files.exists(folder .. "/instances.json") then
    return ("data set %s: there is instances.json, but no refs(*).p or grefs(*).json next to it")
      :format(visible.line(name))
  end
  if files.exists(name .. "/.") then return nil end
  if files.exists(name) then
    kind = FILES[(name:match "%.(%w+)$" or ""):lower()]
      or "a file whose name does not end in .jsonl, .json, .parquet or .arrow"
  else
    return nil
  end
  return ("data set %s: this is %s%s"):format(visible.line(name), kind, CURE)
end

return M
