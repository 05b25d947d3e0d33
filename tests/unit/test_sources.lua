-- test_sources.lua - data sets in the exact schemas of Seg-Zero's, VisionReasoner's and EasyR1's
-- sets (tests/golden/make_sources.py): their splits, columns, images, masks, checks; images from
-- bytes; damaged files.

local cjson = require "cjson"
local ffi = require "ffi"
local check = require "tests.support.check"
local check_rows = require("segzero.data.checks.check").rows
local files = require "segzero.core.files"
local image = require "segzero.formats.image"
local parquet = require "segzero.formats.parquet"
local names = require "segzero.data.tables.names"
local sources = require "segzero.data.sources"
local tensor = require "segzero.core.tensor"

local SETS = "tests/golden/sources/"
local expected = cjson.decode(files.read(SETS .. "expected.json"))

local place = os.tmpname()
os.remove(place)
files.make_dir(place)

local function open(name, options)
  options = options or { split = "train" }
  return sources.open(SETS .. name, options)
end

local function sum_of(img)
  local pixels = img:pixels()
  local sum = 0
  for i = 0, img.width * img.height * 3 - 1 do sum = sum + pixels[i] end
  return sum
end

-- How many pixels of a row's mask are inside.
local function inside(row)
  local mask = row.mask()
  local shape = mask:shape()
  check.equal(shape, { row.image.height, row.image.width }, "the mask has the image's size")
  local data = tensor.data(mask)
  local sum = 0
  for i = 0, shape[1] * shape[2] - 1 do sum = sum + data[i] end
  mask:free()
  return sum
end

-- The checked set; options change those of check.rows.
local function checked(set, options)
  local all = { name = "data.train_files", key = "data.on_bad_row", on_bad_row = "error",
    reward = "seg_strict", masks = true }
  for name, value in pairs(options or {}) do all[name] = value end
  return check_rows(set, all)
end

-- ---- images from bytes ----
check.case("image.decode gives what image.load gives", function()
  local count = 0
  for _, name in ipairs { "420_17x13.jpg", "exif_6.png", "lossless_alpha_17x13.webp",
    "animated.gif", "bmp8_13x9.bmp", "p3_13x9_7.pnm" } do
    local path = "tests/golden/images/" .. name
    if files.exists(path) then
      local bytes = files.read(path)
      local a = image.load(path)
      local b = image.decode(bytes, name)
      local size = a.width * a.height * 3
      check.ok(ffi.string(a:pixels(), size) == ffi.string(b:pixels(), size), name)
      check.equal(image.decode_info(bytes), image.info(path), "header of " .. name)
      check.equal(image.decode_mask(bytes):totable(), image.load_mask(path):totable(),
        "mask of " .. name)
      count = count + 1
    end
  end
  check.ok(count >= 4, "files were compared")
  check.raises(function() image.decode("abc", "x.parquet row 3") end,
    ": x.parquet row 3: not an image in a known format", "no image")
  check.raises(function() image.decode "" end, ": image bytes: the file is empty", "no bytes")
  check.raises(function() image.decode(7) end, "bytes of an image file are expected, got number",
    "a number")
  local png = files.read "tests/golden/images/exif_6.png"
  check.raises(function() image.decode(png:sub(1, #png - 40), "row 1") end, ": row 1: ", "cut off")
end)

-- ---- the hub's schemas ----
check.case("a training set as Seg-Zero has it on the hub", function()
  local set = open "refcocog"
  check.equal(set:count(), 3, "rows")
  check.equal(set.name, SETS .. "refcocog@train", "name")
  local row = set:row(2)
  check.equal(row.id, "refcocog_9007199254740991_0", "the id keeps its digits")
  check.equal(row.problem, "the green circle", "problem")
  check.ok(row.solution:find "^<box>%(20,22%),%(50,52%)</box><points>", "solution " .. row.solution)
  check.equal({ row.image.width, row.image.height, row.img_width, row.img_height },
    { 84, 84, 84, 84 }, "sizes")
  check.equal(row.mask, nil, "no mask")
  check.equal(row.columns.img_width, 84, "columns are kept")
end)

check.case("lists of objects in two shards", function()
  local set = open "multi"
  check.equal(set:count(), 4, "rows")
  local list = cjson.decode(set:row(3).solution)
  check.equal(#list[1].bbox_2d, 4, "a box")
  check.equal(set:where(3), SETS .. "multi/data/train-00001-of-00002.parquet row 1", "place")
  check.raises(function() set:row(5) end, "row 5: the data set .* has the rows 1 to 4", "too far")
end)

local function check_masks(set)
  check.equal(set:count(), #expected.reasonseg, "rows")
  for i, want in ipairs(expected.reasonseg) do
    local row = set:row(i)
    check.equal({ row.image.width, row.image.height }, { want.width, want.height }, "size")
    check.equal(sum_of(row.image), want.pixels, "pixels")
    check.equal(inside(row), want.inside, "inside of the mask")
    check.equal(row.problem:match " (%w+)$", "circle", "the text is the problem")
    check.equal({ row.image_id, row.ann_id }, { "image_" .. i - 1, "00" .. i - 1 }, "ids")
  end
end

check.case("an evaluation set as ReasonSeg is on the hub", function()
  local set = open("reasonseg", { split = "heldout" })
  check.equal(set.name:match "@(%w+)$", "test", "its only split")
  check_masks(set)
end)

check.case("what save_to_disk writes, with splits and without", function()
  local set = open "saved"
  check.equal(set:count(), 4, "train, in two files")
  check.equal(set:row(4).id, "refcocog_9007199254740993_0", "the last row")
  check.equal(set:where(3), SETS .. "saved/train/data-00001-of-00002.arrow row 1", "place")
  check.equal(set:row(1).image.width, 84, "an image")
  check.equal(open("saved", { split = "heldout" }).name:match "@(%w+)$", "test", "held out")
  check.equal(open("saved/train"):count(), 4, "one split's folder")
  check.equal(checked(open "saved@test"):count(), 3, "checked")
  check_masks(open "saved_masks")
  check.raises(function() open "saved@validation" end,
    "^tests/golden/sources/saved has no split 'validation'; there is: test, train$", "no split")
end)

check.case("an Arrow file with a footer", function()
  local set = open "file.arrow"
  for i = 1, 2 do check.equal(inside(set:row(i)), expected.inside[i], "row " .. i) end
end)

check.case("EasyR1's columns: a list of images, answer", function()
  local set = open "easyr1"
  check.equal(set:count(), 2, "train is chosen for training")
  check.equal(set:row(1).problem, "<image>the red circle", "problem")
  check.ok(set:row(1).solution:find "^<box>", "answer is the solution")
  check.equal(open("easyr1", { split = "heldout" }).name:match "@(%w+)$", "test", "held out")
  check.equal(open("easyr1@test", { split = "train" }):row(1).problem, "<image>the blue circle",
    "a split by name")
  check.raises(function() open "easyr1@val" end,
    "^tests/golden/sources/easyr1 has no split 'val'; there is: test, train$", "no such split")
end)

check.case("columns by the names of the settings; images as paths, masks as PNG bytes", function()
  local keys = { split = "train", prompt_key = "question", image_key = "picture" }
  local set = open("paths", keys)
  local row = set:row(2)
  check.equal(row.id, "1152921504606846977", "a number beyond 2^53 keeps its digits")
  check.equal(row.problem, "the green circle", "problem")
  check.equal(inside(row), expected.inside[2], "mask")
  check.raises(function() open "paths" end, "rows.parquet: there is no column for the problem: "
    .. "name it with data.prompt_key; there is: id, question, picture, solution, mask$",
    "no problem")
  check.raises(function() open("paths", { split = "train", prompt_key = "ask" }) end,
    "there is no column 'ask' %(data.prompt_key%); there is: id", "no such column")
end)

check.case("masks as run lengths", function()
  local set = sources.open(SETS .. "mask_forms.parquet", { split = "train" })
  for i = 1, 2 do check.equal(inside(set:row(i)), expected.inside[i], "row " .. i) end
end)

check.case("files, patterns and folders by name", function()
  check.equal(#names.find(SETS .. "multi/data/*.parquet", "train").files, 2, "a pattern")
  check.equal(#names.find(SETS .. "multi/data/train-00001-of-00002.parquet", "train").files, 1,
    "a file")
  check.equal(#names.find(SETS .. "multi/data", "train").files, 2, "the inner folder")
  check.raises(function() names.find(place .. "/none*.parquet", "train") end,
    "none%*.parquet: no .parquet or .arrow file has a name like this", "nothing found")
  check.ok(not names.matches(place), "an empty folder is no table")
  check.raises(function() sources.open(place, { split = "train" }) end,
    "the folder has no data.jsonl, and no Parquet", "the message for an empty folder")
  check.raises(function() open "multi/data/none.parquet" end, "No such file", "a missing file")
end)

-- ---- large values ----
-- As make_sources.py makes them; rows from 0.
local function large(i)
  if i == 2 then return nil end
  if i == 5 then return "" end
  local out = {}
  for j = 0, 180000 + 1000 * i - 1 do
    local byte = (math.floor(j / 1000) + i) % 256
    if j < 1000 then byte = (math.floor(j * j / 7) + i) % 251 end
    out[j + 1] = string.char(byte)
  end
  return table.concat(out)
end

check.case("large values are read without their pages", function()
  for _, name in ipairs { "dictionary", "plain", "v2" } do
    local path = SETS .. "large_" .. name .. ".parquet"
    local f = parquet.open(path)
    for _, row in ipairs { 8, 1, 3, 5, 6, 2, 7, 4, 4, 8 } do
      check.ok(f:value(row, "value") == large(row - 1), ("%s, row %d"):format(name, row))
    end
    f:close()
  end
end)

check.case("large values of damaged files", function()
  for _, name in ipairs { "dictionary", "plain", "v2" } do
    local text = files.read(SETS .. "large_" .. name .. ".parquet")
    local path = place .. "/large.parquet"
    for n = 5, #text - 700, 1501 do
      local file = assert(io.open(path, "wb"))
      file:write(text:sub(1, n - 1), string.char((text:byte(n) + 85) % 256), text:sub(n + 1))
      file:close()
      local ok, why = pcall(function()
        local f = parquet.open(path)
        for row = 8, 1, -1 do f:value(row, "value") end
        f:close()
      end)
      check.ok(ok or (why:find(path, 1, true) and not why:find "\n"), tostring(why))
    end
  end
end)

-- ---- checks ----
check.case("all rows are checked", function()
  check.equal(checked(open "refcocog"):count(), 3, "good rows")
  local masks = checked(open("reasonseg", { split = "heldout" }), { reward = "mask_iou" })
  check.equal(masks:count(), 3, "good masks")
  check.raises(function() checked(open "multi") end,
    "the solution is a list of objects.*compute_score=vision_reasoner",
    "another form of solution")
end)

check.case("the fingerprint changes with the rows", function()
  local a = open("refcocog"):fingerprint()
  check.equal(open("refcocog"):fingerprint(), a, "the same")
  check.ok(open("multi"):fingerprint() ~= a, "other rows")
end)

-- ---- JSON ----
local function write(name, text)
  local path = place .. "/" .. name
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

-- Bytes in base64, by hand.
local function base64(bytes)
  local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
  local out = {}
  for i = 1, #bytes, 3 do
    local a, b, c = bytes:byte(i, i + 2)
    local n = a * 65536 + (b or 0) * 256 + (c or 0)
    for k = 3, 0, -1 do
      local digit = math.floor(n / 64 ^ k) % 64 + 1
      out[#out + 1] = alphabet:sub(digit, digit)
    end
    if not b then out[#out - 1] = "=" end
    if not c then out[#out] = "=" end
  end
  return table.concat(out)
end

local SOLUTION = "<box>(16,26),(44,54)</box><points>(30,40),(30,37)</points>"

-- A row with this image, and the columns in `more`.
local function json_row(i, img, more)
  local columns = { id = "r" .. i, problem = "the circle", solution = SOLUTION, image = img }
  for name, value in pairs(more or {}) do columns[name] = value end
  return columns
end

check.case("images in JSON: a path, {path}, base64, a list of one", function()
  local bytes = files.read(SETS .. "paths/images/0.png")
  write("a.png", bytes)
  local text = base64(bytes)
  local images = { "a.png", { path = "a.png" }, { bytes = text, path = "b.png" },
    "data:image/png;base64," .. text, { "a.png" }, { { bytes = text } } }
  local lines = {}
  local objects = {}
  for i, img in ipairs(images) do
    objects[i] = json_row(i, img)
    lines[i] = cjson.encode(objects[i])
  end
  local list = cjson.encode(objects):gsub("},{", "},\n  {")
  for _, path in ipairs { write("rows.jsonl", table.concat(lines, "\n")), write("rows.json", list),
    write("lines.json", table.concat(lines, "\n")) } do
    local set = checked(sources.open(path, { check = false }))
    check.equal(set:count(), #images, path)
    for i = 1, #images do
      local row = set:row(i)
      check.equal({ row.id, row.image.width, row.image.height }, { "r" .. i, 84, 84 }, "row " .. i)
      row.image:free()
    end
    check.equal(set:where(3), path .. ":3", "place")
  end
end)

check.case("columns of JSON by the names of the settings, and EasyR1's", function()
  local bytes = files.read(SETS .. "paths/images/0.png")
  write("a.png", bytes)
  local path = write("named.jsonl", cjson.encode { ask = "q", truth = SOLUTION, photo = "a.png" })
  local set = sources.open(path, { prompt_key = "ask", answer_key = "truth", image_key = "photo" })
  local row = set:row(1)
  check.equal({ row.problem, row.solution, row.image.width }, { "q", SOLUTION, 84 }, "renamed")
  check.raises(function() sources.open(path, { prompt_key = "what" }) end,
    "named.jsonl:1: there is no column 'what' %(data.prompt_key%); there is: ask, photo, truth",
    "no such column")
  path = write("easyr1.jsonl", cjson.encode { problem = "q", answer = SOLUTION,
    images = { "a.png" } })
  check.equal(sources.open(path):row(1).solution, SOLUTION, "images and answer")
end)

check.case("the few rows with a mask, or without, are the ones at fault", function()
  local function places(masks)
    local lines = {}
    for i, has_mask in ipairs(masks) do
      local row = json_row(i, "a.png")
      if has_mask then row.mask = { 1, 1, 9, 1, 9, 9 } end
      lines[i] = cjson.encode(row)
    end
    local set = sources.open(write("mixed.jsonl", table.concat(lines, "\n")), { check = false })
    local found = {}
    for i = 1, set:count() do
      local ok, why = pcall(set.meta, set, i)
      if not ok then found[#found + 1] = why:match ":(%d+: the column 'mask' is .*)$" end
    end
    return found
  end
  check.equal(places { true, false, false, false }, {
    "1: the column 'mask' is present, but line 2 has none" }, "the first one has a mask")
  check.equal(places { true, true, false, true }, {
    "3: the column 'mask' is missing, but line 1 has one" }, "one has none")
  check.equal(places { false, true }, { "2: the column 'mask' is present, but line 1 has none" },
    "as many with as without")
end)

check.case("rows of veRL, ms-swift and LLaVA", function()
  local image_part = { type = "image" }
  local function text_part(text) return { type = "text", text = text } end
  -- What the row says: problem, solution, system prompt.
  local function read(row, options)
    local found = sources.open(write("chat.jsonl", cjson.encode(row)), options):row(1)
    found.image:free()
    return { found.problem, found.solution, found.system_prompt }
  end
  local user = { role = "user", content = "<image>the dog" }
  check.equal(read { prompt = { user }, images = { "a.png" },
    reward_model = { style = "rule", ground_truth = SOLUTION } }, { "<image>the dog", SOLUTION },
    "veRL")
  check.equal(read { messages = { { role = "system", content = "Be brief." }, user,
    { role = "assistant", content = SOLUTION } }, images = { "a.png" } },
    { "<image>the dog", SOLUTION, "Be brief." }, "ms-swift")
  check.equal(read { image = "a.png", conversations = { { from = "human",
    value = "<image>\nthe dog" }, { from = "gpt", value = SOLUTION } } },
    { "<image>\nthe dog", SOLUTION }, "LLaVA")
  check.equal(read { image = "a.png", solution = SOLUTION, messages = { { role = "user",
    content = { image_part, text_part "the ", text_part "dog" } } } },
    { "<image>the dog", SOLUTION }, "parts")
  check.equal(read({ image = "a.png", problem = "another", answer = SOLUTION, prompt = { user } },
    { prompt_key = "prompt" }), { "<image>the dog", SOLUTION }, "data.prompt_key=prompt")
end)

check.case("the prompts place the image, so a question's marker is left out", function()
  local prompt = require "segzero.data.prompt"
  check.equal(prompt.seg_zero "<image>\nThe dog.", prompt.seg_zero "The dog.", "in front")
  check.equal(prompt.vision_reasoner "The dog<image>", prompt.vision_reasoner "The dog", "behind")
  check.equal(prompt.normalize "the <image> dog", "the dog", "in the middle")
end)

check.case("chats that are no row are refused by name", function()
  local function refused(messages, pattern)
    local path = write("chat.jsonl", cjson.encode { messages = messages, image = "a.png",
      solution = SOLUTION })
    check.raises(function() sources.open(path) end, "chat.jsonl:1: the column 'problem' is no chat "
      .. "of one question: " .. pattern, pattern)
  end
  local user = { role = "user", content = "a" }
  local answer = { role = "assistant", content = "b" }
  refused({ user, answer, user }, "several questions, and a row has one$")
  refused({ answer }, "an answer without a question$")
  refused({ user, { role = "system", content = "x" } }, "a system message that is not the first$")
  refused({ { role = "tool", content = "x" } }, "a message of 'tool'$")
  refused({ { role = "user", content = { { type = "video" } } } }, "a part of type 'video' in a")
  refused({ { role = "user" } }, "a message without text$")
  refused({ "text" }, "a message that is a string$")
end)

check.case("a table of veRL: messages and reward_model", function()
  local set = sources.open(SETS .. "verl.parquet", { split = "train" })
  check.equal(set:count(), 2, "rows")
  local row = set:row(1)
  check.equal(row.problem, "<image>the red circle", "the question")
  check.equal(row.system_prompt, "Be brief.", "the system prompt")
  check.ok(row.solution:find "^<box>" ~= nil, row.solution)
  row.image:free()
  row = set:row(2)
  check.equal({ row.problem, row.system_prompt }, { "<image>the green circle" }, "without one")
  row.image:free()
end)

check.case("what is wrong with JSON is one line", function()
  local function refused(name, value, pattern)
    local path = write("bad.jsonl", cjson.encode(value))
    check.raises(function() sources.open(path) end, "bad.jsonl:1: " .. pattern, name)
  end
  refused("two images", json_row(1, { "a.png", "b.png" }), "the column 'image' has 2 images")
  refused("a number", json_row(1, { 7 }), "the column 'image' is number, expected a path")
  refused("an empty object", json_row(1, { other = 1 }), "the column 'image' is an object without")
  local path = write("bad.jsonl", cjson.encode(json_row(1, { bytes = "!!!" })))
  check.raises(function() checked(sources.open(path)) end, "is not base64", "no base64")
  path = write("cut.json", "[{\"id\": \"]\"}, {")
  check.raises(function() sources.open(path) end,
    "cut.json: the list has no end: the file is cut off", "cut off")
  path = write("empty.json", " [ ] ")
  check.raises(function() sources.open(path) end, "empty.json has no rows", "no rows")
end)

-- ---- values that are no texts ----
local VALUES = "tests/golden/values/"
local texts = cjson.decode(files.read(VALUES .. "expected.json"))

check.case("solutions that are no texts are what Python makes of them", function()
  local count = 0
  for _, file in ipairs { "rows.parquet", "rows.arrow" } do
    for column, list in pairs(texts) do
      local set = sources.open(VALUES .. file, { split = "train", answer_key = column })
      for i, want in ipairs(list) do
        if want == cjson.null then
          check.raises(function() set:meta(i) end,
            ("row %d: the column '%s' is null, expected a string"):format(i, column), "a null")
        else
          check.equal(set:meta(i).solution, want, ("%s, %s, row %d"):format(file, column, i))
        end
        count = count + 1
      end
    end
  end
  check.equal(count, 2 * 88, "values")
end)

-- Python's str() of the first two; Europe/Berlin is an hour ahead there.
local ZONES = {
  ["+02:00"] = { "2024-01-31 14:00:00.500000+02:00", "1970-01-01 01:59:59.999999+02:00" },
  ["-05:30"] = { "2024-01-31 06:30:00.500000-05:30", "1969-12-31 18:29:59.999999-05:30" },
  ["Europe/Berlin"] = { "2024-01-31 12:00:00.500000+00:00", "1969-12-31 23:59:59.999999+00:00" },
}

check.case("times of zones: fixed ones as in Python, named ones in UTC with a note", function()
  for zone, wants in pairs(ZONES) do
    local set = sources.open(VALUES .. "rows.arrow", { split = "train", answer_key = zone })
    for i, want in ipairs(wants) do check.equal(set:meta(i).solution, want, zone) end
    local note = table.concat(set.notes, "\n"):find("times of the zone " .. zone, 1, true)
    check.equal(note ~= nil, zone == "Europe/Berlin", zone .. ": a note")
  end
end)

check.case("solutions of JSON that are no strings", function()
  local set = sources.open(VALUES .. "rows.jsonl")
  check.equal(set:count(), 12, "rows")
  for i = 1, set:count() do
    local row = set:row(i)
    check.equal(row.solution, row.want, "row " .. i)
    row.image:free()
  end
end)

check.case("problems of JSON that are no strings are those of tables", function()
  local json_line = require "segzero.data.jsonl.line"
  local function read(value)
    local line = ('{"problem": %s, "image": "a.png", "solution": "s"}'):format(value)
    return json_line.columns(line, "x:1").problem
  end
  for written, want in pairs { ["5"] = "5", ["0.10"] = "0.10", ["true"] = "True",
    ["false"] = "False", ['{"b":1,"a":null}'] = '{"b": 1, "a": null}',
    ['[{"role": "user", "content": "q"}]'] = "q" } do
    check.equal(read(written), want, written)
  end
  check.raises(function() read "[]" end, "x:1: the column 'problem' is no chat", "an empty list")
  check.raises(function() read "null" end, "x:1: there is no column 'problem'", "a null")

  -- The same columns of a table.
  local expected = cjson.decode(files.read "tests/golden/values/expected.json")
  for _, column in ipairs { "bool", "i64", "f64" } do
    local set = sources.open("tests/golden/values/rows.parquet", { split = "train",
      prompt_key = column, answer_key = column })
    check.equal(set:meta(1).problem, expected[column][1], column)
  end
end)

check.case("NaN and infinities as solutions are kept as they are written", function()
  local json_line = require "segzero.data.jsonl.line"
  local function read(value)
    local line = ('{"problem": "q", "image": "a.png", "solution": %s}'):format(value)
    return json_line.columns(line, "x:1").solution
  end
  for _, written in ipairs { "NaN", "-Infinity", "1e999" } do
    check.equal(read(written), written, written)
    check.equal(read(('{"ground_truth": %s}'):format(written)), written, "inside: " .. written)
  end
end)

check.case("whole numbers, floats, booleans and maps as text", function()
  local value_text = require "segzero.data.tables.value_text"
  check.equal(value_text.of(7, { form = "number" }), "7", "a whole number")
  check.equal(value_text.of(7, { form = "number", is_float = true }), "7.0", "a float")
  check.equal(value_text.of(true, { form = "bool" }), "True", "a boolean")
  check.equal(value_text.of({ b = 1, a = 2 }, { form = "map", key = { form = "bytes" },
    value = { form = "number" } }), '{"a": 2, "b": 1}', "a map")
end)

check.case("the shortest text reads back as the same number", function()
  local value_text = require "segzero.data.tables.value_text"
  for i = -1074, 1023 do
    local n = math.ldexp(1, i)
    check.ok(tonumber(value_text.shortest(n)) == n, "2^" .. i)
    check.ok(tonumber(value_text.shortest(-n / 3)) == -n / 3, "a third of 2^" .. i)
  end
  -- Of two texts that are as near, the one with the even digit.
  check.equal(value_text.shortest(593525162223638.25), "593525162223638.2", "a tie")
  check.equal(value_text.shortest(9999999999999998), "9999999999999998.0", "16 digits")
end)

-- ---- damage ----
-- Reads everything; returns the error or what the set notes of itself, or nil.
local function fault_of(path)
  local set
  local ok, why = pcall(function()
    set = sources.open(path, { split = "train" })
    for i = 1, set:count() do
      local row = set:row(i)
      if row.mask then row.mask():free() end
      row.image:free()
    end
  end)
  if not ok then return tostring(why) end
  return set.notes[1]
end

-- A file cut at many places, and with bytes changed, is read or refused in one line that names it.
local function check_damage(name, extension, step)
  local text = files.read(SETS .. name)
  local refused = 0
  local function try(damaged, what)
    local path = write("damaged." .. extension, damaged)
    local why = fault_of(path)
    if not why then return end
    refused = refused + 1
    check.ok(not why:find "\n" and why:find(path, 1, true) ~= nil,
      ("%s of %s: %s"):format(what, name, why))
  end
  local cuts = 0
  for n = 0, #text - 1, step do
    try(text:sub(1, n), "cut at " .. n)
    cuts = cuts + 1
  end
  check.equal(refused, cuts, "every cut is noticed")
  for n = 1, #text, step do
    try(text:sub(1, n - 1) .. string.char((text:byte(n) + 128) % 256) .. text:sub(n + 1),
      "changed byte " .. n)
  end
  check.equal(fault_of(write("whole." .. extension, text)), nil, "the whole file")
end

check.case("damaged Parquet files", function()
  check_damage("reasonseg/data/test-00000-of-00001.parquet", "parquet", 61)
end)

check.case("damaged Arrow files", function()
  check_damage("saved/test/data-00000-of-00001.arrow", "arrow", 31)
  check_damage("saved_masks/data-00000-of-00001.arrow", "arrow", 97)
  check_damage("file.arrow", "arrow", 41)
end)

check.case("an image that is none, in one line", function()
  local text = files.read(SETS .. "refcocog/data/train-00000-of-00001.parquet")
  local at = text:find("\137PNG", 1, true)
  local path = write("no_image.parquet", text:sub(1, at - 1) .. "?" .. text:sub(at + 1))
  local set = sources.open(path, { split = "train" })
  local ok, why = pcall(function() checked(set) end)
  check.ok(not ok, "refused")
  check.ok(why:find("no_image.parquet row 1", 1, true) ~= nil, why)
  check.ok(why:find("column 'image'", 1, true) ~= nil, why)
end)

check.finish()
