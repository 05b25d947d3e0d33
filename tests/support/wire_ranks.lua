-- wire_ranks.lua - one rank of tests/system/test_wire.lua: trains two steps and compares the bytes of
-- tensors that the ranks sent in the second one with the formula of `segzero plan`.
--
--   mpirun -n 2 ./segzero tests/support/wire_ranks.lua key=value ...     the recipe's settings
--
-- Prints "formula N sent M together K" with the bytes of all ranks, of tensors and in all.

local recipe = require "recipes.refcocog_grpo"
local ranks = require "segzero.core.ranks"
local plan_count = require "segzero.tools.plan_count"
local plan_ranks = require "segzero.tools.plan_ranks"
local wire = require "segzero.tools.plan_wire"

local function copy(t)
  if type(t) ~= "table" then return t end
  local out = {}
  for k, v in pairs(t) do out[k] = copy(v) end
  return out
end

-- What the step really had: this replica's groups are those whose input this rank has kept.
local lengths = {}              -- of the step's answers, by group
local prompts = {}

local cfg = recipe.settings(arg)
local world = ranks.world()
local split = plan_ranks.split(cfg, world:size())
local was, was_values

local function work_of()
  local work = { shards = split.shards, replicas = split.replicas, updates = 1,
    shard_state = cfg.worker.actor.optim.shard_state, update = {}, reference = {}, sampling = {},
    image_tokens = { sampling = 0, update = 0 } }
  return work
end

recipe.run(arg, {
  on_step = function(t)
    local sent, values = ranks.bytes_sent()
    if was then
      local list = wire.step(plan_ranks.model(cfg, t.policy,
        plan_count.trained_shapes(copy(cfg), t.policy)), work_of(lengths, prompts))
      local formula = wire.total(list, 1)
      local sums = world:sum { sent - was - (values - was_values), sent - was }
      if world:rank() == 0 then
        io.stderr:write(("formula %d sent %d together %d\n"):format(formula, sums[1], sums[2]))
      end
    end
    was, was_values = ranks.bytes_sent()
  end,
})
