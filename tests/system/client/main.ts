/*
 * Uses the service as a program would, through a client made from openapi.yaml with nothing
 * written by hand. Usage: node build/js/main.js SERVICE ORIGIN
 *
 * ORIGIN answers /bytes/N?t=TOKEN with N bytes, /status/N with that status, and /delay/N after N
 * seconds.
 */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import createClient from "openapi-fetch";
import type { components, paths } from "./build/api.js";

type Batch = components["schemas"]["Batch"];
type Problem = components["schemas"]["Problem"];
type Request = components["schemas"]["Request"];
type Result = components["schemas"]["Result"];
type ResultList = components["schemas"]["ResultList"];
type Submission = components["schemas"]["Submission"];

const [service, origin] = process.argv.slice(2);
assert(service && origin, "usage: main.js SERVICE ORIGIN");

const client = createClient<paths, "application/json" | "application/problem+json">({
    baseUrl: service,
    // As openapi.yaml has them: lists with commas, objects as parameters of their own.
    querySerializer: {
        array: { style: "form", explode: false },
        object: { style: "form", explode: true },
    },
});

/** The answer, or the problem as an exception. */
function ok<T>(answer: { data?: T; error?: Problem | undefined; response: Response }): T {
    if (answer.error !== undefined) {
        const places = answer.error.errors?.map((e) => e.pointer ?? e.parameter ?? e.line);
        throw new Error(`${answer.error.type}: ${answer.error.detail} (${places})`);
    }
    assert(answer.response.ok && answer.data !== undefined);
    return answer.data;
}

async function ended(id: string): Promise<Batch> {
    for (;;) {
        const batch = ok(
            await client.GET("/v1/batches/{id}", { params: { path: { id }, query: { wait: 20 } } }),
        );
        const { total, ...parts } = batch.request_counts;
        assert.equal(Object.values(parts).reduce((sum, n) => sum + n), total);
        if (batch.status === "completed" || batch.status === "cancelled") {
            return batch;
        }
    }
}

async function* results(id: string, limit: number): AsyncGenerator<Result> {
    let after: string | null = null;
    for (;;) {
        const page: ResultList = ok(
            await client.GET("/v1/batches/{id}/results", {
                params: {
                    path: { id },
                    query: { limit, include: ["body", "headers"], ...(after && { after }) },
                },
            }),
        );
        assert(page.data.length <= limit);
        yield* page.data;
        if (!page.has_more) {
            return;
        }
        assert(page.next !== null && page.next !== after);
        after = page.next;
    }
}

async function submitAndRead(): Promise<string> {
    const requests: Request[] = [
        { url: `${origin}/bytes/1000?t=one`, custom_id: "one", headers: { Accept: "*/*" } },
        { url: `${origin}/bytes/10?t=two`, custom_id: "two", max_attempts: 2 },
        { url: `${origin}/echo`, method: "POST", body: "hello" },
        { url: `${origin}/status/404`, timeout_ms: 5000 },
        { url: "http://127.0.0.1:1/" },
    ];
    const submission = {
        params: { header: { "Idempotency-Key": randomUUID() } },
        body: { name: "from TypeScript", limits: { max_per_host: 2, rate_per_host: 1000 },
            priority: 7, http_version: "2" as const, retry: { on_status: [429, 503] }, requests },
    };
    const first = await client.POST("/v1/batches", submission);
    const batch = ok(first);
    assert.equal(first.response.status, 202);
    assert.equal(first.response.headers.get("Location"), `/v1/batches/${batch.id}`);
    assert.equal(batch.limits.max_per_host, 2);
    assert.equal(batch.limits.rate_per_host, 1000);
    assert.deepEqual([batch.priority, batch.http_version], [7, "2"]);
    assert.deepEqual([batch.retry.max_attempts, batch.retry.on_status], [3, [429, 503]]);

    const again = await client.POST("/v1/batches", submission);
    assert.equal(ok(again).id, batch.id);
    assert.equal(again.response.headers.get("Idempotent-Replayed"), "true");

    const done = await ended(batch.id);
    assert.equal(done.status, "completed");
    assert.deepEqual([done.request_counts.succeeded, done.request_counts.failed], [3, 2]);

    const all: Result[] = [];
    for await (const result of results(batch.id, 2)) {
        all.push(result);
    }
    all.sort((a, b) => a.index - b.index);
    assert.deepEqual(all.map((r) => r.index), [0, 1, 2, 3, 4]);
    assert.deepEqual(all.map((r) => r.custom_id), ["one", "two", null, null, null]);
    assert.deepEqual(all.map((r) => r.error?.code), [
        undefined, undefined, undefined, "http_status", "connect",
    ]);
    assert.equal(all[1]?.body, "two|two|tw");
    assert.deepEqual(all[1]?.headers?.["content-length"], ["10"]);
    assert(all.every((r) => r.timing.total_ms >= 0 && Date.parse(r.completed_at) > 0));

    const one = ok(
        await client.GET("/v1/batches/{id}/results/{index}", {
            params: { path: { id: batch.id, index: 3 } },
        }),
    );
    assert.equal(one.http_status, 404);
    assert.equal(one.headers["content-length"]?.[0], String(one.body_bytes));
    return batch.id;
}

async function download(id: string): Promise<void> {
    const path = { id, index: 0 };
    const url = "/v1/batches/{id}/results/{index}/body";
    const whole = await client.GET(url, { params: { path }, parseAs: "arrayBuffer" });
    const bytes = Buffer.from(ok(whole));
    assert.equal(bytes.toString("latin1"), "one|".repeat(250));

    const header = { Range: "bytes=996-" };
    const part = await client.GET(url, { params: { path, header }, parseAs: "text" });
    assert.equal(part.response.status, 206);
    assert.equal(ok(part), "one|");
    assert.equal(part.response.headers.get("Content-Range"), "bytes 996-999/1000");

    const beyond = await client.GET(url, { params: { path, header: { Range: "bytes=1000-" } } });
    assert.equal(beyond.error?.type, "/problems/range-not-satisfiable");
    assert.equal(beyond.error?.errors?.[0]?.header, "Range");
    assert.equal(beyond.response.headers.get("Content-Range"), "bytes */1000");
}

async function stream(id: string): Promise<void> {
    const answer = await client.GET("/v1/batches/{id}/results", {
        params: { path: { id }, query: { order: "index" } },
        headers: { Accept: "application/x-ndjson" },
        parseAs: "text",
    });
    const lines = ok(answer).trimEnd().split("\n");
    assert.deepEqual(lines.map((line) => (JSON.parse(line) as Result).index), [0, 1, 2, 3, 4]);
}

async function problems(): Promise<void> {
    const id = "b_000000000000000000000000000000000000";
    const unknown = await client.GET("/v1/batches/{id}", { params: { path: { id } } });
    assert.equal(unknown.data, undefined);
    assert.equal(unknown.response.status, 404);
    assert.equal(unknown.error?.type, "/problems/not-found");

    const wrong = await client.POST("/v1/batches", {
        body: { requests: [{ url: `${origin}/`, timeout_ms: 0 }] },
    });
    assert.equal(wrong.error?.type, "/problems/invalid-field");
    assert.equal(wrong.error?.status, 422);
    assert.equal(wrong.error?.errors?.[0]?.pointer, "/requests/0/timeout_ms");

    // What openapi.yaml forbids, the compiler refuses.
    // @ts-expect-error: an unknown member
    const body: Submission = { urls: [`${origin}/`], timeout: 1 };
    const forbidden = await client.POST("/v1/batches", { body });
    assert.equal(forbidden.error?.errors?.[0]?.pointer, "/timeout");
}

/** A list as text with settings in the query; then it is cancelled and deleted. */
async function cancelAndDelete(): Promise<void> {
    const batch = ok(
        await client.POST("/v1/batches", {
            params: {
                query: {
                    name: "slow",
                    "limits.max_parallel": 1,
                    "defaults.timeout_ms": 60000,
                    "defaults.headers": { "defaults.headers.X-Test": "a b" },
                    metadata: { "metadata.job": "42" },
                },
            },
            headers: { "Content-Type": "text/plain" },
            body: `# slow ones\n${`${origin}/delay/30\n`.repeat(5)}`,
            bodySerializer: (text) => text as string,
        }),
    );
    assert.deepEqual(batch.metadata, { job: "42" });
    assert.equal(batch.limits.max_parallel, 1);
    const path = { id: batch.id };

    const cancelled = await client.POST("/v1/batches/{id}/cancel", { params: { path } });
    assert(["cancelling", "cancelled"].includes(ok(cancelled).status));
    const done = await ended(batch.id);
    assert.equal(done.status, "cancelled");
    assert.equal(done.request_counts.cancelled, 5);

    const twice = await client.POST("/v1/batches/{id}/cancel", { params: { path } });
    assert.equal(twice.error?.type, "/problems/conflict");

    const listed = ok(await client.GET("/v1/batches", { params: { query: { limit: 1 } } }));
    assert.equal(listed.data[0]?.id, batch.id);
    const deleted = await client.DELETE("/v1/batches/{id}", { params: { path } });
    assert.equal(deleted.response.status, 204);
    const gone = await client.GET("/v1/batches/{id}", { params: { path } });
    assert.equal(gone.error?.status, 404);
}

assert.equal(ok(await client.GET("/healthz")).status, "ok");
const id = await submitAndRead();
await download(id);
await stream(id);
await problems();
await cancelAndDelete();
console.log("everything works");
