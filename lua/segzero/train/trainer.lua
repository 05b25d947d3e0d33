-- trainer.lua - GRPO: sample groups, score them, one exact policy-gradient update; evaluation; the run folder.
--
--   local t = trainer.new{config = cfg, policy = vl, reference = vl | nil, reward = f, train = set, held_out = set,
--                         plan = plan.check(cfg) | nil, prompt = function(problem) -> text, segmenter = segment.new(sam) | nil,
--                         truth = function(solution) -> {bbox =, points =} | nil}
--   t:run()                       all steps; or t:step() one at a time, t:evaluate() -> mean reward, parts, records, gIoU
--
-- With a segmenter every row that a reward sees has
--   row.segment(found)            SAM2's mask of a parsed answer (segzero.answer, as written, in row.frame): u8 [h, w] of the picture,
--                                 kept by the row
-- The picture is embedded once, at the first call, and that call decodes all answers of the group together. If the held-out rows have
-- masks, too, evaluation computes gIoU: the mean over all rows of intersection / union, where an answer that cannot be read
-- counts 0; with `truth` also t.ceiling, the gIoU of the true boxes and points.
--
-- The group is the unit: a prompt with its picture is computed once for its n answers, when sampling, for the reference and
-- in the update, even when its answers are too many for one micro-batch. The sampler's log-probabilities are the old ones: one update
-- follows each rollout with the same weights, and each step prints the largest difference between sampler and trainer. The loss is weighted over the whole update, so the
-- micro-batch split does not change it.
-- Beside the step: the next step's pictures are read and cut by background threads (ahead.lua), a group is judged as soon as its answers
-- have ended, and a checkpoint is written while the next step samples; the optimizer waits for it. None of this changes a number.
-- stats.time of a step says where its seconds went (timer.lua).
--
-- Leaves out: what settings mean by default (the recipe), rewards, prompts.

local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local rollout = require "segzero.inference.rollout"
local vision_cache = require "segzero.inference.vision_cache"
local offload = require "segzero.models.offload"
local advantage = require "segzero.algorithms.advantages"
local answer = require "segzero.formats.answer"
local segment = require "segzero.inference.segmenter"
local metrics = require "segzero.train.metrics"
local losses = require "segzero.algorithms.losses"
local kl_kinds = require "segzero.algorithms.kl"
local aggregations = require "segzero.algorithms.aggregations"
local optim = require "segzero.train.optim"
local checkpoint = require "segzero.train.checkpoint"
local data = require "segzero.data"
local log = require "segzero.log"
local prefetch = require "segzero.data.prefetch"
local timer = require "segzero.log.timer"

local M = {}

local methods = {}
local mt = { __index = methods }

-- A frozen tower's results are made once a step: sampling keeps them for the update, and for a reference that has the same tower.
local function lend_tower(t)
  if t.reference and not t.policy.lora and t.config.worker.actor.freeze_vision_tower then vision_cache.adopt(t.policy, t.reference) end
end

function M.new(opts)
  local t = setmetatable({}, mt)
  for k, v in pairs(opts) do t[k] = v end
  local actor = t.config.worker.actor
  t.parameters = t.policy:train(actor.freeze_vision_tower and function(name) return not t.policy:is_vision_weight(name) end or nil)
  t.optimizer = optim.adamw(t.parameters, { lr = actor.optim.lr, betas = { actor.optim.beta1, actor.optim.beta2 }, eps = actor.optim.eps,
    weight_decay = actor.optim.weight_decay, max_grad_norm = actor.max_grad_norm, state_dtype = actor.optim.state_dtype,
    master_weights = actor.optim.master_weights, grad_dtype = actor.grad_dtype ~= "f32" and actor.grad_dtype or nil })
  lend_tower(t)
  t.global_step = 0
  t.log = log.open({ "console", "jsonl" }, t)
  t.prefetch = prefetch.new(t.policy)
  return t
end

-- Without optimizer, data and folder: what counting a step takes (plan.lua).
function M.bare(opts) return setmetatable(opts, mt) end

-- ---- rows ----
-- Which rows step s has: epochs are shuffled by data.seed, the last incomplete batch of an epoch is dropped.
function methods:indices_of(step)
  local d = self.config.data
  local per_epoch = math.floor(self.train:count() / d.rollout_batch_size)
  if per_epoch < 1 then
    error(("the data set has %d rows, data.rollout_batch_size is %d"):format(self.train:count(), d.rollout_batch_size), 0)
  end
  local epoch = math.floor((step - 1) / per_epoch)
  if not self.order or self.order_epoch ~= epoch then
    self.order = d.shuffle and data.order(self.train:count(), d.seed, epoch) or nil
    self.order_epoch = epoch
  end
  local indices = {}
  for i = 1, d.rollout_batch_size do
    local place = (step - 1) % per_epoch * d.rollout_batch_size + i
    indices[i] = self.order and self.order[place] or place
  end
  return indices
end

function methods:rows_of(step)
  local rows, indices = {}, self:indices_of(step)
  for i, index in ipairs(indices) do
    rows[i] = self.prefetch:take(self.train, index)
    rows[i].number = (step - 1) * #indices + i
  end
  return rows
end

-- Begins the pictures of a step that will come; what an earlier call began and nobody took is let go of.
function methods:look_ahead(step)
  self.prefetch:cancel()
  if self.total_steps and step > self.total_steps then return end
  for _, index in ipairs(self:indices_of(step)) do self.prefetch:request(self.train, index) end
end

-- A row as the model reads it. The picture is let go of; its patches stay until release().
function methods:prepare(row)
  local ok, input = pcall(self.policy.process, self.policy, { { role = "system", content = self.config.data.system_prompt },
    { role = "user", content = { { type = "image", image = row.image }, { type = "text", text = self.prompt(row.problem) } } } })
  if not ok then error(("row %s: %s"):format(tostring(row.id), (tostring(input):gsub("^[^:]*%.lua:%d+: ", ""))), 0) end
  row.input = input
  local most, has = self.config.data.max_prompt_length, #row.input.input_ids
  if has > most then
    error(("row %s: the prompt has %d tokens (%d of them picture), data.max_prompt_length is %d"):format(tostring(row.id), has,
      has - #self.policy:tokenizer():encode(row.input.text), most), 0)
  end
  return row
end

local function release(rows)
  for _, row in ipairs(rows) do
    row.image:free()
    if row.input then
      vision_cache.free { row.input }
      if row.input.pixel_values then row.input.pixel_values:free() end
      row.input.position_ids:free()
    end
  end
end

-- ---- masks of a row ----
-- The numbers of an answer as text: equal answers share a mask.
local function key_of(found)
  local parts = {}
  local function add(object)
    for _, v in ipairs(object.bbox) do parts[#parts + 1] = ("%.17g"):format(v) end
    for _, p in ipairs(object.points or { object.point }) do parts[#parts + 1] = ("%.17g %.17g"):format(p[1], p[2]) end
    parts[#parts + 1] = ";"
  end
  for _, object in ipairs(found.bbox and { found } or found) do add(object) end
  return table.concat(parts, " ")
end

-- From the frame that answers count in to the picture's own pixels, as in evaluation.
local function in_picture(row, found)
  local fx, fy = row.image.width / row.frame, row.image.height / row.frame
  return found.bbox and answer.scale(found, fx, fy) or answer.scale_list(found, fx, fy)
end

-- Gives the row its segment(). expected: the answers that will be asked for; the first call decodes all of them. row.mask still
-- returns a tensor of the caller's, but reads its file once. return_masks() takes both back and frees.
local function lend_masks(segmenter, row, expected)
  local kept = { masks = {}, read = row.mask }
  row.kept_masks = kept
  function row.segment(found)
    if type(found) ~= "table" then error("row.segment wants a parsed answer, got " .. type(found), 2) end
    local wanted = key_of(found)
    if not kept.masks[wanted] then
      local keys, list = {}, {}
      for _, a in ipairs { found, unpack(expected) } do
        local key = key_of(a)
        if not kept.masks[key] and not keys[key] then
          list[#list + 1] = in_picture(row, a)
          keys[key] = #list
        end
      end
      kept.features = kept.features or segmenter:embed(row.image)
      local results = segmenter:masks(kept.features, list)
      for key, i in pairs(keys) do kept.masks[key] = results[i].mask end
    end
    return kept.masks[wanted]
  end
  if row.mask then
    function row.mask()
      kept.truth = kept.truth or kept.read()
      return kept.truth:clone()
    end
  end
end

local function return_masks(row)
  local kept = row.kept_masks
  if not kept then return end
  for _, mask in pairs(kept.masks) do mask:free() end
  if kept.truth then kept.truth:free() end
  if kept.features then kept.features:free() end
  row.segment, row.mask, row.kept_masks = nil, kept.read, nil
end

-- Intersection over union of an answer's mask and the true one.
local function overlap(row, found)
  local truth = row.mask()
  local inside, either = segment.compare(row.segment(found), truth)
  truth:free()
  return metrics.iou { intersection = inside, union = either }
end

-- A user's reward may fail: the error carries its traceback and the answer that caused it.
function methods:score(row, answer)
  local ok, score, parts = xpcall(self.reward, debug.traceback, answer.text, row.solution, row)
  if not ok then
    error(("the reward failed on row %s\n  question: %s\n  ground truth: %s\n  answer: %s\n%s"):format(tostring(row.id), row.problem,
      row.solution, answer.text, score), 0)
  end
  -- One infinite score would make every advantage of its group NaN.
  if type(score) ~= "number" or score ~= score or math.abs(score) == math.huge then
    error(("the reward returned %s for row %s, expected a finite number\n  answer: %s"):format(tostring(score), tostring(row.id), answer.text), 0)
  end
  for name, v in pairs(type(parts) == "table" and parts or {}) do
    if type(name) ~= "string" or type(v) ~= "number" then
      error(("the reward's part %s of row %s is %s, expected names with numbers"):format(tostring(name), tostring(row.id), tostring(v)), 0)
    end
  end
  answer.score, answer.parts = score, type(parts) == "table" and parts or nil
end

-- ---- one step ----
-- The cache's pages go back to the system unless the plan has room for them beside the update: taking them again costs a fault for each.
local function rest(self)
  local p = self.plan
  if not p or p.phases.update + p.parts.cache > p.device.free then rollout.release_cache(self.policy) end
end

-- The plan was made of the first rows: a step with a longer prompt is looked at before it starts.
function methods:check_memory(rows)
  for _, row in ipairs(self.plan and rows or {}) do
    if #row.input.input_ids > self.plan.prompt then
      local ok, longer = pcall(require("segzero.tools.plan").longer, self.config, self.plan, row.input)
      if not ok then error(("row %s: %s"):format(tostring(row.id), longer), 0) end
      self.plan = longer
    end
  end
  timer.enter "data"       -- counting ran the code of a step
end

-- A group that has all its answers is judged while others still decode.
function methods:rollout(rows)
  local r = self.config.worker.rollout
  local groups, inputs, row_ids = {}, {}, {}
  for i, row in ipairs(rows) do
    self:prepare(row)
    groups[i], inputs[i], row_ids[i] = { row = row, input = row.input }, row.input, row.number
  end
  self:check_memory(rows)
  self:look_ahead(self.global_step + 2)
  timer.enter "decode"
  local function on_group(i, answers)
    local before = timer.enter "reward"
    groups[i].samples = answers
    local ok, why = pcall(self.judge_group, self, groups[i])
    if not ok then error({ why }, 0) end        -- in a table: what samples would add its own traceback
    timer.enter(before)
  end
  local ok, answers, stats = pcall(rollout.generate, self.policy, inputs, { n = r.n, temperature = r.temperature, top_p = r.top_p, top_k = r.top_k,
    max_new_tokens = self.config.data.max_response_length, seed = self.config.data.seed, row_ids = row_ids,
    cache_gib = r.cache_gib, gpu_memory_utilization = r.gpu_memory_utilization, on_group = on_group,
    keep_vision = self.config.worker.actor.freeze_vision_tower })
  if not ok then error(type(answers) == "table" and answers[1] or answers, 0) end
  rest(self)
  local seconds = stats and stats.seconds
  if seconds then
    timer.move("decode", "vision", seconds.vision)
    timer.move("decode", "prefill", seconds.prefill)
  end
  for i, g in ipairs(groups) do g.samples = g.samples or answers[i] end
  return groups
end

-- Rewards and advantages of one group.
function methods:judge_group(g)
  local rewards, found = {}, {}
  if self.segmenter then
    for _, a in ipairs(g.samples) do found[#found + 1] = answer.parse(a.text) end
    lend_masks(self.segmenter, g.row, found)
  end
  for i, a in ipairs(g.samples) do
    self:score(g.row, a)
    rewards[i] = a.score
  end
  for i, v in ipairs(advantage.grpo(rewards)) do g.samples[i].advantage = v end
  return_masks(g.row)
  g.judged = true
end

-- Judges the groups that are not; returns the means of the reward and its parts over all of them, whatever the order they came in.
function methods:judge(groups)
  local sums, n = { reward = 0, length = 0, stopped = 0 }, 0
  for _, g in ipairs(groups) do
    if not g.judged then self:judge_group(g) end
    for _, a in ipairs(g.samples) do
      n = n + 1
      sums.reward, sums.length = sums.reward + a.score, sums.length + #a.ids
      sums.stopped = sums.stopped + (a.finish == "stop" and 1 or 0)
      for name, v in pairs(a.parts or {}) do sums["reward/" .. name] = (sums["reward/" .. name] or 0) + v end
    end
  end
  for k, v in pairs(sums) do sums[k] = v / n end
  return sums
end

-- Groups as micro-batches, {groups = {...}, parts = nil}: as many whole groups as have at most max_tokens packed tokens and max_answers
-- answers together. A group that alone has more is a micro-batch {groups = {g}, parts = {{samples}, ...}}: the prompt is there once, while
-- its answers come in parts, each within the limits together with the prompt, but of one answer at least. An answer of one token needs no part.
local function micro_batches(groups, max_tokens, max_answers)
  local batches, tokens, answers = {}, math.huge, 0
  for _, g in ipairs(groups) do
    local size = #g.input.input_ids
    for _, a in ipairs(g.samples) do size = size + #a.ids end
    if size > max_tokens or #g.samples > max_answers then
      local parts, used, count = {}, math.huge, 0
      for _, a in ipairs(g.samples) do
        if #a.ids > 1 then
          if used + #a.ids > max_tokens or count == max_answers then
            parts[#parts + 1], used, count = {}, #g.input.input_ids, 0
          end
          parts[#parts][count + 1], used, count = a, used + #a.ids, count + 1
        end
      end
      batches[#batches + 1], tokens = { groups = { g }, parts = parts }, math.huge
    else
      if tokens + size > max_tokens or answers + #g.samples > max_answers then
        batches[#batches + 1], tokens, answers = { groups = {} }, 0, 0
      end
      local whole = batches[#batches].groups
      whole[#whole + 1], tokens, answers = g, tokens + size, answers + #g.samples
    end
  end
  return batches
end

-- The micro-batches of an update, or of computing log-probabilities alone ("experience").
function methods:micro_batches(groups, kind)
  local actor = self.config.worker.actor
  return micro_batches(groups, actor.max_tokens_per_micro_batch, actor["micro_batch_size_per_device_for_" .. kind] or math.huge)
end

-- Runs a model over a micro-batch and calls f(runs, lp, entropy, from) for each of its streams. runs, a list of {sample, first, last}, says which
-- answer tokens lp and entropy [k] are of; `from` is for lp's backward(). Without parts there is one stream. With parts the prompt and the
-- answers' first tokens are a stream, whose keys and values those of the parts see; f has it last, when the parts have left their gradients there.
local function each_stream(model, batch, opts, f)
  local packed, inputs, runs = {}, {}, {}
  for i, g in ipairs(batch.groups) do
    packed[i], inputs[i] = { input = g.input, answers = {} }, g.input
    for k, a in ipairs(g.samples) do
      packed[i].answers[k] = batch.parts and { a.ids[1] } or a.ids
      runs[#runs + 1] = { a, 1, #packed[i].answers[k] }
    end
  end
  local prefix = batch.parts and {} or nil
  local function run(groups, features)
    local stream = packing.stream(groups, model.image_token_id)
    local hidden = model:hidden(stream, features, { rows = stream.rows, prefix = prefix, recompute = opts.recompute })
    return model:logprob_of(hidden, stream.targets, opts.temperature)
  end
  -- A frozen tower is not recorded: recomputing it would find nothing to give a gradient to.
  local features
  if opts.frozen then features = tensor.no_grad(model.vision, model, inputs) else features = model:vision(inputs, { recompute = opts.recompute }) end
  local lp, entropy = run(packed, features)
  for _, part in ipairs(batch.parts or {}) do
    tensor.step(function()
      local from, ids, rest = tensor.recorded(), {}, {}
      for k, a in ipairs(part) do ids[k], rest[k] = a.ids, { a, 2, #a.ids } end
      local part_lp, part_entropy = run { { input = batch.groups[1].input, answers = ids, behind = true } }
      f(rest, part_lp, part_entropy, from)
    end)
  end
  f(runs, lp, entropy, 0)
end

function methods:stream_options()
  local actor = self.config.worker.actor
  return { temperature = self.config.worker.rollout.temperature, recompute = actor.model.enable_gradient_checkpointing,
    frozen = actor.freeze_vision_tower }
end

-- What the frozen reference says of the same tokens: sample.reference, by token. Nothing without one.
function methods:reference_log_probs(groups)
  if not self.reference then return end
  local before = timer.enter "reference"
  local function take(runs, lp)
    local here = lp:values()
    local values, at = tensor.data(here), 0
    for _, run in ipairs(runs) do
      local sample, first, last = unpack(run)
      sample.reference = sample.reference or {}
      for i = first, last do sample.reference[i], at = values[at], at + 1 end
    end
  end
  offload.using(self.reference, function()
    for _, batch in ipairs(self:micro_batches(groups, "experience")) do
      tensor.step(tensor.no_grad, each_stream, self.reference, batch, self:stream_options(), take)
    end
  end)
  timer.enter(before)
end

-- A list of {length, value} runs as one tensor, on device.
local function spread(runs, device)
  local n = 0
  for _, run in ipairs(runs) do n = n + run[1] end
  local t = tensor.empty { n }
  local p, at = tensor.data(t), 0
  for _, run in ipairs(runs) do
    for i = at, at + run[1] - 1 do p[i] = run[2] end
    at = at + run[1]
  end
  return t:to { device = device or "cpu" }
end

-- Gradient of a micro-batch's part of the GRPO loss, added to the parameters'. totals: of the whole update.
function methods:accumulate(batch, totals)
  local actor, device = self.config.worker.actor, self.policy.device
  local weight = aggregations:get(actor.loss_avg_mode).fn
  local stats = { loss = 0, policy_loss = 0, entropy = 0, kl = 0, mismatch = 0, clipped = 0 }
  local function take(runs, lp, entropy, from)
    local advantage_runs, weight_runs, old_values, reference_values = {}, {}, {}, {}
    for k, run in ipairs(runs) do
      local sample, first, last = unpack(run)
      advantage_runs[k] = { last - first + 1, sample.advantage }
      weight_runs[k] = { last - first + 1, weight(#sample.ids, totals) }
      for i = first, last do
        old_values[#old_values + 1] = sample.logprobs[i]
        if self.reference then reference_values[#reference_values + 1] = sample.reference[i] end
      end
    end
    local old, advantages = tensor.new(old_values, { device = device }), spread(advantage_runs, device)
    local weights = spread(weight_runs, device)

    local policy, ratio = losses.clipped(lp, old, advantages, actor.clip_ratio, actor.clip_ratio)
    local policy_loss, entropy_mean = (policy * weights):sum(), (entropy * weights):sum()
    local loss = policy_loss - entropy_mean * actor.entropy_coeff
    local kl
    if self.reference then
      kl = (kl_kinds:get(actor.kl_loss_type).fn(lp, tensor.new(reference_values, { device = device })) * weights):sum()
      loss = loss + kl * actor.kl_loss_coef
    end
    timer.enter "backward"
    loss:backward(from)
    timer.enter "forward"

    local lp_here, ratio_here = lp:values(), ratio:values()
    local l, r = tensor.data(lp_here), tensor.data(ratio_here)
    local clipped = 0
    for i = 0, #old_values - 1 do
      stats.mismatch = math.max(stats.mismatch, math.abs(l[i] - old_values[i + 1]))
      if r[i] < 1 - actor.clip_ratio or r[i] > 1 + actor.clip_ratio then clipped = clipped + 1 end
    end
    stats.loss, stats.policy_loss = stats.loss + loss:item(), stats.policy_loss + policy_loss:item()
    stats.entropy, stats.kl = stats.entropy + entropy_mean:item(), stats.kl + (kl and kl:item() or 0)
    stats.clipped = stats.clipped + clipped / totals.tokens
  end
  tensor.step(each_stream, self.policy, batch, self:stream_options(), take)
  return stats
end

-- One optimizer step on some groups.
function methods:update(groups, lr)
  local totals = { tokens = 0, answers = 0 }
  for _, g in ipairs(groups) do
    for _, a in ipairs(g.samples) do totals.tokens, totals.answers = totals.tokens + #a.ids, totals.answers + 1 end
  end
  local stats = { loss = 0, policy_loss = 0, entropy = 0, kl = 0, clipped = 0, mismatch = 0 }
  self:reference_log_probs(groups)
  for _, batch in ipairs(self:micro_batches(groups, "update")) do
    for k, v in pairs(self:accumulate(batch, totals)) do
      stats[k] = k == "mismatch" and math.max(stats[k], v) or stats[k] + v
    end
  end
  self:saved()
  timer.enter "optimizer"
  stats.grad_norm = self.optimizer:step(lr)
  timer.enter "forward"
  return stats
end

function methods:learning_rate(step)
  local o = self.config.worker.actor.optim
  local warmup = o.lr_warmup_steps_ratio * self.total_steps
  return step <= warmup and o.lr * step / warmup or o.lr
end

function methods:step()
  local step = self.global_step + 1
  timer.start(self.policy.device ~= "cpu" and core.C.sz_device_synchronise or nil)
  timer.enter "data"
  local groups = self:rollout(self:rows_of(step))
  timer.enter "reward"
  local stats = self:judge(groups)
  local lr = self:learning_rate(step)
  local per_update = self.config.worker.actor.global_batch_size
  timer.enter "forward"
  for first = 1, #groups, per_update do
    local part = { unpack(groups, first, math.min(first + per_update - 1, #groups)) }
    local update = self:update(part, lr)
    -- Only the first update of a rollout has the weights that sampled.
    if first > 1 then update.mismatch = stats.mismatch end
    for k, v in pairs(update) do stats[k] = v end
  end
  timer.enter "other"
  stats.step, stats.lr, stats.skipped_updates = step, lr, self.optimizer.skipped
  stats.tokens = stats.length * #groups * #groups[1].samples
  self:record(step, groups)
  local rows = {}
  for i, g in ipairs(groups) do rows[i] = g.row end
  release(rows)
  -- Handles that nobody has any more hold objects of the core: without this their number goes up and down with the collector's mood.
  collectgarbage()
  self.global_step = step
  local t, total = timer.stop()
  stats.time = t
  stats.seconds = { rollout = t.data + t.vision + t.prefill + t.decode, reward = t.reward,
    update = t.reference + t.forward + t.backward + t.optimizer + t.checkpoint, total = total }
  return stats
end

function methods:record(step, groups)
  local list = {}
  for _, g in ipairs(groups) do
    for i, a in ipairs(g.samples) do
      list[#list + 1] = { step = step, row = g.row.id, problem = g.row.problem, solution = g.row.solution, answer = i, text = a.text,
        reward = a.score, parts = a.parts, advantage = a.advantage, finish = a.finish, ids = a.ids, logprobs = a.logprobs }
    end
  end
  self.log:rows(step, "rollouts", list)
end

-- ---- evaluation: greedy, every held-out row ----
-- What one answer's mask is worth: IoU of the answer, and of the ground truth as the prompt (nil without one to read).
function methods:judge_mask(row, found, truth)
  if not row.mask then error(("row %s has no mask, but other held-out rows have one"):format(tostring(row.id)), 0) end
  return found and overlap(row, found) or 0, truth and overlap(row, truth) or nil
end

-- keep: the first so many records carry the answer's mask, which the caller frees.
function methods:evaluate(keep)
  local records, sums, total, n = {}, {}, 0, self.held_out:count()
  local batch = self.config.data.val_batch_size
  local with_masks, sum, ceiling, readable = nil, 0, 0, 0
  local begun = prefetch.new(self.policy)
  for first = 1, n, batch do
    local rows, inputs = {}, {}
    for i = first, math.min(first + batch - 1, n) do
      local row = self:prepare(begun:take(self.held_out, i))
      rows[#rows + 1], inputs[#inputs + 1] = row, row.input
    end
    local few = math.min(batch, self.config.data.rollout_batch_size)       -- what the plan has room for
    for i = first + batch, math.min(first + batch + few - 1, n) do begun:request(self.held_out, i) end
    if with_masks == nil then with_masks = self.segmenter ~= nil and rows[1].mask ~= nil end
    local r = self.config.worker.rollout
    local answers = rollout.generate(self.policy, inputs, { temperature = 0, max_new_tokens = self.config.data.max_response_length,
      cache_gib = r.cache_gib, gpu_memory_utilization = r.gpu_memory_utilization })
    for i, row in ipairs(rows) do
      local a = answers[i][1]
      local found, truth, iou, best
      if self.segmenter then
        found = answer.parse(a.text)
        truth = with_masks and not self.ceiling and self.truth and self.truth(row.solution) or nil
        local expected = { found }
        expected[#expected + 1] = truth
        lend_masks(self.segmenter, row, expected)
      end
      self:score(row, a)
      total = total + a.score
      for name, v in pairs(a.parts or {}) do sums[name] = (sums[name] or 0) + v / n end
      if with_masks then
        iou, best = self:judge_mask(row, found, truth)
        sum, ceiling, readable = sum + iou, ceiling + (best or 0), readable + (best and 1 or 0)
      end
      local mask = with_masks and found and #records < (keep or 0) and row.segment(found):clone() or nil
      return_masks(row)
      records[#records + 1] = { id = row.id, index = row.index, problem = row.problem, solution = row.solution, text = a.text, reward = a.score,
        parts = a.parts, iou = iou, mask = mask }
    end
    release(rows)
  end
  rest(self)
  if readable > 0 then self.ceiling = ceiling / n end
  return total / n, sums, records, with_masks and sum / n or nil
end

-- One evaluation's line in metrics.jsonl.
function methods:log_evaluation(reward, parts, giou)
  self.log:scalars(self.global_step, { step = self.global_step, held_out_reward = reward, held_out_parts = parts, held_out_giou = giou,
    held_out_ceiling_giou = giou and self.ceiling })
end

-- ---- the run ----
-- A checkpoint is written beside the next step: weights and optimizer state are the same until the optimizer's next step, which waits.
function methods:begin_save()
  self:saved()
  self.saving = { checkpoint.begin(self.folder, self.global_step, self.policy, self.optimizer,
    { seed = self.config.data.seed, skipped_updates = self.optimizer.skipped }) }
  return self.saving[1]
end

-- Waits for what begin_save() began; a checkpoint that could not be written is an error that names the file.
function methods:saved()
  local saving = self.saving
  if not saving then return end
  local before = timer.enter "checkpoint"
  self.saving = nil
  checkpoint.finish(unpack(saving))
  timer.enter(before)
end

function methods:save()
  local path = self:begin_save()
  self:saved()
  return path
end

function methods:resume(path)
  self:saved()
  self.prefetch:cancel()
  local state = checkpoint.load(path, self.policy, self.optimizer)
  self.global_step, self.optimizer.skipped = state.global_step, state.skipped_updates or 0
  lend_tower(self)
end

local function sorted_parts(parts)
  local names, out = {}, {}
  for name in pairs(parts) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do out[i] = ("%s %.2f"):format(name, parts[name]) end
  return table.concat(out, ", ")
end
M.sorted_parts = sorted_parts

local function steps_until_end(self)
  local cfg = self.config.trainer
  self.first_step = self.global_step
  self.log:start()
  while self.global_step < self.total_steps do
    local s = self:step()
    self.log:scalars(s.step, s)
    if cfg.test_freq > 0 and s.step % cfg.test_freq == 0 and s.step < self.total_steps then
      local reward, parts, _, giou = self:evaluate()
      self:log_evaluation(reward, parts, giou)
      print(("  held-out reward at step %d: %.3f (%s)%s"):format(s.step, reward, sorted_parts(parts), giou and (", gIoU %.3f"):format(giou) or ""))
    end
    if cfg.save_freq > 0 and s.step % cfg.save_freq == 0 then print("  saving " .. self:begin_save()) end
  end
end

-- However it ends, what is being written is written first.
function methods:run()
  local ok, why = xpcall(steps_until_end, function(e) return type(e) == "string" and debug.traceback(e, 2) or e end, self)
  local saved, reason = pcall(self.saved, self)
  self.prefetch:cancel()
  if not ok then
    if not saved then io.stderr:write(tostring(reason), "\n") end
    error(why, 0)
  end
  if not saved then error(reason, 0) end
end

return M
