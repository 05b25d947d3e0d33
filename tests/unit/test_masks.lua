-- test_masks.lua - the column `mask` in all its forms (formats/mask.lua, formats/rle.lua): files,
-- COCO's run lengths and polygons, rows of pixels. Decoded masks are compared with pycocotools'
-- (golden/make_masks.py).

local cjson = require "cjson"
local check = require "tests.support.check"
local mask_runs = require "segzero.formats.mask_runs"
local mini = require "tests.support.miniature"
local data = require "segzero.data"
local ffi = require "ffi"
local files = require "segzero.core.files"
local image = require "segzero.formats.image"
local mask_of = require "segzero.formats.mask"
local sz = require "segzero"

local place = mini.folder()

local function read(value, width, height)
  local options = { folder = place, width = width, height = height }
  return mask_runs.pack(mask_of.read(value, options)).runs
end

-- ---- COCO ----
local golden = {}
local pngs = {}
for _, case in ipairs(files.read_json "tests/golden/masks.json") do
  if case.file then pngs[#pngs + 1] = case else golden[#golden + 1] = case end
end

check.case("run lengths and polygons are pycocotools' pixels", function()
  check.equal(#golden, 58, "cases")
  for _, c in ipairs(golden) do check.equal(read(c.mask, c.width, c.height), c.rows, c.name) end
end)

check.case("the same as JSON in a string", function()
  for i = 1, #golden, 9 do
    local c = golden[i]
    check.equal(read(cjson.encode(c.mask), c.width, c.height), c.rows, c.name)
  end
end)

check.case("one polygon without the outer list", function()
  local c = golden[1]
  check.equal(read(c.mask[1], c.width, c.height), c.rows, c.name)
end)

-- ---- rows of pixels ----
check.case("rows of booleans and of numbers", function()
  local T, F = true, false
  check.equal(read({ { F, T, F }, { T, T, F } }, 3, 2), { 1, 1, 1, 2, 1 }, "booleans")
  check.equal(read({ { 0, 1, 0 }, { 255, 0.5, 0 } }, 3, 2), { 1, 1, 1, 2, 1 }, "numbers")
end)

-- ---- files ----
local function grey(name, width, height, values)
  local p = ffi.new("uint8_t[?]", width * height)
  for at, v in pairs(values) do p[at] = v end
  image.write_png(place .. "/" .. name, width, height, 1, p)
  return name
end

check.case("a file: anything but 0 is inside", function()
  check.equal(read(grey("ones.png", 4, 2, { [1] = 1, [2] = 1 }), 4, 2), { 1, 2, 5 }, "1")
  check.equal(read(grey("full.png", 4, 2, { [1] = 255, [2] = 127 }), 4, 2), { 1, 2, 5 }, "255, 127")
  local p = ffi.new("uint8_t[?]", 3 * 8)
  p[3 * 2 + 1] = 9
  p[3 * 5 + 2] = 1
  image.write_png(place .. "/colour.png", 4, 2, 3, p)
  check.equal(read("colour.png", 4, 2), { 2, 1, 2, 1, 2 }, "green and blue")
end)

local function bytes_of(hex)
  return (hex:gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end))
end

check.case("files of Pillow: depths, colours, alpha, palettes", function()
  check.equal(#pngs, 17, "files")
  local empty = 0
  for i, c in ipairs(pngs) do
    local name = ("file%d.png"):format(i)
    files.write(place .. "/" .. name, bytes_of(c.file))
    local ok, rows = pcall(read, name, c.width, c.height)
    local is_empty = #c.rows == 1
    if is_empty then
      empty = empty + 1
      check.ok(not ok and rows:find "is empty", c.name)
    else
      check.equal(rows, c.rows, c.name)
    end
    check.equal({ mask_of.facts(place .. "/" .. name) }, { c.width, c.height, is_empty }, c.name)
  end
  check.equal(empty, 3, "empty ones")
end)

-- Masks of a few pixels of any value: what a look at the file says is what decoding it says.
check.case("a look at a file agrees with decoding it", function()
  math.randomseed(check.seed)
  local some = 0
  for i = 1, 300 do
    local width = math.random(1, 70)
    local height = math.random(1, 70)
    local values = {}
    for _ = 1, math.random(0, 2) do
      values[math.random(0, width * height - 1)] = math.random(0, 3) * math.random(0, 85)
    end
    local path = place .. "/" .. grey("any.png", width, height, values)
    local _, _, is_empty = mask_of.facts(path)
    local t = image.load_mask(path)
    check.equal(is_empty, #mask_runs.pack(t).runs == 1, ("mask %d"):format(i))
    if not is_empty then some = some + 1 end
  end
  check.ok(some > 100 and some < 300, ("%d of 300 have something inside"):format(some))
end)

check.case("a damaged file is noticed", function()
  local bytes = bytes_of(pngs[2].file)
  local path = place .. "/damaged.png"
  for _, cut in ipairs { 1, 20, 40 } do
    files.write(path, bytes:sub(1, #bytes - 12 - cut))
    check.raises(function() mask_of.facts(path) end, "damaged.png", ("%d bytes less"):format(cut))
  end
  local at = bytes:find "IDAT" + 10
  files.write(path, bytes:sub(1, at - 1) .. string.char(255 - bytes:byte(at)) .. bytes:sub(at + 1))
  check.raises(function() mask_of.facts(path) end, "damaged.png", "another byte")
end)

-- ---- what is wrong is said ----
local function raises(pattern, value, name)
  check.raises(function() read(value, 4, 2) end, pattern, name)
end

check.case("a mask without a pixel inside is an error", function()
  local empty = "is empty: it has no pixel but 0"
  raises("^the mask nothing.png " .. empty, grey("nothing.png", 4, 2, {}), "a file")
  raises("^the mask %(run lengths%) " .. empty, { size = { 2, 4 }, counts = { 8 } }, "runs")
  raises("^the mask %(polygons%) " .. empty, { { 90, 90, 95, 90, 95, 95 } }, "a polygon outside")
  raises("^the mask %(pixels%) " .. empty, { { false, false, false, false },
    { false, false, false, false } }, "pixels")
end)

check.case("a mask of another size is an error", function()
  raises("^the mask five.png has 5 x 2 pixels, the image 4 x 2",
    grey("five.png", 5, 2, { [1] = 1 }), "a file")
  raises("^the mask %(run lengths%) has 3 x 2 pixels, the image 4 x 2",
    { size = { 2, 3 }, counts = { 1, 5 } }, "runs")
  raises("^the mask %(pixels%): row 2 of the mask has 3 pixels, the image 4",
    { { true, true, true, true }, { true, true, true } }, "pixels")
end)

check.case("damaged masks", function()
  raises("the run lengths cover 5 pixels of 8", { size = { 2, 4 }, counts = { 2, 3 } }, "too few")
  raises("run length 2 is %-3, expected a whole", { size = { 2, 4 }, counts = { 2, -3, 9 } },
    "sign")
  raises("the run lengths are damaged at character 2", { size = { 2, 4 }, counts = "1\2" }, "text")
  raises("the run lengths are cut off", { size = { 2, 4 }, counts = "1P" }, "cut off")
  raises("a polygon has 4 numbers, expected x, y of at least three", { { 1, 1, 2, 2 } },
    "two points")
  raises("a polygon has 7 numbers", { { 1, 1, 2, 2, 3, 3, 4 } }, "an odd number")
  raises("number 2 of a polygon is 1e%+300, expected a coordinate", { { 0, 1e300, 2, 2, 1, 1 } },
    "too large")
  raises("number 1 of a polygon is nan", { { 0 / 0, 1, 2, 2, 1, 1 } }, "nan")
  raises("an object without size", { counts = { 8 } }, "no size")
  raises("^the mask is number, expected a string, an object or a list", 7, "a number")
  raises("gone.png", "gone.png", "a missing file")
end)

check.case("random bytes for run lengths end in an error or a mask", function()
  math.randomseed(check.seed)
  local ended = 0
  for _ = 1, 2000 do
    local text = {}
    for i = 1, math.random(0, 12) do text[i] = string.char(math.random(40, 120)) end
    local value = { size = { 2, 4 }, counts = table.concat(text) }
    local ok, reason = pcall(read, value, 4, 2)
    if ok or type(reason) == "string" then ended = ended + 1 end
  end
  check.equal(ended, 2000, "all")
end)

-- ---- in a data set ----
check.case("a data set takes every form", function()
  image.new(20, 16):save(place .. "/photo.png")
  local lines = {}
  for i = 1, 3 do
    lines[i] = cjson.encode { problem = "p", solution = "s", image = "photo.png",
      mask = golden[i].mask }
  end
  lines[4] = cjson.encode { problem = "p", solution = "s", image = "photo.png",
    mask = grey("set.png", 20, 16, { [7] = 1 }) }
  files.write(place .. "/data.jsonl", table.concat(lines, "\n"))
  local set = data.open(place)
  for i = 1, 3 do
    check.equal(mask_runs.pack(set:row(i).mask()).runs, golden[i].rows, golden[i].name)
  end
  check.equal(mask_runs.pack(set:row(4).mask()).runs, { 7, 1, 312 }, "a file")
end)

check.case("a mask as a message between ranks", function()
  for _, rows in ipairs { { { 0, 0 } }, { { 1, 1 }, { 1, 1 } }, { { 1, 0, 0 }, { 0, 0, 1 } },
    { { 0, 1 }, { 1, 0 } } } do
    local message = mask_runs.pack(sz.tensor(rows, { dtype = "u8" }))
    check.equal(mask_runs.unpack(message):totable(), rows, table.concat(message.runs, " "))
  end
  check.equal({ mask_runs.pack(nil), mask_runs.unpack(nil) }, {}, "no mask")
end)

mini.remove()
check.finish()
