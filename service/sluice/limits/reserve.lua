-- Takes one request, a place and the estimated tokens from all subjects, or nothing from any.
-- KEYS: since when this server counts; the record of this reservation; then for each subject its book and the sorted set of its leases
-- ARGV: id; tokens, GPU ms, life of a lease (ms), life of the record (ms), wait told for a place (ms), and for each its limits
-- Says: "kind place wait_ms", kind "-" where it is granted, and "requests tokens requests_full_ms tokens_full_ms" for each
local id, tokens, gpu_ms, lease_ms, record_ms, place_wait = ARGV[1], unpack(told, 1, 5)
local is_known = redis.call('EXISTS', KEYS[2]) == 1
local num_subjects = (#KEYS - 2) / 2
local kind, by, wait = '-', 0, 0
local all_limits, books = {}, {}

for i = 1, num_subjects do
  local limits = limits_of(i)
  local book = open_book(KEYS[2 * i + 1], limits)
  all_limits[i], books[i] = limits, book
  local leases = KEYS[2 * i + 2]
  local function stands_in_the_way(what, how_long)
    if how_long > wait then kind, by, wait = what, i - 1, how_long end
  end
  if not is_known then
    if limits[1] > 0 and book.r < 1 then stands_in_the_way('rpm', (1 - book.r) * 60000 / limits[1]) end
    if limits[2] > 0 then
      local lacking = min(tokens, limits[2]) - book.t
      if lacking > 0 then stands_in_the_way('tpm', lacking * 60000 / limits[2]) end
    end
    if limits[3] > 0 then
      redis.call('ZREMRANGEBYSCORE', leases, '-inf', number(now))
      if redis.call('ZCARD', leases) >= limits[3] then stands_in_the_way('concurrency', place_wait) end
    end
    local function budget(what, limit, used, asked, first_day_after)
      if limit > 0 and used + min(max(1, asked), limit) > limit then
        stands_in_the_way(what, first_day_after * DAY_MS - now)
      end
    end
    budget('tokens_per_day', limits[4], book.dt, tokens, today + 1)
    budget('gpu_seconds_per_day', limits[6], book.dg, gpu_ms, today + 1)
    budget('tokens_per_month', limits[5], book.mt, tokens, next_month_day)
    budget('gpu_seconds_per_month', limits[7], book.mg, gpu_ms, next_month_day)
  end
end

if kind == '-' and not is_known then
  for i = 1, num_subjects do
    local limits, book = all_limits[i], books[i]
    book.r, book.t = book.r - 1, book.t - tokens
    spend(book, tokens, gpu_ms)
    close_book(KEYS[2 * i + 1], limits, book)
    if limits[3] > 0 then
      redis.call('ZADD', KEYS[2 * i + 2], number(now + lease_ms), id)
      redis.call('PEXPIRE', KEYS[2 * i + 2], 2 * lease_ms)
    end
  end
  redis.call('SET', KEYS[2], tokens .. ' ' .. gpu_ms .. ' ' .. today, 'PX', record_ms)
end

local said = {kind, by, floor(wait + 0.999)}
for i = 1, num_subjects do
  local limits, book = all_limits[i], books[i]
  said[#said + 1] = limits[1] > 0 and max(0, floor(book.r)) or -1
  said[#said + 1] = limits[2] > 0 and max(0, floor(book.t)) or -1
  said[#said + 1] = limits[1] > 0 and floor((limits[1] - book.r) * 60000 / limits[1]) or 0
  said[#said + 1] = limits[2] > 0 and floor((limits[2] - book.t) * 60000 / limits[2]) or 0
end
return table.concat(said, ' ')
