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
--     foreign = { {key =, ...}, ... }, derive = function(state) ... end,
--     checks = { function(cfg) ... end },
--     yaml_words = true,               values of the command line are read as OmegaConf reads them
--   }
--   local cfg, given = demo:read(arg)    cfg.rollout.n; given["rollout.n"] when the user set it
--   demo:check(cfg)                      the checks between settings
--   demo:help(part)                      text: the rows whose key contains part
--
-- Row fields: key, type, default, help, and those of values.lua; also = other names of the key;
-- unit, for the help; bare, the value of --key without a value. A misspelt key is an error that
-- names the nearest one. Keys of other programs have rows in `foreign` (foreign/keys.lua);
-- `ignored` is short for rows with a note. derive sets what follows from all settings together
-- (foreign/dialects.lua says what it gets). All errors are one line without a position, because
-- they are the user's mistakes.
-- Leaves out: what a recipe derives from the settings (config/grpo.lua and the others do that).

local foreign_key = require "segzero.config.foreign.reading"
local interpolation = require "segzero.config.interpolation"
local options = require "segzero.core.options"
local arguments = require "segzero.config.arguments"
local scalar = require "segzero.config.scalar"
local visible = require "segzero.core.visible"
local values = require "segzero.config.values"

local M = {}

local ROW = options.set { "key", "type", "default", "help", "min", "max", "above", "below",
  "multiple", "choices", "elsewhere", "optional", "null", "joined", "also", "unit", "bare", "path",
  "spellings", "refusals" }
local SPEC = options.set { "name", "about", "usage", "notes", "groups", "ignored", "foreign",
  "derive", "checks", "yaml_words" }

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

-- The rows of other programs' keys by key.
local function foreign_rows(spec)
  local rows = {}
  for _, row in ipairs(spec.foreign or {}) do
    if rows[row.key] then error(("the key '%s' has two rows"):format(row.key), 3) end
    rows[row.key] = row
  end
  for key, why in pairs(spec.ignored or {}) do rows[key] = { key = key, note = why } end
  return rows
end

function M.new(spec)
  options.check("schema", spec, SPEC, 2)
  local self = setmetatable({ name = spec.name, about = spec.about or "",
    usage = spec.usage or { "[key=value ...]" }, notes = spec.notes or {}, groups = spec.groups,
    foreign = foreign_rows(spec), spec = spec, derive = spec.derive, checks = spec.checks or {},
    rows = {}, by_key = {} }, mt)
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
    groups = groups, ignored = self.spec.ignored, foreign = self.spec.foreign,
    derive = self.derive, checks = self.checks, yaml_words = self.spec.yaml_words }
end

-- The row of a key or of one of its other names; nil if there is none.
function methods:find(key) return self.by_key[key] end

-- The mapping that a key belongs to, and its name there; nil if there is none.
function methods:find_mapping(key)
  local group = key:match "^(.*)%.[^.]+$"
  while group do
    local row = self.by_key[group]
    if row and row.type == "mapping" then return row, key:sub(#group + 2) end
    group = group:match "^(.*)%.[^.]+$"
  end
  return nil
end

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

-- ---- reading ----
local reader = {}
local reader_mt = { __index = reader }

function reader:note(text)
  if not self.noted[text] then io.stderr:write("note: " .. visible.line(text, 800) .. "\n") end
  self.noted[text] = true
end

-- Keys without effect are said at the end, those of one reason together.
function reader:note_without_effect(key, why)
  local keys = self.reasons[why]
  if not keys then
    keys = {}
    self.reasons[why] = keys
    self.reasons[#self.reasons + 1] = why
  end
  if not keys[key] then keys[#keys + 1] = key end
  keys[key] = true
end

function reader:say_without_effect()
  for _, why in ipairs(self.reasons) do
    local keys = self.reasons[why]
    local has = #keys == 1 and "has" or "have"
    self:note(("%s %s no effect here: %s"):format(table.concat(keys, ", "), has, why))
  end
end

function reader:set(row, raw, origin)
  local ok, value = values.convert(row, raw, function(text) self:note(text) end)
  if not ok and origin then value = origin .. ": " .. value end
  if not ok then error(value, 0) end
  M.put(self.cfg, row.key, value)
  self.given[row.key] = true
end

-- A group of a YAML file that has no settings: null, or {} as in a run's config.json.
local function is_empty(raw) return raw == "null" or (type(raw) == "table" and #raw == 0) end

-- A key of another program. Only the last of its values counts: another one may not be allowed.
function reader:set_foreign(entry)
  local key, raw, origin = unpack(entry, 1, 3)
  local found = foreign_key.read(self.schema, key, raw)
  if not found and origin and is_empty(raw) and foreign_key.is_group(self.schema, key) then
    return
  end
  if not found then return unknown(self.schema, key, raw) end
  if self.last[key] ~= entry then return end
  if found.refused then
    local place = origin and origin .. ": " or ""
    error(place .. found.refused, 0)
  end
  if found.note then self:note(found.note) end
  if found.why then self:note_without_effect(key, found.why) end
  if found.kept ~= nil then self.kept[key] = found.kept end
  for _, setting in ipairs(found.settings or {}) do
    self:set(self.schema:find(setting[1]), setting[2], origin)
  end
end

function reader:read(entry)
  local key, raw, origin = unpack(entry, 1, 3)
  self.raw[key] = raw
  if origin then
    self.files[origin] = self.files[origin] or {}
    self.files[origin][key] = true
  end
  local row = self.schema:find(key)
  if row then return self:set(row, raw, origin) end
  local mapping, name = self.schema:find_mapping(key)
  if not mapping then return self:set_foreign(entry) end
  local value = raw
  if type(raw) == "string" then value = scalar.typed(raw) end
  M.put(self.cfg, mapping.key .. "." .. name, value)
  self.given[mapping.key] = true
end

-- The entries with ${...} filled in, and the last one of each key.
local function entries_of(self, args)
  local is_yaml = self.spec.yaml_words
  local entries = arguments.list(args, function(key) return self:find(key) end, is_yaml)
  interpolation.fill(entries, is_yaml, function(key)
    local row = self:find(key)
    return row and values.text(row.default)
  end)
  local last = {}
  for _, entry in ipairs(entries) do last[entry[1]] = entry end
  return entries, last
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
  local entries, last = entries_of(self, args)
  local state = setmetatable({ schema = self, cfg = self:defaults(), given = {}, noted = {},
    raw = {}, kept = {}, files = {}, last = last, reasons = {} }, reader_mt)
  for _, entry in ipairs(entries) do state:read(entry) end
  if self.derive then
    self.derive {
      cfg = state.cfg, given = state.given, raw = state.raw, kept = state.kept,
      files = state.files,
      set = function(key, text) state:set(self:find(key), text) end,
      note = function(text) state:note(text) end,
    }
  end
  state:say_without_effect()
  return state.cfg, state.given
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
