-- pyjson.lua - JSON exactly as Python's json.loads(str) reads it, for answers and rewards that must
-- agree with Python originals.
--
--   local value = pyjson.decode('{"bbox": [1, 2, 3, NaN]}')      -- value.map.bbox[1] == 1
--
-- lua-cjson cannot be used. It accepts hexadecimal, "inf" and leading zeros, which Python refuses;
-- it refuses lone surrogates, which Python accepts; and it loses the order of keys, by which
-- Seg-Zero's loose reward chooses its fields.
--
-- Values: null -> pyjson.null; true, false -> booleans; int and float -> numbers; string -> UTF-8
-- string (lone surrogates in their three-byte form); array -> {kind = "array", [1..n]}; object ->
-- {kind = "object", keys = {name, ...}, map = {name -> value}}. A repeated key keeps its first
-- place and takes the last value, as in a dict.
--
-- Python's additions are accepted: NaN, Infinity, -Infinity; 1e400 is infinite. Python's refusals
-- are errors: white space other than blank, tab, CR, LF; raw control characters in strings;
-- integers of more than 4300 digits; a byte order mark; text after the value.
-- Nesting: Python stops at about 1000 levels minus the depth of its call stack (measured: 995 from
-- the top of a script). The limit here is fixed.
-- Left out: exact integers (beyond 2^53 the nearest double, beyond 1e308 infinity; decode's second
-- argument can keep their digits), floats with a mantissa of a million digits.

local pytext = require "segzero.formats.pytext"

local M = {}

local byte = string.byte
local char = string.char
local find = string.find
local sub = string.sub

M.null = setmetatable({}, {__tostring = function() return "null" end})

local MAX_DEPTH = 990

local ESCAPES = {['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r",
  t = "\t"}

local LITERALS = {
  {"null", M.null}, {"true", true}, {"false", false}, {"NaN", 0 / 0}, {"Infinity", math.huge},
    {"-Infinity", -math.huge},
}

-- The readers below return the position after the value and the value, or nil and a message.

local function skip(s, i)
  return (find(s, "[^ \t\r\n]", i)) or #s + 1
end

local function fail(what, i)
  return nil, what .. " at byte " .. i
end

local function utf8(c)
  if c < 0x80 then return char(c) end
  local last = 0x80 + c % 0x40
  if c < 0x800 then return char(0xc0 + (c - c % 0x40) / 0x40, last) end
  local third = 0x80 + math.floor(c / 0x40) % 0x40
  if c < 0x10000 then return char(0xe0 + math.floor(c / 0x1000), third, last) end
  return char(0xf0 + math.floor(c / 0x40000), 0x80 + math.floor(c / 0x1000) % 0x40, third, last)
end

local function hex4(s, i)
  local digits = s:match("^%x%x%x%x", i)
  return digits and tonumber(digits, 16)
end

-- i is the byte after the opening quote.
local function read_string(s, i)
  local parts = {}
  while true do
    local stop = find(s, '[%z\1-\31"\\]', i)
    if not stop then return fail("string without an end", i) end
    parts[#parts + 1] = sub(s, i, stop - 1)
    local c = sub(s, stop, stop)
    if c == '"' then return stop + 1, table.concat(parts) end
    if c ~= "\\" then return fail("control character in a string", stop) end
    local e = sub(s, stop + 1, stop + 1)
    if ESCAPES[e] then
      parts[#parts + 1] = ESCAPES[e]
      i = stop + 2
    elseif e == "u" then
      local u = hex4(s, stop + 2)
      if not u then return fail("bad \\u escape", stop) end
      i = stop + 6
      if u >= 0xd800 and u <= 0xdbff and sub(s, i, i + 1) == "\\u" then
        local low = hex4(s, i + 2)
        if low and low >= 0xdc00 and low <= 0xdfff then
          u = 0x10000 + (u - 0xd800) * 0x400 + (low - 0xdc00)
          i = i + 6
        end
      end
      parts[#parts + 1] = utf8(u)
    else
      return fail("bad escape", stop)
    end
  end
end

-- tonumber() returns nil for exponents of 2^20 and more. Such a number is 0 or infinite, unless its
-- mantissa has a million digits.
local function far_float(token)
  local sign, mantissa, exponent_sign = token:match("^(%-?)([%d.]+)[eE]([+-]?)")
  local value = 0
  if exponent_sign ~= "-" and find(mantissa, "[1-9]") then value = math.huge end
  if sign == "-" then return -value end
  return value
end

-- What decode's caller makes of a number; nil: a double.
local make_number

-- The longest number at i. The caller reports what follows it, such as the 1 of 01 or the point of
-- "1.".
local function read_number(s, i)
  local _, stop = find(s, "^%-?[1-9]%d*", i)
  if not stop then
    _, stop = find(s, "^%-?0", i)
    if not stop then return fail("no value", i) end
  end
  local is_int = true
  local _, fraction = find(s, "^%.%d+", stop + 1)
  if fraction then
    is_int = false
    stop = fraction
  end
  local _, exponent = find(s, "^[eE][+-]?%d+", stop + 1)
  if exponent then
    is_int = false
    stop = exponent
  end
  local token = sub(s, i, stop)
  local digits = #token
  if byte(token) == 0x2d then digits = digits - 1 end
  if is_int and digits > pytext.MAX_INT_DIGITS then
    return fail("integer with too many digits", i)
  end
  local value = tonumber(token) or far_float(token)
  if make_number then value = make_number(token, is_int, value) end
  return stop + 1, value
end

local read_value

-- i is the byte after the bracket.
local function read_array(s, i, depth)
  local array = {kind = "array"}
  local n = 0
  i = skip(s, i)
  if sub(s, i, i) == "]" then return i + 1, array end
  while true do
    local after, value = read_value(s, i, depth)
    if not after then return nil, value end
    n = n + 1
    array[n] = value
    i = skip(s, after)
    local c = sub(s, i, i)
    if c == "]" then return i + 1, array end
    if c ~= "," then return fail("no ',' or ']'", i) end
    i = skip(s, i + 1)
  end
end

-- i is the byte after the brace.
local function read_object(s, i, depth)
  local keys = {}
  local map = {}
  local object = {kind = "object", keys = keys, map = map}
  i = skip(s, i)
  if sub(s, i, i) == "}" then return i + 1, object end
  while true do
    if sub(s, i, i) ~= '"' then return fail("no quoted key", i) end
    local after, key = read_string(s, i + 1)
    if not after then return nil, key end
    i = skip(s, after)
    if sub(s, i, i) ~= ":" then return fail("no ':'", i) end
    local value
    after, value = read_value(s, skip(s, i + 1), depth)
    if not after then return nil, value end
    if map[key] == nil then keys[#keys + 1] = key end
    map[key] = value
    i = skip(s, after)
    local c = sub(s, i, i)
    if c == "}" then return i + 1, object end
    if c ~= "," then return fail("no ',' or '}'", i) end
    i = skip(s, i + 1)
  end
end

function read_value(s, i, depth)
  local c = sub(s, i, i)
  if c == '"' then return read_string(s, i + 1) end
  if c == "[" or c == "{" then
    if depth >= MAX_DEPTH then return fail("too deeply nested", i) end
    if c == "[" then return read_array(s, i + 1, depth + 1) end
    return read_object(s, i + 1, depth + 1)
  end
  for _, literal in ipairs(LITERALS) do
    local word = literal[1]
    if sub(s, i, i + #word - 1) == word then return i + #word, literal[2] end
  end
  return read_number(s, i)
end

-- int(value), or nil where Python raises: cuts toward zero, reads strings, takes true and false as
-- 1 and 0.
function M.int(value)
  if type(value) == "string" then return pytext.parse_int(value) end
  if value == true then return 1 end
  if value == false then return 0 end
  if type(value) ~= "number" or value ~= value or value == math.huge or value == -math.huge then
    return nil
  end
  if value < 0 then return math.ceil(value) end
  return math.floor(value)
end

-- len(value), or nil where Python has none.
function M.length(value)
  if type(value) == "string" then return pytext.length(value) end
  if type(value) ~= "table" or value == M.null then return nil end
  if value.kind == "array" then return #value end
  return #value.keys
end

-- value[i - 1] of a list or a string, else nil. A string has elements too: item 1 of "57" is "5".
function M.item(value, i)
  if type(value) == "string" then return pytext.character(value, i) end
  if type(value) == "table" and value.kind == "array" then return value[i] end
  return nil
end

-- decode(text) -> value, or nil and a message. The text "false" yields false, so compare with nil.
-- number(token, is_int, value), optional: returns what stands for a number in the result.
function M.decode(text, number)
  make_number = number
  local after, value = read_value(text, skip(text, 1), 0)
  make_number = nil
  if not after then return nil, value end
  after = skip(text, after)
  if after <= #text then return fail("something after the value", after) end
  return value
end

return M
