-- test_memory.lua - memory of a training step: after warm-up the core asks the system for nothing
-- that grows, live bytes and the resident set stay flat; a step holds what its gradient reads; and
-- every allocation that fails is a Lua error, after which the same work gives the same result.

local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local optim = require "segzero.train.optim"
local core = sz.core
local C = core.C

local place = mini.folder()
local dir = mini.write(place .. "/model")

local function resident()
  local pages = io.open("/proc/self/statm"):read "*a":match "^%d+ (%d+)"
  return tonumber(pages) * 4096
end

-- ---- many steps ----
-- The same two prompts every time: new lengths are new matmul shapes, and the core keeps a
-- primitive of oneDNN (some 50 kB) for each shape, up to a fixed number. That is warm-up, and would
-- take hundreds of steps here.
local cfg = mini.settings { "data.refshapes_rows=2" }

local function new_trainer()
  return mini.trainer(cfg, { model = dir, reference = true, total_steps = 200 })
end

check.case("170 steps: no allocation, no growth", function()
  local t = new_trainer()
  local calls = {}
  local live = {}
  local rss = {}
  for i = 1, 170 do
    local before = tonumber(C.sz_system_allocs())
    t:step()
    calls[i] = tonumber(C.sz_system_allocs()) - before
    collectgarbage()
    live[i] = tonumber(C.sz_live_bytes())
    rss[i] = resident()
  end
  local most = 0
  for i = 16, 170 do most = math.max(most, calls[i]) end

  -- Heap tensors that a step makes (patches, positions, the last hidden states) get the blocks that
  -- those of the step before had.
  check.ok(most == 0, ("a step asks the system for memory %d times"):format(most))
  check.equal(live[170], live[16], "live bytes after step 170 and step 16")

  -- LuaJIT still compiles and oneDNN still meets new shapes (numbers of answers that go on) in the
  -- first hundred steps, 2 MB in all; after them it moved by 50 KB. A sanitizer keeps freed memory
  -- aside, so there it says nothing.
  local sanitizer = (require("segzero.host").library or ""):find "build/%a+/libsegzero"
  check.ok(sanitizer or rss[170] - rss[120] < 2 ^ 19,
    ("the resident set grew by %d bytes in 50 steps"):format(rss[170] - rss[120]))
  print(("memory: %d allocations a step, %.1f MB live, %.1f MB resident"):format(most,
    live[170] / 2 ^ 20, rss[170] / 2 ^ 20))
end)

-- Finalizers free what earlier cases left, and their own objects go in a later pass: the bytes
-- count once they have stayed the same for three passes. Compiled code may hold a model, so it goes
-- first.
local function live_after_collection()
  jit.flush()
  local live
  local same = 0
  while same < 3 do
    collectgarbage()
    local now = tonumber(C.sz_live_bytes())
    if now == live then same = same + 1 else same = 0 end
    live = now
  end
  return live
end

check.case("an evaluation leaves nothing either", function()
  local settings = mini.settings { "data.refshapes_rows=5", "data.val_batch_size=3" }
  local t = mini.trainer(settings, { model = dir, held_out = mini.rows(settings, "heldout") })
  t:evaluate()
  local before = live_after_collection()
  t:evaluate()
  check.equal(live_after_collection(), before, "live bytes around an evaluation")
end)

-- ---- what a step holds ----
-- Bytes of the arena that a forward and backward pass takes in a model of that many layers, counted
-- by a dry run: one prompt with two answers of 300 tokens.
local counted_answer = {}
for i = 1, 300 do counted_answer[i] = 5 end

local function pass_bytes(layers, recompute)
  local json = {}
  local family = sz.qwen_vl(dir)
  for key, value in pairs(family.json) do json[key] = value end
  json.num_hidden_layers = layers
  local model = require("segzero.models.qwen_vl").random(json, { seed = 1 })
  model:train()
  local input = mini.input(family, 1)
  core.check(C.sz_arena_release())
  C.sz_arena_used(1)
  C.sz_dry_run(1)
  local rows = tensor.step(function()
    local group = { input = input, answers = { counted_answer, counted_answer } }
    local stream = packing.stream({ group }, model.image_token_id)
    local hidden = model:hidden(stream, model:vision({ input }, { recompute = recompute }),
      { rows = stream.rows, recompute = recompute })
    local lp = model:logprob_of(hidden, stream.targets)
    lp:sum():backward()
    return stream.ids:numel()
  end)
  C.sz_dry_run(0)
  local used = tonumber(C.sz_arena_used(1))
  core.check(C.sz_arena_release())
  model:free()
  family:free()
  return used, rows, json
end

-- A layer's input, rotated queries, keys and values, attention's result and log-sum-exp, the sum
-- after it, gate and up. Norms and swiglu are computed again, and the results of products that are
-- only added or rotated are needed by nobody. The gradients of a layer are freed like its
-- activations while the walk goes back.
check.case("a layer holds what gradient rules read, and nothing else", function()
  local few, rows, c = pass_bytes(2, false)
  local many = pass_bytes(8, false)
  local head_dim = c.hidden_size / c.num_attention_heads
  local qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * head_dim
  local columns = 3 * c.hidden_size + qkv + c.num_attention_heads + 2 * c.intermediate_size
  local wanted = 4 * columns * rows
  local held = (many - few) / 6
  check.ok(math.abs(held / wanted - 1) < 0.02,
    ("a layer holds %d bytes, its gradient reads %d"):format(held, wanted))
end)

check.case("with recomputation a layer holds its input", function()
  local few, rows, c = pass_bytes(2, true)
  local many = pass_bytes(8, true)
  local wanted = 4 * c.hidden_size * rows
  local held = (many - few) / 6
  check.ok(math.abs(held / wanted - 1) < 0.02,
    ("a layer holds %d bytes, its input has %d"):format(held, wanted))
end)

-- ---- allocations that fail ----
-- A forward and backward pass with recomputation on and off, from inputs that are there already;
-- sampling; an optimizer step.
local vl = sz.qwen_vl(dir)
local list = vl:train()
local inputs = { mini.input(vl, 1), mini.input(vl, 2) }
local groups = {}
for i, input in ipairs(inputs) do
  groups[i] = { input = input, answers = { { 5, 6, 7 }, { 8, 9 } } }
end

local function gradients(recompute)
  return tensor.step(function()
    local stream = packing.stream(groups, vl.image_token_id)
    local hidden = vl:hidden(stream, vl:vision(inputs, { recompute = recompute }),
      { rows = stream.rows, recompute = recompute })
    local lp = vl:logprob_of(hidden, stream.targets)
    local loss = (lp * lp):sum()
    loss:backward()
    return loss:item()
  end)
end

local bytes = mini.bytes

local function all_gradients()
  local out = {}
  for _, p in ipairs(list) do
    local g = p.tensor:grad()
    out[p.name] = bytes(g)
    g:free()
    p.tensor:zero_grad()
  end
  return out
end
local function differing(a, b)
  for k, v in pairs(a) do if b[k] ~= v then return k end end
end

-- Fails the n-th allocation for n = 0, 1, 2, ... until the work succeeds; `step` skips some so that
-- the sweep stays short.
local function sweep(name, step, work, clean)
  local n = 0
  local failures = 0
  local wrong = nil
  while true do
    C.sz_fail_alloc_after(n)
    local ok, message = pcall(work)
    C.sz_fail_alloc_after(-1)
    if clean then clean() end
    if ok then break end
    failures = failures + 1
    if not tostring(message):find("out of memory", 1, true) then
      wrong = wrong or ("at %d: %s"):format(n, tostring(message))
    end
    if tostring(message):find "\n" then
      wrong = wrong or ("at %d: more than a line: %s"):format(n, tostring(message))
    end
    if C.sz_scope_depth() ~= 0 then wrong = wrong or ("at %d: a scope is open"):format(n) end
    if C.sz_grad_enabled() ~= 1 then wrong = wrong or ("at %d: recording is off"):format(n) end
    n = n + step
  end
  check.equal(wrong, nil, name .. ": each failure says so and leaves things in order")
  check.ok(failures >= 10, ("%s: %d failures"):format(name, failures))
  return failures
end

local function clear_gradients()
  for _, p in ipairs(list) do p.tensor:zero_grad() end
end

local function check_pass(name, recompute, stride)
  local loss = gradients(recompute)
  local want = all_gradients()
  local function pass() return gradients(recompute) end
  local failures = sweep(name, stride, pass, clear_gradients)
  check.equal(gradients(recompute), loss, name .. ": the loss after " .. failures .. " failures")
  check.equal(differing(want, all_gradients()), nil, name .. ": the gradients")
end

check.case("allocations that fail in a pass", function() check_pass("pass", false, 1) end)
check.case("allocations that fail in a recomputing pass", function()
  check_pass("recomputing pass", true, 3)
end)

local function sampled()
  local out = {}
  local options = { n = 2, max_new_tokens = 4, seed = 3, top_p = 0.9, repetition_penalty = 1.2 }
  for i, answers in ipairs(sz.rollout.generate(vl, inputs, options)) do
    for k, a in ipairs(answers) do
      out[#out + 1] = ("%d.%d %s"):format(i, k, table.concat(a.ids, " "))
    end
  end
  return out
end
check.case("allocations that fail in sampling", function()
  local answers = sampled()
  sweep("sampling", 2, function()
    vl.kv = nil      -- the cache is asked for again
    collectgarbage()
    return sampled()
  end)
  check.equal(sampled(), answers, "the answers after the failures")
end)

check.case("allocations that fail in making an optimizer, its norm and its step", function()
  gradients(false)
  sweep("optimizer", 1, function()
    local opt = optim.adamw(list, { lr = 0, weight_decay = 0 })
    local norm = opt:step()
    if norm ~= norm then error("the norm is NaN") end
  end)
end)

check.case("allocations that fail in making a model", function()
  sweep("model", 1, function()
    sz.tensor.zeros { 3, 3 }
    require("segzero.models.qwen_vl").random(vl.json, { seed = 1 }):free()
  end)
end)

check.case("a trainer's step that fails can be done again", function()
  local t = new_trainer()
  t:step()
  for _, n in ipairs { 3, 50, 200, 500, 1000, 1500 } do
    C.sz_fail_alloc_after(n)
    local ok, message = pcall(t.step, t)
    C.sz_fail_alloc_after(-1)
    check.ok(ok or tostring(message):find("out of memory", 1, true),
      "a step that fails after " .. n .. ": " .. tostring(message))
    t.optimizer:zero_grad()
  end
  local s = t:step()
  check.ok(s.mismatch < 1e-4 and s.grad_norm < math.huge, "and then a step works")
end)

-- oneDNN crashes where it gets no memory for its kernels, so room for them is tried before. A
-- sanitizer reserves more address space than any limit here.
check.case("under a limit of address space a run ends or works, and never crashes", function()
  local host = require "segzero.host"
  if host.executable:find "/build/[^/]*/segzero$" then
    check.skip "ulimit -v (a sanitizer needs the address space)"
    return
  end
  local words = { mini.quoted(host.executable), "--threads 1 recipes/refcocog_grpo.lua",
    "worker.actor.model.model_path=" .. mini.quoted(dir) }
  for _, a in ipairs(mini.arguments) do words[#words + 1] = a end
  words[#words + 1] = "worker.reward.sam2_path=none trainer.max_steps=1 trainer.save_freq=-1 "
    .. "data.val_files=None trainer.save_checkpoint_path=" .. mini.quoted(place .. "/limited")
  local run = table.concat(words, " ")
  local process = require "tests.support.process"
  local worked = 0
  local failed = 0
  for mb = 120, 260, 7 do
    local text, status = process.run({ "bash", "-c", ("ulimit -v %d; %s"):format(mb * 1024, run) },
      { timeout = 60 })
    if status == 0 then worked = worked + 1 else failed = failed + 1 end
    check.ok(status <= 1, ("%d MB: status %d: %s"):format(mb, status, text:sub(-200)))
  end
  check.ok(worked > 0 and failed > 0, ("%d runs worked and %d ended"):format(worked, failed))
end)

mini.remove()
check.finish()
