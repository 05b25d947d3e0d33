-- position.lua - which rows a step takes: its epoch, and its place in the epoch's order.
--
--   position.at(since, batch, count, step) -> {epoch =, before =, number =}
--       epoch from 0; before: rows of the epoch before this step; number: rows of the run before it
--   position.after(since, batch, count, step) -> the same behind the rows of this step
--   position.last(since, batch, count, epochs) -> the step after which `epochs` epochs are done
--   position.START
--
-- since = {step =, epoch =, before =, number =}: counting began after this step, at this place. A
-- run counts from START; one that goes on with another batch size counts from where it was, so that
-- no row is left out. An epoch's last, incomplete batch is dropped.
-- Leaves out: the order of an epoch's rows (sampler.lua).

local M = {}

M.START = { step = 0, epoch = 0, before = 0, number = 0 }

-- Steps that the rest of the first epoch gives, and steps of each later one.
local function steps_of(since, batch, count)
  return math.max(0, math.floor((count - since.before) / batch)), math.floor(count / batch)
end

function M.at(since, batch, count, step)
  local first, each = steps_of(since, batch, count)
  local done = step - 1 - since.step
  local place = { epoch = since.epoch, number = since.number + done * batch }
  if done < first then
    place.before = since.before + done * batch
  else
    place.epoch = since.epoch + 1 + math.floor((done - first) / each)
    place.before = (done - first) % each * batch
  end
  return place
end

function M.after(since, batch, count, step)
  if step <= since.step then return since end
  local place = M.at(since, batch, count, step)
  place.before = place.before + batch
  place.number = place.number + batch
  return place
end

function M.last(since, batch, count, epochs)
  local first, each = steps_of(since, batch, count)
  local later = math.max(0, epochs - since.epoch - 1)
  if epochs <= since.epoch then first = 0 end
  return since.step + first + later * each
end

return M
