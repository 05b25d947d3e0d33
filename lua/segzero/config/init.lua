-- config - settings by dotted keys: nested tables, and reading a command line.
--
--   config.get(cfg, "worker.rollout.n")         config.set(cfg, "worker.rollout.n", 4)
--   local values = config.flat(cfg)             {["worker.rollout.n"] = 4, ...}
--
--   local cfg = config.read({ steps = 100, name = "run", limit = config.optional "number" }, arg)
--
-- config.read is for short scripts: the type of a default is the type of its setting. Recipes have
-- a schema (schema.lua), which also knows ranges, choices and help.

local schema = require "segzero.config.schema"

local M = {}

local optional_mt = {}

-- A setting without a default: takes a value of this type ("number", "text", ...) or null.
function M.optional(kind) return setmetatable({ kind = kind }, optional_mt) end

local function is_optional(value) return getmetatable(value) == optional_mt end

local function is_branch(value)
  return type(value) == "table" and not is_optional(value) and #value == 0 and next(value)
end

local function flatten(t, prefix, out)
  for key, value in pairs(t) do
    if is_branch(value) and not value.list then
      flatten(value, prefix .. key .. ".", out)
    else
      out[prefix .. key] = value
    end
  end
  return out
end

-- Nested tables as {["a.b.c"] = value}.
function M.flat(cfg) return flatten(cfg, "", {}) end

-- The setting with a dotted key, or nil.
function M.get(cfg, key)
  local value = cfg
  for part in key:gmatch "[^.]+" do
    if type(value) ~= "table" then return nil end
    value = value[part]
  end
  return value
end

M.set = schema.put

local TYPE_NAMES = { number = "number", boolean = "boolean", string = "text", table = "list" }

local function row_of(key, default)
  if is_optional(default) then
    return { key = key, type = TYPE_NAMES[default.kind] or default.kind, optional = true,
      help = "" }
  end
  if type(default) == "table" and default.list then default = {} end
  return { key = key, type = TYPE_NAMES[type(default)], default = default, help = "" }
end

-- defaults: a nested table, or a schema. opts.ignored: {key = why it has no effect}.
-- Returns the settings, and {[key] = true} for those that the user gave.
function M.read(defaults, args, opts)
  if schema.is(defaults) then return defaults:read(args) end
  local rows = {}
  for key, default in pairs(M.flat(defaults)) do rows[#rows + 1] = row_of(key, default) end
  table.sort(rows, function(a, b) return a.key < b.key end)
  local ignored = opts and opts.ignored
  local groups = { { title = "Settings", rows = rows } }
  return schema.new({ name = "settings", groups = groups, ignored = ignored }):read(args)
end

return M
