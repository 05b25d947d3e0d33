-- split_model.lua - the part of a model that one rank of a group has, cut out of a whole model in
-- memory, and what the parts must have in common with it.
--
--   local part = split.model(whole, group, device)   group: of core/ranks.lua; whole keeps its
--                                                    weights
--   split.adapters(whole, part)                  the same of the whole model's LoRA
--   split.slice(w, t) -> tensor                  this rank's slice of a whole tensor (a copy)
--   split.weights(part) -> {[name] = {index, dim (from 0, or nil), first, count, copies, copy}}
--
-- The whole model is on the CPU. Left out: files (models/weights.lua reads slices from them).

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local qwen_config = require "segzero.models.qwen_vl.config"
local weights = require "segzero.models.weights"

local C = core.C
local check = core.check

local M = {}

function M.weights(part)
  local first, copy, shape = ffi.new "int64_t[1]", ffi.new "int[1]", ffi.new "int64_t[6]"
  local list = {}
  for i = 0, C.sz_model_weight_count(part.c) - 1 do
    local w = { index = i, copies = C.sz_model_weight_copies(part.c, i, copy), copy = copy[0],
      linear = C.sz_model_weight_is_linear(part.c, i) == 1,
      is_part = C.sz_model_weight_gradient_is_part(part.c, i) == 1 }
    local dim = C.sz_model_weight_slice(part.c, i, first)
    if dim >= 0 then
      C.sz_model_weight_shape(part.c, i, shape)
      w.dim, w.first, w.count = dim, tonumber(first[0]), tonumber(shape[dim])
    end
    list[ffi.string(C.sz_model_weight_name(part.c, i))] = w
  end
  return list
end

function M.slice(w, t)
  if not w.dim then return t:clone() end
  return t:slice(w.dim, w.first, w.count)
end

local function on_device(part, t)
  if part.device == "cpu" then return t end
  return t:to { device = part.device }
end

function M.model(whole, group, device)
  local config = qwen_config.parse(whole.json)
  config.tied = whole.config.tied
  config.shards, config.shard = group:size(), group:rank()
  local part = {}
  for k, v in pairs(whole) do part[k] = v end
  part.config, part.lora, part.kv, part.device = config, nil, nil, device or "cpu"
  part.c = ffi.gc(check(C.sz_qwen_new(config)), C.sz_model_free)
  part.weights = weights.list(part.c)
  check(C.sz_model_group_set(part.c, group.pointer))
  setmetatable(part, getmetatable(whole))
  local tensors = whole:parameters()
  for name, w in pairs(M.weights(part)) do
    local t = on_device(part, M.slice(w, tensors[name]))
    check(C.sz_model_weight_set(part.c, w.index, t.ptr))
    t:free()
  end
  return part
end

-- Of a layer that is divided by its outputs (rows) the first matrix is whole, by its inputs the
-- second one.
function M.adapters(whole, part)
  local divisions = M.weights(part)
  local list = {}
  for i, p in ipairs(whole.lora.list) do
    local w = divisions[p.name]
    local own = { index = p.index, name = p.name, module = p.module, scale = p.scale }
    own.a, own.b = p.a:clone(), p.b:clone()
    if w.dim == 0 then own.b = M.slice(w, p.b) end
    if w.dim == 1 then own.a = M.slice(w, p.a) end
    own.a, own.b = on_device(part, own.a), on_device(part, own.b)
    part:set_adapter(p.index, own.a, own.b, own.scale)
    list[i] = own
  end
  part.lora = {}
  for k, v in pairs(whole.lora) do part.lora[k] = v end
  part.lora.list = list
end

return M
