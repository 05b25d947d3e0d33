-- bench_sam2.lua - speed and memory of SAM2 at its released sizes, beside the matmul limit measured in the same run and PyTorch.
--
--   ./segzero tests/bench_sam2.lua [sizes=tiny,large] [threads=2] [best=3] [train=1] [python=PATH] [dtype=f32|bf16]
--
-- Random weights, a 1024 x 1024 picture, one prompt of a box and two points. One JSON object a line, as bench.lua's:
--   sam2_<size>_encoder     seconds, pixels to the decoder's maps; limit: its floating-point operations at the matmul rate
--   sam2_<size>_decoder     seconds, one prompt to masks and scores          sam2_<size>_decoder_8: of eight prompts at once
--   sam2_<size>_train       seconds, forward and backward of everything, with a loss on one mask (not with train=0)
--   sam2_<size>_memory      MiB of the process at its peak, after encoding and decoding
-- With python= (torch, sam2) tests/golden/check_sam2.py --bench does the same work with the sam2 package, one size after another.
-- Left out: reading checkpoints, resizing, masks at the picture's size.

local cjson = require "cjson"
local core = require "segzero.ffi"
local tensor = require "segzero.tensor"
local sam2 = require "segzero.sam2"
local read_json = require("segzero.model").read_json

local C = core.C

local opts = { sizes = "tiny,large", threads = "2", best = "3", train = "1", dtype = "f32" }
local known = { size = true, sizes = true, threads = true, best = true, train = true, python = true, dtype = true }
for _, word in ipairs(arg) do
  local key, v = word:match "^([%w_]+)=(.*)$"
  if not known[key] then error("bench_sam2: unknown option " .. word, 0) end
  opts[key] = v
end

-- Where the released configurations are.
local SIZES = { tiny = "S6", small = "S7", base_plus = "S8", large = "S9" }
for size in (opts.size or opts.sizes):gmatch "[^,]+" do
  if not SIZES[size] then error(("bench_sam2: there is no size %s (tiny, small, base_plus, large)"):format(size), 0) end
end

-- A process for each size, so that its peak is its own.
if not opts.size then
  for size in opts.sizes:gmatch "[%w_]+" do
    local words = { "'" .. (arg[-1] or "./segzero") .. "'", "'" .. arg[0] .. "'", "size=" .. size }
    for _, key in ipairs { "threads", "best", "train", "dtype" } do words[#words + 1] = key .. "=" .. opts[key] end
    if opts.python then words[#words + 1] = "'python=" .. opts.python .. "'" end
    if os.execute(table.concat(words, " ")) ~= 0 then os.exit(1) end
  end
  return
end

C.sz_set_threads(tonumber(opts.threads))
local prefix = "sam2_" .. opts.size .. "_"
local results = {}

local function rounded(x) return tonumber(("%.4g"):format(x)) end

local function emit(name, value, unit, limit)
  results[name] = value
  local line = ('{"name": "%s", "value": %s, "unit": "%s"'):format(prefix .. name, rounded(value), unit)
  if limit then line = line .. (', "limit": %s, "ratio": %.3f'):format(rounded(limit), limit / value) end
  print(line .. "}")
  io.flush()
end

local function best(f)
  local least = math.huge
  for _ = 0, tonumber(opts.best) do
    local start = C.sz_seconds()
    tensor.step(f)
    least = math.min(least, C.sz_seconds() - start)
  end
  return least
end

-- Multiply-adds times two of the encoder's products; attention over what each query sees.
local function encoder_flops(c)
  local side, flops = c.image_size / 4, 0
  flops = flops + 2 * side ^ 2 * 3 * c.patch_kernel ^ 2 * c.width[0]
  local block = 0
  for s = 0, 3 do
    for k = 0, c.blocks[s] - 1 do
      local pool = s > 0 and k == 0
      local d, wide, cells = pool and c.width[s - 1] or c.width[s], c.width[s], side ^ 2
      local window = c.whole[block] == 1 and side or c.windows[pool and s - 1 or s]
      flops = flops + 2 * cells * d * 3 * wide + (pool and 2 * cells * d * wide or 0)
      if pool then
        side = side / 2
        cells = side ^ 2
      end
      flops = flops + 4 * cells * math.min(window, c.image_size) ^ 2 * wide + 2 * cells * wide ^ 2 * (1 + 2 * c.mlp_ratio)
      block = block + 1
    end
    flops = flops + 2 * side ^ 2 * c.width[s] * c.hidden
  end
  local fine = (c.image_size / 4) ^ 2
  return flops + 2 * fine * c.hidden * c.hidden / 8 + 2 * fine / 4 * c.hidden * c.hidden / 4
end

local function matmul_rate()
  local n = 2048
  local a, b = tensor.empty { n, n }, tensor.empty { n, n }
  for i, t in ipairs { a, b } do core.check(C.sz_random_normal_(t.ptr, 1, i, 0, 1)) end
  local seconds = best(function() a:linear(b) end)
  a:free()
  b:free()
  return 2 * n ^ 3 / seconds
end

local function peak_mib()
  local file = assert(io.open "/proc/self/status")
  local kib = file:read("*a"):match "VmHWM:%s*(%d+)"
  file:close()
  return tonumber(kib) / 1024
end

local rate = matmul_rate()
emit("matmul", rate / 1e9, "GFLOP/s")
local sam = sam2.random(read_json(("%s/tests/golden/sam2/%s/config.json"):format(core.root, SIZES[opts.size])), { dtype = opts.dtype, seed = 1 })
local side = sam.image_size
local pixels = tensor.empty { 1, side, side, 3 }
core.check(C.sz_random_normal_(pixels.ptr, 2, 0, 0, 1))
local prompt = { points = { { 200, 220, 2 }, { 700, 800, 3 }, { 400, 420, 1 }, { 500, 640, 1 }, { 0, 0, -1 } } }

local features
tensor.no_grad(function()
  features = sam:encode(pixels)
  emit("encoder", best(function() sam:encode(pixels) end), "s", encoder_flops(sam.config) / rate)
  emit("decoder", best(function() sam:decode(features, { prompt }) end), "s")
  local eight = {}
  for i = 1, 8 do eight[i] = prompt end
  emit("decoder_8", best(function() sam:decode(features, eight) end), "s")
end)
emit("memory", peak_mib(), "MiB")
if opts.train == "1" then
  sam:train()
  emit("train", best(function()
    local out = sam:decode(sam:encode(pixels), { prompt })
    local one = out.logits:reshape(sam.config.masks, sam.mask_side, sam.mask_side):narrow(0, 1)
    local loss = one:softplus():mean() + one:sigmoid():mean()
    loss:backward()
  end), "s")
  emit("train_memory", peak_mib(), "MiB")
end

if opts.python and opts.python ~= "" then
  sam:free()
  local command = ("'%s' '%s/tests/golden/check_sam2.py' --bench %s --threads %s --best %s%s 2>/dev/null"):format(opts.python, core.root, opts.size,
    opts.threads, opts.best, opts.train == "1" and "" or " --no-train")
  local pipe = assert(io.popen(command))
  local text = pipe:read "*a"
  pipe:close()
  local ok, row = pcall(cjson.decode, text:match "%b{}" or "")
  if not ok then
    print("skip: no figures from " .. command)
    return
  end
  for _, name in ipairs { "encoder", "decoder", "train" } do
    if row[name] and results[name] then
      print(('{"name": "%s", "value": %s, "unit": "s", "peer": %s, "faster": %.2f}'):format(prefix .. name, rounded(results[name]), rounded(row[name]), row[name] / results[name]))
    end
  end
end
