-- test_segment.lua - answers to masks: the right prompts to SAM2, the best of their masks, the union of several; comparing masks.
--
--   ./segzero tests/unit/test_segment.lua
--
-- The model is of random weights: its masks mean nothing, but differ from prompt to prompt. tests of sam2.lua judge its numbers.

local ffi = require "ffi"
local check = require "tests.support.check"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local sam2 = require "segzero.models.sam2"
local segment = require "segzero.inference.segmenter"

sz.core.C.sz_set_threads(1)
print("seed " .. check.seed)

local WIDTH, HEIGHT = 90, 70
local json = require("segzero.models.qwen_vl").read_json "tests/golden/sam2/S5/config.json"
local scene = sz.refshapes.sample { seed = check.seed, index = 3, size = 84, level = 2, questions = 1 }
local square = sz.image.new(scene.width, scene.height)
ffi.copy(square:pixels(), scene.rgb, scene.width * scene.height * 3)
local img = square:resize(WIDTH, HEIGHT, "bilinear")

local function area(mask)
  local n, p = 0, tensor.data(mask)
  for i = 0, mask:numel() - 1 do n = n + p[i] end
  return n
end
local function different(a, b)
  local inside, either = segment.compare(a, b)
  return either - inside
end

-- What the predictor gives, by its own interface: the best mask [h, w] and its score.
local function predicted(sam, f, prompt)
  sam:use(f)
  local r = sam:predict(prompt)
  local best = sam.best(r)
  return r.masks:narrow(best - 1, 1):reshape(HEIGHT, WIDTH):clone(), r.scores[best]
end

local box1, box2, p1, p2, p3 = { 10, 10, 40, 50 }, { 50, 12, 80, 60 }, { 20, 20 }, { 30, 40 }, { 66, 30 }
local single = { bbox = box1, points = { p1, p2 } }
local backwards = { bbox = { 80, 60, 50, 12 }, points = { p1, p3 } }
local outside = { bbox = { -500, -40, 4000, 900 }, points = { { -7, 1e6 }, { 200, 300 } } }
local multi = { { bbox = box1, point = p1 }, { bbox = box2, point = p3 } }

for _, dtype in ipairs { "f32", "bf16" } do
  local sam = sam2.random(json, { seed = check.seed, dtype = dtype })
  local seg = segment.new(sam)
  local f = seg:embed(img)
  check.equal({ f.width, f.height }, { WIDTH, HEIGHT }, "features know the picture's size")
  local list = seg:masks(f, { single, backwards, outside, multi, {} })
  check.equal(#list, 5, "a result for each answer")
  for i, r in ipairs(list) do
    check.equal({ r.mask:dtype(), r.mask:shape() }, { "u8", { HEIGHT, WIDTH } }, "shape of mask " .. i)
    local odd, p = 0, tensor.data(r.mask)
    for k = 0, r.mask:numel() - 1 do odd = odd + (p[k] > 1 and 1 or 0) end
    check.equal(odd, 0, "0 and 1 in mask " .. i)
  end

  -- Prompts of one call see each other's rows in no op, but the blocked matmul may round a row differently in a larger one: a
  -- pixel whose logit is next to 0 can differ. bf16 has 8 bits, so there a handful may.
  local few, near = dtype == "f32" and 2 or 40, dtype == "f32" and 1e-5 or 2e-2
  for i, answer in ipairs { single, backwards, outside } do
    local mask, score = predicted(sam, f, { box = answer.bbox, points = answer.points, labels = { 1, 1 } })
    check.ok(different(list[i].mask, mask) <= few, ("%s: answer %d is predict and best"):format(dtype, i))
    check.near(list[i].score, score, near, dtype .. ": its score")
  end
  local union, scores = tensor.zeros({ HEIGHT, WIDTH }, { dtype = "u8" }), {}
  for i, object in ipairs(multi) do
    local mask, score = predicted(sam, f, { box = object.bbox, points = { object.point }, labels = { 1 } })
    for k = 0, union:numel() - 1 do tensor.data(union)[k] = math.max(tensor.data(union)[k], tensor.data(mask)[k]) end
    scores[i] = score
  end
  check.ok(different(list[4].mask, union) <= few, dtype .. ": several objects are the union of one prediction each")
  check.near(list[4].score, (scores[1] + scores[2]) / 2, near, dtype .. ": their mean score")
  check.equal({ area(list[5].mask), list[5].score }, { 0, 0 }, "no object, no pixel")
  if dtype == "f32" then
    local total = 0
    for i = 1, 4 do total = total + area(list[i].mask) end
    check.ok(total > 0 and different(list[1].mask, list[2].mask) > 0, "the masks are not all empty, nor all the same")
  end

  -- More prompts than one call takes, and answers of one list beside single ones.
  local many, expected = {}, {}
  for i = 1, 20 do
    many[i] = { bbox = { i, i, 60 + i, 50 }, point = { 20 + i, 30 } }
    expected[i] = predicted(sam, f, { box = many[i].bbox, points = { many[i].point }, labels = { 1 } })
  end
  local whole = seg:masks(f, { single, many, single })
  local pixels = tensor.zeros({ HEIGHT, WIDTH }, { dtype = "u8" })
  for _, mask in ipairs(expected) do
    for k = 0, pixels:numel() - 1 do tensor.data(pixels)[k] = math.max(tensor.data(pixels)[k], tensor.data(mask)[k]) end
  end
  check.ok(different(whole[2].mask, pixels) <= few, dtype .. ": 20 objects, in two calls")
  check.ok(different(whole[3].mask, list[1].mask) <= few, dtype .. ": and the answer after them")
  f:free()
  sam:free()
end

-- ---- ties, ends, refusals ----
check.equal(sam2.best { scores = { 0.5, 0.5, 0.25 } }, 2, "of equal scores the last")
local sam = sam2.random(json, { seed = 2 })
local seg = segment.new(sam)
local f = seg:embed(img)
local huge = seg:masks(f, { { bbox = { 1e300, -1e300, 5, 4 }, points = { { 1e300, 4 }, { 7, 8 } } } })[1]
check.equal(area(huge.mask), 0, "coordinates that f32 cannot hold: NaN, which is inside nothing")
check.equal(#seg:masks(f, {}), 0, "no answers")
local kept
tensor.step(function() kept = seg:masks(f, { single })[1].mask end)
check.equal(different(kept, seg:masks(f, { single })[1].mask), 0, "a mask outlives the step it was made in")
check.equal(sz.core.C.sz_set_grad_enabled(1), 1, "recording is as it was")
check.raises(function() seg:masks(f, { 7 }) end, "test_segment.*answer 1 is a number", "an answer that is no table")
check.raises(function() seg:masks(f, { single, { bbox = { 1, 2, 3 } } }) end, "test_segment.*answer 2.bbox must be 4 numbers", "a box of three")
check.raises(function() seg:masks(f, { { { bbox = box1, point = { 1 } } } }) end, "answer 1%[1%]'s point 1 must be 2 numbers", "a point of one")
check.raises(function() seg:masks(img, { single }) end, "test_segment", "a picture instead of features")
check.raises(function() segment.new(img) end, "test_segment.*SAM2 model is expected", "a picture instead of SAM2")

-- ---- compare ----
local a, b = tensor.new({ { 1, 1, 0 }, { 0, 255, 0 } }, { dtype = "u8" }), tensor.new({ { 1, 0, 0 }, { 0, 1, 1 } }, { dtype = "u8" })
check.equal({ segment.compare(a, b) }, { 2, 4 }, "intersection and union; any number but 0 is inside")
check.equal({ segment.compare(a, a) }, { 3, 3 }, "with itself")
local none = tensor.zeros({ 2, 3 }, { dtype = "u8" })
check.equal({ segment.compare(a, none) }, { 0, 3 }, "with nothing")
check.equal({ segment.compare(none, none) }, { 0, 0 }, "nothing with nothing")
check.raises(function() segment.compare(a, tensor.zeros({ 3, 2 }, { dtype = "u8" })) end, "test_segment.*mask is 2 x 3 and truth 3 x 2", "other shapes")
check.raises(function() segment.compare(a, tensor.zeros { 2, 3 }) end, "truth must be a u8 tensor", "another type")
check.raises(function() segment.compare({}, a) end, "mask must be a u8 tensor", "a table")

check.finish()
