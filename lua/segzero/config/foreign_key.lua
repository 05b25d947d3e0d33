-- foreign_key.lua - what becomes of a key that the schema has no row for, by the tables of
-- foreign.lua.
--
--   local found = foreign_key.read(schema, key, raw)     nil if no table knows the key
--     found.note          accepted: what to tell the user
--     found.settings      {{key, value}, ...} that it means
--     found.refused       the error
--   foreign_key.describe(schema, key)                    what docs/settings.md says of it
--   foreign_key.unknown(schema, key)                     the error for a key that nobody knows
--
-- raw: the value as text, or a list from YAML. Leaves out: the tables (foreign.lua).

local nearest = require "segzero.core.nearest"
local visible = require "segzero.core.visible"

local M = {}

local NULLS = { null = true, none = true, ["~"] = true }

-- A value in one spelling: "[0.9, 0.999]" and a YAML list are "0.9,0.999".
local function normal(raw)
  if type(raw) == "table" then raw = table.concat(raw, ",") end
  local text = raw:lower():gsub("^[%[(](.*)[%])]$", "%1"):gsub("%s", "")
  if NULLS[text] then return "null" end
  return text
end

-- entries[key], or that of "a.b.*" for a key below a.b.
local function find(entries, key)
  if entries[key] then return entries[key] end
  local parent = key:match "^(.*)%.[^.]+$"
  while parent do
    if entries[parent .. ".*"] then return entries[parent .. ".*"] end
    parent = parent:match "^(.*)%.[^.]+$"
  end
  return nil
end

local function shown(settings)
  local words = {}
  for i, setting in ipairs(settings) do words[i] = setting[1] .. "=" .. setting[2] end
  return table.concat(words, " ")
end

local function is_one_of(value, list)
  for _, one in ipairs(list) do
    if one == value then return true end
  end
  return false
end

function M.read(schema, key, raw)
  local value = normal(raw)
  local settings = schema.means[key] and schema.means[key][value]
  if settings then
    return { settings = settings, note = ("%s=%s is read as %s"):format(key, value,
      shown(settings)) }
  end
  local ignored = find(schema.ignored, key)
  if not ignored then return nil end
  local why = ignored
  if type(ignored) == "table" then
    why = ignored[1]
    if not is_one_of(value, ignored.only) then
      local text = raw
      if type(raw) == "table" then text = "[" .. table.concat(raw, ", ") .. "]" end
      return { refused = ("%s=%s is not supported: %s"):format(key, text, why) }
    end
  end
  return { note = ("%s has no effect here: %s"):format(key, why) }
end

-- A key of `ignored` in a sentence, for the documentation.
function M.describe(schema, key)
  local ignored = schema.ignored[key]
  local text = ignored
  if type(ignored) == "table" then
    text = ("%s; taken: %s"):format(ignored[1], table.concat(ignored.only, ", "))
  end
  local values = {}
  for value in pairs(schema.means[key] or {}) do values[#values + 1] = value end
  table.sort(values)
  for _, value in ipairs(values) do
    text = ("%s; %s is read as %s"):format(text, value, shown(schema.means[key][value]))
  end
  return text
end

-- Keys below `key`: it is the name of a group.
local function is_group(schema, key)
  for name in pairs(schema.by_key) do
    if name:sub(1, #key + 1) == key .. "." then return true end
  end
  return false
end

function M.unknown(schema, key)
  local hint = find(schema.hints, key)
  local written = visible.line(key)
  if hint then return ("unknown setting '%s': %s (--help lists all)"):format(written, hint) end
  if is_group(schema, key) then
    return ("unknown setting '%s': it is a group; --help %s lists its settings"):format(key, key)
  end
  local candidates = {}
  for name in pairs(schema.by_key) do candidates[#candidates + 1] = name end
  table.sort(candidates)
  return ("unknown setting '%s'%s (--help lists all)"):format(written,
    nearest.question(key, candidates))
end

return M
