-- file_facts.lua - sizes of image files and whether masks hold anything, from headers where they
-- say it, kept from run to run.
--
--   local facts = file_facts.open(folder)       folder: of the data set; names the cache
--   facts:image(path) -> {width =, height =}            or nil and why it cannot be read
--   facts:mask(path)  -> {width =, height =, empty =}   or nil and why
--   facts:save()                                writes the cache if enough is new
--   facts.on_file = f(path, bytes, time)        is called when a file is first asked for; bytes -1:
--                                               it is not there
--   file_facts.stat() -> f(path) -> bytes, time of change, or nil and why
--   file_facts.cache_folder(), file_facts.absolute(path, current)
--
-- The cache is $XDG_CACHE_HOME/segzero/files-HASH.tsv, or below ~/.cache; a line for each file:
-- hash of path and kind, width, height, bytes, time of change, whether it is an empty mask. A file
-- whose size or time differs is read again. Processes may share a cache: it is replaced as a whole,
-- and one that cannot be read is ignored. Memory: 52 bytes a file.
-- Leaves out: deleting old caches.

local bit = require "bit"
local ffi = require "ffi"
local core = require "segzero.core.ffi"
local image = require "segzero.formats.image"
local key_set = require "segzero.data.checks.key_set"
local mask_of = require "segzero.formats.mask"

-- The layout of struct statx is the same on every Linux.
ffi.cdef [[
int getpid(void);
char *strerror(int code);
typedef struct {
  uint32_t mask, blksize;
  uint64_t attributes;
  uint32_t nlink, uid, gid;
  uint16_t mode, spare0;
  uint64_t ino, size, blocks, attributes_mask;
  struct { int64_t sec; uint32_t nsec; int32_t reserved; } atime, btime, ctime, mtime;
  uint64_t rest[32];
} segzero_statx;
int statx(int dirfd, const char *path, int flags, unsigned int mask, segzero_statx *out);
typedef struct {
  double bytes, time;
  int32_t width, height;
  uint8_t empty, seen;
} segzero_file_fact;
]]

local M = {}

-- Another version may read files in another way.
local HEADER = "segzero file facts 2, " .. ffi.string(core.C.sz_version())
local WORTH_SAVING = 64         -- new facts

local AT_FDCWD = -100
local STATX_BASIC_STATS = 0x7ff
local S_IFMT = 0xF000
local S_IFREG = 0x8000

local methods = {}
local mt = { __index = methods }

-- ---- where the cache is ----
function M.cache_folder()
  local base = os.getenv "XDG_CACHE_HOME"
  if base and base:sub(1, 1) == "/" then return base .. "/segzero" end
  local home = os.getenv "HOME"
  if home and home ~= "" then return home .. "/.cache/segzero" end
  return nil
end

function M.absolute(path, current)
  if path:sub(1, 1) == "/" then return path end
  return current .. "/" .. path
end

-- ---- the facts in memory ----
local function room_for(self, number)
  if number < self.room then return end
  local room = math.max(1024, 2 * self.room)
  local facts = ffi.new("segzero_file_fact[?]", room)
  if self.room > 0 then ffi.copy(facts, self.facts, self.room * ffi.sizeof "segzero_file_fact") end
  self.facts = facts
  self.room = room
end

local function put(self, number, width, height, bytes, time, empty)
  room_for(self, number)
  local fact = self.facts[number]
  fact.width = width
  fact.height = height
  fact.bytes = bytes
  fact.time = time
  fact.empty = empty and 1 or 0
end

-- ---- reading and writing the cache ----
local function add_line(self, line)
  local a, b, width, height, bytes, time, empty =
    line:match "^(%x%x%x%x%x%x%x%x)(%x%x%x%x%x%x%x%x)\t(%d+)\t(%d+)\t(%d+)\t(%-?[%d.]+)\t([01])$"
  if not a then return false end
  local number = self.keys:add_hash(bit.tobit(tonumber(a, 16)), bit.tobit(tonumber(b, 16)))
  put(self, number, tonumber(width), tonumber(height), tonumber(bytes), tonumber(time),
    empty == "1")
  return true
end

local function forget(self)
  self.keys = key_set.new()
  self.facts = nil
  self.room = 0
end

local function read_cache(self)
  local file = io.open(self.path, "r")
  if not file then return end
  local good = file:read "*l" == HEADER
  while good do
    local line = file:read "*l"
    if not line then break end
    good = add_line(self, line)
  end
  file:close()
  if not good then forget(self) end
end

local function line_of(self, number)
  local a, b = self.keys:hash_of(number)
  local fact = self.facts[number]
  return ("%s%s\t%d\t%d\t%.0f\t%.6f\t%d\n"):format(bit.tohex(a), bit.tohex(b), fact.width,
    fact.height, fact.bytes, fact.time, fact.empty)
end

-- Writes under a name of its own and renames. What cannot be written is read again next time.
local function write_cache(self)
  local temporary = ("%s.%d.tmp"):format(self.path, ffi.C.getpid())
  local file = io.open(temporary, "w")
  if not file then return end
  local ok = file:write(HEADER, "\n")
  for number = 1, self.keys:count() do
    if ok then ok = file:write(line_of(self, number)) end
  end
  ok = file:close() and ok
  if not ok or not os.rename(temporary, self.path) then os.remove(temporary) end
end

-- ---- the facts ----
-- Bytes and time of change; nil and why for what is no file.
function M.stat()
  local stat = ffi.new "segzero_statx"
  return function(path)
    if ffi.C.statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, stat) ~= 0 then
      return nil, ("%s: %s"):format(path, ffi.string(ffi.C.strerror(ffi.errno())))
    end
    if bit.band(stat.mode, S_IFMT) ~= S_IFREG then return nil, path .. ": not a file" end
    local time = tonumber(stat.mtime.sec) + tonumber(stat.mtime.nsec) * 1e-9
    return tonumber(stat.size), math.floor(time * 1e6 + 0.5) * 1e-6
  end
end

function M.open(folder)
  local self = setmetatable({ new = 0, stat = M.stat() }, mt)
  forget(self)
  self.current = require("posix.unistd").getcwd() or "."
  self.place = M.cache_folder()
  if self.place then
    local a, b = key_set.hash(M.absolute(folder, self.current))
    self.path = ("%s/files-%s%s.tsv"):format(self.place, bit.tohex(a), bit.tohex(b))
    read_cache(self)
  end
  return self
end

-- The fact under this kind of `path`: the known one if the file has not changed, else what read()
-- returns. It stays valid until the next call.
local function fact_of(self, kind, path, read)
  local bytes, time = self.stat(path)
  if not bytes then
    if self.on_file then self.on_file(path, -1, 0) end
    return nil, time
  end
  local number, is_new = self.keys:add(kind .. M.absolute(path, self.current))
  room_for(self, number)
  local known = self.facts[number]
  if self.on_file and known.seen == 0 then self.on_file(path, bytes, time) end
  known.seen = 1
  local is_same = math.abs(known.time - time) < 1e-6 and known.bytes == bytes
  if not is_new and is_same then return known end

  local ok, width, height, empty = pcall(read, path)
  if not ok then
    put(self, number, 0, 0, -1, 0)
    if core.is_interrupt(width) then error(width, 0) end
    return nil, core.plain(width)
  end
  put(self, number, width, height, bytes, time, empty)
  self.new = self.new + 1
  return self.facts[number]
end

function methods:image(path) return fact_of(self, "i", path, image.size) end

function methods:mask(path) return fact_of(self, "m", path, mask_of.facts) end

function methods:save()
  if not self.path or self.new < WORTH_SAVING then return end
  if pcall(require("segzero.core.files").make_dir, self.place) then write_cache(self) end
  self.new = 0
end

function mt:__tostring() return ("facts of %d files"):format(self.keys:count()) end

return M
