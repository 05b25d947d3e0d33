-- print.lua - a tensor as text: dtype, shape and device, then its rows.
--
--   tensor f32 [2, 3]
--   {{1, 2, 3},
--    {4, 5, 6}}
--
-- A vector is printed on one line with its head. If a tensor has more than 1000 elements, only the
-- first and last three of each dimension are shown. All numbers have one format and one width:
-- whole numbers without decimals, others with four, or exponents if four decimals would hide a
-- number.
-- Leaves out: settings for the number of digits.

local core = require "segzero.core.ffi"
local handle = require "segzero.core.tensor.handle"
local read = require "segzero.core.tensor.read"

local C = core.C

local MOST = 1000                -- elements shown without a gap
local EDGE = 3                   -- elements shown at each end of a gap
local COLUMNS = 90               -- where a long row is broken

-- The indices of a dimension that are shown, from 0; false stands for the gap.
local function shown(size, gaps)
  local list = {}
  for i = 0, size - 1 do
    if not gaps or size <= 2 * EDGE or i < EDGE or i >= size - EDGE then
      list[#list + 1] = i
    elseif i == EDGE then
      list[#list + 1] = false
    end
  end
  return list
end

local function is_finite(v) return v == v and math.abs(v) < math.huge end

-- The format for all numbers of a tensor.
local function format_of(numbers)
  local whole = true
  local largest = 0
  local smallest = math.huge
  for _, v in ipairs(numbers) do
    if is_finite(v) then
      if v % 1 ~= 0 then whole = false end
      largest = math.max(largest, math.abs(v))
      if v ~= 0 then smallest = math.min(smallest, math.abs(v)) end
    end
  end
  if whole and largest < 1e9 then return "%.0f" end
  if largest >= 1e6 or smallest < 1e-4 then return "%.4e" end
  return "%.4f"
end

local function number_text(v, format)
  if v ~= v then return "nan" end
  if v == math.huge then return "inf" end
  if v == -math.huge then return "-inf" end
  return format:format(v)
end

-- The innermost dimension as text: right-aligned if there are several rows, broken at COLUMNS.
local function row_text(cells, width, indent)
  local lines = {}
  local line = ""
  for i, cell in ipairs(cells) do
    local text = (" "):rep(width - #cell) .. cell
    if i < #cells then text = text .. ", " end
    if line ~= "" and indent + #line + #text > COLUMNS then
      lines[#lines + 1] = (line:gsub("%s+$", ""))
      line = ""
    end
    line = line .. text
  end
  lines[#lines + 1] = line
  return "{" .. table.concat(lines, "\n" .. (" "):rep(indent + 1)) .. "}"
end

-- The shown elements as nested lists; a row is a list of numbers.
local function collect(at, shape, gaps)
  local numbers = {}
  local function walk(depth, offset)
    if depth > #shape then
      numbers[#numbers + 1] = at(offset)
      return at(offset)
    end
    local list = {}
    for k, i in ipairs(shown(shape[depth], gaps)) do
      list[k] = "..."
      if i then list[k] = walk(depth + 1, offset * shape[depth] + i) end
    end
    return list
  end
  return walk(1, 0), numbers
end

local function body(at, shape, gaps)
  local tree, numbers = collect(at, shape, gaps)
  local format = format_of(numbers)
  local width = 0
  if #shape > 1 then
    for _, v in ipairs(numbers) do width = math.max(width, #number_text(v, format)) end
  end

  local function text(node, depth)
    if node == "..." then return "..." end
    if depth < #shape then
      local parts = {}
      for i, child in ipairs(node) do parts[i] = text(child, depth + 1) end
      local blank = ("\n"):rep(#shape - depth)
      return "{" .. table.concat(parts, "," .. blank .. (" "):rep(depth)) .. "}"
    end
    local cells = {}
    for i, v in ipairs(node) do
      cells[i] = "..."
      if v ~= "..." then cells[i] = number_text(v, format) end
    end
    return row_text(cells, width, depth)
  end
  return text(tree, 1)
end

function handle.metatable.__tostring(t)
  if t.ptr == nil then return "tensor (freed)" end
  local shape = handle.sizes(t)
  local head = ("tensor %s [%s]"):format(t:dtype(), table.concat(shape, ", "))
  if t:device() ~= "cpu" then head = head .. " on " .. t:device() end
  if C.sz_tensor_alive(t.ptr) ~= 0 then return head .. " (its step has ended)" end
  return read.reading(t, function(at, n)
    if #shape == 0 then return head .. " " .. number_text(at(0), format_of { at(0) }) end
    local rows = body(at, shape, n > MOST)
    local separator = #shape == 1 and " " or "\n"
    return head .. separator .. rows
  end)
end
