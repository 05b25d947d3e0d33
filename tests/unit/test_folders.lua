-- test_folders.lua - model folders from outside: variants of the embedded model against
-- transformers, PEFT and tokenizers (tests/golden/folders.json, make_folders.py), and the settings
-- that are refused by name.
--
--   ./segzero tests/unit/test_folders.lua
--
-- Left out: damaged weight files (test_loading.lua), adapters that do not fit (test_lora.lua).

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local processor = require "segzero.models.qwen_vl.processor"
local tensor = require "segzero.core.tensor"
local tokenizer = require "segzero.models.text.tokenizer"

local TINY = sz.core.root .. "/models/tiny/qwen2.5-vl"
local TEXT = "<|im_start|>user\nwhere is the red circle?<|im_end|>\n<|im_start|>assistant\n"
local golden = files.read_json "tests/golden/folders.json"
local place = mini.folder()
local null = cjson.null

-- ---- folders ----
local NAMES = { "config.json", "generation_config.json", "preprocessor_config.json",
  "tokenizer.json", "tokenizer_config.json", "chat_template.json", "model.safetensors" }
local made = 0

-- A folder of links to the embedded model, without some files, with others: {name -> text or
-- table}.
local function folder(others, without)
  made = made + 1
  local dir = place .. "/" .. made
  files.make_dir(dir)
  local left_out = {}
  for _, name in ipairs(without or {}) do left_out[name] = true end
  for _, name in ipairs(NAMES) do
    if not left_out[name] and not (others and others[name]) then
      assert(require("posix.unistd").link(TINY .. "/" .. name, dir .. "/" .. name, true))
    end
  end
  for name, value in pairs(others or {}) do
    if type(value) == "table" then value = cjson.encode(value) end
    files.write(dir .. "/" .. name, value)
  end
  return dir
end

local function read(name) return cjson.decode(files.read(TINY .. "/" .. name)) end

-- config.json with these keys; null removes one.
local function config(set, vision)
  local json = read "config.json"
  for key, v in pairs(set or {}) do json[key] = v end
  for key, v in pairs(vision or {}) do json.vision_config[key] = v end
  for key, v in pairs(json) do
    if v == null then json[key] = nil end
  end
  return json
end

-- ---- logits ----
local tok = tokenizer.new(TINY)

-- The input that make_folders.py gives: a text, or an image of numbers and two words.
local function input_of(vl, with_image)
  local ids = tok:encode(TEXT)
  local grids = {}
  local values
  if with_image then
    ids = { vl.vision_start_token_id }
    for _ = 1, 6 do ids[#ids + 1] = vl.image_token_id end
    ids[#ids + 1] = vl.vision_start_token_id + 1
    for _, id in ipairs(tok:encode "red circle") do ids[#ids + 1] = id end
    grids = { { 1, 4, 6 } }
    values = tensor.empty { 24, 1176 }
    local p = tensor.data(values)
    for i = 0, 23 do
      for j = 0, 1175 do p[i * 1176 + j] = ((7 * i + 3 * j) % 256 - 128) / 64 end
    end
  end
  local positions = processor.positions(ids, grids, { image_token_id = vl.image_token_id }, 2)
  return { input_ids = ids, position_ids = positions, pixel_values = values,
    image_grid_thw = grids }
end

-- The first 8 logits of the last token.
local function logits(dir, with_image, opts)
  local vl = sz.qwen_vl(dir, opts)
  local input = input_of(vl, with_image)
  local all = tensor.no_grad(function() return vl:forward(input) end)
  local row = all:narrow(#input.input_ids - 1, 1):reshape(all:shape()[2]):totable()
  vl:free()
  local out = {}
  for i = 1, 8 do out[i] = row[i] end
  return out
end

-- f32 sums in another order move logits of this size (up to 13) by about 1e-5; the smallest effect
-- of a setting here is 1e-3.
local TOLERANCE = 1e-4

check.case("logits of edited configs are transformers'", function()
  check.equal(#golden.logits, 26, "cases")
  for _, c in ipairs(golden.logits) do
    local json = config(c.set, c.vision)
    for _, key in ipairs(c.remove) do json[key] = nil end
    -- What a case sets again is not removed.
    for key, v in pairs(c.set) do json[key] = v end
    local got = logits(folder { ["config.json"] = json }, c.image)
    check.near(got, c.logits, TOLERANCE, c.name)
  end
end)

check.case("configs with text_config are transformers'", function()
  check.equal(#golden.nested, 2, "cases")
  for _, c in ipairs(golden.nested) do
    local json = c.config
    if not json then
      json = read "config.json"
      local text = { model_type = "qwen2_5_vl_text", tie_word_embeddings = true }
      for _, key in ipairs(c.keys) do
        text[key] = json[key]
        json[key] = nil
      end
      json.tie_word_embeddings = nil
      json.text_config = text
    end
    check.near(logits(folder { ["config.json"] = json }), c.logits, TOLERANCE, c.name)
  end
end)

check.case("a tied folder with a head of its own uses it, as transformers 5", function()
  local weights = sz.safetensors.load(TINY .. "/model.safetensors")
  local plain = logits(TINY)
  weights["lm_head.weight"] = weights["model.embed_tokens.weight"]:affine(2, 0)
  local dir = folder(nil, { "model.safetensors" })
  sz.safetensors.save(dir .. "/model.safetensors", weights)
  local doubled = {}
  for i, x in ipairs(plain) do doubled[i] = 2 * x end
  check.near(logits(dir), doubled, TOLERANCE, "the logits")

  -- A copy says what it holds.
  local vl = sz.qwen_vl(dir)
  vl:save(place .. "/own-head")
  check.equal(files.read_json(place .. "/own-head/config.json").tie_word_embeddings, false, "saved")
  check.near(logits(place .. "/own-head"), doubled, TOLERANCE, "the saved folder's logits")

  -- The embedding a second time is no head of its own.
  weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
  sz.safetensors.save(dir .. "/model.safetensors", weights)
  check.equal(sz.qwen_vl(dir).own_head, false, "an equal head")
end)

check.case("settings that are not computed are refused by name", function()
  local function refused(wanted, set, vision)
    local dir = folder { ["config.json"] = config(set, vision) }
    check.raises(function() sz.qwen_vl(dir) end, "/config%.json: " .. wanted, wanted)
  end
  local function rope(t)
    t.mrope_section = { 1, 2, 13 }
    return { rope_scaling = t }
  end
  refused("rope_scaling%.type is 'dynamic'", rope { type = "dynamic", factor = 2 })
  refused("rope_scaling%.rope_type is 'longrope'", rope { rope_type = "longrope", factor = 2 })
  refused("rope_scaling%.rope_type is 'llama3'", rope { rope_type = "llama3", factor = 2 })
  refused("rope_scaling%.type is 'linear', expected what rope_type says",
    rope { rope_type = "default", type = "linear", factor = 2 })
  refused("rope_scaling%.factor is missing", rope { type = "yarn" })
  refused("rope_scaling%.factor is 0", rope { type = "linear", factor = 0 })
  refused("rope_scaling%.partial_rotary_factor is 0%.5", rope { partial_rotary_factor = 0.5 })
  refused("rope_theta is %[1%]", { rope_theta = { 1 } })
  refused("use_sliding_window is true", { use_sliding_window = true, sliding_window = 8,
    max_window_layers = 2 })
  refused("layer_types%[1%] is 'sliding_attention'", { layer_types = { "full_attention",
    "sliding_attention", "full_attention", "full_attention" } })
  refused("hidden_act is 'gelu'", { hidden_act = "gelu" })
  refused("vision_config%.hidden_act is 'gelu'", nil, { hidden_act = "gelu" })
  refused("vision_config%.rope_parameters%.rope_type is 'yarn'", nil,
    { rope_parameters = { rope_type = "yarn", factor = 2 } })
  refused("head_dim is 64", { head_dim = 64 })
  refused("tie_word_embeddings is 'no'", { tie_word_embeddings = "no" })
  refused("vision_config%.fullatt_block_indexes is 1", nil, { fullatt_block_indexes = 1 })
  refused("image_token_id is 'x'", { image_token_id = "x" })
  refused("eos_token_id is 'x'", { eos_token_id = "x" })
end)

check.case("numbers of a config are bounded before anything is allocated", function()
  for _, n in ipairs { 0, -1, 1.5, 100000, 16777215, 2e9, 1e300, "4" } do
    local dir = folder { ["config.json"] = config { num_hidden_layers = n } }
    check.raises(function() sz.qwen_vl(dir) end, "config%.json: num_hidden_layers is ",
      "layers " .. tostring(n))
  end
  local sam = read "../sam2/config.json"
  sam.mask_decoder_config.num_hidden_layers = 16777216
  files.make_dir(place .. "/sam2")
  files.write(place .. "/sam2/config.json", cjson.encode(sam))
  check.raises(function() sz.sam2(place .. "/sam2") end,
    "config%.json: mask_decoder_config%.num_hidden_layers is 16777216", "SAM2's layers")
  files.write(place .. "/sam2/config.json", "5")
  check.raises(function() sz.sam2(place .. "/sam2") end, "config%.json: not a JSON object",
    "a number")
end)

-- ---- what a folder is ----
check.case("folders are named for what they are", function()
  check.raises(function() sz.qwen_vl "Qwen/Qwen2.5-VL-3B-Instruct" end,
    "^[^\n]*Qwen2.5%-VL%-3B%-Instruct: there is no such .* HF_HUB_OFFLINE is set, so nothing "
      .. "is down", "a name on the hub")
  for _, method in ipairs { "awq", "gptq", "bitsandbytes", "fp8", "compressed-tensors" } do
    local json = config { quantization_config = { quant_method = method } }
    check.raises(function() sz.qwen_vl(folder { ["config.json"] = json }) end,
      "quantised %(quant_method " .. method:gsub("%-", "%%-"), method)
  end
  local bin = folder({ ["pytorch_model.bin"] = "x" }, { "model.safetensors" })
  check.raises(function() sz.qwen_vl(bin) end,
    "pytorch_model%.bin, a PyTorch file, which is not read", "a PyTorch file")

  local weights = sz.safetensors.load(TINY .. "/model.safetensors")
  for _, front in ipairs { "module.", "base_model.model.", "_orig_mod.", "actor.module." } do
    local renamed = {}
    for name, t in pairs(weights) do renamed[front .. name] = t end
    local dir = folder(nil, { "model.safetensors" })
    sz.safetensors.save(dir .. "/model.safetensors", renamed)
    check.raises(function() sz.qwen_vl(dir) end, ("begin with '%s': '%smodel"):format(front, front),
      front)
  end
  local dir = folder(nil, { "model.safetensors" })
  weights["model.layers.0.mlp.up_proj.qweight"] = sz.tensor({ { 1, 2 } }, { dtype = "i32" })
  sz.safetensors.save(dir .. "/model.safetensors", weights)
  check.raises(function() sz.qwen_vl(dir) end, "quantised %(AWQ or GPTQ", "tensors of AWQ")
end)

check.case("model.safetensors comes before an index", function()
  local dir = folder(nil, { "model.safetensors" })
  local weights = sz.safetensors.load(TINY .. "/model.safetensors")
  local old = {}
  for name, t in pairs(weights) do
    old[name] = t
    if name:find "norm" then old[name] = t:affine(1.5, 0) end
  end
  sz.safetensors.save_folder(dir, old, { max_shard_bytes = 1e6 })
  sz.safetensors.save(dir .. "/model.safetensors", weights)
  check.near(logits(dir), logits(TINY), 0, "the logits")
end)

check.case("only regular files are opened", function()
  local stat = require "posix.sys.stat"
  for _, name in ipairs { "config.json", "model.safetensors", "tokenizer.json",
    "preprocessor_config.json", "generation_config.json", "chat_template.jinja" } do
    local dir = folder(nil, { name })
    assert(stat.mkfifo(dir .. "/" .. name) == 0)
    check.raises(function()
      local vl = sz.qwen_vl(dir)
      vl:tokenizer()
      vl:processor()
      vl:generation()
    end, name:gsub("%.", "%%.") .. ": not a regular file", name)
  end
end)

-- ---- adapters ----
local function sines(rows, columns, layer, first, by_row, by_column)
  local t = tensor.empty { rows, columns }
  local p = tensor.data(t)
  for i = 0, rows - 1 do
    for j = 0, columns - 1 do
      p[i * columns + j] = 0.2 * math.sin(first + by_row * i + by_column * j + 0.1 * layer)
    end
  end
  return t
end

check.case("adapters are PEFT's", function()
  check.equal(#golden.adapters, 5, "cases")
  local tensors = {}
  for layer = 0, 3 do
    for module, rows in pairs { q_proj = 128, v_proj = 64 } do
      local front = ("base_model.model.model.language_model.layers.%d.self_attn.%s"):format(layer,
        module)
      tensors[front .. ".lora_A.weight"] = sines(2, 128, layer, 1, 1, 3)
      tensors[front .. ".lora_B.weight"] = sines(rows, 2, layer, 2, 2, 1)
    end
  end
  for i, c in ipairs(golden.adapters) do
    local dir = ("%s/adapter-%d"):format(place, i)
    local json = { peft_type = "LORA", r = 2, lora_alpha = 8, bias = "none",
      target_modules = { "q_proj", "v_proj" } }
    for key, v in pairs(c.config) do json[key] = v end
    files.make_dir(dir)
    files.write(dir .. "/adapter_config.json", cjson.encode(json))
    sz.safetensors.save(dir .. "/adapter_model.safetensors", tensors)
    check.near(logits(TINY, false, { adapter = dir }), c.logits, TOLERANCE, c.name)
  end
end)

-- Which pattern PEFT 0.21.2's get_pattern_key picks.
check.case("the first pattern of the file that matches a layer counts", function()
  local dir = mini.copy("tests/golden/lora/L2", place .. "/patterns")
  local path = dir .. "/adapter_config.json"
  local text = files.read(path)
  local module = "model.language_model.layers.0.self_attn.q_proj"
  local default = files.read_json(path).lora_alpha
  -- The module's alpha with these patterns.
  local function alpha(patterns)
    files.write(path, (text:gsub('"alpha_pattern": {}', function()
      return '"alpha_pattern": ' .. patterns
    end)))
    for _, pair in ipairs(sz.qwen_vl("tests/golden/qwen_vl/Q1", { adapter = dir }).lora.list) do
      if pair.module == module then return pair.alpha end
    end
  end
  local NARROW = '"layers.0.self_attn.q_proj": 3'
  for patterns, want in pairs {
    ['{"q_proj": 2, ' .. NARROW .. "}"] = 2,
    ["{" .. NARROW .. ', "q_proj": 2}'] = 3,
    ['{"k_proj": 9, "[qk]_proj": 4, "q_proj": 2}'] = 4,
    ['{"_proj": 2, "^layers.0.self_attn.q_proj": 5}'] = default,
    ['{"^model.language_model.layers.0.self_attn.q_proj": 5}'] = 5,
    ['{"q_proj|k_proj": 6}'] = 6,
  } do
    check.equal(alpha(patterns), want, patterns)
  end
end)

-- ---- tokenizers ----
check.case("added tokens and normal forms are transformers'", function()
  check.equal(#golden.tokens, 15, "cases")
  for _, c in ipairs(golden.tokens) do
    local json = read "tokenizer_config.json"
    for key, v in pairs(c.config) do
      json[key] = v
      if v == null then json[key] = nil end
    end
    local others = { ["tokenizer_config.json"] = json }
    for name, v in pairs(c.files) do others[name] = v end
    local dir = folder(others, { "model.safetensors" })
    check.equal(tokenizer.new(dir):encode(c.text), c.ids, c.name)
  end
end)

check.case("tokenizers that are not computed are refused by name", function()
  local function refused(wanted, name, change)
    local json = read(name)
    change(json)
    local dir = folder({ [name] = json }, { "model.safetensors" })
    local full = name:gsub("%.", "%%.") .. ": " .. wanted
    check.raises(function() tokenizer.new(dir) end, full, wanted)
  end
  local FILE = "tokenizer.json"
  refused("post_processor: TemplateProcessing adds '<|endoftext|>'", FILE, function(t)
    t.post_processor = { type = "TemplateProcessing", pair = {}, special_tokens = {},
      single = { { SpecialToken = { id = "<|endoftext|>", type_id = 0 } } } }
  end)
  refused("post_processor: type 'RobertaProcessing'", FILE, function(t)
    t.post_processor = { type = "RobertaProcessing" }
  end)
  refused("normalizer: type 'Lowercase'", FILE, function(t)
    t.normalizer = { type = "Lowercase" }
  end)
  refused("decoder: type 'Strip'", FILE, function(t) t.decoder = { type = "Strip" } end)
  refused("model: it is 5", FILE, function(t) t.model = 5 end)
  refused("pre_tokenizer: it is 5", FILE, function(t) t.pre_tokenizer = 5 end)
  refused("normalizer: it is true", FILE, function(t) t.normalizer = true end)
  refused("added_tokens is 5", FILE, function(t) t.added_tokens = 5 end)
  refused("added_tokens%[0%] is 5", FILE, function(t) t.added_tokens = { 5 } end)
  refused("added_tokens%[0%]: '<|endoftext|>' has lstrip", FILE, function(t)
    t.added_tokens[1].lstrip = true
  end)
  refused("model%.vocab: it is a list", FILE, function(t) t.model.vocab = { 7 } end)
  refused("model.*ignore_merges", FILE, function(t) t.model.ignore_merges = true end)
  local CONFIG = "tokenizer_config.json"
  refused("add_prefix_space is true", CONFIG, function(t) t.add_prefix_space = true end)
  refused("split_special_tokens is true", CONFIG, function(t) t.split_special_tokens = true end)
  refused("added_tokens_decoder is 5", CONFIG, function(t) t.added_tokens_decoder = 5 end)
end)

check.case("a megabyte of combining marks takes no minute", function()
  local text = "e" .. ("\204\129"):rep(250000) .. ("\204\150"):rep(250000)
  local started = os.clock()
  local ids = tok:encode(text)
  check.ok(os.clock() - started < 5, "seconds: " .. os.clock() - started)
  -- Two tokens for each: e with an accent, the marks below it, and the accents that are left.
  check.equal(#ids, 1000000, "tokens")
end)

check.case("the chat template is the processor's", function()
  check.equal(#golden.chats, 5, "cases")
  local question = { { role = "user", content = { { type = "text", text = "where?" } } } }
  for _, c in ipairs(golden.chats) do
    local dir = folder(c.files, { "model.safetensors", unpack(c.remove) })
    local t = tokenizer.new(dir)
    check.equal(t:chat(question, { add_generation_prompt = true }), c.text, c.name)
    local image = sz.image.new(56, 56)
    local with_image = { { role = "user", content = { { image = image } } } }
    local inp = processor.new(dir):process(with_image, t)
    check.equal(inp.text:match "^(.-)<|im_start|>user", c.text:match "^(.-)<|im_start|>user",
      c.name .. ": the processor's prompt")
  end
end)

-- ---- processors ----
check.case("sizes of images are those of transformers' processor", function()
  check.equal(#golden.grids, 21, "cases")
  for _, c in ipairs(golden.grids) do
    local dir = folder(c.files, { "model.safetensors", unpack(c.remove) })
    check.equal(processor.new(dir):plan(c.width, c.height).grid, c.grid,
      ("%s: %d x %d"):format(c.name, c.width, c.height))
  end
end)

check.case("processor settings that are not computed are refused by name", function()
  local function refused(wanted, set)
    local json = read "preprocessor_config.json"
    for key, v in pairs(set) do json[key] = v end
    local dir = folder({ ["preprocessor_config.json"] = json }, { "model.safetensors" })
    check.raises(function() processor.new(dir) end, "preprocessor_config%.json: " .. wanted, wanted)
  end
  refused("image_processor_type is 'CLIPImageProcessor'",
    { image_processor_type = "CLIPImageProcessor" })
  refused("size is .*, expected an object with shortest_edge", { size = { height = 5, width = 5 } })
  refused("size is 448", { size = 448 })
  refused("resample is 1", { resample = 1 })
  refused("do_center_crop is true", { do_center_crop = true })
  refused("image_std is ", { image_std = { 0.5, 0, 0.5 } })
  refused("patch_size is 0", { patch_size = 0 })
end)

-- The grid of an item in a message of its own.
local function grid_of(item)
  local messages = { { role = "user", content = { item, { type = "text", text = "q" } } } }
  return processor.new(TINY):process(messages, tok).image_grid_thw[1]
end

check.case("limits of a message's image are those of qwen_vl_utils", function()
  local image = sz.image.new(84, 112)
  local function grid(limits)
    limits.type = "image"
    limits.image = image
    return grid_of(limits)
  end
  -- Sizes by qwen_vl_utils 0.0.14's smart_resize, in patches of 14.
  check.equal(grid {}, { 1, 8, 6 }, "none")
  check.equal(grid { min_pixels = 3136, max_pixels = 3136 }, { 1, 4, 2 }, "few")
  check.equal(grid { min_pixels = 50176, max_pixels = 60000 }, { 1, 20, 14 }, "many")
  check.equal(grid { max_pixels = 4000 }, { 1, 4, 2 }, "max_pixels alone")
  check.equal(grid { resized_height = 100, resized_width = 290 }, { 1, 8, 20 }, "a size")
  local function refused(wanted, limits)
    check.raises(function() grid(limits) end, "message 1, item 1.*" .. wanted, wanted)
  end
  refused("min_pixels is x", { min_pixels = "x" })
  refused("max_pixels is 0", { max_pixels = 0 })
  refused("min_pixels 9000 is more than max_pixels 5000", { min_pixels = 9000, max_pixels = 5000 })
  refused("resized_height and resized_width come together", { resized_height = 56 })
end)

-- ---- images in a text ----
local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(bytes)
  local out = {}
  for i = 1, #bytes, 3 do
    local a, b, c = bytes:byte(i, i + 2)
    local n = a * 65536 + (b or 0) * 256 + (c or 0)
    for k = 1, 4 do
      local v = math.floor(n / 64 ^ (4 - k)) % 64
      out[#out + 1] = ALPHABET:sub(v + 1, v + 1)
    end
    if not b then out[#out - 1] = "=" end
    if not c then out[#out] = "=" end
  end
  return table.concat(out)
end

check.case("data URLs are decoded", function()
  local image = sz.image.new(60, 90)
  local path = place .. "/image.png"
  image:save(path)
  local url = "data:image/png;base64," .. base64(files.read(path))
  check.equal(grid_of { type = "image", image = url }, grid_of { type = "image", image = path },
    "an image in the text")
  check.equal(grid_of { type = "image_url", image_url = { url = url } }, { 1, 6, 4 },
    "as image_url")
  local function refused(wanted, source)
    local ok, why = pcall(grid_of, { type = "image", image = source })
    check.ok(not ok and tostring(why):find(wanted), wanted .. ": " .. tostring(why):sub(1, 200))
    check.ok(#tostring(why) < 300, "a short message: " .. #tostring(why))
  end
  refused("75000 bytes.*not an image", "data:image/png;base64," .. ("A"):rep(100000))
  refused("character 23 is not base64", "data:image/png;base64,!" .. ("A"):rep(100000))
  refused("only those with ;base64", "data:image/png," .. ("A"):rep(100000))
  refused("nothing is downloaded", "https://example.com/" .. ("a"):rep(1000))
end)

-- ---- saving ----
check.case("a saved folder keeps every companion file", function()
  local others = {
    ["processor_config.json"] = { image_processor = {
      image_processor_type = "Qwen2VLImageProcessor",
      size = { shortest_edge = 3136, longest_edge = 6272 },
    } },
    ["video_preprocessor_config.json"] = { video_processor_type = "Qwen2VLVideoProcessor" },
    ["special_tokens_map.json"] = { eos_token = "<|im_end|>" }, ["added_tokens.json"] = {},
    ["vocab.json"] = { a = 0 }, ["merges.txt"] = "#version: 0.2\n",
    ["chat_template.jinja"] = files.read_json(TINY .. "/chat_template.json").chat_template,
  }
  local dir = folder(others, { "preprocessor_config.json" })
  files.make_dir(dir .. "/additional_chat_templates")
  files.write(dir .. "/additional_chat_templates/tools.jinja", "x")
  local vl = sz.qwen_vl(dir)
  local copy = place .. "/copy"
  vl:save(copy)
  local names = { "additional_chat_templates/tools.jinja", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "chat_template.json" }
  for name in pairs(others) do names[#names + 1] = name end
  check.equal(#names, 13, "files")
  for _, name in ipairs(names) do
    check.equal(files.read(copy .. "/" .. name), files.read(dir .. "/" .. name), name)
  end
  check.ok(not files.exists(copy .. "/preprocessor_config.json"), "no other file")
  check.equal(processor.new(copy):plan(300, 200), processor.new(dir):plan(300, 200), "sizes")
end)

mini.remove()
check.finish()
