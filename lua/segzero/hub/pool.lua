-- pool.lua - tasks that wait for HTTP requests at the same time: coroutines over runtime/net.
--
--   pool.run({ f, g, ... }, { most = 8, tick = h })     runs all; at most 8 at once
--
-- and inside a task:
--   local reply = pool.request{ method = "GET", url =, headers = {"Name: value", ...}, connect =,
--                               idle = seconds, file = { fd =, offset =, most =, digest = } | nil }
--       reply: status, error (nil: the reply is whole), is_local, headers {lower-case name ->
--       value}, redirect, body, position (bytes that the file has). While it runs, file.position is
--       kept up to date
--   pool.sleep(seconds)
--   pool.keep(fd)        a file that is closed when the tasks end early;  pool.close(fd)
--
-- tick() is called at least ten times a second. The first error of a task ends all of them and is
-- raised; so does Ctrl-C. Leaves out: what a reply means (requests.lua).

local ffi = require "ffi"
local core = require "segzero.core.ffi"

local C = core.C

local M = {}

local POLL = 100                -- milliseconds

local current                   -- the pool that runs: { http =, waiting = {}, fds = {} }

-- ---- inside a task ----
function M.request(options) return coroutine.yield(options) end

function M.sleep(seconds) return coroutine.yield { wake = C.sz_seconds() + seconds } end

function M.keep(fd)
  current.fds[fd] = true
  return fd
end

function M.close(fd)
  current.fds[fd] = nil
  require("posix.unistd").close(fd)
end

-- ---- replies ----
local function headers_of(text)
  local headers = {}
  for name, value in text:gmatch "([^%s:]+):[ \t]*([^\r\n]*)" do
    headers[name:lower()] = value:match "^(.-)%s*$"
  end
  return headers
end

local function optional(pointer)
  if pointer == nil then return nil end
  return ffi.string(pointer)
end

local length = ffi.new "size_t[1]"

local function reply_of(t)
  local body = C.sz_transfer_body(t, length)
  return {
    status = C.sz_transfer_status(t),
    error = optional(C.sz_transfer_error(t)),
    is_local = C.sz_transfer_is_local(t) == 1,
    headers = headers_of(ffi.string(C.sz_transfer_headers(t))),
    redirect = optional(C.sz_transfer_redirect(t)),
    body = ffi.string(body, length[0]),
    position = tonumber(C.sz_transfer_position(t)),
  }
end

local function key_of(t) return tonumber(ffi.cast("intptr_t", t)) end

-- ---- the loop ----
local function start_request(self, task, r)
  local lines = table.concat(r.headers or {}, "\n")
  local t = core.call(C.sz_http_start(self.http, r.method, r.url, lines, r.connect * 1000, r.idle))
  local file = r.file
  if file then C.sz_transfer_to_file(t, file.fd, file.offset, file.most, file.digest) end
  task.transfer = t
  task.file = file
  self.waiting[key_of(t)] = task
end

-- Runs a task until it waits for something or ends.
local function resume(self, task, ...)
  task.wake = nil
  task.transfer = nil
  task.file = nil
  local ok, wanted = coroutine.resume(task.thread, ...)
  if not ok then error(wanted, 0) end
  if coroutine.status(task.thread) == "dead" then
    self.active[task] = nil
    self.count = self.count - 1
  elseif wanted.wake then
    task.wake = wanted.wake
  else
    start_request(self, task, wanted)
  end
end

local function start_tasks(self, list, most)
  while self.count < most and self.next <= #list do
    local task = { thread = coroutine.create(list[self.next]) }
    self.next = self.next + 1
    self.active[task] = true
    self.count = self.count + 1
    resume(self, task)
  end
end

-- Resumes the tasks whose sleep is over.
local function wake_tasks(self)
  local now = C.sz_seconds()
  local due = {}
  for task in pairs(self.active) do
    if task.wake and task.wake <= now then due[#due + 1] = task end
  end
  for _, task in ipairs(due) do resume(self, task) end
end

local function answer_tasks(self)
  while true do
    local t = C.sz_http_finished(self.http)
    if t == nil then return end
    local task = self.waiting[key_of(t)]
    self.waiting[key_of(t)] = nil
    local reply = reply_of(t)
    C.sz_transfer_free(t)
    resume(self, task, reply)
  end
end

-- Milliseconds until a task's sleep is over.
local function time_left(self)
  local left = POLL
  local now = C.sz_seconds()
  for task in pairs(self.active) do
    if task.wake then left = math.min(left, math.ceil((task.wake - now) * 1000)) end
  end
  return math.max(0, left)
end

-- libcurl's poll returns at once when nothing runs.
local function poll(self)
  local left = time_left(self)
  local running = core.call(C.sz_http_poll(self.http, left))
  if left == 0 or running > 0 or next(self.waiting) ~= nil then return end
  require("posix.time").nanosleep { tv_sec = 0, tv_nsec = left * 1e6 }
end

-- Tells the files of running requests how far they are.
local function note_positions(self)
  for _, task in pairs(self.waiting) do
    local file = task.file
    if file then file.position = tonumber(C.sz_transfer_position(task.transfer)) end
  end
end

local function loop(self, list, options)
  while true do
    start_tasks(self, list, options.most or #list)
    if self.count == 0 and self.next > #list then return end
    poll(self)
    answer_tasks(self)
    wake_tasks(self)
    note_positions(self)
    if options.tick then options.tick() end
  end
end

function M.run(list, options)
  core.declare "runtime/net/net.h"
  local self = { http = core.call(C.sz_http_open()), waiting = {}, fds = {}, active = {},
    count = 0, next = 1 }
  local before = current
  current = self
  local ok, why = pcall(loop, self, list, options or {})
  current = before
  for fd in pairs(self.fds) do require("posix.unistd").close(fd) end
  -- After Ctrl-C nothing waits for a name that is being looked up.
  if ok or not core.is_interrupt(why) then C.sz_http_close(self.http) end
  if not ok then error(why, 0) end
end

return M
