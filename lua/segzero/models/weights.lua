-- weights.lua - the weights of a network in C: lists, fills, lends and trains them.
--
--   weights.list(c)
--     -> {{index =, name =, shape = {...}, vision = true | false, linear = true | false,
--          full = {...}, slice = {dim = 1 | 2, first = from 0, count =} | nil, copies =, copy =,
--          adds = true | false}, ...}
--       full: the shape in files; a shard of a split model has a slice of it. copies: how many
--       shards have the same slice, copy: which of them this is, from 0. adds: the gradient of
--       each copy is a part, to be added to the others'
--   weights.set(model, loaded, where, stray)
--       gives the tensors {name -> tensor} to C, in model.dtype on model.device; stray(name) is
--       true for an extra name that is allowed
--   weights.load(model, folder, rename, stray)
--       the same from an open folder of safetensors, mapped from the file if the dtype allows
--   weights.parameters(model)     -> {name -> tensor}
--   weights.train(model, filter)  -> the trained weights: {{name =, tensor =, full =, slice =,
--                                    copies =, copy =, adds =}, ...}
--   weights.listed(model)         the same of all weights, whether trained or not
--   weights.meta(model)           gives every weight a tensor without memory, for counting
--   weights.bytes(list, width)    -> bytes; width: bytes per element, or a function width(weight)
--
-- A model here has c (the C object), weights (the list), dtype, device. Leaves out: names (each
-- family maps its own), files.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local integrity = require "segzero.runs.integrity"
local tensor = require "segzero.core.tensor"
local safetensors = require "segzero.formats.safetensors"
local known_keys = require "segzero.models.known_keys"

local C = core.C
local check = core.check

local REAL = { F32 = true, BF16 = true, F16 = true }

local M = {}

-- The first `count` numbers of a C array.
local function numbers(array, count)
  local list = {}
  for k = 1, count do list[k] = tonumber(array[k - 1]) end
  return list
end

-- Which part of the whole weight this shard has. shape: this shard's.
local function slice_of(c, i, shape)
  local first = ffi.new "int64_t[1]"
  local dim = C.sz_model_weight_slice(c, i, first)
  if dim < 0 then return nil end
  return { dim = dim + 1, first = tonumber(first[0]), count = shape[dim + 1] }
end

function M.list(c)
  local list = {}
  local shape = ffi.new "int64_t[6]"
  local copy = ffi.new "int[1]"
  for i = 0, C.sz_model_weight_count(c) - 1 do
    local own = numbers(shape, C.sz_model_weight_shape(c, i, shape))
    local full = numbers(shape, C.sz_model_weight_full_shape(c, i, shape))
    local copies = C.sz_model_weight_copies(c, i, copy)
    list[i + 1] = {
      index = i,
      name = ffi.string(C.sz_model_weight_name(c, i)),
      shape = own, full = full, slice = slice_of(c, i, own),
      copies = copies, copy = copy[0],
      adds = C.sz_model_weight_gradient_is_part(c, i) == 1,
      vision = C.sz_model_weight_is_vision(c, i) == 1,
      linear = C.sz_model_weight_is_linear(c, i) == 1,
    }
  end
  return list
end

-- Elements of a weight.
function M.numel(w)
  local n = 1
  for _, d in ipairs(w.shape) do n = n * d end
  return n
end

function M.bytes(list, width)
  local total = 0
  for _, w in ipairs(list) do
    local each = width
    if type(width) == "function" then each = width(w) end
    total = total + M.numel(w) * each
  end
  return total
end

-- ---- checks ----
local function same_shape(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

-- Adds to `problems` every mismatch with the model's weights. have: {name -> shape}; excused:
-- {name -> true}, weights that may be missing.
local function compare(model, have, problems, stray, excused)
  local wrong = {}
  local known = {}
  for _, w in ipairs(model.weights) do
    local shape = have[w.name]
    known[w.name] = true
    if not shape then
      if not excused[w.name] then wrong[#wrong + 1] = "missing: " .. w.name end
    elseif not same_shape(shape, w.full) then
      wrong[#wrong + 1] = ("%s: shape [%s], expected [%s]"):format(w.name, table.concat(shape,
        ", "), table.concat(w.full, ", "))
    end
  end
  for name in pairs(have) do
    local expected = known[name] or stray and stray(name)
    if not expected then wrong[#wrong + 1] = "unexpected: " .. name end
  end
  table.sort(wrong)
  for _, text in ipairs(wrong) do problems[#problems + 1] = text end
end

-- ---- filling ----
local function set(model, w, t) check(C.sz_model_weight_set(model.c, w.index, t.ptr)) end

-- Every mismatch is named in one error.
function M.set(model, loaded, where, stray)
  local have = {}
  local problems = {}
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
    set(model, w, t)
  end
end

-- Matches the entries of a folder with the model's names. Returns {name -> name in the file} and
-- fills problems.
local function match_entries(model, folder, rename, stray, problems)
  local have = {}
  local source = {}
  local excused = {}
  local names = {}
  for name in pairs(folder.entries) do names[#names + 1] = name end
  table.sort(names)
  for name in pairs(folder.lost) do excused[rename(name)] = true end
  for _, name in ipairs(names) do
    local e = folder.entries[name]
    local own = rename(name)
    if source[own] then
      problems[#problems + 1] = ("twice, under two names: %s and %s"):format(source[own], name)
    elseif e.unlisted and not (stray and stray(own)) then
      problems[#problems + 1] = ("%s: tensor '%s' is not in the index"):format(e.path, name)
      excused[own] = true
    elseif not REAL[e.dtype] then
      problems[#problems + 1] = ("%s: dtype %s, expected F32, BF16 or F16"):format(name, e.dtype)
      excused[own] = true
    else
      source[own] = name
      have[own] = e.shape
    end
  end
  compare(model, have, problems, stray, excused)
  return source
end

-- ---- what else a folder may hold ----
-- Ends of names that quantised weights have, with the programs that write them.
local QUANTISED = {
  { "%.qweight$", "AWQ or GPTQ" }, { "%.qzeros$", "AWQ or GPTQ" }, { "%.SCB$", "bitsandbytes" },
  { "%.weight%.quant_state%.", "bitsandbytes" }, { "%.weight%.absmax$", "bitsandbytes" },
  { "%.weight_packed$", "compressed-tensors" }, { "%.weight_scale$", "fp8 or compressed-tensors" },
  { "%.weight_scale_inv$", "fp8" },
}

local function quantised_by(names)
  for _, name in ipairs(names) do
    for _, row in ipairs(QUANTISED) do
      if name:find(row[1]) then return row[2], name end
    end
  end
end

-- Names that become the model's when the front is cut off: the front, such a name, and the model's.
local function front_of(model, names, rename)
  local wanted = {}
  for _, w in ipairs(model.weights) do wanted[w.name] = true end
  for _, name in ipairs(names) do
    local rest = name
    while rest and not wanted[rename(rest)] do rest = rest:match "^[^.]+%.(.+)$" end
    if rest and rest ~= name then return name:sub(1, #name - #rest), name, rest end
  end
end

-- One line for a folder whose weights have other names than the model's throughout; nil otherwise.
local function check_names(model, folder, rename)
  local names = {}
  for name in pairs(folder.entries) do names[#names + 1] = name end
  table.sort(names)
  local method, example = quantised_by(names)
  if method then
    error(("%s: the weights are quantised (%s: there is '%s'), which is not read: take the folder "
      .. "in bf16; dtype int8 of segzero quantises it"):format(folder.dir, method,
      known_keys.name(example)), 0)
  end
  local own = {}
  for _, name in ipairs(names) do own[rename(name)] = true end
  local found = 0
  for _, w in ipairs(model.weights) do
    if own[w.name] then found = found + 1 end
  end
  if #names == 0 or 2 * found >= #model.weights then return end
  local front, name, rest = front_of(model, names, rename)
  if front then
    error(("%s: the names of the weights begin with '%s': '%s' instead of '%s'; save them without")
      :format(folder.dir, known_keys.name(front), known_keys.name(name), rest), 0)
  end
  if found == 0 then
    error(("%s: these are another model's weights: there is '%s', and no '%s'"):format(folder.dir,
      known_keys.name(names[1]), model.weights[1].name), 0)
  end
end

-- folder: of safetensors.open_folder; it is closed. rename(name): the file's name to the model's.
-- Files, index and tensors are all checked before the first tensor is made. Weights of model.dtype
-- are used where they are mapped, slices of rows too; slices of columns are copied, and other
-- dtypes converted, one by one.
function M.load(model, folder, rename, stray)
  local problems = folder.problems
  local ok, why = pcall(function()
    if #problems == 0 then check_names(model, folder, rename) end
    local source = match_entries(model, folder, rename, stray, problems)
    if #problems > 0 then
      safetensors.refuse(folder.dir, "weights do not fit the config", problems)
    end
    for _, w in ipairs(model.weights) do
      local t = folder:tensor(source[w.name], model.dtype, w.slice)
      if model.device ~= "cpu" then
        local mapped = t
        t = mapped:to { device = model.device }
        mapped:free()
      end
      set(model, w, t)
      t:free()
    end
  end)
  folder:close()
  if not ok then error(why, 0) end
end

function M.meta(model)
  for _, w in ipairs(model.weights) do
    local t = tensor.meta(w.shape, model.dtype)
    set(model, w, t)
    t:free()
  end
end

-- ---- the weights of a filled model ----
local function borrowed(model, w)
  return tensor.borrow(check(C.sz_model_weight(model.c, w.index)))
end

function M.parameters(model)
  integrity.settle(model)
  local out = {}
  for _, w in ipairs(model.weights) do out[w.name] = borrowed(model, w) end
  return out
end

local function entry(w, t)
  return { name = w.name, tensor = t, full = w.full, slice = w.slice, copies = w.copies,
    copy = w.copy, adds = w.adds }
end

function M.listed(model)
  integrity.settle(model)
  local list = {}
  for i, w in ipairs(model.weights) do list[i] = entry(w, borrowed(model, w)) end
  return list
end

-- Turns gradients on for every weight whose name filter(name) accepts (all without a filter), off
-- for the others. Returns the trained ones in the model's order. Quantised weights have none.
function M.train(model, filter)
  integrity.settle(model)
  local list = {}
  for _, w in ipairs(model.weights) do
    if C.sz_model_weight_is_packed(model.c, w.index) == 0 then
      local t = borrowed(model, w)
      local on = true
      if filter then on = filter(w.name) and true or false end
      t:requires_grad(on)
      if on then list[#list + 1] = entry(w, t) end
    end
  end
  return list
end

return M
