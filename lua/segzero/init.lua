-- init.lua - what `require "segzero"` returns: the names that scripts use. Each is explained where it is defined.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"

local M = {}

M.version = ffi.string(core.C.sz_version())
M.core = core

M.tensor = setmetatable({}, {
  __call = function(_, values, opts) return tensor.new(values, opts) end,
  __index = tensor,
})
M.no_grad, M.step = tensor.no_grad, tensor.step

-- What device = can name here: {"cpu"}, or {"cpu", "cuda:0"}.
function M.devices() return core.C.sz_device_count(core.C.SZ_CUDA) > 0 and { "cpu", "cuda:0" } or { "cpu" } end

-- Modules that load on first use, so that starting costs nothing.
local lazy = {
  safetensors = "segzero.formats.safetensors", image = "segzero.formats.image", config = "segzero.config", data = "segzero.data",
  prompt = "segzero.data.prompt", answer = "segzero.formats.answer", advantage = "segzero.algorithms.advantage", loss = "segzero.algorithms.loss",
  refshapes = "segzero.data.refshapes", trainer = "segzero.train.trainer", checkpoint = "segzero.train.checkpoint", log = "segzero.log",
  rollout = "segzero.inference.rollout", optim = "segzero.train.optim", processor = "segzero.models.processor",
  torchfile = "segzero.formats.torchfile", segment = "segzero.inference.segmenter", generation = "segzero.inference.generation_config", lora = "segzero.models.lora",
}

function M.tokenizer(dir) return require("segzero.models.tokenizer").new(dir) end
function M.qwen_vl(dir, opts) return require("segzero.models.qwen_vl").qwen_vl(dir, opts) end
function M.sam2(path, opts) return require("segzero.models.sam2").sam2(path, opts) end

return setmetatable(M, {
  __index = function(t, name)
    if not lazy[name] then return nil end
    local module = require(lazy[name])
    rawset(t, name, module)
    return module
  end,
})
