-- test_hub_sets.lua - miniature sets in the exact schemas of the hub's
-- (tests/golden/make_hub_sets.py) train and evaluate with the embedded models, as a user starts
-- them.
--
--   ./segzero tests/system/test_hub_sets.lua
--
-- Leaves out: what a trained model would score.

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local mini = require "tests.support.miniature"
local sources = require "segzero.data.sources"
local tensor = require "segzero.core.tensor"

local SETS = "tests/golden/hub_sets/"
local place = mini.folder()
local expected = files.read_json_object(SETS .. "expected.json")

-- One step of two prompts with two answers each; returns the rows of rollouts.jsonl.
local function train(recipe, set, more)
  local folder = ("%s/%s"):format(place, set)
  local words = { recipe, "data.train_files=" .. SETS .. set, "data.val_files=",
    "data.rollout_batch_size=2", "worker.actor.global_batch_size=2", "worker.rollout.n=2",
    "data.max_response_length=8", "data.resize=224x224", "trainer.max_steps=1",
    "trainer.save_freq=-1", "trainer.save_checkpoint_path=" .. folder }
  for _, word in ipairs(more or {}) do words[#words + 1] = word end
  local text, status = mini.run(words)
  check.equal(status, 0, set .. ": " .. text)
  local rows = {}
  for line in io.lines(folder .. "/rollouts.jsonl") do rows[#rows + 1] = cjson.decode(line) end
  check.equal(#rows, 4, set .. ": answers")
  return rows
end

check.case("a step on refCOCOg_2k_840", function()
  for _, row in ipairs(train("recipes/refcocog_grpo.lua", "refCOCOg_2k_840")) do
    check.ok(row.problem:find "^the %w+ square$" ~= nil, row.problem)
    check.ok(row.solution:find "^<box>%(%d+,%d+%),%(%d+,%d+%)</box><points>" ~= nil, row.solution)
  end
end)

check.case("a step on VisionReasoner's set, from the hub and from save_to_disk", function()
  for _, set in ipairs { "VisionReasoner_multi_object", "VisionReasoner_multi_object_saved" } do
    local several = 0
    for _, row in ipairs(train("recipes/vision_reasoner_grpo.lua", set)) do
      local objects = cjson.decode(row.solution)
      check.equal(#objects[1].bbox_2d, 4, set .. ": a box")
      if row.problem == "'the red square' and 'the green square'" then
        several = several + 1
        check.equal(#objects, 2, set .. ": objects")
      end
    end
    check.equal(several, 2, set .. ": answers to the question about two objects")
  end
end)

check.case("a step on EasyR1's geometry3k, with a reward of the user's", function()
  local reward = place .. "/equal.lua"
  files.write(reward, [[
    return function(text, truth) return text:find(truth, 1, true) and 1 or 0 end
  ]])
  for _, row in ipairs(train("recipes/refcocog_grpo.lua", "geometry3k",
      { "data.prompt_key=problem", "data.answer_key=answer", "data.image_key=images",
        "worker.reward.compute_score=" .. reward })) do
    check.ok(row.problem:find "side of the square" ~= nil, row.problem)
    check.ok(row.solution == "30" or row.solution == "40", row.solution)
  end
end)

check.case("an evaluation of each set with masks", function()
  for set, rows in pairs { ReasonSeg_val = 2, ReasonSeg_test = 3, refcoco_val = 2 } do
    local text, status = mini.run { "recipes/evaluate.lua", "data=" .. SETS .. set,
      "oracle=true", "output_path=" .. place .. "/eval_" .. set }
    check.equal(status, 0, set .. ": " .. text)
    local tail = ("rows=%d failed=0 errors=0 skipped=0"):format(rows)
    check.ok(text:find(tail, 1, true) ~= nil, set .. ": " .. text)
    -- The true box in, the square out; a blank mask or a swap of width and height gives next to 0.
    local giou = tonumber(text:match "gIoU=(%d%.%d+)")
    check.ok(giou and giou > 0.5, set .. ": " .. text)
  end
end)

check.case("an evaluation of each set with boxes or numbers alone", function()
  for _, set in ipairs { "coco_val", "counting" } do
    local text, status = mini.run { "recipes/evaluate.lua", "data=" .. SETS .. set, "several=true",
      "max_new_tokens=8", "output_path=" .. place .. "/eval_" .. set }
    check.equal(status, 0, set .. ": " .. text)
    check.ok(text:find "rows=2 failed=%d errors=0 skipped=0" ~= nil, set .. ": " .. text)
    check.ok(text:find "counting=%d%.%d+ count_error=" ~= nil, set .. ": " .. text)
  end
end)

check.case("sizes, boxes and masks of the sets", function()
  for _, name in ipairs { "ReasonSeg_val", "ReasonSeg_test", "refcoco_val" } do
    local set = sources.open(SETS .. name, { split = "heldout" })
    check.equal(set:count(), #expected[name], name .. ": rows")
    for i, want in ipairs(expected[name]) do
      local row = set:row(i)
      local mask = row:mask()
      local data = tensor.data(mask)
      local inside = 0
      for k = 0, mask:numel() - 1 do inside = inside + data[k] end
      check.equal({ row.image.width, row.image.height, inside },
        { want.width, want.height, want.inside }, ("%s row %d"):format(name, i))
      check.equal({ row.columns.img_width, row.columns.img_height },
        { want.width, want.height }, name .. ": columns")
      if name == "refcoco_val" then check.equal(row.columns.bbox, want.box, "bbox") end
      mask:free()
      row.image:free()
    end
  end
end)

check.case("boxes of coco_val and numbers of counting", function()
  local parquet = require "segzero.formats.parquet"
  for name, column in pairs { coco_val = "bbox", counting = "count" } do
    local file = parquet.open(SETS .. name .. "/data/test-00000-of-00001.parquet")
    check.equal(file.count, 2, name)
    for i = 1, file.count do check.equal(file:value(i, column), expected[name][i], name) end
    file:close()
  end
end)

mini.remove()
check.finish()
