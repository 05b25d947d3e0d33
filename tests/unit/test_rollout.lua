-- test_rollout.lua - sampling: an answer does not depend on its batch, its log-probabilities are
-- the trainer's, where it ends, tokens that are never sampled, and the effect of each setting.
--
--   ./segzero tests/unit/test_rollout.lua

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local packing = require "segzero.inference.packing"
local rollout = require "segzero.inference.rollout"
local tensor = require "segzero.core.tensor"

local VISION_TOKENS = {
  "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
}

local place = mini.folder()
local vl = sz.qwen_vl(mini.write(place .. "/model"))
local inputs = {}
for i = 1, 4 do inputs[i] = mini.input(vl, i) end

local function generate(list, opts, model) return rollout.generate(model or vl, list, opts) end

-- The only answer to an input.
local function generate_one(input, opts) return generate({ input }, opts)[1][1] end

-- The ids of each answer as text.
local function ids(answers)
  local out = {}
  for i, answer in ipairs(answers) do out[i] = table.concat(answer.ids, " ") end
  return out
end

-- The ids of the vision tokens, as a set.
local function vision_ids(tokenizer)
  local set = {}
  for _, name in ipairs(VISION_TOKENS) do set[tokenizer:id(name)] = true end
  return set
end

-- The largest of `count` numbers of a list, and its index from 0.
local function largest(list, count)
  local best = -math.huge
  local index
  for i = 1, count or #list do
    if list[i] > best then
      best = list[i]
      index = i - 1
    end
  end
  return best, index
end

local function count_keys(t)
  local n = 0
  for _ in pairs(t) do n = n + 1 end
  return n
end

-- ---- independence of the batch ----

local function with(changes)
  local opts = { n = 3, max_new_tokens = 12, seed = 5, row_ids = { 11, 12, 13, 14 } }
  for key, value in pairs(changes or {}) do opts[key] = value end
  return opts
end

local all = generate(inputs, with())

check.case("an answer does not depend on its batch", function()
  local different = {}
  for i, answers in ipairs(all) do
    check.equal(#answers, 3, "three answers")
    for _, text in ipairs(ids(answers)) do different[text] = true end
    local alone = generate({ inputs[i] }, with { row_ids = { 10 + i } })[1]
    check.equal(ids(alone), ids(answers), "row " .. i .. " alone")
  end
  local count = count_keys(different)
  check.ok(count >= 10, count .. " different answers of 12")

  for i, answers in ipairs(generate(inputs, with { n = 5 })) do
    check.equal({ unpack(ids(answers), 1, 3) }, ids(all[i]), "with n = 5")
  end
  for i, answers in ipairs(generate(inputs, with { n = 1 })) do
    check.equal(ids(answers)[1], ids(all[i])[1], "with n = 1")
  end
  local turned = generate({ inputs[3], inputs[1] }, with { row_ids = { 13, 11 } })
  check.equal({ ids(turned[1]), ids(turned[2]) }, { ids(all[3]), ids(all[1]) },
    "in another order")
end)

check.case("seed and row id choose the answer", function()
  local first = ids(all[1])[1]
  local other_seed = generate(inputs, with { seed = 6 })[1]
  check.ok(ids(other_seed)[1] ~= first, "another seed, another answer")
  local other_row = generate({ inputs[1] }, with { row_ids = { 99 } })[1]
  check.ok(ids(other_row)[1] ~= first, "another row id, another answer")
end)

check.case("log-probabilities are the trainer's", function()
  for i, answers in ipairs(all) do
    local lists = {}
    for k, answer in ipairs(answers) do lists[k] = answer.ids end
    for k, logprobs in ipairs(vl:logprobs(inputs[i], lists)) do
      check.near(answers[k].logprobs, logprobs:totable(), 1e-4,
        ("log-probabilities %d/%d"):format(i, k))
      check.equal(#answers[k].ids, #answers[k].logprobs, "one for each token")
    end
  end
end)

-- ---- where an answer ends ----

local greedy = generate(inputs, { temperature = 0, max_new_tokens = 12 })
local greedy_ids = greedy[1][1].ids

check.case("greedy answers", function()
  local groups = generate(inputs, { temperature = 0, n = 3, max_new_tokens = 12 })
  for i, group in ipairs(groups) do
    for k = 1, 3 do
      check.equal(group[k].ids, greedy[i][1].ids, "a group's greedy answers equal the single one")
    end
  end
  local one = generate(inputs, { temperature = 0, max_new_tokens = 1 })
  for i = 1, 4 do
    check.equal(one[i][1].ids, { greedy[i][1].ids[1] }, "one token")
    check.equal(#one[i][1].logprobs, 1, "and its log-probability")
  end
end)

check.case("length and stop tokens", function()
  check.ok(#greedy_ids > 3, "the greedy answer has some tokens")
  local function expect(opts, finish, length, name)
    opts.temperature = 0
    local answer = generate_one(inputs[1], opts)
    check.equal({ answer.finish, #answer.ids }, { finish, length }, name)
    return answer
  end
  local cut = expect({ max_new_tokens = 3 }, "length", 3, "length")
  check.equal(cut.ids, { unpack(greedy_ids, 1, 3) }, "the same tokens until then")

  local first_at = {}
  for i = #greedy_ids, 1, -1 do first_at[greedy_ids[i]] = i end
  local stop = greedy_ids[3]
  local stop_at = math.min(first_at[stop], first_at[1] or 99)
  expect({ max_new_tokens = 12, stop_ids = { stop, 1 } }, "stop", stop_at,
    "a stop token ends the answer and is kept")
  expect({ max_new_tokens = 5, stop_ids = { stop }, ignore_eos = true }, "length", 5,
    "ignore_eos")
  local exact = generate_one(inputs[1],
    { temperature = 0, max_new_tokens = first_at[stop], stop_ids = { stop } })
  check.equal(exact.finish, "stop", "a stop token in the last place is a stop")

  local tokenizer = vl:tokenizer()
  check.equal(vl:stop_ids(), { tokenizer:id "<|im_end|>", tokenizer:id "<|endoftext|>" },
    "the default stop ids are generation_config.json's two")
end)

check.case("bad settings", function()
  local function refused(opts, pattern, name)
    check.raises(function() generate(inputs, opts) end, pattern, name)
  end
  local WHOLE = "n and max_new_tokens must be whole numbers"
  refused({ n = 0 }, WHOLE, "n = 0")
  refused({ n = 1.5 }, WHOLE, "n = 1.5")
  refused({ max_new_tokens = 0 }, WHOLE, "no tokens")
  refused({ temperature = -1 }, "temperature is %-1", "a negative temperature")
end)

-- ---- repetition penalty ----

-- The logits of the token after the answer so far, computed without a cache.
local function next_logits(input, answer)
  return tensor.no_grad(function()
    return tensor.step(function()
      local list = { unpack(answer) }
      list[#list + 1] = 0         -- the token to predict; its value does not matter
      local stream = packing.stream({ { input = input, answers = { list } } }, vl.image_token_id)
      local hidden = vl:hidden(stream, vl:vision { input }, { rows = stream.rows })
      return vl:logits(hidden):narrow(#list - 1, 1):totable()[1]
    end)
  end)
end

-- A greedy answer with the penalty of transformers: a seen token's logit is divided by it, or
-- multiplied by it if the logit is negative.
local function expected_greedy(input, penalty, tokens)
  local banned = vision_ids(vl:tokenizer())
  local seen = {}
  for _, id in ipairs(input.input_ids) do seen[id] = true end
  local answer = {}
  for _ = 1, tokens do
    local row = next_logits(input, answer)
    for id in pairs(seen) do
      local x = row[id + 1]
      if x < 0 then
        row[id + 1] = x * penalty
      else
        row[id + 1] = x / penalty
      end
    end
    for id in pairs(banned) do row[id + 1] = -math.huge end
    local _, best = largest(row, vl:tokenizer():size())
    answer[#answer + 1] = best
    seen[best] = true
  end
  return answer
end

check.case("the repetition penalty is that of transformers", function()
  local changed = false
  for i = 1, 2 do
    local plain = generate_one(inputs[i],
      { temperature = 0, max_new_tokens = 6, ignore_eos = true })
    for _, penalty in ipairs { 1, 1.5, 0.25 } do
      local got = generate_one(inputs[i], {
        temperature = 0, max_new_tokens = 6, repetition_penalty = penalty, ignore_eos = true,
      })
      check.equal(got.ids, expected_greedy(inputs[i], penalty, 6),
        ("row %d, penalty %g"):format(i, penalty))
      if penalty ~= 1 and ids({ plain })[1] ~= ids({ got })[1] then changed = true end
    end
  end
  check.ok(changed, "the penalty changes something")
end)

-- ---- temperature, top-k, top-p ----

local DRAWS = 300

-- How often each token came first in 300 answers to the first input: {token -> count}.
local function first_tokens(opts)
  opts.n = DRAWS
  opts.max_new_tokens = 1
  local seen = {}
  for _, answer in ipairs(generate({ inputs[1] }, opts)[1]) do
    local id = answer.ids[1]
    seen[id] = (seen[id] or 0) + 1
  end
  return seen
end

-- The first token's distribution: a list of { id, p }, the most likely first.
local function first_distribution()
  local logits = vl:forward(inputs[1])
  local row = logits:narrow(logits:shape()[1] - 1, 1):totable()[1]
  local total = 0
  for _, x in ipairs(row) do total = total + math.exp(x) end
  local order = {}
  for i, x in ipairs(row) do order[i] = { id = i - 1, p = math.exp(x) / total } end
  table.sort(order, function(a, b) return a.p > b.p end)
  return order
end

check.case("temperature, top-k and top-p", function()
  -- Of each token: its rank, and the probability of all that are more likely.
  local order = first_distribution()
  local rank = {}
  local mass_above = {}
  local mass = 0
  for i, entry in ipairs(order) do
    rank[entry.id] = i
    mass_above[entry.id] = mass
    mass = mass + entry.p
  end

  local free = first_tokens {}
  local kinds = count_keys(free)
  check.ok(kinds > 30, "temperature 1 is broad: " .. kinds)
  -- The share of the most likely token is within 4 standard deviations of its probability.
  local top = order[1]
  check.near((free[top.id] or 0) / DRAWS, top.p, 4 * math.sqrt(top.p * (1 - top.p) / DRAWS),
    "the share of the most likely token")
  local cold = count_keys(first_tokens { temperature = 0.25 })
  check.ok(cold < kinds / 2, ("a low temperature is narrow: %d of %d"):format(cold, kinds))

  -- The 5 banned tokens may be more likely than the top 4.
  local top_k = first_tokens { top_k = 4 }
  for id in pairs(top_k) do
    check.ok(rank[id] <= 4 + 5, "top-k keeps the most likely (" .. rank[id] .. ")")
  end
  check.equal(count_keys(top_k), 4, "all four of top_k = 4 come")
  for id in pairs(first_tokens { top_p = 0.3 }) do
    local above = mass_above[id]
    check.ok(above < 0.3 + 0.05, ("top-p keeps the nucleus (%.2f)"):format(above))
  end
  check.equal(first_tokens { top_k = 1 }, { [greedy_ids[1]] = DRAWS }, "top_k = 1 is greedy")
  check.equal(first_tokens { top_k = -1 }, free, "top_k = -1 is off")
end)

-- ---- tokens that are never sampled ----

-- Makes the vision tokens, and the rows of the vocabulary without a token, so likely that they
-- would win every time: their rows of the head point along the final state.
local function favor_banned_tokens(model)
  local tokenizer = model:tokenizer()
  local input = mini.input(model, 1)
  local stream = packing.stream({ { input = input, answers = { { 0 } } } }, model.image_token_id)
  local hidden = model:hidden(stream, model:vision { input }, { rows = stream.rows })
  local state = hidden:totable()[1]
  local head = tensor.data(model:parameters()["lm_head.weight"])
  local function favor(id)
    for k = 1, 32 do head[id * 32 + k - 1] = 3 * state[k] end
  end
  for id in pairs(vision_ids(tokenizer)) do favor(id) end
  for id = tokenizer:size(), model.config.vocab - 1 do favor(id) end

  local logits = model:forward(input)
  local _, best = largest(logits:narrow(logits:shape()[1] - 1, 1):totable()[1])
  check.ok(best >= tokenizer:size() or tokenizer:token(best):find "^<|",
    "the model prefers such a token")
end

check.case("vision tokens and rows without a token are never sampled", function()
  local model = sz.qwen_vl(mini.write(place .. "/favored", {
    config = { tie_word_embeddings = false },
    change = favor_banned_tokens,
  }))
  local size = model:tokenizer():size()
  local banned = vision_ids(model:tokenizer())
  check.ok(model.config.vocab > size, "the vocabulary has rows without a token")

  local list = { mini.input(model, 1), mini.input(model, 2) }
  local function check_answer(answer, temperature)
    local found = false
    for _, id in ipairs(answer.ids) do
      if banned[id] or id >= size then found = true end
    end
    check.ok(not found, "no such token at temperature " .. temperature)
    for _, logprob in ipairs(answer.logprobs) do
      check.ok(logprob <= 0 and logprob > -math.huge, "its log-probability is finite")
    end
  end
  for _, temperature in ipairs { 0, 1, 5 } do
    local opts = { temperature = temperature, n = 4, max_new_tokens = 10 }
    for _, answers in ipairs(generate(list, opts, model)) do
      for _, answer in ipairs(answers) do check_answer(answer, temperature) end
    end
  end
end)

mini.remove()
check.finish()
