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

// The same where the offset is taken off at once, so that it may be large: in float16 with fewer shifts, and 2^10 for the
// nibbles of output g.
__device__ __forceinline__ uint4 unpacked_quickly(u32 word) {
#if IS_HALF
    const u32 high = word >> 8;
    return make_uint4(masked(word, 0x000f000f, 0x64006400), masked(word), masked(high, 0x000f000f, 0x64006400),
                      masked(high));
#else
    return unpacked(word);
#endif
}

// Eight gates and eight ups, from words of both: of each strip's outputs the first eight, or the others.
__device__ __forceinline__ uint4 unpacked_half(u32 gates, u32 ups, int half) {
#if IS_HALF
    const u32 mask = half ? 0x00f000f0 : 0x000f000f, exponent = half ? 0x54005400 : 0x64006400;
#else
    const u32 mask = 0x000f000f, exponent = 0x43004300;
    gates >>= half * 4, ups >>= half * 4;
#endif
    return make_uint4(masked(gates, mask, exponent), masked(ups, mask, exponent), masked(gates >> 8, mask, exponent),
                      masked(ups >> 8, mask, exponent));
}

__device__ __forceinline__ u32 word_of(uint4 words, int i) {
    return i < 2 ? (i ? words.y : words.x) : (i == 2 ? words.z : words.w);
}

// OFFSET + zero, twice, of a word of scale and zero: of output g, or g + 8, as unpacked quickly.
__device__ __forceinline__ u32 zero_pair(u32 scale_word, int half) {
#if IS_HALF
    const u32 zero = scale_word >> 16 & 15;
    return (half ? zero << 4 | 0x5400 : zero | 0x6400) * 0x10001;
#else
    return __byte_perm(scale_word, 0, 0x3232);
#endif
}

__device__ __forceinline__ u32 difference(u32 left, u32 right) {
    u32 result;
#if IS_HALF
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(left), "r"(right));
#else
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(left), "r"(right));
#endif
    return result;
}
