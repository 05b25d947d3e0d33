-- cache.lua - the Hugging Face cache: where Python's tools keep what they fetch, and segzero too.
--
--   local cached = cache.open(repository)       api.repository's; nothing is made
--   cached:commit() -> text | nil               what refs/REVISION says, or the revision itself
--   cached:snapshot(commit)                     the folder of a commit's files
--   cached:has(commit, name)                    whether its file is there, with all its bytes
--   cached:listing(commit) -> {name, ...} | nil all files of the commit, if a tool noted them
--   cached:note_commit(commit)                  writes refs/REVISION
--   cached:note_listing(commit, names)          what listing() then says
--   cached:link(commit, name, etag)             snapshots/COMMIT/NAME -> blobs/ETAG
--   cached:lock(etag) -> fd | nil               one downloader a file; nil: another one has it
--
--   CACHE/models--owner--name/refs/main                    the commit, 40 digits
--                            /blobs/ETAG                   the bytes; ETAG.incomplete at first
--                            /snapshots/COMMIT/config.json -> ../../blobs/ETAG
--                            /trees/COMMIT.json            names of all files, of newer tools
--                            /.segzero/COMMIT.json         the same, of segzero: it stores some
--   CACHE/.locks/models--owner--name/ETAG.lock             locked by flock
--
-- Errors are one line without a position. Leaves out: removing (hf cache does), other kinds than
-- models and data sets.

local cjson = require "cjson"
local core = require "segzero.core.ffi"
local environment = require "segzero.hub.environment"
local files = require "segzero.core.files"
local names = require "segzero.hub.names"

local M = {}

local TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache; "
  .. "see https://bford.info/cachedir/\n"

local methods = {}
local mt = { __index = methods }

local function posix(name) return require("posix." .. name) end

local function fail(message, ...) error(message:format(...), 0) end

function M.open(repository)
  local root = environment.cache()
  local folder = repository.kind .. "s--" .. repository.id:gsub("/", "--")
  return setmetatable({ root = root, path = root .. "/" .. folder, folder = folder,
    revision = repository.revision }, mt)
end

-- ---- asking ----
function methods:commit()
  if names.is_commit(self.revision) then return self.revision end
  local path = self.path .. "/refs/" .. self.revision
  if not files.exists(path) or files.exists(path .. "/.") then return nil end
  local text = (files.read(path) or ""):match "^%s*(.-)%s*$"
  if text == "" then return nil end       -- a crash of an older tool
  if names.is_commit(text) then return text end
  fail("the cache is damaged: %s holds no commit; remove this file", path)
end

function methods:snapshot(commit) return self.path .. "/snapshots/" .. commit end

function methods:blob(etag) return self.path .. "/blobs/" .. etag end

-- A link to nothing is a file that is not there.
function methods:has(commit, name)
  local stat = posix("sys.stat")
  local found = stat.stat(self:snapshot(commit) .. "/" .. name)
  return found ~= nil and stat.S_ISREG(found.st_mode) ~= 0
end

function methods:size(commit, name)
  local found = posix("sys.stat").stat(self:snapshot(commit) .. "/" .. name)
  return found and found.st_size
end

function methods:listing(commit)
  for _, folder in ipairs { "trees", ".segzero" } do
    local text = files.read(("%s/%s/%s.json"):format(self.path, folder, commit))
    local ok, json = pcall(cjson.decode, text or "")
    if ok and type(json) == "table" and type(json.files) == "table" then
      local list = {}
      for name in pairs(json.files) do list[#list + 1] = tostring(name) end
      table.sort(list)
      return list
    end
  end
  return nil
end

-- The files that a commit's folder has, at most two folders deep.
function methods:present(commit)
  local folders = require "segzero.core.folders"
  local found = {}
  local function collect(folder, front, depth)
    for _, name in ipairs(folders.list(folder) or {}) do
      local path = folder .. "/" .. name
      local kind = folders.kind(path)
      if kind == "file" then found[#found + 1] = front .. name end
      if kind == "folder" and depth > 0 then collect(path, front .. name .. "/", depth - 1) end
    end
  end
  collect(self:snapshot(commit), "", 2)
  return found
end

-- Whether a download has begun and has not ended.
function methods:is_unfinished()
  for _, name in ipairs(require("segzero.core.folders").list(self.path .. "/blobs") or {}) do
    if name:find "%.incomplete$" then return true end
  end
  return false
end

-- ---- writing ----
local function make_folder(path)
  local ok, why = pcall(files.make_dir, path)
  if ok then return end
  fail("the cache cannot be written: %s; set HF_HOME to a folder that can be", core.plain(why))
end

-- A small file, whole or not at all, also when two processes write it at the same time.
local function put(path, text)
  make_folder(path:match "^(.*)/")
  local temporary = ("%s.%d.tmp"):format(path, posix("unistd").getpid())
  local file, why = io.open(temporary, "wb")
  if file then
    local ok
    ok, why = file:write(text)
    local closed, reason = file:close()
    if ok then
      ok = closed
      why = reason
    end
    if ok then ok, why = os.rename(temporary, path) end
    if ok then return end
    os.remove(temporary)
  end
  fail("the cache cannot be written: %s; set HF_HOME to a folder that can be", tostring(why))
end

-- The folders of a snapshot, and the mark that backup programs look for.
function methods:prepare(commit)
  make_folder(self.path .. "/blobs")
  make_folder(self:snapshot(commit))
  make_folder(("%s/.locks/%s"):format(self.root, self.folder))
  local tag = self.root .. "/CACHEDIR.TAG"
  if not files.exists(tag) then pcall(put, tag, TAG) end
end

function methods:note_commit(commit)
  if self.revision == commit or not names.is_revision(self.revision) then return end
  local path = self.path .. "/refs/" .. self.revision
  if files.exists(path) and files.read(path) == commit then return end
  put(path, commit)
end

function methods:note_listing(commit, list)
  local path = ("%s/.segzero/%s.json"):format(self.path, commit)
  if files.exists(path) then return end
  local json = {}
  for _, name in ipairs(list) do json[name] = {} end
  put(path, cjson.encode { files = json })
end

-- ---- files ----
local LOCK_MODE = 438           -- rw-rw-rw-, less the umask

-- Opens or makes a file for reading and writing.
function methods:open_file(path)
  local fcntl = posix "fcntl"
  local flags = fcntl.O_RDWR + fcntl.O_CREAT + (fcntl.O_CLOEXEC or 0)
  local fd, why = fcntl.open(path, flags, LOCK_MODE)
  if not fd then
    fail("the cache cannot be written: %s; set HF_HOME to a folder that can be", why)
  end
  return fd
end

function methods:lock(etag)
  local path = ("%s/.locks/%s/%s.lock"):format(self.root, self.folder, etag)
  local fd = self:open_file(path)
  local taken = core.call(core.C.sz_lock_file(fd))
  if taken == 0 then return fd end
  posix("unistd").close(fd)
  return nil
end

function methods:link(commit, name, etag)
  local unistd = posix "unistd"
  local path = self:snapshot(commit) .. "/" .. name
  local up = "../../"
  for _ in name:gmatch "/" do up = up .. "../" end
  make_folder(path:match "^(.*)/")

  -- Under another name, then renamed: the file is never missing.
  local temporary = ("%s.%d.tmp"):format(path, unistd.getpid())
  unistd.unlink(temporary)
  local ok, why = unistd.link(up .. "blobs/" .. etag, temporary, true)
  if not ok then ok, why = unistd.link(self:blob(etag), temporary, false) end
  if ok then ok, why = os.rename(temporary, path) end
  if ok then return end
  unistd.unlink(temporary)
  fail("the cache cannot be written: %s; set HF_HOME to a folder that can be", tostring(why))
end

return M
