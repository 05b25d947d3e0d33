-- torch_archive.lua - writes files as torch.save does, byte by byte, so that a test can make what
-- torch would not: damaged archives, and pickles with names and numbers of its own.
--
--   local archive = require "tests.support.torch_archive"
--   archive.zip({ { "a/data.pkl", pickle }, { "a/data/0", bytes } } [, tail])      the file's text
--   archive.dict(pairs)               a pickle, protocol 2: {{name, value}, ...}
--   archive.tensor("0", 4, 0, { 2, 2 }, { 2, 1 } [, "FloatStorage"])      a value: storage key, its
--                                     number of elements, offset, shape, strides
--   archive.text(s), archive.int(n), archive.ints(list), archive.le(n, bytes)
--   archive.object("module\nName\n", { {key, value}, ... })    an object of a class with attributes
--
-- Left out: checksums (torchfile.lua does not read them), protocols 3 to 5.

local M = {}

-- n as a little-endian number of some bytes.
local function le(n, bytes)
  local out = {}
  for i = 1, bytes do
    out[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(out)
end
M.le = le

-- The end record of a zip archive.
function M.zip_end(entries, directory_bytes, directory_offset)
  return "PK\5\6" .. le(0, 4) .. le(entries, 2) .. le(entries, 2) .. le(directory_bytes, 4)
    .. le(directory_offset, 4) .. le(0, 2)
end

-- The zip64 extra field with these 8-byte numbers.
function M.zip64_field(...)
  local out = {}
  for i, n in ipairs { ... } do out[i] = le(n, 8) end
  return "\1\0" .. le(8 * #out, 2) .. table.concat(out)
end

-- A zip archive. entries: { name, text, method =, flags =, packed =, bytes =, offset =, extra = };
-- the named fields are written to the directory as they are. tail replaces the end record.
function M.zip(entries, tail)
  local parts = {}
  local directory = {}
  local offset = 0
  for _, e in ipairs(entries) do
    local name = e[1]
    local text = e[2]
    local extra = e.extra or ""
    local head = "PK\3\4" .. le(20, 2) .. le(0, 2) .. le(0, 2) .. le(0, 8) .. le(#text, 4)
      .. le(#text, 4) .. le(#name, 2) .. le(0, 2) .. name
    directory[#directory + 1] = "PK\1\2" .. le(20, 2) .. le(20, 2) .. le(e.flags or 0, 2)
      .. le(e.method or 0, 2) .. le(0, 8) .. le(e.packed or #text, 4) .. le(e.bytes or #text, 4)
      .. le(#name, 2) .. le(#extra, 2) .. le(0, 2) .. le(0, 8) .. le(e.offset or offset, 4)
      .. name .. extra
    parts[#parts + 1] = head .. text
    offset = offset + #head + #text
  end
  local directory_text = table.concat(directory)
  return table.concat(parts) .. directory_text
    .. (tail or M.zip_end(#entries, #directory_text, offset))
end

function M.text(s) return "X" .. le(#s, 4) .. s end

function M.int(n)
  if n < 2 ^ 31 then return "J" .. le(n % 2 ^ 32, 4) end
  return "\138\8" .. le(n, 8)
end

function M.ints(list)
  local out = {}
  for i, n in ipairs(list) do out[i] = M.int(n) end
  return "(" .. table.concat(out) .. "t"
end

-- A tensor of a storage with this key and number of elements.
function M.tensor(key, count, offset, shape, strides, class)
  local storage = M.text "storage" .. "ctorch\n" .. (class or "FloatStorage") .. "\n" .. M.text(key)
    .. M.text "cpu" .. M.int(count)
  return "ctorch._utils\n_rebuild_tensor_v2\n((" .. storage .. "tQ" .. M.int(offset)
    .. M.ints(shape) .. M.ints(strides) .. "\137ccollections\nOrderedDict\n)RtR"
end

function M.dict(pairs_of)
  local parts = {}
  for i, pair in ipairs(pairs_of) do parts[i] = M.text(pair[1]) .. pair[2] .. "s" end
  return "\128\2}" .. table.concat(parts) .. "."
end

function M.object(class, attributes)
  local parts = {}
  for i, pair in ipairs(attributes) do parts[i] = M.text(pair[1]) .. pair[2] .. "s" end
  return "c" .. class .. ")\129}" .. table.concat(parts) .. "b"
end

return M
