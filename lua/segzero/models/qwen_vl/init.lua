-- init.lua - Qwen2.5-VL and Qwen2-VL for scripts: loads a Hugging Face folder; forward passes,
-- log-probabilities, generation; saves a folder.
--
--   local vl = sz.qwen_vl(dir, {dtype = "f32" | "bf16" | "int8" | "int4", device = "cpu" | "cuda",
--                               adapter = a PEFT folder,
--                               offload = true: weights wait in host memory (offload.lua),
--                               shards = a group of ranks that the model is split over})
--   local inp = vl:process(messages)
--   vl:forward(inp)                         logits [T, vocab]
--   vl:logprobs(inp, {{ids}, ...})          one tensor of log-probabilities for each list of ids
--   vl:generate(inp, {temperature = 1, n = 8, ...})     generation_config.lua, generate.lua
--   vl:parameters()                         {name -> tensor}, names as Hugging Face writes them
--   vl:save(dir)
--
-- If the model has adapters (vl.lora, models/lora), only they are trained, and save() writes them
-- in PEFT's format; parameters() still returns the base weights. dtype int8 or int4 is bf16 with
-- linear layers and the head of the logits in 8 or 4 bits (vl.quantized); the vision tower's have 8
-- in both. Such a model cannot be trained or saved, but adapters of one in 4 bits can: its logits
-- are then those of the bf16 head, as the log-probabilities of training are. 4 bits run on the CPU
-- only.
-- A shard of a split model has vl.shards = {count =, index =, group =} and slices of the weights
-- (weights.lua); all shards save together (split.lua). In 8 or 4 bits each quantises its slices:
-- codes and scales are those of the whole model, but for o_proj and down_proj where a slice does
-- not begin at a multiple of 256 columns.
-- The methods that every model has are in README.md. Leaves out: videos.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local notes = require "segzero.core.notes"
local options = require "segzero.core.options"
local tensor = require "segzero.core.tensor"
local safetensors = require "segzero.formats.safetensors"
local split = require "segzero.models.split"
local integrity = require "segzero.runs.integrity"
local lora = require "segzero.models.lora"
local network = require "segzero.models.network"
local opening = require "segzero.models.opening"
local policy = require "segzero.models.policy"
local qwen_config = require "segzero.models.qwen_vl.config"
local random_weights = require "segzero.models.random_weights"
local weights = require "segzero.models.weights"

ffi.cdef "int memcmp(const void *a, const void *b, size_t n);"

local C = core.C
local check = core.check
local value = qwen_config.value

local M = {}

M.parse_config = qwen_config.parse
M.read_json = files.read_json           -- its name in segzero 0.1

local own = network.methods()

-- ---- making ----
local methods, mt, freed        -- set below, when all functions of `own` are there

-- Bits of a quantised weight, by dtype.
local BITS = { int8 = 8, int4 = 4 }

-- A model without weights.
-- path: config.json's, for messages. own_head: the head is not the embedding, whatever the config
-- says. shards: of split.read, or nil.
local function new(json, dtype, device, path, own_head, shards)
  local config = qwen_config.parse(json, path)
  if own_head then config.tied = 0 end
  if shards then
    config.shards = shards.count
    config.shard = shards.index
  end
  local c = ffi.gc(check(C.sz_qwen_new(config), 3), C.sz_model_free)
  if shards and shards.group then check(C.sz_model_group_set(c, shards.group.pointer), 3) end
  local quantized = BITS[dtype]
  if quantized then dtype = "bf16" end
  local vl = setmetatable({
    c = c, config = config, json = json, device = device, dtype = dtype or "f32",
    quantized = quantized, shards = shards,
  }, mt)
  vl.dims = {
    layers = config.layers, hidden = config.hidden, heads = config.heads,
    kv_heads = config.kv_heads,
    head_dim = config.head_dim, vocab = config.vocab, patches_per_token = config.v_merge ^ 2,
  }
  vl.weights = weights.list(c)
  for name, id in pairs(qwen_config.token_ids(json, path)) do vl[name] = id end
  vl.config_stop_ids = qwen_config.stop_ids(json, path)
  return vl
end

local function quantize(vl)
  if vl.quantized then
    integrity.settle(vl)
    check(C.sz_model_quantize(vl.c, vl.quantized), 3)
  end
  return vl
end

-- Turns the newer in-memory names into those of the files on the hub.
local function hub_name(name)
  name = name:gsub("^model%.visual%.", "visual."):gsub("^model%.language_model%.", "model.")
  return name
end

M.missing = opening.missing

local OPEN = options.set { "dtype", "device", "adapter", "offload", "shards" }

local HEAD = "lm_head.weight"
local EMBEDDING = "model.embed_tokens.weight"

-- A tied checkpoint may carry the embedding a second time, as the head. Old checkpoints carry the
-- rotary tables, which are computed here.
local function is_stray(vl, name)
  if vl.config.tied == 1 and name == HEAD then return true end
  return name:find "%.inv_freq$" ~= nil
end

-- Whether a folder whose config ties the head to the embedding has a head of its own: transformers
-- 5 uses it then. Both are compared byte by byte.
local function has_own_head(folder)
  local found = {}
  for name in pairs(folder.entries) do found[hub_name(name)] = name end
  if not found[HEAD] or not found[EMBEDDING] then return false end
  local head = folder.entries[found[HEAD]]
  local embedding = folder.entries[found[EMBEDDING]]
  if #head.shape ~= #embedding.shape then return true end
  for i, d in ipairs(head.shape) do
    if embedding.shape[i] ~= d then return true end
  end
  local dtype
  if head.dtype ~= embedding.dtype then dtype = "f32" end
  local a = folder:tensor(found[HEAD], dtype)
  local b = folder:tensor(found[EMBEDDING], dtype)
  local bytes = a:numel() * tensor.WIDTH[a:dtype()]
  local same = ffi.C.memcmp(tensor.data(a), tensor.data(b), bytes) == 0
  a:free()
  b:free()
  return not same
end

-- Opens a folder; errors have no position.
local function open(dir, opts, device, offload, shards)
  local path = dir .. "/config.json"
  if not files.exists(path) then error(M.missing(dir), 0) end
  local check_of_files = integrity.begin(dir)
  local json = files.read_json_object(path)
  local config = qwen_config.parse(json, path)      -- before any weight file is opened
  if shards then new(json, "f32", "cpu", path, false, shards):free() end
  local folder = safetensors.open_folder(dir)
  local own_head = false
  if config.tied == 1 then own_head = has_own_head(folder) end
  if own_head then
    notes.say(("%s: tie_word_embeddings is true, but lm_head.weight in the weights differs from "
      .. "the embedding: the head of the weights is used, as in transformers 5"):format(path))
  end
  local target = device
  if offload then target = "cpu" end
  local vl = new(json, opts.dtype, target, path, own_head, shards)
  vl.own_head = own_head
  vl.dir = dir
  vl.integrity = check_of_files
  if offload then vl.offloaded = device end
  -- Adapters are small: one that does not fit is an error before the weights are read.
  local adapters
  if opts.adapter then adapters = lora.open(vl, opening.resolve(opts.adapter, 0)) end
  weights.load(vl, folder, hub_name, function(name) return is_stray(vl, name) end)
  quantize(vl)
  if adapters then lora.use(vl, adapters) end
  return vl
end

-- What the options and the device alone forbid. Returns the device, and whether the weights wait in
-- host memory.
local function check_options(opts, level)
  local device = tensor.model_device(opts.device, level + 1)
  if opts.dtype == "int4" and device ~= "cpu" then
    error(("qwen_vl: dtype int4 runs on the CPU, not on %s; take int8 or bf16 there"):format(
      device), level + 1)
  end
  local offload = opts.offload and device ~= "cpu"
  if offload and (opts.dtype == "int8" or opts.adapter) then
    error("qwen_vl: a model in 8 bits or with adapters is not offloaded", level + 1)
  end
  return device, offload
end

function M.check(opts) check_options(opts, 1) end

function M.qwen_vl(dir, opts)
  opts = opening.check("qwen_vl", dir, opts, OPEN, { "bf16", "f32", "int8", "int4" }, 2)
  local device, offload = check_options(opts, 2)
  local shards = split.read(opts.shards, 2)
  dir = opening.resolve(dir, 2)
  local ok, vl = pcall(open, dir, opts, device, offload, shards)
  if ok then return vl end
  if core.is_interrupt(vl) then error(vl, 0) end
  local why = core.plain(vl):gsub("^config: ", dir:gsub("%%", "%%%%") .. "/config.json: ")
  error(why, 2)
end

function M.is_norm(name)
  for _, pattern in ipairs { "norm[12]?%.weight$", "layernorm%.weight$", "ln_q%.weight$" } do
    if name:find(pattern) then return true end
  end
  return false
end

-- The weights of a config table: {{name =, shape = {...}}, ...} in the hub's names.
function M.weight_list(json)
  local c = check(C.sz_qwen_new(qwen_config.parse(json)), 2)
  local list = weights.list(c)
  C.sz_model_free(c)
  return list
end

local RANDOM = options.set { "dtype", "device", "seed", "std", "repeated", "shards" }

-- A model of random weights (normal with deviation std, 0.02 without; norms 1, biases 0) from a
-- config table: for training from scratch and benchmarks. repeated: repeats 16 million numbers,
-- because drawing billions takes the CPU minutes.
function M.random(json, opts)
  opts = options.check("random", opts, RANDOM, 2)
  local shards = split.read(opts.shards, 2)
  local vl = new(json, opts.dtype, tensor.model_device(opts.device, 2), nil, false, shards)
  random_weights.fill(vl, { seed = opts.seed or 0, std = opts.std or 0.02, repeated = opts.repeated,
    is_norm = M.is_norm })
  return quantize(vl)
end

-- The model of a folder with no memory behind its weights: for counting (plan.lua). Only
-- config.json is read. shards: {count =, index =} of a shard, or nil.
function M.meta(dir, dtype, shards)
  local path = dir .. "/config.json"
  if not files.exists(path) then error(M.missing(dir), 0) end
  shards = split.read(shards, 1)
  local vl = new(files.read_json_object(path), dtype, "cpu", path, false, shards)
  vl.dir = dir
  weights.meta(vl)
  if vl.quantized then
    C.sz_dry_run(1)
    local rc = C.sz_model_quantize(vl.c, vl.quantized)
    C.sz_dry_run(0)
    check(rc, 1)
  end
  return vl
end

-- ---- weights ----
-- A function that a model in 8 or 4 bits does not have. adapted: one in 4 bits has it, if it has
-- adapters.
local function full_precision_only(f, name, adapted)
  return function(vl, ...)
    if not vl.quantized or adapted and vl.lora and vl.quantized == 4 then return f(vl, ...) end
    local message = "%s: this model is in %d bits, for inference; load it as bf16 or f32"
    if adapted and vl.quantized == 4 then message = message .. ", or give it adapters" end
    error(message:format(name, vl.quantized), 2)
  end
end

own.parameters = full_precision_only(weights.parameters, "parameters")
own.train = full_precision_only(function(vl, filter)
  if not vl.lora then return weights.train(vl, filter) end
  if vl.quantized then check(C.sz_model_release_packed_head(vl.c), 2) end
  return lora.train(vl, filter, weights.train)
end, "train", true)

-- Bytes of a quantised weight: 8 bits and a scale of four bytes for 256 weights, or 4 bits, a part
-- of a byte for 16 and a scale of two bytes for 256 (runtime/cpu/int8.h, int4.h).
local PACKED = { int8 = 1 + 4 / 256, int4 = 1 / 2 + 1 / 16 + 2 / 256 }
M.packed_width = PACKED

-- Bytes of the weights when the model is loaded with this dtype. A quantised model has the head in
-- bf16 as well; trained: only so.
function own:weight_bytes(dtype, trained)
  local packed = PACKED[dtype]
  if not packed then return weights.bytes(self.weights, tensor.WIDTH[dtype]) end
  local head = self.config.tied == 1 and "model.embed_tokens.weight" or "lm_head.weight"
  return weights.bytes(self.weights, function(w)
    if w.name == head and not trained then return 2 + packed end
    if w.linear then return w.vision and PACKED.int8 or packed end
    return 2
  end)
end

-- ---- adapters: PEFT's names of the modules, which are those that transformers has in memory ----
function own:module_name(weight)
  local name = weight:gsub("%.weight$", "")
  return (name:gsub("^model%.", "model.language_model."):gsub("^visual%.", "model.visual."))
end

-- Both spellings of a file are accepted.
function own:weight_name(module) return hub_name(module) .. ".weight" end

-- ---- answers ----
function own:banned_ids()
  return { self.vision_start_token_id, self.vision_end_token_id, self.vision_token_id,
    self.image_token_id, self.video_token_id }
end

-- Tokens that end an answer: generation_config.json's, else config.json's, else the tokenizer's end
-- of turn. transformers stops at a generation_config.json without any, and answers have no end.
function own:stop_ids()
  local ids = self:generation().eos_token_id
  if ids then return ids end
  ids = self.config_stop_ids or { self:tokenizer().eos_id }
  local path = (self.dir or "") .. "/generation_config.json"
  if self.dir and files.exists(path) then
    local source = self.config_stop_ids and "eos_token_id of config.json"
      or "the tokenizer's end of turn"
    notes.say(("%s: there is no eos_token_id: answers end at the token %s, %s. transformers' "
      .. "generate goes on to max_new_tokens"):format(path, table.concat(ids, " or "), source))
  end
  return ids
end

-- ---- saving ----
-- Every file that transformers reads next to the weights.
local COMPANIONS = {
  "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
  "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
  "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
  "chat_template.json", "chat_template.jinja",
}
local TEMPLATES = "additional_chat_templates"

local function copy_file(from, to)
  if not files.exists(from) then return end
  files.check_regular(from)
  local text, why = files.read(from)
  if not text then error(why, 0) end
  files.write(to, text)
end

-- The config says what the weights of the folder are: a model with a head of its own is not tied.
local function write_config(model, dir)
  local path = model.dir .. "/config.json"
  local text = files.read(path)
  if not text then error(path .. " is gone, and the saved folder needs it", 0) end
  if model.own_head then
    text = text:gsub('("tie_word_embeddings"%s*:%s*)true', "%1false")
  end
  files.write(dir .. "/config.json", text)
end

local function copy_companions(model, dir)
  for _, name in ipairs(COMPANIONS) do copy_file(model.dir .. "/" .. name, dir .. "/" .. name) end
  write_config(model, dir)
  local ok, names = pcall(require("posix.dirent").dir, model.dir .. "/" .. TEMPLATES)
  if not ok then return end
  for _, name in ipairs(names) do
    if name:find "%.jinja$" then
      files.make_dir(dir .. "/" .. TEMPLATES)
      local part = "/" .. TEMPLATES .. "/" .. name
      copy_file(model.dir .. part, dir .. part)
    end
  end
end

-- transformers' processor wants the chat template in a file of its own, as in the released folders.
local function write_chat_template(dir)
  for _, name in ipairs { "chat_template.json", "chat_template.jinja", "processor_config.json" } do
    if files.exists(dir .. "/" .. name) then return end
  end
  local template = value(files.read_json(dir .. "/tokenizer_config.json", true), "chat_template")
  if type(template) == "string" then
    local text = cjson.encode { chat_template = template }
    files.write(dir .. "/chat_template.json", (text:gsub("\\/", "/")))
  end
end

local SAVE = options.set { "later", "part", "replica", "columns" }

-- What the model's files hold: whole tensors, or this shard's parts of them.
local function saved_weights(vl, opts)
  if not vl.shards then return vl:parameters() end
  return split.described(weights.listed(vl), opts.replica)
end

local function write_folder(vl, dir, opts)
  if vl.lora then return lora.save(vl, dir, opts) end
  if not opts.part then
    files.make_dir(dir)
    if vl.dir then
      copy_companions(vl, dir)
    else
      files.write(dir .. "/config.json", files.indented_json(vl.json))
    end
    write_chat_template(dir)
  end
  safetensors.save_folder(dir, saved_weights(vl, opts), { later = opts.later, part = opts.part,
    columns = opts.columns })
end

-- Writes a folder that transformers and segzero load: config, weights, and the companion files that
-- the model came with. A model with adapters writes only these, in PEFT's format. opts.later: a
-- list of files to write in the background (jobs.writing) instead. Of a split model all shards of
-- one replica call it, and wait for each other. With opts.later nobody waits: one rank makes the
-- files, and each adds its parts by a call with opts.part (split.lua).
own.save = full_precision_only(function(self, dir, opts)
  opts = options.check("save", opts, SAVE, 2)
  if type(dir) ~= "string" then error("save: a folder name is expected, got " .. type(dir), 2) end
  local has_parts = self.shards and opts.later
  if (opts.part or opts.replica or opts.columns) and not has_parts then
    error("save: part, replica and columns are for a split model, with later", 2)
  end
  local ok, why = pcall(function()
    if not self.shards or opts.later then return write_folder(self, dir, opts) end
    split.save(self, dir, function(o) write_folder(self, dir, o) end)
  end)
  if ok then return end
  if core.is_interrupt(why) then error(why, 0) end
  error(core.plain(why), 2)
end, "save", true)

-- ---- the object ----
function own:free() network.free(self, freed) end

methods = policy.methods(own)
mt = { __index = methods }
freed = network.freed("qwen_vl", methods)

function mt.__tostring(vl)
  local c = vl.config
  local family = "Qwen2.5-VL"
  if c.family == C.SZ_QWEN2_VL then family = "Qwen2-VL" end
  local extra = ""
  if vl.quantized then extra = (", int%d"):format(vl.quantized) end
  if vl.lora then
    extra = extra .. (", LoRA of rank %d on %d layers"):format(vl.lora.rank, #vl.lora.list)
  end
  return ("%s %s (%d layers of %d, vision %d of %d%s)"):format(family, vl.dir or "random", c.layers,
    c.hidden, c.v_depth, c.v_hidden, extra)
end

return M
