-- test_vision_reasoner.lua - recipes/vision_reasoner_grpo.lua: its defaults, its prompt, one step
-- on rows with lists of objects, and the data that it refuses.
--
--   ./segzero tests/system/test_vision_reasoner.lua

local cjson = require "cjson"
local check = require "tests.support.check"
local evaluate = require "recipes.evaluate"
local files = require "segzero.core.files"
local mini = require "tests.support.miniature"
local objects = require "segzero.evaluation.objects"
local prompt = require "segzero.data.prompt"
local recipe = require "recipes.vision_reasoner_grpo"
local single = require "recipes.refcocog_grpo"
local sz = require "segzero"

local place = mini.folder()
local dir = mini.write(place .. "/model")

check.case("the defaults are VisionReasoner's", function()
  local cfg = recipe.settings { "worker.actor.model.model_path=" .. dir, "data.train_files=x" }
  check.equal(cfg.worker.reward.compute_score, "vision_reasoner", "reward")
  check.equal(cfg.data.max_response_length, 2000, "answer tokens")
  check.equal(cfg.worker.actor.micro_batch_size_per_device_for_update, 16, "micro-batch")
  check.equal(cfg.trainer.save_freq, 100, "save_freq")
  check.equal(prompt.style(cfg).several, true, "prompt")
  local other = single.settings { "worker.actor.model.model_path=" .. dir, "data.train_files=x" }
  check.equal(other.data.max_response_length, 1300, "refcocog_grpo keeps its own")
  check.equal(prompt.style(other).several, false, "its prompt")
end)

check.case("the reward brings its prompt and data into every recipe", function()
  local cfg = single.settings { "worker.actor.model.model_path=" .. dir,
    "worker.reward.compute_score=vision_reasoner" }
  check.equal(prompt.style(cfg).several, true, "prompt")
  check.equal(cfg.data.train_files, "refshapes_multi", "data")
  cfg = single.settings { "worker.actor.model.model_path=" .. dir, "data.prompt=seg_zero",
    "worker.reward.compute_score=vision_reasoner", "data.train_files=x" }
  check.equal(prompt.style(cfg).several, false, "data.prompt decides")
end)

check.case("a newline stands between the image and the question", function()
  local ask = prompt.styles.vision_reasoner.ask
  check.equal(ask("The Red Circles."), "\n" .. prompt.vision_reasoner("the red circles"), "prompt")
end)

local function train(name, args, overrides)
  local all = { "worker.actor.model.model_path=" .. dir,
    "trainer.save_checkpoint_path=" .. place .. "/" .. name }
  local one_step = { "trainer.max_steps=1", "trainer.save_freq=-1" }
  for _, list in ipairs { mini.arguments, one_step, args } do
    for _, a in ipairs(list) do all[#all + 1] = a end
  end
  return recipe.run(all, overrides)
end

check.case("one step, with an evaluation before and after", function()
  local asked
  local results = {}
  train("run", { "data.train_files=refshapes_multi", "data.val_files=refshapes_multi",
    "trainer.val_before_train=true" }, {
    on_step = function(_, stats) asked = stats end,
    on_evaluate = function(_, result) results[#results + 1] = result end,
  })
  check.ok(asked and asked.step == 1, "a step was made")
  check.equal(#results, 2, "evaluations")
  for _, part in ipairs { "thinking_format", "segmentation_format", "accuracy", "non_repeat" } do
    check.ok(results[1].parts[part] ~= nil, "the part " .. part)
  end
  local rows = 0
  for line in io.lines(place .. "/run/rollouts.jsonl") do
    local row = cjson.decode(line)
    check.ok(row.solution:find "^%[", row.solution)
    rows = rows + 1
  end
  check.ok(rows > 0, rows .. " answers written")
end)

check.case("data without lists is refused before the model is loaded", function()
  local folder = place .. "/single"
  sz.refshapes.write_dataset(folder, { n = 2, size = 84 }, sz.image.write_png)
  check.raises(function()
    train("refused", { "data.train_files=" .. folder, "data.val_files=null",
      "worker.reward.compute_score=vision_reasoner" })
  end, "the reward vision_reasoner reads", "one object for each row")
  check.ok(not files.exists(place .. "/refused/config.json"), "no run folder is left")
end)

check.case("evaluation counts objects, and rightly empty rows have IoU 1", function()
  local summary = evaluate.run { "oracle=true", "data=refshapes_multi", "several=true", "rows=24",
    "output_path=" .. place .. "/oracle" }
  check.equal(summary.rows, 24, "rows")
  check.equal(summary.failed + summary.errors, 0, "failures")
  local o = summary.objects
  check.equal({ o.counting, o.count_error, o.precision, o.recall, o.n_acc }, { 1, 0, 1, 1, 1 },
    "the true objects")
  check.ok(o.no_target >= 1, o.no_target .. " rows without a target")
  local empty = 0
  for line in io.lines(place .. "/oracle/results.jsonl") do
    local record = cjson.decode(line)
    if record.true_objects == 0 then
      empty = empty + 1
      check.equal({ record.iou, record.union }, { 1, 0 }, "a row without a target")
    end
  end
  check.equal(empty, o.no_target, "rows without a target in results.jsonl")
end)

check.case("counting, matched boxes and N-Acc of records", function()
  local null = cjson.null
  local s = objects.summary {
    { true_objects = 2, found_objects = 2, matched = 1 },
    { true_objects = 3, found_objects = 1, matched = 1 },
    { true_objects = 1, found_objects = null, matched = null },
    { true_objects = 0, found_objects = 0, matched = 0 },
    { true_objects = 0, found_objects = 1, matched = 0 },
  }
  check.near(s.count_rmse, math.sqrt(6 / 5), 1e-12, "root mean square")
  s.count_rmse = nil
  check.equal(s, { counted = 5, counting = 2 / 5, count_error = 4 / 5, precision = 2 / 4,
    recall = 2 / 6, no_target = 2, n_acc = 1 / 2, t_acc = 2 / 3 }, "summary")
  check.equal(objects.line(objects.summary {}),
    "counting=none count_error=none precision=none recall=none N-Acc=none T-Acc=none no_target=0",
    "line")
end)

mini.remove()
check.finish()
