-- utf8.lua - finds bytes of a text that are not UTF-8, and halves of surrogate pairs in JSON.
--
--   utf8.fault(text) -> position, reason      the first byte that does not belong to UTF-8 (RFC
--                                             3629: no surrogates or overlong forms); else nil
--   utf8.lone_surrogate(json) -> escape       "\ud83d" if it stands without its other half; nil
--   utf8.mark(bytes) -> length, name          a byte order mark at the start: its length and the
--                                             encoding it stands for; nil without one
--
-- Leaves out: normal forms, conversion.

local M = {}

local MARKS = {
  { "\239\187\191", "UTF-8" }, { "\255\254", "UTF-16" }, { "\254\255", "UTF-16" },
}

function M.mark(bytes)
  for _, mark in ipairs(MARKS) do
    if bytes:sub(1, #mark[1]) == mark[1] then return #mark[1], mark[2] end
  end
  return nil
end

-- How long the character that starts with this byte is, and the range of its second byte. nil for a
-- byte that starts none.
local function shape_of(lead)
  if lead < 0x80 then return 1 end
  if lead >= 0xC2 and lead <= 0xDF then return 2, 0x80, 0xBF end
  if lead == 0xE0 then return 3, 0xA0, 0xBF end
  if lead == 0xED then return 3, 0x80, 0x9F end
  if lead >= 0xE1 and lead <= 0xEF then return 3, 0x80, 0xBF end
  if lead == 0xF0 then return 4, 0x90, 0xBF end
  if lead >= 0xF1 and lead <= 0xF3 then return 4, 0x80, 0xBF end
  if lead == 0xF4 then return 4, 0x80, 0x8F end
  return nil
end

-- The length of the character at i, or nil if its bytes do not belong together.
local function length_at(text, i)
  local length, least, most = shape_of(text:byte(i))
  if not length or length == 1 then return length end
  local second = text:byte(i + 1)
  if not second or second < least or second > most then return nil end
  for k = i + 2, i + length - 1 do
    local byte = text:byte(k)
    if not byte or byte < 0x80 or byte > 0xBF then return nil end
  end
  return length
end

function M.fault(text)
  local i = text:find "[\128-\255]"
  while i do
    local length = length_at(text, i)
    if not length then
      return i, ("byte %d (0x%02X) is not UTF-8"):format(i, text:byte(i))
    end
    i = text:find("[\128-\255]", i + length)
  end
  return nil
end

-- Escapes after an even number of backslashes are escapes; "\\ud83d" is a backslash and letters.
function M.lone_surrogate(json)
  local i = 1
  while true do
    local at, _, following = json:find("\\(.)", i)
    if not at then return nil end
    i = at + 2
    if following == "u" then
      local digits = json:match("^%x%x%x%x", i) or ""
      local unit = tonumber(digits, 16) or 0
      i = i + #digits
      if unit >= 0xDC00 and unit <= 0xDFFF then return "\\u" .. digits end
      if unit >= 0xD800 and unit <= 0xDBFF then
        if not json:find("^\\u[dD][c-fC-F]%x%x", i) then return "\\u" .. digits end
        i = i + 6
      end
    end
  end
end

return M
