-- test_lab.lua - the prompt lab: comparisons with intervals, sweeps, one answer and its tokens,
-- what the image does to a token (against finite differences), the worst answers of a run; and
-- prompt= and reward= of recipes/evaluate.lua.

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local inference = require "segzero.inference.generate"
local mini = require "tests.support.miniature"
local packing = require "segzero.inference.packing"
local prompt_text = require "segzero.data.prompt_text"
local repl = require "segzero.repl"
local session = require "segzero.lab.session"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local tokens = require "segzero.lab.tokens"

local lab = sz.lab
local place = mini.folder()
local dir = mini.write(place .. "/model")
files.write(place .. "/letters.lua", mini.reward_source)

local function has(text, part, name)
  check.ok(tostring(text):find(part, 1, true), name .. ": " .. tostring(text):sub(1, 600))
end

local function open(size)
  return sz.data.open("refshapes", { split = "heldout", size = size, seed = 42, rows = 32 })
end

-- ---- prompts ----
check.case("a prompt is a name, a template, a file or a function", function()
  local function ask(value) return prompt_text.read(value, "prompt").ask "The red circle." end
  check.equal(ask "seg_zero", sz.prompt.seg_zero "The red circle.", "a name")
  check.equal(ask "Find {question}", "Find The red circle.", "the row's text")
  check.equal(ask "Find '{Question}': {other}", "Find 'the red circle': {other}", "as Seg-Zero")
  check.equal(ask(function(q) return q .. "!" end), "The red circle.!", "a function")
  files.write(place .. "/p.jinja", "So: {{ content | trim }}")
  check.equal(ask(place .. "/p.jinja"), "So: The red circle.", "a file")
  check.equal(prompt_text.read("vision_reasoner", "prompt").several, true, "asks for lists")
  check.raises(function() ask "find it" end, "has no question; write {question}", "no question")
  check.raises(function() ask "seg_zer" end, "did you mean 'seg_zero'", "a misspelt name")
end)

-- ---- comparisons ----
check.case("three prompts on ten rows: one call, one table, one sheet", function()
  local set = open(112)
  local sheet = place .. "/sheet.png"
  local result = lab.compare { prompts = { "seg_zero", "Find {question}.", short = "{question}" },
    rows = set:sample(10), n = 2, reward = "seg_strict", sheet = sheet, max_new_tokens = 80 }
  check.equal(#result, 3, "variants")
  check.equal(result[1].name, "1 seg_zero", "a name")
  check.equal(result[3].name, "short", "a name of the user's")
  local sum = 0
  for _, row in ipairs(result[1].rows) do
    check.equal(#row.answers, 2, "answers")
    for _, one in ipairs(row.answers) do sum = sum + one.score end
  end
  check.near(result[1].reward[1], sum / 20, 1e-12, "the mean over all answers")
  local low, high = result[1].reward[2], result[1].reward[3]
  check.ok(low <= result[1].reward[1] and result[1].reward[1] <= high and low < high, "an interval")
  check.near(result[2].difference[1], result[2].reward[1] - result[1].reward[1], 1e-12,
    "against the first")
  local image = sz.image.load(sheet)
  check.ok(image.height > image.width, "ten rows of three tiles")
  image:free()
  local text = tostring(result)
  has(text, "10 rows of RefShapes (heldout, 112 px), 2 answers each, reward seg_strict", "the head")
  has(text, "against the first", "differences")
  has(text, "thinking_format", "parts")
  for line in text:gmatch "[^\n]+" do check.ok(#line <= 110, "a line fits: " .. #line) end

  local again = lab.compare { prompts = { "seg_zero" }, rows = set:sample(10), n = 2,
    sheet = false, max_new_tokens = 80 }
  check.equal(again[1].means, result[1].means, "the same seed, the same answers")
  check.equal(again.sheet, nil, "no sheet")
end)

check.case("a model of one call does not change the model of the others", function()
  local rows = open(84):sample(2)
  local before = session.model()
  local other = lab.compare { prompts = { "{question}" }, rows = rows, model = dir,
    sheet = false, max_new_tokens = 4 }
  check.equal(#other[1].rows, 2, "asked")
  check.ok(session.model() == before, "the model of lab.use stays")
  check.equal(session.segmenter(sz.model(dir)), nil, "the embedded SAM2 knows shapes only")
  check.ok(session.segmenter(before), "which the embedded model is asked about")
  check.raises(function()
    lab.compare { prompts = { "{question}" }, rows = rows, model = place .. "/nothing" }
  end, "model: ", "a model that is not there")
end)

check.case("a comparison scores what training scores", function()
  local set = open(112)
  local frames = 0
  lab.compare { prompts = { "seg_zero" }, rows = set:sample(2), sheet = false,
    max_new_tokens = 8, reward = function(_, truth, row)
      if row.frame == 112 and row.image.width == 112 and truth:find "<box>" then
        frames = frames + 1
      end
      return 1, { tokens = row.response_length }
    end }
  check.equal(frames, 2, "frame, image and truth")
end)

check.case("a sweep takes every combination of the values that are lists", function()
  local result = lab.sweep { temperature = { 0.5, 1 }, top_p = { 0.8, 1 }, n = 2,
    rows = open(112):sample(3), sheet = false, max_new_tokens = 20 }
  local names = {}
  for i, one in ipairs(result) do names[i] = one.name end
  check.equal(table.concat(names, "; "), "temperature 0.5, top_p 0.8; temperature 0.5, top_p 1; "
    .. "temperature 1, top_p 0.8; temperature 1, top_p 1", "variants")
  has(result, "sampling", "the table")
end)

check.case("mistakes are one line at the caller's place", function()
  local function fails(part, f, ...)
    local ok, why = pcall(f, ...)
    check.ok(not ok, part)
    has(why, part, "the message")
    check.equal(select(2, why:gsub("\n", "")), 0, part .. ": one line")
  end
  fails("unknown option 'prompt': did you mean 'prompts'?", lab.compare, { prompt = {} })
  fails("prompts is a list", lab.compare, { prompts = "seg_zero" })
  fails("rows is 3, expected a data set", lab.compare, { prompts = { "seg_zero" }, rows = 3 })
  fails("reward: there is no reward 'seg_strik'", lab.compare, { prompts = { "seg_zero" },
    reward = "seg_strik" })
  fails("n is 0, expected", lab.compare, { prompts = { "seg_zero" }, n = 0 })
  fails("top_p is 2, expected a number from 0 to 1", lab.compare, { prompts = { "seg_zero" },
    top_p = 2 })
  fails("expected a number from 0", lab.compare, { prompts = { "seg_zero" },
    temperature = { 0.5, 1 } })
  fails("seed is x, expected a whole number", lab.compare, { prompts = { "seg_zero" }, seed = "x" })
  fails("sheet is true, expected a .png, .jpg or .jpeg file, or false", lab.compare,
    { prompts = { "seg_zero" }, sheet = true })
  fails("an open model is expected, got 5", lab.compare, { prompts = { "seg_zero" }, model = 5 })
  fails("lab.sweep needs values to try", lab.sweep, { n = 2 })
  fails("temperature is an empty list", lab.sweep, { temperature = {} })
  fails("temperature is a, expected a number", lab.sweep, { temperature = { "a" } })
  fails("top_p changes nothing at temperature 0", lab.sweep, { top_p = { 0.5, 1 } })
  fails("an open model is expected, got 5", lab.use, 5)
  fails("lab.use: nowhere.pt: there is no such file", lab.use, nil, "nowhere.pt")
  fails("SAM2 is a path, an open model or false, got 5", lab.use, nil, 5)
  fails("an image, a path or a row is expected, got 3", lab.ask, 3, "x")
  fails("an answer of lab.ask or of vl:generate is expected", lab.logprobs, "text")
  fails("there is no folder nowhere", lab.worst, "nowhere", 3)
  local ok, why = pcall(function() lab.compare { prompts = {} } end)
  check.ok(not ok and why:find "test_lab%.lua:%d+: ", "the caller's line: " .. tostring(why))
end)

-- ---- one answer ----
check.case("one question about one image", function()
  local row = open(112):row(3)
  local a = lab.ask(row, nil, { max_new_tokens = 100 })
  check.equal(a.problem, row.problem, "a row has its question")
  check.ok(a.found and #a.found.bbox == 4, "boxes and points: " .. a.text)
  check.equal(#a.ids, #a.logprobs, "log-probabilities")
  has(a, "tokens, mean probability", "it prints itself")
  check.equal(a:save(place .. "/answer.png"), place .. "/answer.png", "an image")
  check.ok(sz.image.load(place .. "/answer.png").width > 112, "enlarged, with the mask")
  row.image:save(place .. "/photo.png")
  local other = lab.ask(place .. "/photo.png", row.problem, { max_new_tokens = 100 })
  check.equal(other.text, a.text, "a path")
  a:free()
  other:free()
  other:free()
  check.raises(function() a:save(place .. "/late.png") end, "test_lab.lua:%d+: the answer has been",
    "a freed answer")
  check.raises(function() a:mask() end, "the answer has been freed", "its mask")
  row.image:free()
end)

check.case("numbers of an answer know their places", function()
  local place_of = tokens.places '{"bbox": [10,200], "points_1": [5]}'
  check.equal(place_of(11), "bbox[1]", "the first")
  check.equal(place_of(14), "bbox[2]", "the second")
  check.equal(place_of(13), nil, "a comma")
  check.equal(place_of(33), "points_1[1]", "another key")
  check.equal(place_of(3), nil, "outside")
end)

check.case("the least sure tokens and what the model would have said", function()
  local row = open(112):row(3)
  local a = lab.ask(row, nil, { max_new_tokens = 100 })
  local list = lab.logprobs(a, { least = 4, top = 3 })
  check.equal(#list, #a.ids, "all tokens")
  check.equal(#list.least, 4, "the least sure ones")
  for k, i in ipairs(list.least) do
    local one = list[i]
    check.near(one.probability, math.exp(a.logprobs[i]), 1e-12, "probability")
    check.equal(#one.others, 3, "alternatives")
    for j = 2, 3 do
      check.ok(one.others[j - 1].probability >= one.others[j].probability, "in order")
    end
    check.ok(one.others[1].probability <= one.probability + 1e-5, "greedy took the likeliest")
    local sum = one.probability
    for _, other in ipairs(one.others) do sum = sum + other.probability end
    check.ok(sum <= 1 + 1e-5, "no more than 1")
    if k > 1 then
      check.ok(list[list.least[k - 1]].probability <= one.probability, "least sure first")
    end
  end
  local boxes = 0
  for _, one in ipairs(list) do
    if one.where and one.where:find "^bbox" then boxes = boxes + 1 end
  end
  check.ok(boxes >= 4, "tokens of the box")
  has(list, "the 4 least sure of", "the table")
  check.ok(tokens.coloured(list):find "\27%[3[13]m", "colours")
  check.equal(lab.logprobs(a, { top = 0 })[1].others, nil, "without alternatives")
  for _, wrong in ipairs { { top = -1 }, { top = 1.5 }, { least = "x" } } do
    check.raises(function() lab.logprobs(a, wrong) end, "expected a whole number from 0", "a count")
  end
  a:free()
  row.image:free()
end)

-- Log-probability of the places (from 1) with features scaled at one image token.
local function scaled_logprob(a, places, features, row, factor)
  local changed = features:clone()
  local data = tensor.data(changed)
  local width = features:shape()[2]
  for k = (row - 1) * width, row * width - 1 do data[k] = data[k] * factor end
  local stream = packing.stream({ { input = a.input, answers = { a.ids } } },
    a.policy.image_token_id)
  local hidden = a.policy:hidden(stream, changed, { rows = stream.rows })
  local values = a.policy:logprob_of(hidden, stream.targets):totable()
  local sum = 0
  for _, i in ipairs(places) do sum = sum + values[i] end
  return sum
end

check.case("what an image token does to an answer is the derivative", function()
  local vl = sz.model(dir)
  session.use(vl, false)
  local row = open(84):row(2)
  local a = lab.ask(row, nil, { max_new_tokens = 6 })
  local map = lab.attention(a, { 2, 4 }, { sheet = place .. "/map.png" })
  check.equal(#map.values, 3, "rows of image tokens")
  check.equal(#map.values[1], 3, "columns")
  local features = tensor.no_grad(vl.vision, vl, { a.input })
  local total = 0
  local step = 1e-2
  for y = 1, 3 do
    for x = 1, 3 do
      local i = (y - 1) * 3 + x
      local up = scaled_logprob(a, { 2, 3, 4 }, features, i, 1 + step)
      local down = scaled_logprob(a, { 2, 3, 4 }, features, i, 1 - step)
      -- A central difference in f32: 1e-5 of rounding over a step of 2e-2, and its own error of
      -- step squared.
      check.near(map.values[y][x], (up - down) / (2 * step), 2e-3, "of the image token " .. i)
      total = total + map.share[y][x]
    end
  end
  check.near(total, 1, 1e-9, "shares")
  has(map, "gradient x feature", "it says what it is")
  check.ok(sz.image.load(place .. "/map.png").width >= 84, "an image")
  check.raises(function() lab.attention(a, 99) end, "token is 99, expected a number from 1 to 6",
    "a token")
  check.raises(function() lab.attention(a, "bbox") end, "no numbers under the key 'bbox'", "a key")
  a:free()
  row.image:free()
  session.use(nil)
end)

check.case("the prompt has the lab", function()
  local lines = { "lab.compare == sz.lab.compare" }
  local printed = {}
  repl.run { quiet = true, read = function() return table.remove(lines, 1) end,
    print = function(text) printed[#printed + 1] = text end }
  check.equal(printed[1], "true", "lab")
end)

-- ---- runs ----
local run = place .. "/run"
local made, made_status = mini.recipe(dir, { "trainer.max_steps=2", "data.val_files=None",
  "trainer.save_freq=-1", "worker.reward.sam2_path=none",
  "worker.reward.compute_score=" .. place .. "/letters.lua",
  "trainer.save_checkpoint_path=" .. run })
check.equal(made_status, 0, made:sub(-300))

check.case("the worst answers of a step, and all scored again", function()
  local list = lab.worst(run, 2, 5, { sheet = place .. "/worst.png" })
  check.equal(#list, 5, "answers")
  for i = 2, 5 do check.ok(list[i - 1].reward <= list[i].reward, "the worst first") end
  has(list, "no words for the parts: the run's reward is " .. place .. "/letters.lua", "words")
  files.write(place .. "/zero.lua", "return function() return 0, { a = 0 }, { a = 'it is' } end\n")
  local worded = lab.worst(run, 2, 1, { sheet = false, reward = place .. "/zero.lua" })
  check.equal(worded[1].why.a, "it is", "words of a reward that the user names")
  -- Looking at a run downloads nothing, but what comes after it may.
  local set = require("posix.stdlib").setenv
  local offline = os.getenv "HF_HUB_OFFLINE"
  set("HF_HUB_OFFLINE", nil)
  local best = lab.best(run, 2, 1, { sheet = false })
  check.equal(os.getenv "HF_HUB_OFFLINE", nil, "the variable is as it was")
  set("HF_HUB_OFFLINE", offline)
  check.ok(best[1].reward >= list[5].reward, "the best")
  check.ok(sz.image.load(place .. "/worst.png").width > 84, "images")
  has(list, "the 5 worst answers of step 2", "it prints itself")
  check.raises(function() lab.worst(run, 9) end, "step 9 is not in", "a step")

  local result = lab.rescore(run, place .. "/letters.lua")
  check.equal(#result.items, 12, "all answers")
  has(result, "all 12 rewards are the stored ones", "it prints itself")
  for option, message in pairs {
    step = "step is 'x', expected", timeout = "timeout is 'x', expected",
    worst = "worst is 'x', expected", sam2_path = "sam2_path: x: there is no such file",
  } do
    check.raises(function() lab.rescore(run, "seg", { [option] = "x" }) end, message, option)
  end
  local strict = lab.rescore(run, "seg_strict", { step = 1 })
  check.equal(#strict.items, 6, "one step")
end)

-- ---- evaluation ----
local function evaluate(name, ...)
  local words = { "recipes/evaluate.lua", "rows=4", "output_path=" .. place .. "/" .. name }
  for _, word in ipairs { ... } do words[#words + 1] = word end
  return mini.run(words)
end

check.case("an evaluation takes a prompt and a reward", function()
  local text, status = evaluate("plain", "reward=seg_strict")
  check.equal(status, 0, text)
  check.ok(text:find "reward=[%d.]+ %[[%d.]+, [%d.]+%] box_l1=", "the line: " .. text)
  local sum = 0
  local first
  for line in io.lines(place .. "/plain/results.jsonl") do
    local record = cjson.decode(line)
    first = first or record
    sum = sum + record.reward
    check.equal(type(record.reward_parts.iou), "number", "parts")
  end
  local summary = cjson.decode(files.read(place .. "/plain/summary.json"))
  check.near(summary.reward.value, sum / 4, 1e-12, "the mean")
  check.equal(summary.reward.rows, 4, "rows")

  text, status = evaluate("other", "reward=seg_strict", "prompt=What is {question}?")
  check.equal(status, 0, text)
  local other = cjson.decode(files.read(place .. "/other/results.jsonl"):match "^[^\n]*")
  check.ok(other.text ~= first.text, "another prompt, another answer")
  text = mini.run { "recipes/evaluate.lua", ("compare=%s/plain,%s/other"):format(place, place) }
  check.ok(text:find "reward [%d.]+ %-> [%d.]+: [%-+][%d.]+ %[", "compared: " .. text)

  -- The same prompt by its name gives the same answers.
  evaluate("named", "prompt=seg_zero")
  local named = cjson.decode(files.read(place .. "/named/results.jsonl"):match "^[^\n]*")
  check.equal(named.text, first.text, "by name")
  check.equal(named.reward, nil, "no reward, no field")
end)

check.case("an evaluation refuses what cannot be asked or judged", function()
  for word, message in pairs {
    ["prompt=find it"] = "has no question", ["prompt=vision_reasoner"] = "set several=true",
    ["reward=seg_strik"] = "did you mean 'seg_strict'?",
  } do
    local text, status = evaluate("refused", word)
    check.equal(status, 2, word)
    has(text, message, word)
  end
  local text, status = evaluate("refused", "oracle=true", "reward=seg")
  check.equal(status, 2, "an oracle has no answers")
  has(text, "leave out reward", "why")
end)

inference.release_cache(session.model())
mini.remove()
check.finish()
