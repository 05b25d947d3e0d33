-- op_cases_reduce.lua - the cases of the rows over one dimension, of those that move elements, and
-- of powers, comparisons and choice. A call's form is described in op_cases.lua, which merges
-- these: require("tests.support.op_cases_reduce")(cases).
-- Sizes: dimensions of 1, first, middle and last dimensions, odd widths, tails past a block of 512,
-- sizes past the parallel threshold, every dtype that a row takes.

-- Shape and dimension.
local AROUND = {
  { { 1 }, 0 }, { { 5 }, 0 }, { { 3, 4 }, 0 }, { { 3, 4 }, 1 }, { { 2, 3, 5 }, 1 },
  { { 1, 7, 1 }, 1 }, { { 2, 3, 2, 5 }, 2 }, { { 4, 1, 3 }, 1 }, { { 3, 1030 }, 1 },
  { { 9, 517 }, 0 }, { { 2, 3, 600 }, 1 },
  { { 40, 1025 }, 1 }, { { 40, 1025 }, 0 },
}
local BIG = { 2048, 2048 }

local function each_dimension(make)
  return function(g)
    local list = {}
    for i, s in ipairs(AROUND) do list[#list + 1] = make(g, s[1], s[2], i % 2) end
    return list
  end
end

local function without(shape, dim)
  local rest = {}
  for i, n in ipairs(shape) do
    if i ~= dim + 1 then rest[#rest + 1] = n end
  end
  if #rest == 0 then rest = { 1 } end
  return rest
end

-- Numbers that are all 0.3 apart at least, in a random order: steps of finite differences do not
-- change which is the largest.
local function spread(g, shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  local order = {}
  for i = 1, n do order[i] = i end
  for i = n, 2, -1 do
    local j = math.random(i)
    order[i], order[j] = order[j], order[i]
  end
  return g.fill(shape, function(i) return 0.3 * (order[i + 1] - n / 2) end)
end

local function special(g)
  local values = { 1, 0 / 0, 3, 2, 2, -1, 1 / 0, 0, 0 / 0, -1 / 0, -1 / 0, 5 }
  return g.fill({ 4, 3 }, function(i) return values[i + 1] end)
end

return function(cases)
  -- ---- over one dimension ----
  cases.sum_dim = {
    calls = each_dimension(function(g, shape, dim, keep)
      return { inputs = { g.normal(shape) }, args = { dim, keep }, grad = { 1 }, sums = true }
    end),
    bench = function(g) return { inputs = { g.normal(BIG) }, args = { 1, 0 } } end,
  }

  local extreme = {
    calls = function(g)
      local list = each_dimension(function(_, shape, dim, keep)
        return { inputs = { spread(g, shape) }, args = { dim, keep }, grad = { 1 } }
      end)(g)
      for dim = 0, 1 do
        list[#list + 1] = { inputs = { special(g) }, args = { dim, 0 },
          name = "inf, nan, equal ones" }
      end
      local equal = g.fill({ 3, 700 }, function(i) return i % 5 end)
      list[#list + 1] = { inputs = { equal }, args = { 1, 0 }, grad = { 1 }, smooth = false,
        name = "equal ones" }
      return list
    end,
    bench = function(g) return { inputs = { g.normal(BIG) }, args = { 1, 0 } } end,
  }
  cases.max_dim = extreme
  cases.min_dim = extreme

  cases.extreme_backward = {
    calls = function(g)
      local list = each_dimension(function(_, shape, dim)
        local x = g.fill(shape, function() return math.random(0, 4) end)
        local y = g.run("max_dim", { x }, { dim, 0 })
        return { inputs = { x, y, g.normal(without(shape, dim)) }, args = { dim } }
      end)(g)
      for dim = 0, 1 do
        local x = special(g)
        local y = g.run("min_dim", { x }, { dim, 0 })
        list[#list + 1] = { inputs = { x, y, g.normal(without({ 4, 3 }, dim)) }, args = { dim },
          name = "inf, nan" }
      end
      return list
    end,
    bench = function(g)
      local x = g.normal(BIG)
      return { inputs = { x, g.run("max_dim", { x }, { 1, 0 }), g.normal { BIG[1] } },
        args = { 1 } }
    end,
  }

  -- Rows and columns of the logits.
  local LOGITS = { { 1, 1 }, { 3, 7 }, { 5, 513 }, { 40, 1025 } }
  local function ids_with_ignored(g, n, v)
    return g.fill({ n }, function(i)
      if i % 3 == 1 then return -100 end
      return math.random(0, v - 1)
    end, "i32")
  end
  cases.cross_entropy = {
    calls = function(g)
      local list = {}
      for _, s in ipairs(LOGITS) do
        list[#list + 1] = { inputs = { g.normal(s), ids_with_ignored(g, s[1], s[2]) },
          args = { -100 },
                            grad = { 1 }, sums = true }
      end
      local large = g.fill({ 2, 5 }, function(i) return 300 * (i % 3) end)
      list[#list + 1] = { inputs = { large, g.ids(2, 5) }, args = { -100 }, name = "large logits" }
      return list
    end,
    bench = function(g)
      return { inputs = { g.normal(BIG), g.ids(BIG[1], BIG[2]) }, args = { -100 } }
    end,
  }
  local function cross_entropy_backward(g, s)
    local logits = g.normal(s)
    local ids = ids_with_ignored(g, s[1], s[2])
    local _, lse = g.run("cross_entropy", { logits, ids }, { -100 })
    return { inputs = { logits, ids, lse, g.normal({ s[1] }, "f32") }, args = { -100 },
      sums = true }
  end
  cases.cross_entropy_backward = {
    calls = function(g)
      local list = {}
      for _, s in ipairs(LOGITS) do list[#list + 1] = cross_entropy_backward(g, s) end
      return list
    end,
    bench = function(g) return cross_entropy_backward(g, BIG) end,
  }

  -- ---- moving elements ----
  local function bytes(g, shape)
    return g.fill(shape, function() return math.random(0, 255) end, "u8")
  end
  local function whole(g, shape)
    return g.fill(shape, function() return math.random(-9, 9) end, "i32")
  end

  local BROADCAST = {
    { { 1 }, { 5 } }, { { 3 }, { 3 } }, { { 2, 1 }, { 2, 3 } }, { { 1, 3 }, { 2, 3 } },
    { { 3 }, { 4, 2, 3 } },
    { { 2, 1, 3, 1 }, { 2, 5, 3, 7 } }, { { 1, 1 }, { 3, 513 } }, { { 5, 1, 2 }, { 2, 5, 3, 2 } },
    { { 40, 1 }, { 40, 1025 } }, { { 1, 1025 }, { 40, 1025 } },
    { { 2, 1, 1, 1, 1, 3 }, { 2, 2, 2, 2, 2, 3 } },
  }
  cases.broadcast_to = {
    calls = function(g)
      local list = {}
      for _, pair in ipairs(BROADCAST) do
        local args = { #pair[2], unpack(pair[2]) }
        list[#list + 1] = { inputs = { g.normal(pair[1]) }, args = args, grad = { 1 }, sums = true }
      end
      list[#list + 1] = { inputs = { bytes(g, { 3, 1 }) }, args = { 2, 3, 5 } }
      list[#list + 1] = { inputs = { whole(g, { 2, 3 }) }, args = { 3, 2, 2, 3 } }
      return list
    end,
    bench = function(g)
      return { inputs = { g.normal { BIG[1], 1 } }, args = { 2, BIG[1], BIG[2] } }
    end,
  }

  -- Shape and the two dimensions.
  local TURNED = {
    { { 5 }, 0, 0 }, { { 2, 3 }, 0, 1 }, { { 17, 35 }, 1, 0 }, { { 2, 3, 4 }, 0, 2 },
    { { 2, 3, 4 }, 0, 1 }, { { 2, 3, 4, 5 }, 1, 2 }, { { 2, 3, 4, 5 }, 1, 3 },
    { { 1, 6, 1 }, 0, 1 }, { { 33, 1025 }, 0, 1 },
    { { 7, 33, 150 }, 0, 1 }, { { 2, 2, 3, 2, 2, 3 }, 1, 4 },
  }
  cases.transpose = {
    calls = function(g)
      local list = {}
      for _, s in ipairs(TURNED) do
        local args = { s[2], s[3] }
        list[#list + 1] = { inputs = { g.normal(s[1]) }, args = args, grad = { 1 } }
        list[#list + 1] = { inputs = { bytes(g, s[1]) }, args = args }
        list[#list + 1] = { inputs = { whole(g, s[1]) }, args = args }
      end
      return list
    end,
    bench = function(g) return { inputs = { g.normal(BIG) }, args = { 0, 1 } } end,
  }

  cases.cat = {
    calls = function(g)
      local list = {}
      for _, dim in ipairs { 0, 1, 2 } do
        local parts = {}
        for i = 1, 2 + 3 * dim do
          local shape = { 2, 3, 4 }
          shape[dim + 1] = i
          parts[i] = g.normal(shape)
        end
        list[#list + 1] = { inputs = parts, args = { dim }, grad = { 1, 2 } }
      end
      list[#list + 1] = { inputs = { g.normal { 3, 2 } }, args = { 1 }, grad = { 1 } }
      list[#list + 1] = { inputs = { g.normal { 40, 700 }, g.normal { 40, 333 } }, args = { 1 },
        grad = { 1, 2 } }
      list[#list + 1] = { inputs = { bytes(g, { 3, 2 }), bytes(g, { 3, 5 }) }, args = { 1 } }
      list[#list + 1] = { inputs = { whole(g, { 3 }), whole(g, { 2 }) }, args = { 0 } }
      return list
    end,
    bench = function(g) return { inputs = { g.normal(BIG), g.normal(BIG) }, args = { 1 } } end,
  }

  -- Shape, dimension, start, length.
  local SLICES = {
    { { 5 }, 0, 1, 3 }, { { 4, 6 }, 1, 0, 6 }, { { 4, 6 }, 1, 5, 1 }, { { 3, 5, 2 }, 1, 2, 3 },
    { { 3, 5, 2 }, 0, 1, 1 }, { { 2, 3, 4, 5 }, 2, 1, 2 }, { { 40, 1025 }, 1, 3, 1000 },
  }
  cases.slice = {
    calls = function(g)
      local list = {}
      for _, s in ipairs(SLICES) do
        local args = { s[2], s[3], s[4] }
        list[#list + 1] = { inputs = { g.normal(s[1]) }, args = args, grad = { 1 } }
        list[#list + 1] = { inputs = { bytes(g, s[1]) }, args = args }
      end
      return list
    end,
    bench = function(g) return { inputs = { g.normal(BIG) }, args = { 1, 512, 1024 } } end,
  }
  cases.pad_dim = {
    calls = function(g)
      local list = {}
      for _, s in ipairs(SLICES) do
        local shape = { unpack(s[1]) }
        shape[s[2] + 1] = s[4]
        local args = { s[2], s[3], s[1][s[2] + 1] }
        list[#list + 1] = { inputs = { g.normal(shape) }, args = args }
        list[#list + 1] = { inputs = { whole(g, shape) }, args = args }
      end
      return list
    end,
    bench = function(g)
      return { inputs = { g.normal { BIG[1], 1024 } }, args = { 1, 512, BIG[2] } }
    end,
  }

  -- ---- powers, comparisons, choice ----
  local SHAPES = { { 1 }, { 17 }, { 513 }, { 5, 129 }, { 2, 3, 7 }, { 33, 1025 } }

  -- From 0.8 on: the slopes of the root's slope grow towards 0, and the central differences follow
  -- them.
  local function from_one(g, shape, as)
    return g.fill(shape, function() return 0.8 + 2 * math.random() end, as)
  end
  cases.sqrt = {
    calls = function(g)
      local edges = { 0, -1, 1 / 0, 0 / 0, 4, 1e-40 }
      local edge = g.fill({ #edges }, function(i) return edges[i + 1] end)
      local list = { { inputs = { edge }, name = "0, negative, inf, nan" } }
      for _, shape in ipairs(SHAPES) do
        list[#list + 1] = { inputs = { from_one(g, shape) }, grad = { 1 } }
      end
      return list
    end,
    bench = function(g) return { inputs = { from_one(g, BIG) } } end,
  }

  -- Bases and exponents at the limits, each with each.
  local LIMITS = { 0, 1, -1, 2, 0.5, -2, 3, 1 / 0, 0 / 0 }
  local function limits(g, gradient)
    local n = #LIMITS
    local base = g.fill({ n, n }, function(i) return LIMITS[math.floor(i / n) + 1] end)
    local exponent = g.fill({ n, n }, function(i) return LIMITS[i % n + 1] end)
    local dy = gradient and g.fill({ n, n }, function() return 1 end) or nil
    return { inputs = { base, exponent, dy }, name = "limits" }
  end
  cases.pow = {
    calls = function(g)
      local list = { limits(g) }
      for _, shape in ipairs(SHAPES) do
        list[#list + 1] = { inputs = { from_one(g, shape), g.normal(shape) }, grad = { 1, 2 } }
        list[#list + 1] = { inputs = { from_one(g, shape), g.normal({ 1 }, g.other) },
          grad = { 1, 2 }, sums = true }
      end
      return list
    end,
    bench = function(g) return { inputs = { from_one(g, BIG), g.normal(BIG) } } end,
  }
  cases.pow_backward = {
    calls = function(g)
      local list = { limits(g, true) }
      for _, shape in ipairs(SHAPES) do
        list[#list + 1] = { inputs = { from_one(g, shape), g.normal(shape), g.normal(shape) } }
        list[#list + 1] = { inputs = { from_one(g, shape), g.normal { 1 }, g.normal(shape) } }
      end
      return list
    end,
    bench = function(g) return { inputs = { from_one(g, BIG), g.normal(BIG), g.normal(BIG) } } end,
  }

  -- Few different values, so that equal ones meet.
  local function few(g, shape, as)
    return g.fill(shape, function() return math.random(0, 3) end, as)
  end
  cases.compare = {
    calls = function(g)
      local list = {}
      for kind = 0, 5 do
        for _, shape in ipairs { { 1 }, { 17 }, { 5, 129 } } do
          list[#list + 1] = { inputs = { few(g, shape), few(g, shape, g.other) }, args = { kind } }
          list[#list + 1] = { inputs = { few(g, shape, "i32"), few(g, { 1 }, "i32") },
            args = { kind } }
          list[#list + 1] = { inputs = { few(g, shape, "u8"), few(g, shape) }, args = { kind } }
        end
        list[#list + 1] = { inputs = { special(g), few(g, { 4, 3 }) }, args = { kind },
          name = "inf, nan" }
      end
      list[#list + 1] = { inputs = { few(g, { 33, 1025 }), few(g, { 1 }) }, args = { 3 } }
      return list
    end,
    bench = function(g) return { inputs = { g.normal(BIG), g.normal(BIG) }, args = { 2 } } end,
  }

  local function bits(g, shape, as)
    return g.fill(shape, function() return math.random(0, 1) end, as)
  end
  cases.choose = {
    calls = function(g)
      local list = {}
      for i, shape in ipairs(SHAPES) do
        local condition = bits(g, shape, ({ "u8", "f32", "bf16" })[i % 3 + 1])
        list[#list + 1] = { inputs = { condition, g.normal(shape), g.normal(shape) },
          grad = { 2, 3 } }
      end
      list[#list + 1] = { inputs = { bits(g, { 9 }, "u8"), g.normal { 9 } }, grad = { 2 } }
      list[#list + 1] = { inputs = { bits(g, { 9 }, "u8"), nil, g.normal { 9 } }, grad = { 3 } }
      return list
    end,
    bench = function(g)
      return { inputs = { bits(g, BIG, "u8"), g.normal(BIG), g.normal(BIG) } }
    end,
  }
end
