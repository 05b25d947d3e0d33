-- test_vision_reasoner.lua - recipes/vision_reasoner_grpo.lua: its defaults, its prompt, one step on
-- rows with lists of objects, and the data that it refuses.
--
--   ./segzero tests/system/test_vision_reasoner.lua

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local mini = require "tests.support.miniature"
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
  for _, list in ipairs { mini.arguments, { "trainer.max_steps=1", "trainer.save_freq=-1" }, args } do
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

mini.remove()
check.finish()
