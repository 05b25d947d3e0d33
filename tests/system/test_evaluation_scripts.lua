-- test_evaluation_scripts.lua - the evaluation scripts of Seg-Zero and VisionReasoner with only
-- their program changed, on the miniature sets of the hub and the embedded models: the loop over
-- parts, output_{idx}.json, calculate_iou.py; their arguments of inference; a sweep over
-- checkpoints; output folders that exist.

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local host = require "segzero.host"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local evaluate = require "recipes.evaluate"
local vision_reasoner = require "recipes.evaluate_vision_reasoner"
local sweep = require "segzero.evaluation.sweep"
local tally = require "segzero.evaluation.tally"

local place = mini.folder()
local HUB = "tests/golden/hub_sets"
local SAM2 = "models/tiny/sam2"
local POLICY = "models/tiny/qwen2.5-vl"
local SHORT = "resamples=10"

local function json(path) return files.read_json(path) end

-- A sanitizer's build has its program elsewhere.
local function shell(text)
  local path = place .. "/script.sh"
  files.write(path, (text:gsub("%./segzero", function() return mini.quoted(host.executable) end)))
  local pipe = assert(io.popen("bash " .. mini.quoted(path) .. " 2>&1; echo status=$?"))
  local said = pipe:read "*a"
  pipe:close()
  return said, tonumber(said:match "status=(%d+)\n$")
end

-- The shell script of Seg-Zero's evaluation, with the program, the paths and the number of parts.
local LOOP = [[
REASONING_MODEL_PATH="%s"
SEGMENTATION_MODEL_PATH="%s"
OUTPUT_PATH="%s"
TEST_DATA_PATH="%s"
NUM_PARTS=%d
mkdir -p $OUTPUT_PATH
for idx in {0..%d}; do
    export CUDA_VISIBLE_DEVICES=$idx
    ./segzero --threads 1 recipes/evaluate.lua \
        --reasoning_model_path $REASONING_MODEL_PATH \
        --segmentation_model_path $SEGMENTATION_MODEL_PATH \
        --output_path $OUTPUT_PATH \
        --test_data_path $TEST_DATA_PATH \
        --idx $idx \
        --num_parts $NUM_PARTS \
        --batch_size 100 &
done
wait
./segzero recipes/evaluate.lua --output_dir $OUTPUT_PATH
]]

local function rows_of(folder, parts)
  local rows = {}
  for idx = 0, parts - 1 do
    local list = json(("%s/output_%d.json"):format(folder, idx))
    for _, row in ipairs(list) do rows[#rows + 1] = row end
  end
  return rows
end

check.case("Seg-Zero's loop over parts", function()
  local whole = {}
  for _, parts in ipairs { 2, 8 } do
    local folder = ("%s/loop%d"):format(place, parts)
    local said, status = shell(LOOP:format(POLICY, SAM2, folder, HUB .. "/ReasonSeg_test", parts,
      parts - 1))
    check.equal(status, 0, said)
    local rows = rows_of(folder, parts)
    check.equal(#rows, 3, "rows of all parts")
    check.equal({ rows[1].image_id, rows[3].ann_id }, { "4000", "92" }, "their ids, in order")
    local sum = 0
    for _, row in ipairs(rows) do sum = sum + row.intersection / row.union end
    check.ok(said:find(("gIoU (average of per image IoU): %.4f"):format(sum / 3), 1, true), said)
    check.ok(said:find("protocol=segzero\nstatus", 1, true), "the last line is segzero's own")
    check.ok(said:find("as Seg-Zero's evaluation.py: greedy", 1, true), "the script: " .. said)
    whole[parts] = rows
  end
  check.equal(whole[2], whole[8], "the rows do not depend on the parts")
  -- total // num_parts rows each, and the rest in the last.
  check.equal(#json(place .. "/loop2/output_0.json"), 1, "part 0 of 2")
  check.equal(#json(place .. "/loop2/output_1.json"), 2, "part 1 of 2")
  check.equal(files.read(place .. "/loop8/output_0.json"), "[]", "an empty part")

  -- A part that failed, and one of another evaluation.
  local function sum_up() tally.run({ output_dir = place .. "/loop8", resamples = 2 }, print) end
  os.remove(place .. "/loop8/output_3.json")
  check.raises(sum_up, "output_dir: .*/loop8 lacks output_3.json: run that part again "
    .. "%(%-%-idx 3 %-%-num_parts 8%)", "a part is missing")
  mini.copy(place .. "/loop2/part_1", place .. "/loop8/part_3-2")
  mini.copy(place .. "/loop2/output_1.json", place .. "/loop8/output_3.json")
  check.raises(sum_up, "output_dir: .*output_3.json is of 2 parts and .*output_0.json of 8: they "
    .. "are not one evaluation", "another evaluation")
end)

-- ---- VisionReasoner's own scripts ----
local function reasoner_words(set, folder)
  return { "--model", "vision_reasoner", "--output_path", folder, "--test_data_path",
    HUB .. "/" .. set, "--idx", "0", "--num_parts", "1", "--batch_size", "16",
    "--model_path", POLICY, "--segmentation_model_path", SAM2,
    "--task_router_model_path", "TaskRouter-1.5B", SHORT }
end

check.case("an evaluation names the script that it follows", function()
  local words = reasoner_words("refcoco_val", place .. "/named")
  for i, word in ipairs(words) do words[i] = mini.quoted(word) end
  local said, status = shell("./segzero recipes/evaluate_vision_reasoner.lua "
    .. table.concat(words, " "))
  check.equal(status, 0, said)
  check.ok(said:find("as VisionReasoner's evaluation scripts: greedy", 1, true), said)
end)

local function lines_of(folder)
  local lines = {}
  local summary = tally.run({ output_dir = folder, resamples = 10 }, function(text)
    lines[#lines + 1] = text
  end)
  return summary, table.concat(lines, "\n")
end

-- Answers that are known: what each row's question asks for.
local real = sz.rollout.generate
local function with_answers(answer, f)
  sz.rollout.generate = function(_, inputs)
    local out = {}
    for i in ipairs(inputs) do out[i] = { { text = answer(inputs[i].text, i) } } end
    return out
  end
  local ok, why = pcall(f)
  sz.rollout.generate = real
  if not ok then error(why, 0) end
end

-- An answer that names boxes and no points.
local function boxes_answer(...)
  local objects = {}
  for i, box in ipairs { ... } do
    objects[i] = ('{"bbox_2d": [%d, %d, %d, %d]}'):format(unpack(box))
  end
  return "<think>h\195\169</think><answer>[" .. table.concat(objects, ", ") .. "]</answer>"
end

check.case("counting, as eval_count.sh calls it", function()
  local folder = place .. "/counting"
  with_answers(function(_, i)
    if i == 1 then return boxes_answer({ 1, 1, 9, 9 }, { 20, 20, 30, 30 }) end
    return "no list"
  end, function() evaluate.run(reasoner_words("counting", folder)) end)
  local rows = json(folder .. "/output_0.json")
  check.equal(rows, {
    { image_id = "4000", ann_id = "90", think = "h\195\169", pred_count = 2, gt_count = 2 },
    { image_id = "4001", ann_id = "91", think = "", pred_count = 0, gt_count = 2 },
  }, "rows; a point may be missing")
  local s, text = lines_of(folder)
  check.equal({ s.mae, s.correct_count }, { 1, 0.5 }, "sums")
  check.ok(text:find("test len: 2\nmae: 1.0000\nrmse: 1.4142\ncorrect_count: 0.5000", 1, true),
    text)
  local summary = json(folder .. "/part_0/summary.json")
  check.near({ summary.objects.counting, summary.objects.count_error }, { 0.5, 1 }, 0, "summary")
  check.equal(summary.box, cjson.null, "no boxes are compared")
end)

check.case("detection, as eval_coco.sh calls it", function()
  local folder = place .. "/detection"
  with_answers(function() return boxes_answer({ 9, 9, 34, 44 }, { 0, 0, 112, 112 }) end, function()
    evaluate.run(reasoner_words("coco_val", folder))
  end)
  local rows = json(folder .. "/output_0.json")
  check.equal(#rows, 4, "a row for each box")
  check.equal({ rows[1].image_id, rows[1].ann_id, rows[1].category_id }, { 4000, 90, 1 }, "numbers")
  check.equal({ rows[2].bbox, rows[2].score }, { { 0, 0, 128, 96 }, 1 }, "the whole image")
  local _, text = lines_of(folder)
  check.ok(text:find("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.",
    1, true), text)

  -- The same boxes against COCO's own file.
  local truth = { images = { { id = 4000 }, { id = 4001 } }, categories = { { id = 1 } },
    annotations = {} }
  for i, row in ipairs { rows[1], rows[3] } do
    local b = row.bbox
    truth.annotations[i] = { id = i, image_id = row.image_id, category_id = 1, iscrowd = 0,
      area = (b[3] - b[1]) * (b[4] - b[2]), bbox = { b[1], b[2], b[3] - b[1], b[4] - b[2] } }
  end
  files.write(place .. "/instances.json", cjson.encode(truth))
  local s = tally.run({ output_dir = folder, gt_json_path = place .. "/instances.json",
    resamples = 2 }, function() end)
  -- A large wrong box has the higher score: precision 1/2 wherever something is found.
  check.near({ s.ap.AP, s.ap.AR100 }, { 0.5, 1 }, 1e-12, "AP")
end)

check.case("segmentation, as eval_segmentation.sh calls it", function()
  local folder = place .. "/segmentation"
  local function answer()
    return '<think>hm</think><answer>[{"bbox_2d": [9, 9, 35, 44], "point_2d": [20, 25]}]</answer>'
  end
  with_answers(answer, function()
    local words = reasoner_words("refcoco_val", folder)
    words[#words + 1] = "visual_results=true"
    vision_reasoner.run(words)
  end)
  local visual = folder .. "/part_0/visual_results"
  check.equal(folders.list(visual), { "90.png", "90.txt", "91.png", "91.txt" }, "visual results")
  check.ok(files.read(visual .. "/90.txt"):find "^0%.%d+\nhm$", "the IoU and the thinking")
  local img = sz.image.load(visual .. "/90.png")
  check.ok(img.width > 2 * 128, "the image twice")
  img:free()
  local rows = json(folder .. "/output_0.json")
  check.equal({ #rows, rows[1].think, rows[1].bbox_iou }, { 2, "hm", 1 }, "rows; the box is right")
  check.equal(json(folder .. "/part_0/config.json").protocol, "fixed", "no row is left out")
  local s, text = lines_of(folder)
  check.ok(text:find(("bbox_AP (average of per image bbox_AP): %.4f"):format(s.bbox_AP), 1, true),
    text)
  check.ok(text:find("Average think text length: 2.00 characters", 1, true), text)
end)

-- ---- folders that exist ----
check.case("a second evaluation into the same folder", function()
  local folder = place .. "/counting"
  with_answers(function() return "no list" end, function()
    evaluate.run(reasoner_words("counting", folder))
  end)
  check.equal(json(folder .. "/output_0.json")[1].pred_count, 0, "the newer rows")
  check.ok(files.read(folder .. "/part_0/results.jsonl"):find "h\195\169", "the earlier ones stay")
  check.equal(folders.list(folder), { "output_0.json", "part_0", "part_0-2" }, "its folders")
end)

check.case("errors name the setting", function()
  local folder = place .. "/theirs"
  files.make_dir(folder)
  files.write(folder .. "/output_0.json", "[]")
  check.raises(function() evaluate.run(reasoner_words("counting", folder)) end,
    "output_path: .*/theirs/output_0.json exists already and is no result of segzero",
    "a file of another program")
  files.write(place .. "/file", "")
  check.raises(function() evaluate.run { "output_path=" .. place .. "/file", "rows=1" } end,
    "output_path: .*/file exists and is not a folder", "a file")
  check.raises(function() evaluate.run { "data=" .. HUB .. "/counting", "sam2_path=none" } end,
    "task=counting reads lists of objects: set several=true", "a single answer")
  check.raises(function()
    evaluate.run { "data=" .. HUB .. "/refcoco_val", "sam2_path=none", "gt_json_path=x.json" }
  end, "gt_json_path is for task=detection, and this is segmentation: leave it out", "true boxes")
  check.raises(function()
    evaluate.run { "data=" .. HUB .. "/ReasonSeg_val", "ignore_regions=left_out",
      "sam2_path=" .. SAM2 }
  end, "ignore_regions=left_out needs ignore masks", "Seg-Zero's sets have no ignore masks")
  check.raises(function() evaluate.run { "idx=1", "num_parts=1", "rows=2" } end,
    "part is 1, expected 0 to 0", "no such part")
  check.raises(function() evaluate.run { "idx=1", "part=0", "parts=2" } end,
    "idx=1 and part=0 both name the part", "two names")
  check.raises(function() evaluate.run { "merge=a,b", "compare=a,b" } end,
    "merge and compare each say what to do with results: give one", "two ways")
  -- The scripts' own default models, which are not in an empty cache.
  for words, name in pairs {
    [{ "--idx", "0" }] = "Ricky06662/Seg%-Zero%-7B",
    [{ "--idx", "0", "--model", "vision_reasoner" }] = "Ricky06662/VisionReasoner%-7B",
    [{ "--idx", "0", "--model_path", mini.write(place .. "/other") }] =
      "facebook/sam2%-hiera%-large",
  } do
    words[#words + 1] = "--test_data_path"
    words[#words + 1] = HUB .. "/refcoco_val"
    local said, status = shell(("HF_HUB_OFFLINE=1 HF_HOME=%s ./segzero recipes/evaluate.lua %s\n")
      :format(place .. "/no_cache", table.concat(words, " ")))
    check.ok(status ~= 0 and said:find("taking the script's default, " .. name) ~= nil, said)
  end
  check.raises(function() evaluate.run { "--model", "qwen" } end,
    "model=qwen is not supported: only VisionReasoner's questions", "Qwen's own prompts")
end)

-- ---- ignore regions ----
check.case("both conventions for ignore regions", function()
  local folder = place .. "/ignore"
  files.make_dir(folder)
  local img = sz.image.new(112, 112)
  img:save(folder .. "/a.png")
  img:free()
  local polygon = "[[%d,10,%d,10,%d,50,%d,50]]"
  local line = '{"id": "1", "problem": "it", "image": "a.png", "solution": '
    .. '"<box>(10,10),(49,49)</box><points>(20,20),(30,30)</points>", "mask": %s, '
    .. '"ignore_mask": %s}\n'
  files.write(folder .. "/data.jsonl", line:format(polygon:format(10, 50, 50, 10),
    polygon:format(50, 90, 90, 50)))
  local unions = {}
  for _, name in ipairs { "target", "left_out" } do
    local out = ("%s/ignore_%s"):format(place, name)
    with_answers(function() return "nothing" end, function()
      evaluate.run { "data=" .. folder, "ignore_regions=" .. name, "output_path=" .. out, SHORT,
        "sam2_path=" .. SAM2 }
    end)
    unions[name] = json(out .. "/summary.json")
    unions[name] = { cjson.decode(files.read(out .. "/results.jsonl")).union, unions[name].ignore }
  end
  check.equal(unions, { target = { 3200, "target" }, left_out = { 1600, "left_out" } },
    "the true area of an answer that cannot be read, and the name in the summary")
end)

check.case("both conventions on LISA's own folder of ReasonSeg", function()
  local expected = json("tests/golden/annotations/expected.json").ReasonSeg
  -- Pixels inside run lengths.
  local function area(runs)
    local n = 0
    for i = 2, runs == cjson.null and 0 or #runs, 2 do n = n + runs[i] end
    return n
  end
  for _, name in ipairs { "target", "left_out" } do
    local out = ("%s/lisa_%s"):format(place, name)
    with_answers(function() return "nothing" end, function()
      evaluate.run { "data=tests/golden/annotations/ReasonSeg@val", "ignore_regions=" .. name,
        "output_path=" .. out, SHORT, "sam2_path=" .. SAM2 }
    end)
    local seen = 0
    for line in io.lines(out .. "/results.jsonl") do
      local record = cjson.decode(line)
      local want = expected[record.image_id]
      local inside = area(want.mask)
      if name == "target" then inside = inside + area(want.ignore) end
      check.equal(record.union, inside, name .. " " .. record.image_id)
      seen = seen + 1
    end
    check.equal(seen, 3, "images")
  end
  check.raises(function()
    evaluate.run { ("compare=%s/lisa_target,%s/lisa_left_out"):format(place, place) }
  end, "ignore_regions is target in .* and left_out in", "two conventions are not compared")
end)

-- ---- a sweep ----
check.case("a sweep over the checkpoints of a run", function()
  local run = place .. "/run"
  for _, step in ipairs { 2, 10 } do
    local dir = ("%s/global_step_%d"):format(run, step)
    files.make_dir(run)
    mini.copy(POLICY, dir)
    files.write(dir .. "/DONE", "")
  end
  local out = place .. "/sweep"
  local calls = 0
  local result
  with_answers(function()
    calls = calls + 1
    if calls <= 4 then return "nothing" end
    return '<think>x</think>{"bbox": [10,10,60,60], "points_1": [20,20], "points_2": [30,30]}'
  end, function()
    result = evaluate.run { "model_path=" .. run, "checkpoints=all", "rows=4",
      "output_path=" .. out, SHORT }
  end)
  check.equal(#result.members, 2, "members")
  check.equal({ result.members[1].name, result.members[2].name },
    { "global_step_2", "global_step_10" }, "in the order of their steps")
  check.equal({ result.members[1].summary.failed, result.members[2].summary.failed }, { 4, 0 },
    "each has its own answers")
  check.equal(#result.pairs, 1, "pairs")
  local pair = json(out .. "/sweep.json").pairs[1]
  check.near({ pair.gIoU.before, pair.gIoU.after }, { 0, result.members[2].summary.gIoU[1] }, 1e-12,
    "sweep.json")
  check.near(pair.gIoU.difference, pair.gIoU.after, 1e-12, "what changed")
  check.ok(pair.gIoU.low <= pair.gIoU.difference and pair.gIoU.difference <= pair.gIoU.high,
    "inside its interval")
  local text = files.read(out .. "/sweep.md")
  check.ok(text:find("| global_step_2  | 0.000 [0.000, 0.000]", 1, true), text)
  local img = sz.image.load(out .. "/sweep.png")
  check.equal({ img.width, img.height }, { 880, 480 }, "the plot")
  img:free()

  result = nil
  with_answers(function() return "nothing" end, function()
    result = evaluate.run { ("model_path=%s,%s"):format(POLICY, run), "rows=2",
      "output_path=" .. out, SHORT }
  end)
  check.equal({ result.members[1].name, result.members[2].name, result.members[2].path },
    { "qwen2.5-vl", "run", run .. "/global_step_10" }, "a list; a run stands for its newest")
  check.ok(files.exists(out .. "-2/qwen2.5-vl/results.jsonl"), "a folder of its own")
  -- Adapters stand for their model and themselves.
  files.make_dir(place .. "/adapters")
  files.write(place .. "/adapters/adapter_config.json",
    '{"base_model_name_or_path": "some/base"}')
  check.equal(sweep.members(place .. "/adapters," .. POLICY, "newest")[1].words,
    { "model_path=some/base", "adapter=" .. place .. "/adapters" }, "adapters")
  check.raises(function()
    evaluate.run { ("model_path=%s,%s"):format(POLICY, run), "parts=2", "rows=2" }
  end, "several checkpoints are evaluated whole", "parts")
  check.raises(function()
    evaluate.run { "model_path=" .. POLICY .. ",/nowhere", "rows=2" }
  end, "model_path: no model in /nowhere", "a missing one, before the first runs")
end)

mini.remove()
check.finish()
