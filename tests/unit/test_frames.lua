-- test_frames.lua - frames of coordinates: conversions, solutions in another frame, what a row's
-- frames are, and that the true answer earns the full reward whatever the image's size and the
-- model's limits.

local check = require "tests.support.check"
local sz = require "segzero"
local answer = require "segzero.formats.answer"
local coordinates = require "segzero.data.coordinates"
local data = require "segzero.data"
local frame = require "segzero.data.frame"
local image = require "segzero.formats.image"
local judge = require "segzero.evaluation.judge"
local processor_of = require "segzero.models.qwen_vl.processor"
local prompt = require "segzero.data.prompt"
local rows = require "segzero.data.rows"
local strict = require "rewards.seg_strict"
local loose = require "rewards.seg"
local truth = require "segzero.data.truth"

local function size(width, height) return { width = width, height = height } end

local function solution(b, p, q)
  return ("<box>(%d,%d),(%d,%d)</box><points>(%d,%d),(%d,%d)</points>"):format(b[1], b[2], b[3],
    b[4], p[1], p[2], q[1], q[2])
end

-- The answer of one object in a frame.
local function written(text)
  local b, p = truth.read(text)
  return ('<think>t</think><answer>{"bbox": [%d,%d,%d,%d], "points_1": [%d,%d], '
    .. '"points_2": [%d,%d]}</answer>'):format(b[1], b[2], b[3], b[4], p[1][1], p[1][2], p[2][1],
    p[2][2])
end

check.case("frames", function()
  check.equal(frame.of(112), size(112, 112), "a side")
  check.equal(frame.of(image.new(30, 20)), size(30, 20), "an image")
  for name, v in pairs { zero = 0, nan = 0 / 0, text = "840", half = { width = 3 } } do
    check.equal(frame.of(v), nil, name)
  end
  check.equal({ frame.side(size(5, 5)), frame.side(size(5, 6)) }, { 5, nil }, "sides")
  check.equal(frame.text(size(644, 476)), "644x476", "text")
end)

check.case("true boxes and points become whole numbers", function()
  local from, to = size(640, 480), size(840, 840)
  check.equal(frame.box({ 8, 57, 152, 120 }, from, to), { 11, 100, 200, 210 }, "a box")
  check.equal(frame.point({ 3, 2 }, from, to), { 4, 4 }, "a point: 3.9375 and 3.5")
  local box = { 1.5, 2, 3, 4 }
  check.equal(frame.box(box, from, size(640, 480)), box, "equal frames: unchanged")
  check.equal(frame.box({ 100, 100, 103, 103 }, size(1000, 1000), size(50, 50)), { 5, 5, 6, 6 },
    "a small box keeps a pixel")
  check.equal(frame.box({ 7, 7, 7, 9 }, size(10, 10), size(20, 20)), { 14, 14, 14, 18 },
    "one without a width has none")
  check.equal(frame.objects({ { bbox = { 1, 1, 2, 2 }, points = { { 1, 2 } } } }, size(4, 4),
    size(8, 12)), { { bbox = { 2, 3, 4, 6 }, points = { { 2, 6 } } } }, "objects")
end)

-- One object: halves to the even number. Several: up.
check.case("answers are rounded as Seg-Zero's scripts round", function()
  local one = answer.parse(written(solution({ 1, 3, 10, 10 }, { 5, 5 }, { 7, 7 })))
  local half = frame.answer(one, size(20, 20), size(10, 10))
  check.equal({ half.bbox, half.points }, { { 0, 2, 5, 5 }, { { 2, 2 }, { 4, 4 } } }, "one object")
  local list = { { bbox = { 1, 3, 10, 10 }, point = { 5, 5 } } }
  check.equal(frame.answer(list, size(20, 20), size(10, 10))[1],
    { bbox = { 1, 2, 5, 5 }, point = { 3, 3 } }, "several")
end)

check.case("settings", function()
  local f = frame.settings { solution_frame = "840x840", answer_frame = "1000", resize = "640x480" }
  check.equal({ f.solution, f.answer, f.resize }, { size(840, 840), size(1000, 1000),
    size(640, 480) }, "sizes")
  f = frame.settings { resize = "none" }
  check.equal({ f.solution, f.answer, f.resize }, { "auto", "auto", nil }, "defaults")
  for want, t in pairs {
    ["data.solution_frame is 'model', expected auto, image or a size such as 840x840 or 1000"] =
      { solution_frame = "model" },
    ["data.answer_frame is '0', expected auto, model, image or a size"] = { answer_frame = "0" },
    ["data.resize is '840,840', expected none or a size"] = { resize = "840,840" },
    ["data.resize is '-1x5', expected"] = { resize = "-1x5" },
    ["data.resize is '999999999x5', expected"] = { resize = "999999999x5" },
  } do
    local ok, why = pcall(frame.settings, t, "data.")
    check.ok(not ok and why:find(want, 1, true) == 1, ("%s, got %s"):format(want, tostring(why)))
  end
end)

check.case("what a run says", function()
  local example = { stored = size(640, 480), seen = size(644, 476) }
  check.equal(frame.sentence(frame.settings {}, example),
    "coordinates: solutions in the image's pixels, answers in the size the model sees (e.g. "
    .. "644x476 for an image of 640x480); boxes and points are converted from one frame to the "
    .. "other", "defaults")
  example = { stored = size(840, 840), seen = size(840, 840) }
  check.equal(frame.sentence(frame.settings {}, example),
    "coordinates: solutions in the image's pixels, answers in the size the model sees (e.g. "
    .. "840x840 for an image of 840x840)", "equal frames")
  check.equal(frame.sentence(frame.settings { solution_frame = "840", answer_frame = "1000",
    resize = "840x840" }), "coordinates: images resized to 840x840, solutions in 840x840, "
    .. "answers in 1000x1000", "all stated")
end)

-- ---- solutions ----
check.case("solutions in another frame", function()
  local from, to = size(640, 480), size(840, 840)
  local function convert(text) return truth.convert(text, from, to) end
  local one = solution({ 8, 57, 152, 120 }, { 23, 63 }, { 27, 103 })
  check.equal(convert(one), solution({ 11, 100, 200, 210 }, { 30, 110 }, { 35, 180 }), "a string")
  check.equal(convert("a " .. one .. " b"), "a " .. convert(one) .. " b", "the rest stays")
  check.equal(truth.convert(one, from, size(640, 480)), one, "equal frames")
  local list = '[{"point_2d":[23,63], "bbox_2d" : [8, 57, 152, 120],"name":"x"},'
    .. '{"bbox_2d": [0,0,640,480], "point_2d": [1,1]}]'
  check.equal(convert(list), '[{"point_2d":[30, 110], "bbox_2d" : [11, 100, 200, 210],"name":"x"},'
    .. '{"bbox_2d": [0, 0, 840, 840], "point_2d": [1, 2]}]', "a list")
  for _, text in ipairs { "a mountain", "<box>(1,2),(3)</box>", '{"bbox_2d": [1, 2]}',
    '{"bbox_2d": ["1", 2, 3, 4]}' } do
    check.equal(convert(text), text, "no coordinates: " .. text)
  end
end)

check.case("objects are in the image's pixels", function()
  local img = image.new(640, 480)
  local row = { image = img, solution = solution({ 11, 100, 200, 210 }, { 30, 110 }, { 35, 180 }) }
  coordinates.locate(row, frame.settings { solution_frame = "840x840" })
  check.equal(truth.objects(row), { { bbox = { 8, 57, 152, 120 },
    points = { { 23, 63 }, { 27, 103 } } } }, "from 840 x 840")
  -- After the row was placed for a model, the stored solution still counts.
  coordinates.place(row, frame.settings { solution_frame = "840x840" }, size(28, 28))
  check.equal(truth.objects(row)[1].bbox, { 8, 57, 152, 120 }, "from the stored solution")
  local mask = sz.tensor.zeros({ 480, 640 }, { dtype = "u8" })
  sz.tensor.data(mask)[10 * 640 + 600] = 1
  row.stored_solution = "?"
  check.equal(truth.objects(row, mask)[1].bbox, { 600, 10, 600, 10 }, "a mask's box needs no frame")
end)

-- ---- rows ----
check.case("a row before a model has seen it", function()
  local square = rows.new { problem = "p", solution = "s", image = image.new(84, 84) }
  check.equal(square.frame, 84, "a square's frame is its side")
  local wide = rows.new { problem = "p", solution = "s", image = image.new(64, 48) }
  check.equal(wide.frame, size(64, 48), "others have two")
  local stated = rows.new { problem = "p", solution = "s", image = image.new(64, 48), frame = 840 }
  check.equal({ stated.frame, stated.solution_frame }, { 840, size(840, 840) },
    "stated by a source")
  local columns = { frame = "f", answer_frame = "a", solution_frame = "s", stored_solution = "t" }
  local own = rows.new { problem = "p", solution = "s", image = image.new(5, 5), columns = columns }
  check.equal({ own.frame, own.answer_frame, own.columns.frame }, { 5, nil, "f" },
    "columns of these names")
end)

check.case("RefShapes stay as they are", function()
  local set = data.open("refshapes", { split = "train", size = 112, seed = 3, rows = 4 })
  for i = 1, 4 do
    local row = set:row(i)
    local stored = row.solution
    coordinates.place(row, frame.settings {}, size(112, 112))
    check.equal({ row.solution, row.frame, row.columns.solution }, { stored, 112, stored }, "row "
      .. i)
  end
end)

-- ---- the true answer ----
local SIZES = {
  size(840, 840), size(640, 480), size(480, 640), size(333, 777), size(1000, 30), size(113, 111),
  size(28, 28), size(2000, 1500), size(57, 56),
}
local LIMITS = {
  { max_pixels = 12845056 }, { max_pixels = 50176 }, { max_pixels = 3136 },
  { min_pixels = 1003520, max_pixels = 12845056 },
}
local SETTINGS = {
  {}, { solution_frame = "image" }, { solution_frame = "840x840" }, { solution_frame = "1000" },
  { answer_frame = "1000" }, { answer_frame = "image" }, { answer_frame = "840x840" },
  { resize = "840x840" }, { resize = "300x200", answer_frame = "model" },
  { solution_frame = "840x840", answer_frame = "1000", resize = "840x840" },
}

-- A solution in the middle of a frame, a thin one, and one that fills it.
local function solutions(f)
  local function at(x, y) return { math.floor(f.width * x), math.floor(f.height * y) } end
  local function box(x0, y0, x1, y1)
    local a, b = at(x0, y0), at(x1, y1)
    return { a[1], a[2], math.max(b[1], a[1] + 1), math.max(b[2], a[2] + 1) }
  end
  local thin = box(0.5, 0.2, 0.5, 0.9)
  local all = { 0, 0, f.width - 1, f.height - 1 }
  return {
    solution(box(0.2, 0.3, 0.6, 0.7), at(0.3, 0.4), at(0.5, 0.6)),
    solution(thin, { thin[1], thin[2] }, { thin[3], thin[4] }),
    solution(all, at(0.1, 0.1), at(0.9, 0.9)),
  }
end

-- Calls f(row, seen, name) with a row for each size, limit, setting and solution.
local function each_row(f)
  for _, stored in ipairs(SIZES) do
    local img = image.new(stored.width, stored.height)
    for _, limits in ipairs(LIMITS) do
      local processor = processor_of.new(limits)
      for _, settings in ipairs(SETTINGS) do
        local frames = frame.settings(settings)
        local shown = frames.resize or stored
        local plan = processor:plan(shown.width, shown.height)
        local seen = size(plan.resized_width, plan.resized_height)
        local name = ("%s, %s pixels, %s"):format(frame.text(stored), limits.max_pixels,
          frame.sentence(frames))
        for _, text in ipairs(solutions(frame.solution(frames.solution, stored))) do
          local row = rows.new { id = "r", problem = "p", solution = text, image = img }
          coordinates.place(row, frames, seen)
          f(row, seen, name)
        end
      end
    end
    img:free()
  end
end

check.case("the true answer earns 5 in every frame", function()
  local count = 0
  each_row(function(row, _, name)
    local text = written(row.solution)
    for reward_name, reward in pairs { seg_strict = strict, seg = loose } do
      local score = reward(text, row.solution, row)
      if score ~= 5 then
        check.equal(score, 5, ("%s: %s, %s"):format(reward_name, name, row.solution))
      end
      count = count + 1
    end
  end)
  check.equal(count, 2 * #SIZES * #LIMITS * #SETTINGS * 3, "rewards")
end)

-- What a script outside writes: each coordinate of the data times the model's size by the stored
-- one. Small objects in small frames may round to a box without a width.
check.case("so does the answer that a script scales by itself", function()
  local count = 0
  for _, stored in ipairs { size(640, 480), size(480, 640), size(333, 777), size(840, 840) } do
    local img = image.new(stored.width, stored.height)
    for _, most in ipairs { 12845056, 50176, 3136 } do
      local plan = processor_of.new({ max_pixels = most }):plan(stored.width, stored.height)
      local text = solutions(stored)[1]
      local row = rows.new { id = "r", problem = "p", solution = text, image = img }
      local v = {}
      for n in text:gmatch "%d+" do
        local fx = plan.resized_width / stored.width
        local fy = plan.resized_height / stored.height
        local f = #v % 2 == 0 and fx or fy
        v[#v + 1] = math.floor(tonumber(n) * f + 0.5)
      end
      coordinates.place(row, frame.settings {}, size(plan.resized_width, plan.resized_height))
      local said = written(solution({ v[1], v[2], v[3], v[4] }, { v[5], v[6] }, { v[7], v[8] }))
      check.equal(strict(said, row.solution, row), 5, ("%s seen as %dx%d"):format(
        frame.text(stored), plan.resized_width, plan.resized_height))
      count = count + 1
    end
  end
  check.equal(count, 12, "answers")
end)

-- The way back loses at most 0.5 pixels of the frame of answers, and 0.5 pixels of the image.
check.case("answers come back to the image's pixels", function()
  local count = 0
  each_row(function(row, _, name)
    local found = coordinates.to_image(row, answer.parse(written(row.solution)))
    local true_box = truth.objects(row)[1].bbox
    for i = 1, 4 do
      local key = i % 2 == 1 and "width" or "height"
      -- A box that would have lost its width is one pixel of that frame larger.
      local most = 1.5 * row.image[key] / row.answer_frame[key] + 1
      local off = math.abs(found.bbox[i] - true_box[i])
      if off > most then check.ok(false, ("%s: off by %g"):format(name, off)) end
    end
    count = count + 1
  end)
  check.equal(count, #SIZES * #LIMITS * #SETTINGS * 3, "answers")
end)

check.case("a wrong frame does not earn the reward", function()
  local row = rows.new { id = "r", problem = "p", image = image.new(640, 480),
    solution = solution({ 100, 100, 300, 300 }, { 150, 150 }, { 250, 250 }) }
  local raw = written(row.solution)
  coordinates.place(row, frame.settings {}, size(56, 56))
  check.equal(strict(raw, row.solution, row), 2, "only the format")
end)

-- ---- thresholds ----
-- In a frame of 1680 x 420, 10 pixels at 840 are 20 across and 5 down; 100 are 200 and 50.
check.case("thresholds are stated at 840 and scale on each axis", function()
  local GT = solution({ 400, 100, 800, 300 }, { 500, 150 }, { 700, 250 })
  local sample = { frame = size(1680, 420) }
  local function parts_of(box, p, q)
    local _, parts = strict(written(solution(box, p, q)), GT, sample)
    return { parts.iou, parts.points, parts.box_l1 }
  end
  local p, q = { 500, 150 }, { 700, 250 }
  check.equal(parts_of({ 400, 100, 800, 300 }, p, q), { 1, 1, 1 }, "right")
  check.equal(parts_of({ 419, 104, 819, 304 }, p, q), { 1, 1, 1 }, "mean 8.75 at 840")
  check.equal(parts_of({ 421, 105, 821, 305 }, p, q), { 1, 1, 0 }, "mean 10.25 at 840")
  check.equal(parts_of({ 400, 100, 800, 300 }, { 500, 199 }, { 700, 299 }), { 1, 1, 1 },
    "points 98 down at 840")
  check.equal(parts_of({ 400, 50, 800, 320 }, { 500, 201 }, { 700, 301 }), { 1, 0, 0 },
    "points 102 down at 840")
  check.equal(parts_of({ 400, 100, 1000, 300 }, { 699, 150 }, { 899, 250 }), { 1, 1, 0 },
    "points 99.5 across at 840")
  sample = { frame = 840, answer_frame = size(1680, 420) }
  check.equal(parts_of({ 419, 104, 819, 304 }, p, q), { 1, 1, 1 }, "answer_frame comes first")
end)

-- ---- evaluation ----
check.case("judging converts an answer and the truth", function()
  local box = { 211, 210, 420, 420 }
  local row = rows.new { id = "r", problem = "p", image = image.new(640, 480),
    solution = solution(box, { 300, 300 }, { 310, 310 }) }
  local frames = frame.settings { solution_frame = "840x840", answer_frame = "1000" }
  coordinates.place(row, frames, size(644, 476))
  local entry = { index = 1, row = row, answer = { text = written(row.solution) } }
  local record, _, objects = judge.row(entry, { frames = frames, masks = false,
    box_iou = require("rewards.geometry").box_iou })
  check.equal(objects[1].bbox, { 161, 120, 320, 240 }, "the truth in the image")
  check.equal(record.bbox, { 161, 120, 320, 240 }, "the answer in the image")
  check.equal({ record.box_iou, record.box_hit }, { 1, true }, "they are the same")
end)

check.case("questions of VisionReasoner lose quotes at their ends", function()
  local text = prompt.vision_reasoner('Which object is called "Tower"?', '."?!')
  check.ok(text:find('Please find "which object is called "tower" with bboxs', 1, true), text)
end)

check.finish()
