-- figure.lua - one answer to one image: the image with its marks, and two titled panels with the
-- question above and the thinking below, as Seg-Zero's inference script shows them.
--
--   figure.figure(img, answer, { mask =, truth = box }) -> image, k       see tools/draw.lua
--   figure.panels(img, answer, { mask =, truth = box, question =, text =, facts = }) -> image, k
--       text: the model's whole answer; facts: one line below it, such as "IoU 0.71"
--
-- Small images are enlarged k times; letters grow with the panels. Leaves out: saving.

local lettering = require "segzero.tools.drawing.lettering"
local masks = require "segzero.tools.drawing.masks"
local shapes = require "segzero.tools.drawing.shapes"

local M = {}

local ceil = math.ceil
local floor = math.floor
local max = math.max
local min = math.min

-- An image with a side below the first is drawn about as large as the second.
local SMALL_SIDE = 200
local ENLARGED_SIDE = 448

local LEAST_WIDTH = 560         -- of two panels, so that words have room
local THINKING_LINES = 16

local function factor_of(img)
  if min(img.width, img.height) >= SMALL_SIDE then return 1 end
  return ceil(ENLARGED_SIDE / max(img.width, img.height))
end

local function enlarged(a, k)
  local marks = { bbox = a.bbox and shapes.enlarge_box(a.bbox, k), points = {},
    point = a.point and shapes.enlarge_point(a.point, k) }
  for i, p in ipairs(a.points or {}) do marks.points[i] = shapes.enlarge_point(p, k) end
  return marks
end

-- A copy of the image with the marks of an answer.
local function marked(img, found, opts, k)
  local out = shapes.enlarge_smooth(img, k)
  if opts.mask then masks.draw(out, opts.mask) end
  if opts.truth then
    shapes.box(out, shapes.enlarge_box(opts.truth, k), shapes.GREEN, shapes.thickness(out) + 1)
  end
  local marks = enlarged(found, k)
  for i, object in ipairs(found) do marks[i] = enlarged(object, k) end
  shapes.answer(out, marks)
  return out
end

function M.figure(img, found, opts)
  opts = opts or {}
  local k = factor_of(img)
  local out = marked(img, found, opts, k)
  if not opts.mask then return out, k end
  local plain = shapes.enlarge_smooth(img, k)
  local both = shapes.side_by_side { plain, out }
  plain:free()
  out:free()
  return both, k
end

-- ---- panels ----
-- The thinking and the answer of a text; a text without the tags is all answer.
function M.parts(text)
  local thinking = text:match "<think>%s*(.-)%s*</think>"
  local answer = text:match "<answer>%s*(.-)%s*</answer>"
  if not answer then answer = text:gsub("<think>.-</think>", "") end
  return thinking, answer
end

-- Paragraphs {text, size, colour, bold, gap above} as lines {text, size, colour, bold, y}, from y
-- on; returns the y below them too.
local function set_lines(paragraphs, width, y)
  local lines = {}
  for _, p in ipairs(paragraphs) do
    y = y + (p.gap or 0)
    for _, text in ipairs(lettering.wrap(p.text, width, p.size, p.most, p.bold)) do
      lines[#lines + 1] = { text = text, size = p.size, colour = p.colour, bold = p.bold, y = y }
      y = y + floor(p.size * 1.25)
    end
  end
  return lines, y
end

local function draw_lines(img, lines, x)
  for _, l in ipairs(lines) do lettering.text(img, x, l.y, l.text, l.colour, l.size, l.bold) end
end

-- What is below the panels.
local function below(opts, size)
  local gap = floor(size * 0.7)
  local out = {}
  local function add(title, text, most)
    if not text or not text:find "%S" then return end
    if title then
      out[#out + 1] = { text = title, size = size, colour = shapes.GREY, bold = true, gap = gap }
    end
    out[#out + 1] = { text = text, size = size, colour = shapes.INK, most = most }
  end
  local thinking, answer
  if opts.text then thinking, answer = M.parts(opts.text) end
  add("Thinking", thinking, THINKING_LINES)
  add("Answer", answer, THINKING_LINES / 2)
  if opts.facts then
    out[#out + 1] = { text = opts.facts, size = size, colour = shapes.GREY, gap = gap }
  end
  return out
end

local function right_title(found, opts)
  local names = {}
  if opts.mask then names[1] = "mask" end
  local several = #found > 0
  local object = found[1] or found
  if object.bbox then names[#names + 1] = several and "boxes" or "box" end
  if object.point or object.points and object.points[1] then names[#names + 1] = "points" end
  local text = "Nothing found"
  if names[1] then text = "Predicted " .. table.concat(names, ", ", 1, max(1, #names - 1)) end
  if names[2] then text = text .. " and " .. names[#names] end
  if opts.truth then text = text .. " (green: the true box)" end
  return text
end

function M.panels(img, found, opts)
  local k = factor_of(img)
  local plain = shapes.enlarge_smooth(img, k)
  local right = marked(img, found, opts, k)

  -- Sizes: letters, margins, the width of both panels.
  local size = max(16, min(64, floor(plain.width / 30)))
  local margin = floor(size * 1.2)
  local inner = max(2 * plain.width + margin, LEAST_WIDTH)
  local column = floor((inner + margin) / 2)

  -- Words above, the panels' titles, words below.
  local head, y = set_lines({ { text = opts.question or "", size = floor(size * 1.25), most = 4,
    colour = shapes.INK, bold = true } }, inner, margin)
  if #head > 0 then y = y + floor(size / 2) end
  local titles = {}
  local most = 0
  for i, text in ipairs { "Original image", right_title(found, opts) } do
    local lines, bottom = set_lines({ { text = text, size = size, colour = shapes.GREY } },
      column - margin, y)
    titles[i] = lines
    most = max(most, bottom)
  end
  local top = most + floor(size * 0.3)
  local foot, bottom = set_lines(below(opts, size), inner, top + plain.height + floor(size / 2))

  -- Drawing.
  local out = shapes.canvas(inner + 2 * margin, bottom + margin)
  draw_lines(out, head, margin)
  for i, panel in ipairs { plain, right } do
    local x = margin + (i - 1) * column
    draw_lines(out, titles[i], x)
    shapes.paste(out, panel, x, top)
    panel:free()
  end
  draw_lines(out, foot, margin)
  return out, k
end

return M
