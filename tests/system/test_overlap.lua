-- test_overlap.lua - background work changes no number: images prefetched, groups judged as they
-- end, checkpoints written in the background. Errors name the row that caused them, the time table
-- adds up, memory stays flat over hundreds of steps, and a step that cannot fit is refused.

local cjson = require "cjson"
local ffi = require "ffi"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local data = require "segzero.data"
local tensor = require "segzero.core.tensor"
local image = require "segzero.formats.image"
local checkpoint = require "segzero.train.run.checkpoint"
local rollout = require "segzero.inference.generate"
local refshapes = require "segzero.data.refshapes"
local prefetch = require "segzero.data.prefetch"
local timer = require "segzero.log.timer"
local plan = require "segzero.tools.plan"
local jobs = require "segzero.core.jobs"

local C = sz.core.C
local place = mini.folder()
local dir = mini.write(place .. "/model")

local bytes = mini.bytes
local function pixels_of(img) return ffi.string(img:pixels(), img.width * img.height * 3) end

-- ---- prefetching one image ----
local vl = sz.qwen_vl(dir)
local proc = vl:processor()
local function message(...)
  local content = {}
  for i, img in ipairs { ... } do content[i] = { type = "image", image = img } end
  content[#content + 1] = { type = "text", text = "the red circle" }
  return { { role = "user", content = content } }
end
local sample = refshapes.sample { seed = 5, index = 1, size = 168 }

-- An image of this size, and the PNG of it, which is read without loss.
local function drawn_image(width, height)
  local img = image.new(width, height)
  for k = 0, width * height * 3 - 1 do img:pixels()[k] = sample.rgb[k % (168 * 168 * 3)] end
  local path = ("%s/%dx%d.png"):format(place, width, height)
  img:save(path)
  return img, path
end

local function check_prefetched(img, source)
  local want = vl:process(message(img, img))
  local ticket = proc:start(source)
  local got = proc:take(ticket)
  check.ok(image.is_image(got), "an image")
  check.equal(pixels_of(got), pixels_of(img), "its pixels")
  local one = vl:process(message(got))
  check.ok(tensor.data(one.pixel_values) == tensor.data(ticket.values),
    "the patches are those that were cut ahead")
  check.ok(bytes(one.pixel_values) == bytes(vl:process(message(img)).pixel_values),
    "and the bits are the same")
  check.equal(one.input_ids, vl:process(message(img)).input_ids, "and so are the tokens")

  -- Two images in a message, one of them prefetched.
  proc:take(proc:start(got))
  check.ok(bytes(vl:process(message(got, img)).pixel_values) == bytes(want.pixel_values),
    "next to one that is not prefetched")

  -- If settings change in between, the patches that were cut are not used.
  proc:take(proc:start(got))
  local most = proc.max_pixels
  proc.max_pixels = 3136
  check.equal(#vl:process(message(got)).image_grid_thw, 1, "other settings")
  local resized = vl:process(message(got)).images[1]
  check.ok(resized.resized_width * resized.resized_height <= 3136, "count")
  proc.max_pixels = most
  proc:cancel(proc:start(source))
end

-- Sides that are resized, and that are not.
for _, side in ipairs { { 84, 84 }, { 150, 97 }, { 168, 168 } } do
  for _, kind in ipairs { "path", "image", "bytes" } do
    local name = ("a prefetched %s of %d x %d"):format(kind, side[1], side[2])
    check.case(name, function()
      local img, path = drawn_image(side[1], side[2])
      local source = { path = path, image = img }
      source.bytes = { bytes = files.read(path), name = "row 1" }
      check_prefetched(img, source[kind])
    end)
  end
end

check.case("a prefetched image that is resized first", function()
  local img, path = drawn_image(150, 97)
  local first = { width = 140, height = 112 }
  local want = img:resize(140, 112, "bilinear")
  for kind, source in pairs { path = path, image = img,
    bytes = { bytes = files.read(path), name = "row 1" } } do
    local future = proc:start(source, first)
    local got, resized = proc:take(future)
    check.equal(pixels_of(got), pixels_of(img), kind .. ": as it is stored")
    check.equal(pixels_of(resized), pixels_of(want), kind .. ": resized")
    local one = vl:process(message(resized))
    check.ok(tensor.data(one.pixel_values) == tensor.data(future.values), kind .. ": its patches")
    check.ok(bytes(one.pixel_values) == bytes(vl:process(message(want)).pixel_values),
      kind .. ": the same bits")
  end
  local _, same = proc:take(proc:start(img, { width = 150, height = 97 }))
  check.ok(same == img, "an image of that size is not resized")
end)

check.case("images that cannot be prefetched", function()
  local _, good = drawn_image(84, 84)
  files.write(place .. "/broken.png", files.read(good):sub(1, 200))
  files.write(place .. "/text.png", "no image at all")
  check.equal(proc:start(place .. "/none.png"), nil,
    "a file that is not there is left to the one who needs it")
  check.equal(proc:start(place .. "/text.png"), nil, "so is one that is no image")
  check.equal(proc:take(proc:start(place .. "/broken.png")), nil, "and one that is cut off")
  check.equal(proc:start(image.new(400, 1)), nil, "and a strip")
  tensor.step(function()
    check.equal(proc:start(good), nil, "inside a step nothing is begun")
  end)
end)

check.case("prefetched images that are freed or forgotten", function()
  local _, path = drawn_image(168, 168)
  -- Freed at once, while the thread may be reading it.
  for _ = 1, 20 do
    local img = image.new(200, 200)
    local ticket = proc:start(img)
    img:free()
    proc:cancel(ticket)
  end
  -- Forgotten: the collector waits or drops.
  for _ = 1, 20 do proc:start(path) end
  collectgarbage()
  collectgarbage()
  check.equal(proc:take(proc:start(path)).width, 168, "the next one is read")
end)

-- ---- rows ahead ----
-- Six rows in a folder of their own.
local function write_set(name)
  local folder = place .. "/" .. name
  refshapes.write_dataset(folder, { n = 6, size = 84, seed = 1 }, image.write_png)
  return folder
end

local function outcome(f, ...)
  local ok, row = pcall(f, ...)
  if not ok then return row end
  return { row.id, row.problem, row.solution, row.frame, pixels_of(row.image),
    row.mask and bytes(row.mask()) }
end

local function broken_set()
  local folder = write_set "broken"
  files.write(folder .. "/images/train_1_000003.png", "no image at all")
  return data.open(folder)
end

local function failing_set()
  local drawn = mini.rows(mini.settings())
  return {
    name = "a set of one's own",
    row = function(_, i)
      if i == 2 then error("row 2 is not there", 0) end
      return drawn:row(i)
    end,
    count = function() return 4 end,
  }
end

local function check_rows(s)
  local a = prefetch.new(vl)
  for i = 1, s:count() do a:request(s, i) end
  a:request(s, 1)
  for i = 1, s:count() do
    check.equal(outcome(a.take, a, s, i), outcome(s.row, s, i), "row " .. i)
  end
  check.equal(tostring(a), "0 prefetched rows", "all taken")
  check.equal(outcome(a.take, a, s, 1), outcome(s.row, s, 1), "a row that was not asked for")
  a:request(s, 1)
  a:cancel()
  check.equal(tostring(a), "0 prefetched rows", "dropped")
end

check.case("rows of a folder ahead, one of them broken", function()
  local folder = broken_set()
  check_rows(folder)
  check.ok(outcome(folder.row, folder, 4):find("/broken/data.jsonl:4: ", 1, true),
    "the broken one fails, with its line")
end)

check.case("rows that are drawn ahead", function() check_rows(mini.rows(mini.settings())) end)
check.case("rows of a script's own set ahead", function() check_rows(failing_set()) end)

-- Ctrl-C comes once and may come here: it is not one of the failures that are left for later.
check.case("rows of a table", function()
  local set = sz.sources.open("tests/golden/sources/refcocog", { split = "train" })
  for _, resize in ipairs { { width = 84, height = 84 }, { width = 112, height = 56 } } do
    local a = prefetch.new(vl, resize)
    for i = 1, set:count() do a:request(set, i) end
    for i = 1, set:count() do
      local row = a:take(set, i)
      local plain = set:row(i)
      check.equal({ row.id, row.solution }, { plain.id, plain.solution }, "row " .. i)
      check.equal(pixels_of(row.image), pixels_of(plain.image), "its image")
      local is_resized = resize.height ~= 84
      check.equal(row.resized ~= nil, is_resized, "whether it is resized")
      if is_resized then
        local want = plain.image:resize(resize.width, resize.height, "bilinear")
        check.equal(pixels_of(row.resized), pixels_of(want), "resized")
      end
    end
    check.equal(tostring(a), "0 prefetched rows", "all taken")
  end
end)

check.case("an interrupt while prefetching", function()
  local folder = broken_set()
  local a = prefetch.new(vl)
  local size = image.size
  image.size = function() error("image.lua:1: interrupted!", 0) end
  local ok, why = pcall(a.request, a, folder, 1)
  image.size = size
  check.equal({ ok, why }, { false, "image.lua:1: interrupted!" },
    "an interrupt while a file's image is begun")
  local set = { row = function() error("data.lua:1: interrupted!", 0) end }
  check.raises(function() a:request(set, 1) end, "interrupted!$", "and while a row is made")
  a:cancel()
end)

-- ---- runs with and without ----
local function state_of(t)
  local out = {}
  for name, x in pairs(t.policy:parameters()) do out[name] = bytes(x) end
  for name, x in pairs(t.optimizer:state()) do out[name] = bytes(x) end
  return out
end
local function differing(a, b)
  for k, v in pairs(a) do
    if b[k] ~= v then return k end
  end
  for k in pairs(b) do
    if a[k] == nil then return k end
  end
end
local function steps(t, n)
  local seen = {}
  for i = 1, n do
    local s = t:step()
    local sum = 0
    for _, name in ipairs(timer.phases) do
      check.ok(s.time[name] >= 0, name .. " takes no negative time")
      sum = sum + s.time[name]
    end
    -- Eleven numbers are added in another order: a few units in the last place of a few seconds.
    check.near(sum, s.seconds.total, 1e-9, "the phases add up to the step")
    check.near(s.seconds.rollout + s.seconds.reward + s.seconds.update + s.time.other,
      s.seconds.total, 1e-9, "and so do their sums")
    for _, name in ipairs { "data", "decode", "forward", "backward", "optimizer" } do
      check.ok(s.time[name] > 0, name .. " takes time")
    end
    s.time = nil
    s.seconds = nil
    s.machine = nil
    seen[i] = s
  end
  return seen
end

local set = write_set "set"
local cfg = mini.settings { "data.train_files=" .. set }

local function new(opts, settings)
  opts = opts or {}
  opts.model = dir
  opts.reference = true
  opts.train = opts.train or data.open(set)
  return mini.trainer(settings or cfg, opts)
end

-- The run without background work: its trainer, and the reports of its four steps.
local plain, want
local function without()
  if not plain then
    plain = new { prefetch = false }
    want = steps(plain, 4)
  end
  return plain, want
end

check.case("prefetched images that are resized first change no number", function()
  local resized = mini.settings { "data.train_files=" .. set, "data.resize=112x84" }
  local one = new({ prefetch = false }, resized)
  local other = new({}, resized)
  check.equal(steps(one, 2), steps(other, 2), "what is reported")
  check.equal(differing(state_of(one), state_of(other)), nil, "the weights")
end)

check.case("prefetched images change no number", function()
  local other, reports = without()
  local t = new()
  local taken = 0
  local processor = t.policy:processor()
  local take = processor.take
  function processor.take(...)
    taken = taken + 1
    return take(...)
  end
  check.equal(steps(t, 4), reports, "the same reports")
  check.equal(differing(state_of(t), state_of(other)), nil, "the same bits")
  check.equal(taken, 3 * 2, "all but the first step's images were prefetched")
  check.equal(tostring(t.sampler.queue), "0 prefetched rows", "nothing is read past the last step")
end)

-- A broken image of step 2: step 1 succeeds, step 2 fails with the message that it gives without
-- prefetching.
check.case("a broken image has the same message with and without", function()
  local folder = write_set "second"
  local order = new({ prefetch = false }).sampler:indices(data.open(folder), 2)
  files.write(("%s/images/train_1_%06d.png"):format(folder, order[1] - 1), "no image at all")
  local messages = {}
  for i, prefetched in ipairs { false, true } do
    local t = new { prefetch = prefetched, train = data.open(folder) }
    check.ok(pcall(t.step, t), "step 1 does not need the broken image")
    messages[i] = select(2, pcall(t.step, t))
    check.equal(t.global_step, 1, "step 2 fails")
  end
  check.equal(messages[2], messages[1], "the same message")
  check.ok(messages[1]:find(("data.jsonl:%d: "):format(order[1]), 1, true),
    "which names the row: " .. messages[1])
end)

-- ---- groups judged as they end ----
-- No setting fixes the order in which groups end, so generate is wrapped.
local generate = rollout.generate
local function with_order(order_of, f)
  rollout.generate = function(model, inputs, opts)
    local own = opts.on_group
    opts.on_group = nil
    local answers, stats = generate(model, inputs, opts)
    for _, i in ipairs(order_of(#inputs)) do own(i, answers[i]) end
    return answers, stats
  end
  local ok, why = pcall(f)
  rollout.generate = generate
  if not ok then error(why, 0) end
end
local ORDERS = {
  forward = function(n)
    if n == 2 then return { 1, 2 } end
    return { 1 }
  end,
  backward = function() return { 2, 1 } end,
  ["the last only"] = function() return { 2 } end,
  none = function() return {} end,
}

for name, order_of in pairs(ORDERS) do
  check.case("groups judged in another order: " .. name, function()
    local other, reports = without()
    with_order(order_of, function()
      local t = new()
      check.equal(steps(t, 4), reports, "the same reports")
      check.equal(differing(state_of(t), state_of(other)), nil, "the same bits")
    end)
  end)
end

check.case("every answer is judged once", function()
  local asked = 0
  with_order(function() return { 2, 1 } end, function()
    local t = new { reward = function(text)
      asked = asked + 1
      return mini.reward(text)
    end }
    t:step()
  end)
  check.equal(asked, 2 * 3, "every answer is judged once")
end)

check.case("a reward that fails while others decode", function()
  with_order(function() return { 1 } end, function()
    local t = new { reward = function() error "no judgement today" end }
    local _, why = pcall(t.step, t)
    local _, times = tostring(why):gsub("the reward failed on row", "")
    check.ok(times == 1 and why:find("no judgement today", 1, true),
      "a reward that fails while others decode: " .. tostring(why))
    check.equal(C.sz_scope_depth(), 0, "no scope is left open")
  end)
end)

-- ---- checkpoints behind ----
check.case("a checkpoint written behind is the one written at once", function()
  local sync = place .. "/sync"
  local behind = place .. "/behind"
  files.make_dir(sync)
  files.make_dir(behind)
  local a = new { folder = sync }
  local b = new { folder = behind }
  a:step()
  b:step()
  a:save()
  local at = state_of(b)
  local path = b:begin_save()
  local calls = {}
  local real_finish = checkpoint.finish
  local real_step = b.optimizer.step
  checkpoint.finish = function(...)
    calls[#calls + 1] = "written"
    check.equal(differing(state_of(b), at), nil,
      "nothing has changed the weights while they were written")
    return real_finish(...)
  end
  b.optimizer.step = function(...)
    calls[#calls + 1] = "optimizer"
    return real_step(...)
  end
  b:step()
  checkpoint.finish = real_finish
  check.equal(calls, { "written", "optimizer" }, "the optimizer waits")
  for _, name in ipairs { "model.safetensors", "optimizer.safetensors", "config.json",
    "tokenizer.json", "trainer_state.json", "DONE" } do
    local one = files.read(sync .. "/global_step_1/" .. name)
    local two = files.read(path .. "/" .. name)
    check.ok(one ~= nil and one == two, name .. " is what it is without")
  end
  check.equal(files.read(behind .. "/latest"), "global_step_1\n", "latest")
  b:save()
  b:save()        -- again over the same step
  check.equal(checkpoint.latest(behind), behind .. "/global_step_2", "the newest")
  for _, left in ipairs { "global_step_1.tmp", "global_step_2.tmp", "global_step_2.old" } do
    check.ok(not files.exists(behind .. "/" .. left .. "/config.json"), "no " .. left)
  end
end)

-- The error names the file, the weights stay, nothing complete is left.
check.case("a checkpoint that cannot be written", function()
  local behind = place .. "/failing"
  files.make_dir(behind)
  local first = new { folder = behind }
  first:step()
  first:step()
  first:save()
  local broken = new { folder = behind }
  broken:resume(behind .. "/global_step_2")
  local save = broken.policy.save
  broken.policy.save = function(self, to, opts)
    opts.later:text(to .. "/nowhere/file", "x")
    return save(self, to, opts)
  end
  broken.global_step = 3
  broken:begin_save()
  local before = state_of(broken)
  check.raises(function() broken:step() end,
    "global_step_3 is not written: .*nowhere/file: cannot create its temporary file: No such file",
    "a failed write")
  check.equal(differing(state_of(broken), before), nil, "the optimizer has not stepped")
  check.equal(checkpoint.latest(behind), behind .. "/global_step_2",
    "what is not written does not count")
  broken.global_step = 3
  check.raises(function() broken:save() end, "nowhere/file", "and when it is waited for at once")
  broken.policy.save = nil
end)

check.case("a run that fails waits for its checkpoint", function()
  local run = place .. "/run"
  files.make_dir(run)
  local cfg_every = mini.settings { "data.train_files=" .. set, "trainer.save_freq=1" }
  local judged = 0
  local t = mini.trainer(cfg_every,
    { model = dir, folder = run, train = data.open(set), total_steps = 4, reward = function(text)
      judged = judged + 1
      if judged > 6 then error "enough" end
      return mini.reward(text)
    end })
  check.raises(function() t:run() end, "enough", "the run ends with its error")
  check.ok(files.exists(run .. "/global_step_1/DONE"), "and its checkpoint is there")
  check.equal(t.pending, nil, "nothing is being written")


  -- The time table in the file.
  t.reward = mini.reward
  t:run()
  local line
  for text in io.lines(run .. "/metrics.jsonl") do line = cjson.decode(text) end
  check.ok(line.time and line.time.decode > 0 and line.time.checkpoint >= 0,
    "metrics.jsonl has the table")
  check.equal(require("segzero.log").times({ decode = 3, backward = 1, data = 0.001 },
    timer.phases), "  time: decode 75 %, backward 25 %", "its line")
end)

check.case("the timer moves time between phases", function()
  timer.start()
  timer.enter "decode"
  local now = C.sz_seconds()
  while C.sz_seconds() - now < 0.01 do end
  timer.move("decode", "vision", 0.005)
  local spent, total = timer.stop()
  check.equal(spent.vision, 0.005, "moved")
  check.near(spent.decode, total - 0.005, 1e-3, "and the rest stays")
  check.raises(function()
    timer.start()
    timer.enter "nothing"
  end, "there is no phase 'nothing'", "an unknown phase")
  timer.stop()
end)

-- Jobs that wait when the program ends are dropped, those that run are waited for.
check.case("a program ends with jobs", function()
  local _, path = drawn_image(168, 168)
  local text, status = mini.run { "-e", ([[local p = require("segzero").qwen_vl(%q):processor()
    for i = 1, 50 do p:start(%q) end
    local w = require("segzero.core.jobs").writing()
    w:text(%q, "written")
    job = w:start()
    local now = os.clock()
    while os.clock() - now < 0.2 do end]]):format(dir, path, place .. "/late") }
  check.equal(status, 0, "a program with jobs ends: " .. text)
  check.equal(files.read(place .. "/late"), "written", "what was begun is written")
end)

-- ---- bounds ----
check.case("a prompt longer than the plan's", function()
  local fits = plan.of(mini.settings { "worker.actor.model.model_path=" .. dir },
    { prompt = require("segzero.data.prompt").seg_zero })
  local bounded = new { plan = fits }
  bounded:step()
  bounded.plan = setmetatable({ prompt = 10 }, { __index = fits })
  bounded.plan.state = setmetatable({ device = { total = 2 ^ 20, free = 2 ^ 20 } },
    { __index = fits.state })
  for k, v in pairs(fits.state) do if k ~= "device" then bounded.plan.state[k] = v end end
  local weights = state_of(bounded)
  check.raises(function() bounded:step() end,
    "row .*: the prompt has %d+ tokens, a step with it would take .* and this machine has "
      .. "0%.00 GiB", "refused with the numbers")
  check.equal(differing(state_of(bounded), weights), nil, "before anything was done")
  bounded.plan = setmetatable({ prompt = 10 }, { __index = fits })
  bounded:step()
  check.ok(bounded.plan.prompt > 10, "and the plan grows where there is room")
end)

local LEAST_LEAK = 20           -- KB in 500 steps

-- One prompt and two answers of two tokens.
check.case("500 steps: no growth", function()
  local function resident()
    return tonumber(io.open("/proc/self/statm"):read "*a":match "^%d+ (%d+)") * 4096
  end
  local tiny = mini.settings { "data.rollout_batch_size=1", "worker.actor.global_batch_size=1",
    "worker.rollout.n=2", "data.max_response_length=2",
    "data.refshapes_rows=2" }
  local many = mini.trainer(tiny, { model = dir, total_steps = 2000 })
  for _ = 1, 60 do many:step() end
  -- Compiled traces come and go, 300 KB in all: they are dropped before Lua's memory is read.
  local function collect()
    jit.flush()
    collectgarbage()
    collectgarbage()
  end
  collect()
  local rss = resident()
  local live = tonumber(C.sz_live_bytes())
  local allocs = tonumber(C.sz_system_allocs())
  local lua = collectgarbage "count"
  for _ = 1, 500 do many:step() end
  collect()
  check.equal(tonumber(C.sz_system_allocs()) - allocs, 0, "500 steps ask the system for no memory")
  check.equal(tonumber(C.sz_live_bytes()), live, "live bytes")
  -- A leak of one table a step would be 30 KB and more, in every 500 steps. A module that is loaded
  -- when something happens for the first time is as much, once.
  local grown = collectgarbage "count" - lua
  if grown >= LEAST_LEAK then
    lua = collectgarbage "count"
    for _ = 1, 500 do many:step() end
    collect()
    grown = collectgarbage "count" - lua
  end
  check.ok(grown < LEAST_LEAK, ("Lua's memory grew by %.0f KB"):format(grown))
  local sanitizer = (require("segzero.host").library or ""):find "build/%a+/libsegzero"
  -- LuaJIT's heap and malloc's arenas move by some 0.5 MB; one leaked image of these a step would
  -- be 10 MB.
  check.ok(sanitizer or resident() - rss < 2 ^ 20,
    ("the resident set grew by %d bytes in 500 steps"):format(resident() - rss))
  local more = (resident() - rss) / 1024
  print(("overlap: resident set %+.0f KB, Lua %+.0f KB in 500 steps"):format(more,
    collectgarbage "count" - lua))
  check.equal(tostring(jobs.writing()), "files to be written",
    "a list that is not started goes with the collector")
end)

mini.remove()
check.finish()
