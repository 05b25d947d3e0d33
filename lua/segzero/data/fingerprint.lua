-- fingerprint.lua - what a checkpoint remembers of a data set: its name, how many rows it has, and a
-- hash of their ids in order.
--
--   fingerprint.of(set) -> { name =, rows =, ids = "16 hexadecimal digits" | nil }
--       ids: only for a set with meta(i). A checked set knows it (data/check.lua); another one's
--       rows are walked
--   local hash = fingerprint.new(); hash:add(text); hash:text()
--
-- Leaves out: questions, solutions and images, which may be mended between two runs.

local bit = require "bit"
local key_set = require "segzero.data.key_set"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new() return setmetatable({ first = 0, second = 0 }, mt) end

-- Order matters: what came before is rotated.
function methods:add(text)
  local a, b = key_set.hash(text)
  self.first = bit.bxor(bit.rol(self.first, 7), a)
  self.second = bit.tobit(bit.rol(self.second, 5) + b)
end

function methods:text() return bit.tohex(self.first) .. bit.tohex(self.second) end

function mt:__tostring() return self:text() end

-- The id of row i as it counts here; "" for a line that cannot be read.
function M.id_of(set, i)
  local ok, meta = pcall(set.meta, set, i)
  if not ok then return "" end
  return meta.id or tostring(meta.index)
end

function M.of(set)
  local result = { name = set.name, rows = set:count(), ids = set.ids_hash }
  if not result.ids and set.meta then
    local hash = M.new()
    for i = 1, result.rows do hash:add(M.id_of(set, i)) end
    result.ids = hash:text()
    set.ids_hash = result.ids
  end
  return result
end

return M
