-- pickle_machine.lua - runs the program that a pickle is, without running any code that it names.
--
--   local root = machine.run(path, text, reader)      path: for messages; text: the pickle
--
-- reader:
--   what       what messages call the pickle: "data.pkl"
--   lowest     the lowest protocol that PROTO may state; the highest is 5
--   globals    {["module.name"] = value}: the only names that a file may use. A value with kind =
--              "callable", name and call(p, args) can be called
--   refused    what the message about another name ends with
--   methods    {name = function}: replace or add methods of the machine, such as dict and set
--   ops        {[byte] = f(p)}: opcodes added to those below
--   most       how many containers the pickle may hold; nil: a million
--
-- Values: numbers, texts and booleans are themselves; None is machine.NONE. Everything else is a
-- table with `kind`: none, dict, list, tuple (sets become lists and tuples), callable, and what the
-- reader makes; a value with a metatable has its kind there. Lists and tuples have their length in
-- n; a dict has keys, values and at (an index by key).
-- Opcodes: those of protocols 2 to 5. Leaves out: text opcodes (pickle_plain.lua), classes,
-- extension codes, buffers outside the pickle.

local ffi = require "ffi"

local M = {}

local MAX_OBJECTS = 2 ^ 20

-- Raises without a position, because the file is wrong and not the caller.
function M.fail(path, format, ...) error(path .. ": " .. format:format(...), 0) end

-- A name from the file, made printable for a message.
function M.shown(name)
  name = name:gsub("[%c\127-\255]", "?")
  if #name > 120 then return name:sub(1, 120) .. "..." end
  return name
end

-- An unsigned little-endian number.
function M.number(s, at, bytes)
  local n = 0
  for i = at + bytes - 1, at, -1 do n = n * 256 + s:byte(i) end
  return n
end

local shown = M.shown
local number = M.number

local NONE = { kind = "none" }
M.NONE = NONE

local function kind(v)
  if type(v) ~= "table" then return type(v) end
  local mt = getmetatable(v)
  if mt then return mt.kind end
  return v.kind
end
M.kind = kind

local P = {}
P.__index = P

function P:fail(format, ...)
  M.fail(self.path, "%s, byte %d: " .. format, self.what, self.op_at - 1, ...)
end

function P:object(o)
  self.objects = self.objects + 1
  if self.objects > self.most then self:fail("more than %d objects", self.most) end
  return o
end

function P:take(n)
  local at = self.at
  if n > #self.text - at + 1 then
    self:fail("%.0f bytes are wanted, %d are left", n, #self.text - at + 1)
  end
  self.at = at + n
  return at
end

function P:unsigned(bytes) return number(self.text, self:take(bytes), bytes) end

function P:bytes(length_bytes)
  local n = self:unsigned(length_bytes)
  local at = self:take(n)
  return self.text:sub(at, at + n - 1)
end

function P:line()
  local stop = self.text:find("\n", self.at, true)
  if not stop then self:fail("a line without an end") end
  local line = self.text:sub(self.at, stop - 1)
  self.at = stop + 1
  return line
end

function P:push(v)
  self.n = self.n + 1
  self.stack[self.n] = v
end

-- Values below the last mark cannot be popped one at a time.
function P:pop()
  if self.n <= (self.marks[#self.marks] or 0) then self:fail("the stack is empty") end
  local v = self.stack[self.n]
  self.stack[self.n] = nil
  self.n = self.n - 1
  return v
end

function P:top()
  if self.n <= (self.marks[#self.marks] or 0) then self:fail("the stack is empty") end
  return self.stack[self.n]
end

-- All values pushed since the last mark, as {n = count, ...}.
function P:pop_mark()
  local mark = table.remove(self.marks)
  if not mark then self:fail("a mark is missing") end
  local items = { n = self.n - mark }
  for i = 1, items.n do
    items[i] = self.stack[mark + i]
    self.stack[mark + i] = nil
  end
  self.n = mark
  return items
end

function P:tuple(n)
  local t = self:object { kind = "tuple", n = n }
  for i = n, 1, -1 do t[i] = self:pop() end
  self:push(t)
end

-- Only files of torch have objects outside the pickle.
function P:storage() self:fail("a persistent id, which is not read") end

function P:dict() return self:object { kind = "dict", keys = {}, values = {}, at = {} } end

function P:set(d, k, v)
  local i = #d.keys + 1
  if type(k) == "string" then
    i = d.at[k] or i
    d.at[k] = i
  end
  d.keys[i] = k
  d.values[i] = v
end

function P:add(list, items)
  if kind(list) ~= "list" then self:fail("items are added to a %s", kind(list)) end
  for i = 1, items.n do list[list.n + i] = items[i] end
  list.n = list.n + items.n
end

function P:set_items(items)
  local d = self:top()
  if kind(d) ~= "dict" then self:fail("keys are set in a %s", kind(d)) end
  if items.n % 2 ~= 0 then self:fail("a key without a value") end
  for i = 1, items.n, 2 do self:set(d, items[i], items[i + 1]) end
end

function P:global(module, name)
  if type(module) ~= "string" or type(name) ~= "string" then self:fail("a name is not a text") end
  local full = module .. "." .. name
  local g = self.globals[full]
  if g == nil then
    M.fail(self.path, "the file calls %s, which is not read: %s", shown(full), self.refused)
  end
  return g
end

-- Two's complement of any length. A double keeps the first 53 bits.
function P:long(n)
  if n == 0 then return 0 end
  local at = self:take(n)
  local v = number(self.text, at, n)
  local negative = self.text:byte(at + n - 1) >= 128
  if negative then return v - 256 ^ n end
  return v
end

local double = ffi.new("union { uint8_t b[8]; double d; }")

local OPS = {
  [0x80] = function(p)      -- PROTO
    local version = p:unsigned(1)
    if version < p.lowest or version > 5 then
      p:fail("pickle protocol %d, %d to 5 are read", version, p.lowest)
    end
  end,
  [0x95] = function(p)      -- FRAME
    local n = p:unsigned(8)
    if n > #p.text - p.at + 1 then
      p:fail("a frame of %.0f bytes, %d are left", n, #p.text - p.at + 1)
    end
  end,
  ["("] = function(p) p.marks[#p.marks + 1] = p.n end,
  ["0"] = function(p)       -- POP, which removes a mark when there is nothing above it
    if #p.marks > 0 and p.marks[#p.marks] == p.n then p.marks[#p.marks] = nil else p:pop() end
  end,
  ["1"] = function(p) p:pop_mark() end,
  ["2"] = function(p) p:push(p:top()) end,
  ["q"] = function(p) p.memo[p:unsigned(1)] = p:top() end,
  ["r"] = function(p) p.memo[p:unsigned(4)] = p:top() end,
  -- MEMOIZE: stores under the number of entries so far
  [0x94] = function(p)
    p.memo[p.memoized] = p:top()
    p.memoized = p.memoized + 1
  end,
  ["h"] = function(p) p:recall(p:unsigned(1)) end,
  ["j"] = function(p) p:recall(p:unsigned(4)) end,
  ["N"] = function(p) p:push(NONE) end,
  [0x88] = function(p) p:push(true) end,
  [0x89] = function(p) p:push(false) end,
  ["J"] = function(p)
    local v = p:unsigned(4)
    if v >= 2 ^ 31 then v = v - 2 ^ 32 end
    p:push(v)
  end,
  ["K"] = function(p) p:push(p:unsigned(1)) end,
  ["M"] = function(p) p:push(p:unsigned(2)) end,
  [0x8a] = function(p) p:push(p:long(p:unsigned(1))) end,
  [0x8b] = function(p) p:push(p:long(p:unsigned(4))) end,
  ["G"] = function(p)       -- BINFLOAT: big endian
    local at = p:take(8)
    for i = 0, 7 do double.b[7 - i] = p.text:byte(at + i) end
    p:push(tonumber(double.d))
  end,
  ["X"] = function(p) p:push(p:bytes(4)) end,
  [0x8c] = function(p) p:push(p:bytes(1)) end,
  [0x8d] = function(p) p:push(p:bytes(8)) end,
  ["U"] = function(p) p:push(p:bytes(1)) end,      -- texts of Python 2, and bytes
  ["T"] = function(p) p:push(p:bytes(4)) end,
  ["C"] = function(p) p:push(p:bytes(1)) end,
  ["B"] = function(p) p:push(p:bytes(4)) end,
  [0x8e] = function(p) p:push(p:bytes(8)) end,
  ["}"] = function(p) p:push(p:dict()) end,
  ["]"] = function(p) p:push(p:object { kind = "list", n = 0 }) end,
  [0x8f] = function(p) p:push(p:object { kind = "list", n = 0 }) end,      -- EMPTY_SET
  [")"] = function(p) p:tuple(0) end,
  [0x85] = function(p) p:tuple(1) end,
  [0x86] = function(p) p:tuple(2) end,
  [0x87] = function(p) p:tuple(3) end,
  ["t"] = function(p)
    local t = p:object(p:pop_mark())
    t.kind = "tuple"
    p:push(t)
  end,
  ["a"] = function(p)
    local v = p:pop()
    p:add(p:top(), { n = 1, v })
  end,
  ["s"] = function(p)
    local v = p:pop()
    local k = p:pop()
    p:set_items { n = 2, k, v }
  end,
  ["u"] = function(p) p:set_items(p:pop_mark()) end,
  ["c"] = function(p)
    local module = p:line()
    p:push(p:global(module, p:line()))
  end,
  [0x93] = function(p)      -- STACK_GLOBAL
    local name = p:pop()
    p:push(p:global(p:pop(), name))
  end,
  ["i"] = function(p)       -- INST
    local module = p:line()
    local name = p:line()
    p:global(module, name)
    p:fail("%s.%s is built by INST, which is not read", shown(module), shown(name))
  end,
  ["R"] = function(p)
    local args = p:pop()
    local f = p:pop()
    if kind(f) ~= "callable" then p:fail("a %s is called", kind(f)) end
    if kind(args) ~= "tuple" then p:fail("%s is called with a %s", f.name, kind(args)) end
    p:push(f.call(p, args))
  end,
  ["b"] = function(p)       -- BUILD: a state dict's _metadata
    p:pop()
    if kind(p:top()) ~= "dict" then p:fail("a %s is given a state", kind(p:top())) end
  end,
  ["Q"] = function(p) p:push(p:storage(p:pop())) end,
  ["e"] = function(p)
    local items = p:pop_mark()
    p:add(p:top(), items)
  end,
  [0x90] = function(p)      -- ADDITEMS
    local items = p:pop_mark()
    p:add(p:top(), items)
  end,
}
OPS[0x91] = OPS["t"]        -- FROZENSET

local BY_BYTE = {}
for op, f in pairs(OPS) do
  if type(op) == "string" then op = op:byte() end
  BY_BYTE[op] = f
end

local OP_NAMES = {
  [0x50] = "PERSID", [0x6f] = "OBJ", [0x81] = "NEWOBJ", [0x92] = "NEWOBJ_EX", [0x82] = "EXT1",
    [0x83] = "EXT2", [0x84] = "EXT4",
}

function P:recall(i)
  if self.memo[i] == nil then self:fail("memo %.0f is empty", i) end
  self:push(self.memo[i])
end

-- The opcode's name, for what is not read.
local function name_of(op) return OP_NAMES[op] or ("0x%02x"):format(op) end

function M.run(path, text, reader)
  local p = {
    path = path, text = text, at = 1, op_at = 1, stack = {}, n = 0, marks = {}, memo = {},
    memoized = 0, objects = 0, what = reader.what, lowest = reader.lowest, globals = reader.globals,
    refused = reader.refused, most = reader.most or MAX_OBJECTS,
  }
  -- The reader's own methods and opcodes come first.
  local methods = setmetatable(reader.methods or {}, P)
  setmetatable(p, { __index = methods })
  local own = reader.ops or {}
  local stop = ("."):byte()
  while true do
    p.op_at = p.at
    local op = text:byte(p:take(1))
    if op == stop then break end
    local f = own[op] or BY_BYTE[op]
    if not f then p:fail("opcode %s is not read", name_of(op)) end
    f(p)
  end
  -- One value is left, and nothing after it.
  local root = p:pop()
  if p.n ~= 0 or #p.marks ~= 0 then p:fail("it ends in the middle") end
  if p.at ~= #text + 1 then p:fail("%d bytes after its end", #text + 1 - p.at) end
  return root
end

return M
