-- test_writes.lua - every write is checked: standard output, logs, results; and whose code
-- `require` runs.
--
-- Faults that need no root: /dev/full, a closed pipe, closed descriptors, `ulimit -f`.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local host = require "segzero.host"
local files = require "segzero.core.files"
local lines = require "segzero.core.lines"

local EXE = mini.quoted(host.executable) .. " --threads 1 "
local place = mini.folder()

-- A shell command's output of both streams and its status.
local function sh(command) return process.run({ "bash", "-c", command }, { timeout = 60 }) end

-- ---- standard output ----
check.case("a line is there when it is printed", function()
  local path = place .. "/printed"
  sh(EXE .. "-e 'print(\"one line\") while true do end' >" .. mini.quoted(path)
    .. " & p=$!; for i in $(seq 100); do [ -s " .. mini.quoted(path)
    .. " ] && break; sleep 0.1; done; kill -9 $p; wait $p")
  check.equal(files.read(path), "one line\n", "a file holds what the killed program had printed")
end)

check.case("a closed pipe ends the program quietly", function()
  local output = sh(EXE .. "-e 'for i = 1, 1e7 do print(i) end' 2>" .. mini.quoted(place)
    .. "/errors | head -1; echo ${PIPESTATUS[0]}")
  check.equal(output, "1\n141\n", "one line, then SIGPIPE's status")
  check.equal(files.read(place .. "/errors"), "", "no words")
  output = sh("trap '' PIPE; " .. EXE .. "-e 'for i = 1, 1e7 do print(i) end' | head -1; "
    .. "echo ${PIPESTATUS[0]}")
  check.equal(output, "1\n141\n", "also where the parent ignores SIGPIPE")
end)

check.case("output that cannot be written is an error", function()
  local output, status = sh(EXE .. "-e 'print(1)' >/dev/full")
  check.equal(status, 1, "status of print")
  check.ok(output:find "^segzero: cannot write standard output: [^\n]+\n$", "one line: " .. output)
  status = select(2, sh(EXE .. "-e 'io.write \"x\" os.exit(0)' >/dev/full"))
  check.equal(status, 1, "status of os.exit after a failed write")
  output, status = sh(EXE .. "-e 'require(\"segzero.log.console\").say \"x\"' >/dev/full")
  check.equal(status, 1, "status of console.say")
  check.ok(output:find "cannot write standard output: No space left on device", "its reason")
end)

check.case("closed descriptors do not become files", function()
  local path = place .. "/data"
  local chunk = "local f = io.open(arg[1], \"w\") print \"lost\" io.stderr:write \"lost\" "
    .. "f:write \"kept\" f:close()"
  files.write(place .. "/closed.lua", chunk)
  local _, status = sh(EXE .. mini.quoted(place) .. "/closed.lua " .. mini.quoted(path)
    .. " <&- >&- 2>&-")
  check.equal(status, 0, "status")
  check.equal(files.read(path), "kept", "only what was written to the file")
end)

check.case("control characters of an error are shown", function()
  local output = sh(EXE .. [[-e 'error("a\27[31mb\194\155c\td\ne", 0)']])
  check.equal(output, "segzero: a\\x1b[31mb\\xc2\\x9bc\td\ne\n", "an error's text")
end)

-- ---- lines ----
check.case("lines are appended whole", function()
  local path = place .. "/lines"
  local f = lines.append(path)
  f:write "one\ntwo\n"
  check.equal(files.read(path), "one\ntwo\n", "before the file is closed")
  f:close()
  f:close()
  check.raises(function() f:write "x\n" end, "lines: it is closed", "a closed file")
  files.write(path, "one\ntwo\n" .. ("x"):rep(10000))
  f = lines.append(path)
  f:write "three\n"
  f:close()
  check.equal(files.read(path), "one\ntwo\nthree\n", "an unfinished line is cut off")
  files.write(path, "no newline")
  lines.append(path):close()
  check.equal(files.read(path), "", "a file of one unfinished line")
  lines.create(path):close()
  check.equal(files.read(path), "", "create empties a file")
  check.raises(function() lines.append(place .. "/none/x") end, "cannot open .*/none/x: No such",
    "a folder that does not exist")
  check.raises(function() lines.append "/dev/null" end, "not a regular file", "a device")
end)

check.case("a short write leaves whole lines and names the file", function()
  local path = place .. "/short"
  files.write(place .. "/short.lua", [[
    local f = require("segzero.core.lines").append(arg[1])
    for i = 1, 1000 do f:write(("line %d\n"):format(i):rep(10)) end
  ]])
  local output, status = sh("ulimit -f 2; " .. EXE .. mini.quoted(place) .. "/short.lua "
    .. mini.quoted(path))
  check.equal(status, 1, "status")
  check.ok(output:find("cannot write " .. path .. ": File too large", 1, true), output)
  local text = files.read(path)
  check.ok(#text > 1500 and #text <= 2048, "most of the space is used")
  check.equal(select(2, text:gsub("line %d+\n", "")) % 10, 0, "batches of ten lines")
  check.equal(text:sub(-1), "\n", "the last line is whole")
end)

check.case("a run whose log cannot grow ends with an error", function()
  local model = mini.write(place .. "/model")
  local folder = place .. "/full"
  local recipe = {}
  for _, a in ipairs(mini.arguments) do recipe[#recipe + 1] = a end
  local output, status = sh("ulimit -f 4; " .. EXE .. "recipes/refcocog_grpo.lua "
    .. "worker.actor.model.model_path=" .. mini.quoted(model) .. " " .. table.concat(recipe, " ")
    .. " data.val_files=None trainer.save_freq=-1 trainer.max_steps=40 "
    .. "worker.reward.sam2_path=none trainer.save_checkpoint_path=" .. mini.quoted(folder))
  check.equal(status, 1, "status")
  check.ok(output:find("cannot write " .. folder .. "/%a+%.jsonl: File too large"), output)
  for _, name in ipairs { "metrics", "rollouts" } do
    local text = files.read(("%s/%s.jsonl"):format(folder, name))
    local count = 0
    for line in text:gmatch "[^\n]*\n?" do
      if line ~= "" then
        count = count + 1
        check.ok(line:find "^{.*}\n$", name .. ": a whole record")
      end
    end
    check.ok(count > 0, name .. " has records")
  end
end)

-- ---- whose code require runs ----
check.case("code of the current folder does not run in place of ours", function()
  local folder = place .. "/downloaded"
  local evil = "io.stderr:write 'not ours\\n' return {}"
  for _, name in ipairs { "cjson", "ffi", "segzero/core/strict", "segzero/init", "segzero/unknown",
    "rewards/seg_strict", "lyaml", "posix/unistd", "doctor" } do
    files.make_dir((folder .. "/" .. name):match "^(.*)/")
    files.write(folder .. "/" .. name .. ".lua", evil)
  end
  files.write(folder .. "/doctor", evil)
  local inside = "cd " .. mini.quoted(folder) .. " && "
  local output, status = sh(inside .. EXE .. "examples/infer.lua --help")
  check.equal(status, 0, "infer.lua starts")
  check.ok(not output:find "not ours", "infer.lua: " .. output:sub(1, 100))
  files.make_dir(folder .. "/examples")
  files.write(folder .. "/examples/infer.lua", evil)
  output, status = sh(inside .. EXE .. "examples/infer.lua --help")
  check.equal(status, 2, "a script that is named like one of ours: status")
  check.ok(output:find "^segzero: examples/infer.lua is in this folder and came with segzero: say "
    and output:find("./examples/infer.lua or " .. host.root, 1, true), output)
  check.equal(sh(inside .. EXE .. "./examples/infer.lua"), "not ours\n", "the one that is named")
  output = sh(inside .. EXE .. "doctor")
  check.ok(not output:find "not ours", "doctor")
  for _, name in ipairs { "cjson", "segzero", "rewards.seg_strict", "posix.unistd",
    "segzero.unknown" } do
    for _, path in ipairs { "", "LUA_PATH='./?.lua;;' ",
      "LUA_PATH='?.lua;../downloaded/?.lua;;' " } do
      output = sh(inside .. path .. EXE .. "-e 'pcall(require, \"" .. name .. "\")'")
      check.equal(output, "", path .. name)
    end
  end
end)

check.case("a user's own modules are found", function()
  local folder = place .. "/project"
  files.make_dir(folder .. "/rewards")
  files.make_dir(folder .. "/tools")
  files.write(folder .. "/rewards/mine.lua", "return 'a reward'")
  files.write(folder .. "/tools/init.lua", "return 'a package'")
  files.write(folder .. "/broken.lua", "return +")
  files.write(folder .. "/run.lua", "print(require 'rewards.mine', require 'tools')")
  check.equal(sh(EXE .. mini.quoted(folder) .. "/run.lua"), "a reward\ta package\n",
    "in the script's folder")
  local inside = "cd " .. mini.quoted(folder) .. " && " .. EXE
  check.equal(sh(inside .. "-e 'print(require \"rewards.mine\")'"), "a reward\n",
    "in the current folder")
  local by_path = "cd " .. mini.quoted(folder) .. " && LUA_PATH='rewards/?.lua;;' " .. EXE
  check.equal(sh(by_path .. "-e 'print(require \"mine\")'"), "a reward\n", "by LUA_PATH")
  check.ok(sh(inside .. "-e 'require \"broken\"'"):find("broken.lua:1:", 1, true),
    "a module that does not compile")
  local output = sh(inside .. "-e 'require \"absent\"'")
  check.ok(output:find("no file './absent.lua'", 1, true), "a missing one: where it was looked for")
end)

mini.remove()
check.finish()
