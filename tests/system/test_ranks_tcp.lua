-- test_ranks_tcp.lua - several ranks without MPI: --ranks with SEGZERO_TRANSPORT=tcp, and the
-- variables of torchrun and srun, set by hand. What fails ends all ranks soon, with one line.
--
-- Left out: several machines (those of two are tested apart); torchrun and srun themselves.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local runs = require "tests.support.rank_runs"
local host = require "segzero.host"
local files = require "segzero.core.files"

local place = runs.begin()
local TCP = { SEGZERO_TRANSPORT = "tcp" }

local function ranks(count, words, env)
  local all = { SEGZERO_TRANSPORT = "tcp" }
  for name, value in pairs(env or {}) do all[name] = value end
  return runs.run(count, words, all)
end

local function expect(text, pattern)
  check.ok(text:find(pattern), pattern .. " in: " .. text:sub(-500))
end

local function count(text, pattern)
  local _, n = text:gsub(pattern, "")
  return n
end

-- ---- collectives ----
for _, size in ipairs { 2, 3 } do
  check.case(("every collective of %d ranks"):format(size), function()
    local text, status = ranks(size, { "tests/support/comm_ranks.lua" })
    check.equal(status, 0, text:sub(-400))
    check.equal(count(text, "ok %d%d%d%d%d%d%d+"), size, "ranks that finished: " .. text:sub(-400))
  end)
end

-- ---- failures ----
-- A script in which rank 1 does `what` while the others wait for it twice.
local function fails(what, seconds)
  local script = place .. "/fails.lua"
  files.write(script, ([[
    local ranks = require "segzero.core.ranks"
    local world = ranks.world()
    ranks.set_timeout(%g)
    world:barrier()
    local signal, unistd = require "posix.signal", require "posix.unistd"
    if world:rank() == 1 then %s end
    local ok, why = pcall(world.barrier, world)
    if not ok then
      io.stderr:write("line: " .. why .. "\n")
      ranks.abort(3)
    end]]):format(seconds, what))
  local before = process.now()
  local text, status = ranks(4, { script })
  return text, status, process.now() - before
end

check.case("a rank that stalls, that is killed, that ends: one line names it", function()
  local text, status, took = fails("unistd.sleep(30)", 1)
  check.ok(took < 20, "it ended long before the rank woke up")
  check.equal(status, 3, text)
  check.equal(count(text, "line: "), 1, text)
  expect(text, "line: rank 1 %(host [^)]+%) has not answered for 1 s %(barrier%)")
  for _, what in ipairs { "signal.kill(unistd.getpid(), 9)", "os.exit(0)" } do
    text, status, took = fails(what, 60)
    check.ok(took < 20, ("%s: at once, it took %.1f s"):format(what, took))
    check.ok(status ~= 0, what .. ": the status")
    check.equal(count(text, "line: "), 1, text)
    expect(text, "line: rank 1 %(host [^)]+%) is gone %(barrier%)")
  end
end)

check.case("a rank that ends while large messages are on their way", function()
  local script = place .. "/large.lua"
  files.write(script, [[
    local ranks = require "segzero.core.ranks"
    local tensor = require "segzero.core.tensor"
    local world = ranks.world()
    local t = tensor.zeros { 2 ^ 22 }
    if world:rank() == 1 then
      world:barrier()
      io.stderr:write "line: the reason\n"
      ranks.abort(5)
    end
    world:barrier()
    local ok, why = pcall(world.all_reduce, world, t)
    if not ok then io.stderr:write("line: " .. why .. "\n") ranks.abort(3) end]])
  local text, status = ranks(4, { script })
  check.equal(status, 5, text)
  check.equal(count(text, "line: "), 1, text)
end)

check.case("ranks that do not do the same say so", function()
  local script = place .. "/differ.lua"
  files.write(script, [[
    local ranks = require "segzero.core.ranks"
    local tensor = require "segzero.core.tensor"
    local world = ranks.world()
    local t = tensor.zeros { 100 * (1 + world:rank()) }
    local ok, why = pcall(world.all_reduce, world, t)
    if not ok then io.stderr:write("line: " .. why .. "\n") ranks.abort(3) end]])
  local text, status = ranks(2, { script })
  check.equal(status, 3, text)
  expect(text, "sent %d+ bytes where %d+ were expected: the ranks do not do the same")
end)

-- ---- launchers' variables ----
local next_port = 20000 + require("posix.unistd").getpid() % 10000

-- Runs one process for each table of variables; the output of all, and their statuses.
local function launch(list, words)
  local children = {}
  local argv = { host.executable, "--threads", "1" }
  for _, word in ipairs(words) do argv[#argv + 1] = word end
  for i, env in ipairs(list) do
    children[i] = process.start(argv, { env = env, output = ("%s/rank_%d"):format(place, i) })
  end
  local texts, statuses = {}, {}
  for i, child in ipairs(children) do
    statuses[i] = process.wait(child)
    texts[i] = files.read(("%s/rank_%d"):format(place, i))
  end
  return table.concat(texts), statuses
end

local function torch(rank, size, more)
  local env = { RANK = tostring(rank), WORLD_SIZE = tostring(size), LOCAL_RANK = tostring(rank),
    LOCAL_WORLD_SIZE = tostring(size), MASTER_ADDR = "127.0.0.1",
    MASTER_PORT = tostring(next_port), SEGZERO_JOIN_SECONDS = "20" }
  for name, value in pairs(more or {}) do env[name] = value end
  return env
end

local function srun(rank, size)
  return { SLURM_PROCID = tostring(rank), SLURM_STEP_NUM_TASKS = tostring(size),
    SLURM_LOCALID = tostring(rank), SLURM_STEP_NODELIST = "localhost,other[01-03]",
    SLURM_JOB_ID = tostring(next_port), SLURM_STEP_ID = "0", SEGZERO_JOIN_SECONDS = "20",
    SLURM_NODEID = "0", SLURM_STEP_TASKS_PER_NODE = "2(x3)" }
end

local SUM = place .. "/sum.lua"
files.write(SUM, [[
  local world = require("segzero.core.ranks").world()
  local rank = world:rank()
  print(("rank %d of %d, sum %d"):format(rank, world:size(), world:sum({ rank })[1]))]])

check.case("the variables of torchrun and of srun", function()
  for name, make in pairs { torchrun = torch, srun = srun } do
    next_port = next_port + 1
    local text, statuses = launch({ make(0, 3), make(1, 3), make(2, 3) }, { SUM })
    check.equal(statuses, { 0, 0, 0 }, name .. ": " .. text)
    for r = 0, 2 do expect(text, ("rank %d of 3, sum 3"):format(r)) end
  end
end)

-- An srun that starts two tasks on this machine.
local FAKE_SRUN = [==[#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost \
    SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0 SLURM_STEP_ID=$$ SEGZERO_JOIN_SECONDS=20 "$@" &
  tasks[rank]=$!
done
wait "${tasks[0]}" && wait "${tasks[1]}"]==]

check.case("the Slurm example trains, and goes on when it is submitted again", function()
  files.make_dir(place .. "/bin")
  files.write(place .. "/bin/srun", FAKE_SRUN)
  assert(require("posix.sys.stat").chmod(place .. "/bin/srun", 448))
  local env = { PATH = place .. "/bin:" .. os.getenv "PATH", SEGZERO = host.executable,
    SEGZERO_DEVICE = "cpu", SLURM_JOB_ID = tostring(next_port), SEGZERO_THREADS = "1" }
  for steps = 1, 2 do
    local argv = { "bash", host.root .. "/examples/slurm.sh" }
    local words = runs.words("slurm", { "data.val_files=None", "trainer.max_steps=" .. steps })
    for i = 2, #words do argv[#argv + 1] = words[i] end
    local text, status = process.run(argv, { timeout = runs.TIMEOUT, env = env })
    check.equal(status, 0, text:sub(-600))
    expect(text, "2 ranks on 1 machine, over TCP")
    check.ok(files.exists(("%s/slurm/global_step_%d/DONE"):format(place, steps)), "a checkpoint")
    check.equal(count(text, "\n *%d/%d  reward"), 1, "one new step: " .. text:sub(-600))
  end
end)

check.case("the threads of a machine are divided under every launcher", function()
  local script = place .. "/threads.lua"
  files.write(script, [[print("threads", require("segzero.core.ffi").C.sz_threads())]])
  local function threads(env)
    local text = process.run({ host.executable, script }, { timeout = 60, env = env })
    return tonumber(text:match "threads%s+(%d+)")
  end
  local all = threads {}
  local share = math.max(1, math.floor(all / 2))
  check.equal(threads(torch(0, 4, { LOCAL_WORLD_SIZE = "2" })), share, "torchrun's variables")
  local elastic = { LOCAL_WORLD_SIZE = "2", TORCHELASTIC_RUN_ID = "x", OMP_NUM_THREADS = "1" }
  check.equal(threads(torch(0, 4, elastic)), share, "torchrun's one thread")
  check.equal(threads(torch(0, 4, { SEGZERO_THREADS = "3" })), 3, "the user's number")
  check.equal(threads(srun(0, 6)), share, "srun's variables")
  local given = srun(0, 6)
  given.SLURM_CPUS_PER_TASK = tostring(all)
  check.equal(threads(given), all, "srun --cpus-per-task")
  given.PMIX_RANK, given.SLURM_CPUS_PER_TASK = "0", nil
  check.equal(threads(given), share, "srun --mpi=pmix")
  check.equal(threads { OMPI_COMM_WORLD_SIZE = "4", OMPI_COMM_WORLD_LOCAL_SIZE = "2" }, share,
    "mpirun's variables")
end)

-- Rank 1 computes with fewer instructions. Its copies of weights would drift away from rank 0's.
check.case("ranks that update copies of weights and round differently are refused", function()
  local script = place .. "/round.lua"
  files.write(script, [[
    local p = require("segzero.train.parallel").new(20, { shards = tonumber(arg[1]),
      copies = arg[2] == "copies" })
    print("joined " .. p.rank)]])
  for words, status in pairs { ["1"] = 0, ["2"] = 1, ["1 copies"] = 1 } do
    local argv = { script }
    for word in words:gmatch "%S+" do argv[#argv + 1] = word end
    next_port = next_port + 1
    -- The suite may run on the kernels of an older processor, which round in the same way.
    local text, statuses = launch({ torch(0, 2, { SEGZERO_CPU = "" }),
      torch(1, 2, { DNNL_MAX_CPU_ISA = "SSE41", SEGZERO_CPU = "" }) }, argv)
    check.equal(statuses, { status, status }, text)
    check.equal(count(text, "joined"), 2 - 2 * status, text)
    check.equal(count(text, "segzero: rank 1 %(host [^)]+%) computes with [%w_]+ %(oneDNN 0x1%), "
      .. "rank 0 %(host [^)]+%) with [%w_]+ %(oneDNN 0x%x+[^)]*%): ranks that update"), status,
      text)
  end
end)

check.case("doctor names the rank that differs", function()
  next_port = next_port + 1
  local text, statuses = launch({ torch(0, 3), torch(1, 3), torch(2, 3) }, { "doctor" })
  check.equal(statuses, { 0, 0, 0 }, text)
  expect(text, "3 ranks on 1 machine, over TCP: ")
  expect(text, "all ranks have the same files of segzero, processor, threads, device, variables")
  check.equal(count(text, "differs"), 0, text)
  -- The first rank differs from the others.
  next_port = next_port + 1
  local first = torch(0, 3, { OMP_PROC_BIND = "true", HF_HOME = "/mine" })
  text = launch({ first, torch(1, 3), torch(2, 3) }, { "doctor" })
  check.equal(count(text, "differs"), 2, text)
  expect(text, "rank 0 %(host [^)]+%) differs: OMP_PROC_BIND true, rank 1 has none\n")
  expect(text, "rank 0 %(host [^)]+%) differs: HF_HOME /mine, rank 1 has ")
end)

check.case("variables that do not fit, one line each", function()
  local function fail(env, pattern, status)
    local text, got = process.run({ host.executable, "recipes/refcocog_grpo.lua",
      "trainer.max_steps=1" }, { timeout = 60, env = env })
    check.equal(got, status, text)
    check.equal(count(text, "\n"), 1, "lines: " .. text)
    expect(text, pattern)
  end
  fail(torch(1, 2, { MASTER_ADDR = "" }), "WORLD_SIZE=2 and no MASTER_ADDR", 2)
  fail(torch(1, 2, { MASTER_PORT = "99999" }), "MASTER_PORT=99999: it must be a port", 2)
  fail(torch(1, 2, { WORLD_SIZE = "2 " }), "WORLD_SIZE=2 : it must be a whole number from 1", 2)
  fail(torch(7, 2), "RANK=7 with WORLD_SIZE=2: ranks count from 0", 2)
  local waits = { SEGZERO_JOIN_SECONDS = "1" }
  fail(torch(0, 2, waits), "rank 1 has not come within 1 s", 1)
  fail(torch(1, 2, waits), "rank 1 does not reach rank 0 at 127.0.0.1 port %d+ within 1 s", 1)
end)

check.case("ranks of two jobs, and strangers at the port", function()
  next_port = next_port + 1
  local text, statuses = launch({ torch(0, 2), torch(1, 3) }, { SUM })
  check.ok(statuses[1] ~= 0 and statuses[2] ~= 0, "the statuses")
  expect(text, "rank 1 on %S+ was started as one of 3, and this job has 2 ranks")

  -- Somebody who talks another protocol is ignored.
  next_port = next_port + 1
  local talk = "for i in $(seq 50); do (echo 'GET / HTTP/1.0 and more of no use'; sleep 0.1) "
    .. ">/dev/tcp/127.0.0.1/%d; sleep 0.1; done 2>&-"
  local stranger = process.start({ "bash", "-c", talk:format(next_port) }, { output = "/dev/null" })
  text, statuses = launch({ torch(0, 3), torch(1, 3), torch(2, 3) }, { SUM })
  process.signal(stranger, 15)
  process.wait(stranger)
  check.equal(statuses, { 0, 0, 0 }, text)
end)

local nanosleep = require("posix.time").nanosleep

-- Waits until done() is true; false after 20 seconds.
local function wait_until(done)
  local ends = process.now() + 20
  while process.now() < ends do
    if done() then return true end
    nanosleep { tv_sec = 0, tv_nsec = 50000000 }
  end
  return false
end

local socket = require "posix.sys.socket"
local unistd = require "posix.unistd"

local function address()
  return { family = socket.AF_INET, addr = "127.0.0.1", port = next_port }
end

-- A connection to the port, or nil.
local function connect()
  local s = assert(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0))
  if socket.connect(s, address()) then return s end
  unistd.close(s)
end

-- One after another they would take longer than the ranks wait.
check.case("strangers that connect and say nothing keep no rank waiting", function()
  next_port = next_port + 1
  local output = place .. "/first"
  local argv = { host.executable, "--threads", "1", SUM }
  local first = process.start(argv, { env = torch(0, 3), output = output })
  local strangers = {}
  check.ok(wait_until(function()
    strangers[1] = connect()
    return strangers[1]
  end), "rank 0 listens")
  for i = 2, 30 do strangers[i] = assert(connect()) end
  socket.send(strangers[1], "gszero_1 and no more")
  local text, statuses = launch({ torch(1, 3), torch(2, 3) }, { SUM })
  check.equal(process.wait(first), 0, files.read(output))
  check.equal(statuses, { 0, 0 }, text)
  for _, s in ipairs(strangers) do unistd.close(s) end
end)

-- A hello of rank 1 of 3 (runtime/comm/tcp_join.c).
local function hello(release)
  local ffi = require "ffi"
  local words = ffi.new("int32_t[4]", { 4, 1, 3, 9 })     -- version, rank, ranks, port
  return "gszero_1" .. ffi.string(words, 16) .. "elsewhere" .. ("\0"):rep(64 - 9) .. release
    .. ("\0"):rep(32 - #release)
end

check.case("a rank of another version, and one that comes twice", function()
  local version = host.version
  for release, pattern in pairs { ["0.0.0"] = "rank 1 on elsewhere runs segzero 0.0.0, and rank 0 "
    .. "runs " .. version:gsub("%p", "%%%0"), [version] =
    "two processes say that they are rank 1; the second is on elsewhere" } do
    next_port = next_port + 1
    local output = place .. "/hello"
    local first = process.start({ host.executable, "--threads", "1", SUM }, { env = torch(0, 3),
      output = output })
    local guests = {}
    check.ok(wait_until(function()
      guests[1] = connect()
      return guests[1]
    end), "rank 0 listens")
    guests[2] = assert(connect())
    for _, guest in ipairs(guests) do socket.send(guest, hello(release)) end
    check.equal(process.wait(first), 1, "the status")
    expect(files.read(output), pattern)
    for _, guest in ipairs(guests) do unistd.close(guest) end
  end
end)

check.case("a service at rank 0's port is not taken for rank 0", function()
  next_port = next_port + 1
  local listener = assert(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0))
  assert(socket.bind(listener, address()))
  assert(socket.listen(listener, 1))
  local output = place .. "/service"
  local rank = process.start({ host.executable, "--threads", "1", SUM }, { env = torch(1, 2),
    output = output })
  local connection = assert(socket.accept(listener))
  assert(socket.send(connection, "HTTP/1.0 400 Bad Request\r\n" .. ("x"):rep(2000)))
  check.ok(process.wait(rank) ~= 0, "the status")
  unistd.close(connection)
  unistd.close(listener)
  expect(files.read(output), "rank 1: what answers at 127.0.0.1 port %d+ is not rank 0 of segzero")
end)

check.case("SIGHUP that is ignored, as under nohup, stops no rank", function()
  local script = place .. "/nohup.lua"
  local ready = place .. "/nohup_ready"
  files.write(script, ([[
    local world = require("segzero.core.ranks").world()
    world:barrier()
    if world:rank() == 0 then io.open(%q, "w"):close() end
    require("posix.unistd").sleep(1)
    world:barrier()
    print("done", world:rank())]]):format(ready))
  for _, transport in ipairs { "tcp", "mpi" } do
    os.remove(ready)
    local argv = { "bash", "-c", 'trap "" HUP; exec "$@"', "bash" }
    for _, word in ipairs(runs.command(2, { script })) do argv[#argv + 1] = word end
    local output = place .. "/nohup.txt"
    local child = process.start(argv, { env = { SEGZERO_TRANSPORT = transport }, output = output })
    check.ok(wait_until(function() return files.exists(ready) end), "the ranks began")
    process.signal(child, 1)
    check.equal(process.wait(child), 0, transport .. ": " .. files.read(output))
    check.equal(count(files.read(output), "done%s+%d"), 2, transport)
  end
end)

-- ---- training ----
local function weights(name)
  return files.read(("%s/%s/global_step_2/model.safetensors"):format(place, name))
end

local function train(name, env, extra)
  local words = { "trainer.max_steps=2", "data.val_files=None" }
  for _, word in ipairs(extra or {}) do words[#words + 1] = word end
  return runs.run(2, runs.words(name, words), env)
end

check.case("training gives the same bits over TCP as over MPI", function()
  local text, status = train("tcp", TCP)
  check.equal(status, 0, text:sub(-600))
  if not runs.available() then return end
  text, status = train("mpi", {})
  check.equal(status, 0, text:sub(-600))
  check.ok(weights "tcp" == weights "mpi", "the weights of step 2")
end)

check.case("ranks that were given other settings do not train; paths may differ", function()
  assert(unistd.link(runs.model, place .. "/same_model", true))
  for extra, pattern in pairs {
    ["worker.actor.optim.lr=0.5"] = "rank 1 %(host [^)]+%) has worker.actor.optim.lr=0.5, "
      .. "and rank 0 has ",
    ["data.seed=7"] = "rank 1 %(host [^)]+%) has data.seed=7, and rank 0 has ",
    ["worker.actor.model.model_path=" .. place .. "/same_model"] = false,
  } do
    next_port = next_port + 1
    local name = "given_" .. next_port
    local children = {}
    for r = 0, 1 do
      local argv = { host.executable, "--threads", "1" }
      local more = { "trainer.max_steps=1", "data.val_files=None", r == 1 and extra or nil }
      for _, word in ipairs(runs.words(name, more)) do argv[#argv + 1] = word end
      children[r] = process.start(argv, { env = torch(r, 2), output = place .. "/given_" .. r })
    end
    local statuses = { process.wait(children[0]), process.wait(children[1]) }
    local text = files.read(place .. "/given_0") .. files.read(place .. "/given_1")
    check.equal(statuses, pattern and { 1, 1 } or { 0, 0 }, text:sub(-600))
    check.equal(files.exists(("%s/%s/config.json"):format(place, name)), not pattern,
      "a run folder: " .. extra)
    if pattern then
      check.equal(count(text, "\n"), 1, "lines: " .. text)
      expect(text, pattern)
    end
  end
end)

check.case("SIGTERM ends all ranks and saves the last finished step", function()
  local words = runs.words("stopped", { "trainer.max_steps=1000", "data.val_files=None" })
  local output = place .. "/stopped.txt"
  local child = process.start(runs.command(2, words), { env = TCP, output = output })
  local log = place .. "/stopped/metrics.jsonl"
  local ends = process.now() + 60
  while (files.read(log) or "") == "" and process.now() < ends do
    nanosleep { tv_sec = 0, tv_nsec = 100000000 }
  end
  process.signal(child, 15)
  check.equal(process.wait(child), 128 + 15, "the status")
  local text = files.read(output)
  expect(text, "stopped by SIGTERM after step %d+; saved [^;]+; go on with: ")
end)

mini.remove()
check.finish()
