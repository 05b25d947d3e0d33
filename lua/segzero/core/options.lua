-- options.lua - checks the options table of a public function: an unknown option is an error at the
-- caller's line.
--
--   local options = require "segzero.core.options"
--   local GENERATE = options.set { "n", "temperature", "seed" }
--   function methods:generate(input, opts)
--     opts = options.check("generate", opts, GENERATE, 2)     level as for error(): 2 is the caller,
--                                                             0 leaves the place out
--
-- An unknown option raises
--   generate: unknown option 'max_tokens': did you mean 'max_new_tokens'?
-- nil stands for an empty table. Anything else that is not a table is an error.
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
  if level ~= 0 then level = (level or 1) + 1 end
  if opts == nil then return {} end
  if type(opts) ~= "table" then
    error(("%s: options must be a table, got %s"):format(where, type(opts)), level)
  end
  for key in pairs(opts) do
    if not set.known[key] then
      local name = tostring(key)
      local hint = nearest(name, set.names)
      local question = ""
      if hint then question = (": did you mean '%s'?"):format(hint) end
      error(("%s: unknown option '%s'%s"):format(where, name, question), level)
    end
  end
  return opts
end

return M
