-- gallery.lua - the best or the worst rows of an evaluation as one image: worst.png and best.png.
--
--   local g = gallery.new(-1)                 1: best first, -1: worst first
--   g:add{record =, mask = u8 [h, w] | nil, objects = true ones | nil, value = number,
--         shown = bool, held = n}
--   g:write(path, title, set, { masks = bool, several = bool })
--
-- The first 12 rows are kept with their masks. An entry may be in several galleries: `held` counts
-- them, and the last one that drops the entry frees its mask. Entries with shown = false come last:
-- a sheet of unreadable answers would show nothing that results.jsonl does not say better. Leaves
-- out: choosing the rows.

local tensor = require "segzero.core.tensor"

local M = {}

local methods = {}
local mt = { __index = methods }

local value_or = require("segzero.evaluation.fields").value_or
local TILES = 12
local COLUMNS = 4
local OUTLINE = 1 / 280         -- width of a true mask's outline, as a part of the image's width

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
-- Colours the pixels of the mask that are within `width` pixels, up, down, left or right, of a
-- pixel outside it.
local function outline(img, mask, colour, width)
  local pixels = img:pixels()
  local data = tensor.data(mask)
  local w = img.width
  local h = img.height

  local function inside(x, y)
    if x < 0 or y < 0 or x >= w or y >= h then return false end
    return data[y * w + x] ~= 0
  end

  local function is_interior(x, y)
    local across = inside(x - width, y) and inside(x + width, y)
    return across and inside(x, y - width) and inside(x, y + width)
  end

  for y = 0, h - 1 do
    for x = 0, w - 1 do
      if inside(x, y) and not is_interior(x, y) then
        local pixel = pixels + 3 * (y * w + x)
        pixel[0] = colour[1]
        pixel[1] = colour[2]
        pixel[2] = colour[3]
      end
    end
  end
end

-- The masks of a row: the answer's filled, the true one outlined. Returns the tile's note.
local function draw_masks(row, entry, true_mask)
  local draw = require "segzero.tools.draw"
  if entry.mask then draw.mask(row.image, entry.mask) end
  if true_mask then
    outline(row.image, true_mask, draw.GREEN,
      math.max(1, math.floor(row.image.width * OUTLINE + 0.5)))
  end
  return ("IoU %.3f, score %.2f"):format(entry.record.iou, value_or(entry.record.score, 0 / 0))
end

local function true_mask_of(row)
  if not row.mask then return nil end
  local ok, mask = pcall(row.mask)
  return ok and mask or nil
end

-- A tile of tools/draw.lua, or nil when the row cannot be read.
local function tile_of(entry, set, options)
  local ok, row = pcall(set.row, set, entry.record.index)
  if not ok then return nil end
  local record = entry.record
  local tile = { image = row.image, label = row.problem }
  local true_mask = true_mask_of(row)
  local note
  if options.masks then
    note = draw_masks(row, entry, true_mask)
  else
    local object = entry.objects and entry.objects[1]
    if object then tile.truth = object.bbox end
    note = ("box IoU %.3f"):format(value_or(record.box_iou, 0))
  end
  if true_mask then true_mask:free() end
  tile.note = value_or(record.failure, note)
  tile.bbox = value_or(record.bbox, nil)
  if tile.bbox and options.several then tile.bbox = tile.bbox[1] end
  tile.points = value_or(record.points, nil)
  return tile
end

function methods:write(path, title, set, options)
  local tiles = {}
  for _, entry in ipairs(self.entries) do tiles[#tiles + 1] = tile_of(entry, set, options) end
  if #tiles == 0 then return end
  local draw_options = { title = title, masks = options.masks }
  local sheet = require("segzero.tools.draw").sheet(tiles, COLUMNS, draw_options)
  sheet:save(path)
  sheet:free()
  for _, tile in ipairs(tiles) do tile.image:free() end
end

return M
