-- tensorboard.lua - the logger that writes event files, which TensorBoard shows:
--
--   tensorboard --logdir runs
--
-- RUN/tensorboard/events.out.tfevents.SECONDS.segzero is a list of TFRecords, one for each event:
-- the length (8 bytes, lowest first), its masked CRC-32C, the event, its masked CRC-32C. An event
-- is a message of Protocol Buffers: {1: seconds, 2: step, 3: version | 5: summary | 7: session}.
--   scalars   all numbers of a step or an evaluation in one event, under veRL's names (names.lua)
--   text      "run": what the run said at a step; "settings": all settings, once
--   images    the file's bytes: a PNG, or another format that the browser shows
--
-- Each start makes a new file. Its session record says at which step it begins, and TensorBoard
-- drops that step and later ones of older files, so each step appears once. When the call returns,
-- the whole record is in the file (core/lines.lua). Without a run folder nothing is written.
-- Leaves out: histograms, graphs, answers (rollouts.jsonl has them).

local crc32 = require "segzero.log.crc32"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local images = require "segzero.formats.image"
local lines = require "segzero.core.lines"
local names = require "segzero.log.names"
local notes = require "segzero.log.settings_text"
local pb = require "segzero.log.protobuf"

local M = {}

local methods = {}
local mt = { __index = methods }

local VERSION = "brain.Event:2"
local START = 1                 -- the status of a session that begins
local STRING = 7                -- a tensor's dtype
local TENSOR = 2                -- the data class of texts

-- ---- records ----
local function masked(text)
  local sum = crc32.castagnoli(text)
  local rotated = math.floor(sum / 2 ^ 15) + (sum % 2 ^ 15) * 2 ^ 17
  return crc32.le((rotated + 0xa282ead8) % 2 ^ 32)
end

local function record(event)
  local length = crc32.le(#event) .. crc32.le(0)
  return length .. masked(length) .. event .. masked(event)
end

-- ---- files ----
-- The name of a new file. TensorBoard reads a folder's files in the order of their seconds.
local function new_path(folder, now)
  local seconds = math.floor(now)
  for _, name in ipairs(folders.list(folder) or {}) do
    local other = tonumber(name:match "^events%.out%.tfevents%.(%d+)%.")
    if other and other >= seconds then seconds = other + 1 end
  end
  return ("%s/events.out.tfevents.%010d.segzero"):format(folder, seconds)
end

function M.open(run)
  local log = setmetatable({ run = run }, mt)
  if not run.folder then return log end
  local folder = run.folder .. "/tensorboard"
  files.make_dir(folder)
  log.path = new_path(folder, os.time())
  log.file = lines.create(log.path)
  log:event(nil, pb.bytes(3, VERSION))
  log:begin(run.first_step or 0)
  if run.config then log:text(run.first_step or 0, "settings", notes.lines(run.config)) end
  return log
end

function methods:event(step, body)
  if not self.file then return end
  local event = pb.double(1, os.time())
  if step and step > 0 then event = event .. pb.integer(2, step) end
  self.file:write(record(event .. body))
end

-- Tells TensorBoard to drop what older files say about later steps.
function methods:begin(step)
  self:event(step + 1, pb.bytes(7, pb.integer(1, START)))
end

-- ---- values ----
function methods:scalars(step, t)
  local numbers = names.flat(t, self.run.config)
  local values = {}
  for i, name in ipairs(names.sorted(numbers)) do
    values[i] = pb.bytes(1, pb.bytes(1, name) .. pb.float(2, numbers[name]))
  end
  self:event(step, pb.bytes(5, table.concat(values)))
end

local function text_value(tag, text)
  local plugin = pb.bytes(1, pb.bytes(1, "text")) .. pb.integer(4, TENSOR)
  local tensor = pb.integer(1, STRING) .. pb.bytes(2, "") .. pb.bytes(8, text)
  return pb.bytes(1, pb.bytes(1, tag) .. pb.bytes(9, plugin) .. pb.bytes(8, tensor))
end

-- TensorBoard keeps one text for a tag and a step, so a later text repeats the earlier ones of its
-- step. Four spaces keep Markdown from changing a line.
function methods:text(step, name, s)
  local key = name .. step
  local text = "    " .. s:gsub("\n", "\n    ")
  if self.key == key then text = self.said .. "\n" .. text end
  self.key = key
  self.said = text
  self:event(step, pb.bytes(5, text_value(name, text)))
end

-- Channels by a PNG's color type; a palette counts as RGB.
local CHANNELS = { [0] = 1, [2] = 3, [3] = 3, [4] = 2, [6] = 4 }

function methods:image(step, name, path)
  if not self.file then return end
  local bytes, reason = files.read(path)
  if not bytes then error(reason, 0) end
  -- Other formats count as RGB.
  local info = images.info(path)
  local channels = 3
  if info.format == "png" then channels = CHANNELS[bytes:byte(26)] or 3 end
  local image = pb.integer(1, info.height) .. pb.integer(2, info.width) .. pb.integer(3, channels)
    .. pb.bytes(4, bytes)
  self:event(step, pb.bytes(5, pb.bytes(1, pb.bytes(1, name) .. pb.bytes(4, image))))
end

function methods:close()
  if self.file then self.file:close() end
  self.file = nil
end

return M
