-- target.lua - what is true of an evaluated row: masks, objects, how many there are, its ids.
--
--   local t, why = target.of(row, { masks = true, ignore = "target", several = true })
--     t.mask       u8 [height, width]: the target's pixels; nil without masks
--     t.ignored    u8 [height, width]: pixels that count for nothing; nil if there are none
--     t.objects    {{bbox =, points = {...}}, ...} in the image's pixels; nil if nothing states any
--     t.count      how many objects there are; nil if only a mask states the target
--     t.category   the column cat_id, or nil
--     t.is_stated  whether the solution or the column bbox states the objects
--   target.release(t)                frees both masks
--   target.task(row)                 "counting" with a column count, "detection" with cat_id, else
--                                    "segmentation"
--   target.ids(row)                  image_id and ann_id as the set has them; else the row's id
--
-- ignore: what the pixels of row.ignore_mask are. "target": they belong to the target, as in the
-- sets that Seg-Zero put on the hub; "left_out": they are neither target nor background, as in
-- LISA's evaluation. Objects are those of the solution, else of the column bbox (four numbers, a
-- list of such, or either as JSON), else the box around the mask. A mask with nothing inside is a
-- row without a target, and so is an empty list in the column bbox with a null for the mask. why: a
-- mask that cannot be read, which leaves t.mask nil; or objects that cannot. Leaves out: answers.

local cjson = require "cjson"
local core = require "segzero.core.ffi"
local frame = require "segzero.data.frame"
local tensor = require "segzero.core.tensor"
local truth = require "segzero.data.truth"

local M = {}

-- ---- columns ----
local function column(row, name)
  local value = (row.columns or {})[name]
  if value == cjson.null then return nil end
  return value
end

function M.task(row)
  if column(row, "count") ~= nil then return "counting" end
  if column(row, "cat_id") ~= nil then return "detection" end
  return "segmentation"
end

function M.ids(row)
  local image_id = column(row, "image_id")
  local ann_id = column(row, "ann_id")
  return image_id or row.id, ann_id or row.id
end

local function is_box(v)
  if type(v) ~= "table" or #v ~= 4 then return false end
  for i = 1, 4 do
    if type(v[i]) ~= "number" then return false end
  end
  return true
end

-- The boxes of the column bbox, {} for an empty one; nil without the column.
local function stated_boxes(row)
  local value = column(row, "bbox")
  if type(value) == "string" then
    local ok, list = pcall(cjson.decode, value)
    if not ok then
      error(("the column bbox is %q, no list of numbers"):format(value:sub(1, 60)), 0)
    end
    value = list
  end
  if value == nil then return nil end
  if is_box(value) then return { value } end
  local boxes = {}
  for i, box in ipairs(type(value) == "table" and value or { value }) do
    if not is_box(box) then
      error(("box %d of the column bbox is no list of 4 numbers"):format(i), 0)
    end
    boxes[i] = box
  end
  return boxes
end

-- ---- objects ----
local function objects_of(row, mask)
  if truth.has_objects(row) then return truth.objects(row) end
  local boxes = stated_boxes(row)
  if not boxes then
    if mask then return truth.objects(row, mask), true end
    if column(row, "count") ~= nil then return nil end
    return truth.objects(row)
  end
  local objects = {}
  for i, box in ipairs(boxes) do objects[i] = { bbox = box, points = {} } end
  local own = frame.of(row.image)
  return frame.objects(objects, row.solution_frame or own, own)
end

local function is_empty(mask)
  local data = tensor.data(mask)
  for i = 0, mask:numel() - 1 do
    if data[i] ~= 0 then return false end
  end
  return true
end

-- Sets the objects and their number. One box around a mask says nothing about how many there are.
local function add_objects(t, row)
  local objects, is_around = objects_of(row, t.mask)
  if t.mask and not truth.has_objects(row) and is_empty(t.mask) then objects = {} end
  t.objects = objects
  t.count = tonumber(column(row, "count"))
  t.is_stated = objects ~= nil and not is_around
  if t.count or not objects then return end
  if not is_around or #objects == 0 then t.count = #objects end
end

-- ---- masks ----
local function unite(mask, other)
  local a = tensor.data(mask)
  local b = tensor.data(other)
  for i = 0, mask:numel() - 1 do
    if b[i] ~= 0 then a[i] = 1 end
  end
end

-- The true mask. A row whose column bbox is an empty list has no target, and may have no mask.
local function read_mask(row)
  local ok, mask = pcall(row.mask, true)
  if ok then return mask end
  if core.is_interrupt(mask) then error(mask, 0) end
  local boxes = stated_boxes(row)
  if not boxes or #boxes > 0 then error(mask, 0) end
  return tensor.zeros({ row.image.height, row.image.width }, { dtype = "u8" })
end

local function add_masks(t, row, options)
  t.mask = read_mask(row)
  if not row.ignore_mask then return end
  local ignored = row.ignore_mask(true)
  if options.ignore == "left_out" then
    t.ignored = ignored
    return
  end
  unite(t.mask, ignored)
  ignored:free()
end

function M.release(t)
  if t.mask then t.mask:free() end
  if t.ignored then t.ignored:free() end
  t.mask = nil
  t.ignored = nil
end

-- ---- one row ----
local function attempt(f, ...)
  local ok, why = pcall(f, ...)
  if ok then return nil end
  if core.is_interrupt(why) then error(why, 0) end
  return core.plain(why)
end

function M.of(row, options)
  local t = { category = column(row, "cat_id") }
  local mask_failure
  if options.masks then
    if row.mask then mask_failure = attempt(add_masks, t, row, options) end
    if not row.mask then mask_failure = "the row has no mask, but others have one" end
    if mask_failure then M.release(t) end
  end
  local failure = attempt(add_objects, t, row)
  if mask_failure then return t, mask_failure, "iou" end
  return t, failure, "image"
end

return M
