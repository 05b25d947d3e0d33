-- check.lua - the few functions that test scripts share.
--
--   local check = require "tests.support.check"
--   check.ok(x > 0, "x is positive")
--   check.equal(got, want, name)            numbers, strings, booleans, nil; tables by content
--   check.near(got, want, tol, name)        |got - want| <= tol; tables of numbers element by element; nan only equals nan
--   check.raises(f, "pattern", name)        f() raises a message that has this Lua pattern
--   check.skip("a CUDA driver")             prints `skip: a CUDA driver`; the runner counts these lines
--   check.host(t)                           t, or its copy on the processor where `segzero --device cuda` put it elsewhere
--   check.finish()                          last line of a test: prints the count, exits 1 if anything failed
--
-- check.seed is the seed of this run (SEED=n make test). A failed check prints where it stands and the test goes on.
-- Left out: fixtures, set-up and tear-down, selecting single checks.

local M = {}

local passed, failed = 0, 0

M.seed = tonumber(os.getenv "SEGZERO_TEST_SEED" or "") or 1

local function where()
  local info = debug.getinfo(3, "Sl")
  return info and info.short_src .. ":" .. info.currentline or "?"
end

-- The public functions tail-call it and leave no frame, so level 3 in where() is the test's own line.
local function count(good, name, detail)
  if good then
    passed = passed + 1
  else
    failed = failed + 1
    io.write("failed: ", where(), ": ", name or "check", detail and ": " .. detail or "", "\n")
  end
  return good
end

local function show(v)
  if type(v) == "string" then return string.format("%q", v) end
  if type(v) == "number" then return string.format("%.9g", v) end
  if type(v) ~= "table" or (getmetatable(v) or {}).__tostring then return tostring(v) end
  local parts = {}
  for i = 1, math.min(#v, 8) do parts[i] = show(v[i]) end
  for k in pairs(v) do
    if #parts >= 8 then
      parts[#parts + 1] = "..."
      break
    end
    if type(k) ~= "number" then parts[#parts + 1] = tostring(k) .. " = " .. show(v[k]) end
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

-- The first difference between a and b as text, nil when there is none. same(x, y) compares two leaves.
local function difference(a, b, same, path)
  if type(a) == "table" and type(b) == "table" then
    for k, v in pairs(a) do
      local d = difference(v, b[k], same, path .. "[" .. tostring(k) .. "]")
      if d then return d end
    end
    for k in pairs(b) do
      if a[k] == nil then return path .. "[" .. tostring(k) .. "] is missing" end
    end
    return nil
  end
  if same(a, b) then return nil end
  return (path ~= "" and "at " .. path .. " " or "") .. "got " .. show(a) .. ", expected " .. show(b)
end

function M.ok(cond, name)
  return count(cond and true or false, name)
end

function M.equal(got, want, name)
  local d = difference(got, want, rawequal, "")
  return count(d == nil, name, d)
end

function M.near(got, want, tol, name)
  if type(tol) ~= "number" then error("check.near: tol must be a number, got " .. type(tol), 2) end
  local function close(a, b)
    if type(a) ~= "number" or type(b) ~= "number" then return rawequal(a, b) end
    if a ~= a or b ~= b then return a ~= a and b ~= b end
    return a == b or math.abs(a - b) <= tol         -- a == b: infinities
  end
  local d = difference(got, want, close, "")
  return count(d == nil, name, d and d .. string.format(" within %g", tol))
end

function M.raises(f, pattern, name)
  local ok, err = pcall(f)
  if ok then
    return count(false, name, "raised nothing, expected '" .. tostring(pattern) .. "'")
  end
  local good = pattern == nil or tostring(err):find(pattern) ~= nil
  return count(good, name, not good and "raised '" .. tostring(err) .. "', expected '" .. pattern .. "'" or nil)
end

function M.host(t)
  return t:device() == "cpu" and t or t:to { device = "cpu" }
end

function M.skip(lacks)
  print("skip: " .. lacks)
end

function M.finish()
  print(string.format("%d checks, %d failed", passed + failed, failed))
  io.flush()
  if failed > 0 then os.exit(1) end
end

return M
