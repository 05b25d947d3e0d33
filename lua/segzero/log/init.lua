-- log - passes the records of a run to all its loggers.
--
--   local log = log.open({ "console", "jsonl" }, run, call)     run: see loggers.lua
--                                          call(what, f, ...) calls a logger's function, in place
--                                          of user_code.call
--   log:scalars(step, { reward = 1.6, ... })
--   log:text(step, name, s)
--   log:warn(step, s)                      a text "run" that is also seen without the console
--   log:image(step, name, path)
--   log:rows(step, name, list)
--   log:start(first_step, total_steps)     first_step: how many steps were done before this run
--   log:close()
--
-- loggers.lua says what a logger is and holds their registry. A logger that fails is an error with
-- its own traceback. Leaves out: levels (debug, info, ...).

local console = require "segzero.log.console"
local loggers = require "segzero.log.loggers"
local user_code = require "segzero.core.user_code"
local visible = require "segzero.core.visible"

local M = {}

local methods = {}
local mt = { __index = methods }

local METHODS = { "start", "scalars", "text", "image", "rows", "close" }

-- What open(run) returned has at least one of the methods.
local function check_logger(name, object)
  local has_any = false
  if type(object) == "table" then
    for _, method in ipairs(METHODS) do has_any = has_any or type(object[method]) == "function" end
  end
  if has_any then return end
  error(("the logger '%s' opened %s, expected an object with any of: %s"):format(name,
    type(object), table.concat(METHODS, ", ")), 0)
end

-- names: registered names.
function M.open(names, run, call)
  local log = setmetatable({ run = run, list = {}, call = call or user_code.call }, mt)
  for i, name in ipairs(loggers.with_others(names)) do
    local open = loggers:get(name).open
    local object = user_code.call("the logger " .. name, open, run)
    check_logger(name, object)
    log.list[i] = { name = name, object = object }
  end
  return log
end

local function each(log, method, ...)
  for _, logger in ipairs(log.list) do
    local f = logger.object[method]
    if f then log.call("the logger " .. logger.name, f, logger.object, ...) end
  end
end

-- Tells the loggers that the first step begins, so that they start their clocks.
function methods:start(first_step, total_steps)
  self.run.first_step = first_step
  self.run.total_steps = total_steps
  each(self, "start")
end

function methods:scalars(step, t) each(self, "scalars", step, t) end

function methods:text(step, name, s) each(self, "text", step, name, s) end

-- Without the logger console nothing of a run is on the terminal; a warning is, on standard error.
function methods:warn(step, s)
  self:text(step, "run", s)
  for _, logger in ipairs(self.list) do
    if logger.name == "console" then return end
  end
  io.stderr:write(visible.text(s) .. "\n")
end

function methods:image(step, name, path) each(self, "image", step, name, path) end

function methods:rows(step, name, list) each(self, "rows", step, name, list) end

function methods:close()
  each(self, "close")
  self.list = {}
end

M.duration = console.duration
M.times = console.times
M.clock = console.duration       -- its name in segzero 0.1

return M
