-- test_ops.lua - runs the case table of tests/support/op_cases.lua: every row of
-- runtime/ops/ops.def, in f32 and in bf16.
--
--   ./segzero tests/unit/test_ops.lua                 checks; a row without a case fails
--   ./segzero tests/unit/test_ops.lua bench [NAME]    times the fast kernels: ms, GB/s or GFLOP/s
--   device=cuda          after either: that device's kernels; the reference kernels stay the CPU's
--   op=NAME              after the first: this op only; several names have commas between them
--   most=N               no call with more than N elements in an input; prints how many it left out
--   flops=N              no workspace of calls over N operations; each is a skip
--   times=1              a line for each op: its calls, those with gradients, seconds
--
-- For each call: the fast kernel against the reference kernel; the same bits when it runs again;
-- inputs left alone; memory around the outputs, inputs and kernel workspace left alone. For rows
-- with a gradient rule: the gradient (fast kernels) against central differences of the reference
-- forward kernel, and against the gradient that reference kernels give. For each op: the workspace
-- that it takes against the function in its row. How a call gives its numbers.
-- Leaves out: refused shapes, speed limits.

package.path = "./?.lua;./lua/?.lua;./lua/?/init.lua;" .. package.path

local ffi = require "ffi"
local check = require "tests.support.check"
local core = require "segzero.core.ffi"
local op_calls = require "tests.support.op_calls"
local op_cases = require "tests.support.op_cases"
local op_workspace = require "tests.support.op_workspace"
local nearest = require "segzero.core.nearest"
local tensor = require "segzero.core.tensor"

local C = core.C
local MAX_INPUTS = op_calls.MAX_INPUTS
local STEP = 2 ^ -5                      -- of central differences
local DIFFERENCED_PER_INPUT = 6          -- elements whose derivative is taken, at random
local SMALL = 4000                       -- inputs up to this size have derivatives taken
local HEAD_DIM = 3                       -- the argument of attention's ops

-- ---- arguments ----
local options = {}
local words = {}
for _, word in ipairs(arg or {}) do
  local key, value = word:match "^(%w+)=(.+)$"
  if key then options[key] = value else words[#words + 1] = word end
end

local DEVICE = options.device or "cpu"
local MOST = tonumber(options.most)
local MOST_FLOPS = tonumber(options.flops) or math.huge
local ON_DEVICE = DEVICE ~= "cpu"
local IN_BF16 = not ON_DEVICE and core.C.sz_processor_multiplies_bf16() == 1
local compare = require "tests.support.op_compare"(DEVICE)
local numbers = compare.numbers
local bytes = compare.bytes
local apply = op_calls.apply
local results = op_calls.results
local free_all = op_calls.free_all
local with_inputs = op_calls.with_inputs
local with_reference = op_calls.with_reference

local function op_names()
  local names = {}
  for id = 0, C.sz_op_count() - 1 do names[id + 1] = ffi.string(C.sz_op_name(id)) end
  return names
end

-- An op that does not exist would test nothing.
local function require_op(name)
  if not name or tensor.ops[name] then return end
  print(("no op is called '%s'%s"):format(name, nearest.question(name, op_names())))
  os.exit(2)
end

-- ---- the device under test ----
-- The call with its inputs on the device under test. Index tensors stay in host memory, unless the
-- op takes any dtype.
local ANY_DTYPE = { cast = true, reshape = true, narrow = true }
local function on_device(op, call)
  if not ON_DEVICE then return call end
  return with_inputs(call, function(t)
    if t:dtype() == "i32" and not ANY_DTYPE[op.name] then return t end
    return t:to { device = DEVICE }
  end)
end

-- Frees the inputs of a call that on_device copied.
local function free_moved(moved, call)
  if moved == call then return end
  for i = 1, MAX_INPUTS do
    local t = moved.inputs[i]
    if t and t ~= call.inputs[i] then t:free() end
  end
end

-- The same numbers in f32: f(call, widen) with a copy of the call whose bf16 tensors are widened;
-- widen(t) does so for another tensor.
local function in_f32(call, f)
  local made = {}
  local function widen(t)
    if t:dtype() ~= "bf16" then return t end
    made[#made + 1] = t:cast(C.SZ_F32)
    return made[#made]
  end
  local result = f(with_inputs(call, widen), widen)
  for _, t in ipairs(made) do t:free() end
  return result
end

-- ---- values ----
-- What the reference kernels give in f32, as numbers.
local function exact_results(op, call)
  return in_f32(call, function(wide)
    local outputs, copies = with_reference(true, apply, op, wide)
    local list = results(op, outputs, copies)
    for i = 1, #list do list[i] = numbers(list[i]) end
    free_all(outputs, copies)
    return list
  end)
end

local worst_apart = {}                   -- dtype -> {part, name}: the largest distance

local function remember_apart(dtype, part, name)
  local worst = worst_apart[dtype]
  if not worst or part > worst.part then worst_apart[dtype] = { part = part, name = name } end
end

-- On a device, or where the terms are rounded, a whole tensor is judged, too. exact() makes the
-- exact numbers where they are needed. least: as in compare.apart.
local function check_apart(op, dtype, got, plain, exact, least, label)
  local off = compare.apart(got, plain, least)
  local allowed = compare.APART[dtype] or compare.APART.f32
  remember_apart(dtype, off, op.name)
  if off > allowed and dtype == "bf16" then
    local exact_numbers = exact()
    off = compare.apart(got, exact_numbers, least)
    allowed = allowed + 1.5 * compare.apart(plain, exact_numbers, least)
  end
  local text = "%s is %.3g of its size apart, allowed %.3g"
  check.ok(off <= allowed, text:format(label, off, allowed))
end

-- The dtype of a call: that of its first floating input.
local function dtype_of(call)
  for i = 1, MAX_INPUTS do
    local dtype = call.inputs[i] and call.inputs[i]:dtype()
    if dtype == "f32" or dtype == "bf16" then return dtype end
  end
end

-- A gradient is a sum of terms of size one that may cancel: a hundredth of them is the least that
-- is compared with. On a device bf16 rounds the terms themselves, so the error goes with them and a
-- tenth is.
-- Attention in bf16 rounds the softmax's weights, which are up to one, and their gradients. These
-- subtract the sum over a head of output times gradient, whose error grows with the square root of
-- the head's width. With AMX, which rounds the weights of the forward pass alone, and a tenth for
-- all widths 3 of 14 seeds failed, the worst by two thirds. Whole tensors are judged, too.
local function gradient_terms(call, rounds)
  if not rounds then return 0.01 end
  return ON_DEVICE and 0.1 or math.max(1, math.sqrt(call.args[HEAD_DIM]) / 16)
end

-- Whether the terms of a call's gradients were rounded to bf16. On the CPU attention does that with
-- heads of 16 columns or more, in steps of 8.
local function rounds_terms(call)
  if dtype_of(call) ~= "bf16" then return false end
  if ON_DEVICE then return true end
  if not IN_BF16 or not call.rounded_terms then return false end
  local width = call.args[HEAD_DIM]
  return width >= 16 and width % 8 == 0
end

-- Result i of the fast kernels against that of the reference kernels.
local function check_result(op, call, i, got, want, label)
  local name = ("%s: result %d"):format(label, i)
  local tolerance, terms = compare.tolerance(call, want:dtype())
  local is_backward = not ON_DEVICE and op.name:find "^attention.*_backward$"
  local rounds = is_backward and rounds_terms(call)
  if is_backward then terms = math.max(terms, gradient_terms(call, rounds)) end
  local got_numbers = numbers(got)
  local want_numbers = numbers(want)
  local message = compare.difference(got_numbers, want_numbers, tolerance, terms)
  check.ok(not message, name .. ": " .. (message or ""))
  if (ON_DEVICE or rounds) and want:dtype():find "f" then
    local function exact() return exact_results(op, call)[i] end
    local dtype = call.inputs[1]:dtype()
    check_apart(op, dtype, got_numbers, want_numbers, exact, rounds and terms, name)
  end
end

local function check_values(op, call, label)
  local before = {}
  local moved = on_device(op, call)
  for i = 1, op.inputs do before[i] = call.inputs[i] and bytes(call.inputs[i]) or false end

  -- Twice with the fast kernels, once with the reference kernels.
  local fast, fast_copies = apply(op, moved)
  local again, again_copies = apply(op, moved)
  local plain, plain_copies = with_reference(true, apply, op, call)

  local got = results(op, fast, fast_copies)
  local repeated = results(op, again, again_copies)
  local want = results(op, plain, plain_copies)
  for i = 1, #want do
    check_result(op, call, i, got[i], want[i], label)
    local is_same = bytes(got[i]) == bytes(repeated[i])
    check.ok(is_same, ("%s: result %d differs when run again"):format(label, i))
  end
  for i = 1, op.inputs do
    if before[i] then
      local is_same = bytes(moved.inputs[i]) == before[i]
      check.ok(is_same, ("%s: input %d was changed"):format(label, i))
    end
  end
  free_all(fast, fast_copies, again, again_copies, plain, plain_copies)
  free_moved(moved, call)
end

-- ---- gradients: of the loss sum over outputs o of sum(weights[o] * o) ----
local function tape_gradients(op, call, weights)
  local leaves = {}
  local gradients = {}
  for _, i in ipairs(call.grad) do leaves[i] = call.inputs[i]:clone():requires_grad(true) end
  local outputs, copies = apply(op, call, leaves)

  local loss
  local parts = {}
  for _, o in ipairs(call.losses or { 1 }) do
    local weighted = outputs[o]:mul(weights[o])
    local part = weighted:sum()
    parts[#parts + 1] = weighted
    parts[#parts + 1] = part
    loss = loss and loss:add(part) or part
  end
  loss:backward()

  for _, i in ipairs(call.grad) do
    local g = leaves[i]:grad()
    gradients[i] = g and numbers(g) or {}
    if g then g:free() end
  end
  loss:free()
  free_all(leaves, outputs, copies, parts)
  return gradients
end

local function plain_loss(op, call, replaced, weights)
  local outputs, copies = apply(op, call, replaced)
  local total = 0
  for _, o in ipairs(call.losses or { 1 }) do
    local y = numbers(outputs[o])
    local w = numbers(weights[o])
    for i = 1, #y do total = total + y[i] * w[i] end
  end
  free_all(outputs, copies)
  return total
end

-- Derivative of the reference loss by element `at` (from 0) of input i.
local function derivative(op, call, i, at, weights)
  local moved = call.inputs[i]:clone()
  local p = tensor.data(moved)
  local x = p[at]
  local function loss(offset)
    p[at] = x + offset
    return plain_loss(op, call, { [i] = moved }, weights)
  end
  local near = loss(STEP) - loss(-STEP)
  local far = loss(2 * STEP) - loss(-2 * STEP)
  moved:free()
  return (8 * near - far) / (12 * STEP)
end

-- Random weights from 0.5 to 1.5 for the outputs that enter the loss, in their dtypes.
local function random_weights(op, call)
  local outputs, copies = apply(op, call)
  local weights = {}
  for _, o in ipairs(call.losses or { 1 }) do
    weights[o] = outputs[o]:clone()
    local w = tensor.empty(outputs[o]:shape())
    local p = tensor.data(w)
    for i = 0, w:numel() - 1 do p[i] = math.random() + 0.5 end
    weights[o]:copy_(w)
    w:free()
  end
  free_all(outputs, copies)
  return weights
end

local function fast_gradients(op, call, weights)
  local moved = on_device(op, call)
  local moved_weights = {}
  for o, w in pairs(weights) do moved_weights[o] = w:to { device = DEVICE } end
  local gradients = tape_gradients(op, moved, moved_weights)
  if moved ~= call then free_all(moved_weights) end
  free_moved(moved, call)
  return gradients
end

-- The gradient of input i by fast kernels against that by reference kernels. exact(i) makes the
-- exact one.
local function check_gradient(op, call, i, fast, plain, exact, label)
  local name = ("%s: gradient of input %d"):format(label, i)
  local dtype = dtype_of(call)
  local rounds = rounds_terms(call)
  local terms = gradient_terms(call, rounds)
  local message = compare.difference(fast[i], plain[i], compare.sums(dtype), terms)
  -- Where the reference kernels' own error is as large, the distance from the exact numbers counts.
  if message and rounds and not compare.less_exact(fast[i], plain[i], exact(i)) then
    message = nil
  end
  if ON_DEVICE or rounds then
    local least = rounds and terms
    check_apart(op, dtype, fast[i], plain[i], function() return exact(i) end, least, name)
  end
  local is_whole = #fast[i] == call.inputs[i]:numel()
  check.ok(not message and is_whole, name .. ": " .. (message or "missing"))
end

-- The gradient of input i against central differences, for a few elements.
local function check_differences(op, call, i, fast, weights, label)
  local numel = call.inputs[i]:numel()
  local drawn = {}
  local want = {}
  for k = 1, math.min(DIFFERENCED_PER_INPUT, numel) do
    drawn[k] = math.random(0, numel - 1)
    want[k] = with_reference(true, derivative, op, call, i, drawn[k], weights)
  end
  -- The scale is the whole gradient's, not that of the few elements drawn.
  local squares = 0
  for _, v in ipairs(fast[i]) do squares = squares + v * v end
  local scale = math.sqrt(squares / numel) + 0.01
  local tolerance = compare.differences
  for k = 1, #drawn do
    local got = fast[i][drawn[k] + 1]
    local allowed = tolerance.relative * math.abs(want[k]) + tolerance.scaled * scale
    local text = "%s: gradient of input %d: got %.7g, central difference %.7g"
    check.ok(math.abs(got - want[k]) <= allowed, text:format(label, i, got, want[k]))
  end
end

local function check_gradients(op, call, label)
  local weights = random_weights(op, call)
  local fast = fast_gradients(op, call, weights)
  local plain = with_reference(true, tape_gradients, op, call, weights)
  local exact
  local function exact_of(i)
    exact = exact or in_f32(call, function(wide, widen)
      local wide_weights = {}
      for o, w in pairs(weights) do wide_weights[o] = widen(w) end
      return with_reference(true, tape_gradients, op, wide, wide_weights)
    end)
    return exact[i]
  end
  for _, i in ipairs(call.grad) do check_gradient(op, call, i, fast, plain, exact_of, label) end

  for _, i in ipairs(call.grad) do
    local is_f32 = dtype_of(call) == "f32" and call.inputs[i]:dtype() == "f32"
    local is_smooth = call.smooth ~= false
    if is_f32 and is_smooth and call.inputs[i]:numel() <= SMALL then
      check_differences(op, call, i, fast, weights, label)
    end
  end
  free_all(weights)
end

-- ---- the sweep ----
local function describe(call)
  local parts = {}
  for i = 1, MAX_INPUTS do
    local t = call.inputs[i]
    if t then parts[#parts + 1] = t:dtype() .. "[" .. table.concat(t:shape(), ",") .. "]" end
  end
  if call.name then parts[#parts + 1] = "(" .. call.name .. ")" end
  return table.concat(parts, " ")
end

local ran = { ops = 0, calls = 0, gradients = 0, left_out = 0 }

local function is_too_large(call)
  if not MOST then return false end
  for i = 1, MAX_INPUTS do
    if call.inputs[i] and call.inputs[i]:numel() > MOST then return true end
  end
  return false
end

-- Returns whether the gradient was checked.
local function check_call(op, call, label)
  local has_gradient = op.gradient and call.grad
  if op.name:sub(-1) == "_" then call.updates = call.updates or { 1 } end
  local ok, message = pcall(function()
    check_values(op, call, label)
    if has_gradient then check_gradients(op, call, label) end
  end)
  check.ok(ok, label .. ": " .. tostring(message))
  collectgarbage()                         -- tensors that an error left
  local broken = tonumber(C.sz_debug_guards(1))
  check.ok(broken == 0, ("%s: wrote past the end of %d blocks"):format(label, broken))
  ran.calls = ran.calls + 1
  if not (ok and has_gradient) then return false end
  ran.gradients = ran.gradients + 1
  return true
end

-- The seed of an op's numbers: of its name, so that they stay the same when another op is added.
local function seed_of(op)
  local h = 0
  for i = 1, #op.name do h = (31 * h + op.name:byte(i)) % 1000003 end
  return check.seed * 1000003 + h
end

local function sweep_op(op, dtype)
  local g = op_cases.generator(dtype)
  math.randomseed(seed_of(op))
  local calls = op_cases.cases[op.name].calls(g)
  check.ok(#calls > 0, op.name .. " has a case without a call")
  local gradient_seen = false
  C.sz_debug_guards(1)
  for _, call in ipairs(calls) do
    if is_too_large(call) then
      ran.left_out = ran.left_out + 1
    elseif check_call(op, call, op.name .. " " .. dtype .. ": " .. describe(call)) then
      gradient_seen = true
    end
  end
  local is_checked = gradient_seen or not op.gradient
  check.ok(is_checked, op.name .. " has a gradient rule and no case that checks it")
  g.free()
  check.ok(C.sz_debug_guards(0) == 0, op.name .. " " .. dtype .. ": wrote past the end of an input")
end

-- An op that only the CPU has says so.
local function check_refused(op)
  local g = op_cases.generator "f32"
  local call = on_device(op, op_cases.cases[op.name].calls(g)[1])
  check.raises(function() apply(op, call) end, op.name .. ": .* for the CPU", op.name)
  g.free()
end

local function check_op(name)
  local op = tensor.ops[name]
  local case = op_cases.cases[name]
  if not check.ok(case, "ops.def has a row without a case: " .. name) then return end
  if ON_DEVICE and case.cpu_only then return check_refused(op) end
  local start = os.clock()
  local before = { calls = ran.calls, gradients = ran.gradients }
  for _, dtype in ipairs { "f32", "bf16" } do sweep_op(op, dtype) end
  ran.ops = ran.ops + 1
  if options.times then
    local text = "%-24s %3d calls, %3d with gradients, %6.2f s"
    print(text:format(name, ran.calls - before.calls, ran.gradients - before.gradients,
                      os.clock() - start))
  end
end

-- ---- how a call gives its numbers ----
local function check_numbers()
  local x = tensor.new { { 1, 2, 3, 4 } }
  local ids = tensor.new({ { 0, 1, 0, 1, 0, 0 } }, { dtype = "i32" })
  check.equal(x:affine { scale = 2, shift = 1 }:totable(), { { 3, 5, 7, 9 } }, "numbers by name")
  check.equal(x:affine(2):totable(), x:affine(2, 0):totable(), "a default")
  check.equal(x:matmul(x, { trans_b = true }):item(), 30, "true is 1")

  local function raises(pattern, f, name)
    local line = debug.getinfo(f, "S").linedefined
    check.raises(f, "test_ops%.lua:" .. line .. ": " .. pattern, name)
  end
  raises("affine: unknown number 'scal': did you mean 'scale'?",
         function() x:affine { scal = 2 } end, "a misspelt name")
  raises("rmsnorm: the number eps is missing",
         function() x:rmsnorm(x) end, "a number without a default")
  raises("rmsnorm: the number eps is missing", function() x:rmsnorm(x, {}) end, "the same by name")
  raises("affine: scale is x, expected a number", function() x:affine("x") end, "no number")
  raises("exp: takes 1 tensor and no numbers; 0 is one",
         function() x:exp(0) end, "one argument too many")
  raises("attention: heads is 1.5, it must be a whole number",
         function() x:attention(ids, 1.5, 1, 1, 1, 1) end, "a fraction")
  raises("attention: kv_heads is 2, it must be a divisor",
         function() x:attention(ids, 3, 2, 1, 1, 1) end, "a wrong number")
  x:free()
  ids:free()
end

-- The names that op= gives, or all.
local function selected_ops()
  if not options.op then return op_names() end
  local names = {}
  for name in options.op:gmatch "[^,]+" do
    require_op(name)
    names[#names + 1] = name
  end
  return names
end

local function sweep()
  C.sz_set_threads(2)                      -- two, so that parallel paths run on any machine
  local names = selected_ops()
  for _, name in ipairs(names) do
    check.case(name, function() check_op(name) end)
  end
  if not ON_DEVICE then
    for _, name in ipairs(names) do
      check.case("workspace of " .. name, function() op_workspace.check(name, MOST_FLOPS) end)
    end
  end
  if not options.op then
    check.case("numbers by name", check_numbers)
    check.case("no case without a row", function()
      for name in pairs(op_cases.cases) do
        check.ok(tensor.ops[name], "a case without a row in ops.def: " .. name)
      end
    end)
  end

  print(("%d ops, %d calls, %d of them with gradients"):format(ran.ops, ran.calls, ran.gradients))
  if ran.left_out > 0 then
    print(("%d calls with larger inputs were left out (most=%d)"):format(ran.left_out, MOST))
  end
  for _, dtype in ipairs { "f32", "bf16" } do
    local w = worst_apart[dtype]
    local text = "%s: tensors are apart by %.2g of their size at most (%s)"
    if w then print(text:format(dtype, w.part, w.name)) end
  end
  check.finish()
end

-- ---- bench ----
-- The least seconds of f, over at least 0.3 s.
local function time(f)
  local best = math.huge
  local spent = 0
  repeat
    local start = C.sz_seconds()
    f()
    local t = C.sz_seconds() - start
    best = math.min(best, t)
    spent = spent + t
  until spent > 0.3
  return best
end

local function bench_op(op, dtype)
  local g = op_cases.generator(dtype)
  math.randomseed(check.seed)
  local call = on_device(op, op_cases.cases[op.name].bench(g))
  call.updates = nil                       -- no copies: in-place ops go on from where they are
  local moved
  local best = time(function()
    -- Outputs in the arena, as in training: no page faults after the first run.
    C.sz_scope_push()
    local outputs = apply(op, call)
    moved = moved or op_cases.bytes(call, outputs)
    for _, t in ipairs(outputs) do t:free() end
    C.sz_device_synchronise()
    C.sz_scope_pop()
  end)
  local rate = ("%8.2f GB/s"):format(moved / best / 1e9)
  if call.flops then rate = ("%8.1f GFLOP/s"):format(call.flops / best / 1e9) end
  print(("%-20s %-4s %10.3f ms %s"):format(op.name, dtype, best * 1e3, rate))
  g.free()
end

local function bench(only)
  require_op(only)
  print(("%s, threads %d; best of 0.3 s"):format(DEVICE, C.sz_threads()))
  for _, name in ipairs(only and { only } or op_names()) do
    local case = op_cases.cases[name]
    if case and case.bench and not (ON_DEVICE and case.cpu_only) then
      for _, dtype in ipairs { "f32", "bf16" } do bench_op(tensor.ops[name], dtype) end
    end
  end
end

if words[1] == "bench" then bench(words[2]) else sweep() end
