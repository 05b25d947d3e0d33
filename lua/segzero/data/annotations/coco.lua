-- coco.lua - a COCO file of instances (instances_val2017.json): each category in each image.
--
--   local set = coco.open { file = path, image_dir = folder | nil }
--
-- An entry is an image and a category that it shows: the text is the category's name, the objects
-- are all its annotations there. Crowd regions (iscrowd = 1) are no objects: their union is the
-- entry's ignore mask, as COCO leaves them out of its scores. An image and category with crowds
-- alone is no entry, and set.notes says how many there are.
-- Images: data.image_dir, else val2017 or images/val2017 in the folder of the file, in the one
-- above, or both folders themselves.
-- Leaves out: captions, keypoints, images without annotations.

local ffi = require "ffi"
local image_folder = require "segzero.data.annotations.image_folder"
local instances = require "segzero.data.annotations.instances"
local objects = require "segzero.data.annotations.objects"

local M = {}

local methods = {}
local mt = { __index = methods }

-- ---- the entries ----
-- Numbers of annotations, grouped by their images in the order of the file. Returns the numbers and
-- where each image's begin.
local function by_image(file)
  -- How many annotations each image has, and where its numbers begin.
  local images = file:images()
  local starts = ffi.new("int32_t[?]", images + 2)
  for k = 1, file:annotations() do
    local image = file.of_image[k]
    starts[image + 1] = starts[image + 1] + 1
  end
  for image = 1, images + 1 do starts[image] = starts[image] + starts[image - 1] end
  -- The numbers, each in the next place of its image.
  local order = ffi.new("int32_t[?]", file:annotations() + 1)
  local place = ffi.new("int32_t[?]", images + 2)
  ffi.copy(place, starts, ffi.sizeof(starts))
  for k = 1, file:annotations() do
    local image = file.of_image[k]
    order[place[image]] = k
    place[image] = place[image] + 1
  end
  return order, starts
end

-- Sorts order[first .. last) by category; equal ones keep their order. An image has few.
local function sort_by_category(file, order, first, last)
  for i = first + 1, last - 1 do
    local k = order[i]
    local j = i
    while j > first and file.category[order[j - 1]] > file.category[k] do
      order[j] = order[j - 1]
      j = j - 1
    end
    order[j] = k
  end
end

-- Adds the entry order[first .. last), all of one image and category.
local function add_entry(self, first, last)
  local crowds = 0
  for i = first, last - 1 do crowds = crowds + self.file.crowd[self.order[i]] end
  if crowds == last - first then
    self.crowds = self.crowds + 1
    return
  end
  self.n = self.n + 1
  self.first[self.n] = first
  self.last[self.n] = last
end

local function find_entries(self)
  local file = self.file
  local order, starts = by_image(file)
  self.order = order
  self.first = ffi.new("int32_t[?]", file:annotations() + 1)
  self.last = ffi.new("int32_t[?]", file:annotations() + 1)
  -- An entry ends where the category changes.
  for image = 1, file:images() do
    local last = starts[image + 1]
    sort_by_category(file, order, starts[image], last)
    local first = starts[image]
    for i = first, last - 1 do
      local is_end = i + 1 == last or file.category[order[i + 1]] ~= file.category[order[i]]
      if is_end then
        add_entry(self, first, i + 1)
        first = i + 1
      end
    end
  end
end

-- ---- the set ----
function methods:count() return self.n end

function methods:where(i)
  local k = self.order[self.first[i]]
  return ("%s annotation %.17g"):format(self.path, self.file.ids[k])
end

function methods.texts() return 1 end

function methods:meta(i)
  local file = self.file
  local where = self:where(i)
  -- Its annotations: objects and crowds.
  local list = {}
  local crowds = {}
  local ids = {}
  local name
  local category
  for at = self.first[i], self.last[i] - 1 do
    local k = self.order[at]
    local annotation = file:annotation(k)
    category = file.category[k]
    name = file.names[category]
    local place = ("%s annotation %.17g"):format(self.path, annotation.id)
    local object = objects.new(annotation, name, place)
    if object.crowd then
      crowds[#crowds + 1] = object
    else
      list[#list + 1] = object
      ids[#ids + 1] = ("%.17g"):format(annotation.id)
    end
  end
  -- The image that they are in.
  if not name then
    error(("%s: there is no category %.17g"):format(where, category), 0)
  end
  local image = file:image(file.of_image[self.order[self.first[i]]])
  return {
    id = ("%.17g_%.17g"):format(image.id, category), where = where,
    image = self.image_folder .. "/" .. image.file_name, width = image.width,
    height = image.height, texts = { name }, raw = { name }, objects = list,
    ignore = objects.union(crowds), image_id = ("%.17g"):format(image.id),
    ann_id = table.concat(ids, ","), category = name, cat_id = category,
  }
end

-- ---- opening ----
function M.open(options)
  local path = options.file
  local folder = path:match "^(.*)/[^/]*$" or "."
  local above = image_folder.above(folder)
  local part = path:match "([^/]*)%.json$":match "_([%w]+)$"
  local self = setmetatable({ path = path, n = 0, crowds = 0, several = true, notes = {},
    files = { path } }, mt)
  self.file = instances.open(path)
  find_entries(self)
  if self.n == 0 then error(path .. ": no image has an annotation", 0) end
  if self.crowds > 0 then
    local note = "%s: left out %d rows whose category is in the image as a crowd only"
    self.notes[1] = note:format(path, self.crowds)
  end

  -- The images.
  local places = {}
  for _, base in ipairs { above, folder } do
    if part then
      places[#places + 1] = base .. "/" .. part
      places[#places + 1] = base .. "/images/" .. part
    end
    places[#places + 1] = base .. "/images"
    places[#places + 1] = base
  end
  self.image_folder = image_folder.find(path, options.image_dir, places, function(n)
    return n <= self.file:images() and self.file:image(n).file_name or nil
  end)
  return self
end

return M
