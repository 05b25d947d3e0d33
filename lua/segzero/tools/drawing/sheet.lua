-- sheet.lua - sheets of cards: an image with its marks, and below it question, answer, figures and
-- why a part of the reward is 0.
--
--   sheet.sheet(tiles, columns, { title =, subtitle =, side =, masks = }) -> image
--   sheet.predictions(path, set, records, { title =, subtitle =, reward =, masks =, ... })
--   sheet.changes(path, set, before, after, { title =, subtitle =, ... })     pairs of cards
--
-- A tile: {image = required, mask =, true_mask = u8 [h, w], bbox =, points =, truth = box or
--   truths = {box, ...}, truth_points =, objects = {{bbox =, point =}, ...},  in the image's pixels
--   head = "a word above",
--   label = "the question", text = "<think>...", note = "a grey line", parts = {iou = 1, ...},
--   zeros = {iou = "why it is 0"}}
-- tools/draw.lua has both functions too. Leaves out: choosing rows.

local answer = require "segzero.formats.answer"
local boxes = require "segzero.data.boxes"
local coordinates = require "segzero.data.coordinates"
local figure = require "segzero.tools.drawing.figure"
local image = require "segzero.formats.image"
local lettering = require "segzero.tools.drawing.lettering"
local masks = require "segzero.tools.drawing.masks"
local shapes = require "segzero.tools.drawing.shapes"
local truth_of = require "segzero.data.truth"

local M = {}

local floor = math.floor
local max = math.max
local min = math.min

-- Pixels between cards, inside a card; heights of lines.
local GAP = 16
local PAD = 12
local TITLE = 26
local TEXT = 17
local SMALL = 15
local CHIP_GAP = 5

local SHADOW = { 222, 225, 230 }
local GOOD = { 218, 242, 226 }  -- behind a part that is above 0
local BAD = { 252, 222, 224 }   -- and of one that is 0
local BAD_INK = { 168, 20, 40 }

-- ---- the image of a tile ----
-- Masks belong to the image's own pixels, so they are drawn before it is made smaller; their lines
-- are thicker then.
local function with_masks(tile, side)
  if not tile.mask and not tile.true_mask then return tile.image end
  local copy = shapes.enlarge(tile.image, 1)
  local line = max(1, floor(2 * copy.width / side + 0.5))
  if tile.mask then masks.draw(copy, tile.mask, { line = line }) end
  if tile.true_mask then masks.outline(copy, tile.true_mask, shapes.GREEN, line) end
  return copy
end

local function shrunk(tile, side)
  local marked = with_masks(tile, side)
  local f = side / marked.width
  local img = marked:resize(side, max(1, floor(marked.height * f + 0.5)), "bicubic")
  if marked ~= tile.image then marked:free() end
  return img, function(b) return { b[1] * f, b[2] * f, b[3] * f, b[4] * f } end,
    function(p) return { p[1] * f, p[2] * f } end
end

local function enlarged(tile, side)
  local k = max(1, floor(side / tile.image.width + 0.5))
  local img = shapes.enlarge_smooth(tile.image, k)
  if tile.mask then masks.draw(img, tile.mask) end
  if tile.true_mask then masks.outline(img, tile.true_mask, shapes.GREEN) end
  return img, function(b) return shapes.enlarge_box(b, k) end,
    function(p) return shapes.enlarge_point(p, k) end
end

-- The image about `side` pixels wide with its marks: small images are enlarged by a whole factor,
-- large ones resized. The truth's line is thicker, so that it shows under a correct answer.
local function tile_image(tile, side)
  local make = enlarged
  if tile.image.width > 1.5 * side then make = shrunk end
  local img, to_box, to_point = make(tile, side)
  local t = shapes.thickness(img)
  for _, box in ipairs(tile.truths or { tile.truth }) do
    shapes.box(img, to_box(box), shapes.GREEN, t + 1)
  end
  if tile.bbox then shapes.box(img, to_box(tile.bbox), shapes.RED, t) end
  for _, object in ipairs(tile.objects or {}) do
    if object.bbox then shapes.box(img, to_box(object.bbox), shapes.RED, t) end
    if object.point then shapes.point(img, to_point(object.point), shapes.YELLOW) end
  end
  for _, p in ipairs(tile.truth_points or {}) do shapes.point(img, to_point(p), shapes.GREEN) end
  for _, p in ipairs(tile.points or {}) do shapes.point(img, to_point(p), shapes.YELLOW) end
  return img
end

-- ---- the words of a card: a list of {draw = f(img, x, y), height =} ----
local function add_lines(items, text, width, size, most, colour, bold)
  for _, line in ipairs(lettering.wrap(text, width, size, most, bold)) do
    items[#items + 1] = { height = floor(size * 1.2), draw = function(img, x, y)
      lettering.text(img, x, y, line, colour, size, bold)
    end }
  end
end

local function add_gap(items, height) items[#items + 1] = { height = height } end

local function sorted_names(parts)
  local names = {}
  for name in pairs(parts) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- The parts of a reward as small coloured fields, in rows of `width` pixels.
local function chip_rows(parts, width)
  local rows = { {} }
  local x = 0
  for _, name in ipairs(sorted_names(parts)) do
    local value = tonumber(parts[name]) or 0
    local text = ("%s %.3g"):format(name:gsub("_", " "), value)
    local w = floor(lettering.width(text, SMALL)) + 12
    if x > 0 and x + w > width then
      rows[#rows + 1] = {}
      x = 0
    end
    table.insert(rows[#rows], { text = text, x = x, width = w, good = value > 0 })
    x = x + w + CHIP_GAP
  end
  return rows
end

local function draw_chips(img, x, y, row)
  for _, chip in ipairs(row) do
    local ground = BAD
    local ink = BAD_INK
    if chip.good then
      ground = GOOD
      ink = shapes.INK
    end
    shapes.fill(img, x + chip.x, y, chip.width, SMALL + 4, ground)
    lettering.text(img, x + chip.x + 6, y + 2, chip.text, ink, SMALL)
  end
end

local function add_chips(items, parts, width)
  for _, row in ipairs(chip_rows(parts, width)) do
    items[#items + 1] = { height = SMALL + 4 + CHIP_GAP, draw = function(img, x, y)
      draw_chips(img, x, y, row)
    end }
  end
end

-- "iou, points: there is no JSON object in the answer": each reason once.
local function reasons(zeros)
  local names_of = {}
  local order = {}
  for _, name in ipairs(sorted_names(zeros)) do
    local reason = zeros[name]
    if not names_of[reason] then
      names_of[reason] = {}
      order[#order + 1] = reason
    end
    table.insert(names_of[reason], (name:gsub("_", " ")))
  end
  for i, reason in ipairs(order) do
    order[i] = table.concat(names_of[reason], ", ") .. ": " .. reason
  end
  return order
end

local function words_of(tile, width)
  local items = {}
  local function text(s, size, most, colour, bold)
    if s and s:find "%S" then add_lines(items, s, width, size, most, colour, bold) end
  end
  text(tile.head, SMALL, 1, shapes.GREY, true)
  text(tile.label, TEXT, 2, shapes.INK, true)
  if tile.text then
    local thinking, found = figure.parts(tile.text)
    add_gap(items, 3)
    text(thinking, SMALL, 3, shapes.GREY)
    text(found, SMALL, 3, shapes.INK)
  end
  if tile.note then
    add_gap(items, 3)
    text(tile.note, TEXT, 1, shapes.INK)
  end
  if tile.parts and next(tile.parts) then
    add_gap(items, 3)
    add_chips(items, tile.parts, width)
  end
  for _, reason in ipairs(reasons(tile.zeros or {})) do text(reason, SMALL, 3, BAD_INK) end
  return items
end

local function height_of(items)
  local height = 0
  for _, item in ipairs(items) do height = height + item.height end
  return height
end

-- ---- the sheet ----
local function cards_of(tiles, side)
  local cards = {}
  local width = side
  for i, tile in ipairs(tiles) do
    if not image.is_image(tile.image) then
      error(("draw.sheet: tile %d has no image"):format(i), 4)
    end
    cards[i] = { image = tile_image(tile, side) }
    width = max(width, cards[i].image.width)
  end
  for i, tile in ipairs(tiles) do
    cards[i].words = words_of(tile, width)
    cards[i].height = cards[i].image.height + 2 * PAD
    if #cards[i].words > 0 then
      cards[i].height = cards[i].height + 6 + height_of(cards[i].words)
    end
  end
  return cards, width
end

-- The legend: a list of {colour, name, is_filled}.
local function legend_of(tiles, with_mask)
  local has = {}
  for _, tile in ipairs(tiles) do
    has.truth = has.truth or tile.truth or tile.true_mask or tile.truth_points
      or tile.truths and tile.truths[1]
    has.mask = has.mask or tile.mask
  end
  local entries = {}
  if has.truth then entries[1] = { shapes.GREEN, "truth" } end
  entries[#entries + 1] = { shapes.RED, "answer" }
  if has.mask or with_mask then entries[#entries + 1] = { shapes.CYAN, "mask", true } end
  return entries
end

-- Draws it with its right end at x; returns its left end.
local function draw_legend(img, right, y, entries)
  local width = 0
  for _, entry in ipairs(entries) do width = width + 40 + lettering.width(entry[2], TEXT) end
  local x = right - floor(width) + 18
  local left = x
  for _, entry in ipairs(entries) do
    shapes.fill(img, x, y + 2, 14, 14, entry[1])
    local inside = shapes.PAPER
    if entry[3] then inside = { 190, 238, 245 } end
    shapes.fill(img, x + 3, y + 5, 8, 8, inside)
    lettering.text(img, x + 20, y, entry[2], shapes.GREY, TEXT)
    x = x + 40 + floor(lettering.width(entry[2], TEXT))
  end
  return left
end

-- Title and legend; returns the y below them. With img = nil it only measures.
local function head(img, width, opts, entries)
  local room = width - 2 * GAP
  local left = width - GAP
  if img then left = draw_legend(img, width - GAP, GAP + 4, entries) end
  local y = GAP
  local function lines(text, size, most, colour, bold, limit)
    for _, line in ipairs(lettering.wrap(text or "", limit, size, most, bold)) do
      if img then lettering.text(img, GAP, y, line, colour, size, bold) end
      y = y + floor(size * 1.25)
    end
  end
  local words = 0
  for _, entry in ipairs(entries) do words = words + 40 + lettering.width(entry[2], TEXT) end
  lines(opts.title, TITLE, 2, shapes.INK, true, max(120, min(left - 2 * GAP, room - words)))
  y = max(y, GAP + TITLE)
  lines(opts.subtitle, TEXT, 2, shapes.GREY, false, room)
  return y + GAP
end

local function draw_card(out, card, x, y, width, height)
  shapes.fill(out, x + 1, y + 2, width + 1, height + 1, SHADOW)
  shapes.fill(out, x, y, width, height, shapes.WHITE)
  local inner = width - 2 * PAD
  shapes.paste(out, card.image, x + PAD + floor((inner - card.image.width) / 2), y + PAD)
  local place = y + PAD + card.image.height + 6
  for _, item in ipairs(card.words) do
    if item.draw then item.draw(out, x + PAD, place) end
    place = place + item.height
  end
  card.image:free()
end

local function sheet(tiles, columns, opts)
  if #tiles == 0 then error("draw.sheet: there are no tiles", 3) end
  columns = min(columns or 4, #tiles)
  local cards, width = cards_of(tiles, opts.side or 280)
  local outer = width + 2 * PAD
  local entries = legend_of(tiles, opts.masks)

  -- Heights: the head, then each row of cards.
  local total_width = columns * (outer + GAP) + GAP
  local total = head(nil, total_width, opts, entries)
  local heights = {}
  for i, card in ipairs(cards) do
    local row = floor((i - 1) / columns)
    heights[row] = max(heights[row] or 0, card.height)
  end
  for row = 0, #heights do total = total + heights[row] + GAP end

  -- Drawing.
  local out = shapes.canvas(total_width, total, shapes.PAPER)
  local y = head(out, total_width, opts, entries)
  for i, card in ipairs(cards) do
    local row = floor((i - 1) / columns)
    local column = (i - 1) % columns
    draw_card(out, card, GAP + column * (outer + GAP), y, outer, heights[row])
    if column == columns - 1 then y = y + heights[row] + GAP end
  end
  return out
end

-- Draws the tiles in rows of `columns` (default 4). opts: side (about the width of an image, 280),
-- title, subtitle, masks (adds masks to the legend).
function M.sheet(tiles, columns, opts) return sheet(tiles, columns, opts or {}) end

-- ---- a model's answers to rows ----
-- The true boxes of a record.
local function true_boxes(record)
  if not record.truth then return { (truth_of.read(record.solution)) } end
  local list = {}
  for _, object in ipairs(record.truth) do list[#list + 1] = object.bbox end
  return list
end

-- Why parts of the reward are 0; nothing for a reward of a user's.
local function zeros_of(record, row, reward)
  if not record.parts or not reward then return nil end
  local why = require "segzero.report.why"
  local known, frame = pcall(coordinates.answer_frame, row)
  local ok, zeros = pcall(why.zeros, { reward = reward, text = record.text,
    solution = record.solution, parts = record.parts, frame = known and frame or nil })
  return ok and zeros or nil
end

local function note_of(record, found, true_one)
  local words = { ("reward %.3g"):format(record.reward) }
  if record.iou then words[2] = ("mask IoU %.2f"):format(record.iou) end
  if found and found.bbox and true_one then
    words[#words + 1] = ("box IoU %.2f"):format(boxes.iou(found.bbox, true_one))
  end
  if not found then words[#words + 1] = "no answer" end
  return table.concat(words, ", ")
end

local function tile_of(record, row, opts)
  local found = record.found or answer.parse(record.text)
  local truths = true_boxes(record)
  local tile = { image = row.image, mask = record.mask, label = record.problem,
    truths = truths, text = record.text, parts = record.parts,
    zeros = zeros_of(record, row, opts.reward), note = note_of(record, found, truths[1]) }
  if found and found.bbox then
    tile.bbox = found.bbox
    tile.points = found.points
  elseif found then
    tile.objects = found
  end
  return tile
end

local function save(path, tiles, opts, title)
  local out = M.sheet(tiles, opts.columns, { side = opts.side, title = opts.title or title,
    subtitle = opts.subtitle, masks = opts.masks })
  out:save(path)
  out:free()
  for _, tile in ipairs(tiles) do tile.image:free() end
end

-- Writes a sheet of the first rows of a data set with the answers of a model. records: as returned
-- by trainer:evaluate, {{index =, problem =, text =, reward =, parts =, iou =, mask =, found =,
-- truth =}, ...}; without the last two, text and solution are in the image's pixels. opts: count
-- (12), columns (4), side, title (default: the name of the set), subtitle, masks (as in sheet), and
-- reward: worker.reward.compute_score, for the reasons of a 0.
function M.predictions(path, set, records, opts)
  opts = opts or {}
  local tiles = {}
  for i = 1, min(opts.count or 12, #records) do
    tiles[i] = tile_of(records[i], set:row(records[i].index), opts)
  end
  save(path, tiles, opts, set.name)
end

-- Writes the answers to the first rows before and after training next to each other, two rows of
-- the set in a row of cards: what was asked, the marks, and the IoU. opts: as in predictions; count
-- (6).
function M.changes(path, set, before, after, opts)
  opts = opts or {}
  local tiles = {}
  local function add(record, when)
    local tile = tile_of(record, set:row(record.index), {})
    tile.head = when
    tile.text = nil
    tile.parts = nil
    tiles[#tiles + 1] = tile
  end
  for i = 1, min(opts.count or 6, #before, #after) do
    add(before[i], "before")
    add(after[i], "after")
  end
  save(path, tiles, opts, set.name)
end

return M
