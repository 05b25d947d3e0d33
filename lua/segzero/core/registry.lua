-- registry.lua - named implementations of one seam: built-in ones, and those that a script
-- registers.
--
--   local schedules = registry.new("schedule", { required = { "fn" }, optional = { "help" } })
--   schedules:register("cosine", { fn = f, help = "a half cosine from 1 to 0" })
--   schedules:get("cosine").fn       an unknown name is an error that lists the known names
--   schedules:names()                sorted list: the choices of a setting
--
-- Registering a name again replaces it, so a script can be reloaded. A spec with an unknown field,
-- or without a required one, is an error at the caller's line.
-- Leaves out: removing a name.

local nearest = require "segzero.core.nearest"
local options = require "segzero.core.options"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(kind, fields)
  local all = {}
  for _, name in ipairs(fields.required) do all[#all + 1] = name end
  for _, name in ipairs(fields.optional or {}) do all[#all + 1] = name end
  local self = { kind = kind, required = fields.required, fields = options.set(all), specs = {} }
  return setmetatable(self, mt)
end

function methods:register(name, spec)
  if getmetatable(self) ~= mt then error("register: write registry:register(name, spec)", 2) end
  if type(name) ~= "string" or name == "" then
    error(("%s: a name is expected, got %s"):format(self.kind, tostring(name)), 2)
  end
  local where = ("%s '%s'"):format(self.kind, name)
  if type(spec) ~= "table" then
    error(("%s: a table is expected, got %s"):format(where, type(spec)), 2)
  end
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
  local wrong = tostring(name)
  local message = "unknown %s '%s'%s known: %s"
  local question = nearest.question(wrong, names)
  if question == "" then question = ";" end
  error(message:format(self.kind, wrong, question, table.concat(names, ", ")), (level or 1) + 1)
end

function methods:names()
  local names = {}
  for name in pairs(self.specs) do names[#names + 1] = name end
  table.sort(names)
  return names
end

function mt:__tostring() return ("%s: %s"):format(self.kind, table.concat(self:names(), ", ")) end

return M
