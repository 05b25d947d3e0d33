-- check_step.lua - runs GRPO steps of the recipe and saves what another program needs to compute
-- the first one again.
--
--   ./segzero tests/bench/check_step.lua OUTPUT key=value ...
--       settings of recipes/refcocog_grpo.lua
--   python tests/bench/check_step.py OUTPUT MODEL
--       compares loss, log-probabilities and gradients with transformers
--
-- OUTPUT/case.json has inputs, answers with log-probabilities and advantages, settings, loss,
-- gradient norms by parameter and resident memory by phase. OUTPUT/pixels.safetensors has the
-- patches of the images. The reward counts letters, so that random answers differ in it.

local cjson = require "cjson"
local sz = require "segzero"
local files = require "segzero.core.files"
local trainer = require "segzero.train.trainer"
local plan = require "segzero.tools.plan"
local recipe = require "recipes.refcocog_grpo"

local C = sz.core.C
local output = assert(arg[1], "which folder?")
files.make_dir(output)

local case = { groups = {}, memory = {} }
local function resident(phase)
  local text = io.open("/proc/self/status"):read "*a"
  local now = text:match "VmRSS:%s*(%d+)"
  local peak = text:match "VmHWM:%s*(%d+)"
  case.memory[#case.memory + 1] = { phase = phase, now = now * 1024, peak = peak * 1024 }
  print(("%-8s resident %s, peak %s"):format(phase, plan.gib(now * 1024), plan.gib(peak * 1024)))
end

local methods = getmetatable(trainer.bare {}).__index
local rollout = methods.rollout
local update = methods.update
function methods:rollout(rows)
  resident "start"
  local groups = rollout(self, rows)
  resident "rollout"
  return groups
end

function methods:update(groups, lr)
  if #case.groups > 0 then
    local stats = update(self, groups, lr)
    resident "update"
    return stats
  end
  local pixels = {}
  for i, g in ipairs(groups) do
    local answers = {}
    for k, a in ipairs(g.samples) do
      answers[k] = { ids = a.ids, logprobs = a.logprobs, advantage = a.advantage }
    end
    case.groups[i] = { input_ids = g.input.input_ids, grid = g.input.image_grid_thw,
      answers = answers }
    pixels["pixels." .. i - 1] = g.input.pixel_values
  end
  sz.safetensors.save(output .. "/pixels.safetensors", pixels)
  local opt = self.optimizer
  function opt.step(o, rate)
    resident "backward"
    case.squares = {}
    for _, p in ipairs(self.parameters) do
      local g = p.tensor:grad()
      local s = g:sum_squares()
      case.squares[p.name] = s:item()
      s:free()
      g:free()
    end
    opt.step = nil                       -- the class's own from now on
    return o:step(rate)
  end
  local stats = update(self, groups, lr)
  resident "update"
  case.stats = stats
  case.settings = self.config
  files.write(output .. "/case.json", cjson.encode(case))
  return stats
end

local function letters(text)
  local sum = 0
  for i = 1, #text do sum = sum + text:byte(i) % 7 end
  return sum % 11
end

recipe.run({ "trainer.max_steps=1", "trainer.save_freq=-1", "trainer.val_before_train=false",
  "data.train_files=refshapes", "data.val_files=None",
  "trainer.save_checkpoint_path=" .. output .. "/run", unpack(arg, 2) }, { reward = letters })
print(("peak %s"):format(plan.gib(tonumber(C.sz_peak_rss()))))
