-- test_parquet.lua - Parquet files that pyarrow wrote (tests/golden/make_parquet.py): every value,
-- in any order of rows; damaged and cut-off files.
--
--   ./segzero tests/unit/test_parquet.lua [folder=FOLDER]     another set by the same script

local dirent = require "posix.dirent"
local ffi = require "ffi"
local check = require "tests.support.check"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local parquet = require "segzero.formats.parquet"
local values_of = require "tests.support.table_values"

local LARGE = 2 ^ 20

local folder = "tests/golden/parquet"
for _, word in ipairs(arg or {}) do folder = word:match "^folder=(.+)$" or folder end

local place = os.tmpname()
os.remove(place)
files.make_dir(place)

local same = values_of.same
local same_fields = values_of.same_fields
local function rows_of(name) return values_of.rows(("%s/%s.jsonl"):format(folder, name)) end

local names = {}
for _, entry in ipairs(dirent.dir(folder)) do
  names[#names + 1] = entry:match "^(.*)%.parquet$"
end
table.sort(names)

local jumping = values_of.jumping
local backwards = values_of.backwards

-- ---- values ----
-- Once from decoded pages; once from pages that are entered in the middle, as large ones are.
local function check_values(name, large)
  core.C.sz_parquet_set_large(large)
  local want = rows_of(name)
  local f = parquet.open(("%s/%s.parquet"):format(folder, name))
  check.equal(f.count, #want, "rows")
  check.ok(#f.columns > 0, "columns")
  for i = 1, #want do check.ok(same_fields(want[i], f:row(i)), "row " .. i) end
  for _, i in ipairs(backwards(#want)) do
    check.ok(same_fields(want[i], f:row(i)), "backwards, row " .. i)
  end
  for _, i in ipairs(jumping(#want)) do
    local column = f.columns[i % #f.columns + 1].name
    check.ok(same(want[i][column], f:value(i, column)), ("jumping, row %d, %s"):format(i, column))
  end
  f:close()
  core.C.sz_parquet_set_large(LARGE)
end

for _, name in ipairs(names) do
  check.case(name, function()
    check_values(name, LARGE)
    check_values(name, 0)
  end)
end

check.case("the set is complete", function() check.ok(#names >= 25, #names .. " files") end)

check.case("the front of a long value", function()
  for _, name in ipairs { "large_dictionary", "large_plain", "large_v2" } do
    local f = parquet.open(("tests/golden/sources/%s.parquet"):format(name))
    local whole = f:value(1, "value")
    check.ok(#whole > 100000, "a long value")
    for _, most in ipairs { 0, 1, 4096, #whole - 1, #whole, #whole + 1 } do
      local front = f:bytes(1, { "value" }, ffi.string, most)
      check.equal(#front, math.min(most, #whole), name .. ": as many bytes as are wanted")
      check.ok(front == whole:sub(1, most), name .. ": its front")
    end
    f:close()
  end
end)

-- ---- refusals ----
check.case("what is no Parquet file, and rows and columns that are not there", function()
  local path = place .. "/x.parquet"
  files.write(path, "PAR1")
  check.raises(function() parquet.open(path) end, "x%.parquet: not a Parquet file")
  files.write(path, "PAR1....PAR1")
  check.raises(function() parquet.open(path) end, "x%.parquet: the metadata are")
  check.raises(function() parquet.open(place) end, "not a regular file")
  check.raises(function() parquet.open(place .. "/gone") end, "No such file")

  local f = parquet.open(folder .. "/gzip.parquet")
  check.raises(function() f:row(0) end, "gzip%.parquet: row 0, expected 1 to ")
  check.raises(function() f:row(f.count + 1) end, "expected 1 to " .. f.count)
  check.raises(function() f:value(1, "nope") end, "there is no column 'nope'")
  f:close()
end)

-- Every outcome is a result or one line that names the file.
local function try_all(path)
  local ok, why = pcall(function()
    local f = parquet.open(path)
    for i = 1, math.min(f.count, 3) do f:row(i) end
    f:close()
  end)
  if ok then return true end
  return type(why) == "string" and why:find("x.parquet", 1, true) and not why:find "\n"
end

check.case("cut-off files are one line", function()
  local path = place .. "/x.parquet"
  local text = files.read(folder .. "/snappy_dictionary.parquet")
  for n = 0, #text - 1, 37 do
    files.write(path, text:sub(1, n))
    check.ok(try_all(path), "cut off after " .. n)
  end
end)

check.case("a flipped byte is a result or one line", function()
  local path = place .. "/x.parquet"
  for _, name in ipairs { "zstd_v2", "delta" } do
    local text = files.read(("%s/%s.parquet"):format(folder, name))
    for n = 5, #text, 23 do
      local byte = string.char((text:byte(n) + 128) % 256)
      files.write(path, text:sub(1, n - 1) .. byte .. text:sub(n + 1))
      check.ok(try_all(path), ("%s: byte %d"):format(name, n))
    end
  end
end)

check.case("a checksum that does not fit is named", function()
  local text = files.read(folder .. "/none_sums.parquet")
  local path = place .. "/x.parquet"
  -- A byte of the values of the texts, of which nothing else depends.
  local at = text:find("green circle", 1, true)
  files.write(path, text:sub(1, at - 1) .. "G" .. text:sub(at + 1))
  local failures = 0
  local f = parquet.open(path)
  for i = 1, f.count do
    local ok, why = pcall(f.value, f, i, "s")
    if not ok then
      failures = failures + 1
      check.ok(why:find "column 's', row %d+: the page at %d+ is damaged: its checksum", why)
    end
  end
  check.ok(failures > 0, "the damage is found")
  f:close()
end)

os.execute("rm -rf " .. place)
check.finish()
