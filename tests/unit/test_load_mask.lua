-- test_load_mask.lua - image.load_mask: what of a mask's file counts as inside
-- (runtime/io/image/mask.c). The files are made here, as PNM and BMP; some are fixtures of
-- make_images.py.
--
--   ./segzero tests/unit/test_load_mask.lua

local check = require "tests.support.check"
local files = require "segzero.core.files"
local sz = require "segzero"

local image = sz.image
local GOLDEN = "tests/golden/images/"

local dir = os.tmpname()
os.remove(dir)
files.make_dir(dir)

-- The mask of a file with these bytes, as a list of rows.
local function mask_of(text)
  local path = dir .. "/mask"
  files.write(path, text)
  local t = image.load_mask(path)
  check.equal(t:dtype(), "u8", "dtype")
  local rows = t:totable()
  t:free()
  return rows
end

local function little(value, n)
  local out = {}
  for i = 1, n do
    out[i] = string.char(value % 256)
    value = math.floor(value / 256)
  end
  return table.concat(out)
end

-- A BMP with rows from the top. pixels: the packed rows; extra: palette or masks.
local function bmp(width, height, bits, pixels, extra, header, compression, colours)
  local info = little(header, 4) .. little(width, 4) .. little(2 ^ 32 - height, 4) .. little(1, 2)
    .. little(bits, 2) .. little(compression, 4) .. little(0, 12) .. little(colours, 4)
    .. little(0, 4)
  if header > 40 then
    info = info .. extra .. little(0, header - #info - #extra)
    extra = ""
  end
  return "BM" .. little(0, 8) .. little(14 + #info + #extra, 4) .. info .. extra .. pixels
end

-- Indexes 0 to 255 of a row of four; palette: {{r, g, b}, ...}.
local function indexed(row, palette)
  local colours = {}
  for i, c in ipairs(palette) do colours[i] = string.char(c[3], c[2], c[1], 0) end
  return bmp(4, 1, 8, string.char(unpack(row)), table.concat(colours), 40, 0, #palette)
end

-- A row of four pixels {r, g, b, a}.
local function rgba(row)
  local pixels = {}
  for i, p in ipairs(row) do pixels[i] = string.char(p[1], p[2], p[3], p[4]) end
  local masks = little(0xff, 4) .. little(0xff00, 4) .. little(0xff0000, 4) .. little(0xff000000, 4)
  return bmp(4, 1, 32, table.concat(pixels), masks, 124, 3, 0)
end

local BLACK = { 0, 0, 0 }
local WHITE = { 255, 255, 255 }
local RED = { 255, 0, 0 }
local GREEN = { 0, 128, 0 }

check.case("grey: anything but 0 is inside", function()
  check.equal(mask_of "P5 4 1 255\n\0\1\127\255", { { 0, 1, 1, 1 } }, "0, 1, 127, 255")
  check.equal(mask_of "P5 2 2 1\n\0\1\1\0", { { 0, 1 }, { 1, 0 } }, "0 and 1 of 1")
  check.equal(mask_of "P2 3 1 255\n0 255 0\n", { { 0, 1, 0 } }, "text")
end)

check.case("16 bits are not cut to 8", function()
  check.equal(mask_of "P5 3 1 65535\n\0\0\0\1\1\0", { { 0, 1, 1 } }, "0, 1 and 256")
  check.equal(mask_of "P5 2 1 1000\n\0\0\0\1", { { 0, 1 } }, "1 of 1000")
  check.equal(mask_of "P6 2 1 65535\n\0\0\0\0\0\0\0\0\0\1\0\0", { { 0, 1 } }, "colour: 1 of 65535")
end)

check.case("colour: any channel but 0 is inside", function()
  check.equal(mask_of "P6 4 1 255\n\0\0\0\1\0\0\0\1\0\0\0\1", { { 0, 1, 1, 1 } },
    "black, and a little of each")
end)

check.case("a palette with black first is a label map: the index decides", function()
  local row = { 0, 1, 2, 3 }
  check.equal(mask_of(indexed(row, { BLACK, RED, GREEN, WHITE })), { { 0, 1, 1, 1 } }, "VOC")
  check.equal(mask_of(indexed(row, { BLACK, BLACK, BLACK, BLACK })), { { 0, 1, 1, 1 } },
    "labels without colours")
  check.equal(mask_of(indexed({ 0, 1, 255, 0 }, { BLACK })), { { 0, 1, 1, 0 } },
    "labels that the palette does not have")
end)

check.case("a palette with black elsewhere was sorted: the colour decides", function()
  check.equal(mask_of(indexed({ 0, 1, 1, 0 }, { WHITE, BLACK })), { { 1, 0, 0, 1 } }, "white first")
  check.equal(mask_of(indexed({ 0, 1, 2, 0 }, { RED, BLACK, GREEN })), { { 1, 0, 1, 1 } },
    "red, black, green")
end)

check.case("a palette without black is a label map too", function()
  check.equal(mask_of(indexed({ 0, 1, 1, 0 }, { GREEN, RED })), { { 0, 1, 1, 0 } }, "ADE")
  check.equal(mask_of(indexed({ 0, 1, 1, 0 }, { GREEN, RED, BLACK })), { { 0, 1, 1, 0 } },
    "black that no pixel uses")
end)

check.case("alpha decides if it is 0 here and not there", function()
  local clear = { 255, 255, 255, 0 }
  check.equal(mask_of(rgba { clear, { 255, 255, 255, 255 }, clear, { 255, 255, 255, 9 } }),
    { { 0, 1, 0, 1 } }, "one colour")
  check.equal(mask_of(rgba { clear, { 0, 0, 0, 255 }, clear, { 90, 0, 0, 255 } }),
    { { 0, 1, 0, 1 } }, "a cut-out with black parts")
end)

check.case("alpha that is the same everywhere says nothing", function()
  local black = { 0, 0, 0, 255 }
  local white = { 255, 255, 255, 255 }
  check.equal(mask_of(rgba { black, white, white, black }), { { 0, 1, 1, 0 } }, "opaque")
  check.equal(mask_of(rgba { black, black, black, black }), { { 0, 0, 0, 0 } }, "empty")
  local faint = { 0, 0, 0, 0 }
  local hidden = { 7, 0, 0, 0 }
  check.equal(mask_of(rgba { faint, hidden, faint, hidden }), { { 0, 1, 0, 1 } }, "transparent")
  check.equal(mask_of(rgba { black, { 255, 0, 0, 100 }, black, { 0, 0, 0, 100 } }),
    { { 0, 1, 0, 0 } }, "never 0")
end)

check.case("JPEG: above 127 is inside", function()
  local img = image.new(32, 16)
  local p = img:pixels()
  for y = 0, 15 do
    for x = 9, 22 do
      for c = 0, 2 do p[(y * 32 + x) * 3 + c] = 255 end
    end
  end
  img:save(dir .. "/mask.jpg")
  local t = image.load_mask(dir .. "/mask.jpg")
  local want = {}
  for x = 1, 32 do want[x] = (x > 9 and x <= 23) and 1 or 0 end
  local rows = t:totable()
  check.equal(rows[1], want, "first row: no noise next to the edge")
  check.equal(rows[16], want, "last row")
end)

check.case("a mask is turned as an image is", function()
  local upright = image.load_mask(GOLDEN .. "exif_1.jpg"):totable()
  local turned = image.load_mask(GOLDEN .. "exif_6.jpg"):totable()
  check.equal({ #turned, #turned[1] }, { #upright[1], #upright }, "the sides change places")
  local wrong = 0
  for y = 1, #turned do
    for x = 1, #turned[1] do
      if turned[y][x] ~= upright[#upright + 1 - x][y] then wrong = wrong + 1 end
    end
  end
  check.equal(wrong, 0, "pixels elsewhere")
end)

check.case("a GIF's transparent colour is outside", function()
  local t = image.load_mask(GOLDEN .. "transparent_17x13.gif")
  local inside = 0
  for _, row in ipairs(t:totable()) do
    for _, v in ipairs(row) do inside = inside + v end
  end
  check.ok(inside > 0 and inside < 17 * 13, inside .. " pixels are inside")
end)

-- Samples 0 to 15 in two rows; 4 is transparent. An image has 68 there, as in Pillow.
check.case("a PNG's transparent colour is outside by the standard", function()
  local rows = image.load_mask(GOLDEN .. "grey4_key_4.png"):totable()
  check.equal(rows, { { 1, 1, 1, 1, 0, 1, 1, 1 }, { 1, 1, 1, 1, 1, 1, 1, 1 } }, "the mask")
  local shown = image.load(GOLDEN .. "grey4_key_4.png"):pixels()
  check.equal(shown[4 * 3], 68, "the image")
end)

check.case("a bad mask is one line", function()
  files.write(dir .. "/half", "P5 4 4 255\n\0\1")
  check.raises(function() image.load_mask(dir .. "/half") end, "half: cannot decode the image",
    "cut off")
  check.raises(function() image.load_mask(dir .. "/none") end, "none: No such file", "no file")
end)

os.execute("rm -rf " .. dir)
check.finish()
