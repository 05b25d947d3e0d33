-- test_group.lua - one prompt for all answers of a group is exact: the update's loss and every parameter's gradient against a computation in which each
-- answer has a copy of its prompt and pictures to itself, for several n, in whole groups and in groups split over micro-batches.
--
-- Prompts: short and long, with one picture, with two, with none. Answers: of one token, of two, cut at the limit, and between. Old
-- log-probabilities are off the model's by so much that some ratios are clipped; the reference has other weights.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local trainer = require "segzero.train.trainer"
local data = require "segzero.data"

-- f32: both sides sum the same terms in other orders. A group's prompt rows get the sum of n answers' gradients before the layers below multiply
-- it, the copies afterwards: rounding of 6e-8 for each of some 100 sums in a row, so 5e-6 of a gradient's norm (as in test_grpo). A parameter whose
-- own gradient is much smaller than all others' carries their rounding: what is below a hundredth of the mean counts as that.
local GRAD_TOL = 1e-5
local LOSS_TOL = 1e-5
local LIMIT = 12

local place = mini.folder()
local dir = mini.write(place .. "/model")
local vl = sz.qwen_vl(dir)
local reference = sz.qwen_vl(mini.write(place .. "/reference", { seed = 8 }))

local function random(row, i) return sz.core.C.sz_random_uniform(11, row, 0, i) end

local function prompt_of(pictures, text)
  local content, images = {}, {}
  local set = data.open("refshapes", { split = "train", size = mini.size, seed = 3, rows = 10 })
  for i = 1, pictures do
    images[i] = set:row(i + #text % 5).image
    content[i] = { type = "image", image = images[i] }
  end
  content[#content + 1] = { type = "text", text = text }
  local input = vl:process { { role = "user", content = content } }
  for _, image in ipairs(images) do image:free() end
  return input
end

local prompts = { prompt_of(1, "the red circle"), prompt_of(0, "two"), prompt_of(2, "what differs between these two pictures, and where is it to be seen?"),
  prompt_of(0, ("a longer text without a picture "):rep(4)) }

local function groups_of(n)
  local groups = {}
  for p, input in ipairs(prompts) do
    groups[p] = { input = input, row = {}, samples = {} }
    local lists = {}
    for k = 1, n do
      local r = 100 * p + k
      local length = k == 1 and LIMIT or k == 2 and 1 or k == 3 and 2 or 1 + math.floor(random(r, 0) * LIMIT)
      lists[k] = {}
      for i = 1, length do lists[k][i] = 1 + math.floor(random(r, i) * 90) end
    end
    local lps = tensor.no_grad(vl.logprobs, vl, input, lists)
    for k, ids in ipairs(lists) do
      local old = lps[k]:totable()
      for i = 1, #old do old[i] = old[i] + 0.6 * (random(100 * p + k, 50 + i) - 0.5) end
      groups[p].samples[k] = { ids = ids, logprobs = old, advantage = 2 * random(k, p) - 1 }
    end
  end
  return groups
end

local function alone(groups)
  local out = {}
  for _, g in ipairs(groups) do
    for _, a in ipairs(g.samples) do out[#out + 1] = { input = g.input, row = {}, samples = { a } } end
  end
  return out
end

-- The update's numbers and gradients; streams: {prompts run, streams} of the policy.
local function update(groups, args, by_itself)
  local cfg = mini.settings(args)
  local t = trainer.new { config = cfg, policy = vl, reference = reference, reward = mini.reward }
  local grads, streams = {}, { prompts = 0, all = 0 }
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
  if by_itself then
    function t.micro_batches(_, list)
      local batches = {}
      for i, g in ipairs(list) do batches[i] = { groups = { g } } end
      return batches
    end
  end
  local logprob_of, vision = vl.logprob_of, vl.vision
  function vl.logprob_of(...) streams.all = streams.all + 1; return logprob_of(...) end
  function vl.vision(model, inputs, ...) streams.prompts = streams.prompts + #inputs; return vision(model, inputs, ...) end
  local stats = t:update(groups, 0)
  vl.logprob_of, vl.vision = nil, nil
  return stats, grads, streams
end

local function squares(x) return x:sum_squares():item() end

-- Largest distance of two gradients, by parameter, relative to its norm.
local function distance(got, want)
  local total, count, worst, name = 0, 0, 0, "none"
  for _, g in pairs(want) do total, count = total + squares(g), count + 1 end
  local floor = 1e-2 * math.sqrt(total / count)
  for k, g in pairs(want) do
    local d = got[k] and math.sqrt(squares(g - got[k])) / math.max(math.sqrt(squares(g)), floor) or math.huge
    if not (d <= worst) then worst, name = d, k end
  end
  return worst, name, count
end

local RECOMPUTE, UPDATE = "worker.actor.model.enable_gradient_checkpointing=", "worker.actor.micro_batch_size_per_device_for_update="
local EXPERIENCE, TOKENS = "worker.actor.micro_batch_size_per_device_for_experience=", "worker.actor.max_tokens_per_micro_batch="
local FROZEN = "worker.actor.freeze_vision_tower=true"

-- {settings, groups are split}
local variants = {
  { { RECOMPUTE .. "false" } }, { { RECOMPUTE .. "true" } },
  { { RECOMPUTE .. "false", TOKENS .. "1" }, true }, { { RECOMPUTE .. "true", UPDATE .. "3", EXPERIENCE .. "1" }, true },
  { { RECOMPUTE .. "true", TOKENS .. "120" }, true }, { { UPDATE .. "1", "worker.actor.loss_avg_mode=seq" }, true },
  { { RECOMPUTE .. "true", UPDATE .. "1", FROZEN }, true }, { { RECOMPUTE .. "false", TOKENS .. "100", FROZEN }, true },
}

for _, n in ipairs { 2, 8, 16 } do
  local groups, wants, worst_of_all = groups_of(n), {}, 0
  for _, v in ipairs(variants) do
    local name = ("n = %d, %s"):format(n, table.concat(v[1], " "):gsub("worker%.actor%.", ""))
    local frozen, seq = name:find("freeze", 1, true) and FROZEN, name:find("loss_avg", 1, true) and "worker.actor.loss_avg_mode=seq"
    local kind = (frozen or "") .. (seq or "")
    if not wants[kind] then
      local single = alone(groups)
      local s, g = update(single, { RECOMPUTE .. "false", frozen or seq }, true)
      check.ok(s.clipped > 0 and s.kl > 0, name .. ": the reference computation has clipped ratios and a KL")
      wants[kind] = { s, g, {} }
      for i, one in ipairs(single) do wants[kind][3][i] = one.samples[1].reference end
    end
    local want, want_grads, references = unpack(wants[kind])
    for _, g in ipairs(groups) do for _, a in ipairs(g.samples) do a.reference = nil end end
    local stats, grads, streams = update(groups, v[1])
    for _, key in ipairs { "loss", "policy_loss", "kl", "entropy", "clipped" } do
      check.near(stats[key], want[key], LOSS_TOL * math.max(1, math.abs(want[key])), name .. ": " .. key)
    end
    local i, off = 0, 0
    for _, g in ipairs(groups) do
      for _, a in ipairs(g.samples) do
        i = i + 1
        for k, value in ipairs(references[i]) do off = math.max(off, math.abs(value - a.reference[k])) end
        check.equal(#a.reference, #a.ids, name .. ": reference log-probabilities of every token")
      end
    end
    -- Logits of some 10 in size, rounded to f32 after other orders of sums.
    check.ok(off < 2e-5, ("%s: the reference's log-probabilities differ by %.1e"):format(name, off))
    local worst, parameter, count = distance(grads, want_grads)
    worst_of_all = math.max(worst, worst_of_all)
    check.ok(worst <= GRAD_TOL and count > 20, ("%s: %d gradients, worst %.1e (%s)"):format(name, count, worst, parameter))
    check.equal(streams.prompts, #prompts, name .. ": each prompt is run once")
    check.ok(not v[2] or streams.all > #prompts or n == 2, name .. ": groups are split")
  end
  print(("groups of %d: gradients differ from the copies' by at most %.1e"):format(n, worst_of_all))
end

-- ---- the limits ----
local function batches(groups, max_tokens, max_answers)
  local out = {}
  local bare = trainer.bare { config = mini.settings { TOKENS .. max_tokens, UPDATE .. (max_answers or "null") } }
  for i, b in ipairs(bare:micro_batches(groups, "update")) do
    local parts = {}
    for k, chunk in ipairs(b.chunks or {}) do parts[k] = #chunk end
    out[i] = b.chunks and parts or #b.groups
  end
  return out
end
local function group(prompt, ...)
  local g = { input = { input_ids = {} }, samples = {} }
  for i = 1, prompt do g.input.input_ids[i] = 0 end
  for k, length in ipairs { ... } do
    g.samples[k] = { ids = {} }
    for i = 1, length do g.samples[k].ids[i] = 0 end
  end
  return g
end
local some = { group(10, 5, 5), group(10, 5, 1), group(50, 20, 1, 20, 20), group(10, 5, 5) }
check.equal(batches(some, 1000), { 4 }, "all fit")
check.equal(batches(some, 90), { 2, { 2, 1 }, 1 }, "a group over the tokens is split, the others are not; one token needs no part")
check.equal(batches(some, 1), { { 1, 1 }, { 1 }, { 1, 1, 1 }, { 1, 1 } }, "at least an answer in each part")
check.equal(batches(some, 1000, 3), { 1, 1, { 3 }, 1 }, "at most three answers")
check.equal(batches(some, 1000, 4), { 2, 1, 1 }, "at most four answers")

mini.remove()
check.finish()
