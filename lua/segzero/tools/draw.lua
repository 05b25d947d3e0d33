-- draw.lua - draws boxes, points and words on images (segzero.formats.image), and sheets of
-- labelled images.
--
--   local draw = require "segzero.tools.draw"
--   draw.box(img, {x0, y0, x1, y1}, draw.RED)        corners are inclusive, as in Seg-Zero; clipped
--   draw.point(img, {x, y}, draw.YELLOW)             a disc with a dark rim
--   draw.text(img, x, y, "red circle", draw.INK, 2)  top left corner; 2 x 2 pixels for each dot
--   draw.answer(img, {bbox =, points =})             red boxes, yellow points; several objects are
--                                                    {{bbox =, point =}, ...}
--   draw.mask(img, mask, draw.CYAN, 0.45)            overlays a u8 tensor [h, w] of img's size, or
--                                                    of a whole fraction of it
--   local fig, k = draw.figure(img, answer, {mask =, truth = box})
--                                                    the image | the image with its marks; k: the
--                                                    factor by which they are enlarged
--   local big = draw.enlarge(img, 4)                 4 x 4 pixels for each; draw.enlarge_box and
--                                                    draw.enlarge_point convert coordinates
--   local both = draw.side_by_side({ img, other }, 8)   on white, 8 pixels apart
--   local sheet = draw.sheet(tiles, columns)         a tile: {image =, truth = box, bbox = box,
--                                                    points =, truth_points =, label =, note =}
--   draw.predictions(path, data_set, records)        writes a sheet of rows with a model's answers
--
-- Colours are {r, g, b}, 0 to 255. Colour-blind readers can tell the colours below apart. The
-- default line thickness follows the size of the image (draw.thickness). Functions that make an
-- image return a new one, which the caller may free.
-- Leaves out: rotated text, characters outside ASCII, transparency except for masks and the soft
-- edge of discs.

local ffi = require "ffi"
local image = require "segzero.formats.image"
local font = require "segzero.tools.font"
local answer = require "segzero.formats.answer"
local tensor = require "segzero.core.tensor"
local truth_of = require "segzero.data.truth"

local M = {}

local floor = math.floor
local ceil = math.ceil
local max = math.max
local min = math.min

M.WHITE, M.INK, M.GREY, M.PAPER = { 255, 255, 255 }, { 28, 32, 40 }, { 110, 118, 130 },
  { 246, 247, 249 }
M.GREEN, M.RED, M.YELLOW, M.CYAN = { 0, 190, 90 }, { 230, 40, 60 }, { 255, 214, 10 },
  { 0, 205, 235 }

-- 2 pixels for a small image, 3 from 500 on a side, 4 from 700, and so on.
function M.thickness(img) return max(2, floor(min(img.width, img.height) / 200 + 0.5)) end

local function clamp(v, lo, hi) return max(lo, min(v, hi)) end

-- ---- filled shapes ----
-- Fills the pixels x .. x + w - 1, y .. y + h - 1 that are inside the image.
function M.fill(img, x, y, w, h, colour)
  local p = img:pixels()
  local width = img.width
  local x0 = max(floor(x), 0)
  local x1 = min(floor(x) + floor(w), width) - 1
  for row = max(floor(y), 0), min(floor(y) + floor(h), img.height) - 1 do
    for col = x0, x1 do
      local q = p + 3 * (row * width + col)
      q[0] = colour[1]
      q[1] = colour[2]
      q[2] = colour[3]
    end
  end
end

-- A disc around the centre of pixel (x, y). Its edge is one pixel soft.
function M.disc(img, x, y, radius, colour)
  local p = img:pixels()
  local width = img.width
  for row = max(floor(y - radius - 1), 0), min(floor(y + radius + 1), img.height - 1) do
    for col = max(floor(x - radius - 1), 0), min(floor(x + radius + 1), width - 1) do
      local cover = clamp(radius + 0.5 - math.sqrt((col - x) ^ 2 + (row - y) ^ 2), 0, 1)
      if cover > 0 then
        local q = p + 3 * (row * width + col)
        for c = 0, 2 do q[c] = floor(q[c] + (colour[c + 1] - q[c]) * cover + 0.5) end
      end
    end
  end
end

local function four(box, level)
  for i = 1, 4 do
    local v = type(box) == "table" and box[i]
    if type(v) ~= "number" or v ~= v or math.abs(v) == math.huge then
      error("draw: a box is four numbers {x0, y0, x1, y1}", level + 1)
    end
  end
  return box[1], box[2], box[3], box[4]
end

local function frame(img, x0, y0, x1, y1, t, colour)
  local w = x1 - x0 + 1
  local h = y1 - y0 + 1
  M.fill(img, x0, y0, w, t, colour)
  M.fill(img, x0, y1 - t + 1, w, t, colour)
  M.fill(img, x0, y0, t, h, colour)
  M.fill(img, x1 - t + 1, y0, t, h, colour)
end

-- Draws a line centred on the box's outermost pixels. A line thicker than 1 has a white hairline on
-- each side, which sets it off from any background. Swapped corners mean the same box.
function M.box(img, box, colour, thickness)
  local x0, y0, x1, y1 = four(box, 2)
  if x0 > x1 then x0, x1 = x1, x0 end
  if y0 > y1 then y0, y1 = y1, y0 end
  local t = thickness or M.thickness(img)
  local out = floor((t - 1) / 2)
  -- Corners far outside are moved closer, so that lengths stay small numbers.
  x0, x1 = clamp(floor(x0), -9999, img.width + 9999) - out,
    clamp(floor(x1), -9999, img.width + 9999) + out
  y0, y1 = clamp(floor(y0), -9999, img.height + 9999) - out,
    clamp(floor(y1), -9999, img.height + 9999) + out
  if t > 1 then frame(img, x0 - 1, y0 - 1, x1 + 1, y1 + 1, t + 2, M.WHITE) end
  frame(img, x0, y0, x1, y1, t, colour)
end

function M.point(img, point, colour, radius)
  local x = point[1]
  local y = point[2]
  if type(x) ~= "number" or type(y) ~= "number" or x ~= x or y ~= y then
    error("draw: a point is two numbers {x, y}", 2)
  end
  local r = radius or 1.6 * M.thickness(img)
  if x < -r or y < -r or x > img.width + r or y > img.height + r then return end
  M.disc(img, x, y, r + max(1, r / 3), M.INK)
  M.disc(img, x, y, r, colour)
end

-- The box (red) and the points (yellow) of an answer, or of a list of objects.
function M.answer(img, a)
  for _, object in ipairs(a) do
    if object.bbox then M.box(img, object.bbox, M.RED) end
  end
  for _, object in ipairs(a) do
    if object.point then M.point(img, object.point, M.YELLOW) end
  end
  if a.bbox then M.box(img, a.bbox, M.RED) end
  for _, p in ipairs(a.points or {}) do M.point(img, p, M.YELLOW) end
end

local EDGE_SHADE = 0.6          -- brightness of a mask's edge, relative to its colour

-- Blends the colour into the pixels of img where the mask is not 0, in place, with weight alpha. A
-- darker line follows the inside of the mask's edge. If the image is k times as large as the mask,
-- each pixel of the mask covers k x k pixels.
function M.mask(img, mask, colour, alpha)
  if not tensor.is_tensor(mask) or mask:dtype() ~= "u8" or #mask:shape() ~= 2 then
    error("draw.mask: a u8 tensor [h, w] is expected", 2)
  end
  local h, w = unpack(mask:shape())
  local k = img.width / w
  if k < 1 or k % 1 ~= 0 or img.height ~= h * k then
    error(("draw.mask: a mask of %d x %d does not fit an image of %d x %d"):format(w, h, img.width,
      img.height), 2)
  end
  colour = colour or M.CYAN
  alpha = alpha or 0.45
  local p = img:pixels()
  local m = tensor.data(mask)
  local width = img.width
  local height = img.height
  local line = max(1, floor(M.thickness(img) / 2))
  local function outside(x, y)
    return x >= 0 and y >= 0 and x < width and y < height
      and m[floor(y / k) * w + floor(x / k)] == 0
  end
  local r = colour[1]
  local g = colour[2]
  local b = colour[3]
  for y = 0, height - 1 do
    local row = m + floor(y / k) * w
    for x = 0, width - 1 do
      if row[floor(x / k)] ~= 0 then
        local q = p + 3 * (y * width + x)
        local edge = false
        for d = 1, line do
          edge = edge or outside(x - d, y) or outside(x + d, y) or outside(x, y - d)
            or outside(x, y + d)
        end
        local a = alpha
        local shade = 1
        if edge then
          a = 1
          shade = EDGE_SHADE
        end
        q[0] = floor(q[0] + (shade * r - q[0]) * a + 0.5)
        q[1] = floor(q[1] + (shade * g - q[1]) * a + 0.5)
        q[2] = floor(q[2] + (shade * b - q[2]) * a + 0.5)
      end
    end
  end
end

-- ---- words ----
-- The characters of a text: single bytes of ASCII or whole UTF-8 sequences.
local function characters(text) return text:gmatch "[%z\1-\127\192-\255][\128-\191]*" end

function M.text_width(text, scale)
  local width = 0
  for c in characters(text) do width = width + font.glyph(c).width + 1 end
  return max(width - 1, 0) * (scale or 1)
end

function M.text(img, x, y, text, colour, scale)
  scale = scale or 1
  for c in characters(text) do
    local g = font.glyph(c)
    for r, row in ipairs(g.rows) do
      for i = 1, #row do
        if row:byte(i) == 35 then
          M.fill(img, x + (i - 1) * scale, y + (r - 1) * scale, scale, scale, colour)
        end
      end
    end
    x = x + (g.width + 1) * scale
  end
end

-- Splits the text into lines of at most `width` pixels. A word that is too long has a line of its
-- own. If there are more than `most` lines, the last one ends in "...".
function M.wrap(text, width, scale, most)
  local lines = {}
  local line = ""
  for word in text:gmatch "%S+" do
    local longer = word
    if line ~= "" then longer = line .. " " .. word end
    if line ~= "" and M.text_width(longer, scale) > width then
      lines[#lines + 1] = line
      line = word
    else
      line = longer
    end
  end
  if line ~= "" then lines[#lines + 1] = line end
  if most and #lines > most then
    for i = #lines, most + 1, -1 do lines[i] = nil end
    local last = lines[most]
    while last ~= "" and M.text_width(last .. "...", scale) > width do
      last = last:gsub("%s*[%z\1-\127\192-\255][\128-\191]*$", "")
    end
    lines[most] = last .. "..."
  end
  return lines
end

-- ---- putting images together ----
function M.canvas(width, height, colour)
  local img = image.new(width, height)
  M.fill(img, 0, 0, width, height, colour or M.WHITE)
  return img
end

-- Copies src to img with its top left corner at (x, y), clipped to img.
function M.paste(img, src, x, y)
  local to = img:pixels()
  local from = src:pixels()
  local x0 = max(x, 0)
  local x1 = min(x + src.width, img.width)
  if x1 <= x0 then return end
  for row = max(y, 0), min(y + src.height, img.height) - 1 do
    ffi.copy(to + 3 * (row * img.width + x0), from + 3 * ((row - y) * src.width + x0 - x),
      3 * (x1 - x0))
  end
end

function M.enlarge(img, k)
  if type(k) ~= "number" or k % 1 ~= 0 or k < 1 then
    error("draw.enlarge: a whole number from 1 is expected, got " .. tostring(k), 2)
  end
  local w = img.width * k
  local h = img.height * k
  local big = image.new(w, h)
  local to = big:pixels()
  local from = img:pixels()
  for y = 0, img.height - 1 do
    local row = to + 3 * w * k * y
    for x = 0, img.width - 1 do
      local p = from + 3 * (y * img.width + x)
      for i = x * k, x * k + k - 1 do
        row[3 * i] = p[0]
        row[3 * i + 1] = p[1]
        row[3 * i + 2] = p[2]
      end
    end
    for i = 1, k - 1 do ffi.copy(row + 3 * w * i, row, 3 * w) end
  end
  return big
end

-- Coordinates in an enlarged image: a box covers the same pixels, a point is in the middle of its
-- pixel.
function M.enlarge_box(b, k) return { b[1] * k, b[2] * k, b[3] * k + k - 1, b[4] * k + k - 1 } end
function M.enlarge_point(p, k)
  return { p[1] * k + floor((k - 1) / 2), p[2] * k + floor((k - 1) / 2) }
end

function M.side_by_side(list, gap)
  gap = gap or 8
  local width = gap * (#list - 1)
  local height = 1
  for _, img in ipairs(list) do
    width, height = width + img.width, max(height, img.height)
  end
  local out = M.canvas(max(width, 1), height)
  local x = 0
  for _, img in ipairs(list) do
    M.paste(out, img, x, floor((height - img.height) / 2))
    x = x + img.width + gap
  end
  return out
end

-- An image with a side below the first is drawn about as large as the second.
local SMALL_SIDE = 200
local ENLARGED_SIDE = 448

-- Draws an answer (of one object or of several, in img's pixels) on a copy of the image.
-- opts.truth: a box, drawn in green. With opts.mask the marks are on top of the mask, and the plain
-- image is to the left. Small images are enlarged k times.
function M.figure(img, found, opts)
  opts = opts or {}
  local k = 1
  if min(img.width, img.height) < SMALL_SIDE then
    k = ceil(ENLARGED_SIDE / max(img.width, img.height))
  end
  local plain = M.enlarge(img, k)
  local out = plain
  if opts.mask then out = M.enlarge(img, k) end
  if opts.mask then M.mask(out, opts.mask) end
  if opts.truth then M.box(out, M.enlarge_box(opts.truth, k), M.GREEN, M.thickness(out) + 1) end
  local function larger(a)
    local marks = { bbox = a.bbox and M.enlarge_box(a.bbox, k), point = a.point
      and M.enlarge_point(a.point, k), points = {} }
    for i, p in ipairs(a.points or {}) do marks.points[i] = M.enlarge_point(p, k) end
    return marks
  end
  local marks = larger(found)
  for i, object in ipairs(found) do marks[i] = larger(object) end
  M.answer(out, marks)
  if not opts.mask then return out, k end
  local both = M.side_by_side { plain, out }
  plain:free()
  out:free()
  return both, k
end

-- Makes an image about `side` pixels wide with the marks of a tile: small images are enlarged by a
-- whole factor, large ones resized. Truth box and points are green, the answer's box is red, its
-- points yellow. The truth's line is thicker, so that it shows under a correct answer.
local function tile_image(tile, side)
  local w = tile.image.width
  local h = tile.image.height
  local img, to_box, to_point
  if w > 1.5 * side then
    local f = side / w
    img = tile.image:resize(floor(w * f + 0.5), max(1, floor(h * f + 0.5)), "bilinear")
    to_box = function(b) return { b[1] * f, b[2] * f, b[3] * f, b[4] * f } end
    to_point = function(p) return { p[1] * f, p[2] * f } end
  else
    local k = max(1, floor(side / w + 0.5))
    img = M.enlarge(tile.image, k)
    to_box = function(b) return M.enlarge_box(b, k) end
    to_point = function(p) return M.enlarge_point(p, k) end
  end
  local t = M.thickness(img)
  if tile.truth then M.box(img, to_box(tile.truth), M.GREEN, t + 1) end
  if tile.bbox then M.box(img, to_box(tile.bbox), M.RED, t) end
  for _, p in ipairs(tile.truth_points or {}) do M.point(img, to_point(p), M.GREEN) end
  for _, p in ipairs(tile.points or {}) do M.point(img, to_point(p), M.YELLOW) end
  return img
end

-- Pixels between tiles, inside a tile, and for a line of text at scale 2.
local GAP = 14
local PAD = 10
local LINE = 2 * (font.HEIGHT + 2)

-- Draws the legend, right-aligned, and returns its width. masks: explains their colour too.
local function legend(img, y, masks)
  local entries = { { M.GREEN, "truth" }, { M.RED, "answer" }, masks and { M.CYAN, "mask", true }
    or nil }
  local width = -18
  for _, entry in ipairs(entries) do width = width + 38 + M.text_width(entry[2], 2) end
  local x = img.width - GAP - width
  for _, entry in ipairs(entries) do
    M.fill(img, x, y + 1, 14, 12, entry[1])
    if not entry[3] then M.fill(img, x + 3, y + 4, 8, 6, M.PAPER) end
    M.text(img, x + 20, y, entry[2], M.GREY, 2)
    x = x + 38 + M.text_width(entry[2], 2)
  end
  return width
end

-- Draws the tiles in rows of `columns` (default 4). Each tile is a white card: the image with its
-- marks, below it the label (up to two lines) and the note (one grey line). A tile needs an image;
-- the rest is optional. opts: side (approximate width of an image, 280), title, masks (adds masks
-- to the legend).
function M.sheet(tiles, columns, opts)
  opts = opts or {}
  if #tiles == 0 then error("draw.sheet: there are no tiles", 2) end
  columns = min(columns or 4, #tiles)
  local side = opts.side or 280
  local cards = {}
  local width = 0
  local heights = {}
  local words = {}
  for i, tile in ipairs(tiles) do
    if not image.is_image(tile.image) then
      error(("draw.sheet: tile %d has no image"):format(i), 2)
    end
    cards[i] = tile_image(tile, side)
    width = max(width, cards[i].width)
  end
  for i, tile in ipairs(tiles) do
    words[i] = { label = M.wrap(tile.label or "", width, 2, 2),
      note = M.wrap(tile.note or "", width, 2, 1) }
    local row = floor((i - 1) / columns)
    local lines = #words[i].label + #words[i].note
    local height = cards[i].height + 2 * PAD
    if lines > 0 then height = height + lines * LINE + 4 end
    heights[row] = max(heights[row] or 0, height)
  end
  local head = LINE + GAP
  local total = head + GAP
  for row = 0, #heights do total = total + heights[row] + GAP end
  local sheet = M.canvas(columns * (width + 2 * PAD + GAP) + GAP, total, M.PAPER)

  local legend_width = legend(sheet, GAP, opts.masks)
  if opts.title then
    M.text(sheet, GAP, GAP, M.wrap(opts.title, sheet.width - 4 * GAP - legend_width, 2, 1)[1]
      or "", M.INK, 2)
  end
  local y = head + GAP
  for i, card in ipairs(cards) do
    local row = floor((i - 1) / columns)
    local column = (i - 1) % columns
    local x = GAP + column * (width + 2 * PAD + GAP)
    M.fill(sheet, x + 1, y + 2, width + 2 * PAD + 1, heights[row] + 1, { 222, 225, 230 })
    M.fill(sheet, x, y, width + 2 * PAD, heights[row], M.WHITE)
    M.paste(sheet, card, x + PAD + floor((width - card.width) / 2), y + PAD)
    local at = y + PAD + card.height + 8
    for _, line in ipairs(words[i].label) do
      M.text(sheet, x + PAD, at, line, M.INK, 2)
      at = at + LINE
    end
    for _, line in ipairs(words[i].note) do M.text(sheet, x + PAD, at, line, M.GREY, 2) end
    card:free()
    if column == columns - 1 then y = y + heights[row] + GAP end
  end
  return sheet
end

-- The true box of a record, or nil.
local function true_box(record)
  if record.truth then return record.truth[1] and record.truth[1].bbox end
  return (truth_of.read(record.solution))
end

-- The first object of a list of several, as an answer of one.
local function first_object(list)
  local object = list[1]
  return object and { bbox = object.bbox, points = { object.point } }
end

-- Writes a sheet of the first rows of a data set with the answers of a model. records: as returned
-- by trainer:evaluate, {{index =, problem =, text =, reward =, found =, truth =}, ...}; without the
-- last two, text and solution are in the image's pixels. opts: count (12),
-- columns (4), side, title (default: the name of the set), masks (as in sheet).
function M.predictions(path, set, records, opts)
  opts = opts or {}
  local tiles = {}
  for i = 1, min(opts.count or 12, #records) do
    local r = records[i]
    local row = set:row(r.index)
    local found = r.found or answer.parse(r.text)
    local first = found
    if found and not found.bbox then first = first_object(found) end
    tiles[i] = { image = row.image, label = r.problem, bbox = first and first.bbox,
      points = first and first.points,
      note = ("reward %.3g%s"):format(r.reward, found and "" or ", no answer") }
    tiles[i].truth = true_box(r)
  end
  local sheet = M.sheet(tiles, opts.columns
    or 4, { side = opts.side, title = opts.title or set.name, masks = opts.masks })
  sheet:save(path)
  sheet:free()
  for _, tile in ipairs(tiles) do tile.image:free() end
end

return M
