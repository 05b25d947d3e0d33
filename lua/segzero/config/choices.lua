-- choices.lua - names that a setting accepts and that are registered elsewhere: `choices =
-- choices.of "losses"`.
--
-- They are asked when a value is read, so that a name that a script has registered counts, and the
-- registry's module is loaded only then.

local MODULES = {
  advantages = "segzero.algorithms.advantages",
  losses = "segzero.algorithms.losses",
  kl = "segzero.algorithms.kl",
  aggregations = "segzero.algorithms.aggregations",
  schedules = "segzero.algorithms.schedules",
  loggers = "segzero.log.loggers",
}

-- Names for as long as the module is not there.
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
