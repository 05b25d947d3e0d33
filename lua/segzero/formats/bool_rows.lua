-- bool_rows.lua - a mask that a table stores as list<list<bool>>, drawn without a Lua value for
-- each pixel.
--
--   bool_rows.of_levels(values, node) -> mask     a value of a Parquet column: its repetition and
--                                                 definition levels, and a byte for each boolean
--   bool_rows.of_offsets(rows, first, count, offsets, bits, start) -> mask     of an Arrow column
--   mask.width, mask.height                       its rows have one length, or it is an error
--   mask.draw(out, width, height)                 out: uint8_t [height * width]; pixels inside
--                                                 become 1. Another size is an error
--
-- Errors have no position. Leaves out: lists of numbers, which formats/rle.lua draws.

local bit = require "bit"

local M = {}

local function fail(message, ...) error(message:format(...), 0) end

local function mask_of(width, height, copy)
  local mask = { width = width, height = height }
  function mask.draw(out, wanted_width, wanted_height)
    if wanted_width ~= width or wanted_height ~= height then
      fail("the mask has %d x %d pixels, the image %d x %d", width, height, wanted_width,
        wanted_height)
    end
    copy(out)
  end
  return mask
end

local function check_width(y, found, width)
  if width and found ~= width then
    fail("row %d of the mask has %d pixels, row 1 has %d", y, found, width)
  end
  return found
end

-- max_def: the level at which a pixel is there. An empty row or a null has another.
function M.of_levels(values, max_def)
  local levels = tonumber(values.levels)
  local rep = values.rep
  local def = values.def

  -- The size: a row ends where the next one begins, at the repetition level 1.
  local height = 0
  local width
  local start = 0
  for i = 0, levels - 1 do
    if def[i] < max_def then fail("the mask has an empty row or a null at pixel %d", i + 1) end
    if rep[i] < 2 then
      if i > 0 then width = check_width(height, i - start, width) end
      height = height + 1
      start = i
    end
  end
  width = check_width(height, levels - start, width)

  return mask_of(width, height, function(out)
    for i = 0, levels - 1 do
      if values.data[i] ~= 0 then out[i] = 1 end
    end
  end)
end

-- Rows [first, first + count), of which row y has the pixels offsets[y] to offsets[y + 1]. Pixel p
-- is bit p + start of `bits`; valid(p): whether it is no null.
function M.of_offsets(first, count, offsets, bits, start, valid)
  local begin = tonumber(offsets[first])
  local width
  for y = first, first + count - 1 do
    width = check_width(y - first + 1, tonumber(offsets[y + 1] - offsets[y]), width)
  end
  if not width or width == 0 then fail("the mask has no pixels") end
  local total = width * count
  for p = begin, begin + total - 1 do
    if valid and not valid(p) then fail("the mask has a null at pixel %d", p - begin + 1) end
  end

  return mask_of(width, count, function(out)
    for i = 0, total - 1 do
      local p = begin + start + i
      if bit.band(bits[bit.rshift(p, 3)], bit.lshift(1, bit.band(p, 7))) ~= 0 then out[i] = 1 end
    end
  end)
end

return M
