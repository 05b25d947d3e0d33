-- test_processor.lua - the image processor against transformers' Pillow-based one
-- (tests/golden/processor), smart_resize, position ids (tests/golden/qwen_vl/positions.json and the
-- layouts written here), and errors.
--
--   ./segzero tests/unit/test_processor.lua

local ffi = require "ffi"
local cjson = require "cjson"
local check = require "tests.support.check"
local sz = require "segzero"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local processor = require "segzero.models.qwen_vl.processor"
local tensor = require "segzero.core.tensor"

local GOLDEN = "tests/golden/"

local function read_json(path) return cjson.decode(files.read(path)) end

-- ---- smart_resize ----

local size = ffi.new("int[2]")

-- Whether smart_resize agrees with a row { height, width, min_pixels, max_pixels, want_height,
-- want_width }; the last two are null where an error is expected.
local function resizes_as(row)
  local code = core.C.sz_qwen_smart_resize(row[1], row[2], 28, row[3], row[4], size, size + 1)
  if row[5] == cjson.null then return code ~= 0 end
  return code == 0 and size[0] == row[5] and size[1] == row[6]
end

check.case("smart_resize agrees with the golden table", function()
  local rows = read_json(GOLDEN .. "processor/smart_resize.json")
  local wrong = 0
  for _, row in ipairs(rows) do
    if not resizes_as(row) then
      wrong = wrong + 1
      local want = tostring(row[5]) .. " x " .. tostring(row[6])
      print(("smart_resize %d x %d: got %d x %d, want %s"):format(row[1], row[2], size[0], size[1],
        want))
    end
  end
  check.equal(wrong, 0, "smart_resize table (" .. #rows .. " rows)")
end)

-- ---- a stand-in tokenizer ----

local IMAGE = 1000
local START = 1001
local END = 1002
local IDS = { image_token_id = IMAGE }

local MARKS = {
  ["<|image_pad|>"] = IMAGE,
  ["<|vision_start|>"] = START,
  ["<|vision_end|>"] = END,
}

-- One id per byte; the template's marks are single ids.
local toy = {}

function toy:id(mark) return MARKS[mark] end

function toy:encode(text)
  local ids = {}
  local i = 1
  while i <= #text do
    local word = text:match("^<|[%w_]+|>", i)
    local mark = MARKS[word]
    if mark then
      ids[#ids + 1] = mark
      i = i + #word
    else
      ids[#ids + 1] = text:byte(i)
      i = i + 1
    end
  end
  return ids
end

-- A user's message with this content, as a chat.
local function user(content) return { { role = "user", content = content } } end

-- A question about these images.
local function ask(...)
  local content = {}
  for i, source in ipairs { ... } do content[i] = { type = "image", image = source } end
  content[#content + 1] = { type = "text", text = "what is it?" }
  return user(content)
end

-- ---- pixel values ----

local golden = sz.safetensors.load(GOLDEN .. "processor/cases.safetensors")

-- The largest difference of the sampled pixel values from the golden ones.
local function worst_sample(case, input)
  local values = tensor.data(input.pixel_values)
  local sample = tensor.data(golden[case.name .. ".sample"])
  local worst = 0
  for i = 0, case.count - 1 do
    worst = math.max(worst, math.abs(values[i * case.stride] - sample[i]))
  end
  return worst
end

-- The largest difference of a patch's sum from the golden one.
local function worst_sum(case, input)
  local values = tensor.data(input.pixel_values)
  local patches = input.pixel_values:shape()[1]
  local columns = 1176
  local sums = tensor.data(golden[case.name .. ".sums"])
  local worst = 0
  for p = 0, patches - 1 do
    local sum = 0
    for c = 0, columns - 1 do sum = sum + values[p * columns + c] end
    worst = math.max(worst, math.abs(sum - sums[p]))
  end
  return worst
end

local function count_of(ids, wanted)
  local n = 0
  for _, id in ipairs(ids) do
    if id == wanted then n = n + 1 end
  end
  return n
end

for _, case in ipairs(read_json(GOLDEN .. "processor/cases.json")) do
  check.case("golden image: " .. case.name, function()
    local proc = processor.new { min_pixels = case.min_pixels, max_pixels = case.max_pixels }
    local input = proc:process(ask(GOLDEN .. "processor/" .. case.file), toy, IDS)
    local same_grid = check.equal(input.image_grid_thw, { case.grid }, case.name .. ": grid")
    if not same_grid then return end

    -- The same roundings in the same order: equal, or one unit in the last place of values up to
    -- 2.6.
    local off = worst_sample(case, input)
    check.ok(off <= 1e-6, case.name .. ": pixel values, off by " .. off)
    -- The sums are stored as f32: an error of 0.5 units in about 2000.
    off = worst_sum(case, input)
    check.ok(off <= 2e-4, case.name .. ": patch sums, off by " .. off)
    check.equal(count_of(input.input_ids, IMAGE), case.grid[1] * case.grid[2] * case.grid[3] / 4,
      case.name .. ": image tokens")
    check.equal(input.position_ids:shape(), { 3, #input.input_ids }, case.name .. ": positions")
  end)
end

-- Calls f(c, y, x, column) for each column of a patch: 3 channels, 3 equal frames, 2 x 2 pixels.
local function each_column(f)
  for column = 0, 35 do
    local c = math.floor(column / 12)
    local y = math.floor(column / 2) % 2
    f(c, y, column % 2, column)
  end
end

check.case("other patch sizes: every value is where the formula says", function()
  local img = sz.image.new(24, 12)
  local pixels = img:pixels()
  for i = 0, 24 * 12 * 3 - 1 do pixels[i] = (i * 7) % 256 end
  local proc = processor.new {
    patch_size = 2, temporal_patch_size = 3, merge_size = 3, min_pixels = 1, do_rescale = false,
    image_mean = { 1, 2, 3 }, image_std = { 1, 2, 4 },
  }
  local input = proc:process(ask(img), toy, IDS)
  check.equal(input.image_grid_thw, { { 1, 6, 12 } }, "patch 2, merge 3: grid")
  check.equal(input.pixel_values:shape(), { 72, 36 }, "patch 2, merge 3: shape")

  local values = tensor.data(input.pixel_values)
  local bad = 0
  for row = 0, 71 do
    -- Rows go block by block of 3 x 3 patches; a line of the image has four blocks.
    local block = math.floor(row / 9)
    local k = row % 9
    local patch_y = math.floor(block / 4) * 3 + math.floor(k / 3)
    local patch_x = block % 4 * 3 + k % 3
    each_column(function(c, y, x, column)
      local v = pixels[((patch_y * 2 + y) * 24 + patch_x * 2 + x) * 3 + c]
      if values[row * 36 + column] ~= (v - (c + 1)) / 2 ^ c then bad = bad + 1 end
    end)
  end
  check.equal(bad, 0, "patch 2, merge 3: values")
  check.ok(img.ptr ~= nil, "a caller's image stays alive")
end)

-- ---- several images, text only ----

local proc = processor.new {}

-- Processing this chat fails with the pattern.
local function refused(chat, pattern, name)
  check.raises(function() proc:process(chat, toy, IDS) end, pattern, name)
end

check.case("an image that is far too long", function()
  refused(ask(sz.image.new(1000, 2)), "one side of an image of 1000 x 2 %(width x height%) is more "
    .. "than 200 times the other; resize=840x840 changes its shape", "500 times as wide as high")
end)

check.case("a tokenizer that is another model's", function()
  local others = { image_token_id = IMAGE + 7 }
  check.raises(function() proc:process(ask(sz.image.new(56, 56)), toy, others) end,
    ("the model's image token is %d, and <|image_pad|> is %d in the tokenizer"):format(IMAGE + 7,
      IMAGE), "another id")
end)

check.case("two images", function()
  local input = proc:process(ask(sz.image.new(56, 112), sz.image.new(84, 56)), toy, IDS)
  check.equal(input.image_grid_thw, { { 1, 8, 4 }, { 1, 4, 6 } }, "two images: grids")
  check.equal(input.pixel_values:shape(), { 56, 1176 }, "two images: patches")
  check.equal(input.images[2].tokens, 6, "two images: tokens")
end)

check.case("text only", function()
  local text = proc:process(user "hello", toy, IDS)
  check.equal(text.pixel_values, nil, "text only: no pixel values")
  check.equal(text.image_grid_thw, {}, "text only: no grids")
  check.equal(text.next_position, #text.input_ids, "text only: next position")
end)

check.case("plan and tostring", function()
  check.equal(proc:plan(640, 480).resized_width, 644, "plan")
  check.ok(tostring(proc):find("patch 14"), "tostring")
end)

check.case("bad images", function()
  local img = sz.image.new(56, 112)
  refused(ask("no/such.png"), "message 1, item 1 %(image 1%).*no/such%.png", "missing image")
  refused(ask(img, 7), "item 2 %(image 2%)", "a number as image")
  refused(ask(sz.image.new(500, 2)), "image 1.*200", "a strip")
  img:free()
  refused(ask(img), "freed", "freed image")
end)

check.case("bad messages", function()
  refused(user "see <|image_pad|>", "0 images.*1 image mark", "typed mark")
  refused(user { { type = "video", video = "x" } }, "video", "video")
  refused(user { { type = "sound" } }, "message 1, item 1", "unknown item")
end)

check.case("settings", function()
  check.raises(function() processor.new { patch_size = 0 } end, "patch_size is 0", "patch_size 0")
  check.raises(function() processor.new { resample = 1 } end, "resample", "resample 1")
  check.raises(function() processor.new { min_pixels = 50, max_pixels = 40 } end, "min_pixels",
    "min over max")
  local edges = { shortest_edge = 100, longest_edge = 5000 }
  check.equal(processor.new({ size = edges }).max_pixels, 5000, "size keys")
  check.equal(processor.new("tests/golden").max_pixels, 12845056, "a folder without settings")
end)

-- transformers' two processors give the same: a switch is on if the config lacks it, and off if it
-- is null.
check.case("a switch is on if absent, off if null or false", function()
  local img = sz.image.new(56, 84)
  local pixels = img:pixels()
  for i = 0, 56 * 84 * 3 - 1 do pixels[i] = 51 end
  local function first(settings)
    return tensor.data(processor.new(settings):process(ask(img), toy, IDS).pixel_values)[0]
  end
  local mean = 0.48145466
  local std = 0.26862954
  -- Each is one rounding to f32 away.
  check.near(first {}, (0.2 - mean) / std, 1e-6, "absent")
  for _, off in ipairs { false, cjson.null, 0 } do
    local name = tostring(off)
    check.near(first { do_rescale = off }, (51 - mean) / std, 1e-4, "do_rescale " .. name)
    check.near(first { do_normalize = off }, 0.2, 1e-6, "do_normalize " .. name)
    local fixed = processor.new { do_resize = off, max_pixels = 4000 }
    check.equal(fixed:plan(56, 84).resized_height, 84, "do_resize " .. name)
    check.raises(function() fixed:plan(50, 84) end, "do_resize is off", "a size that does not fit")
  end
  check.equal(processor.new({ max_pixels = 4000 }):plan(56, 84).resized_height, 56,
    "do_resize absent")
  for _, on in ipairs { true, 1, 2 } do
    local rescaled = first { do_rescale = on, do_normalize = on }
    check.near(rescaled, (0.2 - mean) / std, 1e-6, "on: " .. tostring(on))
    local resizing = processor.new { do_resize = on, max_pixels = 4000 }
    check.equal(resizing:plan(56, 84).resized_height, 56, "do_resize " .. tostring(on))
  end
  check.raises(function() processor.new { do_resize = "false" } end,
    "do_resize is 'false'.*true, false, 1, 0 or null", "a text")
end)

-- ---- positions ----

-- The ids and grids of a list of runs: a number is that many text tokens, { t, h, w } an image.
local function layout(runs, merge)
  local ids = {}
  local grids = {}
  local function add(id, times)
    for _ = 1, times do ids[#ids + 1] = id end
  end
  for _, run in ipairs(runs) do
    if type(run) == "number" then
      add(5, run)
    else
      grids[#grids + 1] = run
      add(START, 1)
      add(IMAGE, run[1] * run[2] * run[3] / merge ^ 2)
      add(END, 1)
    end
  end
  return ids, grids
end

-- The elements of a row at these places, which count from 0; the whole row without places.
local function elements(row, places)
  if not places then return row end
  local out = {}
  for k, at in ipairs(places) do out[k] = row[at + 1] end
  return out
end

for i, case in ipairs(read_json(GOLDEN .. "qwen_vl/positions.json")) do
  local name = "positions " .. i
  check.case("golden " .. name, function()
    local ids, grids = layout(case.runs, 2)
    check.equal(#ids, case.length, name .. ": length")
    local t, next_position = processor.positions(ids, grids, IDS, 2)
    local rows = t:totable()
    for axis, key in ipairs { "t", "h", "w" } do
      check.equal(elements(rows[axis], case.at), case[key], name .. ": " .. key)
    end
    check.equal(next_position - #ids, case.delta, name .. ": delta")
  end)
end

check.case("ids that do not fit the grids", function()
  local function misfit(ids, grids, pattern, name)
    check.raises(function() processor.positions(ids, grids, IDS, 2) end, pattern, name)
  end
  misfit({ START, IMAGE, END }, { { 1, 4, 4 } }, "1 image tokens.*need 4", "too few tokens")
  misfit({ IMAGE, 5, IMAGE }, { { 1, 2, 4 } }, "image 1 needs 2", "a gap")
  misfit({ IMAGE }, { { 1, 3, 2 } }, "grid 1 x 3 x 2", "odd grid")
  misfit({ IMAGE }, {}, "need 0", "no image")
end)

check.finish()
