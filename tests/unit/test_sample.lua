-- test_sample.lua - the sampler against a plain Lua reading of its rules: ban, repetition penalty, temperature, top-k, top-p,
-- greedy ties, the reported log-probability, the random key, and the frequencies of many draws.

local ffi = require "ffi"
local check = require "tests.support.check"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"

local C = sz.core.C
local VOCAB = 23

local function uniform(i) return C.sz_random_uniform(check.seed, i, 0, 7) end

local function make_logits(rows, spread)
  local values = {}
  for r = 1, rows do
    values[r] = {}
    for j = 1, VOCAB do values[r][j] = spread * (uniform(r * 100 + j) - 0.5) end
  end
  return values
end

-- What survives ban, penalty, temperature, top-k and top-p: {token -> probability}, tokens from 0.
local function survivors(row, opts)
  local scored = {}
  for j = 1, VOCAB do
    local v = row[j]
    if opts.seen and opts.seen[j - 1] then v = v < 0 and v * opts.penalty or v / opts.penalty end
    if not (opts.banned and opts.banned[j - 1]) then scored[#scored + 1] = { token = j - 1, v = v / (opts.temperature > 0 and opts.temperature or 1) } end
  end
  table.sort(scored, function(a, b) return a.v > b.v or a.v == b.v and a.token < b.token end)
  local kept, sum = {}, 0
  for i, s in ipairs(scored) do
    if not opts.top_k or i <= opts.top_k then
      s.p = math.exp(s.v - scored[1].v)
      sum = sum + s.p
      kept[#kept + 1] = s
    end
  end
  local out, mass = {}, 0
  for i, s in ipairs(kept) do
    -- The smallest set whose mass reaches top_p: a token stays while the mass before it is below.
    if i == 1 or not opts.top_p or mass / sum < opts.top_p then out[s.token] = s.p end
    mass = mass + s.p
  end
  local total = 0
  for _, p in pairs(out) do total = total + p end
  for token, p in pairs(out) do out[token] = p / total end
  return out, scored[1].token
end

local function draw(values, opts, position)
  local rows = #values
  local logits = tensor.new(values)
  local settings = ffi.new("sz_sampling", { opts.temperature, opts.top_k or 0, opts.top_p or 1, opts.penalty or 1, opts.seed or 5 })
  local function bytes(set, n)
    if not set then return nil end
    local b = ffi.new("uint8_t[?]", n * VOCAB)
    for r = 0, n - 1 do
      for j in pairs(set) do b[r * VOCAB + j] = 1 end
    end
    return b
  end
  local row_id, answer, at = ffi.new("int64_t[?]", rows), ffi.new("int32_t[?]", rows), ffi.new("int32_t[?]", rows)
  for i = 0, rows - 1 do row_id[i], answer[i], at[i] = opts.row or i, opts.answer or 0, position or 0 end
  local token, logprob = ffi.new("int32_t[?]", rows), ffi.new("float[?]", rows)
  sz.core.check(C.sz_sample(logits.ptr, settings, bytes(opts.banned, 1), bytes(opts.seen, rows), row_id, answer, at, token, logprob))
  local out = {}
  for i = 0, rows - 1 do out[i + 1] = { token = token[i], logprob = logprob[i] } end
  return out
end

local values = make_logits(8, 8)
local cases = {
  { name = "plain", temperature = 1 }, { name = "cold", temperature = 0.5 }, { name = "hot", temperature = 3 },
  { name = "top-k", temperature = 1, top_k = 3 }, { name = "top-k 1", temperature = 1, top_k = 1 }, { name = "top-p", temperature = 1, top_p = 0.6 },
  { name = "tiny top-p", temperature = 1, top_p = 1e-6 }, { name = "top-k and top-p", temperature = 1.5, top_k = 6, top_p = 0.8 },
  { name = "banned", temperature = 1, banned = { [0] = true, [5] = true, [22] = true } },
  { name = "penalty", temperature = 1, penalty = 1.8, seen = { [1] = true, [2] = true, [9] = true } },
  { name = "greedy", temperature = 0 }, { name = "greedy, penalty and ban", temperature = 0, penalty = 3, seen = { [4] = true, [11] = true }, banned = { [7] = true } },
}
for _, opts in ipairs(cases) do
  local counts, draws = {}, opts.temperature == 0 and 1 or 400
  for n = 1, draws do
    for r, got in ipairs(draw(values, opts, n)) do
      local allowed, best = survivors(values[r], opts)
      if n == 1 then
        -- The log-probability is the trainer's: plain softmax(logits / temperature) over the whole vocabulary.
        local t, top, sum = opts.temperature > 0 and opts.temperature or 1, -math.huge, 0
        for _, v in ipairs(values[r]) do top = math.max(top, v / t) end
        for _, v in ipairs(values[r]) do sum = sum + math.exp(v / t - top) end
        check.near(got.logprob, values[r][got.token + 1] / t - top - math.log(sum), 1e-5, opts.name .. ": log-probability")
        if opts.temperature == 0 then check.equal(got.token, best, opts.name .. ": the best token") end
      end
      if opts.temperature > 0 and not allowed[got.token] then check.ok(false, ("%s: token %d should not survive"):format(opts.name, got.token)) end
      counts[r] = counts[r] or {}
      counts[r][got.token] = (counts[r][got.token] or 0) + 1
    end
  end
  if opts.temperature > 0 then
    -- Frequencies of 400 draws a row: five standard deviations.
    for r, count in ipairs(counts) do
      for token, p in pairs((survivors(values[r], opts))) do
        local seen = (count[token] or 0) / draws
        check.ok(math.abs(seen - p) <= 5 * math.sqrt(p * (1 - p) / draws) + 1e-9, ("%s: row %d token %d drawn %.3f, expected %.3f"):format(opts.name, r, token, seen, p))
      end
    end
  end
end

-- Ties go to the lowest index; the key alone decides a draw.
check.equal(draw({ { 1, 3, 3, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 } }, { temperature = 0 })[1].token, 1, "greedy ties")
local first = draw(values, { temperature = 2, row = 3, answer = 2 }, 9)
local again = draw({ values[1], values[1] }, { temperature = 2, row = 3, answer = 2 }, 9)
check.equal(again[1].token, first[1].token, "the same key and logits give the same token")
check.equal(again[2].token, first[1].token, "the place in the batch does not matter")
local differs = false
for answer = 0, 9 do differs = differs or draw({ values[1] }, { temperature = 2, row = 3, answer = answer }, 9)[1].token ~= first[1].token end
check.ok(differs, "another answer draws another number")

-- Philox-4x32-10 on the published counter and key of all ones.
local bits = ffi.new "uint32_t[4]"
C.sz_random_bits(0xffffffffffffffffULL, 0xffffffffffffffffULL, 0xffffffff, 0xffffffff, bits)
check.equal(("%08x %08x %08x %08x"):format(tonumber(bits[0]), tonumber(bits[1]), tonumber(bits[2]), tonumber(bits[3])),
  "408f276d 41c83b0e a20bc7c6 6d5451fd", "Philox known answer")

-- Everything banned is an error, not a token.
local all = {}
for j = 0, VOCAB - 1 do all[j] = true end
check.raises(function() draw(values, { temperature = 1, banned = all }) end, "", "everything banned")

check.finish()
