-- test_image.lua - reading, writing and resizing images. Resizes must equal Pillow's
-- (tests/golden/resize.safetensors); decoded colours are checked on images whose pixels are known by
-- construction (tests/golden/processor).

local ffi = require "ffi"
local check = require "tests.support.check"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local image = sz.image

local PICTURES = "tests/golden/processor/"

local files = require "segzero.core.files"
local write_file, read_file, exists = files.write, files.read, files.exists

local dir = os.tmpname()
os.remove(dir)
assert(os.execute("mkdir " .. dir))

-- ---- resize against Pillow ----
local golden = sz.safetensors.load("tests/golden/resize.safetensors")

-- A picture of a golden tensor; grey [h, w] becomes three equal channels.
local function picture_of(t)
  local s, p = t:shape(), tensor.data(t)
  local img, channels = image.new(s[2], s[1]), s[3] or 1
  local q = img:pixels()
  for i = 0, s[1] * s[2] - 1 do
    for c = 0, 2 do q[3 * i + c] = p[channels * i + (channels == 3 and c or 0)] end
  end
  return img
end

local cases, wrong = 0, {}
for name, want in pairs(golden) do
  local k, filter, h, w = name:match("^(%d+)%.(%a+)%.(%d+)x(%d+)$")
  if k then
    cases = cases + 1
    local from, expected = picture_of(golden[k .. ".src"]), picture_of(want)
    local got = from:resize(tonumber(w), tonumber(h), filter)
    if ffi.string(got:pixels(), w * h * 3) ~= ffi.string(expected:pixels(), w * h * 3) then wrong[#wrong + 1] = name end
    from:free()
    expected:free()
    got:free()
  end
end
table.sort(wrong)
check.equal(wrong, {}, cases .. " resizes equal Pillow's")
check.ok(cases > 50, "golden resizes found")

-- ---- colours ----
do
  -- The gradient of make_processor.py, where no shape was drawn over it: at x = 0 or 1 of the first row.
  local img = image.load(PICTURES .. "alpha.png")
  check.equal({ img.width, img.height }, { 80, 64 }, "alpha.png: size")
  local p = img:pixels()
  check.equal({ p[0], p[1], p[2], p[3], p[4], p[5] }, { 0, 0, 0, 3, 0, 3 },
    "alpha is dropped, not blended")
  local grey = image.load(PICTURES .. "grey.png")
  local g, equal = grey:pixels(), true
  for i = 0, grey.width * grey.height - 1 do equal = equal and g[3 * i] == g[3 * i + 1] and g[3 * i] == g[3 * i + 2] end
  check.ok(equal, "grey is repeated")
  check.equal({ image.size(PICTURES .. "palette.png") }, { 75, 58 }, "size from the header")
end

-- ---- writing ----
do
  local img = image.new(13, 7)
  check.equal(tostring(img), "image 13 x 7", "tostring")
  local p = img:pixels()
  for i = 0, 13 * 7 * 3 - 1 do p[i] = (i * 37 + check.seed) % 256 end
  img:save(dir .. "/a.png")
  local back = image.load(dir .. "/a.png")
  check.equal(ffi.string(back:pixels(), 273), ffi.string(p, 273), "PNG gives back every pixel")
  check.ok(not exists(dir .. "/a.png.tmp"), "no temporary file is left")

  -- Content counts, not the name.
  write_file(dir .. "/b.jpg", read_file(dir .. "/a.png"))
  check.equal(image.load(dir .. "/b.jpg").width, 13, "a PNG named .jpg")

  -- A smooth picture survives JPEG at quality 92 within a few levels.
  local smooth = image.new(64, 48)
  local s = smooth:pixels()
  for y = 0, 47 do for x = 0, 63 do for c = 0, 2 do s[(y * 64 + x) * 3 + c] = 40 + 2 * x + y + 10 * c end end end
  smooth:save(dir .. "/c.JPEG")
  local again, worst = image.load(dir .. "/c.JPEG"), 0
  for i = 0, 64 * 48 * 3 - 1 do worst = math.max(worst, math.abs(again:pixels()[i] - s[i])) end
  check.ok(worst <= 6, "JPEG stays close, off by " .. worst)

  local t = img:totensor()
  check.equal(t:shape(), { 7, 13, 3 }, "totensor: shape")
  check.equal(t:dtype(), "u8", "totensor: dtype")
  check.equal(t:totable()[7][13][3], p[272], "totensor: last value")
  local from = image.from_tensor(t)
  check.equal(ffi.string(from:pixels(), 273), ffi.string(p, 273), "from_tensor")

  image.write_png(dir .. "/mask.png", 4, 2, 1, ffi.new("uint8_t[8]", { 0, 255, 0, 255, 9, 9, 9, 9 }))
  local mask = image.load(dir .. "/mask.png")
  check.equal({ mask:pixels()[3], mask:pixels()[14] }, { 255, 9 }, "a grey PNG")

  img:free()
  img:free()
  check.raises(function() img:resize(2, 2) end, "freed", "a freed picture")
end

-- ---- bad input: one clear error each ----
local png, jpeg = read_file(dir .. "/a.png"), read_file(dir .. "/c.JPEG")
local function bad(name, text, pattern)
  local path = dir .. "/" .. name
  write_file(path, text)
  check.raises(function() image.load(path) end, name:gsub("%p", "%%%0") .. ".*" .. pattern, name)
end
bad("empty.png", "", "empty")
bad("text.png", "this is no picture at all", "known format")
bad("half.png", png:sub(1, math.floor(#png / 2)), "cannot decode")
bad("half.jpg", jpeg:sub(1, math.floor(#jpeg / 2)), "cut off")
bad("head.jpg", jpeg:sub(1, 20), "header is damaged or cut off")
bad("webp.webp", "RIFF\4\0\0\0WEBPVP8 ", "WebP")
-- 60000 x 60000 in the header of a tiny file.
bad("huge.png", png:sub(1, 16) .. "\0\0\234\96\0\0\234\96" .. png:sub(25), "limit")
check.raises(function() image.load("no/such/file.png") end,
  "no/such/file%.png: No such file", "no file")
check.raises(function() image.load(dir) end, "not a regular file", "a folder")
check.raises(function() image.size(dir .. "/huge.png") end, "huge%.png.*limit", "size of huge.png")
check.raises(function() image.size(dir .. "/text.png") end, "known format", "size of a text")
check.raises(function() image.load(7) end, "file name", "a number for a name")
check.raises(function() image.new(4, 4):save(dir .. "/x.gif") end, "x%.gif.*%.png", "saving as GIF")
check.raises(function() image.new(4, 4):save("/no/such/folder/x.png") end,
  "No such file", "saving into no folder")
check.raises(function() image.new(4, 4):resize(4, 0) end, "height.*0", "resize to 0")
check.raises(function() image.new(4, 4):resize(4, 4, "box") end, "box", "unknown filter")
check.raises(function() image.new(0, 4) end, "width", "no width")
check.raises(function() image.new(100000, 100000) end, "limit", "too many pixels")

os.execute("rm -rf " .. dir)
check.finish()
