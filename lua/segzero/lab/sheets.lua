-- sheets.lua - sheets of images for the prompt lab.
--
--   sheets.compare(path, set, result) -> path      a row of tiles for each row of the set, a column
--                                                  for each variant; result: of comparing.lua
--   sheets.answers(path, list, title, subtitle) -> path     {{image =, truth = objects, found =,
--                                                  label =, note =, text =, parts =, zeros =}, ...}
--   sheets.show_of(key) -> f(result)               the method show(): the image at result[key], on
--                                                  the prompt's terminal
--   sheets.save_image(path, img) -> path            makes the folder
--   sheets.path(option, name) -> path               of the option `sheet`: a path, false for no
--                                                  images (nil here), or nil for runs/lab/NAME.png,
--                                                  and NAME-2.png, ... if that exists
--
-- A tile shows the true box, and box and points of the row's best answer. At most 12 rows are
-- drawn.
-- Leaves out: masks.

local draw = require "segzero.tools.draw"
local files = require "segzero.core.files"
local image_of = require "segzero.formats.image"
local folders = require "segzero.core.folders"
local sources = require "segzero.data.sources"
local visible = require "segzero.core.visible"

local M = {}

local FOLDER = "runs/lab"
local MOST_ROWS = 12

local function free_path(name)
  name = name:gsub("[^%w_-]", "_")
  local path = ("%s/%s.png"):format(FOLDER, name)
  local n = 1
  while files.exists(path) do
    n = n + 1
    path = ("%s/%s-%d.png"):format(FOLDER, name, n)
  end
  return path
end

function M.path(option, name)
  if option == false then return nil end
  if option == nil then return free_path(name) end
  local ending = type(option) == "string" and option:lower():match "%.(%w+)$"
  if ending == "png" or ending == "jpg" or ending == "jpeg" then return option end
  error(("sheet is %s, expected a .png, .jpg or .jpeg file, or false"):format(tostring(option)), 0)
end

-- The first object of an answer or of a list of true ones.
local function first_of(found)
  if not found then return nil, nil end
  if found.bbox then return found.bbox, found.points end
  local object = found[1]
  if not object then return nil, nil end
  return object.bbox, object.points or { object.point }
end

local function best_of(answers)
  local best = answers[1]
  for _, one in ipairs(answers) do
    if one.score > best.score then best = one end
  end
  return best
end

function M.tile(image, found, true_objects)
  local bbox, points = first_of(found)
  return { image = image, truth = (first_of(true_objects)), bbox = bbox, points = points }
end

local function save(path, tiles, columns, title, subtitle)
  files.make_dir(folders.parent(path))
  local sheet = draw.sheet(tiles, columns, { title = title, subtitle = subtitle })
  sheet:save(path)
  sheet:free()
  return path
end

function M.compare(path, set, result)
  local tiles = {}
  local images = {}
  for i = 1, math.min(MOST_ROWS, #result[1].rows) do
    local image = sources.read_row(set, i).image
    images[i] = image
    for _, variant in ipairs(result) do
      local row = variant.rows[i]
      local best = best_of(row.answers)
      local tile = M.tile(image, best.found, row.truth)
      tile.label = visible.line(row.problem, 80)
      local unread = best.found and "" or ", no answer"
      tile.note = ("%.3g%s: %s"):format(best.score, unread, variant.name)
      tile.text = best.text
      tile.parts = best.parts
      tiles[#tiles + 1] = tile
    end
  end
  save(path, tiles, #result, result.set_name, ("best of %d, a column for each %s"):format(result.n,
    result.what))
  for _, image in ipairs(images) do image:free() end
  return path
end

function M.show_of(key)
  return function(result)
    if not result[key] then error("show: there is no image (sheet = false)", 2) end
    image_of.load(result[key]):show()
  end
end

function M.save_image(path, img)
  files.make_dir(folders.parent(path))
  img:save(path)
  return path
end

function M.answers(path, list, title, subtitle)
  local tiles = {}
  for i, one in ipairs(list) do
    tiles[i] = M.tile(one.image, one.found, one.truth)
    for _, key in ipairs { "label", "note", "text", "parts", "zeros" } do
      tiles[i][key] = one[key]
    end
  end
  return save(path, tiles, math.min(4, #tiles), title, subtitle)
end

return M
