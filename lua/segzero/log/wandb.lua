-- wandb.lua - the logger that writes a run of Weights & Biases in its offline form:
--
--   wandb sync RUN/wandb/offline-run-*
--
-- RUN/wandb/offline-run-DATE_TIME-ID/run-ID.wandb is a log in LevelDB's framing: the mark ":W&B"
-- with its version, then blocks of 32768 bytes (the mark counts). A record is in one piece, or in
-- pieces that end with their block; a piece is a CRC-32 of its kind and bytes, the number of bytes
-- (2 bytes), the kind (1 whole, 2 first, 3 middle, 4 last) and the bytes. A record is a message of
-- Protocol Buffers, wandb's Record: header, run with the settings, then for each step a summary and
-- a history with JSON values under veRL's names (names.lua), lines of the console, and the exit.
--
-- ID is the run folder's, so a resumed run is the same run of W&B: `wandb sync` sends its parts in
-- the order in which they were started. A step's numbers are written when the next step begins or
-- the run ends, because an evaluation after a step belongs to that step. When the call returns, the
-- whole record is in the file (core/lines.lua). The project is trainer.project_name. Without a run
-- folder nothing is written. Leaves out: images, answers, a connection to the server.

local crc32 = require "segzero.log.crc32"
local files = require "segzero.core.files"
local lines = require "segzero.core.lines"
local names = require "segzero.log.names"
local pb = require "segzero.log.protobuf"
local run_folder = require "segzero.runs.run_folder"

local M = {}

local methods = {}
local mt = { __index = methods }

local MARK = ":W&B\225\190\0"           -- with the number 0xBEE1 and the version 0
local BLOCK = 32768
local HEAD = 7                          -- bytes before a piece
local WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
local OLDEST_READER = "0.40.0"          -- what the header asks of a reader

-- Numbers of fields in Record and below.
local RECORD = { num = 1, history = 2, summary = 3, output_raw = 13, run = 17, exit = 18,
  header = 21 }

-- ---- the log ----
local function piece(kind, bytes)
  local text = string.char(kind) .. bytes
  return crc32.le(crc32.ieee(text)) .. crc32.le(#bytes):sub(1, 2) .. text
end

-- The kind and the length of the next piece of a record.
local function next_piece(left, room, is_first)
  if left <= room then return is_first and WHOLE or LAST, left end
  return is_first and FIRST or MIDDLE, room
end

-- The record as pieces, for a file of `at` bytes.
local function framed(record, at)
  local parts = {}
  local done = 0
  repeat
    local space = BLOCK - at % BLOCK
    if space < HEAD then
      parts[#parts + 1] = ("\0"):rep(space)
      at = at + space
      space = BLOCK
    end
    local kind, length = next_piece(#record - done, space - HEAD, done == 0)
    parts[#parts + 1] = piece(kind, record:sub(done + 1, done + length))
    done = done + length
    at = at + HEAD + length
  until kind == WHOLE or kind == LAST
  return table.concat(parts), at
end

function methods:record(field, body)
  if not self.file then return end
  self.count = self.count + 1
  local record = pb.integer(RECORD.num, self.count) .. pb.bytes(field, body)
  local text
  text, self.size = framed(record, self.size)
  self.file:write(text)
end

-- ---- a run ----
-- An ID of letters and digits.
local function id_of(folder)
  local id = (run_folder.id(folder) or ""):gsub("[^%w]", ""):lower()
  if id ~= "" then return id:sub(1, 32) end
  return ("segzero%d"):format(os.time())
end

local function fresh_folder(place, id)
  local seconds = os.time()
  while true do
    local path = ("%s/offline-run-%s-%s"):format(place, os.date("%Y%m%d_%H%M%S", seconds), id)
    if not files.exists(path) then return path end
    seconds = seconds + 1
  end
end

-- A key with its value as JSON; infinities and NaN as wandb writes them.
local function item(name, json) return pb.bytes(1, pb.bytes(2, name) .. pb.bytes(16, json)) end

local function json_number(v)
  if v ~= v then return '"NaN"' end
  if v == math.huge then return '"Infinity"' end
  if v == -math.huge then return '"-Infinity"' end
  return ("%.17g"):format(v)
end

local function run_record(id, config)
  local trainer = config.trainer or {}
  local settings = {}
  for name, group in pairs(config) do settings[#settings + 1] = item(name, files.json(group)) end
  table.sort(settings)
  local now = pb.integer(1, os.time())
  return pb.bytes(1, id) .. pb.bytes(3, tostring(trainer.project_name or "segzero"))
    .. pb.bytes(4, table.concat(settings)) .. pb.bytes(8, tostring(trainer.experiment_name or id))
    .. pb.bytes(17, now)
end

function M.open(run)
  local log = setmetatable({ run = run, count = 0, began = os.time() }, mt)
  if not run.folder then return log end
  local id = id_of(run.folder)
  local folder = fresh_folder(run.folder .. "/wandb", id)
  files.make_dir(folder .. "/files")
  log.path = ("%s/run-%s.wandb"):format(folder, id)
  log.file = lines.create(log.path)
  log.file:write(MARK)
  log.size = #MARK
  log:record(RECORD.header, pb.bytes(1, pb.bytes(1, "segzero") .. pb.bytes(2, OLDEST_READER)))
  log:record(RECORD.run, run_record(id, run.config or {}))
  return log
end

-- ---- values ----
-- Writes the numbers of the step that is held.
function methods:flush()
  local numbers = self.held
  if not numbers then return end
  self.held = nil
  local now = os.time()
  local items = {}
  for i, name in ipairs(names.sorted(numbers)) do
    items[i] = item(name, json_number(numbers[name]))
  end
  items[#items + 1] = item("_timestamp", json_number(now))
  items[#items + 1] = item("_runtime", json_number(now - self.began))
  items[#items + 1] = item("_step", json_number(self.step))
  local all = table.concat(items)
  local number = ""             -- 0 is a field's default, which is not written
  if self.step > 0 then number = pb.integer(1, self.step) end
  self:record(RECORD.summary, all)
  self:record(RECORD.history, all .. pb.bytes(2, number))
end

function methods:scalars(step, t)
  if self.step ~= step then self:flush() end
  self.step = step
  self.held = self.held or {}
  for name, v in pairs(names.flat(t, self.run.config)) do self.held[name] = v end
end

function methods:text(_, _, s)
  local STDOUT = 1
  self:record(RECORD.output_raw, pb.integer(1, STDOUT)
    .. pb.bytes(2, pb.integer(1, os.time())) .. pb.bytes(3, s .. "\n"))
end

function methods:close()
  if not self.file then return end
  self:flush()
  self:record(RECORD.exit, pb.integer(2, os.time() - self.began))
  self.file:close()
  self.file = nil
end

return M
