-- test_splits.lua - which split a table's file belongs to: by its path, as the datasets package
-- reads it (version 5.2.0), and by the configurations of a README.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local card = require "segzero.data.tables.card"
local files = require "segzero.core.files"
local names = require "segzero.data.tables.names"
local splits = require "segzero.data.tables.splits"

local place = mini.folder()

-- {split = "file file"} of the groups, with names below the folder.
local function shown(groups, folder)
  local out = {}
  for split, list in pairs(groups) do
    for i, path in ipairs(list) do list[i] = path:sub(#(folder or "") + 1) end
    out[split] = table.concat(list, " ")
  end
  return out
end

local function grouped(...) return shown(splits.group { ... }) end

check.case("a split's word may stand anywhere in a name", function()
  check.equal(grouped("train_part1.parquet", "train_part2.parquet", "test_part1.parquet"),
    { train = "train_part1.parquet train_part2.parquet", test = "test_part1.parquet" }, "in front")
  check.equal(grouped("refcoco-train-small.parquet", "refcoco-test-small.parquet"),
    { train = "refcoco-train-small.parquet", test = "refcoco-test-small.parquet" }, "inside")
  check.equal(grouped("train0.parquet", "test0.parquet", "train.2024.arrow"),
    { train = "train.2024.arrow train0.parquet", test = "test0.parquet" }, "before digits and dots")
  check.equal(grouped("my_training.parquet", "my_evaluation.parquet", "Val.parquet"),
    { training = "my_training.parquet", evaluation = "my_evaluation.parquet",
      val = "Val.parquet" }, "other words, and capitals")
  check.equal(grouped("trainer.parquet", "attest.parquet"),
    { train = "attest.parquet trainer.parquet" }, "parts of words are no words")
end)

check.case("names as the hub writes them", function()
  check.equal(grouped("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
    "data/validation-00000-of-00001.parquet"),
    { train = "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
      validation = "data/validation-00000-of-00001.parquet" }, "shards")
  check.equal(grouped("data/hard_test_set-00000-of-00001.parquet"),
    { hard_test_set = "data/hard_test_set-00000-of-00001.parquet" }, "a split of any name")
  check.equal(grouped("default/test/0000.parquet", "train/x/0.parquet",
    "part-00000-of-00001.arrow"), { test = "default/test/0000.parquet", train = "part-00000-of-00001.arrow train/x/0.parquet" },
    "folders")
end)

check.case("the folder's own name counts last, and those above it never", function()
  local list = { "/test/set/rows.parquet", "/test/set/train_1.parquet" }
  check.equal(splits.group(list, #"/test/set/"), { train = list }, "a folder above")
  check.equal(splits.group({ "/x/test/a.parquet" }, #"/x/test/", "test"),
    { test = { "/x/test/a.parquet" } }, "its own name")
end)

check.case("a split for a purpose", function()
  check.equal(splits.choose({ train = {}, evaluation = {} }, nil, "heldout", "x"), "evaluation",
    "held out")
  check.raises(function() splits.choose({ train = {}, other = {} }, nil, "heldout", "x") end,
    "^x has the splits other, train: choose one with x@other$", "none of the usual")
end)

-- ---- a README ----
local function folder_with(name, readme, ...)
  local folder = place .. "/" .. name
  files.make_dir(folder)
  files.write(folder .. "/README.md", readme)
  for _, file in ipairs { ... } do
    files.make_dir((folder .. "/" .. file):match "^(.*)/")
    files.write(folder .. "/" .. file, "")
  end
  return folder
end

local function found(folder, wanted, purpose)
  local name = wanted and folder .. "@" .. wanted or folder
  local result = names.find(name, purpose or "train")
  return shown({ [result.split] = result.files }, folder .. "/")
end

local TWO = [[
---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: ["main/hidden.parquet"]
- config_name: other
  data_files: "other/**"
---
# A data set
]]

check.case("a README says which files are of a configuration and a split", function()
  local folder = folder_with("two", TWO, "main/train-1.parquet", "main/train-2.parquet",
    "main/hidden.parquet", "other/deep/test.parquet")
  check.equal(found(folder), { train = "main/train-1.parquet main/train-2.parquet" }, "the default")
  check.equal(found(folder, nil, "heldout"), { test = "main/hidden.parquet" }, "held out")
  check.equal(found(folder, "test"), { test = "main/hidden.parquet" }, "a split")
  check.equal(found(folder, "other"), { train = "other/deep/test.parquet" }, "a configuration")
  check.equal(found(folder, "main/test"), { test = "main/hidden.parquet" }, "and its split")
  check.raises(function() found(folder, "main/dev") end,
    "has no split 'dev'; there is: test, train", "no such split")
end)

check.case("an @ in the name of a folder", function()
  local folder = folder_with("x@2", "", "train.parquet", "test.parquet")
  check.equal(names.find(folder .. "/*.parquet@test", "train").files,
    { folder .. "/test.parquet" }, "a pattern with a split")
  check.equal(names.find(folder .. "/t*.parquet", "train").files, { folder .. "/train.parquet" },
    "a pattern")
end)

check.case("other forms of data_files", function()
  local folder = folder_with("mapping", [[
---
configs:
- config_name: default
  data_files: { train: a.parquet, test: "b?.parquet" }
---]], "a.parquet", "b1.parquet", "b22.parquet")
  check.equal(found(folder), { train = "a.parquet" }, "a mapping")
  check.equal(found(folder, nil, "test"), { test = "b1.parquet" }, "a character")
  folder = folder_with("range", [[
---
configs:
- config_name: default
  data_files: [ "[0-9]a.parquet", "[!0-9]b-%.parquet" ]
---]], "1a.parquet", "xa.parquet", "xb-%.parquet", "1b-%.parquet")
  check.equal(found(folder), { train = "1a.parquet xb-%.parquet" }, "ranges")
  folder = folder_with("dir", [[
---
configs:
- config_name: default
  data_dir: rows
---]], "rows/train-1.parquet", "rows/test-1.parquet", "old/train-1.parquet")
  check.equal(found(folder), { train = "rows/train-1.parquet" }, "a folder")
end)

check.case("data_dir is where the paths start", function()
  local folder = folder_with("below", [[
---
configs:
- config_name: default
  data_dir: ./rows/
  data_files: [ "train-*" ]
---]], "rows/train-1.parquet", "train-1.parquet")
  check.equal(found(folder), { train = "rows/train-1.parquet" }, "a pattern in a folder")
end)

check.case("what a README cannot say", function()
  local partly = folder_with("partly", TWO:gsub("    path: main/train%-%*\n", ""), "a.parquet")
  check.raises(function() found(partly) end, "the split 'train' has no path", "no path")
  local folder = folder_with("choice", TWO:gsub("  default: true\n", ""), "main/train-1.parquet",
    "other/a.parquet")
  check.raises(function() found(folder) end,
    "choice has the configurations main, other: choose one, with its split, as .*@main/train",
    "no default")
  folder = folder_with("gone", TWO, "elsewhere.parquet")
  check.raises(function() found(folder) end, "gone: README.md: the configuration 'main' names no "
    .. ".parquet or .arrow file that is here", "no such files")
  folder = folder_with("far", TWO:gsub("main/train%-%*", "hf://datasets/x/y"), "a.parquet")
  check.raises(function() found(folder) end, "hf://datasets/x/y is not a file of this set",
    "files on the hub")
  for name, text in pairs { plain = "# configs:\n", broken = "---\nconfigs: [\n---\n",
    none = "---\nconfigs: 3\n---\n", infos = "---\nconfigs:\n- config_name: x\n---\n" } do
    folder = folder_with(name, text, "train.parquet", "test.parquet")
    check.equal(found(folder), { train = "train.parquet" }, name)
    check.equal(card.groups(text, {}, nil, folder), nil, name .. " has none")
  end
end)

mini.remove()
check.finish()
