-- model.lua - Qwen2.5-VL and Qwen2-VL as scripts see them: a Hugging Face folder in; forward, log-probabilities, generation; a folder out.
--
--   local vl = sz.qwen_vl(dir, {dtype = "f32" | "bf16" | "int8", device = "cpu" | "cuda", adapter = a PEFT folder,
--                                          offload = true: weights wait in host memory (offload.lua)})
--   local inp = vl:process(messages)
--   vl:forward(inp)                         logits [T, vocab]
--   vl:logprobs(inp, {{ids}, ...})          one tensor of log-probabilities for each list of ids
--   vl:generate(inp, {temperature = 1, n = 8, ...})     settings: generation.lua and rollout.lua
--   vl:parameters()                         {name -> tensor}, names as Hugging Face writes them
--   vl:save(dir)
--
-- With adapters (vl.lora, lora.lua) they are what is trained and what save() writes, as PEFT does; parameters() stays the base's.
-- dtype int8 is for inference: bf16 with the language model's linear layers in 8 bits (vl.quantized), not trained, not saved.
-- JSON is read here; weights are mapped by safetensors.lua and handed to C by name. Leaves out: videos.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"
local packing = require "segzero.inference.packing"
local safetensors = require "segzero.formats.safetensors"
local files = require "segzero.core.files"
local weights = require "segzero.models.weights"
local generation = require "segzero.inference.generation_config"
local vision_cache = require "segzero.inference.vision_cache"
local lora = require "segzero.models.lora"

local C, check = core.C, core.check

local M = {}

local methods = {}
local mt = { __index = methods }
local freed = weights.freed("qwen_vl", methods)

-- ---- config ----
-- What transformers' config classes say when a key is missing.
local TEXT_DEFAULTS = {
  hidden_size = 8192, intermediate_size = 29568, num_hidden_layers = 80, num_attention_heads = 64, num_key_value_heads = 8,
  vocab_size = 152064, rms_norm_eps = 1e-5, rope_theta = 1e6,
}
-- Keyed by model_type. In qwen2_vl the tower's own width is embed_dim, and hidden_size is the one it gives to the language model.
local VISION_DEFAULTS = {
  qwen2_5_vl = {
    depth = 32, hidden_size = 3584, hidden_act = "silu", intermediate_size = 3420, num_heads = 16, in_channels = 3, patch_size = 14,
    spatial_merge_size = 2, temporal_patch_size = 2, window_size = 112, out_hidden_size = 3584,
    fullatt_block_indexes = { 7, 15, 23, 31 },
  },
  qwen2_vl = {
    depth = 32, embed_dim = 1280, hidden_size = 3584, hidden_act = "quick_gelu", mlp_ratio = 4, num_heads = 16, in_channels = 3,
    patch_size = 14, spatial_merge_size = 2, temporal_patch_size = 2,
  },
}
local TOKEN_DEFAULTS = { vision_token_id = 151654, image_token_id = 151655, video_token_id = 151656, vision_start_token_id = 151652, vision_end_token_id = 151653 }

local function value(t, key)
  local v = type(t) == "table" and t[key] or nil
  if v == cjson.null then return nil end
  return v
end

local function first(...)
  for i = 1, select("#", ...) do
    local v = select(i, ...)
    if v ~= nil then return v end
  end
end

function M.read_json(path, optional)
  local file, reason = io.open(path, "r")
  if not file then
    if optional then return nil end
    error(reason, 0)
  end
  local text = file:read("*a")
  file:close()
  local ok, result = pcall(cjson.decode, text)
  if not ok then error(path .. ": " .. tostring(result), 0) end
  return result
end

-- Sizes are whole and fit the struct's 32 bits.
local REAL = { rms_norm_eps = true, rope_theta = true, mlp_ratio = true }
local function countable(v, key)
  return type(v) == "number" and (REAL[key] or v % 1 == 0 and math.abs(v) < 2 ^ 31)
end

-- config.json (a Lua table) to the C struct. Newer files nest the language keys under text_config.
function M.parse_config(json)
  if type(json) ~= "table" then error("config.json: not a JSON object", 0) end
  local kind = value(json, "model_type")
  local vision_defaults = VISION_DEFAULTS[kind]
  if not vision_defaults then error(("model_type %s is not supported (qwen2_vl and qwen2_5_vl are)"):format(tostring(kind)), 0) end
  local text, vision = value(json, "text_config"), value(json, "vision_config") or {}
  local function number(key)
    local v = first(value(text, key), value(json, key), TEXT_DEFAULTS[key])
    if not countable(v, key) then error(("config.json: %s is %s, expected a number"):format(key, tostring(v)), 0) end
    return v
  end
  local function vision_number(key, alias)
    local v = first(value(vision, key), value(vision, alias), vision_defaults[key])
    if not countable(v, key) then error(("config.json: vision_config.%s is %s, expected a number"):format(key, tostring(v)), 0) end
    return v
  end
  local act = value(vision, "hidden_act") or vision_defaults.hidden_act
  if act ~= vision_defaults.hidden_act then
    error(("config.json: vision_config.hidden_act is %s, expected %s"):format(tostring(act), vision_defaults.hidden_act), 0)
  end
  local c = ffi.new("sz_qwen_config")
  c.hidden, c.intermediate, c.layers = number "hidden_size", number "intermediate_size", number "num_hidden_layers"
  c.heads, c.kv_heads, c.vocab = number "num_attention_heads", number "num_key_value_heads", number "vocab_size"
  c.head_dim = first(value(text, "head_dim"), value(json, "head_dim"), math.floor(c.hidden / math.max(c.heads, 1)))
  c.rms_eps = number "rms_norm_eps"
  c.tied = first(value(json, "tie_word_embeddings"), value(text, "tie_word_embeddings"), false) and 1 or 0
  local rope = first(value(text, "rope_parameters"), value(json, "rope_parameters"), value(text, "rope_scaling"), value(json, "rope_scaling"), {})
  c.rope_theta = first(value(rope, "rope_theta"), value(text, "rope_theta"), value(json, "rope_theta"), TEXT_DEFAULTS.rope_theta)
  local section = value(rope, "mrope_section")
  if not section then error("config.json: rope_scaling.mrope_section is missing", 0) end
  for i = 1, 3 do
    if not countable(type(section) == "table" and section[i]) then
      error("config.json: rope_scaling.mrope_section is not three whole numbers", 0)
    end
    c.mrope_section[i - 1] = section[i]
  end

  c.v_depth, c.v_heads, c.v_channels = vision_number "depth", vision_number "num_heads", vision_number("in_channels", "in_chans")
  c.v_patch, c.v_merge, c.v_temporal = vision_number "patch_size", vision_number "spatial_merge_size", vision_number "temporal_patch_size"
  if kind == "qwen2_vl" then
    c.family, c.v_hidden, c.v_out = C.SZ_QWEN2_VL, vision_number "embed_dim", vision_number "hidden_size"
    local inner = math.floor(c.v_hidden * vision_number "mlp_ratio")
    if not countable(inner) then error(("config.json: vision_config.mlp_ratio is %s"):format(tostring(vision_number "mlp_ratio")), 0) end
    c.v_intermediate = inner
    return c
  end
  c.family, c.v_hidden, c.v_out = C.SZ_QWEN2_5_VL, vision_number "hidden_size", vision_number "out_hidden_size"
  c.v_intermediate, c.v_window = vision_number "intermediate_size", vision_number "window_size"
  for _, i in ipairs(first(value(vision, "fullatt_block_indexes"), vision_defaults.fullatt_block_indexes)) do
    if i >= 0 and i < C.SZ_QWEN_MAX_DEPTH then c.v_full[i] = 1 end
  end
  return c
end

-- ---- weights ----
-- Newer in-memory names to the ones of the hub's files.
local function canonical(name)
  name = name:gsub("^model%.visual%.", "visual."):gsub("^model%.language_model%.", "model.")
  return name
end

local of = weights.access(C, "sz_qwen")

local function new(json, dtype, device)
  local config = M.parse_config(json)
  local c = ffi.gc(check(C.sz_qwen_new(config), 3), C.sz_qwen_free)
  local vl = setmetatable({ c = c, of = of, config = config, json = json, device = device, quantized = dtype == "int8",
    dtype = dtype == "int8" and "bf16" or dtype or "f32" }, mt)
  vl.weights = weights.list(c, of)
  for name, default in pairs(TOKEN_DEFAULTS) do vl[name] = value(json, name) or default end
  return vl
end

local function quantize(vl)
  if vl.quantized then check(C.sz_qwen_quantize(vl.c), 3) end
  return vl
end

-- What is wrong with a folder that has no config.json.
function M.missing(dir)
  return ("no model in %s: it has no config.json%s"):format(dir,
    files.exists(dir .. "/adapter_config.json") and ", but LoRA adapters: name their model there, and this folder as adapter" or "")
end

local DTYPES = { f32 = true, bf16 = true, int8 = true }

function M.qwen_vl(dir, opts)
  opts = weights.opening("qwen_vl", dir, opts, DTYPES, 2)
  local device = tensor.model_device(opts.device, 2)
  local offload = opts.offload and device ~= "cpu"
  if offload and (opts.dtype == "int8" or opts.adapter) then error("qwen_vl: a model in 8 bits or with adapters is not offloaded", 2) end
  local json = M.read_json(dir .. "/config.json")
  local ok, vl = pcall(new, json, opts.dtype, offload and "cpu" or device)
  if not ok then error(("%s/config.json: %s"):format(dir, weights.plain(vl)), 2) end
  vl.dir, vl.offloaded = dir, offload and device or nil
  -- A tied checkpoint may carry a stray lm_head; the embedding is used. Old ones carry the rotary tables, which are computed here.
  weights.load(vl, safetensors.open_folder(dir), canonical, function(name)
    return vl.config.tied == 1 and name == "lm_head.weight" or name:find "%.inv_freq$" ~= nil
  end)
  quantize(vl)
  if opts.adapter then
    local fits, why = pcall(lora.load, vl, opts.adapter)
    if not fits then error(weights.plain(why), 2) end
  end
  return vl
end

function M.is_norm(name)
  return name:find "norm[12]?%.weight$" ~= nil or name:find "layernorm%.weight$" ~= nil or name:find "ln_q%.weight$" ~= nil
end

-- What a config table asks for: {{name =, shape = {...}}, ...} in the hub's names.
function M.weight_list(json)
  local c = check(C.sz_qwen_new(M.parse_config(json)), 2)
  local list = weights.list(c, of)
  C.sz_qwen_free(c)
  return list
end

-- Fills tensors with normal numbers by copying one block over and over, the next tensor from where the last one ended.
local BLOCK = 16777213       -- a prime, so that no two rows of a matrix are the same
local function repeating(vl, seed, std)
  local block, at = tensor.empty({ BLOCK }, { dtype = vl.dtype, device = vl.device }), 0
  check(C.sz_random_normal_(block.ptr, seed, 0, 0, std))
  return function(t)
    tensor.step(tensor.no_grad, function()
      local n, done = t:numel(), 0
      local flat = t:reshape(n, 0, 0, 0)
      while done < n do
        local length = math.min(n - done, BLOCK - at)
        flat:narrow(done, length):copy_(block:narrow(at, length))
        done, at = done + length, (at + length) % BLOCK
      end
    end)
  end, block
end

-- A model of random weights (normal, std; norms 1, biases 0) from a config table: for training from scratch and benchmarks. repeated: 16 million
-- numbers over and over, since billions take the processor minutes to draw.
function M.random(json, opts)
  opts = opts or {}
  local vl = new(json, opts.dtype, tensor.model_device(opts.device, 2))
  local seed, std = opts.seed or 0, opts.std or 0.02
  local fill, block
  if opts.repeated then fill, block = repeating(vl, seed, std) end
  for _, w in ipairs(vl.weights) do
    local t = tensor.zeros(w.shape, { dtype = vl.dtype, device = vl.device })
    if M.is_norm(w.name) then
      t:copy_(tensor.zeros(w.shape):affine(0, 1))
    elseif fill and not w.name:match "%.bias$" then
      fill(t)
    elseif not w.name:match "%.bias$" then
      check(C.sz_random_normal_(t.ptr, seed, w.index, 0, std))
    end
    check(C.sz_qwen_weight_set(vl.c, w.index, t.ptr))
    t:free()
  end
  if block then block:free() end
  return quantize(vl)
end

-- The model of a folder with no memory behind its weights: for counting (plan.lua). Only config.json is read.
function M.meta(dir, dtype)
  local vl = new(M.read_json(dir .. "/config.json"), dtype, "cpu")
  vl.dir = dir
  for _, w in ipairs(vl.weights) do
    local t = tensor.meta(w.shape, vl.dtype)
    check(C.sz_qwen_weight_set(vl.c, w.index, t.ptr))
    t:free()
  end
  return vl
end

-- What only whole weights can do.
local function whole(f, name)
  return function(vl, ...)
    if vl.quantized then error(name .. ": this model is in 8 bits, for inference; load it as bf16 or f32", 2) end
    return f(vl, ...)
  end
end
methods.parameters = whole(weights.parameters, "parameters")
methods.train = whole(function(vl, filter) return (vl.lora and lora or weights).train(vl, filter) end, "train")

function methods:free()
  if self.c ~= nil then
    C.sz_qwen_free(ffi.gc(self.c, nil))
    self.c = nil
    setmetatable(self, freed)
  end
end

-- ---- inputs ----
function methods:tokenizer()
  if not self.tok then self.tok = require("segzero.models.tokenizer").new(self.dir) end
  return self.tok
end

function methods:has_tokenizer()
  return self.tok ~= nil or self.dir ~= nil and files.exists(self.dir .. "/tokenizer.json")
end

function methods:processor()
  if not self.proc then self.proc = require("segzero.models.processor").new(self.dir) end
  return self.proc
end

function methods:process(messages) return self:processor():process(messages, self:tokenizer(), self) end

-- What generation_config.json says about answers (generation.lua).
function methods:generation() return self.dir and generation.read(self.dir) or {} end

-- Tokens that end an answer: generation_config.json's, else config.json's, else the tokenizer's end of turn.
function methods:stop_ids()
  local ids = self:generation().eos_token_id or value(self.json, "eos_token_id") or value(value(self.json, "text_config"), "eos_token_id")
  if type(ids) == "number" then ids = { ids } end
  return ids or { self:tokenizer().eos_id }
end

-- ---- computing ----
-- Picture features of several inputs, [tokens, hidden]; nil without pictures. What inputs hold of a frozen tower's is not
-- computed again (features.lua); where gradients are recorded it always is.
function methods:vision(inputs, opts)
  local held = C.sz_grad_enabled() == 0 and vision_cache.gather(self, inputs)
  if held then return held end
  local pixels, grids = packing.images(inputs)
  if not pixels then return nil end
  return tensor.wrap(check(C.sz_qwen_vision(self.c, pixels.ptr, grids.ptr, opts and opts.recompute and 1 or 0), 2))
end

local function pointer(t) return t and t.ptr or nil end

-- Final hidden states of the wanted rows of a packed stream (packing.stream). opts.prefix: {} to keep what streams of later calls see before their
-- own rows (packing.stream's `behind`), or one so filled.
function methods:hidden(stream, features, opts)
  opts = opts or {}
  local prefix, layers = opts.prefix, self.config.layers
  local list = prefix and ffi.new("sz_tensor *[?]", layers)
  for i = 1, prefix and #prefix or 0 do list[i - 1] = prefix[i].ptr end
  local hidden = C.sz_qwen_hidden(self.c, stream.ids.ptr, stream.positions.ptr, stream.segments.ptr,
    features and pointer(stream.image_rows) or nil, pointer(features), pointer(opts.rows), opts.cache, pointer(opts.cache_rows), list,
    opts.recompute and 1 or 0)
  for i = #(prefix or {}) + 1, prefix and layers or 0 do
    if list[i - 1] ~= nil then prefix[i] = tensor.wrap(list[i - 1]) end
  end
  return tensor.wrap(check(hidden, 2))
end

function methods:logits(hidden) return tensor.wrap(check(C.sz_qwen_logits(self.c, hidden.ptr), 2)) end

local pair = ffi.new("sz_tensor *[2]")

-- log-probability and entropy [k] of targets i32 [k] given hidden [k, h].
function methods:logprob_of(hidden, targets, temperature)
  check(C.sz_qwen_logprob(self.c, hidden.ptr, targets.ptr, temperature or 1, pair, pair + 1), 2)
  return tensor.wrap(pair[0]), tensor.wrap(pair[1])
end

-- Token ids, whole and of the vocabulary, since C reads them as such.
local function check_ids(vl, ids, what, level)
  if type(ids) ~= "table" then error(("%s is a %s, not a list of token ids"):format(what, type(ids)), level + 1) end
  for i, id in ipairs(ids) do
    if type(id) ~= "number" or id % 1 ~= 0 or id < 0 or id >= vl.config.vocab then
      error(("%s[%d] is %s, not a token id (0 to %d)"):format(what, i, tostring(id), vl.config.vocab - 1), level + 1)
    end
  end
end

-- An input that was not made, or was changed, by hand must fit together: C reads as many positions as there are ids.
local function check_input(vl, inp, name, level)
  if type(inp) ~= "table" or not inp.input_ids or not tensor.is_tensor(inp.position_ids) then
    error(name .. ": what vl:process(messages) returned is expected, got " .. type(inp), level + 1)
  end
  check_ids(vl, inp.input_ids, name .. ": input_ids", level + 1)
  local pictures, merged = 0, vl.config.v_merge ^ 2
  for _, id in ipairs(inp.input_ids) do
    if id == vl.image_token_id then pictures = pictures + 1 end
  end
  local positions = inp.position_ids:shape()
  if #inp.input_ids == 0 or positions[1] ~= 3 or positions[2] ~= #inp.input_ids then
    error(("%s: %d input_ids, but position_ids [%s]"):format(name, #inp.input_ids, table.concat(positions, ", ")), level + 1)
  end
  local patches = inp.pixel_values and inp.pixel_values:shape()[1] or 0
  if patches ~= pictures * merged then
    error(("%s: %d picture tokens of %d patches each, but pixel_values has %d patches"):format(name, pictures, merged, patches), level + 1)
  end
end

function methods:forward(inp)
  check_input(self, inp, "forward", 2)
  local stream = packing.stream({ { input = inp, answers = {} } }, self.image_token_id)
  return self:logits(self:hidden(stream, self:vision { inp }))
end

function methods:logprobs(inp, lists)
  check_input(self, inp, "logprobs", 2)
  if type(lists) ~= "table" then error("logprobs: a list of lists of token ids is expected, got " .. type(lists), 2) end
  for i, ids in ipairs(lists) do
    check_ids(self, ids, "logprobs: list " .. i, 2)
    if #ids == 0 then error(("logprobs: list %d is empty"):format(i), 2) end
  end
  local stream = packing.stream({ { input = inp, answers = lists } }, self.image_token_id)
  local hidden = self:hidden(stream, self:vision { inp }, { rows = stream.rows })
  local lp = self:logprob_of(hidden, stream.targets)
  local out = {}
  for i, span in ipairs(stream.spans[1]) do out[i] = lp:narrow(span[1], span[2]) end
  return out
end

-- As transformers' generate: what opts leave open is the folder's generation_config.json's.
function methods:generate(inp, opts)
  check_input(self, inp, "generate", 2)
  local ok, full = pcall(generation.options, self:generation(), opts)
  if not ok then error(full, 2) end
  local echoed
  if full.on_text == nil and generation.echo and (full.n or 1) == 1 and self:has_tokenizer() then
    full.on_text = function(i, piece)
      echoed = true
      generation.echo(i, piece)
    end
  end
  local answers = require("segzero.inference.rollout").generate(self, { inp }, full)[1]
  if echoed then generation.echo(1, "\n") end
  return answers
end

-- ---- saving ----
local COMPANIONS = { "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json",
  "chat_template.json", "chat_template.jinja", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json" }

local function copy_file(from, to)
  local source = io.open(from, "rb")
  if not source then return end
  local text = source:read("*a")
  source:close()
  local target = assert(io.open(to, "wb"))
  assert(target:write(text))
  assert(target:close())
end

-- transformers' processor wants the chat template in a file of its own, as the released folders have it beside the tokenizer's.
local function write_chat_template(dir)
  if files.exists(dir .. "/chat_template.json") or files.exists(dir .. "/chat_template.jinja") then return end
  local template = value(M.read_json(dir .. "/tokenizer_config.json", true), "chat_template")
  if type(template) == "string" then
    files.write(dir .. "/chat_template.json", (cjson.encode { chat_template = template }:gsub("\\/", "/")))
  end
end

-- Writes a folder that transformers and segzero load: config, weights, and the companion files the model came with. Of a model with
-- adapters only these, in PEFT's format.
methods.save = whole(function(self, dir, opts)
  if type(dir) ~= "string" then error("save: a folder name is expected, got " .. type(dir), 3) end
  if self.lora then return lora.save(self, dir) end
  files.make_dir(dir)
  for _, name in ipairs(COMPANIONS) do
    if self.dir then copy_file(self.dir .. "/" .. name, dir .. "/" .. name) end
  end
  if self.dir then
    copy_file(self.dir .. "/config.json", dir .. "/config.json")
  else
    files.write(dir .. "/config.json", cjson.encode(self.json))
  end
  write_chat_template(dir)
  safetensors.save_folder(dir, self:parameters(), opts)
end, "save")

function mt.__tostring(vl)
  local c = vl.config
  local family = c.family == C.SZ_QWEN2_VL and "Qwen2-VL" or "Qwen2.5-VL"
  return ("%s %s (%d layers of %d, vision %d of %d%s%s)"):format(family, vl.dir or "random", c.layers, c.hidden, c.v_depth, c.v_hidden,
    vl.quantized and ", int8" or "", vl.lora and (", LoRA of rank %d on %d layers"):format(vl.lora.rank, #vl.lora.list) or "")
end

return M
