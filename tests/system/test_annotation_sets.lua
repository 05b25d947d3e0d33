-- test_annotation_sets.lua - one training step, and an evaluation, on each of the miniature sets of
-- annotations (tests/golden/make_annotations.py), by the recipes as a user starts them; and what
-- the checks before step 1 say about damaged ones.

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local mini = require "tests.support.miniature"

local SETS = "tests/golden/annotations/"
local place = mini.folder()
local model = mini.write(place .. "/model")
local runs = 0

local function train(set, more)
  runs = runs + 1
  local folder = ("%s/run_%d"):format(place, runs)
  local words = { "recipes/refcocog_grpo.lua", "worker.actor.model.model_path=" .. model,
    "data.train_files=" .. set, "data.val_files=", "data.rollout_batch_size=2",
    "worker.actor.global_batch_size=2", "worker.rollout.n=2", "data.max_response_length=6",
    "data.max_prompt_length=2000", "data.shuffle=false", "trainer.max_steps=1",
    "trainer.logger=jsonl", "trainer.save_checkpoint_path=" .. folder }
  for _, word in ipairs(more or {}) do words[#words + 1] = word end
  local text, status = mini.run(words)
  return text, status, folder
end

-- The solutions by problem that a run's answers were scored with.
local function solutions(folder)
  local list = {}
  for line in io.lines(folder .. "/rollouts.jsonl") do
    local row = cjson.decode(line)
    list[row.problem] = row.solution
  end
  return list
end

check.case("a step on each set that names one object", function()
  -- The boxes are those of the masks, in the image's pixels.
  local expected = files.read_json(SETS .. "expected.json")
  local left = expected["refcocog@train"][1].pixel_boxes[1]
  local tool = expected.ReasonSeg.a_1.pixel_box
  for set, want in pairs {
    ["refer_seg/refcocog"] = { ["the left shape"] = left, ["a shape in two parts"] = left },
    ["ReasonSeg@train"] = { ["what stands out?"] = tool, ["the thing that you would hold"] = tool },
  } do
    local text, status, folder = train(SETS .. set)
    check.equal(status, 0, set .. ": " .. text)
    local found = solutions(folder)
    local seen = 0
    for problem, box in pairs(want) do
      local solution = found[problem] or ""
      local text = ("<box>(%d,%d),(%d,%d)</box>"):format(unpack(box))
      check.equal(solution:match "^<box>.*</box>", text, set .. ": " .. problem)
      check.ok(solution:find "<points>%(%d+,%d+%),%(%d+,%d+%)</points>$" ~= nil, solution)
      seen = seen + 1
    end
    check.equal(seen, 2, "problems")
  end
end)

check.case("a step on each set that names any number of objects", function()
  local reward = { "worker.reward.compute_score=vision_reasoner" }
  for set, want in pairs {
    ["refer_seg/grefcoco"] = { ["everything above"] = 2, ["the two on top"] = 2 },
    ["coco@val2017"] = { person = 2, dog = 1 },
  } do
    local text, status, folder = train(SETS .. set, reward)
    check.equal(status, 0, set .. ": " .. text)
    local found = solutions(folder)
    local seen = 0
    for problem, n in pairs(want) do
      local list = cjson.decode(found[problem] or "[]")
      check.equal(#list, n, set .. ": objects of " .. problem)
      check.equal({ #list[1].bbox_2d, #list[1].point_2d }, { 4, 2 }, "an object")
      seen = seen + 1
    end
    check.equal(seen, 2, "problems")
  end
end)

check.case("an evaluation of each set", function()
  local oracle = { "oracle=true", "sam2_path=tests/golden/sam2/S5", "frame=84" }
  for set, rows in pairs {
    ["refer_seg/refcocog@val"] = 3, ["refer_seg/refcoco+@testA"] = 3, ["ReasonSeg/val"] = 3,
    ["refer_seg/grefcoco@val"] = 4, ["coco@val"] = 6,
  } do
    runs = runs + 1
    local folder = ("%s/eval_%d"):format(place, runs)
    local words = { "recipes/evaluate.lua", "data=" .. SETS .. set, "output_path=" .. folder,
      unpack(oracle) }
    if set:find "grefcoco" or set == "coco@val" then
      words[#words + 1] = "several=true"
      words[#words + 1] = "task=segmentation"
    end
    local text, status = mini.run(words)
    check.equal(status, 0, set .. ": " .. text)
    check.ok(text:find "gIoU=0%.%d" ~= nil and text:find("errors=0", 1, true), set .. ": " .. text)
    local n = 0
    for _ in io.lines(folder .. "/results.jsonl") do n = n + 1 end
    check.equal(n, rows, set .. ": rows")
  end
end)

check.case("both conventions for ReasonSeg's ignored regions", function()
  local union = {}
  for _, convention in ipairs { "target", "left_out" } do
    local folder = place .. "/ignore_" .. convention
    local text, status = mini.run { "recipes/evaluate.lua", "data=" .. SETS .. "ReasonSeg@val",
      "oracle=true", "sam2_path=tests/golden/sam2/S5", "frame=84", "output_path=" .. folder,
      "ignore_regions=" .. convention }
    check.equal(status, 0, text)
    check.ok(text:find("ignore=" .. convention, 1, true), "it is named: " .. text)
    local first = cjson.decode(files.read(folder .. "/results.jsonl"):match "^[^\n]*")
    check.equal(first.id, "c_3", "the first row")
    union[convention] = first.union
  end
  -- All of this row's ignored square of 21 x 21 pixels is in the union of the one and not the
  -- other.
  check.equal(union.target - union.left_out, 21 * 21, "pixels")
end)

-- ---- damaged sets ----
-- A copy of the sets of refer with a change of instances.json.
local function damaged(from, to)
  runs = runs + 1
  local root = ("%s/damaged_%d"):format(place, runs)
  mini.copy(SETS .. "refer_seg", root)
  local path = root .. "/refcocog/instances.json"
  local text, n = files.read(path):gsub(from, to)
  check.ok(n > 0, "the file has " .. from)
  files.write(path, text)
  return root .. "/refcocog", root
end

check.case("bad boxes, masks and images are named with file and id before step 1", function()
  local name = damaged('("bbox": )%[[%d., ]+%]', "%1[10, 10, -4, 5]")
  local text, status, folder = train(name)
  check.ok(status ~= 0 and text:find("a box or a point is not in the image in 5", 1, true), text)
  check.ok(text:find("refs(umd).p ref_id 1 text 1: the box [10,10,6,15] has its corners in",
    1, true), text)
  check.ok(text:find("refs(umd).p ref_id 2: the box [10,10,6,15]", 1, true), text)
  check.ok(text:find("and 2 more", 1, true), "three places: " .. text)
  check.ok(not files.exists(folder), "no run folder")

  name = damaged('"segmentation": %[%[60.0, 10.0[^%]]*%]%]', '"segmentation": [[1, 1, 1, 1, 1, 1]]')
  text, status = train(name, { "worker.reward.compute_score=mask_iou",
    "worker.reward.sam2_path=tests/golden/sam2/S5" })
  check.ok(status ~= 0 and text:find("ref_id 2: the mask (polygons) is empty", 1, true), text)

  local root
  name, root = damaged("miniature", "miniature")
  os.remove(root .. "/images/train2014/COCO_train2014_000000000002.jpg")
  text, status = train(name)
  check.ok(status ~= 0 and text:find("refs%(umd%).p ref_id 4: .*000000000002.jpg: No such file"),
    text)
  text, status = train(name, { "data.on_bad_row=skip" })
  check.equal(status, 0, "left out: " .. text)

  name = damaged('"id": 5001', '"id": 5901')
  text, status = train(name)
  check.ok(status ~= 0 and text:find("ref_id 2: .*instances.json has no annotation 5001"), text)
end)

check.case("a set of several objects needs the prompt that asks for a list", function()
  local text, status = train(SETS .. "refer_seg/grefcoco")
  check.ok(status ~= 0 and text:find("use recipes/vision_reasoner_grpo.lua", 1, true), text)
  check.ok(text:find("grefs(unc).json ref_id 21 text 1", 1, true), "the place: " .. text)
end)

check.case("data.image_dir: images elsewhere", function()
  runs = runs + 1
  local root = ("%s/moved_%d"):format(place, runs)
  os.execute("mkdir -p " .. root)
  mini.copy(SETS .. "refer_seg/refcocog", root .. "/refcocog")
  local text, status = train(root .. "/refcocog")
  check.ok(status ~= 0 and text:find("set data.image_dir", 1, true), text)
  text, status = train(root .. "/refcocog",
    { "data.image_dir=" .. SETS .. "refer_seg/images/train2014" })
  check.equal(status, 0, text)

  -- Rows of JSON Lines, whose images are in another folder.
  files.write(root .. "/rows.jsonl", files.json { problem = "x", image = "000000000001.jpg",
    solution = "<box>(1,2),(30,40)</box><points>(3,4),(5,6)</points>" } .. "\n")
  local more = { "data.image_dir=" .. SETS .. "coco/val2017", "data.rollout_batch_size=1",
    "worker.actor.global_batch_size=1" }
  text, status = train(root .. "/rows.jsonl", more)
  check.equal(status, 0, text)
end)

mini.remove()
check.finish()
