-- features.lua - the vision tower's results where they are wanted more than once: several rows with one picture, or a frozen
-- tower whose results serve sampling and the update.
--
--   local shared = vision_cache.share(inputs)       {[input] = entry}: inputs with equal pictures have one entry {input =, left = count}
--   vision_cache.put(vl, input, t)                 input.features: t [tokens, hidden] is what vl's tower makes of its pictures
--   vision_cache.get(vl, input)                    t, or nil. Valid as long as the tower's weights are the same
--   vision_cache.adopt(vl, other)                    other's tower has the weights of vl's, byte for byte: it takes what vl's has made. Or false
--   vision_cache.free(inputs)                       lets go of what is held
--   vision_cache.gather(vl, inputs)                   as vl:vision, the held ones copied; nil when none is held (no history: a frozen tower's)
--   vision_cache.tokens(vl, input)
--
-- Pictures are equal when all of an input's patches are, byte for byte. Leaves out: one of several pictures of an input.

local ffi = require "ffi"
local tensor = require "segzero.core.tensor"
local weights = require "segzero.models.weights"

ffi.cdef "int memcmp(const void *, const void *, size_t);"

local M = {}

local SAMPLES = 32      -- words of the patches in a key; equal keys are compared whole

local function key_of(input)
  local pixels, parts = input.pixel_values, {}
  for _, grid in ipairs(input.image_grid_thw) do parts[#parts + 1] = table.concat(grid, "x") end
  local n, words = pixels:numel(), ffi.cast("uint32_t *", tensor.data(pixels))
  for i = 0, SAMPLES - 1 do parts[#parts + 1] = ("%x"):format(words[math.floor(i * (n - 1) / (SAMPLES - 1))]) end
  return table.concat(parts, " ")
end

local function equal(a, b)
  a, b = a.pixel_values, b.pixel_values
  return a == b or a:numel() == b:numel() and ffi.C.memcmp(tensor.data(a), tensor.data(b), 4 * a:numel()) == 0
end

function M.share(inputs)
  local shared, by_key = {}, {}
  for _, input in ipairs(inputs) do
    if input.pixel_values then
      local key = key_of(input)
      by_key[key] = by_key[key] or {}
      local entry
      for _, e in ipairs(by_key[key]) do
        if equal(e.input, input) then entry = e end
      end
      if not entry then
        entry = { input = input, left = 0 }
        table.insert(by_key[key], entry)
      end
      entry.left = entry.left + 1
      shared[input] = entry
    end
  end
  return shared
end

function M.tokens(vl, input)
  local patches = 0
  for _, grid in ipairs(input.image_grid_thw) do patches = patches + grid[1] * grid[2] * grid[3] end
  return patches / vl.config.v_merge ^ 2
end

function M.put(vl, input, t) input.features = { model = vl, tensor = t } end

-- Weights are read where they are, or from their device.
local function same(a, b)
  if a:dtype() ~= b:dtype() or a:numel() ~= b:numel() then return false end
  local here, there = a:to { device = "cpu" }, b:to { device = "cpu" }
  local equal = ffi.C.memcmp(tensor.data(here), tensor.data(there), tensor.WIDTH[a:dtype()] * a:numel()) == 0
  if here ~= a then here:free() end
  if there ~= b then there:free() end
  return equal
end

function M.adopt(vl, other)
  other.tower = nil
  local theirs = weights.parameters(other)
  for name, w in pairs(weights.parameters(vl)) do
    if name:match "^visual%." and not (theirs[name] and same(w, theirs[name])) then return false end
  end
  other.tower = vl
  return true
end

function M.get(vl, input)
  local f = input.features
  return f and f.model == (vl.tower or vl) and f.tensor.ptr ~= nil and f.tensor or nil
end

function M.free(inputs)
  for _, input in ipairs(inputs) do
    if input.features then input.features.tensor:free() end
    input.features = nil
  end
end

-- parts: tensors [., hidden] -> one, in order.
function M.concatenate(parts)
  if #parts == 1 then return parts[1] end
  local rows = 0
  for _, t in ipairs(parts) do rows = rows + t:shape()[1] end
  local all, at = tensor.empty({ rows, parts[1]:shape()[2] }, { dtype = parts[1]:dtype(), device = parts[1]:device() }), 0
  for _, t in ipairs(parts) do
    local n = t:shape()[1]
    all:narrow(at, n):copy_(t)
    at = at + n
  end
  return all
end

function M.gather(vl, inputs)
  local fresh, any = {}, false
  for _, input in ipairs(inputs) do
    if input.pixel_values and M.get(vl, input) then any = true elseif input.pixel_values then fresh[#fresh + 1] = input end
  end
  if not any then return nil end
  local computed, at, parts = #fresh > 0 and vl:vision(fresh), 0, {}
  for _, input in ipairs(inputs) do
    if input.pixel_values then
      local t, n = M.get(vl, input), M.tokens(vl, input)
      parts[#parts + 1] = t or computed:narrow(at, n)
      at = at + (t and 0 or n)
    end
  end
  return M.concatenate(parts)
end

return M
