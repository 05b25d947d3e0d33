-- test_resume.lua - going on with a run: which settings may change, the data set, the row to go on
-- from, a return to an earlier step, logs in which a step stands once, and trainer_state.json as
-- input. That the bits are those of an unbroken run is in test_train.lua.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local contract = require "segzero.runs.contract"
local checkpoint = require "segzero.train.run.checkpoint"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local position = require "segzero.data.position"

local place = mini.folder()
local dir = mini.write(place .. "/model")
files.write(place .. "/reward.lua", mini.reward_source)

-- A data set of 12 rows; their ids are "0" to "11".
local function write_data(path, rows, problem)
  files.make_dir(path)
  local image = sz.image.new(84, 84)
  image:save(path .. "/image.png")
  image:free()
  local lines = {}
  for i = 1, rows do
    lines[i] = cjson.encode { id = tostring(i - 1), problem = problem or "the dark square",
      solution = '[{"bbox_2d":[1,1,40,40],"point_2d":[20,20]}]', image = "image.png" } .. "\n"
  end
  files.write(path .. "/data.jsonl", table.concat(lines))
  return path
end
local data = write_data(place .. "/data", 12)

local function recipe(...)
  return mini.recipe(dir, { "data.train_files=" .. data, "data.val_files=None",
    "data.shuffle=false", "worker.rollout.n=2", "trainer.max_steps=2", "trainer.save_freq=1",
    "worker.reward.sam2_path=none", "worker.reward.compute_score=" .. place .. "/reward.lua", ... })
end

local function load_from(path) return "trainer.load_checkpoint_path=" .. path end
local function save_to(path) return "trainer.save_checkpoint_path=" .. path end

local A = place .. "/A"
local text, status = recipe(save_to(A))
check.equal(status, 0, "the run that is copied: " .. text:sub(-400))

local function copy_of_a(name) return mini.copy(A, place .. "/" .. name) end

local function config_of(folder) return cjson.decode(files.read(folder .. "/config.json")) end

-- The lines of a log as tables.
local function records(path)
  local list = {}
  for line in io.lines(path) do list[#list + 1] = cjson.decode(line) end
  return list
end

-- The steps of metrics.jsonl, in order.
local function steps_of(folder)
  local steps = {}
  for _, record in ipairs(records(folder .. "/metrics.jsonl")) do
    if record.reward then steps[#steps + 1] = record.step end         -- not an evaluation
  end
  return steps
end

-- {"step row", ...} of the first answers in rollouts.jsonl.
local function rows_of(folder)
  local rows = {}
  for _, record in ipairs(records(folder .. "/rollouts.jsonl")) do
    if record.answer == 1 then rows[#rows + 1] = record.step .. " " .. record.row end
  end
  return rows
end

-- ---- settings ----
check.case("a changed setting of the experiment is refused by name", function()
  local other = mini.copy(dir, place .. "/other_model")
  local table_of = {
    { "data.rollout_batch_size=4", "data.rollout_batch_size was 2 and is 4" },
    { "worker.rollout.n=3", "worker.rollout.n was 2 and is 3" },
    { "data.seed=7", "data.seed was 42 and is 7" },
    { "data.shuffle=true", "data.shuffle was false and is true" },
    { "worker.actor.model.dtype=bf16", "worker.actor.model.dtype was f32 and is bf16" },
    { "worker.actor.model.lora.rank=4", "worker.actor.model.lora.rank was 0 and is 4" },
    { "worker.rollout.temperature=0.7", "worker.rollout.temperature was 1 and is 0.7" },
    { "worker.actor.kl_loss_coef=0.1", "worker.actor.kl_loss_coef was 0.005 and is 0.1" },
    { "worker.actor.optim.state_dtype=bf16", "worker.actor.optim.state_dtype was f32" },
    { "worker.actor.model.model_path=" .. other, "worker.actor.model.model_path was " },
    { "data.max_response_length=9", "data.max_response_length was 8 and is 9" },
    { "data.system_prompt=", "data.system_prompt was You are a helpful assistant. and is (empty)" },
  }
  local before = files.read(A .. "/metrics.jsonl")
  for _, row in ipairs(table_of) do
    local said, rc = recipe(load_from(A), "trainer.max_steps=3", row[1])
    local line = said:match "segzero: ([^\n]*)\n$" or ""
    check.equal(rc, 1, row[1] .. " is refused")
    check.ok(line:find(row[2], 1, true), row[1] .. ": " .. said)
    check.ok(line:find("trainer.resume_changes=true", 1, true), "with the cure")
  end
  check.equal(files.read(A .. "/metrics.jsonl"), before, "the run is as it was")
  check.equal(#checkpoint.list(A), 2, "with its checkpoints")
end)

check.case("what changes no result may change, and is said with both values", function()
  local B = copy_of_a "B"
  -- A reward that failed is mended in another file.
  files.write(place .. "/other.lua", mini.reward_source)
  local reward = "worker.reward.compute_score=" .. place .. "/other.lua"
  local said, rc = recipe(load_from(B), "trainer.max_steps=3", "worker.actor.optim.lr=1e-3",
    "trainer.save_freq=2", "worker.rollout.cache_gib=1", "trainer.check_memory=false", reward)
  check.equal(rc, 0, said:sub(-300))
  check.ok(said:find("changed at the resume: worker.reward.compute_score: ", 1, true), "reward")
  for _, line in ipairs { "worker.actor.optim.lr: 0.01 -> 0.001", "trainer.save_freq: 1 -> 2",
    "trainer.max_steps: 2 -> 3", "worker.rollout.cache_gib: 4 -> 1",
    "trainer.check_memory: true -> false" } do
    check.ok(said:find("changed at the resume: " .. line .. "\n", 1, true), line .. ": " .. said)
  end
  local _, count = said:gsub("changed at the resume", "")
  check.equal(count, 6, "and nothing else")
  check.equal(config_of(B).worker.actor.optim.lr, 1e-3, "config.json has what is used")
  local old = cjson.decode(files.read(B .. "/config_step_2.json"))
  check.equal(old.worker.actor.optim.lr, 1e-2, "config_step_2.json has what was")
  said = recipe(load_from(B), "trainer.max_steps=3", "worker.actor.optim.lr=1e-3",
    "trainer.save_freq=2", "worker.rollout.cache_gib=1", "trainer.check_memory=false", reward)
  check.ok(not said:find("changed at the resume", 1, true), "the new ones are the run's now")
end)

check.case("a mended reward goes on", function()
  local N = copy_of_a "N"
  local other = place .. "/mended.lua"
  files.write(other, mini.reward_source)
  local said, rc = recipe(load_from(N), "trainer.max_steps=3",
    "worker.reward.compute_score=" .. other)
  check.equal(rc, 0, said:sub(-300))
  check.ok(said:find(("worker.reward.compute_score: %s/reward.lua -> %s"):format(place, other), 1,
    true), "and is said: " .. said)
end)

check.case("trainer.resume_changes goes on all the same, behind the last row", function()
  local C = copy_of_a "C"
  local said, rc = recipe(load_from(C), "trainer.max_steps=4", "data.rollout_batch_size=4",
    "data.seed=7", "trainer.resume_changes=true")
  check.equal(rc, 0, said:sub(-300))
  check.ok(said:find("changed at the resume: data.rollout_batch_size: 2 -> 4\n", 1, true), said)
  check.equal(rows_of(C), { "1 0", "1 1", "2 2", "2 3", "3 4", "3 5", "3 6", "3 7", "4 8", "4 9",
    "4 10", "4 11" }, "no row is left out, none is taken twice")
  check.equal(config_of(C).data.rollout_batch_size, 4, "config.json")

  -- Once more, with the batch of now: it counts from where the change was.
  said, rc = recipe(load_from(C .. "/global_step_3"), "trainer.max_steps=4",
    "data.rollout_batch_size=4", "data.seed=7")
  check.equal(rc, 0, said:sub(-300))
  local rows = rows_of(C)
  check.equal({ rows[#rows - 3], rows[#rows] }, { "4 8", "4 11" }, "from the changed step")
end)

check.case("a setting that the old run did not know had its default", function()
  local D = copy_of_a "D"
  local path = D .. "/global_step_2/settings.json"
  local old = files.read(path)
  os.remove(D .. "/global_step_2/manifest.json")
  files.write(path, (old:gsub('"loss_avg_mode": "token",', "")))
  check.ok(files.read(path) ~= old, "it is gone")
  local said, rc = recipe(load_from(D), "trainer.max_steps=3",
    "worker.actor.loss_avg_mode=seq")
  check.ok(rc == 1 and said:find("loss_avg_mode was token and is seq", 1, true), said)
  said, rc = recipe(load_from(D), "trainer.max_steps=3")
  check.ok(rc == 0 and not said:find("loss_avg_mode", 1, true), "the default is no change")
end)

check.case("a checkpoint of segzero 0.1 goes on", function()
  -- It had no run.json, manifest or settings, and less in its state.
  local E = copy_of_a "E"
  os.remove(E .. "/run.json")
  for n = 1, 2 do
    local step = E .. "/global_step_" .. n
    os.remove(step .. "/manifest.json")
    os.remove(step .. "/settings.json")
    files.write(step .. "/DONE", "")
    files.write(step .. "/trainer_state.json", cjson.encode { global_step = n,
      optimizer_steps = n, seed = 42, skipped_updates = 0 })
  end
  local said, rc = recipe(load_from(E), "trainer.max_steps=3", "worker.rollout.n=4")
  check.ok(rc == 1 and said:find("worker.rollout.n was 2 and is 4", 1, true), said)
  said, rc = recipe(load_from(E), "trainer.max_steps=3")
  check.equal(rc, 0, said:sub(-300))
  check.ok(said:find("no manifest.json, so its bytes are not checked", 1, true), said)
  check.equal(steps_of(E), { 1, 2, 3 }, "in its own folder")
  check.ok(files.exists(E .. "/run.json"), "which has a mark now")
  said, rc = recipe(load_from(E .. "/global_step_1"), "trainer.max_steps=2")
  check.equal(rc, 0, said:sub(-300))
  check.equal(folders.list(E .. "/abandoned_1"),
    { "global_step_2", "global_step_3", "metrics.jsonl", "rollouts.jsonl" }, "old and new")
end)

-- ---- the data set ----
check.case("a run that began in segzero's folder goes on in another one", function()
  local old = { worker = { actor = { model = { model_path = "models/tiny/qwen2.5-vl" } } } }
  local root = require("segzero.host").root
  local path = root .. "/models/tiny/qwen2.5-vl"
  local new = { worker = { actor = { model = { model_path = path } } } }
  local function changed()
    local list = contract.changes(old, new, { rows = 1 }, {})
    for _, change in ipairs(list) do
      if change.key == "worker.actor.model.model_path" then return true end
    end
    return false
  end
  local unistd = require "posix.unistd"
  local here = unistd.getcwd()
  unistd.chdir "/"
  local elsewhere = changed()
  new.worker.actor.model.model_path = root .. "/models/tiny/sam2"
  local other = changed()
  unistd.chdir(here)
  check.equal(elsewhere, false, "the same model")
  check.equal(other, true, "another one")
end)

check.case("another data set is refused, one that was moved is not", function()
  local F = copy_of_a "F"
  local moved = mini.copy(data, place .. "/moved")
  local said, rc = recipe(load_from(F), "trainer.max_steps=3", "data.train_files=" .. moved)
  check.equal(rc, 0, said:sub(-300))
  check.ok(said:find(("changed at the resume: data.train_files: %s -> %s"):format(data, moved), 1,
    true), "the move is said: " .. said)

  local F2 = copy_of_a "F2"
  local edited = write_data(place .. "/edited", 12, "the bright square")
  said, rc = recipe(load_from(F2), "trainer.max_steps=3", "data.train_files=" .. edited)
  check.ok(rc == 1 and said:find("12 rows with another content", 1, true), "content: " .. said)
  local longer = write_data(place .. "/longer", 13)
  said, rc = recipe(load_from(F2), "trainer.max_steps=3", "data.train_files=" .. longer)
  check.ok(rc == 1 and said:find(longer .. ", 13 rows", 1, true), "number: " .. said)
  said, rc = recipe(load_from(F2), "trainer.max_steps=3", "data.train_files=" .. longer,
    "trainer.resume_changes=true")
  check.equal(rc, 0, said:sub(-300))
  local rows = rows_of(F2)
  check.equal({ rows[#rows - 1], rows[#rows] }, { "3 0", "3 1" }, "it starts at its first row")
end)

-- ---- rows ----
check.case("positions are those of a run without changes", function()
  local count = 0
  for _, size in ipairs { 1, 5, 7, 12 } do
    for batch = 1, size do
      local per_epoch = math.floor(size / batch)
      for step = 1, 20 do
        local at = position.at(position.START, batch, size, step)
        check.equal(at, { epoch = math.floor((step - 1) / per_epoch),
          before = (step - 1) % per_epoch * batch, number = (step - 1) * batch },
          ("%d rows, batches of %d, step %d"):format(size, batch, step))
        count = count + 1
      end
      check.equal(position.last(position.START, batch, size, 3), 3 * per_epoch, "three epochs")
    end
  end
  check.equal(count, 500, "all are compared")
end)

check.case("every row of an epoch is taken once, wherever the batch changes", function()
  local compared = 0
  for size = 6, 13 do
    for first = 1, 4 do
      for second = 1, 3 do
        for change = 0, math.floor(size / first) do
          -- `change` steps of the first batch, then the second until the epoch ends.
          local place_of = position.after(position.START, first, size, change)
          local since = { step = change, epoch = place_of.epoch, before = place_of.before,
            number = place_of.number }
          local taken = change * first
          local step = change + 1
          local at = position.at(since, second, size, step)
          while at.epoch == 0 do
            check.equal(at.before, taken, "behind the last row")
            check.equal(at.number, taken, "with a number of its own")
            taken = taken + second
            step = step + 1
            at = position.at(since, second, size, step)
          end
          check.ok(size - taken < second, "only an incomplete batch is dropped")
          check.equal(at.before, 0, "the next epoch starts at its first row")
          check.equal(position.last(since, second, size, 1), step - 1, "the epoch's last step")
          compared = compared + 1
        end
      end
    end
  end
  check.ok(compared > 400, "many are compared")
end)

-- ---- a return to an earlier step ----
check.case("later steps are put aside, and `latest` is what was written last", function()
  local G = place .. "/G"
  recipe(save_to(G), "trainer.max_steps=4")
  local old = files.read(G .. "/global_step_4/model.safetensors")
  local lines = { metrics = files.read(G .. "/metrics.jsonl"),
    rollouts = files.read(G .. "/rollouts.jsonl") }
  local said, rc = recipe(load_from(G .. "/global_step_2"), "trainer.max_steps=3",
    "worker.actor.optim.lr=1e-3")
  check.equal(rc, 0, said:sub(-300))
  check.ok(said:find("put aside what was later than step 2: " .. G .. "/abandoned_1", 1, true),
    said)
  check.equal(files.read(G .. "/latest"), "global_step_3\n", "latest")
  check.equal(checkpoint.latest(G), G .. "/global_step_3", "the newest")
  check.equal(steps_of(G), { 1, 2, 3 }, "a step stands once")
  check.equal(folders.list(G .. "/abandoned_1"),
    { "global_step_3", "global_step_4", "metrics.jsonl", "rollouts.jsonl" }, "what is aside")
  check.ok(files.read(G .. "/abandoned_1/global_step_4/model.safetensors") == old, "as it was")
  for name, whole in pairs(lines) do
    local path = ("%s/abandoned_1/%s.jsonl"):format(G, name)
    check.equal(whole:sub(-#files.read(path)), files.read(path), name .. ": the last lines")
  end

  -- Once more, and nothing of the first time is touched.
  recipe(load_from(G .. "/global_step_1"), "trainer.max_steps=2")
  check.equal(steps_of(G), { 1, 2 }, "from step 1")
  check.equal(folders.list(G .. "/abandoned_2"),
    { "global_step_2", "global_step_3", "metrics.jsonl", "rollouts.jsonl" }, "the second time")
  check.equal(files.read(G .. "/latest"), "global_step_2\n", "latest")
end)

check.case("a run without steps left, or that only evaluates, abandons nothing", function()
  local H = copy_of_a "H"
  local said, rc = recipe(load_from(H .. "/global_step_1"), "trainer.max_steps=1")
  check.equal(rc, 0, said:sub(-300))

  -- Each evaluation has a folder of its own, and one line; the run has the files that it had.
  local metrics = files.read(H .. "/metrics.jsonl")
  local names = folders.list(H)
  for i, folder in ipairs { H .. "-eval", H .. "-eval-2" } do
    said, rc = recipe(load_from(H .. "/global_step_1"), "trainer.max_steps=5",
      "trainer.val_only=true", "data.val_files=refshapes", "data.refshapes_val_rows=2")
    check.equal(rc, 0, said:sub(-300))
    local lines = files.read(folder .. "/metrics.jsonl")
    check.equal(select(2, lines:gsub("\n", "")), 1, "one line: " .. lines)
    check.ok(lines:find('"step":1', 1, true) and lines:find "held_out_reward", lines)
    check.ok(files.exists(folder .. "/before.png"), "the images of evaluation " .. i)
  end
  check.equal(folders.list(H), names, "the run's files")
  check.equal(files.read(H .. "/metrics.jsonl"), metrics, "the run's log")
  check.equal(#checkpoint.list(H), 2, "both checkpoints are there")
  check.equal(files.read(H .. "/latest"), "global_step_2\n", "latest")
  check.equal(steps_of(H), { 1, 2 }, "the log is as it was")
end)

-- ---- logs ----
check.case("lines that a killed run wrote after its checkpoint stand once", function()
  local I = copy_of_a "I"
  local rollouts = files.read(I .. "/rollouts.jsonl")
  local metrics = files.read(I .. "/metrics.jsonl")
  os.execute("rm -r " .. I .. "/global_step_2")
  local file = io.open(I .. "/rollouts.jsonl", "a")
  file:write '{"answer":1,"ids":[1,2'
  file:close()
  local said, rc = recipe(load_from(I))
  check.equal(rc, 0, said:sub(-300))
  check.equal(files.read(I .. "/rollouts.jsonl"), rollouts, "the same lines as before")
  check.equal(steps_of(I), { 1, 2 }, "metrics")
  check.ok(files.read(I .. "/abandoned_1/rollouts.jsonl"):find('"ids":[1,2', 1, true),
    "the broken line is aside")
  check.equal(files.read(I .. "/abandoned_1/metrics.jsonl"), metrics:match "\n(.*)$",
    "with the line of step 2")
end)

check.case("a step that is a part of a reward does not count", function()
  local logs = require "segzero.runs.logs"
  local path = place .. "/log.jsonl"
  local lines = { '{"parts":{"step":9},"step":1}', '{"text":"\\"step\\":9","step":2}',
    '{"held_out_reward":1,"step":2}', '{"parts":{"step":1},"step":3}', '{"note":"no step"}' }
  files.write(path, table.concat(lines, "\n") .. "\n")
  check.ok(logs.later(path, 2, false) and not logs.later(path, 3, false), "what is later")
  check.ok(logs.later(path, 2, true), "an evaluation of step 2 will be done again")
  logs.cut(path, 2, true, place .. "/aside.jsonl")
  check.equal(files.read(path), table.concat({ lines[1], lines[2], lines[5] }, "\n") .. "\n",
    "what stays")
  check.equal(files.read(place .. "/aside.jsonl"), lines[3] .. "\n" .. lines[4] .. "\n",
    "what goes")
end)

check.case("an evaluation before the first new step stands once", function()
  local J = place .. "/J"
  local function run(...)
    return recipe("data.val_files=" .. data, "trainer.val_before_train=true", ...)
  end
  run(save_to(J))
  local said, rc = run(load_from(J), "trainer.max_steps=3")
  check.equal(rc, 0, said:sub(-300))
  local seen = {}
  for _, record in ipairs(records(J .. "/metrics.jsonl")) do
    local kind = record.held_out_reward and "evaluation " or "step "
    seen[#seen + 1] = kind .. record.step
  end
  check.equal(seen, { "evaluation 0", "step 1", "step 2", "evaluation 2", "step 3",
    "evaluation 3" }, "all of them once")
end)

-- ---- trainer_state.json ----
check.case("trainer_state.json is checked: key and value are named", function()
  local K = copy_of_a "K"
  local path = K .. "/global_step_2/trainer_state.json"
  local table_of = {
    { '{"global_step":2,"optimizer_steps":-1}', "optimizer_steps is -1" },
    { '{"global_step":2,"optimizer_steps":1e300}', "optimizer_steps is 1e+300" },
    { '{"global_step":2,"optimizer_steps":"2"}', "optimizer_steps is '2'" },
    { '{"global_step":2,"optimizer_steps":NaN}', "optimizer_steps is nan" },
    { '{"global_step":2}', "has no optimizer_steps" },
    { '{"global_step":-3,"optimizer_steps":2}', "global_step is -3" },
    { '{"global_step":1e18,"optimizer_steps":2}', "global_step is 1e+18" },
    { '{"global_step":0.5,"optimizer_steps":2}', "global_step is 0.5" },
    { '{"global_step":null,"optimizer_steps":2}', "global_step is null" },
    { '{"global_step":[2],"optimizer_steps":2}', "global_step is a list" },
    { '{"global_step":1,"optimizer_steps":2}', "global_step is 1, expected 2" },
    { '{"global_step":2,"optimizer_steps":2,"seed":7}', "seed is 7, but the run's data.seed" },
    { '{"global_step":2,"optimizer_steps":2,"seed":"x"}', "seed is 'x'" },
    { '{"global_step":2,"optimizer_steps":2,"skipped_updates":-1}', "skipped_updates is -1" },
    { '{"global_step":2,"optimizer_steps":2,"rows":5}', "rows is 5" },
    { '{"global_step":2,"optimizer_steps":2,"rows":{"epoch":0.5}}', "rows.epoch is 0.5" },
    { '{"global_step":2,"optimizer_steps":2,"rows_since":{"step":-1}}', "rows_since.step is -1" },
    { '{"global_step":2,"optimizer_steps":2,"data":[]}', "data.rows is nil" },
    { '{"global_step":2,"optimizer_steps":2,"data":{"rows":12,"hash":5}}', "data.hash is 5" },
    { "[]", "has no global_step" }, { "7", "has no global_step" }, { "", "not valid JSON" },
    { '{"global_step":2', "not valid JSON" },
  }
  for _, row in ipairs(table_of) do
    files.write(path, row[1])
    local said, rc = recipe(load_from(K), "trainer.max_steps=3")
    local line = said:match "segzero: ([^\n]*)\n$" or ""
    check.equal(rc, 1, row[1] .. " is refused")
    check.ok(line:find("trainer_state.json", 1, true) and line:find(row[2], 1, true),
      row[1] .. ": " .. said)
  end
  check.ok(not files.exists(K .. "/abandoned_1/metrics.jsonl"), "nothing was done")
end)

check.case("a run that went on while this one was starting is not turned back", function()
  local resuming = require "segzero.runs.resuming"
  local O = copy_of_a "O"
  local cfg = { trainer = { load_checkpoint_path = O, experiment_name = "refcocog_grpo" } }
  local source = resuming.source(cfg)
  resuming.check_current(source, cfg)
  recipe(load_from(O), "trainer.max_steps=3")
  check.raises(function() resuming.check_current(source, cfg) end,
    "/O went on to .*/global_step_3 while this run was starting", "it went on")
end)

check.case("settings.json and run.json are checked", function()
  local L = copy_of_a "L"
  files.write(L .. "/global_step_2/settings.json", "[1")
  local said, rc = recipe(load_from(L), "trainer.max_steps=3")
  check.ok(rc == 1 and said:find("settings.json: not valid JSON", 1, true), said)
  local M = copy_of_a "M"
  files.write(M .. "/run.json", "{}")
  said, rc = recipe(load_from(M), save_to(M), "trainer.max_steps=3")
  check.ok(rc == 0 and said:find(M .. " is taken", 1, true), "no run's folder: " .. said)
end)

mini.remove()
check.finish()
