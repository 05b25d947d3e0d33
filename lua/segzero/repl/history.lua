-- history.lua - what was typed at the prompt, entry by entry: an entry of several lines is one.
--
--   local h = history.open(path or nil)    nil: nothing is written
--   h:add(entry)                           appends to the file; a repeated entry is there once
--   h.entries                              from the oldest to the newest
--   h:search(text, from, step) -> index    the next entry that contains the text, or nil
--   history.path() -> ~/.segzero_history, or nil
--
-- A line of the file is a line of an entry; those after the first begin with a tab. At most MOST
-- entries are kept: the file is shortened when it is opened and has grown to twice that.
-- Leaves out: locks; two prompts append to the same file.

local files = require "segzero.core.files"

local M = {}

local MOST = 2000

local methods = {}
local mt = { __index = methods }

local function to_lines(entry) return (entry:gsub("\n", "\n\t")) .. "\n" end

local function read(path)
  local entries = {}
  local file = io.open(path)
  if not file then return entries end
  for line in file:lines() do
    local more = line:match "^\t(.*)$"
    if more and #entries > 0 then
      entries[#entries] = entries[#entries] .. "\n" .. more
    elseif line ~= "" then
      entries[#entries + 1] = line
    end
  end
  file:close()
  return entries
end

-- The newest entries.
local function latest(entries)
  local kept = {}
  for i = math.max(1, #entries - MOST + 1), #entries do kept[#kept + 1] = entries[i] end
  return kept
end

function M.open(path)
  local self = setmetatable({ path = path, entries = {} }, mt)
  if not path then return self end
  local all = read(path)
  self.entries = latest(all)
  if #all < 2 * MOST then return self end
  local lines = {}
  for i, entry in ipairs(self.entries) do lines[i] = to_lines(entry) end
  pcall(files.write, path, table.concat(lines))
  return self
end

function methods:add(entry)
  -- A tab or a newline in front would make the entry a part of the one before it in the file.
  entry = entry:gsub("%s+$", ""):gsub("^%s+", "")
  if entry == "" or entry == self.entries[#self.entries] then return end
  self.entries[#self.entries + 1] = entry
  if #self.entries > MOST then table.remove(self.entries, 1) end
  local file = self.path and io.open(self.path, "a")
  if not file then return end
  file:write(to_lines(entry))
  file:close()
end

function methods:search(text, from, step)
  local i = from
  while i >= 1 and i <= #self.entries do
    if self.entries[i]:find(text, 1, true) then return i end
    i = i + step
  end
  return nil
end

function M.path()
  local home = os.getenv "HOME"
  if not home or home == "" then return nil end
  return home .. "/.segzero_history"
end

return M
