-- test_seams.lua - what a script may add from outside the library: an advantage estimator, a loss,
-- a KL estimator, a loss average, a schedule, a data source and a logger, registered here and
-- trained with through the recipe's run(args, overrides); hooks that change a run between steps;
-- and what happens when one of these functions fails.
--
-- Leaves out: a model family (tests of the model registry), settings (test_config).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local recipe = require "recipes.refcocog_grpo"
local records = require "segzero.train.records"
local tensor = require "segzero.core.tensor"
local trainer = require "segzero.train.trainer"
local update = require "segzero.train.update"

local place = mini.folder()
local dir = mini.write(place .. "/model")

-- Runs the recipe on the miniature in a folder of its own.
local function train(name, args, overrides)
  local all = { "worker.actor.model.model_path=" .. dir,
    "trainer.save_checkpoint_path=" .. place .. "/" .. name }
  for _, list in ipairs { mini.arguments, { "trainer.max_steps=3", "trainer.save_freq=-1" },
    args } do
    for _, a in ipairs(list) do all[#all + 1] = a end
  end
  return recipe.run(all, overrides)
end

-- ---- what a script registers ----
local seen = {}         -- what the functions below were given

-- The rank of an answer in its group, centred, as one number for each token.
sz.advantages:register("rank", {
  help = "rank in the group",
  needs = { reference = true },
  fn = function(batch, options)
    seen.groups = #batch.groups
    seen.options = options
    seen.sample = batch.groups[1].samples[1]
    seen.row = batch.groups[1].row
    local all = {}
    for g, group in ipairs(batch.groups) do
      all[g] = {}
      for i, sample in ipairs(group.samples) do
        local rank = 0
        for _, other in ipairs(group.samples) do
          if other.score < sample.score then rank = rank + 1 end
        end
        local list = {}
        for k = 1, sample.length do list[k] = rank - (#group.samples - 1) / 2 end
        all[g][i] = list
      end
    end
    return all
  end,
})

-- GSPO's ratio: the mean over an answer of the log-probabilities' differences.
sz.losses:register("sequence_ratio", {
  help = "clipped, with one ratio for each answer",
  fn = function(t, options)
    local ratio = t:sequence_mean(t.logprob - t.old):exp()
    local clipped = ratio:clamp(1 - options.clip_low, 1 + options.clip_high)
    local loss = (ratio * t.advantage * -1):maximum(clipped * t.advantage * -1)
    return loss, { ratio = ratio, one = 1 }
  end,
})

sz.kl:register("half_square", {
  help = "half the squared difference",
  fn = function(logprob, reference)
    local d = logprob - reference
    return d * d * 0.5
  end,
})

sz.aggregations:register("per_answer_sum", {
  help = "sum over tokens, mean over answers",
  fn = function(_, totals) return 1 / totals.answers end,
})

sz.schedules:register("stairs", {
  help = "1, 1/2, 1/3, ...",
  fn = function(p)
    seen.progress = p
    return 1 / p.step
  end,
})

local drawn = sz.data.open("refshapes", { split = "train", size = mini.size, seed = 42, rows = 7 })
sz.sources:register("seam", {
  help = "RefShapes with a column more",
  match = function(name) return name:match "^seam:" ~= nil end,
  open = function(name, options)
    seen.opened = { name, options.split }
    local set = {}
    function set.count() return 7 end
    function set.image() return nil end
    function set.row(_, i)
      local row = drawn:row(i)
      row.columns.category = name .. i
      row.category = row.columns.category
      return row
    end
    return set
  end,
})

local function memory_logger(run)
  local log = { run = run, scalars_at = {}, texts = {}, images = {}, rollouts = {}, closed = 0 }
  seen.log = log
  function log:scalars(step, t) table.insert(self.scalars_at, { step, t }) end
  function log:text(step, name, s) table.insert(self.texts, { step, name, s }) end
  function log:image(_, name, path) self.images[name] = path end
  function log:rows(step, name, list) self.rollouts[step] = { name, list } end
  function log:close() self.closed = self.closed + 1 end
  return log
end
sz.loggers:register("memory", { help = "keeps everything", open = memory_logger })

check.case("a script registers everything and trains with it", function()
  local categories = {}
  local args = {
    "algorithm.adv_estimator=rank", "worker.actor.loss_type=sequence_ratio",
      "worker.actor.kl_loss_type=half_square",
    "worker.actor.loss_avg_mode=per_answer_sum", "worker.actor.optim.lr_scheduler_type=stairs",
    "data.train_files=seam:a", "trainer.logger=memory,jsonl", "trainer.val_before_train=true",
  }
  local t = train("all", args, { reward = function(text, _, row)
    categories[#categories + 1] = tostring(row.category or row.id)
    return mini.reward(text)
  end })
  check.equal(t.global_step, 3, "three steps")
  -- The estimator sees the whole batch, scores, and the reference's log-probabilities.
  check.equal(seen.groups, 2, "both groups at once")
  check.equal(#seen.sample.reference, #seen.sample.ids,
    "a reference log-probability for each token")
  check.equal(seen.sample.length, #seen.sample.ids, "the length of the answer")
  check.equal(type(seen.sample.score), "number", "its score")
  check.equal(seen.row.columns.category, seen.row.category, "the row's own columns")
  check.equal(seen.options.clip_low, 0.2, "the run's numbers")
  check.equal(seen.opened, { "seam:a", "train" },
    "the source is opened with its name and the split")
  local from_source = 0
  for _, category in ipairs(categories) do
    if category:match "^seam:a%d$" then from_source = from_source + 1 end
  end
  check.equal(from_source, 3 * 2 * 3, "every training answer's reward saw row.category")
  -- The logger got everything.
  local log = seen.log
  local rates = {}
  local held_out = 0
  for _, entry in ipairs(log.scalars_at) do
    if entry[2].reward then
      rates[#rates + 1] = entry[2].lr
      check.near(entry[2].one, 1, 50, "a metric that is a number is averaged with the weights")
      check.ok(entry[2].ratio > 0, "a metric that is a tensor")
    else
      held_out = held_out + 1
    end
  end
  check.near(rates, { 1e-2, 1e-2 / 2, 1e-2 / 3 }, 1e-12,
    "the schedule's factor times the configured rate")
  check.equal(seen.progress, { step = 3, total = 3, warmup = 0 }, "what a schedule is given")
  check.equal(held_out, 2, "two evaluations")
  check.equal({ log.rollouts[2][1], #log.rollouts[2][2] }, { "rollouts", 6 },
    "the answers of a step")
  check.equal(type(log.rollouts[2][2][1].advantage), "table", "with an advantage for each token")
  check.equal({ log.images.before, log.images.after },
    { t.folder .. "/before.png", t.folder .. "/after.png" }, "images")
  check.ok(#log.texts >= 6 and log.texts[1][2] == "run", "texts")
  check.equal(log.closed, 1, "closed once")
  check.equal({ log.run.folder, log.run.total_steps }, { t.folder, 3 }, "open() is given the run")
  check.ok(files.read(t.folder .. "/metrics.jsonl"):find('"ratio":', 1, true),
    "jsonl also has the loss's metric")
end)

check.case("an estimator that needs the reference has one without a KL term", function()
  local t = train("needs",
    { "algorithm.adv_estimator=rank", "worker.actor.use_kl_loss=false", "trainer.logger=memory",
    "trainer.max_steps=1", "data.val_files=None" }, { reward = mini.reward })
  check.ok(t.reference, "it is loaded")
  check.ok(seen.sample.reference, "and was asked")
  check.equal(seen.log.scalars_at[1][2].kl, 0, "the loss has no KL term")
end)

check.case("hooks change numbers, data and reward, and end the run", function()
  local steps = {}
  local results = {}
  local other = sz.data.open("refshapes",
    { split = "train", size = mini.size, seed = 9, rows = 5, level = 1 })
  local overrides = { reward = mini.reward }
  function overrides.on_step(t, stats)
    steps[#steps + 1] = { stats.step, stats.lr, t.now.temperature }
    t.numbers.lr = 3e-3
    t.numbers.temperature = 0.8
    t.schedules.clip_high = function(p) return 10 * p.step end
    t.train = other
    t.reward = function(text)
      seen.second_reward = true
      return #text
    end
  end
  function overrides.on_evaluate(_, result)
    results[#results + 1] = { result.step, type(result.reward), #result.records }
  end
  function overrides.stop_when(_, stats) return stats.step == 2 and "two are enough" end
  local t = train("hooks",
    { "trainer.logger=memory", "trainer.max_steps=9", "trainer.val_before_train=true" }, overrides)
  check.equal(t.global_step, 2, "stopped after step 2")
  check.equal(steps, { { 1, 1e-2, 1 }, { 2, 3e-3, 0.8 } }, "the next step has the changed numbers")
  check.near(t.now.clip_high, 0.2 * 20, 1e-12, "and a schedule for any other number")
  check.ok(seen.second_reward, "and the new reward")
  check.equal(results, { { 0, "number", 3 }, { 2, "number", 3 } },
    "both evaluations, the last one after the early end")
  local said
  for _, text in ipairs(seen.log.texts) do
    said = said or text[3]:match "^stopped after step 2: (.*)$"
  end
  check.equal(said, "two are enough", "the run says why it stopped")
  -- Rows of step 2 are the other set's.
  local rows = t.sampler:rows(other, 2)
  check.equal(seen.log.rollouts[2][2][1].problem, rows[1].problem, "and the new data")
end)

-- ---- any loss is independent of how an update is split ----
local vl = sz.qwen_vl(dir)

local function random(row, i) return sz.core.C.sz_random_uniform(17, row, 0, i) end

-- Two groups of five answers of 1, 2, 9, ... tokens, with old log-probabilities off the model's.
local function groups_of()
  local groups = {}
  for p = 1, 2 do
    local input = mini.input(vl, p)
    local group = { input = input, row = {}, samples = {} }
    local lists = {}
    for k, length in ipairs { 1, 2, 9, 5, 7 } do
      lists[k] = {}
      for i = 1, length do lists[k][i] = 1 + math.floor(random(10 * p + k, i) * 90) end
    end
    for k, logprobs in ipairs(tensor.no_grad(vl.logprobs, vl, input, lists)) do
      local old = logprobs:totable()
      local reference = {}
      for i = 1, #old do
        reference[i] = old[i] + 0.2 * random(10 * p + k, 70 + i)
        old[i] = old[i] + 0.6 * (random(10 * p + k, 50 + i) - 0.5)
      end
      group.samples[k] = { ids = lists[k], logprobs = old, reference = reference,
        advantage = 2 * random(k, p) - 1 }
    end
    groups[p] = group
  end
  return groups
end

-- Loss, ratio and every parameter's gradient of one update.
local function gradient(groups, loss, args)
  local all = { "worker.actor.loss_type=" .. loss }
  for _, a in ipairs(args) do all[#all + 1] = a end
  local t = trainer.new { config = mini.settings(all), policy = vl, reference = vl,
    reward = mini.reward }
  local stats = update.new(t):gradient(t:micro_batches(groups, "update"), records.totals(groups))
  local grads = {}
  for _, p in ipairs(t.parameters) do
    local g = p.tensor:grad()
    grads[p.name] = g:clone()
    p.tensor:zero_grad()
  end
  return stats, grads, t:micro_batches(groups, "update")
end

local function squares(x) return x:sum_squares():item() end

check.case("a loss over whole answers does not depend on the micro-batch split", function()
  local groups = groups_of()
  local want, want_grads, whole = gradient(groups, "sequence_ratio", {})
  check.equal({ #whole, whole[1].chunks }, { 1, nil }, "one micro-batch of both groups")
  local plain = gradient(groups, "ppo_clip", {})
  check.ok(math.abs(plain.policy_loss - want.policy_loss) > 1e-4,
    ("not the clipped loss: %g and %g"):format(want.policy_loss, plain.policy_loss))
  local total = 0
  for _, g in pairs(want_grads) do total = total + squares(g) end
  local variants = {
    { "worker.actor.max_tokens_per_micro_batch=1" },
    { "worker.actor.micro_batch_size_per_device_for_update=2" },
    { "worker.actor.micro_batch_size_per_device_for_update=3",
      "worker.actor.model.enable_gradient_checkpointing=false" },
  }
  for _, args in ipairs(variants) do
    local stats, grads, batches = gradient(groups, "sequence_ratio", args)
    check.ok(batches[1].chunks and #batches[1].chunks > 1, args[1] .. ": groups are split")
    -- Sums of some 50 f32 terms in another order.
    for _, name in ipairs { "loss", "policy_loss", "kl", "entropy", "ratio" } do
      check.near(stats[name], want[name], 1e-5, ("%s: %s"):format(args[1], name))
    end
    local distance = 0
    local count = 0
    for name, g in pairs(want_grads) do
      distance = distance + squares(g - grads[name])
      count = count + 1
    end
    check.ok(count > 20, "gradients are compared")
    check.ok(math.sqrt(distance / total) < 1e-5,
      ("%s: the gradient differs by %.1e of its norm"):format(args[1],
      math.sqrt(distance / total)))
  end
end)

-- ---- several updates of one rollout ----
check.case("metrics of several updates are those of all of them", function()
  local function step(global_batch, avg)
    local cfg = mini.settings {
      "worker.actor.optim.lr=0", "data.rollout_batch_size=3",
        "worker.actor.global_batch_size=" .. global_batch,
      "worker.actor.loss_avg_mode=" .. avg,
    }
    local t = mini.trainer(cfg, { model = dir, reference = true })
    t.schedules.kl_coef = "constant"
    local norms = {}
    local plain = t.optimizer.step
    t.optimizer.step = function(...)
      local norm, updated = plain(...)
      norms[#norms + 1] = norm
      return norm, updated
    end
    return t:step(), norms
  end
  -- With a rate of 0 the weights stay, so three updates see what one sees. Answers differ in
  -- length.
  for _, avg in ipairs { "token", "seq" } do
    local one = step(3, avg)
    local three, norms = step(1, avg)
    for _, name in ipairs { "loss", "policy_loss", "kl", "entropy", "clipped" } do
      check.near(three[name], one[name], 1e-5, ("%s: %s"):format(avg, name))
    end
    check.equal(#norms, 3, "three updates")
    check.near(three.grad_norm, (norms[1] + norms[2] + norms[3]) / 3, 1e-12,
      "the mean of the norms")
    check.ok(norms[1] ~= norms[3], "which differ")
  end
end)

-- ---- failures ----
-- The error of a run of one step with these arguments and overrides.
local failures = 0
local function failure(args, overrides)
  failures = failures + 1
  local all = { "trainer.logger=memory", "trainer.max_steps=1", "data.val_files=None",
    unpack(args) }
  local ok, message = pcall(train, "failure" .. failures, all,
    overrides or { reward = mini.reward })
  check.ok(not ok, "it fails")
  return tostring(message)
end

local function count(text, pattern) return select(2, text:gsub(pattern, "")) end

-- One traceback, of the user's function, without frames of the library.
local function check_traceback(message, name)
  check.equal(count(message, "stack traceback:"), 1, name .. ": one traceback in " .. message)
  check.equal(count(message, "lua/segzero/"), 0,
    name .. ": no frames of the library in " .. message)
  check.ok(message:find("test_seams.lua", 1, true), name .. ": the user's frame")
end

local function broken() error "the user's mistake" end

check.case("a function of the user that fails shows its own traceback", function()
  sz.advantages:register("broken", { fn = function() broken() end })
  sz.losses:register("broken", { fn = function() broken() end })
  sz.kl:register("broken", { fn = function() broken() end })
  sz.loggers:register("broken",
    { open = function() return { scalars = function() broken() end } end })
  local cases = {
    { "the advantage estimator 'broken' failed: ", { "algorithm.adv_estimator=broken" } },
    { "the loss broken failed: ", { "worker.actor.loss_type=broken" } },
    { "the KL estimator broken failed: ", { "worker.actor.kl_loss_type=broken" } },
    { "the logger broken failed: ", { "trainer.logger=broken" } },
    { "the hook on_step failed: ", {},
      { reward = mini.reward, on_step = function() broken() end } },
    { "the reward failed on row ", {}, { reward = function() broken() end } },
  }
  for _, case in ipairs(cases) do
    local message = failure(case[2], case[3])
    check.ok(message:sub(1, #case[1]) == case[1], ("'%s' in %s"):format(case[1], message))
    check.ok(message:find("the user's mistake", 1, true), "the user's message")
    check_traceback(message, case[1])
  end
end)

check.case("a result that cannot be used is one line", function()
  sz.advantages:register("short", { fn = function() return { { 1, 2 }, { 1, 2, 3 } } end })
  sz.advantages:register("nan", { fn = function() return { { 0 / 0, 2, 3 }, { 1, 2, 3 } } end })
  sz.losses:register("mean", { fn = function(t) return t.logprob:sum() end })
  sz.losses:register("nothing", { fn = function() end })
  sz.losses:register("constant", { fn = function(t) return t.old * 1 end })
  sz.losses:register("metric", { fn = function(t) return t.logprob * 1, { a = "x" } end })
  sz.losses:register("metrics", { fn = function(t) return t.logprob * 1, 3 end })
  sz.kl:register("one", { fn = function() return 1 end })
  sz.kl:register("mean", { fn = function(p, q) return (p - q):mean() end })
  sz.aggregations:register("nothing", { fn = function() end })
  sz.schedules:register("nothing", { fn = function() end })
  sz.loggers:register("nothing", { open = function() end })
  sz.loggers:register("misspelt", { open = function() return { scalar = print } end })
  local cases = {
    { { "algorithm.adv_estimator=short" },
      "the advantage estimator 'short' returned nil, expected a finite number .*answer 3 of row" },
    { { "algorithm.adv_estimator=nan" }, "'nan' returned %-?nan, expected a finite number" },
    { { "worker.actor.loss_type=mean" },
      "the loss 'mean' returned a tensor of 1 elements, expected .* %d+ tokens" },
    { { "worker.actor.loss_type=nothing" }, "the loss 'nothing' returned nil, expected a tensor" },
    { {}, "the reward returned %-?nan for row .*, expected a finite number",
      { reward = function() return 0 / 0 end } },
    { {}, "the reward returned a table for row ", { reward = function() return {} end } },
    { {}, "row .*: the prompt returned nil, expected text", { prompt = function() end } },
    { {}, "the prompt failed: %(the error is a table, not a message%)",
      { prompt = function() error {} end } },
    { {}, "the reward's second result for row .* is 2, expected names with numbers",
      { reward = function() return 1, 2 end } },
    { { "worker.actor.loss_type=constant" },
      "the loss 'constant' returned a tensor without a gradient" },
    { { "worker.actor.loss_type=metric" }, "the loss 'metric' returned x as metric a" },
    { { "worker.actor.loss_type=metrics" }, "the loss 'metrics' returned 3 as metrics" },
    { { "worker.actor.kl_loss_type=one" }, "the KL estimator 'one' returned number, expected" },
    { { "worker.actor.kl_loss_type=mean" },
      "the KL estimator 'mean' returned a tensor of 1 elements" },
    { { "worker.actor.loss_avg_mode=nothing" }, "the loss average 'nothing' returned nil" },
    { { "worker.actor.optim.lr_scheduler_type=nothing" }, "the schedule nothing returned nil" },
    { { "trainer.logger=nothing" }, "the logger 'nothing' opened nil, expected an object with" },
    { { "trainer.logger=misspelt" }, "the logger 'misspelt' opened table, expected an object" },
  }
  for _, case in ipairs(cases) do
    local message = failure(case[1], case[3])
    check.ok(message:find(case[2]), ("'%s' in %s"):format(case[2], message))
    check.equal(count(message, "stack traceback:"), 0, "no traceback: " .. message)
  end
end)

check.case("the program prints a reward's traceback once", function()
  files.write(place .. "/throws.lua", 'return function(text)\n  error "no judgement today"\nend\n')
  local text, status = mini.recipe(dir,
    { "worker.reward.compute_score=" .. place .. "/throws.lua", "data.val_files=None",
    "trainer.save_checkpoint_path=" .. place .. "/program" })
  check.ok(status ~= 0, "it fails")
  check.equal(count(text, "stack traceback:"), 1, "one traceback: " .. text)
  check.equal(count(text, "lua/segzero/"), 0, "no library frames: " .. text)
  check.equal(count(text, "throws.lua:2:"), 2, "the message and the frame: " .. text)
end)

check.case("an override that run() does not know names the nearest", function()
  check.raises(function() recipe.run({}, { rewards = mini.reward }) end,
    "unknown option 'rewards': did you mean 'reward'", "typo")
end)

check.case("an override of a wrong type is refused before anything is loaded", function()
  local function refused(overrides, pattern)
    check.raises(function() recipe.run({}, overrides) end, pattern, pattern)
  end
  refused({ on_step = "x" }, "run: on_step is x, expected a function")
  refused({ reward = 5 }, "run: reward is 5, expected a function")
  refused({ prompt = "find it" }, "run: prompt is find it, expected a function")
  refused({ train = "refshapes" }, "run: train is refshapes, expected a data set")
  refused({ held_out = {} }, "run: held_out is table: .*, expected a data set")
end)

check.case("settings are a list of words", function()
  check.raises(function() recipe.run { max_steps = 3 } end, "write {'max_steps=3'}, not", "a name")
  check.raises(function() recipe.run { 5 } end, "setting 1 is 5, not a word", "a number")
  check.raises(function() recipe.run "trainer.max_steps=0" end, "settings are a list", "a text")
end)

mini.remove()
check.finish()
