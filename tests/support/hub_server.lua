-- hub_server.lua - a server on loopback that plays the Hugging Face hub, and fails as it is told.
--
--   local server = hub_server.start {
--     models = { ["org/name"] = { folder = "models/tiny/sam2" } },
--     datasets = { ["org/set"] = { files = { ["data.jsonl"] = bytes } } },
--     faults = { ["GET /org/name/resolve"] = { { status = 503 }, { cut = 1000 } } },
--   }
--   server.url                  the hub;  server.cdn: another origin, with the large files
--   server:requests()           -> { { method =, path =, token =, range =, origin = "hub" | "cdn",
--                                      proxied = the host that a proxy was asked for }, ... }
--   server:run({ "fetch", "org/name" }, home, { HF_TOKEN = "x" }) -> output, status
--                               segzero with this hub, and a cache in the folder `home`
--   server:environment(home, more)          its variables
--   server:stop()
--   hub_server.with(world, f)               start(world), f(server), stop()
--   hub_server.nowhere()                    a server that does not answer
--   hub_server.sum(bytes, is_blob), hub_server.etag(name, bytes), hub_server.COMMIT
--
-- A repository: folder and files {name -> bytes}, or one of them; refs {revision -> commit} besides
-- main; token = one that may read it; gated = true. Large files (by their endings) have their
-- SHA-256 as ETag and lead to the other origin; the others have git's sum.
--
-- faults: a text -> what happens to the first, second, ... request whose line "METHOD /path"
-- contains it; of the other origin "CDN METHOD /path". An empty table: nothing. Else one of
--   status =, headers =, body =   this answer           stall = true     none
--   cut = bytes of the body, then the connection ends   part = bytes, and then nothing more
--   slow = seconds before the body                      flip = true      a wrong byte
--   whole = true, 200 instead of a part                 size =           a false X-Linked-Size
--   to = where a redirect leads
-- Each answer is a process; all end with stop(). Leaves out: TLS, connections that stay open.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local host = require "segzero.host"
local poll = require "posix.poll"
local process = require "tests.support.process"
local signal = require "posix.signal"
local socket = require "posix.sys.socket"
local unistd = require "posix.unistd"
local wait = require "posix.sys.wait"

local M = { COMMIT = ("0123456789abcdef"):rep(3):sub(1, 40) }

local LARGE = { safetensors = true, parquet = true, arrow = true, pt = true, png = true }
local PIECE = 16384
local LONGEST = 60              -- seconds for a program

core.declare "runtime/net/net.h"

function M.sum(bytes, is_blob)
  local digest = ffi.gc(core.check(core.C.sz_digest_new(is_blob and #bytes or -1)),
    core.C.sz_digest_free)
  core.check(core.C.sz_digest_add(digest, bytes, #bytes))
  return ffi.string(core.C.sz_digest_hex(digest))
end

local function is_large(name) return LARGE[name:match "%.(%w+)$" or ""] == true end

function M.etag(name, bytes) return M.sum(bytes, not is_large(name)) end

-- ---- replies ----
local REASON = { [200] = "OK", [206] = "Partial Content", [302] = "Found",
  [307] = "Temporary Redirect", [401] = "Unauthorized", [403] = "Forbidden", [404] = "Not Found",
  [416] = "Range Not Satisfiable", [429] = "Too Many Requests", [503] = "Unavailable" }

local function send(connection, text)
  local sent = 0
  while sent < #text do
    local n = socket.send(connection, text:sub(sent + 1, sent + PIECE))
    if not n then unistd._exit(0) end
    sent = sent + n
  end
end

local function reply(connection, status, headers, body, fault)
  local lines = { ("HTTP/1.1 %d %s"):format(status, REASON[status] or "Status") }
  for name, value in pairs(headers) do lines[#lines + 1] = name .. ": " .. value end
  if not headers["Content-Length"] then lines[#lines + 1] = "Content-Length: " .. #body end
  lines[#lines + 1] = "Connection: close\r\n\r\n"
  send(connection, table.concat(lines, "\r\n"))
  if fault.slow then
    require("posix.time").nanosleep { tv_sec = math.floor(fault.slow),
      tv_nsec = fault.slow % 1 * 1e9 }
  end
  if fault.flip then
    body = body:gsub("^.", function(c) return string.char(255 - c:byte()) end)
  end
  if fault.cut or fault.part then body = body:sub(1, fault.cut or fault.part) end
  send(connection, body)
  if fault.part then unistd.sleep(60) end
end

-- ---- what the hub answers ----
local function refuse(connection, status, code, message)
  reply(connection, status, { ["X-Error-Code"] = code, ["X-Error-Message"] = message or code }, "",
    {})
end

local function content(repository, name)
  local own = repository.files and repository.files[name]
  if own or not repository.folder then return own end
  return (files.read(repository.folder .. "/" .. name))
end

local function names_of(repository)
  local list = {}
  local function collect(folder, front)
    for _, name in ipairs(folders.list(folder)) do
      local path = folder .. "/" .. name
      if folders.kind(path) == "folder" then collect(path, front .. name .. "/")
      else list[#list + 1] = front .. name end
    end
  end
  if repository.folder then collect(repository.folder, "") end
  for name in pairs(repository.files or {}) do list[#list + 1] = name end
  table.sort(list)
  return list
end

local function commit_of(repository, revision)
  if revision == "main" or revision == M.COMMIT then return repository.commit or M.COMMIT end
  for name, commit in pairs(repository.refs or {}) do
    if revision == name or revision == commit then return commit end
  end
  return nil
end

local function file_entry(repository, name)
  local bytes = content(repository, name)
  local entry = { type = "file", path = name, size = #bytes, oid = M.sum(bytes, true) }
  if is_large(name) then entry.lfs = { oid = M.sum(bytes), size = #bytes, pointerSize = 130 } end
  return entry
end

local function answer_api(connection, repository, id, rest, fault)
  local kind, revision = rest:match "^(%w+)/([^/?]*)"
  revision = (revision or "main"):gsub("%%2F", "/")
  local commit = commit_of(repository, revision)
  if not commit then return refuse(connection, 404, "RevisionNotFound") end
  local list = {}
  for i, name in ipairs(names_of(repository)) do
    list[i] = { rfilename = name }
    if kind == "tree" then list[i] = file_entry(repository, name) end
  end
  local json = { id = id, sha = commit, siblings = list }
  if kind == "tree" then json = list end
  reply(connection, 200, { ["Content-Type"] = "application/json" }, cjson.encode(json), fault)
end

-- bytes from `first` of a range "bytes=N-".
local function send_file(connection, request, headers, bytes, fault)
  local first = tonumber(request.range:match "^bytes=(%d+)%-$")
  headers["Accept-Ranges"] = "bytes"
  if request.method == "HEAD" then
    headers["Content-Length"] = #bytes
    return reply(connection, 200, headers, "", fault)
  end
  if not first or fault.whole then return reply(connection, 200, headers, bytes, fault) end
  if first >= #bytes then return reply(connection, 416, headers, "", fault) end
  headers["Content-Range"] = ("bytes %d-%d/%d"):format(first, #bytes - 1, #bytes)
  headers["Content-Length"] = #bytes - first
  reply(connection, 206, headers, bytes:sub(first + 1), fault)
end

local function answer_file(self, connection, request, repository, fault)
  local revision, name = request.path:match "/resolve/([^/]+)/(.*)$"
  local commit = commit_of(repository, revision)
  if not commit then return refuse(connection, 404, "RevisionNotFound") end
  local bytes = content(repository, name)
  if not bytes then return refuse(connection, 404, "EntryNotFound") end
  local etag = M.etag(name, bytes)
  local headers = { ["X-Repo-Commit"] = commit, ETag = ('"%s"'):format(etag) }
  if not is_large(name) then return send_file(connection, request, headers, bytes, fault) end
  headers["X-Linked-Etag"] = headers.ETag
  headers["X-Linked-Size"] = fault.size or #bytes
  headers.Location = fault.to or self.cdn .. request.path
  reply(connection, 302, headers, "", fault)
end

-- The repository of a path: "/org/name/...", "/datasets/org/set/...", "/api/models/org/name/...".
local function find(self, path)
  local kind, id, rest = path:match "^/api/(%w+)/([^/]+/[^/]+)/(.*)$"
  if kind then return self[kind] and self[kind][id], id, rest end
  id = path:match "^/datasets/([^/]+/[^/]+)/"
  if id then return self.datasets[id], id end
  id = path:match "^/([^/]+/[^/]+)/"
  return id and self.models[id], id
end

local function answer(self, connection, request, fault)
  if fault.stall then
    unistd.sleep(60)
    return
  end
  if fault.status then
    return reply(connection, fault.status, fault.headers or {}, fault.body or "", fault)
  end
  local repository, id, rest = find(self, request.path)
  if not repository then return refuse(connection, 401, "RepoNotFound") end
  local is_known = request.token == repository.token
  if repository.token and not is_known and request.origin == "hub" then
    if repository.gated then return refuse(connection, 401, "GatedRepo") end
    return refuse(connection, 401, "RepoNotFound")
  end
  if request.origin == "cdn" then
    local bytes = content(repository, request.path:match "/resolve/[^/]+/(.*)$")
    return send_file(connection, request, {}, bytes, fault)
  end
  if rest then return answer_api(connection, repository, id, rest, fault) end
  answer_file(self, connection, request, repository, fault)
end

-- ---- connections ----
local function read_request(connection, origin)
  local text = ""
  while not text:find("\r\n\r\n", 1, true) do
    local more = socket.recv(connection, PIECE)
    if not more or more == "" then return nil end
    text = text .. more
  end
  local method, path = text:match "^(%u+) (%S+)"
  path = path:gsub("%?.*$", "")
  local host = path:match "^http://[^/]+"        -- a client that takes this server for a proxy
  if host then path = path:sub(#host + 1) end
  return { method = method, path = path, origin = origin,
    token = text:match "[Aa]uthorization: Bearer ([^\r]*)" or "",
    range = text:match "[Rr]ange: ([^\r]*)" or "", proxied = host or "" }
end

-- What is to go wrong with this request.
local function fault_of(self, request)
  local line = request.method .. " " .. request.path
  if request.origin == "cdn" then line = "CDN " .. line end
  for text, list in pairs(self.faults) do
    if line:find(text, 1, true) then
      list.count = (list.count or 0) + 1
      return list[list.count] or {}
    end
  end
  return {}
end

local function serve(self, listener, origin)
  local connection = socket.accept(listener)
  if not connection then return end
  socket.setsockopt(connection, socket.SOL_SOCKET, socket.SO_RCVTIMEO, 2, 0)
  local request = read_request(connection, origin)
  if request then
    local log = io.open(self.log, "a")
    log:write(cjson.encode { method = request.method, path = request.path, token = request.token,
      range = request.range, origin = origin, proxied = request.proxied },
      "\n")
    log:close()
    local fault = fault_of(self, request)
    if unistd.fork() == 0 then
      pcall(answer, self, connection, request, fault)
      unistd._exit(0)
    end
  end
  unistd.close(connection)
end

local function listen()
  local fd = assert(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0))
  assert(socket.bind(fd, { family = socket.AF_INET, addr = "127.0.0.1", port = 0 }))
  assert(socket.listen(fd, 64))
  return fd, "http://127.0.0.1:" .. socket.getsockname(fd).port
end

local function loop(self, hub, cdn)
  local list = { [hub] = { events = { IN = true } }, [cdn] = { events = { IN = true } } }
  while true do
    -- What poll says is old unless something is ready.
    local ready = poll.poll(list, 200) or 0
    if ready > 0 and list[hub].revents.IN then serve(self, hub, "hub") end
    if ready > 0 and list[cdn].revents.IN then serve(self, cdn, "cdn") end
    while (wait.wait(-1, wait.WNOHANG) or 0) > 0 do end       -- luacheck: ignore
    if unistd.getppid() ~= self.parent then unistd._exit(0) end
  end
end

local methods = {}
local mt = { __index = methods }

function methods:requests()
  local list = {}
  for line in (files.read(self.log) or ""):gmatch "[^\n]+" do
    list[#list + 1] = cjson.decode(line)
  end
  return list
end

function methods:environment(home, more)
  local env = { HF_HUB_OFFLINE = "", HF_ENDPOINT = self.url, HF_HOME = home }
  for name, value in pairs(more or {}) do env[name] = value end
  return env
end

function methods:run(words, home, more)
  local argv = { host.executable, "--threads", "1" }
  for _, word in ipairs(words) do argv[#argv + 1] = word end
  return process.run(argv, { timeout = LONGEST, env = self:environment(home, more) })
end

function methods:stop()
  signal.kill(-self.pid, signal.SIGKILL)
  wait.wait(self.pid)
  os.remove(self.log)
end

function M.start(options)
  local hub, url = listen()
  local cdn, cdn_url = listen()
  local self = setmetatable({ url = url, cdn = cdn_url, log = os.tmpname(),
    parent = unistd.getpid(), models = options.models or {}, datasets = options.datasets or {},
    faults = options.faults or {} }, mt)
  io.flush()
  self.pid = unistd.fork()
  if self.pid == 0 then
    unistd.setpid("p", 0, 0)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    pcall(loop, self, hub, cdn)
    unistd._exit(1)
  end
  unistd.setpid("p", self.pid, 0)
  unistd.close(hub)
  unistd.close(cdn)
  return self
end

function M.nowhere() return setmetatable({ url = "http://127.0.0.1:1" }, mt) end

function M.with(world, f)
  local server = M.start(world)
  local ok, why = pcall(f, server)
  server:stop()
  if not ok then error(why, 0) end
end

-- As a program, `segzero tests/support/hub_server.lua KIND ID FOLDER`: serves a folder until it is
-- ended, for tests by hand.
if arg and arg[0] and arg[0]:find "hub_server%.lua$" then
  local kind, id, folder = unpack(arg)
  local server = M.start { [kind] = { [id] = { folder = folder } } }
  print(server.url)
  wait.wait(server.pid)
end

return M
