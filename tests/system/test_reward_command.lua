-- test_reward_command.lua - `segzero reward`: built-in rows, rows of the user's, rewards that fail,
-- the stored answers of a run, and saving the file while it watches.

local check = require "tests.support.check"
local files = require "segzero.core.files"
local host = require "segzero.host"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local sz = require "segzero"

local place = mini.folder()

local function reward(...) return mini.run { "reward", ... } end

local function has(text, part, name)
  check.ok(text:find(part, 1, true), name .. ": " .. text:sub(1, 600))
end

local function write(name, source)
  files.write(place .. "/" .. name, source)
  return place .. "/" .. name
end

check.case("a reward of segzero on built-in rows", function()
  local text, status = reward("seg_strict", "rows=4")
  check.equal(status, 0, "status")
  has(text, "seg_strict on 4 rows of RefShapes", "what is tried")
  has(text, "perfect                          5\n", "the mean of a kind")
  check.ok(text:find "iou%s+0%.3%d+", "parts")
  check.ok(not text:find("look at this", 1, true), "nothing to say about it")
end)

check.case("what looks wrong is said", function()
  local constant = write("constant.lua", "return function() return 2 end\n")
  has(reward(constant, "rows=2"), "every answer earns 2: a run would learn nothing", "constant")
  local short = write("short.lua", "return function(t) return -#t, { length = #t } end\n")
  local text = reward(short, "rows=2")
  has(text, "'empty' earns", "an empty answer earns more")
  has(text, "against seg_strict:", "another reward")
  local random = write("random.lua", "return function() return math.random() end\n")
  has(reward(random, "rows=2"), "a run cannot be repeated", "random")
end)

check.case("a reward that fails shows the answer and its own traceback", function()
  local bad = write("bad.lua", 'return function(t) if t == "" then error "boo" end return 1 end\n')
  local text, status = reward(bad, "rows=2")
  check.equal(status, 1, "status")
  has(text, "the reward failed on 2 of 26 answers", "how many")
  has(text, "on the answer 'empty':", "which")
  has(text, "bad.lua:1: boo", "why")
  check.ok(not text:find("lua/segzero", 1, true), "no frames of segzero")
  text, status = reward(write("syntax.lua", "return function("))
  check.equal(status, 1, "a file that does not load")
  has(text, "reward: the reward does not load: ", "one line")
end)

check.case("wrong words are one line with the status 2", function()
  for words, message in pairs {
    ["a b"] = "'b' is one word too many", [""] = "no reward is given",
    ["seg --agianst x"] = "did you mean 'against'?", ["seg step=3"] = "step belongs to replay=RUN",
    ["seg replay=x rows=3"] = "rows: the rows of a replay are those of its run",
    ["seg replay=x data=y"] = "data: the rows of a replay are those of its run",
    ["seg replay=x against=seg"] = "against: a replay compares with the stored rewards",
    ["seg replay=x output=/nowhere/y"] = "output: there is no folder /nowhere",
    ["seg replay=x output=y watch=true"] = "output: a file is written once",
  } do
    local list = {}
    for word in words:gmatch "%S+" do list[#list + 1] = word end
    local text, status = reward(unpack(list))
    check.equal(status, 2, words)
    has(text, message, words)
    check.equal(select(2, text:gsub("\n", "")), 1, words .. ": one line")
  end
  has(reward "seg_strik", "reward: there is no reward 'seg_strik'", "a name")
end)

check.case("a reward that never ends is given up soon", function()
  local path = write("endless.lua", "return function() while true do end end\n")
  local text, status = reward(path, "timeout=0.2")
  check.equal(status, 1, "status")
  has(text, "reward: 3 answers took too long, the rest is not tried", "why")
  has(text, "the reward did not end within 0.2 s on row", "which")
end)

-- ---- rows of the user's ----
check.case("rows of the user's, with their columns", function()
  local folder = place .. "/data"
  files.make_dir(folder)
  local image = sz.image.new(40, 30)
  image:save(folder .. "/a.png")
  image:free()
  local line = '{"id": "r%d", "problem": "count", "solution": "%d", "kind": "count", '
    .. '"image": "a.png"}\n'
  local lines = {}
  for i = 1, 3 do lines[i] = line:format(i, i) end
  files.write(folder .. "/data.jsonl", table.concat(lines))
  local counting = write("counting.lua", [[
return function(text, truth, row)
  assert(row.kind == "count" and row.image.width == 40)
  return text:match "<answer>(.-)</answer>" == truth and 1 or 0
end
]])
  local text, status = reward(counting, "data=" .. folder, "--against", "none")
  check.equal(status, 0, text)
  has(text, "on 3 rows of " .. folder .. ": 15 answers", "all rows")
  check.ok(text:find "perfect%s+1\n", "a solution without boxes")
end)

-- ---- a run's answers ----
local dir = mini.write(place .. "/model")
local scorer = write("letters.lua", mini.reward_source)
local run = place .. "/run"
local made, made_status = mini.recipe(dir, { "trainer.max_steps=3", "data.val_files=None",
  "trainer.save_freq=-1", "worker.reward.compute_score=" .. scorer,
  "worker.reward.sam2_path=none", "trainer.save_checkpoint_path=" .. run })
check.equal(made_status, 0, made:sub(-300))

check.case("the stored answers of a run are scored again", function()
  local text, status = reward(scorer, "--replay", run)
  check.equal(status, 0, text)
  has(text, "18 answers to 6 prompts", "all answers")
  has(text, "all 18 rewards are the stored ones, to the last digit", "the same reward")

  local output = place .. "/new.jsonl"
  local frames = write("frames.lua", "return function(_, _, row) return row.frame == 84 and "
    .. "row.image and row.mask and 1 or 0 end\n")
  text = reward(frames, "--replay", run, "step=2", "output=" .. output)
  has(text, "6 answers to 2 prompts", "one step")
  check.ok(text:find "score: mean 1, std 0", "the rows have frame, image and mask: " .. text)
  has(text, "against the stored reward", "how it differs")
  local lines = select(2, files.read(output):gsub('"reward":1,', ""))
  check.equal(lines, 6, "a line for each answer")
  text, status = reward(frames, "--replay", run, "output=" .. output)
  check.equal(status, 2, "nothing is written over")
  has(text, "is there already", "why")
end)

check.case("what cannot be recomputed is said", function()
  local away = place .. "/away"
  mini.copy(run, away)
  local config = files.read(away .. "/config.json")
  files.write(away .. "/config.json", (config:gsub('"train_files": "refshapes"',
    '"train_files": "/nowhere/data"')))
  local text, status = reward(scorer, "--replay", away)
  check.equal(status, 0, text)
  has(text, "note: the run's data set cannot be opened: ", "the data set")
  has(text, "note: 18 answers were scored without image, mask and columns", "how many")
  has(text, "all 18 rewards are the stored ones", "text is enough for this reward")
  local framed = write("framed.lua", "return function(_, _, row) return row.frame == 84 and 1 or 0 "
    .. "end\n")
  text = reward(framed, "--replay", away)
  has(text, "note: the frame of the answers is not known", "the frame")
  check.ok(text:find "score: mean 0, std 0", "none is made up: " .. text)
  files.write(away .. "/config.json", (files.read(away .. "/config.json"):gsub('"data": {',
    '"data":{"resize":"84x84",')))
  text = reward(framed, "--replay", away)
  check.ok(text:find "score: mean 1, std 0", "images of one size have one frame: " .. text)
  check.ok(not text:find("frame of the answers", 1, true), "no note")
  files.write(away .. "/config.json", (config:gsub('"sam2_path": "[^"]*"',
    '"sam2_path":"/nowhere/sam2"')))
  text, status = reward(scorer, "--replay", away)
  check.equal(status, 0, text)
  has(text, "note: masks cannot be made again: worker.reward.sam2_path: /nowhere/sam2", "SAM2")
  has(reward(scorer, "--replay", place), "is not the folder of a training run", "no run")
  has(reward(scorer, "--replay", run, "step=9"), "has no answers of step 9", "no such step")
end)

check.case("rows of files have their columns, and their image when it is asked for", function()
  local folder = place .. "/files"
  files.make_dir(folder)
  local image = sz.image.new(84, 84)
  for i = 1, 4 do image:save(("%s/%d.png"):format(folder, i)) end
  image:free()
  local lines = {}
  for i = 1, 4 do
    lines[i] = ('{"id": "r%d", "problem": "the square", "kind": "square", "image": "%d.png", '
      .. '"solution": "<box>(10,20),(50,60)</box><points>(20,30),(40,50)</points>"}\n'):format(i, i)
  end
  files.write(folder .. "/data.jsonl", table.concat(lines))
  local second = place .. "/second"
  local text, status = mini.recipe(dir, { "trainer.max_steps=2", "data.val_files=None",
    "trainer.save_freq=-1", "worker.reward.compute_score=" .. scorer, "data.train_files=" .. folder,
    "worker.reward.sam2_path=none", "trainer.save_checkpoint_path=" .. second })
  check.equal(status, 0, text:sub(-300))
  local looks = write("looks.lua", "return function(_, _, row) return row.kind == 'square' and "
    .. "row.frame == 84 and row.image:totensor():numel() == 84 * 84 * 3 and "
    .. "row.images[1].width == 84 and 1 or 0 end\n")
  text, status = reward(looks, "--replay", second)
  check.equal(status, 0, text)
  check.ok(text:find "score: mean 1, std 0", "columns, frame and pixels: " .. text)
  -- Pixels that cannot be decoded are a failure of a reward that looks at them only.
  for i = 1, 4 do
    local path = ("%s/%d.png"):format(folder, i)
    files.write(path, files.read(path):sub(1, 60))
  end
  check.equal(select(2, reward(scorer, "--replay", second)), 0, "the text is enough")
  text, status = reward(looks, "--replay", second)
  check.equal(status, 1, "pixels are not")
  has(text, "the reward failed on 12 of 12 answers", "how many")
end)

-- ---- watching ----
check.case("a saved file is tried again, and Ctrl-C ends it", function()
  write("helper_of_watched.lua", "return 2")
  local path = write("watched.lua", "return function() return 1 end\n")
  local output = place .. "/watched.txt"
  local child = process.start({ host.executable, "--threads", "1", "reward", path, "--watch",
    "rows=1" }, { output = output })
  local function waits_for(part)
    local deadline = process.now() + 20
    while process.now() < deadline do
      if (files.read(output) or ""):find(part, 1, true) then return true end
      require("posix.time").nanosleep { tv_sec = 0, tv_nsec = 5e7 }
    end
    return false
  end
  check.ok(waits_for "waiting for", "it waits: " .. tostring(files.read(output)))
  has(files.read(output), "every answer earns 1", "the first version")
  write("watched.lua", "return function() return 7 end\n")
  check.ok(waits_for "every answer earns 7", "the second version")
  write("watched.lua", 'local x = require "helper_of_watched"; return function() return x end')
  check.ok(waits_for "every answer earns 2", "with a module")
  write("helper_of_watched.lua", "return 3")
  check.ok(waits_for "every answer earns 3", "the module is saved")
  write("watched.lua", "return function(")
  check.ok(waits_for "does not load", "a version with a mistake does not end it")
  process.signal(child, 2)
  check.equal(process.wait(child), 130, "Ctrl-C is how it ends")
  check.ok(not files.read(output):find("traceback", 1, true), "without a traceback")
end)

mini.remove()
check.finish()
