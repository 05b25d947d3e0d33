-- split.lua - a model that is split over the shards of a group: each has a slice of most weights,
-- and together they write the files that one process would write.
--
--   local shards = split.read(value, level)
--       sz.model's option shards: a group of core/ranks.lua, another model's shards, or {count =,
--       index =} without a group, for counting and for tests
--       -> {count =, index = from 0, group =}; nil for one shard
--   split.deal(list, replica) -> {false or true, ...}
--       list: {{tensor =, copies =, copy =}, ...}; true: another rank has the same part and writes
--       it. One of them does, the one with the fewest elements so far, which all work out alike.
--       replica: {index =, count =}, where several replicas of the model write one file; nil: one
--   split.described(list, replica) -> {name -> parts.new}
--       the same of {{name =, tensor =, full =, slice =, copies =, copy =}, ...}, for a file
--   split.save(model, dir, write)
--       all shards of one replica call it: write(opts) writes the model's files, with opts.later,
--       opts.part and opts.columns of safetensors_write.lua. What fails on one shard is an error on
--       all
--
-- full: the whole weight's shape; slice: parts.lua's, nil: whole; copies, copy: how many shards
-- have the same slice, and which of them this is. Leaves out: loading (weights.lua), checkpoints of
-- training (train/run/checkpoint.lua).

local columns = require "segzero.models.columns"
local core = require "segzero.core.ffi"
local folders = require "segzero.core.folders"
local jobs = require "segzero.core.jobs"
local options = require "segzero.core.options"
local parts = require "segzero.formats.parts"

local M = {}

local SHARDS = options.set { "count", "index", "group" }

local function is_count(n) return type(n) == "number" and n % 1 == 0 and n >= 1 end

local function is_group(t) return type(t) == "table" and type(t.size) == "function" end

function M.read(value, level)
  if value == nil then return nil end
  level = level + 1
  if type(value) ~= "table" then
    error(("shards: a group of ranks is expected, got a %s"):format(type(value)), level)
  end
  local shards
  if is_group(value) then
    shards = { count = value:size(), index = value:rank(), group = value }
  else
    options.check("shards", value, SHARDS, level)
    shards = { count = value.count, index = value.index, group = value.group }
  end
  local fits = is_count(shards.count) and type(shards.index) == "number" and shards.index % 1 == 0
    and shards.index >= 0 and shards.index < shards.count
  if shards.group ~= nil and not is_group(shards.group) then
    error("shards: group is not a group of ranks", level)
  end
  if not fits then
    error(("shards: index %s of %s shards is not one of them"):format(tostring(shards.index),
      tostring(shards.count)), level)
  end
  if shards.count == 1 then return nil end
  return shards
end

-- ---- who writes what ----
local ONE = { index = 0, count = 1 }

function M.deal(list, replica)
  replica = replica or ONE
  local loads = {}              -- elements so far, by how many ranks have the same part
  local elsewhere = {}
  for i, one in ipairs(list) do
    local count = one.copies * replica.count
    local own = one.copy + one.copies * replica.index
    loads[count] = loads[count] or {}
    local taken = loads[count]
    local least = 0
    for k = 1, count - 1 do
      if (taken[k] or 0) < (taken[least] or 0) then least = k end
    end
    taken[least] = (taken[least] or 0) + one.tensor:numel()
    elsewhere[i] = least ~= own
  end
  return elsewhere
end

function M.described(list, replica)
  local elsewhere = M.deal(list, replica)
  local out = {}
  for i, one in ipairs(list) do
    out[one.name] = parts.new { shape = one.full, dtype = one.tensor:dtype(), slice = one.slice,
      part = one.tensor, elsewhere = elsewhere[i] }
  end
  return out
end

-- ---- saving by all shards ----
-- What fails on one shard is the same error on all; the shard's own comes first.
local function together(group, f)
  local ok, why = pcall(f)
  local all = group:gather { failure = not ok and core.plain(tostring(why)) or nil }
  if not ok then error(why, 0) end
  for r, one in ipairs(all) do
    if one.failure then error(("rank %s: %s"):format(group:name(r - 1), one.failure), 0) end
  end
end

local function finish(job)
  local ok, message = job:wait()
  job:free()
  if not ok then error(message, 0) end
end

-- This shard's parts. A failed exchange of columns leaves no way to agree.
local function write_own(group, write)
  local writing = jobs.writing()
  local own = columns.new(function(...) return group:columns_to_rows(...) end)
  write { later = writing, part = true, columns = own }
  together(group, function()
    own:check()
    finish(writing:start())
  end)
end

-- The steps, each of which all shards have ended before the next begins.
local function save(shards, writing, write)
  local is_first = shards.index == 0
  together(shards.group, function()
    if not is_first then return end
    write { later = writing }
    writing:make_shared()
  end)
  write_own(shards.group, write)
  together(shards.group, function()
    if not is_first then return end
    writing:finish_shared()
    finish(writing:start())
  end)
end

function M.save(model, dir, write)
  local shards = model.shards
  if not shards.group then
    error(("%s: shard %d of %d has no group, and all shards save together"):format(dir,
      shards.index, shards.count), 0)
  end
  local writing = jobs.writing()
  local shared = writing.shared        -- the same list after finish_shared, which begins another
  local ok, why = pcall(function() save(shards, writing, write) end)
  if ok then return end
  for _, one in ipairs(shared) do folders.remove_file(one.path .. ".tmp") end
  error(why, 0)
end

return M
