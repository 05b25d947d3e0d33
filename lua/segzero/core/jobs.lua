-- jobs.lua - background jobs (runtime/io/jobs.c): a handle to wait for, and lists of files that a
-- background thread writes.
--
--   local j = jobs.wrap(ptr)      owns a C job
--   j:done()                      true when it has ended
--   j:wait()                      -> true, or nil and a message
--   j:free()
--
--   local w = jobs.writing()      collects what to write, in this order:
--   w:text(path, text)
--   w:tensors(path, header, {tensor, ...}, {name, ...})
--   w:share(path, header, bytes, parts)   a file of tensors that several ranks write; parts: as in
--                                 w:sync. w:make_shared() makes all of them, as path.tmp
--   w:pieces(path, {{tensor =, begin =, place =}, ...})      into a shared file: the parts at
--                                 `place` (an sz_place) of whole tensors that begin at byte `begin`
--   w:finish_shared()             when all ranks have written: names and checks the shared files
--   w:at_end(f)                   w:finish_shared() calls f(w) last
--   w:rename(from, to)
--   w:sync(path, parts)           a file that exists; parts: {{name =, begin =, stop =}, ...}
--   w:manifest(path, text)        each '%' in text is the checksum of the next part of w.parts
--   w.parts                       what was added so far: {{path =, name = tensor | "" for the
--                                 header | nil for a whole text, bytes =}, ...}
--   local j = w:start()           nothing may write to the tensors until j has ended
--   local j = w:start_first()     the same; when j has ended, more can be added and started
--   w.shared                      {{path =, header =, bytes =, parts =}, ...}: what w:share added
--
-- The collector cancels or finishes a job that nothing refers to. The program waits at its end for
-- the jobs that have started.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"

local C = core.C
local call = core.call

local M = {}

local Job = {}
local Writing = {}
Job.__index = Job
Writing.__index = Writing

-- The threads run the library's code, so they must end before the Lua state unloads it.
M.keeper = ffi.gc(ffi.new "int[1]", function() C.sz_jobs_end() end)

function M.wrap(ptr) return setmetatable({ ptr = ffi.gc(ptr, C.sz_job_free) }, Job) end

function Job:done() return C.sz_job_done(self.ptr) == 1 end

function Job:wait()
  if C.sz_job_wait(self.ptr) == 0 then return true end
  return nil, ffi.string(C.sz_last_error())
end

function Job:free()
  if self.ptr ~= nil then C.sz_job_free(ffi.gc(self.ptr, nil)) end
  self.ptr = nil
end

function M.writing()
  local ptr = ffi.gc(call(C.sz_writing_new()), C.sz_writing_free)
  return setmetatable({ ptr = ptr, parts = {}, shared = {}, ends = {} }, Writing)
end

local function add_part(writing, path, name, bytes)
  local parts = writing.parts
  parts[#parts + 1] = { path = path, name = name, bytes = bytes }
end

function Writing:text(path, text)
  call(C.sz_writing_text(self.ptr, path, text, #text))
  add_part(self, path, nil, #text)
end

function Writing:rename(from, to) call(C.sz_writing_rename(self.ptr, from, to)) end

function Writing:manifest(path, text)
  call(C.sz_writing_manifest(self.ptr, path, text, #text))
end

function Writing:pieces(path, list)
  local pointers = ffi.new("sz_tensor *[?]", #list + 1)
  local begin = ffi.new("int64_t[?]", #list + 1)
  local places = ffi.new("sz_place[?]", #list + 1)
  for i, one in ipairs(list) do
    pointers[i - 1] = one.tensor.ptr
    begin[i - 1] = one.begin
    places[i - 1] = one.place
  end
  call(C.sz_writing_parts(self.ptr, path, pointers, begin, places, #list))
end

function Writing:share(path, header, bytes, parts)
  self.shared[#self.shared + 1] = { path = path, header = header, bytes = bytes, parts = parts }
end

function Writing:make_shared()
  for _, one in ipairs(self.shared) do
    call(C.sz_shared_file_begin(one.path .. ".tmp", one.header, #one.header, one.bytes))
  end
end

function Writing:at_end(f) self.ends[#self.ends + 1] = f end

function Writing:finish_shared()
  for _, one in ipairs(self.shared) do
    self:rename(one.path .. ".tmp", one.path)
    self:sync(one.path, one.parts)
  end
  for _, f in ipairs(self.ends) do f(self) end
  self.shared = {}
  self.ends = {}
end

local LENGTH_BYTES = 8          -- before the header of a file of tensors

function Writing:tensors(path, header, list, names)
  local pointers = ffi.new("sz_tensor *[?]", #list + 1)
  for i, t in ipairs(list) do pointers[i - 1] = t.ptr end
  call(C.sz_writing_tensors(self.ptr, path, header, #header, pointers, #list))
  add_part(self, path, "", LENGTH_BYTES + #header)
  for i, t in ipairs(list) do
    local bytes = t:numel() * tensor.WIDTH[t:dtype()]
    add_part(self, path, names and names[i] or tostring(i), bytes)
  end
end

function Writing:sync(path, parts)
  local begin = ffi.new("int64_t[?]", #parts + 1)
  local stop = ffi.new("int64_t[?]", #parts + 1)
  for i, part in ipairs(parts) do
    begin[i - 1] = part.begin
    stop[i - 1] = part.stop
    add_part(self, path, part.name, part.stop - part.begin)
  end
  call(C.sz_writing_sync(self.ptr, path, #parts, begin, stop))
end

function Writing:start_first() return M.wrap(call(C.sz_writing_start_first(self.ptr))) end

function Writing:start()
  local ptr = ffi.gc(self.ptr, nil)
  self.ptr = nil
  return M.wrap(call(C.sz_writing_start(ptr)))
end

function Job:__tostring()
  if self.ptr == nil then return "job (freed)" end
  if self:done() then return "job (ended)" end
  return "job"
end
function Writing:__tostring() return "files to be written" end

return M
