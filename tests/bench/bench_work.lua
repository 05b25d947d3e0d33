-- bench_work.lua - shared parts of the benchmarks: limits of the machine, counts of operations, the
-- prompt, JSON lines.
--
--   local bench = require "tests.bench.bench_work"
--   bench.options({key = default, ...}, {key = true, ...})
--       the key=value words of the command line; unknown keys raise an error. If the defaults have
--       a list `settings`, words with dotted keys (a recipe's) go there
--   bench.clock(opts)
--       the clock that clock= names; it waits for the device. Sets the threads. With device=cuda
--       limits are measured there; side= is the side of their matrices
--   bench.emit(name, value, unit, {limit =, lower =, gflop =})
--       prints a JSON line
--   bench.config(name)
--       a config table and its `work`: of FILE.json or of a released size (3b, 7b, ...); nil for a
--       folder
--   bench.peer(command, f)
--       runs a program that prints rows {name =, value =, unit =} and calls f with each. Returns
--       the rows and whether the program succeeded
--   bench.compare(rows, results)
--       prints a line for each row: {name, value, unit, peer, faster}, or {name, unit, peer} if we
--       have no result
--   bench.device_used()
--       GiB of the device's memory taken since clock(), and what was free then; nil on the CPU.
--       Freed blocks are kept, so this is the peak
--   bench.matmul_rate(dtype, times), bench.read_rate(times), bench.flop_limit(dtype)
--       GFLOP/s, GB/s, GFLOP/s
--   bench.step_bytes(vl, dtype, cached)
--       bytes that a decoding step of a model reads: its weights, of this dtype, and `cached`
--       positions of the cache
--   bench.text(vl, n)
--       what vl:process would return for n tokens of text
--   bench.input(vl, {image = {h, w}, before =, after =, seed =, pixels =})
--       what vl:process would return for an image of h x w pixels between `before` and `after` text
--       tokens; pixels: patches to copy (default: random)
--
-- Operations of products are counted by models/qwen_vl/flops.lua. Leaves out: elementwise work.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local model = require "segzero.models.qwen_vl"
local flops = require "segzero.models.qwen_vl.flops"
local read_json = model.read_json
local released = require("examples.random_checkpoint").config

local C = core.C

local M = {}

local now = C.sz_seconds
local device = "cpu"
local side = 2048
local read_bytes = 2 ^ 30
local free_at_first

-- ---- options and lines ----
function M.options(opts, known)
  for _, word in ipairs(arg) do
    local key, v = word:match "^([%w_.]+)=(.*)$"
    if opts.settings and key and key:find(".", 1,
      true) then opts.settings[#opts.settings + 1] = word
    elseif known[key] then opts[key] = v
    else error(("%s: unknown option %s"):format(arg[0], word), 0) end
  end
  return opts
end

function M.clock(opts)
  if opts.clock == "cpu" and tonumber(opts.threads) ~= 1 then
    error(arg[0] .. ": clock=cpu needs threads=1", 0)
  end
  C.sz_set_threads(tonumber(opts.threads))
  local clock = C.sz_seconds
  if opts.clock == "cpu" then clock = os.clock end
  device = opts.device or "cpu"
  side = tonumber(opts.side) or device ~= "cpu" and 8192 or 2048
  if opts.side then read_bytes = 64 * side ^ 2 end
  if device ~= "cpu" then
    core.check(C.sz_device_ready(C.SZ_CUDA))
    free_at_first = tonumber(C.sz_device_available(C.SZ_CUDA))
  end
  function now()
    core.check(C.sz_device_synchronise())
    return clock()
  end
  return now
end

function M.rounded(x) return tonumber(("%.4g"):format(x)) end

-- ratio is the fraction of the limit that is reached, 1 at best. lower: smaller values are better.
function M.emit(name, value, unit, more)
  local parts = { ('{"name": "%s", "value": %s, "unit": "%s"'):format(name, M.rounded(value),
    unit) }
  more = more or {}
  if more.limit then
    local ratio = value / more.limit
    if more.lower then ratio = more.limit / value end
    parts[#parts + 1] = (', "limit": %s, "ratio": %.3f'):format(M.rounded(more.limit), ratio)
  end
  if more.gflop then parts[#parts + 1] = (', "gflop": %s'):format(M.rounded(more.gflop)) end
  print(table.concat(parts) .. "}")
  io.flush()
end

function M.device_used()
  if not free_at_first then return nil end
  return (free_at_first - tonumber(C.sz_device_available(C.SZ_CUDA))) / 2 ^ 30,
    free_at_first / 2 ^ 30
end

function M.config(name)
  if not name:match "%.json$" then return released(name) end
  local json = read_json(name)
  return json.model or json, json.work
end

-- ---- the peer ----
function M.peer(command, f)
  local rows = {}
  local pipe = assert(io.popen(command .. "; echo \"exit $?\""))
  local last = ""
  for line in pipe:lines() do
    local ok, row = pcall(cjson.decode, line)
    if ok and type(row) == "table" and row.name then
      rows[#rows + 1] = row
      if f then f(row) end
    end
    last = line
  end
  pipe:close()
  if last ~= "exit 0" then print(("peer: %s from %s"):format(last, command)) end
  return rows, last == "exit 0"
end

function M.compare(rows, results)
  for _, row in ipairs(rows or {}) do
    local mine = results[row.name]
    if mine then
      local faster = mine / row.value
      if row.unit == "s" or row.unit == "GiB" then faster = row.value / mine end
      print(('{"name": "%s", "value": %s, "unit": "%s", "peer": %s, "faster": %.2f}'):format(
        row.name, M.rounded(mine), row.unit, M.rounded(row.value), faster))
    else
      print(('{"name": "%s", "unit": "%s", "peer": %s}'):format(row.name, row.unit,
        M.rounded(row.value)))
    end
    io.flush()
  end
end

-- The seconds of the fastest of n calls.
function M.best(n, f)
  local least = math.huge
  for _ = 1, n do
    local start = now()
    tensor.step(function()
      f()
      core.check(C.sz_device_synchronise())
    end)
    least = math.min(least, now() - start)
  end
  return least
end

-- ---- limits ----
function M.matmul_rate(dtype, times)
  local a, b = tensor.empty({ side, side }, { dtype = dtype, device = device }),
    tensor.empty({ side, side }, { dtype = dtype, device = device })
  for i, t in ipairs { a, b } do core.check(C.sz_random_normal_(t.ptr, 1, i, 0, 1)) end
  local seconds = M.best(times, function() a:linear(b) end)
  a:free()
  b:free()
  return 2 * side ^ 3 / seconds / 1e9
end

function M.read_rate(times)
  local t = tensor.empty({ read_bytes / 4 }, { device = device })
  -- touched, because pages that were never written all share one
  if device == "cpu" then ffi.fill(tensor.data(t), read_bytes, 1) end
  local w, x = t:reshape(read_bytes / 16384, 4096, 0, 0),
    tensor.zeros({ 1, 4096 }, { device = device })
  local seconds = math.min(M.best(times, function() t:sum() end),
    M.best(times, function() x:linear(w) end))
  for _, made in ipairs { w, x, t } do made:free() end
  return read_bytes / seconds / 1e9
end

-- The rate that products of this dtype could reach. bf16 is widened on CPUs without bf16 products.
function M.flop_limit(dtype)
  local f32 = M.matmul_rate("f32", 3)
  return dtype ~= "f32" and math.max(f32, M.matmul_rate("bf16", 3)) or f32
end

function M.step_bytes(vl, dtype, cached)
  local counts = flops.counts(vl)
  local layers = vl.config.layers
  local element = dtype == "f32" and 4 or 2
  local weights = layers * counts.layer_weights + counts.head_weights
  return (model.packed_width[dtype] or element) * weights +
         2 * element * counts.kv_width * layers * cached
end

-- ---- the prompt ----
-- A token id below the special ones. Any sequence will do if it is the same in every run.
function M.word(vl, i) return (i * 7919 + 13) % vl.image_token_id end

function M.text(vl, n)
  local ids = {}
  local positions, place = packing.ints(3, n)
  for i = 0, n - 1 do
    ids[i + 1] = M.word(vl, i)
    for axis = 0, 2 do place[axis * n + i] = i end
  end
  return { input_ids = ids, position_ids = positions, next_position = n }
end

function M.input(vl, opts)
  local c = vl.config
  local grid_h = opts.image[1] / c.v_patch
  local grid_w = opts.image[2] / c.v_patch
  local merged_h = grid_h / c.v_merge
  local merged_w = grid_w / c.v_merge
  if merged_h % 1 ~= 0 or merged_w % 1 ~= 0 then
    error(("%s: the image's sides are multiples of %d"):format(arg[0], c.v_patch * c.v_merge), 0)
  end
  local shift = 100000 * (opts.seed or 0)
  local ids = {}
  for i = 1, opts.before do ids[i] = M.word(vl, shift + i) end
  ids[#ids + 1] = vl.vision_start_token_id
  local first = #ids
  for _ = 1, merged_h * merged_w do ids[#ids + 1] = vl.image_token_id end
  ids[#ids + 1] = vl.vision_end_token_id
  for i = 1, opts.after do ids[#ids + 1] = M.word(vl, shift + 1000 + i) end
  local n = #ids
  local positions, p = packing.ints(3, n)
  local next_position = 0
  for i = 0, n - 1 do
    local k = i - first
    if k >= 0 and k < merged_h * merged_w then
      p[i], p[n + i], p[2 * n + i] = first, first + math.floor(k / merged_w), first + k % merged_w
      next_position = first + math.max(merged_h, merged_w)
    else
      for axis = 0, 2 do p[axis * n + i] = next_position end
      next_position = next_position + 1
    end
  end
  local pixels = opts.pixels and opts.pixels:clone()
  if not pixels then
    pixels = tensor.empty { grid_h * grid_w, c.v_channels * c.v_temporal * c.v_patch ^ 2 }
    core.check(C.sz_random_normal_(pixels.ptr, 2, opts.seed or 0, 0, 1))
  end
  return { input_ids = ids, position_ids = positions, next_position = next_position,
    pixel_values = pixels,
    image_grid_thw = { { 1, grid_h, grid_w } } }
end

return M
