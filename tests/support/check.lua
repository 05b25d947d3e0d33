-- check.lua - the few functions that test scripts share.
--
--   local check = require "tests.support.check"
--   check.case("halves round to even", function()       a named case: runs at once, reports its own
--                                                       failures
--     check.equal(round(0.5), 0, "0.5")
--   end)
--   check.finish()                          last line of a test: prints the counts, exits 1 if
--                                           anything failed
--
--   check.ok(x > 0, "x is positive")
--   check.equal(got, want, name)            numbers, strings, booleans, nil; tables by content
--   check.near(got, want, tol, name)        |got - want| <= tol; tables element by element; nan
--                                           only equals nan
--   check.raises(f, "pattern", name)        f() raises a message that matches this Lua pattern
--   check.skip("a CUDA driver")             prints `skip: a CUDA driver`, what the machine lacks;
--                                           the runner counts it
--   check.host(t)                           t, or its copy on the CPU if `segzero --device cuda`
--                                           put it elsewhere
--   check.seed                              the seed of this run (SEED=n make test)
--
--   ./segzero tests/unit/test_x.lua case="text"         runs the cases whose name contains the text
--                                                       (also CASE=text)
--   ./segzero tests/unit/test_x.lua --list              lists the cases without running them
--
-- A failed check prints its file, line and case, and the test goes on. An error inside a case fails
-- that case, with a traceback, and the next case runs. A case without a check fails, and so does a
-- file, unless it skipped. Checks outside a case are allowed and always run. Exit status: 0 passed,
-- 1 failed, 3 no case has the text.
-- Left out: fixtures, set-up and tear-down, nested cases, random order.

-- No test asks the hub itself, nor a cache of the user's.
local function keep_offline()
  local set = require("posix.stdlib").setenv
  if not os.getenv "HF_ENDPOINT" then set("HF_HUB_OFFLINE", "1") end
  set("HF_HOME", "/nonexistent/huggingface")
  for _, name in ipairs { "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN" } do
    set(name, nil)
  end
end
keep_offline()

local M = {}

M.NO_SUCH_CASE = 3

M.seed = tonumber(os.getenv "SEGZERO_TEST_SEED" or "") or 1

local passed = 0
local failed = 0
local skipped = 0
local current                   -- the name of the running case
local reported = 0              -- its failures so far
local seen = {}                 -- the names of all cases
local matched = 0               -- how many of them were selected
local filter                    -- the text that a selected case's name contains; nil selects all
local listing = false

local REPORTED = 20             -- failures of one case that are printed

-- Takes `case=text` and `--list` out of the script's arguments, so that a test sees only its own.
local function read_arguments()
  filter = os.getenv "CASE"
  local arguments = rawget(_G, "arg") or {}
  for i = #arguments, 1, -1 do
    local word = arguments[i]
    local text = word:match "^%-?%-?case=(.*)$"
    if text then filter = text end
    if word == "--list" then listing = true end
    if text or word == "--list" then table.remove(arguments, i) end
  end
  if filter == "" then filter = nil end
end

-- The line of the test that called a public function. Those tail-call count() and leave no frame,
-- so it is at level 3.
local function where()
  local info = debug.getinfo(3, "Sl")
  if not info then return "?" end
  return info.short_src .. ":" .. info.currentline
end

local function report(place, name, detail)
  failed = failed + 1
  reported = reported + 1
  if reported == REPORTED + 1 then
    io.write("(further failures of this case are counted, not printed)\n")
  end
  if reported > REPORTED then return end
  local parts = { "failed", place }
  if current then parts[#parts + 1] = current end
  parts[#parts + 1] = name or "check"
  parts[#parts + 1] = detail
  io.write(table.concat(parts, ": "), "\n")
end

local function count(good, name, detail)
  if good then
    passed = passed + 1
  else
    report(where(), name, detail)
  end
  return good
end

-- ---- values as text, and how two differ ----

local SHOWN = 8         -- entries of a table that a message shows

local show

local function show_table(t)
  local parts = {}
  for i = 1, math.min(#t, SHOWN) do parts[i] = show(t[i]) end
  for k, v in pairs(t) do
    if #parts >= SHOWN then
      parts[#parts + 1] = "..."
      break
    end
    if type(k) ~= "number" then parts[#parts + 1] = tostring(k) .. " = " .. show(v) end
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

function show(v)
  if type(v) == "string" then return string.format("%q", v) end
  if type(v) == "number" then return string.format("%.9g", v) end
  local has_text = type(v) ~= "table" or (getmetatable(v) or {}).__tostring
  if has_text then return tostring(v) end
  return show_table(v)
end

-- The first difference between a and b as text, nil if there is none. same(x, y) compares two
-- leaves.
local function difference(a, b, same, path)
  if type(a) == "table" and type(b) == "table" then
    for k, v in pairs(a) do
      local found = difference(v, b[k], same, path .. "[" .. tostring(k) .. "]")
      if found then return found end
    end
    for k in pairs(b) do
      if a[k] == nil then return path .. "[" .. tostring(k) .. "] is missing" end
    end
    return nil
  end
  if same(a, b) then return nil end
  local text = "got " .. show(a) .. ", expected " .. show(b)
  if path == "" then return text end
  return "at " .. path .. " " .. text
end

-- ---- checks ----

function M.ok(cond, name)
  return count(not not cond, name)
end

function M.equal(got, want, name)
  local found = difference(got, want, rawequal, "")
  return count(found == nil, name, found)
end

function M.near(got, want, tol, name)
  if type(tol) ~= "number" then error("check.near: tol must be a number, got " .. type(tol), 2) end
  local function close(a, b)
    if type(a) ~= "number" or type(b) ~= "number" then return rawequal(a, b) end
    if a ~= a or b ~= b then return a ~= a and b ~= b end
    return a == b or math.abs(a - b) <= tol         -- a == b: infinities
  end
  local found = difference(got, want, close, "")
  return count(found == nil, name, found and found .. string.format(" within %g", tol))
end

function M.raises(f, pattern, name)
  local ok, err = pcall(f)
  if ok then
    return count(false, name, "raised nothing, expected '" .. tostring(pattern) .. "'")
  end
  if pattern == nil or tostring(err):find(pattern) then return count(true, name) end
  return count(false, name, "raised '" .. tostring(err) .. "', expected '" .. pattern .. "'")
end

function M.host(t)
  if t:device() == "cpu" then return t end
  return t:to { device = "cpu" }
end

function M.skip(lacks)
  skipped = skipped + 1
  print("skip: " .. lacks)
end

-- ---- cases ----

-- An error's message with the traceback as far as the case; what follows is check.lua itself.
local function with_traceback(err)
  local text = debug.traceback(tostring(err), 2)
  local stop = text:find("%s+%[C%]: in function 'xpcall'")
  if stop then text = text:sub(1, stop - 1) end
  return text
end

-- Runs f as a named case if it is selected. Returns true if the case ran and nothing in it failed.
function M.case(name, f)
  if type(name) ~= "string" or type(f) ~= "function" then
    error("check.case wants a name and a function, got " .. type(name) .. " and " .. type(f), 2)
  end
  if current then
    error("case '" .. name .. "' is inside case '" .. current .. "': cases do not nest", 2)
  end
  if seen[name] then error("there are two cases '" .. name .. "'", 2) end
  seen[name] = true
  if filter and not name:find(filter, 1, true) then return false end
  matched = matched + 1
  if listing then
    print(name)
    return false
  end

  local info = debug.getinfo(f, "S")
  local place = info.short_src .. ":" .. info.linedefined
  local failed_before = failed
  local events_before = passed + failed + skipped
  current = name
  reported = 0
  local ok, err = xpcall(f, with_traceback)
  if not ok then
    report(place, "raised an error", err)
  elseif passed + failed + skipped == events_before then
    report(place, "checked nothing")
  end
  current = nil
  reported = 0
  return failed == failed_before
end

function M.finish()
  if listing then os.exit(0) end
  if filter and matched == 0 and failed == 0 then
    io.write("no case's name contains '", filter, "'\n")
    io.flush()
    os.exit(M.NO_SUCH_CASE)
  end
  if passed + failed + skipped == 0 then
    report("this file", "checked nothing and skipped nothing")
  end
  print(string.format("%d checks, %d failed", passed + failed, failed))
  io.flush()
  if failed > 0 then os.exit(1) end
end

read_arguments()

return M
