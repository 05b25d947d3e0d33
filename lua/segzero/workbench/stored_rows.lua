-- stored_rows.lua - the rows of a finished run again, as its reward saw them: from the data set
-- that the run's settings name.
--
--   local stored = stored_rows.open(cfg)           cfg: the run's config.json
--   local row, complete = stored:row(id, record)   record: an answer to it, from rollouts.jsonl
--       complete: with image, columns, frames and mask, if the data have one. An image that is a
--       file is read when row.image is first asked for: most rewards judge texts. Otherwise the row
--       has only what the record says: id, problem, solution, frame if it is known
--   stored:release(row)                            frees its image
--   stored:notes() -> texts                        what could not be had, and why
--
-- Nothing is downloaded. A row whose solution is no longer that of the record is not the row that
-- the run saw, so it is not used.
-- Leaves out: sets that a script gave to the run.

local core = require "segzero.core.ffi"
local coordinates = require "segzero.data.coordinates"
local environment = require "segzero.hub.environment"
local frame = require "segzero.data.frame"
local image = require "segzero.formats.image"
local opening = require "segzero.models.opening"
local row_numbers = require "segzero.data.row_numbers"
local sources = require "segzero.data.sources"

local M = {}

local methods = {}
local mt = { __index = methods }

-- f's result, or nil and why in one line.
local function try(f, ...)
  local ok, result = pcall(f, ...)
  if ok then return result end
  if core.is_interrupt(result) then error(result, 0) end
  return nil, core.plain(result)
end

-- The policy without weights: its family knows the frame of answers, its processor the size that
-- the model sees.
local function open_policy(cfg)
  local model = cfg.worker.actor.model
  local policy = opening.family(model.model_path, 0).meta(model.model_path, model.dtype)
  local processor = policy:processor()
  processor.min_pixels = cfg.data.min_pixels
  processor.max_pixels = cfg.data.max_pixels
  return policy
end

local function open(cfg)
  local self = setmetatable({ said = {}, list = {}, loaded = {} }, mt)
  local why
  self.set, why = try(require("segzero.train.run.data_sets").open_train, cfg)
  if why then self:note("the run's data set cannot be opened: " .. why) end
  self.numbers = self.set and row_numbers.new(self.set)
  self.policy, why = try(open_policy, cfg)
  if why then self:note("the size that the model saw is not known: " .. why) end
  self.frames = try(frame.settings, cfg.data, "data.")
  if self.policy and self.frames then
    self.frames = coordinates.for_policy(self.frames, self.policy)
  end
  return self
end

function M.open(cfg) return environment.without_network(open, cfg) end

function methods:note(text)
  if self.said[text] then return end
  self.said[text] = true
  self.list[#self.list + 1] = text
end

function methods:notes() return self.list end

-- The size of an image as the model sees it; nil without the model's processor.
local function seen_of(self, img)
  if not self.policy then return nil end
  local given = self.frames and self.frames.resize or img
  local plan = self.policy:processor():plan(given.width, given.height)
  return { width = plan.resized_width, height = plan.resized_height }
end

-- The size of a stored image from its header; nil if the row makes its image itself.
local function stored_size(set, i)
  local stored = set.image and set:image(i)
  if not stored then return nil end
  local width, height
  if type(stored) == "string" then
    width, height = image.size(stored)
  else
    width, height = image.memory.size(stored.bytes, #stored.bytes, stored.name)
  end
  return { width = width, height = height }
end

-- Row i; its image is only a size at first, if it is stored.
local function open_row(set, i)
  local size = stored_size(set, i)
  if not size then return sources.read_row(set, i) end
  local row = set:row(i, size)
  row.images = nil
  return row, true
end

-- Reads the image when a field of the row asks for it. Copies of the row share it.
local function make_lazy(self, row, i)
  local found
  local function get()
    found = found or self.set:row(i).image
    return found
  end
  row.image = nil
  self.loaded[row] = function() return found end
  return setmetatable(row, { __index = function(_, key)
    if key == "image" then return get() end
    if key == "images" then return { get() } end
    return nil
  end })
end

function methods:release(row)
  local loaded = self.loaded[row]
  local own = rawget(row, "image")
  if loaded then own = loaded() end
  self.loaded[row] = nil
  if own then own:free() end
end

local function read(self, id, record)
  local i = self.numbers:of(id)
  if not i then error(("the data set has no row %s"):format(id), 0) end
  local row, is_stored = open_row(self.set, i)
  local ok, why = pcall(function()
    local seen = seen_of(self, row.image)
    if not seen then error("the frame of its answers is not known", 0) end
    coordinates.place(row, self.frames, seen)
    if row.solution ~= record.solution then
      error("the solution is another one than in the run", 0)
    end
  end)
  if ok then
    if is_stored then return make_lazy(self, row, i) end
    return row
  end
  if not is_stored then row.image:free() end
  error(why, 0)
end

-- The frame of answers to every row, where it does not depend on the row's image; else nil.
local function fixed_frame(self)
  local frames = self.frames
  if not frames then return nil end
  local f
  if type(frames.answer) == "table" then
    f = frames.answer
  elseif frames.resize and self.policy and frames.answer ~= "image" then
    f = frame.answers(frames.answer, nil, seen_of(self, frames.resize))
  end
  return f and (frame.side(f) or f)
end

-- A row with what its answer's record says.
local function make_poor(self, id, record)
  local known = fixed_frame(self)
  if not known then
    self:note("the frame of the answers is not known: a reward takes them for coordinates in a "
      .. "square of 840")
  end
  return { id = id, problem = record.problem, solution = record.solution, frame = known,
    columns = { problem = record.problem, solution = record.solution } }
end

local MOST_NOTES = 3            -- rows that are named

function methods:row(id, record)
  local why
  if self.numbers then
    local row
    row, why = try(read, self, id, record)
    if row then return row, true end
    self.missing = (self.missing or 0) + 1
    if self.missing <= MOST_NOTES then self:note(("row %s: %s"):format(id, why)) end
  end
  return make_poor(self, id, record), false
end

return M
