-- watching.lua - waits until a file is saved.
--
--   watching.each_save(path, f)    calls f() at once and after every change of the file, until
--                                  Ctrl-C
--   watching.stop_if_interrupted(message)     raises an error that Ctrl-C made
--
-- Editors that write a new file and rename it are seen, too. The file is looked at four times a
-- second. Leaves out: the modules that a file requires.

local core = require "segzero.core.ffi"
local reloading = require "segzero.reward.reloading"

local M = {}

local EVERY = 0.25              -- seconds

function M.stop_if_interrupted(message)
  if core.is_interrupt(message) then error(message, 0) end
end

local function wait_for_change(path, mark)
  local nanosleep = require("posix.time").nanosleep
  repeat
    nanosleep { tv_sec = 0, tv_nsec = EVERY * 1e9 }
    local new = reloading.mark(path)
  until new ~= "" and new ~= mark
end

function M.each_save(path, f)
  while true do
    local mark = reloading.mark(path)
    f()
    wait_for_change(path, mark)
  end
end

return M
