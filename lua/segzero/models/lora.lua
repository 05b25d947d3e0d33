-- lora.lua - low-rank adapters of a Qwen-VL model: made, trained in place of the weights, kept in PEFT's format, merged.
--
--   lora.attach(vl, {rank = 16, alpha = 64, target_modules = "all-linear", exclude_modules = ".*visual.*", seed = 42})
--   lora.load(vl, dir) / lora.save(vl, dir)       adapter_config.json and adapter_model.safetensors, as PEFT writes and reads them
--   lora.reference(vl)                            what the same model says without its adapters: hidden() and vision() of the base
--   lora.merge(vl)                                adds the adapters to the weights and takes them away
--   lora.configure(vl, cfg)                       attach() with a recipe's settings; nothing when lora.rank is 0
--
-- A linear layer y = x W^T then computes y + alpha / rank (x A^T) B^T: A f32 [rank, in], uniform within 1 / sqrt(in) as PEFT starts it
-- (random numbers of their place: seed, weight, element), B f32 [out, rank], 0. vl.lora holds them: list of {index, name, module, a, b}.
-- Which layers is said in PEFT's way, about the names that transformers has in memory (model.language_model.layers.0.self_attn.q_proj):
-- "all-linear", a list of names or of their ends (a, b or [a, b] in a text), or a text with the marks of a regular expression, which
-- then must match whole names. Leaves out: dropout, DoRA, trained biases, adapters of embeddings and of the head.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local safetensors = require "segzero.formats.safetensors"
local files = require "segzero.core.files"
local weights = require "segzero.models.weights"

local C, check = core.C, core.check

local M = {}

local PREFIX = "base_model.model."
local CONFIG, WEIGHTS = "/adapter_config.json", "/adapter_model.safetensors"

-- ---- names ----
-- A weight's name in the hub's files to its module's in memory, and back (both spellings of a file are taken).
local function module_of(name)
  return (name:gsub("%.weight$", ""):gsub("^model%.", "model.language_model."):gsub("^visual%.", "model.visual."))
end

local function weight_of(module)
  return (module:gsub("^model%.visual%.", "visual."):gsub("^model%.language_model%.", "model.")) .. ".weight"
end

local function is_visual(name) return name:match "^visual%." ~= nil end

-- ---- which layers ----
-- A setting as PEFT means it: nil, "all-linear", {list = {...}} or {pattern = text}.
local function read_spec(spec)
  if spec == nil or spec == cjson.null then return nil end
  if type(spec) == "table" then return #spec > 0 and { list = spec } or nil end
  local text = spec:match "^%s*(.-)%s*$"
  local lower = text:lower()
  if lower == "" or lower == "none" or lower == "null" then return nil end
  if lower == "all-linear" then return "all-linear" end
  local inner = text:match "^%[([^%[%]]*)%]$"
  if not inner and text:find "[%*%(%)%|%^%$%+%?%[%]\\{}]" then return { pattern = text } end
  local list = {}
  for part in (inner or text):gmatch "[^,]+" do list[#list + 1] = part:match "^%s*['\"]?(.-)['\"]?%s*$" end
  return #list > 0 and { list = list } or nil
end

local function matches(spec, module)
  if not spec then return false end
  if spec.pattern then
    local found = C.sz_pattern_matches(spec.pattern, module)
    if found < 0 then error("lora.target_modules or lora.exclude_modules: " .. ffi.string(C.sz_last_error()), 0) end
    return found == 1
  end
  for _, name in ipairs(spec.list) do
    if module == name or module:sub(-#name - 1) == "." .. name then return true end
  end
  return false
end

-- The model's linear layers that the settings mean, in its order.
local function chosen(vl, opts)
  local target, exclude, out = read_spec(opts.target_modules), read_spec(opts.exclude_modules), {}
  if not target then error("lora.target_modules is empty", 0) end
  for _, w in ipairs(vl.weights) do
    local module, linear = module_of(w.name), C.sz_qwen_is_linear(vl.c, w.index) == 1
    local wanted = not w.name:match "%.bias$" and (target == "all-linear" and linear or target ~= "all-linear" and matches(target, module))
    if wanted and not matches(exclude, module) and not (opts.freeze_vision and is_visual(w.name)) then
      if not linear then error(("lora.target_modules means %s, which is not a linear layer that takes adapters"):format(module), 0) end
      out[#out + 1] = w
    end
  end
  if #out == 0 then
    error(("lora: target_modules '%s' without exclude_modules '%s' means no layer; names are like %s"):format(tostring(opts.target_modules),
      tostring(opts.exclude_modules), "model.language_model.layers.0.self_attn.q_proj"), 0)
  end
  return out
end

-- ---- making ----
local function hold(vl, list, settings)
  local state = { list = list, rank = settings.rank, alpha = settings.alpha, exclude_modules = settings.exclude_modules, rslora = settings.rslora }
  for _, p in ipairs(list) do
    check(C.sz_qwen_lora_set(vl.c, p.index, p.a.ptr, p.b.ptr, p.scale), 3)
    state.visual = state.visual or is_visual(p.name)
  end
  vl.lora = state
  return vl
end

-- Position of the elements' random numbers: apart from the sampler's and from normal ones (runtime/core/random.c).
local PLACE = 0xC0000000

local function uniform(rank, cols, seed, stream)
  local t = tensor.empty { rank, cols }
  local p, bound = tensor.data(t), 1 / math.sqrt(cols)
  for i = 0, rank * cols - 1 do p[i] = bound * (2 * C.sz_random_uniform(seed, stream, i, PLACE) - 1) end
  return t
end

local function placed(vl, t)
  if vl.device == "cpu" then return t end
  local there = t:to { device = vl.device }
  t:free()
  return there
end

-- opts.meta: without memory behind them, for counting (plan.lua).
function M.attach(vl, opts)
  local rank, alpha = opts.rank, opts.alpha
  if type(rank) ~= "number" or rank < 1 or rank % 1 ~= 0 then error(("lora.rank is %s, expected a whole number from 1"):format(tostring(rank)), 2) end
  if type(alpha) ~= "number" or not (alpha > 0 and alpha < math.huge) then error(("lora.alpha is %s, expected a number above 0"):format(tostring(alpha)), 2) end
  if vl.lora then error("this model has adapters already", 2) end
  local list, layers, widest = {}, chosen(vl, opts), 0
  for _, w in ipairs(layers) do widest = math.max(widest, w.shape[1], w.shape[2]) end
  if rank > widest then error(("lora.rank is %.0f, more than the %d rows or columns of any layer"):format(rank, widest), 0) end
  for i, w in ipairs(layers) do
    local rows, cols = w.shape[1], w.shape[2]
    list[i] = { index = w.index, name = w.name, module = module_of(w.name), scale = alpha / rank,
      a = opts.meta and tensor.meta { rank, cols } or placed(vl, uniform(rank, cols, opts.seed or 0, w.index)),
      b = opts.meta and tensor.meta { rows, rank } or tensor.zeros({ rows, rank }, { device = vl.device }) }
  end
  return hold(vl, list, opts)
end

-- Without adapters in the tower the tower is frozen, and the settings then say so.
function M.configure(vl, cfg, counting)
  local actor = cfg.worker.actor
  local l = actor.model.lora
  if l.rank == 0 then return vl end
  M.attach(vl, { rank = l.rank, alpha = l.alpha, target_modules = l.target_modules, exclude_modules = l.exclude_modules, seed = cfg.data.seed,
    freeze_vision = actor.freeze_vision_tower, meta = counting })
  if not vl.lora.visual then actor.freeze_vision_tower = true end
  return vl
end

-- ---- training ----
-- As weights.train: the adapters get gradients, the weights do not. Names are the ones in PEFT's files.
function M.train(vl, filter)
  weights.train(vl, function() return false end)
  local list = {}
  for _, p in ipairs(vl.lora.list) do
    local on = not filter or filter(p.name)
    p.a:requires_grad(on and true or false)
    p.b:requires_grad(on and true or false)
    if on then
      list[#list + 1] = { name = ("%s%s.lora_A.weight"):format(PREFIX, p.module), tensor = tensor.borrow(p.a.ptr) }
      list[#list + 1] = { name = ("%s%s.lora_B.weight"):format(PREFIX, p.module), tensor = tensor.borrow(p.b.ptr) }
    end
  end
  return list
end

-- {name -> tensor}, as in PEFT's files.
function M.parameters(vl)
  local out = {}
  for _, p in ipairs(vl.lora.list) do
    out[("%s%s.lora_A.weight"):format(PREFIX, p.module)], out[("%s%s.lora_B.weight"):format(PREFIX, p.module)] = p.a, p.b
  end
  return out
end

-- The model without its adapters, for log-probabilities: it shares everything, and its forward passes leave them out. No gradients:
-- what is computed again in a backward pass would have the adapters.
function M.reference(vl)
  local base = {}
  for _, name in ipairs { "vision", "hidden" } do
    base[name] = function(_, ...)
      if C.sz_grad_enabled() == 1 then error("the base of a model with adapters gives no gradients (use no_grad)", 2) end
      local before = C.sz_qwen_lora_enable(vl.c, 0)
      local results = { pcall(vl[name], vl, ...) }
      C.sz_qwen_lora_enable(vl.c, before)
      if not results[1] then error(results[2], 0) end
      return results[2]
    end
  end
  return setmetatable(base, { __index = vl, __tostring = function() return tostring(vl) .. ", adapters off" end })
end

-- ---- PEFT's files ----
-- Ends of the modules' names that mean exactly these layers beside exclude_modules; else the names themselves.
local function targets_of(vl)
  local lora, seen, ends, names, is = vl.lora, {}, {}, {}, {}
  for i, p in ipairs(lora.list) do
    local last = p.module:match "[^.]+$"
    if last == "proj" or last:match "^%d+$" then last = p.module:match "[^.]+%.[^.]+$" end
    if not seen[last] then ends[#ends + 1] = last end
    seen[last], names[i], is[p.name] = true, p.module, true
  end
  local exclude = read_spec(lora.exclude_modules)
  for _, w in ipairs(vl.weights) do
    local module = module_of(w.name)
    if (matches({ list = ends }, module) and not matches(exclude, module)) ~= (is[w.name] or false) then return names, nil end
  end
  table.sort(ends)
  return ends, exclude
end

local function json_text(t)
  local keys, lines = {}, {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys)
  for i, k in ipairs(keys) do lines[i] = ("  %s: %s"):format(cjson.encode(k), (files.json(t[k]):gsub("\\/", "/"))) end
  return "{\n" .. table.concat(lines, ",\n") .. "\n}\n"
end

function M.save(vl, dir)
  local lora = vl.lora or error("this model has no adapters", 2)
  files.make_dir(dir)
  local targets, exclude = targets_of(vl)
  local ranks = {}            -- of loaded adapters, those that have another than the config says
  for _, p in ipairs(lora.list) do
    local rank = p.a:shape()[1]
    if rank ~= lora.rank then ranks[p.module] = rank end
  end
  files.write(dir .. CONFIG, json_text { peft_type = "LORA", task_type = "CAUSAL_LM", base_model_name_or_path = vl.dir or cjson.null, r = lora.rank, rank_pattern = ranks,
    lora_alpha = lora.alpha, target_modules = targets, exclude_modules = exclude and (exclude.pattern or exclude.list) or cjson.null, bias = "none",
    lora_dropout = 0, fan_in_fan_out = false, init_lora_weights = true, inference_mode = true, modules_to_save = cjson.null, use_dora = false,
    use_rslora = lora.rslora or false })
  safetensors.save(dir .. WEIGHTS, M.parameters(vl), { format = "pt" })
end

local function value(json, key)
  local v = json[key]
  if v == cjson.null then return nil end
  return v
end

-- What of an adapter_config.json would compute something else than is done here.
local function refuse(path, json)
  local function is_set(key)
    local v = value(json, key)
    return v ~= nil and v ~= false and v ~= "" and (type(v) ~= "table" or next(v) ~= nil)
  end
  if value(json, "peft_type") ~= "LORA" then error(("%s: peft_type is %s, expected LORA"):format(path, tostring(value(json, "peft_type"))), 0) end
  if (value(json, "bias") or "none") ~= "none" then error(("%s: bias is %s; trained biases are not supported"):format(path, tostring(json.bias)), 0) end
  for _, key in ipairs { "use_dora", "modules_to_save", "alpha_pattern", "layer_replication", "target_parameters", "trainable_token_indices", "lora_bias",
    "fan_in_fan_out", "use_qalora", "use_bdlora", "alora_invocation_tokens" } do
    if is_set(key) then error(("%s: %s is not supported"):format(path, key), 0) end
  end
  for _, key in ipairs { "r", "lora_alpha" } do
    if type(value(json, key)) ~= "number" or not (json[key] > 0) then error(("%s: %s is %s"):format(path, key, tostring(value(json, key))), 0) end
  end
end

-- The config of an adapter folder, checked.
function M.read_config(dir)
  local json = require("segzero.models.qwen_vl").read_json(dir .. CONFIG)
  if type(json) ~= "table" then error(dir .. CONFIG .. ": not a JSON object", 0) end
  refuse(dir .. CONFIG, json)
  return json
end

-- What was trained at dir and goes on here must have been scaled alike.
function M.same_settings(vl, dir)
  local json = M.read_config(dir)
  for ours, theirs in pairs { rank = "r", alpha = "lora_alpha" } do
    if json[theirs] ~= vl.lora[ours] then
      error(("checkpoint %s: worker.actor.model.lora.%s was %s, is %s"):format(dir, ours, tostring(json[theirs]), tostring(vl.lora[ours])), 0)
    end
  end
end

function M.read(dir) return safetensors.load(dir .. WEIGHTS) end

-- {weight's name -> {A = tensor, B = tensor}} of a loaded file.
local function pairs_of(path, loaded)
  local out, problems = {}, {}
  for name in pairs(loaded) do
    local module, part = name:match "^base_model%.model%.(.+)%.lora_([AB])%.weight$"
    if not module then module, part = name:match "^base_model%.model%.(.+)%.lora_([AB])%.default%.weight$" end
    if not module then
      problems[#problems + 1] = "unexpected: " .. name
    else
      local own = weight_of(module)
      out[own] = out[own] or {}
      out[own][part] = loaded[name]
    end
  end
  for name, pair in pairs(out) do
    if not pair.A or not pair.B then problems[#problems + 1] = ("%s: lora_%s is missing"):format(module_of(name), pair.A and "B" or "A") end
  end
  if #problems > 0 then safetensors.refuse(path, "not a plain LoRA adapter", problems) end
  return out
end

local function own_copy(vl, t)
  local mine = tensor.empty(t:shape())
  mine:copy_(t)
  return placed(vl, mine)
end

function M.load(vl, dir)
  if vl.lora then error("this model has adapters already", 2) end
  local path, json = dir .. WEIGHTS, M.read_config(dir)
  local loaded = M.read(dir)
  local ok, why = pcall(function()
    local found, list, problems = pairs_of(path, loaded), {}, {}
    for _, w in ipairs(vl.weights) do
      local pair = found[w.name]
      if pair then
        found[w.name] = nil
        local a, b = pair.A:shape(), pair.B:shape()
        if C.sz_qwen_is_linear(vl.c, w.index) == 0 then
          problems[#problems + 1] = ("%s takes no adapter here"):format(module_of(w.name))
        elseif #a ~= 2 or #b ~= 2 or a[2] ~= w.shape[2] or b[1] ~= w.shape[1] or a[1] ~= b[2] then
          problems[#problems + 1] = ("%s: lora_A [%s] and lora_B [%s] do not fit a layer [%s]"):format(module_of(w.name), table.concat(a, ", "),
            table.concat(b, ", "), table.concat(w.shape, ", "))
        else
          list[#list + 1] = { index = w.index, name = w.name, module = module_of(w.name), scale = json.lora_alpha / (value(json, "use_rslora") and math.sqrt(a[1]) or a[1]),
            a = own_copy(vl, pair.A), b = own_copy(vl, pair.B) }
        end
      end
    end
    for name in pairs(found) do problems[#problems + 1] = ("the model has no %s"):format(module_of(name)) end
    table.sort(problems)
    if #problems > 0 then safetensors.refuse(path, "the adapter does not fit the model", problems) end
    hold(vl, list, { rank = json.r, alpha = json.lora_alpha, exclude_modules = value(json, "exclude_modules"), rslora = value(json, "use_rslora") })
  end)
  for _, t in pairs(loaded) do t:free() end
  if not ok then error(why, 0) end
  return vl
end

-- ---- merging ----
-- The sum is made in f32 and rounded once to the weight's dtype.
function M.merge(vl)
  local lora = vl.lora or error("this model has no adapters", 2)
  if vl.quantized then error("a model in 8 bits cannot take its adapters in: load it as bf16 or f32", 2) end
  for _, p in ipairs(lora.list) do
    tensor.step(function()
      tensor.no_grad(function()
        local w = tensor.borrow(check(C.sz_qwen_weight(vl.c, p.index)))
        w:copy_(w:cast(C.SZ_F32):add(p.b:matmul(p.a, 0, 0):affine(p.scale, 0)))
      end)
    end)
    check(C.sz_qwen_lora_set(vl.c, p.index, nil, nil, 0))
    p.a:free()
    p.b:free()
  end
  vl.lora = nil
  return vl
end

return M
