-- test_table_features.lua - tables with features of `datasets` beyond those of Seg-Zero's sets
-- (tests/golden/make_features.py), as Parquet and as Arrow: lists of images, images as paths, class
-- labels, nested columns, long texts, solutions as lists, masks in six forms.

local cjson = require "cjson"
local check = require "tests.support.check"
local sources = require "segzero.data.sources"
local tensor = require "segzero.core.tensor"

local SET = "tests/golden/features/%s.%s"
local SOLUTION = "<box>(1,2),(30,20)</box><points>(5,6),(7,8)</points>"
local OBJECTS = { { bbox_2d = { 1, 2, 30, 20 }, point_2d = { 5, 6 } } }

-- A case for each of both formats; f(row, set).
local function in_both(name, f)
  for _, form in ipairs { "parquet", "arrow" } do
    check.case(name .. "." .. form, function()
      local set = sources.open(SET:format(name, form), { split = "train" })
      check.equal(set:count(), 2, "rows")
      f(set, function(i)
        local row = set:row(i)
        check.equal({ row.image.width, row.image.height }, { 42, 28 }, "the image")
        check.equal(row.problem, "the dot", "the question")
        return row
      end)
    end)
  end
end

local function has_solution(_, row_of)
  for i = 1, 2 do check.equal(row_of(i).solution, SOLUTION, "the solution") end
end

in_both("image_list", has_solution)
in_both("image_path", has_solution)
in_both("large_string", has_solution)

in_both("image_pairs", function(set)
  check.raises(function() set:row(1) end, "row 1, column 'images': 2 images, and a row has one",
    "two images")
end)

in_both("class_label", function(_, row_of) check.equal(row_of(2).columns.kind, 1, "its number") end)

in_both("nested", function(_, row_of)
  local columns = row_of(2).columns
  check.equal(columns.info, { a = { b = { 7 } } }, "structs")
  check.equal(columns.objects, { { bbox = { 1, 2 }, label = 1 } }, "a list of structs")
end)

for _, name in ipairs { "json_solution", "list_solution" } do
  in_both(name, function(_, row_of)
    check.equal(cjson.decode(row_of(1).solution), OBJECTS, "the solution as JSON")
  end)
end

for _, name in ipairs { "mask_large_list", "mask_fixed", "mask_array", "mask_numbers",
  "mask_image" } do
  in_both(name, function(_, row_of)
    for i = 1, 2 do
      local mask = row_of(i).mask()
      check.equal(mask:shape(), { 28, 42 }, "the mask's size")
      local data = tensor.data(mask)
      for y = 0, 27 do
        local sum = 0
        for x = 0, 41 do sum = sum + data[y * 42 + x] end
        local inside = y >= 5 and y < 20
        check.equal(sum, inside and 20 or 0, "row " .. y)
        check.equal({ data[y * 42 + 9], data[y * 42 + 30] }, { 0, 0 }, "next to it")
      end
      mask:free()
    end
  end)
end

check.finish()
