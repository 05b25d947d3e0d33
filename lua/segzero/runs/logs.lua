-- logs.lua - cuts metrics.jsonl and rollouts.jsonl of a run back to a checkpoint, so that each step
-- stands once when the run goes on.
--
--   logs.later(path, step, again) -> true if the file has lines to cut
--   logs.cut(path, step, again, aside)     moves those lines to the file `aside`
--
-- A line is cut if its step is later than the checkpoint's. again: the held-out rows will be
-- evaluated again at this step, so the old result of that is cut, too. A last line without an end
-- was being written when the run died, and is cut. The cut lines are on the disk before the file is
-- replaced, in one rename.
-- Leaves out: other files of loggers.

local cjson = require "cjson"
local folders = require "segzero.core.folders"

local M = {}

-- The step of a line, and whether it is an evaluation's. The key "step" stands once in most lines;
-- the text inside a value has its quotes escaped.
local function step_of(line)
  local number, stop = line:match '"step":(%d+)()'
  if number and not line:find('"step":', stop, true) then
    return tonumber(number), line:find('"held_out_reward":', 1, true) ~= nil
  end
  local ok, record = pcall(cjson.decode, line)
  if not ok or type(record) ~= "table" then return nil end
  return tonumber(record.step), record.held_out_reward ~= nil
end

local function is_cut(line, step, again)
  local number, evaluation = step_of(line)
  if not number then return false end
  return number > step or (again and evaluation and number == step)
end

-- Calls f(line, cut) for each line; lines keep their end.
local function each(path, step, again, f)
  local file, reason = io.open(path, "rb")
  if not file then error(reason, 0) end
  for line in file:lines() do
    f(line, is_cut(line, step, again))
  end
  file:close()
end

-- Whether the last byte ends a line.
local function is_whole(path)
  local file = assert(io.open(path, "rb"))
  local size = file:seek "end"
  if size > 0 then file:seek("set", size - 1) end
  local last = file:read(1)
  file:close()
  return size == 0 or last == "\n"
end

function M.later(path, step, again)
  if folders.kind(path) ~= "file" then return false end
  if not is_whole(path) then return true end
  local found = false
  each(path, step, again, function(_, cut) found = found or cut end)
  return found
end

-- A file that is written in full, or an error that names it.
local function writer(path, mode)
  local file, reason = io.open(path, mode)
  if not file then error(reason, 0) end
  local self = {}
  function self.line(line)
    local ok, why = file:write(line, "\n")
    if not ok then error(("cannot write %s: %s"):format(path, why), 0) end
  end
  function self.close()
    local ok, why = file:flush()
    local fd = require("posix.stdio").fileno(file)
    if ok then ok, why = require("posix.unistd").fsync(fd) end
    file:close()
    if not ok then error(("cannot write %s: %s"):format(path, why), 0) end
  end
  return self
end

function M.cut(path, step, again, aside)
  local temporary = path .. ".tmp"
  local kept = writer(temporary, "wb")
  local moved = writer(aside, "ab")

  -- The last line, if it has no end, is put aside as well.
  local whole = is_whole(path)
  local held
  each(path, step, again, function(line, cut)
    if held then kept.line(held) end
    held = nil
    if cut then moved.line(line) else held = line end
  end)
  if held and whole then kept.line(held) end
  if held and not whole then moved.line(held) end

  -- Both are on the disk before the old file is replaced.
  kept.close()
  moved.close()
  folders.sync(folders.parent(aside))
  local ok, reason = os.rename(temporary, path)
  if not ok then error(reason, 0) end
  folders.sync(folders.parent(path))
end

return M
