-- watching.lua - waits until a file is saved.
--
--   watching.each_save(path, f)    calls f() at once and after every change of the file or of a
--                                  module next to it that it requires, until Ctrl-C
--   watching.stop_if_interrupted(message)     raises an error that Ctrl-C made
--
-- Editors that write a new file and rename it are seen, too. The file is looked at four times a
-- second. Leaves out: modules from elsewhere.

local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local user_modules = require "segzero.core.user_modules"

local M = {}

local EVERY = 0.25              -- seconds

function M.stop_if_interrupted(message)
  if core.is_interrupt(message) then error(message, 0) end
end

-- The texts of files, because their times are whole seconds.
local function texts_of(paths)
  local texts = {}
  for i, path in ipairs(paths) do texts[i] = files.read(path) or false end
  return texts
end

local function differ(old, new)
  for i, text in ipairs(new) do
    if text and text ~= old[i] then return true end
  end
  return false
end

local function wait_for_change(paths, texts)
  local nanosleep = require("posix.time").nanosleep
  repeat
    nanosleep { tv_sec = 0, tv_nsec = EVERY * 1e9 }
  until differ(texts, texts_of(paths))
end

function M.each_save(path, f)
  while true do
    local text = files.read(path)
    user_modules.forget()
    f()
    local paths = { path, unpack(user_modules.paths()) }
    local texts = texts_of(paths)
    texts[1] = text or false
    wait_for_change(paths, texts)
  end
end

return M
