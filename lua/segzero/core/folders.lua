-- folders.lua - folders and files without a shell: listing, removing, syncing, and taking a folder
-- that nobody else has.
--
--   folders.list(path) -> names in order, or nil and the reason
--   folders.kind(path) -> "folder", "file", "other", or nil if there is nothing; follows links
--   folders.same(a, b)           whether two paths are the same folder or file
--   folders.absolute(path)       the real path, or nil if there is nothing
--   folders.remove_file(path)    true, also if there was none; or nil and the reason
--   folders.remove_empty(path)   a folder; true, or nil and the reason
--   folders.sync(path)           makes the names in a folder durable, or raises an error
--   folders.create(path, text, name)   a new file, synced; false if there is one already
--   folders.lock(path) -> a descriptor that holds a file's lock until it is closed or the process
--                                ends; false: another process has it; nil and the reason
--   folders.check(path, name)    refuses a path that cannot be a new folder; name: of the setting
--   folders.check_free(path, name, cure)   refuses also one that holds anything; the error ends
--                                          with the text `cure`
--   folders.check_writable(path, name)   makes the folder and a file in it, and removes what it
--                                made: a program that writes at its end finds out at its beginning
--   folders.claim(path, mark, text, name) -> {path = the folder, wanted =, made = {folders}}
--   folders.cancel(claimed)      removes the mark and the folders that claim() made, if empty
--
-- claim() takes a folder for one owner: path, or path-2, path-3, ... if others have it. A folder is
-- free if it does not exist or is empty. Its owner is who creates the file `mark` in it; the system
-- creates a file for one process only, so starts in the same moment get folders of their own.
-- Errors are one line without a position. Leaves out: removing trees; see runs/manifest.lua.

local ffi = require "ffi"

ffi.cdef "int flock(int fd, int operation);"

local M = {}

local EEXIST = 17
local EWOULDBLOCK = 11
local LOCK_EX = 2
local LOCK_NB = 4
local MOST_NAMES = 100000

-- lua-posix is loaded when it is needed, so that the program starts quickly.
local function posix(name) return require("posix." .. name) end

-- ---- asking ----
function M.list(path)
  local ok, names = pcall(posix("dirent").dir, path)
  if not ok then return nil, (tostring(names):match "%((.*)%)" or tostring(names)) end
  local out = {}
  for _, name in ipairs(names) do
    if name ~= "." and name ~= ".." then out[#out + 1] = name end
  end
  table.sort(out)
  return out
end

function M.kind(path)
  local stat = posix "sys.stat"
  local s = stat.stat(path)
  if not s then return nil end
  if stat.S_ISDIR(s.st_mode) ~= 0 then return "folder" end
  if stat.S_ISREG(s.st_mode) ~= 0 then return "file" end
  return "other"
end

function M.same(a, b)
  local stat = posix "sys.stat".stat
  local x = stat(a)
  local y = stat(b)
  return x ~= nil and y ~= nil and x.st_ino == y.st_ino and x.st_dev == y.st_dev
end

function M.absolute(path) return (posix("stdlib").realpath(path)) end

-- ---- removing, syncing ----
local function removed(ok, reason, code)
  local ENOENT = 2
  if ok or code == ENOENT then return true end
  return nil, reason
end

function M.remove_file(path) return removed(posix("unistd").unlink(path)) end

function M.remove_empty(path) return removed(posix("unistd").rmdir(path)) end

-- A folder that may not be read, and a file system that cannot sync one, are not a failure.
function M.sync(path)
  local fd = posix("fcntl").open(path, posix("fcntl").O_RDONLY)
  if not fd then return end
  local ok, reason, code = posix("unistd").fsync(fd)
  posix("unistd").close(fd)
  local errno = posix "errno"
  if ok or code == errno.EINVAL or code == errno.ENOTSUP then return end
  error(("cannot sync the folder %s: %s"):format(path, reason), 0)
end

-- ---- taking a folder ----
-- The path without slashes at its end; "" for the root.
local function trimmed(path) return (path:gsub("/+$", "")) end

function M.parent(path) return trimmed(path):match "^(.*)/[^/]*$" or "." end

local function refuse(name, ...) error(("%s: %s"):format(name, (...):format(select(2, ...))), 0) end

-- A checkpoint above the path, or nil: nothing else belongs into one.
local function checkpoint_above(path)
  local parent = M.parent(path)
  while parent ~= "." and parent ~= "" do
    local is_checkpoint = M.kind(parent .. "/DONE") and M.kind(parent .. "/trainer_state.json")
    if is_checkpoint then return parent end
    parent = M.parent(parent)
  end
  return nil
end

-- Another process may have made a folder of this name a moment ago: that is no link.
local function is_link(path)
  local stat = posix "sys.stat"
  local found = stat.lstat(path)
  return found ~= nil and stat.S_ISLNK(found.st_mode) ~= 0
end

function M.check(path, name)
  if not path:find "%S" then
    refuse(name, "the path is empty; name a folder such as runs/first")
  end
  -- A shell does not expand it in the middle of a word.
  if path:find "^~" then
    refuse(name, "%s: ~ is not expanded; write $HOME or the whole path", path)
  end
  local short = trimmed(path)
  local last = short:match "[^/]*$"
  if short == "" then refuse(name, "%s is the root folder; name a folder below it", path) end
  if last == "." or last == ".." then
    refuse(name, "%s has no name of its own; name a folder such as runs/first", path)
  end
  if path:find("\0", 1, true) then refuse(name, "the path has a zero byte in it") end
  local kind = M.kind(short)
  if kind and kind ~= "folder" then refuse(name, "%s exists and is not a folder", path) end
  if not kind and is_link(short) then refuse(name, "%s is a link to nothing", path) end
  local checkpoint = checkpoint_above(short)
  if checkpoint then
    refuse(name, "%s is inside the checkpoint %s; name a folder outside it", path, checkpoint)
  end
end

-- Refuses a path that is not free for a new folder.
function M.check_free(path, name, cure)
  M.check(path, name)
  local names = M.list(path)
  if names and #names > 0 then
    refuse(name, "%s holds files already; name another folder%s", path, cure or "")
  end
end

-- Makes a folder and those above it. Adds to `made` what was not there.
local function make(path, made, name)
  local kind = M.kind(path)
  if path == "" or kind == "folder" then return end
  if kind then refuse(name, "%s is not a folder", path) end
  make(M.parent(path), made, name)
  local ok, reason, code = posix("sys.stat").mkdir(path)
  if ok then
    made[#made + 1] = path
    M.sync(M.parent(path))
  elseif code ~= EEXIST or M.kind(path) ~= "folder" then
    refuse(name, "cannot make the folder %s", reason)
  end
end

-- Creates a file with this text and syncs it; false if there is one already.
function M.create(path, text, name)
  local fcntl = posix "fcntl"
  local unistd = posix "unistd"
  local flags = fcntl.O_WRONLY + fcntl.O_CREAT + fcntl.O_EXCL
  local fd, reason, code = fcntl.open(path, flags, 420)       -- 0644
  if not fd then
    if code == EEXIST then return false end
    refuse(name, "cannot write: %s", reason)
  end
  local written, why = unistd.write(fd, text)
  local synced = unistd.fsync(fd)
  unistd.close(fd)
  if written ~= #text or not synced then
    unistd.unlink(path)
    refuse(name, "cannot write %s: %s", path, why or "the disk is full")
  end
  M.sync(M.parent(path))
  return true
end

function M.check_writable(path, name)
  M.check(path, name)
  local made = {}
  make(trimmed(path), made, name)
  local probe = ("%s/.segzero-%d"):format(trimmed(path), posix("unistd").getpid())
  local ok, reason = pcall(M.create, probe, "", name)
  M.remove_file(probe)
  for i = #made, 1, -1 do M.remove_empty(made[i]) end
  if not ok then error(reason, 0) end
end

-- Where a file system has no locks, everybody gets one.
function M.lock(path)
  local fcntl = posix "fcntl"
  local fd, reason = fcntl.open(path, fcntl.O_RDWR + fcntl.O_CLOEXEC)
  if not fd then return nil, reason end
  local failed = ffi.C.flock(fd, LOCK_EX + LOCK_NB) ~= 0
  if failed and ffi.errno() == EWOULDBLOCK then
    posix("unistd").close(fd)
    return false
  end
  return fd
end

-- Whether nobody has put anything into the folder; the reason if it cannot be read.
local function is_empty(path, name)
  local names, reason = M.list(path)
  if not names then refuse(name, "cannot read the folder %s: %s", path, reason) end
  return #names == 0
end

function M.claim(path, mark, text, name)
  M.check(path, name)
  local wanted = trimmed(path)
  for n = 1, MOST_NAMES do
    local folder = wanted
    if n > 1 then folder = ("%s-%d"):format(wanted, n) end
    local kind = M.kind(folder)
    if kind == nil or kind == "folder" then
      local made = {}
      make(folder, made, name)
      if is_empty(folder, name) and M.create(folder .. "/" .. mark, text, name) then
        return { path = folder, wanted = wanted, made = made, mark = mark }
      end
    end
  end
  refuse(name, "%s and %d folders with a number are taken", path, MOST_NAMES - 1)
end

-- A folder that holds anything else stays.
function M.cancel(claimed)
  M.remove_file(claimed.path .. "/" .. claimed.mark)
  for i = #claimed.made, 1, -1 do
    if not M.remove_empty(claimed.made[i]) then return end
  end
end

return M
