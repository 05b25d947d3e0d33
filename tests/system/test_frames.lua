-- test_frames.lua - coordinates through whole programs, with the embedded models: images that are
-- not square, of sizes that the model does not see, with limited pixels. The ceiling that training
-- reports is what evaluation with oracle=true reports, and the true answer earns all five points.

local ffi = require "ffi"
local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local answer = require "segzero.formats.answer"
local evaluate = require "recipes.evaluate"
local files = require "segzero.core.files"
local frame = require "segzero.data.frame"
local recipe = require "recipes.refcocog_grpo"
local strict = require "rewards.seg_strict"
local tensor = require "segzero.core.tensor"
local truth = require "segzero.data.truth"

local place = mini.folder()
local SIDE = 448                -- of the scenes before they are resized
local ROWS = 2

-- ---- folders ----
local function size(width, height) return { width = width, height = height } end

-- The mask of a scene at another size, as 0 and 1: the nearest pixel.
local function resized_mask(mask, to)
  local out = ffi.new("uint8_t[?]", to.width * to.height)
  for y = 0, to.height - 1 do
    local from_y = math.floor((y + 0.5) * SIDE / to.height)
    for x = 0, to.width - 1 do
      local from_x = math.floor((x + 0.5) * SIDE / to.width)
      out[y * to.width + x] = mask[from_y * SIDE + from_x]
    end
  end
  return out
end

-- A data folder of scenes stretched to `stored`, with solutions in the frame `counts`.
local function write_folder(name, stored, counts)
  local folder = place .. "/" .. name
  files.make_dir(folder)
  local lines = {}
  for i = 1, ROWS do
    local scene = sz.refshapes.sample { seed = 42, split = "heldout", index = i, size = SIDE,
      level = 1, questions = 1 }
    local question = scene.questions[1]
    local img = sz.image.new(SIDE, SIDE)
    ffi.copy(img:pixels(), scene.rgb, SIDE * SIDE * 3)
    img:resize(stored.width, stored.height, "bilinear"):save(("%s/%d.png"):format(folder, i))
    sz.image.write_png(("%s/mask%d.png"):format(folder, i), stored.width, stored.height, 1,
      resized_mask(question.mask(1), stored))
    lines[i] = cjson.encode { id = "row" .. i, problem = question.problem,
      solution = truth.convert(question.solution, frame.square(SIDE), counts),
      image = i .. ".png", mask = ("mask%d.png"):format(i) }
  end
  files.write(folder .. "/data.jsonl", table.concat(lines, "\n") .. "\n")
  return folder
end

-- ---- runs ----
local runs = 0

-- A held-out evaluation as training makes it: what it said, its result, and the rows that the
-- reward saw.
local function trained(folder, settings)
  runs = runs + 1
  local args = { "data.train_files=" .. folder, "data.val_files=" .. folder,
    "data.rollout_batch_size=1", "data.max_response_length=4", "trainer.val_only=true",
    "trainer.logger=jsonl", "trainer.check_memory=false",
    ("trainer.save_checkpoint_path=%s/train%d"):format(place, runs) }
  for _, arg in ipairs(settings) do args[#args + 1] = arg end
  local result
  local rows = {}
  local function reward(_, ground_truth, row)
    local b, p = truth.read(ground_truth)
    local text = ('<think>t</think><answer>{"bbox": [%d,%d,%d,%d], "points_1": [%d,%d], '
      .. '"points_2": [%d,%d]}</answer>'):format(b[1], b[2], b[3], b[4], p[1][1], p[1][2], p[2][1],
      p[2][2])
    local plan = row.input.images[1]
    rows[#rows + 1] = { frame = row.answer_frame, solution_frame = row.solution_frame,
      seen = size(plan.resized_width, plan.resized_height), same = ground_truth == row.solution,
      raw = row.columns.solution, found = answer.parse(text),
      mask = tensor.is_tensor(row.segment(answer.parse(text))) }
    return (strict(text, ground_truth, row))
  end
  recipe.run(args, { reward = reward, on_evaluate = function(_, r) result = r end })
  return result, rows
end

local function oracle(folder, settings)
  runs = runs + 1
  local args = { "oracle=true", "data=" .. folder, "resamples=2", "sam2_path=models/tiny/sam2",
    ("output_path=%s/oracle%d"):format(place, runs) }
  for _, arg in ipairs(settings) do args[#args + 1] = arg end
  return evaluate.run(args)
end

local CASES = {
  { "640 x 480", size(640, 480), size(640, 480), {} },
  { "portrait, limited", size(480, 640), size(480, 640), { "data.max_pixels=50176" } },
  { "no multiples of 28", size(333, 251), size(333, 251), { "data.max_pixels=20000" } },
  { "enlarged", size(100, 60), size(100, 60), { "data.min_pixels=20000" } },
  { "solutions in 840 x 840", size(320, 240), size(840, 840), { "data.max_pixels=50176" },
    { "data.solution_frame=840x840" } },
  { "solutions in 0 to 1000, answers too", size(240, 320), size(1000, 1000),
    { "data.max_pixels=50176", "data.answer_frame=1000" }, { "data.solution_frame=1000" },
    size(1000, 1000) },
  { "resized", size(320, 240), size(320, 240), { "data.resize=112x112" }, {}, size(112, 112) },
}

for i, case in ipairs(CASES) do
  local name, stored, counts, settings, of_data, frame_of_answers = unpack(case)
  check.case(name .. ": training and evaluation agree", function()
    local folder = write_folder("set" .. i, stored, counts)
    local all = {}
    for _, list in ipairs { settings, of_data or {} } do
      for _, arg in ipairs(list) do all[#all + 1] = arg end
    end
    local result, rows = trained(folder, all)
    local summary = oracle(folder, of_data or {})
    check.near(result.ceiling, summary.gIoU[1], 1e-12, "the ceiling")
    check.ok(result.ceiling > 0.5, ("the ceiling is one: %.3f"):format(result.ceiling))
    check.equal({ result.reward, #rows }, { 5, ROWS }, "the true answer's reward")
    for _, row in ipairs(rows) do
      check.equal(row.frame, frame_of_answers or row.seen, "the frame of answers")
      check.equal(row.solution_frame, counts, "the frame of the solution")
      check.equal({ row.same, row.mask }, { true, true }, "ground_truth is row.solution; a mask")
      check.equal(select(2, row.raw:gsub("%d+", "")), 8, "the stored solution is in row.columns")
    end
  end)
end

-- VisionReasoner's lists, and a row whose truth is its mask alone.
check.case("lists of objects: training and evaluation agree", function()
  local folder = write_folder("lists", size(320, 240), size(320, 240))
  local lines = {}
  for line in io.lines(folder .. "/data.jsonl") do lines[#lines + 1] = cjson.decode(line) end
  local b, p = truth.read(lines[1].solution)
  local object = ('{"bbox_2d": [%d,%d,%d,%d], "point_2d": [%d,%d]}'):format(b[1], b[2], b[3], b[4],
    p[1][1], p[1][2])
  lines[1].solution = ("[%s, %s]"):format(object,
    '{"bbox_2d": [5, 5, 60, 60], "point_2d": [30, 30]}')
  lines[2].solution = ("[%s]"):format(object)
  lines[3] = {}
  for name, value in pairs(lines[1]) do lines[3][name] = value end
  lines[3].id = "row3"
  lines[3].solution = "where the mask is"
  for i, line in ipairs(lines) do lines[i] = cjson.encode(line) end
  files.write(folder .. "/data.jsonl", table.concat(lines, "\n") .. "\n")

  local result
  runs = runs + 1
  recipe.run({ "data.train_files=" .. folder, "data.val_files=" .. folder,
    "data.rollout_batch_size=1", "data.max_response_length=4", "trainer.val_only=true",
    "data.max_pixels=20000", "trainer.logger=jsonl", "trainer.check_memory=false",
    ("trainer.save_checkpoint_path=%s/train%d"):format(place, runs) },
    { reward = function() return 0 end, on_evaluate = function(_, r) result = r end })
  local records = {}
  for _, several in ipairs { "true", "false" } do
    oracle(folder, { "several=" .. several })
    local n = 0
    for line in io.lines(("%s/oracle%d/results.jsonl"):format(place, runs)) do
      n = n + 1
      local record = cjson.decode(line)
      -- Two objects need several=true; a mask's box has no point, so it needs several=false.
      if record.failure == cjson.null then records[n] = record.iou end
    end
    check.equal(n, 3, "rows of several=" .. several)
  end
  check.equal(#records, 3, "each row can be judged")
  check.near(result.ceiling, (records[1] + records[2] + records[3]) / 3, 1e-12, "the ceiling")
end)

-- ---- what is said ----
local policy = mini.write(place .. "/policy")

check.case("frames are said at the start", function()
  local folder = write_folder("said", size(130, 90), size(130, 90))
  local text, status = mini.recipe(policy, { "data.train_files=" .. folder, "data.val_files=None",
    "data.rollout_batch_size=1", "trainer.max_steps=1", "trainer.save_freq=-1",
    "trainer.save_checkpoint_path=" .. place .. "/said_run" })
  check.equal(status, 0, text)
  check.ok(text:find("coordinates: solutions in the image's pixels, answers in the size the model "
    .. "sees (e.g. 140x84 for an image of 130x90)", 1, true), "training: " .. text)
  text, status = mini.run { "recipes/evaluate.lua", "model_path=" .. policy, "sam2_path=none",
    "data=" .. folder, "max_new_tokens=2", "resamples=2", "resize=none", "max_pixels=5000",
    "output_path=" .. place .. "/said_evaluation" }
  check.equal(status, 0, text)
  check.ok(text:find("answers in the size the model sees (e.g. 84x56 for an image of 130x90)", 1,
    true), "evaluation: " .. text)
  text, status = mini.recipe(policy, { "data.resize=big" })
  check.equal({ status, text:match "data%.resize is [^\n]*" },
    { 2, "data.resize is 'big', expected none or a size such as 840x840" }, "a bad setting")
end)

-- Solutions of an unsaid frame are refused before the first step.
check.case("a solution outside its frame is refused with the cure", function()
  local folder = write_folder("outside", size(130, 90), size(840, 840))
  local text, status = mini.recipe(policy, { "data.train_files=" .. folder, "data.val_files=None",
    "worker.reward.compute_score=seg_strict", "data.rollout_batch_size=1" })
  check.equal(status, 1, text)
  check.ok(text:find "leaves the 130 x 90 pixels, or data.solution_frame=840x840 is meant", text)
end)

-- ---- evaluation with a model ----
-- The model always says the same box; where it is in the image follows from the frame.
check.case("answers count in the stated frame", function()
  local folder = write_folder("answers", size(130, 90), size(130, 90))
  local generate = sz.rollout.generate
  local asked = {}
  sz.rollout.generate = function(_, inputs)
    local out = {}
    for i, input in ipairs(inputs) do
      asked[#asked + 1] = input.text:match "Please find (.-) with bbox"
      local text = '<think>t</think><answer>{"bbox": [14,28,42,56], "points_1": [20,30], '
        .. '"points_2": [21,31]}</answer>'
      out[i] = { { text = text } }
    end
    return out
  end
  local function first_box(settings)
    runs = runs + 1
    local out = ("%s/boxes%d"):format(place, runs)
    local args = { "data=" .. folder, "model_path=" .. policy, "sam2_path=none", "rows=1",
      "resamples=2", "output_path=" .. out }
    for _, arg in ipairs(settings) do args[#args + 1] = arg end
    local ok, why = pcall(evaluate.run, args)
    if not ok then return why end
    return cjson.decode((files.read(out .. "/results.jsonl"))).bbox
  end
  check.equal(first_box {}, { 22, 30, 65, 60 }, "84 x 84, the model's own")
  check.equal(first_box { "frame=56" }, { 32, 45, 98, 90 }, "56 x 56")
  check.equal(first_box { "resize=112x140" }, { 16, 18, 49, 36 }, "112 x 140")
  check.equal(first_box { "resize=none" }, { 13, 30, 39, 60 }, "140 x 84, as the model sees it")
  check.equal(first_box { "resize=none", "max_pixels=5000" }, { 22, 45, 65, 90 }, "84 x 56 of it")
  check.equal(first_box { "answer_frame=1000" }, { 2, 3, 5, 5 }, "0 to 1000")
  check.equal(first_box { "answer_frame=image" }, { 14, 28, 42, 56 }, "the image's pixels")
  check.equal(first_box { "frame=56", "resize=none" },
    "frame and resize both say how images are resized: give one of them", "both")

  -- VisionReasoner's scripts take . " ? ! off both ends of the question.
  local lines = {}
  for line in io.lines(folder .. "/data.jsonl") do lines[#lines + 1] = cjson.decode(line) end
  lines[1].problem = 'Which object is called "Tower"?'
  files.write(folder .. "/data.jsonl", cjson.encode(lines[1]))
  asked = {}
  first_box { "several=true", "protocol=visionreasoner" }
  check.equal(asked, { '"which object is called "tower"' }, "the question")
  sz.rollout.generate = generate
end)

mini.remove()
check.finish()
