-- sampler.lua - chooses the rows of each step, and prefetches those of the next step.
--
--   local s = sampler.new(policy, { batch = 16, seed = 42, shuffle = true }, ahead, resize)
--   s.since                        where counting begins (position.lua); a resumed run may set it
--   s:indices(set, step)           the numbers of the step's rows
--   s:rows(set, step)              the rows, each with row.number, and row.place in the step
--   s:row(set, index)              one row, as rows() takes it
--   s.owns                         nil, or f(place): whether this process takes the row
--   s:prefetch(set, step, last)    starts the images of a later step, unless it is after `last`;
--                                  drops images that an earlier call started and nobody took
--   s:cancel()                     drops all prefetched images
--
-- ahead = false: nothing is prefetched. resize: as in prefetch.lua. Each epoch is shuffled by
-- (seed, epoch); its last, incomplete batch is dropped. The set may change from call to call, as in
-- a curriculum. Leaves out: sampling with replacement, weights of rows.

local data = require "segzero.data"
local position = require "segzero.data.position"
local prefetch = require "segzero.data.prefetch"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(policy, options, ahead, resize)
  local self = { options = options, queue = prefetch.new(policy, resize), ahead = ahead ~= false,
    since = position.START }
  return setmetatable(self, mt)
end

-- The shuffled order of an epoch, or nil for the order of the set. Caches the last epoch's order.
local function order_of(self, set, epoch)
  if not self.options.shuffle then return nil end
  local known = self.known
  if not known or known.set ~= set or known.epoch ~= epoch then
    local order = data.permutation(set:count(), self.options.seed, epoch)
    known = { set = set, epoch = epoch, order = order }
    self.known = known
  end
  return known.order
end

-- A step takes its rows from one epoch.
function M.check_batch(set, batch)
  local count = set:count()
  if count >= batch then return end
  error(("the data set %s has %d rows, data.rollout_batch_size is %d: set it to at most %d")
    :format(set.name or "of the script", count, batch, count), 0)
end

-- The place of a step's rows in the run.
function methods:place(set, step)
  local batch = self.options.batch
  M.check_batch(set, batch)
  return position.at(self.since, batch, set:count(), step)
end

-- The place behind a step's rows.
function methods:place_after(set, step)
  return position.after(self.since, self.options.batch, set:count(), step)
end

function methods:indices(set, step)
  local place = self:place(set, step)
  local order = order_of(self, set, place.epoch)
  local indices = {}
  for i = 1, self.options.batch do
    indices[i] = place.before + i
    if order then indices[i] = order[place.before + i] end
  end
  return indices
end

local function owns(self, place) return not self.owns or self.owns(place) end

function methods:rows(set, step)
  local indices = self:indices(set, step)
  local number = self:place(set, step).number
  local rows = {}
  for place, index in ipairs(indices) do
    if owns(self, place) then
      local row = self.queue:take(set, index)
      row.number = number + place
      row.place = place
      rows[#rows + 1] = row
    end
  end
  return rows
end

function methods:row(set, index) return self.queue:take(set, index) end

function methods:prefetch(set, step, last)
  self.queue:cancel()
  if not self.ahead or (last and step > last) then return end
  for place, index in ipairs(self:indices(set, step)) do
    if owns(self, place) then self.queue:request(set, index) end
  end
end

function methods:cancel() self.queue:cancel() end

return M
