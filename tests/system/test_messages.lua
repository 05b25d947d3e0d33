-- test_messages.lua - what the program says about a user's mistakes: one line, with the name, the
-- value and the cure, and without a traceback or a place of ours.
--
-- Each row of the tables is a command line of the real program. A row is cheap: what is wrong is
-- found before weights are read, or the embedded model is used.
-- Leaves out: bad model folders (test_loading.lua), bad rows and images (test_bad_input.lua,
-- test_data_check.lua), settings of every kind (test_config.lua).

local check = require "tests.support.check"
local process = require "tests.support.process"
local files = require "segzero.core.files"
local host = require "segzero.host"

local place = os.tmpname()
os.remove(place)
files.make_dir(place)

local function put(name, text)
  files.write(place .. "/" .. name, text)
  return place .. "/" .. name
end

files.make_dir(place .. "/folder")
for _, name in ipairs { "/disk", "/disk/train", "/parquet", "/parquet/data", "/empty" } do
  files.make_dir(place .. name)
end
put("disk/dataset_dict.json", '{"splits": ["train"]}')
put("disk/train/data-00000-of-00001.arrow", "")
put("parquet/data/train-00000-of-00001.parquet", "PAR1....PAR1")
put("empty/data.jsonl", "")
put("set.csv", "a,b\n")
put("number.jsonl", '{"problem": "q", "solution": "s", "image": 1}\n')
put("words.jsonl", "not json\n")
put("text.png", "hello")
put("five.lua", "return 5\n")
put("syntax.lua", "x = = 1\n")
put("broken.lua", "return function( end\n")
put("open.yaml", "a: [1\n")
put("twice.yaml", "data:\n  seed: 1\nworker:\n  rollout: { n: 2 }\ndata:\n  seed: 2\n")
put("nested.yaml", "worker:\n  rollout:\n    n: 2\n    top_k: 1\n    n: 4\n")
put("dotted.yaml", "data.seed: 1\ndata: { seed: 2 }\n")

local GRPO = "recipes/refcocog_grpo.lua"
local EVALUATE = "recipes/evaluate.lua"
local INFER = "examples/infer.lua"
local SCORE = "worker.reward.compute_score="
local TRAIN = "data.train_files="
local POLICY = "worker.actor.model.model_path="
local SAM2 = "worker.reward.sam2_path="
local SAVE = "trainer.save_checkpoint_path="
local AT = place .. "/"

-- {the words, what the line contains, ...}
local ROWS = {
  options = {
    { { "--device", "tpu" }, "--device expects cpu or cuda, got 'tpu'" },
    { { "--threads", "0" }, "--threads expects a number from 1 to 4096, got '0'" },
    { { "--nosuch" }, "unknown option '--nosuch'" },
    { { "-e" }, "a value is missing after '-e'" },
  },
  scripts = {
    { { "nosuch.lua" }, "cannot open nosuch.lua: there is no such file" },
    { { "recipes/nosuch.lua" }, "cannot open recipes/nosuch.lua" },
    { { "recipes/evalute.lua" }, "did you mean recipes/evaluate.lua?" },
    { { AT .. "folder" }, "folder: Is a directory" },
    { { AT .. "syntax.lua" }, "syntax.lua:1: unexpected symbol near '='" },
    { { "-e", "x =" }, "(command line):1: unexpected symbol near '<eof>'" },
    { { "plan" }, "plan: name a recipe" },
    -- The programs of Seg-Zero.
    { { "verl.trainer.main", "config=x.yaml" }, "did you mean recipes/refcocog_grpo.lua?" },
    { { "-m", "verl.trainer.main", "config=x.yaml" },
      "in place of python3 -m verl.trainer.main write segzero recipes/refcocog_grpo.lua" },
    { { "inference_scripts/infer.py", "--text", "x" },
      "infer.py is a Python script, which does not run here: write segzero examples/infer.lua," },
    { { "evaluation_scripts/evaluation_visionreasoner.py" },
      "write segzero recipes/evaluate_vision_reasoner.lua, with the same arguments" },
    { { "prepare.py" }, "prepare.py is a Python script", "segzero --help lists the scripts" },
    { { "plan", GRPO, "nosuchkey=1" }, "unknown setting 'nosuchkey'" },
    { { "doctor", "--ranks", "2" },
      "doctor: unexpected argument '--ranks'; options of segzero go before the command" },
    { { "help", "train", "evaluate" }, "help: unexpected argument 'evaluate'" },
    { { "completion", "bash", "zsh" }, "which shell, bash or zsh? got 'bash zsh'" },
    { { "train", "--ranks", "2" },
      "unknown setting 'ranks': segzero's option --ranks goes before the command or script" },
  },
  settings = {
    { { GRPO, "config=tests/golden/requirements.yml" },
      "did you mean tests/golden/requirements.txt?" },
    { { GRPO, "word" }, "'word' is not a setting: write key=value" },
    { { GRPO, "worker.rollout.n=two" }, "worker.rollout.n is 'two', expected a whole number" },
    { { GRPO, "worker.rollout.n=1.5" }, "worker.rollout.n is 1.5, expected a whole number" },
    { { GRPO, "worker.reward.timeout=-1" },
      "worker.reward.timeout is -1, expected a number from 0" },
    { { GRPO, "worker.reward.on_error=skip" }, "expected one of: stop, zero" },
    { { GRPO, "trainer.logger=nosuch" }, "trainer.logger has 'nosuch', expected a list of" },
    { { GRPO, "config=" .. AT .. "nosuch.yaml" }, "nosuch.yaml: No such file or directory" },
    { { GRPO, "config=" .. AT .. "folder" }, "folder: Is a directory" },
    { { GRPO, "config=" .. AT .. "open.yaml" }, "open.yaml: line 1, column 5" },
    { { GRPO, "config=" .. AT .. "twice.yaml" },
      "twice.yaml: the key 'data' is in line 1 and again in line 5" },
    { { GRPO, "config=" .. AT .. "nested.yaml" },
      "nested.yaml: the key 'n' is in line 3 and again in line 5" },
    { { GRPO, "config=" .. AT .. "dotted.yaml" }, "the key 'data.seed' is there twice" },
    { { EVALUATE, "rows=-1" }, "rows is -1, expected a whole number from 1" },
    { { INFER, "--demo", "--temperature", "hot" }, "temperature is 'hot', expected a number" },
    { { INFER, "--demo", "-1" }, "demo is -1, expected a whole number from 0" },
    { { INFER }, "no image: --image_path FILE --text SENTENCE, or --demo" },
  },
  rewards = {
    { { GRPO, SCORE .. "nosuch" }, "there is no reward 'nosuch' (rewards/nosuch.lua)" },
    { { GRPO, SCORE .. "my.py:f" }, "there is no reward 'my.py:f'; a reward is a Lua file" },
    { { GRPO, SCORE .. AT .. "nosuch.lua" }, "the reward does not load: cannot open" },
    { { GRPO, SCORE .. AT .. "broken.lua" }, "the reward does not load: ", "broken.lua:1: " },
    { { GRPO, SCORE .. AT .. "five.lua" }, "returns a number, expected a function" },
    { { "recipes/mask_grpo.lua", SAM2 .. "none" }, "give worker.reward.sam2_path" },
  },
  data = {
    { { GRPO, TRAIN .. "nosuch" }, "data.train_files: nosuch: there is no such file or folder" },
    { { GRPO, TRAIN .. "refshaps" }, "data.train_files: refshaps: ", "did you mean refshapes?" },
    { { GRPO, TRAIN .. "models/tiny/sam2" }, "models/tiny/sam2: the folder holds a SAM2 model" },
    { { GRPO, TRAIN .. "tests/golden/hub_sets/geometry4k" },
      "did you mean tests/golden/hub_sets/geometry3k?" },
    { { GRPO, TRAIN .. "tests/golden/hub_sets/geometry3k@dev" },
      "data.train_files: tests/golden/hub_sets/geometry3k has no split 'dev'; there is: test" },
    { { EVALUATE, "data=tests/golden/hub_set/geometry3k" },
      "data: tests/golden/hub_set/geometry3k: ", "did you mean tests/golden/hub_sets/geometry3k?" },
    { { "recipes/prepare_data.lua", "data=models/tiny/sam2", "output=" .. AT .. "prepared" },
      "data: models/tiny/sam2: the folder holds a SAM2 model" },
    { { GRPO, TRAIN .. "Ricky06662/refCOCOg_2k_840" }, "there is no such file, folder or",
      "nothing is downloaded" },
    { { GRPO, TRAIN .. "hiyouga/geometry3k@train" }, "hiyouga/geometry3k@train: there is no such" },
    { { GRPO, TRAIN .. AT .. "disk" }, "disk/train/state.json: No such file or directory" },
    { { GRPO, TRAIN .. AT .. "parquet" }, "00000-of-00001.parquet: the metadata are outside" },
    { { GRPO, TRAIN .. AT .. "parquet/data/train-00000-of-00001.parquet" },
      "00000-of-00001.parquet: the metadata are outside the file" },
    { { GRPO, TRAIN .. AT .. "disk/train/data-00000-of-00001.arrow" }, "arrow: the file is empty" },
    { { GRPO, TRAIN .. AT .. "set.csv" }, "a .csv file" },
    { { GRPO, TRAIN .. AT .. "text.png" }, "a file whose name does not end in .jsonl" },
    { { GRPO, TRAIN .. AT .. "empty" }, "empty/data.jsonl has no rows" },
    { { GRPO, TRAIN .. AT .. "folder" }, "the folder has no data.jsonl, and no Parquet, Arrow" },
    { { GRPO, TRAIN .. AT .. "number.jsonl" },
      "number.jsonl:1: the column 'image' is number, expected a string" },
    { { GRPO, TRAIN .. AT .. "words.jsonl" }, "words.jsonl:1: not a JSON object" },
    { { GRPO, "data.val_files=nosuch" }, "data.val_files: nosuch: there is no such" },
    { { GRPO, TRAIN .. "refshapes", "trainer.val_only=true", "data.val_files=None" },
      "trainer.val_only=true has nothing to evaluate: name the rows with data.val_files" },
    { { EVALUATE, "data=nosuch" }, "data: nosuch: there is no such file or folder" },
    { { INFER, "--image_path", AT .. "nosuch.png", "--text", "x" }, "nosuch.png: No such file" },
    { { INFER, "--image_path", AT .. "text.png", "--text", "x" }, "text.png: not an image" },
    { { INFER, "--image_path", AT .. "folder", "--text", "x" }, "folder: not a regular file" },
  },
  models = {
    { { GRPO, POLICY .. "nosuch" }, "worker.actor.model.model_path: no model in nosuch: there" },
    { { GRPO, POLICY .. AT .. "folder" }, "it has no config.json" },
    { { GRPO, POLICY .. "models/tiny/qwen2.5-vll" },
      "there is no such folder; did you mean models/tiny/qwen2.5-vl" },
    { { GRPO, POLICY .. AT .. "text.png" }, "text.png: it is a file; name the folder" },
    { { GRPO, POLICY .. AT .. "empty" }, "no model in ", "empty: it is a data set" },
    -- The right model under the wrong setting.
    { { GRPO, POLICY .. "models/tiny/sam2" },
      "worker.actor.model.model_path: models/tiny/sam2 is a SAM2 model" },
    { { GRPO, SAM2 .. "models/tiny/qwen2.5-vl" },
      "worker.reward.sam2_path: models/tiny/qwen2.5-vl is a qwen2_5_vl model; name a SAM2" },
    { { EVALUATE, "model_path=models/tiny/sam2" }, "model_path: models/tiny/sam2 is a SAM2" },
    { { EVALUATE, "sam2_path=models/tiny/qwen2.5-vl" }, "sam2_path: models/tiny/qwen2.5-vl is" },
    { { INFER, "--demo", "--model_path", "models/tiny/sam2" },
      "--model_path: models/tiny/sam2 is" },
    { { INFER, "--demo", "--sam2_path", "models/tiny/qwen2.5-vl" },
      "--sam2_path: models/tiny/qwen2.5-vl is a qwen2_5_vl model" },
    { { GRPO, POLICY .. "Qwen/Qwen2.5-VL-3B-Instruct" }, "nothing is downloaded" },
    { { GRPO, SAM2 .. "nosuch" }, "worker.reward.sam2_path: nosuch: there is no such file" },
    { { GRPO, SAM2 .. AT .. "folder" }, "worker.reward.sam2_path: no SAM2 in " },
    { { GRPO, SAM2 .. AT .. "text.png" }, "worker.reward.sam2_path: ", "text.png: " },
    { { EVALUATE, "model_path=nosuch" }, "model_path: no model in nosuch" },
    { { EVALUATE, "reasoning_model_path=nosuch" }, "model_path: no model in nosuch" },
    { { EVALUATE, "segmentation_model_path=nosuch", "rows=1" },
      "sam2_path: nosuch: there is no such" },
    { { INFER, "--demo", "--model_path", "nosuch" }, "no model in nosuch" },
    { { INFER, "--demo", "--sam2_path", "nosuch" }, "--sam2_path: nosuch: there is no such" },
    { { "recipes/sam2_finetune.lua", "model_path=nosuch" },
      "model_path: nosuch: there is no such" },
    -- What is written at the end is tried at the beginning.
    { { "recipes/sam2_finetune.lua", "output=/proc/x" },
      "output: cannot make the folder /proc/x: No such file or directory" },
    { { "recipes/pretrain_shapes.lua", "output=/proc/x" },
      "output: cannot make the folder /proc/x: No such file or directory" },
  },
  folders = {
    { { GRPO, SAVE .. "/" }, "trainer.save_checkpoint_path: / is the root folder" },
    { { GRPO, SAVE .. "/proc/x" }, "trainer.save_checkpoint_path: cannot make the folder /proc/x" },
    { { GRPO, SAVE .. AT .. "text.png" }, "text.png exists and is not a folder" },
    { { GRPO, "trainer.load_checkpoint_path=nosuch" }, "nosuch is not a checkpoint" },
    { { EVALUATE, "merge=nosuch" }, "merge: nosuch holds no evaluation" },
    { { INFER, "--demo", "--output_path", AT .. "nodir/x.png" }, "nodir does not exist" },
  },
}

-- Without the driver; with one these commands would work.
local NO_CUDA = {
  { { "--device", "cuda", GRPO, "trainer.max_steps=0", SAVE .. AT .. "cuda" }, "device cuda: " },
  { { "--device", "cuda", EVALUATE, "rows=1" }, "device cuda: " },
  { { "--device", "cuda", INFER, "--demo" }, "device cuda: " },
  { { "--device", "cuda", "recipes/pretrain_shapes.lua", "steps=1" }, "device cuda: " },
  { { "--device", "cuda", "recipes/sam2_finetune.lua", "steps=1" }, "device cuda: " },
}

-- The lines of the output that are the error: all after those that say what is used.
local function error_lines(output)
  local lines = {}
  for line in output:gmatch "[^\n]+" do
    local is_said = line:find "^no %w+ named" or line:find "^model: " or line:find "^  %(small"
      or line:find "^SAM2: " or line:find "^policy " or line:find "^note: "
    if not is_said then lines[#lines + 1] = line end
  end
  return lines
end

local function refuses(row)
  local words = { host.executable, "--threads", "1" }
  for _, word in ipairs(row[1]) do words[#words + 1] = word end
  local name = table.concat(row[1], " "):gsub(place, "")
  -- Without a device, even where there is one.
  local output, status = process.run(words, { timeout = 60, env = { CUDA_VISIBLE_DEVICES = "" } })
  check.ok(status == 1 or status == 2, ("%s: status %d"):format(name, status))
  local lines = error_lines(output)
  check.equal(#lines, 1, name .. ": one line: " .. output)
  local line = lines[1] or ""
  for i = 2, #row do check.ok(line:find(row[i], 1, true), name .. ": " .. line) end
  check.ok(not line:find "/lua/segzero/", name .. ": no place of ours: " .. line)
  check.ok(not output:find "traceback", name .. ": no traceback")
end

for _, group in ipairs { "options", "scripts", "settings", "rewards", "data", "models",
  "folders" } do
  check.case("one line: " .. group, function()
    for _, row in ipairs(ROWS[group]) do refuses(row) end
  end)
end

check.case("one line: --device cuda without one", function()
  local devices = table.concat(require("segzero").devices(), " ")
  if devices:find "cuda" then
    check.skip "a machine without a GPU"
    return
  end
  for _, row in ipairs(NO_CUDA) do refuses(row) end
end)

local function run_script(text)
  local path = put("script.lua", text)
  local output, status = process.run({ host.executable, "--threads", "1", path }, { timeout = 30 })
  return output:gsub(place, ""), status
end

check.case("a failing script shows its own functions only", function()
  local output, status = run_script [[
local sz = require "segzero"
local function open() sz.qwen_vl "nosuch" end
open()]]
  check.equal(status, 1, "its status")
  check.equal(output, "segzero: /script.lua:2: no model in nosuch: there is no such folder; name a "
    .. "folder, or a model on the hub as owner/name\n"
    .. "stack traceback:\n\t/script.lua:2: in function 'open'\n\t/script.lua:3: in main chunk\n",
    "a mistake in a call of ours")
  output = run_script "local x\nprint(x.y)"
  check.ok(output:find("/script.lua:2: attempt to index local 'x' (a nil value)", 1, true), output)
  check.ok(output:find("\t/script.lua:2: in main chunk", 1, true), output)
end)

check.case("a fault of ours shows everything", function()
  local output = run_script [[require("segzero.log.console").duration {}]]
  check.ok(output:find "console.lua:%d+: attempt to perform arithmetic", output)
  check.ok(output:find "stack traceback:\n.*console.lua:%d+: in function", output)
end)

-- Several ranks, or runs of a sweep, share one log.
check.case("lines of processes that end at once do not mix", function()
  local script = put("both.lua", "local s = arg[1]:rep(2000)\n"
    .. "require('segzero.core.notes').say(s)\nerror(s, 0)\n")
  local parts = {}
  for letter in ("abcdefghijkl"):gmatch "." do
    parts[#parts + 1] = ("'%s' --threads 1 '%s' %s &"):format(host.executable, script, letter)
  end
  local pipe = io.popen("{ " .. table.concat(parts, " ") .. " wait; } 2>&1")
  local whole = 0
  for line in pipe:lines() do
    local text = line:match "^%w+: (%a+)$" or ""
    if #text == 2000 and text == text:sub(1, 1):rep(2000) then whole = whole + 1 end
  end
  pipe:close()
  check.equal(whole, 24)
end)

check.case("val_only evaluates, even with val_before_train=false", function()
  local output, status = process.run({ host.executable, "--threads", "1", GRPO,
    "trainer.val_only=true", "trainer.val_before_train=false", "data.refshapes_val_rows=2",
    SAM2 .. "none", SAVE .. AT .. "val_only" }, { timeout = 60 })
  check.equal(status, 0, output)
  check.ok(output:find "held%-out reward before: [%d.]+ of 2 rows", output)
end)

os.execute("rm -r " .. place)
check.finish()
