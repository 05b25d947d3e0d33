-- test_report.lua - `segzero report`, and the page that a run writes while it goes: the JSON in the
-- page read back, texts that try to be HTML, several runs, a resumed run, damaged lines, and what
-- is chosen of long runs. The data set is a folder of its own, because only its rows carry hostile
-- texts. How the page looks is not tested here: that takes a browser.

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local mini = require "tests.support.miniature"
local page = require "segzero.report.page"
local sz = require "segzero"
local thinned = require "segzero.report.thinned"
local why = require "segzero.report.why"

local place = mini.folder()
local dir = mini.write(place .. "/model")
files.write(place .. "/reward.lua", mini.reward_source)

-- ---- the run ----
local HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> & \27[31m'

local function write_data(path)
  files.make_dir(path)
  local image = sz.image.new(84, 84)
  image:save(path .. "/image.png")
  image:free()
  local lines = {}
  for i = 1, 12 do
    lines[i] = cjson.encode { id = "row " .. HOSTILE .. i, problem = HOSTILE,
      solution = "<box>(10,20),(50,60)</box><points>(20,30),(40,50)</points>",
      image = "image.png" } .. "\n"
  end
  files.write(path .. "/data.jsonl", table.concat(lines))
  return path
end
local data = write_data(place .. "/data")

local function recipe(...)
  return mini.recipe(dir, { "data.train_files=" .. data, "data.val_files=" .. data,
    "worker.rollout.n=2", "trainer.save_freq=1", "trainer.val_before_train=true",
    "worker.reward.sam2_path=none", "worker.reward.compute_score=" .. place .. "/reward.lua", ... })
end

local function save_to(path) return "trainer.save_checkpoint_path=" .. path end

-- The data of a page, and its text.
local function read_page(path)
  local text = assert(files.read(path))
  local json = text:match '<script type="application/json" id="data">(.-)</script>'
  return cjson.decode(json), text
end

local function report(...) return mini.run { "report", ... } end

-- The column of a table of numbers.
local function column(numbers, name)
  for k, found in ipairs(numbers.columns) do
    if found == name then
      local values = {}
      for i, row in ipairs(numbers.rows) do values[i] = row[k] end
      return values
    end
  end
  return nil
end

local A = place .. "/A"
local text, status = recipe("trainer.max_steps=3", save_to(A))
check.equal(status, 0, "the run that is reported: " .. text:sub(-400))
local written = read_page(A .. "/report.html")

check.case("a run writes its report, with all its steps and its evaluations", function()
  check.ok(text:find("  report: " .. A .. "/report.html", 1, true), "the run names it")
  check.equal(written.state, "ended", "the last version says that the run ended")
  check.equal(#written.runs, 1, "runs")
  local run = written.runs[1]
  check.equal(table.concat(column(run.metrics, "step"), " "), "1 2 3", "steps")
  check.equal(table.concat(column(run.held_out, "step"), " "), "0 3", "evaluations")
  check.equal(run.head.total, 3, "total")
  local records = {}
  for line in io.lines(A .. "/metrics.jsonl") do records[#records + 1] = cjson.decode(line) end
  for i, name in ipairs { "reward", "grad_norm", "entropy" } do
    local value = column(run.metrics, name)[2]
    local stored = records[3][name]           -- the first record is an evaluation
    check.ok(math.abs(value - stored) <= 1e-5 * math.abs(stored), i .. " " .. name)
  end
  check.ok(column(run.metrics, "time/backward")[1] > 0, "time by phase")
end)

check.case("the report's answers are those of rollouts.jsonl, with image and frame", function()
  local best
  local worst
  for line in io.lines(A .. "/rollouts.jsonl") do
    local record = cjson.decode(line)
    if record.step == 2 then
      if not best or record.reward > best.reward then best = record end
      if not worst or record.reward < worst.reward then worst = record end
    end
  end
  local run = written.runs[1]
  local seen = {}
  for _, answer in ipairs(run.answers["2"]) do
    for _, tag in ipairs(answer.tags) do seen[tag] = answer end
  end
  check.equal(seen.best.reward, best.reward, "the best")
  check.equal(seen.best.parts.letters, best.parts.letters, "its part")
  check.equal(seen.worst.reward, worst.reward, "the worst")
  check.equal(seen.worst.text:sub(1, 3), worst.text:sub(1, 3), "its text")
  check.equal(#seen.best.group, 2, "rewards of the prompt")
  check.equal(#seen.best.truth.boxes, 1, "true boxes")
  check.equal(table.concat(seen.best.frame, "x"), "84x84", "the frame")
  local count = 0
  for _, url in pairs(run.images["2"]) do
    check.equal(url:sub(1, 22), "data:image/png;base64,", "an image of the step")
    count = count + 1
  end
  check.ok(count >= 1 and count <= 3, "images of the step: " .. count)
end)

check.case("the command makes the same page", function()
  local output, code = report(A, "--output", place .. "/again.html")
  check.equal(code, 0, output)
  check.equal(output, place .. "/again.html\n", "it prints the path")
  local again = read_page(place .. "/again.html")
  check.equal(files.json(again.runs), files.json(written.runs), "the runs' data")
end)

check.case("texts of data and model cannot become HTML", function()
  local json, html = read_page(A .. "/report.html")
  check.equal(select(2, html:gsub("<script", "")), 2, "script elements: the data and the program")
  check.ok(not html:find("onerror=\"alert", 1, true), "no element of the row's text")
  local answer = json.runs[1].answers["1"][1]
  check.equal(answer.problem, (HOSTILE:gsub("\27", "\\x1b")), "the text itself is there")
  check.ok(html:find("default-src 'none'", 1, true), "nothing else may be loaded")
  check.ok(not html:find "https?://[^w]", "no address of another file")
  for _, name in ipairs { "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write" } do
    check.ok(not html:find(name, 1, true), name .. " is not used")
  end
end)

check.case("a resumed run has each step once, and what changed", function()
  local B = mini.copy(A, place .. "/B")
  local output, code = recipe("trainer.max_steps=4", save_to(B), "worker.actor.optim.lr=2e-3",
    "trainer.load_checkpoint_path=" .. B .. "/global_step_2")
  check.equal(code, 0, output:sub(-400))
  local run = read_page(B .. "/report.html").runs[1]
  check.equal(table.concat(column(run.metrics, "step"), " "), "1 2 3 4", "steps")
  local steps = {}
  for step in pairs(run.answers) do steps[#steps + 1] = step end
  table.sort(steps)
  check.equal(table.concat(steps, " "), "1 2 3 4", "steps with answers")
  local change
  for _, c in ipairs(run.changes) do
    if c.key == "worker.actor.optim.lr" then change = c end
  end
  check.equal(change and change.step, 2, "the step of the change")
  check.equal(change and change.new, "0.002", "the new value")
  check.equal(run.head.total, 4, "the new length")
end)

check.case("several runs are one page, next to the first", function()
  local output, code = report(A, place .. "/B/")
  check.equal(code, 0, output)
  check.equal(output, place .. "/report.html\n", "where it is")
  local runs = read_page(place .. "/report.html").runs
  check.equal(#runs, 2, "runs")
  check.equal(runs[1].head.name .. runs[2].head.name, "AB", "their names")
end)

check.case("damaged lines are left out and said in one line", function()
  local C = mini.copy(A, place .. "/C")
  local lines = files.read(C .. "/metrics.jsonl")
  local bad = '{"step": 9, "reward"\n[1, 2]\n' .. lines .. '{"step": 7, "rew'
  files.write(C .. "/metrics.jsonl", bad)
  files.write(C .. "/rollouts.jsonl", "\0\255\n" .. files.read(C .. "/rollouts.jsonl"))
  local output, code = report(C)
  check.equal(code, 0, output)
  check.ok(output:find("metrics.jsonl: line 1 is not read (it is no JSON object), and 1 more", 1,
    true), "metrics: " .. output)
  check.ok(output:find("rollouts.jsonl: line 1 is not read (it is no JSON object)", 1, true),
    "rollouts: " .. output)
  check.equal(select(2, output:gsub("\n", "")), 3, "a line for each file, and the path")
  local run = read_page(C .. "/report.html").runs[1]
  check.equal(table.concat(column(run.metrics, "step"), " "), "1 2 3", "the other lines count")
  check.equal(#run.notes, 2, "the page says it too")
end)

check.case("a run without rows to draw has no images, and says why", function()
  local D = mini.copy(A, place .. "/D")
  local cfg = cjson.decode(files.read(D .. "/config.json"))
  cfg.data.train_files = place .. "/gone"
  files.write(D .. "/config.json", files.json(cfg))
  local output, code = report(D)
  check.equal(code, 0, output)
  check.ok(output:find("no images: .*" .. place:gsub("%p", "%%%0") .. "/gone: "), output)
  local run = read_page(D .. "/report.html").runs[1]
  check.equal(next(run.images), nil, "images")
  check.equal(run.answers["1"][1].guessed, true, "boxes are drawn in a guessed frame")
end)

check.case("trainer.report=false writes none, and nothing else changes", function()
  local E = place .. "/E"
  local output, code = recipe("trainer.max_steps=3", save_to(E), "trainer.report=false")
  check.equal(code, 0, output:sub(-400))
  check.ok(not files.exists(E .. "/report.html"), "no report")
  check.equal(files.read(E .. "/rollouts.jsonl"), files.read(A .. "/rollouts.jsonl"), "the answers")
end)

-- ---- mistakes ----
check.case("wrong words are one line", function()
  local cases = {
    { {}, 2, "no run is given" },
    { { "--outptu", "x" }, 2, "unknown option '--outptu'" },
    { { A, "--output" }, 2, "--output needs a file" },
    { { place .. "/nothing" }, 2, "there is no folder " .. place .. "/nothing" },
    { { dir }, 1, "is not the folder of a training run" },
    { { A, "--output", place .. "/no/such/folder.html" }, 1, "No such file" },
  }
  for _, case in ipairs(cases) do
    local output, code = report(unpack(case[1]))
    check.equal(code, case[2], output)
    check.ok(output:find(case[3], 1, true), output)
    check.equal(select(2, output:gsub("\n", "")), 1, "one line: " .. output)
    check.ok(not output:find("%.lua:%d"), "no place in our sources: " .. output)
  end
  local output, code = report "--help"
  check.equal(code, 0, output)
  check.ok(output:find("usage: segzero report RUN", 1, true), output)
end)

check.case("a file that is no report is not written over", function()
  local path = place .. "/mine.html"
  files.write(path, "<!doctype html>mine")
  local output, code = report(A, "--output=" .. path)
  check.equal(code, 1, output)
  check.ok(output:find("is not a report of segzero", 1, true), output)
  check.equal(files.read(path), "<!doctype html>mine", "it stays")
  check.raises(function() page.check(place) end, "is not a report", "a folder")
end)

-- ---- choosing ----
check.case("of long runs every second step stays until it fits, and the newest always", function()
  local kept = thinned.new { bytes = 1000, steps = 8 }
  for step = 1, 100 do
    kept:put(step, { step = step }, 10)
    check.equal(kept.entries[step].step, step, "the newest")
    check.ok(#kept:list() <= 8, "not more than 8")
  end
  check.equal(table.concat(kept:list(), " "), "1 17 33 49 65 81 97 100", "spread evenly")
  local by_bytes = thinned.new { bytes = 40, steps = 1000 }
  for step = 1, 10 do by_bytes:put(step, {}, 10) end
  check.equal(table.concat(by_bytes:list(), " "), "1 5 9 10", "by bytes")
end)

check.case("a part that is 0 is explained", function()
  local frame = { width = 840, height = 840 }
  local solution = "<box>(100,100),(300,300)</box><points>(150,150),(250,250)</points>"
  local function zeros(answer, reward)
    local parts = { thinking_format = 0, segmentation_format = 0, iou = 0, points = 0, box_l1 = 0 }
    return why.zeros { reward = reward or "seg_strict", text = answer, solution = solution,
      parts = parts, frame = frame }
  end
  -- A box of a quarter of the area, and a point outside it.
  local found = zeros('<think>a</think><answer>{"bbox": [100, 100, 200, 200], "points_1": ' ..
    '[150, 150], "points_2": [400, 150]}</answer>')
  check.equal(found.iou, "the boxes overlap by 0.25; more than 0.5 is asked", "iou")
  check.ok(found.points:find("point 2 is outside", 1, true), found.points)
  check.ok(found.box_l1:find("50 off on average; less than 10 is asked", 1, true), found.box_l1)

  local other = zeros 'so: {"bbox_2d": [1, 2, 3, 4]}'
  check.ok(other.thinking_format:find("does not begin with <think>", 1, true), "thinking")
  check.ok(other.segmentation_format:find("its keys are bbox_2d; asked are bbox", 1, true),
    other.segmentation_format)
  check.ok(other.iou:find("no box of 4 numbers", 1, true), other.iou)
  check.equal(zeros("no object").iou, "there is no JSON object in the answer", "no object")
  check.equal(next(zeros("no object", "my_reward.lua")), nil, "another's reward has no words")
end)

mini.remove()
check.finish()
