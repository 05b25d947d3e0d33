-- targets.lua - which layers get adapters, in PEFT's terms. Module names are those that
-- transformers uses in memory (model.language_model.layers.0.self_attn.q_proj).
--
--   targets.chosen(policy, opts) -> list of weights      opts: target_modules, exclude_modules,
--                                                        freeze_vision
--   targets.describe(policy, lora) -> names, exclude     the shortest target_modules that mean
--                                                        exactly these adapters, for
--                                                        adapter_config.json
--
--   targets.matches({list = {...}} | {pattern = text} | nil, module) -> true | false
--
-- A setting is "all-linear", a list of names or of their endings (a, b or [a, b] in a text), or a
-- regular expression, which must match whole names.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"

local C = core.C

local M = {}

-- A setting as PEFT means it: nil, "all-linear", {list = {...}} or {pattern = text}.
local function read_setting(setting)
  if setting == nil or setting == cjson.null then return nil end
  if type(setting) == "table" then
    if #setting == 0 then return nil end
    return { list = setting }
  end
  local text = setting:match "^%s*(.-)%s*$"
  local lower = text:lower()
  if lower == "" or lower == "none" or lower == "null" then return nil end
  if lower == "all-linear" then return "all-linear" end
  local inner = text:match "^%[([^%[%]]*)%]$"
  if not inner and text:find "[%*%(%)%|%^%$%+%?%[%]\\{}]" then return { pattern = text } end
  local list = {}
  for part in (inner or text):gmatch "[^,]+" do
    list[#list + 1] = part:match "^%s*['\"]?(.-)['\"]?%s*$"
  end
  if #list == 0 then return nil end
  return { list = list }
end

local function matches(setting, module)
  if not setting then return false end
  if setting.pattern then
    local found = C.sz_pattern_matches(setting.pattern, module)
    if found < 0 then
      error("lora.target_modules or lora.exclude_modules: " .. ffi.string(C.sz_last_error()), 0)
    end
    return found == 1
  end
  for _, name in ipairs(setting.list) do
    if module == name or module:sub(-#name - 1) == "." .. name then return true end
  end
  return false
end

M.matches = matches

local function is_target(target, w, module)
  if w.name:match "%.bias$" then return false end
  if target == "all-linear" then return w.linear end
  return matches(target, module)
end

-- The weights that the settings select, in the model's order.
function M.chosen(policy, opts)
  local target = read_setting(opts.target_modules)
  local exclude = read_setting(opts.exclude_modules)
  if not target then error("lora.target_modules is empty", 0) end
  local out = {}
  for _, w in ipairs(policy.weights) do
    local module = policy:module_name(w.name)
    local frozen = opts.freeze_vision and policy:is_vision_weight(w.name)
    if is_target(target, w, module) and not matches(exclude, module) and not frozen then
      if not w.linear then
        error(("lora.target_modules names %s, which is not a linear layer that can have adapters")
          :format(module), 0)
      end
      out[#out + 1] = w
    end
  end
  if #out == 0 then
    local example = policy.weights[1].name
    for _, w in ipairs(policy.weights) do
      if w.linear and not policy:is_vision_weight(w.name) then
        example = w.name
        break
      end
    end
    error(("lora: target_modules '%s' without exclude_modules '%s' selects no layer; "
      .. "names are like %s"):format(tostring(opts.target_modules), tostring(opts.exclude_modules),
      policy:module_name(example)), 0)
  end
  return out
end

-- The last part of a module's name, or the last two where the last alone says little.
local function name_end(module)
  local last = module:match "[^.]+$"
  if last == "proj" or last:match "^%d+$" then return module:match "[^.]+%.[^.]+$" end
  return last
end

-- Ends of the modules' names that mean exactly these layers together with exclude_modules; else the
-- whole names, without exclude_modules.
function M.describe(policy, lora)
  local seen = {}
  local ends = {}
  local names = {}
  local adapted = {}
  for i, p in ipairs(lora.list) do
    local last = name_end(p.module)
    if not seen[last] then ends[#ends + 1] = last end
    seen[last] = true
    names[i] = p.module
    adapted[p.name] = true
  end
  local exclude = read_setting(lora.exclude_modules)
  for _, w in ipairs(policy.weights) do
    local module = policy:module_name(w.name)
    local meant = matches({ list = ends }, module) and not matches(exclude, module)
    if meant ~= (adapted[w.name] or false) then return names, nil end
  end
  table.sort(ends)
  return ends, exclude and (exclude.pattern or exclude.list)
end

return M
