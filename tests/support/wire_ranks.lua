-- wire_ranks.lua - one rank of tests/system/test_wire.lua: trains two steps and compares the bytes
-- of tensors that the ranks sent in the second one with the formula of `segzero plan`, for the
-- prompts and answers that the step had.
--
--   mpirun -n 2 ./segzero tests/support/wire_ranks.lua key=value ...     the recipe's settings
--
-- Prints "formula N sent M together K" with the bytes of all ranks, of tensors and in all.

local sz = require "segzero"
local recipe = require "recipes.refcocog_grpo"
local ranks = require "segzero.core.ranks"
local plan_count = require "segzero.tools.plan_count"
local plan_ranks = require "segzero.tools.plan_ranks"
local wire = require "segzero.tools.plan_wire"

-- The estimator sees all groups of a step, those of other replicas too.
local seen
local grpo = sz.advantages:get "grpo"
sz.advantages:register("watched", { help = "grpo, with a look at the groups",
  fn = function(batch, options)
    seen = batch.groups
    return grpo.fn(batch, options)
  end })

local settings = { "algorithm.adv_estimator=watched" }
for _, word in ipairs(arg) do settings[#settings + 1] = word end
local cfg = recipe.settings(settings)
local world = ranks.world()
local split = plan_ranks.split(cfg, world:size())

local function image_tokens(t)
  for _, group in ipairs(seen) do
    if group.input then return t.policy:vision_tokens(group.input) end
  end
  return 0
end

-- The work of the step; all images have the same size.
local function work_of(t)
  local frozen = cfg.worker.actor.freeze_vision_tower
  local images = world:gather(image_tokens(t))
  local pictured = #seen * math.max(unpack(images))
  local work = { shards = split.shards, replicas = split.replicas, updates = 1,
    shard_state = cfg.worker.actor.optim.shard_state, update = {}, reference = {}, sampling = {},
    image_tokens = { sampling = pictured, reference = pictured, update = pictured } }
  if frozen then work.image_tokens.update, work.image_tokens.reference = 0, 0 end
  for _, group in ipairs(seen) do
    local prompt = group.row.prompt_tokens
    if group.input and group.input.input_ids then prompt = #group.input.input_ids end
    local rows = 0
    for _, sample in ipairs(group.samples) do rows = rows + sample.length end
    local later = rows - #group.samples
    work.update[#work.update + 1] = { tokens = prompt + later, rows = rows }
    work.sampling[#work.sampling + 1] = { tokens = prompt, rows = 1 }
    work.sampling[#work.sampling + 1] = { tokens = later, rows = later }
  end
  if t.reference then work.reference = work.update end
  return work
end

local function report(t, tensors, all)
  local trained = plan_count.trained_shapes(cfg, t.policy)
  local list = wire.step(plan_ranks.model(cfg, t.policy, trained), work_of(t))
  local sums = world:sum { tensors, all }
  if world:rank() > 0 then return end
  for _, row in ipairs(list) do io.stderr:write(("  %s %d\n"):format(row.name, row.bytes)) end
  io.stderr:write(("formula %d sent %d together %d\n"):format(wire.total(list, 1), sums[1],
    sums[2]))
end

local before, values_before
recipe.run(settings, {
  on_step = function(t)
    local sent, values = ranks.bytes_sent()
    if before then report(t, sent - before - (values - values_before), sent - before) end
    before, values_before = ranks.bytes_sent()
  end,
})
