-- prompt.lua - the prompts of Seg-Zero and VisionReasoner, word for word, and the answer format
-- that they ask for.
--
--   local prompt = require "segzero.data.prompt"
--   prompt.seg_zero("The red circle.")          one object; text without the image marker
--   prompt.vision_reasoner("the red circles")   several objects
--   prompt.style(cfg)       {ask = f(problem), several = whether it asks for a list}: the prompt of
--                           data.format_prompt or data.prompt; auto: of the reward. plain is the
--                           row's own text
--   prompt.response(think, answer)              "<think>..</think><answer>..</answer>"
--
-- The sentences are joined without spaces and the single-object example has single quotes (so it is
-- not JSON): both are part of what released checkpoints were trained on. A chat template puts the
-- image before this text; VisionReasoner's training has one "\n" between the two, which the style
-- has.
--
-- Leaves out: the chat template (processor.lua), reading answers (answer.lua).

local ffi = require "ffi"
local C = require("segzero.core.ffi").C

local M = {}

M.single_example = "{'bbox': [10,100,200,210], 'points_1': [30,110], 'points_2': [35,180]}"
M.multi_example = '[{"bbox_2d": [10,100,200,210], "point_2d": [30,110]}, '
  .. '{"bbox_2d": [225,296,706,786], "point_2d": [302,410]}]'

M.single_template = "Please find '{Question}' with bbox and points."
  .. "Compare the difference between objects and find the most closely matched one."
  .. "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
  .. "Output the one bbox and points of two largest inscribed circles inside the interested "
  .. "object in JSON format."
  .. "i.e., <think> thinking process here </think><answer>{Answer}</answer>"

M.multi_template = 'Please find "{Question}" with bboxs and points.'
  .. "Compare the difference between object(s) and find the most closely matched object(s)."
  .. "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
  .. "Output the bbox(es) and point(s) inside the interested object(s) in JSON format."
  .. "i.e., <think> thinking process here </think><answer>{Answer}</answer>"

-- The question without the marker <image>, which sets of other programs have: the prompts place the
-- image themselves.
local function without_marker(question)
  if not question:find("<image>", 1, true) then return question end
  return question:gsub("%s*<image>%s*", " "):match "^ ?(.-) ?$"
end

-- Lower-cases as Python does, and strips the characters of `set` (a Lua character class) from both
-- ends. The default is the full stop, as in Seg-Zero; evaluating VisionReasoner uses '."?!'.
function M.normalize(question, set)
  if type(question) ~= "string" then
    error("prompt: question must be a string, got " .. type(question), 2)
  end
  question = without_marker(question)
  local class = "[" .. (set or "%.") .. "]"
  local room = ffi.new("char[?]", 2 * #question + 1)
  local text = ffi.string(room, C.sz_text_lower(question, #question, room))
  return (text:gsub("^" .. class .. "+", ""):gsub(class .. "+$", ""))
end

-- Fills {Question} and {Answer} in one pass, so that a question holding "{Answer}" stays as typed.
function M.fill(template, question, answer)
  return (template:gsub("{(%a+)}", { Question = question, Answer = answer }))
end

function M.seg_zero(question)
  return M.fill(M.single_template, M.normalize(question), M.single_example)
end

function M.vision_reasoner(question, set)
  return M.fill(M.multi_template, M.normalize(question, set), M.multi_example)
end

-- ---- the prompt of a run ----
M.styles = {
  seg_zero = { ask = M.seg_zero, several = false },
  vision_reasoner = {
    ask = function(question) return "\n" .. M.vision_reasoner(question) end,
    several = true,
  },
}

-- A row's own text says with <image> where the image is: {text before it, text after it}. Without
-- the marker, the text alone, and the image comes first.
local function around_image(text)
  local before, after = text:match "^(.-)<image>(.*)$"
  if not before then return text end
  if not after:find("<image>", 1, true) then return { before, after } end
  error("the prompt has <image> twice, and a row has one image", 0)
end

M.styles.plain = { ask = around_image, several = false }

-- cfg: the settings of a GRPO recipe.
function M.style(cfg)
  local path = cfg.data.format_prompt
  if path then
    local ask = require("segzero.data.format_prompt").open(path)
    return { ask = function(question) return around_image(ask(question)) end, several = false }
  end
  local name = cfg.data.prompt or "auto"
  if name == "auto" then
    name = "seg_zero"
    if cfg.worker.reward.compute_score == "vision_reasoner" then name = "vision_reasoner" end
  end
  return M.styles[name]
end

-- A response in the format that the prompts ask for.
function M.response(think, answer)
  return "<think>" .. think .. "</think><answer>" .. answer .. "</answer>"
end

return M
