-- test_cpu_kinds.lua - the CPU kernels of each kind of processor (SEGZERO_CPU): the products,
-- attention and optimizer against the reference kernels, 8-bit products with the same integers,
-- rows of products that do not depend on the other rows, what oneDNN is limited to, and what the
-- program says of kinds that it cannot take.
-- Leaves out: the other ops. SEGZERO_CPU=kind ./segzero tests/unit/test_ops.lua runs all.

local ffi = require "ffi"
local check = require "tests.support.check"
local core = require "segzero.core.ffi"
local host = require "segzero.host"
local process = require "tests.support.process"

local C = core.C

local function run(kind, ...)
  return process.run({ host.executable, "--threads", "1", ... },
    { timeout = 120, env = { SEGZERO_CPU = kind } })
end

local kinds = {}
local names = {}
for i = 0, C.sz_processor_count() - 1 do
  names[i + 1] = ffi.string(C.sz_processor_name(i))
  if C.sz_processor_runs(i) == 1 then kinds[#kinds + 1] = names[i + 1] end
end

-- Sizes with remainders in every direction.
local SCRIPT = [[
  local sz = require "segzero"
  local tensor = require "segzero.core.tensor"
  tensor.manual_seed(3)
  local w = tensor.randn { 83, 397 }
  for _, bits in ipairs { "int8", "int4" } do
    local q, scale = w["quantize_" .. bits](w, nil, nil)
    for _, rows in ipairs { 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 25, 33, 49, 300 } do
      local x = tensor.randn { rows, 397 }
      for _, dtype in ipairs { "f32", "bf16" } do
        local own = x:to { dtype = dtype }
        print(rows, own["linear_" .. bits](own, q, scale, nil, 83, true):sum_squares():item())
      end
    end
  end
]]

check.case("8 and 4-bit products are the same on all kinds", function()
  local first
  for _, kind in ipairs(kinds) do
    local output, status = run(kind, "-e", SCRIPT)
    check.equal(status, 0, kind .. ": " .. output)
    local sums = {}
    for value in output:gmatch "\t(%S+)" do sums[#sums + 1] = tonumber(value) end
    check.equal(#sums, 56, kind .. ": all sizes")
    first = first or sums
    -- The integers are the same; scaling them may be one rounding or two.
    for i, value in ipairs(sums) do
      check.near(value / first[i], 1, 1e-6, ("%s: size %d"):format(kind, i))
    end
  end
end)

-- Few rows, with remainders in every direction: how many elements of y = x w^T differ if x is cut
-- after some rows. Prints the weights, the comparisons and the differences.
local ROWS = [[
  local ffi = require "ffi"
  local tensor = require "segzero.core.tensor"
  require "segzero"
  tensor.manual_seed(5)
  local K = 1090
  local N = 83
  local ROWS = 16
  local x = tensor.randn { ROWS, K }
  local w = tensor.randn { N, K }
  local q, scale = w:quantize_int8(nil, nil)
  local w_bf16 = w:to { dtype = "bf16" }
  local products = {
    { "f32", function(rows) return rows:linear(w) end },
    { "bf16", function(rows) return rows:to { dtype = "bf16" }:linear(w_bf16) end },
    { "int8", function(rows) return rows:linear_int8(q, scale, nil, N) end },
  }
  for _, product in ipairs(products) do
    local name, f = unpack(product)
    local y = f(x):to { dtype = "f32" }
    local whole = tensor.data(y)
    local compared = 0
    local changed = 0
    for rows = 1, ROWS - 1 do
      local first = tensor.empty { rows, K }
      ffi.copy(tensor.data(first), tensor.data(x), 4 * rows * K)
      local z = f(first):to { dtype = "f32" }
      local part = tensor.data(z)
      for i = 0, rows * N - 1 do
        compared = compared + 1
        if part[i] ~= whole[i] then changed = changed + 1 end
      end
    end
    print(name, compared, changed)
  end
]]

check.case("a row of a product has the same bits, however many rows there are", function()
  for _, kind in ipairs(kinds) do
    local output, status = run(kind, "-e", ROWS)
    check.equal(status, 0, kind .. ": " .. output)
    local seen = 0
    for name, compared, changed in output:gmatch "(%S+)\t(%d+)\t(%d+)" do
      seen = seen + 1
      check.equal(tonumber(compared), 83 * 15 * 16 / 2, kind .. ", " .. name .. ": elements")
      check.equal(tonumber(changed), 0, kind .. ", " .. name .. ": elements that differ")
    end
    check.equal(seen, 3, kind .. ": dtypes")
  end
end)

check.case("test_row_bits.lua passes on every kind", function()
  for _, kind in ipairs(kinds) do
    local output, status = run(kind, "tests/unit/test_row_bits.lua")
    check.equal(status, 0, kind .. ": " .. output)
  end
end)

-- Products of bf16 in all four forms against those of f32: remainders in every direction, an inner
-- dimension and a right operand that are cut into pieces. Prints the relative errors.
local PRODUCTS = [[
  local tensor = require "segzero.core.tensor"
  require "segzero"
  tensor.manual_seed(7)
  local function pair(rows, cols)
    local x = tensor.randn { rows, cols }:to { dtype = "bf16" }
    return x, x:to { dtype = "f32" }
  end
  local function show(y, right)
    local difference = y:to { dtype = "f32" } - right
    print(math.sqrt(difference:sum_squares():item() / right:sum_squares():item()))
  end
  local sizes = { { 1, 40, 1 }, { 17, 16, 32 }, { 33, 31, 33 }, { 100, 83, 397 }, { 65, 340, 128 },
    { 300, 70, 4200 }, { 20, 4500, 4128 } }
  for _, size in ipairs(sizes) do
    local m, n, k = unpack(size)
    for _, ta in ipairs { false, true } do
      for _, tb in ipairs { false, true } do
        local a, a_f32 = pair(ta and k or m, ta and m or k)
        local b, b_f32 = pair(tb and n or k, tb and k or n)
        show(a:matmul(b, ta, tb), a_f32:matmul(b_f32, ta, tb))
      end
    end
    local x, x_f32 = pair(m, k)
    local w, w_f32 = pair(n, k)
    local bias = tensor.randn { n }
    show(x:linear(w, bias:to { dtype = "bf16" }),
      x_f32:linear(w_f32, bias:to { dtype = "bf16" }:to { dtype = "f32" }))
  end
]]

check.case("products of bf16 in all forms", function()
  for _, kind in ipairs(kinds) do
    local output, status = run(kind, "-e", PRODUCTS)
    check.equal(status, 0, kind .. ": " .. output)
    local seen = 0
    for value in output:gmatch "%S+" do
      seen = seen + 1
      check.ok(tonumber(value) < 0.0025, ("%s: product %d: %s"):format(kind, seen, value))
    end
    check.equal(seen, 7 * 5, kind .. ": products")
  end
end)

-- Rows of bf16 with AMX: any number of them.
local MANY_ROWS = [[
  local tensor = require "segzero.core.tensor"
  require "segzero"
  tensor.manual_seed(5)
  local x = tensor.randn { 300, 1090 }:to { dtype = "bf16" }
  local w = tensor.randn { 83, 1090 }:to { dtype = "bf16" }
  local whole = x:linear(w):to { dtype = "f32" }
  for _, rows in ipairs { 1, 2, 15, 16, 17, 31, 32, 33, 70, 257 } do
    local part = x:narrow(0, rows):linear(w):to { dtype = "f32" }
    print((part - whole:narrow(0, rows)):sum_squares():item())
  end
]]

check.case("with AMX a row of bf16 has the same bits among any number of rows", function()
  if kinds[#kinds] ~= "amx" then return check.skip "a processor with AMX" end
  local output, status = run("amx", "-e", MANY_ROWS)
  check.equal(status, 0, output)
  check.equal(output, ("0\n"):rep(10), "differences")
end)

check.case("ops that kinds have their own code for", function()
  for _, kind in ipairs(kinds) do
    for _, op in ipairs { "linear_int8", "linear_int4", "quantize_int4", "linear_cat",
      "attention_cached", "adamw" } do
      local output, status = run(kind, "tests/unit/test_ops.lua", "case=" .. op)
      check.equal(status, 0, ("%s, %s: %s"):format(kind, op, output))
      check.ok(output:find ", 0 failed", ("%s, %s: the checks ran"):format(kind, op))
    end
  end
end)

check.case("doctor names the kernels", function()
  for _, kind in ipairs(kinds) do
    local output = run(kind, "doctor")
    check.equal(output:match "\nkernels +(%S+)", kind, "the kind in use")
  end
end)

-- What oneDNN is limited to, in bits: 1 is SSE 4.1 (oneDNN: dnnl_cpu_isa_t).
local EFFECTIVE = [[
  require "segzero"
  local ffi = require "ffi"
  ffi.cdef "int dnnl_get_effective_cpu_isa(void);"
  local known, dnnl = pcall(ffi.load, "libdnnl.so.2")
  if not known then dnnl = ffi.load "libdnnl.so.3" end
  print(dnnl.dnnl_get_effective_cpu_isa())
]]

check.case("oneDNN is limited to the kind, or to what DNNL_MAX_CPU_ISA says", function()
  if #names == 1 then return check.skip "a build for several kinds of x86-64 processors" end
  local function effective(env)
    local output = process.run({ host.executable, "-e", EFFECTIVE }, { timeout = 60, env = env })
    return tonumber(output)
  end
  local best = effective { SEGZERO_CPU = "" }           -- the suite may run on other kernels
  check.equal(effective { SEGZERO_CPU = "baseline" }, 1, "the baseline")
  check.equal(effective { DNNL_MAX_CPU_ISA = "SSE41" }, 1, "the variable alone")
  check.equal(effective { DNNL_MAX_CPU_ISA = "SSE41", SEGZERO_CPU = kinds[#kinds] }, 1, "both")
  if #kinds > 1 then check.ok(best > 1, "all that the processor has") end
end)

check.case("a choice that comes too late changes nothing", function()
  if #kinds == 1 then return check.skip "a processor that runs several kinds of kernels" end
  local output, status = run("", "-e", [[
    local core = require "segzero.core.ffi"
    local before = core.C.sz_processor_chosen()
    print(pcall(core.check, core.C.sz_processor_choose(0)))
    assert(core.C.sz_processor_chosen() == before)]])
  check.equal(status, 0, output)
  check.ok(output:find("the kernels of '[%w_]+' are in use already, so those of 'baseline' cannot"),
    output)
end)

check.case("a kind that there is not", function()
  local output, status = run("pentium", "-e", "require 'segzero'")
  check.equal(status, 1, "exit status")
  check.equal(output, ("segzero: SEGZERO_CPU=pentium: the kinds of kernels are %s\n"):format(
    table.concat(names, ", ")), "one line that lists them")
end)

check.finish()
