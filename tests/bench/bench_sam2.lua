-- bench_sam2.lua - speed and memory of SAM2 at its released sizes, compared with the matmul limit
-- of the same run and with PyTorch.
--
--   ./segzero tests/bench/bench_sam2.lua [sizes=tiny,large] [device=cpu|cuda] [threads=2] [best=3]
--       [train=1] [python=PATH] [dtype=f32|bf16] [only=peer] [clock=cpu]
--
-- The weights are random, the image has 1024 x 1024 pixels, the prompt is a box and two points.
-- sizes=mini is 64 x 64, for the emulated device. Prints one JSON object a line, as bench.lua does:
--   sam2_<size>_encoder        seconds from pixels to the decoder's maps; limit: its floating-point
--                              operations at the matmul rate
--   sam2_<size>_decoder        seconds from one prompt to masks and scores; _decoder_8: eight
--                              prompts
--   sam2_<size>_images         images per second through both, one at a time; limit: the encoder's
--                              operations at the matmul rate
--   sam2_<size>_train          seconds of forward and backward of everything, with a loss on one
--                              mask (not with train=0)
--   sam2_<size>_memory         MiB of the process at its peak, after encoding and decoding
--   sam2_<size>_device_memory  GiB of the device in use by then, next to what was free
-- side= is the side of the matrices that measure the limit.
-- With python= (torch, sam2) tests/golden/check_sam2.py --bench does the same work with the sam2
-- package on the same device first. only=peer prints its figures alone; only=compiled runs its
-- encoder through torch.compile.
-- Left out: reading checkpoints, resizing, masks at the image's size.

local cjson = require "cjson"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local sam2 = require "segzero.models.sam2"
local read_json = require("segzero.models.qwen_vl").read_json
local bench = require "tests.bench.bench_work"

local C = core.C

local opts = bench.options({ sizes = "tiny,large", threads = "2", best = "3", train = "1",
  dtype = "f32", device = os.getenv "SEGZERO_DEVICE" or "cpu" },
  { size = true, sizes = true, threads = true, best = true, train = true, python = true,
    dtype = true, device = true, side = true, only = true, clock = true })

-- The released configurations.
local SIZES = { mini = "S5", tiny = "S6", small = "S7", base_plus = "S8", large = "S9" }
for size in (opts.size or opts.sizes):gmatch "[^,]+" do
  if not SIZES[size] then
    error(("bench_sam2: there is no size %s (mini, tiny, small, base_plus, large)"):format(size), 0)
  end
end

-- Each size runs in a process of its own, so that the peak memory is its own.
if not opts.size then
  for size in opts.sizes:gmatch "[%w_]+" do
    local words = { "'" .. (arg[-1] or "./segzero") .. "'", "'" .. arg[0] .. "'", "size=" .. size }
    for _, key in ipairs { "threads", "best", "train", "dtype", "device", "side", "only",
      "python", "clock" } do
      if opts[key] then words[#words + 1] = ("'%s=%s'"):format(key, opts[key]) end
    end
    if os.execute(table.concat(words, " ")) ~= 0 then os.exit(1) end
  end
  return
end

local prefix = "sam2_" .. opts.size .. "_"
local results = {}

-- ---- the peer: before this process takes memory of the device ----
local function peer_rows()
  local words = {
    ("'%s' '%s/tests/golden/check_sam2.py'"):format(opts.python, core.root),
    "--bench", opts.size, "--device", opts.device, "--dtype", opts.dtype,
    "--threads", opts.threads, "--best", opts.best,
  }
  if opts.train ~= "1" then words[#words + 1] = "--no-train" end
  if opts.only == "compiled" then words[#words + 1] = "--compile" end
  if opts.clock == "cpu" then words[#words + 1] = "--clock cpu" end
  local pipe = assert(io.popen(table.concat(words, " ") .. " 2>&1"))
  local text = pipe:read "*a"
  pipe:close()
  local ok, row = pcall(cjson.decode, text:match "{[^\n]*}%s*$" or "")
  if not ok then
    print("skip: no figures from " .. table.concat(words, " "))
    print(text:sub(-500))
    return
  end
  local rows = {}
  local function add(name, value, unit)
    if type(value) == "number" then
      rows[#rows + 1] = { name = prefix .. name, value = value, unit = unit }
    end
  end
  for _, name in ipairs { "encoder", "decoder", "train" } do add(name, row[name], "s") end
  add("images", 1 / (row.encoder + row.decoder), "1/s")
  add("device_memory", row.device_memory, "GiB")
  return rows
end

local peer = opts.python and opts.python ~= "" and peer_rows()
if opts.only == "peer" or opts.only == "compiled" then
  bench.compare(peer, {})
  os.exit(peer and 0 or 1)
end

bench.clock(opts)

local function emit(name, value, unit, limit, lower)
  results[prefix .. name] = value
  bench.emit(prefix .. name, value, unit, { limit = limit, lower = lower })
end

local function best(f)
  tensor.step(f)                                              -- shapes are seen for the first time
  return bench.best(tonumber(opts.best), f)
end

-- Two operations for each multiply-add of the encoder's products; attention counts the keys that
-- each query sees.
local function encoder_flops(c)
  local side = c.image_size / 4
  local flops = 0
  flops = flops + 2 * side ^ 2 * 3 * c.patch_kernel ^ 2 * c.width[0]
  local block = 0
  for s = 0, 3 do
    for k = 0, c.blocks[s] - 1 do
      local pool = s > 0 and k == 0
      -- A pooling block still has the width and the window of the stage before it.
      local from = s
      if pool then from = s - 1 end
      local d = c.width[from]
      local wide = c.width[s]
      local cells = side ^ 2
      local window = c.windows[from]
      if c.whole[block] == 1 then window = side end
      flops = flops + 2 * cells * d * 3 * wide
      if pool then flops = flops + 2 * cells * d * wide end
      if pool then
        side = side / 2
        cells = side ^ 2
      end
      flops = flops + 4 * cells * math.min(window,
        c.image_size) ^ 2 * wide + 2 * cells * wide ^ 2 * (1 + 2 * c.mlp_ratio)
      block = block + 1
    end
    flops = flops + 2 * side ^ 2 * c.width[s] * c.hidden
  end
  local fine = (c.image_size / 4) ^ 2
  return flops + 2 * fine * c.hidden * c.hidden / 8 + 2 * fine / 4 * c.hidden * c.hidden / 4
end

local function peak_mib()
  local file = assert(io.open "/proc/self/status")
  local kib = file:read("*a"):match "VmHWM:%s*(%d+)"
  file:close()
  return tonumber(kib) / 1024
end

local rate = 1e9 * (opts.device == "cpu" and bench.matmul_rate("f32", 4)
  or bench.flop_limit(opts.dtype))
bench.emit(prefix .. "matmul", rate / 1e9, "GFLOP/s")
local sam = sam2.random(read_json(
  ("%s/tests/golden/sam2/%s/config.json"):format(core.root, SIZES[opts.size])),
  { dtype = opts.dtype, device = opts.device, seed = 1 })
local side = sam.image_size
local pixels = tensor.empty({ 1, side, side, 3 }, { device = opts.device })
core.check(C.sz_random_normal_(pixels.ptr, 2, 0, 0, 1))
local prompt = { points = { { 200, 220, 2 }, { 700, 800, 3 }, { 400, 420, 1 }, { 500, 640, 1 },
  { 0, 0, -1 } } }
for _, p in ipairs(prompt.points) do p[1], p[2] = p[1] * side / 1024, p[2] * side / 1024 end

local features
tensor.no_grad(function()
  features = sam:encode(pixels)
  local flops = encoder_flops(sam.config)
  emit("encoder", best(function() sam:encode(pixels) end), "s", flops / rate, true)
  emit("decoder", best(function() sam:decode(features, { prompt }) end), "s")
  emit("images", 1 / (results[prefix .. "encoder"] + results[prefix .. "decoder"]), "1/s",
    rate / flops)
  local eight = {}
  for i = 1, 8 do eight[i] = prompt end
  emit("decoder_8", best(function() sam:decode(features, eight) end), "s")
end)
emit("memory", peak_mib(), "MiB")
local used, free = bench.device_used()
if used then emit("device_memory", used, "GiB", free) end
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
if peer then bench.compare(peer, results) end
