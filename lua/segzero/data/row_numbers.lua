-- row_numbers.lua - finds a row of a data set by its id, as logs of a run name it.
--
--   local numbers = row_numbers.new(set)
--   numbers:of("heldout-17") -> i, or nil if the set has no row of this id
--
-- The number at the id's end is tried as the row's number (RefShapes, rows without ids of their
-- own), then the ids of sets of at most 50,000 rows are compared.
-- Leaves out: sets of which two rows have one id (the first is found).

local core = require "segzero.core.ffi"

local M = {}

local methods = {}
local mt = { __index = methods }

local MOST_IDS = 50000

function M.new(set) return setmetatable({ set = set }, mt) end

local function id_of(set, i)
  if set.meta then
    local meta = set:meta(i)
    return tostring(meta.id or i)
  end
  local row = set:row(i)
  row.image:free()
  return tostring(row.id)
end

-- The id of row i, or nil if it cannot be read.
local function try_id(set, i)
  local ok, id = pcall(id_of, set, i)
  if ok then return id end
  if core.is_interrupt(id) then error(id, 0) end
  return nil
end

local function has_id(set, i, id)
  if not i or i < 1 or i > set:count() then return false end
  return try_id(set, i) == id
end

local function all_ids(set)
  local numbers = {}
  local count = set:count()
  if not set.meta or count > MOST_IDS then return numbers end
  for i = 1, count do
    local id = try_id(set, i)
    if id then numbers[id] = numbers[id] or i end
  end
  return numbers
end

function methods:of(id)
  id = tostring(id)
  local stated = tonumber(id:match "(%d+)$")
  for _, i in ipairs { stated or 0, (stated or 0) + 1 } do
    if has_id(self.set, i, id) then return i end
  end
  self.known = self.known or all_ids(self.set)
  return self.known[id]
end

return M
