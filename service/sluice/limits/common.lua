-- What the scripts share. Time is this server's, so that replicas need not agree on it. All numbers of a subject's limits come
-- with each call, 0 for what is not limited, in the order: rpm, tpm, concurrency, tokens per day and month, GPU ms per day and
-- month; the last number is 1 where nobody may pass unchecked. A book is a line: what is left in the buckets of requests and of tokens, and when that was (ms); where there are
-- budgets also the day, the tokens and GPU ms that were spent on it, the month, and the same.
local floor, min, max = math.floor, math.min, math.max
local NUMBERS = 8
local DAY_MS = 86400000

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + time[2] / 1000
end

-- Howard Hinnant's civil_from_days, as far as months need it: months since year 0, and the day on which the next one begins
local function days_before(year, month)
  if month <= 2 then year = year - 1 end
  local era = floor(year / 400)
  local yoe = year - era * 400
  local doy = floor((153 * ((month + 9) % 12) + 2) / 5)
  return era * 146097 + yoe * 365 + floor(yoe / 4) - floor(yoe / 100) + doy - 719468
end

local function calendar(day)
  local z = day + 719468
  local era = floor(z / 146097)
  local doe = z - era * 146097
  local yoe = floor((doe - floor(doe / 1460) + floor(doe / 36524) - floor(doe / 146096)) / 365)
  local mp = floor((5 * (doe - (365 * yoe + floor(yoe / 4) - floor(yoe / 100))) + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400
  if month <= 2 then year = year + 1 end
  local next_year, next_month = year, month + 1
  if month == 12 then next_year, next_month = year + 1, 1 end
  return year * 12 + month - 1, days_before(next_year, next_month)
end

local now = clock()
local today = floor(now / DAY_MS)
local this_month, next_month_day -- known once a subject with budgets was opened

local function number(text)
  return string.format('%.17g', text)
end

-- How full a bucket is that is not known here. KEYS[1] says since when this server counts, and "lost" where a gateway came back
-- to it and found it empty: then, and always where nobody may pass unchecked, such a bucket began empty at that time.
local function filled(is_strict)
  local since = redis.call('GET', KEYS[1])
  if not since then
    redis.call('SET', KEYS[1], number(now) .. ' new')
    return is_strict and 0 or 1
  end
  local at, how = string.match(since, '^(%S+) (%S+)$')
  if how ~= 'lost' and not is_strict then return 1 end
  return min(1, (now - at) / 60000)
end

-- The book of a subject as it is now
local function open_book(key, limits)
  local book = { r = limits[1], t = limits[2], dt = 0, dg = 0, mt = 0, mg = 0 }
  local has_budgets = limits[4] + limits[5] + limits[6] + limits[7] > 0
  if has_budgets and not this_month then this_month, next_month_day = calendar(today) end
  local said = redis.call('GET', key)
  if not said then
    local share = filled(limits[8] == 1)
    book.r, book.t = share * limits[1], share * limits[2]
    return book
  end
  local r, t, at, rest = string.match(said, '^(%S+) (%S+) (%S+)(.*)$')
  local minutes = (now - at) / 60000
  book.r, book.t = min(limits[1], r + minutes * limits[1]), min(limits[2], t + minutes * limits[2])
  if has_budgets and rest ~= '' then
    local d, dt, dg, m, mt, mg = string.match(rest, '^ (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
    if tonumber(d) == today then book.dt, book.dg = tonumber(dt), tonumber(dg) end
    if tonumber(m) == this_month then book.mt, book.mg = tonumber(mt), tonumber(mg) end
  end
  return book
end

-- Kept until nothing in it matters any more: the month is over, or the buckets are full again
local function close_book(key, limits, book)
  local ttl = 60000
  if limits[1] > 0 then ttl = max(ttl, (limits[1] - book.r) * 60000 / limits[1]) end
  if limits[2] > 0 then ttl = max(ttl, (limits[2] - book.t) * 60000 / limits[2]) end
  local text = number(book.r) .. ' ' .. number(book.t) .. ' ' .. number(now)
  if limits[4] + limits[5] + limits[6] + limits[7] > 0 then
    if limits[4] > 0 or limits[6] > 0 then ttl = max(ttl, (today + 1) * DAY_MS - now) end
    if limits[5] > 0 or limits[7] > 0 then ttl = max(ttl, next_month_day * DAY_MS - now) end
    text = table.concat({text, today, number(book.dt), number(book.dg), this_month, number(book.mt), number(book.mg)}, ' ')
  end
  redis.call('SET', key, text, 'PX', floor(ttl) + 60000)
end

local function spend(book, tokens, gpu_ms)
  book.dt, book.mt = max(0, book.dt + tokens), max(0, book.mt + tokens)
  book.dg, book.mg = max(0, book.dg + gpu_ms), max(0, book.mg + gpu_ms)
end

-- The numbers that a script is told, all in one text: many arguments are dear for the one who sends them
local told = {}
for word in string.gmatch(ARGV[2], '%S+') do told[#told + 1] = tonumber(word) end

local function limits_of(subject)
  local limits, first = {}, 5 + (subject - 1) * NUMBERS
  for i = 1, NUMBERS do limits[i] = told[first + i] end
  return limits
end
