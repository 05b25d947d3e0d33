-- test_processor.lua - the image processor against transformers' Pillow-based one (tests/golden/processor), smart_resize,
-- position ids (tests/golden/qwen_vl/positions.json and the layouts written here), and errors.

local ffi = require "ffi"
local cjson = require "cjson"
local check = require "tests.support.check"
local sz = require "segzero"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local processor = require "segzero.models.processor"

local GOLDEN = "tests/golden/"

local function read_json(path)
  local file = assert(io.open(path, "rb"))
  local value = cjson.decode(file:read("*a"))
  file:close()
  return value
end

-- ---- smart_resize ----
local size = ffi.new("int[2]")
local wrong = 0
local table_of_sizes = read_json(GOLDEN .. "processor/smart_resize.json")
for _, r in ipairs(table_of_sizes) do
  local code = core.C.sz_qwen_smart_resize(r[1], r[2], 28, r[3], r[4], size, size + 1)
  local want_error = r[5] == cjson.null
  if (code ~= 0) ~= want_error or (not want_error and (size[0] ~= r[5] or size[1] ~= r[6])) then
    wrong = wrong + 1
    print(("smart_resize %d x %d: got %d x %d, want %s x %s"):format(r[1], r[2], size[0], size[1], tostring(r[5]), tostring(r[6])))
  end
end
check.equal(wrong, 0, "smart_resize table (" .. #table_of_sizes .. " rows)")

-- ---- pixel values ----
-- A stand-in tokenizer: one id per byte, the marks of the template as single ids.
local IMAGE, START, END = 1000, 1001, 1002
local toy = {}
function toy:encode(text)
  local ids, i = {}, 1
  while i <= #text do
    local mark = text:match("^<|[%w_]+|>", i)
    local id = ({ ["<|image_pad|>"] = IMAGE, ["<|vision_start|>"] = START, ["<|vision_end|>"] = END })[mark]
    ids[#ids + 1] = id or text:byte(i)
    i = i + (id and #mark or 1)
  end
  return ids
end
local IDS = { image_token_id = IMAGE }

local function ask(...)
  local content = {}
  for i, source in ipairs{ ... } do content[i] = { type = "image", image = source } end
  content[#content + 1] = { type = "text", text = "what is it?" }
  return { { role = "user", content = content } }
end

local golden = sz.safetensors.load(GOLDEN .. "processor/cases.safetensors")
for _, case in ipairs(read_json(GOLDEN .. "processor/cases.json")) do
  local proc = processor.new{ min_pixels = case.min_pixels, max_pixels = case.max_pixels }
  local inp = proc:process(ask(GOLDEN .. "processor/" .. case.file), toy, IDS)
  local same_grid = check.equal(inp.image_grid_thw, { case.grid }, case.name .. ": grid")
  -- transformers 5 puts a transparent picture on white; here, as in transformers 4, alpha is dropped. test_image.lua has
  -- the colours of such a picture.
  if same_grid and case.mode ~= "RGBA" then
    local values, sample = tensor.data(inp.pixel_values), tensor.data(golden[case.name .. ".sample"])
    local worst = 0
    for i = 0, case.count - 1 do worst = math.max(worst, math.abs(values[i * case.stride] - sample[i])) end
    -- The same roundings in the same order: equal, or one unit in the last place of values up to 2.6.
    check.ok(worst <= 1e-6, case.name .. ": pixel values, off by " .. worst)
    local patches, columns = inp.pixel_values:shape()[1], 1176
    local sums, off = tensor.data(golden[case.name .. ".sums"]), 0
    for p = 0, patches - 1 do
      local sum = 0
      for c = 0, columns - 1 do sum = sum + values[p * columns + c] end
      off = math.max(off, math.abs(sum - sums[p]))
    end
    -- The sums are stored as f32: an error of 0.5 units in about 2000.
    check.ok(off <= 2e-4, case.name .. ": patch sums, off by " .. off)
    local tokens = 0
    for _, id in ipairs(inp.input_ids) do if id == IMAGE then tokens = tokens + 1 end end
    check.equal(tokens, case.grid[1] * case.grid[2] * case.grid[3] / 4,
      case.name .. ": picture tokens")
    check.equal(inp.position_ids:shape(), { 3, #inp.input_ids }, case.name .. ": positions")
  end
end

-- General patch sizes: every value is where the formula says.
do
  local img = sz.image.new(24, 12)
  local p = img:pixels()
  for i = 0, 24 * 12 * 3 - 1 do p[i] = (i * 7) % 256 end
  local proc = processor.new{
    patch_size = 2, temporal_patch_size = 3, merge_size = 3, min_pixels = 1, do_rescale = false, image_mean = { 1, 2, 3 }, image_std = { 1, 2, 4 },
  }
  local inp = proc:process(ask(img), toy, IDS)
  check.equal(inp.image_grid_thw, { { 1, 6, 12 } }, "patch 2, merge 3: grid")
  check.equal(inp.pixel_values:shape(), { 72, 36 }, "patch 2, merge 3: shape")
  local values, bad = tensor.data(inp.pixel_values), 0
  for row = 0, 71 do
    local block, k = math.floor(row / 9), row % 9
    local py, px = math.floor(block / 4) * 3 + math.floor(k / 3), block % 4 * 3 + k % 3
    for c = 0, 2 do for t = 0, 2 do for y = 0, 1 do for x = 0, 1 do
      local v = p[((py * 2 + y) * 24 + px * 2 + x) * 3 + c]
      if values[row * 36 + c * 12 + t * 4 + y * 2 + x] ~= (v - (c + 1)) / 2 ^ c then bad = bad + 1 end
    end end end end
  end
  check.equal(bad, 0, "patch 2, merge 3: values")
  check.ok(img.ptr ~= nil, "a caller's picture stays alive")
end

-- ---- several pictures, text only ----
do
  local proc = processor.new{}
  local a, b = sz.image.new(56, 112), sz.image.new(84, 56)
  local inp = proc:process(ask(a, b), toy, IDS)
  check.equal(inp.image_grid_thw, { { 1, 8, 4 }, { 1, 4, 6 } }, "two pictures: grids")
  check.equal(inp.pixel_values:shape(), { 56, 1176 }, "two pictures: patches")
  check.equal(inp.images[2].tokens, 6, "two pictures: tokens")
  local text = proc:process({ { role = "user", content = "hello" } }, toy, IDS)
  check.equal(text.pixel_values, nil, "text only: no pixel values")
  check.equal(text.image_grid_thw, {}, "text only: no grids")
  check.equal(text.next_position, #text.input_ids, "text only: next position")
  check.equal(proc:plan(640, 480).resized_width, 644, "plan")
  check.ok(tostring(proc):find("patch 14"), "tostring")

  check.raises(function() proc:process(ask("no/such.png"), toy, IDS) end,
    "message 1, item 1 %(image 1%).*no/such%.png", "missing image")
  check.raises(function() proc:process(ask(a, 7), toy, IDS) end,
    "item 2 %(image 2%)", "a number as image")
  check.raises(function() proc:process(ask(sz.image.new(500, 2)), toy, IDS) end,
    "image 1.*200", "a strip")
  check.raises(function() proc:process({ { role = "user", content = "see <|image_pad|>" } }, toy, IDS) end, "0 images.*1 image mark", "typed mark")
  check.raises(function() proc:process({ { role = "user", content = { { type = "video", video = "x" } } } }, toy, IDS) end, "video", "video")
  check.raises(function() proc:process({ { role = "user", content = { { type = "sound" } } } }, toy, IDS) end, "message 1, item 1", "unknown item")
  a:free()
  check.raises(function() proc:process(ask(a), toy, IDS) end, "freed", "freed picture")
  check.raises(function() processor.new{ patch_size = 0 } end, "patch_size is 0", "patch_size 0")
  check.raises(function() processor.new{ resample = 1 } end, "resample", "resample 1")
  check.raises(function() processor.new{ min_pixels = 50, max_pixels = 40 } end,
    "min_pixels", "min over max")
  check.equal(processor.new{ size = { shortest_edge = 100, longest_edge = 5000 } }.max_pixels, 5000,
    "size keys")
  check.equal(processor.new("tests/golden").max_pixels, 12845056, "a folder without settings")
end

-- ---- positions ----
local function layout(runs, merge)
  local ids, grids = {}, {}
  for _, run in ipairs(runs) do
    if type(run) == "number" then
      for _ = 1, run do ids[#ids + 1] = 5 end
    else
      grids[#grids + 1] = run
      ids[#ids + 1] = START
      for _ = 1, run[1] * run[2] * run[3] / merge ^ 2 do ids[#ids + 1] = IMAGE end
      ids[#ids + 1] = END
    end
  end
  return ids, grids
end

for i, case in ipairs(read_json(GOLDEN .. "qwen_vl/positions.json")) do
  local ids, grids = layout(case.runs, 2)
  check.equal(#ids, case.length, "positions " .. i .. ": length")
  local t, next_position = processor.positions(ids, grids, IDS, 2)
  local rows, n = t:totable(), #ids
  for axis, key in ipairs{ "t", "h", "w" } do
    local got = rows[axis]
    if case.at then
      got = {}
      for k, at in ipairs(case.at) do got[k] = rows[axis][at + 1] end
    end
    check.equal(got, case[key], ("positions %d: %s"):format(i, key))
  end
  check.equal(next_position - n, case.delta, "positions " .. i .. ": delta")
end

check.raises(function() processor.positions({ START, IMAGE, END }, { { 1, 4, 4 } }, IDS, 2) end,
  "1 image tokens.*need 4", "too few tokens")
check.raises(function() processor.positions({ IMAGE, 5, IMAGE }, { { 1, 2, 4 } }, IDS, 2) end,
  "image 1 needs 2", "a gap")
check.raises(function() processor.positions({ IMAGE }, { { 1, 3, 2 } }, IDS, 2) end,
  "grid 1 x 3 x 2", "odd grid")
check.raises(function() processor.positions({ IMAGE }, {}, IDS, 2) end, "need 0", "no picture")

check.finish()
