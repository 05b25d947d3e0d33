-- test_sample.lua - the sampler against its rules written in plain Lua: ban, repetition penalty,
-- temperature, top-k, top-p, greedy ties, the reported log-probability, the random key, and the
-- frequencies of many draws.
--
--   ./segzero tests/unit/test_sample.lua

local ffi = require "ffi"
local check = require "tests.support.check"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"

local C = sz.core.C
local VOCAB = 23
local DRAWS = 400               -- draws a row where the temperature is not 0

local function uniform(i) return C.sz_random_uniform(check.seed, i, 0, 7) end

local function make_logits(rows, spread)
  local values = {}
  for r = 1, rows do
    values[r] = {}
    for j = 1, VOCAB do values[r][j] = spread * (uniform(r * 100 + j) - 0.5) end
  end
  return values
end

-- ---- the rules in plain Lua ----

-- A greedy draw (temperature 0) leaves the logits undivided.
local function divisor(opts)
  if opts.temperature > 0 then return opts.temperature end
  return 1
end

-- The logit of a token that was seen, after the repetition penalty.
local function penalised(v, penalty)
  if v < 0 then return v * penalty end
  return v / penalty
end

local function contains(set, token)
  if not set then return false end
  return set[token]
end

-- The tokens that are not banned, best first: { token, v }, tokens from 0.
local function ranked(row, opts)
  local scored = {}
  for token = 0, VOCAB - 1 do
    local v = row[token + 1]
    if contains(opts.seen, token) then v = penalised(v, opts.penalty) end
    if not contains(opts.banned, token) then
      scored[#scored + 1] = { token = token, v = v / divisor(opts) }
    end
  end
  table.sort(scored, function(a, b)
    if a.v ~= b.v then return a.v > b.v end
    return a.token < b.token
  end)
  return scored
end

-- The tokens that survive ban, penalty, temperature, top-k and top-p, { token -> probability }, and
-- the best token.
local function survivors(row, opts)
  local scored = ranked(row, opts)

  -- top-k, and the unnormalised probabilities of the tokens it keeps
  local kept = {}
  local sum = 0
  for i, s in ipairs(scored) do
    if not opts.top_k or i <= opts.top_k then
      s.p = math.exp(s.v - scored[1].v)
      sum = sum + s.p
      kept[#kept + 1] = s
    end
  end

  -- top-p: the smallest set whose mass reaches top_p. A token stays while the mass before it is
  -- below top_p.
  local out = {}
  local mass = 0
  for i, s in ipairs(kept) do
    if i == 1 or not opts.top_p or mass / sum < opts.top_p then out[s.token] = s.p end
    mass = mass + s.p
  end

  local total = 0
  for _, p in pairs(out) do total = total + p end
  for token, p in pairs(out) do out[token] = p / total end
  return out, scored[1].token
end

-- The trainer's log-probability: plain softmax(logits / temperature) over the whole vocabulary.
local function log_probability(row, token, opts)
  local t = divisor(opts)
  local top = -math.huge
  local sum = 0
  for _, v in ipairs(row) do top = math.max(top, v / t) end
  for _, v in ipairs(row) do sum = sum + math.exp(v / t - top) end
  return row[token + 1] / t - top - math.log(sum)
end

-- ---- the sampler ----

-- A set of tokens as n rows of one byte per token; nil without a set.
local function bytes(set, n)
  if not set then return nil end
  local b = ffi.new("uint8_t[?]", n * VOCAB)
  for r = 0, n - 1 do
    for j in pairs(set) do b[r * VOCAB + j] = 1 end
  end
  return b
end

-- One draw for each row of logits: a list of { token, logprob }.
local function draw(values, opts, position)
  local rows = #values
  local logits = tensor.new(values)
  local settings = ffi.new("sz_sampling", {
    opts.temperature, opts.top_k or 0, opts.top_p or 1, opts.penalty or 1, opts.seed or 5,
  })

  local row_id = ffi.new("int64_t[?]", rows)
  local answer = ffi.new("int32_t[?]", rows)
  local at = ffi.new("int32_t[?]", rows)
  for i = 0, rows - 1 do
    row_id[i] = opts.row or i
    answer[i] = opts.answer or 0
    at[i] = position or 0
  end

  local banned = bytes(opts.banned, 1)
  local seen = bytes(opts.seen, rows)
  local token = ffi.new("int32_t[?]", rows)
  local logprob = ffi.new("float[?]", rows)
  sz.core.check(C.sz_sample(logits.ptr, settings, banned, seen, row_id, answer, at, token, logprob))
  local out = {}
  for i = 0, rows - 1 do out[i + 1] = { token = token[i], logprob = logprob[i] } end
  return out
end

-- ---- every setting ----

local values = make_logits(8, 8)

local function token_set(...)
  local set = {}
  for _, token in ipairs { ... } do set[token] = true end
  return set
end

local SETTINGS = {
  { name = "plain", temperature = 1 },
  { name = "cold", temperature = 0.5 },
  { name = "hot", temperature = 3 },
  { name = "top-k", temperature = 1, top_k = 3 },
  { name = "top-k 1", temperature = 1, top_k = 1 },
  { name = "top-p", temperature = 1, top_p = 0.6 },
  { name = "tiny top-p", temperature = 1, top_p = 1e-6 },
  { name = "top-k and top-p", temperature = 1.5, top_k = 6, top_p = 0.8 },
  { name = "banned", temperature = 1, banned = token_set(0, 5, 22) },
  { name = "penalty", temperature = 1, penalty = 1.8, seen = token_set(1, 2, 9) },
  { name = "greedy", temperature = 0 },
  { name = "greedy, penalty and ban", temperature = 0, penalty = 3, seen = token_set(4, 11),
    banned = token_set(7) },
}

-- Checks the first draw of each row.
local function check_first(opts)
  for r, got in ipairs(draw(values, opts, 1)) do
    local want = log_probability(values[r], got.token, opts)
    check.near(got.logprob, want, 1e-5, opts.name .. ": log-probability")
    if opts.temperature == 0 then
      local _, best = survivors(values[r], opts)
      check.equal(got.token, best, opts.name .. ": the best token")
    end
  end
end

-- Checks that the frequencies of DRAWS draws a row are the probabilities, within five standard
-- deviations, and that no other token was drawn.
local function check_frequencies(opts)
  local counts = {}
  for r in ipairs(values) do counts[r] = {} end
  for n = 1, DRAWS do
    for r, got in ipairs(draw(values, opts, n)) do
      counts[r][got.token] = (counts[r][got.token] or 0) + 1
    end
  end

  for r, count in ipairs(counts) do
    local allowed = survivors(values[r], opts)
    for token in pairs(count) do
      if not allowed[token] then
        check.ok(false, ("%s: token %d should not survive"):format(opts.name, token))
      end
    end
    for token, p in pairs(allowed) do
      local frequency = (count[token] or 0) / DRAWS
      local deviation = math.sqrt(p * (1 - p) / DRAWS)
      local text = ("%s: row %d token %d drawn %.3f, expected %.3f"):format(opts.name, r, token,
        frequency, p)
      check.ok(math.abs(frequency - p) <= 5 * deviation + 1e-9, text)
    end
  end
end

for _, opts in ipairs(SETTINGS) do
  check.case("draws: " .. opts.name, function()
    check_first(opts)
    if opts.temperature > 0 then check_frequencies(opts) end
  end)
end

-- ---- ties, the random key, errors ----

check.case("greedy ties go to the lowest index", function()
  local row = {}
  for j = 1, VOCAB do row[j] = 0 end
  row[1] = 1
  row[2] = 3
  row[3] = 3
  row[4] = 2
  row[5] = 3
  check.equal(draw({ row }, { temperature = 0 })[1].token, 1, "greedy ties")
end)

check.case("the key alone decides a draw", function()
  local function draw_answer(rows, answer)
    return draw(rows, { temperature = 2, row = 3, answer = answer }, 9)
  end
  local first = draw_answer(values, 2)
  local again = draw_answer({ values[1], values[1] }, 2)
  check.equal(again[1].token, first[1].token, "the same key and logits give the same token")
  check.equal(again[2].token, first[1].token, "the place in the batch does not matter")
  local differs = false
  for answer = 0, 9 do
    if draw_answer({ values[1] }, answer)[1].token ~= first[1].token then differs = true end
  end
  check.ok(differs, "another answer draws another number")
end)

check.case("Philox-4x32-10 on the published counter and key of all ones", function()
  local bits = ffi.new "uint32_t[4]"
  C.sz_random_bits(0xffffffffffffffffULL, 0xffffffffffffffffULL, 0xffffffff, 0xffffffff, bits)
  local words = {}
  for i = 0, 3 do words[i + 1] = ("%08x"):format(tonumber(bits[i])) end
  check.equal(table.concat(words, " "), "408f276d 41c83b0e a20bc7c6 6d5451fd",
    "Philox known answer")
end)

check.case("a ban on every token is an error, not a token", function()
  local all = {}
  for j = 0, VOCAB - 1 do all[j] = true end
  check.raises(function() draw(values, { temperature = 1, banned = all }) end, "",
    "everything banned")
end)

check.finish()
