-- bench_attention.lua - the rate of attention, forward and backward, next to that of a product of
-- [1024, 1024] measured in between. The product is of bf16 if attention is and the processor
-- multiplies it.
--
--   ./segzero tests/bench/bench_attention.lua [threads=1] [clock=cpu] [only=NAME] [best=5]
--       [dtype=f32|bf16]
--
-- Prints one JSON object a line: GFLOP/s of each shape, `limit` the rate of the product. Two
-- operations for each multiply-add; the backward pass counts its five products. The median of the
-- ratios of `best` pairs is given, because the speed of a shared machine drifts. `us` is
-- microseconds. decode_A_P_K is A answers of one query each, over a prompt of P keys and K keys of
-- their own. It goes through the caches of 40 layers, so that keys come from memory, and gives one
-- layer's time.
-- Left out: decoding of a whole model (bench.lua).

local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local bench = require "tests.bench.bench_work"

local C = core.C
local opts = bench.options({ threads = "1", best = "5", dtype = "f32" },
  { threads = true, clock = true, only = true, best = true, dtype = true })
local now = bench.clock(opts)

-- ---- shapes: heads, key and value heads, width of a head, causal, segments ----
-- `count` equal segments of `length` rows.
local function windows(count, length)
  local rows = {}
  for i = 0, count - 1 do rows[i + 1] = { i * length, length, i * length, length, 0, 0 } end
  return rows, count * length
end

-- A prompt and its answers.
local function group(prompt, answers, length)
  local rows = { { 0, prompt, 0, prompt, 0, 0 } }
  for i = 0, answers - 1 do
    local start = prompt + i * length
    rows[i + 2] = { start, length, start, length, 0, prompt }
  end
  return rows, prompt + answers * length
end

local SHAPES = {
  { "prompt_1024", 16, 2, 128, 1, windows(1, 1024) },
  { "prompt_4096", 4, 1, 128, 1, windows(1, 4096) },
  { "group_1000_8x128", 16, 2, 128, 1, group(1000, 8, 128) },
  { "group_64", 16, 2, 64, 1, group(1000, 8, 128) },
  { "vision_whole", 4, 4, 80, 0, windows(1, 3600) },
  { "vision_windows", 16, 16, 80, 0, windows(56, 64) },
  { "sam2_8x8", 1, 1, 96, 0, windows(512, 64) },
  { "sam2_4x4", 2, 2, 96, 0, windows(1024, 16) },
  { "sam2_14x14", 4, 4, 96, 0, windows(20, 196) },
  { "sam2_7x7", 8, 8, 96, 0, windows(80, 49) },
  { "sam2_whole", 2, 2, 96, 0, windows(1, 4096) },
  { "sam2_large_14x14", 8, 8, 72, 0, windows(20, 196) },
}

-- ---- measuring ----
-- Seconds of one run, with outputs in the arena.
local function time(f)
  local start
  local seconds
  tensor.step(function()
    start = now()
    f()
    seconds = now() - start
  end)
  return seconds
end

local function random(shape, dtype)
  local t = tensor.empty(shape, { dtype = dtype })
  core.check(C.sz_random_normal_(t.ptr, 1, #shape, 0, 1))
  return t
end

local side = 1024
local dtype = C.sz_processor_multiplies_bf16() == 1 and opts.dtype or "f32"
local a, b = random({ side, side }, dtype), random({ side, side }, dtype)
local function product() return 2 * side ^ 3 / time(function() a:linear(b) end) / 1e9 end

-- Runs f, which does `flops` operations `times` over (default 1), and the product in turn. Prints
-- the medians.
local function measure(name, flops, f, times)
  f()
  product()
  local rates, limits, ratios = {}, {}, {}
  for i = 1, tonumber(opts.best) do
    local limit = product()
    rates[i] = (times or 1) * flops / time(f) / 1e9
    limits[i] = (limit + product()) / 2
    ratios[i] = rates[i] / limits[i]
  end
  for _, list in ipairs { rates, limits, ratios } do table.sort(list) end
  local middle = math.ceil(#rates / 2)
  local row = '{"name": "%s", "value": %.1f, "unit": "GFLOP/s", "limit": %.1f, "ratio": %.3f, '
    .. '"us": %.1f}'
  local us = flops / rates[middle] / 1e3
  print(row:format(name, rates[middle], limits[middle], ratios[middle], us))
  io.flush()
end

-- Multiply-adds of one product of attention.
local function pairs_of(rows, causal)
  local n = 0
  for _, s in ipairs(rows) do
    local own = s[2] * s[4]
    if causal == 1 then own = s[2] * (s[2] + 1) / 2 end
    n = n + own + s[2] * s[6]
  end
  return n
end

for _, shape in ipairs(SHAPES) do
  local name, heads, groups, dim, causal, rows, length = unpack(shape)
  if not opts.only or opts.only == name then
    local qkv = random({ length, (heads + 2 * groups) * dim }, opts.dtype)
    local segments = tensor.new(rows, { dtype = "i32" })
    local flops = 2 * pairs_of(rows, causal) * heads * dim
    local scale = 1 / math.sqrt(dim)
    measure(name, 2 * flops, function()
      qkv:attention(segments, heads, groups, dim, causal, scale)
    end)
    local op = tensor.ops.attention
    local out, lse = op.call(qkv, segments, heads, groups, dim, causal, scale)
    local dout = random({ length, heads * dim }, opts.dtype)
    measure(name .. "_backward", 5 * flops, function()
      tensor.ops.attention_backward.call(qkv, segments, out, lse, dout, heads, groups, dim, causal,
        scale)
    end)
    for _, t in ipairs { qkv, segments, out, lse, dout } do t:free() end
  end
end

-- ---- decoding: answers, keys of the prompt, own keys of each answer ----
local LAYERS = 40
local HEADS, GROUPS, DIM = 16, 2, 128

for _, shape in ipairs { { 1, 1000, 20 }, { 8, 1000, 20 }, { 8, 100, 500 } } do
  local answers, prompt, own = unpack(shape)
  local name = ("decode_%d_%d_%d"):format(answers, prompt, own)
  if not opts.only or opts.only == name then
    local q = random({ answers, HEADS * DIM }, opts.dtype)
    local rows = {}
    local keys = {}
    local values = {}
    for i = 0, answers - 1 do rows[i + 1] = { i, 1, prompt + i * own, own, 0, prompt } end
    for i = 1, LAYERS do
      keys[i] = random({ prompt + answers * own, GROUPS * DIM }, opts.dtype)
      values[i] = random({ prompt + answers * own, GROUPS * DIM }, opts.dtype)
    end
    local segments = tensor.new(rows, { dtype = "i32" })
    local how = { heads = HEADS, kv_heads = GROUPS, head_dim = DIM, causal = true,
      scale = DIM ^ -0.5 }
    local flops = 4 * answers * (prompt + own) * HEADS * DIM
    measure(name, flops, function()
      for i = 1, LAYERS do q:attention_cached(keys[i], values[i], segments, how) end
    end, LAYERS)
    for _, list in ipairs { keys, values, { q, segments } } do
      for _, t in ipairs(list) do t:free() end
    end
  end
end
