-- gallery.lua - the worst and the best rows of an evaluation, as sheets of images.
--
--   local best, worst = gallery.new(1), gallery.new(-1)
--   gallery.add({ best, worst }, { record =, mask =, shown =, value = })
--   gallery.write(best, "runs/evaluate/best.png", { name = "best", set =, masks =, several = })
--
-- An entry's record is that of train/mask_evaluation.lua; value is what rows are ordered by; shown
-- is whether there is anything to see. Rows with something to see come first: a sheet of unreadable
-- answers shows nothing that results.jsonl does not say better. A mask belongs to the galleries,
-- which free it when none of them keeps the entry.
-- Leaves out: layout (tools/draw.lua).

local cjson = require "cjson"
local draw = require "segzero.tools.draw"
local tensor = require "segzero.core.tensor"
local truth = require "segzero.data.truth"

local M = {}

local null = cjson.null

local TILES = 12
local COLUMNS = 4
local OUTLINE = 280           -- an image of this width has an outline of one pixel

-- sign 1: the largest values first; -1: the smallest.
function M.new(sign)
  local function before(a, b)
    if a.shown ~= b.shown then return a.shown end
    if a.value ~= b.value then return sign * a.value > sign * b.value end
    return a.record.index < b.record.index
  end
  return { list = {}, before = before }
end

local function release(entry)
  entry.held = entry.held - 1
  if entry.held == 0 and entry.mask then entry.mask:free() end
end

function M.add(galleries, entry)
  entry.held = #galleries
  for _, gallery in ipairs(galleries) do
    local list = gallery.list
    list[#list + 1] = entry
    table.sort(list, gallery.before)
    if #list > TILES then release(table.remove(list)) end
  end
end

-- Colours the pixels of a mask that have a pixel outside it, or the image's border, within `width`
-- steps up, down, left or right.
local function outline(img, mask, colour, width)
  local p = img:pixels()
  local m = tensor.data(mask)
  local w = img.width
  local h = img.height
  local function inside(x, y) return x >= 0 and y >= 0 and x < w and y < h and m[y * w + x] ~= 0 end
  local function is_deep(x, y)
    return inside(x - width, y) and inside(x + width, y) and inside(x, y - width) and inside(x,
      y + width)
  end
  for y = 0, h - 1 do
    for x = 0, w - 1 do
      if inside(x, y) and not is_deep(x, y) then
        local pixel = p + 3 * (y * w + x)
        for c = 0, 2 do pixel[c] = colour[c + 1] end
      end
    end
  end
end

local function value_of(field, missing)
  if field == null then return missing end
  return field
end

-- The true mask of a row, or nil. The caller frees it.
local function true_mask_of(row)
  if not row.mask then return nil end
  local ok, mask = pcall(row.mask)
  if ok then return mask end
  return nil
end

local function show_masks(tile, entry, true_mask)
  local record = entry.record
  if entry.mask then draw.mask(tile.image, entry.mask) end
  if true_mask then
    local width = math.max(1, math.floor(tile.image.width / OUTLINE + 0.5))
    outline(tile.image, true_mask, draw.GREEN, width)
  end
  return ("IoU %.3f, score %.2f"):format(record.iou, value_of(record.score, 0 / 0))
end

local function show_boxes(tile, entry, row, true_mask)
  local ok, objects = pcall(truth.objects, row, true_mask)
  if ok and objects[1] then tile.truth = objects[1].bbox end
  return ("box IoU %.3f"):format(value_of(entry.record.box_iou, 0))
end

-- nil for a row that cannot be read any more. The caller frees tile.image.
local function tile_of(entry, options)
  local ok, row = pcall(options.set.row, options.set, entry.record.index)
  if not ok then return nil end
  local record = entry.record
  local tile = { image = row.image, label = row.problem }
  local true_mask = true_mask_of(row)
  local note
  if options.masks then
    note = show_masks(tile, entry, true_mask)
  else
    note = show_boxes(tile, entry, row, true_mask)
  end
  if true_mask then true_mask:free() end
  tile.note = value_of(record.failure, note)
  tile.bbox = value_of(record.bbox)
  if tile.bbox and options.several then tile.bbox = tile.bbox[1] end
  tile.points = value_of(record.points)
  return tile
end

-- options: name (the title says it), set (the data), masks (whether masks were compared), several
-- (lists of boxes). Nothing is written when there is no row to show.
function M.write(gallery, path, options)
  local tiles = {}
  for _, entry in ipairs(gallery.list) do tiles[#tiles + 1] = tile_of(entry, options) end
  if #tiles == 0 then return end
  local title = ("%s of %s"):format(options.name, options.set.name)
  local sheet = draw.sheet(tiles, COLUMNS, { title = title, masks = options.masks })
  sheet:save(path)
  sheet:free()
  for _, tile in ipairs(tiles) do tile.image:free() end
end

return M
