-- mutate.lua - feeds damaged inputs to the readers of readers.lua, and checks how they answer.
--
--   ./segzero tests/fuzz/mutate.lua [time=60] [inputs=N] [reader=NAME] [seed=N] [found=FOLDER]
--
-- time: seconds for each reader; inputs: a number of inputs instead. An answer is wrong if it is
-- not one line for a user (an error of Lua's own, a traceback, raw control characters), if it takes
-- over 2 s or if the process grows over 1 GB. Each reader runs in a process of its own, so that a
-- crash is found as well. A wrong answer's input is kept in `found` and its message is printed
-- once. Last line of each reader: its counts. Exit status: 1 if anything was wrong.
-- Leaves out: making inputs smaller.

local mutations = require "tests.fuzz.mutations"
local process = require "tests.support.process"

local MAX_SECONDS = 2
local MAX_KIB = 1024 * 1024
local MAX_MESSAGE = 2000

local options = { time = "60", seed = "1", found = "build/fuzz/found" }
for _, word in ipairs(arg) do
  local key, value = word:match "^(%w+)=(.*)$"
  if not key then error("expected key=value, got " .. word, 0) end
  options[key] = value
end

-- ---- one reader, in this process ----
local function memory_kib()
  local file = io.open "/proc/self/status"
  local text = file:read "*a"
  file:close()
  return tonumber(text:match "VmHWM:%s*(%d+)")
end

-- What is wrong with an error message; nil if nothing is.
local function fault_of(message)
  if type(message) ~= "string" then return "the error is a " .. type(message) end
  message = message:gsub("^[^\n]-tests/fuzz/readers%.lua:%d+: ", "")        -- the caller's place
  local internal = message:find "attempt to" or message:find "bad argument"
    or message:find "stack traceback" or message:find "assertion failed"
    or message:find "not enough memory" or message:find "stack overflow"
  if internal then return "an error of Lua's own" end
  if message:find "^[^\n]*%.lua:%d+:" then return "a place in our sources" end
  if message:find "[%z\1-\8\11-\31\127]" then return "control characters" end
  if #message > MAX_MESSAGE then return "a message of " .. #message .. " bytes" end
  return nil
end

-- Letters only, so that messages that differ in a number or a name count as one.
local function kind_of(message)
  return (message:gsub("%S*/%S*", "/"):gsub(" is .*", ""):gsub("%b''", "'x'"):gsub("%d+", "0"))
end

local function keep(reader, text, number)
  local path = ("%s/%s-%d"):format(options.found, reader.name, number)
  local file = io.open(path, "wb")
  if not file then return "(not kept: no folder " .. options.found .. ")" end
  file:write(text)
  file:close()
  return path
end

local function report(reader, seen, text, number, fault, message)
  local shown = tostring(message):sub(1, 300):gsub("[%z\1-\8\11-\31\127]", "?")
  local kind = fault:gsub("%d+", "0") .. kind_of(shown):sub(1, 40)
  if seen[kind] then return end
  seen[kind] = true
  print(("%s: %s: %s\n    input %s"):format(reader.name, fault, shown,
    keep(reader, text, number)))
end

-- One input: the fault and the message, or nil.
local function try(reader, text, scratch)
  local start = process.now()
  local ok, message = pcall(reader.run, text, scratch)
  local seconds = process.now() - start
  if seconds > MAX_SECONDS then return ("%.1f s"):format(seconds), message end
  if ok then return nil end
  if reader.never_fails then return "it must not fail", message end
  return fault_of(message), message
end

local function run_reader(reader, scratch)
  local r = mutations.random(tonumber(options.seed))
  local deadline = process.now() + tonumber(options.time)
  local limit = tonumber(options.inputs or math.huge)
  local faults = 0
  local count = 0
  local seen = {}
  -- The samples themselves are right.
  for _, text in ipairs(reader.seeds) do
    local ok, message = pcall(reader.run, text, scratch)
    if not ok then error(reader.name .. ": a sample fails: " .. tostring(message), 0) end
  end
  while count < limit and process.now() < deadline do
    local text = mutations.change(r, reader.seeds[r(#reader.seeds)],
      reader.seeds[r(#reader.seeds)])
    local file = io.open(scratch .. "/last_input", "wb")
    file:write(text)
    file:close()
    count = count + 1
    local fault, message = try(reader, text, scratch)
    if fault then
      faults = faults + 1
      report(reader, seen, text, count, fault, message)
    end
    if count % 64 == 0 then collectgarbage() end
    if memory_kib() > MAX_KIB then
      report(reader, seen, text, count, "memory over 1 GB", "")
      faults = faults + 1
      break
    end
  end
  print(("%s: %d inputs, %d wrong, %d MB"):format(reader.name, count, faults,
    memory_kib() / 1024))
  return faults == 0
end

-- ---- all readers, each in a process of its own ----
local function run_all(names)
  local good = true
  for _, name in ipairs(names) do
    local scratch = os.tmpname()
    os.remove(scratch)
    local words = { require("segzero.host").executable, "--threads", "1", "tests/fuzz/mutate.lua",
      "reader=" .. name, "scratch=" .. scratch }
    for key, value in pairs(options) do words[#words + 1] = key .. "=" .. value end
    local output, status = process.run(words, { timeout = tonumber(options.time) + 60 })
    -- The rest are notes that readers print, such as those about unknown keys.
    for line in output:gmatch "[^\n]+" do
      if line:find("^" .. name .. ": ") or line:find "^    input " then print(line) end
    end
    if status > 1 then
      print(output:sub(-2000))
      print(("%s: the process ended with status %d; its input is %s/last_input"):format(name,
        status, scratch))
    else
      process.run({ "rm", "-rf", scratch }, { timeout = 10 })
    end
    if status ~= 0 then good = false end
  end
  return good
end

if options.scratch then
  require("segzero.core.files").make_dir(options.scratch)
  for _, reader in ipairs(require("tests.fuzz.readers").list) do
    if reader.name == options.reader then
      os.exit(run_reader(reader, options.scratch) and 0 or 1)
    end
  end
  error("there is no reader " .. tostring(options.reader), 0)
end

local names = {}
for _, reader in ipairs(require("tests.fuzz.readers").list) do
  if not options.reader or options.reader == reader.name then names[#names + 1] = reader.name end
end
options.reader = nil
os.exit(run_all(names) and 0 or 1)
