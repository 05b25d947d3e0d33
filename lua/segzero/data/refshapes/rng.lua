-- rng.lua - random numbers for RefShapes: splitmix64 run as a counter, keyed by (seed, split,
-- index).
--
-- A stream depends only on its key, so images can be made in any order and on any machine: all
-- arithmetic is uint64_t, and uniform() turns 53 of the bits into a double exactly.
--
--   local r = rng.new(42, "train", 7)
--   r:uniform()      -> double in [0, 1)
--   r:int(lo, hi)    -> integer, both ends included
--   r:pick(list)     -> one element
--   r:bits32()       -> signed 32-bit integer, never 0 (a seed for xorshift noise)
--
-- Leaves out: normal deviates, jumping ahead.

local ffi = require "ffi"
local bit = require "bit"

local M = {}

local bxor = bit.bxor
local rshift = bit.rshift
local floor = math.floor

local GOLDEN = 0x9e3779b97f4a7c15ULL

local function mix(z)
  z = bxor(z, rshift(z, 30)) * 0xbf58476d1ce4e5b9ULL
  z = bxor(z, rshift(z, 27)) * 0x94d049bb133111ebULL
  return bxor(z, rshift(z, 31))
end

local function to_u64(n)
  return ffi.cast("uint64_t", ffi.cast("int64_t", n))
end

-- FNV-1a of a string; returns uint64_t.
function M.hash(text)
  local h = 0xcbf29ce484222325ULL
  for i = 1, #text do
    h = bxor(h, to_u64(text:byte(i))) * 0x100000001b3ULL
  end
  return h
end

-- Mixes integer n into hash h (uint64_t); start with any constant.
function M.combine(h, n)
  return mix(bxor(h, to_u64(n)) + GOLDEN)
end

local Rng = {}
Rng.__index = Rng
Rng.__tostring = function(r) return "rng: " .. tostring(r.state[0]) end

-- seed, index: integers exact in a double; split: string.
function M.new(seed, split, index)
  local key = M.combine(M.combine(M.hash(split), seed), index)
  return setmetatable({ state = ffi.new("uint64_t[1]", key) }, Rng)
end

local function next_u64(state)
  local s = state[0] + GOLDEN
  state[0] = s
  return mix(s)
end

function Rng:uniform()
  return tonumber(rshift(next_u64(self.state), 11)) * (1 / 9007199254740992)
end

function Rng:int(lo, hi)
  return lo + floor(self:uniform() * (hi - lo + 1))
end

function Rng:chance(p)
  return self:uniform() < p
end

function Rng:pick(list)
  return list[self:int(1, #list)]
end

-- Fisher-Yates, in place; returns the list.
function Rng:shuffle(list)
  for i = #list, 2, -1 do
    local j = self:int(1, i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

function Rng:bits32()
  local v = bit.tobit(tonumber(rshift(next_u64(self.state), 32)))
  if v == 0 then return 1 end
  return v
end

return M
