-- keys.lua - bytes of a terminal as names of keys.
--
--   local reader = keys.new(next_byte)     next_byte(seconds or nil) -> 0..255; nil: nothing came
--                                          in that time, or without a limit the input has ended
--   reader() -> "text", "abc"              characters to insert, as they were typed or pasted
--            -> "enter", "tab", "up", "ctrl-a", "alt-enter", "ctrl-left", ...
--            -> "end-of-input"
--
-- Pasted text (bracketed paste) is one text, whatever it holds; its line ends are newlines. A key
-- that is not known is "unknown". Leaves out: the mouse.

local M = {}

local SECONDS = 0.05            -- an escape sequence arrives in one piece; Esc alone does not

local NAMED = { [13] = "enter", [10] = "enter", [9] = "tab", [127] = "backspace",
  [8] = "backspace" }

-- What follows ESC [ or ESC O.
local SEQUENCES = {
  A = "up", B = "down", C = "right", D = "left", H = "home", F = "end", Z = "shift-tab",
  ["1~"] = "home", ["3~"] = "delete", ["4~"] = "end", ["5~"] = "page-up", ["6~"] = "page-down",
  ["7~"] = "home", ["8~"] = "end", ["200~"] = "paste",
  ["1;5C"] = "ctrl-right", ["1;5D"] = "ctrl-left", ["1;3C"] = "ctrl-right",
  ["1;3D"] = "ctrl-left", ["1;5A"] = "ctrl-up", ["1;5B"] = "ctrl-down", ["3;5~"] = "ctrl-delete",
  ["13;2u"] = "alt-enter", ["13;3u"] = "alt-enter", ["27;2;13~"] = "alt-enter",
}

local PASTE_END = "\27[201~"

-- The text of a paste, up to its mark.
local function read_paste(next_byte)
  local bytes = {}
  local tail = ""
  while true do
    local byte = next_byte()
    if not byte then break end
    bytes[#bytes + 1] = string.char(byte)
    tail = (tail .. bytes[#bytes]):sub(-#PASTE_END)
    if tail == PASTE_END then
      for _ = 1, #PASTE_END do bytes[#bytes] = nil end
      break
    end
  end
  return (table.concat(bytes):gsub("\r\n?", "\n"))
end

-- After ESC [ or ESC O: parameters and a final byte.
local function read_sequence(next_byte)
  local text = ""
  while #text < 16 do
    local byte = next_byte(SECONDS)
    if not byte then return "unknown" end
    text = text .. string.char(byte)
    -- "[[A" is F1 on Linux's console.
    if byte >= 0x40 and byte <= 0x7e and text ~= "[" then break end
  end
  return SEQUENCES[text] or "unknown"
end

local function read_escape(next_byte)
  local byte = next_byte(SECONDS)
  if not byte then return "escape" end
  -- Alt with a key that is a sequence counts as the key.
  if byte == 27 then return read_escape(next_byte) end
  local c = string.char(byte)
  if c == "[" or c == "O" then
    local name = read_sequence(next_byte)
    if name == "paste" then return "text", read_paste(next_byte) end
    return name
  end
  if byte == 13 or byte == 10 then return "alt-enter" end
  if byte == 127 or byte == 8 then return "alt-backspace" end
  if c:find "[%w.<>]" then return "alt-" .. c:lower() end
  return "unknown"
end

-- The other bytes of a character that begins with `first`.
local function read_character(first, next_byte)
  local more = 0
  if first >= 0xc0 then more = 1 end
  if first >= 0xe0 then more = 2 end
  if first >= 0xf0 then more = 3 end
  local text = string.char(first)
  for _ = 1, more do
    local byte = next_byte(SECONDS)
    if not byte or byte < 0x80 or byte > 0xbf then break end
    text = text .. string.char(byte)
  end
  return text
end

function M.new(next_byte)
  return function()
    local byte = next_byte()
    if not byte then return "end-of-input" end
    if byte == 27 then return read_escape(next_byte) end
    if NAMED[byte] then return NAMED[byte] end
    if byte == 31 then return "ctrl-_" end
    if byte < 32 then return "ctrl-" .. string.char(byte + 96) end
    return "text", read_character(byte, next_byte)
  end
end

return M
