-- test_draw.lua - marks and letters are drawn on the right pixels, and nothing is written outside
-- an image.
--
--   ./segzero tests/unit/test_draw.lua

local check = require "tests.support.check"
local host = require "segzero.host"
local letters = require "segzero.tools.drawing.lettering"
local process = require "tests.support.process"
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
  -- Numbers that a model may answer.
  local open = image.new(40, 30)
  draw.box(open, draw.enlarge_box({ 5, 6, 1e308, -1e308 }, 4), RED, 1)
  check.equal(count(open, RED), 25 + 20 - 1, "an endless box has a side at x = 20, one at y = 24")
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

check.case("a mask is an outline with a white rim and a light fill", function()
  local COLOUR = { 200, 100, 50 }
  local MIXED = { 150, 150, 25 }
  local mask = small_mask()
  local img = draw.canvas(40, 30, GROUND)
  draw.mask(img, mask, COLOUR, 0.5)
  -- The line is two pixels wide: rows 5, 6, 11, 12 and columns 30, 31.
  check.equal(pixels(img, { { 33, 8 }, { 31, 8 }, { 33, 5 }, { 33, 12 } }),
    { MIXED, COLOUR, COLOUR, COLOUR }, "inside and at the edge")
  check.equal(pixels(img, { { 39, 8 }, { 29, 8 }, { 33, 13 }, { 28, 8 }, { 33, 14 } }),
    { MIXED, WHITE, WHITE, GROUND, GROUND }, "no edge at the image's border; the rim outside")
  check.equal({ count(img, MIXED), count(img, COLOUR), count(img, WHITE) },
    { 8 * 4, 80 - 8 * 4, 10 + 10 + 8 }, "number of pixels of each colour")

  local big = draw.canvas(120, 90, GROUND)
  draw.mask(big, mask, COLOUR, 0.5)
  check.equal({ pixel(big, 90, 15), pixel(big, 92, 17), pixel(big, 89, 20), pixel(big, 88, 20) },
    { COLOUR, MIXED, WHITE, GROUND }, "an image three times as large")
  local before = count(img, GROUND)
  draw.mask(img, tensor.zeros({ 30, 40 }, { dtype = "u8" }))
  check.equal(count(img, GROUND), before, "an empty mask changes nothing")
end)

-- The hue of a colour in degrees; nil for a grey.
local function hue(c)
  local most = math.max(c[1], c[2], c[3])
  local range = most - math.min(c[1], c[2], c[3])
  if range < 30 then return nil end
  if most == c[1] then return 60 * ((c[2] - c[3]) / range % 6) end
  if most == c[2] then return 60 * ((c[3] - c[1]) / range + 2) end
  return 60 * ((c[1] - c[2]) / range + 4)
end

check.case("an object keeps its colour under a mask", function()
  local colours = { red = { 220, 40, 40 }, yellow = { 240, 220, 30 }, orange = { 240, 140, 20 },
    green = { 30, 160, 60 }, blue = { 40, 80, 220 }, purple = { 130, 40, 160 } }
  local inside = tensor.zeros({ 30, 40 }, { dtype = "u8" })
  for i = 0, 30 * 40 - 1 do tensor.data(inside)[i] = 1 end
  local tried = 0
  for name, colour in pairs(colours) do
    local img = draw.canvas(40, 30, colour)
    draw.mask(img, inside)
    local shown = pixel(img, 20, 15)
    local apart = math.abs((hue(shown) - hue(colour) + 180) % 360 - 180)
    check.ok(apart < 12, ("%s: the hue changes by %.0f degrees"):format(name, apart))
    tried = tried + 1
  end
  check.equal(tried, 6, "six colours")
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
  check.ok(pixel(both, 488 + 33 * 12 + 6, 8 * 12 + 6)[3] > 10, "the mask on the right")
end)

check.case("two panels with titles, the question and the thinking", function()
  local img = draw.canvas(40, 30, GROUND)
  local single = { bbox = { 3, 4, 20, 15 }, points = { { 8, 8 }, { 15, 10 } } }
  local bare = draw.panels(img, single, {})
  local text = "<think>" .. ("a word "):rep(60) .. "</think><answer>{}</answer>"
  local full = draw.panels(img, single, { mask = small_mask(), question = "which one?",
    text = text, facts = "IoU 0.71" })
  check.ok(bare.width > 2 * 480 and bare.height > 360, "room for both: " .. tostring(bare))
  check.equal(full.width, bare.width, "words do not make it wider")
  check.ok(full.height > bare.height + 150, "words make it higher")
  local halves = { 0, 0 }
  for x = 0, full.width - 1 do
    for y = 0, full.height - 1 do
      local c = pixel(full, x, y)
      local side = x < full.width / 2 and 1 or 2
      if c[1] == RED[1] and c[2] == RED[2] and c[3] == RED[3] then
        halves[side] = halves[side] + 1
      end
    end
  end
  check.equal(halves[1], 0, "no box on the left panel")
  check.ok(halves[2] > 500, "a box on the right panel")
  check.ok(draw.panels(img, {}, { question = "nothing?" }).height > 300, "an answer of no object")
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

-- The pixels that are not white.
local function inked(img)
  return img.width * img.height - count(img, WHITE)
end

check.case("text in an outline font", function()
  if not letters.face() then
    check.skip "a font: fonts-dejavu-core"
    return
  end
  local img = draw.canvas(200, 40)
  letters.text(img, 10, 5, "Hill", draw.INK, 24)
  local dark = count(img, draw.INK)
  check.ok(dark > 20 and inked(img) > dark + 20, "letters with soft edges")
  for _, x in ipairs { 0, 9 } do
    for y = 0, 39 do check.equal(pixel(img, x, y), WHITE, "nothing to the left of the text") end
  end
  local width = letters.width("Hill", 24)
  check.ok(width > 25 and width < 60, "width: " .. width)
  check.ok(letters.width("Hill", 48) > 1.9 * width, "twice the size is twice as wide")
  check.ok(letters.width("Hill", 24, true) > width, "bold is wider")

  -- One character of two bytes, not two boxes.
  local accent = letters.width("é", 24)
  check.near(accent, letters.width("e", 24), 0.5, "é is as wide as e")
  check.ok(letters.width("λ→≤", 24) > 20, "other alphabets and signs")
  check.ok(letters.width("\255\254", 24) > 0, "bytes that are no text are characters too")

  local small = draw.canvas(10, 10)
  letters.text(small, -300, -4, ("cut off at every side "):rep(40), draw.INK, 30)
  check.equal({ small.width, small.height }, { 10, 10 }, "text that is cut off")
end)

-- What a child process prints with SEGZERO_FONT set.
local function with_font(value, chunk)
  local text = process.run({ host.executable, "--threads", "1", "-e", chunk },
    { timeout = 30, env = { SEGZERO_FONT = value } })
  return text
end

check.case("without a font there are dots, and a wrong font is one line", function()
  local measure = "local d = require 'segzero.tools.draw' print(d.text_width('il', 2), "
    .. "d.text_width('\195\169', 1), d.text_width('', 2), "
    .. "tostring(require('segzero.tools.drawing.lettering').face()))"
  check.equal(with_font("dots", measure), ("%d\t5\t0\tnil\n"):format(2 * (3 + 1 + 3)),
    "widths in dots")
  local counted = "local d = require 'segzero.tools.draw' local img = d.canvas(60, 12) "
    .. "d.text(img, 1, 1, 'Il', d.INK, 1) local n, p = 0, img:pixels() "
    .. "for i = 0, 719 do if p[3 * i] == d.INK[1] then n = n + 1 end end print(n)"
  check.equal(with_font("dots", counted), "20\n", "dots of I and l")
  local text = with_font("/nonexistent.ttf", measure)
  check.ok(text:find "SEGZERO_FONT=/nonexistent.ttf: [^\n]*cannot be opened", text)
  text = with_font(host.root .. "/README.md", measure)
  check.ok(text:find "SEGZERO_FONT=[^\n]*no TrueType or OpenType font", text)
end)

check.case("text is wrapped and shortened", function()
  local width = draw.text_width("one two", 1)
  check.equal(draw.wrap("one two three four", width, 1), { "one two", "three", "four" }, "lines")
  local lines = draw.wrap("one two three four", width, 1, 2)
  check.equal(#lines, 2, "number of lines when two are allowed")
  check.equal(lines[2]:sub(-3), "...", "end of the last line")
  check.ok(draw.text_width(lines[2], 1) <= width, "the last line fits")
  check.equal(draw.wrap("", 10, 1), {}, "no words, no lines")
  local whole = ("x"):rep(40)
  local pieces = draw.wrap(whole, draw.text_width("xxxxxxxxxx", 1) + 1, 1)
  check.equal(table.concat(pieces), whole, "a word that is too long is broken, and nothing is lost")
  check.ok(#pieces >= 4, "into several lines")
  -- Bytes that begin no character: letters of another encoding in a data set's text.
  local stray = ("\128"):rep(40) .. " " .. ("\233\129"):rep(40)
  pieces = draw.wrap(stray, draw.text_width("xxxxxxxxxx", 1) + 1, 1)
  check.equal(table.concat(pieces), (stray:gsub(" ", "")), "bytes that are no UTF-8 are kept")
  check.equal(draw.wrap(stray, 40, 1, 1), { "..." }, "and shortened")
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

-- A sheet with this tile alone.
local function height_of(tile)
  tile.image = image.new(56, 56)
  return draw.sheet({ tile }, 1, { title = "t" }).height
end

check.case("a card says what the answer was and why a part is 0", function()
  local text = "<think>one two three</think><answer>{}</answer>"
  local bare = height_of { label = "the red circle" }
  local answered = height_of { label = "the red circle", text = text }
  local scored = height_of { label = "the red circle", text = text,
    parts = { iou = 0, format = 1 } }
  local explained = height_of { label = "the red circle", text = text,
    parts = { iou = 0, format = 1 }, zeros = { iou = "the boxes do not touch" } }
  check.ok(bare < answered and answered < scored and scored < explained, "each adds lines")
  local once = height_of { zeros = { iou = "no object", points = "no object" } }
  local twice = height_of { zeros = { iou = "no object", points = "no answer" } }
  check.ok(once < twice, "a reason that several parts share is there once")
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

check.case("the same rows before and after training, in pairs", function()
  local set = data.open("refshapes", { split = "heldout", size = 84, seed = 1, rows = 9 })
  local function records(reward, box)
    local list = {}
    for i = 1, 4 do
      local row = set:row(i)
      list[i] = { index = i, problem = row.problem, solution = row.solution, reward = reward,
        text = "<think>t</think><answer>{}</answer>", parts = { iou = 0 }, iou = 0.5,
        found = { bbox = box, points = {} }, truth = { { bbox = { 10, 10, 30, 30 } } } }
    end
    return list
  end
  local name = os.tmpname()
  local path = name .. ".png"
  local function size(count)
    draw.changes(path, set, records(1, { 1, 1, 9, 9 }), records(2, { 10, 10, 30, 30 }),
      { count = count, title = "run" })
    return image.size(path)
  end
  local width, height = size(1)
  local wide, high = size(2)
  check.ok(wide > 1.9 * width - 100 and high == height, "two pairs in a row")
  check.ok(select(2, size(9)) > 1.5 * height, "four pairs in two rows")
  os.remove(path)
  os.remove(name)
end)

check.finish()
