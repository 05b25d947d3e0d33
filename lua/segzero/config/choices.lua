-- choices.lua - the names that a setting accepts, read from a registry.
--
--   choices = choices.of "losses"       in a setting's row
--
-- The registry is loaded and read when a value is checked, so names that a script has registered
-- are accepted too.

local MODULES = {
  advantages = "segzero.algorithms.advantages",
  losses = "segzero.algorithms.losses",
  kl = "segzero.algorithms.kl",
  aggregations = "segzero.algorithms.aggregations",
  schedules = "segzero.algorithms.schedules",
  loggers = "segzero.log.loggers",
}

-- Stands in for a registry that does not load.
local BUILT_IN = {
  advantages = { "grpo" },
  losses = { "ppo_clip" },
  kl = { "abs", "kl", "low_var_kl", "mse" },
  aggregations = { "seq", "token" },
  schedules = { "constant" },
  loggers = { "console", "jsonl" },
}

local M = {}

function M.of(seam)
  return function()
    local ok, registry = pcall(require, MODULES[seam])
    if not ok then return BUILT_IN[seam] end
    return registry:names()
  end
end

return M
