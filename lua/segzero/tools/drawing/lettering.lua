-- lettering.lua - words on images, in an outline font of the system, or in the dots of font.lua if
-- there is none.
--
--   local letters = require "segzero.tools.drawing.lettering"
--   letters.text(img, x, y, "a naïve text", colour, 16)        16: the height of a line in pixels;
--                                                              x, y: its top left corner
--   letters.text(img, x, y, "a title", colour, 20, true)       bold
--   letters.width("a text", 16, bold) -> pixels
--   letters.wrap("long text", width, 16, most, bold) -> {line, ...}
--                                      at most `most` lines: the last one then ends in "..."; a
--                                      word that is too long is broken
--   letters.face() -> path of the font file, or nil
--
-- Text is UTF-8 (runtime/io/image/font.c). The font is DejaVu Sans, else Liberation Sans;
-- characters that it lacks come from a font with Chinese, Japanese and Korean ones if one of
-- FALLBACKS is installed. SEGZERO_FONT names another file; "dots" is font.lua.
-- Leaves out: right to left, joined scripts, line breaks in a text (they count as blanks).

local core = require "segzero.core.ffi"
local font = require "segzero.tools.font"
local shapes = require "segzero.tools.drawing.shapes"

local ffi = require "ffi"

local C = core.C
local floor = math.floor
local max = math.max

local M = {}

local FOLDER = "/usr/share/fonts/truetype/"
local REGULAR = { FOLDER .. "dejavu/DejaVuSans.ttf",
  FOLDER .. "liberation/LiberationSans-Regular.ttf",
  FOLDER .. "liberation2/LiberationSans-Regular.ttf" }
local BOLD = { FOLDER .. "dejavu/DejaVuSans-Bold.ttf",
  FOLDER .. "liberation/LiberationSans-Bold.ttf",
  FOLDER .. "liberation2/LiberationSans-Bold.ttf" }
local FALLBACKS = { "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
  FOLDER .. "droid/DroidSansFallbackFull.ttf", FOLDER .. "wqy/wqy-zenhei.ttc",
  FOLDER .. "wqy/wqy-microhei.ttc", FOLDER .. "unifont/unifont.ttf" }

-- ---- fonts ----
local function open(path)
  return { path = path, ptr = ffi.gc(core.call(C.sz_font_open(path)), C.sz_font_free) }
end

-- The first file of the list that opens; nil if none does.
local function first_of(list)
  for _, path in ipairs(list) do
    local file = io.open(path, "rb")
    if file then
      file:close()
      local opens, face = pcall(open, path)
      if opens then return face end
    end
  end
end

-- A file that was named and does not open is an error, one that is merely absent is not.
local function named(path)
  local opens, face = pcall(open, path)
  if opens then return face end
  error(("SEGZERO_FONT=%s: %s"):format(path, core.plain(face)), 0)
end

local faces                     -- {regular =, bold =}, both nil for dots; nil: not looked for yet

local function load_faces()
  local wanted = os.getenv "SEGZERO_FONT"
  faces = {}
  if wanted == "dots" then return end
  if wanted and wanted ~= "" then
    faces.regular = named(wanted)
    faces.bold = faces.regular
  else
    faces.regular = first_of(REGULAR)
    faces.bold = first_of(BOLD) or faces.regular
  end
  local other = faces.regular and first_of(FALLBACKS)
  if not other then return end
  faces.other = other           -- it must live as long as the others
  C.sz_font_fallback(faces.regular.ptr, other.ptr)
  C.sz_font_fallback(faces.bold.ptr, other.ptr)
end

local function face_of(bold)
  if not faces then load_faces() end
  if bold then return faces.bold end
  return faces.regular
end

function M.face()
  local face = face_of(false)
  return face and face.path
end

-- ---- dots ----
-- The characters of a text: single bytes of ASCII or whole UTF-8 sequences.
local function characters(text) return text:gmatch ".[\128-\191]*" end

local function dot_scale(size) return max(1, floor(size / font.HEIGHT)) end

local function dots_width(text, scale)
  local width = 0
  for c in characters(text) do width = width + font.glyph(c).width + 1 end
  return max(width - 1, 0) * scale
end

local function draw_dots(img, x, y, text, colour, scale)
  for c in characters(text) do
    local g = font.glyph(c)
    for r, row in ipairs(g.rows) do
      for i = 1, #row do
        if row:byte(i) == 35 then
          shapes.fill(img, x + (i - 1) * scale, y + (r - 1) * scale, scale, scale, colour)
        end
      end
    end
    x = x + (g.width + 1) * scale
  end
end

-- ---- words ----
function M.width(text, size, bold)
  local face = face_of(bold)
  if not face then return dots_width(text, dot_scale(size)) end
  return tonumber(C.sz_font_width(face.ptr, text, #text, size))
end

local rgb = ffi.new "uint8_t[3]"

function M.text(img, x, y, text, colour, size, bold)
  local face = face_of(bold)
  if not face then return draw_dots(img, x, y, text, colour, dot_scale(size)) end
  rgb[0] = colour[1]
  rgb[1] = colour[2]
  rgb[2] = colour[3]
  local base = y + C.sz_font_ascent(face.ptr, size)
  core.call(C.sz_font_draw(face.ptr, img.ptr, x, base, size, text, #text, rgb))
end

-- The longest beginning of a word that fits, at least one character, and the rest.
local function broken(word, width, size, bold)
  local head = ""
  for c in characters(word) do
    if head ~= "" and M.width(head .. c, size, bold) > width then break end
    head = head .. c
  end
  return head, word:sub(#head + 1)
end

local function shortened(line, width, size, bold)
  while line ~= "" and M.width(line .. "...", size, bold) > width do
    line = line:gsub("%s*.[\128-\191]*$", "")
  end
  return line .. "..."
end

function M.wrap(text, width, size, most, bold)
  local lines = {}
  local line = ""
  local function add(word)
    local longer = word
    if line ~= "" then longer = line .. " " .. word end
    if M.width(longer, size, bold) <= width then
      line = longer
      return
    end
    if line ~= "" then lines[#lines + 1] = line end
    -- A word that is too long fills lines of its own.
    while M.width(word, size, bold) > width and #characters(word)() < #word do
      local head
      head, word = broken(word, width, size, bold)
      lines[#lines + 1] = head
    end
    line = word
  end
  for word in text:gmatch "%S+" do
    add(word)
    if most and #lines > most then break end
  end
  if line ~= "" then lines[#lines + 1] = line end
  if most and #lines > most then
    for i = #lines, most + 1, -1 do lines[i] = nil end
    lines[most] = shortened(lines[most], width, size, bold)
  end
  return lines
end

return M
