-- bench.lua - speed of the model's phases beside the limits of the machine, measured in the same run.
--
--   ./segzero tests/bench.lua [model=FILE.json|FOLDER] [dtype=f32|bf16|int8] [threads=n] [clock=wall|cpu] [only=prefill,vision,train,recompute,start] [python=PATH] [train_timed=n]
--
-- The model is tests/bench_model.json with random weights, or that of model=: tests/bench_wide.json has the widths and the
-- vocabulary of the 3B release and 4 of its layers, 8 of its tower's blocks; a Qwen2.5-VL folder is loaded (SEGZERO_BENCH_MODEL=
-- names one too). The prompt is bench_model.json's text around an 840 x 840 picture: 1000 tokens.
-- One JSON object a line: {name, value, unit, limit, ratio}; ratio is the part of the limit that is reached, 1 at best.
--   matmul_f32, matmul_bf16   GFLOP/s of a [2048, 2048] product through linear: the limit of what computes
--   read_bandwidth            GB/s of summing 1 GiB, or of a one-row product with it, if faster: the limit of what reads weights
--   prefill_seconds           picture and prompt into the cache, logits of the last position, one token sampled; best of two;
--                             with int8 it may pass its limit, which is that of f32 products
--   decode_1, decode_8        tokens/s after the prompt, all answers together; limit: weights and cache read once a step
--   vision_seconds            the vision tower alone, forward
--   train_*                   forward and backward of one group: the prompt once, all answers, every parameter; tokens are the
--                             answers' tokens, positions also count the prompt once for each answer, as a peer without
--                             sharing computes it; recompute_*: the same with activations computed again in backward
--   start_ms                  ./segzero -e ''; limit: what the design asks for
-- Floating-point operations are those of the model's products (backward twice forward), not of what is computed again, so
-- recomputation and re-made logits lower the ratio. Other programs disturb: limits are measured again before each phase, and
-- on a busy machine threads=1 clock=cpu counts the processor's time instead of the wall's.
-- With python= (one that has torch and transformers) bench_torch.py runs too, and its values stand beside ours:
-- {name, value, peer, faster}. Left out: optimizer, SAM2, reading checkpoints.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.ffi"
local tensor = require "segzero.tensor"
local pack = require "segzero.pack"
local model = require "segzero.model"
local rollout = require "segzero.rollout"

local C = core.C

local opts = { dtype = "f32", only = "prefill,vision,train,recompute,start", train_timed = "2", model = os.getenv "SEGZERO_BENCH_MODEL" or core.root .. "/tests/bench_model.json" }
local known = { model = true, dtype = true, only = true, threads = true, clock = true, python = true, train_timed = true }
for _, word in ipairs(arg) do
  local key, v = word:match "^([%w_]+)=(.*)$"
  if not known[key] then error("bench: unknown option " .. word, 0) end
  opts[key] = v
end
local wanted = {}
for name in opts.only:gmatch "[%w_]+" do wanted[name] = true end

local spec = model.read_json(core.root .. "/tests/bench_model.json")
local work = spec.work
local folder = not opts.model:match "%.json$" and opts.model
local cfg = folder and model.read_json(folder .. "/config.json") or model.read_json(opts.model).model
local threads = tonumber(opts.threads) or work.threads
C.sz_set_threads(threads)

local results = {}

if opts.clock == "cpu" and threads ~= 1 then error("bench: clock=cpu needs threads=1", 0) end
local now = opts.clock == "cpu" and os.clock or C.sz_seconds

local function rounded(x) return tonumber(("%.4g"):format(x)) end

local function emit(name, value, unit, limit, lower_is_better)
  results[name] = value
  local parts = { ('{"name": "%s", "value": %s, "unit": "%s"'):format(name, rounded(value), unit) }
  if limit then
    local ratio = lower_is_better and limit / value or value / limit
    parts[2] = (', "limit": %s, "ratio": %.3f'):format(rounded(limit), ratio)
  end
  print(table.concat(parts) .. "}")
  io.flush()
end

-- Seconds of the fastest of n calls.
local function best(n, f)
  local least = math.huge
  for _ = 1, n do
    local start = now()
    tensor.step(f)
    least = math.min(least, now() - start)
  end
  return least
end

-- ---- limits ----
local SIDE = 2048
local READ_BYTES = 2 ^ 30

local function matmul_rate(dtype, times)
  local a, b = tensor.empty({ SIDE, SIDE }, { dtype = dtype }), tensor.empty({ SIDE, SIDE }, { dtype = dtype })
  for i, t in ipairs { a, b } do core.check(C.sz_random_normal_(t.ptr, 1, i, 0, 1)) end
  local seconds = best(times, function() a:linear(b) end)
  a:free()
  b:free()
  return 2 * SIDE ^ 3 / seconds / 1e9
end

local function read_rate(times)
  local t = tensor.empty { READ_BYTES / 4 }
  ffi.fill(tensor.data(t), READ_BYTES, 1)         -- touched: pages that were never written all share one
  local w, x = t:reshape(READ_BYTES / 16384, 4096, 0, 0), tensor.zeros { 1, 4096 }
  local seconds = math.min(best(times, function() t:sum() end), best(times, function() x:linear(w) end))
  for _, made in ipairs { w, x, t } do made:free() end
  return READ_BYTES / seconds / 1e9
end

-- What the products of this dtype could reach: bf16 is widened where the CPU has no bf16 products.
local function flop_limit()
  local f32 = matmul_rate("f32", 3)
  return opts.dtype ~= "f32" and math.max(f32, matmul_rate("bf16", 3)) or f32
end

-- ---- operations and bytes ----
if cfg.model_type ~= "qwen2_5_vl" then error("bench: only qwen2_5_vl models", 0) end
local vis = cfg.vision_config
local q_width = cfg.hidden_size
local kv_width = cfg.hidden_size / cfg.num_attention_heads * cfg.num_key_value_heads
local layer_weights = cfg.hidden_size * (2 * q_width + 2 * kv_width + 3 * cfg.intermediate_size)
local head_weights = cfg.hidden_size * cfg.vocab_size

local function vision_flops(h, w)
  local patches, unit = h * w, vis.spatial_merge_size ^ 2
  local side = vis.window_size / vis.patch_size
  local windowed = 0
  for y = 0, h - 1, side do
    for x = 0, w - 1, side do windowed = windowed + (math.min(side, h - y) * math.min(side, w - x)) ^ 2 end
  end
  local full = #vis.fullatt_block_indexes
  local pairs_seen = full * patches ^ 2 + (vis.depth - full) * windowed
  local wide = vis.hidden_size * unit
  local embed = 2 * patches * 3 * vis.temporal_patch_size * vis.patch_size ^ 2 * vis.hidden_size
  local blocks = vis.depth * 2 * patches * (4 * vis.hidden_size ^ 2 + 3 * vis.hidden_size * vis.intermediate_size)
  return embed + blocks + 4 * vis.hidden_size * pairs_seen + 2 * patches / unit * wide * (wide + vis.out_hidden_size)
end

-- tokens through the layers, (query, key) pairs that see each other, rows that get logits.
local function text_flops(tokens, pairs_seen, rows)
  return cfg.num_hidden_layers * (2 * tokens * layer_weights + 4 * q_width * pairs_seen) + 2 * rows * head_weights
end

local function causal_pairs(n, parent) return n * (n + 1) / 2 + n * parent end

-- ---- the work ----
local grid_h, grid_w = work.image_size[1] / vis.patch_size, work.image_size[2] / vis.patch_size
local merged_h, merged_w = grid_h / vis.spatial_merge_size, grid_w / vis.spatial_merge_size

-- A token id below the special ones; any sequence does, as long as it is the same in every run.
local function word(i) return (i * 7919 + 13) % cfg.image_token_id end

local function make_input()
  local ids = {}
  for i = 1, work.text_tokens_before do ids[i] = word(i) end
  ids[#ids + 1] = cfg.vision_start_token_id
  local first = #ids
  for _ = 1, merged_h * merged_w do ids[#ids + 1] = cfg.image_token_id end
  ids[#ids + 1] = cfg.vision_end_token_id
  for i = 1, work.text_tokens_after do ids[#ids + 1] = word(1000 + i) end
  local n = #ids
  local positions, p = pack.ints(3, n)
  local next_position = 0
  for i = 0, n - 1 do
    local k = i - first
    if k >= 0 and k < merged_h * merged_w then
      p[i], p[n + i], p[2 * n + i] = first, first + math.floor(k / merged_w), first + k % merged_w
      next_position = first + math.max(merged_h, merged_w)
    else
      for axis = 0, 2 do p[axis * n + i] = next_position end
      next_position = next_position + 1
    end
  end
  local pixels = tensor.empty { grid_h * grid_w, 3 * vis.temporal_patch_size * vis.patch_size ^ 2 }
  core.check(C.sz_random_normal_(pixels.ptr, 2, 0, 0, 1))
  return { input_ids = ids, position_ids = positions, next_position = next_position, pixel_values = pixels,
    image_grid_thw = { { 1, grid_h, grid_w } } }
end

local vl = folder and model.qwen_vl(folder, { dtype = opts.dtype }) or model.random(cfg, { dtype = opts.dtype, seed = 1 })
local input = make_input()
local prompt = #input.input_ids
local answers, answer_tokens = work.answers, work.answer_tokens

-- Samples n greedy answers; returns seconds to the first token and seconds a step after two of warm-up.
local function generate(n)
  local start, first, from, last = now()
  rollout.generate(vl, { input }, { n = n, temperature = 0, max_new_tokens = work.decode_tokens + 1, ignore_eos = true,
    on_token = function(a)
      if a.index ~= n then return end
      last = now()
      if #a.ids == 1 then first = last end
      if #a.ids == 3 then from = last end
    end })
  return first - start, (last - from) / (work.decode_tokens - 2)
end

local function bench_prefill()
  local rate = flop_limit()
  local size = opts.dtype == "f32" and 4 or 2
  local weight_size = opts.dtype == "int8" and 1 + 4 / 128 or size       -- a scale for each 128 weights
  local weight_bytes = weight_size * (cfg.num_hidden_layers * layer_weights + head_weights)
  local flops = vision_flops(grid_h, grid_w) + text_flops(prompt, causal_pairs(prompt, 0), 1)
  generate(1)                                      -- warms up: pages, primitives, compiled Lua
  local bandwidth = read_rate(2)
  local seconds_1, step_1 = generate(1)
  local seconds_n, step_n = generate(answers)
  local seconds = math.min(seconds_1, seconds_n)
  emit("prefill_seconds", seconds, "s", flops / rate / 1e9, true)
  emit("prefill_tokens_per_second", prompt / seconds, "tokens/s", prompt * rate * 1e9 / flops)
  emit("prefill_rate", flops / seconds / 1e9, "GFLOP/s", rate)
  emit("read_bandwidth", bandwidth, "GB/s")
  for _, run in ipairs { { 1, step_1 }, { answers, step_n } } do
    local n, step = run[1], run[2]
    local cached = prompt + n * (work.decode_tokens / 2)        -- on average half of the answer is there
    local bytes = weight_bytes + size * 2 * kv_width * cfg.num_hidden_layers * cached
    emit("decode_" .. n, n / step, "tokens/s", n * bandwidth * 1e9 / bytes)
  end
  emit("decode_group_speedup", results["decode_" .. answers] / results.decode_1, "x", answers)
end

local function bench_vision()
  local flops = vision_flops(grid_h, grid_w)
  local rate = flop_limit()
  local seconds = best(2, function() tensor.no_grad(function() vl:vision { input } end) end)
  emit("vision_seconds", seconds, "s", flops / rate / 1e9, true)
end

-- Forward and backward of the mean log-probability of one group.
local function train_once(lists, recompute)
  local stream = pack.stream({ { input = input, answers = lists } }, vl.image_token_id)
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
    for k = 1, answer_tokens do lists[i][k] = word(5000 + i * answer_tokens + k) end
  end
  local stream_tokens = prompt + answers * (answer_tokens - 1)
  local pairs_seen = causal_pairs(prompt, 0) + answers * causal_pairs(answer_tokens - 1, prompt)
  local flops = 3 * (vision_flops(grid_h, grid_w) + text_flops(stream_tokens, pairs_seen, answers * answer_tokens))
  vl:train()
  local rate = flop_limit()
  local seconds = best(times, function() train_once(lists, recompute) end)
  local limit = flops / rate / 1e9
  emit(prefix .. "tokens_per_second", answers * answer_tokens / seconds, "tokens/s", answers * answer_tokens / limit)
  emit(prefix .. "positions_per_second", answers * (answer_tokens + prompt) / seconds, "tokens/s")
  emit(prefix .. "rate", flops / seconds / 1e9, "GFLOP/s", rate)
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

-- ---- the peer ----
local function compare()
  local quoted = "'" .. opts.python .. "'"
  if os.execute(quoted .. " -c 'import torch, transformers' 2>/dev/null") ~= 0 then
    print(("skip: %s has no torch and transformers"):format(opts.python))
    return
  end
  vl:free()
  local command = ("%s '%s/tests/bench_torch.py' --dtype %s --threads %d --train-timed %s 2>/dev/null"):format(
    quoted, core.root, opts.dtype, threads, opts.train_timed)
  local pipe = assert(io.popen(command))
  for line in pipe:lines() do
    local ok, row = pcall(cjson.decode, line)
    local mine = ok and results[row.name]
    if mine then
      local faster = row.unit == "s" and row.value / mine or mine / row.value
      print(('{"name": "%s", "value": %s, "unit": "%s", "peer": %s, "faster": %.2f}'):format(row.name, rounded(mine), row.unit, rounded(row.value), faster))
      io.flush()
    end
  end
  pipe:close()
end

emit("matmul_f32", matmul_rate("f32", 5), "GFLOP/s")
emit("matmul_bf16", matmul_rate("bf16", 3), "GFLOP/s")
if wanted.start then bench_start() end
if wanted.prefill then bench_prefill() end
if wanted.vision then bench_vision() end
if wanted.train then bench_train("train_", false, 2) end
if wanted.recompute then bench_train("recompute_", true, 1) end
if opts.python and opts.python ~= "" then compare() end
