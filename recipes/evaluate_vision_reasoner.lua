-- evaluate_vision_reasoner.lua - recipes/evaluate.lua with VisionReasoner's questions and lists of
-- objects (several=true), for scripts that call evaluation_visionreasoner.py or the scripts in
-- VisionReasoner's evaluation/.
--
--   segzero recipes/evaluate_vision_reasoner.lua --reasoning_model_path DIR --idx 0 ...
--
-- All settings are those of recipes/evaluate.lua. Leaves out: everything else.

local cli = require "segzero.config.cli"
local evaluate = require "recipes.evaluate"

local M = { schema = evaluate.schema, execute = evaluate.execute, on_ranks = true }

function M.settings(args)
  local list = { "several=true" }
  for i, word in ipairs(args or {}) do list[i + 1] = word end
  return evaluate.settings(list)
end

M.run = cli.runner(M)

cli.main(M)

return M
