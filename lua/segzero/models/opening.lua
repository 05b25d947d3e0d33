-- opening.lua - opens a model folder: finds its family, and makes the checks that all families
-- share.
--
--   local vl = opening.open(dir, opts)         sz.model: the family that dir/config.json names
--   local spec = opening.family(dir)           that family's spec (registry.lua)
--   opening.check_options(dir, opts)           raises what open() would say of the options and the
--                                              device alone; reads config.json only
--   opening.processor(dir)                     the model's image processor before it is loaded, or
--                                              nil if its family has none without loading
--   opening.check_split(dir, count)            an error unless dir's model can be split over
--                                              `count` ranks; reads config.json only
--   opts = opening.check("qwen_vl", path, opts, OPTIONS, {"bf16", "f32"}, level)
--   opening.missing(dir)                       the error's text for a folder without config.json
--   opening.resolve(name, level, how)          a path: the name itself, or the folder of a name on
--                                              the hub, downloaded if need be (segzero.hub)
--   opening.dtype(json)                        "bf16" or "f32": what a config.json says
--
-- check(): the path must be a string, every option known, the dtype one of those given.

local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local hints = require "segzero.core.path_hints"
local hub = require "segzero.hub"
local names = require "segzero.hub.names"
local integrity = require "segzero.runs.integrity"
local mistake = require "segzero.core.mistake"
local options = require "segzero.core.options"

local M = {}

local function contains(list, x)
  for _, v in ipairs(list) do
    if v == x then return true end
  end
  return false
end

function M.check(name, path, opts, known, dtypes, level)
  level = level + 1
  if type(path) ~= "string" then
    error(("%s: a folder name is expected, got %s"):format(name, type(path)), level)
  end
  opts = options.check(name, opts, known, level)
  if opts.dtype ~= nil and not contains(dtypes, opts.dtype) then
    error(("%s: dtype is %s, expected one of: %s"):format(name, tostring(opts.dtype),
      table.concat(dtypes, ", ")), level)
  end
  return opts
end

-- A level of error() as a function that was called sees it; 0 leaves the place out.
local function above(level)
  if level == 0 then return 0 end
  return (level or 1) + 1
end

-- level: as for error(). A value that is no string is returned: others say what they expect.
-- how.weights = false: without the weights.
function M.resolve(name, level, how)
  if type(name) ~= "string" then return name end
  local ok, path = pcall(function()
    local found = hub.model(files.shipped(name), nil, how)
    if not how then hub.complete(found) end
    return found
  end)
  if ok then return path end
  if core.is_interrupt(path) then error(path, 0) end
  error(core.plain(path), above(level))
end

function M.missing(dir)
  if files.exists(dir .. "/adapter_config.json") then
    return ("no model in %s: it has no config.json, but LoRA adapters: name their model there, and "
      .. "this folder as adapter"):format(dir)
  end
  local advice = require("segzero.merge.locate").advice(dir)
  if advice then return advice end
  local text = "no model in " .. dir
  if files.exists(dir .. "/.") then
    local other = hints.holds(dir)
    if other then return ("%s: it is %s"):format(text, other) end
    return text .. ": it has no config.json, which comes with a model's *.safetensors"
  end
  if files.exists(dir) then return text .. ": it is a file; name the folder with config.json" end
  text = text .. ": there is no such folder"
  local question = hints.question(dir)
  if question ~= "" then return text .. question end
  local guess = names.guess(dir)
  if guess then return ("%s; did you mean %s on the hub?"):format(text, guess) end
  return text .. "; name a folder, or a model on the hub as owner/name"
end

-- transformers writes dtype, and wrote torch_dtype before 4.56. With text_config it may be there.
function M.dtype(json)
  for _, t in ipairs { json, type(json.text_config) == "table" and json.text_config or {} } do
    for _, key in ipairs { "dtype", "torch_dtype" } do
      local v = t[key]
      if type(v) == "string" then
        return v:find "bfloat16" and "bf16" or "f32"
      end
    end
  end
  return "f32"
end

-- level as for error(); 0 for a folder that a setting names.
function M.family(dir, level)
  if level ~= 0 then level = (level or 1) + 1 end
  if type(dir) ~= "string" then
    error("a model's folder name is expected, got " .. type(dir), level)
  end
  local path = dir .. "/config.json"
  if not files.exists(path) then
    if level == 0 then mistake.raise(M.missing(dir)) end
    error(M.missing(dir), level)
  end
  local sound, damage = pcall(integrity.file, dir, "config.json")
  if not sound then error(damage, level) end
  local ok, json = pcall(files.read_json_object, path)
  if not ok then error(json, level) end
  if type(json.model_type) ~= "string" then error(path .. ": model_type is missing", level) end
  local families = require "segzero.models.registry"
  local found, spec = pcall(families.get, families, json.model_type)
  if not found then error(("%s: %s"):format(path, core.plain(spec)), level) end
  return spec
end

-- ---- models that are split over ranks ----
local function unsplit(dir, spec)
  if spec.splits then return nil end
  local json = files.read_json_object(dir .. "/config.json")
  return ("%s holds a model of type %s, which is not split over ranks: 1 would do"):format(dir,
    json.model_type)
end

function M.check_split(dir, count)
  if count == 1 then return end
  dir = M.resolve(dir, 0, { weights = false })
  local spec = M.family(dir, 0)
  local problem = unsplit(dir, spec)
  if not problem then
    local ok, vl = pcall(spec.meta, dir, "f32", { count = count, index = 0 })
    if ok then return vl:free() end
    local path = dir:gsub("%%", "%%%%") .. "/config.json: "
    problem = core.plain(vl):gsub("^config: ", path)
  end
  error(("worker.rollout.tensor_parallel_size is %d: %s"):format(count, problem), 0)
end

function M.check_options(dir, opts)
  local spec = M.family(M.resolve(dir, 0, { weights = false }), 0)
  if not spec.check then return end
  local ok, why = pcall(spec.check, opts)
  if not ok then error(core.plain(why), 0) end
end

function M.processor(dir)
  dir = M.resolve(dir, 0, { weights = false })
  local spec = M.family(dir, 0)
  return spec.processor and spec.processor(dir)
end

function M.open(dir, opts)
  dir = M.resolve(dir, 2)
  local spec = M.family(dir, 2)
  local problem = type(opts) == "table" and opts.shards and unsplit(dir, spec)
  if problem then error("shards: " .. problem, 2) end
  return spec.load(dir, opts)
end

return M
