-- instances.lua - the index of a COCO file: instances_*.json, or the instances.json of refer.
--
--   local file = instances.open(path)
--   file:images(), file:annotations()            how many there are
--   file:image(k)        -> {id =, file_name =, width =, height =}, k from 1 in the file's order
--   file:image_number(id), file:annotation_number(id)     k, or nil
--   file:annotation(k)   -> the annotation decoded: {id =, image_id =, category_id =, bbox =,
--                           segmentation =, iscrowd =, ...}
--   file.of_image[k], file.category[k], file.crowd[k]     of annotation k: its image's number (0:
--                           of none), its category's id, 1 for a crowd; arrays in C's memory
--   file.names[id]       the name of a category
--
-- The file is mapped and walked once; an annotation takes 25 bytes here, and its text is decoded
-- when it is asked for. Errors name the file.
-- Leaves out: masks (objects.lua), info and licenses, keypoints, panoptic segments.

local cjson = require "cjson"
local ffi = require "ffi"
local scan = require "segzero.data.jsonl.scan"

local M = {}

local methods = {}
local mt = { __index = methods }

local FIRST_ROOM = 1024
local NO_IMAGE = 0
local MOST_PIXELS = 65536       -- along a side

-- ---- reading ----
local NUMBERS = { id = true, image_id = true, category_id = true, iscrowd = true }

-- Where annotation k is stored, and the numbers that the index has of it.
local function grow(self)
  if self.n < self.room then return end
  local room = math.max(FIRST_ROOM, 2 * self.room)
  for name, kind in pairs { starts = "double", ids = "double", of_image = "int32_t",
    category = "double", crowd = "uint8_t" } do
    local new = ffi.new(kind .. "[?]", room + 1)
    if self[name] then ffi.copy(new, self[name], ffi.sizeof(kind) * (self.n + 1)) end
    self[name] = new
  end
  self.room = room
end

local function bad(self, what, ...) error(self.path .. ": " .. what:format(...), 0) end

local function read_annotation(self, start, image_ids)
  grow(self)
  local found = {}
  local stop = scan.members(self.json, start, function(key, at)
    if NUMBERS[key] then found[key] = scan.number(self.json, at) end
  end)
  -- Both ids must be there.
  local k = self.n + 1
  if not found.id or not found.image_id then
    bad(self, "annotation %d has no %s that is a whole number", k, found.id and "image_id" or "id")
  end
  -- What the index keeps.
  self.n = k
  self.starts[k] = start
  self.ids[k] = found.id
  self.category[k] = found.category_id or -1
  self.crowd[k] = found.iscrowd == 1 and 1 or 0
  image_ids[k] = found.image_id
  return stop
end

local function is_whole(v) return type(v) == "number" and v % 1 == 0 end

local function read_image(self, start)
  local k = #self.image_starts + 1
  local stop = scan.stop(self.json, start)
  local value = scan.value(self.json, start, stop)
  if type(value) ~= "table" then bad(self, "image %d is no object", k) end
  if not is_whole(value.id) then bad(self, "image %d has no id that is a whole number", k) end
  if self.by_image_id[value.id] then bad(self, "two images have the id %.17g", value.id) end
  self.image_starts[k] = start
  self.by_image_id[value.id] = k
  return stop
end

local function read_categories(self, start)
  local list = scan.value(self.json, start)
  if type(list) ~= "table" then bad(self, "categories is no list") end
  for i, one in ipairs(list) do
    if type(one) ~= "table" or not is_whole(one.id) or type(one.name) ~= "string" then
      bad(self, "category %d has no id or no name", i)
    end
    self.names[one.id] = one.name
  end
end

-- Sets the number of each annotation's image.
local function join(self, image_ids)
  for k = 1, self.n do self.of_image[k] = self.by_image_id[image_ids[k]] or NO_IMAGE end
end

function M.open(path)
  local json = scan.open(path)
  local self = setmetatable({ path = path, json = json, n = 0, room = 0, names = {},
    image_starts = {}, by_image_id = {} }, mt)
  -- How each of the three lists is read.
  local image_ids = {}
  local read = {
    images = function(at)
      return scan.elements(json, at, function(start) return read_image(self, start) end)
    end,
    annotations = function(at)
      return scan.elements(json, at, function(start)
        return read_annotation(self, start, image_ids)
      end)
    end,
    categories = function(at) read_categories(self, at) end,
  }
  -- One walk over the file.
  local seen = {}
  scan.members(json, scan.first(json), function(key, at)
    if not read[key] then return nil end
    seen[key] = true
    return read[key](at)
  end)
  for _, key in ipairs { "images", "annotations" } do
    if not seen[key] then bad(self, "there is no list '%s'", key) end
  end
  join(self, image_ids)
  return self
end

-- ---- asking ----
function methods:images() return #self.image_starts end

function methods:annotations() return self.n end

function methods:image_number(id) return self.by_image_id[id] end

-- The file's name of an image; LVIS has the address alone.
local function file_of(value)
  if type(value.file_name) == "string" then return value.file_name end
  return type(value.coco_url) == "string" and value.coco_url:match "([^/]+)$" or nil
end

-- A side of an image in pixels; nil if the file does not state it.
local function side_of(self, value, key)
  local side = value[key]
  if side == nil or side == cjson.null then return nil end
  if type(side) ~= "number" or side < 1 or side > MOST_PIXELS or side % 1 ~= 0 then
    bad(self, "the %s of image %.17g is no number of pixels", key, value.id)
  end
  return side
end

function methods:image(k)
  local value = scan.value(self.json, self.image_starts[k])
  local name = file_of(value)
  if not name or name:find "%c" then bad(self, "image %.17g has no file_name", value.id) end
  return { id = value.id, file_name = name, width = side_of(self, value, "width"),
    height = side_of(self, value, "height") }
end

function methods:annotation_number(id)
  if not self.by_id then
    self.by_id = {}
    for k = 1, self.n do self.by_id[self.ids[k]] = k end
  end
  return self.by_id[id]
end

function methods:annotation(k)
  local value = scan.value(self.json, self.starts[k])
  for name, one in pairs(value) do
    if one == cjson.null then value[name] = nil end
  end
  return value
end

function mt:__tostring()
  return ("%d annotations of %d images in %s"):format(self.n, self:images(), self.path)
end

return M
