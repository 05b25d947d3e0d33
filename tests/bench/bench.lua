-- bench.lua - times the phases of a model and compares them with limits of the machine that are
-- measured in the same run.
--
--   ./segzero tests/bench/bench.lua [model=FILE.json|3b|FOLDER] [dtype=f32|bf16|int8|int4]
--       [device=cpu|cuda] [threads=n] [clock=wall|cpu] [side=n] [python=PATH] [train_timed=n]
--       [only=prefill,vision,train,recompute,start]
--
-- model= is by default tests/bench/bench_model.json with random weights.
-- tests/bench/bench_wide.json has the widths and the vocabulary of the 3B release with 4 of its
-- layers and 8 blocks of its vision tower; 3b and 7b are whole releases; a Qwen2.5-VL folder is
-- loaded (SEGZERO_BENCH_MODEL names one too).
-- The prompt is bench_model.json's text around an 840 x 840 image: 1000 tokens. A model's file may
-- have its own `work` (tests/bench/bench_mini.json, for the emulator, where the usual sizes take
-- hours).
-- device=cuda measures the limits there, on larger matrices (side=). The clock waits for the
-- device. Decoding is timed with 1, 8 and 128 answers. device_memory is the peak over all phases,
-- because freed blocks are kept, next to what was free.
--
-- Prints one JSON object a line: {name, value, unit, limit, ratio}. ratio is the fraction of the
-- limit that is reached, 1 at best.
--   matmul_f32, matmul_bf16   GFLOP/s of a [2048, 2048] product through linear: the limit of work
--                             that computes
--   read_bandwidth            GB/s of summing 1 GiB, or of a one-row product with it if that is
--                             faster: the limit of work that reads weights
--   prefill_seconds           image and prompt into the cache, logits of the last position, one
--                             token sampled; the best of two. With int8 it may exceed its limit,
--                             which is that of f32 products
--   decode_1, decode_8        tokens/s after the prompt, all answers together; limit: weights and
--                             cache are read once in each decoding step
--   vision_seconds            the vision tower alone, forward
--   train_*                   forward and backward of one group: the prompt once, all answers,
--                             every parameter. tokens are the answers' tokens; positions count the
--                             prompt once for each answer, as a peer without sharing computes it
--   recompute_*               the same with activations recomputed in the backward pass
--   start_ms                  ./segzero -e ''; limit: the design's
-- Floating-point operations are those of the model's products (backward counts twice the forward),
-- without what is recomputed, so recomputation lowers the ratio.
-- Other programs disturb a measurement. So limits are measured again before each phase, and on a
-- busy machine threads=1 clock=cpu counts processor time instead of wall time.
-- With python= (a Python with torch and transformers) bench_torch.py does the same work on the same
-- device first, and its values are printed next to ours at the end: {name, value, unit, peer,
-- faster}. only=peer prints its values alone.
-- Left out: the optimizer, SAM2, reading checkpoints.

local cjson = require "cjson"
local files = require "segzero.core.files"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local model = require "segzero.models.qwen_vl"
local rollout = require "segzero.inference.rollout"
local bench = require "tests.bench.bench_work"
local flops = require "segzero.models.qwen_vl.flops"

local C = core.C

local opts = bench.options({ dtype = "f32", only = "prefill,vision,train,recompute,start",
  train_timed = "2",
  model = os.getenv "SEGZERO_BENCH_MODEL" or core.root .. "/tests/bench/bench_model.json" },
  { model = true, dtype = true, only = true, threads = true, clock = true, python = true,
    train_timed = true, device = true, side = true })
local wanted = {}
for name in opts.only:gmatch "[%w_]+" do wanted[name] = true end

local json, work = bench.config(opts.model)
work = work or select(2, bench.config(core.root .. "/tests/bench/bench_model.json"))
opts.device = opts.device or os.getenv "SEGZERO_DEVICE" or "cpu"
opts.threads = opts.threads or work.threads
if not work.decode_answers then
  work.decode_answers = { work.answers }
  if opts.device ~= "cpu" then work.decode_answers = { work.answers, 128 } end
end

-- ---- the peer ----
-- This comes first, before this process takes memory of the device.
local function peer_rows(f)
  local quoted = "'" .. opts.python .. "'"
  if os.execute(quoted .. " -c 'import torch, transformers' 2>/dev/null") ~= 0 then
    print(("skip: %s has no torch and transformers"):format(opts.python))
    return
  end
  local spec = os.tmpname()
  files.write(spec, cjson.encode { model = json, work = work })
  local phases = {}
  for _, name in ipairs { "prefill", "vision", "train" } do
    if wanted[name] or wanted.peer then
      if name == "prefill" then name = "matmul,prefill,decode" end
      phases[#phases + 1] = name
    end
  end
  local dtype = "bf16"
  if opts.dtype == "f32" then dtype = "f32" end
  local words = {
    quoted, ("'%s/tests/bench/bench_torch.py'"):format(core.root),
    "--device", opts.device, "--dtype", dtype, "--threads", opts.threads,
    "--train-timed", opts.train_timed, "--only", table.concat(phases, ","),
    "--spec", "'" .. spec .. "'",
  }
  if not json then words[#words + 1] = ("--model '%s'"):format(opts.model) end
  if opts.side then words[#words + 1] = "--side " .. opts.side end
  local rows, ended = bench.peer(table.concat(words, " "), f)
  os.remove(spec)
  return rows, ended
end

if opts.only == "peer" then
  if not opts.python then error("bench: only=peer needs python=", 0) end
  local _, ended = peer_rows(function(row) bench.compare({ row }, {}) end)
  os.exit(ended and 0 or 1)
end
local peer = opts.python and opts.python ~= "" and peer_rows()

local now = bench.clock(opts)
local best = bench.best
local causal_pairs = flops.causal_pairs

local results = {}

local function emit(name, value, unit, limit, lower_is_better)
  results[name] = value
  bench.emit(name, value, unit, { limit = limit, lower = lower_is_better })
end

-- ---- the work ----
local vl = json and model.random(json,
  { dtype = opts.dtype, device = opts.device, seed = 1, repeated = opts.device ~= "cpu" })
  or model.qwen_vl(opts.model, { dtype = opts.dtype, device = opts.device })
local counts = flops.counts(vl)
local input = bench.input(vl, { image = work.image_size, before = work.text_tokens_before,
  after = work.text_tokens_after })
local grid_h, grid_w = unpack(input.image_grid_thw[1], 2)
local prompt = #input.input_ids
local answers = work.answers
local answer_tokens = work.answer_tokens

-- Samples n greedy answers. Returns the seconds to the first token, and the seconds of a decoding
-- step after two warm-up steps.
local function generate(n)
  local start, first, from, last = now()
  rollout.generate(vl, { input },
    { n = n, temperature = 0, max_new_tokens = work.decode_tokens + 1, ignore_eos = true,
    on_token = function(a)
      if a.index ~= n then return end
      last = now()
      if #a.ids == 1 then first = last end
      if #a.ids == 3 then from = last end
    end })
  return first - start, (last - from) / (work.decode_tokens - 2)
end

local function bench_prefill()
  local rate = bench.flop_limit(opts.dtype)
  local operations = counts.vision(grid_h, grid_w) + counts.text(prompt, causal_pairs(prompt, 0), 1)
  generate(1)                                      -- warms up: pages, primitives, compiled Lua
  local bandwidth = bench.read_rate(2)
  local seconds_1, step_1 = generate(1)
  local runs = { { 1, step_1 } }
  local seconds = seconds_1
  for _, n in ipairs(work.decode_answers) do
    local first, step = generate(n)
    runs[#runs + 1] = { n, step }
    seconds = math.min(seconds, first)
  end
  emit("prefill_seconds", seconds, "s", operations / rate / 1e9, true)
  emit("prefill_tokens_per_second", prompt / seconds, "tokens/s", prompt * rate * 1e9 / operations)
  emit("prefill_rate", operations / seconds / 1e9, "GFLOP/s", rate)
  emit("read_bandwidth", bandwidth, "GB/s")
  for _, run in ipairs(runs) do
    local n = run[1]
    local step = run[2]
    -- on average half of the answer is in the cache
    local cached = prompt + n * (work.decode_tokens / 2)
    emit("decode_" .. n, n / step, "tokens/s",
      n * bandwidth * 1e9 / bench.step_bytes(vl, opts.dtype, cached))
  end
  emit("decode_group_speedup", results["decode_" .. runs[2][1]] / results.decode_1, "x", runs[2][1])
end

local function bench_vision()
  local operations = counts.vision(grid_h, grid_w)
  local rate = bench.flop_limit(opts.dtype)
  local seconds = best(2, function() tensor.no_grad(function() vl:vision { input } end) end)
  emit("vision_seconds", seconds, "s", operations / rate / 1e9, true)
end

-- Times forward and backward of the mean log-probability of one group.
local function train_once(lists, recompute)
  local stream = packing.stream({ { input = input, answers = lists } }, vl.image_token_id)
  local features = vl:vision({ input }, { recompute = recompute })
  local hidden = vl:hidden(stream, features, { rows = stream.rows, recompute = recompute })
  local lp = vl:logprob_of(hidden, stream.targets)
  local loss = lp:mean()
  loss:backward()
end

local function bench_train(prefix, recompute, times)
  local lists = {}
  for i = 1, answers do
    lists[i] = {}
    for k = 1, answer_tokens do lists[i][k] = bench.word(vl, 5000 + i * answer_tokens + k) end
  end
  local stream_tokens = prompt + answers * (answer_tokens - 1)
  local pairs_seen = causal_pairs(prompt, 0) + answers * causal_pairs(answer_tokens - 1, prompt)
  local operations = 3 * (counts.vision(grid_h, grid_w) + counts.text(stream_tokens, pairs_seen,
    answers * answer_tokens))
  vl:train()
  local rate = bench.flop_limit(opts.dtype)
  local seconds = best(times, function() train_once(lists, recompute) end)
  local limit = operations / rate / 1e9
  emit(prefix .. "tokens_per_second", answers * answer_tokens / seconds, "tokens/s",
    answers * answer_tokens / limit)
  emit(prefix .. "positions_per_second", answers * (answer_tokens + prompt) / seconds, "tokens/s")
  emit(prefix .. "rate", operations / seconds / 1e9, "GFLOP/s", rate)
end

local function bench_start()
  local program = "'" .. (arg[-1] or "./segzero") .. "'"
  local function run(command)
    local least = math.huge
    for _ = 1, 10 do
      local start = C.sz_seconds()
      os.execute(command)
      least = math.min(least, C.sz_seconds() - start)
    end
    return least
  end
  local shell = run "true"
  emit("start_ms", 1e3 * math.max(run(program .. " -e ''") - shell, 0), "ms", 50, true)
end

emit("matmul_f32", bench.matmul_rate("f32", 5), "GFLOP/s")
emit("matmul_bf16", bench.matmul_rate("bf16", 3), "GFLOP/s")
if wanted.start then bench_start() end
if wanted.prefill then bench_prefill() end
if wanted.vision then bench_vision() end
if wanted.train then bench_train("train_", false, 2) end
if wanted.recompute then bench_train("recompute_", true, 1) end
local used, free = bench.device_used()
if used then emit("device_memory", used, "GiB", free) end
if peer then bench.compare(peer, results) end
