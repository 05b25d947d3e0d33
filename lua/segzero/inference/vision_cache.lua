-- vision_cache.lua - keeps image features that are used more than once: by several rows with the
-- same image, or by sampling and the update if the vision tower is frozen.
--
--   local shared = vision_cache.share(inputs)  {[input] = entry}: inputs with equal images have one
--                                              entry {input =, left = count}
--   vision_cache.put(vl, input, t)             keeps t [tokens, hidden], made by vl's tower
--   vision_cache.get(vl, input)                t, or nil. Valid while the tower's weights stay
--   vision_cache.holds(input)                  whether any model's features are kept for this input
--   vision_cache.adopt(vl, other)              other uses the features that vl's tower made, if
--                                              both towers have the same weights, byte for byte;
--                                              else false
--   vision_cache.adopted(other)                the model whose features it uses, or nil
--   vision_cache.forget(other)                 other makes its own features again
--   vision_cache.free(inputs)                  releases what is kept
--   vision_cache.gather(vl, inputs)            as vl:vision, with kept features copied; nil when
--                                              none is kept. Without gradients: a frozen tower's
--   vision_cache.tokens(vl, input)             tokens of an input's images
--
-- Two inputs have equal images if all their patches are equal, byte for byte. The cache is keyed by
-- input and by model and changes neither. Leaves out: one of several images of an input.

local ffi = require "ffi"
local tensor = require "segzero.core.tensor"

ffi.cdef "int memcmp(const void *, const void *, size_t);"

local M = {}

local WEAK = { __mode = "k" }
local features = setmetatable({}, WEAK)      -- input -> {model =, tensor =}
local towers = setmetatable({}, WEAK)        -- model -> the model whose tower it shares

-- ---- equal images ----
local SAMPLES = 32      -- words of the patches in a key; inputs with equal keys are compared whole

local function key_of(input)
  local pixels = input.pixel_values
  local parts = {}
  for _, grid in ipairs(input.image_grid_thw) do parts[#parts + 1] = table.concat(grid, "x") end
  local n = pixels:numel()
  local words = ffi.cast("uint32_t *", tensor.data(pixels))
  for i = 0, SAMPLES - 1 do
    parts[#parts + 1] = ("%x"):format(words[math.floor(i * (n - 1) / (SAMPLES - 1))])
  end
  return table.concat(parts, " ")
end

local function equal_bytes(a, b, bytes)
  return ffi.C.memcmp(tensor.data(a), tensor.data(b), bytes) == 0
end

local function equal_images(a, b)
  a, b = a.pixel_values, b.pixel_values
  if a == b then return true end
  return a:numel() == b:numel() and equal_bytes(a, b, 4 * a:numel())
end

-- The entry of an input with equal images, or a new one.
local function entry_for(entries, input)
  for _, e in ipairs(entries) do
    if equal_images(e.input, input) then return e end
  end
  local entry = { input = input, left = 0 }
  entries[#entries + 1] = entry
  return entry
end

function M.share(inputs)
  local shared = {}
  local by_key = {}
  for _, input in ipairs(inputs) do
    if input.pixel_values then
      local key = key_of(input)
      by_key[key] = by_key[key] or {}
      local entry = entry_for(by_key[key], input)
      entry.left = entry.left + 1
      shared[input] = entry
    end
  end
  return shared
end

function M.tokens(vl, input) return vl:vision_tokens(input) end

-- ---- kept features ----
function M.put(vl, input, t) features[input] = { model = vl, tensor = t } end

function M.get(vl, input)
  local kept = features[input]
  if not kept or kept.model ~= (towers[vl] or vl) then return nil end
  if kept.tensor.ptr == nil then return nil end
  return kept.tensor
end

function M.holds(input) return features[input] ~= nil end

function M.free(inputs)
  for _, input in ipairs(inputs) do
    if features[input] then features[input].tensor:free() end
    features[input] = nil
  end
end

-- ---- two models with one tower ----
-- Weights are compared on the CPU.
local function same_weight(a, b)
  if a:dtype() ~= b:dtype() or a:numel() ~= b:numel() then return false end
  local a_host = a:to { device = "cpu" }
  local b_host = b:to { device = "cpu" }
  local equal = equal_bytes(a_host, b_host, tensor.WIDTH[a:dtype()] * a:numel())
  if a_host ~= a then a_host:free() end
  if b_host ~= b then b_host:free() end
  return equal
end

function M.adopt(vl, other)
  towers[other] = nil
  local theirs = other:parameters()
  for name, w in pairs(vl:parameters()) do
    if vl:is_vision_weight(name) and not (theirs[name] and same_weight(w, theirs[name])) then
      return false
    end
  end
  towers[other] = vl
  return true
end

function M.adopted(other) return towers[other] end
function M.forget(other) towers[other] = nil end

-- ---- joining ----
-- parts: tensors [., hidden] -> one, in order.
function M.concatenate(parts)
  if #parts == 1 then return parts[1] end
  local rows = 0
  for _, t in ipairs(parts) do rows = rows + t:shape()[1] end
  local like = parts[1]
  local how = { dtype = like:dtype(), device = like:device() }
  local all = tensor.empty({ rows, like:shape()[2] }, how)
  local first = 0
  for _, t in ipairs(parts) do
    local n = t:shape()[1]
    all:narrow(first, n):copy_(t)
    first = first + n
  end
  return all
end

function M.gather(vl, inputs)
  -- Which inputs have images, and which of them have kept features?
  local with_images = {}
  local fresh = {}
  for _, input in ipairs(inputs) do
    if input.pixel_values then
      with_images[#with_images + 1] = input
      if not M.get(vl, input) then fresh[#fresh + 1] = input end
    end
  end
  if #fresh == #with_images then return nil end

  -- Compute the others together, and join all in the order of the inputs.
  local computed = #fresh > 0 and vl:vision(fresh)
  local first = 0
  local parts = {}
  for i, input in ipairs(with_images) do
    parts[i] = M.get(vl, input)
    if not parts[i] then
      local n = vl:vision_tokens(input)
      parts[i] = computed:narrow(first, n)
      first = first + n
    end
  end
  return M.concatenate(parts)
end

return M
