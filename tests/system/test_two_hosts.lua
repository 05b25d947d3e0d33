-- test_two_hosts.lua - ranks on two hosts, of which one is cut off in the middle of a run: every
-- rank ends within the time limit, one line on each side names the host that is missing, and the
-- run goes on from its last checkpoint with the ranks of the other host.
--
-- The hosts are network namespaces, so this needs root; mpirun's case needs Open MPI too.
-- Left out: machines with different processors or file systems.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local runs = require "tests.support.rank_runs"
local two_hosts = require "tests.support.two_hosts"
local host = require "segzero.host"
local files = require "segzero.core.files"

local hosts, why = two_hosts.open()
if not hosts then
  check.skip(why)
  check.finish()
  return
end

local place = runs.begin()
local LIMIT = 4                 -- trainer.collective_timeout
local SLACK = 20                -- a machine with more to do
local RANKS = 4

local function words(name, extra)
  local all = { "trainer.max_steps=1000", "data.val_files=None",
    "trainer.collective_timeout=" .. LIMIT, "trainer.save_limit=3" }
  for _, word in ipairs(extra or {}) do all[#all + 1] = word end
  return runs.words(name, all)
end

local function segzero(list)
  local argv = { host.executable, "--threads", "1" }
  for _, word in ipairs(list) do argv[#argv + 1] = word end
  return argv
end

local function steps(name)
  local last = 0
  for line in (files.read(place .. "/" .. name .. "/metrics.jsonl") or ""):gmatch "[^\n]+\n" do
    last = cjson.decode(line).step or last
  end
  return last
end

-- Waits until the run has made two steps, and cuts the cable.
local function cut(name)
  local nanosleep = require("posix.time").nanosleep
  local ends = process.now() + 60
  while steps(name) < 2 and process.now() < ends do nanosleep { tv_sec = 0, tv_nsec = 50000000 } end
  check.ok(steps(name) >= 2, "the run began")
  hosts:cut()
  return process.now()
end

-- The run resumes with two ranks of host a.
local function resume(name)
  local done = steps(name)
  local resumed = runs.command(2, words(name, { "trainer.find_last_checkpoint=true",
    "trainer.max_steps=" .. done + 1 }))
  local text, status = process.run(hosts:command("a", resumed), { timeout = runs.TIMEOUT })
  check.equal(status, 0, text:sub(-600))
  check.equal(steps(name), done + 1, "the last step")
end

local function expect_line(text, pattern)
  local _, lines = text:gsub("segzero: ", "")
  check.equal(lines, 1, "lines: " .. text:sub(-600))
  check.ok(text:find(pattern), pattern .. " in: " .. text:sub(-600))
end

-- ---- TCP ----
local function start_tcp(name)
  local children = {}
  for r = 0, RANKS - 1 do
    local where = r < RANKS / 2 and "a" or "b"
    local env = { RANK = tostring(r), WORLD_SIZE = tostring(RANKS), LOCAL_WORLD_SIZE = "2",
      LOCAL_RANK = tostring(r % 2), MASTER_ADDR = hosts.address.a, MASTER_PORT = "29500" }
    children[r] = process.start(hosts:command(where, segzero(words(name))), { env = env,
      output = ("%s/%s_%d.txt"):format(place, name, r) })
  end
  return children
end

check.case("torchrun's variables: a host is cut off, one line on each side", function()
  local children = start_tcp "tcp"
  local since = cut "tcp"
  for r = 0, RANKS - 1 do
    check.ok(process.wait(children[r]) ~= 0, "the status of rank " .. r)
  end
  local took = process.now() - since
  check.ok(took < LIMIT + SLACK, ("all ranks ended, it took %.1f s"):format(took))
  local function output(r) return files.read(("%s/tcp_%d.txt"):format(place, r)) end
  expect_line(output(0) .. output(1),
    "segzero: rank %d %(host host%-a%): rank [23] %(host host%-b%) has not answered for 4 s")
  expect_line(output(2) .. output(3),
    "segzero: rank %d %(host host%-b%): rank [01] %(host host%-a%) has not answered for 4 s")
  hosts:mend()
  resume "tcp"
end)

-- In Debian's /etc/hosts a machine's own name is a loopback address.
check.case("the name of rank 0's host is a loopback address there", function()
  local children = {}
  for r, where in pairs { [0] = "a", "a", "b" } do
    local names = ("%s/names_%s"):format(place, where)
    local address = where == "a" and "127.0.1.1" or hosts.address.a
    files.write(names, ("127.0.0.1 localhost\n%s host-a\n"):format(address))
    local argv = { "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', names }
    local script = "print(require('segzero.core.ranks').world():sum({ 1 })[1])"
    for _, word in ipairs(segzero { "-e", script }) do argv[#argv + 1] = word end
    local env = { RANK = tostring(r), WORLD_SIZE = "3",
      LOCAL_WORLD_SIZE = where == "a" and "2" or "1", LOCAL_RANK = tostring(r % 2),
      MASTER_ADDR = "host-a", MASTER_PORT = "29501", SEGZERO_JOIN_SECONDS = "20" }
    children[r] = process.start(hosts:command(where, argv), { env = env,
      output = ("%s/names_%d.txt"):format(place, r) })
  end
  for r = 0, 2 do
    check.equal(process.wait(children[r]), 0, "the status of rank " .. r)
    check.equal(files.read(("%s/names_%d.txt"):format(place, r)), "3\n", "rank " .. r)
  end
end)

-- ---- mpirun ----
-- Only host a's output reaches mpirun after the cut.
check.case("mpirun: a host is cut off, one line and the end of mpirun", function()
  if not runs.available() then return end
  local agent = place .. "/agent"
  hosts:write_agent(agent)
  files.write(place .. "/hosts", ("%s slots=2\n%s slots=2\n"):format(hosts.address.a,
    hosts.address.b))
  local argv = { "mpirun", "--quiet", "--hostfile", place .. "/hosts", "--mca", "plm_rsh_agent",
    agent, "-n", tostring(RANKS) }
  for _, word in ipairs(segzero(words "mpi")) do argv[#argv + 1] = word end
  local output = place .. "/mpi.txt"
  local child = process.start(hosts:command("a", argv), { output = output, env = {
    OMPI_ALLOW_RUN_AS_ROOT = "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = "1" } })
  local since = cut "mpi"
  check.ok(process.wait(child) ~= 0, "the status")
  local took = process.now() - since
  check.ok(took < LIMIT + 2 * SLACK, ("mpirun ended, it took %.1f s"):format(took))
  expect_line(files.read(output),
    "segzero: rank [01] %(host host%-a%): rank [23] %(host host%-b%) has not answered for 4 s")
  hosts:mend()
  resume "mpi"
end)

-- Two containers with one host name: rank 1 does not see the process of rank 0.
check.case("mpirun: ranks that do not see each other's processes are not gone", function()
  if not runs.available() then return end
  local script = place .. "/containers.lua"
  files.write(script, [[
    local world = require("segzero.core.ranks").world()
    if world:rank() == 0 then require("posix.unistd").sleep(1) end
    world:barrier()
    print("done", world:rank())]])
  local argv = { "mpirun", "--quiet", "--oversubscribe", "--bind-to", "none", "-n", "2", "sh", "-c",
    '[ $OMPI_COMM_WORLD_RANK = 0 ] && exec "$@"; exec unshare --pid --fork "$@"', "sh" }
  for _, word in ipairs(segzero { script }) do argv[#argv + 1] = word end
  local text, status = process.run(argv, { timeout = 60, env = { OMPI_ALLOW_RUN_AS_ROOT = "1",
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = "1" } })
  check.equal(status, 0, text)
  local _, lines = text:gsub("done%s+%d", "")
  check.equal(lines, 2, text)
end)

-- The kernel may give a connection to a port where nobody listens that very port, and then it talks
-- to itself. With four ports that happens within some tries.
check.case("a rank that waits for rank 0 does not connect to itself", function()
  local script = "print(require('segzero.core.ranks').world():sum({ 1 })[1])"
  local range = { "sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=41000 41003" }
  local text, status = process.run(hosts:command("a", range), { timeout = 20 })
  check.equal(status, 0, text)
  local children = {}
  for r = 1, 0, -1 do
    local env = { RANK = tostring(r), WORLD_SIZE = "2", LOCAL_WORLD_SIZE = "2", LOCAL_RANK = "0",
      MASTER_ADDR = "127.0.0.1", MASTER_PORT = "41000", SEGZERO_JOIN_SECONDS = "20" }
    local output = ("%s/itself_%d.txt"):format(place, r)
    children[r] = process.start(hosts:command("a", segzero { "-e", script }), { env = env,
      output = output })
    if r == 1 then require("posix.unistd").sleep(2) end
  end
  for r = 0, 1 do
    check.equal(process.wait(children[r]), 0, files.read(("%s/itself_%d.txt"):format(place, r)))
  end
end)

hosts:close()
mini.remove()
check.finish()
