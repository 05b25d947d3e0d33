-- gallery.lua - the best or the worst rows of an evaluation as one image: worst.png and best.png.
--
--   local g = gallery.new(-1)                 1: best first, -1: worst first
--   g:add{record =, mask = u8 [h, w] | nil, objects = true ones | nil, value = number,
--         shown = bool, held = n}
--   g:write(path, title, set, { masks = bool, several = bool, subtitle = text })
--
-- The first 12 rows are kept with their masks. An entry may be in several galleries: `held` counts
-- them, and the last one that drops the entry frees its mask. Entries with shown = false come last:
-- a sheet of unreadable answers would show nothing that results.jsonl does not say better. Leaves
-- out: choosing the rows.

local M = {}

local methods = {}
local mt = { __index = methods }

local value_or = require("segzero.evaluation.fields").value_or
local TILES = 12
local COLUMNS = 4

function M.new(sign)
  local function before(a, b)
    if a.shown ~= b.shown then return a.shown end
    if a.value ~= b.value then return sign * a.value > sign * b.value end
    return a.record.index < b.record.index
  end
  return setmetatable({ entries = {}, before = before }, mt)
end

local function drop(entry)
  entry.held = entry.held - 1
  if entry.held == 0 and entry.mask then entry.mask:free() end
end

function methods:add(entry)
  local entries = self.entries
  entries[#entries + 1] = entry
  table.sort(entries, self.before)
  if #entries > TILES then drop(table.remove(entries)) end
end

-- ---- drawing ----
local function true_mask_of(row)
  if not row.mask then return nil end
  local ok, mask = pcall(row.mask)
  return ok and mask or nil
end

-- What the card says: the mask's IoU, the box's, SAM2's own score; or why there is no answer.
local function note_of(record, masks)
  local failure = value_or(record.failure, nil)
  if failure then return failure end
  local words = {}
  if masks then words[1] = ("mask IoU %.3f"):format(record.iou) end
  local box_iou = value_or(record.box_iou, nil)
  if box_iou then words[#words + 1] = ("box IoU %.3f"):format(box_iou) end
  if masks then words[#words + 1] = ("score %.2f"):format(value_or(record.score, 0 / 0)) end
  return table.concat(words, ", ")
end

-- Several boxes with their points, as tools/draw.lua takes them.
local function objects_of(boxes, points)
  local objects = {}
  for i, box in ipairs(boxes) do objects[i] = { bbox = box, point = points and points[i] } end
  return objects
end

-- A tile of tools/draw.lua, or nil when the row cannot be read.
local function tile_of(entry, set, options)
  local ok, row = pcall(set.row, set, entry.record.index)
  if not ok then return nil end
  local record = entry.record
  local tile = { image = row.image, label = row.problem, text = value_or(record.text, nil),
    note = note_of(record, options.masks) }
  if options.masks then
    tile.mask = entry.mask
    tile.true_mask = true_mask_of(row)
  end
  -- Without masks to compare with, the true boxes.
  if not tile.true_mask then
    tile.truths = {}
    for i, object in ipairs(entry.objects or {}) do tile.truths[i] = object.bbox end
  end
  local boxes = value_or(record.bbox, nil)
  local points = value_or(record.points, nil)
  if boxes and options.several then
    tile.objects = objects_of(boxes, points)
  else
    tile.bbox = boxes
    tile.points = points
  end
  return tile
end

function methods:write(path, title, set, options)
  local tiles = {}
  for _, entry in ipairs(self.entries) do tiles[#tiles + 1] = tile_of(entry, set, options) end
  if #tiles == 0 then return end
  local draw_options = { title = title, subtitle = options.subtitle, masks = options.masks }
  local sheet = require("segzero.tools.draw").sheet(tiles, COLUMNS, draw_options)
  sheet:save(path)
  sheet:free()
  for _, tile in ipairs(tiles) do
    tile.image:free()
    if tile.true_mask then tile.true_mask:free() end
  end
end

return M
