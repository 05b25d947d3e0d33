-- test_scheduler.lua - which answers are in the cache at a time: whatever the cache's size, answers
-- are token for token those of a prompt alone; ranges of blocks never overlap and moves keep their
-- content; callbacks; each image is embedded once.
--
--   ./segzero tests/unit/test_scheduler.lua         SEED=n: other block ranges
--
-- Leaves out: the sampler's options (test_generate.lua).

local ffi = require "ffi"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local blocks = require "segzero.inference.kv_blocks"
local rollout = require "segzero.inference.rollout"
local scheduler = require "segzero.inference.scheduler"
local tensor = require "segzero.core.tensor"
local vision_cache = require "segzero.inference.vision_cache"

-- ---- ranges, against a cache that is a Lua table ----

local TOTAL = 40

-- A pool of TOTAL blocks with random inserts, removals and growth.
local function new_simulation()
  local sim = { content = {}, live = {}, arranged = 0, grown = 0 }
  local content = sim.content
  sim.pool = blocks.new(TOTAL, function(to, from, n)
    local copy = {}
    for i = 0, n - 1 do copy[i] = content[from + i] end
    for i = 0, n - 1 do content[to + i] = copy[i] end
  end)
  return sim
end

local function used_blocks(sim)
  local sum = 0
  for _, r in ipairs(sim.live) do sum = sum + r.used end
  return sum
end

local function insert(sim, step, free)
  local r = { name = "r" .. step, used = math.random(math.min(5, free)) }
  if not sim.pool:insert(r, r.used) then
    for _, x in ipairs(sim.live) do x.wanted = x.used end
    r.wanted = r.used
    sim.pool:arrange { r }
    sim.arranged = sim.arranged + 1
  end
  sim.live[#sim.live + 1] = r
  for i = 0, r.used - 1 do sim.content[r.start + i] = r.name .. "." .. i end
end

-- Makes room for one more block of r. Some ranges get more than they need, so that those after them
-- move up.
local function rearrange(sim, r, free)
  local spare = free - 1
  for _, x in ipairs(sim.live) do
    x.wanted = x.used
    if x == r then x.wanted = x.wanted + 1 end
    local more = math.random(0, spare)
    x.wanted = x.wanted + more
    spare = spare - more
  end
  sim.pool:arrange()
  sim.arranged = sim.arranged + 1
end

local function grow(sim, free)
  local r = sim.live[math.random(#sim.live)]
  if r.used < r.room or sim.pool:grow(r, r.used + 1) then
    sim.grown = sim.grown + 1
  else
    rearrange(sim, r, free)
  end
  r.used = r.used + 1
  local last = r.used - 1
  sim.content[r.start + last] = r.name .. "." .. last
end

-- What is wrong with the ranges; nil if nothing is.
local function fault(sim)
  local stop = 0
  for _, r in ipairs(sim.pool.ranges) do
    if r.start < stop or r.room < r.used then return "ranges overlap" end
    stop = r.start + r.room
    for i = 0, r.used - 1 do
      local want = r.name .. "." .. i
      if sim.content[r.start + i] ~= want then return ("block %d of %s"):format(i, r.name) end
    end
  end
  if stop > TOTAL then return "past the end" end
  return nil
end

check.case("block ranges keep apart and keep their content", function()
  math.randomseed(tonumber(os.getenv "SEED" or "") or 7)
  local sim = new_simulation()
  local wrong
  for step = 1, 3000 do
    local free = TOTAL - used_blocks(sim)
    local live = #sim.live
    local action = math.random(4)
    if action == 1 and free > 0 then
      insert(sim, step, free)
    elseif action == 2 and live > 0 then
      sim.pool:remove(table.remove(sim.live, math.random(live)))
    elseif action == 3 and live > 0 and free > 0 then
      grow(sim, free)
    end
    local found = fault(sim)
    if found and not wrong then wrong = ("step %d: %s"):format(step, found) end
  end
  check.equal(wrong, nil, "ranges")
  local moved = sim.pool.moved
  local counts = ("arranged %d, grown %d, moved %d"):format(sim.arranged, sim.grown, moved)
  check.ok(sim.arranged > 50 and sim.grown > 50 and moved > 500, counts)
end)

-- ---- prompts and answers ----

local place = mini.folder()
local vl = sz.qwen_vl(mini.write(place .. "/model"))

local function text_prompt(text)
  return vl:process { { role = "user", content = { { type = "text", text = text } } } }
end

local inputs = {
  mini.input(vl, 1),
  mini.input(vl, 2),
  mini.input(vl, 3),
  vl:process { { role = "user", content = "Where is it?" } },
  text_prompt(("a longer question, without an image "):rep(6)),
  mini.input(vl, 6,
    "and an image with other words that make this prompt longer than the others are"),
}
local ROW_IDS = { 21, 22, 23, 24, 25, 26 }

local longest = 0
for _, input in ipairs(inputs) do longest = math.max(longest, #input.input_ids) end
local least = 16 * (math.ceil(longest / 16) + 4)        -- rows of the smallest cache that works

-- The cache_gib of a cache of n rows.
local function gib_of(n) return n * rollout.row_bytes(vl) / 2 ^ 30 end

local function copy(t)
  local out = {}
  for k, v in pairs(t) do out[k] = v end
  return out
end

-- Answers to changes.inputs, or to all prompts. Seed 10: with 9 one random number of 35,000 is 4e-8
-- from the boundary of two tokens, and the f32 sums of a larger batch differ by more.
local function sampled(changes)
  local o = { n = 4, max_new_tokens = 60, seed = 10, row_ids = ROW_IDS, temperature = 1 }
  for k, v in pairs(changes or {}) do o[k] = v end
  local list = o.inputs or inputs
  o.inputs = nil
  return rollout.generate(vl, list, o)
end

-- Answers as text: ids, finish and text of each.
local function described(answers)
  local out = {}
  for i, a in ipairs(answers) do
    out[i] = table.concat(a.ids, " ") .. " " .. a.finish .. " " .. a.text
  end
  return out
end

-- ---- answers, whatever the cache's size ----

-- The answers to each prompt alone.
local function alone(settings)
  local out = {}
  for i, input in ipairs(inputs) do
    local o = copy(settings)
    o.inputs = { input }
    o.row_ids = { ROW_IDS[i] }
    out[i] = sampled(o)[1]
  end
  return out
end

-- Rounding. The largest difference was 1.4e-5 on avx2, 1.8e-5 on avx512 and amx, and 2.2e-5 on
-- baseline.
local kind = ffi.string(sz.core.C.sz_processor_name(sz.core.C.sz_processor_chosen()))
local tolerance = kind == "baseline" and 2.5e-5 or 2e-5

-- Samples all prompts in a cache of limit.rows with at most limit.running answers at once and
-- compares them with those of each prompt alone. Returns the scheduler's statistics.
local function check_limit(settings, limit, want)
  local most_running = scheduler.MAX_RUNNING
  scheduler.MAX_RUNNING = limit.running or most_running
  local name = ("n = %d, %d rows, %d at once"):format(settings.n, limit.rows,
    scheduler.MAX_RUNNING)
  local texts = {}
  local o = copy(settings)
  o.cache_gib = gib_of(limit.rows)
  function o.on_text(k, piece, i)
    local key = i .. "." .. k
    texts[key] = (texts[key] or "") .. piece
  end
  local got, stats = sampled(o)

  local tokens = 0
  for i, answers in ipairs(got) do
    check.equal(described(answers), described(want[i]), name .. ", row " .. i)
    for k, a in ipairs(answers) do
      tokens = tokens + #a.ids
      check.equal(texts[i .. "." .. k] or "", a.text, name .. ": on_text")
      -- A preempted answer is computed again in one stream instead of token by token, and many rows
      -- are another product: f32 sums in another order.
      check.near(a.logprobs, want[i][k].logprobs, tolerance, name .. ": log-probabilities")
    end
  end
  check.equal(stats.tokens, tokens, name .. ": tokens counted")
  check.ok(stats.peak_running <= scheduler.MAX_RUNNING, name .. ": at once")
  scheduler.MAX_RUNNING = most_running
  return stats
end

local LIMITS = {
  { rows = least },
  { rows = least + 32 },
  { rows = 2 * least },
  { rows = 4 * least, running = 3 },
  { rows = 65536, running = 2 },
  { rows = 65536 },
}
local SETTINGS = {
  { "one answer", { n = 1 } },
  { "four answers", { n = 4 } },
  { "sixteen answers", { n = 16, max_new_tokens = 24 } },
  { "greedy answers", { n = 4, temperature = 0 } },
  { "stop strings", { n = 4, stop_strings = { "a", "e ", "the", "1" } } },
  { "a repetition penalty", { n = 3, repetition_penalty = 1.3 } },
  { "one token", { n = 2, max_new_tokens = 1 } },
  { "no end of sequence", { n = 5, ignore_eos = true } },
}
for _, row in ipairs(SETTINGS) do
  local settings = row[2]
  check.case("answers do not depend on the cache's size: " .. row[1], function()
    local want = alone(settings)
    local refills = 0
    local preemptions = 0
    local moved = 0
    for _, limit in ipairs(LIMITS) do
      local stats = check_limit(settings, limit, want)
      refills = refills + stats.refills
      preemptions = preemptions + stats.preemptions
      moved = moved + stats.moved_rows
    end
    if settings.n > 1 and settings.max_new_tokens ~= 1 then
      check.ok(refills > 0, ("n = %d: %d refills"):format(settings.n, refills))
    end
    if settings.n == 5 then
      local counts = ("%d preempted, %d rows moved"):format(preemptions, moved)
      check.ok(preemptions > 0 and moved > 0, counts)
    end
  end)
end

check.case("the cache keeps its size", function()
  vl:release_cache()
  vl.kv = nil
  local _, stats = sampled { cache_gib = gib_of(2 * least), ignore_eos = true }
  local most_rows = math.ceil(2 * least * 1.0625 / 256) * 256
  check.ok(vl.kv:rows() <= most_rows, "the cache has its size")
  local peak = stats.peak_running
  check.ok(peak > 2 and peak < 24, "and more run than whole answers would fit: " .. peak)
end)

-- ---- callbacks ----

check.case("on_answer and on_group get each answer once, as it ends", function()
  local seen = {}
  local count = 0
  local groups = {}
  local early = false
  local whole = sampled {
    n = 4,
    cache_gib = gib_of(3 * least),
    on_answer = function(i, a, k)
      local new = seen[i .. "." .. k] == nil
      local ended = a.finish and a.text and #a.ids == #a.logprobs
      check.ok(new and ended, "an answer that has ended, once")
      if new then count = count + 1 end
      seen[i .. "." .. k] = a
    end,
    on_group = function(i, answers)
      check.equal(#answers, 4, "a whole group")
      groups[i] = answers
      early = early or count < 24
      -- The callback may compute: its tensors are its own.
      tensor.step(function() tensor.zeros { 8 } end)
    end,
  }
  for i, answers in ipairs(whole) do
    check.ok(groups[i] == answers, "on_group has what is returned")
    for k, a in ipairs(answers) do check.ok(seen[i .. "." .. k] == a, "on_answer too") end
  end
  check.ok(early, "the first group is handed out while others decode")
end)

for _, name in ipairs { "on_answer", "on_group", "on_token", "on_text" } do
  check.case("an error in " .. name .. " leaves the sampler usable", function()
    local expected = described(sampled()[1])
    local calls = 0
    local function fail()
      calls = calls + 1
      if calls == 3 then error("no more") end
    end
    check.raises(function() sampled { cache_gib = gib_of(2 * least), [name] = fail } end,
      "no more", name .. " that fails")
    check.equal(sz.core.C.sz_scope_depth(), 0, "no scope is left open")
    check.equal(sz.core.C.sz_grad_enabled(), 1, "recording is on again")
    check.equal(described(sampled()[1]), expected, "and sampling goes on working")
  end)
end

check.case("an interrupt leaves the sampler usable", function()
  local expected = described(sampled()[1])
  local function interrupt() sz.core.C.sz_interrupt_set(1) end
  check.raises(function() sampled { on_answer = interrupt } end, "interrupted", "an interrupt")
  check.equal(described(sampled()[1]), expected, "and afterwards")
end)

-- ---- images ----

-- Five rows with two different images: rows 1, 3 and 4 share one, row 5 has none.
local function shared_images()
  local one = mini.input(vl, 1)
  local two = mini.input(vl, 2)
  local asked = mini.input(vl, 1, "another question")
  return { one, two, asked, mini.input(vl, 1), inputs[4] }
end
local FIVE_IDS = { 1, 2, 3, 4, 5 }

local function images_of(changes)
  local _, stats = sampled(changes)
  return stats.images
end

check.case("rows share the features of the same image", function()
  local rows = shared_images()
  local images = images_of { inputs = rows, row_ids = FIVE_IDS }
  check.equal(images, 2, "an image in three rows goes through the tower once")
  for _, limit in ipairs { least, 65536 } do
    local got, stats = sampled {
      inputs = rows, row_ids = FIVE_IDS, cache_gib = gib_of(limit), max_new_tokens = 20,
    }
    check.ok(stats.images >= 2, "images")
    for i, input in ipairs(rows) do
      local single = sampled { inputs = { input }, row_ids = { i }, max_new_tokens = 20 }
      check.equal(described(got[i]), described(single[1]), "row " .. i .. " with a shared image")
    end
  end
  local changed = mini.input(vl, 1)
  local pixels = tensor.data(changed.pixel_values)
  pixels[77] = pixels[77] + 1
  check.equal(images_of { inputs = { rows[1], changed } }, 2,
    "one number that differs makes another image")
end)

check.case("kept vision features are used again", function()
  local rows = shared_images()
  sampled { inputs = rows, keep_vision = true }
  local same = vision_cache.get(vl, rows[1]) == vision_cache.get(vl, rows[3])
  check.ok(vision_cache.holds(rows[1]) and same, "rows with one image hold one result")
  check.ok(not vision_cache.holds(rows[5]), "a row without an image holds none")
  check.equal(images_of { inputs = rows, row_ids = FIVE_IDS }, 0,
    "held results are not computed again")

  local mixed = { rows[2], mini.input(vl, 3), rows[5], rows[3] }
  tensor.no_grad(function()
    local joined = vl:vision(mixed):totable()
    vision_cache.free { rows[2], rows[3] }
    local computed = vl:vision(mixed):totable()
    -- The same products over other numbers of rows.
    for i = 1, #computed do
      check.near(joined[i], computed[i], 1e-5, "held and computed, row " .. i)
    end
  end)
  vision_cache.free(rows)
end)

mini.remove()
check.finish()
