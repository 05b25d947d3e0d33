-- tasks.lua - supervised tasks on RefShapes that a small model learns before GRPO: batches of
-- questions with answers.
--
--   local tasks = shape_tasks.new(options, { tokenizer = tok, model = vl })
--   local groups, questions = tasks:batch(progress)      progress of the run, 0 to 1
--     group = {input = the messages up to the end of the image, answers = {ids, ...}}
--     ids.first is the first token that is learnt
--   tasks:level(progress, random)             how hard scenes are at this point: 1, 2 or 3
--
-- The reasoning of every answer names all shapes from left to right, each after its place, and then
-- says which one is meant:
--
--   There are two shapes: (12,80) small blue square, (57,30) large red circle. It is the one at
--   (57,30).
--
-- A place first, then what is there: the other way round, from a colour to its place, a model of
-- this size does not learn (models/README.md). A share of the answers to Seg-Zero's prompt is
-- quick: they point without naming the shapes, and their boxes are rough. GRPO has to find out that
-- looking at every shape first pays.
--
-- There are four tasks. Two are short: "Find 'X'." -> the reasoning and the box, and
-- "Box at (57,30)." -> the box around a place. Later Seg-Zero's own prompt with its reasoning and
-- answer takes over. A share of the images (options.several) has VisionReasoner's prompt and its
-- lists of objects instead. The questions about an image share it: the stream holds the image once,
-- followed by each question with its answer. Leaves out: packing the groups into a stream
-- (inference/packing.lua).

local ffi = require "ffi"
local image = require "segzero.formats.image"
local processor = require "segzero.models.qwen_vl.processor"
local prompt = require "segzero.data.prompt"
local refshapes = require "segzero.data.refshapes"
local sentence = require "segzero.data.refshapes.sentence"

local M = {}
local methods = {}
local mt = { __index = methods }

-- Steps of low-discrepancy sequences: each decides one thing about image i, or question i, by
-- (i * step) % 1.
local LEVEL_STEP = 0.6180339887
local LOOSE_STEP = 0.5698402910
local QUICK_STEP = 0.6457513110
local HABIT_STEP = 0.7548776662
local SEVERAL_STEP = 0.8191725134

-- Share of the questions about several objects that have no target.
local EMPTY = 0.1

-- A short question counts as a quarter of a question.
local SHORT_COST = 0.25

function M.new(options, parts)
  local self = { options = options, tokenizer = parts.tokenizer, model = parts.model, drawn = 0,
    asked = 0 }
  self.processor = parts.model:processor()
  return setmetatable(self, mt)
end

-- The image of a RefShapes scene. The caller frees it.
function M.image_of(scene)
  local img = image.new(scene.width, scene.height)
  ffi.copy(img:pixels(), scene.rgb, scene.width * scene.height * 3)
  return img
end

function M.short_question(problem) return ("Find '%s'."):format(problem) end

local function text_of(list) return "[" .. table.concat(list, ",") .. "]" end

-- "(57,30)": the middle of an object's box, in pixels.
local function place_of(object)
  local b = object.bbox
  return ("(%d,%d)"):format(math.floor((b[1] + b[3]) / 2), math.floor((b[2] + b[4]) / 2))
end

-- The messages up to the end of the image, as an input for packing.stream.
local function prefix_of(self, img)
  local vl = self.model
  local messages = { { role = "user", content = { { type = "image", image = img } } } }
  local input = self.processor:process(messages, self.tokenizer, vl)
  local last
  for i, id in ipairs(input.input_ids) do
    if id == vl.vision_end_token_id then last = i end
  end
  for i = #input.input_ids, last + 1, -1 do input.input_ids[i] = nil end
  input.position_ids, input.next_position = processor.positions(input.input_ids,
    input.image_grid_thw, vl, 2)
  return input
end

-- The ids of a question with its answer; those from `first` on are learnt.
local function exchange(self, question, reply)
  local tok = self.tokenizer
  local ids = tok:encode(question .. "<|im_end|>\n<|im_start|>assistant\n")
  ids.first = #ids + 1
  for _, id in ipairs(tok:encode(reply)) do ids[#ids + 1] = id end
  ids[#ids + 1] = tok:id "<|im_end|>"
  return ids
end

local function conclusion(scene, question)
  return (" It is the one at %s."):format(place_of(scene.objects[question.target]))
end

-- The objects from left to right, each after its place; then the one that is meant.
local function reasoning(scene, question)
  local order = {}
  for i, o in ipairs(scene.objects) do order[i] = o end
  table.sort(order, function(a, b)
    if a.cx ~= b.cx then return a.cx < b.cx end
    return a.cy < b.cy
  end)
  local names = {}
  for i, o in ipairs(order) do names[i] = place_of(o) .. " " .. sentence.phrase(o) end
  return sentence.crowd({}, #order) .. ": " .. table.concat(names, ", ") .. "."
    .. conclusion(scene, question)
end

local function quick_reasoning(scene, question)
  return sentence.crowd({}, #scene.objects) .. "." .. conclusion(scene, question)
end

local function short_task(self, question, scene)
  return exchange(self, M.short_question(question.problem),
    reasoning(scene, question) .. " " .. text_of(question.bbox))
end

local function box_task(self, object)
  return exchange(self, ("Box at %s."):format(place_of(object)), text_of(object.bbox))
end

local function loosened(options, box)
  local x = options.margin * (box[3] - box[1])
  local y = options.margin * (box[4] - box[2])
  local last = options.size - 1
  return {
    math.max(0, math.floor(box[1] - x)), math.max(0, math.floor(box[2] - y)),
    math.min(last, math.ceil(box[3] + x)), math.min(last, math.ceil(box[4] + y)),
  }
end

-- A rough answer: the box leaves room around the shape, and the points are on the box's diagonal,
-- so that they often miss the shape.
local function rough_answer(options, box)
  local wide = loosened(options, box)
  local function along(share)
    return {
      math.floor(wide[1] + share * (wide[3] - wide[1])),
      math.floor(wide[2] + share * (wide[4] - wide[2])),
    }
  end
  return refshapes.answer(wide, along(0.25), along(0.75))
end

-- The more shapes, the more often an answer is quick: never about one or two, and in all of the
-- share from five on.
local function is_quick(self, scene)
  local crowded = math.max(0, math.min(1, (#scene.objects - 2) / 3))
  return (self.asked * QUICK_STEP) % 1 < self.options.quick * crowded
end

local function full_task(self, question, scene)
  self.asked = self.asked + 1
  local think = reasoning(scene, question)
  local reply = question.answer
  if is_quick(self, scene) then
    think = quick_reasoning(scene, question)
    reply = rough_answer(self.options, question.bbox)
  end
  return exchange(self, prompt.seg_zero(question.problem), prompt.response(think, reply))
end

-- Two habits that GRPO has to break, each taught on a share of the images: the key is "bbox" where
-- "bbox_2d" is asked for, and the box leaves room.
local function several_task(self, question)
  local options = self.options
  local reply = question.answer
  if (self.drawn * LOOSE_STEP) % 1 < options.loose then
    reply = reply:gsub('("bbox_2d": )%[(%d+),(%d+),(%d+),(%d+)%]', function(key, ...)
      local box = { ... }
      for k, v in ipairs(box) do box[k] = tonumber(v) end
      return key .. "[" .. table.concat(loosened(options, box), ",") .. "]"
    end)
  end
  if (self.drawn * HABIT_STEP) % 1 < options.habit then
    reply = reply:gsub('"bbox_2d"', '"bbox"')
  end
  local ask = prompt.styles.vision_reasoner.ask
  return exchange(self, ask(question.problem), prompt.response(question.think, reply))
end

-- random: a number in [0, 1) that mixes easier scenes in.
function methods:level(progress, random)
  local o = self.options
  if progress < o.level2 then return 1 end
  if progress < o.level3 then
    if random < 0.3 then return 1 end
    return 2
  end
  if random < o.easy / 2 then return 1 end
  if random < o.easy then return 2 end
  return 3
end

-- In the first part of the run seven of eight images have the short task, later one of eight.
local function is_short(self, index, progress)
  if index % 8 == 1 then return true end
  return index % 8 ~= 0 and progress < self.options.short_until
end

-- The scene's questions, and the box of one of its objects.
local function short_answers(self, scene)
  local answers = {}
  for k, question in ipairs(scene.questions) do
    answers[k] = short_task(self, question, scene)
  end
  answers[#answers + 1] = box_task(self, scene.objects[self.drawn % #scene.objects + 1])
  return answers
end

-- The groups of one step, and how many questions they hold. The caller frees their inputs.
function methods:batch(progress)
  local o = self.options
  local groups = {}
  local questions = 0
  local cost = 0
  while cost < o.batch do
    self.drawn = self.drawn + 1
    local index = self.drawn
    local level = self:level(progress, (index * LEVEL_STEP) % 1)
    local most = o.questions
    if level == 1 then most = 1 end
    local several
    if (index * SEVERAL_STEP) % 1 < o.several then several = { empty = EMPTY } end
    local scene = refshapes.sample { seed = o.seed, index = index, size = o.size, level = level,
      questions = most, several = several }
    local img = M.image_of(scene)
    local group = { input = prefix_of(self, img), answers = {} }
    img:free()
    if several then
      group.answers[1] = several_task(self, scene.questions[1])
      cost = cost + 1
    elseif is_short(self, index, progress) then
      group.answers = short_answers(self, scene)
      cost = cost + SHORT_COST * #group.answers
    else
      for k, question in ipairs(scene.questions) do
        group.answers[k] = full_task(self, question, scene)
      end
      cost = cost + #group.answers
    end
    groups[#groups + 1] = group
    questions = questions + #group.answers
  end
  return groups, questions
end

return M
