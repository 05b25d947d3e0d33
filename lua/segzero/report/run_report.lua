-- run_report.lua - what a report says about one run: it reads the run's files and keeps what the
-- page needs.
--
--   local r = run_report.open(folder, options)
--       options.source      of thumbnails.lua; nil: made from the settings when it is first needed
--       options.total_steps how long the run is; nil: what its settings say
--   r:read(final)           takes in what is new in the logs (answers.lua says what final does)
--   r:json(seconds) -> text the run as JSON. Making images stops after `seconds`; the rest are made
--                           by the next call
--   r:complaints() -> texts of damaged lines and of images that cannot be had
--
-- Errors are one line without a position: the folder is no run, its settings cannot be read.
-- Images are made for up to 120 steps, spread evenly over the run, within 5 MB.
-- Leaves out: the page (page.lua).

local answers = require "segzero.report.answers"
local card = require "segzero.report.card"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local frame = require "segzero.data.frame"
local metrics = require "segzero.report.metrics"
local run_folder = require "segzero.runs.run_folder"
local settings = require "segzero.report.settings"
local thinned = require "segzero.report.thinned"
local thumbnails = require "segzero.report.thumbnails"
local visible = require "segzero.core.visible"

local M = {}

local methods = {}
local mt = { __index = methods }

M.IMAGES = { bytes = 5 * 2 ^ 20, steps = 120 }

function M.open(folder, options)
  run_folder.check_run(folder)
  return setmetatable({
    folder = folder, source = options.source, total_steps = options.total_steps,
    metrics = metrics.new(folder .. "/metrics.jsonl"),
    answers = answers.new(folder .. "/rollouts.jsonl"),
    images = thinned.new(M.IMAGES), frames = {},
  }, mt)
end

function methods:read(final)
  self.settings = self.settings or settings.read(self.folder)
  self.metrics:read()
  self.answers:read(final)
end

-- ---- images ----
local function source_of(self)
  if self.source == nil then
    local source, why = thumbnails.of_settings(self.settings.cfg)
    self.source = source or false
    self.no_images = why
  end
  return self.source or nil
end

-- The images of a step: {[row] = {url =, frame =, ..}}, and their bytes.
local function images_of(source, entry)
  local found = {}
  local bytes = 0
  for _, pick in ipairs(answers.picks(entry)) do
    local row = pick.row
    if not found[row] then
      found[row] = source:row(row)
      if found[row] then bytes = bytes + #found[row].url end
    end
  end
  return found, bytes
end

-- Rows of one size have one frame, which is then that of all steps.
local function note_frames(self, found)
  for _, made in pairs(found) do
    if not made.frame then
      self.frame_unknown = true
    elseif self.frame and not frame.equal(self.frame, made.frame) then
      self.frame_unknown = true
    end
    self.frame = self.frame or made.frame
  end
end

-- The steps that should have images and have none, in order. Few at the start, so that an early
-- page is not bare; steps that are on the grid of the images later on are looked at only once.
local function steps_without(self)
  local list = {}
  for _, step in ipairs(self.answers.kept:list()) do
    local on_grid = (step - 1) % self.images.stride == 0
    if on_grid and not self.images.entries[step] then list[#list + 1] = step end
  end
  local newest = self.answers.kept.newest
  if newest and list[#list] ~= newest and not self.images.entries[newest] then
    list[#list + 1] = newest
  end
  return list
end

-- The grid that as many steps need; the images that are made are then not dropped again.
local function choose_stride(self)
  while #steps_without(self) + self.images.count > M.IMAGES.steps do
    self.images:widen()
  end
end

local function make_images(self, seconds)
  local source = source_of(self)
  if not source then return end
  choose_stride(self)
  local deadline = core.C.sz_seconds() + seconds
  for _, step in ipairs(steps_without(self)) do
    if core.C.sz_seconds() > deadline then return end
    local entry = self.answers.kept.entries[step]
    local found, bytes = images_of(source, entry)
    note_frames(self, found)
    entry.json = nil               -- with the frame, the answers say more
    self.images:put(step, found, bytes)
  end
end

-- ---- JSON ----
local function common_frame(self)
  if self.frame_unknown then return nil end
  return self.frame
end

local function step_json(self, step)
  local entry = self.answers.kept.entries[step]
  local images = self.images.entries[step] or {}
  local known = common_frame(self)
  if entry.json and entry.common == known then return entry.json end
  local texts = {}
  for i, pick in ipairs(answers.picks(entry)) do
    local made = images[pick.row]
    local own = made and made.frame or known
    texts[i] = card.json(pick, { frame = own, reward = self.reward })
  end
  entry.common = known
  entry.json = ('"%d":[%s]'):format(step, table.concat(texts, ","))
  return entry.json
end

local function answers_json(self)
  local texts = {}
  for i, step in ipairs(self.answers.kept:list()) do texts[i] = step_json(self, step) end
  return "{" .. table.concat(texts, ",") .. "}"
end

local function images_json(self)
  local steps = {}
  for i, step in ipairs(self.images:list()) do
    local urls = {}
    for row, made in pairs(self.images.entries[step]) do urls[visible.text(row)] = made.url end
    steps[i] = ('"%d":%s'):format(step, files.json(urls))
  end
  return "{" .. table.concat(steps, ",") .. "}"
end

local function total_of(self)
  if self.total_steps then return self.total_steps end
  local trainer = self.settings.cfg.trainer
  return type(trainer) == "table" and tonumber(trainer.max_steps) or nil
end

local function object_or_empty(list)
  if #list == 0 then return "[]" end
  return files.json(list)
end

function methods:json(seconds)
  local cfg = self.settings.cfg
  self.reward = cfg.worker and cfg.worker.reward and cfg.worker.reward.compute_score
  make_images(self, seconds)
  local head = {
    name = visible.line(self.folder:gsub("(.)/+$", "%1"):match "[^/]*$"),
    folder = visible.line(self.folder), last = self.metrics.last, total = total_of(self),
    stride = self.answers.kept.stride, settings = self.settings.values,
  }
  local parts = {
    '"head":' .. files.json(head),
    '"changes":' .. object_or_empty(self.settings.changes),
    '"notes":' .. object_or_empty(self:complaints()),
    '"metrics":' .. self.metrics:json(),
    '"spread":' .. self.answers.spread:json(),
    '"held_out":' .. self.metrics.held_out:json(),
    '"held_out_rows":' .. (settings.held_out_rows(cfg) or "null"),
    '"answers":' .. answers_json(self),
    '"images":' .. images_json(self),
  }
  return "{" .. table.concat(parts, ",") .. "}"
end

function methods:complaints()
  local texts = {}
  texts[#texts + 1] = self.metrics:complaint()
  texts[#texts + 1] = self.answers:complaint()
  if self.no_images then
    texts[#texts + 1] = "no images: " .. visible.line(self.no_images, 300)
  end
  return texts
end

return M
