-- options.lua - the options table of a public function: an unknown field is an error at the caller's line.
--
--   local options = require "segzero.core.options"
--   local GENERATE = options.set { "n", "temperature", "seed" }
--   function methods:generate(input, opts)
--     opts = options.check("generate", opts, GENERATE, 2)        level as for error(): 2 is the caller's line
--
-- A field that is not known raises
--   generate: unknown option 'max_tokens': did you mean 'max_new_tokens'?
-- No options at all (nil) are an empty table. Anything but a table is an error.
-- Leaves out: types and ranges of the values, which the function itself checks.

local nearest = require "segzero.core.nearest"

local M = {}

-- A list of names as a set that remembers its order.
function M.set(names)
  local set = { names = names, known = {} }
  for _, name in ipairs(names) do set.known[name] = true end
  return set
end

function M.check(where, opts, set, level)
  level = (level or 1) + 1
  if opts == nil then return {} end
  if type(opts) ~= "table" then
    error(("%s: options are a table, got %s"):format(where, type(opts)), level)
  end
  for key in pairs(opts) do
    if not set.known[key] then
      local name = tostring(key)
      local hint = nearest(name, set.names)
      local question = hint and (": did you mean '%s'?"):format(hint) or ""
      error(("%s: unknown option '%s'%s"):format(where, name, question), level)
    end
  end
  return opts
end

return M
