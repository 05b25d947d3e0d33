-- test_rollout.lua - sampling: an answer does not depend on its batch, the log-probabilities are the trainer's, when it stops, what is
-- never sampled, and what each setting does.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local rollout = require "segzero.inference.rollout"
local tensor = require "segzero.core.tensor"

local place = mini.folder()
local dir = mini.write(place .. "/model")
local vl = sz.qwen_vl(dir)
local inputs = {}
for i = 1, 4 do inputs[i] = mini.input(vl, i) end

local function generate(list, opts, model) return rollout.generate(model or vl, list, opts) end
local function ids(answers)
  local out = {}
  for i, a in ipairs(answers) do out[i] = table.concat(a.ids, " ") end
  return out
end

-- ---- independence of the batch ----
local base = { n = 3, max_new_tokens = 12, seed = 5, row_ids = { 11, 12, 13, 14 } }
local function with(changes)
  local o = {}
  for k, v in pairs(base) do o[k] = v end
  for k, v in pairs(changes or {}) do o[k] = v end
  return o
end
local all = generate(inputs, with())
local different = {}
for i, answers in ipairs(all) do
  check.equal(#answers, 3, "three answers")
  for _, s in ipairs(ids(answers)) do different[s] = true end
  check.equal(ids(generate({ inputs[i] }, with { row_ids = { 10 + i } })[1]), ids(answers), "row " .. i .. " alone")
end
local count = 0
for _ in pairs(different) do count = count + 1 end
check.ok(count >= 10, count .. " different answers of 12")
for i, answers in ipairs(generate(inputs, with { n = 5 })) do
  check.equal({ unpack(ids(answers), 1, 3) }, ids(all[i]), "with n = 5")
end
for i, answers in ipairs(generate(inputs, with { n = 1 })) do check.equal(ids(answers)[1], ids(all[i])[1], "with n = 1") end
local turned = generate({ inputs[3], inputs[1] }, with { row_ids = { 13, 11 } })
check.equal({ ids(turned[1]), ids(turned[2]) }, { ids(all[3]), ids(all[1]) }, "in another order")
check.ok(ids(generate(inputs, with { seed = 6 })[1])[1] ~= ids(all[1])[1], "another seed, another answer")
check.ok(ids(generate({ inputs[1] }, with { row_ids = { 99 } })[1])[1] ~= ids(all[1])[1], "another row id, another answer")

-- ---- log-probabilities ----
for i, answers in ipairs(all) do
  local lists = {}
  for k, a in ipairs(answers) do lists[k] = a.ids end
  for k, lp in ipairs(vl:logprobs(inputs[i], lists)) do
    check.near(answers[k].logprobs, lp:totable(), 1e-4, ("log-probabilities %d/%d"):format(i, k))
    check.equal(#answers[k].ids, #answers[k].logprobs, "one for each token")
  end
end

-- ---- when it ends ----
local greedy = generate(inputs, { temperature = 0, max_new_tokens = 12 })
for i, group in ipairs(generate(inputs, { temperature = 0, n = 3, max_new_tokens = 12 })) do
  for k = 1, 3 do check.equal(group[k].ids, greedy[i][1].ids, "greedy answers of a group are the single one") end
end
local one = generate(inputs, { temperature = 0, max_new_tokens = 1 })
for i = 1, 4 do
  check.equal(one[i][1].ids, { greedy[i][1].ids[1] }, "one token")
  check.equal(#one[i][1].logprobs, 1, "and its log-probability")
end
local long = greedy[1][1].ids
check.ok(#long > 3, "the greedy answer has some tokens")
local cut = generate({ inputs[1] }, { temperature = 0, max_new_tokens = 3 })[1][1]
check.equal({ cut.finish, #cut.ids }, { "length", 3 }, "length")
check.equal(cut.ids, { unpack(long, 1, 3) }, "the same tokens until then")
local first_at = {}
for i = #long, 1, -1 do first_at[long[i]] = i end
local stop = long[3]
local stopped = generate({ inputs[1] }, { temperature = 0, max_new_tokens = 12, stop_ids = { stop, 1 } })[1][1]
check.equal({ stopped.finish, #stopped.ids }, { "stop", math.min(first_at[stop], first_at[1] or 99) }, "a stop token ends it and is kept")
local ended = generate({ inputs[1] }, { temperature = 0, max_new_tokens = 5, stop_ids = { stop }, ignore_eos = true })[1][1]
check.equal({ ended.finish, #ended.ids }, { "length", 5 }, "ignore_eos")
local exact = generate({ inputs[1] }, { temperature = 0, max_new_tokens = first_at[stop], stop_ids = { stop } })[1][1]
check.equal(exact.finish, "stop", "a stop token in the last place is a stop")
check.raises(function() generate(inputs, { n = 0 }) end, "n and max_new_tokens must be whole numbers", "n = 0")
check.raises(function() generate(inputs, { n = 1.5 }) end, "n and max_new_tokens must be whole numbers", "n = 1.5")
check.raises(function() generate(inputs, { max_new_tokens = 0 }) end, "n and max_new_tokens must be whole numbers", "no tokens")
check.raises(function() generate(inputs, { temperature = -1 }) end, "temperature is %-1", "a negative temperature")

-- Stops by default: generation_config.json's two.
check.equal(vl:stop_ids(), { vl:tokenizer():id "<|im_end|>", vl:tokenizer():id "<|endoftext|>" }, "stop ids of the folder")

-- ---- repetition penalty, as transformers: a seen token's logit is divided by it, or multiplied when negative ----
local function expected_greedy(inp, penalty, tokens)
  local answer, seen = {}, {}
  for _, id in ipairs(inp.input_ids) do seen[id] = true end
  local banned = {}
  for _, name in ipairs { "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>" } do banned[vl:tokenizer():id(name)] = true end
  for _ = 1, tokens do
    -- The answer so far as part of the prompt's text: what follows it is one row of logits.
    local row = tensor.no_grad(function()
      return tensor.step(function()
        local packing = require "segzero.inference.packing"
        local list = { unpack(answer) }
        list[#list + 1] = 0      -- what is predicted; its value does not matter
        local stream = packing.stream({ { input = inp, answers = { list } } }, vl.image_token_id)
        local h = vl:hidden(stream, vl:vision { inp }, { rows = stream.rows })
        local logits = vl:logits(h)
        return logits:narrow(#list - 1, 1):totable()[1]
      end)
    end)
    local best, at = -math.huge, nil
    for id = 0, vl:tokenizer():size() - 1 do
      local x = row[id + 1]
      if seen[id] then x = x < 0 and x * penalty or x / penalty end
      if not banned[id] and x > best then best, at = x, id end
    end
    answer[#answer + 1] = at
    seen[at] = true
  end
  return answer
end
local changed = false
for i = 1, 2 do
  for _, penalty in ipairs { 1, 1.5, 0.25 } do
    local got = generate({ inputs[i] }, { temperature = 0, max_new_tokens = 6, repetition_penalty = penalty, ignore_eos = true })[1][1].ids
    check.equal(got, expected_greedy(inputs[i], penalty, 6), ("row %d, penalty %g"):format(i, penalty))
    if penalty ~= 1 then
      local plain = generate({ inputs[i] }, { temperature = 0, max_new_tokens = 6, ignore_eos = true })[1][1].ids
      changed = changed or table.concat(plain, " ") ~= table.concat(got, " ")
    end
  end
end
check.ok(changed, "the penalty changes something")

-- ---- temperature, top-k, top-p ----
local function first_tokens(opts)
  opts.n, opts.max_new_tokens = 300, 1
  local seen, kinds = {}, 0
  for _, a in ipairs(generate({ inputs[1] }, opts)[1]) do
    local id = a.ids[1]
    kinds = kinds + (seen[id] and 0 or 1)
    seen[id] = (seen[id] or 0) + 1
  end
  return seen, kinds
end
local logits = vl:forward(inputs[1])
local last = logits:narrow(logits:shape()[1] - 1, 1):totable()[1]
local order, total = {}, 0
for id, x in ipairs(last) do order[id] = { id - 1, math.exp(x) } end
for _, o in ipairs(order) do total = total + o[2] end
table.sort(order, function(a, b) return a[2] > b[2] end)
local rank, mass, below = {}, 0, {}
for i, o in ipairs(order) do
  rank[o[1]], below[o[1]] = i, mass
  mass = mass + o[2] / total
end
local free, kinds = first_tokens {}
check.ok(kinds > 30, "temperature 1 is broad: " .. kinds)
-- 300 draws: the share of the most likely token within 4 standard deviations of its probability.
local p = order[1][2] / total
check.near((free[order[1][1]] or 0) / 300, p, 4 * math.sqrt(p * (1 - p) / 300), "the most likely token comes as often as it should")
local _, cold = first_tokens { temperature = 0.25 }
check.ok(cold < kinds / 2, ("a low temperature is narrow: %d of %d"):format(cold, kinds))
local top_k = first_tokens { top_k = 4 }
for id in pairs(top_k) do check.ok(rank[id] <= 4 + 5, "top-k keeps the most likely (" .. rank[id] .. ")") end     -- 5 banned may be above
local n_k = 0
for _ in pairs(top_k) do n_k = n_k + 1 end
check.equal(n_k, 4, "all four of top_k = 4 come")
for id in pairs(first_tokens { top_p = 0.3 }) do check.ok(below[id] < 0.3 + 0.05, ("top-p keeps the nucleus (%.2f)"):format(below[id])) end
check.equal(first_tokens { top_k = 1 }, { [greedy[1][1].ids[1]] = 300 }, "top_k = 1 is greedy")
check.equal(first_tokens { top_k = -1 }, free, "top_k = -1 is off")

-- ---- vision tokens are never sampled, nor rows of the vocabulary that no token has ----
-- Embedding rows of those tokens are made so large along the final state that they would win every time.
local function loud(names, extra)
  local path = place .. "/loud"
  os.execute("rm -rf " .. path)
  mini.write(path, { config = { tie_word_embeddings = false }, change = function(m)
    local tok, head = m:tokenizer(), m:parameters()["lm_head.weight"]
    local input = mini.input(m, 1)
    local packing = require "segzero.inference.packing"
    local stream = packing.stream({ { input = input, answers = { { 0 } } } }, m.image_token_id)
    local state = m:hidden(stream, m:vision { input }, { rows = stream.rows }):totable()[1]
    local data = tensor.data(head)
    for _, name in ipairs(names) do
      for k = 1, 32 do data[tok:id(name) * 32 + k - 1] = 3 * state[k] end
    end
    for id = tok:size(), extra and m.config.vocab - 1 or -1 do
      for k = 1, 32 do data[id * 32 + k - 1] = 3 * state[k] end
    end
    local row = m:forward(input)
    local n = row:shape()[1]
    local best, at = -math.huge, nil
    for id, x in ipairs(row:narrow(n - 1, 1):totable()[1]) do if x > best then best, at = x, id - 1 end end
    check.ok(at >= tok:size() or m:tokenizer():token(at):find "^<|", "the model wants such a token")
  end })
  return sz.qwen_vl(path)
end
local names = { "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_pad|>" }
local shout = loud(names, true)
local bad = {}
for _, name in ipairs(names) do bad[shout:tokenizer():id(name)] = true end
check.ok(shout.config.vocab > shout:tokenizer():size(), "the vocabulary has rows without a token")
for _, temperature in ipairs { 0, 1, 5 } do
  local list = { mini.input(shout, 1), mini.input(shout, 2) }
  for _, answers in ipairs(generate(list, { temperature = temperature, n = 4, max_new_tokens = 10 }, shout)) do
    for _, a in ipairs(answers) do
      local found
      for _, id in ipairs(a.ids) do found = found or bad[id] or id >= shout:tokenizer():size() end
      check.ok(not found, "no vision token at temperature " .. temperature)
      for _, lp in ipairs(a.logprobs) do check.ok(lp <= 0 and lp > -math.huge, "its log-probability is finite") end
    end
  end
end

mini.remove()
check.finish()
