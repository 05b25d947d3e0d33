-- op_cases.lua - the case table of all ops: for each row of runtime/ops/ops.def the calls that
-- tests/unit/test_ops.lua runs, and the call that its bench times. Odd sizes, tails, sizes above
-- the kernels' parallel thresholds, every optional input.
--
--   cases.add.calls(g)      -> list of calls for g.dtype ("f32" or "bf16")
--   cases.add.bench(g)      -> one call of a size that models use; .flops if arithmetic limits it
--   cases.add.cpu_only      the op is refused on a device
--
-- A call: {inputs = {...}, args = {...}, name = "what is special",
--   grad = {1, 2}           inputs whose gradient is checked (rows with a gradient rule only)
--   losses = {1}            outputs that enter the loss of that check
--   updates = {1}           inputs that the op writes to (in-place ops; default {1} for them)
--   sums = true             the long-sum tolerance applies
--   rounded_terms = true    with bf16 inputs, sums are of terms that were rounded to bf16
--   rounds_inside = true    the same, and f32 results too are only as good as bf16
--   codes = true            u8 results are rounded codes: a neighbouring code is right, too
--   smooth = false          no finite differences: the value jumps (rounding to bf16)}
-- Leaves out: wrong shapes and their messages.

local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"

local C = core.C

local M = {}
local DTYPE = { f32 = 0, bf16 = 1, i32 = 2, u8 = 3 }

local function product(shape)
  local n = 1
  for _, d in ipairs(shape) do n = n * d end
  return n
end

local function gauss()
  return (math.random() + math.random() + math.random() + math.random() - 2) * 1.7
end

local function coin(yes, no)
  if math.random() < 0.5 then return yes end
  return no
end

-- value if wanted, else nil.
local function when(wanted, value)
  if wanted then return value end
  return nil
end

-- make(...) if wanted, else nil: an optional input. If it is not wanted, no random number is drawn.
local function optional(wanted, make, ...)
  if wanted then return make(...) end
  return nil
end

-- The shape with its last two dimensions exchanged.
local function transposed_shape(shape)
  local n = #shape
  local out = { unpack(shape) }
  out[n - 1] = shape[n]
  out[n] = shape[n - 1]
  return out
end

-- ---- the generator ----

-- Tensors that g.free() frees.
local function add_owner(g)
  local made = {}
  function g.keep(t)
    made[#made + 1] = t
    return t
  end
  function g.keeps(...)
    for i = 1, select("#", ...) do g.keep((select(i, ...))) end
    return ...
  end
  function g.free()
    for i = #made, 1, -1 do made[i]:free() end
    made = {}
  end
end

-- Tensors of floating-point numbers. `as` is their dtype; the default is the generator's.
local function add_numbers(g, zeros)
  local function all_zero(shape, as)
    return g.keep(tensor.zeros(shape, { dtype = as or g.dtype }))
  end
  -- The numbers f(i), i from 0.
  function g.fill(shape, f, as)
    as = as or g.dtype
    local integer = as == "i32" or as == "u8"
    if zeros and not integer then return all_zero(shape, as) end
    local made_as = "f32"
    if integer then made_as = as end
    local t = tensor.empty(shape, { dtype = made_as })
    local p = tensor.data(t)
    for i = 0, product(shape) - 1 do p[i] = f(i) end
    if integer or as == "f32" then return g.keep(t) end
    local c = t:cast(DTYPE[as])
    t:free()
    return g.keep(c)
  end
  function g.normal(shape, as) return g.fill(shape, gauss, as) end
  function g.positive(shape, as)
    return g.fill(shape, function() return 0.3 + math.abs(gauss()) end, as)
  end
end

-- Tensors of i32 numbers.
local function add_integers(g)
  -- n ids below limit, with repeats when n is larger; distinct(n, limit) has none.
  function g.ids(n, limit)
    return g.fill({ n }, function() return math.random(0, limit - 1) end, "i32")
  end
  function g.distinct(n, limit)
    local order = {}
    for i = 1, limit do order[i] = i - 1 end
    for i = 1, n do
      local j = math.random(i, limit)
      order[i], order[j] = order[j], order[i]
    end
    return g.fill({ n }, function(i) return order[i + 1] end, "i32")
  end
  function g.rows(list)
    local width = #list[1]
    return g.fill({ #list, width }, function(i)
      return list[math.floor(i / width) + 1][i % width + 1]
    end, "i32")
  end
end

-- Tensors of zeros like the outputs of a call, which is not run.
local function zeros_like_outputs(op, all)
  C.sz_dry_run(1)
  local ok, outputs = pcall(function() return { op.call(unpack(all, 1, op.inputs + op.args)) } end)
  C.sz_dry_run(0)
  if not ok then error(outputs, 0) end
  local made = {}
  for i, t in ipairs(outputs) do
    made[i] = tensor.zeros(t:shape(), { dtype = t:dtype() })
    t:free()
  end
  return made
end

-- The outputs of an op, to be inputs of another case. The kernels are those that are set now.
local function add_run(g, zeros)
  function g.run(name, inputs, args)
    local op = tensor.ops[name]
    local all = {}
    for i = 1, op.inputs do all[i] = inputs[i] end
    for i = 1, op.args do all[op.inputs + i] = args[i] end
    local out
    if zeros then
      out = zeros_like_outputs(op, all)
    else
      out = { op.call(unpack(all, 1, op.inputs + op.args)) }
    end
    return g.keeps(unpack(out))
  end
end

-- Makes inputs; g.free() frees them all. The numbers come from math.random, which the caller seeds.
-- opts.zeros: all floating-point numbers are 0, and so is what g.run() returns, which is fast.
function M.generator(dtype, opts)
  local g = { dtype = dtype, other = "f32" }
  if dtype == "f32" then g.other = "bf16" end
  add_owner(g)
  local zeros = opts and opts.zeros
  add_numbers(g, zeros)
  add_integers(g)
  add_run(g, zeros)
  return g
end

-- 33 * 1025 elements are past the parallel threshold and a multiple of no block.
local SHAPES = { { 1 }, { 3 }, { 17 }, { 65 }, { 513 }, { 5, 129 }, { 2, 3, 7 }, { 33, 1025 } }
local BIG = { 2048, 2048 }

local cases = {}
M.cases = cases

-- ---- elementwise ----
local function special(g)
  local values = { 0, -0.0, 1 / 0, -1 / 0, 0 / 0, 1e-40, 100, -100, 3e38, -3e38, 1 }
  return g.fill({ #values }, function(i) return values[i + 1] end)
end

-- make(g, shape) -> input; args: numbers
local function unary(make, args)
  return {
    calls = function(g)
      local list = { { inputs = { special(g) }, args = args, name = "inf, nan, subnormal" } }
      for _, shape in ipairs(SHAPES) do
        list[#list + 1] = { inputs = { make(g, shape) }, args = args, grad = { 1 } }
      end
      return list
    end,
    bench = function(g) return { inputs = { make(g, BIG) }, args = args } end,
  }
end
local function normal(g, shape) return g.normal(shape) end
local function positive(g, shape) return g.positive(shape) end
-- No value within 0.2 of -0.7 or 0.9, where clamp's slope jumps.
local function off_limits(g, shape)
  return g.fill(shape, function()
    local x = gauss()
    while math.abs(x + 0.7) < 0.2 or math.abs(x - 0.9) < 0.2 do x = gauss() end
    return x
  end)
end

cases.affine = unary(normal, { -1.7, 0.3 })
cases.exp = unary(normal)
cases.log = unary(positive)
cases.sigmoid = unary(normal)
cases.silu = unary(normal)
cases.gelu = unary(normal)
cases.quick_gelu = unary(normal)
cases.clamp = unary(off_limits, { -0.7, 0.9 })
-- No value within 0.2 of 0, where relu's slope jumps.
cases.relu = unary(function(g, shape)
  return g.fill(shape, function()
    local magnitude = 0.2 + math.abs(gauss())
    return magnitude * coin(-1, 1)
  end)
end)
cases.softplus = unary(function(g, shape)
  return g.fill(shape, function() return 8 * gauss() end)
end)

-- Second shapes: equal, a trailing part (shorter and longer than 256, which is half of a block),
-- one element; in either dtype.
local BROADCAST = {
  { { 7, 65 }, { 65 } }, { { 4, 3, 17 }, { 17 } }, { { 4, 3, 17 }, { 3, 17 } }, { { 300 }, { 1 } },
  { { 3 }, { 1 } }, { { 999, 3 }, { 3 } }, { { 5, 513 }, { 513 } },
  { { 33, 1025 }, { 1025 } }, { { 150, 257 }, { 257 } }, { { 35000 }, { 1 } },
}
local function binary(second)
  return {
    calls = function(g)
      local list = {}
      for _, shape in ipairs(SHAPES) do
        list[#list + 1] = { inputs = { g.normal(shape), second(g, shape) }, grad = { 1, 2 } }
      end
      for _, pair in ipairs(BROADCAST) do
        list[#list + 1] = {
          inputs = { g.normal(pair[1]), second(g, pair[2]) }, grad = { 1, 2 }, name = "broadcast",
        }
        list[#list + 1] = {
          inputs = { g.normal(pair[1]), second(g, pair[2], g.other) }, grad = { 1, 2 },
          name = "broadcast, other dtype",
        }
      end
      return list
    end,
    bench = function(g) return { inputs = { g.normal(BIG), second(g, BIG) } } end,
  }
end
cases.add = binary(function(g, shape, as) return g.normal(shape, as) end)
cases.sub = cases.add
cases.mul = cases.add
-- From 1 on: the slope's own slopes grow with 1 / b^6, and the central differences of the check
-- have to follow them.
cases.div = binary(function(g, shape, as)
  return g.fill(shape, function() return 1 + math.abs(gauss()) end, as)
end)

-- A pair of tensors that nowhere come closer than 0.3.
local function apart(g, shape)
  local values = {}
  local a = g.fill(shape, function(i)
    values[i] = gauss()
    return values[i]
  end)
  local b = g.fill(shape, function(i)
    local sign = coin(-1, 1)
    return values[i] + sign * (0.3 + math.abs(gauss()))
  end)
  return a, b
end
local function of_pairs(third)
  return {
    calls = function(g)
      local list = {}
      for _, shape in ipairs(SHAPES) do
        local a, b = apart(g, shape)
        list[#list + 1] = { inputs = { a, b, optional(third, g.normal, shape) }, grad = { 1, 2 } }
      end
      local x = special(g)
      list[#list + 1] = {
        inputs = { x, g.normal({ 11 }), when(third, x) }, name = "inf, nan on the left",
      }
      list[#list + 1] = {
        inputs = { g.normal({ 11 }), x, when(third, x) }, name = "inf, nan on the right",
      }
      return list
    end,
    bench = function(g)
      return { inputs = { g.normal(BIG), g.normal(BIG), optional(third, g.normal, BIG) } }
    end,
  }
end
cases.minimum = of_pairs(false)
cases.maximum = of_pairs(false)
cases.mask_le = of_pairs(true)

local function backward(args)
  return {
    calls = function(g)
      local list = {}
      for _, shape in ipairs(SHAPES) do
        list[#list + 1] = { inputs = { g.normal(shape), g.normal(shape) }, args = args }
      end
      return list
    end,
    bench = function(g) return { inputs = { g.normal(BIG), g.normal(BIG) }, args = args } end,
  }
end
cases.silu_backward = backward()
cases.gelu_backward = backward()
cases.quick_gelu_backward = backward()
cases.relu_backward = backward()
cases.clamp_backward = backward({ -0.7, 0.9 })

local WIDTHS = { { 1, 1 }, { 3, 3 }, { 2, 17 }, { 5, 65 }, { 7, 513 }, { 40, 855 } }
cases.swiglu = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(WIDTHS) do
      list[#list + 1] = { inputs = { g.normal({ s[1], 2 * s[2] }) }, grad = { 1 } }
    end
    return list
  end,
  bench = function(g) return { inputs = { g.normal({ 1024, 6840 }) } } end,
}
cases.swiglu_backward = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(WIDTHS) do
      list[#list + 1] = { inputs = { g.normal({ s[1], 2 * s[2] }), g.normal(s) } }
    end
    return list
  end,
  bench = function(g)
    return { inputs = { g.normal({ 1024, 6840 }), g.normal({ 1024, 3420 }) } }
  end,
}

cases.cast = {
  calls = function(g)
    local list = {}
    for _, to in ipairs { "f32", "bf16", "i32", "u8" } do
      for _, shape in ipairs(SHAPES) do
        local has_gradient = to == "f32" or to == "bf16"
        list[#list + 1] = {
          inputs = { g.fill(shape, function() return math.abs(gauss()) * 60 end) },
          args = { DTYPE[to] }, name = "to " .. to,
          grad = when(has_gradient, { 1 }), smooth = to == "f32",
        }
        for _, from in ipairs { "i32", "u8" } do
          list[#list + 1] = {
            inputs = { g.fill(shape, function() return math.random(0, 255) end, from) },
            args = { DTYPE[to] }, name = from .. " to " .. to,
          }
        end
      end
    end
    local negative = g.fill({ 5 }, function(i) return -70000 + 35000 * i end, "i32")
    list[#list + 1] = { inputs = { negative }, args = { DTYPE.f32 }, name = "negative i32" }
    return list
  end,
  bench = function(g) return { inputs = { g.normal(BIG) }, args = { DTYPE[g.other] } } end,
}

cases.sum = {
  calls = function(g)
    local list = {}
    for _, shape in ipairs(SHAPES) do
      list[#list + 1] = { inputs = { g.positive(shape) }, grad = { 1 } }
    end
    return list
  end,
  bench = function(g) return { inputs = { g.normal(BIG) } } end,
}
cases.sum_squares = {
  calls = function(g)
    local list = {}
    for _, shape in ipairs(SHAPES) do list[#list + 1] = { inputs = { g.normal(shape) } } end
    return list
  end,
  bench = function(g) return { inputs = { g.normal(BIG) } } end,
}
cases.sum_leading = {
  calls = function(g)
    local list = {}
    local sizes = {
      { 1, 1 }, { 17, 1 }, { 40000, 1 }, { 1, 65 }, { 999, 3 }, { 129, 65 }, { 70, 513 },
      { 3, 5000 }, { 9, 4999 }, { 130, 300 }, { 1000, 256 },
    }
    for _, s in ipairs(sizes) do
      list[#list + 1] = { inputs = { g.normal(s) }, args = { s[2] } }
    end
    return list
  end,
  bench = function(g) return { inputs = { g.normal(BIG) }, args = { BIG[2] } } end,
}
cases.expand = {
  calls = function(g)
    local list = {}
    for _, shape in ipairs(SHAPES) do
      list[#list + 1] = { inputs = { g.normal({ 1 }, "f32"), g.normal(shape) } }
      list[#list + 1] = { inputs = { g.normal({ 1 }, "bf16"), g.normal(shape) } }
    end
    return list
  end,
  bench = function(g) return { inputs = { g.normal({ 1 }), g.normal(BIG) } } end,
}
cases.add_ = {
  calls = function(g)
    local list = {}
    for _, shape in ipairs(SHAPES) do
      list[#list + 1] = { inputs = { g.normal(shape, "f32"), g.normal(shape) } }
      list[#list + 1] = { inputs = { g.normal(shape), g.normal(shape) } }
    end
    return list
  end,
  bench = function(g) return { inputs = { g.normal(BIG, "f32"), g.normal(BIG) } } end,
}

-- lr, beta1, beta2, eps, weight_decay, step, grad_scale
local ADAMW = { 1e-2, 0.9, 0.999, 1e-8, 0.1, 3, 0.5 }
local function adamw(g, shape, args)
  local inputs = {
    g.normal(shape), g.normal(shape, "f32"), g.normal(shape, "f32"), g.positive(shape, "f32"),
  }
  local updates = { 1, 3, 4 }
  if g.dtype ~= "f32" then        -- a master copy of the weights
    inputs[5] = g.normal(shape, "f32")
    updates[4] = 5
  end
  return { inputs = inputs, args = args, updates = updates }
end
cases.adamw_ = {
  calls = function(g)
    local list = {}
    for _, shape in ipairs(SHAPES) do list[#list + 1] = adamw(g, shape, ADAMW) end
    local first = adamw(g, { 65 }, { 1e-3, 0.9, 0.95, 1e-8, 0, 1, 1 })
    for i = 3, 4 do first.inputs[i] = g.fill({ 65 }, function() return 0 end, "f32") end
    first.name = "first step"
    list[#list + 1] = first
    return list
  end,
  bench = function(g) return adamw(g, BIG, ADAMW) end,
}

-- Moments in bf16 and as 8-bit codes (blocks of 256, so shapes beyond that), with and without
-- masters, gradients of either dtype.
local function compact(g, shape, moments, master, gradient, name, from)
  local n = product(shape)
  local blocks = math.ceil(n / 256)
  local function state(sign)
    if moments == "u8" then
      return g.fill(shape, function() return math.random(0, 255) end, "u8")
    end
    if sign then return g.normal(shape, moments) end
    return g.positive(shape, moments)
  end
  local scales = moments == "u8"
  local inputs = {
    g.normal(shape), g.normal(shape, gradient), state(true), state(false),
    optional(scales, g.positive, { blocks }, "f32"),
    optional(scales, g.positive, { blocks }, "f32"),
    optional(master, g.normal, shape, "f32"),
  }
  local updates = { 1, 3, 4 }
  for i = 5, 7 do
    if inputs[i] then updates[#updates + 1] = i end
  end
  return {
    inputs = inputs, args = { 1e-2, 0.9, 0.999, 1e-8, 0.1, 3, 0.5, 7, from or 0 },
    updates = updates,
    codes = true, name = name,
  }
end
cases.adamw_compact_ = {
  calls = function(g)
    local list = {}
    for _, shape in ipairs { { 1 }, { 255 }, { 257 }, { 5, 513 }, { 300, 129 } } do
      for _, moments in ipairs { "f32", "bf16", "u8" } do
        list[#list + 1] = compact(g, shape, moments, false, "f32")
        list[#list + 1] = compact(g, shape, moments, g.dtype == "bf16", "bf16")
      end
    end
    for _, moments in ipairs { "bf16", "u8" } do
      list[#list + 1] = compact(g, { 700 }, moments, false, "f32", "a part, " .. moments, 1536)
    end
    local first = compact(g, { 700 }, "u8", false, "f32", "first step, gradients of many sizes")
    for i = 3, 4 do first.inputs[i] = g.fill({ 700 }, function() return 0 end, "u8") end
    for i = 5, 6 do first.inputs[i] = g.fill({ 3 }, function() return 0 end, "f32") end
    first.inputs[2] = g.fill({ 700 }, function(i)
      if i % 50 == 0 then return 0 end
      return gauss() * 10 ^ -(i % 13)
    end, "f32")
    list[#list + 1] = first
    return list
  end,
  bench = function(g) return compact(g, BIG, "u8", false, g.dtype) end,
}

-- ---- rowwise ----
local NORMS = { { 1, 3 }, { 3, 17 }, { 17, 65 }, { 5, 513 }, { 40, 1030 }, { 1100, 64 } }
cases.rmsnorm = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(NORMS) do
      list[#list + 1] = {
        inputs = { g.normal(s), g.normal({ s[2] }) }, args = { 1e-6 }, grad = { 1, 2 },
      }
      list[#list + 1] = {
        inputs = { g.normal(s), g.normal({ s[2] }, g.other) }, args = { 1e-6 }, grad = { 1, 2 },
        name = "weight in the other dtype",
      }
    end
    return list
  end,
  bench = function(g)
    return { inputs = { g.normal({ 2048, 2048 }), g.normal({ 2048 }) }, args = { 1e-6 } }
  end,
}
cases.rmsnorm_backward = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(NORMS) do
      list[#list + 1] = {
        inputs = { g.normal(s), g.normal({ s[2] }), g.normal(s) }, args = { 1e-6 },
      }
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 2048, 2048 }), g.normal({ 2048 }), g.normal({ 2048, 2048 }) },
      args = { 1e-6 },
    }
  end,
}

-- Rows far from 0, so that a variance taken as mean(x^2) - mean(x)^2 would show. One element a row
-- is its own mean.
local LAYERS = {
  { 1, 3 }, { 9, 4 }, { 70, 16 }, { 3, 17 }, { 17, 65 }, { 5, 513 }, { 40, 1030 }, { 1100, 64 },
}
local function shifted(g, shape) return g.fill(shape, function() return 20 + gauss() end) end
cases.layernorm = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(LAYERS) do
      list[#list + 1] = {
        inputs = { g.normal(s), g.normal({ s[2] }), g.normal({ s[2] }) }, args = { 1e-6 },
        grad = { 1, 2, 3 },
      }
      list[#list + 1] = {
        inputs = { g.normal(s), g.normal({ s[2] }, g.other), g.normal({ s[2] }, g.other) },
        args = { 1e-5 }, grad = { 1, 2, 3 }, name = "weights in the other dtype",
      }
      list[#list + 1] = {
        inputs = { shifted(g, s), g.normal({ s[2] }), g.normal({ s[2] }) }, args = { 1e-6 },
        sums = true, name = "mean 20",
      }
    end
    local constant = g.fill({ 3, 40 }, function() return 1.5 end)
    list[#list + 1] = {
      inputs = { constant, g.normal({ 40 }), g.normal({ 40 }) }, args = { 1e-6 },
      name = "constant rows",
    }
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 4096, 384 }), g.normal({ 384 }), g.normal({ 384 }) }, args = { 1e-6 },
    }
  end,
}
cases.layernorm_backward = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(LAYERS) do
      list[#list + 1] = {
        inputs = { g.normal(s), g.normal({ s[2] }), g.normal(s) }, args = { 1e-6 },
      }
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 4096, 384 }), g.normal({ 384 }), g.normal({ 4096, 384 }) },
      args = { 1e-6 },
    }
  end,
}

local ROWS = { { 1, 1 }, { 3, 3 }, { 17, 65 }, { 2, 3, 33 }, { 5, 513 }, { 33, 1025 } }
cases.softmax = {
  calls = function(g)
    local list = {}
    for _, shape in ipairs(ROWS) do
      list[#list + 1] = { inputs = { g.normal(shape) }, grad = { 1 } }
    end
    local row = { 1000, 999, -1000, -1 / 0, 998 }
    local large = g.fill({ 2, 5 }, function(i) return row[i % 5 + 1] end)
    list[#list + 1] = { inputs = { large }, name = "large and -inf" }
    return list
  end,
  bench = function(g) return { inputs = { g.normal(BIG) } } end,
}
cases.softmax_backward = {
  calls = function(g)
    local list = {}
    for _, shape in ipairs(ROWS) do
      list[#list + 1] = { inputs = { g.normal(shape), g.normal(shape) } }
    end
    return list
  end,
  bench = function(g) return { inputs = { g.normal(BIG), g.normal(BIG) } } end,
}

-- n rows, heads, head_dim, further columns that are copied
local function rope(g, n, heads, dim, rest, sign, as)
  local angles = {}
  local function angle(i)
    angles[i] = angles[i] or math.random() * 6.3
    return angles[i]
  end
  return {
    inputs = {
      g.normal({ n, heads * dim + rest }),
      g.fill({ n, dim / 2 }, function(i) return math.cos(angle(i)) end, as),
              g.fill({ n, dim / 2 }, function(i) return math.sin(angle(i)) end, as) },
    args = { heads, dim, sign }, grad = { 1 }, name = "angles in " .. as,
  }
end
cases.rope = {
  calls = function(g)
    local list = {}
    local sizes = {
      { 1, 1, 2, 0 }, { 3, 2, 6, 1 }, { 17, 3, 34, 5 }, { 5, 1, 1026, 0 }, { 9, 4, 80, 320 },
      { 65, 9, 128, 256 },
    }
    for _, s in ipairs(sizes) do
      for _, as in ipairs { "f32", "bf16" } do
        list[#list + 1] = rope(g, s[1], s[2], s[3], s[4], 1, as)
        list[#list + 1] = rope(g, s[1], s[2], s[3], s[4], -1, as)
      end
    end
    return list
  end,
  bench = function(g) return rope(g, 2048, 18, 128, 256, 1, g.dtype) end,
}

-- rows of the table, ids, width
local TABLES = { { 1, 1, 1 }, { 3, 5, 17 }, { 11, 2, 65 }, { 5, 33, 3 }, { 40, 100, 1025 } }
local function lookup(bench_ids)
  return {
    calls = function(g)
      local list = {}
      for _, s in ipairs(TABLES) do
        list[#list + 1] = { inputs = { g.normal({ s[1], s[3] }), g.ids(s[2], s[1]) }, grad = { 1 } }
      end
      return list
    end,
    bench = function(g)
      return { inputs = { g.normal(BIG), g.ids(bench_ids, BIG[1]) }, bytes_of = { 2, -1, -1 } }
    end,
  }
end
cases.embedding = lookup(1024)
cases.gather_rows = lookup(2048)
cases.index_add_ = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(TABLES) do
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[3] }, "f32"), g.ids(s[2], s[1]), g.normal({ s[2], s[3] }) },
      }
    end
    return list
  end,
  bench = function(g)
    return { inputs = { g.normal(BIG, "f32"), g.ids(BIG[1], BIG[1]), g.normal(BIG) } }
  end,
}
cases.index_copy = {
  calls = function(g)
    local list = {}
    for _, s in ipairs { { 1, 1, 1 }, { 5, 3, 17 }, { 11, 11, 65 }, { 40, 33, 1025 } } do
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[3] }), g.distinct(s[2], s[1]), g.normal({ s[2], s[3] }) },
        grad = { 1, 3 },
      }
    end
    return list
  end,
  bench = function(g)
    return { inputs = { g.normal(BIG), g.distinct(900, BIG[1]), g.normal({ 900, BIG[2] }) } }
  end,
}
cases.pad_rows = {
  calls = function(g)
    local list = {}
    -- rows, width, new rows
    for _, s in ipairs { { 1, 1, 1 }, { 5, 17, 3 }, { 11, 65, 0 }, { 40, 1025, 7 }, { 0, 9, 4 } } do
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[2] }) }, args = { s[3] }, grad = when(s[1] > 0, { 1 }),
      }
    end
    return list
  end,
  bench = function(g) return { inputs = { g.normal({ 4096, 288 }) }, args = { 132 } } end,
}

-- Elements of a row are at least 0.2 apart from those of the other rows in their column.
local function ranked(g, m, d)
  local rank = {}
  return g.fill({ m, d }, function(i)
    local row, col = math.floor(i / d), i % d
    if row == 0 then
      rank[col] = {}
      for r = 0, m - 1 do
        local at = math.random(0, r)
        rank[col][r] = rank[col][at]
        rank[col][at] = r
      end
    end
    return (rank[col][row] - m / 2) * 0.25
  end)
end
-- Rows of x, rows of the output, ids a row, width. With few rows of x many outputs share one.
local POOLS = {
  { 1, 1, 1, 1 }, { 4, 7, 3, 17 }, { 9, 2, 4, 65 }, { 6, 33, 4, 3 }, { 40, 100, 4, 513 },
}
cases.max_pool_rows = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(POOLS) do
      local ids = g.fill({ s[2], s[3] }, function() return math.random(0, s[1] - 1) end, "i32")
      list[#list + 1] = { inputs = { ranked(g, s[1], s[4]), ids }, grad = { 1 } }
      list[#list + 1] = { inputs = { g.normal({ s[1], s[4] }), ids }, name = "normal" }
    end
    return list
  end,
  bench = function(g)
    local ids = g.fill({ 4096, 4 }, function(i) return i end, "i32")
    return { inputs = { g.normal({ 16384, 288 }), ids } }
  end,
}
cases.max_pool_rows_backward = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(POOLS) do
      local ids = g.fill({ s[2], s[3] }, function() return math.random(0, s[1] - 1) end, "i32")
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[4] }), ids, g.normal({ s[2], s[4] }) }, sums = true,
      }
      local equal = g.fill({ s[1], s[4] }, function() return 1 end)
      list[#list + 1] = {
        inputs = { equal, ids, g.normal({ s[2], s[4] }) }, sums = true, name = "all equal",
      }
    end
    return list
  end,
  bench = function(g)
    local ids = g.fill({ 4096, 4 }, function(i) return i end, "i32")
    return { inputs = { g.normal({ 16384, 288 }), ids, g.normal({ 4096, 288 }) } }
  end,
}
cases.scatter_cols_ = {
  calls = function(g)
    local list = {}
    -- rows, ids, width, first column
    for _, s in ipairs { { 1, 1, 1, 0 }, { 5, 3, 17, 4 }, { 40, 33, 1025, 7 } } do
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[3] }), g.distinct(s[2], s[1]), g.normal({ s[2], s[3] + 9 }) },
        args = { s[4] },
      }
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 4096, 256 }), g.distinct(2048, 4096), g.normal({ 2048, 2560 }) },
      args = { 2048 }, bytes_of = { -1, -1 },
    }
  end,
}

-- ---- shape ----
cases.reshape = {
  calls = function(g)
    return {
      { inputs = { g.normal({ 6, 35 }) }, args = { 2, 3, 5, 7 }, grad = { 1 } },
      { inputs = { g.normal({ 3, 17 }) }, args = { 51 }, grad = { 1 } },
      { inputs = { g.normal({ 1 }) }, args = { 1, 1, 1 }, grad = { 1 } },
    }
  end,
  bench = function(g) return { inputs = { g.normal(BIG) }, args = { BIG[1] * BIG[2] } } end,
}
cases.narrow = {
  calls = function(g)
    return {
      { inputs = { g.normal({ 9, 17 }) }, args = { 2, 5 }, grad = { 1 } },
      { inputs = { g.normal({ 65 }) }, args = { 64, 1 }, grad = { 1 } },
      { inputs = { g.normal({ 3, 5, 7 }) }, args = { 0, 3 }, grad = { 1 } },
      { inputs = { g.normal({ 4, 3 }) }, args = { 4, 0 }, name = "no rows" },
    }
  end,
  bench = function(g) return { inputs = { g.normal(BIG) }, args = { 100, 1000 } } end,
}

-- ---- matmul: n rows, k summed, m columns ----
local PRODUCTS = {
  { 1, 1, 1 }, { 3, 17, 5 }, { 1, 257, 65 }, { 2, 129, 33 }, { 65, 33, 129 }, { 17, 130, 31 },
  { 8, 64, 96 },
}
-- A matrix of this shape, stored transposed if the flag is 1.
local function factor(g, shape, transposed)
  if transposed == 1 then return g.normal(transposed_shape(shape)) end
  return g.normal(shape)
end
cases.matmul = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(PRODUCTS) do
      for ta = 0, 1 do
        for tb = 0, 1 do
          local a = factor(g, { s[1], s[2] }, ta)
          local b = factor(g, { s[2], s[3] }, tb)
          list[#list + 1] = {
            inputs = { a, b }, args = { ta, tb }, grad = { 1, 2 }, sums = true,
            name = ("trans %d %d"):format(ta, tb),
          }
        end
      end
    end
    for ta = 0, 1 do
      for tb = 0, 1 do
        local a = factor(g, { 3, 5, 17 }, ta)
        local b = factor(g, { 3, 17, 9 }, tb)
        list[#list + 1] = {
          inputs = { a, b }, args = { ta, tb }, grad = { 1, 2 }, sums = true,
          name = ("stacked, trans %d %d"):format(ta, tb),
        }
      end
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 1024, 1024 }), g.normal({ 1024, 1024 }) }, args = { 0, 0 },
      flops = 2 * 1024 ^ 3,
    }
  end,
}
cases.linear = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(PRODUCTS) do
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[2] }), g.normal({ s[3], s[2] }) }, grad = { 1, 2 },
        sums = true, name = "no bias",
      }
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[2] }), g.normal({ s[3], s[2] }), g.normal({ s[3] }) },
        grad = { 1, 2, 3 }, sums = true,
      }
    end
    list[#list + 1] = {
      inputs = { g.normal({ 2, 3, 17 }), g.normal({ 5, 17 }), g.normal({ 5 }) },
      grad = { 1, 2, 3 }, sums = true, name = "3-D x",
    }
    list[#list + 1] = {
      inputs = { g.normal({ 3, 24 }), g.normal({ 5, 2, 3, 4 }) }, grad = { 1, 2 }, sums = true,
      name = "weight seen as [5, 24]",
    }
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 1024, 2048 }), g.normal({ 2048, 2048 }), g.normal({ 2048 }) },
      flops = 2 * 1024 * 2048 * 2048,
    }
  end,
}
cases.linear_f32_out = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(PRODUCTS) do
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[2] }), g.normal({ s[3], s[2] }) }, sums = true,
      }
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 128, 2048 }), g.normal({ 4096, 2048 }) },
      flops = 2 * 128 * 2048 * 4096,
    }
  end,
}
cases.linear_gelu = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(PRODUCTS) do
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[2] }), g.normal({ s[3], s[2] }) }, sums = true,
        name = "no bias",
      }
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[2] }), g.normal({ s[3], s[2] }), g.normal({ s[3] }) },
        sums = true,
      }
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 4096, 576 }), g.normal({ 2304, 576 }), g.normal({ 2304 }) },
      flops = 2 * 4096 * 576 * 2304,
    }
  end,
}
cases.linear_cat = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(PRODUCTS) do
      local x = g.normal({ s[1], s[2] })
      local a, b, c = g.normal({ s[3], s[2] }), g.normal({ 3, s[2] }), g.normal({ 17, s[2] })
      list[#list + 1] = {
        inputs = { x, a, b, c, g.normal({ s[3] }), g.normal({ 3 }), g.normal({ 17 }) },
        grad = { 1, 2, 3, 4, 5, 6, 7 }, sums = true,
      }
      list[#list + 1] = {
        inputs = { x, a, b }, grad = { 1, 2, 3 }, sums = true, name = "two weights, no bias",
      }
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = {
        g.normal({ 1024, 2048 }), g.normal({ 2048, 2048 }), g.normal({ 256, 2048 }),
        g.normal({ 256, 2048 }),
      },
      flops = 2 * 1024 * 2048 * 2560,
    }
  end,
}
-- Rows and columns around the blocks of 16 and 12 (and 8, 32, 64 on CUDA), columns around the
-- groups of 256 and words of 4; a group of zeros.
local QUANTIZED = {
  { 1, 1, 1 }, { 3, 17, 5 }, { 12, 130, 31 }, { 13, 513, 65 }, { 5, 256, 129 }, { 27, 384, 48 },
  { 66, 36, 70 }, { 70, 600, 140 },
}
local function quantize_calls(g)
  local list = {}
  for _, s in ipairs(QUANTIZED) do
    list[#list + 1] = {
      inputs = { g.normal({ s[3], s[2] }), g.normal({ 3, s[2] }), g.normal({ 17, s[2] }) },
    }
    local zeros = g.fill({ s[3], s[2] }, function(i)
      if i % s[2] < 256 then return 0 end
      return gauss()
    end)
    list[#list + 1] = { inputs = { zeros }, name = "zeros" }
    local tiny = g.fill({ s[3], s[2] }, function() return 1e-37 end)
    list[#list + 1] = { inputs = { tiny }, name = "numbers too small for a factor" }
  end
  return list
end
-- Calls of linear with x [n, k] and weights in 8 or 4 bits. x is rounded to 8 bits, so the value
-- jumps.
local function packed_linear_calls(g, quantized)
  local list = {}
  for _, s in ipairs(QUANTIZED) do
    local n, k, m = unpack(s)
    local q, scale = quantized(g, m, k)
    list[#list + 1] = {
      inputs = { g.normal({ n, k }), q, scale }, args = { m, 1 }, sums = true, name = "wide",
    }
    list[#list + 1] = {
      inputs = { g.normal({ n, k }), q, scale, g.normal({ m }) }, args = { m, 0 },
      sums = true, grad = { 1 }, smooth = false,
    }
    local infinite = g.fill({ n, k }, function(i)
      if i == 0 then return 1 / 0 end
      return gauss()
    end)
    list[#list + 1] = {
      inputs = { infinite, q, scale }, args = { m, 0 }, sums = true,
      name = "an infinity makes its row NaN",
    }
    -- 127 / 1e-37 is infinite in f32.
    local tiny = g.fill({ n, k }, function() return 1e-37 end)
    list[#list + 1] = {
      inputs = { tiny, q, scale }, args = { m, 0 }, sums = true,
      name = "a group of numbers that are too small counts as 0",
    }
  end
  return list
end
for _, bits in ipairs { 8, 4 } do
  local cpu_only = bits == 4
  local function quantized(g, m, k) return g.run("quantize_int" .. bits, { g.normal({ m, k }) }) end
  cases["quantize_int" .. bits] = {
    cpu_only = cpu_only,
    calls = quantize_calls,
    bench = function(g) return { inputs = { g.normal({ 4096, 2048 }) } } end,
  }
  local function whole(g, m, k)
    local q, scale = quantized(g, m, k)
    return { inputs = { q, scale }, args = { m, k, DTYPE[g.dtype] } }
  end
  cases["dequantize_int" .. bits] = {
    cpu_only = cpu_only,
    calls = function(g)
      local list = {}
      for _, s in ipairs(QUANTIZED) do list[#list + 1] = whole(g, s[3], s[2]) end
      return list
    end,
    bench = function(g) return whole(g, 4096, 2048) end,
  }
  cases["linear_int" .. bits] = {
    cpu_only = cpu_only,
    calls = function(g) return packed_linear_calls(g, quantized) end,
    bench = function(g)
      local q, scale = quantized(g, 4096, 2048)
      return {
        inputs = { g.normal({ 1024, 2048 }), q, scale }, args = { 4096, 0 },
        flops = 2 * 1024 * 2048 * 4096,
      }
    end,
  }
end
-- Input 1 is updated, so its gradient (dy itself) is not among those differenced; the adapters'
-- golden files have it.
cases.linear_add_ = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(PRODUCTS) do
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[3] }), g.normal({ s[1], s[2] }), g.normal({ s[3], s[2] }) },
        args = { 0 }, grad = { 2, 3 }, sums = true,
      }
      list[#list + 1] = {
        inputs = {
          g.normal({ s[1], s[3] + 9 }), g.normal({ s[1], s[2] }), g.normal({ s[3], s[2] }),
        },
        args = { 4 }, grad = { 2, 3 }, sums = true, name = "columns of a wider y",
      }
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 1024, 2048 }), g.normal({ 1024, 16 }), g.normal({ 2048, 16 }) },
      args = { 0 }, flops = 2 * 1024 * 16 * 2048,
    }
  end,
}
cases.linear_dx = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(PRODUCTS) do
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[3] }), g.normal({ s[3], s[2] }) }, sums = true,
      }
      list[#list + 1] = {
        inputs = {
          g.normal({ s[1], s[3] + 20 }), g.normal({ s[3], s[2] }), g.normal({ 3, s[2] }),
          g.normal({ 17, s[2] }),
        },
        sums = true, name = "three weights",
      }
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[3] + 9 }), g.normal({ s[3], s[2] }) }, args = { 4 },
        sums = true, name = "columns of a wider dy",
      }
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 1024, 2048 }), g.normal({ 2048, 2048 }) },
      flops = 2 * 1024 * 2048 * 2048,
    }
  end,
}
cases.linear_dw_ = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(PRODUCTS) do
      list[#list + 1] = {
        inputs = {
          g.normal({ s[3], s[2] }, "f32"), g.normal({ s[1], s[2] }), g.normal({ s[1], s[3] }),
        },
        args = { 0 }, sums = true,
      }
      list[#list + 1] = {
        inputs = {
          g.normal({ s[3], s[2] }, "f32"), g.normal({ s[1], s[2] }), g.normal({ s[1], s[3] + 9 }),
        },
        args = { 4 }, sums = true, name = "columns of a wider dy",
      }
    end
    -- Sums over many rows, for a weight that widens: gemm_gradient.c.
    for _, s in ipairs { { 2048, 16, 96 }, { 2061, 48, 401 } } do
      list[#list + 1] = {
        inputs = {
          g.normal({ s[3], s[2] }, "f32"), g.normal({ s[1], s[2] }), g.normal({ s[1], s[3] + 3 }),
        },
        args = { 2 }, sums = true, name = "many rows",
      }
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = {
        g.normal({ 2048, 2048 }, "f32"), g.normal({ 1024, 2048 }), g.normal({ 1024, 2048 }),
      },
      args = { 0 }, flops = 2 * 1024 * 2048 * 2048,
    }
  end,
}
cases.column_sum_ = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(PRODUCTS) do
      list[#list + 1] = {
        inputs = { g.normal({ s[3] }, "f32"), g.normal({ s[2], s[3] + 5 }) }, args = { 3 },
        sums = true,
      }
    end
    list[#list + 1] = {
      inputs = { g.normal({ 1025 }, "f32"), g.normal({ 130, 1025 }) }, args = { 0 }, sums = true,
    }
    return list
  end,
  bench = function(g)
    return { inputs = { g.normal({ 2048 }, "f32"), g.normal(BIG) }, args = { 0 } }
  end,
}

-- ---- attention ----
-- Rows q_start, q_len, k_start, k_len, p_start, p_len. `own` repeats the query range as the key
-- range.
local function own(start, length, parent, parent_length)
  return { start, length, start, length, parent or 0, parent_length or 0 }
end
local PACKED = {
  { tokens = 1, own(0, 1) },
  { tokens = 17, own(0, 3), own(3, 14) },
  -- A prompt of 7, its answers of 5, 0 and 17 tokens, another prompt longer than a tile, two rows
  -- of no segment.
  { tokens = 101, own(0, 7), own(7, 5, 0, 7), own(12, 0, 0, 7), own(12, 17, 0, 7), own(29, 70) },
  { tokens = 198, own(0, 130), own(130, 67, 0, 130), own(197, 1, 0, 130) },
}
-- heads, key and value heads, head_dim
local HEADS = { { 1, 1, 1 }, { 2, 1, 17 }, { 4, 2, 16 }, { 7, 1, 64 }, { 3, 3, 80 }, { 2, 1, 72 },
  { 2, 1, 24 } }

local function heads_text(h, causal)
  return ("%d/%d heads of %d, causal %d"):format(h[1], h[2], h[3], causal)
end

local function packed(g, s, h, causal)
  local width = (h[1] + 2 * h[2]) * h[3]
  return g.normal({ s.tokens, width }), g.rows(s), { h[1], h[2], h[3], causal, 1 / math.sqrt(h[3]) }
end
local function each_packing(f)
  return function(g)
    local list = {}
    for _, s in ipairs(PACKED) do
      for _, h in ipairs(HEADS) do
        for causal = 0, 1 do
          local call = f(g, s, h, causal)
          call.sums = true
          call.rounded_terms = true
          call.name = ("%d tokens, %s"):format(s.tokens, heads_text(h, causal))
          list[#list + 1] = call
        end
      end
    end
    return list
  end
end
local PREFILL = { tokens = 1024, own(0, 1024) }
local PREFILL_FLOPS = 4 * 1024 * 1024 / 2 * 16 * 128

cases.attention = {
  calls = each_packing(function(g, s, h, causal)
    local qkv, segments, args = packed(g, s, h, causal)
    return { inputs = { qkv, segments }, args = args, grad = { 1 }, losses = { 1 } }
  end),
  bench = function(g)
    local qkv, segments, args = packed(g, PREFILL, { 16, 2, 128 }, 1)
    return { inputs = { qkv, segments }, args = args, flops = PREFILL_FLOPS }
  end,
}
local function attention_backward(g, s, h, causal)
  local qkv, segments, args = packed(g, s, h, causal)
  local out, lse = g.run("attention", { qkv, segments }, args)
  return { inputs = { qkv, segments, out, lse, g.normal({ s.tokens, h[1] * h[3] }) }, args = args }
end
cases.attention_backward = {
  calls = each_packing(attention_backward),
  bench = function(g)
    local call = attention_backward(g, PREFILL, { 16, 2, 128 }, 1)
    call.flops = 2.5 * PREFILL_FLOPS
    return call
  end,
}

-- Queries and keys of their own lengths: a lone query; queries and rows of k in no segment,
-- segments with the same keys, one without keys, one without queries; pooled windows that share
-- padding rows at the end of k, none of them in the second.
local CROSS = {
  { queries = 1, rows = 3, { 0, 1, 1, 2, 0, 0 } },
  {
    queries = 20, rows = 150, { 0, 6, 3, 130, 0, 0 }, { 6, 5, 3, 130, 0, 0 }, { 11, 3, 0, 0, 0, 0 },
    { 14, 0, 140, 2, 0, 0 }, { 14, 4, 135, 4, 133, 2 },
  },
  { queries = 130, rows = 9, { 0, 130, 0, 7, 7, 2 } },
  {
    queries = 12, rows = 57,
    { 0, 4, 0, 16, 48, 9 }, { 4, 4, 16, 16, 48, 0 }, { 8, 4, 32, 16, 48, 5 },
  },
}
-- Windows with a few shared keys: past the size where the backward cuts the family into parts.
local function windows(count, q_len, k_len, padding)
  local s = { queries = count * q_len, rows = count * k_len + padding }
  for i = 0, count - 1 do
    s[i + 1] = { i * q_len, q_len, i * k_len, k_len, count * k_len, padding }
  end
  return s
end
local function cross(g, s, h, causal)
  local keys = { s.rows, h[2] * h[3] }
  return {
    inputs = { g.normal({ s.queries, h[1] * h[3] }), g.normal(keys), g.normal(keys), g.rows(s) },
    args = { h[1], h[2], h[3], causal, 1 / math.sqrt(h[3]) }, sums = true, rounded_terms = true,
    name = ("%d/%d heads of %d, causal %d"):format(h[1], h[2], h[3], causal),
  }
end
local function each_cross(f)
  return function(g)
    local list = {}
    for _, s in ipairs(CROSS) do
      for _, h in ipairs(HEADS) do
        list[#list + 1] = f(g, s, h, 0)
        list[#list + 1] = f(g, s, h, 1)
      end
    end
    list[#list + 1] = f(g, windows(40, 2, 64, 5), { 2, 2, 8 }, 0)
    return list
  end
end
cases.attention_cross = {
  calls = each_cross(function(g, s, h, causal)
    local call = cross(g, s, h, causal)
    call.grad = { 1, 2, 3 }
    call.losses = { 1 }
    return call
  end),
  bench = function(g)
    local call = cross(g, windows(256, 16, 64, 132), { 4, 4, 72 }, 0)
    call.flops = 4 * 256 * 16 * (64 + 132) * 4 * 72
    return call
  end,
}
local function cross_backward(g, s, h, causal)
  local call = cross(g, s, h, causal)
  local out, lse = g.run("attention_cross", call.inputs, call.args)
  call.inputs[5] = out
  call.inputs[6] = lse
  call.inputs[7] = g.normal({ s.queries, h[1] * h[3] })
  return call
end
cases.attention_cross_backward = {
  calls = each_cross(cross_backward),
  bench = function(g)
    local call = cross_backward(g, windows(256, 16, 64, 132), { 4, 4, 72 }, 0)
    call.flops = 10 * 256 * 16 * (64 + 132) * 4 * 72
    return call
  end,
}

-- Queries of several sequences against cache rows: decoding (one query, the last of its keys),
-- prefill, an answer without keys of its own yet.
local CACHED = {
  { queries = 1, rows = 1, { 0, 1, 0, 1, 0, 0 } },
  {
    queries = 3, rows = 40,
    { 0, 1, 10, 3, 0, 10 }, { 1, 1, 20, 17, 0, 10 }, { 2, 1, 38, 1, 0, 10 },
  },
  {
    queries = 9, rows = 300,
    { 0, 7, 0, 7, 0, 0 }, { 7, 1, 7, 129, 0, 7 }, { 8, 1, 140, 155, 7, 129 },
  },
  {
    queries = 8, rows = 200,
    { 0, 0, 0, 0, 0, 0 }, { 0, 1, 150, 0, 0, 133 }, { 1, 5, 133, 10, 0, 130 },
  },
}
local function cached(g, s, h, causal, width)
  local keys = { s.rows, h[2] * h[3] }
  return {
    inputs = {
      g.normal({ s.queries, width or h[1] * h[3] }), g.normal(keys), g.normal(keys), g.rows(s),
    },
    args = { h[1], h[2], h[3], causal, 1 / math.sqrt(h[3]) }, sums = true, rounded_terms = true,
    name = ("%d queries, %d rows, %s"):format(s.queries, s.rows, heads_text(h, causal)),
  }
end
cases.attention_cached = {
  calls = function(g)
    local list = {}
    for _, s in ipairs(CACHED) do
      for _, h in ipairs(HEADS) do
        list[#list + 1] = cached(g, s, h, 1)
        -- q, k and v in one row
        list[#list + 1] = cached(g, s, h, 0, (h[1] + 2 * h[2]) * h[3])
      end
    end
    return list
  end,
  bench = function(g)
    local s = { queries = 8, rows = 3000 }
    for i = 0, 7 do s[i + 1] = { i, 1, 1000 + 200 * i, 200, 0, 1000 } end
    return cached(g, s, { 16, 2, 128 }, 1)
  end,
}

-- ---- log-probability: rows, width, vocabulary ----
-- Weights that give logits of deviation 3, as models have. (With much wider ones most probabilities
-- are subnormal numbers, and products with those take the processor twenty times as long.)
local function head(g, width, vocabulary)
  return g.fill({ vocabulary, width }, function() return gauss() * 3 / math.sqrt(width) end)
end
local VOCABULARIES = {
  { 1, 3, 5 }, { 17, 33, 65 }, { 5, 64, 257 }, { 131, 16, 31 }, { 3, 8, 2051 },
}
-- Of the i-th case: the temperature is 0.7 in every second one, and 1 in the others.
local function inverse_temperature(i)
  if i % 2 == 0 then return 1 / 0.7 end
  return 1
end
cases.logprob = {
  calls = function(g)
    local list = {}
    for i, s in ipairs(VOCABULARIES) do
      list[#list + 1] = {
        inputs = { g.normal({ s[1], s[2] }), g.normal({ s[3], s[2] }), g.ids(s[1], s[3]) },
        args = { inverse_temperature(i) }, grad = { 1, 2 }, losses = { 1, 2 }, sums = true,
      }
    end
    return list
  end,
  bench = function(g)
    return {
      inputs = { g.normal({ 256, 1024 }), head(g, 1024, 16384), g.ids(256, 16384) }, args = { 1 },
      flops = 2 * 256 * 1024 * 16384,
    }
  end,
}
local function logprob_backward(g, s, args, d_logprob, d_entropy, acc)
  local x = g.normal({ s[1], s[2] })
  local w = head(g, s[2], s[3])
  local ids = g.ids(s[1], s[3])
  local _, entropy, lse = g.run("logprob", { x, w, ids }, args)
  local updates = {}
  if acc then updates[1] = 8 end
  return {
    inputs = {
      x, w, ids, lse, entropy,
      optional(d_logprob, g.normal, { s[1] }, "f32"),
      optional(d_entropy, g.normal, { s[1] }, "f32"),
      optional(acc, g.normal, { s[3], s[2] }, "f32"),
    },
    args = args, updates = updates, sums = true, rounds_inside = true,
  }
end
cases.logprob_backward = {
  calls = function(g)
    local list = {}
    for i, s in ipairs(VOCABULARIES) do
      local args = { inverse_temperature(i) }
      list[#list + 1] = logprob_backward(g, s, args, true, true, true)
      list[#list + 1] = logprob_backward(g, s, args, true, false, false)
      list[#list + 1] = logprob_backward(g, s, args, false, true, true)
    end
    return list
  end,
  bench = function(g)
    local call = logprob_backward(g, { 256, 1024, 16384 }, { 1 }, true, true, true)
    call.flops = 6 * 256 * 1024 * 16384
    return call
  end,
}

-- Bytes that a call must move at least: inputs it names in bytes_of (all of them by default; -1
-- stands for the output).
function M.bytes(call, outputs)
  local function size(t) return t:numel() * tensor.WIDTH[t:dtype()] end
  local total = 0
  if call.bytes_of then
    for _, i in ipairs(call.bytes_of) do
      local t = call.inputs[i]
      if i < 0 then t = outputs[1] end
      total = total + size(t)
    end
    return total
  end
  for i = 1, 8 do
    if call.inputs[i] then total = total + size(call.inputs[i]) end
  end
  for _, t in ipairs(outputs) do total = total + size(t) end
  return total
end

require("tests.support.op_cases_images")(cases)
require("tests.support.op_cases_reduce")(cases)
require("tests.support.op_cases_shards")(cases)

return M
