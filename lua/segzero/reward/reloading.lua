-- reloading.lua - a reward's file during a run: the run folder keeps each version that judged, and
-- a file that is changed judges from the next step on (worker.reward.reload).
--
--   local watcher = reloading.new(settings)     settings: worker.reward of a run; nil if its reward
--                                               is not a FILE.lua
--   watcher:begin(t)              when the steps begin: keeps the text; t: a trainer
--   watcher:look(t)               before a step: sets t.reward if the file has changed
--   reloading.stored(folder, step, settings) -> f, N     the reward that judged this step of an old
--                                 run, from its folder; nil if it is not there
--
-- The run folder has copies named reward_step_ and a number: the text that judges from that step
-- on, until the next copy. Rank 0 looks at the file and gives its text to all ranks, so that all
-- change at the same step. The run says so in a note. A version that does not load is a note as
-- well, and the old one stays. A hook that sets t.reward ends the watching.
-- Modules next to the file, which it requires, are watched too, and read again with it.
-- Leaves out: copies of these modules. An old step is judged with the modules of today.

local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local loading = require "segzero.reward.loading"
local user_modules = require "segzero.core.user_modules"
local visible = require "segzero.core.visible"

local M = {}

local methods = {}
local mt = { __index = methods }

-- Changes when the file is written or replaced; "" if there is none.
local function mark_of(path)
  local s = require("posix.sys.stat").stat(path)
  if not s then return "" end
  return ("%d %d %d %d"):format(s.st_ino, s.st_mtime, s.st_size, s.st_ctime)
end

function M.new(settings)
  local path = loading.file(settings.compute_score)
  if not path or not files.exists(path) then return nil end
  local text = files.read(path)
  return setmetatable({ settings = settings, path = path, text = text,
    seen = { [path] = { mark = mark_of(path), text = text } } }, mt)
end

local function load_text(settings, text)
  return loading.load(settings.compute_score, settings.reward_function_kwargs, settings.timeout,
    text)
end

-- ---- the copies in the run folder ----
local function copy_name(step) return ("reward_step_%d.lua"):format(step) end

-- The steps of the copies in a folder, in order.
local function copies(folder)
  local steps = {}
  for _, name in ipairs(folders.list(folder) or {}) do
    steps[#steps + 1] = tonumber(name:match "^reward_step_(%d+)%.lua$")
  end
  table.sort(steps)
  return steps
end

local function write_copy(t, step, text)
  files.write(t.folder .. "/" .. copy_name(step), text)
end

local function remove_copy(t, step)
  local path = t.folder .. "/" .. copy_name(step)
  local ok, reason = folders.remove_file(path)
  if not ok then error(("cannot remove %s: %s"):format(path, reason), 0) end
end

-- Without later ones, which belong to steps that run again.
local function write_first(t, text)
  local first = t.global_step + 1
  for _, step in ipairs(copies(t.folder)) do
    if step >= first then remove_copy(t, step) end
  end
  if t.global_step < t.total_steps then write_copy(t, first, text) end
end

-- The modules that have been loaded since the last look.
local function note_modules(self)
  for _, path in ipairs(user_modules.paths()) do
    if not self.seen[path] then
      self.seen[path] = { mark = mark_of(path), text = files.read(path) }
    end
  end
end

-- A run that goes on judges with the file as it is now.
function methods:begin(t)
  self.reward = t.reward
  note_modules(self)
  if t.folder then t.parallel:on_root(function() write_first(t, self.text) end) end
end

-- ---- a change ----
-- Seconds: times of files are whole seconds, and the file may change again in the same one.
local FRESH = 2

local function is_fresh(path)
  local s = require("posix.sys.stat").stat(path)
  return s ~= nil and s.st_mtime >= os.time() - FRESH
end

-- Whether a file has another text than before. One that is being written is read at the next step.
local function has_changed(path, seen)
  local mark = mark_of(path)
  if mark == "" or mark == seen.mark and not is_fresh(path) then return false end
  local text = files.read(path)
  if not text or mark_of(path) ~= mark then return false end
  local changed = text ~= seen.text
  seen.mark = mark
  seen.text = text
  return changed
end

-- The reward's text if it or one of its modules has changed. changed_module: the latter's path.
local function changed_text(self)
  self.changed_module = nil
  local changed = has_changed(self.path, self.seen[self.path])
  for path, seen in pairs(self.seen) do
    if path ~= self.path and has_changed(path, seen) then
      self.changed_module = path
      changed = true
    end
  end
  note_modules(self)
  return changed and self.seen[self.path].text or nil
end

local function say(t, text, ...) t.log:text(t.global_step, "run", text:format(...)) end

local CHANGED = "  reward changed: %s judges from step %d on%s; rewards before and after, the "
  .. "held-out ones too, are not comparable"
local WITH = ", with %s as it is now"
local REFUSED = "  warning: %s has changed and does not load, so the old reward stays: %s"

-- Why the new version does not load, on the first rank where it does not; nil if it does on all.
local function failure_of(t, ok, reward)
  local all = t.parallel:agreed(function()
    if ok then return false end
    return tostring(reward):match "^[^\n]*"
  end)
  for r = 1, t.parallel.size do
    if all[r] then return all[r] end
  end
  return nil
end

function methods:look(t)
  if not self.settings.reload or t.reward ~= self.reward then return end
  local text = t.parallel:on_root(function() return changed_text(self) end)
  if not text then return end
  local restore = user_modules.forget()
  local ok, reward = pcall(load_text, self.settings, text)
  if not ok and core.is_interrupt(reward) then error(reward, 0) end
  local why = failure_of(t, ok, reward)
  if why then
    restore()
    return say(t, REFUSED, self.changed_module or self.path, visible.line(why, 300))
  end
  local step = t.global_step + 1
  if t.folder then t.parallel:on_root(function() write_copy(t, step, text) end) end
  self.reward = reward
  t.reward = reward
  local with = self.changed_module and WITH:format(self.changed_module) or ""
  say(t, CHANGED, self.path, step, with)
end

-- ---- an old run ----
function M.stored(folder, step, settings)
  if not loading.file(settings.compute_score) then return nil end
  local newest
  for _, one in ipairs(copies(folder)) do
    if one <= step then newest = one end
  end
  if not newest then return nil end
  local path = folder .. "/" .. copy_name(newest)
  local text = files.read(path) or error("cannot read " .. path, 0)
  return load_text(settings, text), newest
end

return M
