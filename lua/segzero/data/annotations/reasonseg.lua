-- reasonseg.lua - a folder of ReasonSeg as LISA has it: an image and a JSON file of polygons each.
--
--   val/12345.jpg, val/12345.json
--   {"text": ["question", ...], "is_sentence": true, "shapes": [{"label": "target" | "ignore" |
--    "flag", "points": [[x, y], ...]}, ...]}
--
--   local set = reasonseg.open { folder = path, split = name, image_dir =, purpose = "train" }
--
-- An entry is one image. Its object is everything that is target, and `ignore` what is neither
-- right nor wrong; both are as LISA's get_mask_from_json draws them: OpenCV's fillPoly, the larger
-- polygons first, so that a smaller one is on top. "flag" is left out. For the purpose "train" an
-- entry has all its texts, else the first alone, as in LISA's and Seg-Zero's evaluation. A file
-- that is not UTF-8 is read as cp1252, as they do.
-- Leaves out: the answers of the folder explanatory.

local bit = require "bit"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local ffi = require "ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local fill = require "segzero.formats.polygon_fill"
local image = require "segzero.formats.image"
local utf8 = require "segzero.formats.utf8"

local M = {}

local TARGET = 1
local IGNORE = 255
local IMAGES = { "jpg", "jpeg", "png", "JPG", "JPEG", "PNG", "webp" }

local methods = {}
local mt = { __index = methods }

-- ---- the JSON file ----
-- cp1252 from 0x80 to 0x9f; the rest is Latin-1. 0: no character.
local CP1252 = {
  0x20ac, 0, 0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021, 0x02c6, 0x2030, 0x0160, 0x2039, 0x0152,
  0, 0x017d, 0, 0, 0x2018, 0x2019, 0x201c, 0x201d, 0x2022, 0x2013, 0x2014, 0x02dc, 0x2122, 0x0161,
  0x203a, 0x0153, 0, 0x017e, 0x0178,
}

local function from_cp1252(text)
  return (text:gsub("[\128-\255]", function(c)
    local code = c:byte()
    if code < 0xa0 then code = CP1252[code - 0x7f] end
    if code < 0x800 then return string.char(0xc0 + bit.rshift(code, 6), 0x80 + code % 64) end
    return string.char(0xe0 + bit.rshift(code, 12), 0x80 + bit.rshift(code, 6) % 64,
      0x80 + code % 64)
  end))
end

local function fail(path, what, ...) error(path .. ": " .. what:format(...), 0) end

local function check_shapes(path, shapes)
  if type(shapes) ~= "table" then fail(path, "there is no list 'shapes'") end
  for i, shape in ipairs(shapes) do
    if type(shape) ~= "table" or type(shape.label) ~= "string" then
      fail(path, "shape %d has no label", i)
    end
    if type(shape.points) ~= "table" or #shape.points == 0 then
      fail(path, "shape %d has no points", i)
    end
    for j, point in ipairs(shape.points) do
      local ok = type(point) == "table" and #point == 2 and type(point[1]) == "number"
        and type(point[2]) == "number"
      if not ok then fail(path, "point %d of shape %d is no [x, y]", j, i) end
    end
  end
end

local function read(path)
  files.check_regular(path)
  local text, why = files.read(path)
  if not text then error(why, 0) end
  if utf8.fault(text) then text = from_cp1252(text) end
  text = text:gsub("^\239\187\191", "")
  local ok, value = pcall(cjson.decode, text)
  if not ok then fail(path, "not valid JSON: %s", tostring(value)) end
  if type(value) ~= "table" then fail(path, "not a JSON object") end
  if type(value.text) == "string" then value.text = { value.text } end
  if type(value.text) ~= "table" or #value.text == 0 then fail(path, "there is no text") end
  for i, one in ipairs(value.text) do
    if type(one) ~= "string" then fail(path, "text %d is a %s", i, type(one)) end
  end
  check_shapes(path, value.shapes)
  return value
end

-- ---- the masks ----
-- Pixels that a shape covers.
local function area_of(shape, width, height)
  local canvas = ffi.new("uint8_t[?]", width * height)
  fill.draw(shape.points, width, height, canvas, 1)
  local sum = 0
  for i = 0, width * height - 1 do sum = sum + canvas[i] end
  return sum
end

-- The shapes in the order of drawing: the larger first, of equal ones the later first.
local function drawing_order(shapes, width, height)
  local list = {}
  for i, shape in ipairs(shapes) do
    if shape.label:lower() ~= "flag" then
      list[#list + 1] = { shape = shape, number = i, area = area_of(shape, width, height) }
    end
  end
  table.sort(list, function(a, b)
    if a.area ~= b.area then return a.area > b.area end
    return a.number > b.number
  end)
  return list
end

-- Draws all shapes and keeps the pixels whose value is `wanted`.
local function drawer(shapes, wanted)
  return function(out, width, height)
    for _, one in ipairs(drawing_order(shapes, width, height)) do
      local value = TARGET
      if one.shape.label:lower():find("ignore", 1, true) then value = IGNORE end
      fill.draw(one.shape.points, width, height, out, value)
    end
    for i = 0, width * height - 1 do
      if out[i] == wanted then out[i] = 1 else out[i] = 0 end
    end
  end
end

local function has_ignore(shapes)
  for _, shape in ipairs(shapes) do
    local label = shape.label:lower()
    if label ~= "flag" and label:find("ignore", 1, true) then return true end
  end
  return false
end

-- The box around the target polygons, as far as it is in the image; nil without one.
local function box_of(shapes, width, height)
  -- All corners of the targets.
  local box
  for _, shape in ipairs(shapes) do
    local label = shape.label:lower()
    if label ~= "flag" and not label:find("ignore", 1, true) then
      for _, point in ipairs(shape.points) do
        box = box or { point[1], point[2], point[1], point[2] }
        box[1] = math.min(box[1], point[1])
        box[2] = math.min(box[2], point[2])
        box[3] = math.max(box[3], point[1])
        box[4] = math.max(box[4], point[2])
      end
    end
  end
  -- Polygons may leave the image.
  if not box or not width then return box end
  for i = 1, 4 do
    local side = i % 2 == 1 and width or height
    box[i] = math.max(0, math.min(side, box[i]))
  end
  return box
end

-- ---- the set ----
function methods:count() return #self.stems end

function methods:where(i) return ("%s/%s.json"):format(self.path, self.stems[i]) end

-- How many texts entry i has; 1 if its file cannot be read, so that meta(i) says why.
function methods:texts(i)
  if self.purpose ~= "train" then return 1 end
  if not self.counts[i] then
    local ok, value = pcall(read, self:where(i))
    self.counts[i] = ok and #value.text or 1
  end
  return self.counts[i]
end

-- The image of a stem, whether it exists or not.
local function image_of(self, stem)
  local base = self.image_folder .. "/" .. stem
  for _, ending in ipairs(IMAGES) do
    if files.exists(base .. "." .. ending) then return base .. "." .. ending end
  end
  return base .. ".jpg"
end

-- The image's size; nil if it cannot be read.
local function size_of(path)
  local ok, width, height = pcall(image.size, path)
  if ok then return width, height end
  if core.is_interrupt(width) then error(width, 0) end
end

function methods:meta(i)
  local where = self:where(i)
  local stem = self.stems[i]
  local value = read(where)
  local path = image_of(self, stem)
  local width, height = size_of(path)

  -- The target, what is ignored, the questions.
  local texts = value.text
  if self.purpose ~= "train" then texts = { texts[1] } end
  local object = { id = stem, box = box_of(value.shapes, width, height), crowd = false,
    mask = { draw = drawer(value.shapes, TARGET) } }
  local ignore
  if has_ignore(value.shapes) then ignore = { draw = drawer(value.shapes, IGNORE) } end
  local is_sentence = value.is_sentence
  if type(is_sentence) ~= "boolean" then is_sentence = nil end
  return {
    id = stem, where = where, image = path, width = width, height = height, texts = texts,
    raw = texts,
    objects = object.box and { object } or {}, ignore = ignore, image_id = stem, ann_id = stem,
    is_sentence = is_sentence, split = self.split,
  }
end

-- The names of the JSON files of a folder without their ending, in order.
function M.stems(folder)
  local list = {}
  for _, name in ipairs(folders.list(folder) or {}) do
    local stem = name:match "^(.+)%.json$"
    if stem then list[#list + 1] = stem end
  end
  return list
end

function M.open(options)
  local stems = M.stems(options.folder)
  if #stems == 0 then error(options.folder .. ": there is no JSON file", 0) end
  local image_folder = options.folder
  if options.image_dir and options.image_dir ~= "" then image_folder = options.image_dir end
  local self = setmetatable({ path = options.folder, stems = stems, split = options.split,
    purpose = options.purpose, image_folder = image_folder, several = false, files = {},
    ignore_masks = true, counts = {} }, mt)
  for i in ipairs(stems) do self.files[i] = self:where(i) end
  return self
end

return M
