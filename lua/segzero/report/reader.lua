-- reader.lua - follows metrics.jsonl or rollouts.jsonl of a run: each call reads the lines that are
-- new since the last one, so a run of many steps is read once.
--
--   local r = reader.new(path)
--   r:each(f)           f(line) for each whole new line, without its end. A line that another
--                       process is writing has no end yet and waits for the next call
--   r:damaged(reason)   counts the line that f got last as damaged
--   r:complaint()       nil, or "metrics.jsonl: line 7 is not read (reason), and 2 more"
--
-- A file that does not exist has no lines. One that became shorter was cut back to a checkpoint:
-- each() then returns "cut", and the caller starts again with a new reader.
-- Leaves out: what a line means.

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(path)
  return setmetatable({ path = path, offset = 0, line = 0, bad = 0 }, mt)
end

local BLOCK = 2 ^ 20

-- Calls f for the whole lines of a text; returns the rest behind the last one. (The line reader of
-- the standard library would end a line at a zero byte.)
local function split(self, text, f)
  local from = 1
  while true do
    local stop = text:find("\n", from, true)
    if not stop then return text:sub(from) end
    self.offset = self.offset + stop - from + 1
    self.line = self.line + 1
    f(text:sub(from, stop - 1))
    from = stop + 1
  end
end

function methods:each(f)
  local file = io.open(self.path, "rb")
  if not file then return nil end
  local size = file:seek "end"
  if size < self.offset then
    file:close()
    return "cut"
  end
  file:seek("set", self.offset)
  local rest = ""
  while true do
    local block = file:read(BLOCK)
    if not block then break end
    rest = split(self, rest .. block, f)
  end
  file:close()
  return nil
end

function methods:damaged(reason)
  self.bad = self.bad + 1
  self.first = self.first or { line = self.line, reason = reason }
end

function methods:complaint()
  if self.bad == 0 then return nil end
  local more = ""
  if self.bad > 1 then more = (", and %d more"):format(self.bad - 1) end
  return ("%s: line %d is not read (%s)%s"):format(self.path, self.first.line, self.first.reason,
    more)
end

return M
