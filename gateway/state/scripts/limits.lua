-- Counts the requests of a client key in all processes; LimitLedger in
-- gateway/api_keys/limit_ledger.py does the same, and says what each part is.
--
-- KEYS: the key's hash.  ARGV: the packed LimitAsk; unix seconds, or '' for those of Redis;
-- milliseconds until a key that is not used is forgotten.
-- Fields: 'turns', 'tokens', 'born'; 'p' and a process: its state; 'w', a window's name, '|' and the number
-- of a counter: what was used in it.
-- Returns the packed LimitAnswer.

local COUNTERS, PLACES, WAITS, REMEMBERED = 60, 10, 1, 3600
local SHARE_OF_FREE, SHARE_OF_LIMIT = 16, 100

local place = KEYS[1]
local process, number, held, wanted, spare, most, windows, uses = unpack(cmsgpack.unpack(ARGV[1]))
local now = tonumber(ARGV[2])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function gone_at(window, counter)
    return (counter + 1) * (window[2] / COUNTERS) + window[2]
end

-- What is known, without what is over.
local counters, by_name = {}, {}
for _, window in ipairs(windows) do
    counters[window[1]], by_name[window[1]] = {}, window
end
local others, another_waits, before = 0, false, nil
local turns, tokens, born = 0, 0, nil
local known = redis.call('HGETALL', place)
for at = 1, #known, 2 do
    local field, value = known[at], known[at + 1]
    local kind = string.sub(field, 1, 1)
    if field == 'turns' then
        turns = tonumber(value)
    elseif field == 'tokens' then
        tokens = tonumber(value)
    elseif field == 'born' then
        born = tonumber(value)
    elseif kind == 'w' then
        local name, counter = string.match(field, '^w(.*)|(-?%d+)$')
        counter = tonumber(counter)
        if by_name[name] then
            if gone_at(by_name[name], counter) <= now then
                redis.call('HDEL', place, field)
            else
                counters[name][counter] = tonumber(value)
            end
        end
    elseif kind == 'p' then
        local its_held, until_, its_number, granted, waits =
            string.match(value, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
        until_ = tonumber(until_)
        if until_ < now - REMEMBERED then
            redis.call('HDEL', place, field)
        elseif string.sub(field, 2) == process then
            before = {number = tonumber(its_number), granted = tonumber(granted)}
        else
            if until_ > now then
                others = others + tonumber(its_held)
            end
            another_waits = another_waits or tonumber(waits) > now
        end
    end
end

local function count(window, at, amount)
    local counter = math.floor(at / (window[2] / COUNTERS))
    if gone_at(window, counter) > now then
        local of_window = counters[window[1]]
        of_window[counter] = (of_window[counter] or 0) + amount
        local field = 'w' .. window[1] .. '|' .. string.format('%d', counter)
        redis.call('HINCRBY', place, field, amount)
    end
end

local function total(window)
    local sum = 0
    for _, amount in pairs(counters[window[1]]) do
        sum = sum + amount
    end
    return sum
end

local again = before and before.number == number
if not again then
    for _, use in ipairs(uses) do
        turns, tokens = turns + use[2], tokens + use[3]
        for _, window in ipairs(windows) do
            local amount = window[4] and use[3] or use[2]
            if amount ~= 0 then
                count(window, now - use[1], amount)
            end
        end
    end
end

-- What is free, and the smallest limit.
local free, share = 1e15, 1e15
if most >= 0 then
    free, share = most - others - held, most
end
for _, window in ipairs(windows) do
    local used = math.max(0, total(window))
    if not window[4] then
        free, share = math.min(free, window[3] - used), math.min(share, window[3])
    elseif used >= window[3] then
        free = 0
    end
end

local granted = 0
if again then
    granted = before.granted
else
    if free > 0 then
        granted = math.min(wanted, free)
        granted = granted + math.min(
            spare,
            math.floor((free - granted) / SHARE_OF_FREE),
            math.max(1, math.floor(share / SHARE_OF_LIMIT))
        )
    end
    turns = turns + granted
    if granted > 0 then
        for _, window in ipairs(windows) do
            if not window[4] then
                count(window, now, granted)
            end
        end
    end
end
free = free - granted

local function wait_for(window)
    local over = total(window) - window[3]
    if over < 0 then
        return 0
    end
    local numbers = {}
    for counter in pairs(counters[window[1]]) do
        numbers[#numbers + 1] = counter
    end
    table.sort(numbers)
    for _, counter in ipairs(numbers) do
        over = over - counters[window[1]][counter]
        if over < 0 then
            return gone_at(window, counter) - now
        end
    end
    return window[2]
end

local reached, wait = '', 0
if granted < wanted then
    if most >= 0 and others + granted + held >= most then
        reached = 'max_concurrent_turns'
    else
        for _, window in ipairs(windows) do
            local its_wait = wait_for(window)
            if its_wait > wait then
                reached, wait = window[1], its_wait
            end
        end
    end
end
local waits_until = reached == 'max_concurrent_turns' and now + WAITS or 0

if not born then
    born = now
    redis.call('HSET', place, 'born', string.format('%.6f', born))
    born = tonumber(string.format('%.6f', born))
end
redis.call(
    'HSET', place, 'turns', turns, 'tokens', tokens, 'p' .. process,
    string.format('%d %.6f %d %d %.6f', held + granted, now + PLACES, number, granted, waits_until)
)
redis.call('PEXPIRE', place, ARGV[3])

local used = {}
for at, window in ipairs(windows) do
    used[at] = math.max(0, total(window))
end
local wake = most >= 0 and free > 0 and another_waits
return cmsgpack.pack({
    granted, reached, wait, wake, others + held + granted, turns, tokens, used, born
})
