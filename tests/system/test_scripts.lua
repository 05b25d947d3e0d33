-- test_scripts.lua - the training scripts of Seg-Zero and EasyR1 run as they are: each argument
-- verbatim, in a folder where the YAML files, models and data sets have the names that the scripts
-- give them, and train a step. Only the size of the run is given in addition (SMALL).
--
-- One line for each script says what it did. The models are miniature, the data sets those of
-- tests/golden/hub_sets in the schemas of the hub. EasyR1's Python rewards have Lua files of the
-- same name next to them. Models that segzero does not run (Qwen2.5 and Qwen3 without images,
-- Qwen3-VL) are the miniature Qwen2.5-VL under their names.

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local host = require "segzero.host"
local mini = require "tests.support.miniature"
local scripts = require "tests.support.launch_scripts"
local unistd = require "posix.unistd"

local home = unistd.getcwd()
local place = mini.folder()
local SETS = home .. "/tests/golden/hub_sets/"

-- The size of the run. Prompts are longer in the miniature tokenizer.
local SMALL = { "data.rollout_batch_size=2", "worker.actor.global_batch_size=2",
  "data.max_prompt_length=3000", "data.max_response_length=6", "trainer.max_steps=1" }
local SMALL_EASY_R1 = { "data.min_pixels=3136", "data.mini_rollout_batch_size=2" }

-- ---- the folder ----
local function link(from, to)
  files.make_dir(folders.parent(place .. "/" .. to))
  assert(unistd.link(from, place .. "/" .. to, true) == 0)
end

local model = mini.write(place .. "/miniature")
for _, name in ipairs { "pretrained_models/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct",
  "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-32B-Instruct", "Qwen/Qwen2.5-7B-Instruct",
  "Qwen/Qwen3-14B-Base", "Qwen/Qwen3-4B", "Qwen/Qwen3-VL-30B-A3B-Instruct",
  "Qwen/Qwen3-VL-4B-Instruct" } do
  link(model, name)
end
link(SETS .. "VisionReasoner_multi_object_saved", "data/VisionReasoner_multi_object_1k_840")
link(SETS .. "refCOCOg_2k_840", "Ricky06662/refCOCOg_2k_840")
for _, name in ipairs { "hiyouga/geometry3k", "hiyouga/math12k", "yuehua-s/numbergame",
  "BUAADreamer/clevr_count_70k", "leonardPKU/GEOQA_8K_R1V",
  "hiyouga/journeybench-multi-image-vqa", "Saigyouji-Yuyuko1000/dapo17k" } do
  link(SETS .. "geometry3k", name)
end
for path, list in pairs(scripts.yaml) do
  files.make_dir(folders.parent(place .. "/" .. path))
  files.write(place .. "/" .. path, scripts.as_yaml(list))
end

files.make_dir(place .. "/examples/format_prompt")
for _, name in ipairs { "math", "r1v", "dapo", "android_gui" } do
  files.write(("%s/examples/format_prompt/%s.jinja"):format(place, name),
    "{{ content | trim }} Think (" .. name .. ") first.\n")
end

-- A reward that differs between any two answers, in the form of EasyR1's functions. Its parts are
-- those that the scripts name.
local REWARD = [[
local function compute_score(text, ground_truth, row, kwargs)
  local sum = 0
  for i = 1, #text do sum = sum + text:byte(i) % 7 end
  local buffer = kwargs and kwargs.overlong_buffer_length or 0
  return { overall = sum % 11 / 11, accuracy_normalized = 0.5, buffer = buffer }
end
return { compute_score = compute_score }
]]
files.make_dir(place .. "/examples/reward_function")
for _, name in ipairs { "math", "r1v", "dapo", "android_gui" } do
  files.write(("%s/examples/reward_function/%s.lua"):format(place, name), REWARD)
end

-- ---- running ----
-- Output and status of the recipe, started in the folder.
local function run(arguments, recipe)
  local parts = { "cd", mini.quoted(place), "&&", mini.quoted(home .. "/" .. host.executable),
    "--threads 1", recipe or "recipes/refcocog_grpo.lua" }
  if host.executable:find "^/" then parts[4] = mini.quoted(host.executable) end
  for _, a in ipairs(arguments) do parts[#parts + 1] = mini.quoted(a) end
  local pipe = assert(io.popen("{ " .. table.concat(parts, " ") .. "; } 2>&1; echo \"exit $?\""))
  local output = pipe:read "*a"
  pipe:close()
  local text, status = output:match "^(.*)exit (%d+)\n$"
  return text or output, tonumber(status) or -1
end

local function last_line(path)
  local last
  for line in io.lines(path) do last = line end
  return cjson.decode(last)
end

-- The run folder that the output names.
local function folder_of(text) return place .. "/" .. (text:match "run folder ([^\n,]+)" or "?") end

local function count_unknown(text) return select(2, text:gsub("unknown setting", "")) end

-- Scripts of EasyR1 that share a name would go on with each other's run.
local function put_runs_aside(name)
  if not files.exists(place .. "/runs") then return end
  assert(os.rename(place .. "/runs", ("%s/runs_%s"):format(place, name:gsub("/", "_"))))
end

-- Runs a script's arguments and these; returns its settings, its step's numbers, and the output.
local function train(script, more)
  local arguments = {}
  for _, list in ipairs { script.arguments, SMALL, more } do
    for _, argument in ipairs(list) do arguments[#arguments + 1] = argument end
  end
  local text, status = run(arguments)
  check.equal(status, 0, script.name .. ": " .. text:sub(-1500))
  if status ~= 0 then return nil end
  check.equal(count_unknown(text), 0, script.name .. ": no key is unknown")
  local folder = folder_of(text)
  local cfg = cjson.decode(files.read(folder .. "/config.json"))
  local step
  for line in io.lines(folder .. "/metrics.jsonl") do
    local record = cjson.decode(line)
    if record.grad_norm then step = record end
  end
  check.ok(step and step.step == 1, script.name .. ": a step")
  check.ok(step and step.grad_norm > 0, script.name .. ": a gradient")
  local notes = select(2, text:gsub("\nnote: ", "")) + (text:find "^note: " and 1 or 0)
  print(("%-32s %s: loss %s, %s, n %d, %d notes, gradient norm %.3g"):format(script.name,
    script.commit, cfg.worker.actor.loss_type, cfg.algorithm.adv_estimator, cfg.worker.rollout.n,
    notes, step and step.grad_norm or 0))
  put_runs_aside(script.name)
  return cfg, step, text
end

-- ---- Seg-Zero ----
check.case("Seg-Zero's scripts", function()
  check.equal(#scripts.seg_zero, 6, "all scripts")
  for _, script in ipairs(scripts.seg_zero) do
    local cfg, _, text = train(script, {})
    local several = script.name:find "visionreasoner"
    check.equal(cfg.worker.rollout.n, 8, "n")
    check.equal(cfg.worker.actor.kl_loss_coef, several and 1e-2 or 5e-3, "the script's own value")
    check.equal(cfg.worker.reward.compute_score, several and "vision_reasoner" or "seg_strict",
      "the reward")
    check.equal(cfg.trainer.val_before_train, false, "of the YAML file")
    check.ok(not text:find("leaves out", 1, true), "the file leaves nothing out: " .. text)
    local named = script.arguments[#script.arguments]:match "=%.?/?(.*)$"
    check.ok(files.exists(place .. "/" .. named .. "/global_step_1/DONE"), "a checkpoint there")
  end
end)

check.case("VisionReasoner's script by the recipe of that name", function()
  local arguments = {}
  for _, list in ipairs { scripts.seg_zero[1].arguments, SMALL } do
    for _, argument in ipairs(list) do arguments[#arguments + 1] = argument end
  end
  arguments[#arguments + 1] = "trainer.save_checkpoint_path=by_its_recipe"
  local text, status = run(arguments, "recipes/vision_reasoner_grpo.lua")
  check.equal(status, 0, text:sub(-600))
  local function answers(folder) return files.read(place .. "/" .. folder .. "/rollouts.jsonl") end
  check.equal(answers "by_its_recipe", answers "visionreasoner_workdir/run_visionreasoner_7b",
    "the same answers and rewards")
end)

-- ---- EasyR1 ----
-- What the run is expected to be, for those that are no plain GRPO.
local EXPECTED = {
  qwen2_5_vl_7b_geo3k_cispo = { loss = "cispo" },
  qwen2_5_vl_7b_geo3k_gspo = { loss = "gspo_token", no_kl = true },
  qwen2_5_vl_7b_geo3k_sapo = { loss = "sapo", no_kl = true },
  qwen2_5_vl_7b_geo3k_dapo = { no_kl = true, filter = true },
  qwen3_14b_dapo17k_dapo = { no_kl = true, filter = true, dual = 10, dtype = "bf16" },
  qwen2_5_vl_7b_geo3k_reinforce = { estimator = "reinforce_plus_plus", no_kl = true,
    reward_kl = 1e-3 },
  qwen2_5_vl_32b_geo3k_grpo = { dtype = "bf16" },
  qwen3_vl_30b_geo3k_grpo = { dtype = "bf16" },
}

local function check_easy_r1(script)
  local wanted = EXPECTED[script.name] or {}
  local cfg, step, text = train(script, SMALL_EASY_R1)
  if not cfg then return end
  local actor = cfg.worker.actor
  check.equal(actor.loss_type, wanted.loss or "ppo_clip", "the loss")
  check.equal(actor.clip_ratio_dual, wanted.dual or 3, "the dual clip of EasyR1's defaults")
  check.equal(actor.entropy_coeff, 0, "no entropy bonus")
  check.equal(actor.use_kl_loss, not wanted.no_kl, "the KL term in the loss")
  if not wanted.no_kl then
    local coef = script.name:find "android" and 4e-2 or 1e-2
    check.equal({ actor.kl_loss_coef, actor.kl_loss_type }, { coef, "low_var_kl" },
      "is that of algorithm.*")
  end
  check.equal(cfg.algorithm.kl_coef, wanted.reward_kl or 0, "the KL term in the reward")
  check.equal(step.reward_kl ~= nil, wanted.reward_kl ~= nil, "is computed")
  check.equal(cfg.algorithm.adv_estimator, wanted.estimator or "grpo", "the estimator")
  check.equal(step.draws ~= nil, wanted.filter == true, "groups are filtered")
  check.equal(actor.model.dtype, wanted.dtype or "f32", "the dtype")
  check.ok(text:find("policy .*, " .. actor.model.dtype), "is that of the policy")
  check.equal(cfg.worker.rollout.seed, 1, "the seed of the sampler")
  check.ok(text:find "held%-out reward before: %d%.%d+ of 1 rows" ~= nil, "evaluated before")
end

local function select_scripts(pattern, inverse)
  local list = {}
  for _, script in ipairs(scripts.easy_r1) do
    local matches = script.name:find(pattern) ~= nil
    if matches ~= inverse then list[#list + 1] = script end
  end
  return list
end

check.case("EasyR1's scripts: Qwen2.5-VL", function()
  local list = select_scripts("qwen3", true)
  check.equal(#list, 14, "all scripts")
  for _, script in ipairs(list) do check_easy_r1(script) end
end)

check.case("EasyR1's scripts: Qwen3's names", function()
  local list = select_scripts("qwen3", false)
  check.equal(#list, 6, "all scripts")
  for _, script in ipairs(list) do check_easy_r1(script) end
end)

check.case("a script that is started again goes on, as EasyR1's do", function()
  local script = scripts.easy_r1[6]
  local more = { "trainer.save_checkpoint_path=again", unpack(SMALL_EASY_R1) }
  local _, step = train(script, more)
  check.equal(step.step, 1, "the first step")
  more[#more + 1] = "trainer.max_steps=2"
  local arguments = {}
  for _, list in ipairs { script.arguments, SMALL, more } do
    for _, argument in ipairs(list) do arguments[#arguments + 1] = argument end
  end
  local text, status = run(arguments)
  check.equal(status, 0, text:sub(-600))
  check.ok(text:find("trainer.find_last_checkpoint: going on from again/global_step_1", 1, true),
    "it says so: " .. text)
  check.equal(last_line(place .. "/again/rollouts.jsonl").step, 2, "the second step")
end)

check.case("a Python reward without its Lua file is refused with what to write", function()
  local text, status = run { "config=examples/config.yaml", "data.train_files=refshapes",
    "worker.reward.reward_function=./examples/reward_function/other.py:compute_score" }
  check.ok(status ~= 0 and text:find("write ./examples/reward_function/other.lua that ends with " ..
    "return { compute_score = function(text, ground_truth, row, kwargs) ... end }", 1, true), text)
end)

mini.remove()
check.finish()
