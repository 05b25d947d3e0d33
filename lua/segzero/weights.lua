-- weights.lua - what the networks' Lua faces share: their tables of weights, filled from loaded tensors, lent, trained, freed.
--
--   local of = weights.access(C, "sz_qwen")       the C functions <prefix>_weight_count, _name, _shape, _set and <prefix>_weight
--   weights.list(c, of) -> {{index =, name =, shape = {...}}, ...}
--   weights.set(model, loaded, where, stray)      hands tensors to C in model.dtype on model.device; stray(name): an extra name that is no error
--   weights.parameters(model), weights.train(model, filter)      weights.plain(message): without its place
--
-- A model here has c (the C object), of, weights (the list), dtype, device. Leaves out: names (each network maps its own), files.

local ffi = require "ffi"
local core = require "segzero.ffi"
local tensor = require "segzero.tensor"

local check = core.check

local M = {}

function M.access(library, prefix)
  return { count = library[prefix .. "_weight_count"], name = library[prefix .. "_weight_name"], shape = library[prefix .. "_weight_shape"],
    set = library[prefix .. "_weight_set"], get = library[prefix .. "_weight"] }
end

function M.list(c, of)
  local list, shape = {}, ffi.new("int64_t[6]")
  for i = 0, of.count(c) - 1 do
    local n = of.shape(c, i, shape)
    local dims = {}
    for k = 1, n do dims[k] = tonumber(shape[k - 1]) end
    list[i + 1] = { index = i, name = ffi.string(of.name(c, i)), shape = dims }
  end
  return list
end

-- A message without the place that raised it and without a name that is said anyway.
function M.plain(message)
  return (tostring(message):gsub("^[^:%s]*%.lua:%d+: ", ""):gsub("^config%.json: ", ""):gsub("^config: ", ""))
end

local function same_shape(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

-- Hands the loaded tensors {name -> tensor} to C; everything that does not fit is named in one error.
function M.set(model, loaded, where, stray)
  local have, problems = {}, {}
  for name, t in pairs(loaded) do have[name] = t end
  for _, w in ipairs(model.weights) do
    local t = have[w.name]
    have[w.name] = nil
    if not t then
      problems[#problems + 1] = "missing: " .. w.name
    elseif not same_shape(t:shape(), w.shape) then
      problems[#problems + 1] = ("%s: shape [%s], expected [%s]"):format(w.name, table.concat(t:shape(), ", "), table.concat(w.shape, ", "))
    else
      if t:dtype() ~= model.dtype or t:device() ~= model.device then
        local converted = tensor.empty(w.shape, { dtype = model.dtype, device = model.device })
        converted:copy_(t)
        t:free()
        t = converted
      end
      check(model.of.set(model.c, w.index, t.ptr))
    end
  end
  for name in pairs(have) do
    if not (stray and stray(name)) then problems[#problems + 1] = "unexpected: " .. name end
  end
  if #problems > 0 then
    table.sort(problems)
    local shown = table.concat(problems, "\n  ", 1, math.min(#problems, 12))
    error(("%s: %d weights do not fit the config:\n  %s%s"):format(where, #problems, shown, #problems > 12 and "\n  ..." or ""), 0)
  end
end

-- {name -> tensor}
function M.parameters(model)
  local out = {}
  for _, w in ipairs(model.weights) do out[w.name] = tensor.borrow(check(model.of.get(model.c, w.index))) end
  return out
end

-- Turns gradients on for every weight whose name filter(name) accepts (all without one). Returns the trained ones in the
-- model's order: {{name=, tensor=}, ...}.
function M.train(model, filter)
  local list = {}
  for _, w in ipairs(model.weights) do
    local t = tensor.borrow(check(model.of.get(model.c, w.index)))
    local on = not filter or filter(w.name)
    t:requires_grad(on and true or false)
    if on then list[#list + 1] = { name = w.name, tensor = t } end
  end
  return list
end

return M
