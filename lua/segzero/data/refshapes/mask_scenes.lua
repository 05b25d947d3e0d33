-- mask_scenes.lua - images and their objects for training SAM2: RefShapes, or rows with masks.
--
--   local train, held = mask_scenes.open(options, say)    options: config/sam2_finetune.lua;
--                                                     say(text) for what the check of rows finds
--   train.count()                                     math.huge for RefShapes
--   local scene = train.scene(i, progress)            progress of the run: scenes get harder
--
--   scene   {image =, width =, height =, objects = {...}}; the caller frees the image
--   object  {bbox = {x0, y0, x1, y1} with both corners inside, mask = uint8_t [h * w] of 0 and 1,
--            points = two points of a true answer, or nil}
--
-- A row with a mask is a scene of one object. The points of its solution count in
-- options.solution_frame; points outside the image are not used, which is said once.
-- Leaves out: prompts (train/supervised/mask_prompts.lua).

local ffi = require "ffi"
local check = require "segzero.data.checks.check"
local coordinates = require "segzero.data.coordinates"
local data = require "segzero.data"
local distance = require "segzero.data.refshapes.distance"
local frame = require "segzero.data.frame"
local notes = require "segzero.core.notes"
local raster = require "segzero.data.refshapes.raster"
local refshapes = require "segzero.data.refshapes"
local shape_tasks = require "segzero.data.refshapes.tasks"
local tensor = require "segzero.core.tensor"
local visible = require "segzero.core.visible"

local M = {}

-- share of a folder to train on when no held-out set is named; the rest is held out
local TRAINED = 0.9

local function shapes_scene(options, split, index, level)
  local sample = refshapes.sample { seed = options.seed, split = split, index = index,
    size = options.size, level = level, questions = 0 }
  local scene = { image = shape_tasks.image_of(sample), width = sample.width,
    height = sample.height, objects = {} }
  for i, o in ipairs(sample.objects) do
    local first, second = distance.two_circles(o.bbox, o.runs)
    local mask = raster.mask(o.runs, o.bbox, sample.width, sample.height, 1)
    scene.objects[i] = { bbox = o.bbox, mask = mask, points = { first, second } }
  end
  return scene
end

-- The box around the pixels of a mask; nil when it has none.
local function box_of(mask, w, h)
  local box = { w, h, -1, -1 }
  for y = 0, h - 1 do
    for x = 0, w - 1 do
      if mask[y * w + x] ~= 0 then
        box[1] = math.min(box[1], x)
        box[2] = math.min(box[2], y)
        box[3] = math.max(box[3], x)
        box[4] = math.max(box[4], y)
      end
    end
  end
  if box[3] < 0 then return nil end
  return box
end

local function is_inside(point, w, h)
  return point[1] >= 0 and point[2] >= 0 and point[1] < w and point[2] < h
end

local has_said = false

local function say_once(row, own)
  if has_said then return end
  has_said = true
  notes.say(("row %s: the points of its solution leave the image of %s, so such points are not "
    .. "used; solution_frame=840x840 if they count in that")
    :format(visible.line(row.id), frame.text(own)))
end

-- The two points of a row's solution in the image's pixels, or nil.
local function points_of(row, frames)
  local points = {}
  local text = (row.solution or ""):match "<points>(.-)</points>" or ""
  for x, y in text:gmatch "%((%d+),(%d+)%)" do
    points[#points + 1] = { tonumber(x), tonumber(y) }
  end
  if #points ~= 2 then return nil end

  coordinates.locate(row, frames)
  local own = frame.of(row.image)
  for i, point in ipairs(points) do
    points[i] = frame.point(point, row.solution_frame, own)
    if not is_inside(points[i], own.width, own.height) then
      say_once(row, own)
      return nil
    end
  end
  return points
end

local function row_scene(row, name, frames)
  if not row.mask then error(name .. ": rows have no mask", 0) end
  local w = row.image.width
  local h = row.image.height
  local t = row.mask()
  local mask = ffi.new("uint8_t[?]", w * h)
  ffi.copy(mask, tensor.data(t), w * h)
  t:free()
  local scene = { image = row.image, width = w, height = h, objects = {} }
  local box = box_of(mask, w, h)
  if box then scene.objects[1] = { bbox = box, mask = mask, points = points_of(row, frames) } end
  return scene
end

-- Scenes of a set's rows first .. last.
local function of_rows(set, name, first, last, frames)
  return {
    count = function() return last - first + 1 end,
    scene = function(i) return row_scene(set:row(first + i - 1), name, frames) end,
  }
end

local function endless(scene) return { count = function() return math.huge end, scene = scene } end

local function shapes_for_training(options)
  return endless(function(i, progress)
    local u = (i * 0.6180339887) % 1
    local level = 3
    if u < options.easy then level = 2 end
    if u < options.easy / 2 then level = 1 end
    if progress < options.level3 then level = 2 end
    return shapes_scene(options, "train", i, level)
  end)
end

local function held_out_shapes(options)
  return endless(function(i) return shapes_scene(options, "heldout", i, 3) end)
end

-- A folder's rows, all checked.
local function open_rows(options, setting, say)
  local set = data.sources.open(options[setting], { check = false, label = setting })
  return check.rows(set, { name = setting, key = "on_bad_row", on_bad_row = options.on_bad_row,
    masks = true, say = say })
end

-- Sets for training and for evaluation.
function M.open(options, say)
  local train, held
  if options.train_files == "refshapes" then
    train = shapes_for_training(options)
  else
    local set = open_rows(options, "train_files", say)
    local last = set:count()
    if options.val_files == "" then last = math.max(1, math.floor(set:count() * TRAINED)) end
    train = of_rows(set, options.train_files, 1, last, options.frames)
    if options.val_files == "" then
      held = of_rows(set, options.train_files, last + 1, set:count(), options.frames)
    end
  end
  if options.val_files ~= "" and options.val_files ~= "refshapes" then
    local set = open_rows(options, "val_files", say)
    held = of_rows(set, options.val_files, 1, set:count(), options.frames)
  end
  return train, held or held_out_shapes(options)
end

return M
