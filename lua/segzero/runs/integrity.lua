-- integrity.lua - checks a checkpoint that is opened as a model against its manifest.json, so a
-- flipped byte is found and named before the model answers or trains.
--
--   local check = integrity.begin(folder)   nil if the folder has no manifest. Sizes and small
--                                           files are checked at once, files of tensors in the
--                                           background
--   check:finish()                          waits; a damaged file is an error at every call
--   integrity.settle(model)                 finishes model.integrity, if it is there
--   integrity.file(folder, name)            checks one file at once, if a manifest lists it
--
-- A background thread reads the files while the rest of the program loads. The first forward pass
-- would read them anyway; XXH3 takes extra time. What only training reads is not checked, and may
-- be missing. A folder that is opened again is read again only if its files have changed.
-- Errors are one line without a position. Leaves out: folders of other programs (no manifest).

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local jobs = require "segzero.core.jobs"
local manifest = require "segzero.runs.manifest"

local C = core.C

local M = {}

local Check = {}
Check.__index = Check

-- What only resuming reads.
local OF_TRAINING = { ["optimizer.safetensors"] = true, ["trainer_state.json"] = true,
  ["settings.json"] = true }

local function damaged(folder, problem)
  error(("checkpoint %s is damaged: %s; take another one (a file that you changed yourself: remove "
    .. "%s/manifest.json, and nothing is checked)"):format(folder, problem, folder), 0)
end

local function check_now(folder, file)
  local sums = ffi.new("uint64_t[?]", #file.parts)
  local begin, stop = manifest.ranges(file)
  core.call(C.sz_file_sums(folder .. "/" .. file.name, #file.parts, begin, stop, 0, sums))
  local problem = manifest.wrong_bytes(file, sums)
  if problem then damaged(folder, problem) end
end

-- Starts reading a file of tensors: {file =, sums =, job =}.
local function check_later(folder, file)
  local sums = ffi.new("uint64_t[?]", #file.parts)
  local begin, stop = manifest.ranges(file)
  local path = folder .. "/" .. file.name
  local job = core.call(C.sz_file_sums_start(path, #file.parts, begin, stop, sums))
  return { file = file, sums = sums, job = jobs.wrap(job) }
end

-- What changes when a file of the list is written again.
local function stamp_of(folder, list)
  local stat = require("posix.sys.stat").stat
  local texts = {}
  for i, file in ipairs(list) do
    local s = stat(folder .. "/" .. file.name) or {}
    texts[i] = ("%s %s %s %s %s"):format(file.name, s.st_ino, s.st_size, s.st_mtime, s.st_ctime)
  end
  return table.concat(texts, "\n")
end

local checks = {}               -- folder -> the latest check of it

local function refuse_unfinished(folder)
  if files.exists(folder .. "/UNFINISHED") and not files.exists(folder .. "/DONE") then
    error(("checkpoint %s was not finished (UNFINISHED in place of DONE); take another one"):format(
      folder), 0)
  end
end

-- The files of a checkpoint's manifest, or nil. A model folder from elsewhere may hold another
-- program's manifest.json.
local function list_of(folder)
  local is_checkpoint = files.exists(folder .. "/DONE")
    or files.exists(folder .. "/trainer_state.json")
  if is_checkpoint then return manifest.list(folder) end
  if not manifest.owner(folder) then return nil end
  local ok, list = pcall(manifest.list, folder)
  return ok and list or nil
end

function M.begin(folder)
  refuse_unfinished(folder)
  local list = list_of(folder)
  if not list then return nil end
  local stamp = stamp_of(folder, list)
  if checks[folder] and checks[folder].stamp == stamp then return checks[folder] end

  local check = setmetatable({ folder = folder, stamp = stamp, pending = {} }, Check)
  local later = {}
  for _, file in ipairs(list) do
    if not OF_TRAINING[file.name] then
      local problem = manifest.wrong_size(folder, file)
      if problem then damaged(folder, problem) end
      local has_tensors = file.name:find "%.safetensors$"
      if has_tensors then later[#later + 1] = file else check_now(folder, file) end
    end
  end
  for i, file in ipairs(later) do check.pending[i] = check_later(folder, file) end
  checks[folder] = check
  return check
end

function Check:finish()
  while #self.pending > 0 do
    local one = self.pending[1]
    local ok, reason = one.job:wait()
    -- Ctrl-C may have stopped the reading, and the script goes on.
    if not ok and core.is_interrupt(reason) then
      check_now(self.folder, one.file)
    elseif not ok then
      error(reason, 0)
    end
    local problem = ok and manifest.wrong_bytes(one.file, one.sums)
    if problem then damaged(self.folder, problem) end
    one.job:free()
    table.remove(self.pending, 1)
  end
end

function M.settle(model)
  local check = model.integrity
  if not check then return end
  check:finish()
  model.integrity = nil
end

function M.file(folder, name)
  for _, file in ipairs(list_of(folder) or {}) do
    if file.name == name then
      local problem = manifest.wrong_size(folder, file)
      if problem then damaged(folder, problem) end
      check_now(folder, file)
    end
  end
end

return M
