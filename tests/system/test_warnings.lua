-- test_warnings.lua - each warning by a run that deserves it, or by the default run's figures made
-- sick in one way; and none on the default run itself (tests/golden/default_run.jsonl: the
-- figures of its 60 steps). Also the figures that warnings read.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local answers = require "segzero.train.figures.answers"
local files = require "segzero.core.files"
local warnings = require "segzero.train.figures.warnings"

local place = mini.folder()
local dir = mini.write(place .. "/model")
files.write(place .. "/reward.lua", mini.reward_source)
files.write(place .. "/constant.lua", "return function() return 2 end\n")
files.write(place .. "/by_row.lua",
  "return function(_, _, row) return row.index % 2 + 0.5 end\n")

local HEALTHY = { estimator = "grpo", answers = 8 }

-- The warnings that a run printed.
local function warnings_in(name, text, status)
  check.equal(status, 0, name .. ": it runs: " .. text:sub(-300))
  local list = {}
  for line in text:gmatch "  warning: ([^\n]*)" do list[#list + 1] = line end
  return list
end

local CUT = "every answer was cut off at %d+ tokens; raise data%.max_response_length"

-- Those of the miniature, whose random weights end few answers: without the one about that.
local function warned(name, reward, ...)
  local list = {}
  local text, status = mini.recipe(dir, { "trainer.max_steps=4", "data.val_files=None",
    "trainer.save_freq=-1", "worker.reward.compute_score=" .. place .. "/" .. reward .. ".lua",
    "trainer.save_checkpoint_path=" .. place .. "/" .. name, ... })
  for _, line in ipairs(warnings_in(name, text, status)) do
    if not line:find(CUT) then list[#list + 1] = line end
  end
  return list, text
end

-- The default run's records, each changed by f.
local function recorded(f)
  local list = {}
  for line in io.lines "tests/golden/default_run.jsonl" do
    local record = cjson.decode(line)
    if f then f(record) end
    list[#list + 1] = record
  end
  return list
end

-- A run twice as long: the same figures once more, then changed by f.
local function recorded_twice(f)
  local list = recorded()
  for _, record in ipairs(recorded()) do
    record.step = #list + 1
    list[#list + 1] = record
  end
  for _, record in ipairs(list) do f(record) end
  return list
end

-- {{step, text}, ...}
local function seen(records, facts)
  local watch = warnings.new(facts or HEALTHY)
  local list = {}
  for _, record in ipairs(records) do
    for _, text in ipairs(watch:see(record)) do list[#list + 1] = { record.step, text } end
  end
  return list
end

-- ---- runs ----
check.case("a short run of the embedded model has no warning", function()
  local text, status = mini.run { "recipes/refcocog_grpo.lua", "data.val_files=None",
    "trainer.max_steps=4", "trainer.save_freq=-1", "data.rollout_batch_size=2",
    "worker.rollout.n=4", "trainer.save_checkpoint_path=" .. place .. "/healthy" }
  check.equal(warnings_in("healthy", text, status), {}, "none")
  check.ok(text:find("4/4  reward", 1, true), "four steps")
end)

check.case("a constant reward", function()
  local list = warned("constant", "constant")
  check.equal(#list, 1, "one warning, once: " .. table.concat(list, "; "))
  check.ok(list[1]:find("every answer of the last 3 steps had the reward 2, ", 1, true), list[1])
end)

check.case("no signal in any group", function()
  local list = warned("no_signal", "by_row", "data.rollout_batch_size=4",
    "worker.actor.global_batch_size=4")
  check.equal(#list, 1, "one warning: " .. table.concat(list, "; "))
  check.ok(list[1]:find("all answers to a prompt had the same reward, in every group", 1, true),
    list[1])
end)

check.case("one answer to a prompt, and a learning rate of 0", function()
  local list = warned("one", "reward", "worker.rollout.n=1", "worker.actor.optim.lr=0")
  check.equal(#list, 2, "two warnings: " .. table.concat(list, "; "))
  check.ok(list[1]:find "^worker%.rollout%.n=1: grpo compares the answers", list[1])
  check.ok(list[2]:find "^the learning rate was 0 in the last 3 steps", list[2])
end)

check.case("a run without the console prints its warnings", function()
  local list, text = warned("quiet", "reward", "worker.rollout.n=1", "trainer.logger=jsonl")
  check.equal(#list, 1, "one warning: " .. text)
  check.ok(list[1]:find "^worker%.rollout%.n=1: grpo compares the answers", list[1])
  check.ok(not text:find "reward %d", "no step's line: " .. text)
end)

check.case("all answers are cut", function()
  local _, text = warned("cut", "reward", "data.max_response_length=1")
  local _, count = text:gsub("  warning: in the last 3 steps " .. CUT, "")
  check.equal(count, 1, "one warning, once")
end)

-- ---- recorded figures ----
check.case("the default run has no warning in its 60 steps", function()
  local records = recorded()
  check.equal(#records, 60, "steps")
  check.ok(records[1].groups_no_signal and records[1].entropy and records[1]["reward/iou"],
    "the figures are there")
  check.equal(seen(records), {}, "none")
end)

check.case("the entropy collapses", function()
  local list = seen(recorded_twice(function(r) r.entropy = r.entropy * 0.9 ^ r.step end))
  check.equal(#list, 2, "a warning, and again 50 steps later")
  check.ok(list[1][2]:find "^the entropy has fallen from 0%.%d+ to 0%.0%d+", list[1][2])
  check.ok(list[1][1] > 15 and list[1][1] < 40, "at step " .. list[1][1])
  check.equal(list[2][1] - list[1][1], 50, "steps between them")
end)

check.case("the format rises while IoU stands still", function()
  -- The default run answers in the right format from its first step on.
  local function rising(iou)
    return function(r)
      r["reward/segmentation_format"] = math.min(1, r.step / 30)
      r["reward/iou"] = iou
    end
  end
  local list = seen(recorded_twice(rising(0.01)))
  check.equal(#list, 2, "a warning, and again 50 steps later")
  check.equal(list[1][1], 60, "the step")
  check.ok(list[1][2]:find "the format's parts rose by 0%.%d+ and the accuracy's by 0%.000",
    list[1][2])
  -- Without such a part there is nothing to compare.
  check.equal(seen(recorded_twice(rising(nil))), {}, "no part named iou")
end)

check.case("a sign has to last, and a KL term in the reward is a signal", function()
  local function at(first, last)
    return function(r)
      if r.step < first or r.step > last then return end
      r.groups_no_signal = 1
      r.stopped = 0
    end
  end
  check.equal(seen(recorded(at(5, 6))), {}, "two steps are none")
  check.equal(#seen(recorded(at(5, 7))), 2, "three are")
  check.equal(#seen(recorded(function(r) r.groups_no_signal = 1 r.rewards_mean = 1 end)), 0,
    "equal scores, other rewards")
  check.equal(#seen(recorded(at(5, 7)), { estimator = "reinforce_plus_plus", answers = 1 }), 1,
    "an estimator that compares no answers of a group: only the cut answers")
end)

-- ---- figures ----
local function sample(score, length, advantage)
  local ids = {}
  for i = 1, length do ids[i] = i end
  return { score = score, ids = ids, advantage = advantage }
end

check.case("figures of groups", function()
  local groups = {
    { row = {}, input = { input_ids = { 1, 2, 3 } },
      samples = { sample(3, 2, 1), sample(3, 4, -1) } },
    { row = { prompt_tokens = 5 }, samples = { sample(0, 1, 0), sample(0, 4, { 0, 2, -3, 1 }) } },
    { row = { prompt_tokens = 4 }, samples = { sample(1, 3, 0), sample(2, 3, 0) } },
    { row = { prompt_tokens = 4 }, samples = { sample(1, 3, 0), sample(1, 3, 0) } },
  }
  local stats = {}
  answers.add(stats, groups, { response = 4, prompt = 5 })
  check.near(stats, {
    reward_min = 0, reward_max = 3, reward_std = math.sqrt((25 / 8) - (11 / 8) ^ 2),
    groups_no_signal = 3 / 4, groups_all_right = 1 / 4, groups_all_wrong = 1 / 4,
    length_min = 1, length_max = 4, length_at_limit = 2 / 8,
    advantage_mean = (2 - 4 + 0) / 23, advantage_min = -3, advantage_max = 2,
    prompt_length = 4, prompt_length_min = 3, prompt_length_max = 5,
    prompt_length_at_limit = 2 / 8,
  }, 1e-12, "all of them")

  -- A KL term in the reward.
  answers.add(stats, groups, { response = 4, prompt = 5, seen = { groups = {
    { samples = { sample(2.5, 1, 0), sample(-0.5, 1, 0) } } } } })
  check.equal({ stats.rewards_mean, stats.rewards_min, stats.rewards_max }, { 1, -0.5, 2.5 },
    "scores less the term")
end)

mini.remove()
check.finish()
