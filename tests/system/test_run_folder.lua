-- test_run_folder.lua - run folders belong to one run: what another program or another run has
-- written stays, starts in the same moment get folders of their own, and only checkpoints of the
-- run itself are removed. Manifests find damaged bytes.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local checkpoint = require "segzero.train.run.checkpoint"
local manifest = require "segzero.runs.manifest"
local run_folder = require "segzero.runs.run_folder"
local host = require "segzero.host"

local place = mini.folder()
local dir = mini.write(place .. "/model")
files.write(place .. "/reward.lua", mini.reward_source)

-- A run of the miniature; the text it prints and its status.
local function recipe(...)
  return mini.recipe(dir, { "trainer.max_steps=1", "trainer.save_freq=1", "data.val_files=None",
    "worker.reward.compute_score=" .. place .. "/reward.lua", ... })
end

local function save_to(path) return "trainer.save_checkpoint_path=" .. path end
local function load_from(path) return "trainer.load_checkpoint_path=" .. path end

-- Every file below a folder with its bytes: {path -> text}.
local function contents(path, out)
  out = out or {}
  for _, name in ipairs(assert(folders.list(path))) do
    local below = path .. "/" .. name
    if folders.kind(below) == "folder" then
      contents(below, out)
    else
      out[below] = files.read(below)
    end
  end
  return out
end

local function count(t)
  local n = 0
  for _ in pairs(t) do n = n + 1 end
  return n
end

local function unchanged(path, before, name)
  local now = contents(path)
  check.equal(count(now), count(before), name .. ": as many files")
  for file, text in pairs(before) do check.ok(now[file] == text, name .. ": " .. file) end
end

-- A complete run of two steps, A, that several cases copy.
local A = place .. "/A"
local text, status = recipe("trainer.max_steps=2", save_to(A))
check.equal(status, 0, "the run that is copied: " .. text:sub(-300))

local function copy_of_a(name) return mini.copy(A, place .. "/" .. name) end

-- ---- taking a folder ----
check.case("another program's checkpoints stay, and the run goes to NAME-2", function()
  local work = place .. "/work"
  files.make_dir(work .. "/global_step_1/actor/huggingface")
  files.write(work .. "/global_step_1/actor/model_world_size_8_rank_0.pt", "weights")
  files.write(work .. "/latest_checkpointed_iteration.txt", "1\n")
  local before = contents(work)
  local said, rc = recipe(save_to(work))
  check.equal(rc, 0, "it runs")
  check.ok(said:find(work .. " is taken, so this run writes into " .. work .. "-2", 1, true),
    "and says where: " .. said)
  unchanged(work, before, "the old folder")
  check.ok(files.exists(work .. "-2/global_step_1/DONE"), "the checkpoint is in NAME-2")
end)

check.case("one foreign file is enough, an empty folder is taken", function()
  files.make_dir(place .. "/notes")
  files.write(place .. "/notes/.hidden", "")
  recipe(save_to(place .. "/notes"))
  check.equal(folders.list(place .. "/notes"), { ".hidden" }, "nothing is added")
  check.ok(files.exists(place .. "/notes-2/run.json"), "NAME-2")
  files.make_dir(place .. "/empty")
  recipe(save_to(place .. "/empty/"))
  check.ok(files.exists(place .. "/empty/run.json"), "an empty folder, with a slash at its end")
end)

check.case("paths that cannot be a run folder are refused in one line", function()
  local file = place .. "/reward.lua"
  os.execute("ln -s nowhere " .. place .. "/link")
  local table_of = {
    { "", "the path is empty" }, { "/", "is the root folder" }, { "///", "is the root folder" },
    { ".", "has no name of its own" }, { "a/..", "has no name of its own" },
    { place .. "/link", "is a link to nothing" }, { file, "exists and is not a folder" },
    { file .. "/below", "is not a folder" },
    { "/proc/no/such", "cannot make the folder" }, { "  ", "the path is empty" },
    { "~/runs/a", "~ is not expanded" }, { A .. "/global_step_2/a/b", "is inside the checkpoint" },
  }
  for _, row in ipairs(table_of) do
    local said, rc = recipe(save_to(row[1]))
    local line = said:match "segzero: (trainer%.save_checkpoint_path: [^\n]*)\n$"
    check.equal(rc, 1, "refused: '" .. row[1] .. "'")
    check.ok(line and line:find(row[2], 1, true), row[1] .. ": " .. said)
    check.ok(not said:find("policy", 1, true), "before a model is read: " .. row[1])
  end
end)

check.case("starts in the same moment get folders of their own", function()
  local wanted = place .. "/race"
  local words = { mini.quoted(host.executable), "--threads 1", "recipes/refcocog_grpo.lua",
    "worker.actor.model.model_path=" .. dir, "worker.reward.compute_score=" .. place
      .. "/reward.lua" }
  for _, word in ipairs(mini.arguments) do words[#words + 1] = word end
  words[#words + 1] = "data.val_files=None trainer.max_steps=1 " .. save_to(wanted)
  local command = table.concat(words, " ") .. " > /dev/null 2>&1"
  local script = {}
  for _ = 1, 6 do script[#script + 1] = command .. " & " end
  os.execute(table.concat(script) .. "wait")
  local ids = {}
  for n = 1, 6 do
    local folder = n == 1 and wanted or wanted .. "-" .. n
    local id = run_folder.id(folder)
    check.ok(id and not ids[id], "a run of its own in " .. folder)
    ids[id or folder] = true
    local steps = 0
    for _ in io.lines(folder .. "/metrics.jsonl") do steps = steps + 1 end
    check.equal(steps, 1, "one step in " .. folder)
  end
  check.equal(folders.kind(wanted .. "-7"), nil, "and no more")
end)

check.case("a run that cannot begin leaves no folder", function()
  local broken = mini.copy(dir, place .. "/broken")
  os.remove(broken .. "/tokenizer.json")
  local said, rc = recipe("worker.actor.model.model_path=" .. broken, save_to(place .. "/no/run"))
  check.ok(rc ~= 0 and said:find("tokenizer.json", 1, true), "it fails: " .. said)
  check.equal(folders.kind(place .. "/no"), nil, "nothing is left")
end)

check.case("a run that fails before its first step is over leaves no folder", function()
  files.write(place .. "/fails.lua", 'return function() error "no" end')
  for _, extra in ipairs { "trainer.val_before_train=false", "data.val_files=refshapes" } do
    local said, rc = recipe("worker.reward.compute_score=" .. place .. "/fails.lua", extra,
      "trainer.logger=console,jsonl,report", save_to(place .. "/failed/run"))
    check.ok(rc ~= 0 and said:find("fails.lua:1: no", 1, true), "it fails: " .. said)
    check.equal(folders.kind(place .. "/failed"), nil, "nothing is left")
  end
end)

check.case("a run that fails later keeps its folder", function()
  files.write(place .. "/second.lua", [[
    local count = 0
    return function()
      count = count + 1
      if count > 4 then error "no" end
      return 1
    end]])
  local folder = place .. "/later"
  local said, rc = recipe("worker.reward.compute_score=" .. place .. "/second.lua",
    "data.rollout_batch_size=1", "worker.rollout.n=4", "trainer.max_steps=2", save_to(folder))
  check.ok(rc ~= 0 and said:find("second.lua:4: no", 1, true), "it fails: " .. said)
  check.ok(#files.read(folder .. "/metrics.jsonl") > 0, "the first step")
end)

check.case("evaluations take a folder in the same way", function()
  local folder = place .. "/results"
  files.make_dir(folder)
  files.write(folder .. "/thesis.txt", "mine")
  check.equal(files.fresh_folder(folder), folder .. "-2", "a folder in use")
  check.equal(files.fresh_folder(folder), folder .. "-3", "taken at once")
  check.equal(files.read(folder .. "/thesis.txt"), "mine", "it stays")
end)

-- ---- one run, one folder ----
check.case("a fork has a folder of its own, and the old run stays as it was", function()
  local before = contents(A)
  local said, rc = recipe(load_from(A .. "/global_step_1"), save_to(place .. "/B"),
    "worker.actor.optim.lr=1e-3", "data.seed=7", "trainer.max_steps=2")
  check.equal(rc, 0, "it runs: " .. said)
  check.ok(said:find("resumed at step 1", 1, true), "from step 1")
  check.ok(said:find("data.seed: 42 -> 7", 1, true), "changes are said")
  unchanged(A, before, "A")
  check.ok(files.exists(place .. "/B/global_step_2/DONE"), "B has the next checkpoint")
  check.equal(#checkpoint.list(place .. "/B"), 1, "and no other")
  said = recipe(load_from(A), save_to(place .. "/B"), "trainer.max_steps=3")
  check.ok(said:find("run folder " .. place .. "/B-2,", 1, true), "B is taken: " .. said)
end)

check.case("images of a run that goes on have names of their own, and the text "
  .. "names them", function()
  local run = place .. "/images"
  local settings = { "data.val_files=refshapes", "trainer.val_before_train=true",
    "worker.reward.sam2_path=none" }
  local said = recipe(save_to(run), unpack(settings))
  check.ok(said:find("see " .. run .. "/before_after.png\n", 1, true), said:sub(-600))
  local before = contents(run)
  settings[#settings + 1] = "trainer.max_steps=2"
  said = recipe(load_from(run), unpack(settings))
  check.ok(said:find("see " .. run .. "/before_after_step_2.png\n", 1, true), said:sub(-600))
  for _, name in ipairs { "before", "after", "before_after" } do
    local path = ("%s/%s.png"):format(run, name)
    check.ok(before[path] and files.read(path) == before[path], name .. ".png stays")
  end
  for _, name in ipairs { "before_step_1", "after_step_2", "before_after_step_2" } do
    check.ok(files.exists(("%s/%s.png"):format(run, name)), name .. ".png")
  end
end)

check.case("a checkpoint that was copied out of its run belongs to no run", function()
  local best = mini.copy(A .. "/global_step_2", place .. "/best")
  local C = place .. "/C"
  recipe(save_to(C), "trainer.max_steps=3", "data.seed=7")
  local before = contents(C)
  local said = recipe(load_from(best), save_to(C), "trainer.max_steps=3")
  check.ok(said:find("run folder " .. C .. "-2, resumed at step 2", 1, true), said)
  unchanged(C, before, "C")
  -- Another run's checkpoint inside C is not C's newest one.
  mini.copy(A .. "/global_step_2", C .. "/global_step_9")
  check.equal(checkpoint.latest(C), C .. "/global_step_3", "C's own is the newest")
end)

check.case("two processes do not write into one run", function()
  local D = copy_of_a "D"
  local run = run_folder.open(D)
  local said, rc = recipe(load_from(D), "trainer.max_steps=3")
  check.equal(rc, 1, "the second is refused")
  check.ok(said:find("segzero: " .. D .. " is in use: another process", 1, true), said)
  run_folder.close(run)
  said, rc = recipe(load_from(D), "trainer.max_steps=3")
  check.equal(rc, 0, "later it goes on: " .. said)
  check.ok(files.exists(D .. "/global_step_3/DONE"), "inside D")
end)

check.case("a later step that another program wrote stops the resume", function()
  local E = copy_of_a "E"
  files.make_dir(E .. "/global_step_3/actor")
  files.write(E .. "/global_step_3/actor/weights.pt", "weights")
  local before = contents(E)
  local said, rc = recipe(load_from(E), "trainer.max_steps=3")
  check.ok(rc == 1 and said:find("global_step_3 is in the way", 1, true), said)
  unchanged(E, before, "E")
end)

-- ---- which checkpoints stay ----
local function steps_in(folder)
  local steps = {}
  for i, entry in ipairs(checkpoint.list(folder)) do steps[i] = entry.step end
  return steps
end

check.case("a limit under the names of EasyR1, veRL and Seg-Zero", function()
  local table_of = {
    { "trainer.save_limit=2", { 3, 4 } }, { "trainer.max_actor_ckpt_to_keep=3", { 2, 3, 4 } },
    { "trainer.max_actor_ckpt_to_keep=null", { 1, 2, 3, 4 } },
    { "trainer.save_limit=-1", { 1, 2, 3, 4 } }, { "trainer.remove_previous_ckpt=true", { 4 } },
  }
  for i, row in ipairs(table_of) do
    local folder = place .. "/limit" .. i
    local said = recipe(save_to(folder), "trainer.max_steps=4", row[1])
    check.equal(steps_in(folder), row[2], row[1] .. ": " .. said:sub(-200))
    check.equal(files.read(folder .. "/latest"), "global_step_4\n", row[1] .. ": latest")
  end
  local said, rc = recipe("trainer.remove_previous_ckpt=true", "trainer.save_limit=3")
  check.ok(rc == 2 and said:find("give one of the two", 1, true), "not both: " .. said)
end)

check.case("the best checkpoint by a held-out figure is kept in addition", function()
  -- The reward falls with the step, so the first evaluation is the best.
  local folder = place .. "/best_of"
  files.write(place .. "/falling.lua", ([[
    local calls = 0
    return function() calls = calls + 1 return 1 / calls end]]))
  local function run(...)
    return recipe(save_to(folder), "data.val_files=refshapes", "trainer.max_steps=4",
      "trainer.test_freq=1", "trainer.save_limit=1",
      "worker.reward.compute_score=" .. place .. "/falling.lua", ...)
  end
  local said, rc = run()
  check.equal(rc, 0, said:sub(-300))
  check.equal(steps_in(folder), { 1, 4 }, "the best and the newest")
  local best = cjson.decode(files.read(folder .. "/best"))
  check.equal(best.checkpoint, "global_step_1", "`best` names it")
  check.ok(best.held_out_reward > 0 and best.held_out_reward < 1, "with its figure")
  folder = place .. "/best_none"
  run "trainer.save_best=none"
  check.equal(steps_in(folder), { 4 }, "none")
end)

check.case("after a return to an earlier step, the best of the rest counts", function()
  -- The reward rises, so each evaluation is the best so far.
  local folder = place .. "/rising"
  files.write(place .. "/rising.lua", "local n = 0 return function() n = n + 1 return n end")
  local function run(...)
    return recipe("data.val_files=refshapes", "trainer.test_freq=1",
      "worker.reward.compute_score=" .. place .. "/rising.lua", ...)
  end
  local function best() return cjson.decode(files.read(folder .. "/best")) end
  run(save_to(folder), "trainer.max_steps=4")
  check.equal(best().checkpoint, "global_step_4", "the last one")
  local said, rc = run(load_from(folder .. "/global_step_2"), "trainer.max_steps=3",
    "trainer.test_freq=0", "trainer.save_freq=0")
  check.equal(rc, 0, said:sub(-300))
  local text_of = files.read(folder .. "/metrics.jsonl")
  local value = tonumber(text_of:match '"held_out_reward":([%d.e+-]+)[^\n]*"step":2[,}]')
  -- The new process counts from 1 again, so that step 3 is worse than step 2 was.
  check.ok(value and value > 0, "step 2 was evaluated")
  check.equal(best(), { checkpoint = "global_step_2", held_out_reward = value }, "step 2")
end)

check.case("a checkpoint with a foreign file in it keeps that file", function()
  local F = copy_of_a "F"
  files.write(F .. "/global_step_1/notes.txt", "mine")
  local said = recipe(load_from(F), "trainer.max_steps=3", "trainer.save_limit=1")
  check.equal(steps_in(F), { 3 }, "the limit holds")
  check.equal(folders.list(F .. "/global_step_1"), { "manifest.json", "notes.txt" },
    "the file stays")
  check.ok(said:find("global_step_1 stays: it holds notes.txt", 1, true), "and is said: " .. said)
  check.equal(folders.kind(F .. "/global_step_2"), nil, "the other one is removed")
end)

check.case("what a killed run left half-written is removed, but only what is listed", function()
  local G = copy_of_a "G"
  local half = G .. "/global_step_3.tmp"
  files.make_dir(half)
  local record = { run = run_folder.id(G), global_step = 3, files = { "model.safetensors" } }
  files.write(half .. "/UNFINISHED", cjson.encode(record))
  files.write(half .. "/model.safetensors", "half")
  files.write(half .. "/optimizer.safetensors", "not listed")
  local said, rc = recipe(load_from(G), "trainer.max_steps=3")
  check.equal(rc, 0, said:sub(-300))
  check.ok(files.exists(G .. "/global_step_3/DONE"), "the step is saved")
  check.equal(files.read(half .. "/optimizer.safetensors"), "not listed", "this file stays")
  check.ok(not files.exists(half .. "/model.safetensors"), "the listed one is removed")
  manifest.remove(G .. "/global_step_3")
  check.equal(folders.kind(G .. "/global_step_3"), nil, "a whole checkpoint is removed by its list")
end)

check.case("a removal that was cut short is finished", function()
  local half = place .. "/half"
  recipe(save_to(half), "trainer.max_steps=4")
  os.remove(half .. "/global_step_1/DONE")
  os.remove(half .. "/global_step_1/model.safetensors")
  for _, name in ipairs(folders.list(half .. "/global_step_2")) do
    os.remove(half .. "/global_step_2/" .. name)
  end
  files.make_dir(half .. "/global_step_3.tmp")
  files.write(half .. "/global_step_3.tmp/UNFINISHED.tmp", "{")
  local said, rc = recipe(load_from(half), "trainer.max_steps=4", "trainer.save_limit=2")
  check.equal(rc, 0, said:sub(-300))
  check.equal(steps_in(half), { 3, 4 }, "the complete ones stay")
  for _, name in ipairs { "global_step_1", "global_step_2", "global_step_3.tmp" } do
    check.equal(folders.kind(half .. "/" .. name), nil, name .. " is gone")
  end
end)

-- ---- manifests ----
local function flip(path, offset)
  local bytes = assert(files.read(path))
  local byte = string.char(bit.bxor(bytes:byte(offset), 1))
  local file = assert(io.open(path, "wb"))
  file:write(bytes:sub(1, offset - 1), byte, bytes:sub(offset + 1))
  file:close()
end

check.case("a manifest lists every file, with the checksum of each tensor", function()
  local step = A .. "/global_step_2"
  local json = cjson.decode(files.read(step .. "/manifest.json"))
  local names = {}
  for name, entry in pairs(json.files) do
    names[#names + 1] = name
    check.equal(entry.bytes, #files.read(step .. "/" .. name), "size of " .. name)
  end
  table.sort(names)
  local there = {}
  for _, name in ipairs(folders.list(step)) do
    if name ~= "DONE" and name ~= "manifest.json" then there[#there + 1] = name end
  end
  check.equal(names, there, "all files")
  check.equal(json.run, run_folder.id(A), "the run's id")
  local tensors = 0
  for _, part in ipairs(json.files["model.safetensors"].parts) do
    if part.tensor ~= "" then tensors = tensors + 1 end
  end
  local saved = require("segzero").safetensors.load(step .. "/model.safetensors")
  check.equal(tensors, count(saved), "each tensor has a checksum")
  check.ok(manifest.check(step), "and all agree")
end)

check.case("adapters have checksums of each tensor, too", function()
  local folder = place .. "/lora"
  local rank = "worker.actor.model.lora.rank=2"
  local said, rc = recipe(save_to(folder), rank)
  check.equal(rc, 0, said:sub(-300))
  local json = cjson.decode(files.read(folder .. "/global_step_1/manifest.json"))
  local parts = json.files["adapter_model.safetensors"].parts
  check.ok(#parts > 10 and parts[2].tensor:find "lora_A", "a part for each tensor")
  local path = folder .. "/global_step_1/adapter_model.safetensors"
  flip(path, #files.read(path) - 2)
  said, rc = recipe(load_from(folder), rank, "trainer.max_steps=2")
  check.ok(rc == 1 and said:find "adapter_model.safetensors .* in the tensor [%w_.]+lora_", said)
  flip(path, #files.read(path) - 2)
  said, rc = recipe(load_from(folder), rank, "trainer.max_steps=2")
  check.equal(rc, 0, "mended, it goes on: " .. said:sub(-300))
end)

check.case("checksums are XXH3 with 64 bits", function()
  -- From `printf segzero | xxhsum -H3` of xxHash 0.8.1, and of the empty input.
  local C = require("segzero.core.ffi").C
  check.equal(bit.tohex(C.sz_checksum("", 0, 0)), "2d06800538d394c2", "no bytes")
  check.equal(bit.tohex(C.sz_checksum("segzero", 7, 0)), "b107f36d98b28ed6", "some bytes")
end)

check.case("a flipped byte, a short file and a missing one are found and named", function()
  local table_of = {
    { "model.safetensors", "in the tensor [%w_.]+;",
      function(path) flip(path, #files.read(path) - 2) end },
    { "optimizer.safetensors", "in the tensor exp_avg[%w_.]+;",
      function(path) flip(path, #files.read(path) - 200) end },
    { "tokenizer.json", "other bytes than were written;", function(path) flip(path, 100) end },
    { "settings.json", "bytes, %d+ were written", function(path)
      files.write(path, files.read(path) .. " ")
    end },
    { "tokenizer_config.json", "is missing", function(path) os.remove(path) end },
    { "settings.json", "has other bytes", function(path)
      files.write(path, (files.read(path):gsub('"lora"', '"lorb"')))
    end },
    { "model.safetensors", "bytes, %d+ were written", function(path)
      files.write(path, files.read(path):sub(1, -100))
    end },
    { "optimizer.safetensors", "is missing", function(path) os.remove(path) end },
  }
  for i, row in ipairs(table_of) do
    local H = copy_of_a("H" .. i)
    row[3](H .. "/global_step_2/" .. row[1])
    local before = contents(H)
    local said, rc = recipe(load_from(H), "trainer.max_steps=3")
    local line = said:match "segzero: (checkpoint [^\n]*)\n$" or ""
    check.equal(rc, 1, row[1] .. " is refused: " .. said)
    check.ok(line:find(row[1], 1, true) and line:find(row[2]), line)
    unchanged(H, before, "nothing is changed")
    said, rc = recipe(load_from(H .. "/global_step_1"), "trainer.max_steps=2")
    check.equal(rc, 0, "the older one goes on: " .. said)
  end
end)

check.case("a manifest itself is checked", function()
  local step = mini.copy(A .. "/global_step_2", place .. "/manifests")
  local table_of = {
    { "[]", "there is no list of files" }, { '{"files":{"../x":{"bytes":1}}}', "not the name" },
    { '{"files":{"a":{"bytes":-1}}}', "has no size" },
    { '{"files":{"a":{"bytes":1,"xxh3":"00"}}}', "without size or checksum" },
    { '{"files":{"a":{"bytes":1,"parts":3}}}', "not a list" }, { "{", "not valid JSON" },
  }
  for _, row in ipairs(table_of) do
    files.write(step .. "/manifest.json", row[1])
    check.raises(function() manifest.check(step) end, row[2], row[1])
    check.equal(manifest.owner(step), nil, "it says nothing about the owner: " .. row[1])
    check.ok(not manifest.remove(step), "and removes nothing")
  end
  check.ok(files.exists(step .. "/model.safetensors"), "all is there")
end)

mini.remove()
check.finish()
