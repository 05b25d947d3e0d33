-- prefetch.lua - prepares rows before they are needed: background threads read their images, resize
-- them and cut them into patches.
--
--   local p = prefetch.new(policy, resize)       a model that has a processor; resize: the size
--                                        {width =, height =} that images get first, or nil
--   p:request(set, i)                    starts row i of a data set
--   p:take(set, i)                       the row, as set:row(i) returns it; waits for its request
--   p:cancel()                           drops every row that was requested and not taken
--
-- If the set has image(i) (the path or the bytes of row i's image), it is read in the background
-- too, and set:row(i, image) gets the image that was read. A row whose image was resized first has
-- row.resized, which belongs to who takes it (train/inputs.lua). Otherwise request() makes the row
-- at once, and only its image is resized and cut in the background. If prefetching a row fails, the
-- row is loaded again when it is taken, so the error is reported at the usual place. Requested rows
-- are held in memory; the caller limits how many there are.

local core = require "segzero.core.ffi"
local image = require "segzero.formats.image"
local sources = require "segzero.data.sources"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(policy, resize)
  return setmetatable({ policy = policy, resize = resize, requested = {} }, mt)
end

-- Makes the row at once. An error is kept and raised in take(); Ctrl-C is raised here.
local function make_row(set, i)
  local ok, row = pcall(sources.read_row, set, i)
  if not ok and core.is_interrupt(row) then error(row, 0) end
  return { made = ok, row = row }
end

-- The path or the bytes of an image; nil if the row has to make it. A fault is left to who takes
-- the row.
local function stored_image(set, i)
  if not set.image then return nil end
  local ok, source = pcall(set.image, set, i)
  if ok then return source end
  if core.is_interrupt(source) then error(source, 0) end
  return nil
end

function methods:request(set, i)
  local by_index = self.requested[set] or {}
  self.requested[set] = by_index
  if by_index[i] then return end
  local source = stored_image(set, i)
  local entry = {}
  if not source then entry = make_row(set, i) end
  by_index[i] = entry
  if entry.made then
    source = entry.row.image
    if not image.is_image(source) then return end
  end
  if source then entry.future = self.policy:processor():start(source, self.resize) end
end

-- The row of an entry with the image that was read.
local function finish(self, set, i, entry)
  local read, resized
  if entry.future then read, resized = self.policy:processor():take(entry.future) end
  local row = entry.row
  if entry.made == nil then row = sources.read_row(set, i, read) end
  if resized and resized ~= row.image then row.resized = resized end
  return row
end

function methods:take(set, i)
  local by_index = self.requested[set]
  local entry = by_index and by_index[i]
  if not entry then return sources.read_row(set, i) end
  by_index[i] = nil
  if entry.made == false then error(entry.row, 0) end
  return finish(self, set, i, entry)
end

function methods:cancel()
  for _, by_index in pairs(self.requested) do
    for _, entry in pairs(by_index) do
      if entry.future then self.policy:processor():cancel(entry.future) end
      if entry.made and image.is_image(entry.row.image) then entry.row.image:free() end
    end
  end
  self.requested = {}
end

function mt:__tostring()
  local count = 0
  for _, by_index in pairs(self.requested) do
    for _ in pairs(by_index) do count = count + 1 end
  end
  return ("%d prefetched rows"):format(count)
end

return M
