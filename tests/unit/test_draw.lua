-- test_draw.lua - marks and letters land on the pixels they name, and nothing is written outside a
-- picture.
--
--   ./segzero tests/unit/test_draw.lua

local check = require "tests.support.check"
local image = require "segzero.formats.image"
local draw = require "segzero.tools.draw"
local tensor = require "segzero.core.tensor"
local font = require "segzero.tools.font"

local function pixel(img, x, y)
  local p = img:pixels() + 3 * (y * img.width + x)
  return { p[0], p[1], p[2] }
end
local function count(img, colour)
  local n = 0
  local p = img:pixels()
  for i = 0, img.width * img.height - 1 do
    if p[3 * i] == colour[1] and p[3 * i + 1] == colour[2] and p[3 * i + 2] == colour[3] then
      n = n + 1
    end
  end
  return n
end
local BLACK = { 0, 0, 0 }
local RED = draw.RED

-- ---- boxes ----
local img = image.new(40, 30)
draw.box(img, { 5, 6, 20, 15 }, RED, 1)
check.equal({ pixel(img, 5, 6), pixel(img, 20, 15), pixel(img, 20, 6), pixel(img, 12, 15) },
  { RED, RED, RED, RED }, "the line lies on the corners")
check.equal({ pixel(img, 4, 6), pixel(img, 21, 15), pixel(img, 12, 10) }, { BLACK, BLACK, BLACK },
  "and nowhere else")
check.equal(count(img, RED), 2 * 16 + 2 * 8, "number of pixels of the line")
img = image.new(40, 30)
draw.box(img, { 20, 15, 5, 6 }, RED, 3)
check.equal({ pixel(img, 4, 5), pixel(img, 5, 6), pixel(img, 6, 7), pixel(img, 21, 16) },
  { RED, RED, RED, RED }, "three pixels, corners in the wrong order")
check.equal({ pixel(img, 3, 4), pixel(img, 7, 8), pixel(img, 2, 10), pixel(img, 12, 10) },
  { draw.WHITE, draw.WHITE, BLACK, BLACK }, "white hairlines on both sides")
for _, box in ipairs { { -1e9, -5, 1e9, 500 }, { 39, 29, 39, 29 }, { 100, 100, 200, 200 },
  { -9, -9, -3, -3 }, { 0.5, 0.5, 3.7, 2 ^ 60 } } do
  draw.box(img, box, RED)
end
check.equal(pixel(img, 12, 10), BLACK, "boxes that reach out of the image leave its middle")
check.raises(function() draw.box(img, { 1, 2, 3 }, RED) end, "test_draw.*four numbers",
  "three numbers")
check.raises(function() draw.box(img, { 1, 2, 3, 0 / 0 }, RED) end, "four numbers", "NaN")

-- ---- points ----
img = draw.canvas(41, 41)
draw.point(img, { 20, 20 }, draw.YELLOW, 5)
check.equal({ pixel(img, 20, 20), pixel(img, 24, 20), pixel(img, 20, 16) },
  { draw.YELLOW, draw.YELLOW, draw.YELLOW }, "inside of a disc")
check.equal({ pixel(img, 26, 20), pixel(img, 20, 14), pixel(img, 29, 20) },
  { draw.INK, draw.INK, draw.WHITE }, "rim and outside")
check.equal({ pixel(img, 15, 20), pixel(img, 20, 13) }, { pixel(img, 25, 20), pixel(img, 20, 27) },
  "symmetric")
for _, p in ipairs { { 0, 0 }, { 40, 40 }, { -3, 20 }, { 1e12, -1e12 }, { math.huge, 0 } } do
  draw.point(img, p, draw.YELLOW, 5)
end
check.equal(pixel(img, 0, 0), draw.YELLOW, "a point at the corner")

-- ---- masks ----
local mask = tensor.zeros({ 30, 40 }, { dtype = "u8" })
for y = 5, 12 do
  for x = 30, 39 do tensor.data(mask)[y * 40 + x] = y == 5 and 255 or 1 end
end
img = draw.canvas(40, 30, { 100, 200, 0 })
draw.mask(img, mask, { 200, 100, 50 }, 0.5)
local MIXED = { 150, 150, 25 }
local EDGE = { 120, 60, 30 }
local BEFORE = { 100, 200, 0 }
check.equal({ pixel(img, 33, 8), pixel(img, 30, 8), pixel(img, 33, 5), pixel(img, 33, 12) },
  { MIXED, EDGE, EDGE, EDGE }, "mixed inside, a dark line at the edge")
check.equal({ pixel(img, 39, 8), pixel(img, 29, 8), pixel(img, 33, 13) }, { MIXED, BEFORE, BEFORE },
  "no line at the image's end, nothing outside")
check.equal({ count(img, MIXED), count(img, EDGE), count(img, BEFORE) },
  { 9 * 6, 2 * 10 + 6, 40 * 30 - 80 }, "and nothing else")
local big = draw.canvas(120, 90, BEFORE)
draw.mask(big, mask, { 200, 100, 50 }, 0.5)
check.equal({ count(big, BEFORE), pixel(big, 90, 15), pixel(big, 91, 16) },
  { 9 * (40 * 30 - 80), EDGE, MIXED }, "an image three times as large")
check.raises(function() draw.mask(img, tensor.zeros({ 40, 30 }, { dtype = "u8" })) end,
  "test_draw.*mask of 30 x 40 does not fit an image of 40 x 30", "another size")
check.raises(function() draw.mask(big, tensor.zeros { 30, 40 }) end, "u8 tensor", "another type")
draw.mask(img, tensor.zeros({ 30, 40 }, { dtype = "u8" }))

img = draw.canvas(40, 30, BEFORE)
local single = { bbox = { 3, 4, 20, 15 }, points = { { 8, 8 }, { 15, 10 } } }
local plain, k = draw.figure(img, single)
check.equal({ k, plain.width, plain.height }, { 12, 480, 360 }, "a small image is enlarged")
check.equal({ pixel(plain, 36, 48), pixel(plain, 8 * 12 + 5, 8 * 12 + 5) }, { RED, draw.YELLOW },
  "box and points at their places")
local both_sides = draw.figure(img, single, { mask = mask, truth = { 30, 20, 38, 28 } })
check.equal({ both_sides.width, both_sides.height }, { 2 * 480 + 8, 360 },
  "with a mask: original | overlay")
local marks = 0
for x = 0, 479 do
  for y = 0, 359 do
    if pixel(both_sides, x, y)[1] ~= 100 then marks = marks + 1 end
  end
end
check.equal(marks, 0, "nothing on the original")
check.equal({ pixel(both_sides, 488 + 36, 48), pixel(both_sides, 488 + 30 * 12, 20 * 12) },
  { RED, draw.GREEN }, "the answer and the truth on the overlay")
check.ok(pixel(both_sides, 488 + 33 * 12 + 6, 8 * 12 + 6)[3] > 50, "and the mask")
local listed = draw.figure(img,
  { { bbox = { 3, 4, 20, 15 }, point = { 8, 8 } },
  { bbox = { 25, 4, 38, 15 }, point = { 30, 10 } } })
check.equal({ pixel(listed, 36, 48), pixel(listed, 25 * 12, 48),
  pixel(listed, 30 * 12 + 5, 10 * 12 + 5) }, { RED, RED, draw.YELLOW }, "several objects")
check.equal(count(draw.figure(img, {}), BEFORE), 480 * 360, "no object, no mark")
check.equal(draw.figure(image.new(300, 200), single).width, 300, "a large one keeps its size")

-- ---- words ----
for code = 33, 126 do
  local g = font.glyph(string.char(code))
  local dots = 0
  local sizes = true
  for _, row in ipairs(g.rows) do
    dots = dots + select(2, row:gsub("#", ""))
    sizes = sizes and #row == g.width
  end
  if not (dots > 0 and sizes and #g.rows == font.HEIGHT and g.width <= 5) then
    check.ok(false, "letter " .. string.char(code))
  end
  for other = 33, code - 1 do
    if table.concat(font.glyph(string.char(other)).rows, "/") == table.concat(g.rows, "/") then
      check.ok(false, ("letters %c and %c look the same"):format(other, code))
    end
  end
end
img = draw.canvas(60, 12)
draw.text(img, 1, 1, "Il", draw.INK, 1)
check.equal(count(img, draw.INK), 11 + 9, "dots of I and l")
check.equal(draw.text_width("il", 2), 2 * (3 + 1 + 3), "width")
check.equal(draw.text_width("é", 1), 5, "a character outside ASCII is one box")
check.equal(draw.text_width("", 2), 0, "no text")
draw.text(img, -4, -4, "cut off at every side, and far too long for this", draw.INK, 3)
check.equal(draw.wrap("one two three four", draw.text_width("one two", 1), 1),
  { "one two", "three", "four" }, "lines")
local lines = draw.wrap("one two three four", draw.text_width("one two", 1), 1, 2)
check.ok(#lines == 2 and lines[2]:sub(-3) == "..."
  and draw.text_width(lines[2], 1) <= draw.text_width("one two", 1), "shortened to two lines")
check.equal(draw.wrap("", 10, 1), {}, "no words, no lines")

-- ---- putting together ----
img = image.new(3, 2)
draw.fill(img, 2, 1, 9, 9, RED)
big = draw.enlarge(img, 4)
check.equal({ big.width, big.height, count(big, RED), pixel(big, 8, 4), pixel(big, 7, 4) },
  { 12, 8, 16, RED, BLACK }, "enlarged")
check.equal(draw.enlarge_box({ 2, 1, 2, 1 }, 4), { 8, 4, 11, 7 }, "a box of one pixel, enlarged")
local both = draw.beside({ img, big }, 5)
check.equal({ both.width, both.height, pixel(both, 2, 4), pixel(both, 16, 4), pixel(both, 4, 4) },
  { 20, 8, RED, RED, draw.WHITE }, "side by side")
draw.paste(both, big, -6, -6)
draw.paste(both, big, 15, 5)
draw.paste(both, big, 99, 99)
check.equal(pixel(both, 2, 0), RED, "pasted over the edge")
check.raises(function() draw.enlarge(img, 1.5) end, "whole number from 1 is expected, got 1.5",
  "enlarged by 1.5")

local tiles = {}
for i = 1, 5 do
  tiles[i] = { image = image.new(56, 56), truth = { 10, 10, 30, 30 }, bbox = { 12, 10, 33, 29 },
    points = { { 20, 20 } },
    truth_points = { { 40, 40 } }, label = "the red circle "
      .. ("and more "):rep(i * i), note = "score " .. i }
end
tiles[5] = { image = image.new(56, 28) }
local sheet = draw.sheet(tiles, 3, { title = "title", side = 112 })
check.ok(sheet.width > 3 * 112 and sheet.height > 112 + 56, "a sheet of two rows: "
  .. tostring(sheet))
check.ok(count(sheet, draw.GREEN) > 100 and count(sheet, RED) > 100
  and count(sheet, draw.YELLOW) > 4 * 10, "with boxes and points")
check.equal(count(tiles[1].image, BLACK), 56 * 56, "the images given stay as they were")
check.raises(function() draw.sheet({}) end, "no tile", "an empty sheet")
check.raises(function() draw.sheet({ {} }) end, "tile 1 has no image", "a tile without an image")


local set = require("segzero.data").open("refshapes",
  { split = "heldout", size = 84, seed = 1, rows = 9 })
local records = {}
for i = 1, 3 do
  local row = set:row(i)
  records[i] = { index = i, problem = row.problem, solution = row.solution, reward = i,
    text = i == 2 and "nothing" or
    '<think>t</think><answer>{"bbox": [5,5,40,40], "points_1": [9,9], "points_2": [20,20]}</answer>' }
end
local path = os.tmpname() .. ".png"
draw.predictions(path, set, records)
local written = image.load(path)
check.ok(count(written, draw.GREEN) > 100
  and count(written, RED) > 100, "predictions of a data set: " .. tostring(written))
os.remove(path)
os.remove((path:gsub("%.png$", "")))

check.finish()
