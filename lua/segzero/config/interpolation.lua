-- interpolation.lua - fills ${...} in values of a YAML file or of the command line, as OmegaConf
-- does.
--
--   ${trainer.project_name}      the value of another key, as it is after all files and arguments
--   ${.name}  ${..name}          a key next to this one, and one level up
--   ${oc.env:HOME}               an environment variable; ${oc.env:HOME,/root} with a default
--   ${oc.select:key,default}     another key, or the default if it is not set
--   \${x}                        stays ${x}
--
--   interpolation.fill(entries, in_words, default_of)    changes the values of entries = {{key,
--       value, origin}, ...}; those without an origin are words of the command line, and are left
--       as they are unless in_words is true; default_of(key) -> text or nil
--
-- A key that nothing sets, a variable that is not set and a circle are errors in one line with the
-- place. Leaves out: other resolvers of Hydra (${now:...}), which are refused.

local visible = require "segzero.core.visible"

local M = {}

local MOST_LEVELS = 50

local function fail(entry, message, ...)
  local place = entry[3]
  local lead = ""
  if place then lead = place .. ": " end
  error(("%s%s: %s"):format(lead, entry[1], message:format(...)), 0)
end

-- "a.b.c" and ".d" -> "a.b.d"; "..d" -> "a.d".
local function absolute(key, reference)
  local dots, name = reference:match "^(%.+)(.*)$"
  if not dots then return (reference:gsub("%[([%w_]+)%]", ".%1")) end
  local parent = key
  for _ = 1, #dots do parent = parent:match "^(.*)%.[^.]+$" or "" end
  if parent == "" then return name end
  return parent .. "." .. name
end

-- "NAME,default" -> "NAME", "default" (nil without one).
local function with_default(text)
  local name, default = text:match "^([^,]*),(.*)$"
  if not name then return text, nil end
  return name:match "^%s*(.-)%s*$", default:match "^%s*(.-)%s*$"
end

local methods = {}
local mt = { __index = methods }

function methods:value_of(key, level)
  local found = self.last[key]
  if found then return self:filled(found, level + 1) end
  return self.default_of(key)
end

function methods:resolve(entry, inside, level)
  local resolver, argument = inside:match "^([%w_.]+):(.*)$"
  if resolver == "oc.env" then
    local name, default = with_default(argument)
    local value = os.getenv(name) or default
    if not value then fail(entry, "the environment variable %s is not set", visible.line(name)) end
    return value
  end
  if resolver and resolver ~= "oc.select" then
    local message = "${%s} is not supported: write the value (${oc.env:NAME} and ${other.key} " ..
      "are read)"
    fail(entry, message, visible.line(inside))
  end
  local reference, default = inside, nil
  if resolver then reference, default = with_default(argument) end
  local value = self:value_of(absolute(entry[1], reference:match "^%s*(.-)%s*$"), level)
  if value == nil then value = default end
  if value == nil then
    fail(entry, "${%s} names a key that nothing sets", visible.line(inside))
  end
  return value
end

-- Fills a text; a text that is one ${...} becomes that value, which may be a list.
function methods:fill_text(entry, text, level)
  if level > MOST_LEVELS then fail(entry, "it stands for itself: %s", visible.line(text)) end
  while true do
    -- The innermost one comes first.
    local first, last, inside = text:gsub("\\%${", "\\\1{"):find "%${([^${}]*)}"
    if not first then return (text:gsub("\\%${", "${")) end
    local value = self:resolve(entry, inside, level)
    if type(value) == "table" then
      if first == 1 and last == #text then return value end
      fail(entry, "${%s} is a list", visible.line(inside))
    end
    text = text:sub(1, first - 1) .. value .. text:sub(last + 1)
  end
end

function methods:filled(entry, level)
  local value = entry[2]
  if not entry[3] and not self.in_words then return value end
  if type(value) == "string" then
    if not value:find("${", 1, true) then return value end
    return self:fill_text(entry, value, level)
  end
  local list = {}
  for i, item in ipairs(value) do list[i] = self:fill_text(entry, item, level) end
  return list
end

function M.fill(entries, in_words, default_of)
  local last = {}
  for _, entry in ipairs(entries) do last[entry[1]] = entry end
  local self = setmetatable({ last = last, in_words = in_words, default_of = default_of }, mt)
  local values = {}
  for i, entry in ipairs(entries) do values[i] = self:filled(entry, 0) end
  for i, entry in ipairs(entries) do entry[2] = values[i] end
end

return M
