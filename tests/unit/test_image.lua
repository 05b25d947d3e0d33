-- test_image.lua - reading, writing and resizing images. Resizes must equal Pillow's
-- (tests/golden/resize.safetensors). Decoded colours are checked on images whose pixels follow from
-- how they were made (tests/golden/processor).
--
--   ./segzero tests/unit/test_image.lua

local ffi = require "ffi"
local check = require "tests.support.check"
local sz = require "segzero"
local files = require "segzero.core.files"
local tensor = require "segzero.core.tensor"

local image = sz.image
local exists = files.exists
local read_file = files.read
local write_file = files.write

local IMAGES = "tests/golden/processor/"

local dir = os.tmpname()
os.remove(dir)
files.make_dir(dir)

-- ---- resize against Pillow ----

-- The image of a golden tensor [h, w, 3]; grey [h, w] becomes three equal channels.
local function image_of(t)
  local shape = t:shape()
  local from = tensor.data(t)
  local img = image.new(shape[2], shape[1])
  local to = img:pixels()
  local grey = shape[3] ~= 3
  local channels = shape[3] or 1
  for i = 0, shape[1] * shape[2] - 1 do
    for c = 0, 2 do
      local source = channels * i
      if not grey then source = source + c end
      to[3 * i + c] = from[source]
    end
  end
  return img
end

-- The pixels of an image as a string.
local function pixels_of(img) return ffi.string(img:pixels(), img.width * img.height * 3) end

check.case("resizes equal Pillow's", function()
  local golden = sz.safetensors.load("tests/golden/resize.safetensors")
  local count = 0
  local wrong = {}
  for name, want in pairs(golden) do
    local k, filter, h, w = name:match("^(%d+)%.(%a+)%.(%d+)x(%d+)$")
    if k then
      count = count + 1
      local from = image_of(golden[k .. ".src"])
      local expected = image_of(want)
      local got = from:resize(tonumber(w), tonumber(h), filter)
      if pixels_of(got) ~= pixels_of(expected) then wrong[#wrong + 1] = name end
      from:free()
      expected:free()
      got:free()
    end
  end
  table.sort(wrong)
  check.equal(wrong, {}, count .. " resizes equal Pillow's")
  check.ok(count > 50, "golden resizes found")
end)

-- ---- colours ----

check.case("what is transparent is put on white", function()
  -- make_processor.py draws a gradient, no shape over x = 0 or 1 of its first row, and alpha 7 x.
  local img = image.load(IMAGES .. "alpha.png")
  check.equal({ img.width, img.height }, { 80, 64 }, "alpha.png: size")
  local p = img:pixels()
  check.equal({ p[0], p[1], p[2], p[3], p[4], p[5] }, { 255, 255, 255, 248, 248, 248 },
    "alpha 0 is white, alpha 7 nearly")
end)

check.case("grey is repeated in three channels", function()
  local grey = image.load(IMAGES .. "grey.png")
  local p = grey:pixels()
  local equal = true
  for i = 0, grey.width * grey.height - 1 do
    local red = p[3 * i]
    if p[3 * i + 1] ~= red or p[3 * i + 2] ~= red then equal = false end
  end
  check.ok(equal, "grey is repeated")
end)

check.case("the size is read from the header", function()
  check.equal({ image.size(IMAGES .. "palette.png") }, { 75, 58 }, "size from the header")
end)

-- ---- writing ----

local WIDTH = 13
local HEIGHT = 7
local BYTES = WIDTH * HEIGHT * 3

-- A small image of known pixels.
local function small_image()
  local img = image.new(WIDTH, HEIGHT)
  local p = img:pixels()
  for i = 0, BYTES - 1 do p[i] = (i * 37 + check.seed) % 256 end
  return img
end

-- A smooth image.
local function smooth_image()
  local img = image.new(64, 48)
  local p = img:pixels()
  for y = 0, 47 do
    for x = 0, 63 do
      for c = 0, 2 do p[(y * 64 + x) * 3 + c] = 40 + 2 * x + y + 10 * c end
    end
  end
  return img
end

local small = small_image()
local smooth = smooth_image()
local png_path = dir .. "/a.png"
local jpeg_path = dir .. "/c.JPEG"
small:save(png_path)
smooth:save(jpeg_path)

check.case("PNG gives back every pixel", function()
  check.equal(tostring(small), "image 13 x 7", "tostring")
  local back = image.load(png_path)
  check.equal(pixels_of(back), pixels_of(small), "PNG gives back every pixel")
  check.ok(not exists(png_path .. ".tmp"), "no temporary file is left")
end)

check.case("the content decides the format, not the name", function()
  write_file(dir .. "/b.jpg", read_file(png_path))
  check.equal(image.load(dir .. "/b.jpg").width, WIDTH, "a PNG named .jpg")
end)

check.case("JPEG at quality 92 keeps a smooth image within a few levels", function()
  local before = smooth:pixels()
  local again = image.load(jpeg_path):pixels()
  local worst = 0
  for i = 0, 64 * 48 * 3 - 1 do worst = math.max(worst, math.abs(again[i] - before[i])) end
  check.ok(worst <= 6, "JPEG stays close, off by " .. worst)
end)

check.case("images to tensors and back", function()
  local t = small:totensor()
  check.equal(t:shape(), { HEIGHT, WIDTH, 3 }, "totensor: shape")
  check.equal(t:dtype(), "u8", "totensor: dtype")
  check.equal(t:totable()[HEIGHT][WIDTH][3], small:pixels()[BYTES - 1], "totensor: last value")
  local from = image.from_tensor(t)
  check.equal(pixels_of(from), pixels_of(small), "from_tensor")
end)

check.case("write_png writes one channel", function()
  local levels = ffi.new("uint8_t[8]", { 0, 255, 0, 255, 9, 9, 9, 9 })
  image.write_png(dir .. "/mask.png", 4, 2, 1, levels)
  local p = image.load(dir .. "/mask.png"):pixels()
  check.equal({ p[3], p[14] }, { 255, 9 }, "a grey PNG")
end)

check.case("an image may be freed twice but not used after that", function()
  local img = small_image()
  img:free()
  img:free()
  check.raises(function() img:resize(2, 2) end, "freed", "a freed image")
end)

-- ---- bad input: one clear error each ----

local png = read_file(png_path)
local jpeg = read_file(jpeg_path)

-- Loading a file with this text fails; the message has the file's name and the pattern.
local function bad(name, text, pattern)
  local path = dir .. "/" .. name
  write_file(path, text)
  check.raises(function() image.load(path) end, name:gsub("%p", "%%%0") .. ".*" .. pattern, name)
end

-- The first half of a text.
local function half(text) return text:sub(1, math.floor(#text / 2)) end

-- The small PNG with 60000 x 60000 in its header.
local huge_png = png:sub(1, 16) .. "\0\0\234\96\0\0\234\96" .. png:sub(25)

check.case("damaged files and unknown formats", function()
  bad("empty.png", "", "empty")
  bad("text.png", "this is not an image at all", "known format")
  bad("half.png", half(png), "cannot decode")
  bad("half.jpg", half(jpeg), "cut off")
  bad("head.jpg", jpeg:sub(1, 20), "cannot decode the image: the file is cut off")
  bad("webp.webp", "RIFF\4\0\0\0WEBPVP8 ", "WebP")
  bad("huge.png", huge_png, "limit")
end)

check.case("sizes of bad files", function()
  local huge_path = dir .. "/size_huge.png"
  local text_path = dir .. "/size_text.png"
  write_file(huge_path, huge_png)
  write_file(text_path, "this is not an image at all")
  check.raises(function() image.size(huge_path) end, "size_huge%.png.*limit", "size of a huge PNG")
  check.raises(function() image.size(text_path) end, "known format", "size of a text")
end)

check.case("bad paths", function()
  local function save(path) image.new(4, 4):save(path) end
  check.raises(function() image.load("no/such/file.png") end, "no/such/file%.png: No such file",
    "no file")
  check.raises(function() image.load(dir) end, "not a regular file", "a folder")
  check.raises(function() image.load(7) end, "file name", "a number for a name")
  check.raises(function() save(dir .. "/x.gif") end, "x%.gif.*%.png", "saving as GIF")
  check.raises(function() save("/no/such/folder/x.png") end, "No such file",
    "saving to a folder that does not exist")
end)

check.case("bad sizes and filters", function()
  check.raises(function() image.new(4, 4):resize(4, 0) end, "height.*0", "resize to 0")
  check.raises(function() image.new(4, 4):resize(4, 4, "box") end, "box", "unknown filter")
  check.raises(function() image.new(0, 4) end, "width", "no width")
  check.raises(function() image.new(100000, 100000) end, "limit", "too many pixels")
end)

os.execute("rm -rf " .. dir)
-- ---- what stb_image reads ----
local function bytes(...) return string.char(...) end

local function decoded(text, name)
  local img = sz.image.decode(text, name)
  local p = img:pixels()
  local list = {}
  for k = 0, img.width * img.height * 3 - 1 do list[k + 1] = p[k] end
  img:free()
  return list
end

-- A PSD of 2 x 1 pixels in RGB; body: the code and what follows it.
local function psd_of(planes, bits, body)
  return "8BPS\0\1\0\0\0\0\0\0\0" .. bytes(planes) .. "\0\0\0\1\0\0\0\2\0" .. bytes(bits)
    .. "\0\3" .. ("\0"):rep(12) .. body
end

check.case("PSD: planes, packed rows, alpha, damage", function()
  local five = psd_of(5, 8, "\0\0" .. bytes(1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
  check.equal(decoded(five, "x.psd"), { 1, 3, 5, 2, 4, 6 }, "of five planes the first three")
  local deep = psd_of(3, 16, "\0\0" .. bytes(1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0))
  check.equal(decoded(deep, "x.psd"), { 1, 3, 5, 2, 4, 6 }, "16 bits: the high byte")

  -- Rows as a run, as two values, after a code that does nothing; alpha is opaque, then nothing.
  local rows = bytes(255, 9) .. bytes(1, 3, 4) .. bytes(128, 255, 5) .. bytes(1, 255, 0)
  local lengths = "\0\2\0\3\0\3\0\3"
  check.equal(decoded(psd_of(4, 8, "\0\1" .. lengths .. rows), "x.psd"),
    { 9, 3, 5, 255, 255, 255 }, "packed, on white where it is transparent")
  local function refused(text, why)
    check.raises(function() sz.image.decode(text, "x") end, "x: cannot decode the image: " .. why,
      why)
  end
  refused(psd_of(4, 8, "\0\1" .. lengths .. rows:gsub("^.", "\253")), "a packed row is damaged")
  refused(psd_of(4, 8, "\0\1" .. lengths .. rows:sub(1, -2)), "the file is cut off")
  refused(psd_of(3, 8, "\0\2" .. bytes(1, 2, 3, 4, 5, 6)), "only raw and packed rows")
  refused(psd_of(2, 8, "\0\0" .. bytes(1, 2, 3, 4)), "an RGB PSD with fewer than three planes")
  refused(psd_of(3, 1, "\0\0" .. bytes(1, 2, 3)), "only 8 and 16 bits")
end)

check.case("TGA is read by stb_image, PSD by us, and a cut-off file is refused", function()
  -- 2 x 1, blue-green-red: a red and a blue pixel; then the same pixel twice as one packet.
  local head = bytes(0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 24, 0x20)
  local plain = head .. bytes(0, 0, 255, 255, 0, 0)
  check.equal(decoded(plain, "x.tga"), { 255, 0, 0, 0, 0, 255 }, "TGA")
  local packed = head:gsub("^(..).", "%1\10") .. bytes(0x81, 10, 20, 30)
  check.equal(decoded(packed, "x.tga"), { 30, 20, 10, 30, 20, 10 }, "TGA, packed")

  local psd = "8BPS\0\1\0\0\0\0\0\0\0\3\0\0\0\1\0\0\0\2\0\8\0\3" .. ("\0"):rep(12)
    .. "\0\0" .. bytes(1, 2, 3, 4, 5, 6)
  check.equal(decoded(psd, "x.psd"), { 1, 3, 5, 2, 4, 6 }, "PSD: one plane after the other")

  for name, text in pairs { tga = plain, packed = packed, psd = psd } do
    for n = 1, 3 do
      check.raises(function() sz.image.decode(text:sub(1, -1 - n), "cut") end,
        "cut: cannot decode the image: the file is cut off", name)
    end
  end
  local huge = head:sub(1, 12) .. ("\255"):rep(4) .. head:sub(17)
  check.raises(function() sz.image.decode(huge, "x") end,
    "over the limit", "a large size is refused first")
end)

check.finish()
