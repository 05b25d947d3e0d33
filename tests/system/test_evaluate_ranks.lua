-- test_evaluate_ranks.lua - evaluation and inference on several ranks: the files of one process.
--
-- The embedded models on RefShapes rows, dealt to 2 and 3 ranks, and with one model held by two.
-- The rows are no multiple of the batch or of the ranks. Needs Open MPI. Left out: what is
-- evaluated (test_evaluate.lua), several machines.

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local mini = require "tests.support.miniature"
local runs = require "tests.support.rank_runs"

if not runs.available() then
  check.finish()
  return
end
local place = runs.begin()

local function evaluate(ranks, name, words)
  local list = { words.recipe or "recipes/evaluate.lua", "rows=7", "val_batch_size=2",
    "output_path=" .. place .. "/" .. name }
  for _, word in ipairs(words) do list[#list + 1] = word end
  local text, status = runs.run(ranks, list)
  check.equal(status, 0, name .. ": " .. text:sub(-500))
  return text
end

-- A file without what differs from run to run: times, and the folder's own name.
local function content(name, file)
  local text = assert(files.read(("%s/%s/%s"):format(place, name, file)), file)
  text = text:gsub('"seconds": ?[%d.e+-]+', "")
  text = text:gsub('"output_path": ?"[^"]*"', "")
  return text
end

local function expect_same_files(name, like, names)
  check.equal(folders.list(place .. "/" .. name), folders.list(place .. "/" .. like), "names")
  for _, file in ipairs(names) do
    check.ok(content(name, file) == content(like, file), ("%s of %s"):format(file, name))
  end
end

local FILES = { "config.json", "results.jsonl", "summary.json", "worst.png", "best.png" }
local SPLITS = { { 2, 1 }, { 3, 1 }, { 2, 2 }, { 4, 2 } }

check.case("results, summary and images are those of one process", function()
  evaluate(1, "one", { "visual_results=true", "reward=seg_strict" })
  local images = folders.list(place .. "/one/visual_results")
  check.ok(#images > 2, "there are images")
  for _, split in ipairs(SPLITS) do
    local name = ("on_%d_%d"):format(split[1], split[2])
    local text = evaluate(split[1], name, { "visual_results=true", "reward=seg_strict",
      "tensor_parallel_size=" .. split[2] })
    expect_same_files(name, "one", FILES)
    local folder = name .. "/visual_results"
    expect_same_files(folder, "one/visual_results", images)
    local _, summaries = text:gsub("protocol=fixed\n", "")
    check.equal(summaries, 1, "one rank prints: " .. text)
  end
end)

check.case("VisionReasoner's script, in parts, and an oracle", function()
  local words = { recipe = "recipes/evaluate_vision_reasoner.lua", "data=refshapes_multi",
    "--idx", "1", "--num_parts", "2" }
  local oracle = { "oracle=true", "data=refshapes_multi", "several=true" }
  for _, ranks in ipairs { 1, 2 } do
    evaluate(ranks, "parts_" .. ranks, words)
    evaluate(ranks, "oracle_" .. ranks, oracle)
  end
  expect_same_files("parts_2", "parts_1", { "output_1.json" })
  expect_same_files("oracle_2", "oracle_1", FILES)
end)

check.case("rows that cannot be read are counted once, in their places", function()
  local lines = {}
  for i = 1, 5 do
    local image = "images/gone.png"
    if i % 2 == 1 then image = "photo.png" end
    lines[i] = cjson.encode { id = "row" .. i, problem = "a thing", image = image,
      solution = "<box>(2,3),(20,30)</box><points>(5,6),(8,9)</points>" }
  end
  local set = place .. "/set"
  files.make_dir(set)
  files.write(set .. "/data.jsonl", table.concat(lines, "\n") .. "\n")
  local img = require("segzero").image.new(84, 84)
  img:save(set .. "/photo.png")
  for _, split in ipairs { { 1, 1 }, { 2, 1 }, { 2, 2 } } do
    local name = ("bad_%d_%d"):format(split[1], split[2])
    local text = evaluate(split[1], name, { "data=" .. set, "sam2_path=none",
      "tensor_parallel_size=" .. split[2] })
    local _, said = text:gsub("row %d is an error", "")
    check.equal(said, 2, name .. ": " .. text:sub(-600))
    expect_same_files(name, "bad_1_1", { "results.jsonl", "summary.json" })
  end
end)

check.case("mistakes are one line", function()
  local text, status = runs.run(3, { "recipes/evaluate.lua", "rows=2", "tensor_parallel_size=2",
    "output_path=" .. place .. "/wrong" })
  check.ok(status ~= 0, "the status")
  local wanted = "tensor_parallel_size is 2, which does not divide the 3 ranks: 1 or 3 would do, "
    .. "or --ranks 4"
  local _, count = text:gsub(wanted:gsub("%-", "%%-"), "")
  check.equal(count, 1, text)
  check.ok(not files.exists(place .. "/wrong"), "no folder is made")
  text = evaluate(1, "alone", { "tensor_parallel_size=2", "oracle=true" })
  check.ok(text:find("note: tensor_parallel_size=2 has no effect on one rank", 1, true), text)
end)

check.case("infer on two ranks answers and draws the same", function()
  for _, ranks in ipairs { 1, 2 } do
    local text, status = runs.run(ranks, { "examples/infer.lua", "--demo", "--output_path",
      ("%s/infer_%d.png"):format(place, ranks) })
    check.equal(status, 0, text)
    local _, answers = text:gsub("box: ", "")
    check.equal(answers, 1, "one rank prints: " .. text)
  end
  check.ok(files.read(place .. "/infer_1.png") == files.read(place .. "/infer_2.png"), "the image")
end)

mini.remove()
check.finish()
