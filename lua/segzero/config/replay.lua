-- replay.lua - the settings of `segzero replay`.

local schema = require "segzero.config.schema"

local M = {}

M.STEP = { key = "step", type = "count", optional = true, max = 2 ^ 31,
  help = "the step; null: the last one of rollouts.jsonl" }

M.schema = schema.new {
  name = "replay",
  about = "Runs a step of a training run again, from the nearest checkpoint, and compares "
    .. "its bits.",
  usage = { "RUN [step=N]" },
  notes = { "Exit status 1: other numbers. Give segzero the --threads, --device and --ranks of the",
    "run: segzero --threads 2 replay runs/NAME step=40. The run's folder is only read." },
  groups = { { title = "What", rows = { M.STEP } } },
}

return M
