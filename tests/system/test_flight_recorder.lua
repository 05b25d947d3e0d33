-- test_flight_recorder.lua - `segzero replay` and `segzero why`: a step that runs again gives the
-- same bits, what differs is named, settings and rewards that changed in between, and what the
-- update did to each answer. Also a reward's file that is changed during a run, on several ranks
-- too.

local cjson = require "cjson"
local check = require "tests.support.check"
local explaining = require "segzero.recorder.explaining"
local files = require "segzero.core.files"
local mini = require "tests.support.miniature"
local ranks = require "tests.support.rank_runs"
local sz = require "segzero"

local place = mini.folder()
local dir = mini.write(place .. "/model")
files.write(place .. "/letters.lua", mini.reward_source)

local function train(name, ...)
  local words = { "data.val_files=None", "worker.reward.sam2_path=none",
    "worker.reward.compute_score=" .. place .. "/letters.lua",
    "trainer.save_checkpoint_path=" .. place .. "/" .. name }
  for _, word in ipairs { ... } do words[#words + 1] = word end
  local text, status = mini.recipe(dir, words)
  check.equal(status, 0, name .. ": " .. text:sub(-400))
  return text
end

local function replay(name, ...) return mini.run { "replay", place .. "/" .. name, ... } end

local function has(text, part, name)
  check.ok(text:find(part, 1, true), name .. ": " .. text:sub(-700))
end

-- Adds a copy of a run in which one of its files is changed.
local function changed(from, to, file, change)
  mini.copy(place .. "/" .. from, place .. "/" .. to)
  local path = place .. "/" .. to .. "/" .. file
  files.write(path, change(files.read(path)))
end

local function rewards_of(name)
  local list = {}
  for line in io.lines(place .. "/" .. name .. "/rollouts.jsonl") do
    local record = cjson.decode(line)
    list[record.step] = list[record.step] or {}
    table.insert(list[record.step], record.reward)
  end
  return list
end

train("A", "trainer.max_steps=4")

-- ---- the same bits ----
check.case("a step that runs again gives the same bits", function()
  local text, status = replay("A", "step=3")
  check.equal(status, 0, text)
  has(text, "step 3 again, from " .. place .. "/A/global_step_2: 1 step", "the nearest checkpoint")
  has(text, "step 3: the same bits: 6 answers", "what is the same")
  text, status = replay "A"
  check.equal(status, 0, text)
  has(text, "  step 3: the same", "the step in between")
  has(text, "step 4: the same bits", "the last step is the default")
  has(text, "the weights are those of " .. place .. "/A/global_step_4: ", "weights")
  text, status = replay("A", "step=1")
  check.equal(status, 0, text)
  has(text, "from the beginning: 1 step", "without a checkpoint before it")
end)

check.case("a run notes how it was started", function()
  local facts = cjson.decode(files.read(place .. "/A/launches.jsonl"))
  check.equal(facts.from, 0, "from")
  check.equal(facts.ranks, 1, "ranks")
  check.equal(facts.threads, 1, "threads")
  check.equal(facts.device, "cpu", "device")
  check.equal(facts.command[1], "recipes/refcocog_grpo.lua", "command")
  changed("A", "T", "launches.jsonl", function(text)
    return (text:gsub('"threads":1', '"threads":3'))
  end)
  has(replay("T", "step=1"), "started in another way than the run: threads 1 (was 3)",
    "another start")
end)

check.case("LoRA and a reference run again, too", function()
  train("L", "trainer.max_steps=2", "worker.actor.model.lora.rank=2", "trainer.save_freq=1")
  local text, status = replay("L", "step=2")
  check.equal(status, 0, text)
  has(text, "step 2: the same bits", "the step")
  has(text, "the weights are those of ", "adapters")
end)

check.case("settings of a step are those under which it ran", function()
  train("R", "trainer.max_steps=2")
  train("R", "trainer.max_steps=4", "worker.actor.optim.lr=3e-3",
    "trainer.load_checkpoint_path=" .. place .. "/R")
  for step = 1, 4 do
    local text, status = replay("R", "step=" .. step)
    check.equal(status, 0, ("step %d: %s"):format(step, text))
  end
  train("F", "trainer.max_steps=3", "trainer.load_checkpoint_path=" .. place .. "/A/global_step_2")
  local text, status = replay("F", "step=3")
  check.equal(status, 0, "a run that began from another one: " .. text)
  has(text, "from " .. place .. "/A/global_step_2", "its beginning")
  has(select(1, replay("F", "step=2")), "step=2 is not in ", "before it began")
end)

check.case("a return to before a change of settings keeps what the first steps "
  .. "ran under", function()
  local folder = place .. "/V"
  local function lr(name) return cjson.decode(files.read(folder .. name)).worker.actor.optim.lr end
  train("V", "trainer.max_steps=3", "trainer.save_freq=1", "trainer.save_limit=-1")
  local first = lr "/config.json"
  train("V", "trainer.max_steps=3", "trainer.save_freq=1", "worker.actor.optim.lr=3e-3",
    "trainer.load_checkpoint_path=" .. folder .. "/global_step_2")
  train("V", "trainer.max_steps=3", "trainer.save_freq=1", "worker.actor.optim.lr=5e-3",
    "trainer.load_checkpoint_path=" .. folder .. "/global_step_1")
  check.equal(lr "/config.json", 5e-3, "the present ones")
  check.equal(lr "/config_step_1.json", first, "those of step 1")
  check.ok(not files.exists(folder .. "/config_step_2.json"), "the change after step 2 is no more")
  check.equal(lr "/config_step_1-2.json", 3e-3, "what it changed to is kept")
  local function replays(name)
    for step = 1, 3 do
      local text, status = replay("V", "step=" .. step)
      check.equal(status, 0, ("%s, step %d: %s"):format(name, step, text))
    end
  end
  replays "another change"
  train("V", "trainer.max_steps=3", "trainer.save_freq=1",
    "trainer.load_checkpoint_path=" .. folder .. "/global_step_1")
  check.equal(lr "/config.json", first, "the first ones once more")
  replays "no change against the checkpoint"
end)

-- ---- other numbers ----
check.case("the first number that differs is named", function()
  changed("A", "B", "rollouts.jsonl", function(text)
    -- The second token of the first answer of step 3.
    local done = false
    return (text:gsub("[^\n]+", function(line)
      if done or not line:find '"step":3[,}]' then return nil end
      done = true
      return (line:gsub('("logprobs":%[[^,]*,)[^,%]]*', "%1-0.5", 1))
    end))
  end)
  local text, status = replay("B", "step=3")
  check.equal(status, 1, text)
  has(text, "step 3: not the same", "the step")
  local first = "first: logprobs of row train%-%d+, answer %d, token 2: %-[%d.e-]+, was %-0%.5"
  check.ok(text:find(first), "the number: " .. text)
  has(text, "other log-probabilities in 1 of 6 answers", "how many")
  has(text, "likely: ", "a reason")

  changed("A", "C", "metrics.jsonl", function(t) return (t:gsub('"loss":[^,]*', '"loss":7')) end)
  text, status = replay("C", "step=2")
  check.equal(status, 1, "a figure")
  check.ok(text:find "  loss: [%d.e-]+, was 7", "which: " .. text)
end)

check.case("a weight that the checkpoint lacks is not passed over", function()
  mini.copy(place .. "/A", place .. "/M")
  local path = place .. "/M/global_step_4/model.safetensors"
  local weights = sz.safetensors.load(path)
  weights["visual.merger.ln_q.weight"]:free()
  weights["visual.merger.ln_q.weight"] = nil
  sz.safetensors.save(path, weights)
  for _, weight in pairs(weights) do weight:free() end
  local text, status = replay("M", "step=4")
  check.equal(status, 1, text)
  check.ok(text:find "1 of %d+ tensors are not those of .*such as visual.merger.ln_q.weight", text)
end)

check.case("another reward is named as the reason", function()
  files.write(place .. "/other.lua", mini.reward_source)
  train("O", "trainer.max_steps=1", "worker.reward.compute_score=" .. place .. "/other.lua")
  -- The run folder keeps the reward, so the file may change afterwards.
  files.write(place .. "/other.lua", "return function(text) return #text end\n")
  local text, status = replay("O", "step=1")
  check.equal(status, 0, text)
  files.write(place .. "/O/reward_step_1.lua", "return function(text) return #text end\n")
  text, status = replay("O", "step=1")
  check.equal(status, 1, text)
  has(text, "first: reward of row ", "the first number")
  has(text, "likely: the reward is another one now", "why")
end)

check.case("wrong words are one line", function()
  has(replay("A", "step=9"), "replay: step=9 is not in " .. place .. "/A/rollouts.jsonl, which has "
    .. "the steps 1 to 4", "a step")
  has(replay("nowhere"), "there is no folder", "a folder")
  has(replay("model"), "is not the folder of a training run", "another folder")
  local text, status = mini.run { "replay" }
  check.equal(status, 2, "no run")
  has(text, "replay: no run is given; segzero replay --help shows how", "no run")
  has(mini.run { "replay", "--help" }, "usage: segzero replay RUN [step=N]", "help")
  has(mini.run { "why", "--help" }, "usage: segzero why RUN step=N row=ROW", "help")
end)

-- ---- why ----
check.case("why lists the rows of a step, and explains one", function()
  local rows = explaining.rows(place .. "/A", 3)
  check.equal(#rows, 2, "rows")
  local text, status = mini.run { "why", place .. "/A", "step=3" }
  check.equal(status, 0, text)
  for _, row in ipairs(rows) do has(text, row.row, "a row of the list") end

  local image = place .. "/why.png"
  text, status = mini.run { "why", place .. "/A", "step=3", "row=" .. rows[1].row:match "%d+$",
    "image=" .. image }
  check.equal(status, 0, text)
  has(text, "step 3, row " .. rows[1].row, "the row")
  has(text, "the replay gives the same bits as the run", "the replay")
  check.equal(select(2, text:gsub("\nanswer %d: reward ", "")), 3, "answers")
  check.equal(select(2, text:gsub("  update: log%-probability ", "")), 3, "updates")
  local sheet = sz.image.load(image)
  check.ok(sheet.width > 300, "the image")
  sheet:free()
  text, status = mini.run { "why", place .. "/A", "step=3", "row=nothing" }
  check.equal(status, 1, "no such row")
  has(text, "step 3 has no row nothing; its rows: ", "which there are")
end)

check.case("a number that fits two rows is refused, and a row that was drawn twice "
  .. "is noted", function()
  local rows = explaining.rows(place .. "/A", 3)
  local number = rows[1].row:match "%d+$"
  local function with(name, row)
    changed("A", name, "rollouts.jsonl", function(text)
      return (text:gsub('"row":"' .. rows[2].row:gsub("%-", "%%-") .. '"', '"row":"' .. row .. '"'))
    end)
    return mini.run { "why", place .. "/" .. name, "step=3", "row=" .. number, "replay=false" }
  end
  local text, status = with("two", "other-" .. number)
  check.equal(status, 1, text)
  has(text, ("row=%s may be one of: %s, other-%s"):format(number, rows[1].row, number), "which")
  has(with("twice", rows[1].row), "the step drew this row 2 times", "a note")
end)

check.case("before and after are the policies of the checkpoints", function()
  train("S", "trainer.max_steps=2", "trainer.save_freq=1")
  local folder = place .. "/S"
  local e = explaining.run(folder, 2, explaining.rows(folder, 2)[1].row,
    { replay = true, image = place .. "/s.png" })
  check.equal(#e.answers, 3, "answers")
  local ids = {}
  for i, one in ipairs(e.answers) do ids[i] = one.ids end
  local set = sz.data.open("refshapes", { split = "train", size = mini.size, seed = 42, rows = 7 })
  local row = set:row(require("segzero.data.row_numbers").new(set):of(e.row))
  for key, step in pairs { before = 1, after = 2 } do
    local vl = sz.model(("%s/global_step_%d"):format(folder, step))
    local input = vl:process { { role = "system", content = "You are a helpful assistant." },
      { role = "user", content = { { type = "image", image = row.image },
        { type = "text", text = sz.prompt.seg_zero(row.problem) } } } }
    for i, logprobs in ipairs(vl:logprobs(input, ids)) do
      check.near(e.answers[i][key], logprobs:totable(), 1e-5, key .. " of answer " .. i)
    end
    vl:free()
  end
  row.image:free()
  for _, one in ipairs(e.answers) do
    check.ok(one.before[1] ~= one.after[1], "the update changed it")
  end
end)

-- ---- a reward that changes during a run ----
-- A reward that writes its next version when it is called, so that the change falls into step 1.
local function self_changing(name, next_version)
  local path = place .. "/" .. name .. ".lua"
  local source = [[
local changed = false
return function(text)
  if not changed then
    local file = assert(io.open(%q, "w"))
    file:write(%q)
    file:close()
  end
  changed = true
  return #text %% 7
end
]]
  files.write(path, source:format(path, next_version))
  return "worker.reward.compute_score=" .. path
end

local SECOND = "return function(text) return 100 + #text % 7 end\n"

check.case("a changed reward judges from the next step on, with a note", function()
  local text = train("N", "trainer.max_steps=3", self_changing("n", SECOND))
  has(text, "reward changed: " .. place .. "/n.lua judges from step 2 on", "the note")
  local rewards = rewards_of "N"
  for step, list in ipairs(rewards) do
    for _, v in ipairs(list) do check.equal(v >= 100, step > 1, "a reward of step " .. step) end
  end
  check.equal(files.read(place .. "/N/reward_step_2.lua"), SECOND, "what judged is kept")
  has(files.read(place .. "/N/reward_step_1.lua"), "local changed", "and what judged before")
  for step = 1, 3 do
    local replayed, status = replay("N", "step=" .. step)
    check.equal(status, 0, "it can be replayed: " .. replayed)
  end
end)

check.case("a module next to the reward is read again with it", function()
  local folder = place .. "/modules"
  files.make_dir(folder)
  files.write(folder .. "/points.lua", "return { base = 0 }\n")
  files.write(folder .. "/total.lua", ([[
    local points = require "points"
    return function(text)
      if points.base == 0 then
        local file = assert(io.open(%q, "w"))
        file:write("return { base = 100 }\n")
        file:close()
      end
      return points.base + #text %% 7
    end]]):format(folder .. "/points.lua"))
  local text = train("with_module", "trainer.max_steps=3",
    "worker.reward.compute_score=" .. folder .. "/total.lua")
  has(text, "/total.lua judges from step 2 on, with " .. folder .. "/points.lua as it is now",
    "the note")
  check.equal(select(2, text:gsub("reward changed", "")), 1, "once: " .. text)
  for step, list in ipairs(rewards_of "with_module") do
    for _, v in ipairs(list) do check.equal(v >= 100, step > 1, "a reward of step " .. step) end
  end
end)

check.case("a version that does not load is a warning, and the setting switches it off", function()
  local text = train("W", "trainer.max_steps=3", self_changing("w", "return function("))
  check.equal(select(2, text:gsub("has changed and does not load", "")), 1, "one warning: " .. text)
  check.equal(#rewards_of("W"), 3, "the run goes on")
  text = train("X", "trainer.max_steps=2", "worker.reward.reload=false", self_changing("x", SECOND))
  check.ok(not text:find("reward changed", 1, true), "no note")
  for _, v in ipairs(rewards_of("X")[2]) do check.ok(v < 100, "the first version") end
  check.ok(files.exists(place .. "/X/reward_step_1.lua"), "what judged is kept")
  check.ok(not files.exists(place .. "/X/reward_step_2.lua"), "no second version")
end)

check.case("a Python name of EasyR1's stands for the file that is watched", function()
  local path = place .. "/py"
  local second = "return { score = function(text) return 100 + #text % 7 end }"
  files.write(path .. ".lua", ([[
    return { score = function(text)
      local file = assert(io.open(%q, "w"))
      file:write(%q)
      file:close()
      return #text %% 7
    end }]]):format(path .. ".lua", second))
  local text = train("P", "trainer.max_steps=2",
    "worker.reward.compute_score=" .. path .. ".py:score")
  has(text, "reward changed: " .. path .. ".lua judges from step 2 on", "the note")
  check.equal(select(2, text:gsub("py is Python", "")), 1, "said once: " .. text:sub(-600))
  check.ok(rewards_of("P")[2][1] >= 100, "the second version")
  has(replay("P", "step=1"), "step 1: the same bits", "what judged is kept")
end)

check.case("all ranks change at the same step", function()
  if not ranks.available() then return end
  local own = ranks.begin()
  local setting = self_changing("ranked", SECOND)
  local text = ranks.train(2, "R", { "trainer.max_steps=3", setting })
  check.equal(select(2, text:gsub("judges from step 2 on", "")), 1, "one note: " .. text:sub(-600))
  local seen = 0
  for line in io.lines(own .. "/R/rollouts.jsonl") do
    local record = cjson.decode(line)
    seen = seen + 1
    check.equal(record.reward >= 100, record.step > 1, "step " .. record.step)
  end
  check.equal(seen, 24, "answers of both ranks")

  -- The run of two ranks again, on two ranks and on one.
  for step = 1, 2 do
    local again, status = ranks.run(2, { "replay", own .. "/R", "step=" .. step })
    check.equal(status, 0, again)
    has(again, ("step %d: the same bits: 8 answers"):format(step), "on two ranks")
  end
  local alone = mini.run { "replay", own .. "/R", "step=2" }
  has(alone, "note: started in another way than the run: ranks 1 (was 2)", "on one")
  has(mini.run { "why", own .. "/R", "step=2" }, "the rows of step 2", "why")
  local refused, status = ranks.run(2, { "why", own .. "/R", "step=2" })
  check.ok(status ~= 0, "why works on one rank")
  has(refused, "it works on one rank", "and says so")
end)

mini.remove()
check.finish()
