-- ahead.lua - rows before they are needed: their pictures are read, resized and cut into patches by threads beside the main one.
--
--   local a = prefetch.new(policy)         a model with a processor
--   a:request(set, i)                       begins row i of a data set
--   a:row(set, i)                       the row, as set:row(i) gives it; waits for what ask() began
--   a:cancel()                            lets go of what was asked for and not taken
--
-- A set with a method picture(i) (the path of row i's picture; data.lua's folders) has its pictures read there, too; row(i, image) then takes
-- the one that was read. Of other sets the row is made by ask(), and only its picture resized and cut elsewhere. Whatever fails
-- ahead is done again when the row is taken and fails there, with the message it has without this. Memory is the caller's to
-- bound: what was asked for and not taken is held.

local core = require "segzero.core.ffi"
local image = require "segzero.formats.image"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(policy) return setmetatable({ policy = policy, begun = {} }, mt) end

function methods:request(set, i)
  local of = self.begun[set] or {}
  self.begun[set] = of
  if of[i] then return end
  local begun = {}
  of[i] = begun
  local source
  if set.image_path then
    source = set:image_path(i)
  else
    begun.made, begun.row = pcall(set.row, set, i)
    if not begun.made and core.is_interrupt(begun.row) then
      of[i] = nil
      error(begun.row, 0)
    end
    source = begun.made and begun.row.image
  end
  if type(source) == "string" or image.is_image(source) then begun.ticket = self.policy:processor():start(source) end
end

function methods:take(set, i)
  local of = self.begun[set]
  local begun = of and of[i]
  if not begun then return set:row(i) end
  of[i] = nil
  local read = begun.ticket and self.policy:processor():take(begun.ticket)
  if begun.made == nil then return set:row(i, read) end
  if not begun.made then error(begun.row, 0) end
  return begun.row
end

function methods:cancel()
  for _, of in pairs(self.begun) do
    for _, begun in pairs(of) do
      if begun.ticket then self.policy:processor():cancel(begun.ticket) end
      if begun.made and image.is_image(begun.row.image) then begun.row.image:free() end
    end
  end
  self.begun = {}
end

function mt:__tostring()
  local n = 0
  for _, of in pairs(self.begun) do
    for _ in pairs(of) do n = n + 1 end
  end
  return ("%d rows ahead"):format(n)
end

return M
