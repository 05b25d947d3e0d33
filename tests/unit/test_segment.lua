-- test_segment.lua - answers to masks: the prompts that SAM2 gets, the best of its masks, the union
-- of several; and comparing masks.
--
--   ./segzero tests/unit/test_segment.lua
--
-- The model has random weights: its masks mean nothing, but differ from prompt to prompt. Leaves
-- out: SAM2's own numbers (test_sam2.lua).

local ffi = require "ffi"
local check = require "tests.support.check"
local sz = require "segzero"
local sam2 = require "segzero.models.sam2"
local segment = require "segzero.inference.segmenter"
local tensor = require "segzero.core.tensor"

sz.core.C.sz_set_threads(1)
print("seed " .. check.seed)

local WIDTH = 90
local HEIGHT = 70
local U8 = { dtype = "u8" }

local json = require("segzero.models.qwen_vl").read_json "tests/golden/sam2/S5/config.json"

-- A scene, resized so that it is not square.
local function make_image()
  local scene = sz.refshapes.sample {
    seed = check.seed, index = 3, size = 84, level = 2, questions = 1,
  }
  local square = sz.image.new(scene.width, scene.height)
  ffi.copy(square:pixels(), scene.rgb, scene.width * scene.height * 3)
  return square:resize(WIDTH, HEIGHT, "bilinear")
end
local image = make_image()

-- ---- answers ----

local BOX1 = { 10, 10, 40, 50 }
local BOX2 = { 50, 12, 80, 60 }
local P1 = { 20, 20 }
local P2 = { 30, 40 }
local P3 = { 66, 30 }
local SINGLE = { bbox = BOX1, points = { P1, P2 } }
local BACKWARDS = { bbox = { 80, 60, 50, 12 }, points = { P1, P3 } }
local OUTSIDE = { bbox = { -500, -40, 4000, 900 }, points = { { -7, 1e6 }, { 200, 300 } } }
local MULTI = { { bbox = BOX1, point = P1 }, { bbox = BOX2, point = P3 } }

-- More objects than one call of the network takes.
local function many_objects()
  local list = {}
  for i = 1, 20 do list[i] = { bbox = { i, i, 60 + i, 50 }, point = { 20 + i, 30 } } end
  return list
end

-- ---- masks ----

local function area(mask)
  local n = 0
  local p = tensor.data(mask)
  for i = 0, mask:numel() - 1 do n = n + p[i] end
  return n
end

-- The number of pixels in which two masks differ.
local function different(a, b)
  local inside, either = segment.compare(a, b)
  return either - inside
end

-- Values of a mask other than 0 and 1.
local function odd_values(mask)
  local n = 0
  local p = tensor.data(mask)
  for i = 0, mask:numel() - 1 do
    if p[i] > 1 then n = n + 1 end
  end
  return n
end

-- What the predictor's own interface gives: the best mask [h, w] and its score.
local function predicted(sam, features, prompt)
  sam:use(features)
  local r = sam:predict(prompt)
  local best = sam.best(r)
  return r.masks:narrow(best - 1, 1):reshape(HEIGHT, WIDTH):clone(), r.scores[best]
end

-- The same by the decoder alone: a model may answer with a backwards box, which predict refuses.
local function decoded(sam, features, answer)
  local prompt = sam:prompt(features, answer.bbox, answer.points, { 1, 1 })
  return tensor.no_grad(function()
    local o = sam:decode(features, { prompt })
    local iou = tensor.data(o.iou:values())
    local scores = {}
    for k = 1, sam.config.masks - 1 do scores[k] = iou[k] end
    local best = sam.best { scores = scores }
    local side = sam.mask_side
    local maps = o.logits:values():reshape(sam.config.masks, side, side)
    local fine = sam:upsample(maps:narrow(best, 1), HEIGHT, WIDTH)
    local mask = tensor.zeros({ HEIGHT, WIDTH }, U8)
    local from = tensor.data(fine)
    local to = tensor.data(mask)
    for i = 0, mask:numel() - 1 do
      if from[i] > 0 then to[i] = 1 end
    end
    return mask, scores[best]
  end)
end

-- The union of one prediction for each object, and the mean of their scores.
local function predicted_union(sam, features, objects)
  local union = tensor.zeros({ HEIGHT, WIDTH }, U8)
  local p = tensor.data(union)
  local sum = 0
  for _, object in ipairs(objects) do
    local prompt = { box = object.bbox, points = { object.point }, labels = { 1 } }
    local mask, score = predicted(sam, features, prompt)
    local m = tensor.data(mask)
    for i = 0, union:numel() - 1 do p[i] = math.max(p[i], m[i]) end
    sum = sum + score
  end
  return union, sum / #objects
end

-- ---- answers to masks ----

-- Prompts of one call see each other's rows in no op, but the blocked matmul may round a row
-- differently in a larger one, so a pixel whose logit is next to 0 can differ. bf16 has 8 bits, so
-- there a few dozen may. pixels: how many may differ; score: by how much a score may.
local TOLERANCE = {
  f32 = { pixels = 2, score = 1e-5 },
  bf16 = { pixels = 40, score = 2e-2 },
}

local function check_shapes(list)
  for i, r in ipairs(list) do
    local got = { r.mask:dtype(), r.mask:shape() }
    check.equal(got, { "u8", { HEIGHT, WIDTH } }, "shape of mask " .. i)
    check.equal(odd_values(r.mask), 0, "0 and 1 in mask " .. i)
  end
end

local function check_answers(dtype, sam, seg, features)
  local tol = TOLERANCE[dtype]
  local size = { features.width, features.height }
  check.equal(size, { WIDTH, HEIGHT }, "features know the image's size")
  local list = seg:masks(features, { SINGLE, BACKWARDS, OUTSIDE, MULTI, {} })
  check.equal(#list, 5, "a result for each answer")
  check_shapes(list)

  -- Answers of one object.
  for i, answer in ipairs { SINGLE, BACKWARDS, OUTSIDE } do
    local mask, score
    if answer == BACKWARDS then
      mask, score = decoded(sam, features, answer)
    else
      local prompt = { box = answer.bbox, points = answer.points, labels = { 1, 1 } }
      mask, score = predicted(sam, features, prompt)
    end
    local off = different(list[i].mask, mask)
    check.ok(off <= tol.pixels, ("%s: answer %d is predict and best"):format(dtype, i))
    check.near(list[i].score, score, tol.score, dtype .. ": its score")
  end

  -- Of several objects, and of none.
  local union, score = predicted_union(sam, features, MULTI)
  local off = different(list[4].mask, union)
  check.ok(off <= tol.pixels, dtype .. ": several objects are the union of one prediction each")
  check.near(list[4].score, score, tol.score, dtype .. ": their mean score")
  check.equal({ area(list[5].mask), list[5].score }, { 0, 0 }, "no object, no pixel")
  if dtype == "f32" then
    local total = 0
    for i = 1, 4 do total = total + area(list[i].mask) end
    local differ = different(list[1].mask, list[2].mask) > 0
    check.ok(total > 0 and differ, "the masks are not all empty, nor all the same")
  end
  return list[1].mask
end

-- More objects than one call takes, with single answers before and after them.
local function check_many(dtype, sam, seg, features, single)
  local tol = TOLERANCE[dtype]
  local many = many_objects()
  local union = predicted_union(sam, features, many)
  local whole = seg:masks(features, { SINGLE, many, SINGLE })
  check.ok(different(whole[2].mask, union) <= tol.pixels, dtype .. ": 20 objects, in two calls")
  check.ok(different(whole[3].mask, single) <= tol.pixels, dtype .. ": and the answer after them")
end

for _, dtype in ipairs { "f32", "bf16" } do
  check.case("answers are the predictor's best masks, " .. dtype, function()
    local sam = sam2.random(json, { seed = check.seed, dtype = dtype })
    local seg = segment.new(sam)
    local features = seg:embed(image)
    local single = check_answers(dtype, sam, seg, features)
    check_many(dtype, sam, seg, features, single)
    features:free()
    sam:free()
  end)
end

-- ---- ties, ends, refusals ----

-- A segmenter of random weights, and the image's features.
local function segmenter()
  local seg = segment.new(sam2.random(json, { seed = 2 }))
  return seg, seg:embed(image)
end

check.case("of equal scores the last one is the best", function()
  check.equal(sam2.best { scores = { 0.5, 0.5, 0.25 } }, 2, "of equal scores the last")
end)

check.case("unusual answers, and none", function()
  local seg, features = segmenter()
  local huge = { bbox = { 1e300, -1e300, 5, 4 }, points = { { 1e300, 4 }, { 7, 8 } } }
  local mask = seg:masks(features, { huge })[1].mask
  check.equal(area(mask), 0, "coordinates that f32 cannot hold: NaN, which is inside nothing")
  check.equal(#seg:masks(features, {}), 0, "no answers")
end)

check.case("a mask outlives the step that made it", function()
  local seg, features = segmenter()
  local kept
  tensor.step(function() kept = seg:masks(features, { SINGLE })[1].mask end)
  local again = seg:masks(features, { SINGLE })[1].mask
  check.equal(different(kept, again), 0, "the mask after the step")
  check.equal(sz.core.C.sz_set_grad_enabled(1), 1, "recording is on, as before")
end)

check.case("bad answers and arguments are refused at the caller's line", function()
  local seg, features = segmenter()
  local function refused(answers, pattern, name)
    check.raises(function() seg:masks(features, answers) end, pattern, name)
  end
  refused({ 7 }, "test_segment.*answer 1 is a number", "an answer that is no table")
  refused({ SINGLE, { bbox = { 1, 2, 3 } } }, "test_segment.*answer 2.bbox must be 4 numbers",
    "a box of three")
  refused({ { { bbox = BOX1, point = { 1 } } } }, "answer 1%[1%]'s point 1 must be 2 numbers",
    "a point of one")
  check.raises(function() seg:masks(image, { SINGLE }) end, "test_segment",
    "an image instead of features")
  check.raises(function() segment.new(image) end, "test_segment.*SAM2 model is expected",
    "an image instead of SAM2")
end)

-- ---- compare ----

check.case("compare counts intersection and union", function()
  local a = tensor.new({ { 1, 1, 0 }, { 0, 255, 0 } }, U8)
  local b = tensor.new({ { 1, 0, 0 }, { 0, 1, 1 } }, U8)
  local none = tensor.zeros({ 2, 3 }, U8)
  check.equal({ segment.compare(a, b) }, { 2, 4 }, "any number but 0 is inside")
  check.equal({ segment.compare(a, a) }, { 3, 3 }, "with itself")
  check.equal({ segment.compare(a, none) }, { 0, 3 }, "with nothing")
  check.equal({ segment.compare(none, none) }, { 0, 0 }, "nothing with nothing")
end)

check.case("compare refuses other shapes and types", function()
  local a = tensor.zeros({ 2, 3 }, U8)
  local function refused(mask, truth, pattern, name)
    check.raises(function() segment.compare(mask, truth) end, pattern, name)
  end
  refused(a, tensor.zeros({ 3, 2 }, U8), "test_segment.*mask is 2 x 3 and truth 3 x 2",
    "other shapes")
  refused(a, tensor.zeros { 2, 3 }, "truth must be a u8 tensor", "another type")
  refused({}, a, "mask must be a u8 tensor", "a table")
end)

check.finish()
