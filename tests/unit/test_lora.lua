-- test_lora.lua - low-rank adapters: logits and gradients against PEFT's (tests/golden/lora),
-- adapter files read and written, the choice of layers, merging, the base model as the reference,
-- errors; GRPO of a miniature with adapters, resumed bit for bit; the memory plan.
--
--   ./segzero tests/unit/test_lora.lua

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
local BASE = ROOT .. "qwen_vl/Q1"
local place = mini.folder()

-- In f32 the tolerances are those of qwen_golden.lua. f32_noise in case.json says 3e-6 for logits
-- and up to 5e-5 for one gradient.
local LOGITS_TOL = golden.LOGITS_TOL
local GRAD_TOL = golden.GRAD_TOL

-- bf16 keeps 8 bits, so only the direction is compared. It may be twice as far off as PEFT's under
-- autocast: the roundings are the same, their order is not.
local BF16_TIMES = 2

local flat = golden.flat
local relative = golden.relative
local cosine = golden.cosine

local function no_grad_logits(vl, input)
  return sz.no_grad(function() return flat(vl:forward(input)) end)
end

-- ---- against PEFT ----

-- What PEFT computed with the adapter `id`, and the input that it computed it from.
local function peft_case(id)
  local dir = ROOT .. "lora/" .. id
  local case = model.read_json(dir .. "/case.json")
  local folder, base, tensors = golden.case(case.model)
  local sequence
  for _, candidate in ipairs(base.sequences) do
    if candidate.label == case.sequence then
      sequence = candidate
      break
    end
  end
  local want = sz.safetensors.load(dir .. "/case.safetensors")
  return {
    dir = dir,
    modules = case.modules,
    bf16_cosine = case.bf16_cosine,
    folder = folder,
    tensors = tensors,
    sequence = sequence,
    input = golden.input_of(sequence, tensors),
    rows = tensors[sequence.prefix .. "logit_rows"],
    want = want,
    logits = flat(want.logits),
  }
end

local function load_adapted(peft, dtype, dir)
  return sz.qwen_vl(peft.folder, { dtype = dtype, adapter = dir or peft.dir })
end

local function logits_of(vl, peft)
  return sz.no_grad(function()
    return flat(vl:forward(peft.input):gather_rows(peft.rows))
  end)
end

-- Runs backward from the golden sequence's loss. The adapters keep the gradients; returns the
-- log-probabilities.
local function backward(vl, peft, recompute)
  return sz.step(function()
    local loss, logprobs = golden.loss_of(vl, peft.sequence, peft.tensors, recompute)
    loss:backward()
    return logprobs:totable()
  end)
end

-- Checks the gradient of each adapter tensor and resets it; returns the largest error.
local function check_gradients(list, want, label)
  local worst = 0
  for _, parameter in ipairs(list) do
    local expected = want["grad." .. parameter.name]
    local err = math.huge
    if expected then err = relative(flat(parameter.tensor:grad()), flat(expected)) end
    worst = math.max(worst, err)
    check.ok(err <= GRAD_TOL,
      ("%s: gradient of %s within %g (%.2g)"):format(label, parameter.name, GRAD_TOL, err))
    parameter.tensor:zero_grad()
  end
  return worst
end

local function check_base_is_frozen(vl, label)
  for name, weight in pairs(vl:parameters()) do
    if weight:grad() or weight:requires_grad() then
      check.ok(false, label .. ": the base has a gradient: " .. name)
    end
  end
end

local function same_tensors(a, b)
  for name, x in pairs(b) do
    if a[name] == nil then return false end
    if cjson.encode(flat(a[name])) ~= cjson.encode(flat(x)) then return false end
  end
  for name in pairs(a) do
    if b[name] == nil then return false end
  end
  return true
end

for _, id in ipairs { "L1", "L2", "L3", "L4", "L5" } do
  check.case(id .. ": logits and gradients equal PEFT's", function()
    local peft = peft_case(id)
    local vl = load_adapted(peft, "f32")
    check.equal(#vl.lora.list, peft.modules, "adapted layers")
    local err = relative(logits_of(vl, peft), peft.logits)
    check.ok(err <= LOGITS_TOL, ("logits within %g (%.2g)"):format(LOGITS_TOL, err))

    local list = vl:train()
    check.equal(#list, 2 * peft.modules, "A and B of each layer are trained")
    local worst = 0
    for _, recompute in ipairs { false, true } do
      local label = "recompute " .. tostring(recompute)
      check.near(backward(vl, peft, recompute), peft.want.loss_logprobs:totable(), 1e-4,
        label .. ": log-probabilities")
      worst = math.max(worst, check_gradients(list, peft.want, label))
      check_base_is_frozen(vl, label)
    end
    print(("%s: %d layers, logits %.1e, gradients %.1e"):format(id, peft.modules, err, worst))
  end)

  check.case(id .. ": the reference is the base model", function()
    local peft = peft_case(id)
    local vl = load_adapted(peft, "f32")
    local adapted = logits_of(vl, peft)
    local plain = logits_of(sz.qwen_vl(peft.folder, { dtype = "f32" }), peft)
    vl:train()
    local reference = lora.reference(vl)
    check.ok(relative(plain, peft.logits) > 1e-3, "the adapters change the logits")
    check.equal(logits_of(reference, peft), plain, "the reference equals the base, bit for bit")
    check.equal(logits_of(vl, peft), adapted, "the adapters are on again afterwards")
    check.raises(function() reference:forward(peft.input) end, "no gradients",
      "the reference gives no gradients")
  end)

  check.case(id .. ": saved adapters have PEFT's names and give the same logits", function()
    local peft = peft_case(id)
    local vl = load_adapted(peft, "f32")
    vl:train()
    local saved = place .. "/" .. id
    lora.save(vl, saved)
    check.ok(same_tensors(lora.read(saved), lora.read(peft.dir)),
      "the same tensors under the same names")
    check.equal(logits_of(load_adapted(peft, "f32", saved), peft), logits_of(vl, peft),
      "saved and loaded")
  end)

  check.case(id .. ": bf16 and merged weights", function()
    local peft = peft_case(id)
    local direction = cosine(logits_of(load_adapted(peft, "bf16"), peft), peft.logits)
    check.ok(1 - direction <= BF16_TIMES * (1 - peft.bf16_cosine),
      ("bf16 cosine %.6f, PEFT's %.6f"):format(direction, peft.bf16_cosine))

    local vl = load_adapted(peft, "f32")
    vl:train()
    lora.merge(vl)
    check.ok(not vl.lora, "no adapters are left after merging")
    local err = relative(logits_of(vl, peft), peft.logits)
    check.ok(err <= LOGITS_TOL, ("merged logits within %g (%.2g)"):format(LOGITS_TOL, err))
    print(("%s: bf16 cosine %.6f, merged %.1e"):format(id, direction, err))
  end)
end

-- ---- which layers, and how they start ----

local function attach(changes, path)
  local opts = { rank = 2, alpha = 4, target_modules = "all-linear", seed = 5 }
  for key, value in pairs(changes) do opts[key] = value end
  return lora.attach(sz.qwen_vl(path or BASE), opts)
end

-- Q1 has 4 vision blocks of 5 layers, 2 layers in the merger, and 3 language layers of 7. V1 has 3
-- blocks of 4, 2 in the merger, and 2 layers of 7.
check.case("which layers get adapters", function()
  local function expect(opts, want, name, path)
    check.equal(#attach(opts, path).lora.list, want, name)
  end
  expect({}, 43, "all-linear")
  expect({}, 28, "all-linear of Qwen2-VL", ROOT .. "qwen2_vl/V1")
  expect({ exclude_modules = ".*visual.*" }, 21, "a pattern that excludes")
  expect({ freeze_vision = true }, 21, "a frozen vision tower")
  expect({ target_modules = "q_proj,v_proj" }, 6, "a list")
  expect({ target_modules = "['gate_proj', 'up_proj']" }, 14,
    "a list in brackets: both networks have these layers")
  expect({ target_modules = "model.language_model.layers.1.mlp.up_proj" }, 1, "a whole name")
  expect({ target_modules = [[.*layers\.[02]\.self_attn\.(q|k)_proj]] }, 4, "a pattern")
  expect({ exclude_modules = "mlp.0,attn.proj" }, 38, "a list that excludes")
end)

check.case("adapters that cannot be attached", function()
  local function refused(opts, pattern, name)
    check.raises(function() attach(opts) end, pattern, name)
  end
  refused({ target_modules = "q_prj" }, "selects no layer", "no such layer")
  refused({ target_modules = "layers.*proj" }, "selects no layer",
    "a pattern must match whole names")
  refused({ target_modules = "proj" }, "patch_embed%.proj, which is not a linear layer",
    "a convolution")
  refused({ target_modules = "lm_head", alpha = 4 }, "selects no layer", "a tied head is no layer")
  refused({ target_modules = "(" },
    "^lora.target_modules or lora.exclude_modules: the pattern .* does not compile",
    "a broken pattern")
  refused({ rank = 0 }, "rank is 0", "rank 0")
  refused({ alpha = -1 }, "alpha is %-1", "a negative alpha")
  local adapted = attach {}
  local opts = { rank = 2, alpha = 4, target_modules = "all-linear" }
  check.raises(function() lora.attach(adapted, opts) end, "adapters already", "attached twice")
end)

check.case("A starts uniform, B starts at zero", function()
  local vl = attach {}
  local again = attach {}
  local other = attach { seed = 6 }
  local sum = 0
  local n = 0
  local largest = 0
  for i, pair in ipairs(vl.lora.list) do
    local a = flat(pair.a)
    local bound = 1 / math.sqrt(pair.a:shape()[2])
    for _, value in ipairs(a) do
      sum = sum + (value / bound) ^ 2
      n = n + 1
      largest = math.max(largest, math.abs(value) / bound)
    end
    for _, value in ipairs(flat(pair.b)) do
      if value ~= 0 then check.ok(false, "B starts with " .. value) end
    end
    check.equal(a, flat(again.lora.list[i].a), "the same seed, the same start")
    check.ok(a[1] ~= flat(other.lora.list[i].a)[1], "another seed, another start")
  end
  -- The mean square of uniform numbers in (-1, 1) is 1/3, with a standard deviation of
  -- 0.3 / sqrt(n). Five deviations are allowed.
  local off = math.abs(sum / n - 1 / 3)
  check.ok(largest <= 1 and off < 1.5 / math.sqrt(n),
    ("A is uniform: mean square %.4f of %d"):format(sum / n, n))
  -- An adapter's weights can be overwritten.
  local b = vl.lora.list[1].b
  b:copy_(tensor.zeros(b:shape()):affine(0, 1))
end)

-- ---- files ----

local Q_PROJ = "model.language_model.layers.0.self_attn.q_proj"

-- PEFT's patterns say which rank and alpha a layer has; alpha / rank scales each layer.
check.case("layers of different ranks and alphas, PEFT's patterns", function()
  -- One layer gets two more ranks than the others.
  local wide = mini.copy(ROOT .. "lora/L2", place .. "/wide")
  local tensors = lora.read(ROOT .. "lora/L2")
  local json = model.read_json(wide .. "/adapter_config.json")
  local name = "base_model.model." .. Q_PROJ .. ".lora_"
  local rank = tensors[name .. "A.weight"]:shape()[1]
  tensors[name .. "A.weight"] = tensor.zeros { rank + 2, 64 }
  tensors[name .. "B.weight"] = tensor.zeros { 64, rank + 2 }
  sz.safetensors.save(wide .. "/adapter_model.safetensors", tensors)
  check.raises(function() sz.qwen_vl(BASE, { adapter = wide }) end,
    "the rank of the tensors is %d+, adapter_config.json says " .. rank,
    "a rank without its pattern")

  json.rank_pattern = { ["layers.0.self_attn.q_proj"] = rank + 2 }
  json.alpha_pattern = { [".*layers.0.self_attn.q_proj"] = 5 }
  files.write(wide .. "/adapter_config.json", cjson.encode(json))
  local vl = sz.qwen_vl(BASE, { adapter = wide })
  lora.save(vl, place .. "/wide-again")
  local saved = model.read_json(place .. "/wide-again/adapter_config.json")
  check.equal(saved.rank_pattern, { [Q_PROJ] = rank + 2 },
    "the config names the layer that has another rank")
  check.equal(saved.alpha_pattern, { [Q_PROJ] = 5 }, "and another alpha")
  local again = sz.qwen_vl(BASE, { adapter = place .. "/wide-again" })
  for _, list in ipairs { vl.lora.list, again.lora.list } do
    for _, pair in ipairs(list) do
      local scale = json.lora_alpha / rank
      if pair.module:find "layers.0.self_attn.q_proj" then scale = 5 / (rank + 2) end
      check.equal(pair.scale, scale, pair.module .. ": its scale")
    end
  end
end)

check.case("bad adapter files", function()
  -- Loads a copy of L2 after change(config, tensors).
  local function broken(wanted, change)
    local dir = mini.copy(ROOT .. "lora/L2", place .. "/broken")
    local json = model.read_json(dir .. "/adapter_config.json")
    local tensors = lora.read(dir)
    change(json, tensors)
    files.write(dir .. "/adapter_config.json", cjson.encode(json))
    sz.safetensors.save(dir .. "/adapter_model.safetensors", tensors, { format = "pt" })
    check.raises(function() sz.qwen_vl(BASE, { adapter = dir }) end, wanted, wanted)
    os.execute("rm -r " .. mini.quoted(dir))
  end
  local layer = "base_model.model." .. Q_PROJ .. ".lora_"
  local layer_9 = "base_model.model.model.language_model.layers.9.self_attn.q_proj.lora_"
  broken("use_dora is true", function(json) json.use_dora = true end)
  broken("peft_type is 'LOHA'", function(json) json.peft_type = "LOHA" end)
  broken("bias is 'all', expected 'none'", function(json) json.bias = "all" end)
  broken("lora_alpha is missing", function(json) json.lora_alpha = cjson.null end)
  broken("modules_to_save is %[\"lm_head\"%]",
    function(json) json.modules_to_save = { "lm_head" } end)
  for _, way in ipairs { "pissa", "pissa_niter_4", "olora", "corda", "loftq" } do
    broken("init_lora_weights is '" .. way .. "'", function(json) json.init_lora_weights = way end)
  end
  broken("adapter_config.json does not select model.language_model.layers.0", function(json)
    json.exclude_modules = { "layers.0.self_attn.q_proj" }
  end)
  broken("adapter_config.json does not select model.language_model.layers.1", function(json)
    json.layers_to_transform = { 0 }
  end)
  broken("q_proj: lora_A is missing", function(_, tensors) tensors[layer .. "A.weight"] = nil end)
  broken("do not fit a layer %[64, 64%]", function(_, tensors)
    tensors[layer .. "B.weight"] = tensor.zeros { 3, 3 }
  end)
  broken("unexpected: base_model.model.lm_head.weight", function(_, tensors)
    tensors["base_model.model.lm_head.weight"] = tensor.zeros { 2 }
  end)
  broken("the model has no model.language_model.layers.9", function(_, tensors)
    tensors[layer_9 .. "A.weight"] = tensor.zeros { 3, 64 }
    tensors[layer_9 .. "B.weight"] = tensor.zeros { 64, 3 }
  end)
end)

-- ---- 8 bits ----

check.case("adapters on a model in 8 bits are for inference only", function()
  local dir = "models/tiny/qwen2.5-vl"
  local vl = attach({ exclude_modules = ".*visual.*" }, dir)
  for i, pair in ipairs(vl.lora.list) do
    sz.core.check(C.sz_random_normal_(pair.b.ptr, 3, i, 0, 0.3))
  end
  lora.save(vl, place .. "/tiny")

  local positions = { 0, 1, 2, 3, 4 }
  local input = {
    input_ids = { 5, 9, 40, 77, 3 },
    position_ids = tensor.new({ positions, positions, positions }, { dtype = "i32" }),
    next_position = 5,
    image_grid_thw = {},
  }
  local small = sz.qwen_vl(dir, { dtype = "int8", adapter = place .. "/tiny" })
  local bare = sz.qwen_vl(dir, { dtype = "int8" })
  local whole = no_grad_logits(vl, input)
  local with = cosine(no_grad_logits(small, input), whole)
  local without = cosine(no_grad_logits(bare, input), whole)
  -- 8 bits move the logits' direction by about 1e-4 (test_int8.lua); leaving out the adapters moves
  -- it ten times further.
  check.ok(1 - with < 0.1 * (1 - without),
    ("cosine with adapters on 8 bits: %.6f, without: %.6f"):format(with, without))
  check.raises(function() small:train() end, "in 8 bits", "8 bits cannot be trained")
  check.raises(function() lora.merge(small) end, "in 8 bits", "nor take in adapters")
end)

-- ---- GRPO of a miniature ----

local dir = mini.write(place .. "/model")
local bytes = mini.bytes

local function count(t)
  local n = 0
  for _ in pairs(t) do n = n + 1 end
  return n
end

local function state_of(trainer)
  local out = {}
  for name, x in pairs(lora.parameters(trainer.policy)) do out[name] = bytes(x) end
  for name, x in pairs(trainer.optimizer:state()) do out[name] = bytes(x) end
  return out
end

local function differing(a, b)
  local n = 0
  for k, v in pairs(a) do
    if v ~= b[k] then n = n + 1 end
  end
  for k in pairs(b) do
    if a[k] == nil then n = n + 1 end
  end
  return n
end

-- parts_per_weight: tensors of optimizer state for one weight. Moments in 8 bits have scales.
local VARIANTS = {
  { name = "f32", parts_per_weight = 2, args = {} },
  {
    name = "tower",
    parts_per_weight = 2,
    args = {
      "worker.actor.model.lora.exclude_modules=none",
      "worker.actor.model.enable_gradient_checkpointing=false",
    },
  },
  {
    name = "bf16",
    dtype = "bf16",
    parts_per_weight = 4,
    args = {
      "worker.actor.model.dtype=bf16",
      "worker.actor.model.lora.target_modules=q_proj,v_proj,down_proj",
      "worker.actor.max_tokens_per_micro_batch=100",
      "worker.actor.optim.state_dtype=int8",
    },
  },
}

local function variant_args(variant)
  return {
    "worker.actor.model.lora.rank=3",
    "worker.actor.model.lora.alpha=6",
    unpack(variant.args),
  }
end

local function new_trainer(variant, folder)
  if folder then files.make_dir(folder) end
  local opts = { model = dir, dtype = variant.dtype, reference = true, folder = folder }
  return mini.trainer(mini.settings(variant_args(variant)), opts)
end

local function check_base_unchanged(trainer, before)
  for name, x in pairs(trainer.policy:parameters()) do
    if before[name] ~= bytes(x) then check.ok(false, "the base has changed: " .. name) end
    if x:grad() then check.ok(false, "the base has a gradient: " .. name) end
  end
end

for _, variant in ipairs(VARIANTS) do
  check.case(variant.name .. ": GRPO trains the adapters and resumes bit for bit", function()
    -- Four steps in one run.
    local unbroken = new_trainer(variant)
    local base = {}
    for name, x in pairs(unbroken.policy:parameters()) do base[name] = bytes(x) end
    local reports = mini.steps(unbroken, 4)
    check.equal(reports[1].kl, 0, "policy and base are equal before the first update")
    check.ok(reports[4].kl > 0, "policy and base differ later")
    check_base_unchanged(unbroken, base)
    check.equal(count(unbroken.optimizer:state()),
      variant.parts_per_weight * 2 * #unbroken.policy.lora.list,
      "moments of the adapters only, no masters")

    -- Two steps, a checkpoint, two more steps.
    local folder = place .. "/resume-" .. variant.name
    local first = new_trainer(variant, folder)
    mini.steps(first, 2)
    local path = first:save()
    check.ok(files.exists(path .. "/adapter_model.safetensors")
      and not files.exists(path .. "/model.safetensors"), "a checkpoint holds the adapters only")
    local second = new_trainer(variant, folder)
    second:resume(path)
    check.equal(mini.steps(second, 2), { reports[3], reports[4] },
      "a resumed run reports what an unbroken one does")
    check.equal(differing(state_of(unbroken), state_of(second)), 0, "2 + 2 steps equal 4")

    -- The model with the checkpoint as its adapter answers like the policy.
    local loaded = sz.qwen_vl(dir, { dtype = variant.dtype, adapter = second:save() })
    local input = mini.input(loaded, 1)
    local opts = { temperature = 0, max_new_tokens = 6, ignore_eos = true }
    check.equal(loaded:generate(input, opts)[1].ids, second.policy:generate(input, opts)[1].ids,
      "a checkpoint as an adapter")

    local settings = mini.settings(variant_args(variant))
    settings.worker.actor.model.lora.alpha = 7
    local other = mini.trainer(settings, { model = dir, dtype = variant.dtype })
    check.raises(function() other:resume(path) end, "lora%.alpha was 6, is 7", "another alpha")
  end)
end

check.case("a run with other adapters does not resume", function()
  local folder = place .. "/resume-other"
  local trained = new_trainer(VARIANTS[1], folder)
  mini.steps(trained, 2)
  local path = trained:save()
  local function refused(words, pattern, name)
    check.raises(function()
      mini.trainer(mini.settings(words), { model = dir }):resume(path)
    end, pattern, name)
  end
  local RANK = "worker.actor.model.lora.rank="
  local ALPHA = "worker.actor.model.lora.alpha=6"
  refused({ RANK .. 2, ALPHA }, "lora%.rank was 3, is 2", "another rank")
  refused({}, "adapters alone: it was written with worker%.actor%.model%.lora%.rank=3",
    "adapters in the checkpoint only")
  refused({ RANK .. 3, ALPHA, "worker.actor.model.lora.target_modules=q_proj" },
    "would not be used", "fewer layers than were trained")
  refused({ RANK .. 3, ALPHA, "worker.actor.model.lora.exclude_modules=none" },
    "missing base_model", "more layers than were trained")

  local whole = mini.trainer(mini.settings(), { model = dir, folder = folder })
  check.raises(function()
    local adapted = mini.trainer(mini.settings { RANK .. 3, ALPHA }, { model = dir })
    adapted:resume(whole:save())
  end, "has no adapters", "adapters in the run only")
end)

-- ---- the programs ----

check.case("the recipe trains adapters, merge_lora merges them", function()
  files.write(place .. "/reward.lua", mini.reward_source)
  local RANK = "worker.actor.model.lora.rank=2"
  local run = place .. "/run"
  local adapter = run .. "/global_step_2"
  local text, status = mini.recipe(dir, {
    RANK,
    "worker.reward.compute_score=" .. place .. "/reward.lua",
    "trainer.max_steps=2",
    "trainer.save_checkpoint_path=" .. run,
  })
  check.equal(status, 0, "a run: " .. text:sub(-300))
  check.ok(text:find "LoRA of rank 2 on 14 layers",
    "the run prints its adapters: " .. text:sub(1, 300))

  local merged_dir = place .. "/merged"
  text, status = mini.run {
    "examples/merge_lora.lua", "in=" .. dir, "adapter=" .. adapter, "out=" .. merged_dir,
  }
  check.equal(status, 0, "merged: " .. text)
  local merged = sz.qwen_vl(merged_dir)
  local adapted = sz.qwen_vl(dir, { adapter = adapter })
  local input = mini.input(adapted, 2)
  local err = relative(no_grad_logits(merged, input), no_grad_logits(adapted, input))
  check.ok(err <= LOGITS_TOL, ("a merged folder computes the same (%.2g)"):format(err))

  text, status = mini.run { "examples/infer.lua", "--demo", "1", "--model_path", adapter }
  check.ok(status ~= 0 and text:find("it has no config.json, but LoRA adapters", 1, true),
    "adapters are not a model: " .. text)
  text, status = mini.recipe(dir, { RANK, "worker.ref.model.dtype=int8" })
  check.ok(status ~= 0
    and text:find("the reference is the policy without its adapters", 1, true),
    "a reference of its own: " .. text:sub(-200))
end)

-- ---- the memory plan ----

check.case("the plan counts the tensors and the arena of a step", function()
  local cfg = mini.settings {
    "worker.actor.model.model_path=" .. dir,
    "data.max_response_length=8",
    "worker.actor.model.lora.rank=3",
  }
  local planned = plan.of(cfg, { prompt = prompt.seg_zero })
  check.equal(cfg.worker.actor.freeze_vision_tower, false, "a plan does not change the settings")

  -- Tensors that live from step to step.
  local trainer = mini.trainer(cfg, { model = dir, reference = true })
  local adapters = 0
  for _, x in ipairs(trainer.parameters) do adapters = adapters + 4 * x.tensor:numel() end
  local moments = 0
  for _, x in pairs(trainer.optimizer:state()) do moments = moments + 4 * x:numel() end
  local parts = planned.parts
  check.equal({ parts.adapters, parts.moments, parts.gradients, parts.masters, parts.reference },
    { adapters, moments, adapters, 0, 0 },
    "adapters, moments, gradients; no masters, no reference")

  -- The arena.
  C.sz_arena_used(1)
  trainer:step()
  local used = tonumber(C.sz_arena_used(0))
  local arena = math.max(planned.arena.update, planned.arena.sampling)
  check.ok(math.abs(arena / used - 1) < 0.1,
    ("arena: planned %.2f MB, used %.2f MB"):format(arena / 1e6, used / 1e6))
end)

mini.remove()
check.finish()
