-- reading.lua - what becomes of a key that the schema has no row for, by the table of keys.lua.
--
--   local found = reading.read(schema, key, raw)     nil if no row knows the key
--     found.why           accepted without effect: the reason
--     found.note          accepted: what to tell the user
--     found.settings      {{key, value}, ...} that it means
--     found.kept          the value, for dialects.lua
--     found.refused       the error
--   reading.describe(row)                            what the documentation says: here, reason
--   reading.is_group(schema, key)                    whether settings have names below this key
--   reading.unknown(schema, key)                     the error for a key that nobody knows
--
-- raw: the value as text, or a list from YAML. Leaves out: the rows (keys.lua).

local nearest = require "segzero.core.nearest"
local values = require "segzero.config.values"
local visible = require "segzero.core.visible"

local M = {}

local NULLS = { null = true, none = true, ["~"] = true }

local function joined(raw)
  if type(raw) == "table" then return table.concat(raw, ",") end
  return raw
end

-- A value in one spelling: "[0.9, 0.999]" and a YAML list are "0.9,0.999".
local function normal(raw)
  local text = joined(raw):lower():gsub("^[%[(](.*)[%])]$", "%1"):gsub("[%s'\"]", "")
  if NULLS[text] then return "null" end
  return text
end

-- The row of the key, or that of "a.b.*" for a.b and a key below it.
local function find(rows, key)
  if rows[key] or rows[key .. ".*"] then return rows[key] or rows[key .. ".*"] end
  local parent = key:match "^(.*)%.[^.]+$"
  while parent do
    if rows[parent .. ".*"] then return rows[parent .. ".*"] end
    parent = parent:match "^(.*)%.[^.]+$"
  end
  return nil
end

-- The row that a key below "a.b.*" is a misspelling of, or nil.
local function misspelt(rows, key)
  if rows[key] or rows[key .. ".*"] then return nil end
  local parent = key:match "^(.*)%.[^.]+$"
  local names = {}
  for name in pairs(rows) do
    if name:match "^(.*)%.[^.*]+$" == parent then names[#names + 1] = name end
  end
  table.sort(names)
  return nearest(key, names)
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

-- "[a,b]" -> {"a", "b"}
local function list_of(value)
  local list = {}
  for item in value:gmatch "[^,]+" do list[#list + 1] = item end
  return list
end

local function refused(key, raw, why)
  local text = joined(raw)
  if type(raw) == "table" then text = "[" .. text .. "]" end
  return { refused = ("%s=%s is not supported: %s"):format(key, visible.line(text), why) }
end

local function as_settings(key, value, settings)
  local note = ("%s=%s is read as %s"):format(key, value, shown(settings))
  return { settings = settings, note = note }
end

local function keep(row, key, raw)
  local ok, value = values.convert({ key = key, type = row.kept }, raw, function() end)
  if ok then return { kept = value } end
  return { refused = value }
end

function M.read(schema, key, raw)
  local row = find(schema.foreign, key)
  if not row then return nil end
  local meant = row.note and misspelt(schema.foreign, key)
  if meant then
    local written = visible.line(key)
    return { refused = ("unknown setting '%s': did you mean '%s'?"):format(written, meant) }
  end
  if row.kept then return keep(row, key, raw) end
  local value = normal(raw)
  local settings = row.reads and row.reads[value]
  if settings then return as_settings(key, value, settings) end
  if row.convert then
    local found, why = row.convert(list_of(value))
    if not found then return refused(key, raw, why) end
    return as_settings(key, value, found)
  end
  if row.note and (not row.only or is_one_of(value, row.only)) then
    return { why = row.note }
  end
  return refused(key, raw, row.refuse)
end

-- ---- documentation ----
local function read_as(row)
  local lines = {}
  local names = {}
  for value in pairs(row.reads or {}) do names[#names + 1] = value end
  table.sort(names)
  for _, value in ipairs(names) do
    lines[#lines + 1] = ("`%s`: `%s`"):format(value, shown(row.reads[value]))
  end
  if row.does then lines[#lines + 1] = row.does end
  return table.concat(lines, "; ")
end

-- Three columns: what it means here, which values are accepted without effect and why, what is
-- refused and what to write instead.
function M.describe(row)
  local accepted = row.note or ""
  if row.note and row.only then
    accepted = ("`%s`: %s"):format(table.concat(row.only, "`, `"):gsub("``", "(empty)"), row.note)
  end
  return read_as(row), accepted, row.refuse or ""
end

-- ---- unknown keys ----
-- Keys below `key`: it is the name of a group.
function M.is_group(schema, key)
  for name in pairs(schema.by_key) do
    if name:sub(1, #key + 1) == key .. "." then return true end
  end
  return false
end

-- Options of the program that are often written among the settings.
local PROGRAM = { device = true, ranks = true, threads = true }

function M.unknown(schema, key)
  local written = visible.line(key)
  if PROGRAM[key] then
    local line = "unknown setting '%s': segzero's option --%s goes before the command or script"
    return line:format(key, key)
  end
  if M.is_group(schema, key) then
    return ("unknown setting '%s': it is a group; --help %s lists its settings"):format(key, key)
  end
  local parent = key:match "^(.*)%.[^.]+$"
  if parent and schema:find(parent) then
    return ("unknown setting '%s': %s is one value; write %s=VALUE"):format(written, parent, parent)
  end
  local candidates = {}
  for name in pairs(schema.by_key) do candidates[#candidates + 1] = name end
  table.sort(candidates)
  return ("unknown setting '%s'%s (--help lists all)"):format(written,
    nearest.question(key, candidates))
end

return M
