-- checksum.lua - XXH3 checksums with 64 bits (runtime/io/checksum.c), as 16 hexadecimal digits.
--
--   checksum.text "abc"
--   checksum.bytes(pointer, count)
--   checksum.file(path)      of all bytes of a regular file; an error names it
--
-- Leaves out: protection against somebody who changes file and checksum together.

local bit = require "bit"
local ffi = require "ffi"
local core = require "segzero.core.ffi"

local M = {}

function M.text(text) return bit.tohex(core.C.sz_checksum(text, #text, 0)) end

function M.bytes(pointer, count) return bit.tohex(core.C.sz_checksum(pointer, count, 0)) end

function M.file(path)
  local file, reason = io.open(path, "rb")
  if not file then error(reason, 0) end
  local size = file:seek "end"
  file:close()
  local begin = ffi.new("int64_t[1]", 0)
  local stop = ffi.new("int64_t[1]", size or 0)
  local sum = ffi.new "uint64_t[1]"
  core.call(core.C.sz_file_sums(path, 1, begin, stop, 0, sum))
  return bit.tohex(sum[0])
end

return M
