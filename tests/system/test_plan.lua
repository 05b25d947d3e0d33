-- test_plan.lua - the memory plan: it touches no memory worth naming, its parts are the sizes that training makes, its arena is the arena that a
-- step uses, and a run that cannot fit is refused with the numbers and with settings that help.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local plan = require "segzero.tools.plan"
local prompt = require "segzero.data.prompt"
local C = sz.core.C

local dir = mini.write(mini.folder() .. "/model")
local cfg = mini.settings { "worker.actor.model.model_path=" .. dir, "data.max_response_length=8" }
local p = plan.of(cfg, { prompt = prompt.seg_zero })
check.equal(tonumber(C.sz_arena_used(0)), 0, "the counting arena is given back")
check.ok(p.fits and p.peak > p.parts.weights * 4, "a miniature fits")

-- What lasts, against the tensors that a trainer makes.
local t = mini.trainer(cfg, { model = dir, reference = true })
local weights, moments = 0, 0
for _, x in pairs(t.policy:parameters()) do weights = weights + 4 * x:numel() end
for _, x in pairs(t.optimizer:state()) do moments = moments + 4 * x:numel() end
check.equal({ p.parts.weights, p.parts.moments, p.parts.gradients }, { weights, moments, weights }, "weights, moments, gradients")

-- What a step uses. Prompts and answers differ in length from the plan's longest, and a chunk of the arena is counted up to its last byte in use.
C.sz_arena_used(1)
t:step()
local used, planned = tonumber(C.sz_arena_used(0)), math.max(p.arena.update, p.arena.sampling)
check.ok(math.abs(planned / used - 1) < 0.1, ("arena: planned %.2f MB, used %.2f MB"):format(planned / 1e6, used / 1e6))

-- A machine that is too small.
local device = plan.device
plan.device = function() return { total = p.peak - 1, free = p.peak } end
check.raises(function() plan.check(cfg) end, "would take .* of memory, this machine has .* trainer.check_memory=false", "refused with the numbers")
plan.device = device
check.ok(plan.check(cfg).fits, "and accepted on this one")

mini.remove()
check.finish()
