-- test_sources.lua - one training step, and an evaluation, on each of the miniature sets in the
-- schemas of the hub (tests/golden/make_sources.py), by the recipes as a user starts them.

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local mini = require "tests.support.miniature"

local SETS = "tests/golden/sources/"
local place = mini.folder()
local model = mini.write(place .. "/model")

local function train(set, more)
  local folder = ("%s/run_%s"):format(place, set:gsub("%W", "_"))
  local words = { "recipes/refcocog_grpo.lua", "worker.actor.model.model_path=" .. model,
    "data.train_files=" .. SETS .. set, "data.val_files=", "data.rollout_batch_size=2",
    "worker.actor.global_batch_size=2", "worker.rollout.n=2", "data.max_response_length=6",
    "trainer.max_steps=1", "trainer.logger=jsonl", "trainer.save_checkpoint_path=" .. folder }
  for _, word in ipairs(more or {}) do words[#words + 1] = word end
  local text, status = mini.run(words)
  return text, status, folder
end

check.case("a step on each training set", function()
  local length = { "data.max_prompt_length=2000" }
  for set, problems in pairs {
    refcocog = "the %w+ circle", ["saved@test"] = "the %w+ circle",
    easyr1 = "<image>the %w+ circle",
  } do
    local text, status, folder = train(set, length)
    check.equal(status, 0, set .. ": " .. text)
    local rows = 0
    for line in io.lines(folder .. "/rollouts.jsonl") do
      rows = rows + 1
      check.ok(cjson.decode(line).problem:find("^" .. problems .. "$") ~= nil, "a row's problem")
    end
    check.equal(rows, 4, set .. ": answers")
  end
end)

check.case("a solution that the reward cannot read is refused before a weight is read", function()
  local text, status, folder = train "multi"
  check.ok(status ~= 0 and text:find("use recipes/vision_reasoner_grpo.lua", 1, true), text)
  check.ok(text:find("multi/data/train-00000-of-00002.parquet row 1", 1, true),
    "the place: " .. text)
  check.ok(not files.exists(folder), "no run folder")
end)

check.case("an evaluation of each set with masks", function()
  for _, set in ipairs { "reasonseg", "saved_masks", "mask_forms.parquet" } do
    local folder = ("%s/eval_%s"):format(place, set:gsub("%W", "_"))
    local text, status = mini.run { "recipes/evaluate.lua", "data=" .. SETS .. set, "oracle=true",
      "sam2_path=tests/golden/sam2/S5", "frame=84", "output_path=" .. folder }
    check.equal(status, 0, set .. ": " .. text)
    check.ok(text:find "gIoU=0%.%d" ~= nil and text:find("errors=0", 1, true), set .. ": " .. text)
  end
end)

mini.remove()
check.finish()
