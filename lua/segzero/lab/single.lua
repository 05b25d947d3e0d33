-- single.lua - lab.ask: one question about one image.
--
--   local a = single.ask(image, text, options)
--     image   a path, an image, or a row of a data set (its question is the default text)
--     text    the question, which goes through the prompt (options.prompt: seg_zero); prompt =
--             "plain" asks it as it is
--     a.text, a.ids, a.logprobs, a.finish     as rollout.generate returns them
--     a.found         boxes and points in the image's pixels; nil if it cannot be read, and
--                     a.unread says why
--     a:mask()        u8 [height, width] by SAM2, or nil; kept with the answer
--     a:save(path)    an image with boxes, points and mask -> path; a:show() shows it at the prompt
--     a:free()        its image, input and mask; otherwise the collector does
--     a.input, a.policy     what was asked, for lab.logprobs
--
-- In the REPL the text appears while it is generated. Leaves out: several images.

local answer = require "segzero.formats.answer"
local coordinates = require "segzero.data.coordinates"
local generation_config = require "segzero.inference.generation_config"
local image_of = require "segzero.formats.image"
local inference = require "segzero.inference.generate"
local inputs = require "segzero.train.inputs"
local prompt_text = require "segzero.data.prompt_text"
local rows = require "segzero.data.rows"
local session = require "segzero.lab.session"
local variants = require "segzero.lab.variants"
local visible = require "segzero.core.visible"

local M = {}

local methods = {}

local MOST_TOKENS = 2 ^ 24

-- ---- the answer ----
local function numbers(list)
  local words = {}
  for i, v in ipairs(list) do words[i] = ("%g"):format(v) end
  return "(" .. table.concat(words, ", ") .. ")"
end

local function marks_text(found)
  local words = {}
  local objects = found
  if found.bbox then objects = { found } end
  for _, object in ipairs(objects) do
    words[#words + 1] = "box " .. numbers(object.bbox)
    for _, p in ipairs(object.points or { object.point }) do
      words[#words + 1] = "point " .. numbers(p)
    end
  end
  if #words == 0 then return "nothing is found" end
  return table.concat(words, ", ")
end

local function mean_probability(a)
  local sum = 0
  for _, v in ipairs(a.logprobs) do sum = sum + math.exp(v) end
  return sum / #a.logprobs
end

local function to_text(a)
  local lines = {}
  if not a.was_shown then lines[1] = visible.text(a.text) end
  if a.found then
    lines[#lines + 1] = marks_text(a.found)
  else
    lines[#lines + 1] = "cannot be read: " .. visible.line(a.unread or "?")
  end
  lines[#lines + 1] = ("%d token%s, mean probability %.2f%s"):format(#a.ids,
    #a.ids == 1 and "" or "s", mean_probability(a),
    a.finish == "stop" and "" or ", cut off at the limit")
  return table.concat(lines, "\n")
end

-- Level as for error().
local function check_alive(a, level)
  if not a.row then error("the answer has been freed", level + 1) end
end

function methods:mask()
  check_alive(self, 2)
  local segmenter = session.segmenter(self.policy)
  if self.kept_mask or not self.found or not segmenter then return self.kept_mask end
  local features = segmenter:embed(self.image)
  self.kept_mask = segmenter:masks(features, { self.found })[1].mask
  features:free()
  return self.kept_mask
end

-- The image with boxes, points and mask. Level as for error().
local function drawn(a, level)
  check_alive(a, level + 1)
  if not a.found then
    error("the answer has no box to draw: " .. visible.line(a.unread or "?"), level + 1)
  end
  return (require("segzero.tools.draw").figure(a.image, a.found, { mask = a:mask() }))
end

function methods:save(path)
  local figure = drawn(self, 2)
  figure:save(path)
  figure:free()
  return path
end

function methods:show()
  local figure = drawn(self, 2)
  figure:show()
  figure:free()
end

function methods:free()
  if self.kept_mask then self.kept_mask:free() end
  self.kept_mask = nil
  if self.row then inputs.release { self.row } end
  self.row = nil
  self.image = nil
  self.input = nil
end

local mt = { __index = methods, __tostring = to_text }

-- ---- asking ----
-- A new image that belongs to the answer, and the row's question.
local function read_image(value)
  if type(value) == "string" then return image_of.load(value) end
  local row = type(value) == "table" and rawget(value, "image")
  if row then return read_image(row), value.problem end
  if not image_of.is_image(value) then
    error(("lab.ask: an image, a path or a row is expected, got %s"):format(tostring(value)), 0)
  end
  return value:resize(value.width, value.height, "bilinear")
end

function M.ask(image, text, o)
  local policy = session.model(o.model)
  local prompt = prompt_text.read(o.prompt or "seg_zero", "prompt")
  local generation = variants.generation(o)
  local own, problem = read_image(image)
  text = text or problem
  if type(text) ~= "string" then
    own:free()
    error(("lab.ask: a question is expected, got %s"):format(tostring(text)), 0)
  end

  -- The question as the model reads it.
  local row = rows.new { id = "asked", index = 1, problem = text, solution = "", image = own }
  inputs.prepare(row, policy, prompt.ask, {
    system_prompt = o.system_prompt or variants.SYSTEM_PROMPT, max_tokens = MOST_TOKENS,
    frames = variants.frames(policy, o.resize) })

  -- The answer.
  local echo = generation_config.echo
  generation.on_text = echo
  local one = inference.generate(policy, { row.input }, generation)[1][1]
  if echo then echo(1, "\n") end
  local found, unread = answer.read(one.text, prompt.several)
  local a = { text = one.text, ids = one.ids, logprobs = one.logprobs, finish = one.finish,
    found = found and coordinates.to_image(row, found), unread = unread, image = own,
    problem = text, row = row, input = row.input, policy = policy, was_shown = echo ~= nil }
  return setmetatable(a, mt)
end

return M
