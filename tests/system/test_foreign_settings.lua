-- test_foreign_settings.lua - the keys and values of Seg-Zero's, VisionReasoner's, EasyR1's and
-- veRL's command lines: what becomes of each (tests/golden/foreign_settings.tsv), and that what is
-- taken arrives. Also how values are read: quotes, mappings, ${...}, ~ and variables.
--
-- The outcome of a line is taken, noted (without effect here, with the reason), read (as settings
-- of ours, with a note) or refused (with the reason and what to write).

local check = require "tests.support.check"
local files = require "segzero.core.files"
local grpo = require "segzero.config.grpo"
local mini = require "tests.support.miniature"
local paths = require "segzero.config.paths"
local scripts = require "tests.support.launch_scripts"
local train_options = require "segzero.train.options"

local place = mini.folder()
local LIST = "tests/golden/foreign_settings.tsv"
local LINES = 288

-- Reads each argument alone and prints the outcome, with the notes before it.
local READER = [[
local grpo = require "segzero.config.grpo"
local loading = require "segzero.reward.loading"
io.stdout:setvbuf "no"
for _, word in ipairs(arg) do
  io.stderr:write("\n== ", word, "\n")
  local ok, why = pcall(function()
    local cfg, given = grpo.schema:read { word }
    grpo.schema:check(cfg)
    -- A file's reward is next to the file.
    local has_reward = given["worker.reward.compute_score"] and not word:find "^config="
    if has_reward then loading.load(cfg.worker.reward.compute_score) end
  end)
  io.stderr:write(ok and "taken" or "refused: " .. why, "\n")
end
]]

local function listed()
  local rows = {}
  for line in io.lines(LIST) do
    local outcome, word, says = line:match "^([^\t]*)\t([^\t]*)\t(.*)$"
    local row = { outcome = outcome, word = word, says = says }
    if outcome ~= "outcome" then rows[#rows + 1] = row end
  end
  return rows
end

-- The outcome and the message of each argument, in their order.
local function outcomes(words)
  files.write(place .. "/reader.lua", READER)
  local text, status = mini.run { place .. "/reader.lua", unpack(words) }
  check.equal(status, 0, "the reader: " .. text:sub(-300))
  local list = {}
  for block in text:gsub("\n== ", "\1"):gmatch "\1([^\1]*)" do
    local message = block:match "\n(.*)$" or ""
    local outcome = "taken"
    if message:find("\nrefused: ", 1, true) or message:find "^refused: " then
      outcome = "refused"
    elseif message:find(" no effect here: ", 1, true) then
      outcome = "noted"
    elseif message:find "^note: " then
      outcome = "read"
    end
    list[#list + 1] = { outcome = outcome, message = message }
  end
  return list
end

check.case("what becomes of each key and value", function()
  for path, list in pairs(scripts.yaml) do
    files.make_dir(place .. "/" .. path:match "^[^/]*")
    files.write(place .. "/" .. path, scripts.as_yaml(list))
  end
  local rows = listed()
  check.equal(#rows, LINES, "lines")
  local words = {}
  for i, row in ipairs(rows) do
    words[i] = row.word:gsub("^config=", "config=" .. place .. "/")
  end
  local found = outcomes(words)
  check.equal(#found, LINES, "outcomes")
  local counts = {}
  for i, row in ipairs(rows) do
    local wanted = row.outcome
    local outcome = found[i].outcome
    -- A YAML file has keys of every kind.
    if row.word:find "^config=" and outcome ~= "refused" then outcome = wanted end
    check.equal(outcome, wanted, row.word .. ": " .. found[i].message)
    check.ok(found[i].message:find(row.says, 1, true), row.word .. " says: " .. found[i].message)
    counts[outcome] = (counts[outcome] or 0) + 1
  end
  check.equal(counts, { taken = 180, noted = 63, read = 9, refused = 36 }, "of each kind")
end)

-- ---- values that arrive ----
local function read(...) return (grpo.schema:read { ... }) end
local function options(...) return train_options.of(read(...)) end

check.case("dtypes", function()
  for _, word in ipairs { "bf16", "bfloat16", "BF16" } do
    local cfg = read("worker.actor.fsdp.torch_dtype=" .. word)
    check.equal(cfg.worker.actor.model.dtype, "bf16", word)
  end
  check.equal(read("worker.actor.model.dtype=bfloat16").worker.actor.model.dtype, "bf16", "ours")
  check.equal(read("worker.actor.fsdp.torch_dtype=float32").worker.actor.model.dtype, "f32", "f32")
  check.equal(read("worker.ref.fsdp.torch_dtype=bf16").worker.ref.model.dtype, "bf16", "reference")
  local sums = read("worker.actor.fsdp.mp_reduce_dtype=bf16").worker.actor.grad_dtype
  check.equal(sums, "bf16", "sums")
  check.raises(function() read "worker.actor.fsdp.torch_dtype=fp16" end,
    "torch_dtype=fp16 is not supported: worker.actor.model.dtype is f32, bf16 or int4", "f16")
  local optim = read("worker.actor.optim.strategy=adamw_bf16").worker.actor.optim
  check.equal({ optim.master_weights, optim.state_dtype }, { false, "bf16" }, "adamw_bf16")
end)

check.case("the optimizer and its schedule", function()
  for _, word in ipairs { "[0.8,0.99]", "(0.8, 0.99)" } do
    check.equal(options("worker.actor.optim.betas=" .. word).optimizer.betas, { 0.8, 0.99 }, word)
  end
  check.raises(function() read "worker.actor.optim.betas=[0.9]" end, "expected two numbers", "one")
  check.raises(function() read "worker.actor.optim.betas=[0.9,2]" end,
    "worker.actor.optim.beta2 is 2, expected a number from 0 and below 1", "range")
  local o = options("worker.actor.optim.warmup_style=cosine",
    "worker.actor.optim.min_lr_ratio=0.25", "worker.actor.optim.lr_warmup_steps=2",
    "worker.actor.optim.lr=1")
  check.equal(o.schedules.lr, "cosine", "veRL's name")
  -- Steps 1 and 2 warm up; then from 1 to the smallest share after step 10.
  local schedules = require "segzero.algorithms.schedules"
  local rates = {}
  for step = 1, 10 do
    rates[step] = schedules.numbers({ numbers = o.numbers, schedules = o.schedules, options = o,
      total_steps = 10 }, step).lr
  end
  local wanted = { 0.5, 1 }
  for i = 0, 7 do wanted[i + 3] = 0.625 + 0.375 * math.cos(math.pi * i / 8) end
  check.near(rates, wanted, 1e-12, "rates")
end)

check.case("the losses' numbers", function()
  local n = options("worker.actor.clip_ratio_low=0", "worker.actor.clip_ratio_high=0.28",
    "worker.actor.clip_ratio_dual=10", "worker.actor.tau_negative=1.1",
    "algorithm.gamma=0.5").numbers
  check.equal({ n.clip_low, n.clip_high, n.clip_dual, n.tau_positive, n.tau_negative, n.gamma },
    { 0, 0.28, 10, 1, 1.1, 0.5 }, "numbers")
  check.equal(options().numbers.clip_dual, nil, "no dual clip of our own")
  local easy_r1 = options "worker.actor.loss_type=default"
  check.equal(easy_r1.numbers.clip_dual, 3, "EasyR1's loss has one")
end)

check.case("the KL term under EasyR1's names", function()
  local cfg = read("algorithm.use_kl_loss=true", "algorithm.kl_coef=0.02",
    "algorithm.kl_penalty=mse", "worker.actor.use_kl_loss=false")
  check.equal(cfg.worker.actor.use_kl_loss, false, "our own name counts")
  cfg = read("algorithm.use_kl_loss=true", "algorithm.kl_coef=0.02", "algorithm.kl_penalty=mse")
  local actor = cfg.worker.actor
  check.equal({ actor.use_kl_loss, actor.kl_loss_coef, actor.kl_loss_type, cfg.algorithm.kl_coef },
    { true, 0.02, "mse", 0 }, "in the loss")
  cfg = read("algorithm.use_kl_loss=false", "algorithm.kl_coef=0.02", "algorithm.kl_penalty=abs")
  check.equal({ cfg.worker.actor.use_kl_loss, cfg.algorithm.kl_coef }, { false, 0.02 },
    "in the reward")
  check.equal(train_options.of(cfg).reward_kl, { coef = 0.02, kl = "abs" }, "its options")
  check.equal(train_options.uses_reference(cfg), true, "it needs the reference")
  cfg = read("algorithm.disable_kl=True", "algorithm.kl_coef=0.02")
  check.equal(train_options.uses_reference(cfg), false, "none")
end)

check.case("evaluation, seeds, filters, rewards", function()
  local o = options("worker.rollout.val_override_config={\"temperature\":0.6,\"top_p\":0.95,n: 2}",
    "worker.rollout.seed=7", "data.seed=3", "algorithm.online_filtering=True",
    "data.mini_rollout_batch_size=5", "data.rollout_batch_size=9", "algorithm.filter_key=accuracy")
  check.equal({ o.evaluation.temperature, o.evaluation.top_p, o.evaluation.n }, { 0.6, 0.95, 2 },
    "a mapping")
  check.equal({ o.rollout.seed, o.rows.seed }, { 7, 3 }, "seeds")
  check.equal(o.rows.batch, 5, "rows that are drawn together")
  check.equal(o.filter, { key = "accuracy", low = 0.01, high = 0.99, tries = 20, batch = 9 },
    "the filter")
  check.equal(options().evaluation.temperature, 0, "greedy by default")
  local reward = read("worker.reward.reward_function=my.lua:score",
    "worker.reward.reward_function_kwargs={a: 1, b: text, c: {d: true}, e: null}",
    "worker.reward.reward_function_kwargs.f=2.5e-1").worker.reward
  check.equal(reward.compute_score, "my.lua:score", "its name")
  check.equal(reward.reward_function_kwargs, { a = 1, b = "text", c = { d = true }, f = 0.25 },
    "its arguments")
  check.equal(read("data.max_pixels=null").data.max_pixels, 12845056, "no limit of its own")
  check.equal(read("data.system_prompt=null").data.system_prompt, "", "no system prompt")
end)

check.case("a list of data sets is refused", function()
  check.raises(function() grpo.schema:check(read("data.train_files=['a','b']")) end,
    "data.train_files=.'a','b'. is a list; it names one data set", "a list")
end)

check.case("keys that a program sets itself, and none for a limit", function()
  check.equal(read("worker.actor.micro_batch_size_per_device_for_update=-1").worker.actor
    .micro_batch_size_per_device_for_update, nil, "no limit")
  check.equal(read("data.val_batch_size=-1").data.val_batch_size, 64,
    "the default: the result is the same")
  for _, word in ipairs { "worker.rollout.prompt_length=1", "worker.ref.padding_free=true",
    "worker.actor.optim.training_steps=7", "worker.actor.kl_coef=0.1" } do
    check.equal(read(word).worker.actor.optim.lr, 1e-6, word)
  end
end)

-- ---- how values are read ----
local function yaml(name, text)
  files.write(place .. "/" .. name, text)
  return "config=" .. place .. "/" .. name
end

check.case("quotes that reach the program", function()
  check.equal(read("worker.rollout.n='8'").worker.rollout.n, 8, "single")
  check.equal(read('worker.rollout.n="8"').worker.rollout.n, 8, "double")
  check.equal(read('data.system_prompt="You are X"').data.system_prompt, "You are X", "text")
  check.equal(read([[data.system_prompt="a\n\"b\""]]).data.system_prompt, 'a\n"b"', "escapes")
  check.equal(read("data.system_prompt='it''s'").data.system_prompt, "it's", "a quote inside")
  check.equal(read([[data.system_prompt='a' and "b"]]).data.system_prompt, [['a' and "b"]],
    "quotes that are part of the text")
  check.equal(read("data.shuffle='no'").data.shuffle, false, "a boolean")
  check.equal(read("worker.actor.optim.lr=1_000").worker.actor.optim.lr, 1000, "1_000")
  check.equal(read("trainer.experiment_name={x}").trainer.experiment_name, "{x}",
    "braces in a text")
end)

check.case("the command line overrides a file, wherever it stands", function()
  local file = yaml("a.yaml", "worker: { rollout: { n: 3, val_override_config: { top_p: 0.5 } } }")
  local cfg = read("worker.rollout.n=4", file,
    "worker.rollout.val_override_config={temperature: 1}")
  check.equal(cfg.worker.rollout.n, 4, "the command line")
  local own = cfg.worker.rollout.val_override_config
  check.equal({ own.temperature, own.top_p }, { 1, 0.5 }, "mappings are merged")
  cfg = read(yaml("b.yaml", "worker: { actor: { optim: { strategy: adamw_bf16 } } }"),
    "worker.actor.optim.strategy=adamw")
  check.equal(cfg.worker.actor.optim.state_dtype, "f32", "of a foreign key the last value counts")
end)

check.case("${...}", function()
  local file = yaml("c.yaml", [[
data: { train_files: "${oc.env:SEGZERO_NO_SUCH,/data}/${.val_files}", val_files: held }
trainer:
  experiment_name: ${worker.actor.kl_loss_type}_${data.seed}
  save_checkpoint_path: runs/${..trainer.experiment_name}
  logger: [ "${oc.select:no.such,console}" ]
worker: { rollout: { n: "${worker.actor.global_batch_size}" } }
]])
  local cfg = read(file, "data.seed=5", "worker.actor.global_batch_size=4")
  check.equal(cfg.data.train_files, "/data/held", "a default, and a key next to it")
  check.equal(cfg.trainer.experiment_name, "low_var_kl_5", "a default of ours, the command line")
  check.equal(cfg.trainer.save_checkpoint_path, "runs/low_var_kl_5", "one inside another")
  check.equal({ cfg.worker.rollout.n, cfg.trainer.logger[1] }, { 4, "console" }, "other types")
  local function refused(pattern, text)
    check.raises(function() read(yaml("d.yaml", text)) end, pattern, text)
  end
  refused("/d.yaml: data.seed: %${x.y} names a key that nothing sets", "data: { seed: '${x.y}' }")
  refused("data.seed: it stands for itself", "data: { seed: '${.seed}' }")
  refused("the environment variable SEGZERO_NO_SUCH is not set",
    "data: { seed: '${oc.env:SEGZERO_NO_SUCH}' }")
  refused("%${now:%%Y} is not supported: write the value", "data: { seed: '${now:%Y}' }")
end)

check.case("~ and variables in paths", function()
  local home = os.getenv "HOME"
  check.equal(read("data.train_files=~/a").data.train_files, home .. "/a", "~")
  check.equal(read("data.train_files=$HOME/a").data.train_files, home .. "/a", "a variable")
  check.equal(read("data.train_files=$SEGZERO_NO_SUCH/a").data.train_files, "$SEGZERO_NO_SUCH/a",
    "one that is not set stays")
  check.equal(read("data.system_prompt=~/a").data.system_prompt, "~/a", "only in paths")
  check.equal(paths.expand "a~b", "a~b", "only at the beginning")
end)

check.case("groups without settings, Hydra's lists", function()
  local cfg = read(yaml("e.yaml", [[
worker: { critic: , rollout: , actor: { optim: { lr: 2 }, model: } }
hydra: { run: { dir: x } }
]]))
  check.equal(cfg.worker.actor.optim.lr, 2, "empty groups change nothing")
  check.raises(function() read(yaml("g.yaml", "defaults: [ppo_trainer, _self_]")) end,
    "defaults=.*is not supported: Hydra's list of files is not read", "defaults")
end)

-- ---- whole files ----
check.case("EasyR1's defaults for what its file leaves out", function()
  local file = yaml("easy.yaml", "algorithm: { use_kl_loss: true }\ndata: { seed: 9 }")
  local cfg = read(file, "worker.actor.clip_ratio_high=0.4")
  local actor = cfg.worker.actor
  check.equal({ actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_dual,
    actor.entropy_coeff, actor.kl_loss_coef, actor.kl_loss_type }, { 0.2, 0.4, 3, 0, 1e-3, "kl" },
    "the loss")
  check.equal({ cfg.data.seed, cfg.data.answer_key, cfg.data.prompt, cfg.worker.rollout.n },
    { 9, "answer", "plain", 1 }, "data and sampling")
  check.equal(read("algorithm.use_kl_loss=true").worker.rollout.n, 8, "not without a file")
end)

check.case("a file of Seg-Zero's that leaves keys out says what they are here", function()
  local file = yaml("zero.yaml", "trainer: { n_gpus_per_node: 8 }\nworker: { rollout: { n: 4 } }")
  local script = "require('segzero.config.grpo').schema:read(arg)"
  files.write(place .. "/say.lua", script)
  local text, status = mini.run { place .. "/say.lua", file }
  check.equal(status, 0, text)
  check.ok(text:find("zero.yaml leaves out settings whose defaults differ from Seg-Zero's: ", 1,
    true), text)
  check.ok(text:find("worker.actor.kl_loss_coef=0.005 (Seg-Zero: 1e-3)", 1, true), text)
  check.ok(not text:find("worker.rollout.n", 1, true), "only what is left out: " .. text)
  text = mini.run { place .. "/say.lua", yaml("own.yaml", "worker: { rollout: { n: 4 } }") }
  check.equal(text, "", "a file of segzero's own needs no note")
end)

mini.remove()
check.finish()
