-- paths.lua - resolves the paths in settings: the embedded models, and the newest checkpoint of a
-- run folder.
--
--   paths.policy ""                       the embedded policy
--   paths.policy "runs/refshapes_grpo"    its newest complete checkpoint, .../global_step_60
--   paths.policy "run/global_step_5/actor"  of Seg-Zero: its folder huggingface, if it is merged
--   paths.sam2("", { model = dir })       the embedded SAM2 for the embedded policy, or "" for none
--
--   paths.stored(path)                    a path in a run's settings, found from any folder
--   paths.expand "~/data/$SET"            ~ and variables as the shell reads them
--
-- infer, evaluate and the GRPO recipes all use it. Nothing is loaded.
-- Names on the Hugging Face hub become folders of its cache; of a policy the small files alone are
-- fetched here, so that data can be checked before gigabytes are downloaded.

local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local hints = require "segzero.core.path_hints"
local hub = require "segzero.hub"
local mistake = require "segzero.core.mistake"

local M = { POLICY = "models/tiny/qwen2.5-vl", SEVERAL = "models/tiny/qwen2.5-vl-several",
  SAM2 = "models/tiny/sam2" }

-- Keys of config.json that are the same in the embedded policy and in every model trained from it.
local SHAPE = { "model_type", "segzero_frame", "hidden_size", "num_hidden_layers", "vocab_size" }

-- ~/x and $NAME/x, which the shell expands only at the beginning of a word and outside of single
-- quotes. A variable that is not set stays.
function M.expand(path)
  local home = os.getenv "HOME"
  if home and path:match "^~$" or home and path:match "^~/" then path = home .. path:sub(2) end
  return (path:gsub("%$([%a_][%w_]*)", os.getenv))
end

-- A path that a run's settings name. What came with segzero may be named from its own folder, and
-- the run may be looked at from another one.
function M.stored(path)
  if type(path) ~= "string" or path == "" or path:sub(1, 1) == "/" or files.exists(path) then
    return path
  end
  local ours = core.root .. "/" .. path
  if files.exists(ours) then return ours end
  return path
end

local function read_config(dir)
  local path = dir .. "/config.json"
  if not files.exists(path) then return nil end
  return require("segzero.models.qwen_vl").read_json(path)
end

-- several: the policy that knows VisionReasoner's lists of objects, if it is installed.
function M.embedded_policy(several)
  local dir = files.embedded(M.SEVERAL)
  if several and files.exists(dir .. "/config.json") then return dir end
  return files.embedded(M.POLICY)
end

-- True when the folder holds the embedded policy, or a model trained from it.
function M.is_embedded(dir)
  local embedded = read_config(M.embedded_policy())
  local ok, json = pcall(read_config, dir)
  if not embedded or not ok or not json then return false end
  for _, key in ipairs(SHAPE) do
    if json[key] ~= embedded[key] then return false end
  end
  return true
end

-- The newest complete checkpoint of a run folder, or nil. A run folder's config.json holds
-- settings, which no model's does.
local function newest_checkpoint(dir)
  local ok, json = pcall(read_config, dir)
  if not ok or (json and json.model_type) then return nil end
  return require("segzero.train.run.checkpoint").latest(dir)
end

-- The merged model of a checkpoint of Seg-Zero or EasyR1 (merge/locate.lua), nil for another
-- folder. A checkpoint that is not merged yet is an error.
local function merged_shards(dir)
  if files.exists(dir .. "/config.json") and not dir:find "huggingface$" then return nil end
  local locate = require "segzero.merge.locate"
  local advice = locate.advice(dir)
  if not advice then return nil end
  local actor = locate.actor(dir)
  return actor and locate.merged(actor) or error(advice, 0)
end

-- Raises the error of a folder that holds no policy.
function M.check_policy(setting, dir)
  if not files.exists(dir .. "/config.json") then
    mistake.raise(("%s: %s"):format(setting, require("segzero.models.opening").missing(dir)))
  end
  if hints.is_sam2(dir) then
    mistake.raise(("%s: %s is a SAM2 model, which the setting for SAM2 takes; name a Qwen2.5-VL or "
      .. "Qwen2-VL model here"):format(setting, dir))
  end
  if hints.is_policy(dir) then return end
  if hints.holds(dir) == "a training run" then
    mistake.raise(("%s: the training run %s has no checkpoint yet"):format(setting, dir))
  end
  mistake.raise(("%s: no model in %s: its config.json has no model_type"):format(setting, dir))
end

-- The policy's folder: the embedded one for "", the newest checkpoint for a run folder, the cache's
-- for a name on the hub. several: as in embedded_policy; label: the setting's name, for messages.
-- Does not check that it holds a model: see check_policy.
function M.policy(named, several, label)
  if named == "" then return M.embedded_policy(several) end
  named = hub.model(named, label or "model_path", { weights = false })
  local dir = named:gsub("(.)/+$", "%1")
  return newest_checkpoint(dir) or merged_shards(dir) or dir
end

-- The SAM2 folder or file, "" for none. named: the setting; "none" or "null" is none.
-- options.label: the setting's name; options.model: the policy's folder; options.data: the data set
-- that is evaluated. The embedded SAM2 knows only RefShapes images, so it is the default for the
-- embedded policy (and models trained from it) and for evaluations on RefShapes. The second result
-- says where a default came from: "embedded", or "missing" if the embedded one is not installed.
function M.sam2(named, options)
  local lower = named:lower()
  if lower == "none" or lower == "null" then return "" end
  if named ~= "" then return hub.model(named, options.label or "sam2_path") end
  local is_refshapes = options.data == "refshapes" or options.data == "refshapes_multi"
  if not is_refshapes and not M.is_embedded(options.model) then return "" end
  local embedded = files.embedded(M.SAM2)
  if not files.exists(embedded .. "/config.json") then return "", "missing" end
  return embedded, "embedded"
end

-- Raises the error of a SAM2 that is not there. setting: its key; path: as M.sam2 returns it.
function M.check_sam2(setting, path)
  if path == "" or path:find "%.pth?$" and files.exists(path) then return end
  if not files.exists(path) then
    local text = "%s: %s: there is no such file or folder%s"
    mistake.raise(text:format(setting, path, hints.question(path)))
  end
  if hints.is_policy(path) then
    mistake.raise(("%s: %s is %s; name a SAM2 folder or its .pt file here"):format(setting, path,
      hints.holds(path)))
  end
  if not files.exists(path .. "/.") or files.exists(path .. "/config.json") then return end
  local ok, original = pcall(require("segzero.models.sam2.names").file_in, path)
  if not ok then mistake.raise(("%s: %s"):format(setting, original)) end
  if original then return end
  mistake.raise(("%s: no SAM2 in %s: it has no config.json and no .pt file"):format(setting, path))
end

-- The folder to which a recipe writes its model. A default gets -2, -3, ... if it holds anything; a
-- folder that the user named is refused then, unless overwrite is true. Does not make the folder.
function M.output(folder, is_given, overwrite)
  if is_given then
    if not overwrite then folders.check_free(folder, "output", ", or overwrite=true") end
    return folder
  end
  local free = folder
  local n = 1
  while #(folders.list(free) or {}) > 0 do
    n = n + 1
    free = ("%s-%d"):format(folder, n)
  end
  return free
end

return M
