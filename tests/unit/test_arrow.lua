-- test_arrow.lua - Arrow streams and files that pyarrow wrote (tests/golden/make_arrow.py): every
-- value, in any order of rows; damaged and cut-off files.
--
--   ./segzero tests/unit/test_arrow.lua [folder=FOLDER]     another set by the same script

local dirent = require "posix.dirent"
local arrow = require "segzero.formats.arrow"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local values_of = require "tests.support.table_values"

local folder = "tests/golden/arrow"
for _, word in ipairs(arg or {}) do folder = word:match "^folder=(.+)$" or folder end

local place = os.tmpname()
os.remove(place)
files.make_dir(place)

local names = {}
for _, entry in ipairs(dirent.dir(folder)) do
  local name = entry:match "^(.*)%.arrow$"
  if name and not name:find "^unread" then names[#names + 1] = name end
end
table.sort(names)

-- ---- values ----
for _, name in ipairs(names) do
  check.case(name, function()
    local want = values_of.rows(("%s/%s.jsonl"):format(folder, name))
    local f = arrow.open(("%s/%s.arrow"):format(folder, name))
    check.equal(f.count, #want, "rows")
    check.ok(#f.columns > 0, "columns")
    for i = 1, #want do
      for _, column in ipairs(f.columns) do
        check.ok(values_of.same(want[i][column.name], f:value(i, column.name)),
          ("row %d, %s"):format(i, column.name))
      end
    end
    for _, i in ipairs(values_of.backwards(#want)) do
      check.ok(values_of.same_fields(want[i], f:row(i)), "backwards, row " .. i)
    end
    for _, i in ipairs(values_of.jumping(#want)) do
      local column = f.columns[i % #f.columns + 1].name
      check.ok(values_of.same(want[i][column], f:value(i, column)),
        ("jumping, row %d, %s"):format(i, column))
    end
    f:close()
  end)
end

check.case("the set is complete", function() check.ok(#names >= 14, #names .. " files") end)

-- ---- refusals ----
check.case("what is not read, and what is not there", function()
  local unread = 0
  for _, kind in ipairs { "Union", "RunEndEncoded", "ListView", "LargeListView", "Interval" } do
    local name = ("unread_%s.arrow"):format(kind)
    check.raises(function() arrow.open(folder .. "/" .. name) end,
      ("%s: the column 'odd' has the type %s, which is not read"):format(name, kind), kind)
    unread = unread + 1
  end
  check.equal(unread, 5, "types that are refused by name")
  local path = place .. "/x.arrow"
  files.write(path, "PAR1")
  check.raises(function() arrow.open(path) end, "x.arrow: it is cut off", "another format")
  files.write(path, "0")
  check.raises(function() arrow.open(path) end, "x.arrow: it is cut off", "one byte")
  check.raises(function() arrow.open(place) end, "not a regular file", "a folder")
  check.raises(function() arrow.open(place .. "/gone") end, "No such file", "no file")
  local f = arrow.open(folder .. "/stream.arrow")
  check.raises(function() f:row(0) end, "stream.arrow: row 0, expected 1 to ", "row 0")
  check.raises(function() f:value(1, "nope") end, "there is no column 'nope'", "no column")
  f:close()
end)

-- ---- damage ----
-- Every outcome is a result or one line that names the file.
local function try_all(path)
  local ok, why = pcall(function()
    local f = arrow.open(path)
    for i = 1, math.min(f.count, 3) do f:row(i) end
    f:close()
  end)
  if ok then return true end
  return type(why) == "string" and why:find("x.arrow", 1, true) and not why:find "\n", why
end

-- Without files.write, which waits for the disk.
local function put(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

local function check_damaged(name, damage)
  local path = place .. "/x.arrow"
  local text = files.read(("%s/%s.arrow"):format(folder, name))
  for n = 1, #text, math.max(1, math.floor(#text / 200)) do
    put(path, damage(text, n))
    local good, why = try_all(path)
    check.ok(good, ("%s, byte %d: %s"):format(name, n, tostring(why)))
  end
end

for _, name in ipairs { "stream", "file", "lz4", "zstd", "delta", "views", "views_zstd" } do
  check.case("damaged: " .. name, function()
    check_damaged(name, function(text, n) return text:sub(1, n - 1) end)
    for _, change in ipairs { 1, 127, 255 } do
      check_damaged(name, function(text, n)
        local byte = string.char((text:byte(n) + change) % 256)
        return text:sub(1, n - 1) .. byte .. text:sub(n + 1)
      end)
    end
  end)
end

check.finish()
