-- lora_files.lua - adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.
--
--   lora_files.save(policy, dir)               writes both files for PEFT
--   local json = lora_files.read_config(dir)   checked: unsupported kinds of adapters are errors
--   local tensors = lora_files.read(dir)       {PEFT's name -> tensor}
--   local list = lora_files.fit(policy, dir, json, tensors)
--       {{index, name, module, scale, a = loaded tensor, b = loaded tensor}, ...} in the model's
--       order; one error names every mismatch
--   lora_files.parameters(lora) -> {PEFT's name -> tensor}, borrowed
--
-- Leaves out: dropout, DoRA, trained biases, adapters of embeddings and of the head.

local cjson = require "cjson"
local files = require "segzero.core.files"
local safetensors = require "segzero.formats.safetensors"
local targets = require "segzero.models.lora_targets"

local M = {}

local PREFIX = "base_model.model."
local CONFIG = "/adapter_config.json"
local WEIGHTS = "/adapter_model.safetensors"

-- PEFT's name of part "A" or "B" of a module's adapter.
function M.tensor_name(module, part) return ("%s%s.lora_%s.weight"):format(PREFIX, module, part) end

function M.parameters(lora)
  local out = {}
  for _, p in ipairs(lora.list) do
    out[M.tensor_name(p.module, "A")] = p.a
    out[M.tensor_name(p.module, "B")] = p.b
  end
  return out
end

-- ---- writing ----
-- JSON with one key per line, in order.
local function json_text(t)
  local keys = {}
  local lines = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys)
  for i, k in ipairs(keys) do
    local text = files.json(t[k]):gsub("\\/", "/")
    lines[i] = ("  %s: %s"):format(cjson.encode(k), text)
  end
  return "{\n" .. table.concat(lines, ",\n") .. "\n}\n"
end

function M.save(policy, dir)
  local lora = policy.lora or error("this model has no adapters", 2)
  files.make_dir(dir)
  local modules, exclude = targets.describe(policy, lora)
  -- Loaded adapters may have a rank of their own.
  local ranks = {}
  for _, p in ipairs(lora.list) do
    local rank = p.a:shape()[1]
    if rank ~= lora.rank then ranks[p.module] = rank end
  end
  files.write(dir .. CONFIG, json_text {
    peft_type = "LORA", task_type = "CAUSAL_LM", inference_mode = true,
    base_model_name_or_path = policy.dir or cjson.null,
    r = lora.rank, rank_pattern = ranks, lora_alpha = lora.alpha,
    target_modules = modules, exclude_modules = exclude or cjson.null, modules_to_save = cjson.null,
    bias = "none", lora_dropout = 0, fan_in_fan_out = false, init_lora_weights = true,
    use_dora = false, use_rslora = lora.rslora or false,
  })
  safetensors.save(dir .. WEIGHTS, M.parameters(lora), { format = "pt" })
end

-- ---- reading ----
function M.value(json, key)
  local v = json[key]
  if v == cjson.null then return nil end
  return v
end
local value = M.value

-- PEFT's settings that would change the computation.
local UNSUPPORTED = {
  "use_dora", "modules_to_save", "alpha_pattern", "layer_replication", "target_parameters",
  "trainable_token_indices", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora",
  "alora_invocation_tokens",
}

local function is_set(v)
  if v == nil or v == false or v == "" then return false end
  return type(v) ~= "table" or next(v) ~= nil
end

local function check_config(path, json)
  local function fail(...) error(path .. ": " .. string.format(...), 0) end
  if value(json, "peft_type") ~= "LORA" then
    fail("peft_type is %s, expected LORA", tostring(value(json, "peft_type")))
  end
  if (value(json, "bias") or "none") ~= "none" then
    fail("bias is %s; trained biases are not supported", tostring(json.bias))
  end
  for _, key in ipairs(UNSUPPORTED) do
    if is_set(value(json, key)) then fail("%s is not supported", key) end
  end
  for _, key in ipairs { "r", "lora_alpha" } do
    local v = value(json, key)
    if type(v) ~= "number" or not (v > 0) then fail("%s is %s", key, tostring(v)) end
  end
end

function M.read_config(dir)
  local json = files.read_json_object(dir .. CONFIG)
  check_config(dir .. CONFIG, json)
  return json
end

function M.read(dir) return safetensors.load(dir .. WEIGHTS) end

-- {weight's name -> {A = tensor, B = tensor}} of a loaded file. Older files have ".default" in
-- names.
local function by_weight(policy, path, loaded)
  local out = {}
  local problems = {}
  for name in pairs(loaded) do
    local module, part = name:match "^base_model%.model%.(.+)%.lora_([AB])%.weight$"
    if not module then
      module, part = name:match "^base_model%.model%.(.+)%.lora_([AB])%.default%.weight$"
    end
    if not module then
      problems[#problems + 1] = "unexpected: " .. name
    else
      local weight = policy:weight_name(module)
      out[weight] = out[weight] or {}
      out[weight][part] = loaded[name]
    end
  end
  for weight, pair in pairs(out) do
    local missing
    if not pair.A then missing = "A" elseif not pair.B then missing = "B" end
    if missing then
      problems[#problems + 1] = ("%s: lora_%s is missing"):format(policy:module_name(weight),
        missing)
    end
  end
  if #problems > 0 then safetensors.refuse(path, "not a plain LoRA adapter", problems) end
  return out
end

-- What is wrong with a pair for this weight; nil if it fits.
local function mismatch(w, module, a, b)
  if not w.linear then return ("%s takes no adapter here"):format(module) end
  local fits = #a == 2 and #b == 2 and a[2] == w.shape[2] and b[1] == w.shape[1] and a[1] == b[2]
  if fits then return nil end
  return ("%s: lora_A [%s] and lora_B [%s] do not fit a layer [%s]"):format(module,
    table.concat(a, ", "), table.concat(b, ", "), table.concat(w.shape, ", "))
end

function M.fit(policy, dir, json, loaded)
  local path = dir .. WEIGHTS
  local found = by_weight(policy, path, loaded)
  local list = {}
  local problems = {}
  for _, w in ipairs(policy.weights) do
    local pair = found[w.name]
    if pair then
      found[w.name] = nil
      local module = policy:module_name(w.name)
      local rank = pair.A:shape()[1]
      local problem = mismatch(w, module, pair.A:shape(), pair.B:shape())
      if problem then
        problems[#problems + 1] = problem
      else
        if value(json, "use_rslora") then rank = math.sqrt(rank) end
        list[#list + 1] = { index = w.index, name = w.name, module = module,
          scale = json.lora_alpha / rank, a = pair.A, b = pair.B }
      end
    end
  end
  for weight in pairs(found) do
    problems[#problems + 1] = ("the model has no %s"):format(policy:module_name(weight))
  end
  table.sort(problems)
  if #problems > 0 then safetensors.refuse(path, "the adapter does not fit the model", problems) end
  return list
end

return M
