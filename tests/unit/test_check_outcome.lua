-- test_check_outcome.lua - what the check of a data set found is kept from run to run, and only
-- while the set, its images and what the check depends on stay the same (data/checks/outcome.lua).

local cjson = require "cjson"
local check = require "tests.support.check"
local check_rows = require("segzero.data.checks.check").rows
local data = require "segzero.data"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local image = require "segzero.formats.image"
local mini = require "tests.support.miniature"

local place = mini.folder()
local CACHE = place .. "/cache"
local setenv = require("posix.stdlib").setenv
setenv("XDG_CACHE_HOME", CACHE)

local SOLUTION = "<box>(10,10),(50,40)</box><points>(20,20),(30,30)</points>"
local written = 0

-- A set of three rows in a folder of its own; changes: {row -> {column -> value}}.
local function write_set(changes)
  written = written + 1
  local folder = ("%s/set%d"):format(place, written)
  files.make_dir(folder)
  local lines = {}
  for i = 1, 3 do
    image.new(84, 84):save(("%s/%d.png"):format(folder, i))
    local row = { id = "r" .. i, problem = "the dot", solution = SOLUTION, image = i .. ".png" }
    for name, value in pairs(changes and changes[i] or {}) do row[name] = value end
    lines[i] = cjson.encode(row)
  end
  files.write(folder .. "/data.jsonl", table.concat(lines, "\n") .. "\n")
  return folder
end

-- Checks a set: whether the outcome was kept, how many rows are left, and what was said.
local function checked(folder, options)
  local said = {}
  local all = { name = "data.train_files", key = "data.on_bad_row", on_bad_row = "skip",
    reward = "seg_strict", masks = true, depends = "the model",
    say = function(text) said[#said + 1] = text end }
  for name, value in pairs(options or {}) do all[name] = value end
  if all.depends == "" then all.depends = nil end
  local set, was_kept = check_rows(data.open(folder, { check = false }), all)
  return was_kept, set:count(), table.concat(said, "\n")
end

local function kept_files()
  local list = {}
  for _, name in ipairs(folders.list(CACHE .. "/segzero") or {}) do
    if name:find "^check%-" then list[#list + 1] = CACHE .. "/segzero/" .. name end
  end
  return list
end

check.case("the second check is the first one's outcome", function()
  local folder = write_set()
  check.equal({ checked(folder) }, { false, 3, "" }, "first")
  check.equal({ checked(folder) }, { true, 3, "" }, "second")
  check.equal(checked(folder, { depends = "" }), false, "without a text of what it depends on")
end)

-- A folder of refer without a split in its name, and one of ReasonSeg, whose training has all
-- texts.
check.case("a set's outcome is not that of other rows of its files", function()
  local sources = require "segzero.data.sources"
  for _, name in ipairs { "refer_seg/refcocog", "ReasonSeg/train" } do
    for _, was_kept in ipairs { false, true } do
      for _, split in ipairs { "train", "heldout" } do
        local set = sources.open("tests/golden/annotations/" .. name, { split = split })
        local _, kept = check_rows(set, { name = "data.val_files", key = "data.on_bad_row",
          on_bad_row = "skip", depends = "the model" })
        check.equal(kept, was_kept, name .. " for " .. split)
      end
    end
  end

  -- Two splits with a row each.
  mini.copy("tests/golden/annotations/refer_seg", place .. "/refer_seg")
  local path = place .. "/refer_seg/grefcoco/grefs(unc).json"
  local ref = files.read_json(path)[1]
  local list = {}
  for i, split in ipairs { "train", "val" } do
    ref.split = split
    list[i] = cjson.encode(ref)
  end
  files.write(path, "[" .. table.concat(list, ",") .. "]")
  os.remove((path:gsub("json$", "p")))
  local function fingerprint(split)
    return sources.open(place .. "/refer_seg/grefcoco@" .. split, {}):fingerprint()
  end
  check.ok(fingerprint "val" ~= fingerprint "train", "and a resumed run sees it")
end)

check.case("faults are kept as they were", function()
  local folder = write_set { [2] = { image = "gone.png" }, [3] = { solution = "nothing" } }
  local _, count, said = checked(folder)
  check.equal(count, 1, "rows left")
  check.ok(said:find "gone.png", said)
  check.equal({ checked(folder) }, { true, 1, said }, "again")
  check.raises(function() checked(folder, { on_bad_row = "error" }) end, "gone.png",
    "the same outcome as an error")
end)

check.case("what has changed is checked again", function()
  local folder = write_set { [2] = { image = "gone.png" } }
  checked(folder)
  check.equal(checked(folder), true, "unchanged")
  image.new(84, 84):save(folder .. "/gone.png")
  check.equal({ checked(folder) }, { false, 3, "" }, "an image that appears")
  check.equal(checked(folder), true, "unchanged")
  image.new(85, 84):save(folder .. "/1.png")
  check.equal(checked(folder), false, "an image of another size")
  check.equal(checked(folder), true, "unchanged")
  os.remove(folder .. "/3.png")
  check.equal({ (select(2, checked(folder))) }, { 2 }, "an image that is gone")
  local file = io.open(folder .. "/data.jsonl", "a")
  file:write(cjson.encode { problem = "x", solution = SOLUTION, image = "1.png" }, "\n")
  file:close()
  check.equal({ select(2, checked(folder)) }, { 3, (select(3, checked(folder))) }, "one more row")
end)

check.case("it depends on the reward, the frame and the text that is given", function()
  local folder = write_set()
  checked(folder)
  for name, value in pairs { reward = "seg", depends = "another model", masks = false, last = 2,
    solution_frame = { width = 840, height = 840 } } do
    check.equal(checked(folder, { [name] = value }), false, name)
    check.equal(checked(folder, { [name] = value }), true, name .. " again")
  end
  check.equal(checked(folder), true, "the first one is still there")
end)

check.case("a damaged file is as if it were not there", function()
  local folder = write_set { [2] = { image = "gone.png" } }
  for _, path in ipairs(kept_files()) do os.remove(path) end
  local _, _, said = checked(folder)
  local path = kept_files()[1]
  local text = files.read(path)
  local again = 0
  for n = 0, #text - 1, 3 do
    files.write(path, text:sub(1, n))
    local was_kept, count = checked(folder)
    check.equal({ was_kept, count }, { false, 2 }, "cut off after " .. n)
    again = again + 1
  end
  for n = 1, #text, 3 do
    local byte = string.char((text:byte(n) + 1) % 256)
    files.write(path, text:sub(1, n - 1) .. byte .. text:sub(n + 1))
    local _, count, what = checked(folder)
    check.equal({ count, what }, { 2, said }, "byte " .. n)
  end
  check.ok(again > 50, again .. " cuts")
  check.equal(#kept_files(), 1, "no temporary file is left")
end)

check.case("a cache that cannot be written is no error", function()
  local folder = write_set()
  files.write(place .. "/file", "no folder")
  setenv("XDG_CACHE_HOME", place .. "/file")
  check.equal({ checked(folder) }, { false, 3, "" }, "first")
  check.equal({ checked(folder) }, { false, 3, "" }, "second")
  setenv("XDG_CACHE_HOME", CACHE)
end)

check.case("a table is checked again when its file changes", function()
  local folder = place .. "/table"
  files.make_dir(folder)
  local from = "tests/golden/sources/refcocog/data/train-00000-of-00001.parquet"
  files.write(folder .. "/train.parquet", files.read(from))
  check.equal({ checked(folder) }, { false, 3, "" }, "first")
  check.equal({ checked(folder) }, { true, 3, "" }, "second")
  require("posix.utime").utime(folder .. "/train.parquet", 1000, 1000)
  check.equal(checked(folder), false, "another time of change")
end)

check.finish()
