-- path_hints.lua - what an error says of a path that does not exist, or that holds something else
-- than was expected.
--
--   hints.similar "models/Qwen2.5-VL-7B-Instuct"   "models/Qwen2.5-VL-7B-Instruct": what exists and
--                                                  has nearly the same name, or nil
--   hints.question(path, names)     "; did you mean PATH?", or "". names: other names it may be
--   hints.holds(path)               "a SAM2 model", "a qwen2_5_vl model", "LoRA adapters",
--                                   "a training run", "a data set", or nil
--   hints.is_sam2(path), hints.is_policy(path)     of holds(): a SAM2 model; another model
--
-- Looks at names and at config.json only. Leaves out: whether what is found is sound.

local files = require "segzero.core.files"
local nearest = require "segzero.core.nearest"

local M = {}

local DATA = { "data.jsonl", "data.json", "dataset_dict.json", "dataset_info.json",
  "instances.json", "annotations" }

-- ---- names ----
-- nearest() compares the parts after the last dot, which mean nothing in a path.
local function without_dots(name) return (name:gsub("%.", "_")) end

local function nearest_of(name, list)
  local by_plain = {}
  local plain = {}
  for i, other in ipairs(list) do
    plain[i] = without_dots(other)
    by_plain[plain[i]] = other
  end
  return by_plain[nearest(without_dots(name), plain)]
end

-- The folder that exists, "" for the current one, the first name after it that does not, and what
-- follows.
local function first_missing(path)
  local folder = ""
  for part, slash in path:gmatch "([^/]*)(/*)" do
    local here = folder .. part
    if part ~= "" and not files.exists(here) then return folder, part, path:sub(#here + 1) end
    folder = here .. slash
  end
  return nil
end

function M.similar(path)
  local folder, missing, rest = first_missing(path)
  if not folder then return nil end
  local listed = folder
  if folder == "" then listed = "." end
  local found = nearest_of(missing, require("segzero.core.folders").list(listed) or {})
  if not found then return nil end
  local whole = folder .. found .. rest
  if files.exists(whole) then return whole end
  return folder .. found
end

function M.question(path, names)
  local found = M.similar(path) or nearest_of(path, names or {})
  return found and ("; did you mean %s?"):format(found) or ""
end

-- ---- contents ----
-- The model_type of a folder's config.json, or nil.
local function model_type(path)
  local file = path .. "/config.json"
  if not files.exists(file) then return nil end
  local ok, json = pcall(files.read_json_object, file)
  return ok and type(json.model_type) == "string" and json.model_type or nil
end

function M.is_sam2(path)
  local kind = model_type(path)
  return kind ~= nil and kind:find "^sam2" ~= nil
end

function M.is_policy(path) return model_type(path) ~= nil and not M.is_sam2(path) end

function M.holds(path)
  if M.is_sam2(path) then return "a SAM2 model" end
  if M.is_policy(path) then return ("a %s model"):format(model_type(path)) end
  if files.exists(path .. "/adapter_config.json") then return "LoRA adapters" end
  if files.exists(path .. "/run.json") then return "a training run" end
  for _, name in ipairs(DATA) do
    if files.exists(path .. "/" .. name) then return "a data set" end
  end
  return nil
end

return M
