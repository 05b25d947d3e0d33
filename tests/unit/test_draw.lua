-- test_draw.lua - marks and letters are drawn on the right pixels, and nothing is written outside an
-- image.
--
--   ./segzero tests/unit/test_draw.lua

local check = require "tests.support.check"
local data = require "segzero.data"
local draw = require "segzero.tools.draw"
local font = require "segzero.tools.font"
local image = require "segzero.formats.image"
local tensor = require "segzero.core.tensor"

local BLACK = { 0, 0, 0 }
local RED = draw.RED
local WHITE = draw.WHITE
local YELLOW = draw.YELLOW

local function pixel(img, x, y)
  local p = img:pixels() + 3 * (y * img.width + x)
  return { p[0], p[1], p[2] }
end

-- The colours at some places {x, y}.
local function pixels(img, places)
  local colours = {}
  for i, at in ipairs(places) do colours[i] = pixel(img, at[1], at[2]) end
  return colours
end

-- The number of pixels of a colour.
local function count(img, colour)
  local n = 0
  local p = img:pixels()
  for i = 0, img.width * img.height - 1 do
    local same = p[3 * i] == colour[1] and p[3 * i + 1] == colour[2] and p[3 * i + 2] == colour[3]
    if same then n = n + 1 end
  end
  return n
end

-- ---- marks ----

check.case("a box's line is on its corners and nowhere else", function()
  local img = image.new(40, 30)
  draw.box(img, { 5, 6, 20, 15 }, RED, 1)
  check.equal(pixels(img, { { 5, 6 }, { 20, 15 }, { 20, 6 }, { 12, 15 } }), { RED, RED, RED, RED },
    "on the line")
  check.equal(pixels(img, { { 4, 6 }, { 21, 15 }, { 12, 10 } }), { BLACK, BLACK, BLACK },
    "outside and inside")
  check.equal(count(img, RED), 2 * 16 + 2 * 8, "number of pixels of the line")
end)

check.case("a thick line has white hairlines, and swapped corners are the same box", function()
  local img = image.new(40, 30)
  draw.box(img, { 20, 15, 5, 6 }, RED, 3)
  check.equal(pixels(img, { { 4, 5 }, { 5, 6 }, { 6, 7 }, { 21, 16 } }), { RED, RED, RED, RED },
    "a line of three pixels")
  check.equal(pixels(img, { { 3, 4 }, { 7, 8 }, { 2, 10 }, { 12, 10 } }),
    { WHITE, WHITE, BLACK, BLACK }, "one white pixel on both sides")
end)

check.case("boxes outside the image and boxes that are none", function()
  local img = image.new(40, 30)
  local boxes = {
    { -1e9, -5, 1e9, 500 }, { 39, 29, 39, 29 }, { 100, 100, 200, 200 }, { -9, -9, -3, -3 },
    { 0.5, 0.5, 3.7, 2 ^ 60 },
  }
  for _, box in ipairs(boxes) do draw.box(img, box, RED) end
  check.equal(pixel(img, 12, 10), BLACK, "the middle of the image is untouched")
  check.raises(function() draw.box(img, { 1, 2, 3 }, RED) end, "test_draw.*four numbers",
    "three numbers")
  check.raises(function() draw.box(img, { 1, 2, 3, 0 / 0 }, RED) end, "four numbers", "NaN")
end)

check.case("a point is a disc with a rim", function()
  local img = draw.canvas(41, 41)
  draw.point(img, { 20, 20 }, YELLOW, 5)
  check.equal(pixels(img, { { 20, 20 }, { 24, 20 }, { 20, 16 } }), { YELLOW, YELLOW, YELLOW },
    "inside the disc")
  check.equal(pixels(img, { { 26, 20 }, { 20, 14 }, { 29, 20 } }), { draw.INK, draw.INK, WHITE },
    "rim and outside")
  check.equal(pixels(img, { { 15, 20 }, { 20, 13 } }), pixels(img, { { 25, 20 }, { 20, 27 } }),
    "symmetry")

  local far = { { 0, 0 }, { 40, 40 }, { -3, 20 }, { 1e12, -1e12 }, { math.huge, 0 } }
  for _, p in ipairs(far) do draw.point(img, p, YELLOW, 5) end
  check.equal(pixel(img, 0, 0), YELLOW, "a point at the corner")
end)

-- ---- masks and figures ----

local GROUND = { 100, 200, 0 }

-- A mask of 30 x 40: rows 5 to 12, columns 30 to 39; any value but 0 counts.
local function small_mask()
  local mask = tensor.zeros({ 30, 40 }, { dtype = "u8" })
  for y = 5, 12 do
    for x = 30, 39 do tensor.data(mask)[y * 40 + x] = 1 end
  end
  for x = 30, 39 do tensor.data(mask)[5 * 40 + x] = 255 end
  return mask
end

check.case("a mask is blended in, with a darker edge", function()
  local MIXED = { 150, 150, 25 }
  local EDGE = { 120, 60, 30 }
  local mask = small_mask()
  local img = draw.canvas(40, 30, GROUND)
  draw.mask(img, mask, { 200, 100, 50 }, 0.5)
  check.equal(pixels(img, { { 33, 8 }, { 30, 8 }, { 33, 5 }, { 33, 12 } }),
    { MIXED, EDGE, EDGE, EDGE }, "inside and at the edge")
  check.equal(pixels(img, { { 39, 8 }, { 29, 8 }, { 33, 13 } }), { MIXED, GROUND, GROUND },
    "no edge at the image's border, nothing outside")
  check.equal({ count(img, MIXED), count(img, EDGE), count(img, GROUND) },
    { 9 * 6, 2 * 10 + 6, 40 * 30 - 80 }, "number of pixels of each colour")

  local big = draw.canvas(120, 90, GROUND)
  draw.mask(big, mask, { 200, 100, 50 }, 0.5)
  check.equal({ count(big, GROUND), pixel(big, 90, 15), pixel(big, 91, 16) },
    { 9 * (40 * 30 - 80), EDGE, MIXED }, "an image three times as large")
  draw.mask(img, tensor.zeros({ 30, 40 }, { dtype = "u8" }))
  check.equal(count(img, GROUND), 40 * 30 - 80, "an empty mask changes nothing")
end)

check.case("a mask that does not fit is an error", function()
  local img = draw.canvas(40, 30)
  check.raises(function() draw.mask(img, tensor.zeros({ 40, 30 }, { dtype = "u8" })) end,
    "test_draw.*mask of 30 x 40 does not fit an image of 40 x 30", "another size")
  check.raises(function() draw.mask(img, tensor.zeros { 30, 40 }) end, "u8 tensor", "another type")
end)

check.case("figures of an answer", function()
  local img = draw.canvas(40, 30, GROUND)
  local single = { bbox = { 3, 4, 20, 15 }, points = { { 8, 8 }, { 15, 10 } } }
  local plain, k = draw.figure(img, single)
  check.equal({ k, plain.width, plain.height }, { 12, 480, 360 }, "a small image is enlarged")
  check.equal(pixels(plain, { { 36, 48 }, { 8 * 12 + 5, 8 * 12 + 5 } }), { RED, YELLOW },
    "box and points at their places")

  local listed = draw.figure(img, {
    { bbox = { 3, 4, 20, 15 }, point = { 8, 8 } },
    { bbox = { 25, 4, 38, 15 }, point = { 30, 10 } },
  })
  check.equal(pixels(listed, { { 36, 48 }, { 25 * 12, 48 }, { 30 * 12 + 5, 10 * 12 + 5 } }),
    { RED, RED, YELLOW }, "several objects")
  check.equal(count(draw.figure(img, {}), GROUND), 480 * 360, "no object, no mark")
  check.equal(draw.figure(image.new(300, 200), single).width, 300, "a large image keeps its size")
end)

check.case("a figure with a mask: the image on the left, the overlay on the right", function()
  local img = draw.canvas(40, 30, GROUND)
  local single = { bbox = { 3, 4, 20, 15 }, points = { { 8, 8 }, { 15, 10 } } }
  local both = draw.figure(img, single, { mask = small_mask(), truth = { 30, 20, 38, 28 } })
  check.equal({ both.width, both.height }, { 2 * 480 + 8, 360 }, "size")
  local marks = 0
  for x = 0, 479 do
    for y = 0, 359 do
      if pixel(both, x, y)[1] ~= GROUND[1] then marks = marks + 1 end
    end
  end
  check.equal(marks, 0, "marked pixels on the left")
  check.equal(pixels(both, { { 488 + 36, 48 }, { 488 + 30 * 12, 20 * 12 } }), { RED, draw.GREEN },
    "the answer and the truth on the right")
  check.ok(pixel(both, 488 + 33 * 12 + 6, 8 * 12 + 6)[3] > 50, "the mask on the right")
end)

-- ---- words ----

check.case("every letter has dots, fits its box and differs from the others", function()
  local wrong = {}
  local drawings = {}
  for code = 33, 126 do
    local letter = string.char(code)
    local g = font.glyph(letter)
    local drawing = table.concat(g.rows, "/")
    local good = drawing:find("#", 1, true) and #g.rows == font.HEIGHT and g.width <= 5
    for _, row in ipairs(g.rows) do good = good and #row == g.width end
    if not good or drawings[drawing] then wrong[#wrong + 1] = letter end
    drawings[drawing] = letter
  end
  check.equal(wrong, {}, "letters that are wrong")
end)

check.case("text: dots and widths", function()
  local img = draw.canvas(60, 12)
  draw.text(img, 1, 1, "Il", draw.INK, 1)
  check.equal(count(img, draw.INK), 11 + 9, "dots of I and l")
  check.equal(draw.text_width("il", 2), 2 * (3 + 1 + 3), "width of two letters at scale 2")
  check.equal(draw.text_width("é", 1), 5, "a character outside ASCII is one box")
  check.equal(draw.text_width("", 2), 0, "no text")
  draw.text(img, -4, -4, "cut off at every side, and far too long for this", draw.INK, 3)
  check.equal({ img.width, img.height }, { 60, 12 }, "text that is cut off")
end)

check.case("text is wrapped and shortened", function()
  local width = draw.text_width("one two", 1)
  check.equal(draw.wrap("one two three four", width, 1), { "one two", "three", "four" }, "lines")
  local lines = draw.wrap("one two three four", width, 1, 2)
  check.equal(#lines, 2, "number of lines when two are allowed")
  check.equal(lines[2]:sub(-3), "...", "end of the last line")
  check.ok(draw.text_width(lines[2], 1) <= width, "the last line fits")
  check.equal(draw.wrap("", 10, 1), {}, "no words, no lines")
end)

-- ---- putting images together ----

check.case("enlarging, joining and pasting images", function()
  local img = image.new(3, 2)
  draw.fill(img, 2, 1, 9, 9, RED)
  local big = draw.enlarge(img, 4)
  check.equal({ big.width, big.height, count(big, RED) }, { 12, 8, 16 }, "enlarged 4 times")
  check.equal(pixels(big, { { 8, 4 }, { 7, 4 } }), { RED, BLACK }, "pixels of the enlarged image")
  check.equal(draw.enlarge_box({ 2, 1, 2, 1 }, 4), { 8, 4, 11, 7 }, "a box of one pixel, enlarged")
  check.raises(function() draw.enlarge(img, 1.5) end,
    "whole number from 1 is expected, got 1.5", "enlarged by 1.5")

  local both = draw.side_by_side({ img, big }, 5)
  check.equal({ both.width, both.height }, { 20, 8 }, "size of two images side by side")
  check.equal(pixels(both, { { 2, 4 }, { 16, 4 }, { 4, 4 } }), { RED, RED, WHITE },
    "pixels of both and of the gap")
  draw.paste(both, big, -6, -6)
  draw.paste(both, big, 15, 5)
  draw.paste(both, big, 99, 99)
  check.equal(pixel(both, 2, 0), RED, "pasted over the edge")
end)

check.case("a sheet of tiles", function()
  local tiles = {}
  for i = 1, 4 do
    tiles[i] = {
      image = image.new(56, 56),
      truth = { 10, 10, 30, 30 },
      bbox = { 12, 10, 33, 29 },
      points = { { 20, 20 } },
      truth_points = { { 40, 40 } },
      label = "the red circle " .. ("and more "):rep(i * i),
      note = "score " .. i,
    }
  end
  tiles[5] = { image = image.new(56, 28) }
  local sheet = draw.sheet(tiles, 3, { title = "title", side = 112 })
  check.ok(sheet.width > 3 * 112 and sheet.height > 112 + 56, "two rows: " .. tostring(sheet))
  check.ok(count(sheet, draw.GREEN) > 100, "true boxes")
  check.ok(count(sheet, RED) > 100, "boxes of the answers")
  check.ok(count(sheet, YELLOW) > 4 * 10, "points of the answers")
  check.equal(count(tiles[1].image, BLACK), 56 * 56, "pixels of a tile's image, unchanged")
  check.raises(function() draw.sheet({}) end, "no tile", "an empty sheet")
  check.raises(function() draw.sheet({ {} }) end, "tile 1 has no image", "a tile without an image")
end)

check.case("a sheet of a data set's rows and a model's answers", function()
  local set = data.open("refshapes", { split = "heldout", size = 84, seed = 1, rows = 9 })
  local answer = '<think>t</think><answer>{"bbox": [5,5,40,40], "points_1": [9,9], '
    .. '"points_2": [20,20]}</answer>'
  local records = {}
  for i, text in ipairs { answer, "nothing", answer } do
    local row = set:row(i)
    records[i] = {
      index = i, problem = row.problem, solution = row.solution, reward = i, text = text,
    }
  end
  local name = os.tmpname()
  local path = name .. ".png"
  draw.predictions(path, set, records)
  local written = image.load(path)
  os.remove(path)
  os.remove(name)
  check.ok(count(written, draw.GREEN) > 100, "true boxes on " .. tostring(written))
  check.ok(count(written, RED) > 100, "boxes of the answers")
end)

check.finish()
