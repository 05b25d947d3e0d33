-- test_row_bits.lua - a row's product with a weight, and an answer's attention, have the same bits
-- however many there are. So an answer does not depend on how many others decode with it.
--
--   ./segzero tests/unit/test_row_bits.lua
--
-- Leaves out: hundreds of rows in bf16, which other kernels multiply on some processors.

local ffi = require "ffi"
local check = require "tests.support.check"
local tensor = require "segzero.core.tensor"

local ROWS = 40
-- Outputs and columns: whole tiles, and rests of tiles, groups and pieces of the columns.
local SHAPES = { { 64, 256 }, { 48, 40 }, { 70, 2048 }, { 33, 1176 }, { 17, 5000 } }

local function bits(y, rows)
  local width = y:shape()[2] * tensor.WIDTH[y:dtype()]
  return ffi.string(tensor.data(y), rows * width)
end

-- The product with the weight [m, k] in the named form, as a function of x.
local PRODUCTS = {
  bf16 = function(w)
    return function(x) return x:linear(w, nil) end
  end,
  int8 = function(w, m)
    local q, scale = w:quantize_int8(nil, nil)
    return function(x) return x:linear_int8(q, scale, nil, m) end
  end,
  int4 = function(w, m)
    local q, scale = w:quantize_int4(nil, nil)
    return function(x) return x:linear_int4(q, scale, nil, m) end
  end,
}

for name, make in pairs(PRODUCTS) do
  check.case(name .. ": a row's bits do not depend on the others", function()
    for _, shape in ipairs(SHAPES) do
      local m, k = unpack(shape)
      local product = make(tensor.randn({ m, k }, { dtype = "bf16" }), m)
      local x = tensor.randn({ ROWS, k }, { dtype = "bf16" })
      local want = product(x)
      local differ = {}
      for rows = 1, ROWS - 1 do
        local few = product(x:narrow(0, rows))
        if bits(few, rows) ~= bits(want, rows) then differ[#differ + 1] = rows end
        few:free()
      end
      check.equal(table.concat(differ, " "), "",
        ("[%d, %d]: numbers of rows whose bits differ"):format(m, k))
    end
  end)
end

-- More rows than a panel has and more outputs than a task; the last rows, too.
for _, name in ipairs { "int8", "int4" } do
  check.case(name .. ": a row has the same bits among hundreds", function()
    for _, shape in ipairs { { 48, 40 }, { 70, 2048 }, { 33, 1176 }, { 307, 300 } } do
      local m, k = unpack(shape)
      local product = PRODUCTS[name](tensor.randn({ m, k }, { dtype = "bf16" }), m)
      local x = tensor.randn({ 507, k }, { dtype = "bf16" })
      local all = product(x)
      for _, first in ipairs { 0, 235, 507 - 7 } do
        local few = product(x:narrow(first, 7))
        check.ok(bits(few, 7) == bits(all:narrow(first, 7), 7),
          ("[%d, %d]: rows from %d on"):format(m, k, first))
        few:free()
      end
      all:free()
    end
  end)
end

-- Columns of attention are the query heads that share keys, of all answers: 4, 8, 12, ...
for _, dtype in ipairs { "f32", "bf16" } do
  check.case(dtype .. ": an answer's attention does not depend on the others", function()
    local answers, prompt, own, dim = 9, 300, 7, 64
    local how = { heads = 8, kv_heads = 2, head_dim = dim, causal = true, scale = dim ^ -0.5 }
    local keys = tensor.randn({ prompt + answers * own, 2 * dim }, { dtype = dtype })
    local values = tensor.randn({ prompt + answers * own, 2 * dim }, { dtype = dtype })
    local q = tensor.randn({ answers, 8 * dim }, { dtype = dtype })
    local function attention(n)
      local rows = {}
      for i = 0, n - 1 do rows[i + 1] = { i, 1, prompt + i * own, own, 0, prompt } end
      return q:narrow(0, n):attention_cached(keys, values, tensor.new(rows, { dtype = "i32" }), how)
    end
    local want = attention(answers)
    for n = 1, answers - 1 do
      check.ok(bits(attention(n), n) == bits(want, n), n .. " answers")
    end
  end)
end

check.finish()
