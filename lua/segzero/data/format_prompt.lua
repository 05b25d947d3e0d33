-- format_prompt.lua - a prompt from a file, as EasyR1's data.format_prompt means it.
--
--   local ask = format_prompt.open("math.jinja")     ask(question) -> text
--
-- The file is the text around the question. {{ content }} stands for the question and
-- {{ content | trim }} for the question without spaces at its ends; white space around the text is
-- left out. Anything else of Jinja is an error that names the file and the line, and so is a file
-- without the question.
-- Leaves out: Jinja's statements, filters and comments.

local files = require "segzero.core.files"

local M = {}

local function line_of(text, position)
  return 1 + select(2, text:sub(1, position):gsub("\n", ""))
end

local function refuse(path, text, position)
  local found = text:sub(position):match "^[^\n]*":sub(1, 40)
  local message = "data.format_prompt: %s: line %d: only {{ content }} and {{ content | trim }} " ..
    "are read, not '%s'"
  error(message:format(path, line_of(text, position), found), 0)
end

-- The text as a list of pieces: strings, and {trim = boolean} for the question.
local function pieces_of(path, text)
  local pieces = {}
  local place = 1
  while true do
    local first = text:find("{[{%%#]", place)
    if not first then break end
    pieces[#pieces + 1] = text:sub(place, first - 1)
    local inside, after = text:match("^{{%-?%s*(.-)%s*%-?}}()", first)
    local filter = inside and inside:match "^content%s*(|?%s*%w*)$"
    local is_trim = filter and filter:match "^|%s*trim$"
    if not filter or (filter ~= "" and not is_trim) or text:sub(first, after):find "%-" then
      refuse(path, text, first)
    end
    pieces[#pieces + 1] = { trim = is_trim ~= nil }
    place = after
  end
  pieces[#pieces + 1] = text:sub(place)
  return pieces
end

function M.open(path)
  files.check_regular(path)
  local text, why = files.read(path)
  if not text then error("data.format_prompt: " .. why, 0) end
  text = text:match "^%s*(.-)%s*$"
  local pieces = pieces_of(path, text)
  if #pieces == 1 then
    error(("data.format_prompt: %s: there is no {{ content }}, so no prompt would have its "
      .. "question"):format(path), 0)
  end
  return function(question)
    local parts = {}
    for i, piece in ipairs(pieces) do
      parts[i] = piece
      if type(piece) == "table" then
        parts[i] = question
        if piece.trim then parts[i] = question:match "^%s*(.-)%s*$" end
      end
    end
    return table.concat(parts)
  end
end

return M
