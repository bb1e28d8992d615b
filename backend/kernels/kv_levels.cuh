// Levels of quantised keys and values, as they lie in memory, as float16 operands of tensor cores (mma.m16n8k16).
//
// The order of dimensions in a product does not matter as long as both sides agree: a thread takes those whose bytes
// lie together, so that a load has up to 16 of them. Four threads ("quarters") have a key, eight ("eighths") a value.
// A pair of one token's values is two bytes, or the lower or upper halves of two bytes; a pair of two tokens' values
// needs one permutation more. For decode_quantised.cu.

constexpr int ROW_BYTES = HEAD_DIM * BITS / 8;
constexpr int K_WORDS = ROW_BYTES / 16;             // of a key that a thread has
constexpr int K_CHUNK = K_WORDS < 4 ? K_WORDS : 4;  // of them that lie together
constexpr int V_WORDS = ROW_BYTES / 32;             // of a value that a thread has
constexpr int STEPS = HEAD_DIM / 16;                // products that 16 keys take, and 16 values
constexpr float MIDDLE = BITS == 8 ? 128 : 8;       // which is taken from a value's levels

__device__ __forceinline__ u32 permuted(u32 low, u32 high, u32 selector) { return __byte_perm(low, high, selector); }

__device__ __forceinline__ u32 minus(u32 halves, u32 amounts) {
    u32 result;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(result) : "r"(halves), "r"(amounts));
    return result;
}

__device__ __forceinline__ u32 times_plus(u32 halves, u32 factors, u32 summands) {
    u32 result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(halves), "r"(factors), "r"(summands));
    return result;
}

// Two levels of a word, its first or last two bytes, as float16 and 1024 more, which is what 10 bits under 0x64 are.
__device__ __forceinline__ u32 lower_bytes(u32 word) { return permuted(word, 0x64646464, 0x4140); }
__device__ __forceinline__ u32 upper_bytes(u32 word) { return permuted(word, 0x64646464, 0x4342); }

// Likewise the first four bits of either half of a word, or the next four, and these times 16: (word & MASK) | c in one
// instruction, as the compiler does not see.
template <u32 MASK> __device__ __forceinline__ u32 masked(u32 word) {
    u32 result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "n"(MASK), "r"(0x64006400));
    return result;
}

// The pairs of a key's levels for the given product, of a thread's K_WORDS words; k_dimension says which they are.
// 1024 more each, and the second of int4 times 16: `query` and its `offset` are made for that.
__device__ __forceinline__ void k_pairs(const u32* words, int step, u32& first, u32& second) {
    if constexpr (BITS == 8) {
        first = lower_bytes(words[step]);
        second = upper_bytes(words[step]);
    } else {
        const u32 word = step % 2 ? words[step / 2] >> 8 : words[step / 2];
        first = masked<0x000f000f>(word);
        second = masked<0x00f000f0>(word);
    }
}

constexpr float SECOND_FACTOR = BITS == 8 ? 1 : 16;  // of the second pair

// Dimension of element `element` (0, 1: first pair, 2, 3: second) of product `step` for the threads of this quarter.
__device__ __forceinline__ int k_dimension(int step, int element, int quarter) {
    const int word = BITS == 8 ? step : step / 2;
    const int byte = (word / K_CHUNK * 4 + quarter) * 4 * K_CHUNK + word % K_CHUNK * 4;  // of the word's first
    if constexpr (BITS == 8) return byte + element;
    else return byte + step % 2 + element % 2 * 2 + element / 2 * (HEAD_DIM / 2);
}

// Two pairs, each of two tokens' values of one dimension; v_dimension says which. MIDDLE less, so that the sum over
// many tokens loses nothing.
__device__ __forceinline__ void v_pairs(u32 first, u32 second, u32* pairs, int half) {
    if constexpr (BITS == 8) {
        const u32 bytes = permuted(first, second, half ? 0x7362 : 0x5140);
        pairs[0] = minus(lower_bytes(bytes), 0x64806480);
        pairs[1] = minus(upper_bytes(bytes), 0x64806480);
    } else {
        const u32 bytes = permuted(first, second, half / 2 ? 0x7632 : 0x5410);
        const u32 word = half % 2 ? bytes >> 8 : bytes;
        pairs[0] = minus(masked<0x000f000f>(word), 0x64086408);
        pairs[1] = times_plus(masked<0x00f000f0>(word), 0x2c002c00, 0xd480d480);  // / 16 - 72
    }
}

constexpr int V_HALVES = BITS == 8 ? 2 : 4;  // pairs of dimensions in a word
static_assert(V_WORDS * V_HALVES == STEPS, "");

// Dimension of the first (row 0) or second (row 1) pair of product `step`, for the threads of this eighth.
__device__ __forceinline__ int v_dimension(int step, int row, int eighth) {
    const int word = step / V_HALVES, half = step % V_HALVES;
    if constexpr (BITS == 8) return eighth * 4 * V_WORDS + 4 * word + 2 * half + row;
    else return eighth * 4 * V_WORDS + 4 * word + half + row * (HEAD_DIM / 2);
}
