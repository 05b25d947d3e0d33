-- network.lua - the model interface for a family whose network is in C (models/models.h): each
-- method passes tensors to sz_model_* and wraps what comes back.
--
--   local methods = network.methods()         a new table with all of them, for a family to add to
--   network.freed(name, methods)              the metatable of a freed model
--
-- An object has c (the C object), weights, dtype, device, dims. What each method means is the
-- contract in README.md. Leaves out: config, files, inputs (the family), generation (policy.lua).

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local options = require "segzero.core.options"
local tensor = require "segzero.core.tensor"
local integrity = require "segzero.runs.integrity"
local packing = require "segzero.inference.packing"
local vision_cache = require "segzero.inference.vision_cache"
local weights = require "segzero.models.weights"

local C = core.C
local check = core.check

local M = {}

local function flag(on) return on and 1 or 0 end
local function pointer(t) return t and t.ptr or nil end

-- ---- the key-value cache ----
local Cache = {}
Cache.__index = Cache

function Cache:rows() return tonumber(C.sz_cache_rows(self.ptr)) end
function Cache:move(to, from, rows) check(C.sz_cache_move(self.ptr, to, from, rows), 2) end
function Cache:clear() C.sz_cache_clear(self.ptr) end

function Cache:free()
  if self.ptr == nil then return end
  C.sz_cache_free(ffi.gc(self.ptr, nil))
  self.ptr = nil
end

local methods = {}

function methods:new_cache(rows)
  return setmetatable({ ptr = ffi.gc(check(C.sz_model_cache(self.c, rows), 2), C.sz_cache_free) },
    Cache)
end

-- ---- forward passes ----
local VISION = options.set { "recompute" }

-- Features that the inputs keep from a frozen tower are not computed again; where gradients are
-- recorded they always are.
function methods:vision(inputs, opts)
  opts = options.check("vision", opts, VISION, 2)
  local kept = C.sz_grad_enabled() == 0 and vision_cache.gather(self, inputs)
  if kept then return kept end
  local pixels, grids = packing.images(inputs)
  if not pixels then return nil end
  return tensor.wrap(check(C.sz_model_vision(self.c, pixels.ptr, grids.ptr, flag(opts.recompute)),
    2))
end

local HIDDEN = options.set { "rows", "cache", "cache_rows", "prefix", "recompute" }

function methods:hidden(stream, features, opts)
  opts = options.check("hidden", opts, HIDDEN, 2)
  local image_rows
  if features then image_rows = pointer(stream.image_rows) end
  -- A prefix is one tensor per layer: all given, or all made by this call.
  local prefix = opts.prefix
  local list
  local given = prefix and #prefix or 0
  if prefix then
    list = ffi.new("sz_tensor *[?]", self.dims.layers)
    for i = 1, given do list[i - 1] = prefix[i].ptr end
  end
  local hidden = C.sz_model_hidden(self.c, stream.ids.ptr, stream.positions.ptr,
    stream.segments.ptr, image_rows, pointer(features), pointer(opts.rows), opts.cache
      and opts.cache.ptr,
    pointer(opts.cache_rows), list, flag(opts.recompute))
  for i = given + 1, prefix and self.dims.layers or 0 do
    if list[i - 1] ~= nil then prefix[i] = tensor.wrap(list[i - 1]) end
  end
  return tensor.wrap(check(hidden, 2))
end

function methods:logits(hidden)
  return tensor.wrap(check(C.sz_model_logits(self.c, hidden.ptr), 2))
end

local pair = ffi.new "sz_tensor *[2]"

function methods:logprob_of(hidden, targets, temperature)
  check(C.sz_model_logprob(self.c, hidden.ptr, targets.ptr, temperature or 1, pair, pair + 1), 2)
  return tensor.wrap(pair[0]), tensor.wrap(pair[1])
end

-- draw: {sampling, banned, seen, row_id, answer_id, position, token, logprob}, C arrays as
-- sz_sample takes them.
function methods:decode(stream, cache, draw)
  check(C.sz_model_decode(self.c, stream.ids.ptr, stream.positions.ptr, stream.segments.ptr,
    cache.ptr, stream.cache_rows.ptr, draw.sampling, draw.banned, draw.seen, draw.row_id,
    draw.answer_id,
    draw.position, draw.token, draw.logprob))
end

-- ---- weights ----
methods.parameters = weights.parameters
methods.train = weights.train

function methods:set_weight(index, t) check(C.sz_model_weight_set(self.c, index, t.ptr), 2) end

function methods:is_vision_weight(name)
  if not self.vision_names then
    self.vision_names = {}
    for _, w in ipairs(self.weights) do self.vision_names[w.name] = w.vision end
  end
  return self.vision_names[name] or false
end

-- ---- adapters ----
function methods:set_adapter(index, a, b, scale)
  check(C.sz_model_lora_set(self.c, index, pointer(a), pointer(b), scale or 0), 2)
end

function methods:enable_adapters(on) return C.sz_model_lora_enable(self.c, flag(on)) == 1 end

-- ---- the end ----
-- A freed model has no C object, so every method except free raises an error.
function M.freed(name, all)
  return {
    __index = function(_, key)
      if key == "free" then return function() end end
      if all[key] then return function() error(name .. ": this model has been freed", 2) end end
    end,
    __tostring = function() return name .. " (freed)" end,
  }
end

function M.free(model, freed)
  if model.c == nil then return end
  C.sz_model_free(ffi.gc(model.c, nil))
  model.c = nil
  setmetatable(model, freed)
end

-- These need weights whose checksums have been compared.
local NEED_WEIGHTS = { "vision", "hidden", "logits" }

local function after_check(f)
  return function(self, ...)
    if self.integrity then integrity.settle(self) end
    return f(self, ...)
  end
end

function M.methods()
  local copy = {}
  for name, f in pairs(methods) do copy[name] = f end
  for _, name in ipairs(NEED_WEIGHTS) do copy[name] = after_check(copy[name]) end
  return copy
end

return M
