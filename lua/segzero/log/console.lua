-- console.lua - the logger that prints: a line for each step, where the time went, and every text
-- of the run.
--
--   console.duration(171) -> "2:51"
--   console.times({ decode = 3.1, ... }, phases) -> "  time: decode 41 %, ..."
--   console.say "saved runs/x"              prints the line at once, with control characters shown
--
-- The line of a step: reward, mean length, KL, entropy, gradient norm, the largest difference
-- between the sampler's and the trainer's log-probabilities, seconds a step, and the estimated time
-- left. Every PARTS_EVERY steps a line has the parts of the reward, if there are several: the means
-- over the steps since the last such line.
-- Leaves out: colours; how far a step is (progress.lua).

local core = require "segzero.core.ffi"
local live_line = require "segzero.core.live_line"
local reward_parts = require "segzero.log.reward_parts"
local timer = require "segzero.log.timer"
local visible = require "segzero.core.visible"

local M = {}

local methods = {}
local mt = { __index = methods }

local TIME_EVERY = 50       -- steps between two lines that say where the time went
local PARTS_EVERY = 10      -- steps between two lines with the parts of the reward

function M.open(run)
  return setmetatable({ run = run, spent = {}, parts = {}, parts_steps = 0 }, mt)
end

-- Seconds as "m:ss" or "h:mm:ss".
function M.duration(seconds)
  seconds = math.max(0, math.floor(seconds + 0.5))
  if seconds >= 3600 then
    return ("%d:%02d:%02d"):format(seconds / 3600, seconds / 60 % 60, seconds % 60)
  end
  return ("%d:%02d"):format(seconds / 60, seconds % 60)
end

-- Phases by their share of the time, largest first; what rounds to 0 % is left out.
function M.times(spent, phases)
  local total = 0
  local list = {}
  for i, name in ipairs(phases) do
    local seconds = spent[name] or 0
    total = total + seconds
    list[i] = { name = name, seconds = seconds, place = i }
  end
  table.sort(list, function(a, b)
    if a.seconds ~= b.seconds then return a.seconds > b.seconds end
    return a.place < b.place
  end)
  local parts = {}
  for _, phase in ipairs(list) do
    local share = total > 0 and 100 * phase.seconds / total or 0
    if share >= 0.5 then parts[#parts + 1] = ("%s %.0f %%"):format(phase.name, share) end
  end
  return "  time: " .. table.concat(parts, ", ")
end

-- Prints a line at once; control characters in it are shown (core/visible.lua). Recipes and
-- settings use it for what they tell the user. A line that cannot be written is an error.
function M.say(text)
  live_line.clear()
  text = visible.text(text) .. "\n"
  core.call(core.C.sz_print(text, #text))
end

local say = M.say

local STEP_LINE = "reward %.3f  length %.0f  kl %.4f  entropy %.3f  grad %.2f  sampler-trainer %.1e"

function methods:step_line(step, t)
  local total = self.run.total_steps or step
  local started = self.started or core.C.sz_seconds()
  local done = math.max(1, step - (self.run.first_step or 0))
  local each = (core.C.sz_seconds() - started) / done
  local numbers = STEP_LINE:format(t.reward, t.length, t.kl, t.entropy, t.grad_norm, t.mismatch)
  local width = #tostring(total)
  return ("%" .. width .. "d/%d  %s  %.1f s/step  ETA %s"):format(step, total, numbers, each,
    M.duration(each * (total - step)))
end

-- Adds a step's parts of the reward, and prints their means when they are due.
local function count_parts(self, step, t)
  for name, v in pairs(reward_parts.of_step(t)) do
    self.parts[name] = (self.parts[name] or 0) + v
  end
  self.parts_steps = self.parts_steps + 1
  if step % PARTS_EVERY ~= 0 and step ~= self.run.total_steps then return end
  local count = 0
  for name, sum in pairs(self.parts) do
    count = count + 1
    self.parts[name] = sum / self.parts_steps
  end
  if count > 1 then say("  parts: " .. reward_parts.text(self.parts)) end
  self.parts = {}
  self.parts_steps = 0
end

-- Called by the run when its first step begins, so that loading and evaluating do not count as
-- steps.
function methods:start() self.started = core.C.sz_seconds() end

function methods:scalars(step, t)
  if not t.reward then return end           -- an evaluation; its text says it
  say(self:step_line(step, t))
  local norm = t.grad_norm
  if norm ~= norm or norm == math.huge then
    say "  the gradient is not finite: this update is skipped"
  end
  count_parts(self, step, t)
  for name, seconds in pairs(t.time or {}) do
    self.spent[name] = (self.spent[name] or 0) + seconds
  end
  if step % TIME_EVERY == 0 or step == self.run.total_steps then
    say(M.times(self.spent, timer.phases))
    self.spent = {}
  end
end

function methods:text(_, _, s) say(s) end

return M
