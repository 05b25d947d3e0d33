-- loggers.lua - the registry of loggers: where a run's numbers, texts, images and answers go.
--
--   sz.loggers:register("rewards", { help = "step and reward to a file", open = function(run)
--     local file = assert(io.open(run.folder .. "/rewards.txt", "w"))
--     local log = {}
--     function log:scalars(step, t) file:write(step, " ", t.reward or "", "\n") end
--     function log:close() file:close() end
--     return log
--   end })
--
-- open(run) returns an object with any of these methods; a missing one means that the logger
-- ignores such records.
--   scalars(step, t)         names with numbers; a value may be a table of names with numbers
--                            (time, held_out_parts). A step has t.reward, an evaluation
--                            t.held_out_reward
--   text(step, name, s)      name "run" for what the run says about itself
--   image(step, name, path)
--   rows(step, name, list)   a list of tables; name "rollouts": one for each answer of the step
--   start()                  the first step begins
--   close()
-- run = {folder = path | nil, total_steps =, first_step = the step that the run starts after,
-- config = settings, train = the data set, policy =}. names.lua has veRL's names for the numbers.
--
-- loggers.with_others{"wandb"} -> {"wandb", "jsonl"}.
--
-- trainer.logger=console,jsonl names the loggers of a run. A spec's field `also` lists loggers that
-- are opened with it. An error in a logger ends the run with the logger's own traceback.
-- Leaves out: SwanLab, MLflow (config/foreign/keys.lua says what is used instead).

local registry = require "segzero.core.registry"

local M = registry.new("logger", { required = { "open" }, optional = { "help", "also" } })

-- The names, and after them the loggers that come with them; each once.
function M.with_others(names)
  local list = {}
  local taken = {}
  local function add(name)
    if not taken[name] then list[#list + 1] = name end
    taken[name] = true
  end
  for _, name in ipairs(names) do add(name) end
  for _, name in ipairs(names) do
    local spec = M.specs[name]          -- an unknown name is an error where it is opened
    for _, other in ipairs(spec and spec.also or {}) do add(other) end
  end
  return list
end

M:register("console", {
  help = "a line for each step on the terminal, with the time that is left",
  open = function(run) return require("segzero.log.console").open(run) end,
})

M:register("jsonl", {
  help = "metrics.jsonl and rollouts.jsonl in the run folder",
  open = function(run) return require("segzero.log.jsonl").open(run) end,
})

-- Other programs' files name these two instead of jsonl; the run folder stays complete with them.
M:register("tensorboard", {
  help = "event files for TensorBoard in the run folder, and jsonl", also = { "jsonl" },
  open = function(run) return require("segzero.log.tensorboard").open(run) end,
})

M:register("wandb", {
  help = "a run of Weights & Biases in its offline form, for `wandb sync`, and jsonl",
  also = { "jsonl" },
  open = function(run) return require("segzero.log.wandb").open(run) end,
})

M:register("csv", {
  help = "metrics.csv and evaluations.csv in the run folder",
  open = function(run) return require("segzero.log.csv").open(run) end,
})

M:register("report", {
  help = "report.html in the run folder, from what jsonl writes; trainer.report=true adds it",
  open = function(run) return require("segzero.report.live").open(run) end,
})

return M
