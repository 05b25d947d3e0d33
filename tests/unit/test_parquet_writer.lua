-- test_parquet_writer.lua - Parquet files that formats/parquet_writer.lua writes, read again by
-- formats/parquet.lua. tests/golden/check_parquet.py has pyarrow and `datasets` read such files.
--
--   ./segzero tests/unit/test_parquet_writer.lua

local cjson = require "cjson"
local check = require "tests.support.check"
local ffi = require "ffi"
local files = require "segzero.core.files"
local parquet = require "segzero.formats.parquet"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local writer = require "segzero.formats.parquet_writer"

local place = os.tmpname()
os.remove(place)
files.make_dir(place)

local null = cjson.null

-- Writes rows and returns the file, open.
local function written(name, columns, rows, options)
  local path = ("%s/%s.parquet"):format(place, name)
  local w = writer.create(path, columns, options)
  for _, row in ipairs(rows) do w:row(row) end
  w:finish()
  return parquet.open(path), path
end

local COLUMNS = { { "s", "string" }, { "n", "int64" }, { "d", "double" }, { "b", "bool" },
  { "image", "image" }, { "mask", "list<list<bool>>" }, { "bbox", "list<double>" },
  { "images", "list<image>" } }

local function row_of(i)
  local mask = {}
  for y = 1, i % 4 do
    mask[y] = {}
    for x = 1, i % 5 do mask[y][x] = x * y % 3 == 0 end
  end
  return {
    s = ("row %d\0\255"):format(i), n = i * 1000 - 5000, d = i / 7, b = i % 2 == 0,
    image = { bytes = ("x"):rep(i), path = "a.png" }, mask = mask, bbox = { i, 0.5, null },
    images = i % 3 == 0 and {} or { { bytes = "\1" }, { path = "b" } },
  }
end

for _, compression in ipairs { "snappy", "none" } do
  for _, per_group in ipairs { 1, 7, 100 } do
    check.case(("%s, %d rows a group"):format(compression, per_group), function()
      local rows = {}
      for i = 1, 30 do rows[i] = row_of(i) end
      -- Every column may be null.
      for i, column in ipairs(COLUMNS) do rows[3 * i][column[1]] = nil end
      local file = written("all", COLUMNS, rows,
        { compression = compression, rows_per_group = per_group })
      check.equal(file.count, 30, "rows")
      for i = 30, 1, -1 do check.equal(file:row(i), rows[i], "row " .. i) end
      file:close()
    end)
  end
end

check.case("whole numbers of 64 bits", function()
  local values = { 0, -1, 2 ^ 53 - 1, 1 - 2 ^ 53, "9007199254740992", "9223372036854775807",
    "-9223372036854775808" }
  local rows = {}
  for i, v in ipairs(values) do rows[i] = { n = v } end
  local file = written("whole", { { "n", "int64" } }, rows)
  for i, v in ipairs(values) do check.equal(file:value(i, "n"), v, tostring(v)) end
  file:close()
end)

check.case("values of megabytes have pages of their own", function()
  local rows = {}
  for i = 1, 9 do rows[i] = { v = ("%d"):format(i):rep(700000), k = i } end
  local columns = { { "v", "binary" }, { "k", "int64" } }
  local file, path = written("large", columns, rows, { compression = "none" })
  for _, i in ipairs { 5, 1, 9, 2 } do
    check.ok(file:value(i, "v") == rows[i].v, "value " .. i)
    check.equal(file:value(i, "k"), i, "its number")
  end
  file:close()
  local _, before = files.read(path):gsub("111111111", "")
  check.ok(before > 0, "not packed")
end)

check.case("a mask of a tensor", function()
  local height = 37
  local width = 21
  local list = {}
  for y = 1, height do
    list[y] = {}
    for x = 1, width do list[y][x] = (x - 10) ^ 2 + (y - 15) ^ 2 < 64 and 1 or 0 end
  end
  local mask = sz.tensor(list, { dtype = "u8" })
  local columns = { { "mask", "list<list<bool>>" } }
  local file = written("mask", columns, { { mask = mask }, {}, { mask = { {}, { true } } } })
  local value = file:value(1, "mask")
  check.equal({ #value, #value[1] }, { height, width }, "size")
  local equal = 0
  for y = 1, height do
    for x = 1, width do
      if value[y][x] == (list[y][x] == 1) then equal = equal + 1 end
    end
  end
  check.equal(equal, height * width, "pixels")
  local drawn = tensor.empty({ height, width }, { dtype = "u8" })
  ffi.fill(tensor.data(drawn), height * width)
  file:mask(1, "mask", function(m) m.draw(tensor.data(drawn), width, height) end)
  check.equal(drawn:totable(), list, "the reader's mask")
  check.equal(file:value(2, "mask"), nil, "null")
  check.equal(file:value(3, "mask"), { {}, { true } }, "an empty row")
  file:close()
end)

check.case("the metadata name the features in order", function()
  local file = written("features", COLUMNS, {})
  check.equal(file.count, 0, "no rows")
  local text = file:pair "huggingface"
  local found = cjson.decode(text).info.features
  check.equal(found.image, { _type = "Image" }, "image")
  check.equal(found.n, { dtype = "int64", _type = "Value" }, "int64")
  check.equal(found.mask.feature.feature, { dtype = "bool", _type = "Value" }, "mask")
  check.ok(text:find '"s".*"n".*"d".*"b".*"image".*"mask".*"bbox".*"images"' ~= nil, text)
  file:close()
end)

check.case("the same rows are the same bytes", function()
  local rows = { row_of(3), row_of(4) }
  local first, one = written("one", COLUMNS, rows)
  local second, two = written("two", COLUMNS, rows)
  check.ok(files.read(one) == files.read(two), "bytes")
  first:close()
  second:close()
end)

check.case("nothing has the name until the file is whole", function()
  local path = place .. "/half.parquet"
  local w = writer.create(path, { { "s", "string" } })
  w:row { s = "a" }
  check.ok(not files.exists(path), "not yet")
  w:cancel()
  check.ok(not files.exists(path) and not files.exists(path .. ".tmp"), "nothing stays")
  check.raises(function() w:row { s = "b" } end, "has been finished or cancelled", "a row after it")
  local columns = { { "s", "string" } }
  check.raises(function() return writer.create(place .. "/none/a.parquet", columns) end,
    "none/a.parquet: cannot create its temporary file: No such file", "no folder")
end)

check.case("a full disk is one line and leaves nothing", function()
  files.write(place .. "/full.lua", [[
    local w = require("segzero.formats.parquet_writer").create(arg[1], { { "s", "binary" } })
    for i = 1, 300 do w:row { s = ("%d"):format(i):rep(4000) } end
    w:finish()
  ]])
  local path = place .. "/full.parquet"
  local command = "ulimit -f 8; '%s' '%s' '%s' 2>&1; echo $?"
  local host = require "segzero.host"
  local pipe = io.popen(command:format(host.executable, place .. "/full.lua", path))
  local text = pipe:read "*a"
  pipe:close()
  local first, status = text:match "^([^\n]*)\n.-(%d+)\n$"
  check.ok(first:find("full.lua:2: " .. path .. ": cannot write: File too large", 1, true), text)
  check.equal(status, "1", "status")
  check.ok(not files.exists(path) and not files.exists(path .. ".tmp"), "nothing stays")
end)

check.case("a wrong value is one line", function()
  local function refuses(columns, row, pattern)
    local path = place .. "/wrong.parquet"
    local w = writer.create(path, columns)
    check.raises(function() w:row(row) end, pattern, pattern)
    check.ok(not files.exists(path .. ".tmp"), "nothing stays")
  end
  local n = { { "n", "int64" } }
  refuses(n, { n = 1.5 }, "wrong.parquet: row 1: the column 'n' is 1.5, expected int64")
  refuses(n, { n = "9223372036854775808" }, "the column 'n' is string, expected int64")
  refuses(n, { m = 1 }, "there is no column 'm'")
  refuses({ { "b", "bool" } }, { b = 1 }, "the column 'b' is 1, expected bool")
  refuses({ { "s", "string" } }, { s = true }, "the column 's' is true, expected string")
  refuses({ { "i", "image" } }, { i = "a.png" }, "the column 'i' is string, expected { bytes =")
  refuses({ { "i", "image" } }, { i = { byte = "a" } },
    "the column 'i' is an image with the key 'byte', expected bytes and path")
  refuses({ { "l", "list<bool>" } }, { l = { first = true } },
    "the column 'l' is table, expected a list")
  refuses({ { "l", "list<bool>" } }, { l = { 1 } }, "the column 'l' is 1, expected bool")
  refuses({ { "l", "list<bool>" } }, { l = sz.tensor({ 1 }, { dtype = "u8" }) },
    "the column 'l' is a tensor, expected a list")
  check.raises(function() return writer.create(place .. "/t.parquet", { { "s", "text" } }) end,
    "the column 's' has the type text, expected string", "a type")
  check.raises(function() return writer.create(place .. "/t.parquet", { { "s", "bool" },
    { "s", "bool" } }) end, "two columns have the name 's'", "a name twice")
  check.raises(function() return writer.create(place .. "/t.parquet", { { "s", "bool" } },
    { codec = 1 }) end, "codec", "an option")
end)

os.execute("rm -rf '" .. place .. "'")
check.finish()
