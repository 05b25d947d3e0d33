-- adapters.lua - LoRA adapters in the shards of a run: EasyR1's checkpoints hold PEFT's model, the
-- base weights and the adapters together.
--
--   adapters.base_name(name)           PEFT's name of a base weight -> the model's: without
--                                      base_model.model. and .base_layer
--   local found = adapters.find(set)   {names = {name -> true}: the tensors that are adapters}
--   local by_weight, count = adapters.load(set, found, model)
--       {weight's name in the file -> {a =, b = tensors f32, scale =}}; checked against
--       lora_adapter/adapter_config.json and the model (models/lora/files.lua)
--   local sum = adapters.merged(set, t, adapter)     f32: base + scale * B A; the caller frees it
--
-- The adapters of all layers are in memory together; they are small compared with the model.
-- Leaves out: what models/lora/files.lua leaves out, such as DoRA and trained biases.

local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local tensor = require "segzero.core.tensor"
local lora_files = require "segzero.models.lora.files"

local C = core.C

local M = {}

local PREFIX = "base_model.model."

function M.base_name(name)
  if name:sub(1, #PREFIX) ~= PREFIX then return name end
  return (name:sub(#PREFIX + 1):gsub("%.base_layer%.", "."))
end

-- PEFT's tensors that are not base weights have lora_ in their names: lora_A, lora_embedding_A,
-- lora_magnitude_vector. lora_files refuses those that it does not handle.
function M.find(set)
  local names = {}
  for name in pairs(set.tensors) do
    if name:find "%.lora_%w" then names[name] = true end
  end
  return { names = names }
end

-- A whole tensor of the shards as f32.
local function whole(set, t)
  local out = tensor.empty(t.shape, { dtype = "f32" })
  local flat = out:reshape(t.numel)
  local at = 0
  set:stream(t, function(piece, count)
    local target = flat:narrow(at, count)
    target:copy_(piece)
    target:free()
    at = at + count
  end)
  flat:free()
  return out
end

function M.load(set, found, model)
  local dir = set.dir .. "/lora_adapter"
  if not files.exists(dir .. "/adapter_config.json") then
    error(("%s: the shards hold LoRA adapters, but there is no %s/adapter_config.json, which says "
      .. "how they are scaled: EasyR1 writes it with the checkpoint"):format(set.dir, dir), 0)
  end
  local json = lora_files.read_config(dir)
  local loaded = {}
  for name in pairs(found.names) do loaded[name] = whole(set, set.tensors[name]) end
  local by_weight = {}
  local list = lora_files.fit(model, dir, json, loaded)
  for _, p in ipairs(list) do by_weight[p.name] = { a = p.a, b = p.b, scale = p.scale } end
  return by_weight, #list
end

function M.merged(set, t, adapter)
  local base = whole(set, t)
  tensor.step(tensor.no_grad, function()
    local product = adapter.b:matmul(adapter.a, 0, 0)
    base:copy_(base:cast(C.SZ_F32):add(product:affine(adapter.scale, 0)))
  end)
  return base
end

return M
