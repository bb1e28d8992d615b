// Four-bit weights, as w4_weight.py packs them, in registers: what a lane of a warp gives to tensor cores.
//
// A nibble under the exponent of 2^7 (float16: 2^6) is the number OFFSET + q, without any conversion.

// (word & mask) | exponent
__device__ __forceinline__ u32 masked(u32 word, u32 mask, u32 exponent) {
    u32 pair;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(pair) : "r"(word), "r"(mask), "r"(exponent));
    return pair;
}

__device__ __forceinline__ u32 masked(u32 word) {
    return IS_HALF ? masked(word, 0x00f000f0, 0x54005400) : masked(word, 0x000f000f, 0x43004300);
}

// 16 x 16 values OFFSET + q, this lane's part.
__device__ __forceinline__ uint4 unpacked(u32 word) {
#if IS_HALF
    return make_uint4(masked(word << 4), masked(word), masked(word >> 4), masked(word >> 8));
#else
    return make_uint4(masked(word), masked(word >> 4), masked(word >> 8), masked(word >> 12));
#endif
}

__device__ __forceinline__ float half_to_float(u32 word) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)word));
    return value;
}

// What makes a row's numbers weights, twice each: OFFSET + zero, the scale, and what that leaves out.
struct Level { u32 zero, scale, rest; };

// Of a word of scale and zero. In float16 a number of nibble 1 or 3 (`is_second`) is 2^6 + q, and one of 0 or 2, which
// would take a shift, 2^10 + q.
__device__ __forceinline__ Level level_of(u32 word, bool is_second) {
#if IS_HALF
    const u32 zero = __byte_perm(word, 0, 0x3232);
    return {is_second ? masked(zero << 4) : masked(zero, 0x000f000f, 0x64006400), __byte_perm(word, 0, 0x1010), 0};
#else
    const float scale = half_to_float(word);
    const u32 high = from_float(scale), rest = from_float(scale - to_float(high));
    return {__byte_perm(word, 0, 0x3232), high * 0x10001, rest * 0x10001};
#endif
}

// (q - zero) * scale, rounded once. A scale has 11 bits; in bfloat16 it is taken as the nearest 8 and a rest of no more
// than 3, whose product with the at most 4 of q - zero is exact.
__device__ __forceinline__ u32 weights_of(u32 numbers, const Level& level) {
    u32 result;
#if IS_HALF
    asm("{\n.reg .b32 d;\nsub.rn.f16x2 d, %1, %2;\nmul.rn.f16x2 %0, d, %3;\n}"
        : "=r"(result) : "r"(numbers), "r"(level.zero), "r"(level.scale));
#else
    asm("{\n.reg .b32 d, r;\nsub.rn.bf16x2 d, %1, %2;\nmul.rn.bf16x2 r, d, %4;\nfma.rn.bf16x2 %0, d, %3, r;\n}"
        : "=r"(result) : "r"(numbers), "r"(level.zero), "r"(level.scale), "r"(level.rest));
#endif
    return result;
}

// 16 x 16 weights, this lane's part, of a strip's word, with the levels of its two rows, outputs g and g + 8.
__device__ __forceinline__ uint4 weights_of_strip(u32 word, const Level (&levels)[2]) {
#if IS_HALF
    const u32 high = word >> 8;
    const uint4 numbers = make_uint4(masked(word, 0x000f000f, 0x64006400), masked(word),
                                     masked(high, 0x000f000f, 0x64006400), masked(high));
#else
    const uint4 numbers = unpacked(word);
#endif
    return make_uint4(weights_of(numbers.x, levels[0]), weights_of(numbers.y, levels[1]),
                      weights_of(numbers.z, levels[0]), weights_of(numbers.w, levels[1]));
}

// The same of two strips, gates and ups: of each the first eight outputs, or the others (`is_second`).
__device__ __forceinline__ uint4 weights_of_halves(u32 gates, u32 ups, bool is_second, const Level (&levels)[2]) {
#if IS_HALF
    const u32 mask = is_second ? 0x00f000f0 : 0x000f000f, exponent = is_second ? 0x54005400 : 0x64006400;
#else
    const u32 mask = 0x000f000f, exponent = 0x43004300;
    gates >>= is_second * 4, ups >>= is_second * 4;
#endif
    return make_uint4(weights_of(masked(gates, mask, exponent), levels[0]),
                      weights_of(masked(ups, mask, exponent), levels[1]),
                      weights_of(masked(gates >> 8, mask, exponent), levels[0]),
                      weights_of(masked(ups >> 8, mask, exponent), levels[1]));
}

__device__ __forceinline__ u32 word_of(uint4 words, int i) {
    return i < 2 ? (i ? words.y : words.x) : (i == 2 ? words.z : words.w);
}
