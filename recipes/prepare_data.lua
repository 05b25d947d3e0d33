-- prepare_data.lua - makes training rows out of masks, as Seg-Zero and VisionReasoner do.
--
--   segzero recipes/prepare_data.lua data=refer_seg/refcocog@train output=data/refcocog_840
--   segzero recipes/prepare_data.lua data=FOLDER several=true ...    lists of objects
--   segzero recipes/prepare_data.lua --help                          all settings
--
-- A row is an image of size x size pixels (OpenCV's INTER_AREA), a question, and a solution in the
-- frame of that image: a box and the two points of prepare/points.lua, or with several=true a list
-- of objects with a box and the first point. Columns and layout are those of Ricky06662's sets on
-- the hub. The same settings and data write the same bytes.
-- Leaves out: uploading.

local cli = require "segzero.config.cli"
local console = require "segzero.log.console"
local prepare = require "segzero.prepare.run"
local prepare_data = require "segzero.config.prepare_data"
local stop = require "segzero.core.stop"

local M = { schema = prepare_data.schema, settings = prepare_data.settings }

function M.execute(cfg) return stop.run(prepare.run, cfg, console.say) end

M.run = cli.runner(M)

cli.main(M)

return M
