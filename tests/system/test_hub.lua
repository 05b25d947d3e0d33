-- test_hub.lua - models and data sets by name, against a server on loopback that plays the Hugging
-- Face hub (tests/support/hub_server.lua) and fails in many ways.
--
-- Each case has a cache of its own. What is shown: the layout, resuming, sums, tries, tokens,
-- refusals, two processes, kill -9 and Ctrl-C. Leaves out: the real hub, TLS, how huggingface_hub
-- sees the cache (tests/golden/check_hub.py), whole programs (test_hub_programs.lua).

local check = require "tests.support.check"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local hub_server = require "tests.support.hub_server"
local host = require "segzero.host"
local names = require "segzero.hub.names"
local process = require "tests.support.process"
local stat = require "posix.sys.stat"
local unistd = require "posix.unistd"

local place = os.tmpname()
os.remove(place)
files.make_dir(place)

local COMMIT = hub_server.COMMIT
local SIZE = 300000                     -- of the weights below

-- Bytes that look random and are the same in every run.
local function noise(n)
  local parts = {}
  local x = 12345
  for i = 1, n do
    x = (x * 1103515245 + 12345) % 2 ^ 31
    parts[i] = string.char(math.floor(x / 65536) % 256)
  end
  return table.concat(parts)
end

local nowhere = hub_server.nowhere()

local WEIGHTS = noise(SIZE)
local ETAG = hub_server.sum(WEIGHTS)
local SMALL = { files = { ["config.json"] = "{}", ["model.safetensors"] = WEIGHTS,
  ["README.md"] = "no", ["pytorch_model.bin"] = "no", ["onnx/model.onnx"] = "no" } }

-- ---- running ----
local count = 0

local function new_home()
  count = count + 1
  return ("%s/home%d"):format(place, count)
end

local with_server = hub_server.with

local function repository(home, name, kind)
  return ("%s/hub/%ss--%s"):format(home, kind or "model", name:gsub("/", "--"))
end

local function blob(home) return repository(home, "org/name") .. "/blobs/" .. ETAG end

local function snapshot(home, name, kind)
  return repository(home, name or "org/name", kind) .. "/snapshots/" .. COMMIT
end

-- The requests that a filter {method =, path = part} lets through.
local function asked(server, wanted)
  local list = {}
  for _, request in ipairs(server:requests()) do
    local fits = (not wanted.method or request.method == wanted.method)
      and (not wanted.origin or request.origin == wanted.origin)
      and (not wanted.path or request.path:find(wanted.path, 1, true) ~= nil)
    if fits then list[#list + 1] = request end
  end
  return list
end

local function one_line(text, name) check.equal(select(2, text:gsub("\n", "")), 1, name .. text) end

-- `segzero fetch` of org/name with these faults; the weights must arrive.
local function arrives(faults, name, more, inspect)
  with_server({ models = { ["org/name"] = SMALL }, faults = faults }, function(server)
    local home = new_home()
    local text, status = server:run({ "fetch", "org/name" }, home, more)
    check.equal(status, 0, name .. ": " .. text)
    check.ok(files.read(blob(home)) == WEIGHTS, name .. ": the weights")
    if inspect then inspect(server, text, home) end
  end)
end

-- The same, which must fail with one line that has these parts; nothing may be stored as whole.
local function fails(world, words, parts, more)
  world.models = world.models or { ["org/name"] = SMALL }
  with_server(world, function(server)
    local home = new_home()
    local text, status = server:run(words, home, more)
    check.equal(status, 1, words[2] .. ": " .. text)
    local last = text:match "([^\n]*)\n$" or ""
    for _, part in ipairs(parts) do
      check.ok(last:find(part, 1, true) ~= nil, ("%s in: %s"):format(part, text))
    end
    check.equal(files.exists(blob(home)), false, "no file under its own name")
    check.ok(not text:find("stack traceback", 1, true), "no traceback")
  end)
end

-- ---- names and sums ----
check.case("sums are those of sha256sum and git", function()
  check.equal(hub_server.sum "abc",
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "SHA-256")
  check.equal(hub_server.sum("", true), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", "an empty blob")
  check.equal(hub_server.sum("hello\n", true), "ce013625030ba8dba906f756967f9e9ca394464a", "a blob")
end)

check.case("names", function()
  for _, name in ipairs { "Qwen/Qwen2.5-VL-3B-Instruct", "a/b", "facebook/sam2-hiera-large" } do
    check.ok(names.is_id(name), name)
  end
  for _, name in ipairs { "a", "a/b/c", "/a/b", "./a", "../a", "a/..", "a/b.git", "a/.b", "a//b",
    "data/rows.jsonl", "weights/sam2.pt", "a b/c", "" } do
    check.ok(not names.is_id(name), name)
  end
  check.equal(names.model "a/b@v1.0", { id = "a/b", revision = "v1.0" }, "a revision")
  check.equal(names.model "a/b@refs/pr/1", { id = "a/b", revision = "refs/pr/1" }, "a long one")
  check.equal(names.model "a/b@../c", nil, "a path")
  check.equal(names.data "a/b@test", { id = "a/b", revision = "main", split = "test" }, "a split")
  check.equal(names.data "a/b@test@v1", { id = "a/b", revision = "v1", split = "test" }, "both")
  check.equal(names.data "a/b@@v1", { id = "a/b", revision = "v1" }, "no split")
  check.equal(names.guess "pretrained_models/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct",
    "a folder of Seg-Zero's scripts")
end)

-- ---- the cache ----
check.case("the cache's layout, and no request when it is full", function()
  with_server({ models = { ["org/name"] = SMALL } }, function(server)
    local home = new_home()
    local text, status = server:run({ "fetch", "org/name" }, home)
    check.equal(status, 0, text)
    check.ok(text:find("downloading 2 files, 300.0 kB", 1, true) ~= nil, "the size first: " .. text)
    check.equal(text:match "([^\n]*)\n$", snapshot(home), "the folder")
    check.equal(files.read(repository(home, "org/name") .. "/refs/main"), COMMIT, "refs/main")
    check.equal(folders.list(snapshot(home)), { "config.json", "model.safetensors" }, "the files")
    check.equal(unistd.readlink(snapshot(home) .. "/model.safetensors"), "../../blobs/" .. ETAG,
      "a relative link")
    check.equal(folders.list(repository(home, "org/name") .. "/blobs"),
      { hub_server.sum("{}", true), ETAG }, "blobs")

    -- By name, in a script and from a full cache.
    local before = #server:requests()
    local chunk = 'print(require("segzero.hub").model "org/name")'
    text, status = server:run({ "-e", chunk }, home)
    check.equal(text, snapshot(home) .. "\n", "from the cache")
    check.equal(status, 0, "from the cache")
    check.equal(#server:requests(), before, "no request")
    server:run({ "fetch", "org/name" }, home)
    check.equal(#asked(server, { method = "GET", path = "resolve" }), 3, "files are fetched once")
  end)
end)

check.case("a path that exists wins", function()
  files.make_dir(place .. "/work/org/name")
  with_server({ models = { ["org/name"] = SMALL } }, function(server)
    local chunk = 'require("posix.unistd").chdir %q print(require("segzero.hub").model "org/name")'
    chunk = chunk:format(place .. "/work")
    check.equal((server:run({ "-e", chunk }, new_home())), "org/name\n", "the folder")
    check.equal(#server:requests(), 0, "no request")
  end)
end)

check.case("variables that say where the cache is", function()
  with_server({ models = { ["org/name"] = SMALL } }, function(server)
    local home = new_home()
    local rows = {
      { { HF_HUB_CACHE = home .. "/a", HUGGINGFACE_HUB_CACHE = home .. "/b" }, home .. "/a" },
      { { HF_HUB_CACHE = "", HUGGINGFACE_HUB_CACHE = home .. "/b" }, home .. "/b" },
      { { HF_HOME = "", XDG_CACHE_HOME = home .. "/c" }, home .. "/c/huggingface/hub" },
      { { HF_HOME = "", XDG_CACHE_HOME = "", HOME = home }, home .. "/.cache/huggingface/hub" },
      { { HF_HOME = "~/x", HOME = home }, home .. "/x/hub" },
    }
    for _, row in ipairs(rows) do
      local text = server:run({ "fetch", "org/name" }, home, row[1])
      check.ok(files.exists(row[2] .. "/models--org--name/refs/main"), row[2] .. ": " .. text)
    end
  end)
end)

check.case("a revision, and older files when the hub does not answer", function()
  local other = ("ab"):rep(20)
  local world = { models = { ["org/name"] = { files = SMALL.files, refs = { ["v1/x"] = other } } } }
  with_server(world, function(server)
    local home = new_home()
    server:run({ "fetch", "org/name@v1/x" }, home)
    check.equal(files.read(repository(home, "org/name") .. "/refs/v1/x"), other, "the ref")
    local text, status = nowhere:run({ "fetch", "org/name", "--revision", "v1/x" }, home)
    check.equal(status, 0, text)
    check.ok(text:find("the cached files are used", 1, true) ~= nil, text)
    check.ok(text:find("snapshots/" .. other, 1, true) ~= nil, text)
    text, status = nowhere:run({ "fetch", "org/name@" .. other }, home, { HF_HUB_OFFLINE = "1" })
    check.equal(status, 0, "by its commit: " .. text)
  end)
end)

check.case("what an offline cache lacks is said", function()
  local list = { ["config.json"] = "{}", ["model.safetensors"] = WEIGHTS,
    ["tokenizer.json"] = "{}" }
  with_server({ models = { ["org/name"] = { files = list } } }, function(server)
    local home = new_home()
    local folder = server:run({ "fetch", "org/name" }, home):match "(/[^\n]*/snapshots/%x+)"
    local offline = { HF_HUB_OFFLINE = "1" }
    local text, status = nowhere:run({ "fetch", "org/name" }, home, offline)
    check.equal({ status, text }, { 0, folder .. "\n" }, "a whole one needs no word")
    check.ok(os.remove(folder .. "/tokenizer.json"), "a file goes")
    text, status = nowhere:run({ "fetch", "org/name" }, home, offline)
    check.equal(status, 0, text)
    check.ok(text:find("org/name: the cached files are used, because HF_HUB_OFFLINE is set, and 1 "
      .. "of its 3 files are missing", 1, true), text)
  end)
end)

-- ---- faults that pass ----
check.case("a broken connection is continued, not begun again", function()
  local faults = { ["CDN GET"] = { { cut = 100000 }, { cut = 50000 } } }
  arrives(faults, "cut twice", nil, function(server)
    local ranges = {}
    for i, request in ipairs(asked(server, { origin = "cdn" })) do ranges[i] = request.range end
    check.equal(ranges, { "", "bytes=100000-", "bytes=150000-" }, "ranges")
  end)
end)

check.case("a server that sends the whole file instead of its rest", function()
  arrives({ ["CDN GET"] = { { cut = 100000 }, { whole = true } } }, "whole")
end)

check.case("wrong bytes are found by their sum and fetched again", function()
  arrives({ ["CDN GET"] = { { flip = true } } }, "flipped once")
  arrives({ ["GET /org/name/resolve/" .. COMMIT .. "/config"] = { { flip = true } } }, "git's sum")
end)

check.case("429 and 5xx pass, and Retry-After is heeded", function()
  local busy = { status = 503 }
  local limited = { status = 429, headers = { ["Retry-After"] = "1" } }
  local faults = { ["GET /api"] = { busy }, ["HEAD /org/name/resolve"] = { limited },
    ["CDN GET"] = { { status = 502 } } }
  local started = process.now()
  arrives(faults, "busy")
  check.ok(process.now() - started >= 2, "it waited")
end)

check.case("a server that says nothing", function()
  local faults = { ["CDN GET"] = { { stall = true } } }
  arrives(faults, "silent", { HF_HUB_DOWNLOAD_TIMEOUT = "1" })
end)

-- ---- tokens ----
check.case("the token goes to the hub and not to another host", function()
  local world = { models = { ["org/name"] = { files = SMALL.files, token = "hf_secret" } },
    faults = { ["HEAD /org/name/resolve"] = { { status = 307,
      headers = { Location = "/org/name/resolve/" .. COMMIT .. "/config.json?again=1" } } } } }
  with_server(world, function(server)
    local home = new_home()
    local text, status = server:run({ "fetch", "org/name" }, home, { HF_TOKEN = " hf_secret\n" })
    check.equal(status, 0, text)
    local cdn = asked(server, { origin = "cdn" })
    check.equal(#cdn, 1, "the weights")
    check.equal(cdn[1].token, "", "no token on the other host")
    for _, request in ipairs(asked(server, { origin = "hub" })) do
      check.equal(request.token, "hf_secret", request.method .. " " .. request.path)
    end
    check.ok(not text:find("hf_secret", 1, true), "it is not printed")

    -- From the file.
    files.make_dir(home .. "/other")
    files.write(home .. "/other/token", "hf_secret\n")
    text, status = server:run({ "fetch", "org/name" }, home .. "/other")
    check.equal(status, 0, text)
    text, status = server:run({ "fetch", "org/name" }, new_home(),
      { HF_TOKEN_PATH = home .. "/other/token" })
    check.equal(status, 0, text)
  end)
end)

-- ---- refusals ----
check.case("refusals say what to do", function()
  local private = { ["org/name"] = { files = SMALL.files, token = "hf_secret" } }
  local gated = { ["org/name"] = { files = SMALL.files, token = "hf_secret", gated = true } }
  local fetch = { "fetch", "org/name" }
  fails({ models = private }, fetch, { "or it is private (set HF_TOKEN if it is a private one)" })
  fails({ models = private }, fetch, { "the token that was sent may not see it" },
    { HF_TOKEN = "hf_x" })
  fails({ models = gated }, fetch, { "is gated: accept its conditions at http://127.0.0.1:",
    "/org/name, then set HF_TOKEN" })
  fails({}, { "fetch", "org/name@v9" }, { "has no branch, tag or commit 'v9'" })
  fails({}, { "fetch", "pretrained_models/Qwen2.5-VL-7B-Instruct" },
    { "there is no such file or folder here", "has no repository pretrained_models/Qwen2.5",
      "Qwen/Qwen2.5-VL-7B-Instruct?" })
  local forbidden = { status = 403, headers = { ["X-Error-Message"] = "no\27" } }
  fails({ faults = { ["GET /api"] = { forbidden } } }, fetch, { "the hub refuses it (403: no" })
  local absent = { status = 404, headers = { ["X-Error-Code"] = "RepoNotFound" } }
  fails({ faults = { ["GET /api"] = { absent } } }, fetch, { "has no repository org/name" })
  fails({ models = { ["org/name"] = { files = { ["model.h5"] = "x" } } } }, fetch,
    { "org/name has no weights that segzero reads: neither .safetensors nor a .pt file" })
  local bin = { files = { ["config.json"] = "{}", ["a.bin"] = "x" } }
  fails({ models = { ["org/name"] = bin } }, fetch,
    { "but a .bin file: save the model as safetensors" })
end)

check.case("faults that stay are one line, and nothing half-done is stored", function()
  local down = { status = 503 }
  local many = { down, down, down, down, down, down, down }
  fails({ faults = { ["GET /api"] = many } }, { "fetch", "org/name" },
    { "HTTP status 503, after 3 tries" })
  local flip = { flip = true }
  fails({ faults = { ["CDN GET"] = { flip, flip } } }, { "fetch", "org/name" },
    { "model.safetensors was downloaded 2 times and is wrong: its sum is not the hub's" })
  local false_size = { size = SIZE + 7 }
  fails({ faults = { ["HEAD /org/name/resolve/" .. COMMIT .. "/model"] = { false_size } } },
    { "fetch", "org/name" }, { "bytes" })
  fails({ faults = { ["GET /org/name/resolve/" .. COMMIT .. "/model"] = {
    { to = "ftp://127.0.0.1/x" } } } }, { "fetch", "org/name" }, { "ftp://127.0.0.1/x" })
end)

check.case("names of files that would leave the folder", function()
  for _, name in ipairs { "../evil.json", "/tmp/evil.json", "a/../../evil.json", "a//b.json" } do
    local repo = { files = { ["config.json"] = "{}", [name] = "x" } }
    fails({ models = { ["org/name"] = repo } }, { "fetch", "org/name" },
      { "not a path inside the repository" })
  end
end)

check.case("answers that are no hub's", function()
  local bodies = { "<html>", "[]", '{"sha": 5, "siblings": []}', '{"sha": "../x", "siblings": []}',
    '{"sha": "' .. COMMIT .. '", "siblings": [5]}' }
  for _, body in ipairs(bodies) do
    local faults = { ["GET /api"] = { { status = 200, body = body } } }
    fails({ faults = faults }, { "fetch", "org/name" }, { "org/name" })
  end
  local head = "HEAD /org/name/resolve/" .. COMMIT .. "/config.json"
  for _, etag in ipairs { "", '"../../evil"', '"/tmp/evil"', '".."', ("x"):rep(300) } do
    local faults = { [head] = { { status = 200, headers = { ETag = etag } } } }
    fails({ faults = faults }, { "fetch", "org/name" }, { "config.json has no usable ETag" })
  end
end)

-- ---- processes ----
local function wait_for(f, seconds)
  local stop = process.now() + seconds
  while process.now() < stop do
    if f() then return true end
    require("posix.time").nanosleep { tv_sec = 0, tv_nsec = 2e7 }
  end
  return false
end

local function bytes_of(path)
  local found = stat.stat(path)
  return found and found.st_size or 0
end

check.case("two processes download one file once", function()
  local world = { models = { ["org/name"] = SMALL }, faults = { ["CDN GET"] = { { slow = 0.7 } } } }
  with_server(world, function(server)
    local home = new_home()
    local argv = { host.executable, "fetch", "org/name" }
    local env = server:environment(home)
    local first = process.start(argv, { env = env, output = place .. "/first.txt" })
    local second = process.start(argv, { env = env, output = place .. "/second.txt" })
    check.equal(process.wait(first), 0, files.read(place .. "/first.txt"))
    check.equal(process.wait(second), 0, files.read(place .. "/second.txt"))
    check.equal(#asked(server, { origin = "cdn" }), 1, "one download")
    check.ok(files.read(blob(home)) == WEIGHTS, "the weights")
  end)
end)

check.case("a process takes over from one that was killed", function()
  local faults = { ["CDN GET"] = { { part = 200000 } } }
  with_server({ models = { ["org/name"] = SMALL }, faults = faults }, function(server)
    local home = new_home()
    local argv = { host.executable, "fetch", "org/name" }
    local env = server:environment(home)
    local first = process.start(argv, { env = env, output = place .. "/first.txt" })
    local path = blob(home) .. ".incomplete"
    check.ok(wait_for(function() return bytes_of(path) == 200000 end, 10), "the first part")
    local second = process.start(argv, { env = env, output = place .. "/second.txt" })
    local function is_waiting()
      local text = files.read(place .. "/second.txt") or ""
      return text:find("another process downloads", 1, true) ~= nil
    end
    check.ok(wait_for(is_waiting, 10), "the second one waits")
    process.signal(first, 9)
    check.equal(process.wait(first), 137, "killed")
    check.equal(process.wait(second), 0, files.read(place .. "/second.txt"))
    check.equal(asked(server, { origin = "cdn" })[2].range, "bytes=200000-", "the rest alone")
    check.ok(files.read(blob(home)) == WEIGHTS, "the weights")
  end)
end)

-- Ends a download in its middle by a signal; returns after it has been continued.
local function interrupted(number, status)
  local faults = { ["CDN GET"] = { { part = 200000 } } }
  local world = { models = { ["org/name"] = SMALL }, faults = faults }
  with_server(world, function(server)
    local home = new_home()
    local output = place .. "/interrupted.txt"
    local child = process.start({ host.executable, "fetch", "org/name" },
      { env = server:environment(home), output = output })
    local path = blob(home) .. ".incomplete"
    check.ok(wait_for(function() return bytes_of(path) == 200000 end, 10), "the first part")
    local started = process.now()
    process.signal(child, number)
    check.equal(process.wait(child), status, "status")
    check.ok(process.now() - started < 1, "at once")
    check.equal(bytes_of(path), 200000, "what came is kept")
    local text = server:run({ "fetch", "org/name" }, home)
    check.ok(text:find("200.0 kB of it are here from before", 1, true) ~= nil, text)
    check.ok(files.read(blob(home)) == WEIGHTS, "the weights")
    check.equal(asked(server, { origin = "cdn" })[2].range, "bytes=200000-", "the rest alone")
    if number == 2 then one_line(files.read(output):gsub("^[^\n]*\n", ""), "Ctrl-C: ") end
  end)
end

check.case("kill -9 in the middle, then continued", function() interrupted(9, 137) end)

check.case("Ctrl-C in the middle, then continued", function() interrupted(2, 130) end)

-- ---- damaged, full and closed caches ----
check.case("a damaged cache", function()
  with_server({ models = { ["org/name"] = SMALL } }, function(server)
    local home = new_home()
    server:run({ "fetch", "org/name" }, home)
    files.write(blob(home), "cut")
    local text, status = server:run({ "fetch", "org/name" }, home)
    check.equal(status, 0, text)
    local note = "note: model.safetensors in the cache has 3 bytes instead of 300000"
    check.ok(text:find(note, 1, true) ~= nil, text)
    check.ok(files.read(blob(home)) == WEIGHTS, "whole again")

    -- What an earlier try left is no part of the file.
    os.remove(blob(home))
    files.write(blob(home) .. ".incomplete", ("x"):rep(1000))
    text, status = server:run({ "fetch", "org/name" }, home)
    check.equal(status, 0, "a wrong beginning: " .. text)
    check.ok(files.read(blob(home)) == WEIGHTS, "whole again")
    files.write(repository(home, "org/name") .. "/refs/main", "garbage")
    text, status = server:run({ "fetch", "org/name" }, home)
    check.equal(status, 1, text)
    one_line(text, "a damaged ref: ")
    check.ok(text:find("refs/main holds no commit; remove this file", 1, true) ~= nil, text)
  end)
end)

check.case("a cache that cannot be written, and a full disk", function()
  with_server({ models = { ["org/name"] = SMALL } }, function(server)
    local text, status = server:run({ "fetch", "org/name" }, "/dev/null/x")
    check.equal(status, 1, text)
    check.ok(text:find("the cache cannot be written: ", 1, true) ~= nil, text)
    local home = new_home()
    local argv = { "sh", "-c", "ulimit -f 200; exec " .. host.executable .. " fetch org/name" }
    text, status = process.run(argv, { timeout = 20, env = server:environment(home) })
    check.equal(status, 1, text)
    check.ok(text:find("model.safetensors cannot be written: File too large", 1, true) ~= nil, text)
    text, status = server:run({ "fetch", "org/name" }, home)
    check.equal(status, 0, "with space: " .. text)
  end)
end)

check.case("offline", function()
  local text, status = nowhere:run({ "fetch", "org/name" }, new_home(), { HF_HUB_OFFLINE = "1" })
  check.equal(status, 1, text)
  one_line(text, "offline: ")
  check.ok(text:find("HF_HUB_OFFLINE is set, so nothing is downloaded", 1, true) ~= nil, text)
  text = nowhere:run({ "fetch", "org/name" }, new_home())
  one_line(text, "no network: ")
  check.ok(text:find("Check the network, https_proxy and HF_ENDPOINT", 1, true) ~= nil, text)
end)

check.case("a proxy", function()
  with_server({ models = { ["org/name"] = SMALL } }, function(server)
    local text, status = server:run({ "fetch", "org/name" }, new_home(),
      { HF_ENDPOINT = "http://hub.invalid/", http_proxy = server.url, no_proxy = "127.0.0.1" })
    check.equal(status, 0, text)
    check.equal(server:requests()[1].proxied, "http://hub.invalid", "through the proxy")
  end)
end)

process.run { "rm", "-rf", place }
check.finish()
