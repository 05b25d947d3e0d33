-- test_tensor.lua - tensors in Lua: values, gradients and shapes against PyTorch
-- (tests/golden/tensor.json, written by make_tensor.py), indexing, construction, printing, and the
-- message of every refusal.
--
-- The kernels themselves are swept by test_ops.lua. Left out: the CUDA device
-- (test_cuda_emulated.lua).

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"

local T = tensor
local DEVICE = "cpu"
for _, word in ipairs(arg or {}) do DEVICE = word:match "^device=(.+)$" or DEVICE end

-- ---- against PyTorch ----
local golden = cjson.decode(files.read "tests/golden/tensor.json")

-- Values of size 10 at most, a handful of f32 roundings of 6e-8 each; a gradient is a sum of up to
-- 20.
local CLOSE = 5e-6

local function flat_values(t)
  t = t:to { dtype = "f32" }
  return t:reshape(t:numel()):totable()
end

-- The inputs, requiring gradients, and the names that an expression may use.
local function inputs_of(case)
  local env = { T = T, IDS = golden.ids, WITH_IGNORED = golden.with_ignored, select = select }
  local leaves = {}
  for name, values in pairs(golden.inputs) do
    leaves[name] = T.new(values, { device = DEVICE })
    if case.gradients then leaves[name]:requires_grad(true) end
    env[name] = leaves[name]
  end
  return env, leaves
end

local function weights_for(y)
  local weights = T.arange(y:numel(), { device = y:device() }):affine(0.25, 1)
  return weights:reshape(y:shape())
end

local function check_case(case)
  local env, leaves = inputs_of(case)
  local y = setfenv(assert(loadstring("return " .. case.lua)), env)()
  check.equal(y:shape(), case.shape, case.lua .. ": shape")
  check.near(flat_values(y), case.value, CLOSE, case.lua .. ": value")
  if not case.gradients then return end

  local loss = (y * weights_for(y)):sum()
  loss:backward()
  local compared = 0
  for name, want in pairs(case.gradients) do
    local gradient = leaves[name]:grad()
    if check.ok(gradient, ("%s: gradient of %s is missing"):format(case.lua, name)) then
      check.near(flat_values(gradient), want, CLOSE, ("%s: gradient of %s"):format(case.lua, name))
      compared = compared + 1
    end
  end
  check.ok(compared > 0, case.lua .. ": no gradient was compared")
end

for _, case in ipairs(golden.cases) do
  local good, why = pcall(check_case, case)
  check.ok(good, case.lua .. ": " .. tostring(why))
end
check.ok(#golden.cases >= 90, "the golden file has its cases")

if DEVICE ~= "cpu" then
  local there = T.new({ { 1, 2 }, { 3, 4 } }, { device = DEVICE })
  check.equal(there[{ 2, 1 }], 3, "an element on the device")
  check.equal(there[2]:device(), there:device(), "a row stays on the device")
  check.equal(there:argmax(1):device(), "cpu", "indices are on the CPU")
  check.equal((there ^ 2 + 1):totable(), { { 2, 5 }, { 10, 17 } }, "numbers on the device")
  check.ok(tostring(there):find("tensor f32 [2, 2] on cuda:0\n{{1, 2},", 1, true), "printing")
  check.finish()
  return
end

-- ---- bf16: the same operations, rounded ----
local half = T.new({ { 1, 2, 3 }, { 4, 5, 6 } }, { dtype = "bf16" })
check.equal(half:sum(0):dtype(), "f32", "the sum of bf16 is f32")
check.equal(half:sum(0):totable(), { 5, 7, 9 }, "sum of bf16")
check.equal(half:mean(1):totable(), { 2, 5 }, "mean of bf16")
check.equal((half:max(1)):dtype(), "bf16", "the largest keeps its dtype")
check.equal((half + T.new({ { 10 }, { 20 } })):dtype(), "bf16", "a sum has the first one's dtype")
check.equal((half + T.new({ { 10 }, { 20 } })):totable(), { { 11, 12, 13 }, { 24, 25, 26 } },
  "bf16 + f32")
check.equal(half:t():totable(), { { 1, 4 }, { 2, 5 }, { 3, 6 } }, "transpose of bf16")
check.equal((half ^ 2):dtype(), "bf16", "a power keeps its dtype")

-- ---- whole dtypes ----
local ids = T.new({ 3, 1, 2, 1 }, { dtype = "i32" })
local bytes = T.new({ { 1, 0 }, { 0, 255 } }, { dtype = "u8" })
check.equal(ids:eq(1):totable(), { 0, 1, 0, 1 }, "i32 compared with a number")
check.equal(ids:lt(T.new({ 3, 3, 1, 1 }, { dtype = "i32" })):totable(), { 0, 1, 0, 0 },
  "i32 compared with i32")
check.equal(bytes:gt(0):totable(), { { 1, 0 }, { 0, 1 } }, "u8 compared with a number")
check.equal(bytes:t():dtype(), "u8", "transpose of u8")
check.equal(T.cat({ ids, ids }):totable(), { 3, 1, 2, 1, 3, 1, 2, 1 }, "cat of i32")
check.equal(T.where(bytes, T.ones { 2, 2 }, -1):totable(), { { 1, -1 }, { -1, 1 } },
  "a u8 condition")
local largest, places = T.new({ 1, 5, 5, 0 }):max(0)
check.equal({ largest:item(), places:item() }, { 5, 1 }, "the first of equal ones")
check.equal({ places:dtype(), places:shape() }, { "i32", { 1 } }, "an index")

-- ---- indexing ----
local m = T.new { { 1, 2, 3 }, { 4, 5, 6 } }
local cube = T.arange(24):reshape(2, 3, 4)
check.equal(#m, 2, "#t is the first dimension")
check.equal(#T.zeros { 5 }, 5, "#t of a vector")
check.equal(m:shape(0) .. m:shape(-1), "23", "shape(dim)")
check.equal(m[1]:totable(), { 1, 2, 3 }, "a row")
check.equal(m[-1]:totable(), { 4, 5, 6 }, "the last row")
check.equal(m[2][3], 6, "an element by two indices")
check.equal(m[{ 2, 3 }], 6, "an element by a list")
check.equal(m[{ -1, -3 }], 4, "from the end")
check.equal(m[{ 2 }]:totable(), { 4, 5, 6 }, "a list of one")
check.equal(cube[{ 2, 3 }]:totable(), { 20, 21, 22, 23 }, "the rest of three dimensions")
check.equal(cube[{ 2, 3, 1 }], 20, "an element of three dimensions")
check.equal(T.new({ 1.5, -2 }, { dtype = "bf16" })[2], -2, "an element of bf16")
check.equal(ids[1], 3, "an element of i32")
local row = m[1]
row:copy_(T.new { 7, 8, 9 })
check.equal(m:totable(), { { 7, 8, 9 }, { 4, 5, 6 } }, "a row is a view")
check.raises(function() m[2] = 5 end,
             "test_tensor.lua:%d+: elements of a tensor cannot be assigned", "assignment")
check.raises(function() m[{ 1, 1 }] = 5 end, "cannot be assigned", "assignment by a list")
check.raises(function() m.name = "x" end, "no field 'name'", "a new field")
local sums = {}
for i, each in ipairs(m) do sums[i] = each:sum():item() end
check.equal(sums, { 24, 15 }, "ipairs goes over the rows")

-- ---- comparing by Lua's operators ----
check.ok(m ~= nil and m == m and m ~= cube, "== asks whether it is the same object")
check.raises(function() return tensor.new { 1, nil, 3 } end, "nil between its numbers", "a hole")
check.raises(function() return tensor.new { 1, 2, x = 3 } end, "or names", "a list with a name")
check.raises(function() local t = tensor.stack({ m, m }, 5) return t end,
  "test_tensor.lua:%d+: stack: a dimension from", "stack along too late a dimension")
check.raises(function() tensor.no_grad() end, "test_tensor.lua:%d+: no_grad: a function", "no_grad")
check.raises(function() return m == 1 end, "use t:eq", "== with a number")
check.raises(function() return m < cube end, "use a:lt", "<")
check.raises(function() return m >= 1 end, "use a:lt", ">= with a number")

-- ---- making tensors ----
check.equal(T.new({ 1.5, 2 }):dtype(), "f32", "f32 unless told otherwise")
check.equal(T.full({ 2 }, 7, { dtype = "u8" }):totable(), { 7, 7 }, "full of u8")
check.equal(T.ones({ 1, 2 }, { dtype = "bf16" }):totable(), { { 1, 1 } }, "ones of bf16")
check.equal(T.arange(2, 5, { dtype = "i32" }):totable(), { 2, 3, 4 }, "arange of i32")
check.equal(T.arange(0):shape(), { 0 }, "an empty range")
check.equal(T.zeros({ 2, 0 }):numel(), 0, "an empty tensor")
check.equal(sz.tensor { { 1 } }:shape(), { 1, 1 }, "sz.tensor")

-- ---- random numbers: reproducible, of the right kind ----
T.manual_seed(3)
local first = T.randn({ 4 }):totable()
local second = T.randn({ 4 }):totable()
T.manual_seed(3)
check.equal(T.randn({ 4 }):totable(), first, "a seed repeats")
check.ok(T.randn({ 4 }):totable()[1] == second[1] and first[1] ~= second[1],
  "each tensor has its own numbers")
local normal = T.randn { 100, 100 }
-- 10000 numbers: the mean is off by 0.01 on the average, the variance by 0.014; five times that.
check.near(normal:mean():item(), 0, 0.05, "mean of randn")
check.near((normal * normal):mean():item(), 1, 0.07, "variance of randn")
for _, dtype in ipairs { "f32", "bf16" } do
  local uniform = T.rand({ 100, 100 }, { dtype = dtype })
  check.ok(uniform:min():item() >= 0 and uniform:max():item() < 1, dtype .. ": rand is in [0, 1)")
  -- The deviation of one is 0.29, so the mean of 10000 is off by 0.003; five times that.
  check.near(uniform:mean():item(), 0.5, 0.015, dtype .. ": mean of rand")
end
check.raises(function() T.manual_seed(-1) end, "whole number", "a negative seed")

-- ---- refused arguments ----
local REFUSED = {
  -- expression, what the message has
  -- indexing, making tensors
  { "m[3]", "index 1 is 3, out of range for 2 elements" },
  { "m[-3]", "out of range" },
  { "m[0]", "counted from 1" },
  { "m[1.5]", "whole number" },
  { "m[{}]", "0 indices" },
  { "m[{ 1, 2, 3 }]", "3 indices" },
  { "m:sofmax()", "did you mean 'softmax'" },
  { "T.new({ 1.7 }, { dtype = 'i32' })", "tensor: 1.7 is not a whole number" },
  { "T.new({ 256 }, { dtype = 'u8' })", "256 does not fit u8" },
  { "T.new({ 0 / 0 }, { dtype = 'i32' })", "nan does not fit i32" },
  { "T.full({ 2 }, 0.5, { dtype = 'i32' })", "not a whole number" },
  { "T.new({ 1 }, { dtpe = 'i32' })", "tensor: unknown option 'dtpe': did you mean 'dtype'" },
  { "T.zeros({ 1 }, { dvice = 'cpu' })", "did you mean 'device'" },
  { "m:to { dtyp = 'bf16' }", "did you mean 'dtype'" },
  { "T.zeros({ 1 }, 'bf16')", "options must be a table" },
  { "T.zeros(3)", "zeros: a shape is a list" },
  { "T.zeros { 2, -1 }", "size 2 of the shape is %-1" },
  { "T.zeros { 2, '3' }", "size 2" },
  { "T.zeros { 1, 1, 1, 1, 1, 1, 1 }", "at most 6" },
  { "T.new { { 1, 2 }, { 3 } }", "ragged" },
  { "T.new { x = 1 }", "with names" },
  { "T.new 'abc'", "expected a number" },
  { "T.new(m)", "a tensor already" },
  { "T.arange()", "takes stop" },
  { "T.arange(0, 5, -1)", "never reach" },
  { "T.arange(0, 5, 0)", "never reach" },
  { "T.zeros({ 1 }, { device = 'cuda:1' })", "device cuda:1: .*CUDA_VISIBLE_DEVICES=1" },
  { "T.zeros({ 1 }, { device = 'gpu' })", "unknown device gpu" },
  { "T.rand({ 2 }, { dtype = 'i32' })", "f32 or bf16" },
  { "m.shpe", "a tensor has no field or method 'shpe': did you mean 'shape'" },
  -- methods
  { "m:sum(2)", "sum: there is no dimension 2 in a tensor of shape %[2, 3%]" },
  { "m:sum(-3)", "no dimension %-3" },
  { "m:sum(0.5)", "whole number" },
  { "m:sum('0')", "whole number" },
  { "m:sum(0, 1)", "keepdim must be true or false" },
  { "m:sum(0, true, 1)", "sum: takes at most 2 arguments, got 3" },
  { "m:mean(7)", "no dimension 7" },
  { "m:softmax(2)", "no dimension 2" },
  { "m:max(m)", "a:maximum%(b%)" },
  { "m:argmax('x')", "whole number" },
  { "m:exp(1)", "exp: takes 1 tensor and no numbers; 1 is one argument too many" },
  { "m:item()", "needs a tensor of one element, this one has 6" },
  { "m:shape(0, 1)", "takes at most 1 argument, got 2" },
  { "m:numel(0)", "takes no argument, got 1" },
  { "m:clamp()", "one of them may be nil" },
  { "m:clamp('a', 1)", "a limit is a number" },
  { "m:add()", "expected a tensor or a number, got nil" },
  { "m + 'x'", "expected a tensor or a number, got string" },
  { "m + {}", "expected a tensor or a number, got table" },
  { "m + T.ones { 2 }", "add: shapes %[2, 3%] and %[2%] do not broadcast" },
  { "m:eq(T.ones { 4, 3 })", "eq: shapes %[2, 3%] and %[4, 3%] do not broadcast" },
  { "ids + ids", "f32 or bf16" },
  { "ids:sum()", "f32 or bf16" },
  { "ids:eq(0.5)", "whole numbers" },
  { "ids:eq(T.ones { 4 })", "two i32 tensors" },
  { "m:pow('2')", "expected a tensor or a number" },
  { "m:rmsnorm(T.ones { 3 })", "rmsnorm: the number eps is missing" },
  { "m:rmsnorm(T.ones { 3 }, '1e-6')", "eps is 1e%-6, expected a number" },
  { "m:rmsnorm(T.ones { 3 }, { epsilon = 1 })", "did you mean 'eps'" },
  { "m:matmul(m, 0, 1, 0)", "one argument too many" },
  { "m:narrow(0, 1, 2)", "one argument too many" },
  { "m:reshape(4, -1)", "6 elements do not fill" },
  { "m:reshape(-1, -1)", "one size may be %-1" },
  { "m:reshape(2, 0)", "a whole number from 1" },
  { "m:reshape()", "takes 1 to 4 sizes" },
  { "m:transpose(0, 2)", "no dimension 2" },
  { "m:transpose(0)", "whole number" },
  { "cube:t()", "takes a matrix" },
  { "m:permute(0, 0)", "named twice" },
  { "m:permute(0)", "takes all 2 dimensions" },
  { "m:squeeze(0)", "dimension 0 of shape %[2, 3%] is not 1" },
  { "m:unsqueeze(4)", "from %-3 to 2" },
  { "m:slice(1, 2, 2)", "reaches past" },
  { "m:slice(1, 2)", "whole numbers" },
  { "m:broadcast_to({ 3, 3 })", "must stay as it is" },
  { "m:broadcast_to(3)", "a shape is a list" },
  { "m:cat(m)", "tensor.cat" },
  { "T.cat({})", "a list of tensors" },
  { "T.cat({ m, 1 })", "element 2 is not a tensor" },
  { "T.cat({ m, m:t() })", "equal but for the dimension" },
  { "T.cat({ m, m:to { dtype = 'bf16' } })", "one dtype" },
  { "T.cat({ m }, 2)", "no dimension 2" },
  { "T.where(m, 1, 2)", "a or b must be a tensor" },
  { "T.where(m, m)", "expected a tensor or a number, got nil" },
  { "m:cross_entropy({ 0, 3 })", "an id is outside" },
  { "m:cross_entropy({ 0 })", "one id for each row" },
  { "m:cross_entropy({ 0, 1 }, { reduce = 'sum' })", "did you mean 'reduction'" },
  { "m:cross_entropy({ 0, 1 }, { reduction = 'avg' })", "mean, sum or none" },
  { "m:requires_grad(1)", "true or false" },
  { "m:backward('x')", "recorded" },
  { "m:to('cuda')", "options must be a table" },
  { "m:to { dtype = 'f64' }", "unknown dtype f64" },
  { "m.sum()", "expected a tensor, got nil" },
}
for _, case in ipairs(REFUSED) do
  local env = { m = T.new { { 1, 2, 3 }, { 4, 5, 6 } }, cube = cube, ids = ids, T = T }
  local f = setfenv(assert(loadstring("local y = " .. case[1] .. "\nreturn y", "=line")), env)
  check.raises(f, case[2], case[1])
  -- The message blames the line that has the mistake, not one of ours.
  check.raises(f, "^line:1: ", case[1] .. ": place")
end

-- ---- printing ----
check.equal(tostring(T.new { 1, 2.5 }), "tensor f32 [2] {1.0000, 2.5000}", "a vector")
check.equal(tostring(T.new { { 1, -2 }, { 30, 4 } }), "tensor f32 [2, 2]\n{{ 1, -2},\n {30,  4}}",
  "a matrix")
check.equal(tostring(T.new({ 1, 2 }, { dtype = "u8" })), "tensor u8 [2] {1, 2}", "whole numbers")
check.equal(tostring(T.arange(2000)), "tensor f32 [2000] {0, 1, 2, ..., 1997, 1998, 1999}",
  "a long vector")
check.equal(tostring(T.new { 1e-7, 1 }), "tensor f32 [2] {1.0000e-07, 1.0000e+00}", "small numbers")
check.equal(tostring(T.new { 0 / 0, 1 / 0, -1 / 0 }), "tensor f32 [3] {nan, inf, -inf}",
  "not numbers")
check.equal(tostring(T.zeros { 2, 1, 2 }), "tensor f32 [2, 1, 2]\n{{{0, 0}},\n\n {{0, 0}}}",
  "three dimensions")
check.ok(#tostring(T.zeros { 100, 100 }) < 600, "a large matrix is summarised")
check.equal(tostring(T.zeros { 0 }), "tensor f32 [0] {}", "nothing")
local freed = T.ones { 2 }
freed:free()
check.equal(tostring(freed), "tensor (freed)", "a freed tensor")
check.raises(function() return freed:sum() end, "has been freed", "use after free")
freed:free()

-- ---- gradients through index and cat in a scope; the library's memory comes back ----
T.step(function()
  local w = T.new({ { 1, 2 }, { 3, 4 } }):requires_grad(true)
  local loss = (T.cat({ w[1], w[2] * 2 }) ^ 2):sum()
  loss:backward()
  check.equal(w:grad():totable(), { { 2, 4 }, { 24, 32 } }, "gradients through rows and cat")
end)
local tied = T.new({ 2, 2, 1 }):requires_grad(true)
tied:max():backward()
check.equal(tied:grad():totable(), { 1, 0, 0 }, "of equal ones the first receives the gradient")
local compared = T.new({ 1, 2 }):requires_grad(true)
check.equal(compared:eq(1):requires_grad(), false, "a comparison has no gradient")

-- ---- docs/ops.md is what ops.def says ----
local page = require("segzero.tools.ops_doc").text()
check.ok(page == files.read "docs/ops.md", "docs/ops.md is stale: run `make docs`")
local rows = 0
for name in pairs(tensor.ops) do
  check.ok(page:find("| `" .. name .. "` |", 1, true), "docs/ops.md has the row " .. name)
  rows = rows + 1
end
check.ok(rows > 80, "all rows of ops.def are known")

-- LuaJIT stores types in the bits of NaNs, so these would read as nil, a table or a crash.
check.case("NaNs of any bits are read as NaN", function()
  local ffi = require "ffi"
  local words = { 0xffffffff, 0xfffe0000, 0xffc00001, 0xfff80123, 0x7fffffff, 0x7f800001 }
  local t = T.zeros { #words }
  local p = ffi.cast("uint32_t *", tensor.data(t))
  for i, word in ipairs(words) do p[i - 1] = word end
  local half = T.zeros({ 2 }, { dtype = "bf16" })
  local h = ffi.cast("uint16_t *", tensor.data(half))
  h[0] = 0xffff
  h[1] = 0x7fff

  local values = t:totable()
  check.equal(#values, #words, "all elements are there")
  for i, v in ipairs(values) do
    check.ok(type(v) == "number" and v ~= v, ("0x%08x is NaN"):format(words[i]))
    check.ok(t[i] ~= t[i], "t[i] is NaN")
  end
  check.ok(half[1] ~= half[1] and half[2] ~= half[2], "bf16")
  check.equal(tostring(half), "tensor bf16 [2] {nan, nan}", "printed")

  -- What Lua reads through data(), as the trainer does; a garbage collection visits the list.
  for _, x in ipairs { t, half, t:clone() } do
    local host = x:values()
    local data = tensor.data(host)
    local list = {}
    for i = 1, host:numel() do list[i] = data[i - 1] end
    collectgarbage()
    for i, v in ipairs(list) do check.ok(type(v) == "number" and v ~= v, "values(), " .. i) end
    check.equal(#list, x:numel(), "all of them")
  end
  check.equal(tensor.new({ 1, -2, 0 }):values():totable(), { 1, -2, 0 }, "other numbers stay")
end)

check.case("a norm of NaNs of any bits is NaN", function()
  local ffi = require "ffi"
  local optim = require "segzero.train.optim"
  for _, word in ipairs { 0xffffffff, 0xfffe0000, 0x7fffffff } do
    local t = T.zeros { 4 }
    ffi.cast("uint32_t *", tensor.data(t))[2] = word
    t:requires_grad(true)
    local optimizer = optim.adamw({ { name = "w", tensor = t } }, { lr = 1 })
    local norm = optimizer:weight_norm()
    check.ok(type(norm) == "number" and norm ~= norm, ("0x%08x"):format(word))
  end
end)

check.case("torch.randn is sz.tensor.randn here", function()
  local sz = require "segzero"
  for _, name in ipairs { "randn", "zeros", "arange" } do
    local message = "test_tensor%%.lua:%%d+: there is no sz%%.%s; did you mean sz%%.tensor%%.%s"
    check.raises(function() return sz[name] end, message:format(name, name), name)
  end
  check.equal(sz.no_such_name, nil, "another name is nil")
end)

check.case("a gradient goes through clone", function()
  local w = T.new({ 1, 2 }):requires_grad(true)
  local loss = (w:clone() * w):sum()
  loss:backward()
  check.equal(w:grad():totable(), { 2, 4 }, "through the copy and without it")
  check.equal(w:detach():clone():requires_grad(), false, "not through detach")
  check.equal(T.no_grad(function() return w:clone() end):requires_grad(), false, "nor in no_grad")
  local kept = T.step(function() return (w * 3):clone() end)
  check.equal(kept:totable(), { 3, 6 }, "a copy outlives its step")
end)

check.case("a second backward says what became of the record", function()
  local w = T.new({ 1, 2 }):requires_grad(true)
  local first = (w * w):sum()
  local second = (w * 3):sum()
  first:backward()
  for _, loss in ipairs { first, second } do
    check.raises(function() loss:backward() end, "no longer recorded: backward%(%) clears", "why")
  end
  check.equal(w:grad():totable(), { 2, 4 }, "the gradient stays")
end)

check.case("copy_ drops no gradient in silence", function()
  local w = T.new({ 1, 2 }):requires_grad(true)
  local message = "test_tensor%.lua:%d+: copy_ has no gradient, and the source requires one"
  check.raises(function() T.zeros({ 2 }):copy_(w * 2) end, message, "the source requires one")
  local copy = T.zeros { 2 }
  copy:copy_(w:detach())
  T.no_grad(function() w:copy_(w * 3) end)
  check.equal({ copy:totable(), w:totable() }, { { 1, 2 }, { 3, 6 } }, "detached, and in no_grad")
end)

check.case("a shape is a list without names and nils", function()
  for _, shape in ipairs { { 2, dtype = "bf16" }, { 2, nil, 3 } } do
    for _, name in ipairs { "zeros", "ones", "rand", "randn" } do
      check.raises(function() local t = T[name](shape) return t end,
        name .. ": the shape has a name or a nil in it", name)
    end
  end
  check.equal(T.zeros({}):shape(), {}, "no dimensions")
end)

check.case("an index that is a tensor is refused with the cure", function()
  local t = T.new { 1, 2 }
  check.raises(function() return (t[t:gt(1)]) end,
    "test_tensor%.lua:%d+: a tensor is no index: t:gather_rows%(ids%)", "a condition")
end)

check.case("a method of PyTorch's is answered with what to write", function()
  local t = T.new { { 1, 2 }, { 3, 1 } }
  local wanted = { view = "t:reshape%(", size = "t:shape%(%)", log_softmax = "s %- s:exp%(%)" }
  for name, instead in pairs(wanted) do
    check.raises(function() return (t[name]) end,
      "test_tensor%.lua:%d+: .*'" .. name .. "': write " .. instead, name)
  end
  local s = t - (t:max(-1, true))
  local log_softmax = s - s:exp():sum(-1, true):log()
  check.near(log_softmax:exp():totable(), t:softmax(-1):totable(), 1e-6, "log_softmax as written")
  for name in pairs(require "segzero.core.tensor.torch_names") do
    check.equal(T.methods[name], nil, name .. " is no method")
  end
end)

check.case("a tensor without elements has no extreme", function()
  for _, name in ipairs { "max", "min", "argmax", "argmin" } do
    check.raises(function()
      local empty = tensor.zeros { 0, 3 }
      local r = empty[name](empty)
      return r
    end, "test_tensor%.lua:%d+: " .. name .. ": the tensor has no elements", name)
  end
end)

check.finish()
