-- test_image_files.lua - image files of all kinds: pixels equal to Pillow's and transformers'
-- (tests/golden/images, made by make_images.py), headers, and files that must be refused: damaged,
-- cut off, too large, not regular.
--
--   ./segzero tests/unit/test_image_files.lua

local bit = require "bit"
local cjson = require "cjson"
local ffi = require "ffi"
local unistd = require "posix.unistd"
local stat = require "posix.sys.stat"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local sz = require "segzero"

local image = sz.image
local GOLDEN = "tests/golden/images/"

local dir = os.tmpname()
os.remove(dir)
files.make_dir(dir)

local cases = cjson.decode(files.read(GOLDEN .. "cases.json"))
local bytes_of = {}
for _, case in ipairs(cases) do bytes_of[case.file] = files.read(GOLDEN .. case.file) end

-- FNV-1a of the pixels, 32 bits. 16777619 = 2^24 + 403, in two parts that a double holds.
local function hash_of(img)
  local p = img:pixels()
  local value = 0x811c9dc5
  for i = 0, img.width * img.height * 3 - 1 do
    value = bit.bxor(value, p[i]) % 2 ^ 32
    value = (value * 403 + value % 256 * 2 ^ 24) % 2 ^ 32
  end
  return ("%08x"):format(value)
end

-- Writes a file and returns its path.
local function file_of(name, text)
  local path = dir .. "/" .. name
  files.write(path, text)
  return path
end

-- Loading fails with one line that has the file's name and the pattern.
local function refused(name, text, pattern)
  local path = file_of(name, text)
  local ok, why = pcall(image.load, path)
  check.ok(not ok, name .. " is refused")
  if ok then return end
  check.ok(why:find(path, 1, true), name .. " is named in: " .. why)
  check.ok(not why:find "\n", name .. ": one line")
  check.ok(why:find(pattern), name .. ": " .. pattern .. " in: " .. why)
end

-- ---- pixels ----

check.case("pixels equal Pillow's", function()
  local wrong = {}
  for _, case in ipairs(cases) do
    local img = image.load(GOLDEN .. case.file)
    local good = img.width == case.width and img.height == case.height
    if not good or hash_of(img) ~= case.hash then wrong[#wrong + 1] = case.file end
    img:free()
  end
  check.equal(wrong, {}, "files with other pixels")
  check.ok(#cases >= 111, #cases .. " files")
end)

check.case("the header alone gives the size and the format", function()
  local formats = { jpg = "jpeg", pbm = "pnm" }
  local wrong = {}
  local turned = 0
  for _, case in ipairs(cases) do
    local info = image.info(GOLDEN .. case.file)
    local ending = case.file:match "%.(%w+)$"
    local good = info.width == case.width and info.height == case.height
    if info.format ~= (formats[ending] or ending) then good = false end
    if not good then wrong[#wrong + 1] = case.file end
    if info.orientation > 1 then turned = turned + 1 end
  end
  check.equal(wrong, {}, "files with another header")
  -- exif_2.jpg to exif_8.jpg, xmp_6.jpg, exif_6.png, exif_6.webp; six numbers of other types or
  -- of several, one block in two segments, two packed XMP.
  check.equal(turned, 19, "files with an orientation")
  check.equal(image.info(GOLDEN .. "exif_6.jpg").orientation, 6, "exif_6.jpg")
end)

-- ---- damage ----

check.case("a cut-off file is refused, whatever the format", function()
  local count = 0
  for _, case in ipairs(cases) do
    -- Half an animation still holds the first frame.
    local text = bytes_of[case.file]
    if not case.file:find "^animated" then
      refused("half_" .. case.file, text:sub(1, math.floor(#text / 2)), "cut off")
      count = count + 1
    end
  end
  check.ok(count >= 90, count .. " halves")
end)

check.case("a file that ends early is refused or whole", function()
  -- What comes after the last row may be missing: a PNG's IEND, a JPEG's end marker. The last
  -- number of a text may lose a digit without a trace (P2, P3).
  local refusals = 0
  local accepted = {}
  for _, case in ipairs(cases) do
    local text = bytes_of[case.file]
    local lengths = { 1, 2, 12, 13, 40 }
    if case.file:find "^p[23]_" then lengths = {} end
    for _, missing in ipairs(lengths) do
      local path = file_of("early_" .. case.file, text:sub(1, math.max(1, #text - missing)))
      local ok, img = pcall(image.load, path)
      if not ok then
        refusals = refusals + 1
      else
        if hash_of(img) ~= case.hash then accepted[#accepted + 1] = case.file .. " " .. missing end
        img:free()
      end
    end
  end
  check.equal(accepted, {}, "files with fewer bytes and other pixels")
  check.ok(refusals > 200, refusals .. " files were refused")
end)

-- Changes one byte.
local function flipped(text, at)
  return text:sub(1, at - 1) .. string.char(bit.bxor(text:byte(at), 0x55)) .. text:sub(at + 1)
end

check.case("PNG: checksums of chunks and of the data", function()
  local text = bytes_of["rgb8_19x11.png"]
  local data = text:find "IDAT"
  local last = text:find "IEND" - 4
  refused("flipped.png", flipped(text, data + 40), "cannot decode the image: ")
  refused("checksum.png", flipped(text, last - 1), "CRC")
  refused("adler.png", flipped(text, last - 5), "incorrect data check")
  refused("header.png", flipped(text, 20), "cannot decode")
  local path = file_of("no_iend.png", text:sub(1, last - 1))
  check.equal(hash_of(image.load(path)), hash_of(image.load(GOLDEN .. "rgb8_19x11.png")),
    "without IEND the image is whole")
end)

-- A JPEG without its segments of one kind.
local function without(text, marker)
  local out = text:sub(1, 2)
  local at = 3
  while text:byte(at + 1) ~= 0xda do
    local length = text:byte(at + 2) * 256 + text:byte(at + 3)
    if text:byte(at + 1) ~= marker then out = out .. text:sub(at, at + 1 + length) end
    at = at + 2 + length
  end
  return out .. text:sub(at)
end

check.case("JPEG: tables, sizes and scans", function()
  local text = bytes_of["444_17x13.jpg"]
  refused("no_huffman.jpg", without(text, 0xc4), "no Huffman tables")
  refused("no_quantization.jpg", without(text, 0xdb), "[Qq]uantization")
  refused("no_frame.jpg", without(text, 0xc0), "no frame header")
  local progressive = bytes_of["444_17x13_progressive.jpg"]
  local scan = progressive:find "\255\218"
  local more = progressive:find("\255\196", scan)
  local first = progressive:sub(scan, more - 1)
  refused("scans.jpg", progressive:sub(1, more - 1) .. first:rep(200) .. progressive:sub(more),
    "cannot decode the image: ")
end)

local function little(value, n)
  local out = {}
  for i = 1, n do
    out[i] = string.char(value % 256)
    value = math.floor(value / 256)
  end
  return table.concat(out)
end

-- A BMP's two headers, 40 bytes in the second.
local function bmp_header(width, height, bits, compression)
  return "BM" .. little(0, 8) .. little(54, 4) .. little(40, 4) .. little(width, 4)
    .. little(height, 4) .. little(1, 2) .. little(bits, 2) .. little(compression, 4)
    .. little(0, 20)
end

check.case("a header alone holds no image", function()
  refused("header.bmp", bmp_header(300, 200, 24, 0), "cut off")
  refused("header.ppm", "P6 300 200 255\n", "cut off")
  refused("header.pgm", "P5 4096 1 65535\n" .. ("\1"):rep(8191), "cut off")
  refused("header.gif", "GIF89a" .. little(300, 2) .. little(200, 2) .. "\128\0\0\0\0\0\255\255\255"
    .. "," .. little(0, 4) .. little(300, 2) .. little(200, 2) .. "\0\2\2\68\1\0;", "last pixel")
  refused("header.jpg", "\255\216\255\192\0\11\8\0\16\0\16\1\1\17\0", "cut off")
  refused("runs.bmp", bmp_header(300, 200, 8, 1) .. ("\0\0\0\0"):rep(256) .. "\0\1", "cut off")
end)

check.case("kinds that are not read are named", function()
  refused("jpeg.bmp", bmp_header(8, 8, 24, 4), "BMP of 24 bits with compression 4")
  refused("deep.bmp", bmp_header(8, 8, 48, 0), "BMP of 48 bits")
  refused("a.tif", "II*\0\8\0\0\0\0\0", "known format: it is a TIFF file")
  refused("a.avif", "\0\0\0\28ftypavif\0\0\0\0", "it is an AVIF file")
  refused("a.jpg", "<!DOCTYPE html><html>", "it is a web page")
  refused("b.jpg", "version https://git-lfs.github.com/spec/v1\n", "Git LFS")
  refused("pam.pnm", "P7\nWIDTH 1\n", "known format")
  refused("large.pgm", "P5 1 1 70000\n\0\0", "largest value is 70000")
  refused("negative.pgm", "P5 -1 1 255\n\0", "header is damaged")
  refused("text.pgm", "P2 2 1 255\n1 x\n", "a number is damaged")
  refused("above.pgm", "P2 2 1 7\n1 8\n", "above the largest")
end)

-- ---- limits ----

check.case("an image of too many pixels is refused before it is decoded", function()
  local big = 13300
  local size = little(big, 2)
  local png = bytes_of["rgb8_19x11.png"]
  local function png_of(side)
    local four = little(side, 4):reverse()
    return png:sub(1, 16) .. four .. four .. png:sub(25)
  end
  refused("large.bmp", bmp_header(big, big, 24, 0), "over the limit of 67108864 pixels")
  refused("large.ppm", "P6 13300 13300 255\n", "over the limit of 67108864 pixels")
  refused("large.gif",
    "GIF89a" .. size .. size .. "\0\0\0," .. little(0, 4) .. size .. size .. "\0",
    "over the limit")
  refused("large.png", png_of(big), "over the limit")
  -- Within the limit, but more than so few bytes can hold.
  refused("packed.png", png_of(8000), "bytes cannot hold 8000 x 8000 pixels")
  refused("packed.jpg", "\255\216\255\194\0\17\8\31\64\31\64\3\1\17\0\2\17\0\3\17\0\255\218",
    "bytes cannot hold 8000 x 8000 pixels")
  -- VP8L: 14 bits of width and of height, less one.
  refused("large.webp", "RIFF\26\0\0\0WEBPVP8L\13\0\0\0\47\255\255\255\7" .. ("\0"):rep(8),
    "over the limit")
  check.raises(function() image.info(file_of("info.ppm", "P6 13300 13300 255\n")) end,
    "over the limit", "info refuses it too")
end)

check.case("only regular files are opened", function()
  local pipe = dir .. "/pipe.png"
  check.equal(stat.mkfifo(pipe, 384), 0, "a named pipe")
  for _, path in ipairs { pipe, "/dev/zero", dir } do
    for _, read in ipairs { image.load, image.info, image.size, image.load_mask } do
      check.raises(function() read(path) end, "not a regular file", path)
    end
  end
  unistd.unlink(pipe)
end)

-- ---- writing ----

check.case("PNG and JPEG of odd sizes come back", function()
  for _, size in ipairs { { 1, 1 }, { 1, 70 }, { 70, 1 }, { 33, 65 } } do
    local img = image.new(size[1], size[2])
    local n = size[1] * size[2] * 3
    local p = img:pixels()
    for i = 0, n - 1 do p[i] = (i * i + 7 * i) % 256 end
    local name = ("%s/%d_%d."):format(dir, size[1], size[2])
    img:save(name .. "png")
    img:save(name .. "jpg")
    local back = image.load(name .. "png")
    check.equal(ffi.string(back:pixels(), n), ffi.string(p, n), name .. "png: every pixel")
    check.equal({ image.size(name .. "jpg") }, size, name .. "jpg: size")
  end
end)

os.execute("rm -rf " .. dir)
check.finish()
