-- op_cases_shards.lua - the cases of the rows for a model that is split over ranks. A call's form
-- is described in op_cases.lua, which merges these:
-- require("tests.support.op_cases_shards")(cases). The collectives run on one rank, where they
-- change nothing, not even tp_sum_ its input; several ranks are for tests/system/test_ranks.lua.
-- Left out: handles of groups, which the reference kernels have not.

-- Rows of the table, ids, width; the first row of the part, rows of the whole table.
local PARTS = {
  { 1, 1, 1, 0, 1 }, { 3, 5, 17, 3, 9 }, { 11, 2, 65, 0, 22 }, { 5, 33, 3, 10, 15 },
  { 40, 100, 1025, 40, 120 },
}
-- Rows, width, words of the part; its first word, words of the vocabulary.
local VOCABULARIES = {
  { 1, 3, 5, 0, 5 }, { 17, 33, 65, 65, 130 }, { 5, 64, 257, 514, 771 }, { 131, 16, 31, 0, 62 },
  { 3, 8, 2051, 2051, 8204 },
}
local SHAPES = { { 1 }, { 5 }, { 3, 17 }, { 2, 3, 65 }, { 40, 1025 } }

local function inverse_temperature(i)
  if i % 2 == 0 then return 1 / 0.7 end
  return 1
end

-- Logits of deviation 3, as models have.
local function head(g, width, words)
  return g.fill({ words, width }, function()
    return (math.random() + math.random() - 1) * 7 / math.sqrt(width)
  end)
end

local function on_one_rank(args)
  return {
    calls = function(g)
      local list = {}
      for _, shape in ipairs(SHAPES) do
        list[#list + 1] = { inputs = { g.normal(shape) }, args = args, grad = { 1 }, updates = {} }
      end
      return list
    end,
    bench = function(g) return { inputs = { g.normal { 2048, 2048 } }, args = args } end,
  }
end

local function gather(g, shape, dim, sizes, dtype)
  local x = g.normal(shape)
  if dtype then x = g.fill(shape, function() return math.random(0, 100) end, dtype) end
  local call = { inputs = { x, sizes }, args = { 0, 1, dim } }
  if not dtype then call.grad = { 1 } end
  return call
end

local function logprob_part_backward(g, s, temperature, acc)
  local x, w = g.normal { s[1], s[2] }, head(g, s[2], s[3])
  local ids = g.ids(s[1], s[5])
  local part = g.run("logprob_part", { x, w, ids }, { s[4], s[5], temperature })
  local call = { inputs = { x, w, ids, part, g.normal({ 3, s[1] }, "f32") },
    args = { s[4], temperature }, updates = {}, sums = true, rounds_inside = true }
  if acc then
    call.inputs[6] = g.normal({ s[3], s[2] }, "f32")
    call.updates = { 6 }
  end
  return call
end

-- Parts and columns.
local JOINS = { { 1, 1 }, { 2, 5 }, { 4, 33 }, { 3, 1025 } }

return function(cases)
  cases.tp_copy = on_one_rank { 0 }
  cases.tp_sum = on_one_rank { 0 }
  cases.tp_sum_ = on_one_rank { 0 }
  cases.tp_gather = {
    calls = function(g)
      local list = {}
      for _, shape in ipairs(SHAPES) do
        for dim = 0, #shape - 1 do
          local sizes
          if dim == 0 then sizes = g.fill({ 1 }, function() return shape[1] end, "i32") end
          list[#list + 1] = gather(g, shape, dim, sizes)
        end
      end
      list[#list + 1] = gather(g, { 3, 17 }, 1, nil, "u8")
      list[#list + 1] = gather(g, { 3, 17 }, 0, nil, "i32")
      return list
    end,
    bench = function(g) return gather(g, { 2048, 2048 }, 1) end,
  }
  cases.embedding_part = {
    calls = function(g)
      local list = {}
      for _, s in ipairs(PARTS) do
        list[#list + 1] = { inputs = { g.normal { s[1], s[3] }, g.ids(s[2], s[5]) },
          args = { s[4], s[5] }, grad = { 1 } }
      end
      return list
    end,
    bench = function(g)
      return { inputs = { g.normal { 2048, 2048 }, g.ids(1024, 4096) }, args = { 2048, 4096 },
        bytes_of = { 2, -1, -1 } }
    end,
  }
  cases.logprob_part = {
    calls = function(g)
      local list = {}
      for i, s in ipairs(VOCABULARIES) do
        list[#list + 1] = {
          inputs = { g.normal { s[1], s[2] }, g.normal { s[3], s[2] }, g.ids(s[1], s[5]) },
          args = { s[4], s[5], inverse_temperature(i) }, grad = { 1, 2 }, sums = true,
        }
      end
      return list
    end,
    bench = function(g)
      return { inputs = { g.normal { 256, 1024 }, head(g, 1024, 16384), g.ids(256, 32768) },
        args = { 16384, 32768, 1 }, flops = 2 * 256 * 1024 * 16384 }
    end,
  }
  cases.logprob_part_backward = {
    calls = function(g)
      local list = {}
      for i, s in ipairs(VOCABULARIES) do
        list[#list + 1] = logprob_part_backward(g, s, inverse_temperature(i), true)
        list[#list + 1] = logprob_part_backward(g, s, inverse_temperature(i), false)
      end
      return list
    end,
    bench = function(g)
      local call = logprob_part_backward(g, { 256, 1024, 16384, 16384, 32768 }, 1, true)
      call.flops = 6 * 256 * 1024 * 16384
      return call
    end,
  }
  cases.logprob_join = {
    calls = function(g)
      local list = {}
      for _, s in ipairs(JOINS) do
        list[#list + 1] = { inputs = { g.normal({ 3 * s[1], s[2] }, "f32") }, grad = { 1 },
          losses = { 1, 2 } }
      end
      return list
    end,
    bench = function(g) return { inputs = { g.normal({ 12, 4096 }, "f32") } } end,
  }
  cases.logprob_join_backward = {
    calls = function(g)
      local list = {}
      for _, s in ipairs(JOINS) do
        local function column() return g.normal({ s[2] }, "f32") end
        local parts = g.normal({ 3 * s[1], s[2] }, "f32")
        list[#list + 1] = { inputs = { parts, column(), column() } }
        list[#list + 1] = { inputs = { parts, column() } }
        list[#list + 1] = { inputs = { parts, nil, column() } }
      end
      return list
    end,
    bench = function(g)
      return { inputs = { g.normal({ 12, 4096 }, "f32"), g.normal({ 4096 }, "f32"),
        g.normal({ 4096 }, "f32") } }
    end,
  }
end
