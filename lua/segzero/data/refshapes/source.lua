-- source.lua - RefShapes (data/refshapes) as a data source that generates rows on demand.
--
--   local set = source.open { split = "train", size = 112, seed = 42, rows = 4096, level = 3 }
--
-- several = {empty = share} asks about any number of objects, also none: refshapes_multi.
-- size: side of the images in pixels. rows: how many rows the set has. level: how hard the scenes
-- are, 1 to 3 (data/refshapes); default 3.
-- Leaves out: writing a data set to a folder (data/refshapes does that).

local ffi = require "ffi"
local image = require "segzero.formats.image"
local refshapes = require "segzero.data.refshapes"
local rows = require "segzero.data.rows"
local tensor = require "segzero.core.tensor"

local M = {}

local function image_of(scene)
  local img = image.new(scene.width, scene.height)
  ffi.copy(img:pixels(), scene.rgb, scene.width * scene.height * 3)
  return img
end

-- A function that makes the true mask, u8 [height, width] of 0 and 1. The caller of that function
-- frees the tensor.
local function mask_maker(question, width, height)
  return function()
    local t = tensor.empty({ height, width }, { dtype = "u8" })
    ffi.copy(tensor.data(t), question.mask(), height * width)
    return t
  end
end

function M.open(options)
  local name = "RefShapes"
  if options.several then name = "RefShapes with several objects" end
  local set = { name = ("%s (%s, %d px)"):format(name, options.split, options.size) }

  function set.count() return options.rows end

  function set.image() return nil end

  function set.row(_, i)
    rows.check_number(set, i, 2)
    local scene = refshapes.sample {
      seed = options.seed, split = options.split, index = i, size = options.size,
      level = options.level or 3, questions = 1, several = options.several,
    }
    local question = scene.questions[1]
    return rows.new {
      id = ("%s-%d"):format(options.split, i),
      index = i,
      problem = question.problem,
      solution = question.solution,
      image = image_of(scene),
      mask = mask_maker(question, scene.width, scene.height),
    }
  end

  return set
end

return M
