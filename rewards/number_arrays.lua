-- number_arrays.lua - lists of numbers from an answer as numpy's array() takes them, for the reward
-- that compares whole arrays (vision_reasoner.lua).
--
--   local array = number_arrays.read(lists)
--     lists: JSON values (formats/pyjson.lua), one a row
--     -> {[i] = {numbers}, width = numbers a row, type =, large =, beyond =}, or nil where numpy
--     raises or the array is none of rows of numbers
--
-- type: "bool" (true and false alone; as 1 and 0), "int64" (LuaJIT's int64_t, which wrap around as
-- numpy's do), "float64", or "object" (an integer beyond 64 bits is among them: Python's own
-- numbers, doubles here). large: a number beyond 2^24, whose products doubles may not hold.
-- Integers decoded without number_arrays.token are "float64": the same as long as nothing is large.
-- beyond: an integer is larger than every double, so that Python cannot make it a float.
-- Doubles tell the difference of two integers near 10^25 only roughly: where the original divides
-- by an exact 0 because the truth too holds such a number, this one may not.
-- Leaves out: arrays of one or of three axes (the original raises on them), uint64 (only an array
-- whose numbers are all at least 2^63: so far away that its doubles compare the same way).

local ffi = require "ffi"

local M = {}

local LARGE = 2 ^ 24
local HIGHEST = { [""] = "9223372036854775807", ["-"] = "9223372036854775808" }
local HIGHEST_UNSIGNED = "18446744073709551615"

-- For pyjson.decode: keeps how a number is written.
function M.token(token, is_int, value)
  return { kind = "number", token = token, is_int = is_int, value = value }
end

-- Whether the decimal number a is at most b; neither has leading zeros.
local function at_most(a, b)
  if #a ~= #b then return #a < #b end
  return a <= b
end

-- "int64", "uint64" or "object" for an integer's text.
local function integer_type(token)
  local sign, digits = token:match "^(%-?)(%d+)$"
  if at_most(digits, HIGHEST[sign]) then return "int64" end
  if sign == "" and at_most(digits, HIGHEST_UNSIGNED) then return "uint64" end
  return "object"
end

local function to_int64(token)
  local sign, digits = token:match "^(%-?)(%d+)$"
  local value = ffi.cast("int64_t", 0)
  for digit in digits:gmatch "%d" do value = value * 10 - tonumber(digit) end
  -- Built as a negative number, because the lowest one has no positive counterpart.
  if sign == "" then value = -value end
  return value
end

-- ---- one element ----
-- Its type, or nil if numpy would make no number of it.
local function type_of(v)
  if type(v) == "boolean" then return "bool" end
  if type(v) == "number" then return "float64" end
  if type(v) ~= "table" or v.kind ~= "number" then return nil end
  if v.is_int then return integer_type(v.token) end
  return "float64"
end

local TRUTH = { [true] = 1, [false] = 0 }

local function value_of(v, array_type)
  if type(v) == "boolean" then v = TRUTH[v] end
  local token = type(v) == "table" and v.token
  if array_type == "int64" then
    if token then return to_int64(token) end
    return ffi.cast("int64_t", v)
  end
  if token then return v.value end
  return v
end

-- ---- the array ----
-- The numbers of elements of each type, and the width of the rows; nil if they are none.
local function survey(lists)
  local width
  local seen = {}
  for _, list in ipairs(lists) do
    if type(list) ~= "table" or list.kind ~= "array" then return nil end
    width = width or #list
    if #list ~= width then return nil end
    for k = 1, width do
      local t = type_of(list[k])
      if not t then return nil end
      seen[t] = true
    end
  end
  return seen, width
end

local function common_type(seen)
  if seen.object then return "object" end
  if seen.float64 or seen.uint64 then return "float64" end
  if seen.int64 then return "int64" end
  return "bool"
end

local function is_beyond(v)
  return type(v) == "table" and v.is_int and math.abs(v.value) == math.huge
end

-- Whether Python's own numbers of a row have a mean: an integer beyond the largest double meets no
-- float, and the mean is no such integer either.
local function has_mean(list)
  local mean = 0
  local floats = false
  local beyond = false
  for _, v in ipairs(list) do
    floats = floats or type_of(v) == "float64"
    beyond = beyond or is_beyond(v)
    -- An integer a little beyond doubles has a tenth that is one.
    if type(v) == "table" and v.is_int then
      mean = mean + math.abs(tonumber(v.token .. "e-1") or math.huge) / #list * 10
    end
  end
  return not beyond or (not floats and mean < math.huge)
end

function M.read(lists)
  local seen, width = survey(lists)
  if not width or width == 0 then return nil end
  local array = { width = width, type = common_type(seen), large = false, beyond = false }
  for i, list in ipairs(lists) do
    if array.type == "object" and not has_mean(list) then return nil end
    local row = {}
    for k = 1, width do
      local v = value_of(list[k], array.type)
      row[k] = v
      if v > LARGE or v < -LARGE then array.large = true end
      array.beyond = array.beyond or is_beyond(list[k])
    end
    array[i] = row
  end
  return array
end

-- ---- two arrays ----
-- The type that numpy computes in with numbers of the types a and b.
function M.common(a, b)
  if a == "object" or b == "object" then return "object" end
  if a == "float64" or b == "float64" then return "float64" end
  if a == "int64" or b == "int64" then return "int64" end
  return "bool"
end

-- A row in another type.
function M.as(row, from, to)
  if from == to then return row end
  local out = {}
  for k, v in ipairs(row) do
    if to == "int64" then
      out[k] = ffi.cast("int64_t", v)
    else
      out[k] = tonumber(v)
    end
  end
  return out
end

return M
