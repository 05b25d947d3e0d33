-- why.lua - the settings of `segzero why`.

local replay = require "segzero.config.replay"
local schema = require "segzero.config.schema"

local M = {}

M.schema = schema.new {
  name = "why",
  about = "Explains each answer to a row: image, parts and why they are 0, advantage, update.",
  usage = { "RUN step=N row=ROW", "RUN step=N" },
  notes = { "Without row, the rows of the step are listed. What the update did to an answer's "
    .. "log-probability takes a replay." },
  groups = { { title = "What", rows = {
    replay.STEP,
    { key = "row", type = "text", optional = true,
      help = "the row's id, or the number at its end; null: a list of the step's rows" },
    { key = "replay", type = "boolean", default = true,
      help = "run the step again, to see what the update did to each answer" },
    { key = "image", type = "text", optional = true, path = true,
      help = "the image that is written; null: why_step_N_ROW.png in the run's folder" },
  } } },
}

return M
