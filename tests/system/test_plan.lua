-- test_plan.lua - the memory plan: making it takes almost no memory, its parts have the sizes that
-- training makes, its arena is the arena that a step uses, and a run that cannot fit is refused
-- with the numbers and with settings that help.
--
--   ./segzero tests/system/test_plan.lua
--
-- Leaves out: what happens if memory runs out in a run (test_memory.lua).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local plan = require "segzero.tools.plan"
local prompt = require "segzero.data.prompt"

local C = sz.core.C

local dir = mini.write(mini.folder() .. "/model")
local cfg = mini.settings { "worker.actor.model.model_path=" .. dir, "data.max_response_length=8" }

local function make_plan(ranks)
  return plan.of(cfg, { prompt = prompt.seg_zero, ranks = ranks, neighbours = ranks })
end

-- The bytes of f32 tensors.
local function bytes_of(list)
  local sum = 0
  for _, t in pairs(list) do sum = sum + 4 * t:numel() end
  return sum
end

-- What a step uses against the plan. Prompts and answers differ in length from the plan's longest,
-- and a chunk of the arena counts up to its last byte in use.
local function check_arena(p, t)
  C.sz_arena_used(1)
  t:step()
  local used = tonumber(C.sz_arena_used(0))
  local planned = math.max(p.arena.update, p.arena.sampling)
  local name = ("arena: planned %.2f MB, used %.2f MB"):format(planned / 1e6, used / 1e6)
  check.ok(math.abs(planned / used - 1) < 0.1, name)
end

check.case("a plan of a miniature takes no memory and fits", function()
  local p = make_plan()
  check.equal(tonumber(C.sz_arena_used(0)), 0, "the counting arena is freed")
  check.ok(p.fits and p.peak > p.parts.weights * 4, "a miniature fits")
end)

check.case("the plan's sizes are those of a training step", function()
  local p = make_plan()
  local t = mini.trainer(cfg, { model = dir, reference = true })

  -- What lasts, against the tensors that a trainer makes.
  local weights = bytes_of(t.policy:parameters())
  local moments = bytes_of(t.optimizer:state())
  local parts = { p.parts.weights, p.parts.moments, p.parts.gradients }
  check.equal(parts, { weights, moments, weights }, "weights, moments, gradients")

  check_arena(p, t)
end)

-- Of many chunks the plan runs three, and makes no more groups than a micro-batch holds. Chunk by
-- chunk this plan would take minutes and gigabytes.
check.case("a group of many chunks is planned in seconds", function()
  local settings = { "worker.actor.model.model_path=" .. dir, "data.max_response_length=8",
    "worker.actor.max_tokens_per_micro_batch=1", "worker.rollout.n=6" }
  local chunked = mini.settings(settings)
  local p = plan.of(chunked, { prompt = prompt.seg_zero })
  check.ok(p.largest:find "its answers 1 at a time", p.largest)
  local t = mini.trainer(chunked, { model = dir, reference = true })
  check_arena(p, t)

  settings[2] = "data.max_response_length=20000"
  settings[4] = "worker.rollout.n=512"
  settings[5] = "data.rollout_batch_size=4096"
  settings[6] = "worker.actor.global_batch_size=4096"
  local started = os.clock()
  plan.of(mini.settings(settings), { prompt = prompt.seg_zero })
  local seconds = os.clock() - started
  check.ok(seconds < 20, ("%.1f s for the plan"):format(seconds))
end)

check.case("each of several ranks has its part of the optimizer's state", function()
  local one = make_plan().parts
  local four = make_plan(4).parts
  check.equal(four.moments, math.ceil(one.moments / 4), "moments")
  check.equal({ four.weights, four.gradients }, { one.weights, one.gradients }, "the others")
end)

check.case("the ranks of a machine must fit into it together", function()
  local one = make_plan()
  check.equal(one.needed, one.peak, "one process")
  local four = make_plan(4)
  local shared = four.parts.reference + four.parts.weights - four.parts.gradients
  check.equal(four.needed, 4 * four.peak - 3 * shared, "four: the file's pages count once")
  check.ok(four.parts.images < one.parts.images, "each has a part of the images")

  -- A machine that holds one rank and not four.
  local device = plan.device
  plan.device = function() return { total = four.needed - 1, free = four.needed } end
  local alone = plan.of(cfg, { prompt = prompt.seg_zero, ranks = 4, neighbours = 1 })
  check.ok(alone.fits and not make_plan(4).fits, "one of four fits, four do not")
  plan.device = device
end)

check.case("a reference that only the estimator needs is counted", function()
  local function planned(...)
    return plan.of(mini.settings { "worker.actor.model.model_path=" .. dir,
      "data.max_response_length=8", "worker.actor.use_kl_loss=false", ... },
      { prompt = prompt.seg_zero })
  end
  sz.advantages:register("with_reference", {
    help = "a test's estimator",
    needs = { reference = true },
    fn = function(batch) return sz.advantages:get("grpo").fn(batch, {}) end,
  })
  local without = planned()
  local with = planned "algorithm.adv_estimator=with_reference"
  check.equal({ without.parts.reference, without.arena.reference }, { 0, 0 }, "no KL, no reference")
  check.equal(with.parts.reference, with.parts.weights, "the reference's weights")
  check.ok(with.arena.reference > 0, "and its forward pass")
  check.ok(with.peak >= without.peak + with.parts.reference, "both are in the peak")
end)

check.case("a run that cannot fit is refused with the numbers", function()
  local p = make_plan()
  local device = plan.device
  plan.device = function() return { total = p.peak - 1, free = p.peak } end
  check.raises(function() plan.check(cfg) end,
    "would take .* of memory, this machine has .* trainer.check_memory=false",
    "refused with the numbers")
  plan.device = device
  check.ok(plan.check(cfg).fits, "and accepted on this machine")
end)

check.case("the exit status says whether the run fits", function()
  local args = { "plan", "worker.actor.model.model_path=" .. dir, "data.max_response_length=8" }
  local text, status = mini.run(args)
  check.ok(status == 0 and text:find "\nthe run fits: ", "it fits: " .. text)
  args[3] = "data.max_response_length=16777216"
  text, status = mini.run(args)
  check.ok(status == 1 and text:find "\nthe run does not fit: ", "it does not: " .. text)
end)

-- A number far beyond any memory must not be allocated in order to find out. Real token tables of
-- this length would take 800 MB.
check.case("answers of millions of tokens are planned in little memory", function()
  local function planned(length, micro)
    return plan.of(mini.settings { "worker.actor.model.model_path=" .. dir,
      "data.max_response_length=" .. length, "worker.actor.max_tokens_per_micro_batch=" .. micro },
      { prompt = prompt.seg_zero })
  end
  collectgarbage()
  local before = collectgarbage "count"
  local huge = planned(2 ^ 24, 100000)
  local grown = (collectgarbage "count" - before) / 1024
  check.ok(not huge.fits and huge.peak > 2 ^ 35, ("%.0f GiB"):format(huge.peak / 2 ^ 30))
  check.ok(grown < 100, ("%.0f MiB for planning"):format(grown))

  -- The last length that is counted and the first ones that are not. The micro-batches hold one
  -- answer, or all of them.
  for _, micro in ipairs { 1000, 2 ^ 31 } do
    local counted = planned(2 ^ 16, micro).arena
    local twice = planned(2 ^ 17, micro).arena
    for name, bytes in pairs(counted) do
      local ratio = twice[name] / bytes
      local limits = name == "sampling" and { 0.99, 2.01 } or { 1.8, 2.2 }
      check.ok(ratio > limits[1] and ratio < limits[2], ("%s, %g: %.3f"):format(name, micro, ratio))
    end
  end
  local settings = mini.settings { "worker.actor.model.model_path=" .. dir,
    "data.max_response_length=16777216" }
  check.raises(function() plan.check(settings, { prompt = prompt.seg_zero }) end,
    "^the run would take %d+.%d%d GiB of memory.* It would fit with "
      .. "data.max_response_length=%d+%. ", "the cure")
end)

mini.remove()
check.finish()
