-- tokens.lua - the answer tokens of one micro-batch as tensors: the argument of a registered loss.
--
--   local t = tokens.new(runs, logprob, entropy, device)   runs: see forward.lua
--   t.logprob, t.entropy            as given, with gradients
--   t.old, t.advantage, t.reference from the samples; t.reference is nil if they have none
--   t:sequence_mean(x)              the mean of x over each answer, at each of its tokens; has a
--                                   gradient
--   t:weights(f)                    f(length of the answer) for each token
--
-- All are f32 [tokens] on `device`, without padding.

local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"

local M = {}

local methods = {}
local mt = { __index = methods }

-- One number for each token: value(sample, i) for token i of an answer.
local function per_token(runs, device, value)
  local list = {}
  for _, run in ipairs(runs) do
    for i = run.first, run.last do list[#list + 1] = value(run.sample, i) end
  end
  return tensor.new(list, { device = device })
end

local function advantage_at(sample, i)
  local advantage = sample.advantage
  if type(advantage) == "table" then return advantage[i] end
  return advantage
end

function M.new(runs, logprob, entropy, device)
  local t = setmetatable({ runs = runs, device = device, logprob = logprob, entropy = entropy }, mt)
  t.old = per_token(runs, device, function(sample, i) return sample.logprobs[i] end)
  t.advantage = per_token(runs, device, advantage_at)
  if runs[1].sample.reference then
    t.reference = per_token(runs, device, function(sample, i) return sample.reference[i] end)
  end
  return t
end

function methods:weights(f)
  return per_token(self.runs, self.device, function(sample) return f(#sample.ids) end)
end

-- Which answer each token belongs to, from 0, and how many answers there are.
local function owners(runs)
  local number = {}
  local count = 0
  local owner = {}
  for _, run in ipairs(runs) do
    if not number[run.sample] then
      number[run.sample] = count
      count = count + 1
    end
    for _ = run.first, run.last do owner[#owner + 1] = number[run.sample] end
  end
  return owner, count
end

-- The matrix [answers, tokens] that averages over answers: 1 / length where a token belongs to an
-- answer, else 0.
local function averaging(runs, owner, count, device)
  local matrix = tensor.zeros { count, #owner }
  local data = tensor.data(matrix)
  local at = 0
  for _, run in ipairs(runs) do
    for _ = run.first, run.last do
      data[owner[at + 1] * #owner + at] = 1 / #run.sample.ids
      at = at + 1
    end
  end
  return matrix:to { device = device }
end

function methods:sequence_mean(x)
  if not self.matrix then
    local owner, count = owners(self.runs)
    self.answers = count
    self.owner = packing.list(owner)
    self.matrix = averaging(self.runs, owner, count, self.device)
  end
  local n = x:numel()
  local means = x:reshape(1, n):linear(self.matrix):reshape(self.answers, 1)
  return means:gather_rows(self.owner):reshape(n)
end

return M
