-- For wrk, against clotho-stub: streams of 100 events of about 200 bytes, a step every 10 ms. Counting whole answers
-- costs a client far less than reading them event by event; what is asked for is what there is to measure.
wrk.method = "POST"
wrk.path = "/v1/sample"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"prompt": "us=' .. (os.getenv("STEP_US") or "10000") ..
    ' text=110", "particles": 1, "max_tokens": 100, "seed": 1, "events": ["particles"]}'

local threads = {}

function setup(thread)
    table.insert(threads, thread)
end

function init()
    refused, torn = 0, 0
end

function response(status, _, body)
    if status ~= 200 then
        refused = refused + 1
    elseif not body:find('"event":"done"', -400, true) then
        torn = torn + 1
    end
end

function done(summary, latency)
    local refused, torn = 0, 0
    for _, thread in ipairs(threads) do
        refused, torn = refused + thread:get("refused"), torn + thread:get("torn")
    end
    local e, seconds = summary.errors, summary.duration / 1e6
    local whole = summary.requests - refused - torn
    io.write(string.format('{"seconds": %.2f, "whole": %d, "refused": %d, "torn": %d, "socket_errors": %d, ' ..
        '"events_per_second": %.0f, "bytes_per_event": %.0f, "p50_seconds": %.3f, "p99_seconds": %.3f}\n',
        seconds, whole, refused, torn, e.connect + e.read + e.write + e.timeout, whole * 100 / seconds,
        summary.bytes / math.max(whole, 1) / 100, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
