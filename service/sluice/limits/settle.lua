-- Puts the real usage in the estimate's place, once: the record becomes a mark that says it was done.
-- KEYS: as of reserve
-- ARGV: id; tokens, GPU ms, requests to give back, requests to charge where there is no record, life of the mark (ms), and for
-- each subject its limits
-- Says 1, or 0 where it had been done before
local id, tokens, gpu_ms, given_back, charged, mark_ms = ARGV[1], unpack(told, 1, 5)
local record = redis.call('GET', KEYS[2])
if record == 'done' then return 0 end

local more_tokens, more_gpu_ms, requests, is_today = tokens, gpu_ms, -charged, true
if record then
  local reserved, reserved_gpu_ms, day = string.match(record, '(%S+) (%S+) (%S+)')
  requests, is_today = given_back, tonumber(day) == today
  more_tokens, more_gpu_ms = tokens - reserved, gpu_ms - reserved_gpu_ms
end

for i = 1, (#KEYS - 2) / 2 do
  local limits = limits_of(i)
  local book = open_book(KEYS[2 * i + 1], limits)
  book.r, book.t = min(limits[1], book.r + requests), min(limits[2], book.t - more_tokens)
  if is_today then
    spend(book, more_tokens, more_gpu_ms)
  else -- what was reserved stands on yesterday's page
    spend(book, max(0, more_tokens), max(0, more_gpu_ms))
  end
  close_book(KEYS[2 * i + 1], limits, book)
  if limits[3] > 0 then redis.call('ZREM', KEYS[2 * i + 2], id) end
end
redis.call('SET', KEYS[2], 'done', 'PX', mark_ms)
return 1
