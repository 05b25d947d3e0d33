-- bench_waits.lua - how OpenMP's threads should wait: the same work with several spin counts, alone
-- and next to programs that keep the processors busy.
--
--   ./segzero tests/bench/bench_waits.lua [spins=0,1000,10000,300000] [busy=0,2] [threads=N]
--       [rounds=3] [threads_1=yes]
--
-- spins are values of GOMP_SPINCOUNT; busy is the number of competing `yes` programs. Each round
-- runs all pairs one after the other, so a change of the machine's speed meets all of them alike.
-- threads_1 adds a run with one thread and no competitor: the scaling.
-- Prints one line a pair: the median over the rounds of each phase's milliseconds. A round's figure
-- is the median of several repetitions. The phases:
--   tiny decode     8 answers of 32 tokens of the embedded model: thousands of short parallel loops
--   tiny forward    its forward pass over an image
--   products        [512, 1024] x [1024, 4096], eight of them
--   rows            [1, 2048] x [2048, 32000], four of them: bound by memory
-- Leaves out: whole models (bench.lua), processor time.

local core = require "segzero.core.ffi"
local host = require "segzero.host"
local process = require "tests.support.process"
local signal = require "posix.signal"

local PHASES = { "tiny decode", "tiny forward", "products", "rows" }

local opts = { spins = "0,1000,10000,300000", busy = "0,2", rounds = "3" }
for _, word in ipairs(arg) do
  local key, value = word:match "^([%w_]+)=(.+)$"
  opts[key or word] = value
end

local function median(list)
  table.sort(list)
  return list[math.ceil(#list / 2)]
end

-- ---- the work, in a process of its own ----

local function milliseconds(f, times)
  f()
  local list = {}
  for i = 1, times do
    local start = core.C.sz_seconds()
    f()
    list[i] = 1e3 * (core.C.sz_seconds() - start)
  end
  return median(list)
end

local function work()
  local sz = require "segzero"
  local tensor = require "segzero.core.tensor"
  local vl = sz.qwen_vl("models/tiny/qwen2.5-vl", { dtype = "f32" })
  local content = { { type = "image", image = sz.image.new(224, 224) },
    { type = "text", text = "where is the red circle?" } }
  local input = vl:process { { role = "user", content = content } }
  local function linear(x, w, times)
    return function()
      for _ = 1, times do x:linear(w):free() end
    end
  end
  local sampling = { n = 8, temperature = 1, max_new_tokens = 32, seed = 1 }
  local product = linear(tensor.randn { 512, 1024 }, tensor.randn { 4096, 1024 }, 8)
  local row = linear(tensor.randn { 1, 2048 }, tensor.randn { 32000, 2048 }, 4)
  print("figures", milliseconds(function() vl:generate(input, sampling) end, 5),
    milliseconds(function() vl:forward(input):free() end, 9), milliseconds(product, 7),
    milliseconds(row, 7))
end

-- ---- pairs ----

local function competitors(count)
  local children = {}
  for i = 1, count do children[i] = process.start({ "yes" }, { output = "/dev/null" }) end
  return children
end

-- The figures of one run.
local function measure(pair)
  local children = competitors(pair.busy)
  local argv = { host.executable }
  if pair.threads then argv = { host.executable, "--threads", tostring(pair.threads) } end
  for _, word in ipairs { host.root .. "/tests/bench/bench_waits.lua", "work=yes" } do
    argv[#argv + 1] = word
  end
  local output = process.run(argv, { timeout = 600, env = { GOMP_SPINCOUNT = pair.spins } })
  for _, child in ipairs(children) do
    process.signal(child, signal.SIGKILL)
    process.wait(child)
  end
  local figures = {}
  for value in (output:match "figures([^\n]*)" or ""):gmatch "%S+" do
    figures[#figures + 1] = tonumber(value)
  end
  return figures, output
end

local function pairs_of()
  local list = {}
  for busy in opts.busy:gmatch "%d+" do
    for spins in opts.spins:gmatch "%d+" do
      list[#list + 1] = { spins = spins, busy = tonumber(busy), threads = opts.threads }
    end
  end
  if opts.threads_1 then list[#list + 1] = { spins = "0", busy = 0, threads = 1 } end
  return list
end

local function report(pair)
  local text = ("%6s spins, %d busy, %s threads:"):format(pair.spins, pair.busy,
    pair.threads or "all")
  for i, name in ipairs(PHASES) do
    local list = {}
    for r, figures in ipairs(pair.runs) do list[r] = figures[i] end
    text = text .. ("  %s %.1f ms"):format(name, median(list))
  end
  print(text)
end

local function run()
  local list = pairs_of()
  for _, pair in ipairs(list) do pair.runs = {} end
  for round = 1, tonumber(opts.rounds) do
    for _, pair in ipairs(list) do
      local figures, output = measure(pair)
      assert(#figures == #PHASES, output)
      pair.runs[round] = figures
    end
  end
  for _, pair in ipairs(list) do report(pair) end
end

if opts.work then work() else run() end
