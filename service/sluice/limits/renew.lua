-- Says that a gateway is alive, and so are its calls.
-- KEYS: since when this server counts; the sorted set of gateways; then sorted sets of leases
-- ARGV: the gateway's id; life of a lease (ms), 1 where it was away; then for each set how many leases it has, and their ids
-- Says how many gateways are alive
local function keep(key, ids, life_ms, now)
  for first = 1, #ids, 1000 do
    local pairs_of = {}
    for i = first, min(first + 999, #ids) do
      pairs_of[#pairs_of + 1] = number(now + life_ms)
      pairs_of[#pairs_of + 1] = ids[i]
    end
    redis.call('ZADD', key, unpack(pairs_of))
  end
  redis.call('PEXPIRE', key, 2 * life_ms)
end

local life_ms, was_away = unpack(told, 1, 2)
redis.call('SET', KEYS[1], number(now) .. (was_away == 1 and ' lost' or ' new'), 'NX')
keep(KEYS[2], {ARGV[1]}, life_ms, now)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', number(now))
local at = 3
for i = 3, #KEYS do
  local ids = {}
  for j = 1, tonumber(ARGV[at]) do ids[j] = ARGV[at + j] end
  at = at + #ids + 1
  if #ids > 0 then keep(KEYS[i], ids, life_ms, now) end
end
return redis.call('ZCARD', KEYS[2])
