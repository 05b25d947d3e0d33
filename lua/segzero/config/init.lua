-- config.lua - a recipe's settings: a nested table of defaults, overridden by key=value (or --key value) arguments.
--
--   local cfg = config.read(defaults, arg, {ignored = {["worker.rollout.tensor_parallel_size"] = "one process"}})
--   cfg.worker.rollout.n
--
-- The default's type is the key's type: number, boolean, string; a list of strings takes a,b,c. config.optional(kind) is a
-- default of nil that takes that kind, or null. An unknown key or a wrong type is an error that names the nearest key. Keys
-- that have no meaning here (they come from Seg-Zero's and EasyR1's command lines) are accepted and said so once.
-- Leaves out: YAML files.

local M = {}

local optional_mt = {}
function M.optional(kind) return setmetatable({ kind = kind }, optional_mt) end
local function is_optional(v) return getmetatable(v) == optional_mt end
local function is_list(v) return type(v) == "table" and not is_optional(v) and (#v > 0 or v.list) end

-- Nested tables to {["a.b.c"] = value}, in a stable order.
local function flatten(t, prefix, out, order)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys)
  for _, k in ipairs(keys) do
    local v, path = t[k], prefix .. k
    if type(v) == "table" and not is_optional(v) and not is_list(v) then
      flatten(v, path .. ".", out, order)
    else
      out[path] = v
      order[#order + 1] = path
    end
  end
end

function M.flat(t)
  local out, order = {}, {}
  flatten(t, "", out, order)
  return out, order
end

-- Edit distance, for "did you mean".
local function distance(a, b)
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local before = row[0]
    row[0] = i
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      before, row[j] = row[j], math.min(row[j] + 1, row[j - 1] + 1, before + cost)
    end
  end
  return row[#b]
end

function M.nearest(key, keys)
  local best, least
  for _, k in ipairs(keys) do
    local d = distance(key, k)
    -- The last part of a dotted key is what people remember.
    if k:match "[^.]+$" == key:match "[^.]+$" then d = math.min(d, 2) end
    if not least or d < least then best, least = k, d end
  end
  return best
end

local function convert(key, text, default)
  local kind = is_optional(default) and default.kind or type(default)
  if is_optional(default) and (text == "null" or text == "None") then return nil end
  if kind == "number" then
    local n = tonumber(text)
    if not n or n ~= n or math.abs(n) == math.huge then error(("%s wants a number, got '%s'"):format(key, text), 0) end
    return n
  elseif kind == "boolean" then
    local lower = text:lower()
    if lower == "true" or lower == "1" then return true end
    if lower == "false" or lower == "0" then return false end
    error(("%s wants true or false, got '%s'"):format(key, text), 0)
  elseif kind == "table" then
    local list = {}
    for part in text:gsub("^%[", ""):gsub("%]$", ""):gmatch "[^,]+" do
      list[#list + 1] = part:match "^%s*['\"]?(.-)['\"]?%s*$"
    end
    return list
  end
  return text
end

-- "key=value", "--key=value" and "--key value" to a list of {key, value}.
local function split_arguments(args)
  local out, i = {}, 1
  while i <= #args do
    local a = args[i]
    local key, value = a:match "^%-?%-?([%w_][%w_.]*)=(.*)$"
    if not key and a:match "^%-%-[%w_.]+$" then
      key, value = a:sub(3), args[i + 1]
      if not value then error(a .. " wants a value", 0) end
      i = i + 1
    end
    if not key then error(("'%s' is not a setting: write key=value or --key value"):format(a), 0) end
    out[#out + 1] = { key, value }
    i = i + 1
  end
  return out
end

local function put(t, path, value)
  local parent = t
  for part in path:gmatch "([^.]+)%." do
    parent[part] = parent[part] or {}
    parent = parent[part]
  end
  parent[path:match "[^.]+$"] = value
end

-- Returns the settings as nested tables, and {["key"] = true} of those given on the command line.
function M.read(defaults, args, opts)
  opts = opts or {}
  local ignored = opts.ignored or {}
  local known, order = M.flat(defaults)
  local values, given, noted = {}, {}, {}
  for _, key in ipairs(order) do
    if not is_optional(known[key]) then values[key] = known[key] end
  end
  local candidates = {}
  for _, key in ipairs(order) do candidates[#candidates + 1] = key end
  for key in pairs(ignored) do candidates[#candidates + 1] = key end
  for _, pair in ipairs(split_arguments(args or {})) do
    local key, text = pair[1], pair[2]
    if known[key] ~= nil then
      values[key] = convert(key, text, known[key])
      given[key] = true
    elseif ignored[key] then
      if not noted[key] then io.stderr:write(("note: %s has no meaning here (%s)\n"):format(key, ignored[key])) end
      noted[key] = true
    else
      error(("unknown setting '%s': did you mean '%s'?"):format(key, M.nearest(key, candidates)), 0)
    end
  end
  local out = {}
  for _, key in ipairs(order) do put(out, key, values[key]) end
  return out, given
end

-- One setting by its dotted name, and setting it.
function M.get(cfg, path)
  local v = cfg
  for part in path:gmatch "[^.]+" do v = type(v) == "table" and v[part] or nil end
  return v
end
M.set = put

return M
