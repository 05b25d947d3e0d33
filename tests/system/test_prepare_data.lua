-- test_prepare_data.lua - recipes/prepare_data.lua: its rows are those of Seg-Zero's scripts
-- (tests/golden/make_prepare.py), they train, and stopped runs and threads change no byte.
--
--   ./segzero tests/system/test_prepare_data.lua

local bit = require "bit"
local cjson = require "cjson"
local check = require "tests.support.check"
local entries = require "segzero.prepare.entries"
local files = require "segzero.core.files"
local host = require "segzero.host"
local mini = require "tests.support.miniature"
local prompt = require "segzero.data.prompt"
local seg_strict = require "rewards.seg_strict"
local sources = require "segzero.data.sources"
local sz = require "segzero"
local truth = require "segzero.data.truth"
local vision_reasoner = require "rewards.vision_reasoner"

local SETS = "tests/golden/annotations/"
local expected = files.read_json "tests/golden/prepare_rows.json"
local place = mini.folder()

-- The recipe's output and status, and the folder that it was told to write.
local function prepare(name, args)
  local folder = ("%s/%s"):format(place, name)
  local words = { "recipes/prepare_data.lua", "output=" .. folder }
  for _, word in ipairs(args) do words[#words + 1] = word end
  local text, status = mini.run(words)
  return text, status, folder
end

local function prepared(name, args)
  local text, status, folder = prepare(name, args)
  check.equal(status, 0, name .. ": " .. text)
  return folder, text
end

-- ---- the rows ----
local table_of_sums
local function crc32(pointer, count)
  if not table_of_sums then
    table_of_sums = {}
    for i = 0, 255 do
      local v = i
      for _ = 1, 8 do
        local low = bit.band(v, 1)
        v = bit.bxor(bit.rshift(v, 1), bit.band(-low, 0xedb88320))
      end
      table_of_sums[i] = v
    end
  end
  local sum = -1
  for i = 0, count - 1 do
    local at = bit.band(bit.bxor(sum, pointer[i]), 255)
    sum = bit.bxor(table_of_sums[at], bit.rshift(sum, 8))
  end
  return bit.bnot(sum) % 2 ^ 32
end

local function compare(name, folder)
  local set = sources.open(folder, { split = "train" })
  local want = expected[name]
  check.equal(set:count(), #want, name .. ": rows")
  for i, w in ipairs(want) do
    local row = set:row(i)
    check.equal({ row.problem, row.solution }, { w.problem, w.solution }, name)
    check.equal({ row.columns.img_width, row.columns.img_height }, { w.width, w.height }, name)
    check.equal({ row.image.width, row.image.height }, { 840, 840 }, name)
    check.equal(crc32(row.image:pixels(), 840 * 840 * 3), w.sum, name .. ": pixels " .. i)
    row.image:free()
  end
end

check.case("rows equal those of Seg-Zero's scripts", function()
  for _, set in ipairs { "refcocog", "grefcoco" } do
    local data = ("data=%srefer_seg/%s@train"):format(SETS, set)
    compare(set, prepared(set, { data }))
    compare(set .. " several", prepared(set .. "_several", { data, "several=true",
      "no_target=true" }))
    compare(set, prepared(set .. "_jsonl", { data, "format=jsonl" }))
  end
end)

check.case("ids, sentences and questions about nothing", function()
  local function ids_of(name, args)
    local ids = {}
    local folder, text = prepared(name, args)
    local set = sources.open(folder, { split = "train" })
    for i = 1, set:count() do ids[i] = set:meta(i).id end
    return ids, text
  end
  check.equal(ids_of("ids", { "data=" .. SETS .. "refer_seg/refcocog@train", "several=true",
    "size=84" }), { "refcocog_5000_5001", "refcocog_5003", "refcocog_5008" }, "several")
  check.equal(#ids_of("all", { "data=" .. SETS .. "refer_seg/refcocog@train", "sentences=all",
    "size=84" }), 5, "a row for each sentence")
  local ids, text = ids_of("nothing", { "data=" .. SETS .. "refer_seg/grefcoco@train", "size=84" })
  check.equal(ids, { "grefcoco_5000_5001_210", "grefcoco_5003_230" }, "with a target")
  check.ok(text:find "2 rows of 3 entries in .*; left out: 1 about nothing in the image", text)
  check.equal(#ids_of("coco", { "several=true", "size=84",
    "data=" .. SETS .. "coco/annotations/instances_val2017.json" }), 6, "COCO")
  check.equal(#ids_of("reasonseg", { "data=" .. SETS .. "ReasonSeg/train", "size=84",
    "sentences=all" }), 3, "ReasonSeg")
  local said, status = mini.run { "recipes/prepare_data.lua", "several=true", "sentences=all",
    "data=" .. SETS .. "refer_seg/refcocog@train", "size=84", "output=" .. place .. "/all_several" }
  check.ok(status ~= 0 and said:find("sentences=all is for one object", 1, true) ~= nil, said)
end)

check.case("a sentence goes with its object, and an expression with any of its objects", function()
  local folder = place .. "/without"
  mini.copy(SETS .. "refer_seg", folder)
  for _, set in ipairs { "refcocog", "grefcoco" } do
    local path = ("%s/%s/instances.json"):format(folder, set)
    local json = files.read_json(path)
    local count = 0
    for _, annotation in ipairs(json.annotations) do
      if annotation.id == 5001 then
        annotation.segmentation = {}
        count = count + 1
      end
    end
    check.equal(count, 1, "the annotation")
    files.write(path, cjson.encode(json))
    local made, output = prepared("without_" .. set, { "several=true", "size=84",
      ("data=%s/%s@train"):format(folder, set) })
    local first = sources.open(made, { split = "train" }):meta(1)
    if set == "refcocog" then
      check.equal({ first.id, first.problem, #cjson.decode(first.solution) },
        { "refcocog_5000", "'the left shape'", 1 }, "the other sentence stays")
      check.ok(output:find("3 rows of 3 entries in", 1, true) ~= nil, output)
    else
      check.equal(first.problem, "'the star'", "the expression about both goes")
    end
    check.ok(output:find "1 about an object whose mask is empty or missing", output)
  end
end)

-- ---- what it makes trains ----
local function ceiling(folder, answer_of, reward)
  local set = sources.open(folder, { split = "train" })
  local least = math.huge
  for i = 1, set:count() do
    local row = set:row(i)
    local text = prompt.response("Here it is.", answer_of(truth.objects(row)))
    least = math.min(least, (reward(text, row.solution, row)))
    row.image:free()
  end
  return least
end

local function as_object(objects)
  local o = objects[1]
  return cjson.encode { bbox = o.bbox, points_1 = o.points[1], points_2 = o.points[2] }
end

local function as_list(objects)
  local list = {}
  for i, o in ipairs(objects) do list[i] = { bbox_2d = o.bbox, point_2d = o.points[1] } end
  if #list == 0 then return "[]" end
  return cjson.encode(list)
end

local function train(recipe, folder)
  local run = folder .. "_run"
  local text, status = mini.run { recipe, "data.train_files=" .. folder, "data.val_files=",
    "data.rollout_batch_size=2", "worker.actor.global_batch_size=2", "worker.rollout.n=2",
    "data.max_response_length=8", "data.resize=224x224", "trainer.max_steps=1",
    "trainer.save_freq=-1", "trainer.save_checkpoint_path=" .. run }
  check.equal(status, 0, text)
  local rows = 0
  for _ in io.lines(run .. "/rollouts.jsonl") do rows = rows + 1 end
  check.equal(rows, 4, "answers")
end

check.case("a true answer earns the whole reward, and a step trains", function()
  local data = "data=" .. SETS .. "refer_seg/refcocog@train"
  local single = prepared("single", { data })
  check.equal(ceiling(single, as_object, seg_strict), 5, "seg_strict")
  train("recipes/refcocog_grpo.lua", single)
  local several = prepared("several", { data, "several=true" })
  check.equal(ceiling(several, as_list, vision_reasoner), 7, "vision_reasoner")
  train("recipes/vision_reasoner_grpo.lua", several)
end)

check.case("data sets with masks", function()
  sz.refshapes.write_dataset(place .. "/shapes", { n = 6, size = 84 }, sz.image.write_png)
  for name, data in pairs { jsonl = place .. "/shapes",
    parquet = "tests/golden/hub_sets/ReasonSeg_test" } do
    local folder = prepared("from_" .. name, { "data=" .. data, "size=168" })
    local set = sources.open(folder, { split = "train" })
    local before = sources.open(data, { split = "train" })
    check.equal(set:count(), before:count(), name .. ": rows")
    check.equal(ceiling(folder, as_object, seg_strict), 5, name)
    for i = 1, set:count() do
      local meta = set:meta(i)
      check.equal(meta.problem, prompt.normalize(before:meta(i).problem), "problem")
      check.equal(#(truth.read(meta.solution)), 4, "a box")
    end
  end
end)

-- ---- the same bytes ----
local function bytes_of(folder)
  local pipe = io.popen(("cd '%s' && find . -type f | sort | xargs sha256sum"):format(folder))
  local text = pipe:read "*a"
  pipe:close()
  return text
end

check.case("threads change nothing", function()
  for _, format in ipairs { "parquet", "jsonl" } do
    local args = { "data=" .. SETS .. "refer_seg/refcocog@train", "format=" .. format, "size=420",
      "rows_per_file=2", "shuffle=true" }
    local first = bytes_of(prepared("one_" .. format, args))
    check.ok(#first > 100, first)
    local words = { "recipes/prepare_data.lua", ("output=%s/four_%s"):format(place, format) }
    for _, word in ipairs(args) do words[#words + 1] = word end
    local command = ("'%s' --threads 4 '%s' 2>&1"):format(host.executable,
      table.concat(words, "' '"))
    local pipe = io.popen(command)
    local text = pipe:read "*a"
    pipe:close()
    check.equal(bytes_of(("%s/four_%s"):format(place, format)), first, format .. ": " .. text)
  end
end)

-- A copy of refer_seg, and the one of its images that tests take away.
local function copy_refer()
  local folder = place .. "/refer_seg"
  if not files.exists(folder .. "/.") then mini.copy(SETS .. "refer_seg", folder) end
  local image = folder .. "/images/train2014/COCO_train2014_000000000002.jpg"
  return "data=" .. folder .. "/refcocog@train", image
end

check.case("a run that stopped goes on and ends in the same bytes", function()
  local data, image = copy_refer()
  local whole = bytes_of(prepared("whole", { data, "rows_per_file=1", "size=84" }))
  for _, format in ipairs { "parquet", "jsonl" } do
    local args = { data, "rows_per_file=1", "size=84", "format=" .. format }
    local clean = bytes_of(prepared("clean_" .. format, args))
    os.rename(image, image .. ".away")
    local text, status, folder = prepare("stopped_" .. format, args)
    check.equal(status, 1, text)
    check.ok(text:find("000000000002.jpg: No such file", 1, true) ~= nil, text)
    check.ok(not files.exists(folder .. "/data") and not files.exists(folder .. "/data.jsonl"),
      "nothing looks whole")
    check.raises(function() return sources.open(folder, { split = "train" }) end, "not finished",
      "no source reads it")
    os.rename(image .. ".away", image)
    text, status = prepare("stopped_" .. format, args)
    check.equal(status, 0, text)
    check.ok(text:find("%d of 4 parts are there from a run before") ~= nil, text)
    check.equal(bytes_of(folder), clean, format)
    if format == "parquet" then check.equal(clean, whole, "once more") end
  end
end)

check.case("a run that stopped before its first part starts again", function()
  local data, image = copy_refer()
  os.rename(image, image .. ".away")
  for _, format in ipairs { "parquet", "jsonl" } do
    local args = { data, "size=84", "format=" .. format }
    local text, status, folder = prepare("first_" .. format, args)
    check.equal(status, 1, text)
    check.ok(not files.exists(folder .. "/."), format .. ": nothing is left")
    os.rename(image .. ".away", image)
    prepared("first_" .. format, args)
    os.rename(image, image .. ".away")
  end
  os.rename(image .. ".away", image)
end)

check.case("a part of other rows is not gone on with", function()
  local data, image = copy_refer()
  os.rename(image, image .. ".away")
  local args = { data, "rows_per_file=1", "size=84" }
  local text, status = prepare("other_rows", args)
  check.ok(status == 1 and text:find("%d of 4 parts are kept: the same command goes on") ~= nil,
    text)
  os.rename(image .. ".away", image)
  args[3] = "size=112"
  text, status = prepare("other_rows", args)
  check.ok(status == 1 and text:find("it holds a part of other rows", 1, true) ~= nil, text)

  -- Splits of the same files, which may have as many rows.
  local prints = {}
  for i, split in ipairs { "train", "val" } do
    local name = SETS .. "refer_seg/refcocog@" .. split
    prints[i] = entries.open({ data = name, sentences = "first" }):fingerprint()
  end
  check.ok(prints[1] ~= prints[2], "another split")
end)

check.case("two runs do not write to one folder", function()
  local args = { "data=" .. SETS .. "refer_seg/refcocog@train", "rows_per_file=1", "size=600" }
  local words = { "recipes/prepare_data.lua", "output=" .. place .. "/both" }
  for _, word in ipairs(args) do words[#words + 1] = word end
  local command = ("'%s' '%s'"):format(host.executable, table.concat(words, "' '"))
  local pipe = io.popen(("{ %s & %s & wait; } 2>&1"):format(command, command))
  local text = pipe:read "*a"
  pipe:close()
  local done = select(2, text:gsub("4 rows of 4 entries in", ""))
  local _, refused = text:gsub("both: another run is writing there; name another folder", "")
  local _, late = text:gsub("both: it holds a finished set already", "")
  check.equal({ done, refused + late }, { 1, 1 }, text)
  check.equal(bytes_of(place .. "/both"), bytes_of(prepared("alone", args)), "the rows")
end)

-- ---- SAM2 ----
check.case("objects that SAM2 does not find are left out", function()
  sz.refshapes.write_dataset(place .. "/filter", { n = 8, size = 224 }, sz.image.write_png)
  local args = { "data=" .. place .. "/filter", "size=224", "sam2_path=models/tiny/sam2" }
  local kept = {}
  for _, least in ipairs { 0.01, 0.6, 1 } do
    args[4] = "sam2_filter=" .. least
    local text = prepare("filter_" .. least, args)
    kept[#kept + 1] = tonumber(text:match "(%d+) rows of 8 entries in") or -1
    if least == 1 then check.ok(text:find("8 about an object below sam2_filter", 1, true), text) end
  end
  check.equal({ kept[1], kept[3] }, { 8, 0 }, "the ends")
  check.ok(kept[2] >= 6, kept[2] .. " of 8 with an IoU of 0.6: the embedded SAM2 knows shapes")
end)

-- ---- mistakes ----
check.case("mistakes are one line", function()
  local data = "data=" .. SETS .. "refer_seg/refcocog@train"
  local function refused(name, args, status, pattern)
    local text, got = prepare(name, args)
    check.equal(got, status, text)
    check.ok(text:find(pattern) ~= nil, ("%s: %s"):format(pattern, text))
    check.ok(not text:find "traceback", text)
  end
  refused("a", {}, 2, "data is missing: name annotations")
  refused("b", { data, "no_target=true" }, 2, "no_target=true needs several=true")
  refused("c", { data, "sam2_filter=0.6" }, 2, "sam2_filter needs SAM2")
  refused("c", { data, "sam2_path=models/tiny/sam2" }, 2, "sam2_path is for sam2_filter: say how")
  refused("d", { data, "sam2_filter=0.6", "sam2_path=/none" }, 2, "sam2_path: /none: there is no")
  refused("e", { "data=tests/golden/hub_sets/refCOCOg_2k_840" }, 1, "row 1: the row has no mask")
  check.ok(not files.exists(place .. "/e/."), "a run that made nothing leaves no folder")
  refused("f", { "data=refshapes" }, 1, "generated images are training rows already")

  -- A folder that is not ours to write.
  prepared("done", { data, "size=84" })
  refused("done", { data, "size=84" }, 1, "done: it holds a finished set already; name another")
  files.make_dir(place .. "/other")
  files.write(place .. "/other/notes.txt", "mine")
  refused("other", { data }, 1, "other: it holds other files; name another folder")
  check.equal(files.read(place .. "/other/notes.txt"), "mine", "untouched")
end)

check.case("rows that cannot be read may be left out", function()
  sz.refshapes.write_dataset(place .. "/bad", { n = 4, size = 84 }, sz.image.write_png)
  local first = cjson.decode(files.read(place .. "/bad/data.jsonl"):match "^[^\n]+")
  files.write(place .. "/bad/" .. first.image, "no image")
  local text, status = prepare("bad_stop", { "data=" .. place .. "/bad" })
  check.equal(status, 1, text)
  check.ok(text:find("on_bad_row=skip leaves such rows out", 1, true) ~= nil, text)
  text, status = prepare("bad_skip", { "data=" .. place .. "/bad", "on_bad_row=skip", "size=84" })
  check.equal(status, 0, text)
  check.ok(text:find("3 rows of 4 entries in .*; left out: 1 that cannot be read") ~= nil, text)
end)

mini.remove()
check.finish()
