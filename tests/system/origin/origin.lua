-- What the origin answers, and how it counts the requests in flight.
--
-- The count goes up when a request's header has been read, and down just BEFORE the last bytes of
-- its answer are sent. So the time counted lies strictly within the time in which the client has
-- the request in flight, whatever the two workers do: a count above a limit proves that the client
-- broke it. (Counting down in the log phase would be too late: the client may have the answer and
-- start its next request on the other worker before.) It does not hold for requests that the
-- client gives up, as the origin learns of that later; tests of limits have none.
--
-- The greatest count is kept per worker, as there is no atomic maximum between them; whoever reads
-- takes the greater one.

local active = ngx.shared.active
local flights = ngx.shared.flights
local peaks = ngx.shared.peaks
local tries = ngx.shared.tries

local M = {}

-- How often everything was reset.
local function generation()
    return active:get("generation") or 0
end

local function up(key, worker)
    local n = active:incr(key, 1, 0)
    local peak = "peak:" .. worker .. ":" .. key
    local most = peaks:get(peak)
    if not most or n > most then
        peaks:set(peak, n)
    end
end

function M.enter()
    ngx.update_time()
    peaks:add("first_at", ngx.now())
    peaks:incr("arrivals", 1, 0)
    local worker = ngx.worker.id()
    ngx.ctx.host = ngx.var.host
    ngx.ctx.generation = generation()
    ngx.var.generation = ngx.ctx.generation
    ngx.ctx.flight = ngx.var.remote_addr .. ":" .. ngx.var.remote_port
    flights:incr(ngx.ctx.flight, 1, 0)
    up("*", worker)
    up(ngx.ctx.host, worker)
end

-- Before the last bytes go out; the log phase calls it too, for requests that broke off.
function M.leave()
    local host = ngx.ctx.host
    if host then
        ngx.ctx.host = nil
        if ngx.ctx.generation ~= generation() then
            return -- a reset has forgotten it
        end
        active:incr("*", -1)
        active:incr(host, -1)
        if flights:incr(ngx.ctx.flight, -1) == 0 then
            flights:delete(ngx.ctx.flight)
        end
    end
end

local function quote(s)
    local escape = function(c) return string.format("\\u%04x", c:byte()) end
    return '"' .. s:gsub('[%c"\\]', escape) .. '"'
end

function M.state()
    local out = {}
    for _, key in ipairs(peaks:get_keys(0)) do
        out[#out + 1] = quote(key) .. ":" .. tostring(peaks:get(key))
    end
    for _, key in ipairs(active:get_keys(0)) do
        out[#out + 1] = quote("active:" .. key) .. ":" .. tostring(active:get(key))
    end
    ngx.header.content_type = "application/json"
    ngx.print("{", table.concat(out, ","), "}")
end

-- The connections whose requests are in flight, as addresses of the client.
function M.flights()
    ngx.print(table.concat(flights:get_keys(0), "\n"))
end

function M.reset()
    local next = generation() + 1
    active:flush_all()
    flights:flush_all()
    peaks:flush_all()
    tries:flush_all()
    active:set("generation", next)
    ngx.print(next)
end

-- The whole answer, or the end of one.
local function finish(data)
    M.leave()
    if data and #data > 0 then
        ngx.print(data)
    end
end

local function whole(data)
    ngx.header.content_length = #data
    finish(data)
end

-- N bytes that differ from URL to URL: ?t=TOKEN is repeated. content() of origin.py is the same.
local function content(n)
    local unit = (ngx.var.arg_t or "batchfetch") .. "|"
    return unit:rep(math.ceil(n / #unit)):sub(1, n)
end

local routes = {}

function routes.bytes(arg)
    ngx.header.content_type = "application/octet-stream"
    whole(content(tonumber(arg)))
end

function routes.gzip(arg)
    ngx.header.content_type = "text/plain"
    finish(content(tonumber(arg)))
end

function routes.text()
    ngx.header.content_type = "text/plain; charset=utf-8"
    whole("grüße " .. (ngx.var.arg_t or ""))
end

function routes.type()
    ngx.header.content_type = ngx.unescape_uri(ngx.var.arg_type or "")
    whole("<script>alert(1)</script>")
end

function routes.status(arg)
    ngx.status = tonumber(arg)
    whole((arg == "204" or arg == "304") and "" or "status " .. arg)
end

function routes.delay(arg)
    ngx.sleep(tonumber(arg))
    ngx.header.content_type = "text/plain"
    whole("after " .. arg .. " s")
end

-- This Lua module can neither read a body over HTTP/2 that has no Content-Length, nor its header as
-- it came.
local function is_h2()
    return ngx.req.http_version() == 2
end

local function read_body()
    if not is_h2() or ngx.var.http_content_length then
        ngx.req.read_body()
    end
    return ngx.req.get_body_data() or ""
end

local function raw_header()
    if not is_h2() then
        return ngx.req.raw_header()
    end
    local lines = {ngx.req.get_method() .. " " .. ngx.var.request_uri .. " HTTP/2"}
    for name, value in pairs(ngx.req.get_headers(0)) do
        for _, one in ipairs(type(value) == "table" and value or {value}) do
            lines[#lines + 1] = name .. ": " .. one
        end
    end
    return table.concat(lines, "\r\n") .. "\r\n\r\n"
end

function routes.echo()
    local body = read_body()
    ngx.header.content_type = "application/json"
    whole(string.format('{"method":%s,"uri":%s,"head":%s,"body":%s}', quote(ngx.req.get_method()),
                        quote(ngx.var.request_uri), quote(ngx.encode_base64(raw_header())),
                        quote(ngx.encode_base64(body))))
end

local function redirect(to, status)
    read_body()
    ngx.status = status
    ngx.header.location = to
    whole("to " .. to)
end

-- /redirect/N: N hops, then /echo.
function routes.redirect(arg)
    local n = tonumber(arg)
    redirect(n <= 1 and "/echo" or "/redirect/" .. (n - 1), tonumber(ngx.var.arg_status) or 302)
end

routes["redirect-to"] = function()
    redirect(ngx.unescape_uri(ngx.var.arg_url), tonumber(ngx.var.arg_status) or 302)
end

function routes.loop()
    redirect("/loop", 302)
end

-- /flaky/N/TOKEN: the first N requests with this token fail.
function routes.flaky(arg)
    local n, token = arg:match("^(%d+)/(.+)$")
    local try = tries:incr(token, 1, 0)
    if try > tonumber(n) then
        return whole("try " .. try)
    end
    ngx.status = tonumber(ngx.var.arg_status) or 503
    if ngx.var.arg_after then
        ngx.header.retry_after = ngx.unescape_uri(ngx.var.arg_after)
    end
    whole("not yet")
end

-- /dying/TOKEN: fails the first time, and never answers again.
function routes.dying(token)
    if tries:incr(token, 1, 0) > 1 then
        return ngx.sleep(600)
    end
    ngx.status = 504
    ngx.header.retry_after = ngx.var.arg_after
    whole("not yet")
end

function routes.headers(arg)
    for i = 1, tonumber(arg) do
        ngx.header["X-Header-" .. i] = "value " .. i
    end
    ngx.header["Set-Cookie"] = {"a=1; Path=/", "b=2", "a=3"}
    whole("headers")
end

-- /slow-body/N: N pieces of 1,000 bytes, 20 ms apart.
routes["slow-body"] = function(arg)
    local n = tonumber(arg)
    for i = 1, n do
        if i == n then
            M.leave()
        end
        ngx.print(string.rep(string.char(96 + i % 26), 1000))
        ngx.flush(true)
        ngx.sleep(0.02)
    end
end

function M.serve()
    local name, arg = ngx.var.uri:match("^/([%w-]+)/?(.*)$")
    local route = routes[name]
    if route then
        return route(arg)
    end
    ngx.status = 404
    whole("no such route")
end

return M
