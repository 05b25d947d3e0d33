-- files.lua - adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.
--
--   lora_files.save(policy, dir, opts)         writes both files for PEFT; of a split model whole
--                                              ones, see the policy's save
--   local json = lora_files.read_config(dir)   checked: unsupported kinds of adapters are errors
--   local tensors = lora_files.read(dir)       {PEFT's name -> tensor}
--   local list = lora_files.fit(policy, dir, json, tensors)
--       {{index, name, module, scale, a = loaded tensor, b = loaded tensor}, ...} in the model's
--       order; one error names every mismatch
--   local a, b = lora_files.matrices(policy, p)     of one of policy.lora.list, as weights.listed;
--                                                   weight: the name of the weight they adapt
--   lora_files.described(policy, replica)   the tensors of a split model's file (split.described)
--   lora_files.parameters(lora) -> {PEFT's name -> tensor}, borrowed
--
-- A setting of PEFT's that changes the result is computed (use_rslora, rank_pattern, alpha_pattern,
-- layers_to_transform) or refused by name (known_keys.ADAPTER); an initialisation that changes the
-- base model too. Ranks of the file must be those of the config.
-- Leaves out: dropout, DoRA, trained biases, adapters of embeddings and of the head.

local cjson = require "cjson"
local files = require "segzero.core.files"
local integrity = require "segzero.runs.integrity"
local pyjson = require "segzero.formats.pyjson"
local safetensors = require "segzero.formats.safetensors"
local known_keys = require "segzero.models.known_keys"
local opening = require "segzero.models.opening"
local pairs_of = require "segzero.models.lora.pairs"
local split = require "segzero.models.split"
local targets = require "segzero.models.lora.targets"

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
-- The matrices of an adapter of the model: {name =, weight =, tensor =, full =, slice =, copies =,
-- copy =}.
function M.matrices(policy, p)
  local a, b = pairs_of.adapter(policy, p)
  a.name = M.tensor_name(p.module, "A")
  b.name = M.tensor_name(p.module, "B")
  a.tensor = p.a
  b.tensor = p.b
  a.weight = p.name
  b.weight = p.name
  return a, b
end

-- This shard's parts of PEFT's tensors.
function M.described(policy, replica)
  local list = {}
  for _, p in ipairs(policy.lora.list) do
    local a, b = M.matrices(policy, p)
    list[#list + 1] = a
    list[#list + 1] = b
  end
  return split.described(list, replica)
end

local function write_config(policy, dir)
  local lora = policy.lora
  files.make_dir(dir)
  local modules, exclude = targets.describe(policy, lora)
  -- Loaded adapters may have a rank and an alpha of their own.
  local ranks = {}
  local alphas = {}
  for _, p in ipairs(lora.list) do
    local rank = p.a:shape()[1]
    if rank ~= lora.rank then ranks[p.module] = rank end
    if p.alpha and p.alpha ~= lora.alpha then alphas[p.module] = p.alpha end
  end
  files.write(dir .. CONFIG, files.indented_json {
    peft_type = "LORA", task_type = "CAUSAL_LM", inference_mode = true,
    base_model_name_or_path = policy.dir or cjson.null,
    r = lora.rank, rank_pattern = ranks, lora_alpha = lora.alpha, alpha_pattern = alphas,
    target_modules = modules, exclude_modules = exclude or cjson.null, modules_to_save = cjson.null,
    bias = "none", lora_dropout = 0, fan_in_fan_out = false, init_lora_weights = true,
    use_dora = false, use_rslora = lora.rslora or false,
  })
end

function M.save(policy, dir, opts)
  local lora = policy.lora or error("this model has no adapters", 2)
  opts = opts or {}
  if not opts.part then write_config(policy, dir) end
  local metadata = { format = "pt" }
  if policy.shards and opts.later then
    return safetensors.save(dir .. WEIGHTS, M.described(policy, opts.replica), metadata, opts.later,
      opts)
  end
  if policy.shards then
    return split.save(policy, dir, function(o) M.save(policy, dir, o) end)
  end
  safetensors.save(dir .. WEIGHTS, M.parameters(lora), metadata)
end

-- ---- reading ----
function M.value(json, key)
  local v = json[key]
  if v == cjson.null then return nil end
  return v
end
local value = M.value

local function check_config(path, json)
  if value(json, "peft_type") ~= "LORA" then
    known_keys.bad(path, "peft_type", value(json, "peft_type"), "'LORA'")
  end
  known_keys.check(path, json, known_keys.ADAPTER)
  local r = value(json, "r")
  if type(r) ~= "number" or r % 1 ~= 0 or r < 1 or r > 2 ^ 17 then
    known_keys.bad(path, "r", r, "a whole number from 1 to 131072")
  end
  local alpha = value(json, "lora_alpha")
  if type(alpha) ~= "number" or not (alpha > 0 and alpha < 1e9) then
    known_keys.bad(path, "lora_alpha", alpha, "a number over 0")
  end
  for _, key in ipairs { "rank_pattern", "alpha_pattern" } do
    local patterns = value(json, key) or {}
    if type(patterns) ~= "table" then known_keys.bad(path, key, patterns, "an object") end
    for name, v in pairs(patterns) do
      if type(name) ~= "string" or type(v) ~= "number" or not (v > 0 and v < 1e9) then
        known_keys.bad(path, ("%s['%s']"):format(key, tostring(name)), v, "a number over 0")
      end
    end
  end
end

-- {rank_pattern = {pattern, ...}, alpha_pattern = {...}} as the file orders them, which decoding
-- as a Lua table loses.
local function pattern_order(path)
  local text = files.read(path):gsub("^\239\187\191", "")
  local ok, object = pcall(pyjson.decode, text)
  if not ok then error(path .. ": Python does not read this JSON", 0) end
  local order = {}
  for _, key in ipairs { "rank_pattern", "alpha_pattern" } do
    local patterns = object.map[key]
    order[key] = type(patterns) == "table" and patterns.keys or {}
  end
  return order
end

function M.read_config(dir)
  if not files.exists(dir .. "/.") then
    error((opening.missing(dir):gsub("^no model in", "no adapter in")), 0)
  end
  integrity.file(dir, "adapter_config.json")
  local json = files.read_json_object(dir .. CONFIG)
  check_config(dir .. CONFIG, json)
  json.pattern_order = pattern_order(dir .. CONFIG)
  return json
end

function M.read(dir)
  if not files.exists(dir .. WEIGHTS) and files.exists(dir .. "/adapter_model.bin") then
    error(("%s: adapter_model.bin is a PyTorch file, which is not read: save the adapter as "
      .. "safetensors (in Python: PeftModel.save_pretrained(NEW))"):format(dir), 0)
  end
  integrity.file(dir, "adapter_model.safetensors")
  return safetensors.load(dir .. WEIGHTS)
end

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
      out[weight] = out[weight] or { module = module }
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

-- What is wrong with a pair for this weight, in whole shapes; nil if it fits.
local function mismatch(w, module, a, b)
  if not w.linear then return ("%s takes no adapter here"):format(module) end
  local full = w.full or w.shape
  local fits = #a == 2 and #b == 2 and a[2] == full[2] and b[1] == full[1] and a[1] == b[2]
  if fits then return nil end
  return ("%s: lora_A [%s] and lora_B [%s] do not fit a layer [%s]"):format(module,
    table.concat(a, ", "), table.concat(b, ", "), table.concat(full, ", "))
end

-- ---- the settings of one module ----
-- The value of rank_pattern or alpha_pattern for a module, which has a name in memory and one in
-- the file; the default where no pattern matches. As in PEFT, the first that matches counts.
local function of_pattern(json, key, names, default)
  for _, pattern in ipairs(json.pattern_order[key]) do
    local ending = { pattern = ("(.*\\.)?(%s)"):format(pattern) }
    local matched = targets.matches(ending, names[1]) or targets.matches(ending, names[2])
    if matched then return json[key][pattern] end
  end
  return default
end

-- Whether the config selects this module, by target_modules, exclude_modules, layers_to_transform.
local function is_selected(json, name)
  local target = value(json, "target_modules")
  if target == "all-linear" then return true end
  local function setting(v)
    if type(v) == "string" then return { pattern = v } end
    if type(v) == "table" and next(v) ~= nil then return { list = v } end
  end
  if targets.matches(setting(value(json, "exclude_modules")), name) then return false end
  if not targets.matches(setting(target), name) then return false end
  local layers = value(json, "layers_to_transform")
  if layers == nil or type(target) == "string" then return true end
  if type(layers) ~= "table" then layers = { layers } end
  if #layers == 0 then return true end
  local index = tonumber(name:match "%.[^.]*%.(%d+)%." or "")
  for _, layer in ipairs(layers) do
    if layer == index then return true end
  end
  return false
end

-- The adapter of weight w, or nil and what is wrong with it.
local function adapter_of(policy, json, w, pair)
  local module = policy:module_name(w.name)
  local names = { module, pair.module }
  local problem = mismatch(w, module, pair.A:shape(), pair.B:shape())
  if problem then return nil, problem end
  if not is_selected(json, names[1]) and not is_selected(json, names[2]) then
    return nil, ("adapter_config.json does not select %s (target_modules, exclude_modules, "
      .. "layers_to_transform)"):format(module)
  end
  local rank = pair.A:shape()[1]
  local expected = of_pattern(json, "rank_pattern", names, json.r)
  if rank ~= expected then
    return nil, ("%s: the rank of the tensors is %d, adapter_config.json says %g"):format(module,
      rank, expected)
  end
  local alpha = of_pattern(json, "alpha_pattern", names, json.lora_alpha)
  local scale = alpha / rank
  if value(json, "use_rslora") then scale = alpha / math.sqrt(rank) end
  return { index = w.index, name = w.name, module = module, scale = scale, alpha = alpha,
    a = pair.A, b = pair.B }
end

function M.fit(policy, dir, json, loaded)
  local path = dir .. WEIGHTS
  local found = by_weight(policy, path, loaded)
  local list = {}
  local problems = {}
  for _, w in ipairs(policy.weights) do
    local pair = found[w.name]
    found[w.name] = nil
    if pair then
      local adapter, problem = adapter_of(policy, json, w, pair)
      list[#list + 1] = adapter
      problems[#problems + 1] = problem
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
