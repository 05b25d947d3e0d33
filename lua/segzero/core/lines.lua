-- lines.lua - files of text lines that grow while a run goes on: logs and results.
--
--   local f = lines.append(path)     continues a file, or makes one. What follows the last newline
--                                    is cut off: a process that was killed may have left it
--   local f = lines.create(path)     an empty file in place of an old one
--   f:write(text)                    text: whole lines, with the last newline; one call writes all
--                                    of them or nothing
--   f:close()
--
-- Nothing is buffered: a line is in the file when write() returns. A write that fails, also for
-- lack of space, is an error with the path and the reason, and the file still ends with a whole
-- line.
-- Leaves out: reading, syncing to the disk.

local core = require "segzero.core.ffi"

local C = core.C
local call = core.call

local M = {}

local methods = {}
local mt = { __index = methods }

local function open(path, empty)
  return setmetatable({ path = path, fd = call(C.sz_lines_open(path, empty)) }, mt)
end

function M.append(path) return open(path, 0) end

function M.create(path) return open(path, 1) end

function methods:write(text)
  if not self.fd then error(("cannot write %s: it is closed"):format(self.path), 2) end
  call(C.sz_lines_write(self.fd, self.path, text, #text))
end

function methods:close()
  local fd = self.fd
  if not fd then return end
  self.fd = nil
  call(C.sz_lines_close(fd, self.path))
end

return M
