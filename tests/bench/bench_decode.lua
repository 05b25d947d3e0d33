-- bench_decode.lua - decoding as a part of the memory's bandwidth, in medians: bench.lua measures
-- the bandwidth once and all steps together, and on a shared machine both drift within a second.
--
--   ./segzero tests/bench/bench_decode.lua [model=FILE.json|3b] [dtype=bf16|int8|int4|f32] [n=1]
--       [prompt=1000] [steps=60] [threads=1] [clock=wall|cpu]
--
-- n answers to one prompt of text are decoded together, with random weights. After every sixth step
-- the bandwidth is measured: 256 MiB summed, or read by a one-row product, whichever is faster.
-- Prints one JSON object a line:
--   decode_ms      a step; the median
--   decode_tokens  tokens/s of all answers; limit: weights and cache are read once in each step, at
--                  the median bandwidth. ratio is the part of the bandwidth
-- Leaves out: images, prefill, the limits of arithmetic (bench.lua).

local ffi = require "ffi"
local tensor = require "segzero.core.tensor"
local model = require "segzero.models.qwen_vl"
local rollout = require "segzero.inference.rollout"
local bench = require "tests.bench.bench_work"

local BYTES = 2 ^ 28
local COLUMNS = 4096
local EVERY = 6 -- steps between two measurements of the bandwidth
local WARM = 3  -- steps that do not count

local opts = bench.options({ model = "tests/bench/bench_wide.json", dtype = "bf16", n = "1",
  prompt = "1000", steps = "60", threads = "1" },
  { model = true, dtype = true, n = true, prompt = true, steps = true, threads = true,
    clock = true })
local function whole(key, least)
  local value = tonumber(opts[key])
  if value and value >= least and value % 1 == 0 then return value end
  error(("bench_decode: %s=%s must be a whole number of at least %d"):format(key, opts[key], least),
    0)
end
local n, prompt, steps = whole("n", 1), whole("prompt", 1), whole("steps", 2 * EVERY)
local now = bench.clock(opts)

local config = bench.config(opts.model)
if not config then
  error(("bench_decode: model=%s is neither a FILE.json nor a released size"):format(opts.model), 0)
end
local vl = model.random(config, { dtype = opts.dtype, seed = 1, repeated = true })

local weight = tensor.empty({ BYTES / 4 / COLUMNS, COLUMNS }, {})
ffi.fill(tensor.data(weight), BYTES, 1)
local row = tensor.zeros({ 1, COLUMNS }, {})

-- bench.read_rate would open a step of its own, in the middle of the answers'.
local function seconds(f)
  local start = now()
  f():free()
  return now() - start
end

local function read_rate()
  local sum = seconds(function() return weight:sum() end)
  local product = seconds(function() return row:linear(weight, nil) end)
  return BYTES / math.min(sum, product)
end

local function median(values)
  table.sort(values)
  return values[math.ceil(#values / 2)]
end

local times, rates = {}, {}
local last
rollout.generate(vl, { bench.text(vl, prompt) }, { n = n, temperature = 0, max_new_tokens = steps,
  ignore_eos = true,
  on_token = function(answer)
    if answer.index ~= n then return end
    if last and #answer.ids > WARM then times[#times + 1] = now() - last end
    last = nil
    if #answer.ids % EVERY == 0 then rates[#rates + 1] = read_rate()
    else last = now() end
  end })

-- On average half of the answers is in the cache.
local bytes = bench.step_bytes(vl, opts.dtype, prompt + n * steps / 2)
local step = median(times)
bench.emit("decode_ms", step * 1000, "ms")
bench.emit("decode_tokens", n / step, "tokens/s", { limit = n * median(rates) / bytes })
