-- init.lua - what `require "segzero"` returns: the names that scripts use. Each is explained where
-- it is defined.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local options = require "segzero.core.options"
local tensor = require "segzero.core.tensor"

local M = {}

M.version = ffi.string(core.C.sz_version())
M.core = core

M.tensor = setmetatable({}, {
  __call = options.at_most("tensor", 2, function(_, ...) return tensor.new(...) end, 1),
  __index = tensor,
})
M.no_grad = tensor.no_grad
M.step = tensor.step

-- The devices of this machine: {"cpu"}, or {"cpu", "cuda:0"}.
function M.devices()
  local devices = { "cpu" }
  if core.C.sz_device_count(core.C.SZ_CUDA) > 0 then devices[2] = "cuda:0" end
  return devices
end

-- Modules that load on first use, which keeps the start fast.
local lazy = {
  -- registries: sz.losses:register(name, spec), :get(name), :names()
  advantages = "segzero.algorithms.advantages",
  losses = "segzero.algorithms.losses",
  kl = "segzero.algorithms.kl",
  aggregations = "segzero.algorithms.aggregations",
  schedules = "segzero.algorithms.schedules",
  sources = "segzero.data.sources",
  loggers = "segzero.log.loggers",
  models = "segzero.models.registry",
  -- modules
  answer = "segzero.formats.answer",
  checkpoint = "segzero.train.run.checkpoint",
  config = "segzero.config",
  data = "segzero.data",
  draw = "segzero.tools.draw",
  frame = "segzero.data.frame",
  generation = "segzero.inference.generation_config",
  image = "segzero.formats.image",
  lab = "segzero.lab",
  log = "segzero.log",
  lora = "segzero.models.lora",
  metrics = "segzero.evaluation.metrics",
  optim = "segzero.train.optim",
  plan = "segzero.tools.plan",
  processor = "segzero.models.qwen_vl.processor",
  prompt = "segzero.data.prompt",
  refshapes = "segzero.data.refshapes",
  rollout = "segzero.inference.generate",
  safetensors = "segzero.formats.safetensors",
  segment = "segzero.inference.segmenter",
  torchfile = "segzero.formats.torchfile",
  trainer = "segzero.train.trainer",
  -- the names of segzero 0.1 for what the registries hold
  advantage = "segzero.algorithms.advantages",
  loss = "segzero.algorithms.loss",
}

function M.tokenizer(...) return require("segzero.models.text.tokenizer").new(...) end
-- The family that dir/config.json names opens the folder (sz.models).
function M.model(dir, opts) return require("segzero.models.opening").open(dir, opts) end
function M.qwen_vl(dir, opts) return require("segzero.models.qwen_vl").qwen_vl(dir, opts) end
function M.sam2(path, opts) return require("segzero.models.sam2").sam2(path, opts) end

for name, most in pairs { devices = 0, model = 2, qwen_vl = 2, sam2 = 2 } do
  M[name] = options.at_most(name, most, M[name])
end

return setmetatable(M, {
  names = lazy,                 -- for the prompt's completion
  __index = function(t, name)
    -- torch has torch.randn.
    if not lazy[name] and tensor[name] then
      error(("there is no sz.%s; did you mean sz.tensor.%s?"):format(name, name), 2)
    end
    if not lazy[name] then return nil end
    local module = require(lazy[name])
    rawset(t, name, module)
    return module
  end,
})
