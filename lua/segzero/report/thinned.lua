-- thinned.lua - a store of one entry a step, within a limit: when it is passed, every second step
-- is dropped. The newest step is always kept.
--
--   local kept = thinned.new { bytes = 2 ^ 20, steps = 500 }
--   kept:put(step, entry, bytes)     entry: any table; steps come in ascending order, and one that
--                                    comes again replaces itself
--   kept:widen()                     drops every second step now
--   kept.entries[step]               kept.stride: every how many steps
--   kept:list() -> steps in order
--
-- Leaves out: what an entry is.

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(limit)
  return setmetatable({ limit = limit, entries = {}, sizes = {}, total = 0, count = 0, stride = 1 },
    mt)
end

local function on_grid(self, step) return (step - 1) % self.stride == 0 end

local function drop(self, step)
  if not self.entries[step] then return end
  self.total = self.total - self.sizes[step]
  self.count = self.count - 1
  self.entries[step] = nil
  self.sizes[step] = nil
end

local function is_over(self)
  return self.total > self.limit.bytes or self.count > self.limit.steps
end

function methods:widen()
  self.stride = self.stride * 2
  for _, step in ipairs(self:list()) do
    if not on_grid(self, step) and step ~= self.newest then drop(self, step) end
  end
end

local function thin(self)
  while is_over(self) and self.count > 2 do self:widen() end
end

function methods:list()
  local steps = {}
  for step in pairs(self.entries) do steps[#steps + 1] = step end
  table.sort(steps)
  return steps
end

function methods:put(step, entry, bytes)
  -- The step that was the newest stays only if it is on the grid.
  local before = self.newest
  if before and before ~= step and not on_grid(self, before) then drop(self, before) end
  drop(self, step)
  self.newest = step
  self.entries[step] = entry
  self.sizes[step] = bytes
  self.total = self.total + bytes
  self.count = self.count + 1
  thin(self)
end

return M
