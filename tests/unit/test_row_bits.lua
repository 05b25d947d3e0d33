-- test_row_bits.lua - a row's product with a weight has the same bits however many rows there are.
-- So an answer does not depend on how many others decode with it.
--
--   ./segzero tests/unit/test_row_bits.lua
--
-- Leaves out: products of hundreds of rows, which other kernels compute on some processors.

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

check.finish()
