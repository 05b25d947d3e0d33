-- readers.lua - what mutate.lua feeds with damaged inputs: every reader of outside bytes that is
-- written in Lua.
--
--   readers.list = {{name =, seeds = {text, ...}, run = f(text)}, ...}
--
-- run either returns or raises one line that is meant for a user. A reader with `never_fails`
-- returns for any text: rewards and parsers of answers.
-- Leaves out: the bytes of images and tensors (fuzz_*.c).

local sz = require "segzero"
local files = require "segzero.core.files"

local M = { list = {} }

local POLICY = "models/tiny/qwen2.5-vl"
local SAM2 = "models/tiny/sam2"
local LORA = "tests/golden/lora/L1"

local function read(path) return assert(files.read(path)) end

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

-- A folder of links to the files of `from`, in which `name` is a file of its own.
local function folder(scratch, from, name)
  local unistd = require "posix.unistd"
  local dirent = require "posix.dirent"
  files.make_dir(scratch)
  for _, entry in ipairs(dirent.dir(from)) do
    if not entry:find "^%." and entry ~= name then
      local root = from
      if from:sub(1, 1) ~= "/" then root = unistd.getcwd() .. "/" .. from end
      unistd.link(root .. "/" .. entry, scratch .. "/" .. entry, true)
    end
  end
  return scratch .. "/" .. name
end

local function add(reader) M.list[#M.list + 1] = reader end

local function free(t)
  if type(t) ~= "table" then return end
  for _, tensor in pairs(t) do tensor:free() end
end

-- ---- files of one reader ----
add { name = "safetensors", seeds = { read(LORA .. "/adapter_model.safetensors") },
  run = function(text, scratch)
    write(scratch .. "/x.safetensors", text)
    free((sz.safetensors.load(scratch .. "/x.safetensors")))
  end }

local torch_seeds = {}
for i, name in ipairs { "dtypes", "training", "views", "module5", "nested" } do
  torch_seeds[i] = read("tests/golden/torchfile/" .. name .. ".pt")
end
add { name = "torchfile", seeds = torch_seeds,
  run = function(text, scratch)
    write(scratch .. "/x.pt", text)
    free((require("segzero.formats.torchfile").load(scratch .. "/x.pt")))
  end }

-- Rank 0 of a checkpoint; the other ranks' files are as they were.
local SHARDS = "tests/golden/dtensor/easyr1/actor/model_world_size_4_rank_%d.pt"
add { name = "shards", seeds = { read(SHARDS:format(0)), read(SHARDS:format(2)) },
  run = function(text, scratch)
    local shards = require "segzero.merge.shards"
    write(scratch .. "/model_world_size_4_rank_0.pt", text)
    write(scratch .. "/model_world_size_4_rank_1.pt", read(SHARDS:format(1)))
    local set = shards.open(scratch)
    local ok, why = pcall(function()
      for _, t in pairs(set.tensors) do set:stream(t, function() end) end
    end)
    set:close()
    if not ok then error(why, 0) end
  end }

local arrow_seeds = {}
for i, name in ipairs { "stream", "file", "lz4", "zstd", "old", "delta", "replaced", "views",
  "views_zstd" } do
  arrow_seeds[i] = read("tests/golden/arrow/" .. name .. ".arrow")
end
add { name = "arrow", seeds = arrow_seeds,
  run = function(text, scratch)
    write(scratch .. "/x.arrow", text)
    local f = require("segzero.formats.arrow").open(scratch .. "/x.arrow")
    for i = 1, math.min(f.count, 4) do f:row(i) end
    if f.count > 4 then f:row(f.count) end
    f:close()
  end }

-- Data sets: every row, its image and its mask.
local function read_rows(path)
  local set = sz.sources.open(path, { split = "train" })
  for i = 1, math.min(set:count(), 4) do
    local row = set:row(i)
    if row.mask then row.mask():free() end
    row.image:free()
  end
end

local SETS = "tests/golden/sources/"
add { name = "table_arrow", seeds = { read(SETS .. "saved_masks/data-00000-of-00001.arrow"),
  read(SETS .. "saved/test/data-00000-of-00001.arrow"), read(SETS .. "file.arrow") },
  run = function(text, scratch)
    write(scratch .. "/x.arrow", text)
    read_rows(scratch .. "/x.arrow")
  end }
add { name = "table_parquet", seeds = { read(SETS .. "reasonseg/data/test-00000-of-00001.parquet"),
  read(SETS .. "easyr1/train.parquet"),
  read(SETS .. "refcocog/data/train-00000-of-00001.parquet") },
  run = function(text, scratch)
    write(scratch .. "/x.parquet", text)
    read_rows(scratch .. "/x.parquet")
  end }

local IMAGE = SETS .. "paths/images/0.png"
if IMAGE:sub(1, 1) ~= "/" then IMAGE = require("posix.unistd").getcwd() .. "/" .. IMAGE end
add { name = "json_list", seeds = {
  ('[{"id":"]","problem":"p","solution":"s","image":["%s"]},\n {"problem":"p","answer":"s",'
    .. '"images":{"path":"%s"}}]'):format(IMAGE, IMAGE) },
  run = function(text, scratch)
    write(scratch .. "/x.json", text)
    read_rows(scratch .. "/x.json")
  end }

-- Annotations: every entry and its masks. One file of a copy of the set is the damaged one.
local NOTES = "tests/golden/annotations/"
local function read_entries(name)
  local options = { image_dir = NOTES .. "refer_seg/images/train2014", purpose = "train" }
  local set = require("segzero.data.annotations").open(name, options)
  for i = 1, set:count() do
    local entry = set:meta(i)
    local size = { width = entry.width or 84, height = entry.height or 84, empty = true }
    local mask_of = require "segzero.formats.mask"
    mask_of.read(require("segzero.data.annotations").mask(entry), size):free()
    if entry.ignore then mask_of.read(entry.ignore, size):free() end
  end
end

local instances = read(NOTES .. "refer_seg/refcocog/instances.json")
add { name = "annotations_coco", seeds = { instances },
  run = function(text, scratch)
    write(scratch .. "/instances_val.json", text)
    read_entries(scratch .. "/instances_val.json")
  end }
for name, file in pairs { pickle0 = "refcoco+/refs(unc).p", pickle2 = "refcocog/refs(umd).p",
  json = "grefcoco/grefs(unc).json" } do
  add { name = "annotations_refs_" .. name, seeds = { read(NOTES .. "refer_seg/" .. file) },
    run = function(text, scratch)
      local place = scratch .. "/refs_" .. name
      files.make_dir(place)
      write(place .. "/instances.json", instances)
      write(place .. "/" .. file:match "[^/]*$", text)
      read_entries(place .. "/" .. file:match "[^/]*$")
    end }
end
add { name = "annotations_reasonseg", seeds = { read(NOTES .. "ReasonSeg/val/c_3.json"),
  read(NOTES .. "ReasonSeg/train/a_1.json"), read(NOTES .. "ReasonSeg/val/d_4.json") },
  run = function(text, scratch)
    files.make_dir(scratch .. "/shapes")
    write(scratch .. "/shapes/a.json", text)
    read_entries(scratch .. "/shapes")
  end }
local plain_seeds = {}
for i = 1, 6 do plain_seeds[i] = read(("%spickles/plain%d.p"):format(NOTES, i - 1)) end
add { name = "pickle_plain", seeds = plain_seeds,
  run = function(text) require("segzero.formats.pickle_plain").read("x.p", text) end }

-- data.pkl of the files above: a zip stores it uncompressed after its name.
local function pickle_of(text)
  local _, at = text:find "data%.pkl[^\128]*\128"
  local stop = text:find("PK\7\8", at, true)
  return text:sub(at, (stop or 0) - 1)
end
local pickle_seeds = {}
for i, text in ipairs(torch_seeds) do pickle_seeds[i] = pickle_of(text) end
add { name = "pickle", seeds = pickle_seeds,
  run = function(text) require("segzero.formats.pickle").tensors("x.pt", text) end }

add { name = "yaml", seeds = {
  "worker:\n  rollout: { n: 4 }\ntrainer:\n  logger: [console, wandb]\n  max_steps: 3\n",
  "data:\n  train_files: x\n  seed: 1\n  max_pixels: 12845056 # pixels\n"
    .. "  system_prompt: |\n    a\n",
},
  run = function(text, scratch)
    write(scratch .. "/x.yaml", text)
    require("recipes.refcocog_grpo").settings { "config=" .. scratch .. "/x.yaml" }
  end }

add { name = "data_rows", seeds = {
  '{"id": "a", "problem": "the red circle", "solution": "<box>(1,2),(30,40)</box>'
    .. '<points>(5,6),(7,8)</points>", "image": "x.png"}\n'
    .. '{"id": 7, "problem": "caf\195\169", "solution": "s", "image": "x.png"}\n',
  '{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": '
    .. '"image"}, {"type": "text", "text": "q"}]}, {"role": "assistant", "content": "s"}], '
    .. '"images": ["x.png"]}\n'
    .. '{"conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "s"}], '
    .. '"image": "x.png", "reward_model": {"ground_truth": "t"}}\n',
},
  run = function(text, scratch)
    if not files.exists(scratch .. "/x.png") then
      sz.image.new(28, 28):save(scratch .. "/x.png")
    end
    write(scratch .. "/data.jsonl", text)
    local set = sz.data.open(scratch)
    for i = 1, math.min(3, set:count()) do
      -- Only images of the folder itself, so that nothing else on this machine is opened.
      if set:image(i) == scratch .. "/x.png" then set:row(i).image:free() end
    end
  end }

-- ---- model folders ----
local function model_file(name, file, from, open)
  local target
  add { name = name, seeds = { read(from .. "/" .. file) },
    run = function(text, scratch)
      target = target or folder(scratch, from, file)
      write(target, text)
      open(scratch)
    end }
end

local QUESTION = { { role = "user", content = "where is the red circle?" } }

-- A short use of the model, so that settings which only matter later are read as well.
local function use(dir)
  local vl = sz.qwen_vl(dir)
  vl:generate(vl:process(QUESTION), { max_new_tokens = 1 })
  vl:free()
end

local function process_image(dir)
  local processor = require("segzero.models.qwen_vl.processor").new(dir)
  local tokenizer = sz.tokenizer(POLICY)
  local item = { type = "image", image = sz.image.new(56, 84) }
  processor:process({ { role = "user", content = { item } } }, tokenizer)
  tokenizer:free()
end

local function encode(dir)
  local tokenizer = sz.tokenizer(dir)
  tokenizer:decode(tokenizer:encode "a red circle 12 \n<|im_end|> caf\195\169")
  tokenizer:chat(QUESTION, { add_generation_prompt = true })
  tokenizer:free()
end

model_file("config", "config.json", POLICY, use)
model_file("generation_config", "generation_config.json", POLICY, use)
model_file("preprocessor_config", "preprocessor_config.json", POLICY, process_image)
model_file("tokenizer", "tokenizer.json", POLICY, encode)
model_file("tokenizer_config", "tokenizer_config.json", POLICY, encode)
model_file("sam2_config", "config.json", SAM2, function(dir) sz.sam2(dir):free() end)
model_file("sam2_preprocessor", "preprocessor_config.json", SAM2,
  function(dir) sz.sam2(dir):free() end)

-- ---- answers ----
local answers = {
  '<think>the left one</think><answer>{"bbox": [10,20,110,220], "points_1": [40,60], '
    .. '"points_2": [80,160]}</answer>',
  '<think>two</think><answer>[{"bbox_2d": [1,2,30,40], "point_2d": [5,6]}, '
    .. '{"bbox_2d": [50,60,70.5,80], "point_2d": [55,66]}]</answer>',
}
local TRUTH = "<box>(10,20),(110,220)</box><points>(40,60),(80,160)</points>"

add { name = "answers", seeds = answers, never_fails = true,
  run = function(text)
    local answer = require "segzero.formats.answer"
    answer.parse(text)
    answer.parse_list(text)
    require "rewards.seg_strict"(text, TRUTH)
    require "rewards.seg"(text, TRUTH)
    local score = require "rewards.seg_strict"(answers[1], text)
    if score ~= score then error "the score is NaN" end
  end }

return M
