-- test_evaluation.lua - the evaluations of Seg-Zero, VisionReasoner, LISA and ReLA
-- (tests/golden/make_evaluation.py): what their scripts print about result files, the text of these
-- files, ignored pixels, rows without a target; and what a row of each kind of set states as true.

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local metrics = require "segzero.evaluation.metrics"
local objects = require "segzero.evaluation.objects"
local output_rows = require "segzero.evaluation.output_rows"
local plot = require "segzero.tools.plot"
local report = require "segzero.evaluation.report"
local results = require "segzero.evaluation.results"
local segmenter = require "segzero.inference.segmenter"
local shared_folder = require "segzero.evaluation.shared_folder"
local sources = require "segzero.data.sources"
local sz = require "segzero"
local tally = require "segzero.evaluation.tally"
local target_of = require "segzero.evaluation.target"
local visual_results = require "segzero.evaluation.visual_results"

local golden = files.read_json "tests/golden/evaluation.json"

local function new_folder()
  local pipe = assert(io.popen "mktemp -d")
  local path = pipe:read "*l"
  pipe:close()
  return path
end

local place = new_folder()

-- ---- what the scripts print ----
local function write_files(folder, list)
  files.make_dir(folder)
  for name, rows in pairs(list) do files.write(folder .. "/" .. name, cjson.encode(rows)) end
end

local function lines_of(cfg)
  local lines = {}
  tally.run(cfg, function(text) lines[#lines + 1] = text end)
  return lines
end

check.equal(#golden.tallies, 5, "tallies")

for _, one in ipairs(golden.tallies) do
  check.case("the lines of calculate: " .. one.name, function()
    local folder = place .. "/" .. one.name
    for name, rows in pairs(one.files) do
      if #rows == 0 then one.files[name] = cjson.empty_array end
    end
    write_files(folder, one.files)
    local cfg = { output_dir = folder, resamples = 10 }
    if one.name == "coco" then
      cfg.gt_json_path = folder .. "/truth.json"
      local truth = files.read_json("tests/golden/coco_ap.json").cases[1].truth
      files.write(cfg.gt_json_path, cjson.encode(truth))
    end
    local said = {}
    for _, line in ipairs(lines_of(cfg)) do said[line] = true end
    local n = 0
    for _, line in ipairs(one.lines) do
      if line:find "%w" and not line:find "%-%-%-" then
        n = n + 1
        check.ok(said[line], "is printed: " .. line)
      end
    end
    check.ok(n >= 1, "lines")
  end)
end

check.case("files that are no results are one line", function()
  local folder = place .. "/bad"
  write_files(folder, { ["output_0.json"] = { { image_id = "1", think = "" } } })
  check.raises(function() lines_of { output_dir = folder, resamples = 2 } end,
    "output_0.json: row 1 is not a result of an evaluation", "another file")
  local function refused(row, message, name)
    files.write(folder .. "/output_0.json", "[" .. row .. "]")
    check.raises(function() lines_of { output_dir = folder, resamples = 2 } end,
      "output_0.json: row 1 " .. message, name)
  end
  refused('{"intersection": NaN, "union": 3}', "is not a result", "NaN")
  refused('{"intersection": 5, "union": 3}', "has an intersection of 5 and a union of 3 pixels",
    "more than the union")
  refused('{"intersection": -1, "union": 3}', "has an intersection of %-1", "less than nothing")
  refused('{"category_id": 1, "score": 1, "bbox": [1, 2, "3", 4]}', "is not a result",
    "a text in a box")
  check.raises(function() lines_of { output_dir = place .. "/nowhere" } end,
    "output_dir: .*/nowhere: No such file", "no folder")
  files.make_dir(place .. "/empty")
  check.raises(function() lines_of { output_dir = place .. "/empty" } end,
    "output_dir: .*/empty holds no output_%*.json", "no files")
end)

-- ---- the text of the files ----
check.case("rows are written as json.dump writes them", function()
  check.equal(#golden.texts, 8, "texts")
  local ORDER = { "image_id", "ann_id", "think", "intersection", "union", "bbox_iou", "pred_count",
    "gt_count", "category_id", "bbox", "score" }
  for _, one in ipairs(golden.texts) do
    local rows = {}
    for i, row in ipairs(one.rows) do
      rows[i] = {}
      for _, name in ipairs(ORDER) do
        local value = row[name]
        if name == "bbox_iou" or name == "score" then value = value and { float = value } end
        if value ~= nil then table.insert(rows[i], { name, value }) end
      end
    end
    check.equal(output_rows.text(rows), one.text, "a text")
  end
end)

check.case("records become rows", function()
  local null = cjson.null
  local records = {
    { image_id = "a", ann_id = "1", think = "hm", intersection = 3, union = 4, box_hit = true,
      box_stated = true, failure_kind = null, failure = null },
    { image_id = "a", ann_id = "2", think = "hm", intersection = 0, union = 9, box_hit = true,
      box_stated = false, failure_kind = "sam2", failure = "no" },
    { image_id = "a", ann_id = "3", think = null, intersection = 0, union = 0, box_hit = false,
      failure_kind = "iou", failure = "no" },
  }
  local rows = output_rows.of(records, { task = "segmentation", protocol = "segzero" })
  check.equal(#rows, 2, "what cannot be compared is left out")
  check.equal(rows[1], { { "image_id", "a" }, { "ann_id", "1" }, { "think", "hm" },
    { "intersection", 3 }, { "union", 4 }, { "bbox_iou", { float = 1 } } }, "a row")
  check.equal({ rows[2][3][2], rows[2][6][2].float }, { "", 0 }, "a failure has no think, and no "
    .. "box without the column")
  rows = output_rows.of(records, { task = "segmentation", protocol = "visionreasoner" })
  check.equal(#rows, 1, "VisionReasoner leaves out what SAM2 fails on")

  local detected = { { image_id = "7", ann_id = "8", category = 3, think = "hm", failure = null,
    bbox = { { 1, 2, 3, 4 }, { 5, 6, 7, 8 } }, box_scores = { 0.5, 1 }, failure_kind = null } }
  rows = output_rows.of(detected, { task = "detection", protocol = "visionreasoner" })
  check.equal(#rows, 2, "a row for each box")
  check.equal({ rows[2][1][2], rows[2][4][2], rows[2][5][2], rows[2][6][2].float },
    { 7, 3, { 5, 6, 7, 8 }, 1 }, "its values")
end)

-- ---- a folder that parts share ----
check.case("an output file is replaced only if segzero wrote it", function()
  local folder = place .. "/shared"
  local said = {}
  local function say(text) said[#said + 1] = text end
  local own = shared_folder.claim(folder, 3, say)
  check.equal({ own.path, own.output }, { folder .. "/part_3", folder .. "/output_3.json" },
    "paths")
  shared_folder.write(own, "[]")
  check.equal(shared_folder.outputs(folder)[1].part, own.path, "the part that wrote it")
  local again = shared_folder.claim(folder, 3, say)
  check.equal(again.path, folder .. "/part_3-2", "a second evaluation")
  check.ok(said[1]:find "output_3.json will be replaced", said[1])
  check.raises(function() shared_folder.outputs(folder) end,
    "is not what the newest evaluation of this part wrote %(.*part_3%-2%): it has not finished",
    "one that did not finish")
  shared_folder.write(again, "[ ]")
  check.equal(shared_folder.outputs(folder)[1].part, again.path, "the newer part")
  files.write(folder .. "/output_3.json", "[{}]")
  check.raises(function() shared_folder.check(folder, 3) end,
    "output_path: .*output_3.json exists already and is no result of segzero", "a changed file")
  check.equal(files.read(folder .. "/output_3.json"), "[{}]", "it stays")
  check.equal(#folders.list(folder), 3, "two parts and a file")
end)

-- A folder of one part with these records. Returns the settings that sum it up.
local function part_of(name, records, config)
  local own = shared_folder.claim(place .. "/" .. name, 0, function() end)
  config.parts = 1
  config.total = #records
  files.write(own.path .. "/config.json", files.json(config))
  local lines = {}
  for i, record in ipairs(records) do
    record.index = i
    lines[i] = files.json(record) .. "\n"
  end
  files.write(own.path .. "/results.jsonl", table.concat(lines))
  local rows = output_rows.of(records, { task = config.task, protocol = config.protocol })
  shared_folder.write(own, output_rows.text(rows))
  return { output_dir = place .. "/" .. name, resamples = 2 }
end

check.case("no row's visual results replace those of another", function()
  local folder = place .. "/visual"
  local write = visual_results.writer(folder)
  local img = sz.image.new(64, 64)
  for i, id in ipairs { "a", "a-2", "a", "a" } do
    write({ image = img }, { ann_id = id, bbox = { 1, 2, 30, 40 }, iou = i, think = "hm" }, nil)
  end
  img:free()
  local names = {}
  for _, name in ipairs { "a", "a-2", "a-3", "a-4" } do
    names[#names + 1] = name .. ".png"
    names[#names + 1] = name .. ".txt"
  end
  table.sort(names)
  check.equal(folders.list(folder), names, "four rows")
  check.equal(files.read(folder .. "/a-2.txt"), "2\nhm", "the second row's own name")
end)

-- gRefCOCO has several expressions about nothing in an image, all with ann_id -1.
check.case("of rows with the same ids, only those that are right have an IoU of 1", function()
  local null = cjson.null
  local function about_nothing(failure, found)
    return { image_id = "7", ann_id = "-1", think = "hm", intersection = 0, union = 0,
      iou = failure == null and 1 or 0, box_hit = false, box_stated = true, true_objects = 0,
      found_objects = found, matched = 0, failure = failure,
      failure_kind = failure == null and null or "answer" }
  end
  local records = { about_nothing("no answer", null), about_nothing(null, 0),
    about_nothing("no answer", null), about_nothing("no answer", null) }
  local cfg = part_of("nothing", records, { several = true, masks = true, task = "segmentation",
    protocol = "visionreasoner" })
  local s = tally.run(cfg, function() end)
  check.equal({ s.rows, s.rightly_empty, s.gIoU }, { 4, 1, 0.25 }, "one of four")
end)

check.case("the true boxes of a merged evaluation are those of its parts", function()
  local null = cjson.null
  local truth = files.read_json("tests/golden/coco_ap.json").cases[1].truth
  local path = place .. "/merged_truth.json"
  files.write(path, cjson.encode(truth))
  local b = truth.annotations[1].bbox
  local box = { b[1], b[2], b[1] + b[3], b[2] + b[4] }
  local records = { { image_id = truth.annotations[1].image_id, ann_id = "1", think = "hm",
    category = truth.annotations[1].category_id, box_hit = true, box_stated = true, bbox = { box },
    box_scores = { 1 }, true_boxes = { box }, true_objects = 1, found_objects = 1, matched = 1,
    failure = null, failure_kind = null } }
  local config = { several = true, masks = false, task = "detection", protocol = "visionreasoner",
    gt_json_path = path }
  local cfg = part_of("boxes", records, config)
  local part = cfg.output_dir .. "/part_0"
  local function merge(words)
    words.merge = { part }
    words.resamples = 2
    words.output_path = place .. "/merged"
    return results.merge(words, {}, function() end)
  end
  -- Against the data set's own box AP would be 1; COCO's file has more boxes.
  local want = tally.run({ output_dir = cfg.output_dir, resamples = 2, gt_json_path = path },
    function() end).ap.AP
  check.ok(want > 0 and want < 0.9, "AP against the file: " .. want)
  check.near(merge({}).ap.AP, want, 1e-12, "merge")
  check.near(tally.run(cfg, function() end).ap.AP, want, 1e-12, "output_dir")
end)

check.case("true boxes are for detection alone", function()
  local one = golden.tallies[1]
  local folder = place .. "/no_boxes"
  write_files(folder, one.files)
  local cfg = { output_dir = folder, resamples = 2, gt_json_path = "x.json" }
  check.raises(function() lines_of(cfg) end,
    "gt_json_path is for task=detection, and this is %a+: leave it out", one.name)
end)

check.case("parts of different models are not one evaluation", function()
  local parts = {}
  for i, adapter in ipairs { "runs/a", "runs/b" } do
    parts[i] = ("%s/adapter%d"):format(place, i)
    files.make_dir(parts[i])
    files.write(parts[i] .. "/config.json", files.json { adapter = adapter, total = 2 })
    files.write(parts[i] .. "/results.jsonl", files.json { index = i } .. "\n")
  end
  check.raises(function() results.read_parts(parts, "merge") end,
    "merge: adapter is runs/a in .*adapter1 and runs/b in .*adapter2", "adapters")
end)

-- ---- masks ----
local function tensor_of(rows, inside)
  local height = #rows
  local width = #rows[1]
  local t = sz.tensor.zeros({ height, width }, { dtype = "u8" })
  local p = sz.tensor.data(t)
  for y = 1, height do
    for x = 1, width do
      if inside(rows[y][x]) then p[(y - 1) * width + x - 1] = 1 end
    end
  end
  return t
end

local function is_one(v) return v == 1 end
local function is_ignored(v) return v == 255 end

check.case("ignored pixels count for nothing, as in LISA", function()
  check.equal(#golden.ignore, 8, "cases")
  for i, one in ipairs(golden.ignore) do
    local inside, either = segmenter.compare(tensor_of(one.found, is_one),
      tensor_of(one["true"], is_one), tensor_of(one["true"], is_ignored))
    check.equal({ inside, either }, { one.intersection, one.union }, "case " .. i)
  end
end)

check.case("ignore masks belong to the target or are left out", function()
  local row = { id = "1", solution = "", image = { width = 2, height = 1 }, columns = {} }
  function row.mask() return tensor_of({ { 1, 0 } }, is_one) end
  function row.ignore_mask() return tensor_of({ { 0, 1 } }, is_one) end
  local t = target_of.of(row, { masks = true, ignore = "target" })
  check.equal({ t.mask:totable(), t.ignored }, { { { 1, 1 } } }, "target")
  t = target_of.of(row, { masks = true, ignore = "left_out" })
  check.equal({ t.mask:totable(), t.ignored:totable() }, { { { 1, 0 } }, { { 0, 1 } } }, "left out")
  target_of.release(t)
  check.equal(t.mask, nil, "released")
end)

check.case("gIoU, cIoU, N-Acc and T-Acc of rows without a target, as in ReLA", function()
  local records = {}
  for i, row in ipairs(golden.no_target.rows) do
    local inside, either = segmenter.compare(tensor_of(row.found, is_one),
      tensor_of(row["true"], is_one))
    local found = row.pred_nt and 0 or 1
    records[i] = { true_objects = row.gt_nt and 0 or 1, found_objects = found, matched = 0,
      intersection = inside, union = either, box_hit = false,
      iou = either > 0 and inside / either or 1, failure_kind = cjson.null }
  end
  check.equal(#records, 40, "rows")
  local s = metrics.summary(report.for_metrics(records), "fixed", { resamples = 2 })
  local o = objects.summary(records)
  check.near({ s.gIoU[1], s.cIoU[1], o.n_acc, o.t_acc }, { golden.no_target.gIoU,
    golden.no_target.cIoU, golden.no_target.N_acc, golden.no_target.T_acc }, 1e-12, "measures")
end)

-- ---- the sets ----
local HUB = "tests/golden/hub_sets/"

local function rows_of(name)
  local set = sources.open(HUB .. name, { split = "test", check = false })
  local list = {}
  for i = 1, set:count() do list[i] = set:row(i) end
  return list
end

local function inside(mask)
  local n = 0
  local p = sz.tensor.data(mask)
  for i = 0, mask:numel() - 1 do n = n + p[i] end
  return n
end

check.case("what the rows of the hub's sets state", function()
  local expected = files.read_json(HUB .. "expected.json")
  for _, name in ipairs { "ReasonSeg_test", "refcoco_val" } do
    for i, row in ipairs(rows_of(name)) do
      local t = target_of.of(row, { masks = true, ignore = "target" })
      local facts = expected[name][i]
      check.equal(inside(t.mask), facts.inside, name .. " mask")
      check.equal(t.objects[1].bbox, facts.box, name .. " box")
      check.equal(t.count, name == "refcoco_val" and 1 or nil, name .. " count")
      check.equal({ target_of.ids(row) }, { tostring(3999 + i), tostring(89 + i) }, name .. " ids")
      check.equal(target_of.task(row), "segmentation", name)
      target_of.release(t)
    end
  end
  for i, row in ipairs(rows_of "coco_val") do
    local t = target_of.of(row, {})
    check.equal({ target_of.task(row), t.category, t.count, #t.objects },
      { "detection", 1, #expected.coco_val[i], #expected.coco_val[i] }, "coco_val")
    check.equal(t.objects[1].bbox, expected.coco_val[i][1], "its first box")
  end
  for i, row in ipairs(rows_of "counting") do
    local t = target_of.of(row, {})
    check.equal({ target_of.task(row), t.count, t.objects }, { "counting", expected.counting[i] },
      "counting")
  end
end)

check.case("a mask with nothing inside is a row without a target", function()
  local row = { id = "1", solution = "", image = { width = 2, height = 1 },
    columns = { bbox = cjson.decode "[0, 0, 0, 0]" } }
  function row.mask(empty)
    check.equal(empty, true, "it may be empty")
    return tensor_of({ { 0, 0 } }, is_one)
  end
  local t, why = target_of.of(row, { masks = true, ignore = "target" })
  check.equal({ why, t.count, #t.objects }, { nil, 0, 0 }, "no objects")
end)

check.case("an empty list of boxes needs no mask", function()
  local row = { id = "1", solution = "", image = { width = 2, height = 1 },
    columns = { bbox = {} } }
  function row.mask() error("the mask is null", 0) end
  local t, why = target_of.of(row, { masks = true, ignore = "target" })
  check.equal({ why, t.count, t.mask:totable() }, { nil, 0, { { 0, 0 } } }, "nothing to find")
  row.columns.bbox = { 1, 2, 3, 4 }
  t, why = target_of.of(row, { masks = true, ignore = "target" })
  check.equal({ t.mask, why }, { nil, "the mask is null" }, "a box, so there should be a mask")
end)

check.case("boxes of other forms", function()
  local row = { id = "1", solution = "", image = { width = 20, height = 10 }, columns = {} }
  for text, count in pairs { ["[1, 2, 3, 4]"] = 1, ["[[1, 2, 3, 4], [5, 6, 7, 8]]"] = 2,
      ["[]"] = 0 } do
    row.columns.bbox = text
    check.equal(target_of.of(row, {}).count, count, "bbox as text: " .. text)
  end
  row.columns.bbox = { { 1, 2, 3 } }
  local _, why = target_of.of(row, {})
  check.equal(why, "box 1 of the column bbox is no list of 4 numbers", "a bad box")
end)

-- ---- the plot ----
check.case("a chart has its points where the values are", function()
  local img = plot.chart { title = "t", x = { "1", "2" }, series = {
    { name = "a", values = { { 0, 0, 0 }, { 1, 1, 1 } } },
  } }
  local width = img.width
  local p = img:pixels()
  local first, last
  for y = 0, img.height - 1 do
    for x = 0, 700 do
      local q = p + 3 * (y * width + x)
      if q[0] == 0 and q[1] == 114 and q[2] == 178 then
        if not first or x < first[1] then first = { x, y } end
        if not last or x > last[1] then last = { x, y } end
      end
    end
  end
  check.ok(first[1] < last[1] and first[2] > last[2], "it rises from left to right")
  img:free()
end)

os.execute("rm -rf '" .. place .. "'")
check.finish()
