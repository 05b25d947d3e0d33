-- key_set.lua - a set of texts that keeps 12 bytes for each instead of the text: its hash in 64
-- bits. For a million file names or ids.
--
--   local set = key_set.new()
--   set:add(text) -> number, is_new        the text's number, from 1 in the order of adding
--   set:find(text) -> number | nil
--   set:count()
--   key_set.hash(text) -> a, b             two int32; set:add_hash(a, b), set:hash_of(number)
--
-- Two of a million texts have the same hash with a probability of 3e-8. Who cannot accept that
-- compares the texts of equal numbers. Leaves out: removing a text.

local bit = require "bit"
local ffi = require "ffi"

local M = {}

local FIRST_SLOTS = 1024        -- a power of two

local methods = {}
local mt = { __index = methods }

local bxor = bit.bxor
local lshift = bit.lshift
local tobit = bit.tobit

-- FNV-1a in 32 bits with two starts; the second one's end is mixed once more.
function M.hash(text)
  local a = -2128831035
  local b = 84696351
  for i = 1, #text do
    local c = text:byte(i)
    a = bxor(a, c)
    b = bxor(b, c + 256)
    -- times 16777619
    a = tobit(a + lshift(a, 1) + lshift(a, 4) + lshift(a, 7) + lshift(a, 8) + lshift(a, 24))
    b = tobit(b + lshift(b, 1) + lshift(b, 4) + lshift(b, 7) + lshift(b, 8) + lshift(b, 24))
    b = bxor(b, bit.rshift(b, 15))
  end
  return a, b
end

function M.new()
  return setmetatable({ n = 0, slots = ffi.new("int32_t[?]", FIRST_SLOTS), size = FIRST_SLOTS,
    first = ffi.new("int32_t[?]", FIRST_SLOTS), second = ffi.new("int32_t[?]", FIRST_SLOTS) }, mt)
end

-- The slot of a hash: its number is there, or 0.
local function slot_of(self, a, b)
  local mask = self.size - 1
  local slot = bit.band(a, mask)
  while true do
    local number = self.slots[slot]
    if number == 0 or (self.first[number] == a and self.second[number] == b) then return slot end
    slot = bit.band(slot + 1, mask)
  end
end

-- Twice as many slots, and room for half as many numbers.
local function grow(self)
  local first = self.first
  local second = self.second
  self.size = 2 * self.size
  self.slots = ffi.new("int32_t[?]", self.size)
  self.first = ffi.new("int32_t[?]", self.size / 2 + 1)
  self.second = ffi.new("int32_t[?]", self.size / 2 + 1)
  ffi.copy(self.first, first, 4 * (self.n + 1))
  ffi.copy(self.second, second, 4 * (self.n + 1))
  for number = 1, self.n do
    self.slots[slot_of(self, self.first[number], self.second[number])] = number
  end
end

function methods:add_hash(a, b)
  local slot = slot_of(self, a, b)
  if self.slots[slot] ~= 0 then return self.slots[slot], false end
  if 2 * (self.n + 1) > self.size then
    grow(self)
    slot = slot_of(self, a, b)
  end
  self.n = self.n + 1
  self.first[self.n] = a
  self.second[self.n] = b
  self.slots[slot] = self.n
  return self.n, true
end

function methods:add(text) return self:add_hash(M.hash(text)) end

function methods:find(text)
  local number = self.slots[slot_of(self, M.hash(text))]
  if number == 0 then return nil end
  return number
end

function methods:hash_of(number) return self.first[number], self.second[number] end

function methods:count() return self.n end

function mt:__tostring() return ("set of %d keys"):format(self.n) end

return M
