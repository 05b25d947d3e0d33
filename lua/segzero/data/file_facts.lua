-- file_facts.lua - sizes of image files and whether masks hold anything, from headers where they
-- say it, kept from run to run.
--
--   local facts = file_facts.open(folder)       folder: of the data set; names the cache
--   facts:image(path) -> {width =, height =}            or nil and why it cannot be read
--   facts:mask(path)  -> {width =, height =, empty =}   or nil and why
--   facts:save()                                writes the cache if enough is new
--
-- The cache is $XDG_CACHE_HOME/segzero/files-HASH.tsv, or below ~/.cache; a line for each file:
-- kind, width, height, bytes, time of change, path. A file whose size or time differs is read
-- again, and so is one that changed in the last seconds, since times are whole seconds. Processes
-- may share a cache: it is replaced as a whole, and one that cannot be read is ignored.
-- Leaves out: deleting old caches.

local bit = require "bit"
local ffi = require "ffi"
local image = require "segzero.formats.image"
local mask_of = require "segzero.formats.mask"
local core = require "segzero.core.ffi"

ffi.cdef "int getpid(void);"

local M = {}

local HEADER = "segzero file facts 1"
local MOST_LINES = 4e6
local WORTH_SAVING = 64         -- new facts
local RECENT_SECONDS = 3

local methods = {}
local mt = { __index = methods }

-- ---- where the cache is ----
local function cache_folder()
  local base = os.getenv "XDG_CACHE_HOME"
  if base and base:sub(1, 1) == "/" then return base .. "/segzero" end
  local home = os.getenv "HOME"
  if home and home ~= "" then return home .. "/.cache/segzero" end
  return nil
end

local function absolute(path, current)
  if path:sub(1, 1) == "/" then return path end
  return current .. "/" .. path
end

-- FNV-1a in 32 bits, twice with different starts.
local function hash_of(text)
  local function run(h)
    for i = 1, #text do
      h = bit.bxor(h, text:byte(i))
      -- times 16777619
      h = bit.tobit(h + bit.lshift(h, 1) + bit.lshift(h, 4) + bit.lshift(h, 7) + bit.lshift(h, 8)
        + bit.lshift(h, 24))
    end
    return bit.tohex(h)
  end
  return run(-2128831035) .. run(84696351)
end

-- ---- reading and writing the cache ----
-- {[kind .. path] = {width, height, bytes, time, empty}}; empty if there is none or it is damaged.
local function read_cache(path)
  local known = {}
  local file = path and io.open(path, "r")
  if not file then return known end
  local good = file:read "*l" == HEADER
  local lines = 0
  while good do
    local line = file:read "*l"
    if not line then break end
    lines = lines + 1
    local kind, width, height, bytes, time, name =
      line:match "^([ime])\t(%d+)\t(%d+)\t(%d+)\t(%-?%d+)\t(.+)$"
    good = kind ~= nil and lines < MOST_LINES
    if good then
      local key = (kind == "i" and "i" or "m") .. name
      known[key] = { width = tonumber(width), height = tonumber(height), bytes = tonumber(bytes),
        time = tonumber(time), empty = kind == "e" }
    end
  end
  file:close()
  if not good then return {} end
  return known
end

local function line_of(key, fact)
  local kind = key:sub(1, 1)
  if fact.empty then kind = "e" end
  return ("%s\t%d\t%d\t%.0f\t%.0f\t%s\n"):format(kind, fact.width, fact.height, fact.bytes,
    fact.time, key:sub(2))
end

-- Writes under a name of its own and renames. What cannot be written is read again next time.
local function write_cache(path, known)
  local temporary = ("%s.%d.tmp"):format(path, ffi.C.getpid())
  local file = io.open(temporary, "w")
  if not file then return end
  local ok = file:write(HEADER, "\n")
  for key, fact in pairs(known) do
    if ok and not key:find "[\n\r]" then ok = file:write(line_of(key, fact)) end
  end
  ok = file:close() and ok
  if not ok or not os.rename(temporary, path) then os.remove(temporary) end
end

-- ---- the facts ----
function M.open(folder)
  local self = setmetatable({ known = {}, new = 0, now = os.time() }, mt)
  self.current = require("posix.unistd").getcwd() or "."
  local place = cache_folder()
  if place then
    self.place = place
    self.path = ("%s/files-%s.tsv"):format(place, hash_of(absolute(folder, self.current)))
    self.known = read_cache(self.path)
  end
  return self
end

local function stat_of(path)
  local stat = require "posix.sys.stat"
  local found, reason = stat.stat(path)
  if not found then return nil, reason end
  if stat.S_ISREG(found.st_mode) == 0 then return nil, path .. ": not a file" end
  return found
end

-- The fact under this kind of `path`: the known one if the file has not changed, else what read()
-- returns.
local function fact_of(self, kind, path, read)
  local stat, reason = stat_of(path)
  if not stat then return nil, reason end
  local key = kind .. absolute(path, self.current)
  local known = self.known[key]
  if known and known.bytes == stat.st_size and known.time == stat.st_mtime then return known end
  local ok, fact = pcall(read, path)
  if not ok then
    if core.is_interrupt(fact) then error(fact, 0) end
    return nil, core.plain(fact)
  end
  fact.bytes = stat.st_size
  fact.time = stat.st_mtime
  if stat.st_mtime < self.now - RECENT_SECONDS then
    self.known[key] = fact
    self.new = self.new + 1
  end
  return fact
end

local function read_image(path)
  local width, height = image.size(path)
  return { width = width, height = height }
end

function methods:image(path) return fact_of(self, "i", path, read_image) end

function methods:mask(path) return fact_of(self, "m", path, mask_of.facts) end

function methods:save()
  if not self.path or self.new < WORTH_SAVING then return end
  local made = pcall(require("segzero.core.files").make_dir, self.place)
  if made then write_cache(self.path, self.known) end
  self.new = 0
end

function mt:__tostring() return ("facts of files (%d new)"):format(self.new) end

return M
