-- pickle_plain.lua - reads a pickle of plain values, such as refs(unc).p, without running any code
-- that the file names.
--
--   local value = pickle_plain.read(path, text)       text: the pickle, of protocol 0 to 5
--
-- A dict becomes a table by its keys (texts, numbers or booleans; None values are left out), a
-- list, a tuple or a set a list with its length in n, None pickle_plain.NONE, a number of numpy a
-- number. Texts of Python 2 and bytes keep their bytes. A number over 2^53 loses its last digits.
-- Any name but OrderedDict, set and numpy's scalars is an error. Errors name the file and the byte.
-- Leaves out: numpy's arrays, classes, dates.

local bit = require "bit"
local ffi = require "ffi"
local machine = require "segzero.formats.pickle_machine"

local M = {}

M.NONE = machine.NONE

local kind = machine.kind

local MOST = 2 ^ 23             -- containers; gRefCOCO has a million

-- ---- dicts ----
local DICT = { kind = "dict" }
local KEYS = { string = true, number = true, boolean = true }

local methods = {}

function methods:dict() return self:object(setmetatable({}, DICT)) end

function methods:set(d, k, v)
  if not KEYS[type(k)] or k ~= k then self:fail("a %s is a key of a dict", kind(k)) end
  if v == M.NONE then v = nil end
  d[k] = v
end

-- ---- text ----
local function utf8_of(code)
  if code < 0x80 then return string.char(code) end
  if code < 0x800 then return string.char(0xc0 + bit.rshift(code, 6), 0x80 + code % 64) end
  if code < 0x10000 then
    return string.char(0xe0 + bit.rshift(code, 12), 0x80 + bit.rshift(code, 6) % 64,
      0x80 + code % 64)
  end
  return string.char(0xf0 + bit.rshift(code, 18), 0x80 + bit.rshift(code, 12) % 64,
    0x80 + bit.rshift(code, 6) % 64, 0x80 + code % 64)
end

local LAST_CODE = 0x10ffff

-- Python's raw-unicode-escape: \uXXXX and \UXXXXXXXX, other bytes are Latin-1.
local function unicode(p, line)
  local function escaped(digits)
    local code = tonumber(digits, 16)
    if code > LAST_CODE then p:fail("a character %s is none of Unicode", digits) end
    return utf8_of(code)
  end
  line = line:gsub("[\128-\255]", function(c) return utf8_of(c:byte()) end)
  line = line:gsub("\\u(%x%x%x%x)", escaped)
  return (line:gsub("\\U(%x%x%x%x%x%x%x%x)", escaped))
end

local ESCAPES = { n = "\n", r = "\r", t = "\t", a = "\a", b = "\b", f = "\f", v = "\v",
  ["\\"] = "\\", ["'"] = "'", ['"'] = '"' }

-- A text of Python 2, in quotes and with its escapes.
local function quoted(p, line)
  local mark = line:sub(1, 1)
  if #line < 2 or (mark ~= "'" and mark ~= '"') or line:sub(-1) ~= mark then
    p:fail("a text without quotes")
  end
  line = line:sub(2, -2)
  if not line:find("\\", 1, true) then return line end
  return (line:gsub("\\(.)(%x?%x?)", function(c, digits)
    if c == "x" and #digits == 2 then return string.char(tonumber(digits, 16)) end
    local found = ESCAPES[c]
    if not found then p:fail("an escape \\%s in a text", machine.shown(c)) end
    return found .. digits
  end))
end

-- ---- opcodes of protocols 0 and 1 ----
local function to_number(p, text)
  local n = tonumber(text)
  if not n or not text:find "^[-+]?[%d.]+[eE%d.+-]*$" then
    p:fail("'%s' is no number", machine.shown(text))
  end
  return n
end

local SPECIAL = { nan = 0 / 0, inf = math.huge, ["-inf"] = -math.huge }

local function list_of(p, items, name)
  items = p:object(items)
  items.kind = name
  p:push(items)
end

local TEXT_OPS = {
  I = function(p)
    local line = p:line()
    if line == "01" then return p:push(true) end
    if line == "00" then return p:push(false) end
    p:push(to_number(p, line))
  end,
  L = function(p) p:push(to_number(p, (p:line():gsub("L$", "")))) end,
  F = function(p)
    local line = p:line()
    p:push(SPECIAL[line] or to_number(p, line))
  end,
  S = function(p) p:push(quoted(p, p:line())) end,
  V = function(p) p:push(unicode(p, p:line())) end,
  p = function(p) p.memo[to_number(p, p:line())] = p:top() end,
  g = function(p) p:recall(to_number(p, p:line())) end,
  l = function(p) list_of(p, p:pop_mark(), "list") end,
  d = function(p)
    local items = p:pop_mark()
    p:push(p:dict())
    p:set_items(items)
  end,
}

local OPS = {}
for name, f in pairs(TEXT_OPS) do OPS[name:byte()] = f end

-- ---- names ----
-- numpy's types of numbers, by kind and bytes.
local NUMBERS = { i1 = "int8_t", i2 = "int16_t", i4 = "int32_t", i8 = "int64_t", u1 = "uint8_t",
  u2 = "uint16_t", u4 = "uint32_t", u8 = "uint64_t", f4 = "float", f8 = "double", b1 = "uint8_t" }

local function dtype(p, args)
  local name = args[1]
  if type(name) ~= "string" or not NUMBERS[name] then
    p:fail("numpy.dtype(%s) is no number", machine.shown(tostring(name)))
  end
  -- It gets a state, so it must look like a dict.
  local d = p:dict()
  d.numpy = name
  return d
end

local function scalar(p, args)
  local of = args[1]
  local name = kind(of) == "dict" and of.numpy
  local c_type = NUMBERS[name or ""]
  local bytes = args[2]
  if not c_type or type(bytes) ~= "string" or #bytes ~= ffi.sizeof(c_type) then
    p:fail("a scalar of numpy without its type or bytes")
  end
  local value = ffi.new(c_type .. "[1]")
  ffi.copy(value, bytes, #bytes)
  if name == "b1" then return value[0] ~= 0 end
  return tonumber(value[0])
end

-- Protocols 0 to 2 write bytes as a text of Latin-1: in UTF-8 each is one or two bytes.
local function encode(p, args)
  local text = args[1]
  if type(text) ~= "string" or args[2] ~= "latin1" then
    p:fail("_codecs.encode is called for something other than bytes")
  end
  return (text:gsub("[\194\195][\128-\191]", function(pair)
    return string.char((pair:byte(1) - 194) * 64 + pair:byte(2))
  end))
end

local function as_list(p, args)
  if args.n ~= 1 or kind(args[1]) ~= "list" then p:fail("a set is not made of a list") end
  return args[1]
end

local function ordered(p, args)
  if args.n == 0 then return p:dict() end
  local pairs_of = args[1]
  if kind(pairs_of) ~= "list" then p:fail("OrderedDict is not made of a list") end
  local d = p:dict()
  for i = 1, pairs_of.n do
    local pair = pairs_of[i]
    local k = kind(pair)
    if (k ~= "list" and k ~= "tuple") or pair.n ~= 2 then
      p:fail("OrderedDict is not made of pairs")
    end
    p:set(d, pair[1], pair[2])
  end
  return d
end

local CALLS = {
  ["collections.OrderedDict"] = ordered, ["builtins.set"] = as_list, ["__builtin__.set"] = as_list,
  ["_codecs.encode"] = encode, ["numpy.dtype"] = dtype,
  ["numpy.core.multiarray.scalar"] = scalar, ["numpy._core.multiarray.scalar"] = scalar,
}

local GLOBALS = {}
for name, call in pairs(CALLS) do
  GLOBALS[name] = { kind = "callable", name = name, call = call }
end

local READER = { what = "pickle", lowest = 0, globals = GLOBALS, methods = methods, ops = OPS,
  most = MOST, refused = "only dicts, lists, texts and numbers are" }

function M.read(path, text) return machine.run(path, text, READER) end

return M
