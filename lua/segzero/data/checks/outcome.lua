-- outcome.lua - what the check of a data set found, kept from run to run: a million rows take 20
-- seconds to check, and the files they come from seldom change.
--
--   local kept = outcome.open(set, key)        key: a text of all that the outcome depends on apart
--                                              from files; nil if the set has no paths()
--   kept:read() -> {faults = {...}, notes = {...}} or nil
--   kept:file(path, bytes, time)               a file that was looked at; bytes -1: it is not there
--   kept:write(faults, notes)                  what the whole check found
--   kept:drop()                                instead of write()
--
-- The file is $XDG_CACHE_HOME/segzero/check-HASH.txt: a line with the version, the key's sum, what
-- was found as JSON with its sum, then a line for each file: bytes, time of change, path; the last
-- line counts them. It is written under a name of its own and renamed, so processes may share it.
-- One that is damaged, or names a file whose size or time differs, is as if it were not there.
-- Leaves out: deleting old ones.

local bit = require "bit"
local checksum = require "segzero.core.checksum"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local ffi = require "ffi"
local file_facts = require "segzero.data.checks.file_facts"
local files = require "segzero.core.files"
local key_set = require "segzero.data.checks.key_set"

local M = {}

local VERSION = "segzero check 2, " .. ffi.string(core.C.sz_version())

local methods = {}
local mt = { __index = methods }

function M.open(set, key)
  local place = file_facts.cache_folder()
  if not place or not key or not set.paths then return nil end
  local list = set:paths()
  local current = require("posix.unistd").getcwd() or "."
  for i, path in ipairs(list) do list[i] = file_facts.absolute(path, current) end
  -- The same files may hold several splits, and as many rows as the purpose wants.
  local rows = ("%s %d"):format(set.split or "", set:count())
  local whole = table.concat({ set.name, rows, key, table.concat(list, "\n") }, "\n")
  local a, b = key_set.hash(whole)
  local folder = file_facts.absolute(set.folder or ".", current)
  local self = setmetatable({ place = place, key = checksum.text(whole), paths = list, states = {},
    current = current, front = folder .. "/", stat = file_facts.stat(), count = 0,
    path = ("%s/check-%s%s.txt"):format(place, bit.tohex(a), bit.tohex(b)) }, mt)
  -- As they are before their rows are read.
  for i, path in ipairs(list) do
    local bytes, time = self.stat(path)
    self.states[i] = { bytes or -1, bytes and time or 0 }
  end
  return self
end

-- ---- reading ----
-- Whether a line's file is as it was.
local function is_same(self, line)
  local bytes, time, path = line:match "^(%-?%d+) (%-?[%d.]+) (.+)$"
  if not bytes then return false end
  if path:sub(1, 1) ~= "/" then path = self.front .. path end
  local found, when = self.stat(path)
  if not found then return bytes == "-1" end
  return tonumber(bytes) == found and math.abs(tonumber(time) - when) < 1e-6
end

local function read_found(self, file)
  if file:read "*l" ~= VERSION or file:read "*l" ~= self.key then return nil end
  local sum, text = (file:read "*l" or ""):match "^(%x+) (.*)$"
  if not sum or checksum.text(text) ~= sum then return nil end
  return text
end

local function read_kept(self, file)
  local text = read_found(self, file)
  if not text then return nil end
  local count = 0
  for line in file:lines() do
    local stated = line:match "^end (%d+)$"
    if stated then
      if tonumber(stated) ~= count or file:read(1) then return nil end
      local ok, found = pcall(cjson.decode, text)
      return ok and found or nil
    end
    if not is_same(self, line) then return nil end
    count = count + 1
    if count % 4096 == 0 and core.C.sz_interrupt_pending() ~= 0 then return nil end
  end
  return nil
end

function methods:read()
  local file = io.open(self.path, "rb")
  if not file then return nil end
  local found = read_kept(self, file)
  file:close()
  return found
end

-- ---- writing ----
-- Lines go to a file of their own first: what was found, which comes before them, is known last.
local function open_lines(self)
  if self.lines or self.is_off then return self.lines end
  self.is_off = not pcall(files.make_dir, self.place)
  if self.is_off then return nil end
  self.temporary = ("%s.%d"):format(self.path, ffi.C.getpid())
  self.lines = io.open(self.temporary .. ".lines", "wb")
  self.is_off = not self.lines
  return self.lines
end

function methods:file(path, bytes, time)
  local lines = open_lines(self)
  if not lines then return end
  path = file_facts.absolute(path, self.current)
  if path:find "[\r\n]" then return self:drop() end
  local below = path:sub(#self.front + 1)
  if path:sub(1, #self.front) == self.front and below:find "^[^/]" then path = below end
  if not lines:write(("%.0f %.6f %s\n"):format(bytes, time, path)) then return self:drop() end
  self.count = self.count + 1
end

function methods:drop()
  self.is_off = true
  if not self.lines then return end
  self.lines:close()
  self.lines = nil
  os.remove(self.temporary .. ".lines")
end

-- Copies the lines behind the head. Returns whether all of it was written.
local function write_whole(self, head)
  local from = io.open(self.temporary .. ".lines", "rb")
  local to = io.open(self.temporary .. ".tmp", "wb")
  local good = from and to and to:write(head)
  while good do
    local part = from:read(2 ^ 16)
    if not part then break end
    good = to:write(part)
  end
  good = good and to:write(("end %d\n"):format(self.count))
  if from then from:close() end
  if to then good = to:close() and good end
  return good
end

function methods:write(faults, notes)
  -- The files of the set itself may be the only ones.
  for i, path in ipairs(self.paths) do self:file(path, unpack(self.states[i])) end
  if not self.lines then return end
  local flushed = self.lines:close()
  self.lines = nil
  local ok, text = pcall(cjson.encode, { faults = faults, notes = notes })
  if flushed and ok then
    local head = ("%s\n%s\n%s %s\n"):format(VERSION, self.key, checksum.text(text), text)
    if not write_whole(self, head) or not os.rename(self.temporary .. ".tmp", self.path) then
      os.remove(self.temporary .. ".tmp")
    end
  end
  os.remove(self.temporary .. ".lines")
end

return M
