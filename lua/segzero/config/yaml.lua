-- yaml.lua - reads a YAML file of settings as a list of {key, value} with dotted keys.
--
--   worker:                                worker.rollout.n     "4"
--     rollout: { n: 4 }           ->       trainer.logger       {"console", "wandb"}
--   trainer:
--     logger: [console, wandb]
--   yaml.read(path), yaml.parse(path, text)      path: where the text is from, for errors
--
-- Scalars stay text, so a value means the same in a file and on the command line. An empty value is
-- "null". Keys are sorted. A key that a mapping has twice is an error, and so are a second
-- document, an alias inside what it stands for, and more than MOST_LEVELS levels.
-- Leaves out: lists of anything but scalars.

local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local hints = require "segzero.core.path_hints"

local M = {}

local lyaml

-- Loads lyaml with strict mode off, because lyaml reads undefined globals while it loads.
local function load_library()
  if lyaml then return lyaml end
  local ok, found = require("segzero.core.strict").require "lyaml"
  if not ok then error("config=FILE needs the Lua package lyaml (apt-get install lua-yaml)", 0) end
  lyaml = found
  return lyaml
end

local function plain_scalar(text)
  if text == "" then return "null" end
  return text
end

local MOST_LEVELS = 50

local function refuse(path, event, ...)
  local line = event.start_mark.line + 1
  error(("%s: line %d: %s"):format(path, line, (...):format(select(2, ...))), 0)
end

-- Raises an error for what lyaml passes over without a word: a key that a mapping has twice, an
-- alias inside what it stands for, a second document. Broken files end here, and load() says why.
local function check_events(path, text)
  local open = {}             -- the mappings and sequences that are open, innermost last
  local ended = false
  local function begin(event, node)
    open[#open + 1] = node
    node.anchor = event.anchor
    if #open > MOST_LEVELS then refuse(path, event, "more than %d levels", MOST_LEVELS) end
  end
  -- A node begins: in a mapping every second one is a key.
  local function node(event)
    local top = open[#open]
    if not top or not top.lines then return end
    top.is_key = not top.is_key
    local key = event.value
    if not top.is_key or event.type ~= "SCALAR" then return end
    local line = event.start_mark.line + 1
    if top.lines[key] then
      error(("%s: the key '%s' is in line %d and again in line %d"):format(path, key,
        top.lines[key], line), 0)
    end
    top.lines[key] = line
  end
  local next_event = require("yaml").parser(text)
  while true do
    local ok, event = pcall(next_event)
    if not ok or not event then return end
    if event.type == "ALIAS" then
      for _, outer in ipairs(open) do
        if outer.anchor == event.anchor then
          refuse(path, event, "*%s is inside what it stands for", event.anchor)
        end
      end
    end
    if event.type == "SCALAR" or event.type == "ALIAS" then
      node(event)
    elseif event.type == "MAPPING_START" then
      node(event)
      begin(event, { lines = {} })
    elseif event.type == "SEQUENCE_START" then
      node(event)
      begin(event, {})
    elseif event.type == "MAPPING_END" or event.type == "SEQUENCE_END" then
      open[#open] = nil
    elseif event.type == "DOCUMENT_START" and ended then
      refuse(path, event, "a second document begins; a file of settings has one")
    elseif event.type == "DOCUMENT_END" then
      ended = true
    elseif event.type == "STREAM_END" then
      return
    end
  end
end

local function is_list(value) return #value > 0 end

local function flatten(path, value, prefix, out)
  local keys = {}
  for key in pairs(value) do
    if type(key) ~= "string" then error(("%s: a key is not a string"):format(path), 0) end
    keys[#keys + 1] = key
  end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local item = value[key]
    local full = prefix .. key
    if type(item) ~= "table" then
      out[#out + 1] = { full, tostring(item) }
    elseif is_list(item) then
      for i, v in ipairs(item) do
        if type(v) == "table" then
          error(("%s: item %d of %s is not a scalar"):format(path, i, full), 0)
        end
        item[i] = tostring(v)
      end
      out[#out + 1] = { full, item }
    elseif next(item) == nil then
      out[#out + 1] = { full, {} }
    else
      flatten(path, item, full .. ".", out)
    end
  end
end

-- The settings of the file at `path`. A file that cannot be read or parsed raises one line.
function M.read(path)
  if path == "" then error("config: the path is empty", 0) end
  local kind = folders.kind(path)
  if kind == "other" then error(("config: %s: not a regular file"):format(path), 0) end
  local text, why = files.read(path)
  if not text then error("config: " .. why .. hints.question(path), 0) end
  return M.parse(path, text)
end

-- The settings of a text; path: for errors.
function M.parse(path, text)
  local library = load_library()
  check_events(path, text)
  local ok, found = pcall(library.load, text, { implicit_scalar = plain_scalar })
  if not ok then
    -- lyaml says "1:5: what is wrong"
    local reason = core.plain(found):gsub("^(%d+):(%d+):%s*", "line %1, column %2: ")
    error(("%s: %s"):format(path, reason), 0)
  end
  if found == nil then return {} end
  if type(found) ~= "table" or is_list(found) then
    local message = "%s: expected keys with values, such as 'worker: { rollout: { n: 8 } }'"
    error(message:format(path), 0)
  end
  local out = {}
  flatten(path, found, "", out)
  -- "a.b: 1" and "a: { b: 1 }" are the same key.
  local seen = {}
  for _, pair in ipairs(out) do
    if seen[pair[1]] then error(("%s: the key '%s' is there twice"):format(path, pair[1]), 0) end
    seen[pair[1]] = true
  end
  return out
end

return M
