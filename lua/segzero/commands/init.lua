-- init.lua - the table of segzero's commands, and what runs them.
--
--   local commands = require "segzero.commands"
--   commands.list                      the rows below, in the order of --help
--   commands.by_name.train             a row
--   commands.options                   the program's own options: {name, value or nil, about}
--   commands.main("train", ...)        runs a command with its arguments
--   commands.names() -> {"train", ...}
--
-- A row: {name =, usage = "what follows the name", about = "one sentence", and
--   script = "recipes/x.lua"           a script that came with segzero; it has a --help of its own,
--                                      or else
--   module = "segzero.x", entry = "main"   require(module)[entry](args), args: a list of texts
--   help = "text"                      what --help prints; nil: the script or module does it
--   flags = {"--output", ...}          options that a shell offers
--   takes = "settings" | "plan" | "runs" | "rewards" | "names" | "files" | "commands" | "shells"
--                                      what else a shell offers (words.lua)
--   schema = "segzero.config.x"        after the first word, the settings of this module's schema
--   default = "recipes/x.lua"          goes before the arguments if the first one is a setting
--   most = 1                           more arguments are an error; nil: the module reads them all
-- }
-- A command runs from any folder. The host program (runtime/main.c) asks this table about a word
-- without a slash and without a point, so that a file of such a name is run as ./NAME.
-- Leaves out: reading the program's options, which C does before Lua starts
-- (runtime/host/options.c).

local host = require "segzero.host"
local mistake = require "segzero.core.mistake"
local visible = require "segzero.core.visible"

local M = {}

local PLAN_HELP = [[
usage: segzero plan [RECIPE] [key=value ...] [answer_tokens=N] [--ranks W] [device_gib=G]
  RECIPE            a recipe of GRPO
  key=value         its settings; without RECIPE those of recipes/refcocog_grpo.lua
  answer_tokens=N   as if answers had N tokens, not data.max_response_length
  --ranks W         one of W ranks, and what it sends in a step; nothing is started
  device_gib=G      on GPUs with this memory each; else on this machine
  gb_per_second=B   how fast a rank sends; else some usual rates
Says how much memory a run needs, and which settings make it need less. Nothing is loaded. Exit
status 1: it does not fit.
docs/guide/memory.md says more.]]

local DOCTOR_HELP = [[
usage: segzero [--ranks N] doctor
Prints what this machine has and what segzero will use; with several ranks it compares them. Changes
nothing.]]

local COMPLETION_HELP = [[
usage: segzero completion bash | zsh
Prints the shell's completion of commands, settings, files and models. make install installs it.
Without installing:
  eval "$(segzero completion bash)"      in ~/.bashrc
  eval "$(segzero completion zsh)"       in ~/.zshrc, after compinit]]

local HELP_HELP = [[
usage: segzero help [COMMAND]
Lists the commands, options and scripts, or says what a command takes.]]

local GRPO = "recipes/refcocog_grpo.lua"

M.list = {
  { name = "train", usage = "[key=value ...]", about = "trains a Qwen-VL model by GRPO",
    script = GRPO, takes = "settings" },
  { name = "evaluate", usage = "[key=value ...]",
    about = "gIoU, cIoU and box accuracy of a model, with intervals",
    script = "recipes/evaluate.lua", takes = "settings" },
  { name = "infer", usage = "--image_path FILE --text QUESTION",
    about = "finds and masks what a sentence describes", script = "examples/infer.lua",
    takes = "settings" },
  { name = "plan", usage = "[RECIPE] [key=value ...]", about = "how much memory a run needs",
    module = "segzero.tools.plan", entry = "command", default = GRPO, help = PLAN_HELP,
    takes = "plan" },
  { name = "report", usage = "RUN [RUN ...]", about = "one HTML page about training runs",
    module = "segzero.report.command", entry = "main", flags = { "--output" }, takes = "runs" },
  { name = "reward", usage = "REWARD [key=value ...]",
    about = "tries a reward, or scores a run's answers again",
    module = "segzero.workbench.reward_command", entry = "main", takes = "rewards",
    schema = "segzero.config.reward" },
  { name = "replay", usage = "RUN step=N", about = "runs a step again and compares its bits",
    module = "segzero.recorder.replay_command", entry = "main", takes = "runs",
    schema = "segzero.config.replay" },
  { name = "why", usage = "RUN step=N row=ROW", about = "explains the answers to a row",
    module = "segzero.recorder.why_command", entry = "main", takes = "runs",
    schema = "segzero.config.why" },
  { name = "fetch", usage = "OWNER/NAME", about = "downloads a model or data set from the hub",
    module = "segzero.hub.command", entry = "main",
    flags = { "--dataset", "--revision", "--split" }, takes = "names" },
  { name = "model_merger", usage = "--local_dir DIR",
    about = "merges the shards of a Seg-Zero or EasyR1 run", script = "examples/model_merger.lua",
    takes = "settings" },
  { name = "doctor", usage = "", about = "what this machine has, and what segzero will use",
    module = "segzero.tools.doctor", entry = "run", help = DOCTOR_HELP, most = 0 },
  { name = "completion", usage = "bash | zsh", about = "completion for a shell",
    module = "segzero.commands.completion", entry = "main", help = COMPLETION_HELP,
    takes = "shells" },
  { name = "help", usage = "[COMMAND]", about = "this text, or what a command takes",
    module = "segzero.commands.help", entry = "main", help = HELP_HELP, takes = "commands",
    most = 1 },
}

M.options = {
  { name = "-e", value = "CHUNK", about = "run CHUNK (before the script; may be repeated)" },
  { name = "--device", value = "D", about = "where models are loaded by default: cpu or cuda" },
  { name = "--threads", value = "N",
    about = "threads of the CPU kernels (default: all that it may use)" },
  { name = "--ranks", value = "N", about = "N processes that work on one run, on this machine" },
  { name = "--version", about = "versions and paths" },
  { name = "--help", about = "this text" },
  { name = "--", about = "end of options" },
}

M.by_name = {}
for _, row in ipairs(M.list) do M.by_name[row.name] = row end

function M.names()
  local names = {}
  for i, row in ipairs(M.list) do names[i] = row.name end
  return names
end

-- Runs a script of segzero's as if it were the one on the command line.
local function run_script(row, args)
  local path = host.root .. "/" .. row.script
  local words = { [0] = path }
  for i, word in ipairs(args) do words[i] = word end
  rawset(_G, "arg", words)
  assert(loadfile(path))(unpack(args))
end

-- Settings without a recipe are those of the usual one: key=value, --key value, --key=value.
local function with_default(row, args)
  local is_setting = args[1] and (args[1]:find "^[%w_.]+=" or args[1]:find "^%-%-")
  if not row.default or not is_setting then return args end
  return { row.default, unpack(args) }
end

-- An argument that would be passed over may be one of the program's options.
local function refuse_more(row, args)
  local extra = row.most and args[row.most + 1]
  if not extra then return end
  local cure = ("segzero help %s says what it takes"):format(row.name)
  if extra:find "^%-" then cure = "options of segzero go before the command" end
  mistake.raise(("%s: unexpected argument '%s'; %s"):format(row.name, visible.line(extra), cure))
end

local function wants_help(args) return args[1] == "--help" or args[1] == "-h" end

function M.main(name, ...)
  local row = M.by_name[name]
  local args = { ... }
  host.command = name           -- what --help and errors call the program (config/)
  if row.help and wants_help(args) then
    print(row.help)
  elseif row.script then
    run_script(row, args)
  else
    mistake.guard(refuse_more, row, args)
    mistake.guard(require(row.module)[row.entry], with_default(row, args))
  end
end

return M
