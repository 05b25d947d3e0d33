-- random_checkpoint.lua - writes a released model's folder with random weights.
--
--   segzero examples/random_checkpoint.lua size=3b out=DIR [tokenizer=DIR] [layers=N] [v_depth=N]
--   segzero examples/random_checkpoint.lua out=DIR tokenizer=DIR      adds the tokenizer only
--   segzero examples/random_checkpoint.lua --help
--
-- For measuring loading, memory and speed, and for comparing with transformers at real width where
-- no released checkpoint is available. Writes config.json, generation_config.json and
-- preprocessor_config.json like those on the hub, and the shards with their index. The values come
-- from tools/random_shards.lua. require "examples.random_checkpoint" also gives
-- config(size, layers, v_depth, dtype), the table of config.json.
-- Leaves out: useful answers.

local sz = require "segzero"
local cli = require "segzero.config.cli"
local files = require "segzero.core.files"
local model = require "segzero.models.qwen_vl"
local random_checkpoint = require "segzero.config.random_checkpoint"
local random_shards = require "segzero.tools.random_shards"
local released = require "segzero.models.released"
local tokenizers = require "segzero.models.text.tokenizer"

local C = sz.core.C

local M = { schema = random_checkpoint.schema, settings = random_checkpoint.settings }

local TOKENIZER_FILES = { "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
  "chat_template.json", "chat_template.jinja" }

function M.config(size, layers, v_depth, dtype)
  return released.config(size, { layers = layers, v_depth = v_depth, dtype = dtype })
end

-- The name that newer versions of transformers use in memory.
local function new_name(name)
  local vision, found = name:gsub("^visual%.", "model.visual.")
  if found > 0 then return vision end
  return (name:gsub("^model%.", "model.language_model."))
end

local function copy_tokenizer(from, to)
  for _, name in ipairs(TOKENIZER_FILES) do
    local text = files.read(from .. "/" .. name)
    local is_new = not files.exists(to .. "/" .. name)
    if text and is_new then files.write(to .. "/" .. name, text) end
  end
  print(("the tokenizer is that of %s"):format(from))
end

-- Another tokenizer has other ids for the special tokens, which the model must know.
local function take_ids(json, generation, dir)
  local tokenizer = tokenizers.new(dir)
  for key, token in pairs(random_checkpoint.SPECIAL) do json[key] = tokenizer:id(token) end
  generation.bos_token_id = json.bos_token_id
  generation.pad_token_id = json.bos_token_id
  generation.eos_token_id = { json.eos_token_id, json.bos_token_id }
end

function M.execute(cfg)
  if cfg.completes then return copy_tokenizer(cfg.tokenizer, cfg.out) end
  local started = C.sz_seconds()
  local json = M.config(cfg.size, cfg.layers, cfg.v_depth, cfg.dtype)
  local generation = released.generation(cfg.size)
  if cfg.tokenizer then take_ids(json, generation, cfg.tokenizer) end
  local list = model.weight_list(json)
  for _, w in ipairs(list) do
    w.written = w.name
    if cfg.names == "new" then w.written = new_name(w.name) end
  end

  files.make_dir(cfg.out)
  files.write(cfg.out .. "/config.json", files.indented_json(json))
  files.write(cfg.out .. "/generation_config.json", files.indented_json(generation))
  files.write(cfg.out .. "/preprocessor_config.json", files.indented_json(released.preprocessor()))
  if cfg.tokenizer then copy_tokenizer(cfg.tokenizer, cfg.out) end

  local function on_shard(name, tensors) print(("%s: %d tensors"):format(name, tensors)) end
  local options = { dtype = cfg.dtype, seed = cfg.seed, shard = cfg.shard, on_shard = on_shard }
  local total = random_shards.write(cfg.out, list, options)
  local seconds = C.sz_seconds() - started
  local rate = total / 1e6 / seconds
  local written = ("%.2f GB in %.1f s (%.0f MB/s)"):format(total / 1e9, seconds, rate)
  local peak = tonumber(C.sz_peak_rss()) / 1e6
  print(("wrote %s: %d tensors, %s, peak memory %.0f MB"):format(cfg.out, #list, written, peak))
  if cfg.tokenizer then return end
  print "it has no tokenizer, so it answers in ids only; --help tokenizer says how to add one"
end

M.run = cli.runner(M)

cli.main(M)

return M
