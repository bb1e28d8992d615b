// wgmma: a group of four warps multiplies 64 rows by TOKENS tokens, 16 inputs at a time, out of shared memory, in the
// background. Both operands are boxes of 64 inputs (128 bytes) a row as TMA leaves them with its 128-byte swizzle. Of
// the sums, [64, TOKENS], lane l of warp w holds rows 16w + l / 4 and 8 more, of tokens 8i + l % 4 * 2 and the next:
// sums[4i], sums[4i + 1] of the first row, sums[4i + 2], sums[4i + 3] of the second.

constexpr int GROUP_THREADS = 128;

__device__ __forceinline__ void group_sync(int group) {
    asm volatile("bar.sync %0, %1;" :: "r"(1 + group), "n"(GROUP_THREADS) : "memory");
}

__device__ __forceinline__ unsigned long long wgmma_operand(u32 address) {
    return (address & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;  // eight rows are 1,024 bytes
}

// What was written to registers and shared memory before may be read by the products that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Behind a wait for all products: keeps what the compiler does with the sums behind it, too.
__device__ __forceinline__ void wgmma_finish(float (&sums)[TOKENS / 2]) {
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) asm volatile("" : "+f"(sums[i]) :: "memory");
}

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most N commits are under way.
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}

// Numbers and operands of the sums, ten or two at a time: TEN() is 0 to 9, TEN(1) is 10 to 19.
#define NUMBERS_2(tens) "%" #tens "0, %" #tens "1"
#define NUMBERS_4(tens) NUMBERS_2(tens) ", %" #tens "2, %" #tens "3"
#define NUMBERS_6(tens) NUMBERS_4(tens) ", %" #tens "4, %" #tens "5"
#define NUMBERS_8(tens) NUMBERS_6(tens) ", %" #tens "6, %" #tens "7"
#define NUMBERS_10(tens) NUMBERS_8(tens) ", %" #tens "8, %" #tens "9"
#define SUMS_2(tens) "+f"(sums[tens##0]), "+f"(sums[tens##1])
#define SUMS_4(tens) SUMS_2(tens), "+f"(sums[tens##2]), "+f"(sums[tens##3])
#define SUMS_6(tens) SUMS_4(tens), "+f"(sums[tens##4]), "+f"(sums[tens##5])
#define SUMS_8(tens) SUMS_6(tens), "+f"(sums[tens##6]), "+f"(sums[tens##7])
#define SUMS_10(tens) SUMS_8(tens), "+f"(sums[tens##8]), "+f"(sums[tens##9])
#define NUMBERS_30 NUMBERS_10() ", " NUMBERS_10(1) ", " NUMBERS_10(2)
#define SUMS_30 SUMS_10(), SUMS_10(1), SUMS_10(2)
#define NUMBERS_60 NUMBERS_30 ", " NUMBERS_10(3) ", " NUMBERS_10(4) ", " NUMBERS_10(5)
#define SUMS_60 SUMS_30, SUMS_10(3), SUMS_10(4), SUMS_10(5)
#define NUMBERS_90 NUMBERS_60 ", " NUMBERS_10(6) ", " NUMBERS_10(7) ", " NUMBERS_10(8)
#define SUMS_90 SUMS_60, SUMS_10(6), SUMS_10(7), SUMS_10(8)
#if IS_HALF
#define WGMMA_TYPES "f32.f16.f16"
#else
#define WGMMA_TYPES "f32.bf16.bf16"
#endif
#define WGMMA(N, NUMBERS, ROWS, COLUMNS, IS_ADDED, ...) \
    asm volatile("{\n.reg .pred added;\nsetp.ne.b32 added, " IS_ADDED ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16." WGMMA_TYPES " {" NUMBERS "}, " ROWS ", " COLUMNS \
                 ", added, 1, 1, 0, 0;\n}" : __VA_ARGS__ : "l"(rows), "l"(tokens), "r"((int)is_added))

// Adds the product of 64 rows and TOKENS tokens to the sums, or with is_added false, makes it the sums.
__device__ __forceinline__ void wgmma(float (&sums)[TOKENS / 2], unsigned long long rows, unsigned long long tokens,
                                      bool is_added) {
#if TOKENS == 32
    WGMMA(32, NUMBERS_10() ", " NUMBERS_6(1), "%16", "%17", "%18",
          SUMS_10(), SUMS_6(1));
#elif TOKENS == 64
    WGMMA(64, NUMBERS_30 ", " NUMBERS_2(3), "%32", "%33", "%34",
          SUMS_30, SUMS_2(3));
#elif TOKENS == 96
    WGMMA(96, NUMBERS_30 ", " NUMBERS_10(3) ", " NUMBERS_8(4), "%48", "%49", "%50",
          SUMS_30, SUMS_10(3), SUMS_8(4));
#elif TOKENS == 128
    WGMMA(128, NUMBERS_60 ", " NUMBERS_4(6), "%64", "%65", "%66",
          SUMS_60, SUMS_4(6));
#elif TOKENS == 160
    WGMMA(160, NUMBERS_60 ", " NUMBERS_10(6) ", " NUMBERS_10(7), "%80", "%81", "%82",
          SUMS_60, SUMS_10(6), SUMS_10(7));
#elif TOKENS == 192
    WGMMA(192, NUMBERS_90 ", " NUMBERS_6(9), "%96", "%97", "%98",
          SUMS_90, SUMS_6(9));
#elif TOKENS == 224
    WGMMA(224, NUMBERS_90 ", " NUMBERS_10(9) ", " NUMBERS_10(10) ", " NUMBERS_2(11), "%112", "%113", "%114",
          SUMS_90, SUMS_10(9), SUMS_10(10), SUMS_2(11));
#elif TOKENS == 256
    WGMMA(256, NUMBERS_90 ", " NUMBERS_10(9) ", " NUMBERS_10(10) ", " NUMBERS_10(11) ", " NUMBERS_8(12), "%128", "%129",
          "%130",
          SUMS_90, SUMS_10(9), SUMS_10(10), SUMS_10(11), SUMS_8(12));
#else
#error "no such tile"
#endif
}
