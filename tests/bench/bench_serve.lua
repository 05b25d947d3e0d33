-- bench_serve.lua - our side of bench_peers.py: runs one phase of a model for each line it reads,
-- and prints how long it took.
--
--   ./segzero tests/bench/bench_serve.lua model=FOLDER [dtype=f32|bf16|int8|int4] [threads=n]
--
-- Commands, one a line:
--   prompt          the prompt of bench_model.json, around an 840 x 840 image, to its first token
--   answers N       a text prompt of the same length, to the first token of N answers
--   steps K         K more tokens of each answer
--   read, matmul    the machine's limits at this moment: see bench_work.lua
--   peak, quit
-- Replies, one JSON object a line: {seconds =, processor =} (wall and processor time), {bytes =},
-- {rate =} (bytes or operations per second). `answers` adds bytes: the weights and the cache that a
-- decoding step reads. Both prompts add operations: those of their products. {ready = true} comes
-- first.

local core = require "segzero.core.ffi"
local model = require "segzero.models.qwen_vl"
local rollout = require "segzero.inference.rollout"
local bench = require "tests.bench.bench_work"
local flops = require "segzero.models.qwen_vl.flops"

local C = core.C

local work = model.read_json(core.root .. "/tests/bench/bench_model.json").work
local opts = bench.options({ dtype = "bf16", threads = work.threads },
  { model = true, dtype = true, threads = true })
if not opts.model then error("bench_serve: model=FOLDER", 0) end
bench.clock(opts)
local vl = model.qwen_vl(opts.model, { dtype = opts.dtype })
local with_image = bench.input(vl,
  { image = work.image_size, before = work.text_tokens_before, after = work.text_tokens_after })
local text = bench.text(vl, #with_image.input_ids)

local function reply(line)
  print(line)
  io.flush()
end

local function read_command()
  local verb, word = (io.read "*l" or "quit"):match "^(%S+)%s*(%S*)$"
  return { verb = verb, word = word }
end

-- more: further fields of the reply.
local function timer(more)
  local wall = C.sz_seconds()
  local processor = os.clock()
  return function()
    reply(('{"seconds": %.6f, "processor": %.6f%s}'):format(C.sz_seconds() - wall,
      os.clock() - processor, more or ""))
  end
end

-- Answers a command for one of the machine's limits. Returns whether it was one.
local function limit(command)
  if command.verb == "read" then reply(('{"rate": %.0f}'):format(1e9 * bench.read_rate(1)))
  elseif command.verb == "matmul" then reply(
    ('{"rate": %.0f}'):format(1e9 * bench.flop_limit(opts.dtype)))
  else return false end
  return true
end

local counts = flops.counts(vl)

local function step_bytes(n)
  return bench.step_bytes(vl, opts.dtype, #text.input_ids + n * 16)
end

local function prompt(input)
  local tokens = #input.input_ids
  local grid = input.image_grid_thw[1]
  local done = timer((', "operations": %.0f'):format(
    counts.vision(grid[2], grid[3]) + counts.text(tokens, flops.causal_pairs(tokens, 0), 1)))
  rollout.generate(vl, { input }, { temperature = 0, max_new_tokens = 1, ignore_eos = true })
  done()
end

-- Commands are read between two tokens. The first one that is not `steps` ends the answers and is
-- returned.
local function answers(n)
  local tokens = #text.input_ids
  local operations = counts.text(tokens, flops.causal_pairs(tokens, 0), 1)
  local done, left, other = timer(
    (', "bytes": %.0f, "operations": %.0f'):format(step_bytes(n), operations)), 0, nil
  local ended = {}
  local ok, why = pcall(rollout.generate, vl, { text },
    { n = n, temperature = 0, max_new_tokens = 1024, ignore_eos = true, on_token = function(a)
    if a.index ~= n then return end
    left = left - 1
    if left > 0 then return end
    done()
    repeat other = read_command() until not limit(other)
    if other.verb ~= "steps" then error(ended) end
    left, done = tonumber(other.word), timer()
  end })
  if not ok and why ~= ended then error(why, 0) end
  return other
end

reply '{"ready": true}'
local command = read_command()
while command.verb ~= "quit" do
  local follows
  if command.verb == "prompt" then prompt(with_image)
  elseif command.verb == "answers" then follows = answers(tonumber(command.word))
  elseif command.verb == "peak" then reply(
    ('{"bytes": %d}'):format(tonumber(
    io.open "/proc/self/status":read "*a":match "VmHWM:%s*(%d+)") * 1024))
  elseif not limit(command) then error("bench_serve: what is " .. tostring(command.verb), 0) end
  command = follows or read_command()
end
