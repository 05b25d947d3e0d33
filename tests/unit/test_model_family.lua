-- test_model_family.lua - a model family of a script's own: registered from outside the library, it
-- samples, trains, is planned for, is saved and resumed, is evaluated, and runs through the recipe.
--
-- The toy is one attention layer without positions, written with tensor ops: tied embeddings, a
-- linear layer for image patches, a cache of one layer. It has only what the contract in
-- lua/segzero/models/README.md asks for, so the test also says what is enough.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local packing = require "segzero.inference.packing"
local policy = require "segzero.models.policy"
local safetensors = require "segzero.formats.safetensors"
local tensor = require "segzero.core.tensor"

-- ---- the family ----
local PATCH_VALUES = 3 * 2 * 14 ^ 2         -- numbers of a patch
local PER_TOKEN = 4                         -- patches of an image token

local function shapes(json)
  local h, v = json.hidden_size, json.vocab_size
  return {
    { name = "embed", shape = { v, h } },
    { name = "qkv", shape = { 3 * h, h } },
    { name = "out", shape = { h, h } },
    { name = "visual.proj", shape = { h, PER_TOKEN * PATCH_VALUES } },
  }
end

-- One layer of keys and values.
local Cache = {}
Cache.__index = Cache
function Cache:rows() return self.keys:shape()[1] end
function Cache:move(to, from, rows)
  for _, t in ipairs { self.keys, self.values } do
    t:narrow(to, rows):copy_(t:narrow(from, rows):clone())
  end
end
function Cache:clear() end
function Cache:free()
  self.keys:free()
  self.values:free()
end

local own = {}

function own:new_cache(rows)
  local h = self.dims.hidden
  return setmetatable({ keys = tensor.zeros { rows, h }, values = tensor.zeros { rows, h } }, Cache)
end

function own:vision(inputs)
  local pixels = packing.images(inputs)
  if not pixels then return nil end
  local tokens = pixels:shape()[1] / PER_TOKEN
  return pixels:reshape(tokens, PER_TOKEN * PATCH_VALUES):linear(self.w["visual.proj"])
end

local function attend(self, qkv, stream, opts)
  local h = self.dims.hidden
  local how = { heads = 1, kv_heads = 1, head_dim = h, causal = true, scale = h ^ -0.5 }
  if not opts.cache then return (qkv:attention(stream.segments, how)) end
  local keys, values = opts.cache.keys, opts.cache.values
  keys:scatter_cols_(opts.cache_rows, qkv, { col = h })
  values:scatter_cols_(opts.cache_rows, qkv, { col = 2 * h })
  return qkv:attention_cached(keys, values, stream.segments, how)
end

function own:hidden(stream, features, opts)
  opts = opts or {}
  assert(not opts.prefix, "the toy has no shared prefixes: a group fits into its micro-batch")
  local x = self.w.embed:embedding(stream.ids)
  if features then x = x:index_copy(stream.image_rows, features) end
  x = x + attend(self, x:linear(self.w.qkv), stream, opts):linear(self.w.out)
  if opts.rows then return x:gather_rows(opts.rows) end
  return x
end

function own:logits(hidden) return hidden:linear(self.w.embed) end

function own:logprob_of(hidden, targets, temperature)
  local how = { inverse_temperature = 1 / (temperature or 1) }
  local logprob, entropy = hidden:logprob(self.w.embed, targets, how)
  return logprob, entropy
end

function own:is_vision_weight(name) return name == "visual.proj" end

function own:parameters()
  local out = {}
  for name, t in pairs(self.w) do out[name] = t end
  return out
end

function own:train(filter)
  local list = {}
  for _, w in ipairs(self.weights) do
    local on = not filter or filter(w.name)
    self.w[w.name]:requires_grad(on)
    if on then list[#list + 1] = { name = w.name, tensor = self.w[w.name] } end
  end
  return list
end

function own:save(dir, opts)
  files.make_dir(dir)
  files.write(dir .. "/config.json", cjson.encode(self.json))
  safetensors.save_folder(dir, self:parameters(), opts)
end

function own:free()
  for _, t in pairs(self.w) do t:free() end
end

local methods = policy.methods(own)

-- value(weight): the tensor of a weight.
local function new(dir, json, value)
  local toy = setmetatable({
    dir = dir, json = json, dtype = "f32", device = "cpu", image_token_id = json.image_token_id,
    weights = shapes(json), w = {},
  }, { __index = methods, __tostring = function() return "toy of " .. dir end })
  toy.dims = { layers = 1, hidden = json.hidden_size, heads = 1, kv_heads = 1,
    head_dim = json.hidden_size, vocab = json.vocab_size, patches_per_token = PER_TOKEN }
  for i, w in ipairs(toy.weights) do toy.w[w.name] = value(w, i) end
  return toy
end

local function read_json(dir) return files.read_json(dir .. "/config.json") end

sz.models:register("toy", {
  help = "one attention layer, in Lua",
  load = function(dir)
    local loaded = safetensors.load_folder(dir)
    return new(dir, read_json(dir), function(w) return loaded[w.name] end)
  end,
  meta = function(dir, dtype)
    return new(dir, read_json(dir), function(w) return tensor.meta(w.shape, dtype) end)
  end,
})

-- A folder of the toy with random weights, with the tokenizer and the processor of a small Qwen-VL.
local function write_toy(dir)
  mini.write(dir)
  local json = read_json(dir)
  json.model_type = "toy"
  local toy = new(dir, json, function(w, i)
    local t = tensor.zeros(w.shape)
    local std = w.name == "visual.proj" and 0.01 or 0.3
    sz.core.check(sz.core.C.sz_random_normal_(t.ptr, 7, i, 0, std))
    return t
  end)
  toy:save(dir)
  toy:free()
  return dir
end

-- ---- the tests ----
local place = mini.folder()
local dir = write_toy(place .. "/toy")

check.case("sz.model opens the folder of a registered family", function()
  local toy = sz.model(dir)
  check.equal(toy.dims.hidden, 32, "its own object")
  check.ok(table.concat(sz.models:names(), " "):find "toy", "the registry lists it")
  check.raises(function() sz.models:get "qwen2_5_vlm" end, "did you mean 'qwen2_5_vl'",
    "a misspelt family")
  toy:free()
end)

check.case("sampling over the cache equals the full forward", function()
  local toy = sz.model(dir)
  local input = mini.input(toy, 1)
  local answers = toy:generate(input, { n = 3, temperature = 1, max_new_tokens = 20, seed = 5 })
  check.equal(#answers, 3, "answers")
  for i, a in ipairs(answers) do
    local full = sz.no_grad(function() return toy:logprobs(input, { a.ids })[1]:totable() end)
    check.near(a.logprobs, full, 1e-4, "log-probabilities of answer " .. i)
  end
  toy:free()
end)

check.case("GRPO trains it, with a reference", function()
  local cfg = mini.settings { "worker.actor.optim.lr=1e-3" }
  local t = mini.trainer(cfg, { model = dir, reference = true })
  local before = {}
  for name, w in pairs(t.policy:parameters()) do before[name] = mini.bytes(w) end
  local steps = mini.steps(t, 3)
  check.equal(#steps, 3, "steps")
  check.ok(steps[1].kl < 1e-6 and steps[3].kl > 1e-6, "the policy leaves its reference")
  local changed = 0
  for name, w in pairs(t.policy:parameters()) do
    if mini.bytes(w) ~= before[name] then changed = changed + 1 end
  end
  check.equal(changed, 4, "every weight is trained")
end)

check.case("a frozen vision tower stays as it is", function()
  local t = mini.trainer(mini.settings { "worker.actor.freeze_vision_tower=true" }, { model = dir })
  local before = mini.bytes(t.policy:parameters()["visual.proj"])
  mini.steps(t, 1)
  check.equal(#t.parameters, 3, "three weights are trained")
  check.ok(mini.bytes(t.policy:parameters()["visual.proj"]) == before, "its weight")
end)

check.case("the memory plan counts it", function()
  local cfg = mini.settings { "worker.actor.model.model_path=" .. dir }
  local p = require("segzero.tools.plan").of(cfg, { prompt = sz.prompt.seg_zero })
  local bytes = 0
  for _, w in ipairs(shapes(read_json(dir))) do bytes = bytes + 4 * w.shape[1] * w.shape[2] end
  check.equal(p.parts.weights, bytes, "weights")
  check.ok(p.arena.update > 0 and p.arena.sampling > 0, "activations")
end)

check.case("the recipe runs it and writes a checkpoint that opens", function()
  local folder = place .. "/run"
  local args = { "worker.actor.model.model_path=" .. dir, "trainer.save_checkpoint_path=" .. folder,
    "trainer.max_steps=2" }
  for _, a in ipairs(mini.arguments) do args[#args + 1] = a end
  require("recipes.refcocog_grpo").run(args, { reward = mini.reward })
  local saved = sz.checkpoint.latest(folder)
  check.ok(saved and saved:find "global_step_2$",
    "a checkpoint after two steps: " .. tostring(saved))
  if saved then
    local toy = sz.model(saved)
    check.equal(toy.dims.vocab, read_json(dir).vocab_size, "it is a folder of the family")
    toy:free()
  end
end)

check.case("it is evaluated, in the sizes that its own processor allows", function()
  local evaluate = require "recipes.evaluate"
  local args = { "model_path=" .. dir, "sam2_path=none", "rows=2", "max_new_tokens=4",
    "resamples=2", "output_path=" .. place .. "/evaluation" }
  evaluate.run(args)
  check.ok(files.exists(place .. "/evaluation/results.jsonl"), "results")

  args[#args + 1] = "frame=100"
  local refused = "the model would resize it to 112 x 112"
  check.raises(function() evaluate.run(args) end, refused, "known from the loaded model")
  local spec = sz.models:get "toy"
  local load = spec.load
  spec.processor = function(path) return require("segzero.models.qwen_vl.processor").new(path) end
  spec.load = function() error "it was loaded" end
  check.raises(function() evaluate.run(args) end, refused, "known before it is loaded")
  spec.load = load
  spec.processor = nil
end)

check.case("a family must write the functions that have no default", function()
  check.raises(function() policy.methods { hidden = function() end } end,
    "a family needs the function 'logits'", "logits")
end)

mini.remove()
check.finish()
