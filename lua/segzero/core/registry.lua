-- registry.lua - named implementations of one seam: built-in ones and those that a user's script registers.
--
--   local schedules = registry.new("schedule", { required = { "fn" }, optional = { "help" } })
--   schedules:register("cosine", { fn = f, help = "half a cosine from 1 to 0" })
--   schedules:get("cosine").fn       an unknown name is an error that lists the known ones and names the nearest
--   schedules:names()                sorted list; what a setting's choices are
--
-- Registering a name again replaces it, so that a script can be reloaded. A spec with unknown fields, or without the
-- required ones, is refused at the caller's line. Leaves out: removal.

local nearest = require "segzero.core.nearest"
local options = require "segzero.core.options"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(kind, fields)
  local all = {}
  for _, name in ipairs(fields.required) do all[#all + 1] = name end
  for _, name in ipairs(fields.optional or {}) do all[#all + 1] = name end
  return setmetatable({ kind = kind, required = fields.required, fields = options.set(all), specs = {} }, mt)
end

function methods:register(name, spec)
  if getmetatable(self) ~= mt then error("register: write registry:register(name, spec)", 2) end
  if type(name) ~= "string" or name == "" then
    error(("%s: a name is expected, got %s"):format(self.kind, tostring(name)), 2)
  end
  local where = ("%s '%s'"):format(self.kind, name)
  if type(spec) ~= "table" then error(("%s: a table is expected, got %s"):format(where, type(spec)), 2) end
  options.check(where, spec, self.fields, 2)
  for _, field in ipairs(self.required) do
    if spec[field] == nil then error(("%s: the field '%s' is missing"):format(where, field), 2) end
    if type(spec[field]) ~= "function" then
      error(("%s: the field '%s' is %s, expected a function"):format(where, field,
        tostring(spec[field])), 2)
    end
  end
  self.specs[name] = spec
end

function methods:has(name) return self.specs[name] ~= nil end

function methods:get(name, level)
  local spec = self.specs[name]
  if spec then return spec end
  local names = self:names()
  local message = ("unknown %s '%s': did you mean '%s'? known: %s"):format(self.kind, tostring(name),
    tostring(nearest(tostring(name), names)), table.concat(names, ", "))
  error(message, (level or 1) + 1)
end

function methods:names()
  local names = {}
  for name in pairs(self.specs) do names[#names + 1] = name end
  table.sort(names)
  return names
end

function mt:__tostring() return ("%s: %s"):format(self.kind, table.concat(self:names(), ", ")) end

return M
