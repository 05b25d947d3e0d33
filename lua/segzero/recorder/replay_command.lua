-- replay_command.lua - `segzero replay RUN step=N`: runs a step again and says whether it gives the
-- same bits.
--
-- The settings are in config/replay.lua. Exit status: 0 the same, 1 other numbers or an error, 2
-- wrong words. `segzero --ranks 2 replay ...` runs the step on as many ranks as the run had.
-- Leaves out: starting as many ranks by itself.

local command = require "segzero.config.command"
local console = require "segzero.log.console"
local replaying = require "segzero.recorder.replaying"
local rollouts = require "segzero.runs.rollouts"
local run_folder = require "segzero.runs.run_folder"
local schema = require("segzero.config.replay").schema

local M = {}

-- The last step of rollouts.jsonl.
function M.last_step(folder)
  run_folder.check_run(folder)
  local steps = rollouts.steps(folder .. "/rollouts.jsonl")
  if not steps.last then error(("%s/rollouts.jsonl has no answers"):format(folder), 0) end
  return steps.last
end

local function execute(cfg, words)
  local folder = words[1]:gsub("(.)/+$", "%1")
  local result = replaying.run(folder, cfg.step or M.last_step(folder), { say = console.say })
  if #result.steps > 0 then
    for _, line in ipairs(replaying.lines(result)) do console.say(line) end
  end
  if not result.same then os.exit(1) end
end

function M.main(args)
  command.main { name = "replay", schema = schema, args = args, execute = execute,
    on_ranks = true,
    words = { least = 1, most = 1, what = "a run" } }
end

return M
