-- words.lua - what can be typed: files, folders of runs and models, settings and their values. For
-- the shells' completion and for the prompt.
--
--   words.files("models/ti", ".lua")   -> {"models/tiny/", ...}: folders, and files that end so;
--                                         nil: all files
--   words.runs "runs/"                 -> folders; those that are runs have no slash at the end
--   words.models "Qw"                  -> {"Qwen/Qwen2.5-VL-3B-Instruct", ...}: names in the hub's
--                                         cache, and the embedded ones
--   words.cached "datasets"            -> the names of data sets in the hub's cache; or "models"
--   words.settings(schema, "trainer.lo")   -> {"trainer.logger=", ...}
--   words.values(schema, "kl", "k")    -> what can follow key=, without "key="
--   words.rewards "seg"                -> names in rewards/, and Lua files
--   words.schema "recipes/x.lua"       -> the schema of a script, or nil
--   words.filter({...}, prefix)        -> those that begin with it, sorted, each once
--
-- Words that end in "=", "/" or "." go on: of many settings the groups come first. Nothing raises
-- an error: what cannot be read has no words.
-- Leaves out: asking the hub.

local folders = require "segzero.core.folders"
local host = require "segzero.host"

local M = {}

function M.filter(list, prefix)
  local out = {}
  local seen = {}
  for _, word in ipairs(list) do
    if word:sub(1, #prefix) == prefix and not seen[word] then
      seen[word] = true
      out[#out + 1] = word
    end
  end
  table.sort(out)
  return out
end

-- ---- files ----
-- "~" stays in the words, because the user typed it.
local function listed(folder)
  local place = folder
  if folder:sub(1, 2) == "~/" then place = (os.getenv "HOME" or "~") .. folder:sub(2) end
  if place == "" then place = "." end
  local readable, names = pcall(folders.list, place)
  return readable and names or {}, place
end

-- visit(path as typed, real path, kind) for each entry of the prefix's folder that begins with it.
local function each_entry(prefix, visit)
  local folder, begin = prefix:match "^(.*/)([^/]*)$"
  if not folder then
    folder = ""
    begin = prefix
  end
  local names, place = listed(folder)
  for _, name in ipairs(names) do
    local wanted = name:sub(1, #begin) == begin and (name:sub(1, 1) ~= "." or begin ~= "")
    if wanted then
      local path = place .. "/" .. name
      visit(folder .. name, path, folders.kind(path))
    end
  end
end

function M.files(prefix, ending)
  local out = {}
  each_entry(prefix, function(typed, _, kind)
    if kind == "folder" then
      out[#out + 1] = typed .. "/"
    elseif not ending or typed:sub(-#ending) == ending then
      out[#out + 1] = typed
    end
  end)
  return M.filter(out, prefix)
end

local function has(folder, name) return folders.kind(folder .. "/" .. name) ~= nil end

function M.runs(prefix)
  local out = {}
  local function add(typed, path, kind)
    if kind ~= "folder" then return end
    local is_run = has(path, "metrics.jsonl") or has(path, "config.json") and has(path, "run.json")
    out[#out + 1] = is_run and typed or typed .. "/"
  end
  each_entry(prefix, add)
  if prefix == "" or ("runs/"):sub(1, #prefix) == prefix then each_entry("runs/", add) end
  return M.filter(out, prefix)
end

-- ---- models ----
local EMBEDDED = { "models/tiny/qwen2.5-vl", "models/tiny/qwen2.5-vl-several", "models/tiny/sam2" }

-- Names of the repositories in the Hugging Face cache. kind: "models" or "datasets".
function M.cached(kind)
  local found, root = pcall(require("segzero.hub.environment").cache)
  if not found then return {} end
  local out = {}
  for _, name in ipairs((listed(root .. "/"))) do
    local owner, rest = name:match("^" .. kind .. "%-%-(.-)%-%-(.+)$")
    if owner then out[#out + 1] = owner .. "/" .. rest end
  end
  return out
end

function M.models(prefix)
  local out = M.cached "models"
  for _, path in ipairs(EMBEDDED) do
    if folders.kind(path) or folders.kind(host.root .. "/" .. path) then out[#out + 1] = path end
  end
  return M.filter(out, prefix)
end

-- ---- settings ----
function M.schema(script)
  local name = script:gsub("^%./", ""):gsub("%.lua$", ""):gsub("/", ".")
  local is_ours = name:find "^recipes%.[%w_]+$" or name:find "^examples%.[%w_]+$"
  if not is_ours or not folders.kind(host.root .. "/" .. name:gsub("%.", "/") .. ".lua") then
    return nil
  end
  local loads, module = pcall(require, name)
  if not loads or type(module) ~= "table" then return nil end
  return module.schema
end

-- Segzero's own rewards by name, and files.
function M.rewards(prefix)
  local out = M.files(prefix, ".lua")
  for _, name in ipairs(require("segzero.reward.loading").names()) do out[#out + 1] = name end
  return M.filter(out, prefix)
end

local MANY = 24                 -- settings; of more, the groups are shown first

-- "trainer." for all words that begin so.
local function grouped(list, prefix)
  if #list <= MANY then return list end
  local out = {}
  for i, word in ipairs(list) do
    out[i] = prefix .. (word:sub(#prefix + 1):match "^[^.=]*%." or word:sub(#prefix + 1))
  end
  return M.filter(out, prefix)
end

-- A dash in front is the style of examples/infer.lua's options.
function M.settings(schema, prefix)
  local out = {}
  local dashes = ""
  if prefix:find "^%-" then dashes = "--" end
  for _, row in ipairs(schema.rows) do
    out[#out + 1] = dashes .. row.key .. "="
    for _, name in ipairs(row.also or {}) do out[#out + 1] = dashes .. name .. "=" end
  end
  if dashes ~= "" then out[#out + 1] = "--help" end
  return grouped(M.filter(out, prefix), prefix)
end

local function is_model(key) return key:find("model_path", 1, true) or key:find("sam2", 1, true) end

local function is_path(row)
  return row.path or row.key:find "files$" or row.key:find "path$" or row.key:find "dir$"
end

function M.values(schema, key, prefix)
  local row = schema:find((key:gsub("^%-%-?", "")))
  if not row then return {} end
  local choices = require("segzero.config.values").choices(row)
  if choices then return M.filter(choices, prefix) end
  if row.type == "boolean" then return M.filter({ "false", "true" }, prefix) end
  local out = {}
  if is_model(row.key) then out = M.models(prefix) end
  if row.key:find "_files$" or row.key == "data" then out = M.cached "datasets" end
  if is_path(row) or is_model(row.key) then
    for _, path in ipairs(M.files(prefix)) do out[#out + 1] = path end
  end
  if row.key:find("compute_score", 1, true) or row.key == "reward" then
    out = M.rewards(prefix)
  end
  return M.filter(out, prefix)
end

return M
