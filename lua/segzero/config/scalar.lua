-- scalar.lua - reads a value of the command line as OmegaConf does: as a YAML value.
--
--   scalar.read " 8"                    "8"           spaces at the ends do not count
--   scalar.read [["You are X"]]         "You are X"   quotes that stand around the whole value
--   scalar.pairs [[{"a": 1, b: {c: 2}}]]              {{"a", "1"}, {"b.c", "2"}}
--   scalar.typed "0.5"                  0.5           for values whose type no row says: a number,
--                                                     true, false, nil for null, else the text
--
-- The shell takes quotes of its own; those that reach the program are YAML's. All other text stays,
-- so a list is read by the setting's row (values.lua). Leaves out: comments, anchors.

local M = {}

local ESCAPES = { n = "\n", t = "\t", r = "\r", ["0"] = "\0", ['"'] = '"', ["\\"] = "\\",
  ["/"] = "/" }

-- The text inside double quotes, or nil if a quote inside ends it early.
local function double_quoted(text)
  local inside = text:match '^"(.*)"$'
  if not inside or inside:gsub("\\.", ""):find '["\\]' then return nil end
  return (inside:gsub("\\(.)", function(c) return ESCAPES[c] or "\\" .. c end))
end

local function single_quoted(text)
  local inside = text:match "^'(.*)'$"
  if not inside or inside:gsub("''", ""):find "'" then return nil end
  return (inside:gsub("''", "'"))
end

function M.read(text)
  local trimmed = text:match "^%s*(.-)%s*$"
  if #trimmed < 2 then return trimmed end
  return double_quoted(trimmed) or single_quoted(trimmed) or trimmed
end

-- The settings below a key whose value is a mapping in braces; nil if it is something else.
-- key: for errors.
function M.pairs(key, text)
  if not text:match "^%s*{.*}%s*$" then return nil end
  return require("segzero.config.yaml").parse(key, text)
end

local WORDS = { ["true"] = true, ["false"] = false }

function M.typed(text)
  local lower = text:lower()
  if lower == "null" or text == "~" or text == "" then return nil end
  if WORDS[lower] ~= nil then return WORDS[lower] end
  local digits = text:gsub("(%d)_(%f[%d])", "%1%2")
  local number = digits:match "^[%+%-]?[%d%.]+[eE]?[%+%-]?%d*$" and tonumber(digits)
  return number or text
end

return M
