-- test_faults.lua - faults in a loop: the n-th allocation, the n-th write and the n-th change of a
-- folder fail (and all writes after it, as on a full disk), for every n until none does, while a
-- model is loaded, a step is trained, a checkpoint is written, an evaluation runs or a model is
-- downloaded. The outcome must be a clear error or a success: never a crash,
-- a hang, or a damaged older checkpoint.
--
--   ./segzero tests/system/test_faults.lua               strides keep it short
--   FAULTS=all ./segzero tests/system/test_faults.lua    every n
--
-- Each sweep runs in a process of its own that preloads build/tests/faults.so
-- (tests/support/faults.c). Leaves out: faults of reads and of mmap.

local ffi = require "ffi"
local check = require "tests.support.check"
local files = require "segzero.core.files"
local host = require "segzero.host"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local sz = require "segzero"

local LIBRARY = "build/tests/faults.so"
local KINDS = { alloc = 0, write = 1, name = 2 }
local TIMEOUT = 600

-- ---- the child: one sweep ----
-- Each work is {run = f, intact = f | nil}: intact raises if something older was damaged.
local works = {}

function works.load(place)
  local dir = mini.write(place .. "/model")
  local photo = place .. "/x.png"
  sz.image.new(60, 40):save(photo)
  return { run = function()
    local vl = sz.qwen_vl(dir)
    local item = { type = "image", image = photo }
    vl:process { { role = "user", content = { item, { type = "text", text = "a" } } } }
    vl:free()
    sz.sam2("models/tiny/sam2"):free()
  end }
end

-- Without lossless WebP: libwebp 1.2.4 crashes where one of its own small allocations fails.
function works.images(place)
  local folder = "tests/golden/images/"
  local names = { "420_17x13.jpg", "444_17x13_progressive.jpg", "exif_6.jpg", "cmyk_17x13.jpg",
    "rgba8_19x11_interlaced.png", "palette8_19x11_trns.png", "exif_6.png", "lossy_17x13_75.webp",
    "animated.gif", "runs8_13x9.bmp", "p3_13x9_7.pnm", "exif_split_30.jpg", "xmp_packed.png" }
  return { run = function()
    for _, name in ipairs(names) do
      sz.image.load(folder .. name):free()
      sz.image.load_mask(folder .. name):free()
    end
    local img = sz.image.new(30, 20)
    img:save(place .. "/a.png")
    img:save(place .. "/a.jpg")
    img:free()
  end }
end

function works.step(place)
  local dir = mini.write(place .. "/model")
  local t = mini.trainer(mini.settings { "data.refshapes_rows=2" },
    { model = dir, reference = true, total_steps = 1e6 })
  t:step()
  return { run = function()
    t.sampler:cancel()          -- images whose prefetching failed
    t.optimizer:zero_grad()
    t:step()
  end }
end

function works.checkpoint(place)
  local checkpoint = require "segzero.train.run.checkpoint"
  local dir = mini.write(place .. "/model")
  local run = place .. "/run"
  files.make_dir(run)
  local t = mini.trainer(mini.settings { "data.refshapes_rows=2" }, { model = dir, folder = run })
  t:step()
  local older = t:save()
  t:step()
  return {
    run = function()
      t:save()
      checkpoint.load(run .. "/global_step_2", t.policy, t.optimizer)
    end,
    intact = function()
      checkpoint.load(older, t.policy, t.optimizer)
      local latest = checkpoint.latest(run)
      checkpoint.load(latest, t.policy, t.optimizer)
    end,
  }
end

function works.evaluation(place)
  local count = 0
  local settings = { "data=refshapes", "rows=2", "max_new_tokens=4", "resamples=2",
    "model_path=models/tiny/qwen2.5-vl", "sam2_path=none" }
  return { run = function()
    count = count + 1
    local all = { unpack(settings) }
    all[#all + 1] = ("output_path=%s/out%d"):format(place, count)
    require("recipes.evaluate").run(all)
  end }
end

-- Rows to prepare, as Parquet: a set that has its name is whole.
function works.prepare(place)
  local count = 0
  local parquet = require "segzero.formats.parquet"
  local recipe = require "recipes.prepare_data"
  local data = "data=tests/golden/annotations/refer_seg/refcocog@train"
  local path
  return {
    run = function()
      count = count + 1
      path = ("%s/out%d"):format(place, count)
      recipe.run { data, "size=28", "rows_per_file=2", "output=" .. path }
    end,
    intact = function()
      if not files.exists(path .. "/data") then return end
      for k = 0, 1 do
        local file = parquet.open(("%s/data/train-%05d-of-00002.parquet"):format(path, k))
        for i = 1, 2 do sz.image.decode(file:value(i, "image").bytes):free() end
        file:close()
      end
    end,
  }
end

-- A model from a hub on loopback into an empty cache. What has the name of a whole file is whole.
function works.download(place)
  local hub = require "segzero.hub"
  local hub_server = require "tests.support.hub_server"
  local set = require("posix.stdlib").setenv
  local weights = ("weights "):rep(1000)
  local server = hub_server.start { models = { ["org/name"] = {
    files = { ["config.json"] = "{}", ["model.safetensors"] = weights } } } }
  set("HF_ENDPOINT", server.url)
  set("HF_HUB_OFFLINE", "")
  local count = 0
  local home
  return {
    run = function()
      count = count + 1
      home = ("%s/home%d"):format(place, count)
      set("HF_HOME", home)
      hub.fetch { id = "org/name" }
    end,
    intact = function()
      local blob = ("%s/hub/models--org--name/blobs/%s"):format(home, hub_server.sum(weights))
      if files.exists(blob) and files.read(blob) ~= weights then
        error(blob .. " is not whole", 0)
      end
      local folder = hub.fetch { id = "org/name" }
      assert(files.read(folder .. "/model.safetensors") == weights)
    end,
  }
end

-- A message that a user can act on.
local function is_clear(message)
  if type(message) ~= "string" then return false end
  return not (message:find "attempt to" or message:find "bad argument"
    or message:find "assertion failed")
end

local function sweep(name, kind, stride)
  ffi.cdef "void faults_arm(int kind, long n); long faults_disarm(void);"
  local place = mini.folder()
  local work = works[name](place)
  work.run()                    -- what is made once is not part of the sweep
  collectgarbage()
  local note = io.open(place .. "/trial", "w")
  local injected = 0
  local errors = 0
  local successes = 0
  local damaged = 0
  local n = 0
  while true do
    note:seek "set"
    note:write(n, "\n")
    note:flush()
    ffi.C.faults_arm(kind, n)
    local ok, message = pcall(work.run)
    local calls = tonumber(ffi.C.faults_disarm())
    collectgarbage()
    local reached = calls > n
    if reached then injected = injected + 1 end
    if ok then successes = successes + 1 else errors = errors + 1 end
    if not ok and not is_clear(message) then
      print(("UNCLEAR at %d: %s"):format(n, tostring(message)))
    end
    if ok and reached and kind == KINDS.write then print("SILENT at " .. n) end
    local fine, why = pcall(work.intact or function() end)
    if not fine then
      damaged = damaged + 1
      print(("DAMAGED after %d: %s"):format(n, tostring(why)))
    end
    if not reached then
      if not ok then print(("FAILED without a fault: %s"):format(tostring(message))) end
      break
    end
    n = n + stride
  end
  print(("SWEEP %d injected, %d clean errors, %d successes, %d damaged"):format(injected, errors,
    successes, damaged))
  mini.remove()
end

for _, word in ipairs(arg) do
  local name, kind, stride = word:match "^sweep=(%w+),(%w+),(%d+)$"
  if name then
    sweep(name, KINDS[kind], tonumber(stride))
    os.exit(0)
  end
end

-- ---- the parent ----
-- The strides of a short run: 10 to 40 faults in each sweep.
local SWEEPS = {
  { "load", "alloc", 1 }, { "load", "write", 1 }, { "images", "alloc", 1 },
  { "images", "write", 1 }, { "step", "alloc", 1 },
  { "checkpoint", "alloc", 1 }, { "checkpoint", "write", 7 }, { "checkpoint", "name", 1 },
  { "evaluation", "alloc", 31 }, { "evaluation", "write", 1 }, { "evaluation", "name", 1 },
  { "prepare", "alloc", 9 }, { "prepare", "write", 1 }, { "prepare", "name", 1 },
  { "download", "alloc", 1 }, { "download", "write", 1 }, { "download", "name", 3 },
}
-- Loading writes nothing: its sweep must end at once.
local LEAST = { ["load write"] = 0 }

local all = os.getenv "FAULTS" == "all"
local sanitizer = (host.library or ""):find "build/%a+/libsegzero"

for _, s in ipairs(SWEEPS) do
  local name, kind, stride = unpack(s)
  if all then stride = 1 end
  check.case(("%s, faults of kind %s"):format(name, kind), function()
    if sanitizer then return check.skip "a build without a sanitizer, which owns malloc" end
    if not files.exists(LIBRARY) then return check.skip(LIBRARY .. " (make suite builds it)") end
    local output, status = process.run({ host.executable, "--threads", "1",
      "tests/system/test_faults.lua", ("sweep=%s,%s,%d"):format(name, kind, stride) },
      { timeout = TIMEOUT, env = { LD_PRELOAD = LIBRARY } })
    check.equal(status, 0, "the sweep ends by itself; its output:\n" .. output:sub(-1500))
    local injected, errors, successes, damaged =
      output:match "SWEEP (%d+) injected, (%d+) clean errors, (%d+) successes, (%d+) damaged"
    if not check.ok(injected, "the sweep reports its counts: " .. output:sub(-1500)) then return end
    print(("%s, %s: %s injected, %s clean errors, %s successes, %s damaged"):format(name, kind,
      injected, errors, successes, damaged))
    local least = LEAST[name .. " " .. kind] or 2
    check.ok(tonumber(injected) >= least, "faults were injected: " .. injected)
    check.equal(tonumber(damaged), 0, "damaged files")
    check.equal(output:match "UNCLEAR[^\n]*", nil, "every error is clear")
    check.equal(output:match "SILENT[^\n]*", nil, "a full disk is an error")
    check.equal(output:match "FAILED[^\n]*", nil, "without a fault it works")
  end)
end

check.finish()
