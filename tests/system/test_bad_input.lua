-- test_bad_input.lua - broken model folders, data sets, images and rewards, through the program:
-- each gives one error that names the thing, an exit status that is not 0, and no file half
-- written.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local tensor = require "segzero.core.tensor"

local place = mini.folder()
local dir = mini.write(place .. "/model")
files.write(place .. "/reward.lua", mini.reward_source)

local tests = 0
-- Runs the recipe; the error is the last thing printed and has `wanted` in it. Returns the output.
local function fails(wanted, args, model, may_have_started)
  tests = tests + 1
  local runs = place .. "/run" .. tests
  local all = { "trainer.save_checkpoint_path=" .. runs, "trainer.max_steps=2",
    "worker.reward.compute_score=" .. place .. "/reward.lua" }
  for _, a in ipairs(args or {}) do all[#all + 1] = a end
  local text, status = mini.recipe(model or dir, all)
  check.ok(text:find(wanted, 1, true), ("'%s' is said:\n%s"):format(wanted, text))
  check.ok(status ~= 0 and status < 128, ("%s: exit %d"):format(wanted, status))
  check.ok(may_have_started or not files.exists(runs .. "/config.json"),
    wanted .. ": no run folder is left behind")
  return text, runs
end

-- ---- model folders ----
local base = cjson.decode(files.read(dir .. "/config.json"))
local weights = sz.safetensors.load(dir .. "/model.safetensors")

local function broken(name, change)
  local path = mini.copy(dir, place .. "/" .. name)
  change(path)
  return path
end
local function with_config(name, changes, vision)
  return broken(name, function(path)
    local json = cjson.decode(cjson.encode(base))
    for k, v in pairs(changes or {}) do json[k] = v end
    for k, v in pairs(vision or {}) do json.vision_config[k] = v end
    files.write(path .. "/config.json", cjson.encode(json))
  end)
end
local function with_weights(name, changes)
  return broken(name, function(path)
    local set = {}
    for k, t in pairs(weights) do set[k] = t end
    for k, t in pairs(changes) do set[k] = t or nil end
    for k, t in pairs(changes) do if t == false then set[k] = nil end end
    sz.safetensors.save(path .. "/model.safetensors", set)
  end)
end

-- In this process, because each costs a start otherwise; some also through the program below.
local function refused(wanted, path)
  local ok, message = pcall(sz.qwen_vl, path)
  check.ok(not ok and tostring(message):find(wanted, 1, true),
    ("'%s', got '%s'"):format(wanted, tostring(message)))
  check.ok(ok or not tostring(message):find("\nstack traceback", 1, true), "without a traceback")
end

check.case("a model folder without a config that can be read", function()
  refused("/no-such: there is no such folder", place .. "/no-such")
  refused("/no-config: it has no config.json",
    broken("no-config", function(p) os.remove(p .. "/config.json") end))
  refused("/bad-json/config.json: ", broken("bad-json",
    function(p) files.write(p .. "/config.json", "{\"model_type\": ") end))
  refused("/number/config.json: not a JSON object",
    broken("number", function(p) files.write(p .. "/config.json", "3") end))
  refused("/kind/config.json: model_type llama is not supported",
    with_config("kind", { model_type = "llama" }))
end)

check.case("a config with numbers that do not fit", function()
  refused("/mrope/config.json: mrope_section adds up to 7, head_dim / 2 is 8",
    with_config("mrope", { rope_scaling = { type = "mrope", mrope_section = { 2, 3, 2 } } }))
  refused([[mrope_section is [2,"3",3], expected three whole numbers]],
    with_config("mrope2", { rope_scaling = { type = "mrope", mrope_section = { 2, "3", 3 } } }))
  refused("mrope_section adds up to 64, head_dim / 2 is 8",
    with_config("mrope3", { rope_scaling = cjson.null }))
  refused("/layers/config.json: num_hidden_layers is 1.5, expected a whole number",
    with_config("layers", { num_hidden_layers = 1.5 }))
  refused("num_attention_heads is 0", with_config("heads", { num_attention_heads = 0 }))
  refused("num_key_value_heads 3 does not divide num_attention_heads 2",
    with_config("kv", { num_key_value_heads = 3 }))
  refused("hidden_size is 'text', expected a whole number",
    with_config("text", { hidden_size = "text" }))
  refused("vision_config.out_hidden_size 16 differs from hidden_size 32",
    with_config("out", nil, { out_hidden_size = 16 }))
  refused("vision_config.depth is -1", with_config("depth", nil, { depth = -1 }))
  refused("weights do not fit the config", with_config("vocab",
    { vocab_size = base.vocab_size + 16 }))
end)

check.case("weights that are cut off or do not fit", function()
  refused("has neither model.safetensors nor model.safetensors.index.json",
    broken("no-weights", function(p) os.remove(p .. "/model.safetensors") end))
  local raw = files.read(dir .. "/model.safetensors")
  for _, n in ipairs { 0, 7, 100, #raw / 2 - #raw / 2 % 1, #raw - 1 } do
    refused(("/cut-%d/model.safetensors: "):format(n),
      broken("cut-" .. n, function(p) files.write(p .. "/model.safetensors", raw:sub(1, n)) end))
  end
  refused("missing: model.layers.1.mlp.up_proj.weight",
    with_weights("missing", { ["model.layers.1.mlp.up_proj.weight"] = false }))
  refused("model.norm.weight: shape [31], expected [32]",
    with_weights("shape", { ["model.norm.weight"] = tensor.zeros { 31 } }))
  refused("unexpected: model.extra.weight", with_weights("extra",
    { ["model.extra.weight"] = tensor.zeros { 3 } }))
end)

check.case("a tied model that carries a head", function()
  local embedding = sz.safetensors.load(dir .. "/model.safetensors")["model.embed_tokens.weight"]
  check.ok(pcall(sz.qwen_vl, with_weights("tied", { ["lm_head.weight"] = embedding })),
    "a tied model may carry the embedding as lm_head")
  refused("lm_head.weight: shape [3], expected [",
    with_weights("head", { ["lm_head.weight"] = tensor.zeros { 3 } }))
end)

check.case("broken model folders through the program", function()
  fails("no model in " .. place .. "/model-gone: there is no such folder", nil,
    place .. "/model-gone")
  fails("model.norm.weight: shape [31], expected [32]", nil,
    with_weights("shape2", { ["model.norm.weight"] = tensor.zeros { 31 } }))
  fails("/kind2/config.json: unknown model family 'llama'", nil,
    with_config("kind2", { model_type = "llama" }))
  fails("tokenizer.json", nil, broken("no-tokenizer",
    function(p) os.remove(p .. "/tokenizer.json") end))
  fails("preprocessor_config.json", nil, broken("bad-processor",
    function(p) files.write(p .. "/preprocessor_config.json", "{") end))
end)

-- Said of a folder whose weights are an error as well.
check.case("what settings and small files forbid is said before weights are read", function()
  local norm = "model.norm.weight"
  local unreadable = with_weights("no-norm", { [norm] = false })
  refused("missing: " .. norm, unreadable)
  fails("target_modules 'nonsense' without", { "worker.actor.model.lora.rank=2",
    "worker.actor.model.lora.target_modules=nonsense", "trainer.check_memory=false" }, unreadable)
  fails("lora.rank is 4000, more than the", { "worker.actor.model.lora.rank=4000",
    "trainer.check_memory=false" }, unreadable)
  local function says(wanted, f, ...)
    local ok, why = pcall(f, ...)
    check.ok(not ok and tostring(why):find(wanted, 1, true), wanted .. ": " .. tostring(why))
  end
  says("no adapter in " .. place .. "/nowhere", sz.qwen_vl, unreadable,
    { adapter = place .. "/nowhere" })

  -- An adapter of wider layers.
  local wide = sz.qwen_vl(dir)
  sz.lora.attach(wide, { rank = 2, alpha = 2, target_modules = "o_proj" })
  local adapter = place .. "/wide"
  sz.lora.save(wide, adapter)
  local set = sz.safetensors.load(adapter .. "/adapter_model.safetensors")
  local name = "base_model.model.model.language_model.layers.0.self_attn.o_proj.lora_A.weight"
  check.ok(set[name], "the adapter's name")
  set[name] = tensor.zeros { 2, 40 }
  sz.safetensors.save(adapter .. "/adapter_model.safetensors", set)
  says("lora_A [2, 40]", sz.qwen_vl, unreadable, { adapter = adapter })

  says("frame=37: the model would resize it", function()
    require("recipes.evaluate").run { "model_path=" .. unreadable, "frame=37", "rows=1",
      "output_path=" .. place .. "/frame" }
  end)
  says("--frame 37: the model would resize it", function()
    require("examples.infer").run { "--model_path", unreadable, "--frame", "37", "--demo", "1",
      "--output_path", place .. "/frame.png" }
  end)
end)

-- ---- data sets ----
local refshapes = require "segzero.data.refshapes"
local set = place .. "/set"
refshapes.write_dataset(set, { n = 6, size = 84, seed = 1 }, sz.image.write_png)
local lines = {}
for line in io.lines(set .. "/data.jsonl") do lines[#lines + 1] = line end
local function data_set(name, change)
  local path = mini.copy(set, place .. "/" .. name)
  local text = { unpack(lines) }
  change(text, path)
  files.write(path .. "/data.jsonl", table.concat(text, "\n") .. "\n")
  return "data.train_files=" .. path
end
local in_order = "data.shuffle=false"

check.case("the data set itself is fine", function()
  local good, good_status = mini.recipe(dir, { "data.train_files=" .. set, "data.val_files=None",
    "trainer.max_steps=1", "trainer.save_freq=-1",
    "trainer.save_checkpoint_path=" .. place .. "/good",
    "worker.reward.compute_score=" .. place .. "/reward.lua" })
  check.equal(good_status, 0, "the data set itself is fine: " .. good:sub(-300))
end)

check.case("data sets that cannot be read", function()
  fails("data.train_files: " .. place .. "/nowhere: there is no such file or folder",
    { "data.train_files=" .. place .. "/nowhere" })
  fails("data.val_files: " .. place .. "/nowhere: ", { "data.val_files=" .. place .. "/nowhere" })
  fails("/json/data.jsonl:3: not a JSON object",
    { data_set("json", function(t) t[3] = "{'id': 3}" end) })
  fails("/column/data.jsonl:2: there is no column 'solution' (data.answer_key); there is: id, ",
    { data_set("column", function(t) t[2] = t[2]:gsub('"solution"', '"truth"') end) })
  fails("/kinds/data.jsonl:4: the column 'image' is number, expected a string",
    { data_set("kinds", function(t) t[4] = t[4]:gsub('"image": "[^"]*"', '"image": 5') end) })
  fails("/empty/data.jsonl has no rows", { data_set("empty", function(t)
    for i = #t, 1, -1 do t[i] = nil end
  end) })
end)

check.case("rows that cannot be used", function()
  fails(" has 6 rows, data.rollout_batch_size is 8: set it to at most 6",
    { "data.train_files=" .. set, "data.rollout_batch_size=8" })
  fails("/gone/data.jsonl:2: ", { data_set("gone",
    function(t) t[2] = t[2]:gsub("train_1_000001%.png", "nothing.png") end), in_order })
  local skipping, skipping_status = mini.recipe(dir, { "data.train_files=" .. place .. "/gone",
    "data.val_files=None", "data.on_bad_row=skip", "trainer.max_steps=1", "trainer.save_freq=-1",
    "trainer.save_checkpoint_path=" .. place .. "/skipping",
    "worker.reward.compute_score=" .. place .. "/reward.lua" })
  check.equal(skipping_status, 0, "the row is left out: " .. skipping:sub(-300))
  check.ok(skipping:find("(1 of 6 rows; left out: data.on_bad_row=skip)", 1, true),
    "and that is said")
  fails("images/nothing.png", { "data.train_files=" .. place .. "/gone", in_order })
  fails("/image/data.jsonl:1: ", { data_set("image",
    function(_, p) files.write(p .. "/images/train_1_000000.png", "no image at all") end),
    in_order })
  local long = fails("data.max_prompt_length is 60",
    { "data.train_files=" .. set, in_order, "data.max_prompt_length=60" })
  check.ok(long:find("row train_1_000000_1: the prompt has %d+ tokens %(%d+ of them image%)"),
    "it names the row: " .. long)
  -- An image only one pixel high is too narrow for the processor: the row is named too.
  fails("row train_1_000000_1: ", { data_set("narrow",
    function(_, p) sz.image.new(400, 1):save(p .. "/images/train_1_000000.png") end),
    in_order })
end)

-- ---- rewards ----
local function reward(name, source)
  files.write(place .. "/" .. name .. ".lua", source)
  return { "worker.reward.compute_score=" .. place .. "/" .. name .. ".lua",
    "data.train_files=" .. set, in_order }
end

check.case("rewards that do not load", function()
  fails("the reward does not load: " .. place .. "/syntax.lua:1: ",
    reward("syntax", "return function( end"))
  fails("there is nothing here", reward("load", "error 'there is nothing here'"))
  fails("returns a table, expected a function", reward("kind", "return {}"))
  fails("cannot open " .. place .. "/absent.lua",
    { "worker.reward.compute_score=" .. place .. "/absent.lua" })
end)

check.case("a reward that raises an error", function()
  local text, runs = fails("the reward failed on row train_1_000000_1", reward("throws", [[
  local function judge(text, truth)
    if #truth > 0 then error "no judgement today" end
  end
  return function(text, truth) return (judge(text, truth)) end
  ]]), nil, true)
  local row = cjson.decode(lines[1])
  for _, part in ipairs { "question: " .. row.problem, "ground truth: " .. row.solution, "answer: ",
    "no judgement today", "throws.lua:2: ", "in function 'judge'" } do
    check.ok(text:find(part, 1, true), "the error has '" .. part .. "'")
  end
  check.ok(not files.exists(runs .. "/config.json"), "no folder of a run that has nothing")
end)

check.case("rewards that are no numbers", function()
  for value, wanted in pairs { ["nil"] = "nil", ["0/0"] = "nan", ["1/0"] = "inf",
    ["'3'"] = "the string '3'", ["true"] = "true" } do
    local out = fails("for row train_1_000000_1, expected a finite number",
      reward("value", "return function() return " .. value .. " end"), nil, true)
    check.ok(out:find("the reward returned %-?" .. wanted), "it shows " .. wanted)
  end
  fails("the reward's part tidy of row train_1_000000_1 is nil, expected names with numbers",
    reward("parts", "return function() return 1, setmetatable({}, nil) and {tidy = 'nil'} end"),
    nil, true)
end)

-- ---- a caller's mistakes in a script: each blames this file, none reaches C ----
local function blames(wanted, f, ...)
  local ok, why = pcall(f, ...)
  check.ok(not ok and tostring(why):find(wanted, 1,
    true) and not tostring(why):find "segzero/%w+%.lua:%d+: ",
    ("'%s' is said: %s"):format(wanted, tostring(why)))
end
-- One line of this file for each call, so that the error has a caller to blame.
local function of(object, method, ...)
  local a, b = object[method](object, ...)
  return a, b
end

check.case("a number over a tensor", function()
  check.equal((1 / sz.tensor { 1 / 0, 4 }):totable()[1], 0, "a number over infinity is 0")
  local x = sz.tensor { 2, 4 }:requires_grad(true);
  (3 / x):sum():backward()
  check.equal(x:grad():totable()[1], -0.75, "and has its gradient")
end)

check.case("mistakes with tensors and images", function()
  local t = sz.tensor { 1, 2 }
  blames("a tensor already", function() local y = sz.tensor(t) return y end)
  blames("a table with names", function() local y = sz.tensor { a = 1 } return y end)
  blames("300 does not fit u8", function() local y = sz.tensor({ 1, 300 },
    { dtype = "u8" }) return y end)
  blames("nan does not fit i32", function() local y = sz.tensor({ 0 / 0 },
    { dtype = "i32" }) return y end)
  blames("options must be a table", function() local y = sz.tensor({ 1 }, "bf16") return y end)
  blames("options must be a table", of, t, "to", "cuda")
  blames("affine: scale is x", of, t, "affine", "x")
  blames("expected a tensor, got string", function() local y = "x" + t return y end)
  local gone = sz.tensor { 1 }
  gone:free()
  for _, method in ipairs { "item", "totable", "values", "mean", "to" } do
    blames("has been freed", of, gone, method)
  end
  local nested = select(2, pcall(sz.step, function() sz.no_grad(function() error "inside" end) end))
  check.equal(select(2, nested:gsub("stack traceback:", "")), 1,
    "scopes within scopes: one traceback")
  blames("over the limit", of, sz.image.new(2, 2), "resize", 2 ^ 30, 2 ^ 30)
  blames("not a table of texts", function()
    sz.safetensors.save(place .. "/m.safetensors", { t = t }, "pt")
  end)
end)

check.case("mistakes with a policy", function()
  local vl = sz.qwen_vl(dir)
  local inp = vl:process { { role = "user", content = "where?" } }
  blames("a folder name is expected", function() local m = sz.qwen_vl() return m end)
  blames("dtype is f16, expected one of", function() local m = sz.qwen_vl(dir,
    { dtype = "f16" }) return m end)
  blames("one message, not a list", of, vl, "process", { role = "user", content = "where?" })
  for _, method in ipairs { "forward", "generate", "logprobs" } do
    blames("vl:process(messages) returned", of, vl, method, {})
  end
  blames("generate: n is 1.5", of, vl, "generate", inp, { n = 1.5, max_new_tokens = 2 })
  blames("generate: seed is 0.5", of, vl, "generate", inp, { seed = 0.5 })
  blames("logprobs: list 1 is a number", of, vl, "logprobs", inp, { 1, 2 })
  blames("logprobs: list 1[2] is -1", of, vl, "logprobs", inp, { { 1, -1 } })
  local longer = {}
  for k, v in pairs(inp) do longer[k] = v end
  longer.input_ids = { unpack(inp.input_ids) }
  table.insert(longer.input_ids, 1)
  blames("but position_ids [3, " .. #inp.input_ids .. "]", of, vl, "forward", longer)
  local blind = vl:process { { role = "user", content = { { type = "image",
    image = sz.image.new(56, 56) } } } }
  blind.pixel_values = nil
  blames("but pixel_values has 0 patches", of, vl, "forward", blind)
  vl:free()
  for _, method in ipairs { "forward", "generate", "logprobs", "process", "parameters", "save" } do
    blames("this model has been freed", of, vl, method, inp)
  end
end)

check.case("mistakes with SAM2", function()
  local sam = sz.sam2(sz.core.root .. "/models/tiny/sam2")
  blames("call set_image first", of, sam, "predict", { box = { 1, 2, 3, 4 } })
  blames("wants an image", of, sam, "set_image", "a.png")
  sam:set_image(sz.image.new(20, 10))
  blames("box must be 4 numbers", of, sam, "predict", { box = { 1, 2, 3 } })
  blames("mask_input must be a tensor", of, sam, "predict", { mask_input = sz.tensor { 1, 2 } })
  check.equal(#sam:predict { boxes = {} }, 0, "no boxes: no results")
  sam:free()
  for _, method in ipairs { "set_image", "predict", "embed", "parameters" } do
    blames("this model has been freed", of, sam, method, {})
  end
end)

mini.remove()
check.finish()
