/* amx_emulate.c - the AMX emulator's own test: products against plain loops, and an end with a
 * message where a processor would refuse.
 *
 *     make amx-emulated && build/tests/amx_emulate
 */
#include "amx_emulator.h"
#include <sys/wait.h>
#include <unistd.h>

enum { SHAPED = 4 }; /* tiles 0 to 3: 5 rows, 12 words; 4: 5 rows, 7 words; 5: 7 rows, 12 words */
enum { ROWS = 5, INNER = 7, COLUMNS = 12 };

static int failures;

static void check(int ok, const char *what)
{
    if (ok) return;
    failures++;
    printf("failed: %s\n", what);
}

static void shape(void)
{
    struct {
        uint8_t palette, rest[15];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } c = { .palette = 1 };
    for (int i = 0; i < SHAPED; i++) {
        c.rows[i] = ROWS;
        c.row_bytes[i] = 4 * COLUMNS;
    }
    c.rows[4] = ROWS;
    c.row_bytes[4] = 4 * INNER;
    c.rows[5] = INNER;
    c.row_bytes[5] = 4 * COLUMNS;
    _tile_loadconfig(&c);
}

/* Pseudo-random bytes; as bf16 they are never NaN, infinite or denormal. */
static void fill(uint8_t *to, int n, int is_bf16)
{
    static uint32_t state = 1;
    for (int i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        to[i] = (uint8_t)(state >> 24);
        if (is_bf16 && i % 2) to[i] = (uint8_t)(0x3c + (to[i] & 0x83));
    }
}

static float bf16(const uint8_t *at)
{
    const uint32_t bits = (uint32_t)at[1] << 24 | (uint32_t)at[0] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Both operands are loaded from rows that are further apart than they are long. */
static void test_bf16(void)
{
    uint8_t a[ROWS][80];
    uint8_t b[INNER][80];
    float c[ROWS][20];
    fill(a[0], sizeof a, 1);
    fill(b[0], sizeof b, 1);
    shape();
    _tile_zero(0);
    _tile_loadd(4, a, sizeof *a);
    _tile_loadd(5, b, sizeof *b);
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(0, 4, 5);
    memset(c, 0xff, sizeof c);
    _tile_stored(0, c, sizeof *c);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) {
            double want = 0;
            double size = 0;
            for (int k = 0; k < 2 * INNER; k++) {
                const double term = (double)bf16(a[i] + 2 * k) * bf16(b[k / 2] + 4 * j + k % 2 * 2);
                want += 2 * term;
                size += term < 0 ? -term : term;
            }
            const double off = c[i][j] - want;
            check(off <= 1e-6 * size && off >= -1e-6 * size, "a product of bf16");
        }
    uint32_t after;
    memcpy(&after, &c[0][COLUMNS], 4);
    check(after == 0xffffffff, "nothing is stored after the columns");
}

static void test_bytes(int is_signed)
{
    uint8_t a[ROWS][4 * INNER];
    uint8_t b[INNER][4 * COLUMNS];
    int32_t c[ROWS][COLUMNS];
    fill(a[0], sizeof a, 0);
    fill(b[0], sizeof b, 0);
    shape();
    _tile_zero(1);
    _tile_loadd(4, a, sizeof *a);
    _tile_loadd(5, b, sizeof *b);
    if (is_signed) _tile_dpbssd(1, 4, 5);
    else _tile_dpbsud(1, 4, 5);
    _tile_stored(1, c, sizeof *c);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) {
            int32_t want = 0;
            for (int k = 0; k < 4 * INNER; k++) {
                const uint8_t right = b[k / 4][4 * j + k % 4];
                want += (int8_t)a[i][k] * (is_signed ? (int8_t)right : right);
            }
            check(c[i][j] == want, is_signed ? "signed bytes" : "signed and unsigned bytes");
        }
}

/* What a processor refuses. */
static void unshaped(void) { _tile_zero(0); }

static void released(void)
{
    shape();
    _tile_release();
    _tile_zero(0);
}

static void without_rows(void)
{
    shape();
    _tile_zero(7);
}

static void turned_round(void)
{
    shape();
    _tile_dpbf16ps(0, 5, 4);
}

static void twice(void)
{
    shape();
    _tile_dpbssd(0, 4, 4);
}

static void test_end(void (*f)(void), const char *name)
{
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(2);
        f();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, name);
}

int main(void)
{
    test_end(unshaped, "tiles without a shape end the program");
    test_bf16();
    test_bytes(1);
    test_bytes(0);
    test_end(released, "released tiles end the program");
    test_end(without_rows, "a tile without rows ends the program");
    test_end(turned_round, "operands that do not fit end the program");
    test_end(twice, "a tile that is both operands ends the program");
    printf("%d failures\n", failures);
    return failures != 0;
}
