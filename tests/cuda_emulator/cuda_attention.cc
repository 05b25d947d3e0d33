/* cuda_attention.cc - a program that compares the emulated CUDA attention kernels and sampler
 * (emulate.h) with the reference kernels and the CPU's sampler: random segment tables with shared
 * parents, windows, grouped heads, odd widths, rows that belong to no segment. Every call runs
 * twice and must give the same bits. `make test` builds and runs it.
 *
 * Tolerances, relative to the largest value of a tensor: 1e-4 for f32, whose sums are in another
 * order and use exp2f; 1e-2 for bf16, whose probabilities and score gradients are rounded to bf16
 * (2^-9) before they are summed.
 * Leaves out: large shapes, unless called as `cuda_attention all`. */
#include "cuda/device.cuh"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" {
#define OP(name) \
    int sz_cuda_##name(const sz_call *c); \
    int sz_ref_##name(const sz_call *c);
OP(attention)
OP(attention_cross)
OP(attention_backward)
OP(attention_cross_backward)
OP(attention_cached)
int sz_cpu_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned,
                  const uint8_t *seen, const int64_t *row_id, const int32_t *answer_id,
                  const int32_t *position, int32_t *token, float *logprob);

/* What the reference kernels and the sampler use of the core. device.cu defines the messages. */
static std::vector<void *> workspace;
int sz_place_check(const sz_place *, int64_t, int64_t) { return 0; } /* of drawing, not used here */
void *sz_scratch(size_t bytes)
{
    workspace.push_back(aligned_alloc(64, (bytes + 127) / 64 * 64));
    return workspace.back();
}
void sz_scratch_begin(void) {}
void sz_scratch_end(void) {}
const sz_backend *sz_device;
/* random.c uses these to fill a tensor on a device, which nothing here does. */
sz_tensor *sz_tensor_new_heap(int, int, const int64_t *, int) { abort(); }
int sz_tensor_copy(sz_tensor *, sz_tensor *) { abort(); }
void sz_tensor_release(sz_tensor *) { abort(); }
}

static uint64_t state = 1;
/* Returns a random number below n. */
static uint32_t dice(uint32_t n)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((state >> 33) % n);
}
static float normal()
{
    double u = (dice(1 << 30) + 1.0) / ((1 << 30) + 1.0);
    double v = dice(1 << 30) / (double)(1 << 30);
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static int failures;
static void expect(bool ok, const char *what, const char *where, double got)
{
    if (!ok) fprintf(stderr, "FAILED: %s: %s (%g)\n", where, what, got);
    failures += !ok;
}

/* A host tensor [n, m] and its copy on the device. */
struct pair {
    sz_tensor host, device;
};

static sz_tensor tensor(int dtype, int64_t n, int64_t m)
{
    sz_tensor t;
    memset(&t, 0, sizeof t);
    t.dtype = (int8_t)dtype;
    t.ndim = 2;
    t.shape[0] = n;
    t.shape[1] = m;
    t.numel = n * m;
    return t;
}

enum { OUTPUT = false, RANDOM = true };

/* Makes a pair of random numbers, or one of NaN for an output. */
static pair make(int dtype, int64_t n, int64_t m, bool random)
{
    pair p = { tensor(dtype, n, m), tensor(dtype, n, m) };
    const size_t bytes = sz_bytes(&p.host);
    p.host.data = malloc(bytes + 1);
    p.device.data = sz_cuda_allocate(bytes);
    memset(p.host.data, 0xff, bytes);
    for (int64_t i = 0; random && i < n * m; i++) sz_put(&p.host, i, normal());
    if (bytes) sz_cuda_to_device(p.device.data, p.host.data, bytes);
    return p;
}

static void drop(pair *p)
{
    free(p->host.data);
    sz_cuda_release(p->device.data);
}

static double worst[2]; /* of f32 and of bf16 */

/* Compares the device's tensor with the host's, which has the reference's result. */
static void compare(const pair *p, const char *what, const char *where)
{
    sz_tensor got = p->host;
    got.data = malloc(sz_bytes(&got) + 1);
    if (sz_bytes(&got)) sz_cuda_to_host(got.data, p->device.data, sz_bytes(&got));
    /* The largest difference; infinite for values that are not finite where they should be. */
    double error = 0;
    for (int64_t i = 0; i < got.numel; i++) {
        double x = sz_get(&got, i);
        double y = sz_get(&p->host, i);
        if (x == y) continue;
        if (!(fabs(x - y) <= error)) error = fabs(x - y);
        if (std::isnan(x) || std::isinf(x) || std::isinf(y)) error = INFINITY;
    }
    /* Relative to the largest value. */
    double largest = 0;
    for (int64_t i = 0; i < got.numel; i++) {
        double y = sz_get(&p->host, i);
        if (!std::isinf(y)) largest = fmax(largest, fabs(y));
    }
    error = error == 0 ? 0 : error / (largest + 1e-3);
    bool f32 = p->host.dtype == SZ_F32 && !strstr(where, "bf16");
    worst[!f32] = fmax(worst[!f32], error);
    expect(error <= (f32 ? 1e-4 : 1e-2), what, where, error);
    free(got.data);
}

/* Runs the op twice, with outputs cleared between, and checks that the bits are the same. */
static void run_twice(int (*op)(const sz_call *), const sz_call *c, const char *where)
{
    expect(op(c) == 0, "runs", where, 0);
    std::vector<std::vector<char>> first;
    for (int i = 0; i < SZ_MAX_OUT && c->out[i]; i++) {
        size_t bytes = sz_bytes(c->out[i]);
        first.emplace_back(bytes + 1);
        if (!bytes) continue;
        sz_cuda_to_host(first.back().data(), c->out[i]->data, bytes);
        sz_cuda_fill(c->out[i]->data, 0xff, bytes);
    }
    expect(op(c) == 0, "runs again", where, 0);
    for (int i = 0; i < SZ_MAX_OUT && c->out[i]; i++) {
        size_t bytes = sz_bytes(c->out[i]);
        std::vector<char> again(bytes + 1);
        if (bytes) sz_cuda_to_host(again.data(), c->out[i]->data, bytes);
        const bool same = memcmp(first[(size_t)i].data(), again.data(), bytes) == 0;
        expect(same, "gives the same bits again", where, i);
    }
}

/* ---- shapes ---- */
typedef std::vector<int32_t> table;

/* Appends a segment: first row and length of its queries, own keys and parent's keys. */
static void segment(table &t, int q, int ql, int k, int kl, int p, int pl)
{
    t.insert(t.end(), { q, ql, k, kl, p, pl });
}

static sz_tensor table_tensor(table &t)
{
    sz_tensor s = tensor(SZ_I32, (int64_t)t.size() / 6, 6);
    s.data = t.data();
    return s;
}

struct shape {
    const char *name;
    table segments;
    int queries, keys; /* rows; the same number in the packed form */
    int h, g, d;       /* query heads, key heads, width */
    bool causal;
};

/* Prompts with answers that share them, as the trainer packs them. The last `spare` rows belong to
 * no segment. */
static shape packed_text(const char *name, int prompts, int prompt, int answers, int answer,
                         int spare, int h, int g, int d)
{
    shape s = { name, {}, 0, 0, h, g, d, true };
    int at = 0;
    for (int i = 0; i < prompts; i++) {
        int p = at;
        int n = prompt + 7 * i;
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

/* Windows of `size` rows that lack up to `padding` rows, which they read from a shared parent. */
static shape windows(const char *name, int count, int size, int padding, int h, int d)
{
    shape s = { name, {}, 0, 0, h, h, d, false };
    int at = 0;
    for (int i = 0; i < count; i++) {
        int lacks = padding ? (int)dice((uint32_t)padding + 1) : 0;
        int n = size - lacks;
        segment(s.segments, at, n, at, n, count * size, lacks);
        at += n;
    }
    s.queries = s.keys = count * size + padding;
    return s;
}

static shape random_table(int d)
{
    static char name[100];
    const int g = 1 + (int)dice(3);
    const int heads_per_kv = 1 + (int)dice(4);
    shape s = { name, {}, 0, 150, g * heads_per_kv, g, d, dice(2) == 0 };
    snprintf(name, sizeof name, "random table, h %d g %d d %d causal %d", s.h, s.g, d, s.causal);
    const int n = (int)dice(7);
    for (int i = 0; i < n; i++) {
        /* Few queries, or up to 59; sometimes no own keys, often no parent. */
        int ql = (int)dice(3) == 0 ? (int)dice(2) : (int)dice(60);
        int kl = (int)dice(5) == 0 ? 0 : (int)dice(100);
        int pl = (int)dice(2) * (int)dice(100);
        s.queries += (int)dice(3);
        int k_start = (int)dice((uint32_t)(151 - kl));
        int p_start = (int)dice((uint32_t)(151 - pl));
        segment(s.segments, s.queries, ql, k_start, kl, p_start, pl);
        s.queries += ql;
    }
    return s;
}

/* Prompts whose answers have one query each and keys of random length in a cache. */
static shape decoding(const char *name, int groups, int prompt, int answers, int h, int g, int d)
{
    shape s = { name, {}, 0, 0, h, g, d, true };
    for (int i = 0; i < groups; i++) {
        int p = s.keys;
        s.keys += prompt;
        for (int j = 0; j < answers; j++) {
            int room = 40 + (int)dice(200);
            int keys = 1 + (int)dice((uint32_t)room);
            segment(s.segments, s.queries++, 1, s.keys, keys, p, prompt);
            s.keys += room;
        }
    }
    return s;
}

/* ---- tests ---- */
static void name_case(char (&where)[200], const char *op, const shape &s, int dtype)
{
    snprintf(where, sizeof where, "%s, %s, %s", op, s.name, dtype == SZ_F32 ? "f32" : "bf16");
}

/* The same call on the device and for the reference. */
struct calls {
    sz_call device, reference;

    calls(const shape &s)
    {
        memset(&device, 0, sizeof device);
        device.args[0] = s.h;
        device.args[1] = s.g;
        device.args[2] = s.d;
        device.args[3] = s.causal;
        device.args[4] = 1 / sqrt((double)s.d);
        reference = device;
    }
    void in(int i, pair *p)
    {
        device.in[i] = &p->device;
        reference.in[i] = &p->host;
    }
    /* Index tensors are in host memory for both. */
    void in(int i, sz_tensor *t)
    {
        device.in[i] = t;
        reference.in[i] = t;
    }
    void out(std::initializer_list<pair *> list)
    {
        for (int i = 0; i < SZ_MAX_OUT; i++) {
            pair *p = i < (int)list.size() ? list.begin()[i] : NULL;
            device.out[i] = p ? &p->device : NULL;
            reference.out[i] = p ? &p->host : NULL;
        }
    }
};

static void test_packed(const shape &s, int dtype)
{
    char where[200];
    name_case(where, "attention", s, dtype);
    table t = s.segments;
    sz_tensor segments = table_tensor(t);
    const int width = (s.h + 2 * s.g) * s.d;
    pair qkv = make(dtype, s.queries, width, RANDOM);
    pair out = make(dtype, s.queries, s.h * s.d, OUTPUT);
    pair lse = make(SZ_F32, s.h, s.queries, OUTPUT);
    pair dout = make(dtype, s.queries, s.h * s.d, RANDOM);
    pair dqkv = make(dtype, s.queries, width, OUTPUT);

    calls c(s);
    c.in(0, &qkv);
    c.in(1, &segments);
    c.out({ &out, &lse });
    sz_ref_attention(&c.reference);
    run_twice(sz_cuda_attention, &c.device, where);
    compare(&out, "out", where);
    compare(&lse, "lse", where);

    c.in(2, &out);
    c.in(3, &lse);
    c.in(4, &dout);
    c.out({ &dqkv });
    sz_ref_attention_backward(&c.reference);
    run_twice(sz_cuda_attention_backward, &c.device, where);
    compare(&dqkv, "dqkv", where);
    for (pair *p : { &qkv, &out, &lse, &dout, &dqkv }) drop(p);
}

static void test_cross(const shape &s, int dtype)
{
    char where[200];
    name_case(where, "attention_cross", s, dtype);
    table t = s.segments;
    sz_tensor segments = table_tensor(t);
    pair q = make(dtype, s.queries, s.h * s.d, RANDOM);
    pair k = make(dtype, s.keys, s.g * s.d, RANDOM);
    pair v = make(dtype, s.keys, s.g * s.d, RANDOM);
    pair out = make(dtype, s.queries, s.h * s.d, OUTPUT);
    pair lse = make(SZ_F32, s.h, s.queries, OUTPUT);
    pair dout = make(dtype, s.queries, s.h * s.d, RANDOM);
    pair dq = make(dtype, s.queries, s.h * s.d, OUTPUT);
    pair dk = make(dtype, s.keys, s.g * s.d, OUTPUT);
    pair dv = make(dtype, s.keys, s.g * s.d, OUTPUT);

    calls c(s);
    c.in(0, &q);
    c.in(1, &k);
    c.in(2, &v);
    c.in(3, &segments);
    c.out({ &out, &lse });
    sz_ref_attention_cross(&c.reference);
    run_twice(sz_cuda_attention_cross, &c.device, where);
    compare(&out, "out", where);
    compare(&lse, "lse", where);

    c.in(4, &out);
    c.in(5, &lse);
    c.in(6, &dout);
    c.out({ &dq, &dk, &dv });
    sz_ref_attention_cross_backward(&c.reference);
    run_twice(sz_cuda_attention_cross_backward, &c.device, where);
    compare(&dq, "dq", where);
    compare(&dk, "dk", where);
    compare(&dv, "dv", where);
    for (pair *p : { &q, &k, &v, &out, &lse, &dout, &dq, &dk, &dv }) drop(p);
}

/* Checks what a call uploads: nothing for a table that the device has by content, and two copies
 * (the table and its schedule) for another table. */
static void test_uploads(sz_call *c, const table &t, const char *where)
{
    table copy = t;
    sz_tensor again = table_tensor(copy);
    c->in[3] = &again;
    const unsigned long before = sz_emu_counts()->uploads;
    expect(sz_cuda_attention_cached(c) == 0, "runs with a copy of its table", where, 0);
    unsigned long uploads = sz_emu_counts()->uploads - before;
    expect(uploads == 0, "uploads a table that is on the device", where, (double)uploads);

    /* An earlier case may have left the other table on the device: then try the next one. */
    bool another = false;
    while (!copy.empty() && copy[1] > 1 && uploads == 0) {
        copy[1]--;
        another = true;
        expect(sz_cuda_attention_cached(c) == 0, "runs with another table", where, 0);
        uploads = sz_emu_counts()->uploads - before;
    }
    expect(!another || uploads == 2, "uploads another table and its schedule", where,
           (double)uploads);
}

/* extra: columns of q past its heads */
static void test_cached(const shape &s, int extra, int dtype)
{
    char where[200];
    name_case(where, "attention_cached", s, dtype);
    table t = s.segments;
    sz_tensor segments = table_tensor(t);
    pair q = make(dtype, s.queries, s.h * s.d + extra, RANDOM);
    pair k = make(dtype, s.keys, s.g * s.d, RANDOM);
    pair v = make(dtype, s.keys, s.g * s.d, RANDOM);
    pair out = make(dtype, s.queries, s.h * s.d, OUTPUT);
    calls c(s);
    c.in(0, &q);
    c.in(1, &k);
    c.in(2, &v);
    c.in(3, &segments);
    c.out({ &out });
    sz_ref_attention_cached(&c.reference);
    run_twice(sz_cuda_attention_cached, &c.device, where);
    compare(&out, "out", where);
    test_uploads(&c.device, t, where);
    for (pair *p : { &q, &k, &v, &out }) drop(p);
}

/* ---- the sampler ---- */
struct sample_case {
    int rows, vocab;
    float temperature;
    int top_k;
    float top_p, penalty;
    bool ties, ban;
};

/* Tokens must be equal: the seed is fixed, and with it no random number is within the rounding of a
 * sum. */
static void test_sample(const sample_case &t)
{
    char where[200];
    snprintf(where, sizeof where,
             "sample, %d tokens, temperature %g, top-k %d, top-p %g, penalty %g%s%s", t.vocab,
             (double)t.temperature, t.top_k, (double)t.top_p, (double)t.penalty,
             t.ties ? ", ties" : "", t.ban ? ", banned" : "");
    const size_t rows = (size_t)t.rows;

    /* Logits, some of them -inf, or many of them equal. */
    pair logits = make(SZ_F32, t.rows, t.vocab, RANDOM);
    std::vector<uint8_t> banned((size_t)t.vocab), seen(rows * (size_t)t.vocab);
    for (uint8_t &b : banned) b = dice(3) == 0;
    for (uint8_t &b : seen) b = dice(10) == 0;
    for (int64_t i = 0; i < logits.host.numel; i++) {
        float x = 3 * sz_f32(&logits.host)[i];
        if (t.ties) x = roundf(2 * x) / 2;
        else if (i % 97 == 0) x = -INFINITY;
        sz_f32(&logits.host)[i] = x;
    }
    sz_cuda_to_device(logits.device.data, logits.host.data, sz_bytes(&logits.host));
    std::vector<int64_t> row;
    std::vector<int32_t> answer, position;
    for (int i = 0; i < t.rows; i++) {
        row.push_back(((int64_t)dice(5) << 33) + i);
        answer.push_back((int)dice(8));
        position.push_back((int)dice(1000));
    }

    /* Sample on both sides. */
    sz_sampling s = { t.temperature, t.top_k, t.top_p, t.penalty, 1234567890123ull };
    const uint8_t *bans = t.ban ? banned.data() : NULL;
    const uint8_t *known = t.penalty == 1 ? NULL : seen.data();
    std::vector<int32_t> got(rows), want(rows);
    std::vector<float> got_logprob(rows), want_logprob(rows);
    int rc = sz_cpu_sample(&logits.host, &s, bans, known, row.data(), answer.data(),
                           position.data(), want.data(), want_logprob.data());
    expect(rc == 0, "reference runs", where, 0);
    rc = sz_cuda_sample(&logits.device, &s, bans, known, row.data(), answer.data(), position.data(),
                        got.data(), got_logprob.data());
    expect(rc == 0, "runs", where, 0);
    for (size_t i = 0; i < rows; i++) {
        const float difference = got_logprob[i] - want_logprob[i];
        expect(got[i] == want[i], "token", where, got[i] - want[i]);
        expect(fabsf(difference) <= 1e-4f, "log-prob", where, difference);
    }
    drop(&logits);
}

/* All tokens banned, and a logit that is NaN. */
static void test_sample_refusals()
{
    pair logits = make(SZ_F32, 2, 40, RANDOM);
    std::vector<uint8_t> banned(40, 1);
    int64_t row[2] = { 0, 1 };
    int32_t zero[2] = { 0, 0 }, token[2];
    float logprob[2];
    sz_sampling s = { 1, 0, 1, 1, 1 };
    int rc = sz_cuda_sample(&logits.device, &s, banned.data(), NULL, row, zero, zero, token,
                            logprob);
    expect(rc != 0 && token[0] == -2, "all tokens banned", "sample", token[0]);
    sz_f32(&logits.host)[45] = NAN;
    sz_cuda_to_device(logits.device.data, logits.host.data, sz_bytes(&logits.host));
    rc = sz_cuda_sample(&logits.device, &s, NULL, NULL, row, zero, zero, token, logprob);
    expect(rc != 0 && token[0] >= 0 && token[1] == -1, "a NaN", "sample", token[1]);
    drop(&logits);
}

static void test_samples()
{
    test_sample({ 3, 1000, 0, 0, 1, 1, false, false });
    test_sample({ 3, 1000, 0, 0, 1, 1.3f, true, true });
    test_sample({ 8, 3001, 1, 0, 1, 1, false, false });
    test_sample({ 4, 20, 1, 5, 0.9f, 1, false, true });
    for (bool ties : { false, true })
        for (bool ban : { false, true }) {
            test_sample({ 6, 2000, 0.7f, 50, 1, 1, ties, ban });
            test_sample({ 6, 2000, 1.3f, 0, 0.8f, 1.2f, ties, ban });
            test_sample({ 6, 5000, 1, 200, 0.95f, 1.1f, ties, ban });
            test_sample({ 3, 2000, 1, 1, 0.5f, 1, ties, ban });
            test_sample({ 3, 2000, 1, 0, 0, 0.8f, ties, ban });
            test_sample({ 2, 2000, 100, 1999, 0.999f, 1, ties, ban });
            test_sample({ 2, 2000, 0.01f, 1500, 0.9999f, 1, ties, ban });
        }
    test_sample_refusals();
}

/* ---- the program ---- */
static void test_small(int dtype)
{
    test_packed(packed_text("text, odd width", 2, 70, 3, 20, 3, 4, 2, 7), dtype);
    test_packed(shape{ "no segments", {}, 5, 5, 2, 1, 16, true }, dtype);
    for (int d : { 16, 33 }) test_cross(random_table(d), dtype);
    test_cached(decoding("decoding without a parent", 2, 0, 3, 4, 2, 24), 0, dtype);
    test_cached(random_table(16), 8, dtype);
}

static void test_large(int dtype)
{
    test_packed(packed_text("text, 7 heads a key head", 2, 70, 3, 25, 3, 14, 2, 128), dtype);
    test_packed(packed_text("text with many columns a key", 1, 60, 8, 40, 3, 7, 1, 16), dtype);
    test_packed(windows("windows", 5, 64, 0, 2, 80), dtype);
    test_packed(windows("windows with padding", 6, 49, 20, 2, 112), dtype);
    for (int d : { 32, 56, 64, 72, 96 }) test_cross(random_table(d), dtype);
    const table few = { 0, 6, 0, 300, 0, 0, 6, 6, 0, 300, 0, 0 };
    test_cross(shape{ "few queries", few, 12, 300, 8, 8, 16, false }, dtype);
    test_cached(decoding("decoding", 2, 300, 8, 14, 2, 128), 512, dtype);
    test_cached(decoding("decoding, long prompt", 1, 9000, 11, 7, 1, 16), 0, dtype);
    test_cached(packed_text("prefill", 2, 90, 2, 20, 1, 6, 2, 64), 256, dtype);
    for (int d : { 72, 128 }) test_cached(random_table(d), 8, dtype);
}

static void test_too_wide()
{
    pair wide = make(SZ_F32, 3, 3 * 136, RANDOM);
    table one;
    segment(one, 0, 3, 0, 3, 0, 0);
    sz_tensor segments = table_tensor(one);
    calls c(shape{ "too wide", one, 3, 3, 1, 1, 136, false });
    c.in(0, &wide);
    c.in(1, &segments);
    fprintf(stderr, "(expected: ");
    expect(sz_cuda_attention(&c.device) != 0, "refuses heads wider than 128", "attention", 0);
    drop(&wide);
}

/* `cuda_attention all` includes the large shapes, which take a minute and a half of one core. */
int main(int argc, char **argv)
{
    const bool all = argc > 1 && strcmp(argv[1], "all") == 0;
    if (sz_cuda_open(NULL) != 0) return 2;
    for (int dtype = SZ_F32; dtype <= SZ_BF16; dtype++) {
        test_small(dtype);
        if (all) test_large(dtype);
    }
    test_too_wide();
    test_samples();
    for (void *p : workspace) free(p);
    printf("cuda_attention: worst error f32 %.2g, bf16 %.2g; %d failures\n", worst[0], worst[1],
           failures);
    return failures ? 1 : 0;
}
