-- test_losses.lua - the losses, advantage estimators, the KL term in the reward and the cosine
-- schedule against EasyR1's own code (tests/golden/losses.json): values and gradients.
--
-- Also: the dual clip without a negative advantage, ratios and KL terms at the edge of f32,
-- refusals, the rows that dynamic sampling draws and the length of its runs, with those of a run
-- that goes on.

local cjson = require "cjson"
local check = require "tests.support.check"
local sz = require "segzero"
local advantage = require "segzero.train.advantage"
local aggregations = require "segzero.algorithms.aggregations"
local experiment = require "segzero.train.run.experiment"
local files = require "segzero.core.files"
local kl = require "segzero.algorithms.kl"
local losses = require "segzero.algorithms.losses"
local mini = require "tests.support.miniature"
local reward_kl = require "segzero.train.reward_kl"
local schedules = require "segzero.algorithms.schedules"
local tokens = require "segzero.train.tokens"

local golden = cjson.decode(files.read "tests/golden/losses.json")

-- f32 against f32: sums of at most 19 tokens.
local TOLERANCE = 2e-6

-- ---- the batch ----
local function slice(list, first, count)
  local out = {}
  for i = 1, count do out[i] = list[first + i - 1] end
  return out
end

-- The groups of the golden batch with fresh samples.
local function groups_of()
  local groups = {}
  local at = 1
  for g, lengths in ipairs(golden.lengths) do
    local samples = {}
    for i, length in ipairs(lengths) do
      samples[i] = {
        ids = slice(golden.old, at, length), logprobs = slice(golden.old, at, length),
        reference = slice(golden.reference, at, length), length = length,
        advantage = slice(golden.advantage, at, length), score = golden.scores[g][i], parts = {},
      }
      at = at + length
    end
    groups[g] = { row = { id = tostring(g) }, samples = samples }
  end
  return groups
end

-- The same as the tokens of one micro-batch.
local function token_batch()
  local runs = {}
  local totals = { tokens = #golden.old, answers = 0 }
  for _, group in ipairs(groups_of()) do
    for _, sample in ipairs(group.samples) do
      runs[#runs + 1] = { sample = sample, first = 1, last = #sample.ids }
      totals.answers = totals.answers + 1
    end
  end
  local logprob = sz.tensor(golden.logprob):requires_grad(true)
  return tokens.new(runs, logprob, logprob * 0, "cpu"), logprob, totals
end

-- ---- losses ----
check.case("each loss and its gradient", function()
  check.equal(#golden.losses, 6, "cases")
  for _, case in ipairs(golden.losses) do
    local t, logprob, totals = token_batch()
    local o = case.options
    local per_token = losses:get(case.name).fn(t, {
      clip_low = o.clip_ratio_low, clip_high = o.clip_ratio_high, clip_dual = o.clip_ratio_dual,
      tau_positive = o.tau_positive, tau_negative = o.tau_negative,
    })
    local weight = aggregations:get(case.average).fn
    local weights = t:weights(function(length) return weight(length, totals) end)
    local loss = (per_token * weights):sum()
    loss:backward()
    check.near(loss:item(), case.loss, TOLERANCE, case.name .. ": loss")
    check.near(logprob:grad():totable(), case.gradient, TOLERANCE, case.name .. ": gradient")
  end
end)

check.case("the dual clip bounds the loss of a bad answer alone", function()
  local t = token_batch()
  local function of(clip_dual)
    local options = { clip_low = 0.2, clip_high = 0.3, clip_dual = clip_dual }
    return losses:get("ppo_clip").fn(t, options):totable()
  end
  local without = of(nil)
  local with = of(3)
  local bounded = 0
  for i, value in ipairs(without) do
    local bound = math.huge
    if golden.advantage[i] < 0 then bound = -3 * golden.advantage[i] end
    check.near(with[i], math.min(value, bound), TOLERANCE, "token " .. i)
    if value > bound then bounded = bounded + 1 end
  end
  check.equal(bounded, 1, "tokens that it bounds")
end)

-- ---- log-probabilities that are far apart ----
-- exp of more than 88 is infinite in f32; EasyR1 clamps the logarithm to [-20, 20] first.
check.case("a ratio beyond f32 has no NaN in the clipped loss or its gradient", function()
  local function loss_of(advantage, clip_dual)
    local sample = { ids = { 1 }, logprobs = { -130 }, advantage = advantage }
    local logprob = sz.tensor({ -2 }):requires_grad(true)
    local t = tokens.new({ { sample = sample, first = 1, last = 1 } }, logprob, logprob * 0, "cpu")
    local options = { clip_low = 0.2, clip_high = 0.3, clip_dual = clip_dual }
    local loss = losses:get("ppo_clip").fn(t, options):sum()
    loss:backward()
    return { loss:item(), logprob:grad():item() }
  end
  check.near(loss_of(2), { -2.6, 0 }, TOLERANCE, "clipped above")
  check.near(loss_of(-1, 3), { 3, 0 }, TOLERANCE, "the dual clip")
  check.near(loss_of(0), { 0, 0 }, TOLERANCE, "no advantage")
end)

local function kl_of(name, logprob, reference)
  local policy = sz.tensor({ logprob }):requires_grad(true)
  local estimate = kl:get(name).fn(policy, sz.tensor { reference }):sum()
  estimate:backward()
  return { estimate:item(), policy:grad():item() }
end

check.case("a KL estimate at its clamp has gradient 0", function()
  check.near(kl_of("low_var_kl", -100, -0.5), { 10, 0 }, 0, "far below the reference")
  check.near(kl_of("low_var_kl", -0.5, -100), { 10, 0 }, 0, "far above it")
end)

-- A run starts with a policy that is the reference.
check.case("a policy that equals the reference has a KL gradient of 0", function()
  for _, name in ipairs { "abs", "mse", "low_var_kl" } do
    check.near(kl_of(name, -3, -3), { 0, 0 }, 0, name)
  end
  check.near(kl_of("abs", -3, -2), { 1, -1 }, 0, "abs below the reference")
  check.near(kl_of("abs", -2, -3), { 1, 1 }, 0, "abs above it")
end)

-- ---- advantages ----
local function advantages_of(name, groups, seen)
  advantage.estimate(name, { groups = groups }, { gamma = golden.gamma }, seen)
  local out = {}
  for g, group in ipairs(groups) do
    out[g] = {}
    for i, sample in ipairs(group.samples) do
      local value = sample.advantage
      if type(value) == "number" then
        value = {}
        for k = 1, #sample.ids do value[k] = sample.advantage end
      end
      out[g][i] = value
    end
  end
  return out
end

check.case("each estimator", function()
  for name, wanted in pairs(golden.advantages) do
    check.near(advantages_of(name, groups_of()), wanted, 1e-5, name)
  end
end)

check.case("a KL term in the reward", function()
  for name, wanted in pairs(golden.penalised) do
    local groups = groups_of()
    local seen, mean = reward_kl.apply(groups, { coef = golden.coef, kl = "low_var_kl" })
    check.near(mean, golden.kl_mean, TOLERANCE, "the mean of the estimate")
    check.near(advantages_of(name, groups, seen), wanted, 1e-5, name)
    check.equal(groups[1].samples[1].score, golden.scores[1][1], "the score that is reported")
  end
end)

check.case("estimators that compare answers need two", function()
  for _, name in ipairs { "rloo", "grpo_passk" } do
    local groups = { { row = { id = "1" }, samples = { groups_of()[1].samples[1] } } }
    check.raises(function() advantage.estimate(name, { groups = groups }, {}) end,
      "algorithm.adv_estimator=" .. name .. " needs worker.rollout.n=2 or more", name)
  end
end)

-- ---- the schedule ----
-- EasyR1's first step has its factor 0; ours is one step of the warm-up ahead.
check.case("the cosine schedule with a smallest share", function()
  local cosine = schedules:get("cosine").fn
  for step = 3, 10 do
    local factor = cosine { step = step, total = 10, warmup = 2, least = 0.25 }
    check.near(factor, golden.cosine[step], 1e-12, "step " .. step)
  end
end)

-- ---- dynamic sampling ----
local place = mini.folder()
local model = mini.write(place .. "/model")

-- Each row's answers have the same value, so whole groups stay or go.
local function reward(text, _, row)
  return #text % 7, { even = row.index % 2 }
end

local function rows_of(t, steps)
  local numbers = {}
  for i = 1, steps do
    local stats = t:step()
    numbers[i] = { stats.draws, stats.filtered }
  end
  return numbers
end

local FILTER = { "algorithm.online_filtering=true", "algorithm.filter_key=even",
  "algorithm.filter_low=0.5", "algorithm.filter_high=2", "data.shuffle=false",
  "data.refshapes_rows=8", "data.rollout_batch_size=2", "worker.actor.global_batch_size=2" }

check.case("groups are filtered and rows are drawn in order", function()
  local cfg = mini.settings(FILTER)
  local taken = {}
  local t = mini.trainer(cfg, { model = model, reward = reward })
  local inner = t.reward
  function t.reward(text, truth, row)
    taken[#taken + 1] = row.index
    return inner(text, truth, row)
  end
  check.equal(rows_of(t, 2), { { 2, 2 }, { 2, 2 } }, "draws and groups left out")
  local seen = {}
  for _, index in ipairs(taken) do seen[index] = (seen[index] or 0) + 1 end
  check.equal(seen, { 3, 3, 3, 3, 3, 3, 3, 3 }, "each row was answered once, three times")
  check.equal(t.sampler.since.step, 2, "the next step counts from here")
  t.policy:free()
end)

check.case("a run that goes on draws the rows that follow", function()
  local function trainer(folder)
    local cfg = mini.settings(FILTER)
    return mini.trainer(cfg, { model = model, reward = reward, folder = place .. folder })
  end
  files.make_dir(place .. "/one")
  files.make_dir(place .. "/two")
  local t = trainer "/one"
  t:step()
  local path = t:save()
  local first = t:step()
  local again = trainer "/two"
  again:resume(path)
  local second = again:step()
  check.equal({ second.draws, second.filtered, second.reward, second.grad_norm },
    { first.draws, first.filtered, first.reward, first.grad_norm }, "the same second step")
end)

check.case("a run that goes on is as long as one that was not stopped", function()
  local cfg = mini.settings(FILTER)
  cfg.trainer.max_steps = nil
  cfg.trainer.total_episodes = 3
  local t = mini.trainer(cfg, { model = model, reward = reward })
  local whole = experiment.number_of_steps(cfg, t.train)
  check.equal(whole, 12, "three passes of four steps")
  t:step()
  check.equal(t.sampler.since.before, 4, "rows that one step drew")
  check.equal(experiment.number_of_steps(cfg, t.train, t.sampler.since), whole, "after a step")
  t.policy:free()
end)

check.case("too few groups, and a part that the reward does not have", function()
  local function raises(pattern, ...)
    local words = { unpack(FILTER) }
    for _, word in ipairs { ... } do words[#words + 1] = word end
    local t = mini.trainer(mini.settings(words), { model = model, reward = reward })
    check.raises(function() t:step() end, pattern, pattern)
  end
  raises("after 2 draws only 0 of 2 groups have a mean of even between 5 and 6; raise " ..
    "trainer.max_try_make_batch", "algorithm.filter_low=5", "algorithm.filter_high=6",
    "trainer.max_try_make_batch=2")
  raises("algorithm.filter_key=accuracy: the reward has no such part; it has overall, even",
    "algorithm.filter_key=accuracy")
end)

mini.remove()
check.finish()
