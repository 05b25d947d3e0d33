-- test_guard.lua - rewards under a time limit: endless loops, exponential patterns, os.exit, errors
-- that score 0, Ctrl-C.
--
-- The rewards are files, as a user's are. Ctrl-C is sent to a child process.
-- Leaves out: a whole training run (tests/system/test_seams.lua, test_stops.lua).

local check = require "tests.support.check"
local process = require "tests.support.process"
local core = require "segzero.core.ffi"
local guard = require "segzero.reward.guard"
local host = require "segzero.host"
local files = require "segzero.core.files"
local rows = require "segzero.data.rows"
local runner = require "segzero.reward.runner"
local user_code = require "segzero.core.user_code"

local seconds = core.C.sz_seconds
local LIMIT = 0.3               -- seconds; a pattern is left 0.2 s later
local SLACK = 1.5               -- on a busy machine

local folder = os.tmpname()
os.remove(folder)
files.make_dir(folder)

local function reward_file(name, body)
  local path = ("%s/%s.lua"):format(folder, name)
  files.write(path, "return function(text, truth, row)\n" .. body .. "\nend\n")
  return path
end

local function row()
  return rows.new { id = "r\27[31m7", index = 1, problem = "the \27]0;title\7 cat", solution = "s",
    image = { width = 4, height = 4 }, columns = { category = "cat", id = "column", weight = 2 } }
end

local function score(body, rules)
  local sample = { text = "answer \27[2J" }
  local started = seconds()
  local ok, why = pcall(runner.score, runner.load(reward_file("reward", body)), row(), sample,
    rules or runner.rules { timeout = LIMIT, on_error = "stop" })
  return ok, why, sample, seconds() - started
end

local ENDLESS = {
  { "a loop that does not move on", "local i = 1 while i <= #text do i = i + 0 end return 1" },
  { "a loop of nothing", "while true do end" },
  { "a loop that catches errors", "while true do pcall(function() while true do end end) end" },
  { "an error caught once", "pcall(function() while true do end end) return 1" },
  { "a coroutine", "return coroutine.wrap(function() while true do end end)()" },
  { "code made from text", "return loadstring('while true do end')()" },
  { "an exponential pattern", "return #(('a'):rep(1e5):match '.-.-.-.-b' or '')" },
  { "gmatch", "for _ in ('a'):rep(1e5):gmatch '.-.-.-.-b' do end return 1" },
  { "gsub", "return #(('a'):rep(1e5):gsub('.-.-.-.-b', ''))" },
}

for _, one in ipairs(ENDLESS) do
  check.case("the limit ends " .. one[1], function()
    local ok, why, _, spent = score(one[2])
    check.equal(ok, false, "an error")
    check.ok(why:find("the reward did not end within 0.3 s on row r\\x1b[31m7: ", 1, true), why)
    check.ok(why:find("worker.reward.timeout=SECONDS", 1, true), "the cure")
    check.ok(why:find("\n  answer: answer \\x1b[2J\n", 1, true), "the answer, escaped")
    check.ok(not why:find "\27", "no control characters")
    check.ok(spent >= LIMIT and spent < LIMIT + SLACK, ("%.2f s"):format(spent))
  end)
end

check.case("a loop that was compiled before it became a reward", function()
  local path = folder .. "/compiled.lua"
  files.write(path, [[
    local function spin(n) local x = 0 for i = 1, n do x = x + i end return x end
    for _ = 1, 300 do spin(300) end
    return function() return spin(math.huge) end]])
  local started = seconds()
  local ok, why = pcall(runner.score, runner.load(path), row(), { text = "" },
    runner.rules { timeout = LIMIT, on_error = "stop" })
  check.equal(ok, false, "an error")
  check.ok(why:find("did not end within", 1, true), why)
  check.ok(seconds() - started < LIMIT + SLACK, "in time")
end)

check.case("the limit is for one answer and leaves nothing behind", function()
  -- Together they take longer than the limit. A busy machine may stop one for a good while.
  local rules = runner.rules { timeout = 1, on_error = "stop" }
  local was_on = jit.status()
  for i = 1, 60 do
    local ok, why, sample = score(
      "local t = os.clock() + 0.02 while os.clock() < t do end return 1", rules)
    if not ok then check.ok(false, ("answer %d: %s"):format(i, why)) end
    check.equal(sample.score, 1, "its score")
  end
  check.equal(jit.status(), was_on, "the compiler is on as before")
  check.equal(debug.gethook(), nil, "no hook")
end)

check.case("a limit beyond all time is no shorter one", function()
  local ok, why, sample = score("return 1", runner.rules { timeout = 1e300, on_error = "stop" })
  check.equal({ ok, sample.score }, { true, 1 }, tostring(why))
end)

check.case("0 is no limit", function()
  local ok, _, sample = score("local t = os.clock() + 0.6 while os.clock() < t do end return 1",
    runner.rules { timeout = 0, on_error = "stop" })
  check.equal({ ok, sample.score }, { true, 1 }, "a slow reward")
end)

check.case("paused time does not count", function()
  local function slow(t)
    local stop = seconds() + t
    while seconds() < stop do core.C.sz_seconds() end
    return "made"
  end
  local ok, result = guard.call(LIMIT, "row", "text", function() return guard.pause(slow, 0.8) end)
  check.equal({ ok, result }, { true, "made" }, "work of ours")
  local failed, failure = guard.call(LIMIT, "row", "text", function()
    guard.pause(slow, 0.5)
    while true do end           -- luacheck: ignore 542
  end)
  check.equal({ failed, failure.late }, { false, true }, "the limit goes on after it")
  local raised, message = guard.call(LIMIT, "row", "text", function()
    guard.pause(error, "no mask", 0)
  end)
  check.equal({ raised, message.message }, { false, "no mask" }, "an error in it")
end)

-- A reward file whose top level is `text`.
local function load_error(name, text)
  local path = ("%s/%s.lua"):format(folder, name)
  files.write(path, text)
  local started = seconds()
  local ok, why = pcall(runner.load, path, nil, LIMIT)
  check.equal(ok, false, name .. ": an error")
  return path, why, seconds() - started
end

check.case("a file that never ends loading", function()
  files.write(folder .. "/endless_helper.lua", "while true do end")
  local tops = { top = "local i = 0\nwhile true do i = i + 1 end",
    catching = "\nwhile true do pcall(function() while true do end end) end",
    module = "\nrequire 'endless_helper' return function() return 1 end" }
  for name, text in pairs(tops) do
    local path, why, spent = load_error(name, text)
    local at = path .. ":2:"
    if name == "module" then at = folder .. "/endless_helper.lua:1:" end
    check.equal(why:match "^[^\n]*", ("the reward %s does not load: %s it took longer than 0.3 s "
      .. "(worker.reward.timeout=SECONDS is the limit)"):format(path, at), name)
    check.ok(spent < LIMIT + SLACK, ("%s: %.2f s"):format(name, spent))
  end
end)

check.case("a pipe is no reward", function()
  local path = folder .. "/pipe.lua"
  check.equal(os.execute("mkfifo " .. path), 0, "made")
  check.raises(function() runner.load(path) end, "pipe.lua: not a regular file", "refused")
end)

check.case("os.exit while a file loads", function()
  local path, why = load_error("leaves", "os.exit(0)")
  check.ok(why:find(("the reward %s does not load: %s:1: os.exit was called"):format(path, path), 1,
    true), why)
end)

check.case("modules next to a reward file", function()
  files.make_dir(folder .. "/rewards")
  files.make_dir(folder .. "/rewards/parts")
  files.make_dir(folder .. "/here")
  files.write(folder .. "/rewards/r.lua", "local helper = require 'helper' "
    .. "return function() return helper.n + require 'late' + require 'parts.deep' end")
  files.write(folder .. "/rewards/helper.lua", "return { n = 1 }")
  files.write(folder .. "/rewards/late.lua", "return 10")
  files.write(folder .. "/rewards/parts/deep.lua", "return 100")
  -- What must not run: the current folder's module of that name, and replacements of ours.
  files.write(folder .. "/here/helper.lua", "error 'the module of the current folder'")
  for _, name in ipairs { "cjson", "segzero", "posix" } do
    files.write(("%s/rewards/%s.lua"):format(folder, name), "error 'in place of ours'")
  end
  for _, path in ipairs { folder .. "/rewards/r.lua", "../rewards/r.lua" } do
    local out, status = process.run({ "sh", "-c", [[cd "$1" && exec "$0" --threads 1 -e "$2"]],
      host.executable, folder .. "/here", ([[
      local runner = require "segzero.reward.runner"
      local sample = { text = "" }
      runner.score(runner.load %q, { id = 1, problem = "", solution = "" }, sample)
      require "cjson" require "posix.unistd" require "segzero.data"
      print(sample.score)]]):format(path) }, { timeout = 10 })
    check.equal({ out, status }, { "111\n", 0 }, path)
  end
end)

check.case("two rewards with a module of the same name", function()
  local rewards = {}
  for i = 1, 2 do
    local own = ("%s/reward-%d"):format(folder, i)
    files.make_dir(own)
    files.write(own .. "/shared_name.lua", "return " .. i)
    files.write(own .. "/only_later.lua", "return " .. 10 * i)
    files.write(own .. "/r.lua", "local n = require 'shared_name' "
      .. "return function() return n + require 'only_later' end")
    rewards[i] = runner.load(own .. "/r.lua")
  end
  check.equal(rewards[1](), 11, "the first one's modules")
  package.loaded.only_later = nil
  check.equal(rewards[2](), 22, "the second one's")
end)

check.case("os.exit is an error", function()
  local ok, why = score "os.exit(0)"
  check.equal(ok, false, "the program goes on")
  check.ok(why:find "the reward failed on row .*reward.lua:2: os.exit was called", why)
  ok, why = pcall(user_code.call, "the hook on_step", function() os.exit(0) end)
  check.equal(ok, false, "a hook")
  check.ok(why:find "^the hook on_step failed: .*os.exit was called", why)
end)

check.case("an error of any type names the row", function()
  local bodies = { "error { 1 }", "error()", "error(newproxy())", "error(true)",
    "error(setmetatable({}, { __tostring = function() error 'deep' end }))",
    "local function f(x) return 1 + f(x) end return f(1)" }
  for _, body in ipairs(bodies) do
    local ok, why = score(body)
    check.equal(ok, false, body)
    check.ok(why:find("the reward failed on row r\\x1b[31m7", 1, true), body .. ": " .. why)
    local rules = runner.rules { timeout = LIMIT, on_error = "zero" }
    local zero, _, sample = score(body, rules)
    check.equal({ zero, sample.score, runner.take_errors(rules) }, { true, 0, 1 }, body)
  end
  local _, why = score "error(setmetatable({}, { __tostring = function() return 'mine' end }))"
  check.ok(why:find("\nmine", 1, true), why)
end)

check.case("a reward that changes the row changes its own copy", function()
  local one = row()
  local body = "for k in pairs(row) do row[k] = nil end return 1"
  local reward = runner.load(reward_file("changes", body))
  for _ = 1, 2 do runner.score(reward, one, { text = "" }) end
  check.equal({ one.id, one.category, one.image.width }, { "r\27[31m7", "cat", 4 }, "the row")
end)

check.case("on_error=zero scores 0 and counts", function()
  local rules = runner.rules { timeout = LIMIT, on_error = "zero" }
  local bodies = { "error('no ' .. text)", "while true do end", "return 0 / 0", "return 'x'",
    "return 1, 2", "return 1, { part = 'x' }", "os.exit(0)", "return nil", "return -1e31" }
  for _, body in ipairs(bodies) do
    local ok, why, sample = score(body, rules)
    check.equal({ ok, sample.score, sample.parts }, { true, 0 }, body .. ": " .. tostring(why))
  end
  local ok, _, sample = score("return 2, { part = 1 }", rules)
  check.equal({ ok, sample.score, sample.parts }, { true, 2, { part = 1 } }, "a good answer")
  check.equal(runner.take_errors(rules), #bodies, "the count")
  check.equal(runner.take_errors(rules), 0, "since the last question")
  check.equal(runner.take_errors(runner.rules { timeout = 1, on_error = "stop" }), nil, "stop")
end)

check.case("one line for each kind of error", function()
  local path = reward_file("kinds", "error('row ' .. row.index .. ' has \27[1m no box')")
  local out = process.run({ host.executable, "--threads", "1", "-e", ([[
    local runner = require "segzero.reward.runner"
    local rules = runner.rules { timeout = 1, on_error = "zero" }
    local reward = runner.load %q
    for i = 1, 30 do
      runner.score(reward, { id = i, index = i, problem = "", solution = "" }, { text = "" }, rules)
    end]]):format(path) }, { timeout = 30 })
  local _, lines = out:gsub("\n", "")
  check.equal(lines, 1, out)
  check.ok(out:find("note: the reward failed on row 1: ", 1, true), out)
  check.ok(out:find("row 1 has \\x1b[1m no box; such answers score 0", 1, true), out)
end)

check.case("a reward sees every column", function()
  local _, why, sample = score [[
    assert(row.category == "cat" and row.columns.category == "cat" and row.weight == 2)
    assert(row.columns.id == "column" and row.id ~= "column")
    return row.weight]]
  check.equal(sample.score, 2, why)
end)

check.case("Ctrl-C in a reward works at once", function()
  local bodies = { loop = "while true do end",
    pattern = "return #(('a'):rep(1e5):match '.-.-.-.-b' or '')" }
  for name, body in pairs(bodies) do
    local path = reward_file(name, body)
    local out, status = process.run({ "sh", "-c", [["$0" --threads 1 -e "$1" & sleep 1
      kill -INT $!; wait $!]], host.executable, ([[
      local runner = require "segzero.reward.runner"
      runner.score(runner.load %q, { id = 1, problem = "", solution = "" }, { text = "" })]])
      :format(path) }, { timeout = 8 })
    check.equal(status, 130, name .. ": " .. out)
    check.ok(out:find "^segzero: interrupted", name .. ": " .. out)
  end
end)

check.case("C code that does not return ends the process and names the row", function()
  local path = reward_file("stuck", "os.execute 'exec sleep 20 >/dev/null 2>&1' return 1")
  local started = process.now()
  local out, status = process.run({ host.executable, "--threads", "1", "-e", ([[
    local runner = require "segzero.reward.runner"
    runner.score(runner.load %q, { id = "r\27[1m9", problem = "", solution = "" },
      { text = "the answer" }, runner.rules { timeout = 0.2, on_error = "stop" })]])
    :format(path) }, { timeout = 15 })
  check.equal(status, 1, out)
  check.ok(out:find("segzero: the reward of row r?[1m9 took longer than 0.2 s", 1, true), out)
  check.ok(out:find("answer: the answer", 1, true), out)
  check.ok(process.now() - started < 10, "in time")
end)

os.execute("rm -r " .. folder)
check.finish()
