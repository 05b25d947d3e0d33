-- progress.lua - what a user sees of a download, on standard error: one line that is overwritten on
-- a terminal, and a line every half minute elsewhere.
--
--   local p = progress.new("Qwen/Qwen2.5-VL-3B-Instruct", { files = 11, bytes = 7.5e9, folder = })
--   p:tick(bytes so far, files done)
--   p:finish(bytes so far)
--   p:say(text)                    a line of its own
--   progress.say(text)             a line without a download
--
-- Of several ranks only the first one prints. Leaves out: single files.

local ffi = require "ffi"
local byte_progress = require "segzero.log.byte_progress"
local console = require "segzero.log.console"
local core = require "segzero.core.ffi"
local environment = require "segzero.hub.environment"

ffi.cdef "int ioctl(int fd, unsigned long request, ...);"

local M = {}

local size = byte_progress.size

local SHOWN = 0.2               -- seconds between two states on a terminal
local EVERY = 30                -- and between two lines elsewhere
local WINDOW = 10               -- seconds over which the rate is taken

local methods = {}
local mt = { __index = methods }

-- Of the terminal on standard error.
local function columns()
  local TIOCGWINSZ = 0x5413
  local window = ffi.new "unsigned short[4]"        -- rows, columns, pixels
  if ffi.C.ioctl(2, TIOCGWINSZ, window) == 0 and window[1] > 20 then return window[1] end
  return 80
end

-- Whether another rank of the job prints.
local function is_silent()
  for _, name in ipairs { "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK" } do
    if (tonumber(os.getenv(name) or "") or 0) > 0 then return true end
  end
  return false
end

function M.say(text)
  if not is_silent() then io.stderr:write(text .. "\n") end
end

function M.new(name, total)
  local now = core.C.sz_seconds()
  local is_terminal = require("posix.unistd").isatty(2) == 1 and not environment.is_quiet()
  local self = setmetatable({ name = name, total = total, started = now, last = now, marks = {},
    is_terminal = is_terminal }, mt)
  self:say(("%s: downloading %d file%s, %s, into %s"):format(name, total.files,
    total.files == 1 and "" or "s", size(total.bytes), total.folder))
  return self
end

local function clear(self)
  if self.width then io.stderr:write("\r" .. (" "):rep(self.width) .. "\r") end
  self.width = nil
end

function methods:say(text)
  clear(self)
  M.say(text)
end

-- Bytes a second over the last seconds; nil at first.
local function rate(self, now, bytes)
  local marks = self.marks
  marks[#marks + 1] = { now, bytes }
  while #marks > 2 and marks[2][1] < now - WINDOW do table.remove(marks, 1) end
  local seconds = now - marks[1][1]
  if seconds < 0.5 then return nil end
  return (bytes - marks[1][2]) / seconds
end

local function state(self, now, bytes, done)
  local name = self.name
  if self.is_terminal then name = name:match "[^/]*$" end
  local parts = { ("%s: %s of %s"):format(name, size(bytes), size(self.total.bytes)) }
  local speed = rate(self, now, bytes)
  if speed then parts[#parts + 1] = size(speed) .. "/s" end
  if speed and speed > 0 then
    local left = console.duration((self.total.bytes - bytes) / speed)
    parts[#parts + 1] = left .. " left"
  end
  parts[#parts + 1] = ("%d of %d files"):format(done, self.total.files)
  return table.concat(parts, ", ")
end

function methods:tick(bytes, done)
  local now = core.C.sz_seconds()
  local every = self.is_terminal and SHOWN or EVERY
  if now - self.last < every or is_silent() then return end
  self.last = now
  local text = state(self, now, bytes, done)
  if not self.is_terminal then
    io.stderr:write(text .. "\n")
    return
  end
  -- A line that wraps cannot be overwritten.
  text = text:sub(1, columns() - 1)
  clear(self)
  io.stderr:write(text)
  io.stderr:flush()
  self.width = #text
end

function methods:finish(bytes)
  local seconds = math.max(core.C.sz_seconds() - self.started, 1e-3)
  self:say(("%s: downloaded %s in %s (%s/s)"):format(self.name, size(bytes),
    console.duration(seconds), size(bytes / seconds)))
end

-- The download ended early: the line on the terminal stays readable.
function methods:stop() clear(self) end

return M
