-- kv_blocks.lua - the allocator of the key-value cache: ranges of whole blocks that grow, move and
-- are removed.
--
--   local pool = kv_blocks.new(total, move)
--       total: blocks in all; move(to, from, blocks) copies blocks of the cache
--   pool:insert(range, room)     takes the first gap of `room` blocks; false if there is none
--   pool:grow(range, room)       grows in place; false if the blocks after it are taken
--   pool:remove(range)
--   pool:arrange(new)            gives every range range.wanted blocks, in the present order and
--                                without gaps; the new ranges come last
--   pool.ranges, pool.moved      ranges by their start; how many blocks were moved so far
--
-- A range is the caller's table with the fields
--   start, room     its first block and how many it has; start is nil while it has none
--   used            blocks with contents, which a move copies (set by the caller)
-- Ranges are contiguous because attention reads them fastest that way, on CPU and GPU. A block
-- table would allow scattered rows, but every read would go through it; arrange() copies parts of
-- the cache now and then instead.

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(total, move)
  return setmetatable({ total = total, move = move, ranges = {}, moved = 0 }, mt)
end

local function end_of(range)
  if not range then return 0 end
  return range.start + range.room
end

-- The first block after a gap that ends at ranges[i].
local function gap_end(pool, i)
  local next_range = pool.ranges[i]
  if next_range then return next_range.start end
  return pool.total
end

function methods:insert(range, room)
  for i = 1, #self.ranges + 1 do
    local start = end_of(self.ranges[i - 1])
    if gap_end(self, i) - start >= room then
      range.start = start
      range.room = room
      table.insert(self.ranges, i, range)
      return true
    end
  end
  return false
end

local function index_of(pool, range)
  for i, r in ipairs(pool.ranges) do
    if r == range then return i end
  end
end

function methods:remove(range)
  table.remove(self.ranges, index_of(self, range))
  range.start = nil
  range.room = nil
end

function methods:grow(range, room)
  if range.start + room > gap_end(self, index_of(self, range) + 1) then return false end
  range.room = math.max(range.room, room)
  return true
end

function methods:arrange(new)
  local ranges = self.ranges
  for _, r in ipairs(new or {}) do ranges[#ranges + 1] = r end

  -- Where each range goes. The sum of all `wanted` is at most the total.
  local starts = {}
  local next_start = 0
  for i, r in ipairs(ranges) do
    starts[i] = next_start
    next_start = next_start + r.wanted
  end
  assert(next_start <= self.total, "the ranges are larger than the cache")

  -- Ranges that go down move in ascending order, then those that go up in descending order, so
  -- nothing is overwritten that still has to move.
  local function shift(i)
    local r = ranges[i]
    if r.used > 0 then
      self.move(starts[i], r.start, r.used)
      self.moved = self.moved + r.used
    end
  end
  for i = 1, #ranges do
    if ranges[i].start and starts[i] < ranges[i].start then shift(i) end
  end
  for i = #ranges, 1, -1 do
    if ranges[i].start and starts[i] > ranges[i].start then shift(i) end
  end
  for i, r in ipairs(ranges) do
    r.start = starts[i]
    r.room = r.wanted
  end
end

return M
