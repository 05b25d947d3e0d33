-- test_coco_ap.lua - average precision of boxes against pycocotools' COCOeval
-- (tests/golden/make_coco_ap.py).

local cjson = require "cjson"
local check = require "tests.support.check"
local coco_ap = require "segzero.evaluation.coco_ap"
local files = require "segzero.core.files"

local NAMES = { "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm",
  "ARl" }

local golden = files.read_json "tests/golden/coco_ap.json"

local function write_truth(case)
  local path = os.tmpname()
  files.write(path, cjson.encode(case.truth))
  return path
end

local function found_of(case)
  local found = {}
  for i, d in ipairs(case.found) do
    found[i] = { image = d.image_id, category = d.category_id, box = d.bbox, score = d.score }
  end
  return found
end

check.equal(#golden.cases, 6, "cases")

for number, case in ipairs(golden.cases) do
  check.case(("case %d of COCOeval"):format(number), function()
    local path = write_truth(case)
    local s = coco_ap.summary(coco_ap.read(path), found_of(case))
    os.remove(path)
    local values = {}
    for i, name in ipairs(NAMES) do values[i] = s[name] end
    -- Sums of up to 1010 doubles in another order.
    check.near(values, case.stats, 1e-12, "the twelve numbers")
  end)
end

check.case("the lines are COCOeval's", function()
  local s = {}
  for i, name in ipairs(NAMES) do s[name] = i / 20 end
  local lines = coco_ap.lines(s)
  check.equal(#lines, 12, "lines")
  check.equal(lines[1],
    " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.050", "the first")
  check.equal(lines[7],
    " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.350",
    "the seventh")
end)

check.case("a truth that is none is one line", function()
  local path = os.tmpname()
  files.write(path, '{"images": [], "categories": []}')
  check.raises(function() coco_ap.read(path) end, "no list 'annotations' in it", "no annotations")
  files.write(path, '{"images": [], "categories": [], "annotations": [{"image_id": 1}]}')
  check.raises(function() coco_ap.read(path) end, "annotation 1 has no image_id, category_id",
    "no box")
  local function refused(images, annotation, message, name)
    files.write(path, ('{"images": [%s], "categories": [], "annotations": [{"image_id": 1, '
      .. '"category_id": 1, %s}]}'):format(images, annotation))
    check.raises(function() coco_ap.read(path) end, message, name)
  end
  refused('{"id": 1}', '"bbox": [1, 2, "3", 4]', "annotation 1 has no image_id", "a text in a box")
  refused('{"id": 1}', '"bbox": [1, 2, 3, 4], "area": "5"', "area of annotation 1 is no number",
    "an area that is a text")
  refused("5", '"bbox": [1, 2, 3, 4]', "entry 1 of 'images' has no id", "images that are numbers")
  os.remove(path)
  local truth = { images = { 1 }, categories = { 1 }, boxes = {}, name = "instances.json" }
  local found = { { image = 2, category = 1, box = { 0, 0, 1, 1 }, score = 1 } }
  check.raises(function() coco_ap.summary(truth, found) end, "instances.json has no image 2",
    "another image")
end)

check.finish()
