-- init.lua - merges the torch files of a run's ranks into a folder that transformers and segzero
-- load.
--
--   local result = merge.run { dir = "P/global_step_50/actor", out = nil, dtype = "bf16",
--                              shard = 5e9, start = f, progress = f }
--     out        a new folder; nil: the folder huggingface in dir, which has config and tokenizer
--     start      called as f(set of shards.lua, list of weights, all bytes) before the first file
--     progress   called as f(bytes done, all bytes)
--     -> {folder =, bytes =, tensors =, files = {names}, adapters = how many, notes = {texts},
--         world =, mesh = text}
--
-- Weights get the names that save_pretrained writes (visual.*, model.layers.*), sorted. Numbers are
-- rounded once to dtype. A copy of the embedding as lm_head.weight is dropped if config.json ties
-- them. Adapters (EasyR1's LoRA: lora_A and lora_B next to base_layer) are added in f32 before the
-- rounding, with the settings of dir/lora_adapter/adapter_config.json.
-- Names and shapes are checked against config.json before anything is written, if segzero knows the
-- model_type; other models keep their names.
-- Leaves out: the optimizer's state (optim_*.pt), value models, uploading.

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local tensor = require "segzero.core.tensor"
local visible = require "segzero.core.visible"
local safetensors = require "segzero.formats.safetensors"
local stream = require "segzero.formats.safetensors_stream"
local adapters = require "segzero.merge.adapters"
local shards = require "segzero.merge.shards"

local M = {}

local HEAD = "lm_head.weight"
local EMBEDDING = "model.embed_tokens.weight"
local SHARD = 5e9                   -- bytes of a file, as transformers 4 divides them

-- ---- the model that config.json describes ----
-- The family's model without memory; nil and the model_type for one that segzero does not know.
local function model_of(config_dir)
  local path = config_dir .. "/config.json"
  local json = files.read_json_object(path, true)
  if not json then
    error(("%s is missing: the trainer writes it with the checkpoint; copy it there with the "
      .. "tokenizer's files"):format(path), 0)
  end
  local families = require "segzero.models.registry"
  local known, spec = pcall(families.get, families, json.model_type)
  if not known or not spec.meta then return nil, tostring(json.model_type) end
  return spec.meta(config_dir, "bf16")
end

-- The name in the file of a weight that is called `name` in memory.
local function written_name(model, name)
  if not model then return name end
  return (model:weight_name(name):gsub("%.weight$", ""))
end

-- Old models stored the rotary tables, which are computed.
local function is_stray(name) return name:find "%.inv_freq$" ~= nil end

-- {name in the file -> tensor of the shards}
local function named(model, set, skip)
  local out = {}
  for name, t in pairs(set.tensors) do
    if not skip[name] and not is_stray(name) then
      local own = written_name(model, adapters.base_name(name))
      if out[own] then
        error(("%s: two tensors become '%s': %s and %s"):format(set.dir, own, visible.line(name),
          visible.line(out[own].name)), 0)
      end
      out[own] = t
    end
  end
  return out
end

-- ---- checks ----
local function drop_tied_head(plan, set, model)
  local head = plan.weights[HEAD]
  local embedding = plan.weights[EMBEDDING]
  if not head or not embedding then return end
  for _, w in ipairs(model.weights) do
    if w.name == HEAD then return end
  end
  if set:equal(head, embedding) then
    plan.weights[HEAD] = nil
    return
  end
  plan.own_head = true
  plan.notes[#plan.notes + 1] = "tie_word_embeddings is true in config.json, but lm_head.weight "
    .. "differs from the embedding: it is kept, and config.json says false now"
end

local function shape_text(shape) return "[" .. table.concat(shape, ", ") .. "]" end

local function check_weights(plan, set, model)
  local problems = {}
  local wanted = {}
  for _, w in ipairs(model.weights) do
    wanted[w.name] = w
    local t = plan.weights[w.name]
    if t then set:settle(t, w.shape) end
    if not t then
      problems[#problems + 1] = "missing: " .. w.name
    elseif shape_text(t.shape) ~= shape_text(w.shape) then
      problems[#problems + 1] = ("%s: shape %s, expected %s"):format(w.name, shape_text(t.shape),
        shape_text(w.shape))
    end
  end
  for name, t in pairs(plan.weights) do
    if not wanted[name] and not (plan.own_head and name == HEAD) then
      problems[#problems + 1] = "unexpected: " .. visible.line(t.name)
    end
  end
  table.sort(problems)
  if #problems > 0 then safetensors.refuse(set.dir, "weights do not fit the config", problems) end
end

local function check_plain(plan, set)
  for _, t in pairs(plan.weights) do
    if t.is_plain and set.world > 1 then
      error(("%s: '%s' is a plain tensor on each of %d ranks, and segzero does not know the model: "
        .. "it cannot tell copies from parts; merge it with its trainer's model_merger.py"):format(
        set.dir, visible.line(t.name), set.world), 0)
    end
  end
end

-- What to write, from an opened set.
local function make_plan(set, config_dir)
  local model, model_type = model_of(config_dir)
  if set.tensors["score.weight"] then
    error(("%s: these are a value model's shards (there is 'score.weight'), which segzero does not "
      .. "use: merge the folder actor"):format(set.dir), 0)
  end
  local plan = { notes = {}, by_weight = {}, adapters = 0 }
  local found = adapters.find(set)
  plan.weights = named(model, set, found.names)
  if not model then
    plan.notes[1] = ("model_type '%s' is none that segzero loads: the weights keep their names, "
      .. "and their shapes are not checked"):format(visible.line(model_type))
    if next(found.names) then
      error(("%s: adapters of model_type '%s' are not merged: it is none that segzero loads")
        :format(set.dir, visible.line(model_type)), 0)
    end
    check_plain(plan, set)
    return plan
  end
  local ok, why = pcall(function()
    drop_tied_head(plan, set, model)
    check_weights(plan, set, model)
    if next(found.names) then
      plan.by_weight, plan.adapters = adapters.load(set, found, model)
    end
  end)
  model:free()
  if not ok then error(why, 0) end
  return plan
end

-- ---- writing ----
-- fill(weight, put) for safetensors_stream.lua, and a function that ends it.
local function filler(set, plan, dtype, on_bytes)
  local width = tensor.WIDTH[dtype]
  local converted                   -- of the written dtype
  local function put_piece(put, piece, count)
    local source = piece
    if piece:dtype() ~= dtype then
      converted = converted or tensor.empty({ shards.PIECE }, { dtype = dtype })
      source = converted:narrow(0, count)
      source:copy_(piece)
    end
    put(tensor.data(source), count * width)
    if source ~= piece then source:free() end
    on_bytes(count * width)
  end
  local function fill(weight, put)
    local t = plan.weights[weight.name]
    local adapter = plan.by_weight[weight.name]
    if not adapter then
      return set:stream(t, function(piece, count) put_piece(put, piece, count) end)
    end
    local sum = adapters.merged(set, t, adapter)
    local flat = sum:reshape(t.numel)
    for first = 0, t.numel - 1, shards.PIECE do
      local count = math.min(shards.PIECE, t.numel - first)
      local piece = flat:narrow(first, count)
      put_piece(put, piece, count)
      piece:free()
    end
    flat:free()
    sum:free()
  end
  return fill, function() if converted then converted:free() end end
end

-- The tensors to write, sorted by name, and their bytes.
local function list_of(plan, dtype)
  local list = {}
  local total = 0
  for name, t in pairs(plan.weights) do
    list[#list + 1] = { name = name, shape = t.shape, dtype = dtype }
    total = total + t.numel * tensor.WIDTH[dtype]
  end
  table.sort(list, function(a, b) return a.name < b.name end)
  return list, total
end

local function check_space(dir, bytes)
  local ok, statvfs = pcall(require, "posix.sys.statvfs")
  local found = ok and statvfs.statvfs(dir)
  if not found or found.f_bavail * found.f_frsize >= bytes * 1.01 then return end
  error(("%s: the merged weights need %.1f GB, the disk has %.1f GB free"):format(dir, bytes / 1e9,
    found.f_bavail * found.f_frsize / 1e9), 0)
end

-- The dtype of config.json becomes that of the weights, as save_pretrained does it.
local function write_config(plan, from, to, dtype)
  local text, why = files.read(from .. "/config.json")
  if not text then error(why, 0) end
  local name = "bfloat16"
  if dtype == "f32" then name = "float32" end
  local changed = text:gsub('("torch_dtype"%s*:%s*)"%w+"', '%1"' .. name .. '"')
  changed = changed:gsub('("dtype"%s*:%s*)"%w+"', '%1"' .. name .. '"')
  if plan.own_head then
    changed = changed:gsub('("tie_word_embeddings"%s*:%s*)true', "%1false")
  end
  if from ~= to or changed ~= text then files.write(to .. "/config.json", changed) end
end

-- Everything in the folder but config.json and weights: the tokenizer's and the processor's files.
local function copy_companions(from, to)
  for _, name in ipairs(folders.list(from) or {}) do
    local path = from .. "/" .. name
    if folders.kind(path) == "file" and name ~= "config.json" and not name:find "%.safetensors" then
      local text, why = files.read(path)
      if not text then error(why, 0) end
      files.write(to .. "/" .. name, text)
    end
  end
end

-- The files must be read back as a folder with these tensors.
local function check_written(dir, list)
  local folder = safetensors.open_folder(dir)
  local problems = folder.problems
  for _, w in ipairs(list) do
    if not folder.entries[w.name] then problems[#problems + 1] = w.name .. " is not in it" end
  end
  folder:close()
  if #problems > 0 then safetensors.refuse(dir, "problems after writing", problems) end
end

local function merge(set, options)
  local config_dir = options.dir .. "/huggingface"
  local out = options.out or config_dir
  local dtype = options.dtype or "bf16"
  local plan = make_plan(set, config_dir)
  local list, total = list_of(plan, dtype)
  if options.out then files.make_dir(out) end
  check_space(out, total)
  if options.start then options.start(set, list, total) end
  local done = 0
  local fill, finish = filler(set, plan, dtype, function(bytes)
    done = done + bytes
    if options.progress then options.progress(done, total) end
  end)
  local ok, bytes, names = pcall(stream.write, out, list, { shard = options.shard or SHARD,
    fill = fill })
  finish()
  if not ok then
    if options.out then folders.remove_empty(out) end
    error(bytes, 0)
  end
  if options.out then copy_companions(config_dir, out) end
  write_config(plan, config_dir, out, dtype)
  check_written(out, list)
  return { folder = out, bytes = bytes, tensors = #list, files = names, adapters = plan.adapters,
    notes = plan.notes, world = set.world, mesh = set.mesh }
end

function M.run(options)
  local set = shards.open(options.dir)
  local ok, result = pcall(merge, set, options)
  set:close()
  if not ok then error(result, 0) end
  return result
end

return M
