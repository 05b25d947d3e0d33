-- test_stops.lua - a run that is stopped by a signal or an error loses no finished step: it saves,
-- says how to go on, and the resumed run ends with the same bits as one that was never stopped.
--
--   ./segzero tests/system/test_stops.lua             signals at random moments of a miniature run
--   STOPS=200 ./segzero tests/system/test_stops.lua   more of them
--
-- Leaves out: SIGKILL (test_train.lua: only complete checkpoints count).

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local host = require "segzero.host"
local files = require "segzero.core.files"

local STOPS = tonumber(os.getenv "STOPS" or "") or 6
local STEPS = 12
local TIMEOUT = 120
-- A SIGHUP that is ignored, as under nohup, would stay so.
local AS_USUAL = "env --default-signal=HUP "

local place = mini.folder()
local model = mini.write(place .. "/model")
files.write(place .. "/reward.lua", mini.reward_source)

-- The words of a run of STEPS steps; extra: more settings.
local function command(folder, extra)
  local words = { host.executable, "--threads", "1", "recipes/refcocog_grpo.lua",
    "worker.actor.model.model_path=" .. model }
  for _, a in ipairs(mini.arguments) do words[#words + 1] = a end
  for _, a in ipairs { "data.val_files=None", "worker.reward.sam2_path=none",
    "worker.reward.compute_score=" .. place .. "/reward.lua", "trainer.max_steps=" .. STEPS,
    "trainer.save_freq=5", "trainer.save_checkpoint_path=" .. folder } do
    words[#words + 1] = a
  end
  for _, a in ipairs(extra or {}) do words[#words + 1] = a end
  return words
end

local function run(folder, extra)
  return process.run(command(folder, extra), { timeout = TIMEOUT })
end

-- Runs a shell command that starts the run in the background, as $p, and ends with its status.
local function run_and(folder, signals, extra)
  local quoted = {}
  for i, word in ipairs(command(folder, extra)) do quoted[i] = mini.quoted(word) end
  local text = AS_USUAL .. table.concat(quoted, " ") .. " & p=$!; " .. signals .. "; wait $p"
  return process.run({ "bash", "-c", text }, { timeout = TIMEOUT })
end

local function steps_in_log(folder)
  local steps = {}
  for line in (files.read(folder .. "/metrics.jsonl") or ""):gmatch "[^\n]+" do
    steps[#steps + 1] = tonumber(line:match '"step":(%d+)')
  end
  return steps
end

local ALL_STEPS = {}
for i = 1, STEPS do ALL_STEPS[i] = i end

-- A run that nothing stops: its folder, how long it takes, and the bytes of its end.
local function result_of(folder)
  local path = ("%s/global_step_%d/"):format(folder, STEPS)
  return files.read(path .. "model.safetensors"), files.read(path .. "optimizer.safetensors")
end

local function whole_run_in(folder, extra)
  local started = process.now()
  local output, status = run(folder, extra)
  check.equal(status, 0, "a whole run: " .. output)
  local weights, moments = result_of(folder)
  return { folder = folder, seconds = process.now() - started, weights = weights,
    moments = moments }
end

local whole = whole_run_in(place .. "/whole")

-- Goes on with a stopped run and compares its end with that of a whole run.
local function expect_same_end(folder, name, whole_run, extra)
  -- Some of the stopped runs had a slower reward with the same scores.
  local words = { "trainer.load_checkpoint_path=" .. folder, "trainer.resume_changes=true" }
  for _, word in ipairs(extra or {}) do words[#words + 1] = word end
  local output, status = run(folder, words)
  check.equal(status, 0, name .. ": the resumed run: " .. output)
  local weights, moments = result_of(folder)
  whole_run = whole_run or whole
  check.ok(weights == whole_run.weights, name .. ": the same weights")
  check.ok(moments == whole_run.moments, name .. ": the same moments")
  check.equal(steps_in_log(folder), ALL_STEPS, name .. ": each step is logged once")
end

-- ---- signals ----
local SIGNALS = { { "TERM", 143 }, { "INT", 130 }, { "HUP", 129 },
  { "USR1", 138 }, { "USR2", 140 }, { "XCPU", 152 } }

-- Stops `count` runs at random moments. whole: the folder of the run that nothing stops.
local function stop_at_random(count, whole_run, extra)
  local saved = 0
  local in_training = 0
  for i = 1, count do
    local signal, expected = unpack(SIGNALS[i % #SIGNALS + 1])
    local folder = ("%s-stopped-%d"):format(whole_run.folder, i)
    local wait = 0.1 + math.random() * whole_run.seconds
    local output, status = run_and(folder, ("sleep %.4f; kill -%s $p"):format(wait, signal), extra)
    local name = ("SIG%s after %.3f s"):format(signal, wait)
    check.ok(not output:find "stack traceback", name .. ": no traceback: " .. output)

    local step, rest = output:match "stopped by SIG[%u%d]+ after step (%d+); ([^\n]+)\n$"
    if step then
      in_training = in_training + 1
      check.equal(status, expected, name .. ": status")
      check.equal(#steps_in_log(folder), tonumber(step), name .. ": the finished steps are logged")
    end
    if step and step ~= "0" then
      saved = saved + 1
      check.equal(rest, ("saved %s/global_step_%s; go on with: trainer.load_checkpoint_path=%s")
        :format(folder, step, folder), name .. ": the line")
      expect_same_end(folder, name, whole_run, extra)
    end
  end
  return saved, in_training
end

check.case("a signal at any moment loses no finished step", function()
  math.randomseed(check.seed)
  local saved, in_training = stop_at_random(STOPS, whole)
  check.ok(saved >= STOPS / 4, ("%d of %d runs were stopped after a step"):format(saved, STOPS))
  check.ok(in_training >= saved, "stops before the first step")
end)

check.case("a stop between two updates of a step waits for the second", function()
  math.randomseed(check.seed + 1)
  local extra = { "worker.actor.global_batch_size=1",
    "worker.actor.max_tokens_per_micro_batch=100" }
  local other = whole_run_in(place .. "/two-updates", extra)
  check.ok(other.weights ~= whole.weights, "two updates are another run")
  check.ok(stop_at_random(STOPS / 2, other, extra) > 0, "runs were stopped after a step")
end)

-- A reward that waits in its n-th call until it is told that a signal was sent.
local function slow_reward(calls, then_do)
  local path = ("%s/slow-%d.lua"):format(place, calls)
  files.write(path, ([[
    local calls = 0
    local reward = dofile %q
    return function(text)
      calls = calls + 1
      if calls == %d then %s end
      return reward(text)
    end]]):format(place .. "/reward.lua", calls, then_do))
  return "worker.reward.compute_score=" .. path
end

local WAIT = "for _ = 1, 300 do os.execute 'sleep 0.1' end"
local ANSWERS = 6               -- of a step: 2 prompts x 3 answers

check.case("a signal during a reward", function()
  local folder = place .. "/in-reward"
  local mark = place .. "/waiting"
  local reward = slow_reward(2 * ANSWERS + 2, ("io.open(%q, 'w'):close() "
    .. "while true do end"):format(mark))
  local output, status = run_and(folder, ("while [ ! -e %s ]; do sleep 0.02; done; kill -TERM $p")
    :format(mark), { reward })
  check.equal(status, 143, "status")
  check.ok(output:find("stopped by SIGTERM after step 2; saved " .. folder .. "/global_step_2; ", 1,
    true), output)
  expect_same_end(folder, "a stop in a reward")
end)

check.case("trainer.save_freq=-1 saves nothing and says so", function()
  local folder = place .. "/never"
  local reward = slow_reward(ANSWERS + 2, "os.execute 'kill -TERM $PPID'")
  local output, status = run(folder, { reward, "trainer.save_freq=-1" })
  check.equal(status, 143, "status")
  check.ok(output:find("stopped by SIGTERM after step 1; trainer.save_freq=-1 saves no "
    .. "checkpoint\n", 1, true), output)
  check.ok(not files.exists(folder .. "/latest"), "no checkpoint")
end)

check.case("a second signal ends the process at once", function()
  local mark = place .. "/twice"
  local reward = slow_reward(ANSWERS + 3, ("io.open(%q, 'w'):close() %s"):format(mark, WAIT))
  local began = process.now()
  local _, status = run_and(place .. "/second", ("while [ ! -e %s ]; do sleep 0.02; done; "
    .. "kill -TERM $p; sleep 0.2; kill -TERM $p"):format(mark), { reward })
  check.equal(status, 143, "status")
  check.ok(process.now() - began < 20, "it does not wait for the reward")
end)

-- The kernel sends SIGXCPU again for each second beyond the limit; only the first one counts.
check.case("the limit of processor time saves once", function()
  local folder = place .. "/cpu"
  local reward = slow_reward(ANSWERS + 2, [[
    local ffi = require "ffi"
    ffi.cdef "int setrlimit(int, const uint64_t *);"
    local limit = math.ceil(os.clock()) + 1
    ffi.C.setrlimit(0, ffi.new("uint64_t[2]", limit, 1000))
    pcall(function() while true do end end)
    while os.clock() < limit + 1.5 do end]])
  -- Processor time passes slowly on a busy machine, so there is no limit of another kind.
  local output, status = run(folder, { reward, "worker.reward.timeout=0" })
  check.equal(status, 152, "status")
  check.ok(output:find("stopped by SIGXCPU after step %d; saved "), output)
end)

check.case("nohup's SIGHUP is ignored", function()
  local folder = place .. "/nohup"
  local reward = slow_reward(ANSWERS + 4, "os.execute 'kill -HUP $PPID'")
  local quoted = {}
  for i, word in ipairs(command(folder, { reward })) do quoted[i] = mini.quoted(word) end
  local output, status = process.run({ "bash", "-c", "trap '' HUP; " .. table.concat(quoted, " ") },
    { timeout = TIMEOUT })
  check.equal(status, 0, "the run goes on to its end: " .. output:sub(-200))
end)

check.case("a closed pipe saves and ends the run quietly", function()
  local folder = place .. "/pipe"
  local quoted = {}
  for i, word in ipairs(command(folder)) do quoted[i] = mini.quoted(word) end
  local output = process.run({ "bash", "-c", table.concat(quoted, " ")
    .. " | grep -m 1 '^ 6/' >/dev/null; echo ${PIPESTATUS[0]}" }, { timeout = TIMEOUT })
  check.equal(output, "141\n", "SIGPIPE's status and no words")
  expect_same_end(folder, "a closed pipe")
end)

check.case("a script that goes on after a stop cannot start another run", function()
  local script = place .. "/sweep.lua"
  files.write(script, [[
    local recipe = require "recipes.refcocog_grpo"
    for i = 1, 2 do
      local args = { unpack(arg, 2) }
      args[#args + 1] = "trainer.save_checkpoint_path=" .. arg[1] .. i
      print(pcall(recipe.run, args))
    end
  ]])
  local reward = slow_reward(ANSWERS + 5, "os.execute 'kill -TERM $PPID'")
  local words = { host.executable, "--threads", "1", script, place .. "/sweep" }
  local all = command("unused", { reward })
  for i = 5, #all do
    if not all[i]:find "save_checkpoint_path" then words[#words + 1] = all[i] end
  end
  local output, status = process.run(words, { timeout = TIMEOUT })
  check.equal(status, 143, "status")
  check.ok(output:find "false\tstopped by SIGTERM after step 1; saved ", output)
  check.ok(output:find "\nfalse\tstopped by SIGTERM\n$", "the second run: " .. output:sub(-200))
  check.ok(not files.exists(place .. "/sweep2/config.json"), "it has no folder")
end)

-- ---- evaluations and the supervised recipes ----
-- Starts the program with these words, sends it the signal once `ready` (a shell test) holds.
local function stopped_when(words, ready, signal)
  local quoted = { AS_USUAL, mini.quoted(host.executable), "--threads 1" }
  for _, word in ipairs(words) do quoted[#quoted + 1] = mini.quoted(word) end
  local text = table.concat(quoted, " ") .. " & p=$!; until " .. ready
    .. "; do sleep 0.02; kill -0 $p 2>/dev/null || break; done; kill -" .. signal
    .. " $p; wait $p"
  return process.run({ "bash", "-c", text }, { timeout = TIMEOUT })
end

check.case("a stopped evaluation says what it has", function()
  local folder = place .. "/evaluation"
  local output, status = stopped_when({ "recipes/evaluate.lua", "oracle=true", "rows=400",
    "output_path=" .. folder }, "[ -s " .. folder .. "/results.jsonl ]", "TERM")
  check.equal(status, 143, "status")
  local done = output:match("\nevaluate: stopped by SIGTERM after (%d+) of 400 rows, which are in "
    .. folder .. "/results.jsonl\n$")
  check.ok(done, output:sub(-300))
  local written = files.read(folder .. "/results.jsonl")
  check.equal(select(2, written:gsub("{[^\n]*}\n", "")), tonumber(done), "the rows of the file")
end)

check.case("a signal in the evaluation before the first step", function()
  local folder = place .. "/before"
  local words = { "recipes/refcocog_grpo.lua", "trainer.save_checkpoint_path=" .. folder }
  -- The log is opened just before the evaluation, which takes seconds.
  local ready = "[ -e " .. folder .. "/metrics.jsonl ] && sleep 0.7"
  local output, status = stopped_when(words, ready, "INT")
  check.equal(status, 130, "status")
  check.ok(output:find "segzero: stopped by SIGINT after step 0; no step was finished\n$",
    output:sub(-300))
end)

check.case("a supervised recipe saves its model", function()
  local folder = place .. "/sam2"
  local output, status = stopped_when({ "recipes/sam2_finetune.lua", "output=" .. folder,
    "log_every=1", "images=1", "eval_images=1", "minutes=5" }, "sleep 1.5", "HUP")
  check.equal(status, 129, "status")
  check.ok(output:find("sam2_finetune: stopped by SIGHUP in step %d+; saved " .. folder .. "\n$"),
    output:sub(-300))
  check.ok(files.exists(folder .. "/model.safetensors"), "the model")
end)

-- ---- errors ----
check.case("an error saves the last finished step", function()
  local folder = place .. "/error"
  local output, status = run(folder, { slow_reward(3 * ANSWERS + 1, "error 'no such answer'") })
  check.equal(status, 1, "status")
  local line = ("ended by an error after step 3; saved %s/global_step_3; "
    .. "go on with: trainer.load_checkpoint_path=%s\n"):format(folder, folder)
  check.ok(output:find(line, 1, true), "the line: " .. output)
  check.ok(output:find("segzero: the reward failed", 1, true), "the error")
  expect_same_end(folder, "an error")
end)

check.case("an error before the first step saves nothing", function()
  local folder = place .. "/early"
  local output, status = run(folder, { slow_reward(1, "error 'no such answer'") })
  check.equal(status, 1, "status")
  check.ok(output:find("ended by an error after step 0; no step was finished\n", 1, true), output)
end)

check.case("a checkpoint that cannot be written leaves the older ones", function()
  local folder = place .. "/disk"
  local size = #whole.weights + 4096
  local limit = ("require 'ffi'.cdef 'int setrlimit(int, const uint64_t *);' "
    .. "require 'ffi'.C.setrlimit(1, require 'ffi'.new('uint64_t[2]', %d, %d))"):format(size / 2,
    size / 2)
  local output, status = run(folder, { slow_reward(6 * ANSWERS + 1, limit .. " error 'late'") })
  check.equal(status, 1, "status")
  check.ok(output:find("ended by an error after step 6; [^\n]*global_step_6[^\n]*File too large"),
    output)
  check.ok(output:find("go on with: trainer.load_checkpoint_path=" .. folder, 1, true),
    "how to go on")
  check.ok(files.exists(folder .. "/global_step_5/DONE"), "the older checkpoint")
  check.ok(not files.exists(folder .. "/global_step_6/DONE"), "no incomplete one")
end)

-- ---- divergence ----
check.case("a run that has diverged ends and saves no ruined weights", function()
  for _, case in ipairs {
    { "worker.actor.optim.lr=1e30", "the learning rate %(worker.actor.optim.lr=1e%+30%)" },
    { "worker.actor.optim.weight_decay=1e6", "worker.actor.optim.weight_decay=1e%+06" },
  } do
    local folder = place .. "/" .. case[1]:match "([%w_]+)="
    local extra = { case[1], "trainer.save_freq=1" }
    if case[1]:find "decay" then extra[3] = "worker.actor.optim.lr=1e-4" end
    local output, status = run(folder, extra)
    check.equal(status, 1, case[1] .. ": status")
    check.ok(output:find("segzero: diverged after step %d+: [^\n]*likely cause: " .. case[2]),
      case[1] .. ": " .. output)
    check.ok(output:find("its weights are not saved", 1, true), case[1] .. ": what is not saved")
    check.ok(not files.exists(folder .. "/latest"), case[1] .. ": no checkpoint")
  end
end)

check.case("gradients that are not finite end a run", function()
  local script = place .. "/bad.lua"
  files.write(script, [[
    local losses = require("segzero").losses
    local ppo = losses:get("ppo_clip").fn
    local calls = 0
    losses:register("bad_later", { fn = function(t, numbers)
      calls = calls + 1
      local loss, metrics = ppo(t, numbers)
      if calls > tonumber(arg[1]) then loss = loss * (0 / 0) end
      return loss, metrics
    end })
    local args = { unpack(arg, 2) }
    require("recipes.refcocog_grpo").run(args)
  ]])
  local function train(good, folder, extra)
    local words = { host.executable, "--threads", "1", script, tostring(good) }
    local all = command(folder, { "worker.actor.loss_type=bad_later", unpack(extra) })
    for i = 5, #all do words[#words + 1] = all[i] end
    return process.run(words, { timeout = TIMEOUT })
  end
  local folder = place .. "/bad"
  -- The memory plan calls the loss once, so the gradients of the steps 4, 5 and 6 are bad.
  local output, status = train(4, folder, {})
  check.equal(status, 1, "status")
  check.ok(output:find "diverged after step 6: 3 of the last 6 updates had a gradient that is not ",
    output)
  check.ok(output:find "ended by an error after step 6; its weights are not saved\n", output)
  check.ok(not files.exists(folder .. "/global_step_5"), "a checkpoint that was due then")
  local _, allowed = train(4, place .. "/bad-allowed", { "trainer.max_bad_updates=0" })
  check.equal(allowed, 0, "trainer.max_bad_updates=0 lets it go on")
end)

-- oneDNN keeps data below its stack pointer, so a handler on the same stack would overwrite them.
check.case("signals during matrix products change no number", function()
  local script = place .. "/products.lua"
  files.write(script, [[
local stop = require "segzero.core.stop"
local tensor = require "segzero.core.tensor"
local a = tensor.randn { 128, 481 }
local b = tensor.randn { 481, 256 }
local first = a:matmul(b):sum():item()
stop.run(function()
  stop.hold()                   -- signals are noted, and handled again and again
  print "ready"
  local equal = 0
  for _ = 1, 4000 do
    local c = a:matmul(b)
    if c:sum():item() == first then equal = equal + 1 end
    c:free()
  end
  io.stderr:write(equal, " equal products\n")
end)
]])
  -- Sanitizers bring a pthread_create of their own, so their workers take signals.
  local sanitizer = (host.library or ""):find "build/%a+/libsegzero"
  for threads = 1, sanitizer and 1 or 2 do
    local run_it = ("%s --threads %s %s > %s/ready & p=$!; until [ -s %s/ready ]; do :; done; "
      .. "while kill -PIPE $p 2>/dev/null; do sleep 0.001; done; wait $p"):format(
      mini.quoted(host.executable), threads, mini.quoted(script), mini.quoted(place),
      mini.quoted(place))
    local output = process.run({ "bash", "-c", "rm -f " .. place .. "/ready; " .. run_it },
      { timeout = TIMEOUT })
    check.ok(output:find("4000 equal products", 1, true), threads .. " threads: " .. output)
  end
end)

mini.remove()
check.finish()
