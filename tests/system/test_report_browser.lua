-- test_report_browser.lua - the page of `segzero report` in headless Chromium: no message on the
-- console, nothing wider than the page at 1280 and at 400 pixels, sliders and tooltip that work,
-- and hostile texts that stay texts. The runs are files that are written here, without training.
-- Lacking Chromium (Debian's package chromium) it is skipped. Leaves out: how the page looks, dark
-- colours.

local cjson = require "cjson"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"

local function chromium()
  for _, path in ipairs { "/usr/bin/chromium", "/usr/bin/chromium-browser",
    "/usr/bin/google-chrome" } do
    if files.exists(path) then return path end
  end
  return nil
end

local browser = chromium()
if not browser then
  check.skip "chromium (apt-get install chromium)"
  check.finish()
  return
end

local place = mini.folder()
local HOSTILE = '</script><script>console.error("run")</script><img src=x onerror="alert(1)">'

-- ---- a run of 30 steps ----
local function answer(step, number)
  local text = '<think>%s</think><answer>{"bbox": [%d, 5, 60, 70], "points_1": [30, 30], ' ..
    '"points_2": [40, 40]}</answer>'
  return { step = step, row = ("train-%d"):format(step), answer = number, problem = HOSTILE,
    solution = "<box>(10,10),(60,60)</box><points>(20,20),(50,50)</points>",
    text = text:format(HOSTILE, number * 5), reward = number % 3, finish = "stop",
    parts = { iou = number % 2, points = 0, [HOSTILE] = 0 }, advantage = 0.5,
    ids = { 1, 2, 3 }, logprobs = { -1, -2, -3 } }
end

local function write_run(name, lr)
  local folder = place .. "/" .. name
  files.make_dir(folder)
  local cfg = mini.settings { "worker.reward.compute_score=seg_strict",
    "worker.actor.model.model_path=" .. files.embedded "models/tiny/qwen2.5-vl",
    "data.refshapes_rows=40", "worker.actor.optim.lr=" .. lr }
  cfg.data.system_prompt = HOSTILE
  files.write(folder .. "/config.json", files.json(cfg))
  files.write(folder .. "/run.json", '{"id":"0123456789abcdef","version":1}\n')
  local metrics = { files.json { step = 0, held_out_reward = 1, held_out_giou = 0.3 } }
  local rollouts = {}
  for step = 1, 30 do
    metrics[#metrics + 1] = files.json { step = step, reward = step / 10, kl = 0.1 / step,
      ["reward/iou"] = step / 30, time = { forward = 1, backward = 2 }, seconds = { total = 3 },
      [HOSTILE] = step }
    for number = 1, 4 do rollouts[#rollouts + 1] = cjson.encode(answer(step, number)) end
  end
  files.write(folder .. "/metrics.jsonl", table.concat(metrics, "\n") .. "\n")
  files.write(folder .. "/rollouts.jsonl", table.concat(rollouts, "\n") .. "\n")
  return folder
end

-- Works the page and reports on the console as one line of JSON.
local DRIVER = [[
addEventListener("load", () => {
  const move = (id, v) => {
    const input = document.getElementById(id);
    input.value = v;
    input.dispatchEvent(new Event("input"));
  };
  for (const step of [1, 7, 30, 12]) move("step", step);
  move("smoothing", 0);
  move("smoothing", 0.9);
  const svg = charts[0].svg;
  const box = svg.getBoundingClientRect();
  const at = { clientX: box.left + box.width / 2, clientY: box.top + 30 };
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  const tip = charts[0].tip.textContent;
  const shown = document.querySelectorAll("#answers h3")[0].textContent;
  svg.dispatchEvent(new MouseEvent("click", at));
  document.querySelectorAll("details").forEach((d) => { d.open = true; });
  console.log("RESULT" + JSON.stringify({ width: innerWidth,
    wide: document.documentElement.scrollWidth, charts: charts.length, tip, shown,
    clicked: view.step, scripts: document.scripts.length,
    images: document.images.length, strangers: document.querySelectorAll("img[onerror]").length,
    cards: document.querySelectorAll(".card").length,
    lines: document.querySelectorAll(".chart path.smooth").length,
    rects: document.querySelectorAll(".figure rect.true").length }) + "END");
});
]]

-- The page with the driver behind its own script, in a frame of this width: Chromium's own windows
-- are at least 500 pixels wide.
local function open(path, width)
  local html = files.read(path)
  local last = html:match ".*()</script>"
  files.write(place .. "/driven.html", html:sub(1, last - 1) .. DRIVER .. html:sub(last))
  files.write(place .. "/frame.html", ('<link rel="icon" href="data:,"><body style="margin:0">'
    .. '<iframe width="%d" height="900" style="border:0" src="driven.html"></iframe>')
    :format(width))
  local output = process.run({ browser, "--headless", "--no-sandbox", "--disable-gpu",
    "--user-data-dir=" .. place .. "/profile", "--allow-file-access-from-files",
    "--window-size=1300,1000", "--enable-logging=stderr", "--dump-dom",
    "file://" .. place .. "/frame.html" }, { timeout = 90 })
  local messages = {}
  for line in output:gmatch "[^\n]+" do
    if line:find("CONSOLE", 1, true) and not line:find("RESULT", 1, true) then
      messages[#messages + 1] = line
    end
  end
  local json = output:match "RESULT({.-})END"
  check.ok(json, "the page ran: " .. output:sub(-600))
  return cjson.decode(json or "{}"), table.concat(messages, "\n")
end

local A = write_run("A", "1e-3")
local B = write_run("B", "2e-3")

local function check_page(path, width, runs)
  local found, messages = open(path, width)
  check.equal(messages, "", "messages on the console")
  check.equal(found.width, width, "the width")
  check.ok(found.wide <= width, "nothing is wider than the page: " .. tostring(found.wide))
  check.ok(found.charts >= 6, "charts: " .. tostring(found.charts))
  check.ok(found.lines >= found.charts, "lines: " .. tostring(found.lines))
  check.equal(found.scripts, 2, "no script of a text")
  check.equal(found.strangers, 0, "no image of a text")
  check.ok(found.shown:find "step 12$", "the slider chose the step: " .. found.shown)
  check.ok(found.tip:find "^step 1[345]", "the tooltip: " .. found.tip)
  check.ok(found.clicked >= 13 and found.clicked <= 15, "a click chose " .. found.clicked)
  check.equal(found.rects, found.cards, "a true box in each card")
  check.equal(found.images, found.cards, "an image in each card")
  check.ok(found.cards >= 2 * runs, "cards: " .. found.cards)
end

check.case("one run, 1280 and 400 pixels wide", function()
  local output, status = mini.run { "report", A }
  check.equal(status, 0, output)
  for _, width in ipairs { 1280, 400 } do check_page(A .. "/report.html", width, 1) end
end)

check.case("two runs, 1280 and 400 pixels wide", function()
  local output, status = mini.run { "report", A, B, "--output", place .. "/two.html" }
  check.equal(status, 0, output)
  for _, width in ipairs { 1280, 400 } do check_page(place .. "/two.html", width, 2) end
end)

mini.remove()
check.finish()
