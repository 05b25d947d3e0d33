-- test_config.lua - settings: the ways to write them, what is refused before any weight is read,
-- and how that is worded;
-- --help, docs/settings.md, and that a recipe runs only when it is the script.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local config = require "segzero.config"
local files = require "segzero.core.files"
local grpo = require "segzero.config.grpo"
local recipe = require "recipes.refcocog_grpo"
local schema = require "segzero.config.schema"

local place = mini.folder()

local rows = {
  { key = "data.seed", type = "integer", default = 42, help = "a seed" },
  { key = "data.name", type = "text", default = "abc", help = "a name" },
  { key = "data.kinds", type = "list", default = { "a", "b" }, help = "some names" },
  { key = "data.side", type = "integer", default = 84, min = 84, max = 840, multiple = 28,
    unit = "pixels", help = "a side" },
  { key = "worker.n", type = "count", default = 8, also = { "worker.number" }, help = "answers" },
  { key = "worker.temperature", type = "number", default = 1, above = 0, help = "a temperature" },
  { key = "worker.share", type = "number", default = 0.5, min = 0, below = 1, help = "a share" },
  { key = "worker.recompute", type = "boolean", default = true, help = "a flag" },
  { key = "worker.quick", type = "boolean", default = false, help = "another flag" },
  { key = "worker.kind", type = "text", default = "one", choices = { "one", "two" },
    help = "a kind" },
  { key = "trainer.max_steps", type = "integer", optional = true, min = 0, help = "steps" },
  { key = "trainer.path", type = "text", optional = true, help = "a path" },
  { key = "trainer.val", type = "text", default = "x", null = "", help = "null is empty" },
  { key = "trainer.logger", type = "list", default = { "console" },
    choices = { "console", "jsonl" }, elsewhere = { wandb = "jsonl" }, help = "loggers" },
  { key = "demo", type = "integer", optional = true, min = 0, bare = "0", help = "a number" },
}
local demo = schema.new {
  name = "demo.lua", about = "A demonstration.", groups = { { title = "Everything", rows = rows } },
  ignored = { ["trainer.nnodes"] = "there is one process",
    ["worker.critic.*"] = "there is no critic" },
}
local function read(...) return demo:read { ... } end

-- ---- ways to write ----
check.case("defaults", function()
  local cfg, given = read()
  local got = { cfg.data.seed, cfg.worker.n, cfg.worker.recompute, cfg.trainer.max_steps }
  check.equal(got, { 42, 8, true, nil }, "values")
  check.equal(given, {}, "nothing given")
  cfg.data.kinds[1] = "changed"
  check.equal(read().data.kinds, { "a", "b" }, "a list is not shared between two readings")
end)

check.case("key=value and --key value", function()
  for _, args in ipairs { { "worker.n=4" }, { "--worker.n=4" }, { "--worker.n", "4" },
    { "worker.number=4" } } do
    local cfg, given = read(unpack(args))
    check.equal(cfg.worker.n, 4, table.concat(args, " "))
    check.equal(given, { ["worker.n"] = true }, "it is known as given")
  end
  check.equal(read("worker.n=4", "worker.n=5").worker.n, 5, "the last one counts")
  check.equal(read("worker.temperature=1e-3").worker.temperature, 1e-3, "exponents")
  check.equal(read("--data.seed", "-1").data.seed, -1, "a negative value after a space")
  check.equal(read("data.name=a=b").data.name, "a=b", "an equals sign in a value")
  check.equal(read("data.name=").data.name, "", "an empty value")
  for _, text in ipairs { '"a"', " a ", "${a}", "{a: b}" } do
    check.equal(read("data.name=" .. text).data.name, text, "a text unchanged")
  end
end)

check.case("booleans and bare keys", function()
  local words = { ["true"] = true, True = true, ["1"] = true, ["false"] = false, False = false,
    ["0"] = false, yes = true, on = true, Y = true, no = false, OFF = false }
  for text, value in pairs(words) do
    check.equal(read("worker.recompute=" .. text).worker.recompute, value, "boolean " .. text)
  end
  check.equal(read("--worker.quick").worker.quick, true, "a flag alone")
  check.equal(read("--worker.quick", "false").worker.quick, false, "a flag with its value")
  local cfg = read("--worker.quick", "worker.n=3")
  check.equal({ cfg.worker.quick, cfg.worker.n }, { true, 3 }, "a flag before another setting")
  check.equal({ read("--demo").demo, read("--demo", "7").demo,
    read("--demo", "--worker.quick").demo }, { 0, 7, 0 }, "a key with a bare form")
end)

check.case("null", function()
  check.equal(read("trainer.max_steps=7").trainer.max_steps, 7, "an optional number")
  check.equal(read("trainer.max_steps=7", "trainer.max_steps=null").trainer.max_steps, nil, "null")
  check.equal(read("trainer.path=None").trainer.path, nil, "None")
  check.equal(read("trainer.val=None").trainer.val, "", "a null that means something")
end)

check.case("lists", function()
  for _, text in ipairs { "x,y", "['x', \"y\"]", '["x","y"]', "('x','y')" } do
    check.equal(read("data.kinds=" .. text).data.kinds, { "x", "y" }, text)
  end
  check.equal(read("data.kinds=[]").data.kinds, {}, "an empty list")
  check.equal(read("trainer.logger=jsonl,console").trainer.logger, { "jsonl", "console" },
    "with choices")
end)

check.case("a short script's own defaults", function()
  local cfg, given = config.read({ steps = 100, name = "run", quick = false,
    files = { list = true }, limit = config.optional "number", deep = { a = 1 } },
    { "steps=2", "limit=0.5", "deep.a=3", "files=a,b" })
  check.equal(cfg, { steps = 2, name = "run", quick = false, files = { "a", "b" }, limit = 0.5,
    deep = { a = 3 } }, "read")
  check.equal(given["deep.a"], true, "given")
  check.equal({ config.get(cfg, "deep.a"), config.get(cfg, "deep.b.c") }, { 3, nil },
    "by dotted key")
  config.set(cfg, "deep.b.c", 4)
  check.equal(config.flat(cfg)["deep.b.c"], 4, "set and flat")
end)

-- ---- refusals ----
local function refused(pattern, ...)
  local args = { ... }
  check.raises(function() read(unpack(args)) end, pattern, table.concat(args, " "))
end

check.case("unknown keys name the nearest", function()
  refused("^unknown setting 'worker.N': did you mean 'worker.n'%?", "worker.N=4")
  refused("did you mean 'worker.temperature'", "worker.temprature=1")
  refused("did you mean 'worker.temperature'", "temperature=1")
  refused("did you mean 'trainer.max_steps'", "trainer.max_step=1")
  refused("unknown setting 'worker'", "worker=1")
end)

check.case("values say the key, the value and what is expected", function()
  refused("^worker.n is 'four', expected a whole number from 1$", "worker.n=four")
  refused("^worker.n is nan, expected a whole number from 1$", "worker.n=nan")
  refused("^worker.temperature is %-inf, expected a number above 0$", "worker.temperature=-inf")
  refused("^worker.n is '', expected a whole number from 1$", "worker.n=")
  refused("^worker.n is 'null', expected a whole number from 1$", "worker.n=null")
  refused("^worker.n is 2.5, expected a whole number from 1$", "worker.n=2.5")
  refused("^worker.share is 1, expected a number from 0 and below 1$", "worker.share=1")
  refused("^data.side is 100, expected a whole number from 84 to 840, a multiple of 28$",
    "data.side=100")
  refused("^trainer.max_steps is 'x', expected a whole number from 0 %(or null%)$",
    "trainer.max_steps=x")
  refused("^worker.recompute is 'maybe', expected true or false$", "worker.recompute=maybe")
  refused("^worker.kind is 'three', expected one of: one, two$", "worker.kind=three")
  refused("^trainer.logger has 'consol', expected a list of: console, jsonl: did you mean "
    .. "'console'%?$", "trainer.logger=consol,jsonl")
  refused("^trainer.logger is empty, expected a list of: console, jsonl$", "trainer.logger=")
end)

check.case("words that are no settings", function()
  refused("^'4' is not a setting", "4")
  refused("^'%-x' is not a setting", "-x")
  refused("^%-%-data.seed needs a value", "--data.seed")
  refused("^%-%-threads is an option of segzero itself and must stand before the script: " ..
    "segzero %-%-threads 2 demo.lua",
    "--threads", "2")
end)

check.case("a bad row is the programmer's error", function()
  local function with(row)
    return function() schema.new { name = "x", groups = { { title = "t", rows = { row } } } } end
  end
  check.raises(with { key = "a", type = "text", default = "", help = "", rnage = 1 },
    "unknown option 'rnage'", "field")
  check.raises(with { key = "a", type = "string", default = "", help = "" },
    "unknown type 'string'", "type")
  check.raises(with { key = "a", type = "text", default = "" }, "has no help", "help")
end)

-- ---- YAML ----
local function yaml(name, text)
  local path = place .. "/" .. name
  files.write(path, text)
  return path
end

check.case("YAML: nesting is dots, values are those of the command line", function()
  local path = yaml("a.yaml", [[
data: { seed: 7, name: "null", kinds: [x, "y"] }
worker:
  n: 4          # a comment
  temperature: 1.0e-2
  recompute: False
trainer:
  max_steps:
  path: ~
  val: None
  logger:
    - console
    - jsonl
]])
  local from_file, given = read("config=" .. path)
  local words = { "data.seed=7", "data.name=null", "data.kinds=x,y", "worker.n=4",
    "worker.temperature=1.0e-2",
    "worker.recompute=False", "trainer.max_steps=null", "trainer.path=null", "trainer.val=None",
    "trainer.logger=[console,jsonl]" }
  local from_words, given_words = read(unpack(words))
  check.equal(from_file, from_words, "the same settings")
  check.equal(given, given_words, "the same keys are given")
  check.equal(read("--config", path).worker.n, 4, "--config FILE")
end)

check.case("YAML: the command line overrides files, later files earlier ones", function()
  local one = yaml("one.yaml", "worker: { n: 2, temperature: 2 }")
  local two = yaml("two.yaml", "worker.n: 3")
  check.equal(read("config=" .. one, "worker.n=5").worker.n, 5, "the command line after a file")
  check.equal(read("worker.n=5", "config=" .. one).worker.n, 5, "wherever the file stands")
  local cfg = read("config=" .. one, "config=" .. two)
  check.equal({ cfg.worker.n, cfg.worker.temperature }, { 3, 2 }, "two files")
end)

check.case("YAML: mistakes are one line with the file", function()
  refused("/bad.yaml: line %d+, column %d+: did not find",
    "config=" .. yaml("bad.yaml", "worker: [1\nn: 2"))
  refused("^config: .*/gone.yaml: No such file", "config=" .. place .. "/gone.yaml")
  refused("/list.yaml: expected keys with values", "config=" .. yaml("list.yaml", "- a\n- b"))
  refused("/range.yaml: worker.n is 0, expected a whole number from 1$",
    "config=" .. yaml("range.yaml", "worker: {n: 0}"))
  refused("/type.yaml: worker.n is a list, expected a whole number",
    "config=" .. yaml("type.yaml", "worker: {n: [1]}"))
  refused("/loop.yaml: line 2: %*w is inside what it stands for",
    "config=" .. yaml("loop.yaml", "worker: &w\n  n: *w"))
  refused("/two.yaml: line 2: a second document begins",
    "config=" .. yaml("two.yaml", "worker: {n: 1}\n---\nworker: {n: 2}"))
  refused("/deep.yaml: line 1: more than 50 levels",
    "config=" .. yaml("deep.yaml", ("["):rep(100000)))
  refused("^config: /dev/zero: not a regular file", "config=/dev/zero")
  refused("^config: the path is empty", "config=")
  refused("unknown setting 'worker.m'", "config=" .. yaml("key.yaml", "worker: {m: 1}"))
  check.equal(read("config=" .. yaml("empty.yaml", "")).worker.n, 8,
    "an empty file changes nothing")
end)

check.case("a run's config.json is a file of settings", function()
  local grpo = require "segzero.config.grpo"
  local cfg = grpo.schema:read { "worker.rollout.n=3", "data.train_files=refshapes" }
  local path = place .. "/config.json"
  files.write(path, files.indented_json(cfg))
  check.equal(grpo.schema:read { "config=" .. path }, cfg, "the same settings")
  for _, text in ipairs { "worker: { ref: { model: {} } }", "worker: { ref: null }" } do
    check.equal(grpo.schema:read { "config=" .. yaml("group.yaml", text) },
      grpo.schema:read {}, text)
  end
  check.raises(function() grpo.schema:read { "config=" .. yaml("g.yaml", "worker: { ref: 3 }") }
  end, "worker.ref': it is a group", "a value for a group")
end)

check.case("a file that people read has a line for each key, sorted", function()
  local value = { b = { y = "a/b", x = 0.1 }, a = { 1, "two" }, c = {}, d = { { e = true } } }
  local text = [[
{
  "a": [1,"two"],
  "b": {
    "x": 0.1,
    "y": "a/b"
  },
  "c": {},
  "d": [
    {
      "e": true
    }
  ]
}
]]
  check.equal(files.indented_json(value), text, "the text")
  check.equal(files.decode_json("text", text), value, "read back")
end)

check.case("data.val_files=None means no held-out rows, with RefShapes, too", function()
  local grpo = require "segzero.config.grpo"
  check.equal(grpo.settings({}).data.val_files, "refshapes", "nothing is said")
  for _, value in ipairs { "None", "null", "" } do
    check.equal(grpo.settings({ "data.val_files=" .. value }).data.val_files, "", value)
  end
end)

check.case("batches that leave a rest, and a rate of 0, are noted", function()
  local function said(...)
    return (mini.run { "-e", ([[require("segzero.config.grpo").settings { %s }]]):format(...) })
  end
  local rest = said '"data.rollout_batch_size=4", "worker.actor.global_batch_size=3"'
  check.ok(rest:find("note: data.rollout_batch_size=4 is no multiple of "
    .. "worker.actor.global_batch_size=3, so the last update of a step has 1 of its prompts", 1,
    true), rest)
  local rate = said '"worker.actor.optim.lr=0"'
  check.ok(rate:find("note: worker.actor.optim.lr=0 leaves the weights", 1, true), rate)
  for _, fine in ipairs { '"data.rollout_batch_size=3"',
    '"data.rollout_batch_size=4", "worker.actor.global_batch_size=2"',
    '"worker.actor.optim.lr=0", "trainer.val_only=true"' } do
    check.ok(not said(fine):find("note: ", 1, true), fine)
  end
end)

-- ---- keys without a meaning: accepted, noted once ----
check.case("keys without an effect are noted once", function()
  local path = yaml("notes.yaml",
    "trainer: { nnodes: 2, a: 1 }\nworker: { critic: { model: { path: x } } }")
  local text, status = mini.run { "-e", ([[
    local schema = require "segzero.config.schema"
    local rows = { { key = "trainer.a", type = "number", default = 1, help = "a" },
      { key = "log", type = "list", default = {}, choices = { "jsonl" },
        elsewhere = { wandb = "jsonl" }, help = "l" } }
    local s = schema.new { name = "x", groups = { { title = "t", rows = rows } },
      ignored = { ["trainer.nnodes"] = "one process", ["worker.critic.*"] = "no critic" } }
    local cfg = s:read { "trainer.nnodes=1", "config=%s", "--trainer.nnodes", "2", "trainer.a=2",
      "log=wandb,jsonl" }
    print("read", cfg.trainer.a, cfg.trainer.nnodes, table.concat(cfg.log, " "))]]):format(path) }
  check.equal(status, 0, text)
  local _, notes = text:gsub("note: trainer.nnodes has no effect here: one process\n", "")
  check.equal(notes, 1, "one note for a key on the command line and in a file: " .. text)
  check.ok(text:find("note: worker.critic.model.path has no effect here: no critic\n", 1, true),
    "keys below a.b.*")
  check.ok(text:find("note: log: 'wandb' is not available here, 'jsonl' is used instead\n", 1,
    true), "another's logger")
  check.ok(text:find("read\t2\tnil\tjsonl\n", 1, true), "the rest is read")
end)

check.case("Seg-Zero's command line and YAML carry over", function()
  local line = { "data.train_files=refshapes", "data.val_files=None",
    "worker.actor.kl_loss_coef=1.0e-3",
    "data.system_prompt=You are a helpful assistant.", "worker.actor.optim.lr=1.0e-6",
    "worker.actor.micro_batch_size_per_device_for_update=1",
    "worker.rollout.tensor_parallel_size=2",
    "worker.actor.micro_batch_size_per_device_for_experience=2",
    "worker.rollout.gpu_memory_utilization=0.6",
    "worker.rollout.enable_chunked_prefill=false", "worker.rollout.n=8",
    "trainer.experiment_name=run",
    "trainer.n_gpus_per_node=4", "trainer.total_episodes=1", "trainer.save_checkpoint_path=runs/x",
    "worker.reward.compute_score=seg_strict", "trainer.logger=['console','wandb']" }
  local script = "local grpo = require 'segzero.config.grpo' local cfg = grpo.schema:read(arg) " ..
    "print('read', cfg.worker.rollout.n, table.concat(cfg.trainer.logger, ' '))"
  files.write(place .. "/read.lua", script)
  local text, status = mini.run { place .. "/read.lua", unpack(line) }
  check.ok(status == 0 and text:find("read\t8\tconsole wandb\n", 1, true),
    "the command line: " .. text)
  local path = yaml("seg_zero_3b.yaml", [[
data: { train_files: Ricky06662/refCOCOg_2k_840, val_files: None, prompt_key: problem,
  max_prompt_length: 1300,
  max_response_length: 1300, rollout_batch_size: 16, shuffle: true, seed: 42, max_pixels: 12845056,
  min_pixels: 3136 }
algorithm: { adv_estimator: grpo, kl_coef: 0.0 }
worker:
  actor:
    global_batch_size: 16
    micro_batch_size_per_device_for_update: 1
    micro_batch_size_per_device_for_experience: 2
    max_grad_norm: 1.0
    use_kl_loss: true
    kl_loss_coef: 5.0e-3
    kl_loss_type: low_var_kl
    model: { model_path: Qwen/Qwen2.5-VL-3B-Instruct, enable_gradient_checkpointing: true }
    optim: { lr: 1.0e-6, weight_decay: 1.0e-2 }
    fsdp: { param_offload: false, optimizer_offload: false, torch_dtype: null }
    offload: { param_offload: true, optimizer_offload: true }
  rollout: { temperature: 1.0, n: 8, tensor_parallel_size: 2, gpu_memory_utilization: 0.5,
    enable_chunked_prefill: true }
  ref: { offload: { param_offload: true } }
  reward: { reward_type: function, compute_score: seg_strict }
trainer: { total_episodes: 1, logger: ["console", "wandb"], project_name: easy_r1,
  experiment_name: x,
  n_gpus_per_node: 8, nnodes: 1, save_freq: 50, test_freq: 100000, val_before_train: false,
  val_only: false }
]])
  text, status = mini.run { place .. "/read.lua", "config=" .. path }
  check.ok(status == 0 and text:find("read\t8\tconsole wandb\n", 1, true),
    "the YAML file: " .. text)
end)

-- ---- the recipe ----
check.case("a YAML file and the same keys on the command line are the same run", function()
  local model = mini.write(place .. "/model")
  files.write(place .. "/reward.lua", mini.reward_source)
  local lines = {}
  local words = { "recipes/refcocog_grpo.lua" }
  local function add(key, value)
    lines[#lines + 1] = ("%s: %s"):format(key, value)
    words[#words + 1] = key .. "=" .. value
  end
  for _, argument in ipairs(mini.arguments) do add(argument:match "^(.-)=(.*)$") end
  add("worker.actor.model.model_path", model)
  add("worker.reward.compute_score", place .. "/reward.lua")
  add("trainer.max_steps", "1")
  local path = yaml("run.yaml", table.concat(lines, "\n") .. "\n")
  local first = { "trainer.save_checkpoint_path=" .. place .. "/by_words" }
  local second = { "trainer.save_checkpoint_path=" .. place .. "/by_file" }
  for _, word in ipairs(first) do words[#words + 1] = word end
  local text, status = mini.run(words)
  check.equal(status, 0, "by words: " .. text:sub(-300))
  text, status = mini.run { "recipes/refcocog_grpo.lua", "config=" .. path, unpack(second) }
  check.equal(status, 0, "by file: " .. text:sub(-300))
  local function settings(run)
    local json = cjson.decode(files.read(place .. "/" .. run .. "/config.json"))
    json.trainer.save_checkpoint_path = nil
    return json
  end
  check.equal(settings "by_file", settings "by_words", "config.json")
  local rollouts = files.read(place .. "/by_words/rollouts.jsonl")
  check.ok(#rollouts > 0, "there are answers")
  check.equal(files.read(place .. "/by_file/rollouts.jsonl"), rollouts,
    "the same answers and rewards")
end)

-- Refused before weights are read, so none need to exist.
check.case("the recipe refuses before it looks for the model", function()
  local function refuses(wanted, ...)
    local text, status = mini.run { "recipes/refcocog_grpo.lua",
      "worker.actor.model.model_path=/nonexistent", "data.train_files=refshapes", ... }
    check.ok(status ~= 0 and text:find(wanted, 1, true),
      ("%s: exit %d, %s"):format(wanted, status, text))
    check.ok(not text:find("nonexistent", 1, true), "nothing about the model: " .. text)
    check.equal(select(2, text:gsub("\n", "")), 1, "one line: " .. text)
  end
  refuses("unknown setting 'worker.rollout.nn': did you mean 'worker.rollout.n'?",
    "worker.rollout.nn=8")
  refuses("worker.rollout.n is 0, expected a whole number from 1", "worker.rollout.n=0")
  refuses("data.rollout_batch_size is 2.5, expected a whole number from 1",
    "data.rollout_batch_size=2.5")
  refuses("worker.rollout.temperature is 0, expected a number above 0",
    "worker.rollout.temperature=0")
  refuses("there is no reward 'nonesuch' (rewards/nonesuch.lua)",
    "worker.reward.compute_score=nonesuch")
  refuses("'seg-strict' (rewards/seg-strict.lua): did you mean 'seg_strict'?",
    "worker.reward.compute_score=seg-strict")
  refuses("a reward is a name in rewards/, or a file that ends in .lua",
    "worker.reward.compute_score=/tmp")
  refuses("the run folder is trainer.save_checkpoint_path", "trainer.default_local_dir=x")
  refuses("--threads is an option of segzero itself", "--threads", "1")
end)

check.case("ranges and choices of the recipe", function()
  local cases = {
    ["worker.actor.kl_loss_type=k9"] = "is 'k9', expected one of: abs, kl, low_var_kl, mse",
    ["worker.actor.model.dtype=f16"] = "is 'f16', expected one of: f32, bf16",
    ["worker.actor.model.dtype=int8"] = "is 'int8', expected one of: f32, bf16, int4",
    ["worker.ref.model.dtype=int3"] = "is 'int3', expected one of: f32, bf16, int8, int4",
    ["algorithm.adv_estimator=gae"] = "is 'gae', expected one of: ",
    ["worker.actor.ppo_epochs=2"] = "is 2, expected 1",
    ["algorithm.kl_coef=0.1"] = "is 0.1: the KL term is in the loss here",
    ["worker.actor.optim.lr=-1"] = "is -1, expected a number from 0",
    ["worker.rollout.top_p=2"] = "is 2, expected a number above 0 and at most 1",
    ["worker.actor.optim.beta1=1"] = "is 1, expected a number from 0 and below 1",
    ["worker.actor.optim.lr_warmup_steps_ratio=2"] = "is 2, expected a number from 0 to 1",
    ["worker.rollout.cache_gib=0"] = "is 0, expected a number above 0",
    ["trainer.max_steps=1.5"] = "is 1.5, expected a whole number from 0",
    ["worker.rollout.n=1e300"] = "is 1e300, expected a whole number from 1 to 65536",
    ["data.max_response_length=1e9"] = "is 1e9, expected a whole number from 1 to 16777216",
    ["data.rollout_batch_size=1e9"] = "is 1e9, expected a whole number from 1 to 1048576",
    ["data.max_pixels=1e300"] = "is 1e300, expected a whole number from 1 to 1099511627776",
    ["trainer.max_steps=1e18"] = "is 1e18, expected a whole number from 0 to 2147483648",
    ["data.max_pixels=1"] = "=1 is below data.min_pixels=3136",
    ["trainer.save_freq=1e300"] = "is 1e300, expected a whole number from -1, at most 2^53",
    ["trainer.save_freq=-2"] = "is -2, expected a whole number from -1",
    ["worker.actor.model.lora.rank=1.5"] = "is 1.5, expected a whole number from 0",
    ["worker.actor.model.lora.alpha=0"] = "is 0, expected a number above 0",
    ["data.refshapes_size=100"] = "is 100, expected a whole number from 84 to 840, "
      .. "a multiple of 28",
  }
  for word, wanted in pairs(cases) do
    local ok, why = pcall(recipe.settings, { word })
    local key = word:match "^[^=]+"
    local said = not ok and (why:find(key .. " " .. wanted, 1, true)
      or why:find(key .. wanted, 1, true))
    check.ok(said,
      ("%s: %s"):format(word, tostring(why)))
  end
end)

check.case("a registered name is a choice", function()
  local ok, kl = pcall(require, "segzero.algorithms.kl")
  if not ok then return check.skip "the registry of KL estimators" end
  kl:register("of_this_test", { fn = function(lp, ref) return lp - ref end, help = "of this test" })
  local cfg = grpo.schema:read { "worker.actor.kl_loss_type=of_this_test" }
  check.equal(cfg.worker.actor.kl_loss_type, "of_this_test", "chosen")
end)

check.case("run: an unknown override is an error at the caller's line", function()
  local ok, why = pcall(function()
    local t = recipe.run({}, { rewards = print })
    return t
  end)
  check.ok(not ok and why:find("unknown option 'rewards': did you mean 'reward'?", 1, true),
    tostring(why))
  check.ok(tostring(why):find "test_config.lua:%d+: ", "it blames this file: " .. tostring(why))
end)

-- ---- help and documentation ----
local SCRIPTS = { "recipes/refcocog_grpo.lua", "recipes/mask_grpo.lua", "recipes/evaluate.lua",
  "recipes/sam2_finetune.lua",
  "recipes/pretrain_shapes.lua", "recipes/prepare_data.lua", "examples/infer.lua",
  "examples/merge_lora.lua", "examples/model_merger.lua",
  "examples/random_checkpoint.lua", "examples/custom_reward.lua" }

check.case("--help of every recipe and example", function()
  for _, script in ipairs(SCRIPTS) do
    local text, status = mini.run { script, "--help" }
    check.equal(status, 0, script)
    check.ok(text:find("usage: segzero " .. script, 1, true),
      script .. " names itself: " .. text:sub(1, 100))
    check.ok(text:find "\n  [%w_.]+=[^\n]*\n      %S", script .. " lists its settings")
  end
  local text = mini.run { "recipes/refcocog_grpo.lua", "--help", "lora.rank" }
  local part = "^Model\n  worker.actor.model.lora.rank=0\n      [^\n]+ "
    .. "%(whole number from 0 to 65536%)\n$"
  check.ok(text:find(part), "a part: " .. text)
  check.ok(demo:help("nothing like it"):find("no setting of demo.lua has 'nothing like it'", 1,
    true), "no such part")
end)

check.case("docs/settings.md is up to date", function()
  local path = place .. "/settings.md"
  local text, status = mini.run { "lua/segzero/tools/settings_doc.lua", path }
  check.equal(status, 0, text)
  check.ok(files.read "docs/settings.md" == files.read(path), "run `make docs`")
end)

-- ---- silent at require ----
check.case("a recipe runs only when it is the script", function()
  for _, script in ipairs(SCRIPTS) do
    local module = script:gsub("%.lua$", ""):gsub("/", ".")
    local text, status = mini.run { "-e", ("print(type(require('%s').run))"):format(module) }
    check.equal({ text, status }, { "function\n", 0 }, script)
  end
  -- Scripts whose names contain a recipe's, and one of the same name elsewhere.
  files.make_dir(place .. "/recipes")
  for _, name in ipairs { "/my_refcocog_grpo.lua", "/refcocog_grpo.lua" } do
    files.write(place .. name, "local r = require 'recipes.refcocog_grpo' print(type(r.run))")
    local text, status = mini.run { place .. name }
    check.equal({ text, status }, { "function\n", 0 }, name)
  end
end)

check.case("an output folder that holds anything is not written into", function()
  local paths = require "segzero.config.paths"
  files.make_dir(place .. "/out")
  files.write(place .. "/out/config.json", "{}")
  check.equal(paths.output(place .. "/out", false), place .. "/out-2", "a default moves on")
  check.raises(function() paths.output(place .. "/out", true) end,
    "output: .*/out holds files already; name another folder, or overwrite=true", "a named one")
  check.equal(paths.output(place .. "/out", true, true), place .. "/out", "if it must be")
  check.equal(paths.output(place .. "/new", true), place .. "/new", "a new one is taken")
  for _, name in ipairs { "pretrain_shapes", "sam2_finetune" } do
    local row = require("segzero.config." .. name).schema:find "output"
    check.ok(row.default:find "^runs/", name .. " does not write to models/")
  end
end)

check.case("a run folder is its newest checkpoint, and finds the embedded SAM2", function()
  local paths = require "segzero.config.paths"
  local run = place .. "/run"
  for _, step in ipairs { 2, 10 } do
    local dir = ("%s/global_step_%d"):format(run, step)
    files.make_dir(dir)
    files.write(dir .. "/DONE", "")
    files.write(dir .. "/config.json", files.read(paths.embedded_policy() .. "/config.json"))
  end
  files.write(run .. "/config.json", '{"worker": {}}')
  check.equal(paths.policy(run .. "/"), run .. "/global_step_10", "the newest")
  check.equal(paths.policy(run .. "/global_step_2"), run .. "/global_step_2",
    "a checkpoint is itself")
  check.equal(paths.policy "/nowhere", "/nowhere", "what is not there stays as it is named")
  local embedded = files.embedded(paths.SAM2)
  check.equal(paths.sam2("", { model = run .. "/global_step_10" }), embedded,
    "trained from the embedded model")
  check.equal(paths.sam2("", { model = mini.write(place .. "/other") }), "", "another model")
  check.equal(paths.sam2("", { model = place .. "/other", data = "refshapes" }), embedded,
    "evaluated on RefShapes")
  check.equal(paths.sam2("None", { model = run .. "/global_step_10" }), "", "none")
  check.equal(paths.sam2("a.pt", { model = "" }), "a.pt", "named")
end)

mini.remove()
check.finish()
