-- cli.lua - starts a recipe or an example: runs it if it is the script on the command line, and
-- does nothing if it is only required.
--
--   local M = {}
--   M.schema = ...                                  what --help prints
--   function M.settings(args) ... return cfg end    reads and checks; raises the user's mistakes
--   function M.execute(cfg) ... end                 does the work
--   M.run = cli.runner(M)                           run(args): both, for scripts that call it
--   M.on_ranks = true                               several ranks can share the work
--   cli.main(M)                                     the last line but `return M`
--   return M
--
-- A mistake in the settings is printed as "NAME: message", NAME of the script or the command, and
-- ends the program with status 2. An error in the work ends it with status 1, unless it is a
-- mistake in the settings that shows up late (core/mistake.lua), or a signal was the reason: then
-- the status is 128 + its number. A module may have run(args) instead of `execute`; its errors go
-- to the host program, with the same status. With several ranks the first one alone prints.
-- Leaves out: parsing (schema.lua).

local arguments = require "segzero.config.arguments"
local mistake = require "segzero.core.mistake"

local M = {}

-- True if `source` (from debug.getinfo) is the script that the host program runs. The host looks
-- for it in the current folder first, then among the scripts that came with segzero.
local function is_script(source)
  local name = arg and arg[0]
  if not name then return false end
  if source == "@" .. name then return true end
  local found, host = pcall(require, "segzero.host")
  return found and source == "@" .. host.root .. "/" .. name
end

local function call(f, ...)
  local found, host = pcall(require, "segzero.host")
  if found then return host.call(f, ...) end
  return pcall(f, ...)
end

local follower = false          -- a rank that does not print

local function fail(status, why)
  if follower then require("segzero.train.parallel").mute() end
  local found, host = pcall(require, "segzero.host")
  local name = found and host.command or arg[0]:match "([^/]+)$":gsub("%.lua$", "")
  if found then host.fail(name, tostring(why), status) end
  io.stdout:flush()
  io.stderr:write(name .. ": " .. tostring(why) .. "\n")
  os.exit(status)
end

local function execute(module, ok, ...)
  if not ok then fail(2, (...)) end
  local done, why = call(module.execute, ...)
  if not done then fail(mistake.status(why), why) end
end

-- With several ranks: refuses what one process does alone, and processes that would each do all of
-- the training.
local function join_ranks(module)
  local ranks = require "segzero.core.ranks"
  local stray = module.on_ranks and ranks.stray()
  if stray then fail(2, stray) end
  if not ranks.launched() then return end
  local world = ranks.world()
  if world:size() == 1 then return end
  follower = world:rank() > 0
  if follower then require("segzero.train.parallel").quiet() end
  if module.on_ranks then return end
  fail(2, "it works on one rank: leave out --ranks, mpirun and srun")
end

-- Runs the calling file's module if the file is the script that was started, or if a script runs it
-- by dofile() with an `arg` of its own. Call it from the file's main chunk.
function M.main(module)
  local source = debug.getinfo(2, "S").source
  local caller = debug.getinfo(3, "f")
  local by = caller and caller.func
  if by == require or (by ~= dofile and not is_script(source)) then return end
  local help, part = arguments.wants_help(arg)
  if help and module.schema then
    io.write(module.schema:help(part), "\n")
    return
  end
  join_ranks(module)
  if not module.execute then
    mistake.guard(module.run, arg)
    return
  end
  execute(module, call(module.settings, arg))
end

-- run(args): settings and work in one call, with the results of the work.
function M.runner(module)
  return function(args) return module.execute(module.settings(args)) end
end

return M
