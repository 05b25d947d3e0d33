-- run.lua - runs the whole suite: the test files in tests/unit and tests/system, each in a
-- ./segzero of its own, so that a crash is contained.
--
--   ./segzero tests/run.lua         from the repository's root; `make test` does this
--
-- Environment: FILTER=text runs the files whose name contains it (several texts, separated by
-- spaces: any of them). EXCLUDE=text leaves files out in the same way. CASE=text runs the cases
-- whose name contains it, in the files that have one. SEED=n. TEST_TIMEOUT=seconds for one file
-- (default 900).
--
-- A file passes when it exits 0 and ends with check.finish()'s count. A line `skip: what is
-- missing` is counted and shown; a file that did nothing but skip is not a pass.
-- Last line: `N passed, N failed, N skipped`.
-- Left out: running files in parallel (the kernels use all cores already).

local dirent = require "posix.dirent"
local host = require "segzero.host"
local check = require "tests.support.check"
local process = require "tests.support.process"

local filter = os.getenv "FILTER" or ""
local exclude = os.getenv "EXCLUDE" or ""
local case = os.getenv "CASE" or ""
local timeout = tonumber(os.getenv "TEST_TIMEOUT" or "") or 900
local seed = tonumber(os.getenv "SEED" or "") or 1

-- Whether the name contains one of the words.
local function has_word(name, words)
  for word in words:gmatch "%S+" do
    if name:find(word, 1, true) then return true end
  end
  return false
end

local function is_selected(name)
  if not name:find "^test_.*%.lua$" or has_word(name, exclude) then return false end
  return not filter:find "%S" or has_word(name, filter)
end

-- The selected test files, in order.
local function find_files()
  local files = {}
  for _, folder in ipairs { "tests/unit", "tests/system" } do
    local names = dirent.dir(folder)
    table.sort(names)
    for _, name in ipairs(names) do
      if is_selected(name) then
        files[#files + 1] = { name = name, path = folder .. "/" .. name }
      end
    end
  end
  return files
end

local function skip_lines(output)
  local lines = {}
  for line in ("\n" .. output):gmatch "\n(skip: [^\n]*)" do lines[#lines + 1] = line end
  return lines
end

-- Why a file failed; nil if it did not.
local function failure(output, status)
  if status == process.TIMED_OUT then return "ran past " .. timeout .. " s" end
  if status > 128 then return "killed by signal " .. (status - 128) end
  if status ~= 0 then return "exit " .. status end
  if not ("\n" .. output):find "\n%d+ checks, %d+ failed\n" then
    return "ended without check.finish()"
  end
  return nil
end

local totals = { passed = 0, failed = 0, skipped = 0 }

-- Runs one file and prints its line. A file without a case of the wanted name counts as nothing and
-- prints nothing.
local function run_file(file)
  local start = process.now()
  local output, status = process.run({ host.executable, file.path },
    { timeout = timeout, env = { SEGZERO_TEST_SEED = tostring(seed) } })
  if case ~= "" and status == check.NO_SUCH_CASE then return end

  -- What the file's line says.
  local skips = skip_lines(output)
  totals.skipped = totals.skipped + #skips
  local why = failure(output, status)
  local verdict
  if why then
    verdict = "FAILED (" .. why .. ")"
    totals.failed = totals.failed + 1
  elseif #skips > 0 and ("\n" .. output):find("\n0 checks, ", 1, true) then
    verdict = "skipped"
  else
    verdict = "ok"
    totals.passed = totals.passed + 1
  end
  io.write(string.format("%-32s %7.2f s  %s\n", file.name, process.now() - start, verdict))

  -- The whole output of a failed file, only the skips of another.
  if why then
    io.write(output)
    if output:sub(-1) ~= "\n" then io.write("\n") end
  else
    for _, line in ipairs(skips) do io.write("  ", line, "\n") end
  end
  io.flush()
end

print("seed " .. seed)
local files = find_files()
for _, file in ipairs(files) do run_file(file) end

local good = totals.failed == 0
if #files == 0 then
  print("no test file's name contains '" .. filter .. "'")
  good = false
elseif case ~= "" and totals.passed + totals.failed + totals.skipped == 0 then
  print("no case's name contains '" .. case .. "'")
  good = false
end
print(string.format("%d passed, %d failed, %d skipped", totals.passed, totals.failed,
  totals.skipped))
io.flush()
os.exit(good and 0 or 1)
