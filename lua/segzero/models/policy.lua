-- policy.lua - the methods that all policies share, built on the few functions that a family
-- writes.
--
--   local methods = policy.methods(own)       own: the family's functions; the rest gets a default
--   policy.REQUIRED                           names of the functions that a family must have
--
-- The defaults are forward, logprobs, generate, the cache that a model keeps between calls, the
-- tokenizer, the processor, and the answers of a model without images, adapters or 8 bits. What
-- each means is the contract in README.md. Leaves out: networks (network.lua, or the family's own).

local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local options = require "segzero.core.options"
local tensor = require "segzero.core.tensor"
local generation = require "segzero.inference.generation_config"
local packing = require "segzero.inference.packing"

local C = core.C

local M = {}

M.REQUIRED = { "hidden", "logits", "logprob_of", "new_cache", "parameters", "train", "save",
  "free" }

local defaults = {}

-- ---- inputs ----
function defaults:tokenizer()
  if not self.tok then self.tok = require("segzero.models.text.tokenizer").new(self.dir) end
  return self.tok
end

function defaults:has_tokenizer()
  if self.tok then return true end
  return self.dir ~= nil and files.exists(self.dir .. "/tokenizer.json")
end

function defaults:processor()
  if not self.proc then self.proc = require("segzero.models.qwen_vl.processor").new(self.dir) end
  return self.proc
end

function defaults:process(messages)
  local ids = { image_token_id = self.image_token_id }
  return self:processor():process(messages, self:tokenizer(), ids)
end

-- ---- images: none ----
function defaults:vision() return nil end
function defaults:is_vision_weight() return false end

-- Tokens of an input's images.
function defaults:vision_tokens(input)
  local patches = 0
  for _, grid in ipairs(input.image_grid_thw or {}) do
    patches = patches + grid[1] * grid[2] * grid[3]
  end
  return patches / self.dims.patches_per_token
end

-- ---- adapters and 8 bits: none ----
function defaults:enable_adapters() return true end

-- Bytes of the weights of a model that is loaded with this dtype.
function defaults:weight_bytes(dtype)
  local width = tensor.WIDTH[dtype]
  if not width then
    error(("weight_bytes: this model cannot be held in %s"):format(tostring(dtype)), 2)
  end
  return require("segzero.models.weights").bytes(self.weights, width)
end

-- ---- generation ----
-- The generation settings of generation_config.json.
function defaults:generation()
  if not self.dir then return {} end
  return generation.read(self.dir)
end

-- Tokens that end an answer: generation_config.json's, else the tokenizer's end of turn.
function defaults:stop_ids()
  return self:generation().eos_token_id or { self:tokenizer().eos_id }
end

-- Ids that are never sampled, in addition to ids without a token.
function defaults:banned_ids() return {} end

-- u8 [vocab], 1: never sampled. Kept with the model.
function defaults:banned_tokens()
  if self.banned then return self.banned end
  local vocab = self.dims.vocab
  local banned = require("ffi").new("uint8_t[?]", vocab)
  for _, id in ipairs(self:banned_ids()) do
    if id >= 0 and id < vocab then banned[id] = 1 end
  end
  if self:has_tokenizer() then
    for id = self:tokenizer():size(), vocab - 1 do banned[id] = 1 end
  end
  self.banned = banned
  return banned
end

-- Token ids must be whole and in the vocabulary, because C does not check them.
local function check_ids(policy, ids, what, level)
  if type(ids) ~= "table" then
    error(("%s is a %s, not a list of token ids"):format(what, type(ids)), level + 1)
  end
  local vocab = policy.dims.vocab
  for i, id in ipairs(ids) do
    if type(id) ~= "number" or id % 1 ~= 0 or id < 0 or id >= vocab then
      error(("%s[%d] is %s, not a token id (0 to %d)"):format(what, i, tostring(id), vocab - 1),
        level + 1)
    end
  end
end

-- An input may have been made or changed by hand, and C reads as many positions as ids.
local function check_input(policy, input, name, level)
  level = level + 1
  if type(input) == "table" and type(input[1]) == "table" and input[1].input_ids then
    error(name .. ": it takes one input, got a list; sz.rollout.generate(vl, inputs, options) "
      .. "takes several", level)
  end
  if type(input) ~= "table" or not input.input_ids or not tensor.is_tensor(input.position_ids) then
    error(name .. ": what vl:process(messages) returned is expected, got " .. type(input), level)
  end
  local ids = input.input_ids
  check_ids(policy, ids, name .. ": input_ids", level)
  local positions = input.position_ids:shape()
  if #ids == 0 or positions[1] ~= 3 or positions[2] ~= #ids then
    local sizes = table.concat(positions, ", ")
    error(("%s: %d input_ids, but position_ids [%s]"):format(name, #ids, sizes), level)
  end
  local image_tokens = 0
  for _, id in ipairs(ids) do
    if id == policy.image_token_id then image_tokens = image_tokens + 1 end
  end
  local patches = 0
  if input.pixel_values then patches = input.pixel_values:shape()[1] end
  local each = policy.dims.patches_per_token
  if patches ~= image_tokens * each then
    error(("%s: %d image tokens of %d patches each, but pixel_values has %d patches"):format(name,
      image_tokens, each, patches), level)
  end
end

function defaults:forward(input)
  check_input(self, input, "forward", 2)
  local stream = packing.stream({ { input = input, answers = {} } }, self.image_token_id)
  return self:logits(self:hidden(stream, self:vision { input }))
end

function defaults:logprobs(input, lists)
  check_input(self, input, "logprobs", 2)
  if type(lists) ~= "table" then
    error("logprobs: a list of lists of token ids is expected, got " .. type(lists), 2)
  end
  for i, ids in ipairs(lists) do
    check_ids(self, ids, "logprobs: list " .. i, 2)
    if #ids == 0 then error(("logprobs: list %d is empty"):format(i), 2) end
  end
  local stream = packing.stream({ { input = input, answers = lists } }, self.image_token_id)
  local hidden = self:hidden(stream, self:vision { input }, { rows = stream.rows })
  local logprob = self:logprob_of(hidden, stream.targets)
  local out = {}
  for i, span in ipairs(stream.spans[1]) do out[i] = logprob:narrow(span[1], span[2]) end
  return out
end

-- The REPL shows a single answer while it is generated.
local function echo_to_prompt(policy, opts)
  if opts.on_text ~= nil or not generation.echo or (opts.n or 1) ~= 1 then return nil end
  if not policy:has_tokenizer() then return nil end
  local shown = { any = false }
  opts.on_text = function(i, piece)
    shown.any = true
    generation.echo(i, piece)
  end
  return shown
end

-- Like transformers' generate: generation_config.json supplies the options that opts leaves out.
function defaults:generate(input, opts)
  check_input(self, input, "generate", 2)
  opts = options.check("generate", opts, generation.OPTIONS, 2)
  local ok, full = pcall(generation.options, self:generation(), opts)
  if not ok then error(core.plain(full), 2) end
  local shown = echo_to_prompt(self, full)
  local answers = require("segzero.inference.generate").generate(self, { input }, full)[1]
  if shown and shown.any then generation.echo(1, "\n") end
  return answers
end

-- ---- the cache ----
-- Each model keeps one cache, and allocates a new one if it is too small, with some extra room for
-- longer prompts. After a few training steps no cache is allocated any more.
function defaults:cache_for(rows)
  if self.kv and self.kv:rows() >= rows then return self.kv end
  if self.kv then self.kv:free() end
  self.kv = nil
  local ok, cache = pcall(self.new_cache, self, math.ceil(rows * 1.0625 / 256) * 256)
  if not ok then
    error(("a key-value cache of %d tokens (prompts and max_new_tokens): %s"):format(rows,
      core.plain(cache)), 0)
  end
  self.kv = cache
  return cache
end

-- Frees the cache's memory, for instance before an update. The next generate() allocates it again.
function defaults:release_cache()
  if not self.kv then return end
  if self.device == "cpu" then
    self.kv:clear()
    return
  end
  self.kv:free()
  self.kv = nil
end

-- Bytes that were free on the device when this model was first sampled from.
function defaults:free_device_bytes()
  if not self.free_bytes then self.free_bytes = tonumber(C.sz_device_available(C.SZ_CUDA)) end
  return math.max(0, self.free_bytes)
end

-- Arguments of the methods without options: an options table given to one of them is an error.
local LIMITS = { process = 1, forward = 1, logprobs = 2, generate = 2, parameters = 0, free = 0,
  tokenizer = 0, processor = 0, vision_tokens = 1 }

function M.methods(own)
  local all = {}
  for name, f in pairs(defaults) do all[name] = f end
  for name, f in pairs(own) do all[name] = f end
  for _, name in ipairs(M.REQUIRED) do
    if type(all[name]) ~= "function" then
      error(("policy.methods: a family needs the function '%s'"):format(name), 2)
    end
  end
  return options.limit(all, LIMITS)
end

return M
