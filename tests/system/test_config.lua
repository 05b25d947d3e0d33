-- test_config.lua - settings: the ways to write them, what is refused before any weight is read, and how that is said.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local config = require "segzero.config"
local recipe = require "recipes.refcocog_grpo"

local defaults = {
  data = { seed = 42, name = "abc", files = { list = true }, kinds = { "a", "b" } },
  worker = { rollout = { n = 8, temperature = 1.0 }, actor = { lr = 1e-6, recompute = true } },
  trainer = { max_steps = config.optional "number", path = config.optional "string" },
}
local function read(...) return config.read(defaults, { ... }, { ignored = { ["trainer.nnodes"] = "one process" } }) end
local function refused(pattern, ...)
  local args = { ... }
  check.raises(function() read(unpack(args)) end, pattern, table.concat(args, " "))
end

-- ---- ways to write ----
local cfg, given = read()
check.equal({ cfg.data.seed, cfg.worker.rollout.n, cfg.worker.actor.recompute, cfg.trainer.max_steps }, { 42, 8, true, nil }, "defaults")
check.equal(given, {}, "nothing given")
for _, args in ipairs { { "worker.rollout.n=4" }, { "--worker.rollout.n=4" }, { "--worker.rollout.n", "4" } } do
  cfg, given = read(unpack(args))
  check.equal(cfg.worker.rollout.n, 4, table.concat(args, " "))
  check.equal(given, { ["worker.rollout.n"] = true }, "it is known as given")
end
check.equal(read("worker.rollout.n=4", "worker.rollout.n=5").worker.rollout.n, 5, "the last one counts")
check.equal(read("worker.actor.lr=1e-3").worker.actor.lr, 1e-3, "exponents")
check.equal(read("--worker.rollout.n", "-1").worker.rollout.n, -1, "a negative value after a space")
check.equal(read("data.name=a=b").data.name, "a=b", "an equals sign in a value")
check.equal(read("data.name=").data.name, "", "an empty value")
for text, v in pairs { ["true"] = true, True = true, ["1"] = true, ["false"] = false, False = false, ["0"] = false } do
  check.equal(read("worker.actor.recompute=" .. text).worker.actor.recompute, v, "boolean " .. text)
end
check.equal(read("trainer.max_steps=7").trainer.max_steps, 7, "an optional number")
check.equal(read("trainer.max_steps=7", "trainer.max_steps=null").trainer.max_steps, nil, "null")
check.equal(read("trainer.path=None").trainer.path, nil, "None")
check.equal(read("data.kinds=x,y").data.kinds, { "x", "y" }, "a list")
check.equal(read("data.kinds=['x', \"y\"]").data.kinds, { "x", "y" }, "a list as Python writes it")
check.equal(read("data.kinds=[]").data.kinds, {}, "an empty list")
check.equal(defaults.worker.rollout.n, 8, "the defaults stay")

-- ---- refusals ----
refused("unknown setting 'worker.rollout.N'.*did you mean 'worker.rollout.n'", "worker.rollout.N=4")
refused("did you mean 'worker.rollout.temperature'", "worker.rollout.temprature=1")
refused("did you mean 'worker.rollout.temperature'", "temperature=1")
refused("did you mean 'trainer.max_steps'", "trainer.max_step=1")
refused("unknown setting 'worker.rollout'", "worker.rollout=1")
refused("worker.rollout.n wants a number, got 'four'", "worker.rollout.n=four")
refused("worker.rollout.n wants a number, got 'nan'", "worker.rollout.n=nan")
refused("worker.rollout.n wants a number, got '%-inf'", "worker.rollout.n=-inf")
refused("worker.rollout.n wants a number, got ''", "worker.rollout.n=")
refused("worker.rollout.n wants a number, got 'null'", "worker.rollout.n=null")
refused("trainer.max_steps wants a number, got 'x'", "trainer.max_steps=x")
refused("worker.actor.recompute wants true or false, got 'yes'", "worker.actor.recompute=yes")
refused("'4' is not a setting", "4")
refused("'%-x' is not a setting", "-x")
refused("%-%-data.seed wants a value", "--data.seed")

-- ---- keys without a meaning: accepted, said once ----
local text, status = mini.run { "-e", [[
  local config = require "segzero.config"
  local cfg = config.read({a = 1}, {"trainer.nnodes=1", "a=2", "--trainer.nnodes", "2"}, {ignored = {["trainer.nnodes"] = "one process"}})
  print("a", cfg.a, cfg.trainer)]] }
check.equal({ status, select(2, text:gsub("note: trainer.nnodes has no meaning here %(one process%)", "")) }, { 0, 1 }, "one note: " .. text)
check.ok(text:find("a\t2\tnil", 1, true), "the rest is read")

-- A command line of Seg-Zero's carries over.
local seg_zero = { "data.train_files=refshapes", "data.val_files=None", "data.system_prompt=You are a helpful assistant.",
  "worker.actor.kl_loss_coef=1.0e-3", "worker.actor.optim.lr=1.0e-6", "worker.actor.micro_batch_size_per_device_for_update=1",
  "worker.actor.micro_batch_size_per_device_for_experience=2", "worker.rollout.tensor_parallel_size=2", "worker.rollout.gpu_memory_utilization=0.6",
  "worker.rollout.enable_chunked_prefill=false", "worker.rollout.n=8", "trainer.experiment_name=run", "trainer.n_gpus_per_node=4",
  "trainer.total_episodes=1", "trainer.save_checkpoint_path=runs/x", "worker.reward.compute_score=seg_strict", "trainer.logger=['console','wandb']" }
local ok, result = pcall(config.read, recipe.defaults, seg_zero, { ignored = recipe.ignored })
check.ok(ok, "Seg-Zero's keys: " .. tostring(result))

-- ---- the recipe: refused before weights are read, so none need to exist ----
local function recipe_refuses(wanted, ...)
  local out, rc = mini.run { "recipes/refcocog_grpo.lua", "worker.actor.model.model_path=/nonexistent", "data.train_files=refshapes", ... }
  check.ok(rc ~= 0 and out:find(wanted, 1, true), ("%s: exit %d, %s"):format(wanted, rc, out))
  check.ok(not out:find("nonexistent", 1, true), "it is said before the model is looked for")
end
recipe_refuses("unknown setting 'worker.rollout.nn': did you mean 'worker.rollout.n'?", "worker.rollout.nn=8")
recipe_refuses("worker.rollout.n is 0, expected a whole number from 1", "worker.rollout.n=0")
recipe_refuses("data.rollout_batch_size is 2.5, expected a whole number from 1", "data.rollout_batch_size=2.5")
recipe_refuses("worker.actor.kl_loss_type is 'k9', expected one of: low_var_kl, kl, abs, mse", "worker.actor.kl_loss_type=k9")
recipe_refuses("worker.actor.model.dtype is 'f16'", "worker.actor.model.dtype=f16")
recipe_refuses("worker.ref.model.dtype is 'int4'", "worker.ref.model.dtype=int4")
recipe_refuses("worker.actor.model.dtype is 'int8'", "worker.actor.model.dtype=int8")
recipe_refuses("algorithm.adv_estimator is 'gae'", "algorithm.adv_estimator=gae")
for word, wanted in pairs { ["worker.rollout.temperature=0"] = "is 0, expected a number above 0", ["worker.actor.optim.lr=-1"] = "is -1, expected a number from 0",
  ["worker.rollout.top_p=2"] = "is 2, expected a number above 0 and at most 1", ["worker.actor.optim.beta1=1"] = "is 1, expected a number from 0 and below 1",
  ["worker.actor.optim.lr_warmup_steps_ratio=2"] = "is 2, expected a number from 0 and at most 1", ["worker.rollout.cache_gib=0"] = "is 0, expected a number above 0",
  ["trainer.max_steps=1.5"] = "is 1.5, expected a whole number from 0", ["trainer.save_freq=-2"] = "is -2, expected a whole number from -1",
  ["worker.actor.model.lora.rank=1.5"] = "is 1.5, expected a whole number from 0", ["worker.actor.model.lora.alpha=0"] = "is 0, expected a number above 0" } do
  check.raises(function() recipe.settings { word } end, word:match "^[^=]+":gsub("%p", "%%%0") .. " " .. wanted:gsub("%p", "%%%0"), word)
end
recipe_refuses("worker.rollout.temperature is 0, expected a number above 0", "worker.rollout.temperature=0")
recipe_refuses("there is no reward 'nonesuch' (rewards/nonesuch.lua)", "worker.reward.compute_score=nonesuch")

mini.remove()
check.finish()
