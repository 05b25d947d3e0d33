-- test_threads.lua - how many threads there are under affinity masks and control groups, how they
-- wait, and how long the program takes to start.
-- Leaves out: quotas at work (the kernel's business), speed on a busy machine (docs/speed.md).
--
-- Control groups are played in a mount namespace: files of the test's own take the place of
-- /proc/PID/cgroup and /sys/fs/cgroup. It needs unshare of util-linux and user namespaces.

local check = require "tests.support.check"
local host = require "segzero.host"
local process = require "tests.support.process"

-- Variables that would decide; an empty value counts as none for some of them only.
local CLEAN = { "env", "-u", "SEGZERO_THREADS", "-u", "OMP_NUM_THREADS", "-u", "OMP_WAIT_POLICY",
  "-u", "GOMP_SPINCOUNT" }

local function run(before, ...)
  local argv = { unpack(CLEAN) }
  for _, words in ipairs { before, { host.executable, ... } } do
    for _, word in ipairs(words) do argv[#argv + 1] = word end
  end
  local output, status = process.run(argv, { timeout = 60 })
  check.equal(status, 0, output)
  return output
end

local PRINT = [[
  print("threads", require("segzero.core.ffi").C.sz_threads())
  for _, name in ipairs { "GOMP_SPINCOUNT", "OMP_WAIT_POLICY" } do
    print(name, os.getenv(name))
  end]]

local function threads(output) return tonumber(output:match "threads%s+(%d+)") end

local free = host.processors()

-- ---- affinity ----

-- A processor that may be used, as taskset names it.
local ONE = process.run({ "grep", "Cpus_allowed_list", "/proc/self/status" }, { timeout = 10 })
  :match "(%d+)"

check.case("one processor in the affinity mask: one thread", function()
  local output = run({ "taskset", "-c", ONE }, "-e", PRINT)
  check.equal(threads(output), 1, output)
  output = run({ "taskset", "-c", ONE }, "doctor")
  check.ok(output:find("\nprocessor[^\n]*, 1 threads\n"), output)
  check.ok(output:find("\nthreads    1 of this machine's %d+ processors may be used"), output)
end)

check.case("more threads than processors: allowed, and the doctor says so", function()
  local output = run({ "taskset", "-c", ONE }, "--threads", "3", "doctor")
  check.ok(output:find("\nprocessor[^\n]*, 3 threads\n"), output)
  check.ok(output:find("\nthreads    3 are more than that and wait for each other; "
    .. "--threads 1 is faster\n", 1, true), output)
  check.ok(not run({}, "--threads", "1", "doctor"):find "are more than that", "one is enough")
end)

check.case("more threads than processors: a note when a run starts", function()
  local START = [[
    require("segzero.train.run.launching").start { n_gpus_per_node = 1, nnodes = 1 }]]
  local before = { "taskset", "-c", ONE }
  check.equal(run(before, "--threads", "3", "-e", START), "note: --threads 3: this process may use "
    .. "fewer processors (1), so threads wait for each other; --threads 1 is faster\n", "three")
  check.equal(run(before, "-e", START), "", "the default")
end)

-- ---- control groups ----

-- The text of /proc/PID/cgroup is $1; the other arguments until "--" are pairs of a file below
-- /sys/fs/cgroup and its text. What follows runs in the same process.
local NAMESPACE = [[
  set -e
  place=$(mktemp -d)
  mount -t tmpfs none "$place"
  printf '%b' "$1" >"$place/groups"
  mount --bind "$place/groups" /proc/$$/cgroup
  mount -t tmpfs none /sys/fs/cgroup
  shift
  while [ "$1" != -- ]; do
    mkdir -p "/sys/fs/cgroup/$(dirname "$1")"
    echo "$2" >"/sys/fs/cgroup/$1"
    shift 2
  done
  shift
  exec "$@"]]

local function in_groups(groups, files, ...)
  local before = { "unshare", "-rm", "sh", "-c", NAMESPACE, "sh", groups }
  for _, pair in ipairs(files) do
    before[#before + 1], before[#before + 2] = pair[1], pair[2]
  end
  before[#before + 1] = "--"
  return run(before, ...)
end

local _, status = process.run({ "unshare", "-rm", "sh", "-c", NAMESPACE, "sh", "", "--", "true" },
  { timeout = 60 })
local has_namespaces = status == 0

-- { groups, files, the quota that the doctor names or nil }
local GROUPS = {
  { "version 2", "0::/\n", { { "cpu.max", "100000 100000" } }, "1" },
  { "a part of a processor", "0::/\n", { { "cpu.max", "25000 100000" } }, "0.25" },
  { "no limit", "0::/\n", { { "cpu.max", "max 100000" } } },
  { "a group above has the limit", "0::/a/b\n",
    { { "a/b/cpu.max", "max 100000" }, { "a/cpu.max", "50000 100000" } }, "0.5" },
  { "the smaller of two", "0::/a/b\n",
    { { "a/b/cpu.max", "90000 100000" }, { "a/cpu.max", "800000 100000" } }, "0.9" },
  { "the mount of a container", "0::/system.slice/docker-1.scope\n",
    { { "cpu.max", "75000 100000" } }, "0.75" },
  { "version 1", "4:memory:/x\n3:cpu,cpuacct:/x\n",
    { { "cpu,cpuacct/x/cpu.cfs_quota_us", "60000" },
      { "cpu,cpuacct/x/cpu.cfs_period_us", "100000" } }, "0.6" },
  { "version 1, the mount of a container", "3:cpuacct,cpu:/docker/1\n0::/\n",
    { { "cpu/cpu.cfs_quota_us", "40000" }, { "cpu/cpu.cfs_period_us", "50000" } }, "0.8" },
  { "version 1 without a limit", "3:cpu:/\n",
    { { "cpu/cpu.cfs_quota_us", "-1" }, { "cpu/cpu.cfs_period_us", "100000" } } },
  { "another controller's group", "2:cpuset:/\n",
    { { "cpu/cpu.cfs_quota_us", "10000" }, { "cpu/cpu.cfs_period_us", "100000" } } },
}

for _, case in ipairs(GROUPS) do
  check.case("control groups: " .. case[1], function()
    if not has_namespaces then return check.skip "unshare with user namespaces" end
    local output = in_groups(case[2], case[3], "doctor")
    check.equal(output:match "control group's quota is (%S+)", case[4], output)
    -- Each quota of the table is at most one processor.
    local expected = case[4] and 1 or free.usable
    check.equal(tonumber(output:match "\nprocessor[^\n]*, (%d+) threads\n"), expected, output)
  end)
end

check.case("a share of a processor counts as one", function()
  if not has_namespaces then return check.skip "unshare with user namespaces" end
  if free.usable < 2 then return check.skip "two processors" end
  local output = in_groups("0::/\n", { { "cpu.max", "150000 100000" } }, "-e", PRINT)
  check.equal(threads(output), 2, "1.5 processors")
end)

check.case("the user's number counts in a limited group", function()
  if not has_namespaces then return check.skip "unshare with user namespaces" end
  local one = { { "cpu.max", "100000 100000" } }
  check.equal(threads(in_groups("0::/\n", one, "--threads", "3", "-e", PRINT)), 3, "--threads")
  local before = { "env", "OMP_NUM_THREADS=4" }
  check.equal(threads(run(before, "-e", PRINT)), 4, "OMP_NUM_THREADS")
end)

-- ---- waiting ----

-- Two threads add, then the main thread sleeps, 100 times.
local PAUSES = [[
  local sz = require "segzero"
  local time = require "posix.time"
  local core = require "segzero.core.ffi"
  core.C.sz_set_threads(2)
  local x = require("segzero.core.tensor").randn { 200000 }
  x:exp():free()
  local before = os.clock()
  local started = core.C.sz_seconds()
  for _ = 1, 100 do
    x:exp():free()
    time.nanosleep { tv_sec = 0, tv_nsec = 1e7 }
  end
  print("busy", (os.clock() - before) / (core.C.sz_seconds() - started))]]

local function busy(...) return tonumber(run({ ... }, "-e", PAUSES):match "busy%s+(%S+)") end

check.case("threads that wait leave the processors to others", function()
  local part = busy()
  -- Adding takes 0.02 of a processor. A thread that spins for all of each pause takes a whole one.
  check.ok(part < 0.25, ("%.2f of a processor is busy in pauses"):format(part))
  -- On one processor a thread that spins takes the time of the one that adds.
  if free.usable < 2 then return check.skip "two processors" end
  check.ok(busy("env", "OMP_WAIT_POLICY=active") > 2 * part, "the user's policy is kept")
end)

check.case("the user decides how threads wait", function()
  local own = run({}, "-e", PRINT):match "GOMP_SPINCOUNT%s+(%S+)"
  -- None on a machine that was busy when the program started.
  check.ok(own == "0" or own == "10000", "a short spin: " .. tostring(own))
  local given = run({ "env", "GOMP_SPINCOUNT=77" }, "-e", PRINT)
  check.equal(given:match "GOMP_SPINCOUNT%s+(%S+)", "77", "the user's count")
  given = run({ "env", "OMP_WAIT_POLICY=active" }, "-e", PRINT)
  check.equal(given:match "GOMP_SPINCOUNT%s+(%S+)", "nil", "the user's policy alone")
end)

-- ---- start ----

check.case("a start takes little processor time", function()
  local times = require "posix.sys.times"
  local unistd = require "posix.unistd"
  local before = times.times()
  local starts = 20
  for _ = 1, starts do run({}, "-e", "") end
  local after = times.times()
  local ticks = after.tms_cutime + after.tms_cstime - before.tms_cutime - before.tms_cstime
  local seconds = ticks / unistd.sysconf(unistd._SC_CLK_TCK) / starts
  -- 3 ms on an idle machine, `env` included.
  check.ok(seconds < 0.02, ("%.1f ms of processor time"):format(1e3 * seconds))
end)

check.finish()
