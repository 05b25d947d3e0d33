-- test_hub_programs.lua - programs that name models and data sets on the hub, from an empty cache
-- to their result, against a server on loopback (tests/support/hub_server.lua).
--
-- Leaves out: what goes wrong on the way (test_hub.lua).

local check = require "tests.support.check"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local hub_server = require "tests.support.hub_server"
local image = require "segzero.formats.image"
local process = require "tests.support.process"
local refshapes = require "segzero.data.refshapes"

local place = os.tmpname()
os.remove(place)
files.make_dir(place)

local POLICY = "models/tiny/qwen2.5-vl"
local SAM2 = "models/tiny/sam2"

local count = 0

local function new_home()
  count = count + 1
  return ("%s/home%d"):format(place, count)
end

local function snapshot(home, name, kind)
  name = (name or "org/name"):gsub("/", "--")
  return ("%s/hub/%ss--%s/snapshots/%s"):format(home, kind or "model", name, hub_server.COMMIT)
end

check.case("infer from an empty cache to an answer, by names alone", function()
  local world = { models = { ["org/name"] = { folder = POLICY }, ["org/sam"] = { folder = SAM2 } } }
  hub_server.with(world, function(server)
    local home = new_home()
    local words = { "examples/infer.lua", "--demo", "--model_path", "org/name",
      "--segmentation_model_path", "org/sam", "--output_path", place .. "/answer.png",
      "--max_new_tokens", "160" }
    local text, status = server:run(words, home)
    check.equal(status, 0, text)
    check.ok(text:find("mask: ", 1, true) ~= nil, text)
    check.ok(files.exists(place .. "/answer.png"), "the image")
    local before = #server:requests()
    local again = server:run(words, home)
    check.equal(#server:requests(), before, "the second run asks nothing")
    check.equal(again:match "answer>[^\n]*", text:match "answer>[^\n]*", "the same answer")
  end)
end)

check.case("a step on org/set@train", function()
  local world = {
    models = { ["org/name"] = { folder = POLICY } },
    datasets = { ["org/set"] = { folder = "tests/golden/hub_sets/refCOCOg_2k_840",
      files = { ["data/test-00000-of-00001.parquet"] = "not fetched" } } },
  }
  hub_server.with(world, function(server)
    local home = new_home()
    local text, status = server:run({ "recipes/refcocog_grpo.lua", "data.train_files=org/set@train",
      "worker.actor.model.model_path=org/name", "data.val_files=", "data.rollout_batch_size=2",
      "worker.actor.global_batch_size=2", "worker.rollout.n=2", "data.max_response_length=8",
      "data.resize=224x224", "trainer.max_steps=1", "trainer.save_freq=-1",
      "trainer.save_checkpoint_path=" .. place .. "/run" }, home)
    check.equal(status, 0, text)
    check.ok(files.exists(place .. "/run/rollouts.jsonl"), "answers")
    check.equal(folders.list(snapshot(home, "org/set", "dataset") .. "/data"),
      { "train-00000-of-00001.parquet" }, "this split alone")

    -- The weights come after the data have been checked.
    home = new_home()
    text, status = server:run({ "recipes/refcocog_grpo.lua", "data.train_files=org/none",
      "worker.actor.model.model_path=org/name" }, home)
    check.equal(status, 1, text)
    check.ok(text:find("has no data set org/none", 1, true) ~= nil, text)
    check.equal(files.exists(snapshot(home) .. "/config.json"), true, "the model's description")
    check.equal(files.exists(snapshot(home) .. "/model.safetensors"), false, "not its weights")
    text, status = server:run({ "plan", "recipes/refcocog_grpo.lua",
      "worker.actor.model.model_path=org/name" }, home)
    check.equal(status, 0, text)
    check.equal(files.exists(snapshot(home) .. "/model.safetensors"), false, "plan needs none")
  end)
end)

check.case("a set of JSON files", function()
  local folder = place .. "/json"
  local options = { n = 3, size = 112, seed = 1, split = "train" }
  refshapes.write_dataset(folder, options, image.write_png)
  local rows = files.read(folder .. "/data.jsonl")
  local one = rows:match "^[^\n]*\n"
  os.remove(folder .. "/data.jsonl")
  local world = { datasets = { ["org/json"] = { folder = folder,
    files = { ["train.jsonl"] = rows, ["test.jsonl"] = one, ["README.md"] = "no" } } } }
  hub_server.with(world, function(server)
    local home = new_home()
    local chunk = [[local data = require "segzero.data"
      for _, name in ipairs { "org/json", "org/json@test" } do
        local set = data.open(name, { split = "train" })
        print(name, set:count(), set:row(1).image.width)
      end]]
    local text, status = server:run({ "-e", chunk }, home)
    check.equal(status, 0, text)
    check.ok(text:find("org/json\t3\t112\n", 1, true) ~= nil, text)
    check.ok(text:find("org/json@test\t1\t112\n", 1, true) ~= nil, text)
    check.equal(files.exists(snapshot(home, "org/json", "dataset") .. "/README.md"), false,
      "README")
  end)
end)

check.case("a README says which files are which split", function()
  local function rows(name) return files.read("tests/golden/sources/" .. name) end
  local readme = [[
---
configs:
- config_name: default
  data_files:
  - { split: train, path: first.parquet }
  - { split: test, path: second.parquet }
- config_name: other
  data_files: third.parquet
---]]
  local world = { datasets = { ["org/tables"] = { files = { ["README.md"] = readme,
    ["first.parquet"] = rows "easyr1/train.parquet",
    ["second.parquet"] = rows "easyr1/test.parquet", ["third.parquet"] = rows "verl.parquet" } } } }
  hub_server.with(world, function(server)
    local home = new_home()
    local chunk = [[local data = require "segzero.data"
      for _, name in ipairs { "org/tables", "org/tables@test", "org/tables@other/train" } do
        local set = data.open(name, { split = "train" })
        print(name, set:count(), set:row(1).problem)
      end]]
    for _, when in ipairs { "downloaded", "from the cache" } do
      local text, status = server:run({ "-e", chunk }, home)
      check.equal(status, 0, text)
      for _, line in ipairs { "org/tables\t2\t<image>the red",
        "@test\t2\t<image>the blue circle" } do
        check.ok(text:find(line), when .. ": " .. text)
      end
    end
    local wrong = 'require("segzero.data").open("org/tables@nosuch/x", {})'
    local text = server:run({ "-e", wrong }, home)
    check.ok(text:find("has the configurations default, other: choose one", 1, true), text)
  end)
end)

local ADAPTER = [[
local sz = require "segzero"
local vl = sz.qwen_vl "models/tiny/qwen2.5-vl"
sz.lora.attach(vl, { rank = 2, alpha = 4, seed = 1, target_modules = "all-linear" })
sz.lora.save(vl, %q)
]]

local SCRIPT = [[
local sz = require "segzero"
print(#sz.tokenizer("org/name"):encode "a red square")
print(require("segzero.core.files").exists(sz.tokenizer("org/name").dir .. "/model.safetensors"))
print(sz.model("org/name", { adapter = "org/lora" }).lora.rank)
print(sz.sam2("org/sam").dir)
print(pcall(sz.sam2, "org/none"))
]]

check.case("scripts, the prompt and adapters", function()
  local adapter = place .. "/adapter"
  files.make_dir(adapter)
  assert(loadstring(ADAPTER:format(adapter)))()
  local world = { models = { ["org/name"] = { folder = POLICY }, ["org/sam"] = { folder = SAM2 },
    ["org/lora"] = { folder = adapter } } }
  hub_server.with(world, function(server)
    local home = new_home()
    local text, status = server:run({ "-e", SCRIPT }, home)
    check.equal(status, 0, text)
    local printed = {}
    for line in text:gmatch "[^\n]+" do
      if not line:find "download" then printed[#printed + 1] = line end
    end
    check.ok(tonumber(printed[1]) > 0, text)
    check.equal(printed[2], "false", "the tokenizer needs no weights")
    check.equal(printed[3], "2", "the adapter's rank")
    check.equal(printed[4], snapshot(home, "org/sam"), "SAM2's folder")
    check.ok(printed[5]:find("org/none: there is no such file or folder here", 1, true), text)
    text, status = server:run({ "examples/merge_lora.lua", "in=org/name", "adapter=org/lora",
      "out=" .. place .. "/merged" }, home)
    check.equal(status, 0, text)
    check.ok(files.exists(place .. "/merged/model.safetensors"), "merged")
  end)
end)

check.case("a data set as a model, and a model as a data set", function()
  local world = { models = { ["org/name"] = { folder = POLICY } },
    datasets = { ["org/set"] = { files = { ["data.jsonl"] = "{}" } } } }
  hub_server.with(world, function(server)
    local grpo = "recipes/refcocog_grpo.lua"
    local model = "worker.actor.model.model_path"
    local cases = {
      { { grpo, model .. "=org/set" }, model .. ": org/set is a data set on the hub, and a model" },
      { { grpo, "data.train_files=org/name" },
        "data.train_files: org/name is a model on the hub, and a data set is needed here" },
      { { "fetch", "org/set" }, "org/set is a data set on the hub" },
      { { "fetch", "--dataset", "org/name" }, "org/name is a model on the hub" },
    }
    for _, case in ipairs(cases) do
      local text, status = server:run(case[1], new_home())
      check.ok(status ~= 0 and text:find(case[2], 1, true) ~= nil, text)
      check.ok(not text:find "stack traceback", "no traceback")
    end
  end)
end)

check.case("evaluate, on a split by name", function()
  local world = {
    models = { ["org/name"] = { folder = POLICY }, ["org/sam"] = { folder = SAM2 } },
    datasets = { ["org/rs"] = { folder = "tests/golden/hub_sets/ReasonSeg_test" } },
  }
  hub_server.with(world, function(server)
    local words = { "recipes/evaluate.lua", "model_path=org/name", "sam2_path=org/sam",
      "data=org/rs@test", "rows=1", "max_new_tokens=4", "output_path=" .. place .. "/evaluated" }
    local text, status = server:run(words, new_home())
    check.equal(status, 0, text)
    check.ok(text:find("org/rs@test: 1 rows", 1, true) ~= nil, text)
    words[4] = "data=org/rs@val"
    text, status = server:run(words, new_home())
    check.equal(status, 1, text)
    check.ok(text:find("org/rs has no split 'val'; there is: test", 1, true) ~= nil, text)
  end)
end)

process.run { "rm", "-rf", place }
check.finish()
