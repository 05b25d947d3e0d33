-- test_power_loss.lua - a loss of power after every single event of a run that saves, replaces and
-- removes checkpoints: what is complete then, is whole.
--
-- A run is watched by tests/support/power_loss.c. Its events are replayed in two ways:
--   data     names change at once, and a file has the bytes of its last sync (none: it is empty)
--   names    a folder has the names of its last sync, too
-- After each event the folder is looked at as a resumed run would: a checkpoint with DONE must
-- agree with its manifest, the logs must have its step, and the newest step must never fall.
-- Left out: torn writes inside a synced file, disks that lie about syncing.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local runs = require "tests.support.rank_runs"
local files = require "segzero.core.files"
local host = require "segzero.host"
local manifest = require "segzero.runs.manifest"

if (host.library or ""):find "build/%a+/libsegzero" then
  check.skip "a build without a sanitizer, which does not run behind LD_PRELOAD"
  check.finish()
  os.exit(0)
end

local place = mini.folder()
local dir = mini.write(place .. "/model")
local shim = place .. "/power_loss.so"
local compile = "cc -shared -fPIC -O1 -Wall -o " .. shim .. " tests/support/power_loss.c -ldl"
check.equal(os.execute(compile), 0, "the library compiles")
files.write(place .. "/reward.lua", mini.reward_source)

-- Runs the recipe on `ranks` ranks and returns their events: {{what, a, b}, ...}. `folder` is
-- watched.
local function record(ranks, folder, log, ...)
  files.make_dir(log)
  local argv = { host.executable, "--threads", "1", "recipes/refcocog_grpo.lua",
    "worker.actor.model.model_path=" .. dir, "worker.reward.compute_score=" .. place
      .. "/reward.lua" }
  if ranks > 1 then
    table.insert(argv, 2, "--ranks")
    table.insert(argv, 3, tostring(ranks))
  end
  for _, list in ipairs { mini.arguments, { "data.val_files=None", "trainer.save_freq=1", ... } } do
    for _, word in ipairs(list) do argv[#argv + 1] = word end
  end
  local output, status = process.run(argv, { timeout = 60, env = { LD_PRELOAD = shim,
    POWER_LOSS_FOLDER = folder, POWER_LOSS_LOG = log } })
  check.equal(status, 0, "the run ends: " .. output:sub(-300))
  local events = {}
  for line in io.lines(log .. "/events") do
    local what, a, b = line:match "^(%a+)\t([^\t]+)\t?(.*)$"
    events[#events + 1] = { what, a, b }
  end
  return events
end

-- ---- a disk ----
-- A node is {names = {name -> node}, synced = {name -> node}} for a folder, {data = N | nil} for a
-- file: N is the record's file with its synced bytes.
local function new_folder() return { names = {}, synced = {} } end

local function split(path) return path:match "^(.*)/([^/]*)$" end

-- The node of a path, or nil.
local function find(disk, path)
  if path == disk.root then return disk.node end
  local above, name = split(path)
  local parent = find(disk, above)
  return parent and parent.names and parent.names[name]
end

local apply = {}

function apply.create(disk, path)
  local above, name = split(path)
  find(disk, above).names[name] = {}
end

function apply.mkdir(disk, path)
  local above, name = split(path)
  find(disk, above).names[name] = new_folder()
end

function apply.rename(disk, from, to)
  local above, name = split(from)
  local parent = find(disk, above)
  local node = parent.names[name]
  parent.names[name] = nil
  above, name = split(to)
  find(disk, above).names[name] = node
end

function apply.remove(disk, path)
  local above, name = split(path)
  find(disk, above).names[name] = nil
end

function apply.sync(disk, path, number) find(disk, path).data = number end

function apply.syncdir(disk, path)
  local node = find(disk, path)
  node.synced = {}
  for name, child in pairs(node.names) do node.synced[name] = child end
end

-- ---- after the loss ----
local MODELS = { data = "names", names = "synced" }

local seen = {}                 -- what was compared before: names and numbers -> the result

-- What is wrong with a complete checkpoint, "" for nothing. Its files are written to a real folder,
-- once for each combination.
local function fault_of(log, entries)
  local parts = {}
  for name, node in pairs(entries) do parts[#parts + 1] = name .. "=" .. (node.data or "none") end
  table.sort(parts)
  local key = log .. table.concat(parts, " ")
  if seen[key] ~= nil then return seen[key] end
  local folder = mini.folder()
  for name, node in pairs(entries) do
    local text = ""
    if node.data then text = files.read(log .. "/" .. node.data) end
    files.write(folder .. "/" .. name, text)
  end
  local ok, result = pcall(manifest.check, folder)
  seen[key] = ""
  if not ok then seen[key] = result end
  if ok and not result then seen[key] = "there is no manifest" end
  return seen[key]
end

-- The steps in a log's synced bytes: {[step] = true}.
local function logged_steps(log, node)
  local steps = {}
  local text = node and node.data and files.read(log .. "/" .. node.data) or ""
  for line in text:gmatch "[^\n]+" do steps[cjson.decode(line).step] = true end
  return steps
end

-- The newest complete step of the run folder; adds to `bad` what is not as it should be.
local function look(disk, model, run, log, bad)
  local key = MODELS[model]
  local node = disk.node[key] and disk.node[key][run]
  if not node then return 0 end
  local newest = 0
  local steps = logged_steps(log, node[key]["metrics.jsonl"])
  for name, child in pairs(node[key]) do
    local step = tonumber(name:match "^global_step_(%d+)$" or name:match "^global_step_(%d+)%.old$")
    if step and child[key] and child[key].DONE then
      local fault = fault_of(log, child[key])
      if fault ~= "" then bad[#bad + 1] = name .. ": " .. fault end
      if not steps[step] then bad[#bad + 1] = name .. " is not in the log" end
      newest = math.max(newest, step)
    end
  end
  return newest
end

-- Replays events on a new disk. last: the newest step in the end.
local function replay(events, model, log, last)
  local disk = { root = place .. "/disk", node = new_folder() }
  local bad = {}
  local newest = 0
  local complete = 0
  for i, event in ipairs(events) do
    apply[event[1]](disk, event[2], event[3])
    local step = look(disk, model, "run", log, bad)
    if step < newest then bad[#bad + 1] = ("event %d: step %d is gone"):format(i, newest) end
    if step > 0 then complete = complete + 1 end
    newest = step
  end
  check.equal(table.concat(bad, "; ", 1, math.min(#bad, 3)), "", model .. ": nothing is lost")
  check.equal(newest, last, model .. ": the last step is complete in the end")
  check.ok(complete > 50, model .. ": checkpoints are looked at after " .. complete .. " events")
end

files.make_dir(place .. "/disk")
local log = place .. "/log"
local the_events

-- The events of a run of four steps that keeps two checkpoints.
local function recorded()
  the_events = the_events or record(1, place .. "/disk", log, "trainer.max_steps=4",
    "trainer.save_limit=2", "trainer.save_checkpoint_path=" .. place .. "/disk/run")
  return the_events
end

check.case("the run is recorded", function()
  local events = recorded()
  local kinds = {}
  for _, event in ipairs(events) do kinds[event[1]] = (kinds[event[1]] or 0) + 1 end
  check.ok(kinds.sync > 40 and kinds.syncdir > 40 and kinds.rename > 40,
    "files and names are synced")
  check.ok(kinds.remove > 20, "old checkpoints are removed")
end)

check.case("after a loss of power every complete checkpoint is whole", function()
  local events = recorded()
  replay(events, "data", log, 4)
  replay(events, "names", log, 4)
end)

-- Two shards write the parts of one file of weights and of one of state. What one of them syncs is
-- on the disk for both.
check.case("the same where two shards write a checkpoint together", function()
  if not runs.available() then return end
  local disk = place .. "/disk"
  assert(os.execute("rm -rf " .. disk .. "/run") == 0)
  local own = place .. "/log_of_shards"
  local events = record(2, disk, own, "trainer.max_steps=3", "trainer.save_limit=1",
    "worker.rollout.tensor_parallel_size=2", "worker.reward.sam2_path=none",
    "trainer.save_checkpoint_path=" .. disk .. "/run")
  local synced = {}
  for _, event in ipairs(events) do
    if event[1] == "sync" and event[2]:find "global_step_3.*/model.safetensors.tmp$" then
      synced[event[3]:match "^%d+"] = true
    end
  end
  local writers = 0
  for _ in pairs(synced) do writers = writers + 1 end
  check.equal(writers, 2, "processes that sync their parts of the weights")
  replay(events, "data", own, 3)
  replay(events, "names", own, 3)
end)

check.case("a checkpoint that is removed stops counting before its files go", function()
  local events = recorded()
  local removed = 0
  for i, event in ipairs(events) do
    local folder = event[1] == "remove" and event[2]:match "^(.*)/DONE$"
    if folder then
      removed = removed + 1
      check.equal(events[i + 1], { "syncdir", folder, "" }, "DONE's removal is on the disk first")
    end
  end
  check.equal(removed, 2, "two checkpoints were removed")
end)

check.case("what is not synced would be found", function()
  local events = recorded()
  -- The same events without the syncs of one companion file.
  local fewer = {}
  for _, event in ipairs(events) do
    local dropped = event[1] == "sync" and event[2]:find "tokenizer.json"
    if not dropped then fewer[#fewer + 1] = event end
  end
  check.ok(#fewer < #events, "syncs are dropped")
  local disk = { root = place .. "/disk", node = new_folder() }
  local bad = {}
  for _, event in ipairs(fewer) do
    apply[event[1]](disk, event[2], event[3])
    look(disk, "data", "run", log, bad)
  end
  check.ok(#bad > 0 and bad[1]:find "tokenizer.json has 0 bytes",
    "an empty tokenizer.json is found")
end)

mini.remove()
check.finish()
