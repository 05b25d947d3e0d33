-- update.lua - the gradient of one update: the registered loss, the KL term and the entropy bonus,
-- weighted over the update.
--
--   local u = update.new(t)                        t: a trainer
--   u:gradient(batches, totals) -> stats           adds the gradients of all micro-batches
--   u:accumulate(batch, totals) -> stats           adds the gradients of one micro-batch
--   update.mean(list, parts, aggregation, into)    averages the statistics of several updates
--   update.forward_options(t)                      the options of forward.lua
--
-- loss = sum over tokens of weight * (loss + kl_coef * kl - entropy_coef * entropy). The weights
-- come from the aggregation and the totals of the whole update (records.totals), so the micro-batch
-- split does not change the loss. stats: loss, policy_loss, kl, entropy and the loss's own metrics,
-- each summed with the weights; and the figures of train/figures/ratios.lua.
-- Leaves out: the optimizer.

local tensor = require "segzero.core.tensor"
local aggregations = require "segzero.algorithms.aggregations"
local forward = require "segzero.train.forward"
local kl_estimators = require "segzero.algorithms.kl"
local losses = require "segzero.algorithms.losses"
local ratios = require "segzero.train.figures.ratios"
local progress = require "segzero.log.progress"
local records = require "segzero.train.records"
local tokens = require "segzero.train.tokens"
local user_code = require "segzero.core.user_code"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.forward_options(t)
  local options = { temperature = (t.now or t.numbers).temperature }
  for name, v in pairs(t.options.forward) do options[name] = v end
  return options
end

function M.new(t)
  local o = t.options.update
  local kl_name
  if t.reference and o.use_kl then kl_name = o.kl end
  return setmetatable({
    trainer = t, policy = t.policy, parallel = t.parallel,
    numbers = t.now or t.numbers,
    options = M.forward_options(t),
    loss_name = o.loss,
    loss = losses:get(o.loss).fn,
    kl_name = kl_name,
    kl = kl_name and kl_estimators:get(kl_name).fn,
    aggregation_name = o.aggregation,
    aggregation = aggregations:get(o.aggregation).fn,
  }, mt)
end

local function add(stats, name, v) stats[name] = (stats[name] or 0) + v end

-- The weighted sum of a metric: a number counts for every token.
local function weighted(metric, weights)
  if type(metric) == "number" then return metric * weights:sum():item() end
  return (metric:to { device = weights:device() } * weights):sum():item()
end

-- what: the user's function and its name. Its result must be a tensor with n elements that the
-- policy's gradient passes.
local function check_per_token(what, result, n)
  local is_tensor = tensor.is_tensor(result)
  if is_tensor and result:numel() == n then
    if result:requires_grad() then return end
    error(("%s returned a tensor without a gradient: it must depend on the policy's logprob")
      :format(what), 0)
  end
  local got = type(result)
  if is_tensor then got = ("a tensor of %d elements"):format(result:numel()) end
  error(("%s returned %s, expected a tensor with one element for each of %d tokens")
    :format(what, got, n), 0)
end

local function check_weight(self, weight)
  if type(weight) == "number" and weight == weight then return weight end
  error(("the loss average '%s' returned %s, expected a number"):format(self.aggregation_name,
    tostring(weight)), 0)
end

-- The metrics that a loss returned: names with numbers or tensors, or nil.
local function check_metrics(self, metrics, n)
  if metrics == nil then return end
  if type(metrics) ~= "table" then
    error(("the loss '%s' returned %s as metrics, expected names with numbers or tensors")
      :format(self.loss_name, tostring(metrics)), 0)
  end
  for name, v in pairs(metrics) do
    local is_scalar = type(v) == "number"
    local is_tensor = tensor.is_tensor(v) and (v:numel() == n or v:numel() == 1)
    if not is_scalar and not is_tensor then
      error(("the loss '%s' returned %s as metric %s, expected a number or a tensor [%d]")
        :format(self.loss_name, tostring(v), tostring(name), n), 0)
    end
  end
end

local function clip_of(numbers) return { low = numbers.clip_low, high = numbers.clip_high } end

-- Returns the loss of some answers, and a function that adds its numbers to stats.
function methods:loss_of(t, totals, stats)
  local numbers = self.numbers
  local weights = t:weights(function(length)
    return check_weight(self, self.aggregation(length, totals))
  end)
  local n = weights:numel()
  local per_token, metrics = user_code.call("the loss " .. self.loss_name, self.loss, t, numbers)
  check_per_token(("the loss '%s'"):format(self.loss_name), per_token, n)
  check_metrics(self, metrics, n)
  local policy_loss = (per_token * weights):sum()
  local entropy = (t.entropy * weights):sum()
  local loss = policy_loss - entropy * numbers.entropy_coef
  local kl
  if self.kl and t.reference then
    local what = "the KL estimator " .. self.kl_name
    local estimate = user_code.call(what, self.kl, t.logprob, t.reference)
    check_per_token(("the KL estimator '%s'"):format(self.kl_name), estimate, n)
    kl = (estimate * weights):sum()
    loss = loss + kl * numbers.kl_coef
  end

  local function after()
    ratios.add(stats, t, weights, self.loss_name == "ppo_clip" and clip_of(numbers) or nil)
    add(stats, "loss", loss:item())
    add(stats, "policy_loss", policy_loss:item())
    add(stats, "entropy", entropy:item())
    add(stats, "kl", kl and kl:item() or 0)
    for name, metric in pairs(metrics or {}) do add(stats, name, weighted(metric, weights)) end
  end
  return loss, after
end

function methods:accumulate(batch, totals)
  local stats = {}
  forward.run(self.policy, batch, self.options, function(runs, logprob, entropy)
    return self.parallel:alike(function()
      local t = tokens.new(runs, logprob, entropy, self.policy.device)
      return self:loss_of(t, totals, stats)
    end)
  end)
  return stats
end

function methods:gradient(batches, totals)
  local sums = {}
  local tick = progress.of_step(self.trainer, #batches, "micro-batches of the update")
  for i, batch in ipairs(batches) do
    local stats = self:accumulate(batch, totals)
    tick(i)
    local mismatch = math.max(sums.mismatch or 0, stats.mismatch)
    for name, v in pairs(stats) do add(sums, name, v) end
    sums.mismatch = mismatch
  end
  return sums
end

-- Averages the statistics of several updates of one rollout, each with the weight that its tokens
-- would have in a single update. grad_norm and those of the model's parts are plain means. mismatch
-- is that of the first update, because its weights are the ones that sampled. list: the statistics;
-- parts: the groups of each update.
function M.mean(list, parts, aggregation, into)
  local weight = aggregations:get(aggregation).fn
  local whole = { tokens = 0, answers = 0 }
  local totals = {}
  for i, part in ipairs(parts) do
    totals[i] = records.totals(part)
    whole.tokens = whole.tokens + totals[i].tokens
    whole.answers = whole.answers + totals[i].answers
  end
  for i, stats in ipairs(list) do
    local share = weight(1, whole) / weight(1, totals[i])
    for name, v in pairs(stats) do
      local part = v * share
      if name:find "^grad_norm" then part = v / #list end
      add(into, name, part)
    end
  end
  into.mismatch = list[1].mismatch
end

return M
