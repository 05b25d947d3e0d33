-- pretrain.lua - supervised training of a small Qwen-VL on RefShapes: the loss of a step, and how
-- good its answers are.
--
--   local t = pretrain.new(vl, tok, options, { reward = f, box_iou = f, say = f })
--       options: config/pretrain_shapes.lua
--   t:train()       trains, evaluates and saves to vl.dir
--   t:token_weights(targets) -> tensor, sum      the weight of each target token in the loss
--
-- reward(text, solution, row) is rewards/seg_strict.lua, box_iou(a, b) is in rewards/geometry.lua:
-- the recipe passes them, because the library does not depend on rewards/. say(text) gets each line
-- of progress.
-- Loss: the mean negative log-probability of the answers' tokens, in which coordinates weigh
-- options.digit_weight, and those that say which object is meant options.choice_weight.
-- Leaves out: resuming.

local answer = require "segzero.formats.answer"
local optim = require "segzero.train.optim"
local packing = require "segzero.inference.packing"
local prompt = require "segzero.data.prompt"
local refshapes = require "segzero.data.refshapes"
local inference = require "segzero.inference.generate"
local shape_tasks = require "segzero.data.refshapes.tasks"
local supervised = require "segzero.train.supervised.loop"
local tensor = require "segzero.core.tensor"

local M = {}
local methods = {}
local mt = { __index = methods }

local ANSWER_TOKENS = 180
local SHORT_TOKENS = 120

function M.new(vl, tok, options, given)
  local self = setmetatable({ model = vl, options = options, judge = given, digits = {} }, mt)
  self.say = given.say
  for d = 0, 9 do self.digits[tok:encode(tostring(d))[1]] = true end
  self.at = tok:encode(" at")[1]
  self.closing = {}
  for id = 0, tok:size() - 1 do self.closing[id] = tok:decode({ id }):find(")", 1, true) ~= nil end
  self.tasks = shape_tasks.new(options, { tokenizer = tok, model = vl })
  self.parameters = vl:train()
  self.optimizer = optim.adamw(self.parameters, {
    lr = options.lr, betas = { 0.9, 0.98 }, weight_decay = options.weight_decay, max_grad_norm = 1,
  })
  return self
end

function methods:parameter_count()
  local n = 0
  for _, p in ipairs(self.parameters) do n = n + p.tensor:numel() end
  return n
end

-- ---- evaluation: greedy answers on held-out scenes ----
-- Asks one question about each held-out scene of a level. ask(problem) returns the prompt. Returns
-- the answers' texts and the questions.
local function answers_of(self, level, ask, max_new_tokens)
  local o = self.options
  local inputs = {}
  local questions = {}
  for i = 1, o.eval_rows do
    local scene = refshapes.sample {
      seed = o.seed, split = "heldout", index = i, size = o.size, level = level, questions = 1,
    }
    local question = scene.questions[1]
    local img = shape_tasks.image_of(scene)
    local content = {
      { type = "image", image = img },
      { type = "text", text = ask(question.problem) },
    }
    inputs[i] = self.model:process { { role = "user", content = content } }
    questions[i] = question
    img:free()
  end
  local texts = {}
  local greedy = { temperature = 0, max_new_tokens = max_new_tokens }
  local groups = inference.generate(self.model, inputs, greedy)
  for i, samples in ipairs(groups) do texts[i] = samples[1].text end
  return texts, questions
end

-- Share of short answers whose box overlaps the true one by more than half.
function methods:evaluate_boxes(level)
  local texts, questions = answers_of(self, level, shape_tasks.short_question, SHORT_TOKENS)
  local hits = 0
  for i, text in ipairs(texts) do
    local box = {}
    for n in (text:match "%[.*" or ""):gmatch "%d+" do box[#box + 1] = tonumber(n) end
    if #box == 4 and self.judge.box_iou(box, questions[i].bbox) > 0.5 then hits = hits + 1 end
  end
  return hits / #texts
end

-- The mean reward, and a line with its parts and the first answer.
function methods:evaluate(level)
  local texts, questions = answers_of(self, level or 3, prompt.seg_zero, ANSWER_TOKENS)
  local total = 0
  local boxes = 0
  local sums = {}
  local row = { frame = self.options.size }
  for i, text in ipairs(texts) do
    local found = answer.parse(text)
    if found and self.judge.box_iou(found.bbox, questions[i].bbox) > 0.5 then boxes = boxes + 1 end
    local score, parts = self.judge.reward(text, questions[i].solution, row)
    total = total + score
    for name, value in pairs(parts) do sums[name] = (sums[name] or 0) + value end
  end
  local n = #texts
  local formats = ("format %.2f json %.2f"):format(sums.thinking_format / n,
    sums.segmentation_format / n)
  local fit = ("iou %.2f points %.2f l1 %.2f"):format(sums.iou / n, sums.points / n,
    sums.box_l1 / n)
  return total / n, ("any key iou %.2f | %s %s | %s"):format(boxes / n, formats, fit, texts[1])
end

-- ---- a step ----
-- The weight of each target token, f32 [tokens] on the model's device, and their sum. Only the
-- place of the object that is meant comes after " at" (data/refshapes/tasks.lua).
function methods:token_weights(targets)
  local n = targets:numel()
  local weights = tensor.empty { n }
  local out = tensor.data(weights)
  local ids = tensor.data(targets)
  local total = 0
  local is_choice = false
  for i = 0, n - 1 do
    if ids[i] == self.at then is_choice = true end
    if self.closing[ids[i]] then is_choice = false end
    out[i] = 1
    if self.digits[ids[i]] then out[i] = self.options.digit_weight end
    if self.digits[ids[i]] and is_choice then out[i] = self.options.choice_weight end
    total = total + out[i]
  end
  return weights:to { device = self.model.device }, total
end

-- Runs forward and backward for one batch; returns the loss and the tokens of the stream.
local function accumulate(self, groups)
  local vl = self.model
  return tensor.step(function()
    local stream = packing.stream(groups, vl.image_token_id)
    local weights, total = self:token_weights(stream.targets)
    local inputs = {}
    for i, group in ipairs(groups) do inputs[i] = group.input end
    local hidden = vl:hidden(stream, vl:vision(inputs), { rows = stream.rows })
    local log_probs = vl:logprob_of(hidden, stream.targets)
    local loss = (log_probs * weights):sum() * (-1 / total)
    loss:backward()
    return loss:item(), stream.tokens
  end)
end

local function free_inputs(groups)
  for _, group in ipairs(groups) do
    group.input.pixel_values:free()
    group.input.position_ids:free()
  end
end

-- The log line of a step.
local function step_line(s, seen)
  local done, elapsed = s.now()
  local head = ("step %d  %4.1f%%  loss %.4f  norm %.2f  lr %.2e"):format(s.step, 100 * s.progress,
    seen.loss, seen.norm, s.lr)
  local rates = ("%.0f/s, %.0f tokens/s"):format(seen.questions / elapsed, seen.tokens / elapsed)
  return ("%s  questions %d (%s)  ETA %s"):format(head, seen.questions, rates,
    supervised.eta(done, elapsed))
end

local function evaluate_and_save(self, s)
  local level = self.tasks:level(s.progress, 0.9)
  local line = "step %d  level %d held-out: short boxes %.2f (level 1: %.2f), seg_strict %.3f  %s"
  local hits = self:evaluate_boxes(level)
  local easy_hits = self:evaluate_boxes(1)
  self.say(line:format(s.step, level, hits, easy_hits, self:evaluate(level)))
  self.model:save(self.model.dir)
end

function methods:train()
  local o = self.options
  local seen = { questions = 0, tokens = 0 }
  local function save()
    self.model:save(self.model.dir)
    return self.model.dir
  end
  local _, elapsed = supervised.loop(o, save, function(s)
    local groups, questions = self.tasks:batch(s.progress)
    local loss, tokens = accumulate(self, groups)
    free_inputs(groups)
    seen.norm = self.optimizer:step(s.lr)
    seen.loss = supervised.smooth(seen.loss, loss)
    seen.questions = seen.questions + questions
    seen.tokens = seen.tokens + tokens
    if s.step % o.log_every == 0 then self.say(step_line(s, seen)) end
    if s.step % o.eval_every == 0 then evaluate_and_save(self, s) end
  end)
  self.say(("held-out seg_strict %.3f  %s"):format(self:evaluate()))
  self.model:save(self.model.dir)
  local saved = "saved %s after %d questions, %.1f minutes"
  self.say(saved:format(self.model.dir, seen.questions, elapsed / 60))
end

return M
