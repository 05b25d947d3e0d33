-- arguments.lua - splits a command line into settings: {key, raw value, where it was written}.
--
--   key=value    --key=value    --key value    --flag    config=FILE.yaml
--
-- A boolean written as --flag without a value is true. Other rows can name the value that a bare
-- --key means (row.bare). With is_yaml a value is read as OmegaConf reads it (scalar.lua), else it
-- is the text unchanged. The command line overrides files, wherever config= stands; a later file or
-- argument overrides an earlier one.
-- Leaves out: which keys exist and what they accept; the caller's find(key) -> row or nil knows.

local paths = require "segzero.config.paths"
local scalar = require "segzero.config.scalar"
local values = require "segzero.config.values"
local yaml = require "segzero.config.yaml"

local M = {}

-- The value of a bare --key. nil if the row has no bare form, or if the next word is its value. A
-- number is meant as one, also if the row does not accept it.
local function bare_value(row, next_word)
  if not row then return nil end
  local bare = row.bare
  if row.type == "boolean" then bare = "true" end
  if bare == nil then return nil end
  if next_word and (tonumber(next_word) or values.convert(row, next_word, function() end)) then
    return nil
  end
  return bare
end

-- args[i] -> key, value, the number of words taken.
local function read_word(args, i, find)
  local word = args[i]
  local key, value = word:match "^%-?%-?([%w_][%w_.]*)=(.*)$"
  if key then return key, value, 1 end
  key = word:match "^%-%-([%w_.]+)$"
  if not key then
    local message = "'%s' is not a setting: write key=value or --key value (--help lists the keys)"
    if word:match "^[+~]+[%w_.]+" then
      message = "'%s' is Hydra's way to write a setting: write key=value, without + and ~"
    end
    error(message:format(word), 0)
  end
  local bare = bare_value(find(key), args[i + 1])
  if bare then return key, bare, 1 end
  if args[i + 1] == nil then
    error(("--%s needs a value: write --%s VALUE or %s=VALUE"):format(key, key, key), 0)
  end
  return key, args[i + 1], 2
end

-- A script hands over a list of words; a table with names would be an empty list.
local function check_words(args)
  if type(args) ~= "table" then
    error(("settings are a list such as {'trainer.max_steps=3'}, got %s"):format(tostring(args)), 0)
  end
  for key, word in pairs(args) do
    if type(key) == "string" then
      error(("settings are a list of words: write {'%s=%s'}, not {%s = ...}"):format(key,
        tostring(word), key), 0)
    end
    if type(word) ~= "string" then
      error(("setting %s is %s, not a word such as 'trainer.max_steps=3'"):format(tostring(key),
        tostring(word)), 0)
    end
  end
end

-- Adds key and value, a YAML value. A mapping in braces is one entry for each of its keys, unless
-- the setting is a text.
local function add_yaml(out, key, value, find)
  local row = find(key)
  local parts = not (row and row.type == "text") and scalar.pairs(key, value)
  if not parts then
    out[#out + 1] = { key, scalar.read(value) }
    return
  end
  if #parts == 0 then out[#out + 1] = { key, "{}" } end
  for _, part in ipairs(parts) do out[#out + 1] = { key .. "." .. part[1], part[2] } end
end

-- Returns the list; origin is the YAML file's path, or nil for the command line itself.
function M.list(args, find, is_yaml)
  local out = {}
  local written = {}
  local i = 1
  while i <= #args do
    local key, value, words = read_word(args, i, find)
    if key == "config" and not find "config" then
      value = paths.expand(value)
      for _, pair in ipairs(yaml.read(value)) do out[#out + 1] = { pair[1], pair[2], value } end
    elseif is_yaml then
      add_yaml(written, key, value, find)
    else
      written[#written + 1] = { key, value }
    end
    i = i + words
  end
  for _, entry in ipairs(written) do out[#out + 1] = entry end
  return out
end

-- Looks for --help [PART] in the arguments. Returns true and PART (or nil), else false.
function M.wants_help(args)
  check_words(args)
  for i = 1, #args do
    if args[i] == "--help" or args[i] == "-h" then
      local part = args[i + 1]
      if part and part:match "^%-" then part = nil end
      return true, part
    end
  end
  return false
end

return M
