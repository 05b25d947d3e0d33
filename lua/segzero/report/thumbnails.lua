-- thumbnails.lua - small images of a run's rows, as data URLs, and the frames that answers to them
-- count in.
--
--   local source = thumbnails.new { set = data set, frames = of coordinates.for_policy or nil,
--                                   processor = of the policy or nil }
--   source:row(id) -> {url = text, width =, height =, frame = {width =, height =} or nil}, or
--                     nil if the data set has no such row or its image cannot be read
--   thumbnails.of_settings(cfg) -> source, or nil and why there are no images
--                     opens the data set that the settings name, without downloading anything
--
-- A row is found by its id (data/row_numbers.lua). An id that belongs to another row gives no
-- image. A side has at most 224 pixels, and small images stay as they are. The work is done by the
-- decoder and encoder of runtime/io/image.
-- Leaves out: sets of a script, whose rows a later process cannot make again; masks.

local ffi = require "ffi"
local base64 = require "segzero.core.base64"
local core = require "segzero.core.ffi"
local environment = require "segzero.hub.environment"
local frame = require "segzero.data.frame"
local image = require "segzero.formats.image"
local jobs = require "segzero.core.jobs"
local row_numbers = require "segzero.data.row_numbers"

local C = core.C

local M = {}

local methods = {}
local mt = { __index = methods }

local SIDE = 224

function M.new(source)
  source.numbers = row_numbers.new(source.set)
  return setmetatable(source, mt)
end

-- ---- the image ----
local function fitted(width, height)
  local factor = math.min(1, SIDE / math.max(width, height))
  local function side(v) return math.max(1, math.floor(v * factor + 0.5)) end
  return side(width), side(height)
end

-- Starts the job that makes a PNG, from a path, bytes or an image.
local function start(set, i)
  local stored = set.image and set:image(i)
  if type(stored) == "string" then
    local w, h = fitted(image.size(stored))
    return C.sz_image_png_start(stored, nil, 0, nil, w, h)
  elseif stored then
    local w, h = fitted(image.memory.size(stored.bytes, #stored.bytes, stored.name))
    return C.sz_image_png_start(stored.name, stored.bytes, #stored.bytes, nil, w, h)
  end
  local img = set:row(i).image
  local w, h = fitted(img.width, img.height)
  local job = C.sz_image_png_start(nil, nil, 0, img.ptr, w, h)
  img:free()
  return job
end

local length = ffi.new "size_t[1]"
local side = ffi.new "int[2]"

-- The frame of answers, as data/coordinates.lua finds it: it depends on the size that the model
-- sees.
local function frame_of(self, size)
  if not self.frames or not self.processor then return nil end
  local given = self.frames.resize or size
  local plan = self.processor:plan(given.width, given.height)
  local seen = { width = plan.resized_width, height = plan.resized_height }
  return frame.of(frame.answers(self.frames.answer, size, seen))
end

local function make(self, i)
  local job = jobs.wrap(core.call(start(self.set, i)))
  local ok, why = job:wait()
  if not ok then
    job:free()
    error(why, 0)
  end
  local bytes = C.sz_image_png_of(job.ptr, length, side, side + 1)
  local made = { url = "data:image/png;base64," .. base64.of(bytes, tonumber(length[0])),
    width = side[0], height = side[1] }
  job:free()
  local known, found = pcall(frame_of, self, { width = made.width, height = made.height })
  if known then made.frame = found end
  return made
end

function methods:row(id)
  local ok, made = pcall(function()
    local i = self.numbers:of(id)
    return i and make(self, i)
  end)
  if not ok and core.is_interrupt(made) then error(made, 0) end
  if ok and made then return made end
  return nil
end

-- ---- from settings ----
local function processor_of(cfg)
  local opening = require "segzero.models.opening"
  local model = cfg.worker.actor.model
  local family = opening.family(model.model_path, 0)
  local policy = family.meta(model.model_path, model.dtype)
  local processor = policy:processor()
  processor.min_pixels = cfg.data.min_pixels
  processor.max_pixels = cfg.data.max_pixels
  return processor, policy
end

local function of_settings(cfg)
  local opened, set = pcall(require("segzero.train.run.data_sets").open_train, cfg)
  if not opened then
    if core.is_interrupt(set) then error(set, 0) end
    return nil, core.plain(set)
  end
  local source = { set = set }
  pcall(function()
    local processor, policy = processor_of(cfg)
    local coordinates = require "segzero.data.coordinates"
    source.processor = processor
    source.frames = coordinates.for_policy(frame.settings(cfg.data, "data."), policy)
  end)
  return M.new(source)
end

-- A report of an old run must not start a download.
function M.of_settings(cfg) return environment.without_network(of_settings, cfg) end

return M
