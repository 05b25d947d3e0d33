-- random_shards.lua - writes safetensors shards of random weights piece by piece, so that no whole
-- tensor is in memory.
--
--   random_shards.write(dir, weights, { dtype = "bf16", seed = 0, shard = 5e9, on_shard = f })
--     weights   list of {name =, shape = {..}, written = the name in the file}
--     -> bytes written, number of tensors; model.safetensors, or shards and their index
--
-- Norms are 1, everything else is normal with standard deviation 0.02. A value is a function of
-- (seed, tensor, place): a hash of the place gives 16 bits, which choose one of the normal
-- distribution's 65536 quantiles.
-- Leaves out: values that a trained model would have.

local bit = require "bit"
local ffi = require "ffi"
local core = require "segzero.core.ffi"
local model = require "segzero.models.qwen_vl"
local tensor = require "segzero.core.tensor"
local safetensors_stream = require "segzero.formats.safetensors_stream"

local C = core.C

local M = {}

local STD = 0.02
local QUANTILES = 65536
local PIECE = 8 * 1048576           -- values made at a time; a multiple of 4

-- How the two types are stored: bytes of a value, the C type of a buffer, the value 1.
local STORED = {
  f32 = { bytes = 4, buffer = "float[?]", one = 1 },
  bf16 = { bytes = 2, buffer = "uint16_t[?]", one = 0x3f80 },
}

-- Quantiles of the normal distribution, from as many of the core's own normal numbers: sorted, made
-- symmetric, so that the mean is exactly 0, and scaled to STD exactly.
local function quantiles(dtype)
  local n = QUANTILES
  local t = tensor.empty({ n }, { dtype = "f32" })
  core.check(C.sz_random_normal_(t.ptr, 1, 1, 0, 1))
  local x = t:totable()
  table.sort(x)
  local squares = 0
  for i = 1, n / 2 do
    local half = (x[n + 1 - i] - x[i]) / 2
    x[i] = -half
    x[n + 1 - i] = half
    squares = squares + 2 * half * half
  end
  local scale = STD / math.sqrt(squares / n)
  for i = 1, n do x[i] = x[i] * scale end
  return tensor.new(x, { dtype = dtype })
end

-- values[0 .. n): those of places first .. first + n - 1 (first a multiple of 4) of the stream
-- `key`. Each 64-bit hash (splitmix64) gives four values.
local function fill(values, table_of, key, first, n)
  local golden = 0x9e3779b97f4a7c15ULL
  local m1 = 0xbf58476d1ce4e5b9ULL
  local m2 = 0x94d049bb133111ebULL
  local shift = bit.rshift
  local band = bit.band
  local place = key + golden * (first / 4)
  for i = 0, n - 1, 4 do
    place = place + golden
    local z = bit.bxor(place, shift(place, 30)) * m1
    z = bit.bxor(z, shift(z, 27)) * m2
    z = bit.bxor(z, shift(z, 31))
    local low = bit.tobit(tonumber(band(z, 0xffffffffULL)))
    local high = bit.tobit(tonumber(shift(z, 32)))
    values[i] = table_of[band(low, 0xffff)]
    values[i + 1] = table_of[shift(low, 16)]
    values[i + 2] = table_of[band(high, 0xffff)]
    values[i + 3] = table_of[shift(high, 16)]
  end
end

-- A 64-bit key of seed and name: FNV-1a.
local function key_of(seed, name)
  local hash = 0xcbf29ce484222325ULL + seed
  for i = 1, #name do hash = bit.bxor(hash, name:byte(i) + 0ULL) * 0x100000001b3ULL end
  return hash
end

local function count(weight)
  local n = 1
  for _, d in ipairs(weight.shape) do n = n * d end
  return n
end

local function write_weight(put, w, seed, stored, source)
  local left = count(w)
  local first = 0
  local key = key_of(seed, w.own_name)
  while left > 0 do
    local n = math.min(left, PIECE)
    if model.is_norm(w.own_name) then
      for i = 0, n - 1 do source.piece[i] = stored.one end
    else
      fill(source.piece, source.quantiles, key, first, n)
    end
    put(source.piece, n * stored.bytes)
    left = left - n
    first = first + n
  end
end

-- options.on_shard(file_name, tensors) is called after each file.
function M.write(dir, weights, options)
  local stored = STORED[options.dtype]
  local quantile_table = quantiles(options.dtype)         -- kept alive while its data is read
  local source = { piece = ffi.new(stored.buffer, PIECE), quantiles = tensor.data(quantile_table) }
  local list = {}
  for i, w in ipairs(weights) do
    list[i] = { name = w.written, own_name = w.name, shape = w.shape, dtype = options.dtype }
  end
  local total = safetensors_stream.write(dir, list, {
    shard = options.shard, on_shard = options.on_shard,
    fill = function(w, put) write_weight(put, w, options.seed, stored, source) end,
  })
  quantile_table:free()
  return total
end

return M
