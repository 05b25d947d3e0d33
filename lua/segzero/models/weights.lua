-- weights.lua - what the networks' Lua faces share: their tables of weights, filled from loaded tensors, lent, trained, freed.
--
--   local of = weights.access(C, "sz_qwen")       the C functions <prefix>_weight_count, _name, _shape, _set and <prefix>_weight
--   weights.list(c, of) -> {{index =, name =, shape = {...}}, ...}
--   weights.set(model, loaded, where, stray)      hands tensors to C in model.dtype on model.device; stray(name): an extra name that is no error
--   weights.load(model, folder, rename, stray)    the same from an open folder of safetensors, mapped where the dtype allows
--   weights.parameters(model), weights.train(model, filter)      weights.plain(message): without its place
--   weights.freed(name, methods) -> the metatable of a freed model        weights.opening(name, path, opts, dtypes, level) checks what a caller gave
--
-- A model here has c (the C object), of, weights (the list), dtype, device. Leaves out: names (each network maps its own), files.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local safetensors = require "segzero.formats.safetensors"

local check = core.check

local REAL = { F32 = true, BF16 = true, F16 = true }

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

-- A freed model has no C object that a method could be given: every method but free says so.
function M.freed(name, methods)
  return {
    __index = function(_, key)
      if key == "free" then return function() end end
      if methods[key] then return function() error(name .. ": this model has been freed", 2) end end
    end,
    __tostring = function() return name .. " (freed)" end,
  }
end

-- The options of a model that is opened by its path; raises at the level given.
function M.opening(name, path, opts, dtypes, level)
  if type(path) ~= "string" then error(("%s: a folder name is expected, got %s"):format(name, type(path)), level + 1) end
  opts = tensor.options(opts, level + 1)
  if opts.dtype ~= nil and not dtypes[opts.dtype] then
    local names = {}
    for dtype in pairs(dtypes) do names[#names + 1] = dtype end
    table.sort(names)
    error(("%s: dtype is %s, expected one of: %s"):format(name, tostring(opts.dtype), table.concat(names, ", ")), level + 1)
  end
  return opts
end

-- What does not fit the model's weights, added to problems. have: {name -> shape}; excused: {name -> true}, missing is no error.
local function compare(model, have, problems, stray, excused)
  local wrong, known = {}, {}
  for _, w in ipairs(model.weights) do
    local shape = have[w.name]
    known[w.name] = true
    if not shape then
      if not excused[w.name] then wrong[#wrong + 1] = "missing: " .. w.name end
    elseif not same_shape(shape, w.shape) then
      wrong[#wrong + 1] = ("%s: shape [%s], expected [%s]"):format(w.name, table.concat(shape, ", "), table.concat(w.shape, ", "))
    end
  end
  for name in pairs(have) do
    if not known[name] and not (stray and stray(name)) then wrong[#wrong + 1] = "unexpected: " .. name end
  end
  table.sort(wrong)
  for _, text in ipairs(wrong) do problems[#problems + 1] = text end
end

-- Hands the loaded tensors {name -> tensor} to C; everything that does not fit is named in one error.
function M.set(model, loaded, where, stray)
  local have, problems = {}, {}
  for name, t in pairs(loaded) do have[name] = t:shape() end
  compare(model, have, problems, stray, {})
  if #problems > 0 then safetensors.refuse(where, "weights do not fit the config", problems) end
  for _, w in ipairs(model.weights) do
    local t = loaded[w.name]
    if t:dtype() ~= model.dtype or t:device() ~= model.device then
      local converted = tensor.empty(w.shape, { dtype = model.dtype, device = model.device })
      converted:copy_(t)
      t:free()
      t = converted
    end
    check(model.of.set(model.c, w.index, t.ptr))
  end
end

-- The same from safetensors.open_folder's folder, which is closed. rename(name): a file's name to the model's. Files, index and
-- tensors are all checked before one tensor is made; weights of model.dtype are used where they lie, others converted one by one.
function M.load(model, folder, rename, stray)
  local have, source, excused, problems = {}, {}, {}, folder.problems
  local names = {}
  for name in pairs(folder.entries) do names[#names + 1] = name end
  table.sort(names)
  for name in pairs(folder.lost) do excused[rename(name)] = true end
  for _, name in ipairs(names) do
    local e, own = folder.entries[name], rename(name)
    if source[own] then
      problems[#problems + 1] = ("twice, under two names: %s and %s"):format(source[own], name)
    elseif e.unlisted and not (stray and stray(own)) then
      problems[#problems + 1] = ("%s: tensor '%s' is not in the index"):format(e.path, name)
      excused[own] = true
    elseif not REAL[e.dtype] then
      problems[#problems + 1] = ("%s: dtype %s, expected F32, BF16 or F16"):format(name, e.dtype)
      excused[own] = true
    else
      source[own], have[own] = name, e.shape
    end
  end
  compare(model, have, problems, stray, excused)
  local ok, why = pcall(function()
    if #problems > 0 then safetensors.refuse(folder.dir, "weights do not fit the config", problems) end
    for _, w in ipairs(model.weights) do
      local t = folder:tensor(source[w.name], model.dtype)
      if model.device ~= "cpu" then
        local mapped = t
        t = mapped:to { device = model.device }
        mapped:free()
      end
      check(model.of.set(model.c, w.index, t.ptr))
      t:free()
    end
  end)
  folder:close()
  if not ok then error(why, 0) end
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
