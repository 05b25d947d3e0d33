-- test_data_check.lua - data sets are checked before the first step: lines, ids, solutions, boxes,
-- images, masks and prompts (data/checks/check.lua, train/run/data_sets.lua), and what is left out.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local check_rows = require("segzero.data.checks.check").rows
local data = require "segzero.data"
local data_sets = require "segzero.train.run.data_sets"
local files = require "segzero.core.files"
local image = require "segzero.formats.image"
local rows_of = require "segzero.data.rows"
local sources = require "segzero.data.sources"

local place = mini.folder()
require("posix.stdlib").setenv("XDG_CACHE_HOME", place .. "/cache")

local SOLUTION = "<box>(10,10),(50,40)</box><points>(20,20),(30,30)</points>"
image.new(84, 84):save(place .. "/square.png")
image.new(168, 84):save(place .. "/wide.png")
image.new(840, 840):save(place .. "/seg_zero.png")

-- A row of columns that are all right, changed.
local function row(i, changes)
  local columns = { id = "r" .. i, problem = "the dot", solution = SOLUTION, image = "square.png" }
  for name, value in pairs(changes or {}) do
    columns[name] = value
    if value == "none" then columns[name] = nil end
  end
  return cjson.encode(columns)
end

local written = 0

-- A data set of these lines; returns its file.
local function write(lines)
  written = written + 1
  local path = ("%s/set%d.jsonl"):format(place, written)
  files.write(path, table.concat(lines, "\n") .. "\n")
  return path
end

-- The checked set, and what was said. options change those of check.rows.
local function checked(path, options)
  local said = {}
  local all = { name = "data.train_files", key = "data.on_bad_row", on_bad_row = "error",
    reward = "seg_strict", masks = true,
    say = function(text) said[#said + 1] = text end }
  for name, value in pairs(options or {}) do all[name] = value end
  if all.reward == false then all.reward = nil end
  local set = check_rows(data.open(path, { check = false }), all)
  return set, table.concat(said, "\n")
end

-- The error's text without the folder.
local function refused(lines, options)
  local ok, why = pcall(checked, write(lines), options)
  if ok then return "accepted" end
  return (tostring(why):gsub(place:gsub("%p", "%%%0") .. "/", ""))
end

local function finds(text, part, name)
  check.ok(text:find(part, 1, true), ("%s: '%s' in %s"):format(name, part, text))
end

-- ---- lines ----
local function first_error(text)
  written = written + 1
  local path = ("%s/set%d.jsonl"):format(place, written)
  files.write(path, text)
  local ok, why = pcall(data.open, path)
  return ok and data.open(path) or why
end

check.case("a byte order mark is skipped, one of UTF-16 is named", function()
  local set = first_error("\239\187\191" .. row(1) .. "\n")
  check.equal({ set:count(), set:row(1).id }, { 1, "r1" }, "UTF-8")
  finds(first_error "\255\254{\0", "the byte order mark says UTF-16, expected UTF-8", "UTF-16")
end)

check.case("a line that is not UTF-8 is an error with its number", function()
  local bad = row(3, { problem = "d\233j\224 vert" })
  local why = first_error(row(1) .. "\n\n" .. bad .. "\n")
  check.ok(why:find ":3: not UTF%-8: byte %d+ %(0xE9%)", why)
  local GOOD = { "d\195\169j\195\160", "\226\130\172", "\240\159\154\151", "\237\159\191" }
  local BAD = { "\192\128", "\237\160\128", "\244\144\128\128", "\226\130", "\128" }
  for _, good in ipairs(GOOD) do
    check.equal(first_error(row(1, { problem = good })):row(1).problem, good, "UTF-8")
  end
  for _, bad_text in ipairs(BAD) do
    local message = first_error((row(1, { problem = "x" }):gsub('"x"', '"' .. bad_text .. '"')))
    finds(tostring(message), ":1: not UTF-8: byte ", "no UTF-8")
  end
end)

check.case("a lone surrogate is named", function()
  local function said(escape) return first_error((row(1):gsub("the dot", escape))) end
  finds(said "x \\ud83d", "has a lone surrogate: \\ud83d without its other half", "high")
  finds(said "\\udE97 x", "has a lone surrogate: \\udE97 without", "low")
  finds(said "\\ud83d\\u0041", "has a lone surrogate: \\ud83d without", "high and a letter")
  check.equal(said("\\ud83d\\ude97"):row(1).problem, "\240\159\154\151", "both halves")
  check.equal(said("\\\\ud83d"):row(1).problem, "\\ud83d", "an escaped backslash")
end)

check.case("ids keep their digits", function()
  local function id(number)
    local line = row(1, { id = "none" }):gsub("^{", '{"id":' .. number .. ",")
    return first_error(line):row(1).id
  end
  for _, number in ipairs { "12345678901234567890", "1e3", "1.50", "-7", "0", "7E+2" } do
    check.equal(id(number), number, number)
  end
  local set = first_error(row(1, { id = "none" }):gsub("^{",
    '{"other":{"id":1,"s":"}\\"id\\":2"},"i\\u0064": 90071992547409931 ,') .. "\n")
  local digits = "90071992547409931"
  check.equal({ set:row(1).id, set:row(1).columns.id }, { digits, digits },
    "nested, in a string, escaped")
  check.equal(first_error(row(1, { id = "none" })):row(1).id, "1", "the row's number without an id")
  check.equal(id "[1,null]", "[1, null]", "a list")
  check.equal(id "true", "True", "a boolean")
end)

check.case("a long set needs 20 bytes a row", function()
  local path
  do
    local lines = {}
    for i = 1, 20000 do lines[i] = row(i) end
    path = write(lines)
  end
  collectgarbage()
  local before = collectgarbage "count"
  local set = data.open(path, { check = false })
  collectgarbage()
  local grown = collectgarbage "count" - before
  check.ok(grown < 1500, ("%.0f KB"):format(grown))
  check.equal({ set:count(), set:meta(20000).id, set:meta(1).id }, { 20000, "r20000", "r1" },
    "rows")
end)

check.case("a file that changes is noticed", function()
  local path = write { row(1), row(2), row(3) }
  local set = data.open(path, { check = false })
  check.equal(set:row(1).id, "r1", "before")
  local file = io.open(path, "a")
  file:write(row(3), "\n")
  file:close()
  check.raises(function() set:row(3) end, "has changed since it was opened", "longer")
end)

-- ---- the order of an epoch ----
check.case("the order of an epoch is what it was", function()
  check.equal(data.order(10, 42, 1), { 8, 5, 1, 10, 3, 6, 2, 9, 4, 7 }, "10 rows")
  local p = data.permutation(1000, 7, 3)
  local list = data.order(1000, 7, 3)
  local same = 0
  for i = 1, 1000 do
    if p[i] == list[i] then same = same + 1 end
  end
  check.equal(same, 1000, "the array is the list")
end)

-- ---- what is wrong with a row ----
local MESSAGES = {
  { { image = "gone.png" }, "gone.png: No such file or directory" },
  { { image = "." }, "not a file" },
  { { solution = "somewhere" }, "the reward seg_strict reads <box>" },
  { { solution = "<box>(10,10),(50,40)</box>" }, "the reward seg_strict reads <box>" },
  { { solution = '[{"bbox_2d": [1,2,3,4], "point_2d": [2,3]}]' },
    "the solution is a list of objects, which the reward seg_strict does not read" },
  { { solution = "<box>(50,10),(10,40)</box><points>(20,20),(30,30)</points>" },
    "the box [50,10,10,40] has its corners in the wrong order" },
  { { solution = "<box>(10,10),(10,40)</box><points>(20,20),(30,30)</points>" },
    "the box [10,10,10,40] has its corners in the wrong order" },
  { { solution = "<box>(10,10),(85,40)</box><points>(20,20),(30,30)</points>" },
    "the box [10,10,85,40] leaves the 84 x 84 pixels" },
  { { solution = "<box>(10,10),(84,40)</box><points>(20,20),(30,85)</points>" },
    "the point [30,85] leaves the 84 x 84 pixels" },
  { { width = 84, height = 100 }, "has 84 x 84 pixels, the columns width and height say 84 x 100" },
  { { img_width = 80, img_height = 84 }, "the columns img_width and img_height say 80 x 84" },
}

check.case("each fault of a row is named with its line", function()
  for _, case in ipairs(MESSAGES) do
    local why = refused { row(1), row(2, case[1]) }
    finds(why, case[2], "the fault")
    check.ok(why:find "^set%d+%.jsonl:2: ", "the line: " .. why)
    finds(why, "(1 of 2 rows; data.on_bad_row=skip leaves it out)", "the cure")
    check.ok(not why:find "\n", "one line")
  end
end)

check.case("rows that are right", function()
  local lines = { row(1), row(2, { image = "seg_zero.png", img_width = 640, img_height = 480 }),
    row(3, { width = 84, height = 84 }), row(4, { id = "none" }), row(5, { id = "none" }),
    row(6, { solution = "<box>(0,0),(84,84)</box><points>(0,0),(84,84)</points>" }) }
  check.equal(checked(write(lines)):count(), 6, "all rows")
end)

check.case("a reward of the user's own is not judged", function()
  check.equal(checked(write { row(1, { solution = "a mountain" }) }, { reward = false }):count(), 1,
    "any solution")
end)

check.case("evaluation takes a box, a list or a mask", function()
  local list = '[{"bbox_2d": [1,2,30,40], "point_2d": [2,3]}]'
  local evaluation = { reward = "" }
  check.equal(checked(write { row(1), row(2, { solution = list }) }, evaluation):count(), 2, "both")
  finds(refused({ row(1, { solution = "?" }) }, evaluation),
    'the row has no mask and its solution no box: "?"', "neither")
  finds(refused({ row(1, { solution = list:gsub("30", "90") }) }, evaluation),
    "the box [1,2,90,40] leaves the 84 x 84 pixels", "the list's boxes")
end)

check.case("ids are unique", function()
  local why = refused { row(1), row(2), row(1) }
  check.ok(why:find "^set%d+%.jsonl:3: the id 'r1' is also that of set%d+%.jsonl:1 ", why)
end)

check.case("masks", function()
  image.new(84, 84):save(place .. "/empty.png")
  local img = image.new(84, 84)
  img:pixels()[5] = 1
  img:save(place .. "/mask.png")
  local full = { { 1, 1, 60, 1, 60, 60 } }
  check.equal(checked(write { row(1, { mask = "mask.png" }), row(2, { mask = full }),
    row(3, { mask = { size = { 84, 84 }, counts = { 1, 7055 } } }) }):count(), 3, "good ones")
  for want, mask in pairs {
    ["the mask empty.png is empty: it has no pixel but 0"] = "empty.png",
    ["the mask wide.png has 168 x 84 pixels, the image 84 x 84"] = "wide.png",
    ["nothing.png: No such file or directory"] = "nothing.png",
    ["the mask (polygons) is empty"] = { { 100, 100, 120, 100, 120, 120 } },
    ["the mask (run lengths) is empty"] = { size = { 84, 84 }, counts = { 7056 } },
    ["the mask (run lengths) has 2 x 84 pixels"] = { size = { 84, 2 }, counts = { 1, 167 } },
  } do
    finds(refused { row(1, { mask = mask }) }, want, "a bad mask")
  end
  local unread = { masks = false }
  check.equal(checked(write { row(1, { mask = "nothing.png" }) }, unread):count(), 1,
    "masks that nobody reads")
end)

check.case("SAM2 is trained on masks that hold something", function()
  local mask_scenes = require "segzero.data.refshapes.mask_scenes"
  local path = write { row(1, { mask = "mask.png" }), row(2, { mask = "empty.png" }),
    row(3, { mask = "mask.png" }) }
  local options = { train_files = path, val_files = "" }
  check.raises(function() mask_scenes.open(options) end, ":2: the mask empty.png is empty", "error")
  options.on_bad_row = "skip"
  local said = {}
  local train, held = mask_scenes.open(options, function(text) said[#said + 1] = text end)
  check.equal({ train.count(), held.count(), #said }, { 1, 1, 1 }, "left out, and said")
end)

-- ---- all of them at once ----
local MANY = {
  row(1), row(2, { image = "a.png" }), "no JSON", row(4, { image = "b.png" }),
  row(5, { image = "c.png" }), row(6, { image = "d.png", solution = "?" }), row(1),
}

check.case("a summary says what is wrong, how often and where", function()
  local why = refused(MANY)
  local number = why:match "set(%d+)%.jsonl: "
  local first = why:match "^[^\n]*"
  check.equal(first, ("data.train_files=set%s.jsonl: 6 of 7 rows cannot be used: "):format(number)
    .. "the line cannot be read in 1, the id is not unique in 1, the solution cannot be read in 1, "
    .. "the image cannot be read in 4 (data.on_bad_row=skip leaves them out)", "the first line")
  for _, part in ipairs { ".jsonl:3: not a JSON object", ".jsonl:2: a.png: No such file",
    ".jsonl:4: b.png", ".jsonl:5: c.png", "\n  and 1 more" } do
    finds(why, part, "a place")
  end
  check.ok(not why:find("d.png", 1, true), "three places of a kind")
end)

check.case("on_bad_row=skip leaves them out", function()
  local set, said = checked(write(MANY), { on_bad_row = "skip" })
  check.equal({ set:count(), set:row(1).id, set:row(1).index }, { 1, "r1", 1 }, "the rest")
  finds(said, "6 of 7 rows cannot be used", "it is said")
  finds(said, "left out: data.on_bad_row=skip", "and why")
  local kept = checked(write { row(1), row(2, { image = "a.png" }), row(3) },
    { on_bad_row = "skip" })
  check.equal({ kept:count(), kept:row(2).id, kept:row(2).index, kept:image(2) },
    { 2, "r3", 3, place .. "/square.png" }, "a row keeps its index")
  finds(refused({ row(1, { image = "a.png" }) }, { on_bad_row = "skip" }), "no row is left", "none")
end)

check.case("on_bad_row=count keeps rows that can be named", function()
  local set, said = checked(write { row(1), row(2, { image = "a.png" }) }, { on_bad_row = "count" })
  check.equal(set:count(), 2, "both rows")
  finds(said, "what cannot be read counts as failed", "it is said")
  finds(refused({ row(1), "no JSON" }, { on_bad_row = "count" }), ":2: not a JSON object", "a line")
end)

-- ---- prompts ----
local model = mini.write(place .. "/model", {})
local LONG = ("very "):rep(60) .. "far away"

local function settings(path, changes)
  local cfg = mini.settings { "data.max_prompt_length=1300", "data.train_files=" .. path,
    "data.val_files=", unpack(changes or {}) }
  cfg.worker.actor.model.model_path = model
  return cfg
end

local function opened(path, ...)
  local ok, train = pcall(data_sets.open, settings(path, { ... }), {})
  return train, ok
end

check.case("a prompt that is too long is found, and its cure is one", function()
  local path = write { row(1), row(2, { problem = LONG }), row(3) }
  local why = opened(path, "data.max_prompt_length=400")
  local tokens, of_image, cure = why:match(
    "row r2: the prompt has (%d+) tokens %((%d+) of them image%), data.max_prompt_length is 400; "
    .. "set data.max_prompt_length=(%d+)")
  check.equal({ of_image, cure }, { "9", tokens }, why)
  check.equal(opened(path, "data.max_prompt_length=" .. tokens):count(), 3, "that length is enough")
  local _, ok = opened(path, ("data.max_prompt_length=%d"):format(tokens - 1))
  check.equal(ok, false, "one less is not")
end)

check.case("an empty question and a path with a zero byte are found", function()
  for _, problem in ipairs { "", "  \t" } do
    local why = opened(write { row(1), row(2, { problem = problem }) })
    finds(why, ":2: the column 'problem' is empty", "no question")
  end
  local why = opened(write { row(1), row(2, { image = "square.png\0.txt" }) })
  finds(why, ":2: the column 'image' has a zero byte in it", "a path")
end)

check.case("fewer pixels are a cure too", function()
  local path = write { row(1, { image = "seg_zero.png" }), row(2) }
  local why = opened(path, "data.max_prompt_length=700")
  local pixels = why:match "or data.max_pixels=(%d+)"
  check.ok(pixels, why)
  check.equal(opened(path, "data.max_prompt_length=700", "data.max_pixels=" .. pixels):count(), 2,
    "that size is small enough")
end)

check.case("the tokens are those of the step", function()
  local path = write { row(1, { problem = "der Hügel, 日本 🚗" }) }
  local cfg = settings(path, { "data.max_prompt_length=10" })
  local _, why = pcall(data_sets.open, cfg, {})
  local said = tonumber(why:match "the prompt has (%d+) tokens")
  local policy = require("segzero").model(model)
  local one = data.open(path):row(1)
  local prompt = require("segzero.data.prompt").seg_zero
  local inputs = require "segzero.train.inputs"
  inputs.prepare(one, policy, prompt, { system_prompt = cfg.data.system_prompt, max_tokens = 1e6 })
  check.equal(said, #one.input.input_ids, "tokens")
end)

check.case("filter_overlong_prompts leaves out long prompts only", function()
  local path = write { row(1), row(2, { problem = LONG }), row(3) }
  local filtered = { "data.max_prompt_length=400", "data.filter_overlong_prompts=true" }
  check.equal(opened(path, unpack(filtered)):count(), 2, "two rows are left")
  path = write { row(1, { image = "a.png" }), row(2, { problem = LONG }), row(3) }
  finds(opened(path, unpack(filtered)), "a.png: No such file", "other faults stay errors")
end)

check.case("held-out rows are checked as well", function()
  local good = write { row(1) }
  local bad = write { row(1), row(2, { image = "a.png" }) }
  finds(opened(good, "data.val_files=" .. bad), ":2: ", "held out")
end)

-- ---- the cache ----
local START = os.time()

local function age(path, seconds)
  local at = START - seconds
  require("posix.utime").utime(path, at, at)
end

check.case("what was found is kept as long as size and time stay", function()
  local lines = {}
  files.make_dir(place .. "/many")
  local one = files.read(place .. "/square.png")
  for i = 1, 80 do
    local name = ("many/%d.png"):format(i)
    files.write(place .. "/" .. name, one)
    age(place .. "/" .. name, 1000)
    lines[i] = row(i, { image = name })
  end
  local path = write(lines)
  check.equal(checked(path):count(), 80, "the first time")

  -- Not read again: the file is no image now, but has the same size and time.
  local seventh = place .. "/many/7.png"
  files.write(seventh, ("x"):rep(#one))
  age(seventh, 1000)
  check.equal(checked(path):count(), 80, "known")
  age(seventh, 900)
  check.raises(function() checked(path) end, "many/7.png", "another time")
  files.write(seventh, one .. "x")
  age(seventh, 1000)
  check.equal(checked(path):count(), 80, "another size is read again")

  -- A damaged cache is ignored.
  local listing = require("posix.dirent").dir(place .. "/cache/segzero")
  local name
  for _, entry in ipairs(listing) do name = entry:match "^files%-.*%.tsv$" or name end
  check.ok(name, "there is a cache")
  files.write(place .. "/cache/segzero/" .. name, "segzero file facts 1\nnonsense\n")
  check.equal(checked(path):count(), 80, "without it")
end)

check.case("a script's set with meta(i) is checked; a long check says how far it is", function()
  local now = require("segzero").core.C.sz_seconds
  local slow = { name = "slow", count = function() return 3 end,
    where = function(_, i) return "row " .. i end }
  function slow.meta(_, i)
    local started = now()
    while i == 2 and now() - started < 1.1 do end
    if i == 3 then error("row 3: it is gone", 0) end
    return { where = "row " .. i, index = i, problem = "p", solution = SOLUTION, columns = {},
      image = place .. "/square.png" }
  end
  local said = {}
  local ok, why = pcall(check_rows, slow, { name = "train", key = "data.on_bad_row",
    on_bad_row = "error", reward = "seg_strict", say = function(text) said[#said + 1] = text end })
  check.equal({ ok, why }, { false,
    "row 3: it is gone (1 of 3 rows; data.on_bad_row=skip leaves it out)" }, "the error")
  check.equal(said, { "checking slow: row 2 of 3" }, "the progress")
end)

-- ---- sets of a script ----
check.case("a set that returns no row is one line", function()
  local img = image.new(84, 84)
  local function set(result)
    return { name = "dots", count = function() return 3 end, row = function() return result end }
  end
  for want, result in pairs {
    ["the data set dots: row(2) returned nil"] = false,
    ["row(2) has the problem nil, expected a string"] = {},
    ["row(2) has no solution"] = { problem = "p", image = img },
    ["row(2) has the image a.png, expected an image"] = { problem = "p", solution = "s",
      image = "a.png" },
  } do
    local ok, why = pcall(sources.read_row, set(result or nil), 2)
    check.ok(not ok and not why:find "%.lua:", "no place in our sources")
    finds(why, want, "the message")
  end
  for _, count in ipairs { 0, 2.5, "3", false } do
    local counted = set {}
    counted.count = function() return count end
    check.raises(function() data_sets.open(settings(place), { train = counted }) end,
      "the data set dots: count%(%) returned " .. tostring(count), "a count")
  end
  local bare = sources.read_row(set { problem = "p", solution = "s", image = img }, 2)
  check.equal({ bare.frame, #bare.images }, { 84, 1 }, "a table with all fields becomes a row")
  check.equal(rows_of.frame(img), 84, "its frame")
end)

mini.remove()
check.finish()
