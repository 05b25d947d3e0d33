-- test_lora.lua - low-rank adapters: PEFT's logits and gradients (tests/golden/lora), its files both ways, names of layers, merging, the base
-- as its own reference, refusals; GRPO of a miniature with them, resumed bit for bit; the memory plan.

local cjson = require "cjson"
local check = require "tests.support.check"
local golden = require "tests.support.qwen_golden"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local lora = require "segzero.models.lora"
local model = require "segzero.models.qwen_vl"
local plan = require "segzero.tools.plan"
local prompt = require "segzero.data.prompt"
local tensor = require "segzero.core.tensor"

local C = sz.core.C
local ROOT = "tests/golden/"
local place = mini.folder()

-- f32: as in qwen_golden.lua (f32_noise in case.json says 3e-6 for logits, up to 5e-5 for one gradient). bf16 keeps 8 bits: only the
-- direction, which may be twice as far off as PEFT's under autocast is (the roundings are the same, their order is not).
local LOGITS_TOL, GRAD_TOL, BF16_TIMES = golden.LOGITS_TOL, golden.GRAD_TOL, 2
local flat, relative, cosine = golden.flat, golden.relative, golden.cosine

local function sequence_of(case, label)
  for _, s in ipairs(case.sequences) do
    if s.label == label then return s end
  end
end

-- ---- against PEFT ----
local function logits_at(vl, input, rows) return sz.no_grad(function() return flat(vl:forward(input):gather_rows(rows)) end) end

-- The sequence's scripted loss, its gradients left in the adapters.
local function backward(vl, sequence, t, recompute)
  return sz.step(function()
    local loss, lp = golden.loss_of(vl, sequence, t, recompute)
    loss:backward()
    return lp:totable()
  end)
end

for _, id in ipairs { "L1", "L2", "L3", "L4", "L5" } do
  local dir = ROOT .. "lora/" .. id
  local case, want = model.read_json(dir .. "/case.json"), sz.safetensors.load(dir .. "/case.safetensors")
  local folder, base, t = golden.case(case.model)
  local sequence = sequence_of(base, case.sequence)
  local p, input = sequence.prefix, golden.input_of(sequence, t)
  local rows, logits = t[p .. "logit_rows"], flat(want.logits)

  local vl = sz.qwen_vl(folder, { dtype = "f32", adapter = dir })
  check.equal(#vl.lora.list, case.modules, id .. ": adapted layers")
  local got = logits_at(vl, input, rows)
  local d = relative(got, logits)
  check.ok(d <= LOGITS_TOL, ("%s: logits within %g (%.2g)"):format(id, LOGITS_TOL, d))

  local list, worst = vl:train(), 0
  check.equal(#list, 2 * case.modules, id .. ": two parts of each layer are trained")
  for _, recompute in ipairs { false, true } do
    check.near(backward(vl, sequence, t, recompute), want.loss_logprobs:totable(), 1e-4, id .. ": log-probabilities")
    for _, x in ipairs(list) do
      local g = want["grad." .. x.name]
      local r = g and relative(flat(x.tensor:grad()), flat(g)) or math.huge
      worst = math.max(worst, r)
      check.ok(r <= GRAD_TOL, ("%s%s: gradient of %s within %g (%.2g)"):format(id, recompute and " recomputed" or "", x.name, GRAD_TOL, r))
      x.tensor:zero_grad()
    end
    for name, w in pairs(vl:parameters()) do
      if w:grad() or w:requires_grad() then check.ok(false, id .. ": the base has a gradient: " .. name) end
    end
  end

  -- Off, the base; on again, the same.
  local bare = sz.qwen_vl(folder, { dtype = "f32" })
  local plain, reference = logits_at(bare, input, rows), lora.reference(vl)
  check.ok(relative(plain, logits) > 1e-3, id .. ": the adapters change something")
  check.equal(logits_at(reference, input, rows), plain, id .. ": the reference is the base, bit for bit")
  check.equal(logits_at(vl, input, rows), got, id .. ": and the adapters are on afterwards")
  check.raises(function() reference:forward(input) end, "no gradients", id .. ": the reference gives no gradients")

  -- Files: the same tensors under PEFT's names; a second way round gives the same logits.
  lora.save(vl, place .. "/" .. id)
  local ours, theirs, same = lora.read(place .. "/" .. id), lora.read(dir), true
  for name, x in pairs(theirs) do same = same and ours[name] ~= nil and cjson.encode(flat(ours[name])) == cjson.encode(flat(x)) end
  for name in pairs(ours) do same = same and theirs[name] ~= nil end
  check.ok(same, id .. ": the same tensors under the same names")
  check.equal(logits_at(sz.qwen_vl(folder, { dtype = "f32", adapter = place .. "/" .. id }), input, rows), got, id .. ": saved and loaded")

  local half = sz.qwen_vl(folder, { dtype = "bf16", adapter = dir })
  local c = cosine(logits_at(half, input, rows), logits)
  check.ok(1 - c <= BF16_TIMES * (1 - case.bf16_cosine), ("%s: bf16 cosine %.6f, PEFT's %.6f"):format(id, c, case.bf16_cosine))

  lora.merge(vl)
  check.ok(not vl.lora, id .. ": merged")
  local m = relative(logits_at(vl, input, rows), logits)
  check.ok(m <= LOGITS_TOL, ("%s: merged logits within %g (%.2g)"):format(id, LOGITS_TOL, m))
  print(("%s: %d layers, logits %.1e, gradients %.1e, bf16 cosine %.6f, merged %.1e"):format(id, case.modules, d, worst, c, m))
end

-- ---- which layers; how they start ----
local folder = ROOT .. "qwen_vl/Q1"
local function attach(opts, path)
  local vl = sz.qwen_vl(path or folder)
  local all = { rank = 2, alpha = 4, target_modules = "all-linear", seed = 5 }
  for k, v in pairs(opts) do all[k] = v end
  return lora.attach(vl, all)
end
local function count(opts, path) return #attach(opts, path).lora.list end
-- Q1: 4 blocks of 5 layers and 2 in the merger, 3 layers of 7. V1: 3 blocks of 4 and 2, 2 layers of 7.
check.equal(count {}, 43, "all-linear")
check.equal(count({}, ROOT .. "qwen2_vl/V1"), 28, "all-linear of Qwen2-VL")
check.equal(count { exclude_modules = ".*visual.*" }, 21, "a pattern left out")
check.equal(count { freeze_vision = true }, 21, "a frozen tower")
check.equal(count { target_modules = "q_proj,v_proj" }, 6, "a list")
check.equal(count { target_modules = "['gate_proj', 'up_proj']" }, 14, "a list in brackets: both networks have such")
check.equal(count { target_modules = "model.language_model.layers.1.mlp.up_proj" }, 1, "a whole name")
check.equal(count { target_modules = [[.*layers\.[02]\.self_attn\.(q|k)_proj]] }, 4, "a pattern")
check.equal(count { exclude_modules = "mlp.0,attn.proj" }, 38, "a list left out")
check.raises(function() attach { target_modules = "q_prj" } end, "selects no layer", "no such layer")
check.raises(function() attach { target_modules = "layers.*proj" } end, "selects no layer", "a pattern must match whole names")
check.raises(function() attach { target_modules = "proj" } end, "patch_embed%.proj, which is not a linear layer", "a convolution")
check.raises(function() attach { target_modules = "lm_head", alpha = 4 } end, "selects no layer", "a tied head is no layer")
check.raises(function() attach { target_modules = "(" } end, "^lora.target_modules or lora.exclude_modules: the pattern .* does not compile", "a broken pattern")
check.raises(function() attach { rank = 0 } end, "rank is 0", "rank 0")
check.raises(function() attach { alpha = -1 } end, "alpha is %-1", "a negative alpha")
check.raises(function() lora.attach(attach {}, { rank = 2, alpha = 4, target_modules = "all-linear" }) end, "adapters already", "twice")
do
  local vl, again, other = attach {}, attach {}, attach { seed = 6 }
  local sum, n, largest = 0, 0, 0
  for i, p in ipairs(vl.lora.list) do
    local bound = 1 / math.sqrt(p.a:shape()[2])
    for _, v in ipairs(flat(p.a)) do
      sum, n, largest = sum + (v / bound) ^ 2, n + 1, math.max(largest, math.abs(v) / bound)
    end
    for _, v in ipairs(flat(p.b)) do if v ~= 0 then check.ok(false, "B starts with " .. v) end end
    check.equal(flat(p.a), flat(again.lora.list[i].a), "the same seed, the same start")
    check.ok(flat(p.a)[1] ~= flat(other.lora.list[i].a)[1], "another seed, another start")
  end
  -- The mean square of uniform numbers in (-1, 1) is 1/3, with a deviation of 0.3 / sqrt(n): five of them.
  check.ok(largest <= 1 and math.abs(sum / n - 1 / 3) < 1.5 / math.sqrt(n), ("A is uniform: mean square %.4f of %d"):format(sum / n, n))
  vl.lora.list[1].b:copy_(tensor.zeros(vl.lora.list[1].b:shape()):affine(0, 1))
end

-- ---- layers of their own ranks (PEFT's rank_pattern): the shapes say which, and alpha / rank scales each ----
do
  local wide, tensors = mini.copy(ROOT .. "lora/L2", place .. "/wide"), lora.read(ROOT .. "lora/L2")
  local name, json = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_", model.read_json(wide .. "/adapter_config.json")
  local r = tensors[name .. "A.weight"]:shape()[1]
  tensors[name .. "A.weight"], tensors[name .. "B.weight"] = tensor.zeros { r + 2, 64 }, tensor.zeros { 64, r + 2 }
  sz.safetensors.save(wide .. "/adapter_model.safetensors", tensors)
  local vl = sz.qwen_vl(folder, { adapter = wide })
  lora.save(vl, place .. "/wide-again")
  check.equal(model.read_json(place .. "/wide-again/adapter_config.json").rank_pattern, { ["model.language_model.layers.0.self_attn.q_proj"] = r + 2 },
    "the config names the layer whose rank is another")
  for _, p in ipairs(vl.lora.list) do
    check.equal(p.scale, json.lora_alpha / (p.module:find "layers.0.self_attn.q_proj" and r + 2 or r), p.module .. ": its scale")
  end
end

-- ---- bad files ----
local function broken(change, wanted)
  local dir = mini.copy(ROOT .. "lora/L2", place .. "/broken")
  local json = model.read_json(dir .. "/adapter_config.json")
  local tensors = lora.read(dir)
  change(json, tensors)
  files.write(dir .. "/adapter_config.json", cjson.encode(json))
  sz.safetensors.save(dir .. "/adapter_model.safetensors", tensors, { format = "pt" })
  check.raises(function() sz.qwen_vl(folder, { adapter = dir }) end, wanted, wanted)
  os.execute("rm -r " .. mini.quoted(dir))
end
local Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_"
broken(function(json) json.use_dora = true end, "use_dora is not supported")
broken(function(json) json.peft_type = "LOHA" end, "peft_type is LOHA")
broken(function(json) json.bias = "all" end, "trained biases")
broken(function(json) json.lora_alpha = cjson.null end, "lora_alpha is nil")
broken(function(_, x) x[Q .. "A.weight"] = nil end, "q_proj: lora_A is missing")
broken(function(_, x) x[Q .. "B.weight"] = tensor.zeros { 3, 3 } end, "do not fit a layer %[64, 64%]")
broken(function(_, x) x["base_model.model.lm_head.weight"] = tensor.zeros { 2 } end, "unexpected: base_model.model.lm_head.weight")
broken(function(_, x) x["base_model.model.model.language_model.layers.9.self_attn.q_proj.lora_A.weight"], x["base_model.model.model.language_model.layers.9.self_attn.q_proj.lora_B.weight"] = tensor.zeros { 3, 64 }, tensor.zeros { 64, 3 } end,
  "the model has no model.language_model.layers.9")

-- ---- 8 bits: for inference; training says that it cannot ----
do
  local dir = "models/tiny/qwen2.5-vl"
  local vl = attach({ exclude_modules = ".*visual.*" }, dir)
  for i, p in ipairs(vl.lora.list) do sz.core.check(C.sz_random_normal_(p.b.ptr, 3, i, 0, 0.3)) end
  lora.save(vl, place .. "/tiny")
  local input = { input_ids = { 5, 9, 40, 77, 3 }, position_ids = tensor.new({ { 0, 1, 2, 3, 4 }, { 0, 1, 2, 3, 4 }, { 0, 1, 2, 3, 4 } }, { dtype = "i32" }),
    next_position = 5, image_grid_thw = {} }
  local small = sz.qwen_vl(dir, { dtype = "int8", adapter = place .. "/tiny" })
  local bare = sz.qwen_vl(dir, { dtype = "int8" })
  local whole = sz.no_grad(function() return flat(vl:forward(input)) end)
  local with, without = sz.no_grad(function() return flat(small:forward(input)) end), sz.no_grad(function() return flat(bare:forward(input)) end)
  -- 8 bits move the logits' direction by some 1e-4 (test_int8.lua); leaving the adapters out moves it ten times further.
  check.ok(1 - cosine(with, whole) < 0.1 * (1 - cosine(without, whole)), ("adapters on 8 bits: %.6f, without %.6f"):format(cosine(with, whole), cosine(without, whole)))
  check.raises(function() small:train() end, "in 8 bits", "8 bits do not train")
  check.raises(function() lora.merge(small) end, "in 8 bits", "nor take adapters in")
end

-- ---- GRPO of a miniature: sampler and trainer agree, the base stays, 2 + 2 steps are 4 ----
local dir = mini.write(place .. "/model")
local bytes = mini.bytes
local function state_of(t)
  local out = {}
  for name, x in pairs(lora.parameters(t.policy)) do out[name] = bytes(x) end
  for name, x in pairs(t.optimizer:state()) do out[name] = bytes(x) end
  return out
end
local function differing(a, b)
  local n = 0
  for k, v in pairs(a) do n = n + (v ~= b[k] and 1 or 0) end
  for k in pairs(b) do n = n + (a[k] == nil and 1 or 0) end
  return n
end

local variants = {
  { name = "f32", args = {} },
  { name = "tower", args = { "worker.actor.model.lora.exclude_modules=none", "worker.actor.model.enable_gradient_checkpointing=false" } },
  { name = "bf16", dtype = "bf16", args = { "worker.actor.model.dtype=bf16", "worker.actor.model.lora.target_modules=q_proj,v_proj,down_proj",
    "worker.actor.max_tokens_per_micro_batch=100", "worker.actor.optim.state_dtype=int8" } },
}
for _, v in ipairs(variants) do
  local args = { "worker.actor.model.lora.rank=3", "worker.actor.model.lora.alpha=6", unpack(v.args) }
  local function new(target)
    if target then files.make_dir(target) end
    return mini.trainer(mini.settings(args), { model = dir, dtype = v.dtype, reference = true, folder = target })
  end
  local a = new()
  local base = {}
  for name, x in pairs(a.policy:parameters()) do base[name] = bytes(x) end
  local of_a = mini.steps(a, 4)
  check.equal(of_a[1].kl, 0, v.name .. ": before the first update policy and base are the same")
  check.ok(of_a[4].kl > 0, v.name .. ": and differ later")
  for name, x in pairs(a.policy:parameters()) do
    if base[name] ~= bytes(x) then check.ok(false, v.name .. ": the base has changed: " .. name) end
    if x:grad() then check.ok(false, v.name .. ": the base has a gradient: " .. name) end
  end
  local trained = 0
  for _ in pairs(a.optimizer:state()) do trained = trained + 1 end
  check.equal(trained, (v.name == "bf16" and 4 or 2) * 2 * #a.policy.lora.list, v.name .. ": moments of the adapters alone, no masters")

  local target = place .. "/resume-" .. v.name
  local c = new(target)
  mini.steps(c, 2)
  local path = c:save()
  check.ok(files.exists(path .. "/adapter_model.safetensors") and not files.exists(path .. "/model.safetensors"), v.name .. ": a checkpoint holds the adapters")
  local d = new(target)
  d:resume(path)
  check.equal(mini.steps(d, 2), { of_a[3], of_a[4] }, v.name .. ": a resumed run reports what an unbroken one does")
  check.equal(differing(state_of(a), state_of(d)), 0, v.name .. ": 2 + 2 steps are 4")
  -- The checkpoint beside the model answers as the policy does.
  local loaded = sz.qwen_vl(dir, { dtype = v.dtype, adapter = d:save() })
  local input = mini.input(loaded, 1)
  local opts = { temperature = 0, max_new_tokens = 6, ignore_eos = true }
  check.equal(loaded:generate(input, opts)[1].ids, d.policy:generate(input, opts)[1].ids, v.name .. ": a checkpoint as an adapter")
  local other = mini.settings(args)
  other.worker.actor.model.lora.alpha = 7
  local e = mini.trainer(other, { model = dir, dtype = v.dtype })
  check.raises(function() e:resume(path) end, "lora%.alpha was 6, is 7", v.name .. ": another alpha")
  if v.name == "f32" then
    local function resumed(words) return function() mini.trainer(mini.settings(words), { model = dir }):resume(path) end end
    local rank, alpha = "worker.actor.model.lora.rank=", "worker.actor.model.lora.alpha=6"
    check.raises(resumed { rank .. 2, alpha }, "lora%.rank was 3, is 2", "another rank")
    check.raises(resumed {}, "adapters alone: it was written with worker%.actor%.model%.lora%.rank=3", "no adapters any more")
    check.raises(resumed { rank .. 3, alpha, "worker.actor.model.lora.target_modules=q_proj" }, "would not be used", "fewer layers than were trained")
    check.raises(resumed { rank .. 3, alpha, "worker.actor.model.lora.exclude_modules=none" }, "missing base_model", "more layers than were trained")
    local whole = mini.trainer(mini.settings(), { model = dir, folder = target })
    check.raises(function() mini.trainer(mini.settings { rank .. 3, alpha }, { model = dir }):resume(whole:save()) end, "has no adapters", "adapters since")
  end
end

-- ---- through the programs ----
files.write(place .. "/reward.lua", mini.reward_source)
local rank, run = "worker.actor.model.lora.rank=2", place .. "/run"
local text, status = mini.recipe(dir, { rank, "worker.reward.compute_score=" .. place .. "/reward.lua", "trainer.max_steps=2",
  "trainer.save_checkpoint_path=" .. run })
check.equal(status, 0, "a run: " .. text:sub(-300))
check.ok(text:find "LoRA of rank 2 on 14 layers", "it says so: " .. text:sub(1, 300))
text, status = mini.run { "examples/merge_lora.lua", "in=" .. dir, "adapter=" .. run .. "/global_step_2", "out=" .. place .. "/merged" }
check.equal(status, 0, "merged: " .. text)
do
  local merged, apart = sz.qwen_vl(place .. "/merged"), sz.qwen_vl(dir, { adapter = run .. "/global_step_2" })
  local input = mini.input(apart, 2)
  local got, want = sz.no_grad(function() return flat(merged:forward(input)) end), sz.no_grad(function() return flat(apart:forward(input)) end)
  check.ok(relative(got, want) <= LOGITS_TOL, ("a merged folder computes the same (%.2g)"):format(relative(got, want)))
end
text, status = mini.run { "examples/infer.lua", "--demo", "1", "--model_path", run .. "/global_step_2" }
check.ok(status ~= 0 and text:find("it has no config.json, but LoRA adapters", 1, true), "adapters are no model: " .. text)
text, status = mini.recipe(dir, { rank, "worker.ref.model.dtype=int8" })
check.ok(status ~= 0 and text:find("the reference is the policy without its adapters", 1, true), "a reference of its own: " .. text:sub(-200))

-- ---- the plan: what lasts, against the tensors; the arena of a step ----
do
  local cfg = mini.settings { "worker.actor.model.model_path=" .. dir, "data.max_response_length=8", "worker.actor.model.lora.rank=3" }
  local p = plan.of(cfg, { prompt = prompt.seg_zero })
  check.equal(cfg.worker.actor.freeze_vision_tower, false, "a plan leaves the settings alone")
  local t = mini.trainer(cfg, { model = dir, reference = true })
  local adapters, moments = 0, 0
  for _, x in ipairs(t.parameters) do adapters = adapters + 4 * x.tensor:numel() end
  for _, x in pairs(t.optimizer:state()) do moments = moments + 4 * x:numel() end
  check.equal({ p.parts.adapters, p.parts.moments, p.parts.gradients, p.parts.masters, p.parts.reference }, { adapters, moments, adapters, 0, 0 },
    "adapters, moments, gradients; no masters, no reference")
  C.sz_arena_used(1)
  t:step()
  local used, planned = tonumber(C.sz_arena_used(0)), math.max(p.arena.update, p.arena.sampling)
  check.ok(math.abs(planned / used - 1) < 0.1, ("arena: planned %.2f MB, used %.2f MB"):format(planned / 1e6, used / 1e6))
end

mini.remove()
check.finish()
