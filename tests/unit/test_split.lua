-- test_split.lua - the files of a model that is split over shards, without other processes: slices
-- of weights and adapters from whole files in every dtype, random weights, whole files from slices.
--
--   ./segzero tests/unit/test_split.lua
--
-- The miniature model has 4 heads and 2 key-value heads, so that four shards repeat these. Left
-- out: shards in processes of their own; what they compute (test_split_model.lua).

local ffi = require "ffi"
local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local jobs = require "segzero.core.jobs"
local lora = require "segzero.models.lora"
local model = require "segzero.models.qwen_vl"
local opening = require "segzero.models.opening"
local parts = require "segzero.formats.parts"
local released = require "segzero.models.released"
local safetensors = require "segzero.formats.safetensors"
local split = require "segzero.models.split"
local tensor = require "segzero.core.tensor"
local weights = require "segzero.models.weights"

local C = sz.core.C
local place = mini.folder()
local CHANGES = { num_attention_heads = 4, num_key_value_heads = 2,
  rope_scaling = { type = "mrope", mrope_section = { 1, 1, 2 } } }
local origin = mini.write(place .. "/origin", { config = CHANGES })

-- The elements of a slice of a whole tensor as a string; own: an independent way, row by row.
local function slice_bytes(whole, slice)
  if not slice then return mini.bytes(whole) end
  local shape = whole:shape()
  local width = tensor.WIDTH[whole:dtype()]
  local text = mini.bytes(whole)
  local columns = shape[2] or 1
  if slice.dim == 1 then
    local each = columns * width
    return text:sub(slice.first * each + 1, (slice.first + slice.count) * each)
  end
  local rows = {}
  for r = 1, shape[1] do
    local begin = ((r - 1) * columns + slice.first) * width
    rows[r] = text:sub(begin + 1, begin + slice.count * width)
  end
  return table.concat(rows)
end

-- Compares a shard's weights with the slices of the whole model's; returns how many were divided.
local function compare(shard, whole, what)
  local all = whole:parameters()
  local divided = 0
  for _, w in ipairs(weights.listed(shard)) do
    local want = all[w.name]
    check.equal(table.concat(w.full, ","), table.concat(want:shape(), ","),
      w.name .. " whole shape")
    if mini.bytes(w.tensor) ~= slice_bytes(want, w.slice) then
      check.ok(false, ("%s: %s has other numbers"):format(what, w.name))
    end
    if w.slice then divided = divided + 1 end
  end
  check.equal(#shard.weights, #whole.weights, what .. ": weights")
  return divided
end

local function shard_of(dir, count, index, opts)
  opts = opts or {}
  opts.shards = { count = count, index = index }
  return sz.qwen_vl(dir, opts)
end

-- Loads every shard of a folder and compares; 2 layers of 10 divided tensors, and the embedding.
local function compare_folder(dir, opts, head)
  local whole = sz.qwen_vl(dir, opts)
  for _, count in ipairs { 2, 4 } do
    for index = 0, count - 1 do
      local what = ("shard %d of %d"):format(index, count)
      local shard = shard_of(dir, count, index, { dtype = opts.dtype })
      check.equal(compare(shard, whole, what), 2 * 10 + 1 + (head or 0),
        what .. ": divided weights")
      check.equal({ shard.shards.count, shard.shards.index }, { count, index }, "shards")
      shard:free()
    end
  end
  check.equal(whole.shards, nil, "a whole model has no shards")
  whole:free()
end

-- ---- loading ----
local function folder_with(name, write)
  local dir = place .. "/" .. name
  mini.copy(origin, dir)
  write(dir)
  return dir
end

check.case("f32 as the file has it", function() compare_folder(origin, { dtype = "f32" }) end)

check.case("f32 converted to bf16", function() compare_folder(origin, { dtype = "bf16" }) end)

local function cast(tensors, dtype)
  local out = {}
  for name, t in pairs(tensors) do
    out[name] = tensor.empty(t:shape(), { dtype = dtype }):copy_(t)
  end
  return out
end

check.case("bf16, in many files, in place and converted", function()
  local dir = folder_with("bf16", function(dir)
    local half = cast(safetensors.load_folder(origin), "bf16")
    os.remove(dir .. "/model.safetensors")
    safetensors.save_folder(dir, half, { max_shard_bytes = 20000 })
  end)
  check.ok(files.exists(dir .. "/model-00002-of-00006.safetensors")
    or files.exists(dir .. "/model.safetensors.index.json"), "several files")
  compare_folder(dir, { dtype = "bf16" })
  compare_folder(dir, { dtype = "f32" })
end)

-- IEEE halves, which segzero does not write.
local function write_halves(dir)
  local names = {}
  local tensors = safetensors.load_folder(origin)
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  local entries = {}
  local data = {}
  local at = 0
  local state = 1
  for i, name in ipairs(names) do
    local n = tensors[name]:numel()
    local half = ffi.new("uint16_t[?]", n)
    for k = 0, n - 1 do
      state = (state * 1103515245 + 12345) % 2 ^ 31
      half[k] = math.floor(state / 2 ^ 15) % 0x7800       -- finite, subnormal ones too
    end
    entries[i] = ('"%s":{"dtype":"F16","shape":[%s],"data_offsets":[%d,%d]}'):format(name,
      table.concat(tensors[name]:shape(), ","), at, at + 2 * n)
    at = at + 2 * n
    data[i] = ffi.string(half, 2 * n)
  end
  local header = "{" .. table.concat(entries, ",") .. "}"
  local length = ffi.string(ffi.new("uint64_t[1]", #header), 8)
  files.write(dir .. "/model.safetensors", length .. header .. table.concat(data))
end

check.case("f16, not aligned", function()
  local dir = folder_with("f16", write_halves)
  compare_folder(dir, { dtype = "f32" })
  compare_folder(dir, { dtype = "bf16" })
end)

check.case("a head of its own is divided by the vocabulary", function()
  local untied = {}
  for k, v in pairs(CHANGES) do untied[k] = v end
  untied.tie_word_embeddings = false
  local dir = mini.write(place .. "/untied", { config = untied })
  compare_folder(dir, { dtype = "f32" }, 1)

  -- The config says tied, the weights say no.
  files.write(dir .. "/config.json", (files.read(dir .. "/config.json"):gsub(
    '"tie_word_embeddings":false', '"tie_word_embeddings":true')))
  local shard = shard_of(dir, 2, 1)
  check.ok(shard.own_head, "its own head")
  check.equal(shard.weights[#shard.weights].name, "lm_head.weight", "the head is a weight")
  shard:free()
end)

-- Compiled traces may name objects, which are then not collected.
local function live_bytes()
  jit.flush()
  collectgarbage()
  collectgarbage()
  return tonumber(C.sz_live_bytes())
end

check.case("slices of rows are used in place, slices of columns are copied", function()
  local before = live_bytes()
  local shard = shard_of(origin, 2, 1, { dtype = "f32" })
  local columns = 0
  for _, w in ipairs(shard.weights) do
    if w.slice and w.slice.dim == 2 then columns = columns + weights.numel(w) * 4 end
  end
  check.equal(columns, 2 * (32 * 16 + 32 * 32) * 4, "bytes of o_proj and down_proj")
  local mapped = #files.read(origin .. "/model.safetensors")
  check.equal(tonumber(C.sz_live_bytes()) - before, mapped + columns, "bytes: the map and copies")
  shard:free()
end)

check.case("bytes of the shards and of the whole", function()
  local whole = sz.qwen_vl(origin)
  for _, count in ipairs { 2, 4 } do
    local once = 0
    for index = 0, count - 1 do
      local meta = model.meta(origin, "f32", { count = count, index = index })
      for _, w in ipairs(meta.weights) do
        if w.copy == 0 then once = once + 4 * weights.numel(w) end
      end
      local own = weights.bytes(meta.weights, 4)
      check.ok(own < weights.bytes(whole.weights, 4), "a shard has less than the whole")
      check.equal(meta:weight_bytes "f32", own, "weight_bytes is the shard's")
      meta:free()
    end
    check.equal(once, weights.bytes(whole.weights, 4), "first copies together")
  end
  whole:free()
end)

check.case("8 bits: scales of slices", function()
  local function quantised(t)
    local q, scale = t:quantize_int8(nil, nil)
    return mini.bytes(q), mini.bytes(scale)
  end
  tensor.manual_seed(5)
  local w = tensor.randn { 64, 512 }
  local q, scale = quantised(w)
  -- Rows: blocks of 16 rows, one after another.
  local rows = tensor.empty { 32, 512 }
  parts.copy(rows, w, { dim = 1, first = 32, count = 32 })
  local q1, scale1 = quantised(rows)
  check.ok(q1 == q:sub(#q / 2 + 1) and scale1 == scale:sub(#scale / 2 + 1), "rows: the whole's")
  -- Columns at a multiple of 128: each block of 16 rows has its half of groups.
  local function columns(first, count)
    local slice = tensor.empty { 64, count }
    parts.copy(slice, w, { dim = 2, first = first, count = count })
    local _, own = quantised(slice)
    return own
  end
  local half = columns(256, 256)
  local want = {}
  local row = #scale / 4
  for b = 0, 3 do want[#want + 1] = scale:sub(b * row + row / 2 + 1, (b + 1) * row) end
  check.ok(half == table.concat(want), "columns from 256 on: the whole's scales")
  check.ok(columns(64, 128) ~= scale:sub(1, #scale / 4), "columns from 64 on: others")
end)

-- ---- random weights ----
check.case("random shards have the whole's numbers", function()
  local json = cjson.decode(files.read(origin .. "/config.json"))
  for _, repeated in ipairs { false, true } do
    local opts = { seed = 3, std = 0.3, repeated = repeated or nil }
    local whole = model.random(json, opts)
    for _, count in ipairs { 2, 4 } do
      for index = 0, count - 1 do
        local shard = model.random(json, { seed = 3, std = 0.3, repeated = opts.repeated,
          shards = { count = count, index = index } })
        check.equal(compare(shard, whole, ("random %d of %d"):format(index, count)), 21, "divided")
        shard:free()
      end
    end
    whole:free()
  end
end)

-- ---- adapters ----
local ADAPTERS = { rank = 3, alpha = 6, target_modules = "all-linear", seed = 11 }

local function compare_adapters(shard, want, what)
  local seen = 0
  for _, t in ipairs(shard:train()) do
    local whole = want[t.name]
    if not whole or mini.bytes(t.tensor) ~= slice_bytes(whole, t.slice) then
      check.ok(false, ("%s: %s has other numbers"):format(what, t.name))
    end
    if t.slice then seen = seen + 1 end
  end
  check.equal(seen, 2 * 7, what .. ": divided matrices")
end

-- B is 0 at first: other numbers, the same in all places.
local function fill(vl)
  for i, p in ipairs(vl.lora.list) do
    check.equal(C.sz_random_normal_(p.b.ptr, 5, i, 0, 1), 0, "normal_")
  end
end

check.case("adapters: made, loaded, merged", function()
  local whole = lora.attach(sz.qwen_vl(origin), ADAPTERS)
  fill(whole)
  local dir = place .. "/adapter"
  whole:save(dir)
  local want = lora.parameters(whole)
  for _, count in ipairs { 2, 4 } do
    for index = 0, count - 1 do
      local what = ("adapters of %d of %d"):format(index, count)
      local made = lora.attach(shard_of(origin, count, index), ADAPTERS)
      for _, p in ipairs(made.lora.list) do
        local w = made.weights[p.index + 1]
        local slice
        if w.slice and w.slice.dim == 2 then slice = w.slice end
        local name = "base_model.model." .. p.module .. ".lora_A.weight"
        check.ok(mini.bytes(p.a) == slice_bytes(want[name], slice), what .. ": A of " .. p.module)
      end
      made:free()
      local loaded = shard_of(origin, count, index, { adapter = dir })
      compare_adapters(loaded, want, what)
      loaded:free()
    end
  end

  -- Merged: one f32 sum of 3 products for each element, in any order: 1e-6 of the largest.
  lora.merge(whole)
  local all = whole:parameters()
  for index = 0, 1 do
    local shard = lora.merge(shard_of(origin, 2, index, { adapter = dir }))
    for _, w in ipairs(weights.listed(shard)) do
      local part = tensor.empty(w.tensor:shape())
      parts.copy(part, all[w.name], w.slice)
      local far = (part - w.tensor):abs():max():item()
      check.ok(far <= 1e-6 * all[w.name]:abs():max():item(), w.name .. ": merged")
    end
    shard:free()
  end
  whole:free()
end)

-- ---- whole files from slices ----
-- Starts a list of files and waits.
local function run(writing, what)
  local job = writing:start()
  check.ok(job:wait(), what)
  job:free()
end

-- What these shards of each of `replicas` replicas write into dir; they are processes of one job
-- otherwise.
local function save_all(models, dir, replicas)
  local first = jobs.writing()
  models[1]:save(dir, { later = first })
  first:make_shared()
  for r = 0, #models * replicas - 1 do
    local writing = jobs.writing()
    local replica = { index = math.floor(r / #models), count = replicas }
    models[r % #models + 1]:save(dir, { later = writing, part = true, replica = replica })
    run(writing, "the parts of rank " .. r)
  end
  first:finish_shared()
  run(first, "the names")
end

local function check_same(a, b, names)
  for _, name in ipairs(names) do
    local text = files.read(a .. "/" .. name)
    check.ok(text and text == files.read(b .. "/" .. name), name)
  end
end

local NAMES = { "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
  "tokenizer_config.json", "preprocessor_config.json" }

check.case("shards save the files of one process", function()
  for _, dtype in ipairs { "f32", "bf16" } do
    local whole = sz.qwen_vl(origin, { dtype = dtype })
    local want = place .. "/whole_" .. dtype
    whole:save(want)
    whole:free()
    for _, ranks in ipairs { { 1, 2 }, { 1, 4 }, { 2, 2 } } do
      local replicas, count = unpack(ranks)
      local models = {}
      for index = 0, count - 1 do
        models[index + 1] = shard_of(origin, count, index, { dtype = dtype })
      end
      local dir = ("%s/saved_%s_%d_%d"):format(place, dtype, replicas, count)
      save_all(models, dir, replicas)
      check_same(want, dir, NAMES)
      for _, vl in ipairs(models) do vl:free() end
    end
  end
end)

check.case("shards save the adapters of one process", function()
  local models = {}
  for index = 0, 3 do
    models[index + 1] = shard_of(origin, 4, index, { adapter = place .. "/adapter" })
  end
  local dir = place .. "/adapter_of_4"
  save_all(models, dir, 1)
  check_same(place .. "/adapter", dir, { "adapter_model.safetensors", "adapter_config.json" })
  for _, vl in ipairs(models) do vl:free() end
end)

check.case("several files, and their index", function()
  local whole = sz.qwen_vl(origin)
  local want = place .. "/many"
  files.make_dir(want)
  safetensors.save_folder(want, whole:parameters(), { max_shard_bytes = 40000 })
  local dir = place .. "/many_of_2"
  files.make_dir(dir)
  local first
  for index = 0, 1 do
    local vl = shard_of(origin, 2, index)
    local described = split.described(weights.listed(vl))
    if not first then
      first = jobs.writing()
      safetensors.save_folder(dir, described, { max_shard_bytes = 40000, later = first })
      first:make_shared()
    end
    local writing = jobs.writing()
    safetensors.save_folder(dir, described, { max_shard_bytes = 40000, later = writing,
      part = true })
    run(writing, "parts")
    vl:free()
  end
  first:finish_shared()
  run(first, "names")
  local index = cjson.decode(files.read(want .. "/model.safetensors.index.json"))
  local names = { "model.safetensors.index.json" }
  for _, file in pairs(index.weight_map) do names[#names + 1] = file end
  check.ok(#names > 10, "weights in the index")
  check_same(want, dir, names)
  whole:free()
end)

-- A folder is saved into twice: what the first save left must not be read for the second's.
check.case("one file after several, and several after one, until all have written", function()
  local dir = place .. "/twice"
  files.make_dir(dir)
  local index, single = dir .. "/model.safetensors.index.json", dir .. "/model.safetensors"
  local shards = { shard_of(origin, 2, 0), shard_of(origin, 2, 1) }
  local function save(most, seen)
    local first = jobs.writing()
    local function add(writing, i, part)
      safetensors.save_folder(dir, split.described(weights.listed(shards[i])),
        { max_shard_bytes = most, later = writing, part = part })
    end
    add(first, 1)
    first:make_shared()
    for i = 1, 2 do
      local writing = jobs.writing()
      add(writing, i, true)
      run(writing, "the parts")
    end
    check.equal({ files.exists(single), files.exists(index) }, seen, "the older files")
    first:finish_shared()
    check.ok(not files.exists(index), "no index while files get their names")
    run(first, "the names")
    local new = { most > 1e6, most < 1e6 }
    check.equal({ files.exists(single), files.exists(index) }, new, "the new ones")
    for _, t in pairs((safetensors.load_folder(dir))) do t:free() end
  end
  save(2e6, { false, false })
  save(40000, { true, false })
  save(40000, { false, true })
  save(2e6, { false, true })
  for _, vl in ipairs(shards) do vl:free() end
end)

check.case("of equal parts each rank writes about as many bytes", function()
  local dir = place .. "/7b"
  files.make_dir(dir)
  files.write(dir .. "/config.json", cjson.encode(released.config("7b", { dtype = "bf16" })))
  local loads = {}
  local sum = 0
  for replica = 0, 1 do
    for index = 0, 3 do
      local vl = model.meta(dir, "bf16", { count = 4, index = index })
      local own = 0
      local described = split.described(weights.listed(vl), { index = replica, count = 2 })
      for _, w in pairs(described) do
        if not w.elsewhere then own = own + w.part:numel() end
      end
      loads[#loads + 1] = own
      sum = sum + own
      vl:free()
    end
  end
  local whole = model.meta(dir, "bf16")
  check.equal(sum, weights.bytes(whole.weights, 1), "each weight is written once")
  -- The head's slice is 13 % of a rank's share, and comes last.
  for r, own in ipairs(loads) do
    check.near(own, sum / 8, 0.13 * sum / 8, "rank " .. r)
  end
  whole:free()
end)

-- ---- mistakes ----
check.case("what cannot be split is refused before a weight is read", function()
  local dir = place .. "/no_weights"
  mini.copy(origin, dir)
  os.remove(dir .. "/model.safetensors")
  local function open(count) return function() shard_of(dir, count, 0) end end
  check.raises(open(3), "config.json: num_attention_heads 4 cannot be split over 3 shards "
    .. "%(1, 2 or 4 would do%)", "3 shards")
  check.raises(open(8), "num_attention_heads 4 cannot be split over 8", "8 shards")
  check.raises(open(2), "has neither model.safetensors", "2 shards")
  check.raises(function() model.meta(dir, "f32", { count = 3, index = 0 }) end, "1, 2 or 4", "meta")
  check.raises(function() sz.qwen_vl(origin, { shards = 2 }) end,
    "test_split.lua:%d+: shards: a group of ranks is expected, got a number", "a number")
  check.raises(function() sz.qwen_vl(origin, { shards = { count = 2, index = 2 } }) end,
    "shards: index 2 of 2 shards is not one of them", "an index")
  check.raises(function() sz.qwen_vl(origin, { shards = { count = 2, indx = 1 } }) end,
    "test_split.lua:%d+: shards: unknown option 'indx': did you mean 'index'?", "a key")
  -- A group of one rank, as the shards of another model would have it.
  local alone = require("segzero.core.ranks").world()
  local function with(group)
    return function() sz.qwen_vl(origin, { shards = { count = 2, index = 0, group = group } }) end
  end
  check.raises(with(alone), "a group of 1 ranks for a model of 2 shards", "the group is used")
  check.raises(with "all",
    "test_split.lua:%d+: shards: group is not a group of ranks", "a word")
  check.equal(shard_of(origin, 1, 0).shards, nil, "one shard is a whole model")

  -- For a run, before anything is read: the setting's name, the value, what would do.
  opening.check_split(origin, 2)
  opening.check_split(dir, 4)
  check.raises(function() opening.check_split(dir, 3) end,
    "^worker.rollout.tensor_parallel_size is 3: /.*/config.json: num_attention_heads 4 cannot "
      .. "be split over 3 shards %(1, 2 or 4 would do%)$", "the setting")
  mini.copy(place .. "/no_weights", place .. "/other")
  files.write(place .. "/other/config.json", '{"model_type": "sam2"}')
  check.raises(function() opening.check_split(place .. "/other", 2) end,
    "tensor_parallel_size is 2: .*/other holds a model of type sam2, which is not split over "
      .. "ranks: 1 would do", "a family without shards")
  check.raises(function() sz.model(place .. "/other", { shards = { count = 2, index = 0 } }) end,
    "test_split.lua:%d+: shards: .* type sam2, which is not split over ranks", "sz.model")
end)

check.case("a shard without a group cannot save alone", function()
  local vl = shard_of(origin, 2, 0)
  check.raises(function() vl:save(place .. "/alone") end,
    "test_split.lua:%d+: .*/alone: shard 0 of 2 has no group, and all shards save together", "save")
  vl:free()
end)

check.case("a whole model is not saved in parts", function()
  local vl = sz.qwen_vl(origin)
  for _, opts in ipairs { { part = true }, { replica = { index = 0, count = 1 } } } do
    check.raises(function() vl:save(place .. "/parts", opts) end,
      "test_split.lua:%d+: save: part, replica and columns are for a split model, with later",
      "save")
  end
  check.ok(not files.exists(place .. "/parts"), "nothing is written")
  check.raises(function() vl:save(origin .. "/config.json") end,
    "^[^:]*test_split.lua:%d+: /[^:]*: Not a directory$", "a file for a folder: the caller's line")
  vl:free()
end)

mini.remove()
check.finish()
