-- sheets.lua - a run's held-out answers as images in its folder: before.png, after.png, and both in
-- pairs, before_after.png.
--
--   sheets.write(t, "before", result)     result: of evaluator.held_out, whose records have masks
--   sheets.compare(t, before, after) -> path
--   sheets.release(result)                frees the masks
--
-- A file that exists already stays: the new one has the step in its name. Rank 0 draws.
-- Leaves out: choosing rows, which are the first ones, so that two runs show the same.

local draw = require "segzero.tools.draw"
local files = require "segzero.core.files"

local M = {}

M.ROWS = 12                     -- of before.png and after.png
local PAIRS = 6                 -- of before_after.png

local function path_of(t, name)
  local path = ("%s/%s.png"):format(t.folder, name)
  if not files.exists(path) then return path end
  return ("%s/%s_step_%d.png"):format(t.folder, name, t.global_step)
end

local function run_name(t) return t.folder:match "[^/]+$" or t.folder end

local function giou_text(giou)
  return giou and (", gIoU %.3f"):format(giou) or ""
end

local function finish(t, name, path)
  t.log:image(t.global_step, name, path)
  t.log:text(t.global_step, "run", "  images: " .. path)
end

function M.write(t, name, result)
  t.parallel:on_root(function()
    local path = path_of(t, name)
    local subtitle = ("%s. All %d held-out rows: reward %.3f%s"):format(t.held_out.name or "data",
      t.held_out:count(), result.reward, giou_text(result.giou))
    draw.predictions(path, t.held_out, result.records, { count = M.ROWS,
      reward = t.config.worker.reward.compute_score, subtitle = subtitle,
      title = ("%s: %s training (step %d)"):format(run_name(t), name, t.global_step) })
    finish(t, name, path)
  end)
end

function M.compare(t, before, after)
  return t.parallel:on_root(function()
    local path = path_of(t, "before_after")
    local line = "%s. All %d held-out rows: reward %.3f before, %.3f after"
    local subtitle = line:format(t.held_out.name or "data", t.held_out:count(), before.reward,
      after.reward)
    if before.giou and after.giou then
      subtitle = ("%s; gIoU %.3f before, %.3f after"):format(subtitle, before.giou, after.giou)
    end
    draw.changes(path, t.held_out, before.records, after.records, { count = PAIRS,
      subtitle = subtitle,
      title = ("%s: before and after %d steps"):format(run_name(t), t.global_step) })
    finish(t, "before_after", path)
    return path
  end)
end

function M.release(result)
  for _, record in ipairs(result and result.records or {}) do
    if record.mask then record.mask:free() end
    record.mask = nil
  end
end

return M
