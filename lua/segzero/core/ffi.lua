-- ffi.lua - loads the core library and declares its functions. ffi.cdef reads the part of the C
-- headers between the marks "ffi begin" and "ffi end", so no declaration is written twice.
--
--   local core = require "segzero.core.ffi"
--   core.C.sz_version()           the library's functions
--   core.declare(header)          declares a header below core.root once, for a model family
--   core.headers                  the texts that were declared, for the prompt
--   core.check(x [, level])       returns x; raises the core's message if x is NULL, nil or -1.
--                                 level as for error()
--   core.call(x)                  the same without a position, for code inside core.guarded
--   core.guarded(f)               wraps a public function: errors inside blame its caller
--   core.plain(message)           the message without the "file.lua:12: " at its start
--   core.root                     the folder with lua/, models/, runtime/*.h
--
-- runtime/sz.h and models/models.h are declared here. Leaves out: finding the backend (C does).

local ffi = require "ffi"

local M = {}

local has_host, host = pcall(require, "segzero.host")

-- Without the host program, the root follows from this file's own path.
local function find_root()
  if has_host then return host.root end
  local source = debug.getinfo(1, "S").source
  return source:match("^@(.*)/lua/segzero/core/ffi%.lua$") or "."
end

M.root = find_root()

local declared = {}
M.headers = {}

function M.declare(path)
  if declared[path] then return end
  declared[path] = true
  local file, reason = io.open(M.root .. "/" .. path, "r")
  if not file then error("segzero: a header is missing: " .. reason, 0) end
  local text = file:read("*a")
  file:close()
  local region = text:match("/%* ffi begin %*/(.-)/%* ffi end %*/")
  if not region then
    error("segzero: " .. path .. " has no part between the marks ffi begin and ffi end", 0)
  end
  ffi.cdef(region)
  M.headers[#M.headers + 1] = region
end

M.declare "runtime/sz.h"
M.declare "models/models.h"

local library = has_host and host.library or M.root .. "/build/libsegzero.so"
local loaded, result = pcall(ffi.load, library)
if not loaded then
  error("segzero: the core library does not load (run make): " .. tostring(result), 0)
end
M.C = result

local C = M.C
if has_host and host.on_interrupt then host.on_interrupt(C.sz_interrupt_set) end

-- SEGZERO_CPU narrows the CPU kernels to those of a plainer processor than this one.
local function choose_kernels(name)
  local names = {}
  for i = 0, C.sz_processor_count() - 1 do
    names[i + 1] = ffi.string(C.sz_processor_name(i))
    if names[i + 1] == name then
      if C.sz_processor_runs(i) == 1 then
        if C.sz_processor_choose(i) == 0 then return end
        error(("SEGZERO_CPU=%s: %s"):format(name, ffi.string(C.sz_last_error())), 0)
      end
      error(("SEGZERO_CPU=%s: this processor cannot run these kernels; its own are %s")
        :format(name, ffi.string(C.sz_processor_name(C.sz_processor_chosen()))), 0)
    end
  end
  error(("SEGZERO_CPU=%s: the kinds of kernels are %s"):format(name,
    table.concat(names, ", ")), 0)
end

local kind = os.getenv "SEGZERO_CPU"
if kind and kind ~= "" then choose_kernels(kind) else C.sz_processor_chosen() end

local threads = tonumber(os.getenv "SEGZERO_THREADS" or "")
if threads then C.sz_set_threads(threads) end

local function message()
  local text = ffi.string(C.sz_last_error())
  -- The error that reports an interrupt also clears it.
  if text == "interrupted" then C.sz_interrupt_set(0) end
  return text
end

-- Raises the error of a C function that has failed. A place in the code does not help where memory
-- is short, so that error has none.
function M.check(x, level)
  if x ~= nil and x ~= -1 then return x end
  local text = message()
  if text:find("out of memory", 1, true) then error(text, 0) end
  error(text, (level or 1) + 1)
end

function M.call(x)
  if x == nil or x == -1 then error(message(), 0) end
  return x
end

-- True if the error came from Ctrl-C. Code that continues after errors must raise this one again,
-- because it is reported only once.
function M.is_interrupt(why)
  return type(why) == "string" and why:match "^[^\n]*":find "interrupted!?$" ~= nil
end

-- Removes the "file:line: " that error() adds. The position is inside the library, so it does not
-- help the user.
function M.plain(why) return (tostring(why):gsub("^[^:%s]*%.lua:%d+: ", "")) end

function M.guarded(f)
  return function(...)
    local ok, a, b = pcall(f, ...)
    if not ok then error(a, 2) end
    return a, b
  end
end

return M
