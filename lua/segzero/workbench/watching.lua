-- watching.lua - waits until a file is saved.
--
--   watching.each_save(path, f)    calls f() at once and after every change of the file, until
--                                  Ctrl-C
--   watching.stop_if_interrupted(message)     raises an error that Ctrl-C made
--
-- Editors that write a new file and rename it are seen, too. The file is looked at four times a
-- second. Leaves out: the modules that a file requires.

local core = require "segzero.core.ffi"
local files = require "segzero.core.files"

local M = {}

local EVERY = 0.25              -- seconds

function M.stop_if_interrupted(message)
  if core.is_interrupt(message) then error(message, 0) end
end

-- The text is compared, because times of files are whole seconds.
local function wait_for_change(path, text)
  local nanosleep = require("posix.time").nanosleep
  repeat
    nanosleep { tv_sec = 0, tv_nsec = EVERY * 1e9 }
    local new = files.read(path)
  until new and new ~= text
end

function M.each_save(path, f)
  while true do
    local text = files.read(path)
    f()
    wait_for_change(path, text)
  end
end

return M
