-- value_text.lua - a value of a table as the text that a reward compares.
--
--   value_text.of(value, kind) -> text      kind: of the column, as file:kind has it; nil: unknown
--   value_text.shortest(number) -> text     the shortest text that reads back as the same double
--   value_text.quote(text) -> text          a JSON string
--
-- Texts, numbers and booleans are what Python's str() gives: 0.1, 5.0, 1e+22, nan, True. A number
-- of an integer column has no point. Lists, structs and maps are JSON as Python's
-- json.dumps(value, ensure_ascii=False) writes it, not str() of a dictionary: fields in the
-- schema's order, nulls kept, keys of a map sorted.
-- A decimal is str()'s text, also inside JSON. So is a date or time (time_text.lua), in quotes.
-- Leaves out: durations, which are the numbers that store them.

local cjson = require "cjson"
local ffi = require "ffi"
local time_text = require "segzero.data.tables.time_text"

ffi.cdef "int snprintf(char *text, size_t size, const char *format, ...);"

local M = {}

local MOST_DIGITS = 17          -- decimal digits that tell all doubles apart
local LEAST_EXPONENT = -4       -- Python writes others in the form 1e-05
local MOST_EXPONENT = 15

local LEAST_DECIMAL = -6        -- the same of a decimal
local ANY = {}
local ROOM = 40                 -- bytes, for 17 digits with sign, point and exponent

-- ---- numbers ----
-- n as d.ddd with `count` digits. LuaJIT's own format rounds a tie up, C's and Python's to even.
local buffer = ffi.new("char[?]", ROOM)

local function scientific(n, count)
  local length = ffi.C.snprintf(buffer, ROOM, "%.*e", ffi.new("int", count - 1), n)
  return ffi.string(buffer, length)
end

-- The number of `digits` plus 1 in the last place, and its exponent.
local function next_up(digits, exponent)
  local head, nines = digits:match "^(%d-)(9*)$"
  local zeros = ("0"):rep(#nines)
  if head == "" then return "1" .. zeros, exponent + 1 end
  return head:sub(1, -2) .. string.char(head:byte(-1) + 1) .. zeros, exponent
end

-- The fewest digits d.ddd and the exponent that read back as n, which is positive and finite.
local function fewest_digits(n)
  local is_power = math.frexp(n) == 0.5
  for count = 1, MOST_DIGITS do
    local first, rest, exponent = scientific(n, count):match "(%d)%.?(%d*)e(.*)"
    local digits = first .. rest
    exponent = tonumber(exponent)
    if tonumber(("%s.%se%d"):format(first, rest, exponent)) == n then return digits, exponent end
    -- Above a power of two doubles are further apart, so the digits above may do where the
    -- nearest ones do not.
    if is_power then
      digits, exponent = next_up(digits, exponent)
      if tonumber(("%s.%se%d"):format(digits:sub(1, 1), digits:sub(2), exponent)) == n then
        return digits, exponent
      end
    end
  end
  error(("no digits are %.17g"):format(n))
end

function M.shortest(n)
  if n ~= n then return "nan" end
  local sign = ""
  if n < 0 or 1 / n < 0 then sign = "-" end
  n = math.abs(n)
  if n == math.huge then return sign .. "inf" end
  if n == 0 then return sign .. "0.0" end

  local digits, exponent = fewest_digits(n)
  digits = digits:gsub("0+$", "")
  if exponent < LEAST_EXPONENT or exponent > MOST_EXPONENT then
    local rest = digits:sub(2)
    if rest ~= "" then rest = "." .. rest end
    return ("%s%s%se%s%02d"):format(sign, digits:sub(1, 1), rest, exponent < 0 and "-" or "+",
      math.abs(exponent))
  end
  if exponent < 0 then return sign .. "0." .. ("0"):rep(-exponent - 1) .. digits end
  -- Digits before the point, and at least one after it.
  digits = digits .. ("0"):rep(exponent + 2 - #digits)
  return sign .. digits:sub(1, exponent + 1) .. "." .. digits:sub(exponent + 2)
end

local function number(n, kind)
  local is_whole = n % 1 == 0
  if kind.is_float == nil and is_whole and math.abs(n) < 2 ^ 53 then return ("%.0f"):format(n) end
  return M.shortest(n)
end

-- ---- decimals ----
local MOST_BYTES = 64
local LIMB = 10 ^ 7             -- decimal digits are made seven at a time

-- The digits of a whole number in two's complement, and whether it is negative.
local function digits_of_bytes(bytes, is_big_endian)
  if not is_big_endian then bytes = bytes:reverse() end
  local is_negative = #bytes > 0 and bytes:byte(1) >= 128
  local limbs = { 0 }
  -- Of a negative number -1 - n has the inverted bits; 1 is added with the last byte.
  for i = 1, #bytes do
    local carry = bytes:byte(i)
    if is_negative then carry = 255 - carry end
    if is_negative and i == #bytes then carry = carry + 1 end
    for k = 1, #limbs do
      local v = limbs[k] * 256 + carry
      limbs[k] = v % LIMB
      carry = math.floor(v / LIMB)
    end
    if carry > 0 then limbs[#limbs + 1] = carry end
  end
  local parts = { ("%d"):format(limbs[#limbs]) }
  for k = #limbs - 1, 1, -1 do parts[#parts + 1] = ("%07d"):format(limbs[k]) end
  return table.concat(parts), is_negative
end

-- value: the bytes of a decimal times 10^scale, or a number or digits of it.
local function decimal(value, kind)
  local digits, is_negative
  if kind.form == "bytes" then
    if #value > MOST_BYTES then
      error(("a decimal of %d bytes, the most are %d"):format(#value, MOST_BYTES), 0)
    end
    digits, is_negative = digits_of_bytes(value, kind.is_big_endian)
  else
    if type(value) == "number" then value = ("%.0f"):format(value) end
    digits = value:gsub("^-", "")
    is_negative = value:sub(1, 1) == "-"
  end
  local sign = is_negative and "-" or ""
  local exponent = #digits - 1 - kind.scale
  -- Python writes these in the form 1.25E-8.
  if kind.scale < 0 or exponent < LEAST_DECIMAL then
    local rest = digits:sub(2)
    if rest ~= "" then rest = "." .. rest end
    return ("%s%s%sE%+d"):format(sign, digits:sub(1, 1), rest, exponent)
  end
  if kind.scale == 0 then return sign .. digits end
  digits = ("0"):rep(kind.scale + 1 - #digits) .. digits
  return ("%s%s.%s"):format(sign, digits:sub(1, -kind.scale - 1), digits:sub(-kind.scale))
end

-- ---- JSON ----
local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t",
  ["\b"] = "\\b", ["\f"] = "\\f" }

local function escape(c) return ESCAPES[c] or ("\\u%04x"):format(c:byte()) end

function M.quote(text) return '"' .. text:gsub('[%z\1-\31"\\]', escape) .. '"' end

local SPECIAL = { nan = "NaN", inf = "Infinity", ["-inf"] = "-Infinity" }

local json

local function list_json(value, kind)
  local parts = {}
  for i, element in ipairs(value) do parts[i] = json(element, kind.element or ANY) end
  return "[" .. table.concat(parts, ", ") .. "]"
end

local function struct_json(value, kind)
  local parts = {}
  for i, name in ipairs(kind.order) do
    parts[i] = M.quote(name) .. ": " .. json(value[name], kind.fields[name])
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

local function map_json(value, kind)
  local keys = {}
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b)
    if type(a) == "number" and type(b) == "number" then return a < b end
    return tostring(a) < tostring(b)
  end)
  local parts = {}
  for i, key in ipairs(keys) do
    parts[i] = M.quote(M.of(key, kind.key)) .. ": " .. json(value[key], kind.value or ANY)
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

function json(value, kind)
  if value == nil or value == cjson.null then return "null" end
  if type(value) == "boolean" then return tostring(value) end
  if kind.scale and type(value) ~= "table" then return decimal(value, kind) end
  if kind.time then return M.quote(time_text.of(value, kind.time)) end
  if type(value) == "number" then
    local text = number(value, kind)
    return SPECIAL[text] or text
  end
  if type(value) == "table" then
    if kind.form == "struct" then return struct_json(value, kind) end
    if kind.form == "list" then return list_json(value, kind) end
    return map_json(value, kind)
  end
  -- Digits beyond 2^53 are a text.
  if kind.form == "number" then return value end
  return M.quote(value)
end

-- ---- any value ----
function M.of(value, kind)
  kind = kind or ANY
  local type_name = type(value)
  if kind.scale and type_name ~= "table" then return decimal(value, kind) end
  if kind.time then return time_text.of(value, kind.time) end
  if type_name == "number" then return number(value, kind) end
  if type_name == "boolean" then return value and "True" or "False" end
  if type_name == "table" then return json(value, kind) end
  return value
end

return M
