-- schema.lua - the settings of one program: a row for each, from which parsing, checks, errors,
-- --help and documentation follow.
--
--   local demo = schema.new {
--     name = "my_recipe.lua", about = "One sentence.", usage = { "[key=value ...]" },
--     groups = { { title = "Sampling", rows = {
--       { key = "rollout.n", type = "count", default = 8, help = "answers per prompt" },
--       { key = "rollout.top_p", type = "number", default = 1, above = 0, max = 1, help = "..." },
--     } } },
--     ignored = { ["trainer.nnodes"] = "one process", ["worker.critic.*"] = "there is no critic" },
--     checks = { function(cfg) ... end },
--   }
--   local cfg, given = demo:read(arg)    cfg.rollout.n; given["rollout.n"] when the user set it
--   demo:check(cfg)                      the checks between settings
--   demo:help(part)                      text: the rows whose key contains part
--
-- Row fields: key, type, default, help, and those of values.lua; also = other names of the key;
-- unit, for the help; bare, the value of --key without a value. A misspelt key is an error that
-- names the nearest one; keys in `ignored`, `means` and `hints` are as foreign.lua describes. All errors are one line
-- without a position, because they are the user's mistakes.
-- Leaves out: what a recipe derives from the settings (config/grpo.lua and the others do that).

local foreign_key = require "segzero.config.foreign_key"
local options = require "segzero.core.options"
local arguments = require "segzero.config.arguments"
local visible = require "segzero.core.visible"
local values = require "segzero.config.values"

local M = {}

local ROW = options.set { "key", "type", "default", "help", "min", "max", "above", "below",
  "multiple", "choices", "elsewhere", "optional", "null", "joined", "also", "unit", "bare" }
local SPEC = options.set { "name", "about", "usage", "notes", "groups", "ignored", "means",
  "hints", "checks" }

-- Options that the host program reads before the script's name only.
local HOST_OPTIONS = { threads = true, device = true, version = true, e = true }

local methods = {}
local mt = { __index = methods }

function M.is(value) return getmetatable(value) == mt end

-- Sets a dotted key of a nested table.
function M.put(t, key, value)
  local parent = t
  for part in key:gmatch "([^.]+)%." do
    parent[part] = parent[part] or {}
    parent = parent[part]
  end
  parent[key:match "[^.]+$"] = value
end

local function copy(value)
  if type(value) ~= "table" then return value end
  local out = {}
  for k, v in pairs(value) do out[k] = copy(v) end
  return out
end

local function add_row(self, row)
  options.check("a setting's row", row, ROW, 3)
  if not values.TYPES[row.type] then
    error(("setting '%s': unknown type '%s'"):format(row.key, tostring(row.type)), 3)
  end
  if not row.help then error(("setting '%s' has no help"):format(row.key), 3) end
  if self.by_key[row.key] then error(("setting '%s' has two rows"):format(row.key), 3) end
  self.by_key[row.key] = row
  self.rows[#self.rows + 1] = row
  for _, name in ipairs(row.also or {}) do self.by_key[name] = row end
end

function M.new(spec)
  options.check("schema", spec, SPEC, 2)
  local self = setmetatable({ name = spec.name, about = spec.about or "",
    usage = spec.usage or { "[key=value ...]" },
    notes = spec.notes or {}, groups = spec.groups, ignored = spec.ignored or {},
    means = spec.means or {}, hints = spec.hints or {}, checks = spec.checks or {}, rows = {}, by_key = {} }, mt)
  for _, group in ipairs(spec.groups) do
    for _, row in ipairs(group.rows) do add_row(self, row) end
  end
  return self
end

-- The same settings for another program. defaults, optional: {[key] = value} that differ.
function methods:renamed(name, about, usage, defaults)
  local groups = {}
  for g, group in ipairs(self.groups) do
    groups[g] = { title = group.title, rows = {} }
    for i, row in ipairs(group.rows) do
      local value = (defaults or {})[row.key]
      if value ~= nil then
        row = copy(row)
        row.default = value
      end
      groups[g].rows[i] = row
    end
  end
  return M.new { name = name, about = about, usage = usage or self.usage, notes = self.notes,
    groups = groups, ignored = self.ignored, checks = self.checks }
end

-- The row of a key or of one of its other names; nil if there is none.
function methods:find(key) return self.by_key[key] end

local function unknown(self, key, raw)
  if HOST_OPTIONS[key] then
    local message = "--%s is an option of segzero itself and must stand before the script: " ..
      "segzero --%s %s %s ..."
    error(message:format(key, key, tostring(raw), self.name), 0)
  end
  error(foreign_key.unknown(self, key), 0)
end

-- The defaults as nested tables.
function methods:defaults()
  local cfg = {}
  for _, row in ipairs(self.rows) do M.put(cfg, row.key, copy(row.default)) end
  return cfg
end

-- Reads a command line (a list of words). Returns the settings as nested tables, and
-- {[key] = true} for those that were given. Each value is checked; the caller calls self:check(cfg)
-- for the checks between settings. --help among the words prints the help and ends the program.
function methods:read(args)
  args = args or {}
  local help, part = arguments.wants_help(args)
  if help then
    io.write(self:help(part), "\n")
    io.flush()
    os.exit(0)
  end
  local cfg, given, noted = self:defaults(), {}, {}
  local function note(text)
    if not noted[text] then io.stderr:write("note: ", visible.line(text, 400), "\n") end
    noted[text] = true
  end
  local function find(key) return self.by_key[key] end
  local function set(row, raw, origin)
    local ok, value = values.convert(row, raw, note)
    if not ok and origin then value = origin .. ": " .. value end
    if not ok then error(value, 0) end
    M.put(cfg, row.key, value)
    given[row.key] = true
  end
  for _, entry in ipairs(arguments.list(args, find)) do
    local key, raw, origin = unpack(entry, 1, 3)
    local row = self.by_key[key]
    local other = not row and foreign_key.read(self, key, raw)
    if row then
      set(row, raw, origin)
    elseif not other then
      unknown(self, key, raw)
    elseif other.refused then
      error(other.refused, 0)
    else
      note(other.note)
      for _, setting in ipairs(other.settings or {}) do set(self.by_key[setting[1]], setting[2]) end
    end
  end
  return cfg, given
end

-- Runs the checks between settings. Each is a function (cfg) that raises one line.
function methods:check(cfg)
  for _, check in ipairs(self.checks) do check(cfg) end
  return cfg
end

-- Help for a terminal. part: shows only keys that contain it.
function methods:help(part) return require("segzero.config.help").text(self, part) end

-- A Markdown section for docs/settings.md.
function methods:markdown() return require("segzero.config.help").markdown(self) end

return M
