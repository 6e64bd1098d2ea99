-- The records of a conversation, from one response back to the root.
--
-- ARGV: the prefix of all keys; the digest of a response, or ''; else the key of a record and its
-- conversation; the most records; how long a conversation is kept after its last use, and how
-- often that is noted, in milliseconds.
-- Returns keys and values in turn, the latest record first.

local prefix, response, record, conversation = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local most, lifetime, often = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local function used(place)
    local left = redis.call('PTTL', place)
    if left >= 0 and left < lifetime - often then
        redis.call('PEXPIRE', place, lifetime)
    end
end

-- A value begins with another key, behind its length.
local function split(value)
    local length = string.byte(value)
    return string.sub(value, 2, length + 1), string.sub(value, length + 2)
end

if response ~= '' then
    local place = prefix .. 'responses:' .. response
    local found = redis.call('GET', place)
    if not found then
        return {}
    end
    record, conversation = split(found)
    used(place)
end

local place = prefix .. 'conversation:' .. conversation
used(place)
local found = {}
while record ~= '' and #found < 2 * most do
    local value = redis.call('HGET', place, 'k' .. record)
    if not value then
        break
    end
    found[#found + 1] = record
    record, found[#found + 1] = split(value)
end
return found
