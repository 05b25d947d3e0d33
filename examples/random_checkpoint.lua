-- random_checkpoint.lua - writes a Hugging Face folder of a released model's size with random weights: to measure loading, memory
-- and speed, and to compare with transformers at real width, where no released checkpoint is at hand.
--
--   segzero examples/random_checkpoint.lua size=3b out=DIR [tokenizer=DIR] [layers=N] [v_depth=N] [dtype=bf16] [seed=0] [shard=5e9] [names=hub]
--
--   size       3b, 7b, 32b, 72b: Qwen2.5-VL; qwen2-vl-2b (or 2b), qwen2-vl-7b, qwen2-vl-72b: Qwen2-VL
--   tokenizer  a folder whose tokenizer files are copied; without one the model answers in ids only
--   layers, v_depth  fewer layers or vision blocks of the same width
--   dtype      bf16 or f32     shard  bytes of one file at most     names  hub, or new: as transformers has them in memory
--
-- Writes config.json, generation_config.json and preprocessor_config.json as the hub's, and the shards with their index. Norms are
-- 1, everything else is normal with standard deviation 0.02. A value is a function of (seed, tensor, place): a hash of the place
-- gives 16 bits, which choose one of the normal distribution's 65536 quantiles. Tensors are written piece by piece; nothing is
-- ever whole in memory. Leaves out: anything a trained model would say.
-- require "examples.random_checkpoint" gives {config = f}: config(size, layers, v_depth, dtype) is the table of config.json, nil for no such size.

local ffi = require "ffi"
local cjson = require "cjson"
local sz = require "segzero"
local model = require "segzero.models.qwen_vl"
local files = require "segzero.core.files"

local C = sz.core.C

ffi.cdef "size_t fwrite(const void *data, size_t size, size_t count, void *stream);"

local STD = 0.02
local PIECE = 8 * 1048576           -- values made at a time; a multiple of 4

local function stop(message, ...)
  io.stderr:write("random_checkpoint: ", message:format(...), "\n")
  os.exit(2)
end

-- ---- configs, as the hub's ----
local function text_config(hidden, intermediate, layers, heads, kv_heads, vocab, tied)
  return { hidden_size = hidden, intermediate_size = intermediate, num_hidden_layers = layers, num_attention_heads = heads,
    num_key_value_heads = kv_heads, vocab_size = vocab, tie_word_embeddings = tied }
end

-- [size] = {language model, vision intermediate size (Qwen2.5-VL)}
local QWEN2_5 = {
  ["3b"] = { text_config(2048, 11008, 36, 16, 2, 151936, true), 3420 },
  ["7b"] = { text_config(3584, 18944, 28, 28, 4, 152064, false), 3420 },
  ["32b"] = { text_config(5120, 27648, 64, 40, 8, 152064, false), 3456 },
  ["72b"] = { text_config(8192, 29568, 80, 64, 8, 152064, false), 3456 },
}
local QWEN2 = {
  ["qwen2-vl-2b"] = { text_config(1536, 8960, 28, 12, 2, 151936, true) },
  ["qwen2-vl-7b"] = { text_config(3584, 18944, 28, 28, 4, 152064, false) },
  ["qwen2-vl-72b"] = { text_config(8192, 29568, 80, 64, 8, 152064, false) },
}
local SAME_AS = { ["2b"] = "qwen2-vl-2b" }

local function config_of(size, layers, v_depth, dtype)
  local row = QWEN2_5[size] or QWEN2[size]
  local json, newer = row[1], QWEN2_5[size] ~= nil
  json.num_hidden_layers = layers or json.num_hidden_layers
  local common = {
    architectures = { newer and "Qwen2_5_VLForConditionalGeneration" or "Qwen2VLForConditionalGeneration" },
    model_type = newer and "qwen2_5_vl" or "qwen2_vl",
    attention_dropout = 0, bos_token_id = 151643, eos_token_id = 151645, hidden_act = "silu", initializer_range = STD,
    vision_start_token_id = 151652, vision_end_token_id = 151653, vision_token_id = 151654, image_token_id = 151655, video_token_id = 151656,
    max_position_embeddings = newer and 128000 or 32768, max_window_layers = json.num_hidden_layers, rms_norm_eps = 1e-6, rope_theta = 1e6,
    sliding_window = 32768, use_sliding_window = false, use_cache = true, torch_dtype = dtype == "f32" and "float32" or "bfloat16",
    transformers_version = "4.41.2", rope_scaling = { type = "mrope", mrope_section = { 16, 24, 24 } },
  }
  for key, value in pairs(common) do json[key] = value end
  local depth = v_depth or 32
  if newer then
    local full = {}
    for block = 7, depth - 1, 8 do full[#full + 1] = block end
    if #full == 0 then full = { depth - 1 } end             -- a short tower keeps a block that sees the whole picture
    json.vision_config = { depth = depth, hidden_act = "silu", hidden_size = 1280, intermediate_size = row[2], num_heads = 16, in_chans = 3,
      out_hidden_size = json.hidden_size, patch_size = 14, spatial_merge_size = 2, spatial_patch_size = 14, temporal_patch_size = 2,
      window_size = 112, fullatt_block_indexes = full, tokens_per_second = 2 }
  else
    json.vision_config = { depth = depth, embed_dim = 1280, hidden_size = json.hidden_size, hidden_act = "quick_gelu", mlp_ratio = 4,
      num_heads = 16, in_chans = 3, patch_size = 14, spatial_merge_size = 2, spatial_patch_size = 14, temporal_patch_size = 2 }
  end
  return json
end

local function generation_of(size)
  local json = { bos_token_id = 151643, pad_token_id = 151643, do_sample = true, eos_token_id = { 151645, 151643 } }
  if QWEN2_5[size] then
    json.repetition_penalty, json.temperature = 1.05, 1e-6
  else
    json.temperature, json.top_p, json.top_k = 0.01, 0.001, 1
  end
  return json
end

local PREPROCESSOR = { image_processor_type = "Qwen2VLImageProcessor", processor_class = "Qwen2_5_VLProcessor", min_pixels = 3136,
  max_pixels = 12845056, patch_size = 14, temporal_patch_size = 2, merge_size = 2, image_mean = { 0.48145466, 0.4578275, 0.40821073 },
  image_std = { 0.26862954, 0.26130258, 0.27577711 } }
local TOKENIZER_FILES = { "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja" }

-- ---- values ----
-- Quantiles of the normal distribution, from 65536 of the core's own normal numbers: sorted, made symmetric, scaled to STD exactly.
local function quantiles(dtype)
  local n = 65536
  local t = sz.tensor.empty({ n }, { dtype = "f32" })
  sz.core.check(C.sz_random_normal_(t.ptr, 1, 1, 0, 1))
  local x = t:totable()
  table.sort(x)
  local squares = 0
  for i = 1, n / 2 do
    local half = (x[n + 1 - i] - x[i]) / 2                   -- symmetric: the mean is exactly 0
    x[i], x[n + 1 - i] = -half, half
    squares = squares + 2 * half * half
  end
  local scale = STD / math.sqrt(squares / n)
  for i = 1, n do x[i] = x[i] * scale end
  return sz.tensor.new(x, { dtype = dtype })
end

-- values[0 .. n): those of places first .. first + n - 1 (first a multiple of 4) of the stream `key`.
local function fill(values, table_of, key, first, n)
  local golden, m1, m2 = 0x9e3779b97f4a7c15ULL, 0xbf58476d1ce4e5b9ULL, 0x94d049bb133111ebULL
  local place = key + golden * (first / 4)
  local shift, band = bit.rshift, bit.band
  for i = 0, n - 1, 4 do
    place = place + golden
    local z = bit.bxor(place, shift(place, 30)) * m1
    z = bit.bxor(z, shift(z, 27)) * m2
    z = bit.bxor(z, shift(z, 31))
    local low, high = tonumber(band(z, 0xffffffffULL)), tonumber(shift(z, 32))
    low, high = bit.tobit(low), bit.tobit(high)
    values[i], values[i + 1] = table_of[band(low, 0xffff)], table_of[shift(low, 16)]
    values[i + 2], values[i + 3] = table_of[band(high, 0xffff)], table_of[shift(high, 16)]
  end
end

-- A 64-bit key of seed and name: FNV-1a.
local function key_of(seed, name)
  local h = 0xcbf29ce484222325ULL + seed
  for i = 1, #name do h = bit.bxor(h, name:byte(i) + 0ULL) * 0x100000001b3ULL end
  return h
end

local function new_name(name)
  local vision = name:gsub("^visual%.", "model.visual.")
  return vision ~= name and vision or (name:gsub("^model%.", "model.language_model."))
end

-- ---- shards ----
local function bytes_of(w, size)
  local n = size
  for _, d in ipairs(w.shape) do n = n * d end
  return n
end

local function plan(list, size, limit)
  local shards, total, room = {}, 0, 0
  for _, w in ipairs(list) do
    local bytes = bytes_of(w, size)
    if #shards == 0 or bytes > room then
      shards[#shards + 1] = {}
      room = limit
    end
    table.insert(shards[#shards], w)
    room, total = room - bytes, total + bytes
  end
  return shards, total
end

local function write_shard(path, list, o, source)
  local size, at, parts = o.dtype == "f32" and 4 or 2, 0, { '"__metadata__":{"format":"pt"}' }
  for i, w in ipairs(list) do
    local bytes = bytes_of(w, size)
    parts[i + 1] = ('"%s":{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'):format(w.written, o.dtype == "f32" and "F32" or "BF16",
      table.concat(w.shape, ","), at, at + bytes)
    at = at + bytes
  end
  local header = "{" .. table.concat(parts, ",") .. "}"
  header = header .. (" "):rep(-#header % 8)
  local file, why = io.open(path .. ".tmp", "wb")
  if not file then stop("%s", why) end
  local function put(data, bytes)
    if tonumber(ffi.C.fwrite(data, 1, bytes, file)) ~= bytes then stop("%s: cannot write: is the disk full?", path) end
  end
  file:setvbuf "no"
  put(ffi.new("uint64_t[1]", #header), 8)
  put(header, #header)
  for _, w in ipairs(list) do
    local left, first, key = bytes_of(w, size) / size, 0, key_of(o.seed, w.name)
    while left > 0 do
      local n = math.min(left, PIECE)
      if model.is_norm(w.name) then
        for i = 0, n - 1 do source.piece[i] = source.one end
      else
        fill(source.piece, source.quantiles, key, first, n)
      end
      put(source.piece, n * size)
      left, first = left - n, first + n
    end
  end
  file:close()
  assert(os.rename(path .. ".tmp", path))
  return at
end

-- ---- the run ----
local NUMBERS = { layers = 1, v_depth = 1, seed = 0, shard = 1 }           -- and the least of each
local function read_options(args)
  local o = { dtype = "bf16", seed = 0, shard = 5e9, names = "hub" }
  for _, word in ipairs(args) do
    local key, value = word:match "^%-?%-?([%w_]+)=(.+)$"
    if NUMBERS[key] then
      o[key] = tonumber(value)
      if not o[key] or o[key] < NUMBERS[key] or o[key] % 1 ~= 0 then stop("%s expects a whole number from %d", word, NUMBERS[key]) end
    elseif key == "size" or key == "out" or key == "tokenizer" or key == "dtype" or key == "names" then
      o[key] = value
    else
      stop("unknown option %s; there are size, out, tokenizer, layers, v_depth, dtype, seed, shard, names", word)
    end
  end
  o.size = SAME_AS[o.size] or o.size
  if not (QWEN2_5[o.size] or QWEN2[o.size]) then
    stop("size=%s: expected 3b, 7b, 32b, 72b, qwen2-vl-2b, qwen2-vl-7b or qwen2-vl-72b", tostring(o.size))
  end
  if not o.out then stop "where to? out=DIR" end
  if o.dtype ~= "bf16" and o.dtype ~= "f32" then stop("dtype=%s: expected bf16 or f32", o.dtype) end
  if o.names ~= "hub" and o.names ~= "new" then stop("names=%s: expected hub or new", o.names) end
  if o.tokenizer and not files.exists(o.tokenizer .. "/tokenizer.json") then stop("tokenizer: %s has no tokenizer.json", o.tokenizer) end
  return o
end

-- What benchmarks ask for: the sizes alone.
if ... == "examples.random_checkpoint" then
  return { config = function(size, ...)
    size = SAME_AS[size] or size
    return (QWEN2_5[size] or QWEN2[size]) and config_of(size, ...) or nil
  end }
end

local function main()
  local o = read_options(arg)
  if files.exists(o.out .. "/config.json") then stop("%s holds a model already", o.out) end
  local started = C.sz_seconds()
  local json = config_of(o.size, o.layers, o.v_depth, o.dtype)
  local list = model.weight_list(json)
  for _, w in ipairs(list) do w.written = o.names == "new" and new_name(w.name) or w.name end
  files.make_dir(o.out)
  files.write(o.out .. "/config.json", cjson.encode(json))
  files.write(o.out .. "/generation_config.json", cjson.encode(generation_of(o.size)))
  files.write(o.out .. "/preprocessor_config.json", cjson.encode(PREPROCESSOR))
  for _, name in ipairs(o.tokenizer and TOKENIZER_FILES or {}) do
    local text = files.read(o.tokenizer .. "/" .. name)
    if text then files.write(o.out .. "/" .. name, text) end
  end

  local table_of = quantiles(o.dtype)
  local ctype = o.dtype == "f32" and "float[?]" or "uint16_t[?]"
  local source = { piece = ffi.new(ctype, PIECE), quantiles = sz.tensor.data(table_of), one = o.dtype == "f32" and 1 or 0x3f80 }
  local shards, total = plan(list, o.dtype == "f32" and 4 or 2, o.shard)
  local map = {}
  for i, shard in ipairs(shards) do
    local name = #shards == 1 and "model.safetensors" or ("model-%05d-of-%05d.safetensors"):format(i, #shards)
    write_shard(o.out .. "/" .. name, shard, o, source)
    for _, w in ipairs(shard) do map[#map + 1] = ('    "%s": "%s"'):format(w.written, name) end
    print(("%s: %d tensors"):format(name, #shard))
  end
  if #shards > 1 then
    table.sort(map)
    files.write(o.out .. "/model.safetensors.index.json",
      ('{\n  "metadata": {"total_size": %.0f},\n  "weight_map": {\n%s\n  }\n}\n'):format(total, table.concat(map, ",\n")))
  end
  local seconds = C.sz_seconds() - started
  print(("wrote %s: %d tensors, %.2f GB in %.1f s (%.0f MB/s), peak memory %.0f MB"):format(o.out, #list, total / 1e9, seconds,
    total / 1e6 / seconds, tonumber(C.sz_peak_rss()) / 1e6))
end

main()
