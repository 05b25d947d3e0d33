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

local M = {}

function M.of(seam)
  return function() return require(MODULES[seam]):names() end
end

return M
