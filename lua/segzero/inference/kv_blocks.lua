-- blocks.lua - which rows of a cache belong to whom: ranges of whole blocks that grow, move and go.
--
--   local pool = blocks.new(total, move)     total blocks; move(to, from, blocks) copies what a range holds
--   pool:insert(range, room)                 the first gap of so many blocks; false when there is none
--   pool:grow(range, room)                   in place; false when what follows is taken
--   pool:remove(range)
--   pool:arrange()                           every range gets range.wanted blocks, in the order they lie, without gaps
--
-- A range is a table of the caller's with the fields
--   start, room     its first block and how many it has; start is nil while it has none
--   used            blocks that hold something: what a move copies (kept by the caller)
-- Ranges are contiguous because attention reads them fastest so, on either device; what a block table would give instead, rows
-- anywhere, arrange() gives by moving: a copy of the cache now and then against an indirection in every read of it.

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(total, move)
  return setmetatable({ total = total, move = move, ranges = {}, moved = 0 }, mt)
end

local function end_of(range) return range and range.start + range.room or 0 end

function methods:insert(range, room)
  local ranges = self.ranges
  for i = 1, #ranges + 1 do
    local start = end_of(ranges[i - 1])
    if (ranges[i] and ranges[i].start or self.total) - start >= room then
      range.start, range.room = start, room
      table.insert(ranges, i, range)
      return true
    end
  end
  return false
end

local function place_of(self, range)
  for i, r in ipairs(self.ranges) do
    if r == range then return i end
  end
end

function methods:remove(range)
  table.remove(self.ranges, place_of(self, range))
  range.start, range.room = nil, nil
end

function methods:grow(range, room)
  local next = self.ranges[place_of(self, range) + 1]
  if range.start + room > (next and next.start or self.total) then return false end
  range.room = math.max(range.room, room)
  return true
end

-- Those that go down move in ascending order, then those that go up in descending order, so nothing is written over that has yet
-- to move. A range that is new has `wanted` but no start: it comes last. The sum of all `wanted` is at most the total.
function methods:arrange(new)
  for _, r in ipairs(new or {}) do self.ranges[#self.ranges + 1] = r end
  local ranges, at, places = self.ranges, 0, {}
  for i, r in ipairs(ranges) do
    places[i] = at
    at = at + r.wanted
  end
  assert(at <= self.total, "the ranges are larger than the cache")
  local function shift(i)
    local r = ranges[i]
    if r.start and r.used > 0 and r.start ~= places[i] then
      self.move(places[i], r.start, r.used)
      self.moved = self.moved + r.used
    end
  end
  for i = 1, #ranges do
    if ranges[i].start and places[i] < ranges[i].start then shift(i) end
  end
  for i = #ranges, 1, -1 do
    if ranges[i].start and places[i] > ranges[i].start then shift(i) end
  end
  for i, r in ipairs(ranges) do r.start, r.room = places[i], r.wanted end
end

return M
