-- help.lua - `segzero help` and `segzero --help`: commands, options and scripts; and
-- `segzero help COMMAND`, which is the same as `segzero COMMAND --help`.
--
--   help.main {"train"}      prints
--   help.print()             prints the overview
--   help.text() -> text      the overview without the scripts
--
-- Leaves out: the scripts' own settings (config/help.lua).

local commands = require "segzero.commands"
local mistake = require "segzero.core.mistake"
local nearest = require "segzero.core.nearest"
local scripts = require "segzero.tools.scripts"
local visible = require "segzero.core.visible"

local M = {}

local HEAD = [=[
usage: segzero [options] COMMAND [ARGS ...]
       segzero [options] [SCRIPT [ARGS ...]]
]=]

local TAIL = [[
Options come before COMMAND or SCRIPT. Without both and without -e, segzero starts the REPL on a
terminal and otherwise runs the script on standard input (also: SCRIPT '-'). A SCRIPT that is not in
the current folder is looked up among those that come with segzero.
Environment: SEGZERO_DEVICE and SEGZERO_THREADS are what --device and --threads set;
SEGZERO_CPU=avx2 takes the CPU kernels of a plainer processor (segzero doctor lists them).]]

-- Lines of two columns.
local function columns(rows)
  local widest = 0
  for _, row in ipairs(rows) do widest = math.max(widest, #row[1]) end
  local lines = {}
  for i, row in ipairs(rows) do
    lines[i] = ("  %s%s  %s"):format(row[1], (" "):rep(widest - #row[1]), row[2])
  end
  return table.concat(lines, "\n")
end

local function joined(name, rest) return (name .. " " .. (rest or "")):gsub("%s+$", "") end

function M.text()
  local of_commands = {}
  for i, row in ipairs(commands.list) do
    of_commands[i] = { (joined(row.name, row.usage)), row.about }
  end
  local of_options = {}
  for i, row in ipairs(commands.options) do
    of_options[i] = { (joined(row.name, row.value)), row.about }
  end
  return table.concat({ HEAD .. "\nCommands (segzero help COMMAND says what each takes):",
    columns(of_commands), "\nOptions:", columns(of_options), TAIL }, "\n")
end

function M.print()
  print(M.text())
  scripts.print()
end

function M.main(args)
  local name = args[1]
  if not name then return M.print() end
  if commands.by_name[name] then return commands.main(name, "--help") end
  local question = nearest.question(name, commands.names())
  mistake.raise(("there is no command '%s'%s; segzero help lists them"):format(visible.line(name),
    question))
end

return M
