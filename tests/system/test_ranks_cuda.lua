-- test_ranks_cuda.lua - several ranks whose tensors are on devices: collectives by NCCL, the sum in
-- the order of the ranks, the device of each rank, and what is said where NCCL cannot be used.
--
-- The devices and NCCL are emulated (tests/cuda_emulator). Needs Open MPI. Left out: several
-- machines; collectives in host memory (test_ranks.lua).

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local runs = require "tests.support.rank_runs"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"

local available = runs.available() and runs.device_available()
if not available then
  check.finish()
  return
end
local place = runs.begin()

local function expect(text, pattern)
  check.ok(text:find(pattern), pattern .. " in: " .. text:sub(-500))
end

local function count_of(text, pattern)
  local _, count = text:gsub(pattern, "")
  return count
end

-- ---- collectives ----
-- lazy: the main stream, or all streams, run nothing before something waits.
local SIZES = { { ranks = 2 }, { ranks = 3, lazy = "1" }, { ranks = 4, transport = "tcp" } }
for _, case in ipairs(SIZES) do
  check.case(("every collective of %d devices"):format(case.ranks), function()
    local env = runs.device_env(case.ranks)
    env.SEGZERO_EMULATE_LAZY = case.lazy
    env.SEGZERO_TRANSPORT = case.transport
    local text, status = runs.run(case.ranks, { "tests/support/comm_ranks.lua", "cuda" }, env)
    check.equal(status, 0, text:sub(-400))
    check.equal(count_of(text, "through host memory"), 0, "NCCL is used")
    local ok = 0
    for compared in text:gmatch "ok (%d+)" do
      ok = ok + 1
      check.ok(tonumber(compared) > 1e6, "elements were compared")
    end
    check.equal(ok, case.ranks, "ranks that finished")
    check.equal(folders.list(runs.links), {}, "messages that nobody took")
  end)
end

-- Sums of random numbers on the device and in host memory must have the same bits, and as many
-- bytes must be sent.
local SAME_BITS = [[
  local ffi = require "ffi"
  local ranks = require "segzero.core.ranks"
  local tensor = require "segzero.core.tensor"
  local world = ranks.world()
  local compared = 0
  local function random(n, dtype)
    tensor.manual_seed(100 * world:rank() + n)
    return tensor.randn({ n }):to { dtype = dtype }
  end
  local function same(dtype, n, f)
    local host = random(n, dtype)
    local device = host:to { device = "cuda" }
    local before = ranks.bytes_sent()
    local a = f(host, "cpu")
    local sent = ranks.bytes_sent() - before
    local b = f(device, "cuda"):to { device = "cpu" }
    assert(ranks.bytes_sent() - before == 2 * sent and sent > 0, "bytes sent")
    local bytes = a:numel() * ({ f32 = 4, bf16 = 2 })[dtype]
    assert(ffi.string(tensor.data(a), bytes) == ffi.string(tensor.data(b), bytes), "the bits")
    compared = compared + a:numel()
  end
  local size = world:size()
  world:all_reduce(random(8, "f32"):to { device = "cuda" })      -- joins the devices
  for _, dtype in ipairs { "f32", "bf16" } do
    for _, n in ipairs { 1, 8, 1001, 100000 } do
      same(dtype, n, function(t) world:all_reduce(t) return t end)
      same(dtype, n * size, function(t, device)
        local part = tensor.zeros({ n }, { dtype = dtype, device = device })
        world:reduce_scatter(t, part)
        return part
      end)
    end
  end
  print(("same %d"):format(compared))]]

check.case("sums on devices have the bits of sums in host memory", function()
  files.write(place .. "/same.lua", SAME_BITS)
  for _, count in ipairs { 2, 4 } do
    local text, status = runs.run(count, { place .. "/same.lua" }, runs.device_env(count))
    check.equal(status, 0, text:sub(-400))
    check.equal(count_of(text, "same 404040"), count, "elements compared: " .. text)
  end
end)

check.case("an update in parts on devices", function()
  for _, count in ipairs { 2, 4 } do
    local text, status = runs.run(count, { "tests/support/zero_ranks.lua", place, "cuda" },
      runs.device_env(count))
    check.equal(status, 0, text:sub(-400))
    check.equal(count_of(text, "ok %d%d%d%d%d%d"), count, "ranks that finished: " .. text)
    check.equal(count_of(text, "through host memory"), 0, "NCCL is used")
  end
end)

-- ---- ranks that do not answer ----
local ABSENT = [[
  local ranks = require "segzero.core.ranks"
  local tensor = require "segzero.core.tensor"
  local unistd = require "posix.unistd"
  local world = ranks.world()
  ranks.set_timeout(1)
  local t = tensor.full({ 1000 }, world:rank() + 1, { device = "cuda" })
  if arg[1] ~= "joining" then
    world:all_reduce(t)
    assert(t:totable()[7] == 6)
  end
  if world:rank() == 1 then
    if arg[1] == "killed" then require("posix.signal").kill(unistd.getpid(), 9) end
    unistd.sleep(60)
  end
  local ok, why = pcall(function()
    world:all_reduce(t)
    return t:totable()
  end)
  if not ok then io.stderr:write(why .. "\n") ranks.abort(3) end]]

for what, message in pairs {
  stalled = "rank 1 %(host [^)]+%) has not answered for 1 s %(all_reduce%): it has stalled",
  killed = "rank 1 %(host [^)]+%) is gone %(all_reduce%)",
  joining = "rank 1 %(host [^)]+%) has not answered for 1 s %(all_gather%)",
} do
  check.case("a device's collective names the rank that is " .. what, function()
    files.write(place .. "/absent.lua", ABSENT)
    local before = process.now()
    for _, transport in ipairs { "mpi", "tcp" } do
      local env = runs.device_env(3)
      env.SEGZERO_TRANSPORT = transport
      local text, status = runs.run(3, { place .. "/absent.lua", what }, env)
      check.ok(process.now() - before < 30, "it ended long before the rank woke up")
      check.ok(status ~= 0, "the status")
      expect(text, message)
    end
  end)
end

-- ---- which device, and where NCCL cannot be used ----
local SUM = [[
  local ranks = require "segzero.core.ranks"
  local sz = require "segzero"
  local world = ranks.world()
  local t = sz.tensor({ world:rank() + 1 }, { device = "cuda" })
  local ok, why = pcall(world.all_reduce, world, t)
  if not ok then
    if world:rank() == 0 then io.stderr:write(why .. "\n") end
    world:barrier()
    os.exit(3)
  end
  print("sum " .. t:item())
  local core = require "segzero.core.ffi"
  print(require("ffi").string(core.C.sz_device_describe(core.C.SZ_CUDA)))]]

-- The environment of 2 ranks: what is expected, and how often.
local PLACES = {
  { name = "two devices", devices = 2, status = 0, "nccl: 2%.28%.9, between ranks",
    "sum 3", "device: 0, emulated device", "device: 1, emulated device" },
  { name = "devices in another order", devices = 3, visible = "2,1", status = 0, "sum 3",
    "device: 0, emulated device", "nccl: 2" },
  { name = "one device", devices = 1, status = 1,
    "2 ranks on this machine and 1 device: start one rank for each device, or set SEGZERO_SHARE" },
  { name = "one device, shared", devices = 1, share = "1", status = 0, "sum 3",
    "through host memory: rank 0 %(host [^)]+%) and rank 1 %(host [^)]+%) share a device, which" },
  { name = "a launcher shows both the same device", devices = 2, visible = "1", status = 3,
    "rank 0 %(host [^)]+%) and rank 1 %(host [^)]+%) are on one device %(0000:11:00%.0%): start" },
  { name = "without NCCL", devices = 2, nccl = "0", status = 0, "sum 3",
    "through host memory: rank 0 %(host [^)]+%): NCCL: SEGZERO_NCCL=0 leaves it out" },
  { name = "an old NCCL", devices = 2, version = "21003", status = 0, "sum 3",
    "through host memory: rank 0 [^:]+: NCCL: libnccl.so.2 is 2%.10%.3, and 2%.14 or later" },
  { name = "an NCCL that fails", devices = 2, version = "0", status = 3,
    "nccl: joining the other ranks: unhandled system error: [^\n]+ %(SEGZERO_NCCL=0 goes through" },
}

for _, case in ipairs(PLACES) do
  check.case("2 ranks: " .. case.name, function()
    files.write(place .. "/sum.lua", SUM)
    local env = runs.device_env(case.devices)
    env.CUDA_VISIBLE_DEVICES = case.visible
    env.SEGZERO_SHARE_DEVICE = case.share
    env.SEGZERO_NCCL = case.nccl
    env.SEGZERO_EMULATE_NCCL = case.version
    local text, status = runs.run(2, { place .. "/sum.lua" }, env)
    check.equal(status, case.status, "the status: " .. text:sub(-400))
    for _, pattern in ipairs(case) do expect(text, pattern) end
    check.ok(count_of(text, "through host memory: rank") <= 1, "it is said once")
  end)
end

-- ---- training ----
-- Replicas and shards on devices against one process on the CPU: step 1 is the same, and the
-- sampler agrees with the trainer.
check.case("training of replicas and of shards on devices", function()
  local settings = { "trainer.max_steps=1", "data.val_files=None", "trainer.save_freq=-1" }
  local function loss_of(name)
    for line in io.lines(("%s/%s/metrics.jsonl"):format(place, name)) do
      local row = cjson.decode(line)
      if row.loss then return row end
    end
  end
  runs.train(1, "one", settings)
  local want = loss_of "one"
  for _, shards in ipairs { 1, 2 } do
    local env = runs.device_env(2)
    env.SEGZERO_DEVICE = "cuda"
    local name = "shards_" .. shards
    local text = runs.train(2, name, { settings[1], settings[2], settings[3],
      "worker.rollout.tensor_parallel_size=" .. shards }, env)
    check.equal(count_of(text, "through host memory"), 0, "NCCL is used")
    local got = loss_of(name)
    for _, key in ipairs { "loss", "grad_norm", "reward", "length" } do
      -- Sums in another order; the same tokens are sampled.
      check.near(got[key], want[key], 1e-3 * math.max(1, math.abs(want[key])), name .. ": " .. key)
    end
    check.ok(got.mismatch < 1e-4, "sampler and trainer agree: " .. got.mismatch)
  end
end)

mini.remove()
check.finish()
