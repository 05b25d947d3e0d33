-- test_group.lua - one prompt for all answers of a group is exact: the update's loss and every
-- parameter's gradient against a computation in which each answer has its own copy of its prompt
-- and images, for several n, in whole groups and in groups split over micro-batches.
--
--   ./segzero tests/unit/test_group.lua
--
-- Prompts: short and long, with one image, with two, with none. Answers: of one token, of two, cut
-- at the limit, and between. Old log-probabilities differ enough from the model's for some ratios
-- to be clipped; the reference model has other weights.
-- Leaves out: GRPO's own numbers (test_grpo.lua).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local data = require "segzero.data"
local tensor = require "segzero.core.tensor"
local trainer = require "segzero.train.trainer"

-- f32: both sides sum the same terms in other orders. A group's prompt rows get the sum of n
-- answers' gradients before the layers below multiply it, the copies afterwards: a rounding of 6e-8
-- for each of some 100 sums in a row, so 5e-6 of a gradient's norm (as in test_grpo). A parameter
-- whose own gradient is much smaller than all others' carries their rounding: a norm below a
-- hundredth of the mean counts as that hundredth.
local GRAD_TOL = 1e-5
local LOSS_TOL = 1e-5
local REFERENCE_TOL = 2e-5      -- logits of about 10, rounded to f32, summed in other orders
local LIMIT = 12                -- tokens of an answer

local place = mini.folder()
local vl = sz.qwen_vl(mini.write(place .. "/model"))
local reference = sz.qwen_vl(mini.write(place .. "/reference", { seed = 8 }))

-- ---- prompts and answers ----

local function random(row, i) return sz.core.C.sz_random_uniform(11, row, 0, i) end

local function prompt_of(image_count, text)
  local content = {}
  local images = {}
  local set = data.open("refshapes", { split = "train", size = mini.size, seed = 3, rows = 10 })
  for i = 1, image_count do
    images[i] = set:row(i + #text % 5).image
    content[i] = { type = "image", image = images[i] }
  end
  content[#content + 1] = { type = "text", text = text }
  local input = vl:process { { role = "user", content = content } }
  for _, image in ipairs(images) do image:free() end
  return input
end

local prompts = {
  prompt_of(1, "the red circle"),
  prompt_of(0, "two"),
  prompt_of(2, "what differs between these two images, and where is it to be seen?"),
  prompt_of(0, ("a longer text without an image "):rep(4)),
}

-- Tokens of the k-th answer of a group: at the limit, 1, 2, then any number.
local function length_of(k, row)
  local fixed = { LIMIT, 1, 2 }
  return fixed[k] or 1 + math.floor(random(row, 0) * LIMIT)
end

-- A group with n answers for each prompt.
local function groups_of(n)
  local groups = {}
  for p, input in ipairs(prompts) do
    local lists = {}
    for k = 1, n do
      local row = 100 * p + k
      lists[k] = {}
      for i = 1, length_of(k, row) do lists[k][i] = 1 + math.floor(random(row, i) * 90) end
    end
    local logprobs = tensor.no_grad(vl.logprobs, vl, input, lists)
    local samples = {}
    for k, ids in ipairs(lists) do
      local old = logprobs[k]:totable()
      for i = 1, #old do old[i] = old[i] + 0.6 * (random(100 * p + k, 50 + i) - 0.5) end
      samples[k] = { ids = ids, logprobs = old, advantage = 2 * random(k, p) - 1 }
    end
    groups[p] = { input = input, row = {}, samples = samples }
  end
  return groups
end

-- The same answers, each in a group of its own.
local function alone(groups)
  local out = {}
  for _, g in ipairs(groups) do
    for _, a in ipairs(g.samples) do
      out[#out + 1] = { input = g.input, row = {}, samples = { a } }
    end
  end
  return out
end

local function forget_references(groups)
  for _, g in ipairs(groups) do
    for _, a in ipairs(g.samples) do a.reference = nil end
  end
end

-- ---- updates ----

-- Makes the trainer's optimizer step keep the gradients in `grads` and change no weight.
local function collect_gradients(t, grads)
  function t.optimizer.step()
    for _, p in ipairs(t.parameters) do
      local g = p.tensor:grad()
      if g then
        grads[p.name] = g:clone()
        g:free()
        p.tensor:zero_grad()
      end
    end
    return 0, true
  end
end

-- One group in each micro-batch.
local function one_at_a_time(_, list)
  local batches = {}
  for i, g in ipairs(list) do batches[i] = { groups = { g } } end
  return batches
end

-- Runs f() and counts the policy's streams, and the prompts that went through its vision tower.
local function counting_streams(f)
  local streams = { prompts = 0, all = 0 }
  local logprob_of = vl.logprob_of
  local vision = vl.vision
  function vl.logprob_of(...)
    streams.all = streams.all + 1
    return logprob_of(...)
  end
  function vl.vision(model, inputs, ...)
    streams.prompts = streams.prompts + #inputs
    return vision(model, inputs, ...)
  end
  local result = f()
  vl.logprob_of = nil
  vl.vision = nil
  return result, streams
end

-- The update's numbers, its gradients by parameter, and what counting_streams counts.
local function update(groups, args, by_itself)
  local cfg = mini.settings(args)
  local t = trainer.new {
    config = cfg, policy = vl, reference = reference, reward = mini.reward,
  }
  local grads = {}
  collect_gradients(t, grads)
  if by_itself then t.micro_batches = one_at_a_time end
  local stats, streams = counting_streams(function() return t:update(groups, 0) end)
  return stats, grads, streams
end

-- ---- comparison ----

local function squares(x) return x:sum_squares():item() end

-- The largest distance of two gradients, by parameter, relative to its norm; that parameter; and
-- the number of parameters.
local function distance(got, want)
  local total = 0
  local count = 0
  for _, g in pairs(want) do
    total = total + squares(g)
    count = count + 1
  end
  local floor = 1e-2 * math.sqrt(total / count)
  local worst = 0
  local name = "none"
  for k, g in pairs(want) do
    local d = math.huge
    if got[k] then d = math.sqrt(squares(g - got[k])) / math.max(math.sqrt(squares(g)), floor) end
    if not (d <= worst) then
      worst = d
      name = k
    end
  end
  return worst, name, count
end

local ACTOR = "worker.actor."
local RECOMPUTE = ACTOR .. "model.enable_gradient_checkpointing="
local UPDATE = ACTOR .. "micro_batch_size_per_device_for_update="
local EXPERIENCE = ACTOR .. "micro_batch_size_per_device_for_experience="
local TOKENS = ACTOR .. "max_tokens_per_micro_batch="
local FROZEN = ACTOR .. "freeze_vision_tower=true"
local BY_SEQUENCE = ACTOR .. "loss_avg_mode=seq"

-- args: the settings; kind: the one of them that the computation of each answer alone needs, too;
-- split: the settings split groups.
local VARIANTS = {
  { args = { RECOMPUTE .. "false" } },
  { args = { RECOMPUTE .. "true" } },
  { args = { RECOMPUTE .. "false", TOKENS .. "1" }, split = true },
  { args = { RECOMPUTE .. "true", UPDATE .. "3", EXPERIENCE .. "1" }, split = true },
  { args = { RECOMPUTE .. "true", TOKENS .. "120" }, split = true },
  { args = { UPDATE .. "1", BY_SEQUENCE }, kind = BY_SEQUENCE, split = true },
  { args = { RECOMPUTE .. "true", UPDATE .. "1", FROZEN }, kind = FROZEN, split = true },
  { args = { RECOMPUTE .. "false", TOKENS .. "100", FROZEN }, kind = FROZEN, split = true },
}

-- What the update gives where each answer has its own prompt.
local function update_alone(groups, kind, name)
  local single = alone(groups)
  local stats, grads = update(single, { RECOMPUTE .. "false", kind }, true)
  local both = stats.clipped > 0 and stats.kl > 0
  check.ok(both, name .. ": the computation of each answer alone has clipped ratios and a KL")
  local references = {}
  for i, one in ipairs(single) do references[i] = one.samples[1].reference end
  return { stats = stats, grads = grads, references = references }
end

local function check_references(groups, references, name)
  local i = 0
  local off = 0
  for _, g in ipairs(groups) do
    for _, a in ipairs(g.samples) do
      i = i + 1
      for k, value in ipairs(references[i]) do
        off = math.max(off, math.abs(value - a.reference[k]))
      end
      check.equal(#a.reference, #a.ids, name .. ": reference log-probabilities of every token")
    end
  end
  local label = ("%s: the reference's log-probabilities differ by %.1e"):format(name, off)
  check.ok(off < REFERENCE_TOL, label)
end

-- Compares the groups' update with that of each answer alone. Returns the worst gradient's
-- distance.
local function check_variant(groups, variant, want, name)
  forget_references(groups)
  local stats, grads, streams = update(groups, variant.args)
  for _, key in ipairs { "loss", "policy_loss", "kl", "entropy", "clipped" } do
    local value = want.stats[key]
    check.near(stats[key], value, LOSS_TOL * math.max(1, math.abs(value)), name .. ": " .. key)
  end
  check_references(groups, want.references, name)

  local worst, parameter, count = distance(grads, want.grads)
  local label = ("%s: %d gradients, worst %.1e (%s)"):format(name, count, worst, parameter)
  check.ok(worst <= GRAD_TOL and count > 20, label)
  check.equal(streams.prompts, #prompts, name .. ": each prompt is run once")
  local n = #groups[1].samples
  local split = streams.all > #prompts or n == 2
  check.ok(split or not variant.split, name .. ": groups are split")
  return worst
end

for _, n in ipairs { 2, 8, 16 } do
  check.case(("groups of %d answers equal each answer alone"):format(n), function()
    local groups = groups_of(n)
    local wants = {}
    local worst = 0
    for _, variant in ipairs(VARIANTS) do
      local settings = table.concat(variant.args, " "):gsub("worker%.actor%.", "")
      local name = ("n = %d, %s"):format(n, settings)
      local kind = variant.kind or "plain"
      wants[kind] = wants[kind] or update_alone(groups, variant.kind, name)
      worst = math.max(worst, check_variant(groups, variant, wants[kind], name))
    end
    print(("groups of %d: gradients differ from the copies' by at most %.1e"):format(n, worst))
  end)
end

-- ---- the limits ----

-- A group whose prompt and answers have these numbers of tokens.
local function group(prompt, ...)
  local g = { input = { input_ids = {} }, samples = {} }
  for i = 1, prompt do g.input.input_ids[i] = 0 end
  for k, length in ipairs { ... } do
    g.samples[k] = { ids = {} }
    for i = 1, length do g.samples[k].ids[i] = 0 end
  end
  return g
end

-- Each micro-batch as the number of its groups, or as the list of its chunks' sizes.
local function batches(groups, max_tokens, max_answers)
  local args = { TOKENS .. max_tokens, UPDATE .. (max_answers or "null") }
  local bare = trainer.bare { config = mini.settings(args) }
  local out = {}
  for i, b in ipairs(bare:micro_batches(groups, "update")) do
    if b.chunks then
      out[i] = {}
      for k, chunk in ipairs(b.chunks) do out[i][k] = #chunk end
    else
      out[i] = #b.groups
    end
  end
  return out
end

check.case("micro-batches keep the limits on tokens and answers", function()
  local some = { group(10, 5, 5), group(10, 5, 1), group(50, 20, 1, 20, 20), group(10, 5, 5) }
  check.equal(batches(some, 1000), { 4 }, "all fit")
  check.equal(batches(some, 90), { 2, { 2, 1 }, 1 },
    "a group over the tokens is split, the others are not; one token needs no chunk")
  check.equal(batches(some, 1), { { 1, 1 }, { 1 }, { 1, 1, 1 }, { 1, 1 } },
    "at least an answer in each chunk")
  check.equal(batches(some, 1000, 3), { 1, 1, { 3 }, 1 }, "at most three answers")
  check.equal(batches(some, 1000, 4), { 2, 1, 1 }, "at most four answers")
end)

mini.remove()
check.finish()
