-- test_hub_files.lua - which files of a repository are fetched, and when a cache without a list of
-- them counts as whole (segzero.hub.wanted).
--
-- Leaves out: fetching them (tests/system/test_hub.lua).

local check = require "tests.support.check"
local wanted = require "segzero.hub.wanted"

local TEXTS = { "config.json", "generation_config.json", "preprocessor_config.json",
  "tokenizer.json", "tokenizer_config.json" }

local function with(list, ...)
  local all = { ... }
  for i, name in ipairs(list) do table.insert(all, i, name) end
  return all
end

local function model(names)
  local found = wanted.model(names)
  table.sort(found.files)
  return found
end

check.case("a model: one format of weights, and small texts", function()
  local parts = { "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors" }
  local found = model(with(with(TEXTS, unpack(parts)), "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "README.md", "LICENSE.txt", "merges.txt",
    "chat_template.jinja", ".gitattributes", "original/config.json", "onnx/model.onnx",
    "consolidated.safetensors", "adapter_model.safetensors"))
  local expected = with(TEXTS, "chat_template.jinja", "merges.txt", parts[1], parts[2],
    "model.safetensors.index.json")
  table.sort(expected)
  check.equal(found.files, expected, "shards")
  check.equal(#found.texts, 8, "without weights")
  found = model(with(TEXTS, "model.safetensors", "model-00001-of-00002.safetensors"))
  check.equal(found.files[3], "model.safetensors", "one file")
  check.equal(#found.files, 6, "no shards without an index")
end)

check.case("SAM2 and adapters", function()
  local found = model { "README.md", "sam2_hiera_l.yaml", "sam2_hiera_large.pt" }
  check.equal(found.path, "sam2_hiera_large.pt", "an original checkpoint")
  found = model { "config.json", "model.safetensors", "preprocessor_config.json",
    "sam2_hiera_large.pt" }
  check.equal(found.files, { "config.json", "model.safetensors", "preprocessor_config.json" },
    "transformers' files go first")
  found = model { "adapter_config.json", "adapter_model.safetensors", "optimizer.pt" }
  check.equal(found.files, { "adapter_config.json", "adapter_model.safetensors" }, "an adapter")
  check.equal(model({ "config.json", "pytorch_model.bin" }).weights, nil,
    "no weights that are read")
end)

check.case("what a cache must have", function()
  local whole = with(TEXTS, "model.safetensors")
  check.ok(wanted.is_whole(whole), "a policy")
  for i = 1, #whole do
    local fewer = with(whole)
    local left = table.remove(fewer, i)
    check.ok(not wanted.is_whole(fewer), "without " .. left)
  end
  check.ok(wanted.is_whole { "config.json", "preprocessor_config.json", "model.safetensors" },
    "SAM2")
  check.ok(not wanted.is_whole(with(TEXTS, "model.safetensors.index.json",
    "model-00001-of-00002.safetensors")), "one of two shards")
  check.ok(wanted.are_tables_whole { "a/train-00000-of-00002.parquet",
    "a/train-00001-of-00002.parquet" }, "tables")
  check.ok(not wanted.are_tables_whole { "a/train-00001-of-00002.parquet" }, "one of two files")
end)

-- The files, the split and the folder of a data set; or the error.
local function data(names, split, purpose)
  local options = { split = split, purpose = purpose or "train", shown = "org/set" }
  local ok, found = pcall(wanted.data, names, options)
  if not ok then return found end
  return { table.concat(found.files, " "), found.split, found.folder or found.path }
end

check.case("data: one split", function()
  local hub = { "README.md", "data/test-00000-of-00001.parquet",
    "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet" }
  check.equal(data(hub), { hub[3] .. " " .. hub[4], "train" }, "to train")
  check.equal(data(hub, nil, "heldout"), { hub[2], "test" }, "to evaluate")
  check.equal(data(hub, "test"), { hub[2], "test" }, "named")
  check.ok(data(hub, "val"):find "^org/set has no split 'val'; there is: test, train$", "none")
  check.equal(data({ "train.json", "test.json", "images/1.png" }, "test"),
    { "test.json images/1.png", nil, "test.json" }, "JSON")
  check.equal(data { "data.jsonl", "images/1.png", "README.md" }, { "data.jsonl images/1.png" },
    "a folder")
  local saved = { "dataset_dict.json", "test/data-00000-of-00001.arrow", "test/state.json",
    "train/data-00000-of-00001.arrow", "train/state.json" }
  check.equal(data(saved, "train"),
    { table.concat({ saved[1], saved[4], saved[5] }, " "), "train" }, "of save_to_disk")
end)

check.case("data: several configurations", function()
  local two = { "main/train-00000-of-00001.parquet", "socratic/test-00000-of-00001.parquet",
    "socratic/train-00000-of-00001.parquet" }
  check.equal(data(two), { two[1], "train", "main" }, "main")
  check.equal(data(two, "socratic/test"), { two[2], "test", "socratic" }, "named")
  check.ok(data(two, "none/test"):find "has no folder 'none'", "none")
  local other = { "a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet" }
  check.ok(data(other):find("has data in the folders a, b: choose one, with its split, as "
    .. "org/set@a/"), "no usual one")
end)

check.finish()
