-- image_folder.lua - where the images of an annotation file are.
--
--   image_folder.find(path, image_dir, places, name) -> a folder
--
--   image_folder.above(folder)      the folder that this one is in, by its path
--
-- places: folders to try, in this order; image_dir, the user's (data.image_dir), is tried before
-- them and alone if it has the image. name(n): the file's name of the n-th image, or nil. The first
-- folder that has one of the first images is taken. None has: an error that names the annotations
-- `path`, the image and the folders tried.
-- Leaves out: images in several folders.

local files = require "segzero.core.files"

local M = {}

local TRIED = 8                 -- images; a few may be missing

function M.above(folder)
  local parent = folder:match "^(.*)/[^/]*$"
  if folder:match "([^/]*)$":find "^%.%.?$" then return folder .. "/.." end
  if parent == "" then return "/" end
  return parent or "."
end

function M.find(path, image_dir, places, name)
  if image_dir and image_dir ~= "" then places = { image_dir, unpack(places) } end
  local first
  for n = 1, TRIED do
    local file = name(n)
    first = first or file
    for _, place in ipairs(places) do
      if file and files.exists(place .. "/" .. file) then return place end
    end
  end
  if image_dir and image_dir ~= "" then return image_dir end
  error(("%s: no folder has the image %s: tried %s; set data.image_dir"):format(path,
    tostring(first), table.concat(places, ", ")), 0)
end

return M
