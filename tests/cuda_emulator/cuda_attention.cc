/* cuda_attention.cc - a program: the CUDA attention kernels and the sampler, emulated (tests/cuda_emulator/emulate.h), against the plain
 * reference kernels and the processor's sampler: random tables of segments with shared parents, windows, grouped heads, odd
 * widths, rows that no segment names. Every call runs twice and must give the same bits. `make test` builds and runs it.
 *
 * Tolerances, relative to the largest value of a tensor: f32 1e-4, sums in another order and exp2f; bf16 1e-2, probabilities
 * and score gradients are rounded to bf16 (2^-9) before they are summed. */
#include "cuda/device.cuh"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" {
#define OP(name) int sz_cuda_##name(const sz_call *c); int sz_ref_##name(const sz_call *c);
OP(attention) OP(attention_cross) OP(attention_backward) OP(attention_cross_backward) OP(attention_cached)
int sz_cuda_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen, const int64_t *row_id,
                   const int32_t *answer_id, const int32_t *position, int32_t *token, float *logprob);
/* What the reference kernels and the sampler use of the core, whose messages device.cu has here. */
static std::vector<void *> workspace;
void *sz_scratch(size_t bytes) { workspace.push_back(aligned_alloc(64, (bytes + 127) / 64 * 64)); return workspace.back(); }
void sz_scratch_begin(void) {}
void sz_scratch_end(void) {}
const sz_backend *sz_device;
/* random.c asks for these to fill a tensor on a device, which nothing here does. */
sz_tensor *sz_tensor_new_heap(int, int, const int64_t *, int) { abort(); }
int sz_tensor_copy(sz_tensor *, sz_tensor *) { abort(); }
void sz_tensor_release(sz_tensor *) { abort(); }
}

static uint64_t state = 1;
static uint32_t dice(uint32_t n)        /* 0 .. n - 1 */
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((state >> 33) % n);
}
static float normal()
{
    double u = (dice(1 << 30) + 1.0) / ((1 << 30) + 1.0), v = dice(1 << 30) / (double)(1 << 30);
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static int failures;
static void expect(bool ok, const char *what, const char *where, double got)
{
    if (!ok) fprintf(stderr, "FAILED: %s: %s (%g)\n", where, what, got);
    failures += !ok;
}

/* A host tensor [n, m] of random numbers (uninitialised outputs: NaN), and its copy on the device. */
struct pair { sz_tensor host, device; };
static sz_tensor tensor(int dtype, int64_t n, int64_t m)
{
    sz_tensor t;
    memset(&t, 0, sizeof t);
    t.dtype = (int8_t)dtype, t.ndim = 2, t.shape[0] = n, t.shape[1] = m, t.numel = n * m;
    return t;
}
static pair make(int dtype, int64_t n, int64_t m, bool random)
{
    pair p = { tensor(dtype, n, m), tensor(dtype, n, m) };
    p.host.data = malloc(sz_bytes(&p.host) + 1);
    p.device.data = sz_cuda_allocate(sz_bytes(&p.host));
    memset(p.host.data, 0xff, sz_bytes(&p.host));
    for (int64_t i = 0; random && i < n * m; i++) sz_put(&p.host, i, normal());
    if (sz_bytes(&p.host)) sz_cuda_to_device(p.device.data, p.host.data, sz_bytes(&p.host));
    return p;
}
static void drop(pair *p)
{
    free(p->host.data);
    sz_cuda_release(p->device.data);
}

static double worst[2];
static void compare(const pair *p, const char *what, const char *where)
{
    sz_tensor got = p->host;
    got.data = malloc(sz_bytes(&got) + 1);
    if (sz_bytes(&got)) sz_cuda_to_host(got.data, p->device.data, sz_bytes(&got));
    double largest = 0, error = 0;
    for (int64_t i = 0; i < got.numel; i++) {
        double x = sz_get(&got, i), y = sz_get(&p->host, i);
        if (x == y) continue;
        if (!(fabs(x - y) <= error)) error = fabs(x - y);
        if (std::isnan(x) || std::isinf(x) || std::isinf(y)) error = INFINITY;
    }
    for (int64_t i = 0; i < got.numel; i++) if (!std::isinf(sz_get(&p->host, i))) largest = fmax(largest, fabs((double)sz_get(&p->host, i)));
    error = error == 0 ? 0 : error / (largest + 1e-3);
    bool f32 = p->host.dtype == SZ_F32 && !strstr(where, "bf16");
    worst[!f32] = fmax(worst[!f32], error);
    expect(error <= (f32 ? 1e-4 : 1e-2), what, where, error);
    free(got.data);
}

static void run_twice(int (*op)(const sz_call *), const sz_call *c, const char *where)
{
    expect(op(c) == 0, "runs", where, 0);
    std::vector<std::vector<char>> first;
    for (int i = 0; i < SZ_MAX_OUT && c->out[i]; i++) {
        size_t bytes = sz_bytes(c->out[i]);
        first.emplace_back(bytes + 1);
        if (bytes) sz_cuda_to_host(first.back().data(), c->out[i]->data, bytes);
        if (bytes) sz_cuda_fill(c->out[i]->data, 0xff, bytes);
    }
    expect(op(c) == 0, "runs again", where, 0);
    for (int i = 0; i < SZ_MAX_OUT && c->out[i]; i++) {
        size_t bytes = sz_bytes(c->out[i]);
        std::vector<char> again(bytes + 1);
        if (bytes) sz_cuda_to_host(again.data(), c->out[i]->data, bytes);
        expect(memcmp(first[(size_t)i].data(), again.data(), bytes) == 0, "gives the same bits again", where, i);
    }
}

typedef std::vector<int32_t> table;
static void segment(table &t, int q, int ql, int k, int kl, int p, int pl) { t.insert(t.end(), { q, ql, k, kl, p, pl }); }
static sz_tensor table_tensor(table &t)
{
    sz_tensor s = tensor(SZ_I32, (int64_t)t.size() / 6, 6);
    s.data = t.data();
    return s;
}

/* rows of queries and keys, the same for the packed form */
struct shape { const char *name; table segments; int queries, keys, h, g, d; bool causal; };

/* Prompts with answers that share them, as the trainer packs them; the last `spare` rows belong to nobody. */
static shape packed_text(const char *name, int prompts, int prompt, int answers, int answer, int spare, int h, int g, int d)
{
    shape s = { name, {}, 0, 0, h, g, d, true };
    int at = 0;
    for (int i = 0; i < prompts; i++) {
        int p = at, n = prompt + 7 * i;
        segment(s.segments, p, n, p, n, 0, 0);
        at += n;
        for (int j = 0; j < answers; j++) {
            int m = (answer + 5 * j) % (2 * answer);
            segment(s.segments, at, m, at, m, p, n);
            at += m;
        }
    }
    s.queries = s.keys = at + spare;
    return s;
}
static shape windows(const char *name, int count, int size, int padding, int h, int d)
{
    shape s = { name, {}, 0, 0, h, h, d, false };
    int at = 0;
    for (int i = 0; i < count; i++) {
        int lacks = padding ? (int)dice((uint32_t)padding + 1) : 0, n = size - lacks;
        segment(s.segments, at, n, at, n, count * size, lacks);
        at += n;
    }
    s.queries = s.keys = count * size + padding;
    return s;
}

static void test_packed(const shape &s, int dtype)
{
    char where[200];
    snprintf(where, sizeof where, "attention, %s, %s", s.name, dtype == SZ_F32 ? "f32" : "bf16");
    table t = s.segments;
    sz_tensor segments = table_tensor(t);
    pair qkv = make(dtype, s.queries, (s.h + 2 * s.g) * s.d, true), out = make(dtype, s.queries, s.h * s.d, false), lse = make(SZ_F32, s.h, s.queries, false);
    pair dout = make(dtype, s.queries, s.h * s.d, true), dqkv = make(dtype, s.queries, (s.h + 2 * s.g) * s.d, false);
    double args[5] = { (double)s.h, (double)s.g, (double)s.d, (double)s.causal, 1 / sqrt((double)s.d) };
    sz_call c = {}, ref = {};
    memcpy(c.args, args, sizeof args);
    ref = c;
    c.in[0] = &qkv.device, c.in[1] = &segments, c.out[0] = &out.device, c.out[1] = &lse.device;
    ref.in[0] = &qkv.host, ref.in[1] = &segments, ref.out[0] = &out.host, ref.out[1] = &lse.host;
    sz_ref_attention(&ref);
    run_twice(sz_cuda_attention, &c, where);
    compare(&out, "out", where);
    compare(&lse, "lse", where);
    c.in[2] = &out.device, c.in[3] = &lse.device, c.in[4] = &dout.device, c.out[0] = &dqkv.device, c.out[1] = NULL;
    ref.in[2] = &out.host, ref.in[3] = &lse.host, ref.in[4] = &dout.host, ref.out[0] = &dqkv.host, ref.out[1] = NULL;
    sz_ref_attention_backward(&ref);
    run_twice(sz_cuda_attention_backward, &c, where);
    compare(&dqkv, "dqkv", where);
    for (pair *p : { &qkv, &out, &lse, &dout, &dqkv }) drop(p);
}

static void test_cross(const shape &s, int dtype)
{
    char where[200];
    snprintf(where, sizeof where, "attention_cross, %s, %s", s.name, dtype == SZ_F32 ? "f32" : "bf16");
    table t = s.segments;
    sz_tensor segments = table_tensor(t);
    pair q = make(dtype, s.queries, s.h * s.d, true), k = make(dtype, s.keys, s.g * s.d, true), v = make(dtype, s.keys, s.g * s.d, true);
    pair out = make(dtype, s.queries, s.h * s.d, false), lse = make(SZ_F32, s.h, s.queries, false), dout = make(dtype, s.queries, s.h * s.d, true);
    pair dq = make(dtype, s.queries, s.h * s.d, false), dk = make(dtype, s.keys, s.g * s.d, false), dv = make(dtype, s.keys, s.g * s.d, false);
    sz_call c = {}, ref;
    double args[5] = { (double)s.h, (double)s.g, (double)s.d, (double)s.causal, 1 / sqrt((double)s.d) };
    memcpy(c.args, args, sizeof args);
    ref = c;
    c.in[0] = &q.device, c.in[1] = &k.device, c.in[2] = &v.device, c.in[3] = &segments, c.out[0] = &out.device, c.out[1] = &lse.device;
    ref.in[0] = &q.host, ref.in[1] = &k.host, ref.in[2] = &v.host, ref.in[3] = &segments, ref.out[0] = &out.host, ref.out[1] = &lse.host;
    sz_ref_attention_cross(&ref);
    run_twice(sz_cuda_attention_cross, &c, where);
    compare(&out, "out", where);
    compare(&lse, "lse", where);
    c.in[4] = &out.device, c.in[5] = &lse.device, c.in[6] = &dout.device, c.out[0] = &dq.device, c.out[1] = &dk.device, c.out[2] = &dv.device;
    ref.in[4] = &out.host, ref.in[5] = &lse.host, ref.in[6] = &dout.host, ref.out[0] = &dq.host, ref.out[1] = &dk.host, ref.out[2] = &dv.host;
    sz_ref_attention_cross_backward(&ref);
    run_twice(sz_cuda_attention_cross_backward, &c, where);
    compare(&dq, "dq", where);
    compare(&dk, "dk", where);
    compare(&dv, "dv", where);
    for (pair *p : { &q, &k, &v, &out, &lse, &dout, &dq, &dk, &dv }) drop(p);
}

/* columns: how much wider q is than its heads */
static void test_cached(const shape &s, int columns, int dtype)
{
    char where[200];
    snprintf(where, sizeof where, "attention_cached, %s, %s", s.name, dtype == SZ_F32 ? "f32" : "bf16");
    table t = s.segments;
    sz_tensor segments = table_tensor(t);
    pair q = make(dtype, s.queries, s.h * s.d + columns, true), k = make(dtype, s.keys, s.g * s.d, true), v = make(dtype, s.keys, s.g * s.d, true);
    pair out = make(dtype, s.queries, s.h * s.d, false);
    sz_call c = {}, ref;
    double args[5] = { (double)s.h, (double)s.g, (double)s.d, (double)s.causal, 1 / sqrt((double)s.d) };
    memcpy(c.args, args, sizeof args);
    ref = c;
    c.in[0] = &q.device, c.in[1] = &k.device, c.in[2] = &v.device, c.in[3] = &segments, c.out[0] = &out.device;
    ref.in[0] = &q.host, ref.in[1] = &k.host, ref.in[2] = &v.host, ref.in[3] = &segments, ref.out[0] = &out.host;
    sz_ref_attention_cached(&ref);
    run_twice(sz_cuda_attention_cached, &c, where);
    compare(&out, "out", where);
    /* The next layer of a step: the same table, by content, takes nothing to the device. */
    table copy = t;
    sz_tensor again = table_tensor(copy);
    c.in[3] = &again;
    const unsigned long before = sz_emu_counts()->uploads;
    expect(sz_cuda_attention_cached(&c) == 0, "runs with a copy of its table", where, 0);
    expect(sz_emu_counts()->uploads == before, "uploads a table that is on the device", where, (double)(sz_emu_counts()->uploads - before));
    /* Another table, unless an earlier case left it there: then the next. */
    unsigned long more = 0;
    bool another = false;
    while (!copy.empty() && copy[1] > 1 && more == 0) {
        copy[1]--;
        another = true;
        expect(sz_cuda_attention_cached(&c) == 0, "runs with another table", where, 0);
        more = sz_emu_counts()->uploads - before;
    }
    expect(!another || more == 2, "uploads another table and its plan", where, (double)more);
    for (pair *p : { &q, &k, &v, &out }) drop(p);
}

static shape random_table(int d)
{
    static char name[100];
    int g = 1 + (int)dice(3), share = 1 + (int)dice(4);
    shape s = { name, {}, 0, 150, g * share, g, d, dice(2) == 0 };
    snprintf(name, sizeof name, "random table, h %d g %d d %d causal %d", s.h, s.g, d, s.causal);
    for (int i = 0, n = (int)dice(7); i < n; i++) {
        int ql = (int)dice(3) == 0 ? (int)dice(2) : (int)dice(60), kl = (int)dice(5) == 0 ? 0 : (int)dice(100), pl = (int)dice(2) * (int)dice(100);
        s.queries += (int)dice(3);
        segment(s.segments, s.queries, ql, (int)dice((uint32_t)(151 - kl)), kl, (int)dice((uint32_t)(151 - pl)), pl);
        s.queries += ql;
    }
    return s;
}

static shape decoding(const char *name, int groups, int prompt, int answers, int h, int g, int d)
{
    shape s = { name, {}, 0, 0, h, g, d, true };
    for (int i = 0; i < groups; i++) {
        int p = s.keys;
        s.keys += prompt;
        for (int j = 0; j < answers; j++) {
            int room = 40 + (int)dice(200);
            segment(s.segments, s.queries++, 1, s.keys, 1 + (int)dice((uint32_t)room), p, prompt);
            s.keys += room;
        }
    }
    return s;
}

/* Tokens must be the same: the seed is fixed, and no random number of it falls within the rounding of a sum. */
static void test_sample(int rows, int vocab, float temperature, int top_k, float top_p, float penalty, bool ties, bool ban)
{
    char where[200];
    snprintf(where, sizeof where, "sample, %d tokens, temperature %g, top-k %d, top-p %g, penalty %g%s%s", vocab, (double)temperature, top_k,
             (double)top_p, (double)penalty, ties ? ", ties" : "", ban ? ", banned" : "");
    pair logits = make(SZ_F32, rows, vocab, true);
    std::vector<uint8_t> banned((size_t)vocab), seen((size_t)rows * (size_t)vocab);
    for (uint8_t &b : banned) b = dice(3) == 0;
    for (uint8_t &b : seen) b = dice(10) == 0;
    for (int64_t i = 0; i < logits.host.numel; i++) {
        float x = 3 * sz_f32(&logits.host)[i];
        sz_f32(&logits.host)[i] = ties ? roundf(2 * x) / 2 : i % 97 == 0 ? -INFINITY : x;
    }
    sz_cuda_to_device(logits.device.data, logits.host.data, sz_bytes(&logits.host));
    std::vector<int64_t> row;
    std::vector<int32_t> answer, position, got((size_t)rows), want((size_t)rows);
    std::vector<float> got_logprob((size_t)rows), want_logprob((size_t)rows);
    for (int i = 0; i < rows; i++) row.push_back(((int64_t)dice(5) << 33) + i), answer.push_back((int)dice(8)), position.push_back((int)dice(1000));
    sz_sampling s = { temperature, top_k, top_p, penalty, 1234567890123ull };
    const uint8_t *bans = ban ? banned.data() : NULL, *known = penalty == 1 ? NULL : seen.data();
    expect(sz_sample(&logits.host, &s, bans, known, row.data(), answer.data(), position.data(), want.data(), want_logprob.data()) == 0, "reference runs", where, 0);
    expect(sz_cuda_sample(&logits.device, &s, bans, known, row.data(), answer.data(), position.data(), got.data(), got_logprob.data()) == 0, "runs", where, 0);
    for (size_t i = 0; i < (size_t)rows; i++) {
        expect(got[i] == want[i], "token", where, got[i] - want[i]);
        expect(fabsf(got_logprob[i] - want_logprob[i]) <= 1e-4f, "log-prob", where, got_logprob[i] - want_logprob[i]);
    }
    drop(&logits);
}

static void test_sample_refusals()
{
    pair logits = make(SZ_F32, 2, 40, true);
    std::vector<uint8_t> banned(40, 1);
    int64_t row[2] = { 0, 1 };
    int32_t zero[2] = { 0, 0 }, token[2];
    float logprob[2];
    sz_sampling s = { 1, 0, 1, 1, 1 };
    expect(sz_cuda_sample(&logits.device, &s, banned.data(), NULL, row, zero, zero, token, logprob) != 0 && token[0] == -2, "all tokens banned", "sample", token[0]);
    sz_f32(&logits.host)[45] = NAN;
    sz_cuda_to_device(logits.device.data, logits.host.data, sz_bytes(&logits.host));
    expect(sz_cuda_sample(&logits.device, &s, NULL, NULL, row, zero, zero, token, logprob) != 0 && token[0] >= 0 && token[1] == -1, "a NaN", "sample", token[1]);
    drop(&logits);
}

/* cuda_attention all: the large shapes, too; a minute and a half of one core. */
int main(int argc, char **argv)
{
    const bool all = argc > 1 && strcmp(argv[1], "all") == 0;
    if (sz_cuda_open(NULL) != 0) return 2;
    for (int dtype = SZ_F32; dtype <= SZ_BF16; dtype++) {
        test_packed(packed_text("text, odd width", 2, 70, 3, 20, 3, 4, 2, 7), dtype);
        test_packed(shape{ "no segments", {}, 5, 5, 2, 1, 16, true }, dtype);
        for (int d : { 16, 33 }) test_cross(random_table(d), dtype);
        test_cached(decoding("decoding without a parent", 2, 0, 3, 4, 2, 24), 0, dtype);
        test_cached(random_table(16), 8, dtype);
        if (!all) continue;
        test_packed(packed_text("text, 7 heads a key head", 2, 70, 3, 25, 3, 14, 2, 128), dtype);
        test_packed(packed_text("text with many columns a key", 1, 60, 8, 40, 3, 7, 1, 16), dtype);
        test_packed(windows("windows", 5, 64, 0, 2, 80), dtype);
        test_packed(windows("windows with padding", 6, 49, 20, 2, 112), dtype);
        for (int d : { 32, 56, 64, 72, 96 }) test_cross(random_table(d), dtype);
        test_cross(shape{ "few queries", { 0, 6, 0, 300, 0, 0, 6, 6, 0, 300, 0, 0 }, 12, 300, 8, 8, 16, false }, dtype);
        test_cached(decoding("decoding", 2, 300, 8, 14, 2, 128), 512, dtype);
        test_cached(decoding("decoding, long prompt", 1, 9000, 11, 7, 1, 16), 0, dtype);
        test_cached(packed_text("prefill", 2, 90, 2, 20, 1, 6, 2, 64), 256, dtype);
        for (int d : { 72, 128 }) test_cached(random_table(d), 8, dtype);
    }
    pair wide = make(SZ_F32, 3, 3 * 136, true);
    table one;
    segment(one, 0, 3, 0, 3, 0, 0);
    sz_tensor segments = table_tensor(one);
    sz_call c = {};
    c.in[0] = &wide.device, c.in[1] = &segments, c.args[0] = c.args[1] = 1, c.args[2] = 136, c.args[4] = 1;
    fprintf(stderr, "(expected: ");
    expect(sz_cuda_attention(&c) != 0, "refuses heads wider than 128", "attention", 0);

    test_sample(3, 1000, 0, 0, 1, 1, false, false);
    test_sample(3, 1000, 0, 0, 1, 1.3f, true, true);
    test_sample(8, 3001, 1, 0, 1, 1, false, false);
    test_sample(4, 20, 1, 5, 0.9f, 1, false, true);
    for (int ties = 0; ties < 2; ties++)
        for (int ban = 0; ban < 2; ban++) {
            test_sample(6, 2000, 0.7f, 50, 1, 1, ties, ban);
            test_sample(6, 2000, 1.3f, 0, 0.8f, 1.2f, ties, ban);
            test_sample(6, 5000, 1, 200, 0.95f, 1.1f, ties, ban);
            test_sample(3, 2000, 1, 1, 0.5f, 1, ties, ban);
            test_sample(3, 2000, 1, 0, 0, 0.8f, ties, ban);
            test_sample(2, 2000, 100, 1999, 0.999f, 1, ties, ban);
            test_sample(2, 2000, 0.01f, 1500, 0.9999f, 1, ties, ban);
        }
    test_sample_refusals();
    for (void *p : workspace) free(p);
    printf("cuda_attention: worst error f32 %.2g, bf16 %.2g; %d failures\n", worst[0], worst[1], failures);
    return failures ? 1 : 0;
}
