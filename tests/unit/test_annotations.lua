-- test_annotations.lua - annotations of COCO, refer, gRefCOCO and ReasonSeg (data/annotations):
-- every mask, box and text of the miniature sets is what the original packages read
-- (golden/make_annotations.py). Names and splits, damaged files, pickles of all protocols.

local annotations = require "segzero.data.annotations"
local check = require "tests.support.check"
local ffi = require "ffi"
local files = require "segzero.core.files"
local mask_of = require "segzero.formats.mask"
local mask_runs = require "segzero.formats.mask_runs"
local mini = require "tests.support.miniature"
local pickle_plain = require "segzero.formats.pickle_plain"
local sources = require "segzero.data.sources"
local subset = require "segzero.data.checks.subset"

local SETS = "tests/golden/annotations/"
local expected = files.read_json(SETS .. "expected.json")
local cjson = require "cjson"
local place = mini.folder()

-- ---- masks as run lengths over their rows, first outside ----
local function rows_of(value, width, height)
  return mask_runs.pack(mask_of.read(value, { width = width, height = height })).runs
end

local function ignored(entry, width, height)
  return entry.ignore and rows_of(entry.ignore, width, height) or cjson.null
end

-- ---- the layouts ----
check.case("COCO: every category of every image", function()
  local set = annotations.open(SETS .. "coco/annotations/instances_val2017.json")
  local want = expected.coco
  check.equal(#want, 6, "expected entries")
  check.equal(set:count(), #want, "entries")
  check.ok(set.several, "any number of objects")
  for i, w in ipairs(want) do
    local entry = set:meta(i)
    check.equal(entry.id, w.id, "id")
    check.equal(entry.texts, { w.text }, "text")
    check.equal(entry.ann_id, w.ann_id, "annotations")
    check.equal({ entry.width, entry.height }, w.size, "size")
    check.ok(files.exists(entry.image), entry.image)
    for j, object in ipairs(entry.objects) do check.near(object.box, w.boxes[j], 0, "box") end
    check.equal(#entry.objects, #w.boxes, "objects")
    check.equal(rows_of(annotations.mask(entry), w.size[1], w.size[2]), w.mask, w.id .. ": mask")
    check.equal(ignored(entry, w.size[1], w.size[2]), w.ignore, w.id .. ": ignore")
  end
  check.equal(#set.notes, 1, "a note about a category that is a crowd alone")
end)

local function check_refer(key)
  local set = annotations.open(SETS .. "refer_seg/" .. key)
  local want = expected[key]
  check.equal(set:count(), #want, key .. ": entries")
  for i, w in ipairs(want) do
    local entry = set:meta(i)
    local name = key .. " " .. w.id
    check.equal(entry.id, w.id, "id")
    check.equal(entry.texts, w.texts, name .. ": texts")
    check.equal(set:texts(i), #w.texts, name .. ": number of texts")
    check.equal(entry.ann_id, w.ann_id, name .. ": annotations")
    check.equal(#entry.objects, w.objects, name .. ": objects")
    check.ok(files.exists(entry.image), entry.image)
    if w.mask ~= cjson.null then
      check.equal(rows_of(annotations.mask(entry), entry.width, entry.height), w.mask, name)
    else
      check.equal(rows_of(annotations.mask(entry), 4, 3), { 12 }, name .. ": nothing")
    end
  end
  return set, #want
end

check.case("refer: refs of protocols 0 and 2, with numbers of numpy", function()
  local total = 0
  for _, key in ipairs { "refcocog@train", "refcocog@val", "refcocog@test", "refcoco+@train" } do
    local set, n = check_refer(key)
    check.ok(not set.several, "one object each")
    total = total + n
  end
  check.equal(total, 8, "refs")
end)

check.case("gRefCOCO: no, one and several objects", function()
  for _, key in ipairs { "grefcoco@train", "grefcoco@val" } do
    local set, n = check_refer(key)
    check.ok(set.several, "any number of objects")
    check.equal(n, 3, "refs")
  end
end)

check.case("ReasonSeg: targets and ignored regions as LISA draws them", function()
  local seen = 0
  for _, split in ipairs { "train", "val" } do
    local set = annotations.open(SETS .. "ReasonSeg@" .. split, { purpose = split })
    for i = 1, set:count() do
      local entry = set:meta(i)
      local w = expected.ReasonSeg[entry.id]
      local texts = split == "train" and w.texts or { w.texts[1] }
      check.equal(entry.texts, texts, entry.id .. ": texts")
      check.equal(set:texts(i), #texts, entry.id .. ": number of texts")
      check.equal(entry.is_sentence, w.is_sentence, "is_sentence")
      local width = w.size[1]
      local height = w.size[2]
      check.equal(rows_of(annotations.mask(entry), width, height), w.mask, entry.id .. ": mask")
      check.equal(ignored(entry, width, height), w.ignore, entry.id .. ": ignore")
      seen = seen + 1
    end
  end
  check.equal(seen, 5, "images")
end)

-- ---- names ----
local function count(name, options) return annotations.open(SETS .. name, options):count() end

check.case("names and splits", function()
  check.equal(count "coco@val2017", 6, "COCO's root")
  check.equal(count "coco@val", 6, "a year may be left out")
  check.equal(count "refer_seg/refcocog", 2, "evaluation takes val")
  for purpose, split in pairs { heldout = "val", test = "test" } do
    local set = annotations.open(SETS .. "refer_seg/refcocog", { purpose = purpose })
    check.equal(set.split, split, purpose)
    check.ok(set.notes[1]:find("no split is named, so " .. split .. " is taken of test, train, val",
      1, true), set.notes[1])
  end
  check.equal(#annotations.open(SETS .. "refer_seg/refcocog@val", { purpose = "test" }).notes, 0,
    "a named split needs no note")
  check.equal(count("refer_seg/refcocog/", { purpose = "train" }), 4, "training takes train")
  check.equal(count "refer_seg/refcocog/refs(google).p@train", 2, "refs by the name of the file")
  check.equal(count "refer_seg/refcoco+@testA", 2, "testA and testAB")
  check.equal(count "refer_seg/refcoco+@testB", 2, "testB and testAB")
  check.equal(count "refer_seg/refcoco+@test", 3, "all that have test in their name")
  check.equal(count "ReasonSeg/val", 3, "a folder of a split")
  check.equal(count("ReasonSeg", { purpose = "train" }), 2, "training takes train")
  check.equal(count("ReasonSeg", { purpose = "heldout" }), 3, "held-out rows are val")
  check.equal(count("coco", { purpose = "heldout" }), 6, "of COCO as well")
  for name, message in pairs {
    ["refer_seg/refcocog@minival"] = "refs%(umd%)%.p: there is no split 'minival'; there is: test, "
      .. "train, val$",
    ["refer_seg"] = "refer_seg has the data sets grefcoco, refcoco%+, refcocog: choose one with "
      .. ".*refer_seg/grefcoco@val$",
    ["ReasonSeg"] = "ReasonSeg has the splits train, val: choose one with .*ReasonSeg@train$",
    ["ReasonSeg@test"] = "ReasonSeg has no split 'test'; there is: train, val$",
    ["coco@train"] = "coco has no split 'train'; there is: val2017$",
    ["coco/annotations/instances_val2017.json@val"] = "is one file and has no splits, so no 'val'$",
  } do
    check.raises(function() count(name) end, message, name)
  end
end)

check.case("a set without its bad rows still has ignore masks and a split", function()
  local base = sources.open(SETS .. "ReasonSeg/train", { split = "heldout" })
  local rest = subset.new(base, function(i) return i == 1 end)
  check.equal({ base.ignore_masks, base.split }, { true, "train" }, "the set")
  check.equal({ rest.ignore_masks, rest.split, rest:count() }, { true, "train", base:count() - 1 },
    "the rest")
end)

check.case("a folder by a link, and from inside", function()
  local unistd = require "posix.unistd"
  local here = unistd.getcwd()
  unistd.link(here .. "/" .. SETS .. "refer_seg", place .. "/linked", true)
  unistd.link(here .. "/" .. SETS .. "refer_seg/refcocog", place .. "/mine", true)
  local linked = annotations.open(place .. "/linked/refcocog@val")
  check.equal(linked:meta(1).id, "refcocog_3", "a link above")
  local folder = here .. "/" .. SETS .. "refer_seg/images/train2014"
  local set = annotations.open(place .. "/mine@val", { image_dir = folder })
  check.equal(set:meta(1).id, "mine_3", "named by the link")
  for from, name in pairs { ["refer_seg"] = "refcocog@val", ["refer_seg/refcocog"] = ".@val" } do
    unistd.chdir(here .. "/" .. SETS .. from)
    local ok, entry = pcall(function() return annotations.open(name):meta(1) end)
    unistd.chdir(here)
    check.equal(ok and entry.id, "refcocog_3", name .. " in " .. from)
  end
end)

check.case("a folder of refer without its refs says so", function()
  os.execute("mkdir -p " .. place .. "/bare")
  mini.copy(SETS .. "refer_seg/refcocog/instances.json", place .. "/bare/instances.json")
  local sources = require "segzero.data.sources"
  for _, name in ipairs { "/bare", "/bare@val" } do
    check.raises(function() sources.open(place .. name, { split = "train" }) end,
      "data set .*" .. name .. ": there is instances%.json, but no refs%(%*%)%.p or grefs", name)
  end
end)

check.case("where the images are", function()
  os.execute("mkdir -p " .. place .. "/moved")
  mini.copy(SETS .. "refer_seg/refcocog", place .. "/moved/")
  local name = place .. "/moved/refcocog@val"
  check.raises(function() annotations.open(name) end,
    "no folder has the image COCO_train2014_000000000001%.jpg: tried .*; set data%.image_dir$",
    "no images")
  local folder = SETS .. "refer_seg/images/train2014"
  local entry = annotations.open(name, { image_dir = folder }):meta(1)
  check.equal(entry.image, folder .. "/COCO_train2014_000000000001.jpg", "data.image_dir")
end)

-- ---- damaged files ----
local function write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

check.case("a COCO file that is cut off anywhere, or damaged, is one line", function()
  local text = files.read(SETS .. "coco/annotations/instances_val2017.json")
  local instances = require "segzero.data.annotations.instances"
  local path = place .. "/instances_cut.json"
  local refused = 0
  for length = 0, #text - 1, 7 do
    write(path, text:sub(1, length))
    local ok, why = pcall(instances.open, path)
    check.ok(not ok and tostring(why):sub(1, #path) == path and not why:find "\n", tostring(why))
    refused = refused + 1
  end
  check.ok(refused > 300, "many places")
  for from, to in pairs {
    ['"id": 1,'] = '"id": NaN,', ['"id": 102'] = '"id": NaN',
    ['"id": 5003'] = '"id": "x"', ['"image_id": 101'] = '"image_id": 1.5',
    ['"annotations"'] = '"other"', ['"id": 101'] = '"id": 100', ['"images": ['] = '"images": [3, ',
  } do
    local at, stop = text:find(from, 1, true)
    write(path, text:sub(1, at - 1) .. to .. text:sub(stop + 1))
    local ok, why = pcall(instances.open, path)
    check.ok(not ok and why:sub(1, #path) == path and not why:find "\n", tostring(why))
  end
end)

check.case("annotations that are no boxes and no masks are named", function()
  os.execute("mkdir -p " .. place .. "/bad/annotations")
  mini.copy(SETS .. "coco/val2017", place .. "/bad/")
  local text = files.read(SETS .. "coco/annotations/instances_val2017.json")
  local path = place .. "/bad/annotations/instances_val2017.json"
  local function broken(from, to)
    write(path, (text:gsub(from, to, 1)))
    return function() annotations.open(path):meta(1) end
  end
  check.raises(broken('"bbox": %[[^%]]*%]', '"bbox": [1, 2]'),
    "annotation 5000: bbox is not %[x, y, width, height%]$", "a box of two numbers")
  check.raises(broken('"bbox": %[[^%]]*%]', '"bbox": [1, 2, "a", 4]'),
    "annotation 5000: number 3 of bbox is a string$", "a text in a box")
  check.raises(broken('"segmentation": %[%[[^%]]*%], %[[^%]]*%]%]', '"segmentation": ["a"]'),
    "annotation 5000: segmentation is a list of string", "a segmentation of texts")
  check.raises(broken('"name": "person"', '"name": "person", "id": 77'), "there is no category 1$",
    "no such category")
end)

check.case("refs that are cut off or hostile are one line", function()
  local refer = require "segzero.data.annotations.refer"
  local names = { "refcocog/refs(umd).p", "refcoco+/refs(unc).p", "grefcoco/grefs(unc).json" }
  for _, name in ipairs(names) do
    local text = files.read(SETS .. "refer_seg/" .. name)
    local path = place .. "/" .. name:match "[^/]*$"
    local refused = 0
    for length = 0, #text - 2, 13 do
      write(path, text:sub(1, length))
      local ok, why = pcall(refer.open, { file = path, title = "x" })
      check.ok(not ok and why:sub(1, #path) == path and not why:find "\n", tostring(why))
      refused = refused + 1
    end
    check.ok(refused > 50, "many places")
  end
  local path = place .. "/refs(unc).p"
  for text, message in pairs {
    ["cos\nsystem\n(S'true'\ntR."] = "the file calls os%.system, which is not read: only dicts,",
    ["cnumpy.core.multiarray\n_reconstruct\n."] = "calls numpy%.core%.multiarray%._reconstruct, ",
    ["I1\n."] = "the pickle is not a list of refs",
    ["(lp0\nI1\na."] = "ref 1 has no split",
    ["(lp0\n(dp1\nS'split'\nS'val'\nsS'ann_id'\nI3\nsa."] = "ref 1 has no image_id",
    ["(lp0\n(dp1\nS'split'\nS'val'\nsa."] = "ref 1 has no ann_id",
    ["(lp0\n(dp1\nS'split'\nS'val'\nsS'ann_id'\nI3\nsS'image_id'\nI3\nsa."] = "ref 1 has no ref_id",
    ["(lp0\n(dp1\nS'split'\nS'val'\nsS'ann_id'\nI3\nsS'image_id'\nI3\nsS'ref_id'\nI4\n"
      .. "sS'sentences'\n(l(dS'sent'\nS'caf\\xe9'\nsasa."] = "sentence 1 of ref 1 is not UTF%-8",
    ["(l."] = "there are no refs",
  } do
    write(path, text)
    check.raises(function() refer.open { file = path, title = "x" } end, message, message)
  end
end)

check.case("JSON files of ReasonSeg that are damaged are named", function()
  local folder = place .. "/val"
  os.execute("mkdir -p " .. folder)
  local path = folder .. "/x.json"
  local start = '{"text": ["a"], "shapes": '
  for text, message in pairs {
    [start .. '[{"label": "target"}]}'] = "x%.json: shape 1 has no points$",
    [start .. '[{"points": [[1, 2]]}]}'] = "x%.json: shape 1 has no label$",
    [start .. '[{"label": "target", "points": [[1, 2], [1]]}]}'] = "point 2 of shape 1 is no",
    ['{"text": [], "shapes": []}'] = "x%.json: there is no text$",
    ['{"text": ["a"], "shapes'] = "x%.json: not valid JSON",
  } do
    write(path, text)
    local reasonseg = require "segzero.data.annotations.reasonseg"
    check.raises(function() reasonseg.open { folder = folder }:meta(1) end, message, message)
  end
end)

-- ---- pickles ----
check.case("a pickle of plain values reads the same in every protocol", function()
  local seen = 0
  for protocol = 0, 5 do
    local text = files.read(("%spickles/plain%d.p"):format(SETS, protocol))
    local list = pickle_plain.read("plain.p", text)
    check.equal(list.n, 2, "a list")
    check.ok(list[1] == list[2], "one object, met twice")
    local v = list[1]
    check.equal(v.text, "it's \"q\" \n \195\169 \226\152\131 \240\159\152\128 \\", "text")
    check.equal({ unpack(v.tuple) }, { "a", 2, 3.5, -7 }, "tuple")
    check.equal(v.none, nil, "None")
    check.equal({ v.yes, v.no }, { true, false }, "booleans")
    check.equal({ v.big, v.negative }, { 2 ^ 40, -2 ^ 40 }, "long numbers")
    check.equal({ v.int64, v.float32, v.uint8, v.bool }, { 77, 1.5, 200, true }, "numpy")
    check.equal(v.bytes, "\255\0a\195\169", "bytes")
    check.equal({ v.kind, v.n }, { "a key", "another" }, "keys that lists use")
    check.equal({ v[3], v[true] }, { "three", "yes" }, "keys that are no texts")
    check.equal({ v.ordered.x, v.ordered.y }, { 1, 2 }, "OrderedDict")
    check.equal({ v.empty_list.n, next(v.empty_dict), v.empty_tuple.n }, { 0, nil, 0 }, "empty")
    check.equal(v.infinite, math.huge, "infinity")
    seen = seen + 1
  end
  check.equal(seen, 6, "protocols")
end)

check.case("pickles that are no plain values are refused", function()
  for text, message in pairs {
    ["(dp0\n(I1\nI2\ntI3\ns."] = "pickle, byte 16: a tuple is a key of a dict$",
    ["S'a\n."] = "a text without quotes$",
    ["S'\\q'\n."] = "an escape \\q in a text$",
    ["Iabc\n."] = "'abc' is no number$",
    ["I0x10\n."] = "'0x10' is no number$",
    ["V\\UFFFFFFFF\n."] = "a character FFFFFFFF is none of Unicode$",
    ["g3\n."] = "memo 3 is empty$",
    ["cnumpy\ndtype\n(S'O8'\ntR."] = "numpy%.dtype%(O8%) is no number$",
    ["cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'i8'\ntRS'abc'\ntR."] =
      "a scalar of numpy without its type or bytes$",
    ["(ios\nsystem\n."] = "the file calls os%.system",
    ["P12\n."] = "opcode PERSID is not read$",
    ["I1\nQ."] = "a persistent id, which is not read$",
  } do
    check.raises(function() pickle_plain.read("x.p", text) end, "^x%.p: .*" .. message, message)
  end
end)

-- ---- OpenCV's polygons ----
check.case("a polygon is filled as OpenCV fills it", function()
  local fill = require "segzero.formats.polygon_fill"
  local cases = files.read_json(SETS .. "polygons.json")
  check.equal(#cases, 60, "polygons")
  for i, c in ipairs(cases) do
    local out = ffi.new("uint8_t[?]", c.width * c.height)
    fill.draw(c.points, c.width, c.height, out, 49)
    for at = 0, c.width * c.height - 1 do
      if out[at] == 0 then out[at] = 48 end
    end
    check.equal(ffi.string(out, c.width * c.height), c.pixels, "polygon " .. i)
  end
  check.raises(function() fill.draw({}, 4, 4, nil, 1) end, "a polygon has no points$", "no points")
  check.raises(function() fill.draw({ { 1 } }, 4, 4, nil, 1) end, "point 1 of a polygon is", "no y")
end)

mini.remove()
check.finish()
