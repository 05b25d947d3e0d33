-- download.lua - brings the files of a snapshot into the cache: in parallel, resumed where a try
-- broke off, checked, and stored under their sums.
--
--   download.get(session, repository, cached, listing, names)
--
-- listing: api.list's; names: those that are wanted. What the cache has whole is not fetched. A
-- file grows as blobs/ETAG.incomplete, which another process may have begun, under a lock that the
-- system drops with its process; then its size and its sum are compared with the hub's, and it
-- becomes blobs/ETAG. An ETag of 64 digits is the SHA-256, one of 40 the sum that git gives. Leaves
-- out: parts of one file at the same time.

local ffi = require "ffi"
local api = require "segzero.hub.api"
local byte_progress = require "segzero.log.byte_progress"
local core = require "segzero.core.ffi"
local pool = require "segzero.hub.pool"
local progress = require "segzero.hub.progress"

ffi.cdef "int ftruncate(int fd, int64_t length);"

local C = core.C

local M = {}

local AT_ONCE = 8
local MOST_BYTES = 2 ^ 50       -- of a file whose size the hub does not say
local LOCK_EVERY = 0.2          -- seconds between two tries for a lock
local PIECE = 2 ^ 26            -- bytes of a file whose sum is taken at a time
local WRONG_SUMS = 2            -- tries of a file whose sum is wrong

local function posix(name) return require("posix." .. name) end

local function fail(message, ...) error(message:format(...), 0) end

-- ---- what there is to do ----
-- Asks the hub about every wanted file; in the order of `names`.
local function describe(self, names)
  local found = {}
  local tasks = {}
  for i, name in ipairs(names) do
    tasks[i] = function()
      found[i] = api.file(self.session, self.repository, self.commit, name)
    end
  end
  pool.run(tasks, { most = AT_ONCE })
  return found
end

local function size_of(path)
  local found = posix("sys.stat").stat(path)
  return found and found.st_size
end

-- A blob of another size than the hub's is damaged: its rest is no use.
local function has_blob(self, file)
  local path = self.cached:blob(file.etag)
  local size = size_of(path)
  if not size then return false end
  if not file.size or size == file.size then return true end
  if not file.is_noted then
    self.say(("note: %s in the cache has %d bytes instead of %d and is downloaded again"):format(
      file.name, size, file.size))
    file.is_noted = true
  end
  return false
end

-- Whether the snapshot has the file; if its blob is in the cache, the link to it is made.
local function is_here(self, file)
  local cached = self.cached
  if not has_blob(self, file) then
    -- Where links do not work, Python's tools put the file itself there.
    local size = cached:has(self.commit, file.name) and cached:size(self.commit, file.name)
    return size ~= nil and size ~= false and size == file.size
  end
  if not cached:has(self.commit, file.name) then
    cached:link(self.commit, file.name, file.etag)
  end
  return true
end

local function check_space(self, bytes)
  local found = posix("sys.statvfs").statvfs(self.cached.root)
  if not found then return end
  local free = found.f_bavail * found.f_frsize
  if bytes <= free then return end
  fail("%s: %s are needed, and %s has %s free; set HF_HOME to a folder on a larger disk",
    self.repository.shown, byte_progress.size(bytes), self.cached.root, byte_progress.size(free))
end

-- ---- one file ----
-- A digest of the ETag's kind, of the bytes that the file has already; nil if the ETag is no
-- checksum.
local function digest_for(file, fd, have)
  local blob
  if #file.etag == 64 and file.etag:find "^%x+$" then blob = -1 end
  if #file.etag == 40 and file.etag:find "^%x+$" and file.size then blob = file.size end
  if not blob then return nil end
  local digest = ffi.gc(core.call(C.sz_digest_new(blob)), C.sz_digest_free)
  -- In pieces: the other files' transfers go on in between.
  for first = 0, have - 1, PIECE do
    core.call(C.sz_digest_add_file(digest, fd, first, math.min(first + PIECE, have)))
    pool.sleep(0)
  end
  return digest
end

-- Drops all bytes of an unfinished file.
local function empty(fd)
  if ffi.C.ftruncate(fd, 0) == 0 then return end
  fail("the cache cannot be written: %s", ffi.string(ffi.C.strerror(ffi.errno())))
end

-- How many bytes the unfinished file has; one that is too long starts again.
local function begin(file, fd)
  local have = posix("unistd").lseek(fd, 0, posix("unistd").SEEK_END)
  if have > (file.size or 0) then
    empty(fd)
    have = 0
  end
  return have
end

-- Fetches what is missing. Returns true, or false and the reason when the bytes are wrong.
local function fetch_bytes(self, file, fd)
  local have = begin(file, fd)
  local digest = digest_for(file, fd, have)
  file.position = have
  if have < (file.size or MOST_BYTES) then
    file.fd = fd
    file.offset = have
    file.most = file.size or MOST_BYTES
    file.digest = digest
    local reply = self.session:ask("GET", file.url, { file = file })
    local is_past = reply.status == 416 and not reply.error
    if is_past then
      empty(fd)
      return false, "the server has no bytes behind the first " .. have
    end
    local ok = not reply.error and (reply.status == 200 or reply.status == 206)
    if not ok then api.refuse_file(self.session, self.repository, reply, file.name) end
    file.position = reply.position
  end

  -- The size, then the sum.
  local size = file.position
  if file.size and size ~= file.size then
    return false, ("%d bytes came instead of %d"):format(size, file.size)
  end
  local sum = digest and ffi.string(core.call(C.sz_digest_hex(digest)))
  if sum and sum ~= file.etag:lower() then return false, "its sum is not the hub's" end
  return true
end

local function store(self, file, fd, path)
  local ok, why = posix("unistd").fsync(fd)
  if ok then ok, why = os.rename(path, self.cached:blob(file.etag)) end
  if not ok then fail("the cache cannot be written: %s: %s", path, tostring(why)) end
end

local function fetch_locked(self, file)
  if has_blob(self, file) then return end
  local path = self.cached:blob(file.etag) .. ".incomplete"
  local fd = pool.keep(self.cached:open_file(path))
  for i = 1, WRONG_SUMS do
    local ok, why = fetch_bytes(self, file, fd)
    if ok then break end
    empty(fd)
    file.position = 0
    if i == WRONG_SUMS then
      posix("unistd").unlink(path)
      fail("%s: %s was downloaded %d times and is wrong: %s; a proxy or mirror may damage it",
        self.repository.shown, file.name, WRONG_SUMS, why)
    end
  end
  store(self, file, fd, path)
  pool.close(fd)
end

-- Only one process downloads a file; another one waits and then finds it.
local function take_lock(self, file)
  while true do
    local fd = self.cached:lock(file.etag)
    if fd then
      self.own[file.etag] = true
      return pool.keep(fd)
    end
    local path = self.cached:blob(file.etag)
    file.position = size_of(path .. ".incomplete") or size_of(path) or file.position
    if not self.is_waiting and not self.own[file.etag] then
      self.is_waiting = true
      self.say("another process downloads a part of this: waiting for it")
    end
    pool.sleep(LOCK_EVERY)
  end
end

local function fetch(self, file)
  local lock = take_lock(self, file)
  fetch_locked(self, file)
  self.cached:link(self.commit, file.name, file.etag)
  pool.close(lock)
  file.position = file.size or file.position
  self.done = self.done + 1
end

-- ---- all files ----
local function plan(self, names)
  local missing = {}
  local total = 0
  local kept = 0
  for _, file in ipairs(describe(self, names)) do
    if not is_here(self, file) then
      missing[#missing + 1] = file
      total = total + (file.size or 0)
      file.position = size_of(self.cached:blob(file.etag) .. ".incomplete") or 0
      kept = kept + math.min(file.position, file.size or 0)
    end
  end
  -- The large ones first, so that the last minutes are not one file alone.
  table.sort(missing, function(a, b)
    local x = a.size or 0
    local y = b.size or 0
    if x ~= y then return x > y end
    return a.name < b.name
  end)
  return missing, total, kept
end

local function transferred(missing)
  local bytes = 0
  for _, file in ipairs(missing) do bytes = bytes + (file.position or 0) end
  return bytes
end

-- Runs the tasks with the line of progress.
local function fetch_all(self, missing, total, kept)
  local shown = progress.new(self.repository.shown, { files = #missing, bytes = total,
    folder = self.cached.root })
  if kept > 0 then shown:say(("%s of it are here from before"):format(byte_progress.size(kept))) end
  self.say = function(text) shown:say(text) end
  self.session.say = self.say
  local tasks = {}
  for i, file in ipairs(missing) do tasks[i] = function() fetch(self, file) end end
  local function tick() shown:tick(transferred(missing), self.done) end
  local ok, why = pcall(pool.run, tasks, { most = AT_ONCE, tick = tick })
  shown:stop()
  if not ok then error(why, 0) end
  shown:finish(math.max(0, transferred(missing) - kept))
end

function M.get(session, repository, cached, listing, names)
  local self = { session = session, repository = repository, cached = cached,
    commit = listing.commit, done = 0, own = {} }
  self.say = progress.say
  local missing, total, kept = plan(self, names)
  if #missing == 0 then
    self.say(("%s: all %d files are in the cache"):format(repository.shown, #names))
    return
  end
  cached:prepare(listing.commit)
  check_space(self, total - kept)
  fetch_all(self, missing, total, kept)
end

return M
