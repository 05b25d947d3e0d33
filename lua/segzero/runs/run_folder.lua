-- run_folder.lua - the folder of a training run: taking a new one, going on in an old one, and the
-- lock that keeps a second process out.
--
--   local run = run_folder.create(path)        a folder that no run and nothing else uses: path, or
--                                              path-2, path-3, ...
--   local run = run_folder.open(path)          the folder of a run that goes on
--     run.path, run.id, run.wanted             wanted: the path that was asked for
--   run_folder.close(run)                      the run has ended: another process may go on
--   run_folder.cancel(run)                     removes a folder in which nothing has happened yet
--   run_folder.cancel_if_empty(run)            the run has failed: cancel if its logs are empty
--                                              and there are no other files, else close
--   run_folder.id(path) -> text, or nil        the id of the run that owns this folder
--   run_folder.is_run(path)                    whether a run of segzero wrote this folder
--   run_folder.check_run(path)                 an error in one line if not
--
-- run.json is the mark of a run: {"id": 16 hexadecimal digits, "version": 1}. The manifest of each
-- checkpoint has the same id, so that a run removes only its own checkpoints. A run of segzero 0.1
-- has config.json and no mark; it gets one when it goes on.
-- While a run lives, its process holds a lock (flock) on run.json; the system drops it when the
-- process ends, however it ends. File systems without locks go without.
-- Errors are one line without a position. Leaves out: what is in the folder.

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local mistake = require "segzero.core.mistake"
local visible = require "segzero.core.visible"

local M = {}

M.SETTING = "trainer.save_checkpoint_path"

local MARK = "run.json"

local function new_id()
  local source = assert(io.open("/dev/urandom", "rb"))
  local bytes = source:read(8)
  source:close()
  return (bytes:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

local function mark_text(id) return files.json { id = id, version = 1 } .. "\n" end

function M.id(path)
  local ok, mark = pcall(files.read_json, path .. "/" .. MARK, true)
  if not ok or type(mark) ~= "table" or type(mark.id) ~= "string" then return nil end
  return mark.id
end

-- config.json alone is the mark of segzero 0.1; a model's config.json has a model_type.
function M.is_run(path)
  if M.id(path) then return true end
  local ok, json = pcall(files.read_json, path .. "/config.json", true)
  return ok and type(json) == "table" and type(json.trainer) == "table"
end

function M.check_run(path)
  if folders.kind(path) ~= "folder" then
    mistake.raise(("there is no folder %s; name that of a training run"):format(visible.line(path)))
  end
  if M.is_run(path) then return end
  error(("%s is not the folder of a training run (it has no run.json)"):format(visible.line(path)),
    0)
end

-- Locks run.json. Without one the run is not ours to write.
local function lock(run)
  local fd, reason = folders.lock(run.path .. "/" .. MARK)
  if fd == nil then
    error(("%s: cannot go on in this folder: %s"):format(M.SETTING, reason), 0)
  elseif not fd then
    error(("%s is in use: another process is training in it; give %s to write elsewhere")
      :format(run.path, M.SETTING), 0)
  end
  run.lock = fd
  return run
end

function M.create(path, name)
  local id = new_id()
  local run = folders.claim(path, MARK, mark_text(id), name or M.SETTING)
  run.id = id
  return lock(run)
end

function M.open(path)
  local mark = path .. "/" .. MARK
  if not files.exists(mark) then folders.create(mark, mark_text(new_id()), M.SETTING) end
  local id = M.id(path)
  if not id then error(mark .. ": not the mark of a run (it has no id)", 0) end
  return lock { path = path, wanted = path, id = id, made = {} }
end

function M.close(run)
  if run.lock then require("posix.unistd").close(run.lock) end
  run.lock = nil
end

function M.cancel(run)
  if run.mark then
    folders.remove_file(run.path .. "/config.json")
    folders.remove_file(run.path .. "/launches.jsonl")
    folders.cancel(run)
  end
  M.close(run)
end

local function is_empty(path)
  local file = io.open(path, "rb")
  if not file then return true end
  local size = file:seek "end"
  file:close()
  return size == 0
end

-- What a run writes before its first step is over. The report is made of the logs, and
-- reward/reloading.lua keeps a copy of the reward.
local AT_FIRST = { "^metrics%.jsonl$", "^rollouts%.jsonl$", "^report%.html$",
  "^reward_step_%d+%.lua$" }

local function is_of_start(name)
  for _, pattern in ipairs(AT_FIRST) do
    if name:find(pattern) then return true end
  end
  return false
end

local function has_nothing(path)
  local own = { [MARK] = true, ["config.json"] = true, ["launches.jsonl"] = true }
  for _, name in ipairs(folders.list(path) or {}) do
    if not own[name] and not is_of_start(name) then return false end
  end
  return is_empty(path .. "/metrics.jsonl") and is_empty(path .. "/rollouts.jsonl")
end

function M.cancel_if_empty(run)
  if not run.mark or not has_nothing(run.path) then return M.close(run) end
  for _, name in ipairs(folders.list(run.path) or {}) do
    if is_of_start(name) then folders.remove_file(run.path .. "/" .. name) end
  end
  M.cancel(run)
end

return M
