-- loading.lua - finds the function of a reward by the name that the settings give it.
--
--   local reward = loading.load("seg_strict", kwargs)     a module in rewards/
--                  loading.load "my_reward.lua"           a file that returns the function
--                  loading.load "my_reward.lua:score"     a file that returns {score = function}
--                  loading.load(f)                        a function is itself
--
--   loading.own(name)                  the reward of this name in rewards/, or nil
--   loading.file(name)                 the FILE.lua that a name means; nil: it means none
--
-- kwargs: a table that becomes the fourth argument of the reward, after text, ground truth and row;
-- without any the reward has three. A function that FILE.lua:NAME names may return one table, as
-- EasyR1's do: `overall` is the score, the rest are parts.
-- FILE.py:NAME, from a launch script of EasyR1, is read as FILE.lua:NAME if that file is there.
-- A third argument limits the loading of a file, in seconds (10; 0: no limit). `require` in the
-- file finds modules in its folder. A fourth argument is the file's text, if it was read already,
-- to load it again.
-- A name that leads nowhere is an error in one line. Leaves out: running a reward (runner.lua).

local console = require "segzero.log.console"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local guard = require "segzero.reward.guard"
local mistake = require "segzero.core.mistake"
local nearest = require "segzero.core.nearest"
local user_code = require "segzero.core.user_code"
local user_modules = require "segzero.core.user_modules"
local visible = require "segzero.core.visible"

local M = {}

local SETTING = "worker.reward.compute_score"

-- Rewards of Seg-Zero that are not available.
local SYMBOLIC = { math = true, r1v = true }

local function refuse(name, why, ...)
  error(("%s=%s: %s"):format(SETTING, visible.line(name), why:format(...)), 0)
end

-- The rewards that come with segzero: the modules that are functions. The others are what they
-- share.
function M.names()
  local names = {}
  for _, file in ipairs(folders.list(core.root .. "/rewards") or {}) do
    local name = file:match "^(.*)%.lua$"
    if name then
      local loads, reward = pcall(require, "rewards." .. name)
      if loads and type(reward) == "function" then names[#names + 1] = name end
    end
  end
  return names
end

local LIMIT = 10                -- seconds

local LOAD_CURE = " (worker.reward.timeout=SECONDS is the limit)"

-- text: the file's content, if it was read already.
local function compile(path, text)
  if text then return loadstring(text, "@" .. path) end
  if files.exists(path) then files.check_regular(path) end    -- a pipe would wait for ever
  return loadfile(path)
end

local function run_file(path, seconds, text)
  local chunk, reason = compile(path, text)
  if not text and not files.exists(path) then
    mistake.raise("the reward does not load: " .. reason)
  end
  if not chunk then error("the reward does not load: " .. reason, 0) end
  user_modules.look_beside(path)
  local what = "loading the reward " .. path
  local ok, reward = guard.call(seconds, what, "", chunk)
  if ok then return reward end
  local why = user_code.text(reward)
  if reward.late then why = why:gsub("^[^\n]*", "%0" .. LOAD_CURE, 1) end
  error(("the reward %s does not load: %s"):format(path, why), 0)
end

local function run_module(name)
  if SYMBOLIC[name] then
    refuse(name, "it compares formulas by symbolic algebra (mathruler, sympy), which is not " ..
      "available; write the comparison as FILE.lua (docs/guide/rewards.md)")
  end
  local module = "rewards." .. name
  local ok, reward = pcall(require, module)
  if ok then return reward end
  if reward:find("module '" .. module .. "' not found", 1, true) then
    local cure = (" (rewards/%s.lua)"):format(name) .. nearest.question(name, M.names())
    if name:find "/" then cure = ": a reward is a name in rewards/, or a file that ends in .lua" end
    mistake.raise(("%s: there is no reward '%s'%s"):format(SETTING, visible.line(name), cure))
  end
  error(("the reward %s does not load: %s"):format(name, reward), 0)
end

-- Path and function of "FILE.py" or "FILE.py:NAME", without the ending; nil for other names.
local function python_parts(name)
  if name:match "%.py$" then return name:sub(1, -4), "main" end
  local path, member = name:match "^(.*)%.py:([^:/]*)$"
  if member == "" then member = "main" end
  return path, member
end

function M.file(name)
  if type(name) ~= "string" then return nil end
  local python = python_parts(name)
  if python then return python .. ".lua" end
  return name:match "^(.*%.lua):[^:/]*$" or name:match "^.*%.lua$"
end

-- A Python file's counterpart next to it. It has to be written; nothing is translated.
local function of_python(path, member, name, is_again)
  local lua = path .. ".lua"
  if not files.exists(lua) then
    local message = "%s: there is no reward '%s'; a reward is a Lua file: write %s that ends " ..
      "with return { %s = function(text, ground_truth, row, kwargs) ... end } " ..
      "(docs/guide/rewards.md)"
    mistake.raise(message:format(SETTING, visible.line(name), lua, member))
  end
  if not is_again then
    console.say(("%s.py is Python: the reward is %s of %s"):format(path, member, lua))
  end
  return lua, member
end

-- "FILE.lua:NAME" -> "FILE.lua", "NAME"
local function split(name, is_again)
  local python, called = python_parts(name)
  if python then return of_python(python, called, name, is_again) end
  local path, member = name:match "^(.*%.lua):([^:/]*)$"
  if path then return path, member end
  return name, nil
end

local function member_of(name, path, member, seconds, text)
  local found = run_file(path, seconds, text)
  local f = found
  if type(found) == "table" then f = found[member] end
  if type(found) == "table" and type(f) == "function" then return f end
  if type(found) == "function" then
    refuse(name, "%s returns a function; write it without :%s, or let the file return { %s = " ..
      "function }", path, member, member)
  end
  local names = {}
  if type(found) == "table" then
    for key in pairs(found) do names[#names + 1] = tostring(key) end
  end
  table.sort(names)
  refuse(name, "%s has no function %s%s; it ends with return { %s = function }", path, member,
    nearest.question(member, names), member)
end

-- The score and the parts of a result like EasyR1's: {overall = 1, format = 0.5, ...}
local function of_table(result, ...)
  if type(result) ~= "table" then return result, ... end
  local parts = {}
  for key, value in pairs(result) do
    if key ~= "overall" then parts[key] = value end
  end
  return result.overall, parts
end

local function has_any(kwargs) return kwargs ~= nil and next(kwargs) ~= nil end

-- The reward is not in the wrapper's upvalues as user_code sees them, so it is told about it.
local function wrapped(f, member, kwargs)
  if not member and not has_any(kwargs) then return f end
  user_code.interpret(f)
  local extra
  if has_any(kwargs) then extra = kwargs end
  if not member then
    return function(text, truth, row) return f(text, truth, row, extra) end
  end
  return function(text, truth, row) return of_table(f(text, truth, row, extra)) end
end

local own = {}                  -- name -> reward, or false

function M.own(name)
  if own[name or ""] ~= nil then return own[name or ""] or nil end
  local found = false
  for _, known in ipairs(M.names()) do
    if known == name then found = require("rewards." .. name) end
  end
  own[name or ""] = found
  return found or nil
end

function M.load(name, kwargs, seconds, text)
  if type(name) == "function" then return name end
  local path, member = split(name, text ~= nil)
  local reward
  if member then
    reward = member_of(name, path, member, seconds or LIMIT, text)
  elseif path:match "%.lua$" then
    reward = run_file(path, seconds or LIMIT, text)
  else
    reward = run_module(path)
  end
  if type(reward) ~= "function" then
    error(("the reward %s returns a %s, expected a function"):format(name, type(reward)), 0)
  end
  return wrapped(reward, member, kwargs)
end

return M
