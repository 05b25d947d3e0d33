-- prompt_text.lua - a prompt as a user names it: for the prompt lab and recipes/evaluate.lua.
--
--   local prompt = prompt_text.read(value, label)
--     -> {ask = f(problem) -> text or {text before the image, text after it}, several = boolean,
--         name = text}
--   value  a function; the name of a style of data/prompt.lua (seg_zero, vision_reasoner, plain); a
--          file that ends in .jinja; or a template with {question}, the row's text, or {Question},
--          the same in Seg-Zero's lower case without a full stop. {Answer} is Seg-Zero's example
--   label  the option's name, for errors, which are one line without a position
--
-- A template without a place for the question would ask every row the same, so it is refused.
-- Leaves out: several images.

local nearest = require "segzero.core.nearest"
local prompts = require "segzero.data.prompt"
local visible = require "segzero.core.visible"

local M = {}

local NAME = 28                 -- characters of a template that serve as its name

-- The names of the styles.
function M.names()
  local names = {}
  for name in pairs(prompts.styles) do names[#names + 1] = name end
  table.sort(names)
  return names
end

local function of_template(text)
  local is_normalized = text:find("{Question}", 1, true) ~= nil
  return function(problem)
    local values = { question = problem, Answer = prompts.single_example }
    if is_normalized then values.Question = prompts.normalize(problem) end
    return (text:gsub("{(%a+)}", values))
  end
end

local function refuse(label, value)
  local text = visible.line(value, 60)
  local is_word = not value:find "%s"
  local cure = is_word and nearest.question(value, M.names()) or ""
  if cure == "" then
    cure = "; write {question} where the row's question goes, or name one of: "
      .. table.concat(M.names(), ", ")
  end
  error(("%s: the prompt '%s' has no question%s"):format(label, text, cure), 0)
end

function M.read(value, label)
  if type(value) == "function" then return { ask = value, several = false, name = "a function" } end
  if type(value) ~= "string" then
    error(("%s: a prompt is a text or a function, got %s"):format(label, tostring(value)), 0)
  end
  local style = prompts.styles[value]
  if style then return { ask = style.ask, several = style.several, name = value } end
  if value:match "%.jinja$" then
    local ask = prompts.style({ data = { format_prompt = value } }).ask
    return { ask = ask, several = false, name = value }
  end
  local has_place = value:find("{question}", 1, true) or value:find("{Question}", 1, true)
  if not has_place then refuse(label, value) end
  return { ask = of_template(value), several = false, name = visible.line(value, NAME) }
end

return M
