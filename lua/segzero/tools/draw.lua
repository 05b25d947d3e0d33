-- draw.lua - draws boxes, points, masks and words on images (segzero.formats.image), figures of an
-- answer, and sheets of cards. The parts are in drawing/.
--
--   local draw = require "segzero.tools.draw"
--   draw.box(img, {x0, y0, x1, y1}, draw.RED)        corners are inclusive, as in Seg-Zero; clipped
--   draw.point(img, {x, y}, draw.YELLOW)             a disc with a dark rim
--   draw.text(img, x, y, "red circle", draw.INK, 2)  top left corner; a line is 9 * 2 pixels high
--   draw.answer(img, {bbox =, points =})             red boxes, yellow points; several objects are
--                                                    {{bbox =, point =}, ...}
--   draw.mask(img, mask, draw.CYAN, 0.08)            the outline of a u8 tensor [h, w] of img's
--                                                    size, or of a whole fraction of it, and a
--                                                    light fill
--   local fig, k = draw.figure(img, answer, {mask =, truth = box})
--                                                    the image | the image with its marks; k: the
--                                                    factor by which they are enlarged
--   draw.panels(img, answer, {mask =, truth =, question =, text =})   the same with titles, the
--                                                    question above and the thinking below
--   local big = draw.enlarge(img, 4)                 4 x 4 pixels for each; draw.enlarge_box and
--                                                    draw.enlarge_point convert coordinates
--   local both = draw.side_by_side({ img, other }, 8)   on white, 8 pixels apart
--   local sheet = draw.sheet(tiles, columns, opts)   cards (drawing/sheet.lua)
--   draw.predictions(path, data_set, records, opts)  writes a sheet of rows with a model's answers
--   draw.changes(path, data_set, before, after, opts)   the same rows before and after training
--
-- Colours are {r, g, b}, 0 to 255. Colour-blind readers can tell the colours below apart. The
-- default line thickness follows the size of the image (draw.thickness). Functions that make an
-- image return a new one, which the caller may free.
-- Leaves out: rotated text, transparency except for masks and soft edges.

local figure = require "segzero.tools.drawing.figure"
local font = require "segzero.tools.font"
local lettering = require "segzero.tools.drawing.lettering"
local masks = require "segzero.tools.drawing.masks"
local shapes = require "segzero.tools.drawing.shapes"
local sheet = require "segzero.tools.drawing.sheet"

local M = { changes = sheet.changes, figure = figure.figure, panels = figure.panels,
  predictions = sheet.predictions, sheet = sheet.sheet }
for name, value in pairs(shapes) do M[name] = value end

function M.mask(img, mask, colour, alpha)
  masks.draw(img, mask, { colour = colour, fill = alpha }, 2)
end

-- ---- words: scale counts lines of 9 pixels ----
local function size_of(scale) return font.HEIGHT * (scale or 1) end

function M.text_width(text, scale) return lettering.width(text, size_of(scale)) end

function M.text(img, x, y, text, colour, scale)
  lettering.text(img, x, y, text, colour, size_of(scale))
end

function M.wrap(text, width, scale, most)
  return lettering.wrap(text, width, size_of(scale), most)
end

return M
