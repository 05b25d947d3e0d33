/* sample.cu - picks one token per row of logits [rows, vocab] f32 on the device: what rollout/sample.c does, and says there.
 *
 * A block of 1024 threads takes a row and reads it a few times; nothing is sorted or stored. Weights, exponentials relative to
 * the likeliest token, are added as integers of 2^-44: such sums are the same in any order, so histograms may use atomics
 * and runs repeat. A token below 2^-45 of the likeliest weighs nothing. For the same logits the token is that of the
 * processor unless the random number or top-p's limit falls within the rounding of the exponentials.
 *
 * A cut (top-k, top-p) finds the key of the last token that stays: a histogram over the distance to the likeliest, linear, since
 * the leading bits of a float would put nearly all tokens in a few places; then 8 bits at a time of the keys in its bucket.
 *
 * banned and seen come as bytes in host memory and go over as one bit a token: 19 KB a row of 152,000 instead of 152.
 * The uniform number is Philox-4x32-10 as in random.c. Leaves out: what sample.c leaves out; its checks of the arguments. */
#include "device.cuh"
#include "philox.cuh"
#include <cstdlib>

enum { THREADS = 1024, WARPS = THREADS / 32, BUCKETS = 2048, DIGITS = 256 };

typedef unsigned long long fixed;           /* units of 2^-44; a row has fewer than 2^19 tokens of at most 1 */

struct sample_row { int64_t row_id; int32_t answer_id, position; };
struct sample_result { int32_t token; float logprob; };
struct sample_settings { float scale, top_p, penalty; int32_t top_k; bool greedy; uint64_t seed; };

/* One row as all its threads see it. Tokens stay whose key is above `key`, or equal and the id at most last_id. */
struct row_view {
    const float *logits;
    const uint32_t *banned, *seen;          /* bits, or NULL */
    float penalty, scale, best;
    uint32_t key;
    int32_t last_id;
    __device__ __forceinline__ float adjusted(int64_t i) const
    {
        float x = logits[i];
        if (seen && (seen[i / 32] >> (i % 32) & 1)) x = x < 0.0f ? x * penalty : x / penalty;
        if (banned && (banned[i / 32] >> (i % 32) & 1)) x = -INFINITY;
        return x;
    }
    /* Exactly 0 below -87, as on the processor. */
    __device__ __forceinline__ static float exponential(float y) { return y < -87.0f ? 0.0f : expf(y); }
    __device__ __forceinline__ float weight(float x) const { return exponential((x - best) * scale); }
    /* Orders as floats do; -0 counts as +0. */
    __device__ __forceinline__ static uint32_t key_of(float x)
    {
        uint32_t u = __float_as_uint(x + 0.0f);
        return u & 0x80000000u ? ~u : u | 0x80000000u;
    }
    __device__ __forceinline__ bool stays(uint32_t k, int64_t i) const { return k > key || (k == key && i <= last_id); }
};

__device__ __forceinline__ fixed to_fixed(float weight) { return (fixed)((double)weight * 0x1p44 + 0.5); }

/* What a block shares. */
struct block_memory {
    fixed sums[BUCKETS];
    uint32_t counts[BUCKETS];
    fixed parts[WARPS];
    double doubles[WARPS];
    float values[WARPS];
    int32_t ids[WARPS];
    fixed found_sum;
    int64_t found_count;
    int32_t found;
};

__device__ __forceinline__ fixed warp_sum(fixed v)
{
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

__device__ static fixed block_sum(fixed v, block_memory &m)
{
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) m.parts[threadIdx.x / 32] = v;
    __syncthreads();
    fixed sum = 0;
    for (int i = 0; i < WARPS; i++) sum += m.parts[i];
    __syncthreads();
    return sum;
}

__device__ static double block_sum(double v, block_memory &m)
{
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    if (threadIdx.x % 32 == 0) m.doubles[threadIdx.x / 32] = v;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < WARPS; i++) sum += m.doubles[i];
    __syncthreads();
    return sum;
}

/* The largest value and the lowest id that has it; every thread gets both. id is -1 when all values are -inf or NaN. */
__device__ static void block_largest(float &value, int32_t &id, block_memory &m)
{
    for (int step = 16; step > 0; step /= 2) {
        float v = __shfl_xor_sync(0xffffffffu, value, step);
        int32_t i = __shfl_xor_sync(0xffffffffu, id, step);
        if (v > value || (v == value && i < id)) value = v, id = i;
    }
    if (threadIdx.x % 32 == 0) m.values[threadIdx.x / 32] = value, m.ids[threadIdx.x / 32] = id;
    __syncthreads();
    value = m.values[0], id = m.ids[0];
    for (int i = 1; i < WARPS; i++)
        if (m.values[i] > value || (m.values[i] == value && m.ids[i] < id)) value = m.values[i], id = m.ids[i];
    __syncthreads();
}

/* The first token where the running sum of term(i), in the order of ids, passes target; target is below the sum of all. */
template <typename Term> __device__ static int32_t look_up(int32_t vocab, fixed target, block_memory &m, Term term)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int32_t from = 0, to = vocab;
    while (to - from > 32) {
        int32_t length = (to - from + WARPS - 1) / WARPS, first = min(from + warp * length, to), end = min(first + length, to);
        fixed sum = 0;
        for (int32_t i = first + lane; i < end; i += 32) sum += term(i);
        sum = warp_sum(sum);
        if (lane == 0) m.parts[warp] = sum;
        __syncthreads();
        int part = 0;
        while (part < WARPS - 1 && m.parts[part] <= target) target -= m.parts[part++];
        from = min(from + part * length, to);
        to = min(from + length, to);
        __syncthreads();
    }
    fixed running = from + lane < to ? term(from + lane) : 0;
    for (int step = 1; step < 32; step *= 2) {
        fixed below = __shfl_up_sync(0xffffffffu, running, (unsigned)step);
        if (lane >= step) running += below;
    }
    int passed = __ffs((int)__ballot_sync(0xffffffffu, running > target));
    return from + (passed ? passed - 1 : 0);
}

/* Walks buckets [0, n) in order, of which bucket i is counts[n - 1 - i] if down. Finds the first where count, so far `count`,
 * reaches `most`, or, most < 0, the sum reaches `mass` and the bucket is not empty; leaves it and what lies before it in m. */
__device__ static void find_bucket(block_memory &m, int n, bool down, int64_t count, fixed sum, int64_t most, fixed mass)
{
    const int lane = (int)threadIdx.x % 32;
    __syncthreads();
    if (threadIdx.x < 32) {
        int found = -1;
        for (int i = 0; i < n && found < 0; i += 32) {
            int b = down ? n - 1 - i - lane : i + lane;
            int64_t own_count = m.counts[b], counts = own_count;
            fixed own_sum = m.sums[b], sums = own_sum;
            for (int step = 1; step < 32; step *= 2) {
                int64_t c = __shfl_up_sync(0xffffffffu, counts, (unsigned)step);
                fixed s = __shfl_up_sync(0xffffffffu, sums, (unsigned)step);
                if (lane >= step) counts += c, sums += s;
            }
            unsigned there = __ballot_sync(0xffffffffu, own_count > 0 && (most >= 0 ? count + counts >= most : sum + sums >= mass));
            int last = there ? __ffs((int)there) - 1 : 31;
            if (there) {
                found = down ? n - 1 - i - last : i + last;
                counts -= own_count, sums -= own_sum;
            }
            count += __shfl_sync(0xffffffffu, counts, last);
            sum += __shfl_sync(0xffffffffu, sums, last);
        }
        if (lane == 0) m.found = found, m.found_count = count, m.found_sum = sum;
    }
    __syncthreads();
}

/* Narrows what stays in row to the first `most` tokens and those equal to the last of them; or, most < 0, to the first that
 * add up to mass. */
__device__ static void cut(row_view &row, int32_t vocab, int64_t most, fixed mass, block_memory &m)
{
    const float per_unit = BUCKETS / 87.0f;
    uint32_t prefix = 0, known = 0;         /* bits of the key that is sought */
    int bucket = -1;
    int64_t count = 0;
    fixed sum = 0;
    for (int level = 0; level < 5; level++) {
        const int n = level ? (int)DIGITS : (int)BUCKETS, shift = 32 - 8 * level;
        for (int i = (int)threadIdx.x; i < n; i += THREADS) m.counts[i] = 0, m.sums[i] = 0;
        __syncthreads();
        for (int32_t i = (int32_t)threadIdx.x; i < vocab; i += THREADS) {
            float x = row.adjusted(i), w = row.weight(x);
            uint32_t key = row_view::key_of(x);
            if (!(w > 0) || !row.stays(key, i)) continue;
            int b = (int)((row.best - x) * row.scale * per_unit);
            b = b < BUCKETS ? b : BUCKETS - 1;
            if (level) {
                if (b != bucket || (key & known) != prefix) continue;
                b = (int)(key >> shift & (DIGITS - 1));
            }
            atomicAdd(&m.counts[b], 1u);
            atomicAdd(&m.sums[b], to_fixed(w));
        }
        find_bucket(m, n, level > 0, count, sum, most, mass);
        if (m.found < 0) return;            /* fewer than `most` have a weight */
        count = m.found_count;
        sum = m.found_sum;
        if (level == 0) {
            bucket = m.found;
        } else {
            prefix |= (uint32_t)m.found << shift;
            known |= (uint32_t)(DIGITS - 1) << shift;
        }
    }
    const int64_t equal = m.counts[m.found];
    const fixed each = m.sums[m.found] / (fixed)equal;
    __syncthreads();
    int64_t stay = equal;
    if (most < 0) {
        stay = sum < mass && each > 0 ? (int64_t)((mass - sum + each - 1) / each) : sum < mass ? equal : 0;
        if (stay == 0 && count == 0) stay = 1;
    }
    const row_view before = row;
    row.key = prefix;
    if (stay == 0) row.last_id = -1;
    else if (stay < equal)
        row.last_id = look_up(vocab, (fixed)(stay - 1), m, [&](int32_t i) {
            float x = before.adjusted(i);
            uint32_t key = row_view::key_of(x);
            return (fixed)(key == prefix && before.stays(key, i));
        });
    else row.last_id = before.key == prefix ? before.last_id : INT32_MAX;
}

__device__ static double uniform(uint64_t seed, const sample_row &place)
{
    const uint4 w = sz_philox(seed, (uint64_t)place.row_id, (uint32_t)place.answer_id, (uint32_t)place.position);
    return ((double)(((uint64_t)w.y << 32 | w.x) >> 12) + 0.5) * 0x1p-52;
}

/* token -1: a logit is NaN or +inf; -2: nothing is left to pick. */
static __global__ void __launch_bounds__(THREADS)
sample(const float *logits, int32_t vocab, int32_t words, const sample_settings *settings, const sample_row *places, const uint32_t *banned,
       const uint32_t *seen, sample_result *results)
{
    __shared__ block_memory m;
    const sample_settings s = *settings;
    const int64_t r = blockIdx.x;
    row_view row = { logits + r * vocab, banned, seen ? seen + r * words : NULL, s.penalty, s.scale, 0, 0, INT32_MAX };
    float max = -INFINITY, best = -INFINITY;
    int32_t max_id = INT32_MAX, best_id = INT32_MAX;
    for (int32_t i = (int32_t)threadIdx.x; i < vocab; i += THREADS) {
        float x = row.logits[i], y = row.adjusted(i);
        if (x > max) max = x, max_id = i;
        if (y > best) best = y, best_id = i;
    }
    block_largest(max, max_id, m);
    block_largest(best, best_id, m);
    row.best = best;

    double total = 0;
    fixed stay = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < vocab; i += THREADS) {
        total += (double)row_view::exponential((row.logits[i] - max) * s.scale);
        if (!s.greedy && best > -INFINITY) stay += to_fixed(row.weight(row.adjusted(i)));
    }
    total = block_sum(total, m);
    stay = block_sum(stay, m);
    int32_t token = best_id;
    if (!(max < INFINITY) || !(total > 0)) token = -1;
    else if (!(best > -INFINITY)) token = -2;
    else if (!s.greedy) {
        auto weight = [&](int32_t i) {
            float x = row.adjusted(i);
            return row.stays(row_view::key_of(x), i) ? to_fixed(row.weight(x)) : (fixed)0;
        };
        auto all = [&] {
            fixed sum = 0;
            for (int32_t i = (int32_t)threadIdx.x; i < vocab; i += THREADS) sum += weight(i);
            return block_sum(sum, m);
        };
        if (s.top_k > 0 && s.top_k < vocab) {
            cut(row, vocab, s.top_k, 0, m);
            stay = all();
        }
        if (s.top_p < 1) {
            double mass = ceil((double)s.top_p * (double)stay);
            cut(row, vocab, -1, mass > 0 ? min((fixed)mass, stay) : (fixed)0, m);
            stay = all();
        }
        token = look_up(vocab, min((fixed)(uniform(s.seed, places[r]) * (double)stay), stay - 1), m, weight);
    }
    if (threadIdx.x == 0)
        results[r] = sample_result{ token, token < 0 ? 0.0f : (float)((double)((row.logits[token] - max) * s.scale) - log(total)) };
}

/* n bytes to bits, 1 where a byte is not 0. */
static void pack_bits(const uint8_t *from, int64_t n, uint32_t *to)
{
    uint8_t *out = (uint8_t *)to;
    for (int64_t i = 0; i < n; i += 8) {
        uint64_t v = 0;
        memcpy(&v, from + i, (size_t)(n - i < 8 ? n - i : 8));
        v |= v >> 4;
        v |= v >> 2;
        v |= v >> 1;
        *out++ = (uint8_t)((v & 0x0101010101010101u) * 0x0102040810204080u >> 56);
    }
}

/* A block of bytes, the same on both sides: settings, places, the bits of banned, those of seen. */
int sz_cuda_sample_layout(int64_t rows, int64_t vocab, bool banned, bool seen, sz_sample_layout *to)
{
    if (vocab >= 1 << 19) return sz_fail("sample: a vocabulary of %lld is too large, it may be %d", (long long)vocab, (1 << 19) - 1);
    const int64_t words = (vocab + 31) / 32;
    sz_sample_layout l = { rows, vocab, words, (sizeof(sample_settings) + 15) / 16 * 16, 0, 0, 0, (size_t)rows * sizeof(sample_result) };
    l.bytes = l.places + (size_t)rows * sizeof(sample_row);
    if (banned) l.banned = l.bytes, l.bytes += (size_t)words * 4;
    if (seen) l.seen = l.bytes, l.bytes += (size_t)(rows * words) * 4;
    *to = l;
    return 0;
}

void sz_cuda_sample_fill(const sz_sample_layout &l, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen, const int64_t *row_id,
                         const int32_t *answer_id, const int32_t *position, char *block)
{
    memset(block, 0, l.bytes);
    *(sample_settings *)block = sample_settings{ s->temperature > 0 ? 1.0f / s->temperature : 1.0f, s->top_p, s->repetition_penalty, s->top_k,
                                                 !(s->temperature > 0), s->seed };
    sample_row *places = (sample_row *)(block + l.places);
    for (int64_t i = 0; i < l.rows; i++) places[i] = sample_row{ row_id[i], answer_id[i], position[i] };
    if (l.banned) pack_bits(banned, l.vocab, (uint32_t *)(block + l.banned));
    for (int64_t i = 0; l.seen && i < l.rows; i++) pack_bits(seen + i * l.vocab, l.vocab, (uint32_t *)(block + l.seen) + i * l.words);
}

int sz_cuda_sample_launch(const sz_sample_layout &l, const sz_tensor *logits, const char *block, char *results)
{
    SZ_LAUNCH(sample, (unsigned)l.rows, THREADS, 0, sz_f32(logits), (int32_t)l.vocab, (int32_t)l.words, (const sample_settings *)block,
              (const sample_row *)(block + l.places), l.banned ? (const uint32_t *)(block + l.banned) : NULL,
              l.seen ? (const uint32_t *)(block + l.seen) : NULL, (sample_result *)results);
    return sz_cuda_launched("sample");
}

int sz_cuda_sample_read(const sz_sample_layout &l, const char *from, int32_t *token, float *logprob)
{
    const sample_result *results = (const sample_result *)from;
    for (int64_t i = 0; i < l.rows; i++) {
        token[i] = results[i].token;
        logprob[i] = results[i].logprob;
        if (token[i] == -1) return sz_fail("sample: the logits of row %lld are not finite", (long long)i);
        if (token[i] < 0) return sz_fail("sample: every token of row %lld is banned", (long long)i);
    }
    return 0;
}

extern "C" int sz_cuda_sample(sz_tensor *logits, const sz_sampling *s, const uint8_t *banned, const uint8_t *seen, const int64_t *row_id,
                              const int32_t *answer_id, const int32_t *position, int32_t *token, float *logprob)
{
    sz_sample_layout l = {};
    if (logits->shape[0] == 0) return 0;
    if (s->repetition_penalty == 1) seen = NULL;
    if (sz_cuda_sample_layout(logits->shape[0], logits->shape[1], banned, seen, &l) != 0) return -1;
    char *block = (char *)malloc(l.bytes + l.results), *device = block ? (char *)sz_cuda_scratch(l.bytes + l.results + 16) : NULL;
    int rc = block ? device ? 0 : -1 : sz_fail("sample: out of memory");
    const size_t results = (l.bytes + 15) / 16 * 16;
    if (rc == 0) {
        sz_cuda_sample_fill(l, s, banned, seen, row_id, answer_id, position, block);
        rc = sz_cuda_to_device(device, block, l.bytes);
    }
    if (rc == 0) rc = sz_cuda_sample_launch(l, logits, device, device + results);
    if (rc == 0) rc = sz_cuda_to_host(block + l.bytes, device + results, l.results);
    if (rc == 0) rc = sz_cuda_sample_read(l, block + l.bytes, token, logprob);
    free(block);
    return rc;
}
