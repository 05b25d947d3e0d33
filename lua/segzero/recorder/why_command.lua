-- why_command.lua - `segzero why RUN step=N row=ROW`: explains each answer to a row.
--
-- The settings are in config/why.lua. Exit status: 0 done, 1 an error, 2 wrong words.
-- Leaves out: rewards that a script gave to its run.

local command = require "segzero.config.command"
local console = require "segzero.log.console"
local explaining = require "segzero.recorder.explaining"
local replay_command = require "segzero.recorder.replay_command"
local schema = require("segzero.config.why").schema
local text = require "segzero.workbench.text"
local visible = require "segzero.core.visible"

local M = {}

local function list_rows(folder, step)
  local rows = { { "row", "reward", "std", "question" } }
  for i, one in ipairs(explaining.rows(folder, step)) do
    local s = text.statistics(one.rewards)
    rows[i + 1] = { visible.line(one.row, 60), text.number(s.mean), text.number(s.std),
      visible.line(tostring(one.problem), 60) }
  end
  console.say(("the rows of step %d; row=ROW explains one"):format(step))
  for _, line in ipairs(text.table(rows, { true, false, false, true })) do console.say(line) end
end

local function execute(cfg, words)
  local folder = words[1]:gsub("(.)/+$", "%1")
  local step = cfg.step or replay_command.last_step(folder)
  if not cfg.row then return list_rows(folder, step) end
  local e = explaining.run(folder, step, cfg.row, { replay = cfg.replay, image = cfg.image,
    say = console.say })
  for _, line in ipairs(explaining.lines(e)) do console.say(line) end
end

function M.main(args)
  command.main { name = "why", schema = schema, args = args, execute = execute,
    words = { least = 1, most = 1, what = "a run" } }
end

return M
