-- bench_packed.lua - linear layers with weights in bf16, 8 and 4 bits, at the widths of the 3B
-- release and its vision tower.
--
--   ./segzero tests/bench/bench_packed.lua [threads=1] [clock=cpu] [only=int8] [rows=16] [best=10]
--       [copies=20]
--
-- Prints one JSON object a line: the least of `best` times of a product, in milliseconds. rows: of
-- x, instead of those of an image and a prompt. copies: multiplies by this many weights in turn, so
-- that they come from memory. All numbers are random, since a processor with AMX multiplies zeros a
-- quarter faster.
-- Leaves out: what limits them (bench.lua).

local tensor = require "segzero.core.tensor"
local bench = require "tests.bench.bench_work"

local opts = bench.options({ threads = "1", best = "10", copies = "1" },
  { threads = true, clock = true, only = true, rows = true, best = true, copies = true })
local now = bench.clock(opts)

local SHAPES = {                         -- rows of x, columns, weight rows
  { 3600, 1280, 3840 }, { 3600, 3420, 1280 }, { 1000, 2048, 11008 }, { 1000, 11008, 2048 },
}

local copies = tonumber(opts.copies)

local function random(rows, columns) return tensor.randn({ rows, columns }, { dtype = "bf16" }) end

-- The product with w [m, k] in the named form, as a function of x.
local function product(form, w, m)
  if form == "bf16" then
    w = w:clone()
    return function(x) return x:linear(w, nil) end
  end
  local q, scale = w["quantize_" .. form](w, nil, nil)
  local linear = "linear_" .. form
  return function(x) return x[linear](x, q, scale, nil, m) end
end

-- The least seconds of a product of x with w [m, k].
local function measure(form, x, w, m)
  local products = {}
  for i = 1, copies do products[i] = product(form, w, m) end
  local least = math.huge
  for _ = 1, tonumber(opts.best) do
    local start = now()
    for i = 1, copies do products[i](x):free() end
    least = math.min(least, now() - start)
  end
  return least / copies
end

tensor.no_grad(function()
  for _, shape in ipairs(SHAPES) do
    local n, k, m = unpack(shape)
    n = tonumber(opts.rows) or n
    local x, w = random(n, k), random(m, k)
    for _, form in ipairs { "bf16", "int8", "int4" } do
      if not opts.only or opts.only == form then
        bench.emit(("%s_%d_%d_%d"):format(form, n, k, m), 1000 * measure(form, x, w, m), "ms")
        collectgarbage()
      end
    end
  end
end)
