-- run.lua - runs the whole suite: tests/unit and tests/system, each file in a ./segzero of its own so that a crash is
-- contained.
--
--   ./segzero tests/run.lua         from the repository's root; `make test` does this
--
-- Environment: FILTER=text runs the files whose name has it; SEED=n; TEST_TIMEOUT=seconds for one file (900);
-- A test passes when it exits 0. A line `skip: what it lacks` is counted and
-- shown; a file in which nothing but that happened is no pass. Last line: `N passed, N failed, N skipped`.
-- Left out: running files side by side (kernels use all cores already).

local ffi = require "ffi"
local host = require "segzero.host"

ffi.cdef [[
  struct sz_run_time { long sec, nsec; };
  int sz_run_clock(int, struct sz_run_time *) __asm__("clock_gettime");
]]

local function seconds()
  local t = ffi.new("struct sz_run_time")
  ffi.C.sz_run_clock(1, t)          -- CLOCK_MONOTONIC
  return tonumber(t.sec) + tonumber(t.nsec) * 1e-9
end

local function quoted(s)
  return "'" .. s:gsub("'", "'\\''") .. "'"
end

-- Paths that the shell pattern matches, sorted byte by byte.
local function glob(pattern)
  local paths = {}
  local pipe = assert(io.popen("ls -d " .. pattern .. " 2>/dev/null"))
  for path in pipe:lines() do paths[#paths + 1] = path end
  pipe:close()
  table.sort(paths)
  return paths
end

-- Output (stdout and stderr as they came) and exit status of a shell command.
local function run(command, timeout)
  local pipe = assert(io.popen("{ timeout --foreground " .. timeout .. " " .. command .. "; } 2>&1; echo \"exit $?\""))
  local output = pipe:read("*a")
  pipe:close()
  local before, status = output:match("^(.*)exit (%d+)\n$")
  if not status then return output, 1 end
  return before, tonumber(status)
end

local function reason(status, timeout)
  if status == 124 then return "ran past " .. timeout .. " s" end
  if status > 128 then return "killed by signal " .. (status - 128) end
  return "exit " .. status
end

local filter = os.getenv "FILTER" or ""
local timeout = tonumber(os.getenv "TEST_TIMEOUT" or "") or 900
local seed = tonumber(os.getenv "SEED" or "") or 1

local tests = {}
local function add(path, command)
  local name = path:match("[^/]+$")
  if filter == "" or name:find(filter, 1, true) then
    tests[#tests + 1] = {name = name, command = "SEGZERO_TEST_SEED=" .. seed .. " " .. command}
  end
end

for _, path in ipairs(glob "tests/unit/test_*.lua tests/system/test_*.lua") do
  add(path, quoted(host.executable) .. " " .. quoted(path))
end

print("seed " .. seed)
local passed, failed, skipped = 0, 0, 0
for _, test in ipairs(tests) do
  io.write(string.format("%-32s", test.name))
  io.flush()
  local start = seconds()
  -- `env` reads the assignment, because timeout runs a program and no shell.
  local output, status = run("env " .. test.command, timeout)
  local skips = {}
  for line in ("\n" .. output):gmatch("\n(skip: [^\n]*)") do skips[#skips + 1] = line end
  local empty = #skips > 0 and (output:find("\n0 checks, ", 1, true) or output:find("^0 checks, "))
  skipped = skipped + #skips
  local verdict = "ok"
  if status ~= 0 then
    failed = failed + 1
    verdict = "FAILED (" .. reason(status, timeout) .. ")"
  elseif empty then
    verdict = "skipped"
  else
    passed = passed + 1
  end
  io.write(string.format(" %7.2f s  %s\n", seconds() - start, verdict))
  if status ~= 0 then
    io.write(output, output:sub(-1) == "\n" and "" or "\n")
  else
    for _, line in ipairs(skips) do io.write("  ", line, "\n") end
  end
end

local good = failed == 0
if #tests == 0 then
  print(filter ~= "" and "no test file's name has '" .. filter .. "'" or "there are no tests")
  good = false
end
print(string.format("%d passed, %d failed, %d skipped", passed, failed, skipped))
io.flush()
os.exit(good and 0 or 1)
