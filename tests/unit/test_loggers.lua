-- test_loggers.lua - what the loggers tensorboard, csv, wandb and jsonl write, read back by
-- decoders of this file; veRL's names; that a run that goes on has each step once; and the
-- console's lines with the parts of a reward.
--
-- TensorBoard's and W&B's own readers: tests/golden/check_tensorboard.py and check_wandb.py.

local bit = require "bit"
local cjson = require "cjson"
local ffi = require "ffi"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local crc32 = require "segzero.log.crc32"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local host = require "segzero.host"
local log = require "segzero.log"
local names = require "segzero.log.names"
local process = require "tests.support.process"
local sz = require "segzero"

local place = mini.folder()

local CONFIG = { algorithm = { adv_estimator = "grpo" },
  worker = { actor = { use_kl_loss = true, optim = { lr = 1e-4 } }, rollout = { n = 8 } },
  trainer = { experiment_name = "first", project_name = "p", logger = { "csv", "tensorboard" } } }

local function step_record(step)
  return {
    step = step, reward = 1.5 + step, reward_min = 0, reward_max = 4, ["reward/iou"] = 0.25,
    length = 60, length_min = 40, length_max = 70, length_at_limit = 0.125, tokens = 960,
    prompt_length = 160, prompt_length_min = 159, prompt_length_max = 162,
    prompt_length_at_limit = 0, advantage_mean = 0.01, advantage_min = -2, advantage_max = 2,
    entropy = 0.35, policy_loss = 0.02, kl = 0.001, kl_coef = 5e-3, grad_norm = 0.25, lr = 1e-6,
    sampler_kl = 1e-7, clip_active = 0.01, clip_low = 0.004, clip_high = 0.006, mismatch = 1e-5,
    seconds = { total = 2 },
    time = { data = 0, vision = 0.25, prefill = 0.25, decode = 0.5, reward = 0.125,
      reference = 0.375, forward = 0.25, backward = 0.25, optimizer = 0.125, checkpoint = 0,
      other = 0 },
  }
end

local function run_of(folder, first_step, total)
  files.make_dir(folder)
  if not files.exists(folder .. "/run.json") then
    files.write(folder .. "/run.json", '{"id":"4f2a9c","version":1}\n')
  end
  return { folder = folder, config = CONFIG, first_step = first_step or 0,
    total_steps = total or 10 }
end

-- ---- decoders ----
-- The checksum bit by bit, as the definition has it.
local function slow_crc(text, polynomial)
  local sum = -1
  for i = 1, #text do
    sum = bit.bxor(sum, text:byte(i))
    for _ = 1, 8 do
      local low = bit.band(sum, 1)
      sum = bit.rshift(sum, 1)
      if low == 1 then sum = bit.bxor(sum, polynomial) end
    end
  end
  return bit.bnot(sum) % 2 ^ 32
end

local function little(text, at, bytes)
  local n = 0
  for i = bytes - 1, 0, -1 do n = n * 256 + text:byte(at + i) end
  return n
end

-- A message as a list of {field, value}; value: a number, or bytes.
local function message(text)
  local list = {}
  local at = 1
  local function varint()
    local n, scale = 0, 1
    repeat
      local byte = text:byte(at)
      n = n + byte % 128 * scale
      scale = scale * 128
      at = at + 1
    until byte < 128
    return n
  end
  while at <= #text do
    local key = varint()
    local kind = key % 8
    local value
    if kind == 0 then
      value = varint()
    else
      local size = kind == 1 and 8 or 4
      if kind == 2 then size = varint() end
      value = text:sub(at, at + size - 1)
      at = at + size
    end
    list[#list + 1] = { math.floor(key / 8), value }
  end
  return list
end

local function field(list, number)
  for _, pair in ipairs(list) do if pair[1] == number then return pair[2] end end
end

local function as(kind, bytes)
  local value = ffi.new(kind .. "[1]")
  ffi.copy(value, bytes, #bytes)
  return tonumber(value[0])
end

-- The events of a file, with both checksums compared.
local function events_of(path)
  local text = assert(files.read(path))
  local list = {}
  local at = 1
  local function sum_is_right(from, to)
    local sum = slow_crc(text:sub(from, to), 0x82F63B78)
    local rotated = bit.bor(bit.rshift(sum, 15), bit.lshift(sum, 17)) % 2 ^ 32
    return (rotated + 0xa282ead8) % 2 ^ 32 == little(text, to + 1, 4)
  end
  while at <= #text do
    local length = little(text, at, 8)
    check.ok(sum_is_right(at, at + 7), "the checksum of a length")
    check.ok(sum_is_right(at + 12, at + 11 + length), "the checksum of an event")
    list[#list + 1] = message(text:sub(at + 12, at + 11 + length))
    at = at + 16 + length
  end
  return list
end

-- {[tag] = {step =, value =}} of the values in one event, and how many there are.
local function values_of(event)
  local out = {}
  local count = 0
  for _, pair in ipairs(message(field(event, 5))) do
    local value = message(pair[2])
    out[field(value, 1)] = value
    count = count + 1
  end
  return out, count
end

-- ---- checksums and names ----
check.case("checksums are those of the standards' examples", function()
  check.equal(crc32.ieee "123456789", 0xCBF43926, "zlib's")
  check.equal(crc32.castagnoli "123456789", 0xE3069283, "CRC-32C")
  check.equal(crc32.castagnoli(("\0"):rep(32)), 0x8A9136AA, "32 zeros (RFC 3720)")
  check.equal(crc32.le(0x01020304), "\4\3\2\1", "the lowest byte first")
end)

check.case("veRL's names stand for veRL's numbers", function()
  local t = names.verl(step_record(1), CONFIG)
  local want = {
    ["critic/score/mean"] = 2.5, ["critic/score/min"] = 0, ["critic/score/max"] = 4,
    ["critic/rewards/mean"] = 2.5, ["critic/rewards/min"] = 0, ["critic/rewards/max"] = 4,
    ["critic/advantages/mean"] = 0.01, ["critic/advantages/min"] = -2,
    ["critic/advantages/max"] = 2, ["critic/returns/mean"] = 0.01, ["critic/returns/min"] = -2,
    ["critic/returns/max"] = 2, ["response_length/mean"] = 60, ["response_length/min"] = 40,
    ["response_length/max"] = 70, ["response_length/clip_ratio"] = 0.125,
    ["prompt_length/mean"] = 160, ["prompt_length/min"] = 159, ["prompt_length/max"] = 162,
    ["prompt_length/clip_ratio"] = 0, ["actor/pg_loss"] = 0.02, ["actor/entropy_loss"] = 0.35,
    ["actor/grad_norm"] = 0.25, ["actor/ppo_kl"] = 1e-7, ["actor/pg_clipfrac"] = 0.01,
    ["actor/lr"] = 1e-6, ["actor/kl_loss"] = 0.001, ["actor/kl_coef"] = 5e-3,
    ["timing_s/gen"] = 1, ["timing_s/reward"] = 0.125, ["timing_s/ref"] = 0.375,
    ["timing_s/update_actor"] = 0.625, ["timing_s/step"] = 2,
    ["timing_per_token_ms/gen"] = 1000 / 960, ["timing_per_token_ms/ref"] = 375 / 3520,
    ["timing_per_token_ms/update_actor"] = 625 / 3520,
  }
  check.near(t, want, 1e-12, "all of them, and no other")
  check.equal(names.verl({ held_out_reward = 2 }, CONFIG), { ["val/reward_score"] = 2 },
    "an evaluation")
end)

check.case("a name of veRL's is left out where its number would be another", function()
  local t = step_record(1)
  t.rewards_mean = 0.5
  t.rewards_min = -1
  t.rewards_max = 2
  local config = { algorithm = { adv_estimator = "reinforce_plus_plus" },
    worker = { actor = { use_kl_loss = false } } }
  local out = names.verl(t, config)
  check.equal(out["critic/rewards/mean"], 0.5, "a KL term in the reward: rewards")
  check.equal(out["critic/score/mean"], 2.5, "and scores")
  check.equal(out["critic/returns/mean"], nil, "returns that are no advantages")
  check.equal(out["actor/kl_loss"], nil, "no KL term in the loss")
  check.equal(names.flat(t, config).kl, 0.001, "the number keeps our name")
end)

check.case("flat has each number once", function()
  local flat = names.flat(step_record(1), CONFIG)
  check.equal(flat["critic/score/mean"], 2.5, "veRL's name")
  check.equal(flat.reward, nil, "instead of ours")
  check.equal(flat.kl, nil, "the KL term, too")
  check.equal(flat["time/decode"], 0.5, "a number in a table")
  check.equal(flat["reward/iou"], 0.25, "a part")
  check.equal(flat.step, nil, "the step is no number of its own")
end)

-- ---- tensorboard ----
local function event_files(folder)
  local list = folders.list(folder .. "/tensorboard")
  table.sort(list)
  for i, name in ipairs(list) do list[i] = folder .. "/tensorboard/" .. name end
  return list
end

check.case("tensorboard: scalars, texts and images in records with checksums", function()
  local folder = place .. "/board"
  local run = run_of(folder)
  local png = place .. "/small.png"
  sz.image.write_png(png, 5, 3, 3, ffi.new "uint8_t[45]")
  local l = log.open({ "tensorboard" }, run)
  l:text(0, "run", "policy\n  <b>")
  l:text(0, "run", "data")
  l:image(0, "before", png)
  l:scalars(3, step_record(3))
  l:close()

  local list = event_files(folder)
  check.equal(#list, 1, "one file")
  check.ok(list[1]:find "/events%.out%.tfevents%.%d%d%d%d%d%d%d%d%d%d%.segzero$", list[1])
  local events = events_of(list[1])
  check.equal(#events, 7, "version, session, settings, two texts, an image, scalars")
  check.equal(field(events[1], 3), "brain.Event:2", "the version comes first")
  check.near(as("double", field(events[1], 1)), os.time(), 60, "seconds")
  check.equal(field(message(field(events[2], 7)), 1), 1, "a session starts")
  check.equal(field(events[2], 2), 1, "at step 1")

  -- Texts: a string tensor of the plugin "text".
  local function text(event, tag)
    local value = values_of(event)[tag]
    local plugin = message(field(message(field(value, 9)), 1))
    check.equal(field(plugin, 1), "text", tag .. ": the plugin")
    local tensor = message(field(value, 8))
    check.equal(field(tensor, 1), 7, tag .. ": the dtype is string")
    return field(tensor, 8)
  end
  check.ok(text(events[3], "settings"):find("    worker.rollout.n = 8", 1, true), "settings")
  check.equal(text(events[4], "run"), "    policy\n      <b>", "the first text")
  check.equal(text(events[5], "run"), "    policy\n      <b>\n    data", "the second one")

  local shown = message(field(values_of(events[6]).before, 4))
  check.equal({ field(shown, 1), field(shown, 2), field(shown, 3) }, { 3, 5, 3 },
    "height, width, channels")
  check.ok(field(shown, 4) == files.read(png), "the file as it is")

  check.equal(field(events[7], 2), 3, "the step of the scalars")
  local values, count = values_of(events[7])
  local flat = names.flat(step_record(3), CONFIG)
  local wanted = names.sorted(flat)
  check.equal(count, #wanted, "as many values")
  check.ok(count > 40, "many")
  for _, name in ipairs(wanted) do
    check.near(as("float", field(values[name], 2)), flat[name], 1e-6 * math.abs(flat[name]), name)
  end
  check.ok(files.exists(folder .. "/metrics.jsonl"), "jsonl comes with it")
end)

check.case("tensorboard: images of other formats and channels", function()
  local folder = place .. "/formats"
  local run = run_of(folder)
  local grey = place .. "/grey.png"
  local jpeg = "tests/golden/images/exif_1.jpg"
  sz.image.write_png(grey, 4, 2, 1, ffi.new "uint8_t[8]")
  local l = log.open({ "tensorboard" }, run)
  l:image(1, "grey", grey)
  l:image(1, "jpeg", jpeg)
  l:close()

  local events = events_of(event_files(folder)[1])
  check.equal(#events, 5, "version, session, settings, two images")
  local function sizes(event, name)
    local shown = message(field(values_of(event)[name], 4))
    return { field(shown, 1), field(shown, 2), field(shown, 3), #field(shown, 4) }
  end
  check.equal(sizes(events[4], "grey"), { 2, 4, 1, #files.read(grey) }, "a grey PNG")
  local info = sz.image.info(jpeg)
  check.equal(sizes(events[5], "jpeg"), { info.height, info.width, 3, #files.read(jpeg) }, "JPEG")
end)

check.case("tensorboard: a run that goes on has a later file that begins at its step", function()
  local folder = place .. "/again"
  for start = 0, 4, 2 do
    local l = log.open({ "tensorboard" }, run_of(folder, start))
    l:scalars(start + 1, step_record(start + 1))
    l:close()
  end
  local list = event_files(folder)
  check.equal(#list, 3, "three files, also within a second")
  for i, path in ipairs(list) do
    local events = events_of(path)
    check.equal(field(events[2], 2), 2 * i - 1, "the session's step, in the order of the names")
  end
end)

-- ---- csv ----
local function rows_of(path)
  local rows = {}
  for line in io.lines(path) do
    local cells = {}
    for cell in (line .. ","):gmatch "([^,]*)," do cells[#cells + 1] = cell end
    rows[#rows + 1] = cells
  end
  return rows
end

-- The column of a name, below its head.
local function column(rows, name)
  for k, head in ipairs(rows[1]) do
    if head == name then
      local list = {}
      for i = 2, #rows do list[i - 1] = rows[i][k] end
      return list
    end
  end
end

check.case("csv: one row a step, with columns that stay where they are", function()
  local folder = place .. "/csv"
  local path = folder .. "/metrics.csv"
  local l = log.open({ "csv" }, run_of(folder))
  l:scalars(0, { step = 0, held_out_reward = 1, held_out_parts = { iou = 0.5 } })
  for step = 1, 2 do l:scalars(step, step_record(step)) end
  local before = rows_of(path)
  check.equal(#before, 3, "a head and two rows")
  check.equal(before[1][1], "step", "the step comes first")
  check.equal(column(before, "critic/score/mean"), { "2.5", "3.5" }, "scores")
  check.equal(column(before, "actor/lr"), { "1e-06", "1e-06" }, "a small number")

  -- A part that appears later, a name with a comma, and numbers that are none.
  local t = step_record(3)
  t["reward/new,part"] = 0 / 0
  t.grad_norm = math.huge
  l:scalars(3, t)
  l:scalars(4, step_record(4))
  l:close()
  local after = rows_of(path)
  check.equal(#after, 5, "four rows")
  for k, head in ipairs(before[1]) do check.equal(after[1][k], head, "column " .. k) end
  check.equal(#after[1], #before[1] + 1, "one column more")
  check.equal(column(after, "reward/new_part"), { "", "", "nan", "" }, "empty where it was not")
  check.equal(column(after, "actor/grad_norm"), { "0.25", "0.25", "inf", "0.25" }, "infinity")
  for i, row in ipairs(after) do check.equal(#row, #after[1], "cells of line " .. i) end
  local evaluations = rows_of(folder .. "/evaluations.csv")
  check.equal(evaluations, { { "step", "held_out_parts/iou", "val/reward_score" },
    { "0", "0.5", "1" } }, "evaluations")
end)

check.case("csv: a run that goes on has each step once", function()
  local folder = place .. "/csv_again"
  local path = folder .. "/metrics.csv"
  local l = log.open({ "csv" }, run_of(folder))
  for step = 1, 4 do l:scalars(step, step_record(step)) end
  l:scalars(4, { step = 4, held_out_reward = 1 })
  l:close()

  -- A kill left a partial row.
  local file = assert(io.open(path, "ab"))
  file:write("5,0.1")
  file:close()
  l = log.open({ "csv" }, run_of(folder, 4))
  l:scalars(4, { step = 4, held_out_reward = 2 })
  l:scalars(5, step_record(5))
  l:close()
  check.equal(column(rows_of(path), "step"), { "1", "2", "3", "4", "5" }, "the partial row is gone")
  check.equal(column(rows_of(folder .. "/evaluations.csv"), "val/reward_score"), { "2" },
    "an evaluation that was done again")

  -- Back to step 2.
  local old = files.read(path)
  l = log.open({ "csv" }, run_of(folder, 2))
  l:scalars(3, step_record(3))
  l:close()
  check.equal(column(rows_of(path), "step"), { "1", "2", "3" }, "later rows are gone")
  check.ok(files.read(folder .. "/metrics_before_step_3.csv") == old, "and kept")

  -- A run without steps left goes back to nothing.
  log.open({ "csv" }, run_of(folder, 1, 1)):close()
  check.equal(column(rows_of(path), "step"), { "1", "2", "3" }, "all rows stay")
end)

-- ---- wandb ----
-- The records of an offline run, whose pieces are checked and put together.
local function wandb_records(path)
  local text = assert(files.read(path))
  check.equal(text:sub(1, 7), ":W&B\225\190\0", "the mark")
  local list = {}
  local whole = ""
  local at = 8
  local pieces = 0
  while at <= #text do
    local space = 32768 - (at - 1) % 32768
    if space < 7 then
      check.equal(text:sub(at, at + space - 1), ("\0"):rep(space), "the rest of a block")
      at = at + space
    else
      local length = little(text, at + 4, 2)
      local kind = text:byte(at + 6)
      local body = text:sub(at + 7, at + 6 + length)
      check.ok(7 + length <= space, "a piece ends with its block")
      check.equal(slow_crc(text:sub(at + 6, at + 6 + length), 0xEDB88320), little(text, at, 4),
        "a checksum")
      check.equal(kind == 1 or kind == 2, whole == "", "whole or first pieces begin a record")
      whole = whole .. body
      if kind == 1 or kind == 4 then
        list[#list + 1] = message(whole)
        whole = ""
      end
      at = at + 7 + length
      pieces = pieces + 1
    end
  end
  check.equal(whole, "", "the last record is whole")
  return list, pieces
end

-- {key = JSON} of a history or a summary.
local function items(record, number)
  local out = {}
  for _, pair in ipairs(message(field(record, number))) do
    if pair[1] == 1 then
      local item = message(pair[2])
      out[field(item, 2)] = field(item, 16)
    end
  end
  return out
end

local function wandb_files(folder)
  local list = folders.list(folder .. "/wandb")
  table.sort(list)
  for i, name in ipairs(list) do
    local id = name:match "^offline%-run%-%d%d%d%d%d%d%d%d_%d%d%d%d%d%d%-(%w+)$"
    check.ok(id, name)
    list[i] = ("%s/wandb/%s/run-%s.wandb"):format(folder, name, id)
  end
  return list
end

check.case("wandb: header, settings, a history for each step, and the exit", function()
  local folder = place .. "/wandb"
  local l = log.open({ "wandb" }, run_of(folder))
  l:text(0, "run", "policy")
  l:scalars(0, { step = 0, held_out_reward = 1 })
  l:scalars(1, step_record(1))
  l:scalars(1, { step = 1, held_out_reward = 2 })
  local t = step_record(2)
  t.grad_norm = math.huge
  l:scalars(2, t)
  l:close()
  local paths = wandb_files(folder)
  check.equal(#paths, 1, "one run")
  local list = wandb_records(paths[1])
  local kinds = {}
  for i, record in ipairs(list) do
    check.equal(field(record, 1), i, "records are counted")
    kinds[i] = record[2][1]
  end
  check.equal(table.concat(kinds, " "), "21 17 13 3 2 3 2 3 2 18",
    "header, run, a line, summaries and histories, the exit")
  local run = message(field(list[2], 17))
  check.equal({ field(run, 3), field(run, 8) }, { "p", "first" }, "project and name")
  check.equal(cjson.decode(items({ { 4, field(run, 4) } }, 4).worker), CONFIG.worker, "settings")

  -- An evaluation belongs to the step before it.
  local first = items(list[5], 2)
  local second = items(list[7], 2)
  check.equal({ first._step, second._step, items(list[9], 2)._step }, { "0", "1", "2" }, "steps")
  check.equal({ second["critic/score/mean"], second["val/reward_score"] }, { "2.5", "2" },
    "both in one history")
  check.equal(field(message(field(message(field(list[7], 2)), 2)), 1), 1, "the step of a history")
  check.equal(items(list[9], 2)["actor/grad_norm"], '"Infinity"', "infinity is no number of JSON")
  check.ok(files.exists(folder .. "/metrics.jsonl"), "jsonl comes with it")
end)

check.case("wandb: records that cross blocks, at every distance from a block's end", function()
  local folder = place .. "/blocks"
  local l = log.open({ "wandb" }, run_of(folder))
  local lengths = { 32000, 70000 }
  for n = 640, 720 do lengths[#lengths + 1] = n end
  for _ = 1, 60 do lengths[#lengths + 1] = 32768 - 7 - 24 end
  for i, length in ipairs(lengths) do l:text(1, "run", ("x"):rep(length - i)) end
  l:close()
  local list, pieces = wandb_records(wandb_files(folder)[1])
  check.equal(#list, #lengths + 3, "all records")
  check.ok(pieces > #list + 40, "many of them in pieces")
  for i, length in ipairs(lengths) do
    local line = field(message(field(list[i + 2], 13)), 3)
    check.equal(#line, length - i + 1, "the length of line " .. i)
  end
end)

check.case("wandb: a run that goes on is another part of the same run", function()
  local folder = place .. "/parts"
  for start = 0, 1 do
    local l = log.open({ "wandb" }, run_of(folder, start))
    l:scalars(start + 1, step_record(start + 1))
    l:close()
  end
  local paths = wandb_files(folder)
  check.equal(#paths, 2, "two parts")
  check.equal(paths[1]:match "[^/]*$", paths[2]:match "[^/]*$", "with one ID")
end)

-- ---- jsonl ----
check.case("jsonl: a step's line has our names and veRL's", function()
  local folder = place .. "/jsonl"
  local l = log.open({ "jsonl" }, run_of(folder))
  l:scalars(1, step_record(1))
  l:close()
  local t = cjson.decode((files.read(folder .. "/metrics.jsonl")))
  check.equal({ t.reward, t["critic/score/mean"], t["timing_s/step"], t.step },
    { 2.5, 2.5, 2, 1 }, "both")
end)

-- ---- console ----
-- Twelve steps in a process of its own; the reward of a step is its number.
local CONSOLE_RUN = [[
local log = require("segzero.log").open({ "console" }, { total_steps = 12, first_step = 0 })
log:start(0, 12)
for step = 1, 12 do
  log:scalars(step, { step = step, reward = step, length = 1, kl = 0, entropy = 0, grad_norm = 0,
    mismatch = 0%s })
end]]

local function console_lines(parts)
  local script = place .. "/console.lua"
  files.write(script, CONSOLE_RUN:format(parts))
  return (process.run({ host.executable, script }, { timeout = 60 }))
end

check.case("console: the parts of the reward, every ten steps and at the end", function()
  local text = console_lines ', ["reward/iou"] = step, ["reward/format"] = 0.5'
  local tenth, twelfth = text:match "10/12 [^\n]*\n  parts: (.-)\n.*12/12 [^\n]*\n  parts: (.-)\n"
  check.equal(tenth, "format 0.50, iou 5.50", "the mean of steps 1 to 10")
  check.equal(twelfth, "format 0.50, iou 11.50", "of steps 11 and 12")
  check.equal(select(2, text:gsub("parts:", "")), 2, "no other line has them: " .. text)
end)

check.case("console: a reward of one part is its own part", function()
  check.equal(console_lines(', ["reward/iou"] = step'):find "parts:", nil, "one")
  check.equal(console_lines(""):find "parts:", nil, "none")
end)

check.case("without a run folder nothing is written", function()
  local before = folders.list "."
  local l = log.open({ "tensorboard", "csv", "jsonl", "wandb" }, { config = CONFIG })
  l:scalars(1, step_record(1))
  l:text(1, "run", "x")
  l:image(1, "x", "nowhere.png")
  l:close()
  check.equal(folders.list ".", before, "the current folder")
end)

mini.remove()
check.finish()
