-- options.lua - checks the options table of a public function: an unknown option is an error at the
-- caller's line.
--
--   local options = require "segzero.core.options"
--   local GENERATE = options.set { "n", "temperature", "seed" }
--   function methods:generate(input, opts)
--     opts = options.check("generate", opts, GENERATE, 2)     level as for error(): 2 is the
--                                                             caller, 0 leaves the place out
--
--   M.load = options.at_most("image.load", 1, M.load)        a function without options: refuses
--                                                            a second argument
--   options.limit(methods, { forward = 1, logprobs = 2 })    the same for methods; self not counted
--
-- An unknown option raises
--   generate: unknown option 'max_tokens': did you mean 'max_new_tokens'?
-- and an argument too many
--   forward: unknown option 'temperature': forward takes at most 1 argument
--   save: takes at most 1 argument, got 90 as well
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
      local question = nearest.question(name, set.names)
      if question == "" then question = "; options: " .. table.concat(set.names, ", ") end
      error(("%s: unknown option '%s'%s"):format(where, name, question), level)
    end
  end
  return opts
end

-- ---- functions without options ----
local function arguments(most)
  if most == 0 then return "no argument" end
  if most == 1 then return "at most 1 argument" end
  return ("at most %d arguments"):format(most)
end

-- Raises for the first of these arguments that is not nil. Level as for error().
local function refuse(where, most, level, ...)
  for i = 1, select("#", ...) do
    local extra = select(i, ...)
    local key
    if type(extra) == "table" then key = next(extra) end
    if type(key) == "string" then
      error(("%s: unknown option '%s': %s takes %s"):format(where, key, where, arguments(most)),
        level + 1)
    end
    if extra ~= nil then
      local what = tostring(extra)
      if type(extra) == "table" then what = "a table" end
      error(("%s: takes %s, got %s as well"):format(where, arguments(most), what), level + 1)
    end
  end
end

-- f, which raises at the caller's line if it gets more than `most` arguments. hidden: how many come
-- before those (1 for a method's self). f is called in tail position, so that its own errors still
-- blame the caller.
function M.at_most(where, most, f, hidden)
  local limit = most + (hidden or 0)
  return function(...)
    if select("#", ...) > limit then refuse(where, most, 2, select(limit + 1, ...)) end
    return f(...)
  end
end

-- limits: {method's name -> number of arguments}. Names that the table lacks are left out.
function M.limit(methods, limits)
  for name, most in pairs(limits) do
    if methods[name] then methods[name] = M.at_most(name, most, methods[name], 1) end
  end
  return methods
end

return M
